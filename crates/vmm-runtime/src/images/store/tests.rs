use super::*;

fn store() -> (tempfile::TempDir, ImageStore) {
    let home = tempfile::tempdir().unwrap();
    let store = ImageStore::new(home.path().join("images"));
    (home, store)
}

fn make(store: &ImageStore, name: &str, word: &str) {
    let staged = store.stage(name).unwrap();
    fs::write(staged.dir().join("file"), word).unwrap();
    staged.commit(&Image::command([word])).unwrap();
}

fn hidden_names(store: &ImageStore) -> usize {
    let entries = fs::read_dir(&store.dir).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name());
    names
        .filter(|name| name.to_str().unwrap().starts_with('.'))
        .count()
}

#[test]
fn an_image_is_made_replaced_and_removed_as_a_whole() {
    let (_home, store) = store();
    assert!(store.list().unwrap().is_empty());
    make(&store, "b", "old");
    make(&store, "a:1.0", "a");
    let open = File::open(store.dir.join("b/file")).unwrap();

    let staged = store.stage("b").unwrap();
    assert_eq!(store.get("b").unwrap().unwrap().image.command, ["old"]);
    drop(staged);
    make(&store, "b", "new");
    let listed = store.list().unwrap();
    let names: Vec<_> = listed.iter().map(|info| &info.name[..]).collect();
    assert_eq!(names, ["a:1.0", "b"]);
    assert_eq!(listed[1].image.command, ["new"]);
    assert!(listed[1].size_bytes > Some(0));
    assert_eq!(fs::read(store.dir.join("b/file")).unwrap(), b"new");
    // As a box that runs would.
    assert_eq!(io::read_to_string(open).unwrap(), "old");

    store.remove("b").unwrap();
    assert!(store.get("b").unwrap().is_none());
    let error = store.remove("b").unwrap_err();
    assert!(matches!(error, ImageError::NotFound { .. }), "{error}");
    assert_eq!(hidden_names(&store), 0);
}

#[test]
fn what_a_killed_build_has_left_is_removed_and_a_build_that_runs_is_not() {
    let (_home, store) = store();
    let running = store.stage("running").unwrap();
    let mut killed = store.stage("killed").unwrap();
    fs::create_dir(killed.dir().join("unpacked")).unwrap();
    // The lock of a killed process ends, and nothing removes its files.
    killed.lock.dir.unlock().unwrap();
    let dir = std::mem::take(&mut killed.dir);
    assert!(dir.exists());

    make(&store, "next", "next");
    assert!(!dir.exists());
    fs::write(running.dir().join("file"), "still here").unwrap();
    running.commit(&Image::command(["true"])).unwrap();
    assert!(store.get("running").unwrap().is_some());
    assert_eq!(hidden_names(&store), 0);
}

#[test]
fn a_name_cannot_leave_the_store() {
    let (home, store) = store();
    make(&store, "a", "a");
    fs::create_dir(home.path().join("victim")).unwrap();
    for name in [
        "",
        ".",
        "..",
        ".hidden",
        "../victim",
        "a/b",
        "-a",
        "a\n",
        &"a".repeat(129),
    ] {
        let error = store.stage(name).unwrap_err();
        assert!(matches!(error, ImageError::InvalidName { .. }), "{error}");
        assert!(store.get(name).unwrap().is_none());
        assert!(store.remove(name).is_err());
    }
    assert!(home.path().join("victim").exists());
}

#[test]
fn an_image_that_could_not_be_read_is_not_stored() {
    let (_home, store) = store();
    let staged = store.stage("bad").unwrap();
    let error = staged.commit(&Image::command([""])).unwrap_err();
    assert!(error.to_string().contains("command"), "{error}");
    assert!(store.list().unwrap().is_empty());
    assert_eq!(hidden_names(&store), 0);
}

#[test]
fn a_damaged_image_is_named_and_can_be_removed() {
    let (_home, store) = store();
    make(&store, "bad", "bad");
    fs::write(store.dir.join("bad").join(IMAGE_FILE), "{").unwrap();
    let error = store.list().unwrap_err();
    assert!(matches!(error, ImageError::Malformed { .. }), "{error}");
    store.remove("bad").unwrap();
    assert!(store.list().unwrap().is_empty());
}
