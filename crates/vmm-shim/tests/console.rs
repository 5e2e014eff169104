//! What a payload prints, and the files that keep it.
#![allow(clippy::panic, clippy::unwrap_used)]

mod support;

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::thread;

use nix::sys::signal::Signal;
use support::{Shim, eventually, runs, sh};
use vmm_shim::{ConsoleOptions, Ending, ExitRecord, FILES, FailureKind, PayloadSpec, Report};

/// The total size of all console files.
fn kept(shim: &Shim) -> u64 {
    let files = fs::read_dir(&shim.dir).unwrap().map(Result::unwrap);
    files
        .filter(|file| {
            let name = file.file_name().into_string().unwrap();
            name == FILES.console || name.starts_with("console.log.")
        })
        .map(|file| file.metadata().unwrap().len())
        .sum()
}

fn dropped(shim: &Shim) -> u64 {
    let count = fs::read_to_string(shim.path(FILES.console_dropped));
    count.map_or(0, |count| count.trim().parse().unwrap())
}

/// What the files hold, the oldest first.
fn whole(shim: &Shim) -> String {
    let paths = (0..=u8::MAX).rev();
    paths
        .filter_map(|number| fs::read_to_string(shim.path(&FILES.rotated_console(number))).ok())
        .collect()
}

fn small(script: &str, files: u8) -> PayloadSpec {
    let mut payload = sh(script);
    payload.console = ConsoleOptions::default().max_bytes(4096).files(files);
    payload
}

#[test]
fn output_without_end_takes_30_mib_of_the_disk() {
    let mut shim = Shim::of(sh("yes 0123456789abcde | head -c 41M; echo end; exit 3"));
    assert_eq!(shim.wait().code(), Some(3));
    let kept = kept(&shim);
    assert!((20 << 20..=30 << 20).contains(&kept), "{kept}");
    assert!(shim.console().ends_with("\n0123456789abcde\nend\n"));
    assert_eq!(kept + dropped(&shim), (41 << 20) + 4);
}

#[test]
fn the_newest_lines_are_kept_in_order_and_the_others_are_counted() {
    for files in 1..=4 {
        let mut shim = Shim::of(small("seq 10000", files));
        assert_eq!(shim.wait().code(), Some(0));
        let printed: String = (1..=10_000).map(|line| format!("{line}\n")).collect();
        let whole = whole(&shim);
        assert!(printed.ends_with(&whole), "{files}");
        assert!(whole.len() > (usize::from(files) - 1) * 2048, "{files}");
        assert_eq!(dropped(&shim), (printed.len() - whole.len()) as u64);
        for number in 0..files {
            let file = fs::metadata(shim.path(&FILES.rotated_console(number))).unwrap();
            assert!(file.len() <= 4096, "{file:?}");
            assert_eq!(file.permissions().mode() & 0o777, 0o600);
        }
        assert!(!shim.path(&FILES.rotated_console(files)).exists());
    }
}

/// With as much in the pipe as one takes, and a log that is slow to write.
#[test]
fn the_last_words_of_a_crash_are_in_the_log_before_its_record() {
    let crash = "import fcntl, os, signal, time
fcntl.fcntl(1, fcntl.F_SETPIPE_SZ, 1 << 20)
while not os.path.exists(os.environ['VMM_BOX_DIR'] + '/go'): time.sleep(0.01)
os.write(1, b'a line\\n' * 100000 + b'last words\\n')
os.kill(os.getpid(), signal.SIGSEGV)";
    let mut payload = small("", 2);
    payload.command = ["python3", "-c", crash].map(str::to_owned).into();
    let mut shim = Shim::of(payload);
    assert!(matches!(shim.report(), Report::Ready { .. }));
    let payload = shim.payload_pid();
    shim.signal(Signal::SIGSTOP);
    fs::write(shim.path("go"), "").unwrap();
    eventually("the end of the payload", || !runs(payload));
    shim.signal(Signal::SIGCONT);
    let mut record = None;
    eventually("the record", || {
        record = ExitRecord::read(&shim.path(FILES.exit)).unwrap();
        record.is_some()
    });
    assert!(shim.console().ends_with("a line\nlast words\n"));
    assert_eq!(record.unwrap().ending, Ending::Signaled { signal: 11 });
    assert_eq!(shim.wait().code(), Some(139));
}

#[test]
fn a_payload_can_open_its_stdout_and_stderr_again() {
    let mut shim = Shim::of(sh("echo out > /dev/stdout; echo err >> /proc/self/fd/2"));
    assert_eq!(shim.wait().code(), Some(0));
    assert_eq!(shim.console(), "out\nerr\n");
}

#[test]
fn a_payload_that_closes_its_output_goes_on() {
    let mut shim = Shim::of(sh("echo out; exec >&- 2>&-; sleep 0.2; exit 4"));
    assert_eq!(shim.wait().code(), Some(4));
    assert_eq!(shim.console(), "out\n");
}

