//! What the init and the program are.

use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;

use nix::libc;

use crate::common::eventually_blocking;
use crate::program::{Place, Started};

#[test]
fn the_init_keeps_only_the_standard_streams_open() {
    for place in Place::with_init() {
        let mut command = place.command("echo ready; exec sleep 1000", "");
        // SAFETY: the closure makes one system call.
        unsafe {
            command.pre_exec(|| match libc::dup2(0, 9) {
                9 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            });
        }
        let mut started = Started::new(place, command);
        started.line();
        let directory = format!("/proc/{}/fd", started.init());
        // The program may be ready before the init.
        eventually_blocking("the init has three descriptors", || {
            let entries = fs::read_dir(&directory).unwrap();
            let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names == ["0", "1", "2"]
        });
    }
}

#[test]
fn the_program_keeps_the_descriptors_of_the_caller() {
    for place in Place::with_init() {
        let script = "exec 9</dev/null; exec env SHIM_TEST=1 ls /proc/self/fd";
        let (_, lines) = place.start(script).end();
        assert!(lines.contains(&"9".to_owned()), "{place:?} {lines:?}");
    }
}

#[test]
fn the_init_has_a_name_and_a_directory_of_its_own() {
    for place in Place::with_init() {
        let mut command = place.command("pwd; exec sleep 1000", "");
        command.current_dir("/usr");
        let mut started = Started::new(place, command);
        assert_eq!(started.line(), "/usr", "{place:?}");
        let proc = format!("/proc/{}", started.init());
        eventually_blocking("the init has its name and directory", || {
            let directory = fs::read_link(format!("{proc}/cwd")).unwrap();
            let name = fs::read_to_string(format!("{proc}/comm")).unwrap();
            directory == Path::new("/") && name == "init\n"
        });
    }
}

#[test]
fn variables_that_name_the_init_name_the_program() {
    let script = "echo $LISTEN_PID $WATCHDOG_PID $LISTEN_PIDFDID; echo $$";
    for place in Place::with_init() {
        if place == Place::Container {
            let mut command = place.command(script, "");
            command
                .env("LISTEN_PID", "1")
                .env("LISTEN_PIDFDID", "123456")
                .env("WATCHDOG_PID", "4711");
            let (_, lines) = Started::new(place, command).end();
            assert_eq!(lines, ["2 4711", "2"]);
        }
    }
}

#[test]
fn the_program_leads_a_process_group() {
    for place in Place::with_init() {
        let script = "read -r _ _ _ parent group rest </proc/self/stat; echo $$ $parent $group";
        let (_, lines) = place.start(script).end();
        let numbers: Vec<&str> = lines[0].split(' ').collect();
        assert_eq!(numbers[0], numbers[2], "{place:?}");
        if place == Place::Container {
            assert_eq!(numbers, ["2", "1", "2"]);
        }
    }
}
