//! A VMM runtime and its boxes: one is killed, one removed by force, one crashes, one outlives the
//! runtime, and states, exit codes and metrics follow. Ctrl-C shuts down in order.
//!
//! The boxes run commands in place of virtual machines, so that nothing else need be installed.

use std::error::Error;
use std::fs;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crossterm::{cursor, queue, terminal};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use vmm_runtime::{BoxInfo, BoxSpec, BoxStatus, HealthCheckOptions, RuntimeOptions, VmmRuntime};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const LIMIT: Duration = Duration::from_secs(10);

/// What the table shows, and what must be true in the end.
const EXPECTED: [(&str, BoxStatus, Option<i32>); 4] = [
    ("web", BoxStatus::Stopped, Some(143)),
    ("victim", BoxStatus::Failed, Some(137)),
    ("crasher", BoxStatus::Failed, Some(3)),
    ("survivor", BoxStatus::Failed, Some(7)),
];

fn main() -> ExitCode {
    // This program is its own shim: every box below is another process of it.
    vmm_shim::run_if_shim();
    let played = tokio::runtime::Runtime::new()
        .map_err(Into::into)
        .and_then(|tokio| tokio.block_on(run()));
    played.unwrap_or_else(|error| {
        eprintln!("{error}");
        ExitCode::FAILURE
    })
}

async fn run() -> Result<ExitCode> {
    let home = tempfile::Builder::new().prefix("vmm-").tempdir()?;
    let mut stage = Stage {
        runtime: VmmRuntime::open(RuntimeOptions::new(home.path())).await?,
        table: Table::new(),
    };
    println!("a runtime, with its boxes in {}\n", home.path().display());
    let whole = tokio::select! {
        played = stage.play(home.path()) => played.map(|()| true)?,
        _ = tokio::signal::ctrl_c() => false,
    };
    Ok(match (stage.end(whole, home.path()).await?, whole) {
        (true, true) => ExitCode::SUCCESS,
        (true, false) => ExitCode::from(130), // 128 + SIGINT
        (false, _) => ExitCode::FAILURE,
    })
}

struct Stage {
    runtime: VmmRuntime,
    table: Table,
}

impl Stage {
    async fn play(&mut self, home: &Path) -> Result<()> {
        let quick = HealthCheckOptions::command(["true"]).interval(Duration::from_millis(200));
        let waits_for_go = "while [ ! -e $VMM_BOX_DIR/go ]; do sleep 0.05; done";
        for spec in [
            BoxSpec::new(["sleep", "1000"])
                .name("web")
                .health(quick.clone()),
            BoxSpec::new(["sleep", "1000"]).name("victim").health(quick),
            BoxSpec::new(["sleep", "1000"]).name("nap"),
            BoxSpec::new(["sh", "-c", "sleep 1.5; exit 3"]).name("crasher"),
            BoxSpec::new(["sh", "-c", &format!("{waits_for_go}; exit 7")])
                .name("survivor")
                .detached(true),
        ] {
            let made = self.runtime.create(spec).await?;
            self.runtime.start(&made.id).await?;
        }
        self.show("five boxes run, each in a shim of its own", 600)
            .await?;

        let victim = self.runtime.info("victim").await?;
        let pid = victim.pid.ok_or("victim does not run")?;
        kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL)?;
        self.show("kill -9 to the shim of victim: known without a call", 600)
            .await?;

        self.runtime.remove("nap", true).await?;
        self.show("nap removed by force: gone when the call returns", 600)
            .await?;

        self.runtime.wait("crasher").await?;
        self.show("crasher has crashed by itself", 600).await?;

        self.runtime.shutdown(LIMIT).await;
        self.show(
            "the runtime is shut down: web is stopped, survivor runs on",
            600,
        )
        .await?;

        self.runtime = VmmRuntime::open(RuntimeOptions::new(home)).await?;
        let survivor = self.runtime.info("survivor").await?;
        self.show("a new runtime has found survivor again", 600)
            .await?;

