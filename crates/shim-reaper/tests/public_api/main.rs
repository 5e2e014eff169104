//! Every signature, field, variant and auto trait that users depend on. It compiles, or the API has a
//! break. `.ci/package` also compiles it in a crate outside of the workspace.
//!
//! Functions that are never called are tests of signatures.
#![allow(clippy::unwrap_used, dead_code)]

mod handles;
mod init;
mod metrics;
mod reapers;
mod values;

use std::fmt::Debug;
use std::future::Future;
use std::process;

use shim_reaper::init::{Init, InitError};
use shim_reaper::{
    DropGuard, Exits, GroupError, InvalidSignal, MetricsSink, Pidfd, ReapedBy, ReaperBuilder,
    ReaperClosed, ReaperCounter, ReaperGauge, ReaperStats, RegisterError, RegisterErrorKind,
    ResourceUsage, ShimExit, ShimHandle, ShimReaper, ShutdownReport, Signal, SpawnOptions,
    StopReport, Wait,
};

type Exit = Result<ShimExit, ReaperClosed>;

fn is_send_future<T>(future: impl Future<Output = T> + Send) -> impl Future<Output = T> + Send {
    future
}

fn is_shared<T: Debug + Send + Sync + Unpin + 'static>() {}

fn is_error<T: std::error::Error + Send + Sync + 'static>() {}

fn is_value<T: Copy + Eq>() {}

#[test]
fn types_can_be_sent_shared_and_moved() {
    is_shared::<ShimReaper>();
    is_shared::<ReaperBuilder>();
    is_shared::<ShimHandle>();
    is_shared::<Exits>();
    is_shared::<Pidfd>();
    is_shared::<DropGuard>();
    is_shared::<ShimExit>();
    is_shared::<MetricsSink>();
    is_shared::<Init>();
    is_shared::<Wait<'static>>();
}

#[test]
fn errors_can_be_boxed() {
    is_error::<RegisterError>();
    is_error::<RegisterError<tokio::process::Child>>();
    is_error::<RegisterErrorKind>();
    is_error::<ReaperClosed>();
    is_error::<GroupError>();
    is_error::<InvalidSignal>();
    is_error::<InitError>();
}

#[test]
fn values_can_be_copied_and_compared() {
    is_value::<ShimExit>();
    is_value::<ReapedBy>();
    is_value::<ResourceUsage>();
    is_value::<ReaperStats>();
    is_value::<ReaperCounter>();
    is_value::<ReaperGauge>();
    is_value::<RegisterErrorKind>();
    is_value::<Signal>();
    is_value::<SpawnOptions>();
    assert_eq!(ShutdownReport::default(), ShutdownReport::default().clone());
    assert_eq!(StopReport::default(), StopReport::default().clone());
}

#[tokio::test]
async fn a_reaper_is_logged_in_short() {
    let reaper = ShimReaper::start();
    let mut sleeper = process::Command::new("sleep");
    sleeper.arg("1000");
    let options = SpawnOptions::new().kill_on_drop(true);
    let _shim = reaper.spawn_with(sleeper, options).unwrap();
    let expected = "ShimReaper { registered: 1, closed: false, .. }";
    assert_eq!(format!("{reaper:?}"), expected);
    reaper.shutdown().await;
    let expected = "ShimReaper { registered: 0, closed: true, .. }";
    assert_eq!(format!("{reaper:?}"), expected);
}
