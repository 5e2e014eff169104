//! Restricts what a QEMU that its guest has taken over can reach on the host.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetError, Scope, path_beneath_rules,
};
use nix::sched::{CloneFlags, unshare};
use pidfd_spawn::Command;
use vmm_protocol::{ConfinementRule, InstanceSpec, UnappliedRule};

use super::options::{Accelerator, QemuOptions};
use crate::EngineError;

/// Where the program of QEMU, its libraries and its firmware are.
const PROGRAM_PATHS: [&str; 5] = ["/bin", "/etc/ld.so.cache", "/lib", "/lib64", "/usr"];

const KVM: &str = "/dev/kvm";

/// The bits of a mode that permit the group to read and write.
const READ_WRITE_BY_GROUP: u32 = 0o060;

/// The newest version of Landlock whose rights are restricted. An older kernel restricts those that it
/// knows.
const LANDLOCK: ABI = ABI::V6;

/// What a QEMU gets to keep it from the files, the processes and the network of the host.
#[derive(Debug, Default)]
pub(super) struct Confinement {
    /// The rules of Landlock.
    ruleset: Option<OwnedFd>,
    /// A network namespace without interfaces.
    network_namespace: Option<File>,
    /// The user and the group of the box.
    uid: Option<u32>,
    /// Further groups of QEMU.
    groups: Vec<u32>,
    /// The rules that are not applied.
    unapplied: Vec<UnappliedRule>,
}

impl Confinement {
    /// Prepares the confinement of a guest with this spec and these options.
    pub(super) fn prepare(spec: &InstanceSpec, options: &QemuOptions) -> Result<Self, EngineError> {
        let mut confinement = Self::default();
        let mut apply = |rule| {
            let applies = spec.policy.applies(rule);
            if !applies {
                confinement.note_unapplied(rule, "the operator has disabled the rule".to_owned());
            }
            applies
        };
        // The command line has the filter.
        apply(ConfinementRule::Seccomp);
        let [landlock, network_namespace, user] = [
            ConfinementRule::Landlock,
            ConfinementRule::NetworkNamespace,
            ConfinementRule::User,
        ]
        .map(apply);
        if landlock {
            confinement.prepare_landlock(options)?;
        }
        if network_namespace {
            confinement.prepare_network_namespace();
        }
        if user {
            confinement.prepare_user(spec.uid, options.accelerator);
        }
        Ok(confinement)
    }

    fn prepare_landlock(&mut self, options: &QemuOptions) -> Result<(), EngineError> {
        self.ruleset = create_ruleset(options).map_err(|error| {
            EngineError::system("create a ruleset of Landlock")(io::Error::other(error))
        })?;
        if self.ruleset.is_none() {
            let reason = "the kernel has no Landlock".to_owned();
            self.note_unapplied(ConfinementRule::Landlock, reason);
        }
        Ok(())
    }

    fn prepare_network_namespace(&mut self) {
        match create_network_namespace() {
            Ok(namespace) => self.network_namespace = Some(namespace),
            Err(error) => {
                let reason = format!("the shim cannot create one: {error}");
                self.note_unapplied(ConfinementRule::NetworkNamespace, reason);
            }
        }
    }

    fn prepare_user(&mut self, uid: Option<u32>, accelerator: Accelerator) {
        self.uid = uid;
        if uid.is_none() {
            let reason = "the VMM runtime is not root, or has no users for boxes".to_owned();
            self.note_unapplied(ConfinementRule::User, reason);
        } else if accelerator == Accelerator::Kvm
            && let Ok(kvm) = fs::metadata(KVM)
            && kvm.mode() & READ_WRITE_BY_GROUP == READ_WRITE_BY_GROUP
        {
            self.groups.push(kvm.gid());
        }
    }

    fn note_unapplied(&mut self, rule: ConfinementRule, reason: String) {
        self.unapplied.push(UnappliedRule { rule, reason });
    }

    /// Writes to stderr which rules are not applied.
    pub(super) fn report(&self) {
        for UnappliedRule { rule, reason } in &self.unapplied {
            let message = format!("the rule {rule} is not applied to QEMU: {reason}");
            let _ = writeln!(io::stderr(), "vmm-shim: {message}");
        }
    }

    /// Returns the user of QEMU, if it is that of the box.
    pub(super) fn uid(&self) -> Option<u32> {
        self.uid
    }

    /// Makes the command start a helper process in the network namespace of QEMU. The other rules are for
    /// QEMU only.
    pub(super) fn apply_to_helper(&self, command: &mut Command) -> Result<(), EngineError> {
        if let Some(namespace) = &self.network_namespace {
            let namespace = namespace.try_clone();
            let namespace = namespace.map_err(EngineError::system("confine a helper process"))?;
            command.network_namespace(namespace);
        }
        Ok(())
    }

