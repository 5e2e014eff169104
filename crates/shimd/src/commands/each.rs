use std::process::ExitCode;

use futures::{StreamExt, stream};

use crate::cli::complain;
use crate::failure::Failure;
use crate::output::print;

/// How many boxes are worked at together.
const AT_ONCE: usize = 50;

/// Does the same to several boxes, and prints the names of those that it was done to, in their
/// order. One that refuses does not spare the others, and neither does a reader that is gone.
pub(super) async fn each<E: Into<Failure>>(
    boxes: &[String],
    act: impl AsyncFn(&str) -> Result<(), E>,
) -> Result<ExitCode, Failure> {
    let act = &act;
    let acts = boxes.iter().map(async |name| (name, act(name).await));
    let mut done = stream::iter(acts).buffered(AT_ONCE);
    let mut code = ExitCode::SUCCESS;
    let mut printed = Ok(());
    while let Some((name, outcome)) = done.next().await {
        match outcome.map_err(Into::into) {
            Ok(()) => printed = printed.and_then(|()| print(format_args!("{name}\n"))),
            Err(failure) => {
                complain(failure);
                code = ExitCode::FAILURE;
            }
        }
    }
    match printed {
        // A box that has refused is a failure whoever reads.
        Err(failure) if code == ExitCode::SUCCESS || !failure.is_broken_pipe() => Err(failure),
        _ => Ok(code),
    }
}
