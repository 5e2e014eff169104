//! Restricts what a QEMU that its guest has taken over can reach on the host.

use std::fs::{DirBuilder, File};
use std::io::{self, ErrorKind, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::thread;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetError, Scope, path_beneath_rules,
};
use nix::sched::{CloneFlags, unshare};
use pidfd_spawn::Command;
use vmm_protocol::with_causes;

use super::options::{Accelerator, DiskAccess, QemuOptions};
use crate::EngineError;

/// Where the program of QEMU, its libraries and its firmware are.
const PROGRAM_PATHS: [&str; 5] = ["/bin", "/etc/ld.so.cache", "/lib", "/lib64", "/usr"];

/// The newest version of Landlock whose rights are restricted. An older kernel restricts those that it
/// knows.
const LANDLOCK: ABI = ABI::V6;

/// What a QEMU gets to keep it from the files, the processes and the network of the host.
#[derive(Debug)]
pub(super) struct Confinement {
    /// The rules of Landlock, if the kernel supports it.
    ruleset: Option<OwnedFd>,
    /// A network namespace without interfaces, if this process may create one.
    network_namespace: Option<File>,
}

impl Confinement {
    /// Prepares the confinement of a guest with these options, whose overlays are in this directory.
    /// Writes to stderr what the host does not support.
    pub(super) fn prepare(options: &QemuOptions, overlay_dir: &Path) -> Result<Self, EngineError> {
        let ruleset = create_ruleset(options, overlay_dir).map_err(|error| {
            EngineError::system("create a ruleset of Landlock")(io::Error::other(error))
        })?;
        if ruleset.is_none() {
            report("can access all files of its user: the kernel has no Landlock");
        }
        let network_namespace = create_network_namespace()
            .inspect_err(|error| {
                let cause = with_causes(error);
                report(&format!("has no network namespace of its own: {cause}"));
            })
            .ok();
        Ok(Self {
            ruleset,
            network_namespace,
        })
    }

    /// Makes the command start QEMU with the confinement.
    pub(super) fn apply(self, command: &mut Command) {
        command.no_new_privs(true);
        if let Some(ruleset) = self.ruleset {
            command.landlock(ruleset);
        }
        if let Some(namespace) = self.network_namespace {
            command.network_namespace(namespace);
        }
    }
}

fn report(message: &str) {
    let _ = writeln!(io::stderr(), "vmm-shim: QEMU {message}");
}

/// The directory of the overlays in the box directory.
pub(super) const OVERLAY_DIR: &str = "overlays";

/// Creates the directory to which QEMU writes overlays. It is not the box directory, whose records QEMU
/// could forge.
pub(super) fn create_overlay_dir(dir: &Path) -> Result<PathBuf, EngineError> {
    let path = dir.join(OVERLAY_DIR);
    match DirBuilder::new().mode(0o700).create(&path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(EngineError::system(
            "create the directory of the overlays",
        )(error)),
        _ => Ok(path),
    }
}

/// Creates rules that permit QEMU to use its own files and those of the guest. They deny all other files, TCP,
/// abstract sockets of other processes, and signals to them.
fn create_ruleset(
    options: &QemuOptions,
    overlay_dir: &Path,
) -> Result<Option<OwnedFd>, RulesetError> {
    let readable = BitFlags::from(AccessFs::ReadFile);
    let writable = readable | AccessFs::WriteFile | AccessFs::Truncate;
    let mut rules: Vec<(PathBuf, BitFlags<AccessFs>)> = vec![
        (options.kernel.clone(), readable),
        // QEMU probes with it which kind of file locks the kernel has.
        ("/dev/null".into(), writable),
    ];
    rules.extend(options.initrd.iter().map(|path| (path.clone(), readable)));
    for disk in &options.disks {
        let access = match disk.access {
            DiskAccess::ReadOnly | DiskAccess::Overlay => readable,
            DiskAccess::ReadWrite => writable,
        };
        rules.push((disk.path.clone(), access));
    }
    let temporary = writable | AccessFs::MakeReg | AccessFs::RemoveFile;
    rules.push((overlay_dir.to_owned(), temporary));
    if options.accelerator == Accelerator::Kvm {
        rules.push(("/dev/kvm".into(), writable | AccessFs::IoctlDev));
    }

    let mut ruleset = Ruleset::default()
        .handle_access(AccessFs::from_all(LANDLOCK))?
        .handle_access(AccessNet::from_all(LANDLOCK))?
        .scope(Scope::from_all(LANDLOCK))?
        .create()?
        .add_rules(path_beneath_rules(
            PROGRAM_PATHS,
            AccessFs::from_read(LANDLOCK),
        ))?;
    for (path, access) in rules {
        ruleset = ruleset.add_rules(path_beneath_rules([path], access))?;
    }
    Ok(ruleset.into())
}