    /// Makes the command start QEMU with the confinement. Returns the rules that are not applied.
    pub(super) fn apply(self, command: &mut Command) -> Vec<UnappliedRule> {
        command.no_new_privs(true);
        if let Some(ruleset) = self.ruleset {
            command.landlock(ruleset);
        }
        if let Some(namespace) = self.network_namespace {
            command.network_namespace(namespace);
        }
        if let Some(uid) = self.uid {
            command.uid(uid).gid(uid).groups(&self.groups);
        }
        self.unapplied
    }
}

/// Creates rules that permit QEMU to use its own files, and to read those of the guest that it opens by
/// itself. They deny all other files, TCP, abstract sockets of other processes, and signals to them.
fn create_ruleset(options: &QemuOptions) -> Result<Option<OwnedFd>, RulesetError> {
    let readable = BitFlags::from(AccessFs::ReadFile);
    let writable = readable | AccessFs::WriteFile | AccessFs::Truncate;
    let mut rules: Vec<(&Path, BitFlags<AccessFs>)> = vec![
        (&options.kernel, readable),
        // QEMU probes with it which kind of file locks the kernel has.
        ("/dev/null".as_ref(), writable),
    ];
    rules.extend(options.initrd.iter().map(|path| (&**path, readable)));
    if options.accelerator == Accelerator::Kvm {
        rules.push((KVM.as_ref(), writable | AccessFs::IoctlDev));
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
    use crate::{Disk, DiskAccess};

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
        for name in ["kernel", "initrd", "disk", "secret"] {
            fs::write(path(name), name).unwrap();
        }
        let mut options = QemuOptions::new(path("kernel"));
        options.initrd = Some(path("initrd"));
        options.disks = vec![Disk::read_only(path("disk")).access(DiskAccess::ReadWrite)];
        let ruleset = create_ruleset(&options).unwrap();
        if ruleset.is_none() {
            skip("the kernel has no Landlock");
        }
        Some(Confinement {
            ruleset: Some(ruleset?),
            ..Confinement::default()
        })
    }

    fn skip(reason: &str) {
        assert!(std::env::var_os("CI").is_none(), "{reason}");
        eprintln!("SKIPPED: {reason}");
    }

    #[test]
    fn qemu_opens_the_kernel_and_the_initrd_and_no_other_files() {
        let dir = tempfile::tempdir().unwrap();
        let Some(rules) = rules(&dir) else { return };
        let script = format!(
            "cd /; for file in kernel initrd disk secret; do
                read -r text < {}/$file && echo bad || echo \"$file=$text\"; done; cat /etc/passwd",
            dir.path().display()
        );
        let output = output(rules, &script);
        for name in ["kernel", "initrd"] {
            assert!(output.contains(&format!("{name}={name}")), "{output}");
        }
        for name in ["disk", "secret"] {
            assert!(!output.contains(&format!("{name}={name}")), "{output}");
        }
        assert!(!output.contains("root:"), "{output}");
    }

    #[test]
    fn qemu_writes_to_no_file_by_its_path() {
        let dir = tempfile::tempdir().unwrap();
        let Some(rules) = rules(&dir) else { return };
        let script = format!(
            "for file in kernel initrd disk new; do echo changed >> {}/$file; done; echo > /dev/null && echo ok",
            dir.path().display()
        );
        let output = output(rules, &script);
        assert!(output.contains("ok"), "{output}");
        let text = |name| fs::read_to_string(dir.path().join(name));
        for name in ["kernel", "initrd", "disk"] {
            assert_eq!(text(name).unwrap(), name);
        }
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
            network_namespace: Some(namespace),
            ..Confinement::default()
        };
        let output = output(confinement, ": > /dev/udp/127.0.0.1/9");
        assert!(output.contains("unreachable"), "{output}");
    }

    #[test]
    fn qemu_has_the_user_of_its_box_and_no_other_group() {
        if !nix::unistd::geteuid().is_root() {
            return skip("this test needs root");
        }
        let confinement = Confinement {
            uid: Some(0x7000_0001),
            ..Confinement::default()
        };
        let output = output(confinement, "id -u; id -G");
        assert_eq!(output, "1879048193\n1879048193\n");
    }

    #[test]
    fn a_disabled_rule_is_not_applied_and_is_reported() {
        let mut spec = InstanceSpec::new("b1", QemuOptions::new("/k").to_payload());
        spec.uid = Some(0x7000_0001);
        for rule in ConfinementRule::ALL {
            spec.policy = spec.policy.disable(rule);
        }
        let confinement = Confinement::prepare(&spec, &QemuOptions::new("/k")).unwrap();
        assert!(confinement.ruleset.is_none() && confinement.network_namespace.is_none());
        assert_eq!(confinement.uid, None);
        let unapplied = confinement.unapplied.iter().map(|unapplied| unapplied.rule);
        assert_eq!(unapplied.collect::<Vec<_>>(), ConfinementRule::ALL);
    }
}
