//! The mounts that containerd requests for a root file system.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use containerd_shim_protos::types::mount::Mount;
use rustix::fs::{Mode, OFlags, open};
use rustix::mount::{MountFlags, mount, mount_remount};
use vmm_protocol::pod::MountOptions;
use vmm_shim::{DetachedMount, MountPropagation};

use crate::loop_device::LoopDevice;

/// What `mount(2)` reads of the options of a file system, with the NUL byte: the smallest page.
const MAX_DATA_BYTES: usize = 4096;

/// Mounts one after the other on a directory.
pub(crate) fn mount_all(entries: &[Mount], target: &Path) -> io::Result<()> {
    entries
        .iter()
        .try_for_each(|entry| mount_one(entry, target))
}

fn mount_one(entry: &Mount, target: &Path) -> io::Result<()> {
    let is_loop = |option: &&str| *option == "loop";
    let options = entry.options.iter().map(String::as_str);
    let (loops, options): (Vec<_>, Vec<_>) = options.partition(is_loop);
    let options = MountOptions::parse(options);
    if options.is_bind || entry.type_ == "bind" {
        bind(Path::new(&entry.source), target, options.is_recursive)?;
        if !options.flags.is_empty() {
            mount_remount(target, MountFlags::BIND | options.flags, "")?;
        }
        return Ok(());
    }
    let source = Path::new(&entry.source);
    let device = if loops.is_empty() {
        None
    } else {
        let is_read_only = options.flags.contains(MountFlags::RDONLY);
        Some(LoopDevice::attach(source, is_read_only)?)
    };
    let source = device.as_ref().map_or(source, LoopDevice::path);
    // The descriptors of layers are open until they are mounted.
    let (data, _layers) = if options.data.len() < MAX_DATA_BYTES {
        (options.data, Vec::new())
    } else {
        shorten_layers(&options.data)?
    };
    if data.len() >= MAX_DATA_BYTES {
        let error = format!("the options of the mount have {} bytes", data.len());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, error));
    }
    let data = CString::new(data).map_err(io::Error::other)?;
    mount(
        source,
        target,
        entry.type_.as_str(),
        options.flags,
        data.as_c_str(),
    )?;
    Ok(())
}

/// Replaces the paths of the layers of overlayfs by those of descriptors, which are shorter: more than 200 fit into a
/// page. Works with every version of Linux, unlike the option `lowerdir+` of `fsconfig(2)`.
fn shorten_layers(data: &str) -> io::Result<(String, Vec<OwnedFd>)> {
    let mut layers = Vec::new();
    let mut shortened = Vec::new();
    for option in data.split(',') {
        let Some(paths) = option.strip_prefix("lowerdir=") else {
            shortened.push(option.to_owned());
            continue;
        };
        let mut names = Vec::new();
        for path in paths.split(':') {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let layer = open(path, flags, Mode::empty())?;
            names.push(format!("/proc/self/fd/{}", layer.as_raw_fd()));
            layers.push(layer);
        }
        shortened.push(format!("lowerdir={}", names.join(":")));
    }
    Ok((shortened.join(","), layers))
}

/// Mounts a directory privately: the end of a mount that is shared would end mounts at the source, too.
fn bind(source: &Path, target: &Path, is_recursive: bool) -> io::Result<()> {
    let mount = if is_recursive {
        DetachedMount::copy_all(source)?
    } else {
        DetachedMount::copy(source)?
    };
    mount.set_propagation(MountPropagation::Private)?;
    mount.attach(target)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::path::PathBuf;
    use std::process::Command;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::test_mounts::enter_namespace;
    use crate::unmount::unmount_all;

    const TIMEOUT: Duration = Duration::from_secs(60);

    fn entry(kind: &str, source: &Path, options: &[&str]) -> Mount {
        let mut entry = Mount::new();
        entry.type_ = kind.to_owned();
        entry.source = source.to_string_lossy().into_owned();
        entry.options = options.iter().map(|option| (*option).to_owned()).collect();
        entry
    }

    #[test]
    fn layers_whose_paths_exceed_a_page_are_mounted() {
        const LAYERS: usize = 120;
        let name = "rootfs::tests::layers_whose_paths_exceed_a_page_are_mounted";
        let Some(dir) = enter_namespace(name) else {
            return;
        };
        let layer = |number: usize| dir.join(format!("snapshot-{number:0>80}"));
        for number in 0..LAYERS {
            fs::create_dir(layer(number)).unwrap();
            File::create(layer(number).join(number.to_string())).unwrap();
        }
        let [upper, work, target] = ["upper", "work", "target"].map(|name| dir.join(name));
        for dir in [&upper, &work, &target] {
            fs::create_dir(dir).unwrap();
        }
        let layers: Vec<_> = (0..LAYERS)
            .map(|number| layer(number).display().to_string())
            .collect();
        let options = [
            format!("workdir={}", work.display()),
            format!("upperdir={}", upper.display()),
            format!("lowerdir={}", layers.join(":")),
        ];
        let options = options.each_ref().map(String::as_str);
        let overlay = entry("overlay", Path::new("overlay"), &options);
        mount_all(&[overlay], &target).unwrap();
        for number in 0..LAYERS {
            assert!(target.join(number.to_string()).exists(), "{number}");
        }
        File::create(target.join("new")).unwrap();
        assert!(upper.join("new").exists());
    }

    /// Returns the files to which loop devices are connected.
    fn loop_files() -> Vec<PathBuf> {
        let devices = fs::read_dir("/sys/block").unwrap().flatten();
        let files = devices.map(|device| device.path().join("loop/backing_file"));
        files
            .filter_map(|file| Some(fs::read_to_string(file).ok()?.trim_end().into()))
            .collect()
    }

    #[test]
    fn a_file_is_mounted_through_a_loop_device_that_is_free_afterwards() {
        let name = "rootfs::tests::a_file_is_mounted_through_a_loop_device_that_is_free_afterwards";
        let Some(dir) = enter_namespace(name) else {
            return;
        };
        let [files, image, target] = ["files", "image", "target"].map(|name| dir.join(name));
        for dir in [&files, &target] {
            fs::create_dir(dir).unwrap();
        }
        fs::write(files.join("file"), "text").unwrap();
        let made = Command::new("mke2fs")
            .args(["-q", "-t", "ext4", "-d"])
            .args([&files, &image])
            .arg("4M")
            .status();
        assert!(made.unwrap().success());
        for options in [&["loop", "ro"][..], &["loop", "rw"]] {
            mount_all(&[entry("ext4", &image, options)], &target).unwrap();
            assert_eq!(fs::read_to_string(target.join("file")).unwrap(), "text");
            let is_writable = File::create(target.join("new")).is_ok();
            assert_eq!(is_writable, options.contains(&"rw"));
            assert!(loop_files().contains(&image));
            unmount_all(&target).unwrap();
            let start = Instant::now();
            while loop_files().contains(&image) {
                assert!(start.elapsed() < TIMEOUT, "the loop device is in use");
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
}
