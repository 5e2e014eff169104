//! Ends the runtime again and again, at random moments, and opens the home again.

use std::error::Error;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use fastrand::Rng;

use crate::client::{Client, Process};
use crate::goal::Goal;
use crate::slots::Slots;

/// The number of warm shims of a runtime that has any.
pub(crate) const WARM_SHIMS: usize = 2;

/// Returns the last runtime process, and the number of openings.
pub(crate) fn disrupt(
    client: &Arc<Client>,
    mut process: Process,
    slots: &Slots,
    rng: &mut Rng,
    goal: &Goal,
) -> Result<(Process, usize), Box<dyn Error>> {
    let mut openings = 0;
    loop {
        let pause = Duration::from_millis(rng.u64(50..1500));
        thread::sleep(pause);
        let is_last = goal.is_near();
        let orderly = rng.u8(..3) == 0;
        let limit = Duration::from_millis(rng.u64(..500));
        let mark_slots = || slots.all().for_each(|mut slot| slot.runtime_ends(orderly));
        mark_slots();
        client.close(process, orderly.then_some(limit));
        // Also marks the runs that have started since.
        mark_slots();
        while rng.u8(..3) == 0 {
            let time = Duration::from_millis(rng.u64(..60));
            client.open_and_kill(time)?;
            openings += 1;
            // It may have restarted boxes.
            slots.all().for_each(|mut slot| slot.runtime_ends(false));
        }
        thread::sleep(Duration::from_millis(rng.u64(..100)));
        let warm_shims = if is_last || rng.bool() { WARM_SHIMS } else { 0 };
        let kills_warm_shim = warm_shims > 0 && rng.bool();
        process = client.open(warm_shims, kills_warm_shim)?;
        openings += 1;
        if is_last {
            return Ok((process, openings));
        }
    }
}
