use std::process::ExitCode;
use std::time::Duration;

use futures::{StreamExt, stream};
use tokio::time::interval;

use crate::failure::Failure;
use crate::output::{Progress, print, print_error};

const MAX_CONCURRENT_REQUESTS: usize = 50;

const REDRAW_INTERVAL: Duration = Duration::from_millis(250);

/// Runs `operation` on several boxes concurrently, and prints the names of those for which it
/// succeeded, in the order of the arguments. Shows the progress of a long operation. Neither a box
/// for which it fails nor a closed stdout stops it for the other boxes.
pub(super) async fn for_each_box<E: Into<Failure>>(
    boxes: &[String],
    operation: impl AsyncFn(&str) -> Result<(), E>,
) -> Result<ExitCode, Failure> {
    let operation = &operation;
    let operations = boxes.iter().map(async |name| (name, operation(name).await));
    let mut results = stream::iter(operations).buffered(MAX_CONCURRENT_REQUESTS);
    let mut code = ExitCode::SUCCESS;
    let mut printed = Ok(());
    let mut progress = Progress::new(boxes.len());
    let mut redraw = interval(REDRAW_INTERVAL);
    loop {
        let next = tokio::select! {
            next = results.next() => next,
            _ = redraw.tick() => {
                progress.draw();
                continue;
            }
        };
        let Some((name, result)) = next else {
            break;
        };
        progress.advance();
        progress.clear();
        match result.map_err(Into::into) {
            Ok(()) => printed = printed.and_then(|()| print(format_args!("{name}\n"))),
            Err(failure) => {
                print_error(failure.with_causes());
                code = ExitCode::FAILURE;
            }
        }
    }
    match printed {
        // A broken pipe counts as success, but must not hide a box that failed.
        Err(failure) if code == ExitCode::SUCCESS || !failure.is_broken_pipe() => Err(failure),
        _ => Ok(code),
    }
}
