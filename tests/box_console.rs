//! The output of boxes, as a stream.

mod common;

use std::fs;

use common::boxes::{box_dir, next_event, open_runtime, script, send_go, sleeping, start_box};
use common::{DEADLINE, allow_descriptors, eventually, kill};
use futures::StreamExt;
use nix::sys::signal::Signal;
use tokio::time::timeout;
use vmm_runtime::testing::PerTestBoxHome;
use vmm_runtime::{
    BoxChange, ConsoleOptions, ConsoleQuery, ConsoleStream, Removal, RestartPolicy, RuntimeError,
};

/// Reads until the output ends with `end`, or the stream has ended.
async fn read_until(stream: &mut ConsoleStream, end: Option<&str>) -> String {
    let mut output = Vec::new();
    let read = async {
        while end.is_none_or(|end| !output.ends_with(end.as_bytes())) {
            let Some(chunk) = stream.next().await else {
                return;
            };
            output.extend(chunk.unwrap());
        }
    };
    timeout(DEADLINE, read).await.unwrap();
    String::from_utf8(output).unwrap()
}

fn numbers(range: std::ops::RangeInclusive<u32>) -> String {
    range.map(|number| format!("{number}\n")).collect()
}

#[tokio::test]
async fn output_is_followed_over_rotations_until_the_box_has_ended() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    // 470 KiB, of which all is kept.
    let spec =
        script("seq 1 40000; until [ -e $VMM_BOX_DIR/go ]; do sleep 0.01; done; seq 40001 80000")
            .console(ConsoleOptions::default().max_bytes(64 << 10).files(10));
    let bx = start_box(&runtime, spec).await;
    let mut followed = runtime
        .console(&bx.id, ConsoleQuery::following())
        .await
        .unwrap();
    let first = read_until(&mut followed, Some("\n40000\n")).await;
    assert_eq!(first, numbers(1..=40000));
    let tail = ConsoleQuery::following().tail(2);
    let mut tail = runtime.console(&bx.id, tail).await.unwrap();
    send_go(&home, &bx.id);
    assert_eq!(
        read_until(&mut followed, None).await,
        numbers(40001..=80000)
    );
    assert_eq!(read_until(&mut tail, None).await, numbers(39999..=80000));

    assert!(
        bx.dir.join("console.log.3").exists(),
        "the files were rotated"
    );
    let mut kept = runtime
        .console(&bx.id, ConsoleQuery::default())
        .await
        .unwrap();
    assert_eq!(read_until(&mut kept, None).await, numbers(1..=80000));
    let mut last = runtime
        .console(&bx.id, ConsoleQuery::default().tail(3))
        .await
        .unwrap();
    assert_eq!(read_until(&mut last, None).await, numbers(79998..=80000));
}

#[tokio::test]
async fn all_output_of_a_box_with_auto_remove_is_followed() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    // More than is read ahead for a reader that does not read yet, in several files.
    let spec = script("seq 1 60000")
        .console(ConsoleOptions::default().max_bytes(64 << 10).files(10))
        .auto_remove(true);
    let bx = runtime.create(spec).await.unwrap();
    let query = ConsoleQuery::following();
    let mut stream = runtime.console(&bx.id, query).await.unwrap();
    let mut events = runtime.events();
    // Its payload can end before it is ready.
    let _ = runtime.start(&bx.id).await;
    while next_event(&mut events).await.change != BoxChange::Stopped {}
    let output = read_until(&mut stream, None).await;
    assert!(output == numbers(1..=60000), "{} bytes", output.len());
    while next_event(&mut events).await.change != BoxChange::Removed {}
}

#[tokio::test]
async fn readers_that_do_not_read_do_not_delay_restarts() {
    allow_descriptors(4000);
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let crashing = start_box(&runtime, sleeping().restart(RestartPolicy::Always)).await;
    let mut crashed = vec![crashing.payload_pid.unwrap()];
    let mut readers = Vec::new();
    // Eight at a time, they take more than the 10 s for which a removal waits.
    for _ in 0..96 {
        // More than is read ahead.
        let spec = script("head -c 300000 /dev/zero; exec sleep 1000").auto_remove(true);
        let bx = start_box(&runtime, spec).await;
        let query = ConsoleQuery::following();
        readers.push(runtime.console(&bx.id, query).await.unwrap());
        crashed.push(bx.payload_pid.unwrap());
        let console = box_dir(&home, &bx.id).join("console.log");
        eventually("all output is on disk", || {
            fs::metadata(&console).is_ok_and(|file| file.len() == 300_000)
        })
        .await;
    }
    let mut events = runtime.events();
    for payload in crashed {
        kill(payload, Signal::SIGKILL);
    }
    loop {
        let event = next_event(&mut events).await;
        assert_ne!(event.change, BoxChange::Removed, "{event:?}");
        if event.change == BoxChange::Started && event.info.id == crashing.id {
            break;
        }
    }
    drop(readers);
    runtime.shutdown(DEADLINE).await;
}

#[tokio::test]
async fn a_stream_of_a_box_that_runs_ends_when_it_is_not_followed_any_more() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let bx = start_box(&runtime, script("echo up; sleep 1000")).await;
    let mut stream = runtime
        .console(&bx.id, ConsoleQuery::following())
        .await
        .unwrap();
    assert_eq!(read_until(&mut stream, Some("up\n")).await, "up\n");
    stream.stop_following();
    assert_eq!(read_until(&mut stream, None).await, "");

    let removed = runtime.create(sleeping()).await.unwrap();
    let mut stream = runtime
        .console(&removed.id, ConsoleQuery::following())
        .await
        .unwrap();
    runtime.remove(&removed.id, Removal::Ended).await.unwrap();
    assert_eq!(read_until(&mut stream, None).await, "");
    let unknown = runtime.console(&removed.id, ConsoleQuery::default()).await;
    assert!(matches!(unknown, Err(RuntimeError::NotFound { .. })));

    let mut stream = runtime
        .console(&bx.id, ConsoleQuery::following())
        .await
        .unwrap();
    runtime.shutdown(DEADLINE).await;
    assert_eq!(read_until(&mut stream, None).await, "up\n");
}
