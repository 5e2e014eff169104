//! What the fuzz targets in `tests/fuzz` check. A function panics if a parser breaks its promise for
//! the input.

#![allow(clippy::unwrap_used, reason = "a failed check ends the program")]

use std::ffi::{OsStr, OsString};
use std::fmt::Debug;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use arbitrary::{Result, Unstructured};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::bounds::MAX_TEXT_BYTES;
use crate::control_group::find::parse_group_name;
use crate::control_group::hierarchy::{Hierarchies, proc_path};
use crate::frames::{
    Frame, FrameError, FrameReader, HostMessage, Message, PayloadMessage, Strictness,
};
use crate::procfs::{Mount, Stat, field_of, parse_arguments, parse_control_groups, parse_pids};
use crate::{
    Assignment, BootTimes, BoxDir, ConfinementRule, ConsoleOptions, ControlGroup, Controller,
    Ending, ExitRecord, FILES, FailureKind, InstanceSpec, Invocation, PayloadSpec, PidRecord,
    ProcessIdentity, Ready, Report, RuntimeProcess, UnappliedRule, read_line, to_line, with_causes,
};

/// The longest error: the path of a file, and a text that may quote from it.
const MAX_ERROR_BYTES: usize = 2 * MAX_TEXT_BYTES;

/// Checks the parsers of the files in a box directory, to which a payload can write anything. `dir`
/// is a directory for these files.
pub fn records(dir: &Path, input: &[u8]) {
    let path = dir.join("input");
    fs::write(&path, input).unwrap();
    for name in [
        FILES.shim_pid,
        FILES.exit,
        FILES.control_group,
        FILES.console_dropped,
        FILES.console,
    ] {
        if !dir.join(name).exists() {
            fs::hard_link(&path, dir.join(name)).unwrap();
        }
    }
    let dir = BoxDir::new(dir);

    match dir.shim_record() {
        Ok(None) => assert!(input.iter().all(|byte| *byte == 0)),
        Ok(Some(record)) => {
            assert!(record.pid > 0 && record.pid.cast_signed() > 0);
            let boot_id = record.identity.as_ref().map(|identity| &identity.boot_id);
            assert!(boot_id.is_none_or(|id| id.len() <= MAX_TEXT_BYTES));
            let json = serde_json::to_vec(&record).unwrap();
            assert_eq!(PidRecord::parse(&json), Some(record));
        }
        Err(error) => assert!(with_causes(&error).len() <= MAX_ERROR_BYTES),
    }
    match dir.exit_record() {
        Ok(record) => {
            let record = record.unwrap();
            assert_eq!(record.ending, record.ending.clone().truncated());
            assert!((0..=255).contains(&record.ending.shell_code()));
            assert_same_after_json(&record);
        }
        Err(error) => assert!(with_causes(&error).len() <= MAX_ERROR_BYTES),
    }

    let groups = dir.control_groups().unwrap();
    let groups: Vec<_> = groups
        .iter()
        .map(|path| path.as_os_str().as_bytes())
        .collect();
    let lines = input.split(|byte| *byte == b'\n');
    assert!(
        groups
            .iter()
            .copied()
            .eq(lines.filter(|line| !line.is_empty()))
    );

    let output = String::from_utf8_lossy(input);
    let dropped = dir.dropped_console_bytes();
    assert!(dropped == 0 || output.trim().ends_with(&dropped.to_string()));

    let start = input.first().map_or(0, |byte| u64::from(*byte) * 32);
    match dir.last_console_lines(start) {
        Some(lines) => {
            assert!(lines.len() <= MAX_TEXT_BYTES && !lines.is_empty());
            // The first byte that is read may be within a character.
            let lines = lines.trim_start_matches(char::REPLACEMENT_CHARACTER);
            assert!(output.trim_end().ends_with(lines));
        }
        None => assert!(start > 0 || output.trim_end().is_empty() || input.len() > MAX_TEXT_BYTES),
    }
}

/// Checks the parsers of the messages to a shim and from it, and of its arguments.
pub fn messages(input: &[u8]) {
    match InstanceSpec::read(input) {
        Ok((spec, runtime)) => {
            let line = match &runtime {
                Some(runtime) => spec.to_line_from(runtime),
                None => spec.to_line(),
            };
            assert_eq!(InstanceSpec::read(&*line.unwrap()), Ok((spec, runtime)));
        }
        // It quotes nothing.
        Err(message) => assert!(message.len() <= 100, "{message}"),
    }
    assert_same_after_a_line::<Report>(input);
    assert_same_after_a_line::<Assignment>(input);
    assert_same_after_a_line::<RuntimeProcess>(input);

    if let Some(invocation) = Invocation::parse(parse_arguments(input)) {
        assert_is_parsed(&invocation);
    }
}

/// Checks the parser of control frames, which a guest can send, too.
pub fn frames(input: &[u8]) {
    frames_of::<HostMessage>(input);
    frames_of::<PayloadMessage>(input);
}

