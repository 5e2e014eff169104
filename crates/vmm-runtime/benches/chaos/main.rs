//! Starts, stops, removes and kills boxes at random, under a runtime that it kills, shuts down and
//! reopens at random, and counts what is lost: `cargo bench -p vmm-runtime --bench chaos --
//! --seconds 180 --seed 1`.
//!
//! The driver spawns this program again as the runtime process, which spawns it as the shims, and
//! those as the payloads. The driver determines how each run can have ended without asking the
//! runtime: payloads keep ledgers, and the driver records each action before it takes it. The seed
//! determines the actions; their timing depends on the machine.

#![allow(clippy::print_stdout)]

mod account;
mod client;
mod leftovers;
mod losses;
mod operator;
mod oracle;
mod payload;
mod server;

use std::error::Error;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;
use futures::future::join_all;
use nix::errno::Errno;
use nix::sys::prctl::set_child_subreaper;
use nix::sys::wait::wait;

use account::Slot;
use client::{Client, Process};
use losses::{Column, Losses};
use operator::Operator;
use payload::Payload;
use vmm_runtime::ControlGroup;

const BOXES: usize = 40;
/// How long dying processes may take.
const EXIT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the program may take beyond its time.
const LONGEST_END: Duration = Duration::from_secs(300);

fn main() -> Result<ExitCode, Box<dyn Error>> {
    vmm_shim::run_if_shim();
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.split_first() {
        Some((mode, args)) if mode == "--payload" => {
            serde_json::from_str::<Payload>(&args[0])?.run()?;
        }
        Some((mode, args)) if mode == "--runtime" => server::serve(Path::new(&args[0]))?,
        _ => {
            let seconds = number(&args, "--seconds")?.unwrap_or(5);
            let seed = number(&args, "--seed")?.unwrap_or_else(|| fastrand::u64(..));
            println!("seed {seed}");
            thread::spawn(move || {
                thread::sleep(Duration::from_secs(seconds) + LONGEST_END);
                println!("it has not come to its end: hung");
                std::process::exit(1);
            });
            let losses = drive(Duration::from_secs(seconds), seed)?;
            println!("{losses}");
            return Ok(if losses.any() {
                ExitCode::FAILURE
            } else {
                ExitCode::SUCCESS
            });
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn number(args: &[String], name: &str) -> Result<Option<u64>, Box<dyn Error>> {
    let given = args.iter().skip_while(|arg| *arg != name).nth(1);
    Ok(given.map(|number| number.parse()).transpose()?)
}

fn drive(time: Duration, seed: u64) -> Result<Arc<Losses>, Box<dyn Error>> {
    let root = tempfile::Builder::new().prefix("vmm-chaos-").tempdir()?;
    for dir in ["ledger", "tmp"] {
        std::fs::create_dir(root.path().join(dir))?;
    }
    // The orphans of a killed runtime are reparented to this process.
    set_child_subreaper(true)?;
    thread::spawn(reap);

    let has_groups = ControlGroup::check().is_ok();
    let mut rng = Rng::with_seed(seed);
    let losses = Arc::new(Losses::default());
    let client = Arc::new(Client::new(root.path().to_owned(), Arc::clone(&losses)));
    let until = Instant::now() + time;
    let operators: Vec<_> = (0..BOXES)
        .map(|number| {
            let (client, losses) = (Arc::clone(&client), Arc::clone(&losses));
            Operator::new(number, rng.u64(..), has_groups, root.path(), client, losses)
        })
        .collect();
    let slots: Vec<_> = operators.iter().map(Operator::slot).collect();
    let tokio = tokio::runtime::Runtime::new()?;
    let process = client.open()?;
    let operating = operators.into_iter().map(|o| tokio.spawn(o.run(until)));
    let operating: Vec<_> = operating.collect();

    let (process, openings) = disrupt(&client, process, &slots, &mut rng, until)?;

    let mut ids = Vec::new();
    for made in tokio.block_on(join_all(operating)) {
        ids.extend(made?);
    }
    let runs = payload::runs(&root.path().join("ledger"))?;
    let boxes = ids.len();
    println!("{boxes} boxes, {runs} runs, {openings} openings, control groups: {has_groups}");
    let zombies = || leftovers::zombies_of(process.pid());
    expect_none_left(&losses, Column::ZombiesLeft, zombies);
    let runtime = process.pid();
    client.close(process, Some(EXIT_TIMEOUT));
    let mark = root.path().display().to_string();
    expect_none_left(&losses, Column::ProcessesLeft, || {
        let mut left = leftovers::processes(&mark);
        left.retain(|process| !process.starts_with(&format!("{runtime}:")));
        left
    });
    expect_none_left(&losses, Column::ControlGroupsLeft, || {
        leftovers::control_groups(&ids)
    });
    expect_none_left(&losses, Column::FilesLeft, || leftovers::files(root.path()));
    Ok(losses)
}

/// Ends and reopens the runtime repeatedly. Returns the last runtime process and the number of
/// openings.
fn disrupt(
    client: &Arc<Client>,
    mut process: Process,
    slots: &[Arc<Mutex<Slot>>],
    rng: &mut Rng,
    until: Instant,
) -> Result<(Process, usize), Box<dyn Error>> {
    let mut openings = 1;
    loop {
        thread::sleep(Duration::from_millis(rng.u64(50..2000)));
        if Instant::now() >= until {
            return Ok((process, openings));
        }
        let orderly = rng.u8(..3) == 0;
        let limit = Duration::from_millis(rng.u64(..1000));
        let mark_slots = || {
            for slot in slots {
                let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
                slot.runtime_ends(orderly);
            }
        };
        mark_slots();
        client.close(process, orderly.then_some(limit));
        // Also marks the runs that have started since.
        mark_slots();
        thread::sleep(Duration::from_millis(rng.u64(..400)));
        process = client.open()?;
        openings += 1;
    }
}

/// Reaps the children of this process and the orphans that it adopts.
fn reap() {
    loop {
        if let Err(Errno::ECHILD) = wait() {
            thread::sleep(Duration::from_millis(2));
        }
    }
}

/// Waits until `left` returns nothing, and records what it still returns after the timeout.
fn expect_none_left<T: std::fmt::Debug>(
    losses: &Losses,
    column: Column,
    left: impl Fn() -> Vec<T>,
) {
    let deadline = Instant::now() + EXIT_TIMEOUT;
    while !left().is_empty() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(20));
    }
    for left in left() {
        losses.add(column, format!("{left:?}"));
    }
}
