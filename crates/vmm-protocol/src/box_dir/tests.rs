use super::*;

#[test]
fn a_new_run_finds_no_file_of_the_previous_run_or_of_a_crashed_writer() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = BoxDir::new(temporary.path());
    let of_the_box = ["box.json", "console.log", "console.dropped", "shim.stderr"];
    let records = [
        "shim.pid",
        "payload.pid",
        "cgroup",
        "exit",
        "helpers.log",
        "helpers.count",
    ];
    for name in
        records
            .into_iter()
            .chain(of_the_box)
            .chain(["notify.sock", "control.sock", "paused"])
    {
        fs::write(dir.path().join(name), "").unwrap();
    }
    for name in records {
        fs::write(dir.path().join(format!(".{name}.tmp")), "").unwrap();
    }
    dir.delete_run_files().unwrap();
    let left = fs::read_dir(dir.path()).unwrap();
    let mut left: Vec<_> = left.map(|file| file.unwrap().file_name()).collect();
    left.sort();
    let mut expected = of_the_box;
    expected.sort();
    assert_eq!(left, expected);
    // The files of a box that was never started.
    dir.delete_run_files().unwrap();
}

#[test]
fn a_sync_of_the_exit_record_accepts_only_a_regular_file_or_none() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = BoxDir::new(temporary.path());
    dir.sync_exit_record().unwrap();
    let exit = ExitRecord {
        pid: 7,
        requested: false,
        ending: crate::Ending::OutOfMemory,
    };
    dir.write_exit_record_unsynced(&exit).unwrap();
    dir.sync_exit_record().unwrap();
    assert_eq!(dir.exit_record().unwrap(), Some(exit));
    let path = dir.path().join("exit");
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert_eq!(dir.sync_exit_record().unwrap_err().path, path);
}

#[test]
fn each_file_has_the_name_by_which_other_programs_find_it() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = BoxDir::new(temporary.path());
    let record = PidRecord::of_this_process().unwrap();
    let exit = ExitRecord {
        pid: record.pid,
        requested: false,
        ending: crate::Ending::OutOfMemory,
    };
    dir.write_shim_record(&record).unwrap();
    dir.write_payload_record(&record).unwrap();
    dir.write_exit_record(&exit).unwrap();
    dir.write_control_groups(&["/a".into(), "/b c".into()])
        .unwrap();
    dir.write_dropped_console_bytes(7).unwrap();
    dir.write_helper_count(2).unwrap();
    dir.write_paused(true).unwrap();
    dir.open_helpers_log().unwrap();
    dir.open_console_for_append().unwrap();
    dir.open_shim_stderr().unwrap();
    let mut names: Vec<_> = fs::read_dir(dir.path())
        .unwrap()
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let expected = [
        "cgroup",
        "console.dropped",
        "console.log",
        "exit",
        "helpers.count",
        "helpers.log",
        "paused",
        "payload.pid",
        "shim.pid",
        "shim.stderr",
    ];
    assert_eq!(names, expected);
    assert_eq!(dir.shim_record().unwrap(), Some(record.clone()));
    assert_eq!(dir.payload_record().unwrap(), Some(record));
    assert_eq!(dir.exit_record().unwrap(), Some(exit));
    let groups: [PathBuf; 2] = ["/a".into(), "/b c".into()];
    assert_eq!(dir.control_groups().unwrap(), groups);
    assert_eq!((dir.dropped_console_bytes(), dir.helper_count()), (7, 2));
    assert!(dir.is_paused());
    dir.write_paused(false).unwrap();
    assert!(!dir.is_paused());
    assert!(dir.open_console(0).is_ok() && dir.open_console(1).is_err());
}

#[test]
fn the_end_of_a_run_leaves_its_records_only() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = BoxDir::new(temporary.path());
    let records = ["console.log", "exit", "helpers.log", "shim.pid"];
    let transient = [
        "control.sock",
        "notify.sock",
        "paused",
        ".exit.tmp",
        ".console.dropped.tmp",
    ];
    for name in records.into_iter().chain(transient) {
        fs::write(dir.path().join(name), "").unwrap();
    }
    dir.delete_transient_files().unwrap();
    let left = fs::read_dir(dir.path()).unwrap();
    let mut left: Vec<_> = left.map(|file| file.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, records);
}

#[test]
fn a_run_has_records_until_they_are_deleted() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = BoxDir::new(temporary.path());
    dir.write_dropped_console_bytes(7).unwrap();
    assert!(!dir.has_run_records());
    // A payload can put anything in place of a record.
    std::os::unix::fs::symlink("/missing", dir.path().join("payload.pid")).unwrap();
    assert!(dir.has_run_records());
    dir.delete_run_files().unwrap();
    assert!(!dir.has_run_records());
}