/// Creates a network namespace whose only interface, the loopback, is down.
fn create_network_namespace() -> io::Result<File> {
    // The thread alone moves to the namespace, which its file keeps.
    let create = || {
        unshare(CloneFlags::CLONE_NEWNET)?;
        File::open("/proc/thread-self/ns/net")
    };
    let thread = thread::Builder::new().spawn(create)?;
    let panicked = |_| Err(io::Error::other("the thread panicked"));
    thread.join().unwrap_or_else(panicked)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::net::TcpListener;

    use tempfile::TempDir;

    use super::*;
    use crate::Disk;

    /// Runs a script as a guest's QEMU would run that has taken over QEMU, and returns what it prints.
    fn output(confinement: Confinement, script: &str) -> String {
        let mut command = Command::new("/bin/bash");
        command.args(["-c", &format!("exec 2>&1; {script}")]);
        confinement.apply(&mut command);
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    }

    /// Returns only the rules of Landlock, for a guest whose files are in the directory. Returns `None` where
    /// they cannot be tested.
    fn rules(dir: &TempDir) -> Option<Confinement> {
        let path = |name| dir.path().join(name);
        for name in ["kernel", "base", "overlaid", "own", "secret"] {
            fs::write(path(name), name).unwrap();
        }
        let mut options = QemuOptions::new(path("kernel"));
        options.disks = vec![
            Disk::read_only(path("base")),
            Disk::read_only(path("overlaid")).access(DiskAccess::Overlay),
            Disk::read_only(path("own")).access(DiskAccess::ReadWrite),
        ];
        let overlays = create_overlay_dir(dir.path()).unwrap();
        let ruleset = create_ruleset(&options, &overlays).unwrap();
        if ruleset.is_none() {
            skip("the kernel has no Landlock");
        }
        Some(Confinement {
            ruleset: Some(ruleset?),
            network_namespace: None,
        })
    }

    fn skip(reason: &str) {
        assert!(std::env::var_os("CI").is_none(), "{reason}");
        eprintln!("SKIPPED: {reason}");
    }

    #[test]
    fn qemu_reads_the_files_of_its_guest_and_no_others() {
        let dir = tempfile::tempdir().unwrap();
        let Some(rules) = rules(&dir) else { return };
        let script = format!(
            "cd /; for file in kernel base overlaid own secret; do
                read -r text < {}/$file && echo bad || echo \"$file=$text\"; done; cat /etc/passwd",
            dir.path().display()
        );
        let output = output(rules, &script);
        for name in ["kernel", "base", "overlaid", "own"] {
            assert!(output.contains(&format!("{name}={name}")), "{output}");
        }
        assert!(!output.contains("secret=secret"), "{output}");
        assert!(!output.contains("root:"), "{output}");
    }

    #[test]
    fn qemu_writes_only_to_its_own_disks_and_overlays() {
        let dir = tempfile::tempdir().unwrap();
        let Some(rules) = rules(&dir) else { return };
        let script = format!(
            "dir={}; for file in kernel base overlaid own new overlays/new; do
                echo changed >> $dir/$file; done",
            dir.path().display()
        );
        output(rules, &script);
        let text = |name| fs::read_to_string(dir.path().join(name));
        for name in ["kernel", "base", "overlaid"] {
            assert_eq!(text(name).unwrap(), name);
        }
        assert_eq!(text("own").unwrap(), "ownchanged\n");
        assert_eq!(text("overlays/new").unwrap(), "changed\n");
        assert!(text("new").is_err());
    }

    #[test]
    fn qemu_cannot_signal_other_processes() {
        let dir = tempfile::tempdir().unwrap();
        let Some(rules) = rules(&dir) else { return };
        let output = output(rules, "kill -0 $PPID && echo permitted");
        assert!(output.contains("not permitted"), "{output}");
    }

    #[test]
    fn qemu_cannot_connect_to_a_server_of_the_host() {
        let dir = tempfile::tempdir().unwrap();
        let Some(rules) = rules(&dir) else { return };
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = server.local_addr().unwrap().port();
        let output = output(rules, &format!(": < /dev/tcp/127.0.0.1/{port} && echo in"));
        assert!(output.contains("Permission denied"), "{output}");
    }

    #[test]
    fn qemu_cannot_reach_a_network() {
        let Ok(namespace) = create_network_namespace() else {
            return skip("this process may not create a network namespace");
        };
        let confinement = Confinement {
            ruleset: None,
            network_namespace: Some(namespace),
        };
        let output = output(confinement, ": > /dev/udp/127.0.0.1/9");
        assert!(output.contains("unreachable"), "{output}");
    }
}