        fs::write(home.join("boxes").join(&survivor.id).join("go"), "")?;
        self.runtime.wait("survivor").await?;
        self.show(
            "survivor has ended, and the new runtime knows its exit code",
            200,
        )
        .await
    }

    /// Says what has happened, and shows for a while what becomes of it.
    async fn show(&mut self, news: &str, milliseconds: u64) -> Result<()> {
        self.table.say(news)?;
        let end = Instant::now() + Duration::from_millis(milliseconds);
        loop {
            self.table.draw(&self.runtime).await?;
            if Instant::now() >= end {
                return Ok(self.table.settle(&self.runtime).await?);
            }
            tokio::time::sleep(Duration::from_millis(40)).await;
        }
    }

    /// Whether everything ended as it should, and nothing is left behind.
    async fn end(mut self, whole: bool, home: &Path) -> Result<bool> {
        if !whole {
            self.table.say("interrupted: shutting down in order")?;
            // The home goes with this program, and whoever is detached has to go before.
            self.runtime.shutdown(LIMIT).await;
            self.runtime = VmmRuntime::open(RuntimeOptions::new(home)).await?;
            for left in self.runtime.list().await {
                self.runtime.stop(&left.id).await?;
            }
        }
        self.runtime.shutdown(LIMIT).await;
        self.table.say("shut down")?;
        // Whoever ended a moment ago is left to its owner for a moment.
        let deadline = Instant::now() + LIMIT;
        while zombies() > 0 && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.table.draw(&self.runtime).await?;
        self.table.settle(&self.runtime).await?;
        let boxes = self.runtime.list().await;
        let as_expected = EXPECTED.iter().all(|(name, status, code)| {
            boxes.iter().any(|found| {
                found.name.as_deref() == Some(name)
                    && found.status == *status
                    && found.exit_code == *code
            })
        });
        let running = boxes.iter().any(|left| left.status == BoxStatus::Running);
        Ok(zombies() == 0 && !running && (as_expected || !whole))
    }
}

/// The boxes: redrawn in place on a terminal, otherwise printed at the end of each step.
struct Table {
    live: bool,
    /// How many lines of it are on the screen.
    lines: u16,
}

impl Table {
    fn new() -> Self {
        Self {
            live: io::stdout().is_terminal(),
            lines: 0,
        }
    }

    fn clear(&mut self) -> io::Result<()> {
        if self.lines > 0 {
            let up = cursor::MoveToPreviousLine(self.lines);
            let down = terminal::Clear(terminal::ClearType::FromCursorDown);
            queue!(io::stdout(), up, down)?;
            self.lines = 0;
        }
        Ok(())
    }

    fn say(&mut self, news: &str) -> io::Result<()> {
        self.clear()?;
        println!("* {news}");
        Ok(())
    }

    async fn draw(&mut self, runtime: &VmmRuntime) -> io::Result<()> {
        match self.live {
            true => self.print(runtime).await,
            false => Ok(()),
        }
    }

    /// The state in which a step has ended.
    async fn settle(&mut self, runtime: &VmmRuntime) -> io::Result<()> {
        match self.live {
            true => Ok(()),
            false => self.print(runtime).await,
        }
    }

    async fn print(&mut self, runtime: &VmmRuntime) -> io::Result<()> {
        let heading = format!(
            "  {:<9} {:<11} {:<10} {:>8} {:>5}  {}",
            "NAME", "STATUS", "HEALTH", "SHIM", "CODE", "WHY"
        );
        let metrics = runtime.metrics().await;
        let totals = format!(
            "  running {}, failed {}, registered {}, reaped {}, vanished {}; zombies {}",
            metrics.num_running_boxes,
            metrics.boxes_failed_total,
            metrics.shim_reaper_registered,
            metrics.shim_reaped,
            metrics.shim_reaper_vanished,
            zombies(),
        );
        let mut lines = vec![heading];
        lines.extend(runtime.list().await.iter().map(row));
        lines.push(totals);

        self.clear()?;
        let width = usize::from(terminal::size().map_or(80, |(width, _)| width));
        let mut out = io::stdout().lock();
        for line in &lines {
            // A line that wraps would upset the next redrawing.
            writeln!(out, "{}", line.chars().take(width).collect::<String>())?;
        }
        if self.live {
            self.lines = u16::try_from(lines.len()).unwrap_or(u16::MAX);
        }
        out.flush()
    }
}

fn row(shown: &BoxInfo) -> String {
    let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
    format!(
        "  {:<9} {:<11} {:<10} {:>8} {:>5}  {}",
        or_dash(shown.name.clone()),
        shown.status,
        or_dash(shown.health.map(|health| health.to_string())),
        or_dash(shown.pid.map(|pid| pid.to_string())),
        or_dash(shown.exit_code.map(|code| code.to_string())),
        shown.error.as_deref().unwrap_or_default(),
    )
}

/// Children of this program that nobody has collected.
fn zombies() -> usize {
    let parent = format!("PPid:\t{}\n", std::process::id());
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| fs::read_to_string(entry.path().join("status")).ok())
        .filter(|status| status.contains("State:\tZ") && status.contains(&parent))
        .count()
}
