//! The images of a home. These commands need no daemon.

mod build;
mod list;
mod remove;

use std::process::ExitCode;

use clap::{Args, Subcommand};

use self::build::Build;
use self::list::List;
use self::remove::Remove;
use crate::failure::Failure;
use crate::home::Home;

/// Build, list and remove the images of guests
#[derive(Args, Debug)]
pub(crate) struct Image {
    #[command(subcommand)]
    command: ImageCommand,
}

#[derive(Debug, Subcommand)]
enum ImageCommand {
    Build(Build),
    #[command(name = "ls")]
    List(List),
    #[command(name = "rm")]
    Remove(Remove),
}

impl Image {
    pub(crate) fn run(self, home: &Home) -> Result<ExitCode, Failure> {
        match self.command {
            ImageCommand::Build(command) => command.run(home),
            ImageCommand::List(command) => command.run(home),
            ImageCommand::Remove(command) => command.run(home),
        }
    }
}
