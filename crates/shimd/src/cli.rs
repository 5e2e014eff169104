use std::fmt::Display;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::commands::{
    Completions, Create, Events, Inspect, List, Metrics, Remove, Run, Start, Stop, Top, idle,
};
use crate::daemon::Serve;
use crate::failure::Failure;
use crate::home::Home;
use crate::output::plain;

/// What docker exits with when it could not do its own part of a `run`, or understand a command.
pub(crate) const OWN_FAILURE: u8 = 125;

#[derive(Debug, Parser)]
#[command(
    name = "shimd",
    version,
    about = "Runs boxes, each in a process of its own, and keeps account of every one",
    after_help = "\
Begin with:
  shimd serve                          the daemon; leave it running, and in another terminal:
  shimd run idle echo hello            make a box, run a command in it, wait for its end
  shimd run --detach --name nap idle   one that waits to be stopped
  shimd ps                             what runs
  shimd rm --force nap                 end it and remove it",
    arg_required_else_help = true,
    disable_help_subcommand = true
)]
pub(crate) struct Cli {
    /// Where the daemon keeps its boxes and its socket [default: /var/lib/shimd for root,
    /// ~/.local/state/shimd for everybody else]
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
    #[command(name = "rm")]
    Remove(Remove),
    #[command(name = "ps")]
    List(List),
    Inspect(Inspect),
    Metrics(Metrics),
    Events(Events),
    Top(Top),
    Completions(Completions),
    /// Waits to be stopped: what boxes of the image `idle` run.
    #[command(hide = true)]
    Idle,
}

/// Does what the arguments say.
pub(crate) fn run() -> ExitCode {
    let parsed = Cli::command().try_get_matches().and_then(|mut matches| {
        let home_beats_url = home_beats_url(&matches);
        Ok((Cli::from_arg_matches_mut(&mut matches)?, home_beats_url))
    });
    let (cli, home_beats_url) = match parsed {
        Ok(parsed) => parsed,
        Err(error) => {
            // As for what is wrong elsewhere, see `complain`.
            let _ = error.print();
            return match error.use_stderr() {
                true => ExitCode::from(OWN_FAILURE),
                false => ExitCode::SUCCESS,
            };
        }
    };
    let own_failure = match &cli.command {
        Command::Run(_) => ExitCode::from(OWN_FAILURE),
        _ => ExitCode::FAILURE,
    };
    match cli.run(home_beats_url) {
        Ok(code) => code,
        Err(failure) if failure.is_broken_pipe() => ExitCode::SUCCESS,
        Err(failure) => {
            complain(failure);
            own_failure
        }
    }
}

/// What is given as an argument comes before what the environment says.
fn home_beats_url(matches: &ArgMatches) -> bool {
    let is_argument = |matches: &ArgMatches, name| {
        matches.try_contains_id(name).is_ok()
            && matches.value_source(name) == Some(ValueSource::CommandLine)
    };
    let of_command = matches.subcommand().map(|(_, matches)| matches);
    is_argument(matches, "home") && !of_command.is_some_and(|it| is_argument(it, "url"))
}

/// Tells of a failure.
pub(crate) fn complain(failure: impl Display) {
    let failure = plain(&failure.to_string());
    // Nobody reads it? Then the exit code has to do.
    let _ = writeln!(anstream::stderr(), "shimd: {failure}");
}

impl Cli {
    fn run(self, home_beats_url: bool) -> Result<ExitCode, Failure> {
        let home = || Home::at(self.home, home_beats_url);
        match self.command {
            Command::Serve(command) => command.run(home()?),
            Command::Create(command) => block_on(command.run(home()?)),
            Command::Run(command) => block_on(command.run(home()?)),
            Command::Start(command) => block_on(command.run(home()?)),
            Command::Stop(command) => block_on(command.run(home()?)),
            Command::Remove(command) => block_on(command.run(home()?)),
            Command::List(command) => block_on(command.run(home()?)),
            Command::Inspect(command) => block_on(command.run(home()?)),
            Command::Metrics(command) => block_on(command.run(home()?)),
            Command::Events(command) => block_on(command.run(home()?)),
            Command::Top(command) => block_on(command.run(home()?)),
            Command::Completions(command) => command.run(),
            Command::Idle => idle(),
        }
    }
}

/// A client does one thing at a time.
fn block_on<T>(command: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Failure::system("start its event loop"))?
        .block_on(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
