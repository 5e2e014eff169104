use std::process::Command;

use super::*;

/// Returns a module that depends on others, as far as the parser can tell.
fn module(depends: &str) -> Vec<u8> {
    let fields = format!("license=GPL\0depends={depends}\0name=x\0");
    // An ELF header, two sections (.modinfo and the names of sections), and their headers.
    let names = b"\0.modinfo\0.shstrtab\0";
    let (fields_at, names_at) = (64, 64 + fields.len());
    let headers_at = (names_at + names.len()).next_multiple_of(8);
    let mut file = Vec::new();
    file.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    file.extend([1, 0, 62, 0, 1, 0, 0, 0]);
    file.extend(0_u64.to_le_bytes());
    file.extend(0_u64.to_le_bytes());
    file.extend((headers_at as u64).to_le_bytes());
    file.extend([0, 0, 0, 0, 64, 0, 0, 0, 0, 0, 64, 0, 3, 0, 2, 0]);
    file.extend(fields.bytes());
    file.extend(names);
    file.resize(headers_at + 64, 0);
    for (name, kind, at, size) in [
        (1_u32, 1_u32, fields_at, fields.len()),
        (10, 3, names_at, names.len()),
    ] {
        file.extend(name.to_le_bytes());
        file.extend(kind.to_le_bytes());
        file.extend([0; 16]);
        file.extend((at as u64).to_le_bytes());
        file.extend((size as u64).to_le_bytes());
        file.extend([0; 8]);
        file.extend(1_u64.to_le_bytes());
        file.extend([0; 8]);
    }
    file
}

fn dir(modules: &[(&str, &str)], builtin: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, depends) in modules {
        let path = dir.path().join("kernel").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, module(depends)).unwrap();
    }
    fs::write(dir.path().join("modules.builtin"), builtin).unwrap();
    dir
}

fn select(dir: &Path, required: &[&str], optional: &[&str]) -> Result<Vec<String>, BuildError> {
    let modules = Modules::read(dir)?.select(required, optional)?;
    Ok(modules.into_iter().map(|module| module.name).collect())
}

#[test]
fn modules_follow_those_that_they_depend_on() {
    let dir = dir(
        &[
            ("drivers/top.ko", "mid-dle,ext4,base"),
            ("drivers/mid-dle.ko", "base"),
            ("base.ko", ""),
            ("unused.ko", ""),
        ],
        "kernel/fs/ext4/ext4.ko\n",
    );
    let order = select(dir.path(), &["top", "ext4", "base"], &["absent"]).unwrap();
    assert_eq!(order, ["base", "mid_dle", "top"]);
}

#[test]
fn a_module_that_is_neither_a_file_nor_built_in_is_named() {
    let dir = dir(&[("top.ko", "base")], "");
    let error = select(dir.path(), &["top"], &[]).unwrap_err();
    assert!(matches!(&error, BuildError::ModuleNotFound { name, .. } if name == "base"));
    assert!(error.to_string().contains("modules.builtin"), "{error}");
}

#[test]
fn modules_that_depend_on_each_other_end_the_search() {
    let dir = dir(&[("a.ko", "b"), ("b.ko", "a")], "");
    assert_eq!(select(dir.path(), &["a"], &[]).unwrap(), ["b", "a"]);
}

#[test]
fn a_file_that_is_not_a_module_is_named() {
    let dir = dir(&[], "");
    fs::write(dir.path().join("bad.ko"), "text").unwrap();
    let error = select(dir.path(), &["bad"], &[]).unwrap_err().to_string();
    assert!(error.contains("bad.ko is not a kernel module"), "{error}");
}

#[test]
fn compressed_modules_are_unpacked() {
    for (program, extension) in [("gzip", "gz"), ("xz", "xz"), ("zstd", "zst")] {
        let dir = dir(&[("one.ko", "")], "");
        let plain = dir.path().join("kernel/one.ko");
        let output = Command::new(program).arg("-c").arg(&plain).output();
        let Ok(output) = output else {
            assert!(
                std::env::var_os("CI").is_none(),
                "this test needs {program}"
            );
            eprintln!("SKIPPED: this test needs {program}");
            continue;
        };
        fs::write(
            dir.path().join(format!("kernel/one.ko.{extension}")),
            output.stdout,
        )
        .unwrap();
        fs::remove_file(&plain).unwrap();
        let selected = Modules::read(dir.path()).unwrap().select(&["one"], &[]);
        assert_eq!(selected.unwrap()[0].contents, module(""));
    }
}
