//! Creates, starts, stops, removes and kills boxes at random, under a runtime that it kills, shuts
//! down and reopens at random, and counts what is lost: `cargo bench -p vmm-runtime --bench chaos --
//! --lives 5000 --seed 1`, or `--seconds 180`. A life is that of a box which was created, started
//! and removed.
//!
//! The driver spawns this program again as the runtime process, which spawns it as the shims, and
//! those as the payloads. The driver determines how each run has ended without asking the runtime:
//! payloads connect to an observer, and the driver records each action before it takes it. The seed
//! determines the actions; their timing depends on the machine.

#![allow(clippy::print_stdout)]

mod account;
mod client;
mod disruptor;
mod goal;
mod leftovers;
mod losses;
mod observer;
mod operator;
mod oracle;
mod payload;
mod sequence;
mod server;
mod slots;

use std::error::Error;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;
use futures::future::join_all;
use nix::errno::Errno;
use nix::sys::prctl::set_child_subreaper;
use nix::sys::wait::wait;

use client::Client;
use disruptor::{WARM_SHIMS, disrupt};
use goal::{Goal, Target};
use losses::{Column, Losses};
use operator::{Operator, Shared};
use payload::Payload;
use slots::Slots;
use vmm_runtime::ControlGroup;

/// The number of boxes at a time.
const BOXES: usize = 50;

/// How long dying processes may take.
const EXIT_TIMEOUT: Duration = Duration::from_secs(10);

const PROGRESS_INTERVAL: Duration = Duration::from_secs(10);

/// How long no life may end.
const HANG_TIMEOUT: Duration = Duration::from_secs(180);

/// How many more descriptors, and KiB of memory, a runtime may have after its last box than before
/// its first: threads, buffers and arenas that it keeps.
const SPARE_DESCRIPTORS: usize = 4;
const SPARE_MEMORY: usize = 16 << 10;

fn main() -> Result<ExitCode, Box<dyn Error>> {
    vmm_shim::run_if_shim();
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.split_first() {
        Some((mode, args)) if mode == "--payload" => {
            serde_json::from_str::<Payload>(&args[0])?.run()?;
        }
        Some((mode, args)) if mode == "--runtime" => {
            server::serve(Path::new(&args[0]), args[1].parse()?)?;
        }
        _ => {
            let seconds = Duration::from_secs(number(&args, "--seconds")?.unwrap_or(5));
            let target = match number(&args, "--lives")? {
                Some(lives) => Target::Lives(usize::try_from(lives)?),
                None => Target::Time(seconds),
            };
            let seed = number(&args, "--seed")?.unwrap_or_else(|| fastrand::u64(..));
            println!("seed {seed}");
            let losses = Arc::new(Losses::default());
            if let Err(error) = drive(target, seed, &losses) {
                losses.add(Column::Crashed, error.to_string());
            }
            return Ok(report(&losses, seed));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn number(args: &[String], name: &str) -> Result<Option<u64>, Box<dyn Error>> {
    let given = args.iter().skip_while(|arg| *arg != name).nth(1);
    Ok(given.map(|number| number.parse()).transpose()?)
}

/// Prints the losses, and last the seed: the end of a log shows what failed.
fn report(losses: &Losses, seed: u64) -> ExitCode {
    println!("{losses}seed {seed}, {} losses", losses.count());
    if losses.count() > 0 {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

fn drive(target: Target, seed: u64, losses: &Arc<Losses>) -> Result<(), Box<dyn Error>> {
    let root = tempfile::Builder::new().prefix("vmm-chaos-").tempdir()?;
    std::fs::create_dir(root.path().join("tmp"))?;
    // In the arguments or the environment of every process.
    let mark = root.path().file_name().unwrap_or_default();
    let mark = mark.to_string_lossy().into_owned();
    // The orphans of a killed runtime are reparented to this process.
    set_child_subreaper(true)?;
    thread::spawn(reap);

    let mut rng = Rng::with_seed(seed);
    let slots = Arc::new(Slots::new(BOXES));
    let goal = Arc::new(Goal::new(target));
    let client = Arc::new(Client::new(
        root.path().to_owned(),
        Arc::clone(&slots),
        Arc::clone(losses),
    ));
    let tokio = tokio::runtime::Runtime::new()?;
    let listener = tokio.block_on(async { observer::listen(&mark) })?;
    tokio.spawn(observer::observe(
        listener,
        Arc::clone(&slots),
        Arc::clone(losses),
    ));
    let process = client.open(WARM_SHIMS, false)?;
    let at_first = leftovers::usage(process.pid());
    let shared = Arc::new(Shared {
        client: Arc::clone(&client),
        slots: Arc::clone(&slots),
        losses: Arc::clone(losses),
        goal: Arc::clone(&goal),
        boxes: root.path().join("home/boxes"),
        observer: mark.clone(),
        has_groups: ControlGroup::check().is_ok(),
    });
    let operators = (0..BOXES).map(|n| Operator::new(n, rng.u64(..), Arc::clone(&shared)));
    let operating: Vec<_> = operators.map(|o| tokio.spawn(o.run())).collect();
    thread::spawn({
        let shared = Arc::clone(&shared);
        move || show_progress(&shared, seed)
    });
    let (process, openings) = disrupt(&client, process, &slots, &mut rng, &goal)?;

    let mut ids = Vec::new();
    for made in tokio.block_on(join_all(operating)) {
        ids.extend(made?);
    }
    println!(
        "{} lives, {:.1} per second; {} boxes, {} openings, control groups: {}",
        goal.lives(),
        goal.lives_per_second(),
        ids.len(),
        openings + 1,
        shared.has_groups,
    );
    let runtime = process.pid();
    expect_none_left(losses, Column::ZombiesLeft, || {
        leftovers::zombies_of(runtime)
    });
    expect_none_left(losses, Column::ResourcesLeft, || {
        let now = leftovers::usage(runtime);
        let grown = now.0 > at_first.0 + SPARE_DESCRIPTORS || now.1 > at_first.1 + SPARE_MEMORY;
        grown.then_some((at_first, now)).into_iter().collect()
    });
    client.close(process, Some(EXIT_TIMEOUT));
    expect_none_left(losses, Column::ProcessesLeft, || {
        leftovers::processes(&mark)
    });
    expect_none_left(losses, Column::ControlGroupsLeft, || {
        leftovers::control_groups(&ids)
    });
    expect_none_left(losses, Column::FilesLeft, || leftovers::files(root.path()));
    Ok(())
}

/// Prints the progress. Ends the program if it makes none.
fn show_progress(shared: &Shared, seed: u64) {
    let Shared {
        goal,
        losses,
        client,
        ..
    } = shared;
    let mut last = (goal.lives(), Instant::now());
    loop {
        thread::sleep(PROGRESS_INTERVAL);
        let lives = goal.lives();
        if lives > last.0 {
            last = (lives, Instant::now());
        }
        let rate = goal.lives_per_second();
        println!(
            "{lives} lives, {rate:.1} per second, {} openings, {} losses",
            client.epoch().div_ceil(2),
            losses.count()
        );
        if last.1.elapsed() > HANG_TIMEOUT {
            let details = format!("no life has ended for {HANG_TIMEOUT:?}");
            losses.add(Column::Hung, details);
            report(losses, seed);
            std::process::exit(1);
        }
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
