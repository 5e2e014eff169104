use std::io::{self, IsTerminal, Write, stdout};
use std::time::{Duration, Instant};

use crossterm::style::Stylize;
use crossterm::{cursor, queue, terminal};
use shim_reaper::ShimExit;

use crate::death::Death;
use crate::{name, proc};

const ZOMBIE: &str = "zombie";
const GONE: &str = "gone";

/// Every shim and what is known of it: redrawn in place on a terminal, a line an event otherwise.
#[derive(Debug)]
pub struct Table {
    rows: Vec<Row>,
    screen: Option<Screen>,
}

#[derive(Debug)]
struct Row {
    pid: u32,
    death: Death,
    state: Option<char>,
    exit: Option<ShimExit>,
    zombie: Zombie,
    printed: bool,
}

/// How long it was a zombie, as far as looking at `/proc` now and then can tell.
#[derive(Clone, Copy, Debug)]
enum Zombie {
    NotSeen,
    Since(Instant),
    For(Duration),
}

#[derive(Debug)]
struct Screen {
    colours: bool,
    lines: u16,
}

impl Table {
    pub fn new() -> Self {
        let screen = stdout().is_terminal().then(|| Screen {
            colours: std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
            lines: 0,
        });
        if screen.is_none() {
            println!("{}", heading());
        }
        Self {
            rows: Vec::new(),
            screen,
        }
    }

    pub fn add(&mut self, pid: u32, death: Death) {
        self.rows.push(Row {
            pid,
            death,
            state: None,
            exit: None,
            zombie: Zombie::NotSeen,
            printed: false,
        });
    }

    /// How often to look: a fortieth of the time at the most.
    pub fn cadence(&self) -> Duration {
        Duration::from_micros(400 * self.rows.len() as u64).max(Duration::from_millis(4))
    }

    pub fn pids(&self) -> impl Iterator<Item = u32> {
        self.rows.iter().map(|row| row.pid)
    }

    pub fn ended(&mut self, exit: &ShimExit) {
        let row = self
            .rows
            .iter_mut()
            .find(|row| row.pid == exit.pid && row.exit.is_none());
        if let Some(row) = row {
            row.exit = Some(*exit);
        }
    }

    /// Every exit is known, and every process is gone.
    pub fn is_settled(&self) -> bool {
        self.rows.iter().all(Row::is_settled)
    }

    pub fn unresolved(&self) -> usize {
        self.rows.iter().filter(|row| row.exit.is_none()).count()
    }

    /// Looks at `/proc`, and shows what has changed.
    pub fn refresh(&mut self) -> io::Result<()> {
        let cadence = self.cadence();
        for row in &mut self.rows {
            row.look();
        }
        match &mut self.screen {
            Some(screen) => screen.draw(&self.rows, cadence),
            None => {
                for row in self
                    .rows
                    .iter_mut()
                    .filter(|row| row.is_settled() && !row.printed)
                {
                    row.printed = true;
                    println!("{}", row.cells(cadence));
                }
                Ok(())
            }
        }
    }

    /// Shows the last state, and leaves the terminal as it was.
    pub fn finish(&mut self) -> io::Result<()> {
        self.refresh()?;
        let cadence = self.cadence();
        match &self.screen {
            Some(_) => {
                queue!(stdout(), cursor::Show)?;
                stdout().flush()
            }
            None => {
                for row in self.rows.iter().filter(|row| !row.printed) {
                    println!("{}", row.cells(cadence));
                }
                Ok(())
            }
        }
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        if self.screen.is_some() {
            let _ = queue!(stdout(), cursor::Show);
            let _ = stdout().flush();
        }
    }
}

impl Screen {
    fn draw(&mut self, rows: &[Row], cadence: Duration) -> io::Result<()> {
        let (width, height) = terminal::size().unwrap_or((80, 24));
        // Heading, summary, and the lines that follow when all is over.
        let room = usize::from(height.saturating_sub(10)).max(1);
        let mut out = stdout().lock();
        queue!(out, cursor::Hide)?;
        if self.lines > 0 {
            queue!(out, cursor::MoveToPreviousLine(self.lines))?;
        }
        queue!(out, terminal::Clear(terminal::ClearType::FromCursorDown))?;
        let mut lines = vec![heading()];
        // The latest news first, when there is not room for all.
        let mut shown: Vec<&Row> = rows.iter().collect();
        if shown.len() > room {
            shown.sort_by_key(|row| row.is_settled());
        }
        lines.extend(shown.iter().take(room).map(|row| row.cells(cadence)));
        if rows.len() > room {
            let settled = rows.iter().filter(|row| row.is_settled()).count();
            let zombies = rows.iter().filter(|row| row.state == Some('Z')).count();
            lines.push(format!(
                "… {} shims in all: {settled} settled, {zombies} zombies now",
                rows.len()
            ));
        }
        for line in &lines {
            // A line that wraps would upset the next redrawing.
            let line: String = line.chars().take(width.into()).collect();
            writeln!(out, "{}", if self.colours { coloured(line) } else { line })?;
        }
        self.lines = u16::try_from(lines.len()).unwrap_or(u16::MAX);
        out.flush()
    }
}

fn heading() -> String {
    format!(
        "{:>7}  {:<8}  {:<25}  {:<9}  {:<10}  {}",
        "PID", "STATE", "HOW IT DIES", "ENDED", "BY", "ZOMBIE"
    )
}

impl Row {
    fn look(&mut self) {
        if self.state == Some('-') {
            return;
        }
        self.state = proc::state_of(self.pid).or(Some('-'));
        self.zombie = match (self.state, self.zombie) {
            (Some('Z'), Zombie::NotSeen) => Zombie::Since(Instant::now()),
            (Some('-'), Zombie::Since(start)) => Zombie::For(start.elapsed()),
            (_, zombie) => zombie,
        };
    }

    fn is_settled(&self) -> bool {
        self.exit.is_some() && self.state == Some('-')
    }

    fn cells(&self, cadence: Duration) -> String {
        let state = match self.state {
            None => "starting",
            Some('Z') => ZOMBIE,
            Some('-') => GONE,
            Some('R') => "running",
            Some(_) => "sleeping",
        };
        let ended = match &self.exit {
            Some(exit) => match (exit.code(), exit.signal()) {
                (Some(code), _) => format!("code {code}"),
                (_, Some(signal)) => format!("signal {signal}"),
                _ => "unknown".to_owned(),
            },
            None => String::new(),
        };
        let by = self.exit.map_or("", |exit| name(exit.collected_by));
        let zombie = match self.zombie {
            Zombie::NotSeen if self.state == Some('-') => {
                format!("< {} ms", cadence.as_millis())
            }
            Zombie::NotSeen => String::new(),
            Zombie::Since(start) => format!("{} ms …", start.elapsed().as_millis()),
            Zombie::For(time) => format!("{} ms", time.as_millis()),
        };
        format!(
            "{:>7}  {state:<8}  {:<25}  {ended:<9}  {by:<10}  {zombie}",
            self.pid,
            self.death.to_string()
        )
    }
}

fn coloured(line: String) -> String {
    line.replacen(ZOMBIE, &ZOMBIE.red().bold().to_string(), 1)
        .replacen(GONE, &GONE.green().to_string(), 1)
}
