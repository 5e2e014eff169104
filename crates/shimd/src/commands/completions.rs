use std::process::ExitCode;

use clap::{Args, Command, CommandFactory};
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
        let cli = Cli::command();
        // What help does not show is not offered either.
        let shown = cli.get_subcommands().filter(|it| !it.is_hide_set());
        let mut shown = Command::new("shimd")
            .version(env!("CARGO_PKG_VERSION"))
            .disable_help_subcommand(true)
            .args(cli.get_arguments())
            .subcommands(shown);
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut shown, "shimd", &mut script);
        print_raw(&script)?;
        Ok(ExitCode::SUCCESS)
    }
}