fn frames_of<M: Message + PartialEq + Debug>(input: &[u8]) {
    for strictness in [Strictness::Strict, Strictness::Resynchronize] {
        let frames = read_frames::<M>(strictness, &[input]);
        let length = input.first().map_or(0, |byte| usize::from(*byte));
        let (first, rest) = input.split_at(length.min(input.len()));
        assert_eq!(read_frames::<M>(strictness, &[first, rest]), frames);
        for frame in frames.into_iter().flatten() {
            let mut wire = Vec::new();
            frame.encode(&mut wire).unwrap();
            let again = read_frames(Strictness::Strict, &[&wire]);
            assert_eq!(again, [Ok(frame)]);
        }
    }
}

/// Returns the frames and the errors of a connection that carries these bytes.
fn read_frames<M: Message>(
    strictness: Strictness,
    reads: &[&[u8]],
) -> Vec<std::result::Result<Frame<M>, String>> {
    let mut reader = FrameReader::new(strictness);
    let mut frames = Vec::new();
    for bytes in reads {
        reader.push(bytes);
        loop {
            match reader.next_frame() {
                Ok(Some(frame)) => frames.push(Ok(frame)),
                Ok(None) => break,
                Err(error) => {
                    let text = with_causes(&error);
                    assert!(text.len() <= MAX_ERROR_BYTES, "{text}");
                    frames.push(Err(text));
                    if matches!(error, FrameError::Header) {
                        assert_eq!(strictness, Strictness::Strict);
                        return frames;
                    }
                }
            }
        }
    }
    assert!(reader.skipped() as usize <= reads.concat().len());
    frames
}

/// Checks the parsers of files in `/proc`. A process chooses its name and its arguments, and other
/// users choose the names of mount points.
pub fn procfs(input: &[u8]) {
    // A process with this name has these fields.
    let line = [
        b"42 (",
        input,
        b") S 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24",
    ];
    let stat = Stat::parse(&line.concat()).unwrap();
    let fields = (stat.state, stat.parent, stat.session, stat.cpu_ticks);
    assert_eq!(fields, ('S', 4, 6, 14 + 15 + 16 + 17));
    assert_eq!((stat.start_time, stat.rss_pages), (22, 24));

    let args = parse_arguments(input);
    let joined = args.join(OsStr::from_bytes(b"\0")).into_vec();
    assert_eq!(joined, input.strip_suffix(b"\0").unwrap_or(input));

    let pids: Vec<_> = parse_pids(input, u64::MAX).collect();
    let complete: Vec<_> = parse_pids(input, 0).collect();
    assert!(pids.starts_with(&complete));

    let text = String::from_utf8_lossy(input);
    if let Some(value) = field_of(&text, "SigIgn") {
        assert!(text.contains(value) && !value.contains('\n'));
    }
    for path in parse_control_groups(input) {
        assert!(!path.as_os_str().as_bytes().contains(&b'\n'));
    }
    if let Some((name, _)) = parse_group_name(&text) {
        assert!(text.starts_with(&format!("{}{name}.", ControlGroup::NAME_PREFIX)));
    }

    // `cgroup` and `mountinfo`, separated by an empty line.
    let (groups, mounts) = text.split_once("\n\n").unwrap_or((&text, ""));
    let hierarchies = Hierarchies::new(groups, mounts);
    for controller in [Controller::Cpu, Controller::Memory, Controller::Pids] {
        if let Some(hierarchy) = hierarchies.of(controller) {
            let has_parent = |path: &PathBuf| path.iter().any(|name| name == "..");
            let from_mount = mounts.contains("..");
            assert!(
                from_mount || !has_parent(&hierarchy.own_group),
                "{hierarchy:?}"
            );
        }
    }
    let mounts = Mount::parse_all(mounts.as_bytes());
    let _ = proc_path(Path::new("/sys/fs/cgroup/a"), &mounts);
}

/// Returns whether the process of a line in `/proc/<pid>/stat` has exited, and its start time.
pub fn stat(line: &[u8]) -> Option<(bool, u64)> {
    Stat::parse(line).map(|stat| (matches!(stat.state, 'Z' | 'X' | 'x'), stat.start_time))
}

/// Checks that each record, message and invocation is parsed as it was written.
pub fn round_trips(input: &[u8]) {
    // The end of the input gives empty values.
    let _ = write_and_parse(&mut Unstructured::new(input));
}

