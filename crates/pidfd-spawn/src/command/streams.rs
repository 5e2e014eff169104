use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};

use crate::child::Streams;
use crate::descriptors::{Descriptors, Source};
use crate::stdio::{Kind, Stdio};
use crate::sys;

/// Opens the standard streams, and plans the descriptors of the child.
///
/// `others` are the descriptors of [`Command::fd`](crate::Command::fd), by number. They replace
/// standard streams.
pub(super) fn connect<'a>(
    streams: [&'a Stdio; 3],
    others: &'a BTreeMap<RawFd, OwnedFd>,
) -> io::Result<(Descriptors<'a>, Streams)> {
    let mut wanted = Vec::with_capacity(streams.len() + others.len());
    let mut ours = Streams::default();
    for ((number, stream), our_end) in (0..).zip(streams).zip(&mut ours) {
        if others.contains_key(&number) {
            continue;
        }
        let is_input = number == 0;
        let source = match &stream.0 {
            Kind::Inherit => continue,
            Kind::Null => {
                let mut options = OpenOptions::new();
                options.read(is_input).write(!is_input);
                Source::Owned(options.open("/dev/null")?.into())
            }
            Kind::Piped => {
                let (reader, writer) = sys::pipe()?;
                let (theirs, our) = if is_input {
                    (reader, writer)
                } else {
                    (writer, reader)
                };
                *our_end = Some(our);
                Source::Owned(theirs)
            }
            Kind::Fd(fd) => Source::Borrowed(fd.as_fd()),
            Kind::Stdout => Source::Owned(io::stdout().as_fd().try_clone_to_owned()?),
            Kind::Stderr => Source::Owned(io::stderr().as_fd().try_clone_to_owned()?),
        };
        wanted.push((number, source));
    }
    for (number, fd) in others {
        wanted.push((*number, Source::Borrowed(fd.as_fd())));
    }
    Ok((Descriptors::plan(wanted)?, ours))
}
