use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;

use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::commands::{
    Attach, Completions, Copy, Create, Events, Exec, Image, Inspect, List, Logs, Man, Metrics,
    Pause, Remove, Run, Start, Stop, Top, Unpause, Wait,
};
use crate::daemon::Serve;
use crate::failure::{EXIT_SHIMD_FAILED, Failure};
use crate::home::Home;
use crate::output::print_error;

#[derive(Debug, Parser)]
#[command(
    name = "shimd",
    version,
    about = "Run boxes, each in its own shim process",
    after_help = "\
Getting started:
  shimd serve                          run the daemon; leave it running, and in another terminal:
  shimd run idle echo hello            create a box, run a command in it, wait until it ends
  shimd run --detach --name nap idle   start a box that runs until it is stopped
  shimd exec -it nap sh                run a shell in it
  shimd ps                             list the running boxes
  shimd rm --force nap                 kill the box and remove it",
    arg_required_else_help = true,
    disable_help_subcommand = true
)]
pub(crate) struct Cli {
    /// Directory of the daemon: its boxes and its socket [default: /var/lib/shimd for root,
    /// ~/.local/state/shimd for other users]
    #[arg(
        long,
        global = true,
        display_order = 900,
        value_name = "DIR",
        env = "SHIMD_HOME",
        hide_env_values = true
    )]
    home: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(Serve),
    Create(Create),
    Run(Run),
    Start(Start),
    Stop(Stop),
    Pause(Pause),
    Unpause(Unpause),
    Exec(Exec),
    Attach(Attach),
    #[command(name = "cp")]
    Copy(Copy),
    #[command(name = "rm")]
    Remove(Remove),
    #[command(name = "ps")]
    List(List),
    Inspect(Inspect),
    Logs(Logs),
    Wait(Wait),
    Image(Image),
    Metrics(Metrics),
    Events(Events),
    Top(Top),
    Completions(Completions),
    #[command(hide = true)]
    Man(Man),
    /// Sleep until a signal ends it: the command of the built-in image `idle`.
    #[command(hide = true)]
    Idle,
}

/// Runs the command that the arguments name and returns its exit code.
pub(crate) fn run() -> ExitCode {
    let parsed = Cli::command().try_get_matches().and_then(|mut matches| {
        let home_overrides_url = home_overrides_url(&matches);
        Ok((Cli::from_arg_matches_mut(&mut matches)?, home_overrides_url))
    });
    let (cli, home_overrides_url) = match parsed {
        Ok(parsed) => parsed,
        Err(error) => {
            // If stderr is closed, only the exit code remains.
            let _ = error.print();
            return if error.use_stderr() {
                ExitCode::from(EXIT_SHIMD_FAILED)
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    let failure_code = match &cli.command {
        Command::Run(_) | Command::Exec(_) | Command::Attach(_) => {
            ExitCode::from(EXIT_SHIMD_FAILED)
        }
        _ => ExitCode::FAILURE,
    };
    match cli.run(home_overrides_url) {
        Ok(code) => code,
        Err(failure) if failure.is_broken_pipe() => ExitCode::SUCCESS,
        Err(failure) => {
            print_error(failure.with_causes());
            failure_code
        }
    }
}

/// Returns true if `--home` is an argument and `--url` is not, so that a URL in the environment
/// does not override the argument.
fn home_overrides_url(matches: &ArgMatches) -> bool {
    let is_argument = |matches: &ArgMatches, name| {
        matches.try_contains_id(name).is_ok()
            && matches.value_source(name) == Some(ValueSource::CommandLine)
    };
    let subcommand = matches.subcommand().map(|(_, matches)| matches);
    is_argument(matches, "home") && !subcommand.is_some_and(|it| is_argument(it, "url"))
}

impl Cli {
    fn run(self, home_overrides_url: bool) -> Result<ExitCode, Failure> {
        let home = || Home::new(self.home, home_overrides_url);
        match self.command {
            Command::Serve(command) => command.run(home()?),
            Command::Create(command) => block_on(command.run(home()?)),
            Command::Run(command) => block_on(command.run(home()?)),
            Command::Start(command) => block_on(command.run(home()?)),
            Command::Stop(command) => block_on(command.run(home()?)),
            Command::Pause(command) => block_on(command.run(home()?)),
            Command::Unpause(command) => block_on(command.run(home()?)),
            Command::Exec(command) => block_on(command.run(home()?)),
            Command::Attach(command) => block_on(command.run(home()?)),
            Command::Copy(command) => block_on(command.run(home()?)),
            Command::Remove(command) => block_on(command.run(home()?)),
            Command::List(command) => block_on(command.run(home()?)),
            Command::Inspect(command) => block_on(command.run(home()?)),
            Command::Logs(command) => block_on(command.run(home()?)),
            Command::Wait(command) => block_on(command.run(home()?)),
            Command::Image(command) => command.run(&home()?),
            Command::Metrics(command) => block_on(command.run(home()?)),
            Command::Events(command) => block_on(command.run(home()?)),
            Command::Top(command) => block_on(command.run(home()?)),
            Command::Completions(command) => command.run(Self::command()),
            Command::Man(command) => command.run(Self::command()),
            Command::Idle => idle(),
        }
    }
}

/// Runs a client command on a tokio runtime with one thread.
fn block_on<T>(command: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Failure::system("start the tokio runtime"))?
        .block_on(command)
}

/// Sleeps until a signal ends the process: SIGTERM has its default disposition here.
fn idle() -> ! {
    loop {
        thread::park();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_line_definition_is_valid() {
        Cli::command().debug_assert();
    }
}