fn write_and_parse(from: &mut Unstructured<'_>) -> Result<()> {
    let identity = ProcessIdentity {
        start_time: from.arbitrary()?,
        boot_id: text(from)?,
        pidfd_inode: from.arbitrary()?,
    };
    let pid = from.int_in_range(1..=i32::MAX.cast_unsigned())?;
    let record = PidRecord {
        pid,
        identity: from.arbitrary::<bool>()?.then_some(identity),
    };
    let json = serde_json::to_vec(&record).unwrap();
    assert_eq!(PidRecord::parse(&json), Some(record));
    let without_identity = pid.to_string().into_bytes();
    assert_eq!(PidRecord::parse(&without_identity).unwrap().pid, pid);

    let mut ending = ending(from)?;
    if from.arbitrary()? {
        ending = Ending::ended_early(ending);
    }
    let exit = ExitRecord {
        pid,
        requested: from.arbitrary()?,
        ending,
    };
    assert_same_after_json(&exit);
    let payload_pid = from.arbitrary()?;
    let boot = from.arbitrary::<bool>()?.then(|| BootTimes {
        vmm_ms: pid.into(),
        ..BootTimes::default()
    });
    let unapplied_rules = vec![UnappliedRule {
        rule: *from.choose(&ConfinementRule::ALL)?,
        reason: text(from)?,
    }];
    let ready = Report::Ready {
        payload_pid,
        boot,
        helpers: from.arbitrary()?,
        unapplied_rules,
    };
    for report in [Report::Failed(exit), ready] {
        assert_same_after_a_line::<Report>(&to_line(&report).unwrap());
        assert_same_after_json(&report);
    }

    let (id, dir) = (text(from)?, PathBuf::from(text(from)?));
    let mut payload = PayloadSpec::command(texts(from)?);
    payload.engine = text(from)?;
    payload.env = texts(from)?.into_iter().zip(texts(from)?).collect();
    payload.working_dir = from.arbitrary::<bool>()?.then(|| dir.clone());
    payload.stdin = from.arbitrary::<bool>()?.then(|| id.clone());
    payload.ready = *from.choose(&[Ready::Started, Ready::Notified])?;
    payload.cpus = from.arbitrary()?;
    payload.console = ConsoleOptions::default().max_bytes(from.arbitrary()?);
    payload
        .options
        .insert(text(from)?, from.arbitrary::<f64>()?.into());
    let mut spec = InstanceSpec::new(id.clone(), payload);
    spec.stop_grace_ms = from.arbitrary()?;
    let line = spec.to_line().unwrap();
    assert_eq!(InstanceSpec::read(&*line), Ok((spec, None)));

    let assignment = Assignment { id, dir };
    assert_same_after_json(&assignment);
    let Assignment { id, dir } = assignment;
    assert_is_parsed(&Invocation::Box { id, dir });
    let dir = OsString::from_vec(from.arbitrary()?).into();
    assert_is_parsed(&Invocation::Warm { dir });
    Ok(())
}

fn ending(from: &mut Unstructured<'_>) -> Result<Ending> {
    let kinds = [
        FailureKind::Spec,
        FailureKind::NotFound,
        FailureKind::Engine,
    ];
    let ending = match from.int_in_range(0..=5)? {
        0 => Ending::OutOfMemory,
        1 => Ending::Exited {
            code: from.arbitrary::<u8>()?.into(),
        },
        2 => Ending::Signaled {
            signal: from.int_in_range(1..=64)?,
        },
        3 => Ending::failed(*from.choose(&kinds)?, text(from)?),
        4 => Ending::Helper {
            name: text(from)?,
            exit: Box::new(Ending::Exited {
                code: from.arbitrary::<u8>()?.into(),
            }),
        },
        _ => Ending::Panicked {
            message: text(from)?,
            location: Some(text(from)?),
        },
    };
    Ok(ending.truncated())
}

fn text(from: &mut Unstructured<'_>) -> Result<String> {
    let length = from.arbitrary_len::<u8>()?.min(64);
    Ok(String::from_utf8_lossy(from.bytes(length)?).into_owned())
}

fn texts(from: &mut Unstructured<'_>) -> Result<Vec<String>> {
    (0..from.int_in_range(0..=3)?).map(|_| text(from)).collect()
}

fn assert_is_parsed(invocation: &Invocation) {
    let args = [OsString::from(crate::ARGV0)]
        .into_iter()
        .chain(invocation.args());
    assert_eq!(Invocation::parse(args).as_ref(), Some(invocation));
}

fn assert_same_after_a_line<T>(input: &[u8])
where
    T: Serialize + DeserializeOwned + PartialEq + Debug,
{
    if let Ok(Some(message)) = read_line::<T>(input) {
        let line = to_line(&message).unwrap();
        assert_eq!(read_line::<T>(&*line).unwrap().as_ref(), Some(&message));
    }
}

fn assert_same_after_json<T>(value: &T)
where
    T: Serialize + DeserializeOwned + PartialEq + Debug,
{
    let json = serde_json::to_vec(value).unwrap();
    assert_eq!(&serde_json::from_slice::<T>(&json).unwrap(), value);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Calls `check` with each file of a corpus.
    fn replay(target: &str, check: impl Fn(&[u8])) {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fuzz/corpus");
        if !corpus.is_dir() {
            // The published package does not contain the corpora.
            return;
        }
        for file in fs::read_dir(corpus.join(target)).unwrap() {
            let path = file.unwrap().path();
            println!("{}", path.display());
            check(&fs::read(path).unwrap());
        }
    }

    #[test]
    fn the_parsers_keep_their_promises_for_the_corpora_of_the_fuzzer() {
        let dir = tempfile::tempdir().unwrap();
        replay("records", |input| records(dir.path(), input));
        replay("messages", messages);
        replay("frames", frames);
        replay("procfs", |input| {
            procfs(input);
            stat(input);
        });
        replay("round_trips", round_trips);
    }
}
