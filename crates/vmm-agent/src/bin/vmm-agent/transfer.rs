use std::error::Error;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::AsFd;
use std::process::ExitCode;

use serde::de::DeserializeOwned;
use vmm_archive::{ArchiveError, CreateOptions, ExtractOptions, create, extract};
use vmm_protocol::frames::{GetSpec, PutSpec, RequestErrorKind};
use vmm_protocol::with_causes;

/// The option that extracts the tar stream on stdin. Its value is a [`PutSpec`] as JSON.
pub(crate) const PUT: &str = "--put";

/// The option that writes files as a tar stream to stdout. Its value is a [`GetSpec`] as JSON.
pub(crate) const GET: &str = "--get";

/// Runs a file transfer, if that is what the arguments request, and returns its exit code.
///
/// The transfer is a process of its own, so that the agent neither blocks nor grows with it.
pub(crate) fn run_if_requested() -> Option<ExitCode> {
    let mut args = std::env::args_os().skip(1);
    let option = args.next()?;
    let spec = args.next().unwrap_or_default();
    let result = if option == PUT {
        put(&spec)
    } else if option == GET {
        get(&spec)
    } else {
        return None;
    };
    Some(match result {
        Ok(()) => ExitCode::SUCCESS,
        Err((kind, message)) => {
            // Without a reader, only the exit code remains.
            let _ = io::stderr().write_all(message.as_bytes());
            ExitCode::from(kind.exit_code())
        }
    })
}

/// The error of a transfer, and its message.
type Failure = (RequestErrorKind, String);

fn put(spec: &OsString) -> Result<(), Failure> {
    let spec: PutSpec = parse(spec)?;
    let options = ExtractOptions::default()
        .overwrite(spec.overwrite)
        .rename_root(spec.rename_root)
        .preserve(true);
    extract(io::stdin().lock(), &spec.path, &options).map_err(failure)
}

fn get(spec: &OsString) -> Result<(), Failure> {
    let spec: GetSpec = parse(spec)?;
    let options = CreateOptions::default().follow_symlinks(spec.follow_symlinks);
    // Without the buffer of `io::stdout`, which ends at each line.
    let stdout = io::stdout().as_fd().try_clone_to_owned();
    let stdout = stdout.map_err(ArchiveError::Write).map_err(failure)?;
    let stdout = BufWriter::with_capacity(WRITE_BYTES, File::from(stdout));
    create(&spec.path, stdout, &options).map_err(failure)
}

/// How many bytes are written at once: as many as a pipe holds, pipe(7).
const WRITE_BYTES: usize = 64 << 10;

fn parse<T: DeserializeOwned>(spec: &OsString) -> Result<T, Failure> {
    let invalid = |error: &dyn Error| (RequestErrorKind::Invalid, with_causes(error));
    let spec = spec.to_str().unwrap_or_default();
    serde_json::from_str(spec).map_err(|error| invalid(&error))
}

fn failure(error: ArchiveError) -> Failure {
    let kind = match error {
        ArchiveError::NotFound(_) => RequestErrorKind::NotFound,
        ArchiveError::NotADirectory(_) => RequestErrorKind::NotADirectory,
        ArchiveError::Exists(_) => RequestErrorKind::Exists,
        ArchiveError::Escapes(_) | ArchiveError::Invalid(_) => RequestErrorKind::Invalid,
        _ => RequestErrorKind::Failed,
    };
    (kind, with_causes(&error))
}
