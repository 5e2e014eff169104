use std::process::ExitCode;

use clap::Args;

use crate::failure::Failure;
use crate::home::Home;
use crate::output::{print, print_error};

/// Remove images with their files
///
/// Boxes that run go on; they cannot be started again.
#[derive(Args, Debug)]
pub(super) struct Remove {
    /// Names of the images
    #[arg(required = true, value_name = "IMAGE")]
    names: Vec<String>,
}

impl Remove {
    pub(super) fn run(self, home: &Home) -> Result<ExitCode, Failure> {
        let store = home.images();
        let mut code = ExitCode::SUCCESS;
        for name in &self.names {
            match store.remove(name) {
                Ok(()) => print(format_args!("{name}\n"))?,
                Err(error) => {
                    print_error(Failure::from(error).with_causes());
                    code = ExitCode::FAILURE;
                }
            }
        }
        Ok(code)
    }
}
