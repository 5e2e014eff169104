//! The output of a payload, and the files that store it.
#![allow(clippy::panic, clippy::unwrap_used)]

mod support;

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::thread;

use nix::sys::signal::Signal;
use support::{Shim, eventually, is_running, sh};
use vmm_shim::{ConsoleOptions, Ending, ExitRecord, FILES, FailureKind, PayloadSpec, Report};

/// Returns the total size of all console files.
fn stored_bytes(shim: &Shim) -> u64 {
    let files = fs::read_dir(&shim.dir).unwrap().map(Result::unwrap);
    files
        .filter(|file| {
            let name = file.file_name().into_string().unwrap();
            name == FILES.console || name.starts_with("console.log.")
        })
        .map(|file| file.metadata().unwrap().len())
        .sum()
}

fn dropped_bytes(shim: &Shim) -> u64 {
    let count = fs::read_to_string(shim.path(FILES.console_dropped));
    count.map_or(0, |count| count.trim().parse().unwrap())
}

/// Returns the content of all console files, the oldest first.
fn stored_output(shim: &Shim) -> String {
    let paths = (0..=u8::MAX).rev();
    paths
        .filter_map(|number| fs::read_to_string(shim.path(&FILES.rotated_console(number))).ok())
        .collect()
}

/// Returns a payload with small console files.
fn with_small_console(script: &str, files: u8) -> PayloadSpec {
    let mut payload = sh(script);
    payload.console = ConsoleOptions::default().max_bytes(4096).files(files);
    payload
}

#[test]
fn by_default_30_mib_of_output_are_stored() {
    let mut shim = Shim::start(sh("yes 0123456789abcde | head -c 41M; echo end; exit 3"));
    assert_eq!(shim.wait().code(), Some(3));
    let stored = stored_bytes(&shim);
    assert!((20 << 20..=30 << 20).contains(&stored), "{stored}");
    assert!(shim.console().ends_with("\n0123456789abcde\nend\n"));
    assert_eq!(stored + dropped_bytes(&shim), (41 << 20) + 4);
}

#[test]
fn the_newest_lines_are_stored_and_the_others_are_counted() {
    for files in 1..=4 {
        let mut shim = Shim::start(with_small_console("seq 10000", files));
        assert_eq!(shim.wait().code(), Some(0));
        let expected: String = (1..=10_000).map(|line| format!("{line}\n")).collect();
        let stored = stored_output(&shim);
        assert!(expected.ends_with(&stored), "{files}");
        assert!(stored.len() > (usize::from(files) - 1) * 2048, "{files}");
        assert_eq!(dropped_bytes(&shim), (expected.len() - stored.len()) as u64);
        for number in 0..files {
            let file = fs::metadata(shim.path(&FILES.rotated_console(number))).unwrap();
            assert!(file.len() <= 4096, "{file:?}");
            assert_eq!(file.permissions().mode() & 0o777, 0o600);
        }
        assert!(!shim.path(&FILES.rotated_console(files)).exists());
    }
}

/// The pipe is full when the payload crashes, and the shim rotates small files.
#[test]
fn the_last_output_of_a_crash_is_stored_before_the_exit_record() {
    let crash = "import fcntl, os, signal, time
fcntl.fcntl(1, fcntl.F_SETPIPE_SZ, 1 << 20)
while not os.path.exists(os.environ['VMM_BOX_DIR'] + '/go'): time.sleep(0.01)
os.write(1, b'a line\\n' * 100000 + b'last output\\n')
os.kill(os.getpid(), signal.SIGSEGV)";
    let mut payload = with_small_console("", 2);
    payload.command = ["python3", "-c", crash].map(str::to_owned).into();
    let mut shim = Shim::start(payload);
    assert!(matches!(shim.report(), Report::Ready { .. }));
    let payload = shim.payload_pid();
    shim.signal(Signal::SIGSTOP);
    fs::write(shim.path("go"), "").unwrap();
    eventually("the exit of the payload", || !is_running(payload));
    shim.signal(Signal::SIGCONT);
    let mut record = None;
    eventually("the exit record", || {
        record = ExitRecord::read(&shim.path(FILES.exit)).unwrap();
        record.is_some()
    });
    assert!(shim.console().ends_with("a line\nlast output\n"));
    assert_eq!(record.unwrap().ending, Ending::Signaled { signal: 11 });
    assert_eq!(shim.wait().code(), Some(139));
}

#[test]
fn a_payload_can_reopen_its_stdout_and_stderr() {
    let mut shim = Shim::start(sh("echo out > /dev/stdout; echo err >> /proc/self/fd/2"));
    assert_eq!(shim.wait().code(), Some(0));
    assert_eq!(shim.console(), "out\nerr\n");
}

#[test]
fn a_payload_that_closes_its_output_continues() {
    let mut shim = Shim::start(sh("echo out; exec >&- 2>&-; sleep 0.2; exit 4"));
    assert_eq!(shim.wait().code(), Some(4));
    assert_eq!(shim.console(), "out\n");
}

