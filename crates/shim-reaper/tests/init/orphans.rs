//! Orphans are reaped while the program runs.

use nix::sys::signal::Signal::SIGKILL;

use crate::common::{eventually_blocking, is_gone, kill};
use crate::program::{ORPHANS, Place, children};

#[test]
fn an_orphan_is_reaped_while_the_program_runs() {
    for place in Place::with_init() {
        let mut started = place.start("sh -c 'sleep 1000 & echo $!'; exec sleep 1000");
        started.line();
        let init = started.init();
        eventually_blocking("the orphan is reparented", || children(init).len() == 2);
        let orphan = children(init)[1];
        kill(orphan, SIGKILL);
        eventually_blocking("the orphan is reaped", || is_gone(orphan));
        assert_eq!(children(init).len(), 1, "{place:?}");
    }
}

#[test]
fn thousands_of_orphans_leave_no_zombie() {
    for place in Place::with_init() {
        let mut started = place.start("make_orphans");
        assert_eq!(started.line(), "ready", "{ORPHANS} orphans");
        let init = started.init();
        eventually_blocking("all orphans are reaped", || children(init).len() == 1);
        drop(started.child.stdin.take());
        assert_eq!(started.code(), 0, "{place:?}");
    }
}
