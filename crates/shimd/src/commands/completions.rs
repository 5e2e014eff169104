use std::process::ExitCode;

use clap::{Args, Command};
use clap_complete::Shell;

use crate::failure::Failure;
use crate::output::print_raw;

/// Print a completion script for a shell
///
/// For bash: shimd completions bash > ~/.local/share/bash-completion/completions/shimd
#[derive(Args, Debug)]
pub(crate) struct Completions {
    /// Shell that runs the script
    #[arg(value_enum)]
    shell: Shell,
}

impl Completions {
    pub(crate) fn run(self, cli: Command) -> Result<ExitCode, Failure> {
        // clap_complete would offer hidden subcommands too.
        let visible = cli.get_subcommands().filter(|it| !it.is_hide_set());
        let mut visible = Command::new("shimd")
            .version(env!("CARGO_PKG_VERSION"))
            .disable_help_subcommand(true)
            .args(cli.get_arguments())
            .subcommands(visible);
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut visible, "shimd", &mut script);
        print_raw(&script)?;
        Ok(ExitCode::SUCCESS)
    }
}
