use std::future::pending;
use std::process::Child;
use std::time::Duration;

use nix::sys::signal::{Signal::SIGKILL, kill};
use shim_reaper::{ShimReaper, SpawnOptions};
use tokio::task::{self, JoinSet};
use tokio::time::{sleep, timeout};

use crate::death::Death;
use crate::{Result, as_pid};

/// Starts the shims, and everything that happens to them from outside.
#[derive(Debug, Default)]
pub struct Cast {
    /// Ends with the program, as a runtime's tasks do.
    tasks: JoinSet<()>,
}

impl Cast {
    /// Starts shim number `i`, with a reaper or without. Returns its pid and how it will die.
    pub async fn start(&mut self, i: usize, reaper: Option<&ShimReaper>) -> Result<(u32, Death)> {
        let death = Death::of(i);
        let delay = Duration::from_millis(600 + 120 * (i as u64 % 12));
        let pid = match reaper {
            Some(reaper) => self.start_with(reaper, death, delay).await?,
            None => self.start_without(death, delay)?,
        };
        Ok((pid, death))
    }

    async fn start_with(
        &mut self,
        reaper: &ShimReaper,
        death: Death,
        delay: Duration,
    ) -> Result<u32> {
        let program = death.program(delay.as_secs_f64());
        match death {
            Death::Exits(_) | Death::Aborts => {
                let shim = reaper.spawn(program).await?;
                let pid = shim.pid();
                self.tasks.spawn(async move {
                    // A runtime would set the box's state here.
                    let _ = shim.await;
                });
                Ok(pid)
            }
            Death::KilledFromOutside => {
                let pid = reaper.spawn(program).await?.pid();
                self.kill_later(pid, delay);
                Ok(pid)
            }
            Death::DroppedInInit => {
                let options = SpawnOptions::new().kill_on_drop(true);
                let shim = reaper.spawn_with(program, options).await?;
                let pid = shim.pid();
                let init = async move {
                    let _shim = shim;
                    pending::<()>().await; // the shim never says that it is ready
                };
                self.tasks.spawn(async move {
                    let _ = timeout(delay, init).await;
                });
                Ok(pid)
            }
            Death::CollectedByOwner(_) => {
                let child = task::block_in_place(|| {
                    let mut program = program;
                    program.spawn()
                })?;
                let pid = child.id();
                drop(reaper.register(pid).await?);
                wait_as_owner(child);
                Ok(pid)
            }
        }
    }

    fn start_without(&mut self, death: Death, delay: Duration) -> Result<u32> {
        let child = death.program(delay.as_secs_f64()).spawn()?;
        let pid = child.id();
        match death {
            Death::Exits(_) | Death::Aborts => {}
            Death::KilledFromOutside | Death::DroppedInInit => self.kill_later(pid, delay),
            Death::CollectedByOwner(_) => wait_as_owner(child),
        }
        Ok(pid)
    }

    fn kill_later(&mut self, pid: u32, delay: Duration) {
        self.tasks.spawn(async move {
            sleep(delay).await;
            if let Ok(pid) = as_pid(pid) {
                let _ = kill(pid, SIGKILL);
            }
        });
    }
}

fn wait_as_owner(mut child: Child) {
    task::spawn_blocking(move || child.wait());
}
