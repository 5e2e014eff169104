use std::process::ExitCode;

use crate::cli::complain;
use crate::failure::Failure;
use crate::output::print;

/// Does the same to several boxes, and prints the names of those that it was done to. One that
/// refuses does not spare the others.
pub(super) async fn each<E: Into<Failure>>(
    boxes: &[String],
    mut act: impl AsyncFnMut(&str) -> Result<(), E>,
) -> Result<ExitCode, Failure> {
    let mut code = ExitCode::SUCCESS;
    for name in boxes {
        match act(name).await.map_err(Into::into) {
            Ok(()) => print(format_args!("{name}\n"))?,
            Err(failure) => {
                complain(failure);
                code = ExitCode::FAILURE;
            }
        }
    }
    Ok(code)
}
