//! Measures the reaper and its alternatives side by side, in one run.
//!
//! ```text
//! cargo bench -p shim-reaper --bench peers -- [--quick] [zombie] [wake] [cpu] [idle] [burst] [spawn] [register] [memory]
//! ```
//!
//! Prints a Markdown table, and writes the same as `peers.json` into the target directory.
//!
//! Whatever is compared is measured in turns, a block of one and a block of the other. A ratio is
//! the median of the ratios of such blocks, so that it says more than the two values beside it do
//! where the machine is noisy.

#![allow(clippy::panic, clippy::unwrap_used)]

mod allocator;
mod children;
mod clock;
mod column;
mod effort;
mod goal;
mod measure;
mod peer;
mod population;
mod processors;
mod report;
mod row;
mod samples;
mod site;
mod system;
mod turns;
mod unit;
mod value;

use std::env;
use std::path::{Path, PathBuf};

use crate::allocator::Counting;
use crate::effort::Effort;
use crate::report::Report;

#[global_allocator]
static ALLOCATOR: Counting = Counting::new();

fn main() {
    // Cargo passes `--bench`.
    let (flags, names): (Vec<String>, Vec<String>) =
        env::args().skip(1).partition(|arg| arg.starts_with("--"));
    let effort = Effort::new(flags.iter().any(|flag| flag == "--quick"));
    system::raise_limit_on_open_files();

    let mut report = Report::new();
    for (name, measure) in measure::ALL {
        if names.is_empty() || names.iter().any(|wanted| wanted == name) {
            eprintln!("{name} ...");
            measure(&effort, &mut report);
        }
    }
    print!("{}", report.table());
    let file = target_directory().join("peers.json");
    report.write_json(&file);
    eprintln!("also in {}", file.display());
}

fn target_directory() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(directory) => PathBuf::from(directory),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target"),
    }
}