/// As a descendant in an uninterruptible sleep, which cannot be killed.
#[test]
fn a_process_that_holds_the_pipe_does_not_hold_up_the_end() {
    let mut shim = Shim::of(sh(
        "while [ ! -e $VMM_BOX_DIR/go ]; do sleep 0.01; done; exit 3",
    ));
    let _output = output_of(&mut shim);
    fs::write(shim.path("go"), "").unwrap();
    assert_eq!(shim.wait().code(), Some(3));
}

#[test]
fn processes_that_print_without_end_do_not_hold_up_the_end() {
    let script = "while [ ! -e $VMM_BOX_DIR/go ]; do sleep 0.01; done; exit 3";
    let mut shim = Shim::of(small(script, 3));
    let output = output_of(&mut shim);
    // Faster than the shim, so that the pipe is never empty.
    let floods = [(); 4].map(|()| {
        let mut output = output.try_clone().unwrap();
        thread::spawn(move || while output.write_all(&[b'\n'; 4096]).is_ok() {})
    });
    drop(output);
    eventually("more than the log takes", || dropped(&shim) > 0);
    fs::write(shim.path("go"), "").unwrap();
    assert_eq!(shim.wait().code(), Some(3));
    for flood in floods {
        flood.join().unwrap();
    }
}

/// The payload's end of the pipe.
fn output_of(shim: &mut Shim) -> File {
    assert!(matches!(shim.report(), Report::Ready { .. }));
    let output = format!("/proc/{}/fd/1", shim.payload_pid());
    File::options().write(true).open(output).unwrap()
}

#[test]
fn a_shim_that_is_stopped_holds_up_its_payload_only_until_it_is_continued() {
    let script = "while [ ! -e $VMM_BOX_DIR/go ]; do sleep 0.01; done;
        : > $VMM_BOX_DIR/begun; seq 50000; exit 5";
    let mut shim = Shim::of(sh(script));
    shim.report();
    shim.signal(Signal::SIGSTOP);
    fs::write(shim.path("go"), "").unwrap();
    eventually("output", || shim.path("begun").exists());
    shim.signal(Signal::SIGCONT);
    assert_eq!(shim.wait().code(), Some(5));
    assert!(shim.console().ends_with("\n50000\n"));
}

#[test]
fn a_log_that_was_not_rotated_is_appended_to_and_rotated_when_it_is_too_large() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(FILES.console), "x".repeat(5000) + "\n").unwrap();
    let mut shim = Shim::in_dir(dir, &mut support::command());
    let line = support::spec(small("echo next", 3)).to_line().unwrap();
    shim.tell(&line);
    assert_eq!(shim.wait().code(), Some(0));
    assert_eq!(shim.console(), "next\n");
    let old = fs::metadata(shim.path("console.log.1")).unwrap();
    assert_eq!(old.len(), 5001);
}

#[test]
fn what_a_payload_puts_in_place_of_its_log_is_neither_followed_nor_outgrown() {
    let elsewhere = tempfile::NamedTempFile::new().unwrap();
    for replace in [
        "rm console.log; ln -s $0 console.log",
        "ln -s $0 console.log.1; ln -s $0 console.log.2",
        "rm console.log; mkfifo console.log console.log.1 console.log.2",
        "rm console.log; mkdir console.log",
        "mkdir -p console.log.1/full console.log.2/full",
    ] {
        let mut payload = small(&format!("cd $VMM_BOX_DIR; {replace}; seq 10000; exit 3"), 3);
        let elsewhere = elsewhere.path().to_str().unwrap().to_owned();
        payload.command.push(elsewhere);
        let mut shim = Shim::of(payload);
        assert_eq!(shim.wait().code(), Some(3), "{replace}");
        assert!(shim.console().ends_with("\n10000\n"), "{replace}");
        assert!(kept(&shim) <= 3 * 4096 + 2 * 4096, "{replace}");
    }
    assert_eq!(fs::metadata(&elsewhere).unwrap().len(), 0);
}

#[test]
fn a_link_in_place_of_the_count_is_not_followed() {
    let elsewhere = tempfile::NamedTempFile::new().unwrap();
    let dir = tempfile::tempdir().unwrap();
    symlink(&elsewhere, dir.path().join(FILES.console_dropped)).unwrap();
    let mut shim = Shim::in_dir(dir, &mut support::command());
    shim.tell(&support::spec(small("seq 10000", 2)).to_line().unwrap());
    assert_eq!(shim.wait().code(), Some(0));
    assert_eq!(fs::metadata(&elsewhere).unwrap().len(), 0);
    assert!(dropped(&shim) > 0);
}

#[test]
fn a_console_without_room_for_anything_is_refused() {
    for (max_bytes, files) in [(0, 3), (4095, 3), (4096, 0)] {
        let mut payload = sh("true");
        payload.console = ConsoleOptions::default().max_bytes(max_bytes).files(files);
        let mut shim = Shim::of(payload);
        assert_eq!(shim.wait().code(), Some(125));
        match shim.record().ending {
            Ending::Failed { kind, .. } => assert_eq!(kind, FailureKind::Spec),
            other => panic!("{other:?}"),
        }
    }
}
