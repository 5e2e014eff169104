use std::process::ExitCode;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::cli::Cli;
use crate::failure::Failure;
use crate::output::print_raw;

/// Print what makes a shell complete these commands
///
/// For bash: shimd completions bash > ~/.local/share/bash-completion/completions/shimd
#[derive(Args, Debug)]
pub(crate) struct Completions {
    /// Which shell
    #[arg(value_enum)]
    shell: Shell,
}

impl Completions {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "shimd", &mut script);
        print_raw(&script)?;
        Ok(ExitCode::SUCCESS)
    }
}
