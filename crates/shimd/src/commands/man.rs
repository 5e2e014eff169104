use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{fs, io};

use clap::builder::Resettable;
use clap::{Args, Command};
use clap_mangen::roff::{Roff, bold, roman};

use crate::failure::Failure;

/// Write the manual pages: shimd.1, and one for each command
#[derive(Args, Debug)]
pub(crate) struct Man {
    /// Directory of the pages; created if it does not exist
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

impl Man {
    pub(crate) fn run(self, cli: Command) -> Result<ExitCode, Failure> {
        write_pages(cli, &self.dir).map_err(|source| Failure::ManualPages {
            dir: self.dir,
            source,
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Writes the pages of the program and of its visible subcommands.
fn write_pages(mut cli: Command, dir: &Path) -> io::Result<()> {
    // Adds the global options to the subcommands.
    cli.build();
    fs::create_dir_all(dir)?;
    write_pages_of(&cli, dir)
}

/// Writes the page of a command, and those of its visible subcommands.
fn write_pages_of(command: &Command, dir: &Path) -> io::Result<()> {
    for subcommand in command.get_subcommands().filter(|it| !it.is_hide_set()) {
        write_pages_of(subcommand, dir)?;
    }
    write_page(command.clone(), dir)
}

fn write_page(command: Command, dir: &Path) -> io::Result<()> {
    let is_main = command.has_subcommands();
    let help = command.get_after_long_help().or(command.get_after_help());
    let help = help.map(ToString::to_string);
    // clap_mangen would fill the lines of the examples, under the heading EXTRA. The footer has the
    // version.
    let command = command
        .after_help(Resettable::Reset)
        .after_long_help(Resettable::Reset)
        .version(Resettable::Reset);
    let page = clap_mangen::Man::new(command)
        .source(concat!("shimd ", env!("CARGO_PKG_VERSION")))
        .manual("shimd");
    let mut text = Vec::new();
    page.render(&mut text)?;
    let mut end = Roff::new();
    if let Some(help) = help {
        add_help(&mut end, &help);
    }
    if !is_main {
        end.control("SH", ["SEE ALSO"]);
        end.text([bold("shimd"), roman("(1)")]);
    }
    end.to_writer(&mut text)?;
    fs::write(dir.join(page.get_filename()), text)
}

/// Adds a help text, whose first line is its heading. Paragraphs with aligned columns or indented
/// lines keep their lines, others are filled.
fn add_help(page: &mut Roff, help: &str) {
    let (heading, body) = help.split_once('\n').unwrap_or((help, ""));
    page.control(
        "SH",
        [heading.trim_end_matches(':').to_uppercase().as_str()],
    );
    for paragraph in body.trim_matches('\n').split("\n\n") {
        let lines = paragraph
            .lines()
            .map(|line| line.strip_prefix("  ").unwrap_or(line));
        let keeps_lines = lines.clone().any(|line| line.contains("  "));
        page.control("PP", []);
        if keeps_lines {
            page.control("EX", []);
        }
        for line in lines {
            page.text([roman(line)]);
        }
        if keeps_lines {
            page.control("EE", []);
        }
    }
}