/// The test holds the pipe like a descendant in an uninterruptible sleep, which cannot be killed.
#[test]
fn an_open_pipe_does_not_delay_the_exit() {
    let mut shim = Shim::start(sh(
        "while [ ! -e $VMM_BOX_DIR/go ]; do sleep 0.01; done; exit 3",
    ));
    let _output = open_output(&mut shim);
    fs::write(shim.path("go"), "").unwrap();
    assert_eq!(shim.wait().code(), Some(3));
}

#[test]
fn endless_output_does_not_delay_the_exit() {
    let script = "while [ ! -e $VMM_BOX_DIR/go ]; do sleep 0.01; done; exit 3";
    let mut shim = Shim::start(with_small_console(script, 3));
    let output = open_output(&mut shim);
    // They write faster than the shim reads, so the pipe is never empty.
    let writers = [(); 4].map(|()| {
        let mut output = output.try_clone().unwrap();
        thread::spawn(move || while output.write_all(&[b'\n'; 4096]).is_ok() {})
    });
    drop(output);
    eventually("dropped output", || dropped_bytes(&shim) > 0);
    fs::write(shim.path("go"), "").unwrap();
    assert_eq!(shim.wait().code(), Some(3));
    for writer in writers {
        writer.join().unwrap();
    }
}

/// Waits until the payload is ready, and opens its end of the pipe.
fn open_output(shim: &mut Shim) -> File {
    assert!(matches!(shim.report(), Report::Ready { .. }));
    let output = format!("/proc/{}/fd/1", shim.payload_pid());
    File::options().write(true).open(output).unwrap()
}

#[test]
fn a_stopped_shim_blocks_its_payload_until_it_is_continued() {
    let script = "while [ ! -e $VMM_BOX_DIR/go ]; do sleep 0.01; done;
        : > $VMM_BOX_DIR/started; seq 50000; exit 5";
    let mut shim = Shim::start(sh(script));
    shim.report();
    shim.signal(Signal::SIGSTOP);
    fs::write(shim.path("go"), "").unwrap();
    eventually("output", || shim.path("started").exists());
    shim.signal(Signal::SIGCONT);
    assert_eq!(shim.wait().code(), Some(5));
    assert!(shim.console().ends_with("\n50000\n"));
}

#[test]
fn an_oversized_log_of_an_earlier_run_is_rotated() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(FILES.console), "x".repeat(5000) + "\n").unwrap();
    let mut shim = Shim::spawn_in(dir, &mut support::command());
    let line = support::spec(with_small_console("echo next", 3))
        .to_line()
        .unwrap();
    shim.send(&line);
    assert_eq!(shim.wait().code(), Some(0));
    assert_eq!(shim.console(), "next\n");
    let old = fs::metadata(shim.path("console.log.1")).unwrap();
    assert_eq!(old.len(), 5001);
}

#[test]
fn replaced_console_files_are_neither_followed_nor_exceed_the_limit() {
    let target = tempfile::NamedTempFile::new().unwrap();
    for replace in [
        "rm console.log; ln -s $0 console.log",
        "ln -s $0 console.log.1; ln -s $0 console.log.2",
        "rm console.log; mkfifo console.log console.log.1 console.log.2",
        "rm console.log; mkdir console.log",
        "mkdir -p console.log.1/full console.log.2/full",
    ] {
        let mut payload =
            with_small_console(&format!("cd $VMM_BOX_DIR; {replace}; seq 10000; exit 3"), 3);
        let target = target.path().to_str().unwrap().to_owned();
        payload.command.push(target);
        let mut shim = Shim::start(payload);
        assert_eq!(shim.wait().code(), Some(3), "{replace}");
        assert!(shim.console().ends_with("\n10000\n"), "{replace}");
        assert!(stored_bytes(&shim) <= 3 * 4096 + 2 * 4096, "{replace}");
    }
    assert_eq!(fs::metadata(&target).unwrap().len(), 0);
}

#[test]
fn a_link_in_place_of_console_dropped_is_not_followed() {
    let target = tempfile::NamedTempFile::new().unwrap();
    let dir = tempfile::tempdir().unwrap();
    symlink(&target, dir.path().join(FILES.console_dropped)).unwrap();
    let mut shim = Shim::spawn_in(dir, &mut support::command());
    shim.send(
        &support::spec(with_small_console("seq 10000", 2))
            .to_line()
            .unwrap(),
    );
    assert_eq!(shim.wait().code(), Some(0));
    assert_eq!(fs::metadata(&target).unwrap().len(), 0);
    assert!(dropped_bytes(&shim) > 0);
}

#[test]
fn invalid_console_options_are_rejected() {
    for (max_bytes, files) in [(0, 3), (4095, 3), (4096, 0)] {
        let mut payload = sh("true");
        payload.console = ConsoleOptions::default().max_bytes(max_bytes).files(files);
        let mut shim = Shim::start(payload);
        assert_eq!(shim.wait().code(), Some(125));
        match shim.record().ending {
            Ending::Failed { kind, .. } => assert_eq!(kind, FailureKind::Spec),
            other => panic!("{other:?}"),
        }
    }
}
