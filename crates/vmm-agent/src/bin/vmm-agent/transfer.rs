use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::AsFd;
use std::process::ExitCode;

use serde::de::DeserializeOwned;
use vmm_archive::{ArchiveError, CreateOptions, ExtractOptions, create, extract};
use vmm_protocol::frames::{GetSpec, PutSpec, RequestError, RequestErrorKind};
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
        Err(RequestError { kind, message }) => {
            // Without a reader, only the exit code remains.
            let _ = io::stderr().write_all(message.as_bytes());
            ExitCode::from(kind.exit_code())
        }
    })
}

fn put(spec: &OsString) -> Result<(), RequestError> {
    let spec: PutSpec = parse(spec)?;
    let options = ExtractOptions::default()
        .overwrite(spec.overwrite)
        .rename_root(spec.rename_root)
        .preserve(true);
    extract(io::stdin().lock(), &spec.path, &options).map_err(request_error)
}

fn get(spec: &OsString) -> Result<(), RequestError> {
    let spec: GetSpec = parse(spec)?;
    let options = CreateOptions::default().follow_symlinks(spec.follow_symlinks);
    // Without the buffer of `io::stdout`, which ends at each line.
    let stdout = io::stdout().as_fd().try_clone_to_owned();
    let stdout = stdout.map_err(ArchiveError::Write).map_err(request_error)?;
    let stdout = BufWriter::with_capacity(WRITE_BYTES, File::from(stdout));
    create(&spec.path, stdout, &options).map_err(request_error)
}

/// How many bytes are written at once: as many as a pipe holds, pipe(7).
const WRITE_BYTES: usize = 64 << 10;

fn parse<T: DeserializeOwned>(spec: &OsString) -> Result<T, RequestError> {
    let spec = spec.to_str().unwrap_or_default();
    serde_json::from_str(spec)
        .map_err(|error| RequestError::new(RequestErrorKind::Invalid, with_causes(&error)))
}

fn request_error(error: ArchiveError) -> RequestError {
    let kind = match error {
        ArchiveError::NotFound(_) => RequestErrorKind::NotFound,
        ArchiveError::NotADirectory(_) => RequestErrorKind::NotADirectory,
        ArchiveError::Exists(_) => RequestErrorKind::Exists,
        ArchiveError::Escapes(_) | ArchiveError::Invalid(_) => RequestErrorKind::Invalid,
        _ => RequestErrorKind::Failed,
    };
    RequestError::new(kind, with_causes(&error))
}
