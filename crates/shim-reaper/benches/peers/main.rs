//! Measures the reaper and its alternatives side by side, in one run.
//!
//! ```text
//! cargo bench -p shim-reaper --bench peers -- [--quick] [zombie] [wake] [cpu] [idle] [burst] [spawn] [spawn-call] [spawn-call-ignored] [register] [memory]
//! ```
//!
//! Prints a Markdown table, and writes the same data to `peers.json` in the target directory.
//!
//! Peers that are compared are measured in turns: a block of one, then a block of the other. A ratio
//! is the median of the ratios of such blocks, so on a noisy machine it is more accurate than the
//! two values themselves. The benchmark reports which measurements do not count because other
//! processes used the CPUs, and for which it cannot know that.

#![allow(clippy::panic, clippy::unwrap_used)]

mod allocator;
mod measure;
mod peer;
mod population;
mod processors;
mod report;
mod samples;
mod system;

use std::env;
use std::path::{Path, PathBuf};

use crate::allocator::Counting;
use crate::processors::ForeignCpu;
use crate::report::Report;
use crate::samples::Effort;

#[global_allocator]
static ALLOCATOR: Counting = Counting::new();

fn main() {
    // Cargo passes `--bench` too.
    let (flags, names): (Vec<String>, Vec<String>) =
        env::args().skip(1).partition(|arg| arg.starts_with("--"));
    let effort = Effort::new(flags.iter().any(|flag| flag == "--quick"));
    system::raise_limit_on_open_files();

    let mut report = Report::new();
    for measure in measure::ALL {
        let name = measure.name;
        if names.is_empty() || names.iter().any(|selected| selected == name) {
            eprintln!("{name} ...");
            let foreign_cpu = ForeignCpu::watch();
            (measure.run)(&effort, &mut report);
            if !measure.accounts_for_children {
                report.set_unknown_cpu(name);
                continue;
            }
            let share = foreign_cpu.share();
            eprintln!(
                "{name}: other processes used {:.0} % of the CPUs",
                share * 100.0
            );
            report.set_foreign_cpu(name, share);
        }
    }
    print!("{}", report.table());
    let file = target_directory().join("peers.json");
    report.write_json(&file);
    eprintln!("wrote {}", file.display());
}

fn target_directory() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(directory) => PathBuf::from(directory),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target"),
    }
}
