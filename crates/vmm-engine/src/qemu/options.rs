use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use vmm_protocol::{HostPolicy, PayloadSpec, Ready};

use super::network::Network;
use super::shares::{self, Share};
use crate::EngineError;

/// The options of the engine [`Qemu`](crate::Qemu). Deserialization rejects unknown fields.
///
/// ```
/// use vmm_engine::{Disk, QemuOptions};
///
/// let mut options = QemuOptions::new("/boot/vmlinuz");
/// options.disks.push(Disk::read_only("/var/lib/guests/root.img"));
/// options.cmdline = "root=/dev/vda".to_owned();
/// let payload = options.to_payload();
/// assert_eq!(QemuOptions::of(&payload)?, options);
/// # Ok::<(), vmm_engine::EngineError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct QemuOptions {
    /// The Linux kernel of the guest.
    pub kernel: PathBuf,
    /// The initial RAM file system of the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<PathBuf>,
    /// What is added to the command line of the kernel. The engine sets `console=ttyS0 panic=-1`, and
    /// without KVM `no_timer_check`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub cmdline: String,
    /// The disks of the guest: `/dev/vda`, `/dev/vdb`, and so on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<Disk>,
    /// The directories of the host that the guest shares.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shares: Vec<Share>,
    /// The network of the guest. Without, it has only a loopback interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<Network>,
    /// What executes the instructions of the guest.
    #[serde(default)]
    pub accelerator: Accelerator,
    /// Whether the guest runs the agent `vmm-agent`. A guest with a command needs it.
    #[serde(default)]
    pub agent: bool,
    /// The user of commands in the guest, as `USER[:GROUP]`, names or numbers; root by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Arguments that are added to the command line of QEMU. The operator of the host must
    /// [permit](vmm_protocol::HostPolicy::allow_arguments) them. They are subject to the confinement of
    /// QEMU.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub arguments: Vec<String>,
}

/// A disk of a guest: a file with a raw image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Disk {
    /// The file.
    pub path: PathBuf,
    /// What the guest may do with it.
    #[serde(default)]
    pub access: DiskAccess,
}

/// What a guest may do with a [`Disk`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum DiskAccess {
    /// The guest can only read. Several boxes can share the file.
    #[default]
    ReadOnly,
    /// The guest can write. What it writes is in a temporary file on the disk of the box directory, and
    /// is lost when the guest ends. Several boxes can share the file.
    Overlay,
    /// The guest can write. What it writes is in a file of the box directory, and is there again when the
    /// box is started again, until the box is removed. Several boxes can share the file of the disk. The
    /// box cannot be started any more if that file is replaced or changed.
    Persistent,
    /// The guest writes to the file. QEMU locks the file, so one box at a time can use it.
    ReadWrite,
}

/// What executes the instructions of a guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Accelerator {
    /// The processor does if KVM works on the host, and QEMU otherwise.
    #[default]
    Auto,
    /// QEMU translates them. Works on every host.
    Tcg,
    /// The processor does, through `/dev/kvm`. A guest cannot start where KVM does not work.
    Kvm,
}

/// The maximum number of CPUs that QEMU emulates without the interrupt controller of KVM.
const MAX_CPUS: u32 = 255;

/// The maximum number of disks of a guest.
const MAX_DISKS: usize = 16;

impl QemuOptions {
    /// The name of the engine.
    pub(super) const ENGINE: &str = "qemu";

    /// Creates the options of a guest with this kernel, and without disks.
    pub fn new(kernel: impl Into<PathBuf>) -> Self {
        Self {
            kernel: kernel.into(),
            initrd: None,
            cmdline: String::new(),
            disks: Vec::new(),
            shares: Vec::new(),
            network: None,
            accelerator: Accelerator::default(),
            agent: false,
            user: None,
            arguments: Vec::new(),
        }
    }

    /// Creates a payload with these options.
    pub fn to_payload(&self) -> PayloadSpec {
        let mut payload = PayloadSpec::command::<String>([]);
        payload.engine = Self::ENGINE.to_owned();
        // A path that is not UTF-8 is the only error, and leaves options that `of` rejects.
        if let Ok(Value::Object(options)) = serde_json::to_value(self) {
            payload.options = options;
        }
        payload
    }

    /// Returns the options of a payload, such as that of a `BoxInfo`.
    ///
    /// # Errors
    ///
    /// [`EngineError::InvalidFields`] or [`EngineError::Spec`] if they are not valid, [`EngineError::Spec`] if
    /// the payload has a field that does not apply to a guest.
    pub fn of(payload: &PayloadSpec) -> Result<Self, EngineError> {
        let options: Self = serde_json::from_value(Value::Object(payload.options.clone()))
            .map_err(|error| EngineError::InvalidFields {
                fields: "options of the engine qemu",
                source: error.into(),
            })?;
        options.check(payload).map_err(EngineError::Spec)?;
        Ok(options)
    }

    fn check(&self, payload: &PayloadSpec) -> Result<(), String> {
        let has_command = !payload.command.is_empty();
        let for_agent = [
            (has_command, "command"),
            (!payload.env.is_empty(), "env"),
            (payload.working_dir.is_some(), "working_dir"),
            (self.user.is_some(), "user"),
            (payload.ready == Ready::Notified, "ready: notified"),
        ];
        if let Some((_, field)) = for_agent.iter().find(|(is_set, _)| *is_set)
            && !self.agent
        {
            return Err(format!(
                "{field} needs the agent in the guest: set the option `agent`, with an image that has it"
            ));
        }
        if payload.stdin.is_some() && !has_command {
            return Err("stdin is for a command: set `command`".to_owned());
        }
        if payload.ready == Ready::Notified && has_command {
            let message = "ready: a command in a guest has no NOTIFY_SOCKET; use `started`";
            return Err(message.to_owned());
        }
        if payload.cpus == Some(0) || payload.memory_mib == Some(0) {
            return Err("cpus and memory_mib must be at least 1".to_owned());
        }
        if payload.cpus > Some(MAX_CPUS) {
            return Err(format!("cpus must be at most {MAX_CPUS} for a guest"));
        }
        if self.disks.len() > MAX_DISKS {
            return Err(format!("disks: a guest has at most {MAX_DISKS}"));
        }
        shares::check(&self.shares, self.agent)?;
        if let Some(network) = &self.network {
            network.check(self.agent)?;
        }
        if self.cmdline.contains('\0') {
            return Err("cmdline contains a NUL byte".to_owned());
        }
        if self.arguments.iter().any(|word| word.contains('\0')) {
            return Err("arguments: one contains a NUL byte".to_owned());
        }
        for (role, path) in self.files() {
            let path = path.to_string_lossy();
            if !path.starts_with('/') || path.contains('\0') {
                return Err(format!(
                    "{role}: the path must be absolute, without NUL bytes"
                ));
            }
        }
        Ok(())
    }

    /// Checks what the operator of the host has to permit.
    pub(super) fn check_policy(&self, policy: &HostPolicy) -> Result<(), EngineError> {
        let message = if !self.arguments.is_empty() && !policy.allow_arguments {
            "arguments: the operator of this host does not permit them; remove them, or permit them with \
             `shimd serve --allow-qemu-arguments`"
        } else if self.network.is_some() && !policy.allow_network {
            "network: the operator of this host does not permit it; remove it, or permit it with \
             `shimd serve --allow-network`"
        } else {
            return Ok(());
        };
        Err(EngineError::Spec(message.to_owned()))
    }

    fn files(&self) -> impl Iterator<Item = (&'static str, &PathBuf)> {
        let kernel = [("kernel", &self.kernel)];
        let initrd = self.initrd.iter().map(|path| ("initrd", path));
        let disks = self.disks.iter().map(|disk| ("disk", &disk.path));
        kernel.into_iter().chain(initrd).chain(disks)
    }
}

impl Disk {
    /// Creates a disk that the guest can only read.
    pub fn read_only(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            access: DiskAccess::ReadOnly,
        }
    }

    /// Sets what the guest may do with the disk.
    #[must_use]
    pub fn access(mut self, access: DiskAccess) -> Self {
        self.access = access;
        self
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use vmm_protocol::with_causes;

    use super::*;

    fn payload(options: Value) -> PayloadSpec {
        let mut payload = PayloadSpec::command::<String>([]);
        if let Value::Object(options) = options {
            payload.options = options;
        }
        payload
    }

    #[test]
    fn options_survive_a_payload() {
        let mut options = QemuOptions::new("/vmlinuz");
        options.initrd = Some("/initrd".into());
        options.disks = vec![Disk::read_only("/disk").access(DiskAccess::Overlay)];
        options.shares = vec![Share::new("data", "/srv/data")];
        options.network = Some(Network::new("/run/netns/pod"));
        options.agent = true;
        let payload = options.to_payload();
        assert_eq!(payload.engine, "qemu");
        assert_eq!(QemuOptions::of(&payload).unwrap(), options);
    }

    #[test]
    fn an_invalid_option_is_named() {
        for (options, expected) in [
            (json!({}), "missing field `kernel`"),
            (
                json!({"kernel": "/k", "kernal": "/k"}),
                "unknown field `kernal`",
            ),
            (
                json!({"kernel": "vmlinuz"}),
                "kernel: the path must be absolute",
            ),
            (
                json!({"kernel": "/k", "accelerator": "warp"}),
                "unknown variant `warp`",
            ),
            (
                json!({"kernel": "/k", "disks": [{"path": "/d", "mode": "w"}]}),
                "unknown field `mode`",
            ),
            (
                json!({"kernel": "/k", "shares": [{"tag": "a b", "path": "/d"}]}),
                "the tag \"a b\"",
            ),
            (
                json!({"kernel": "/k", "network": {"namespace": "/n", "mac": "02:00:00:00:00:01"}}),
                "unknown field `mac`",
            ),
            (
                json!({"kernel": "/k", "network": {"namespace": "/n"}}),
                "network: the agent",
            ),
        ] {
            let error = with_causes(&QemuOptions::of(&payload(options)).unwrap_err());
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn what_needs_an_agent_is_rejected_without_one() {
        let mut options = QemuOptions::new("/k");
        let valid = options.to_payload();
        options.agent = true;
        let with_agent = options.to_payload();
        let cases: [(fn(&mut PayloadSpec), _); 3] = [
            (|payload| payload.command = vec!["sh".into()], "command"),
            (
                |payload| payload.working_dir = Some("/".into()),
                "working_dir",
            ),
            (|payload| payload.ready = Ready::Notified, "ready"),
        ];
        for (change, field) in cases {
            let mut payload = valid.clone();
            change(&mut payload);
            let error = QemuOptions::of(&payload).unwrap_err().to_string();
            assert!(error.starts_with(field), "{error}");
            let mut payload = with_agent.clone();
            change(&mut payload);
            QemuOptions::of(&payload).unwrap();
        }
    }

    #[test]
    fn a_field_that_a_guest_cannot_honour_is_rejected() {
        let mut options = QemuOptions::new("/k");
        options.agent = true;
        let valid = options.to_payload();
        let cases: [(fn(&mut PayloadSpec), _); 4] = [
            (|payload| payload.stdin = Some(String::new()), "stdin"),
            (
                |payload| {
                    payload.command = vec!["sh".into()];
                    payload.ready = Ready::Notified;
                },
                "ready",
            ),
            (|payload| payload.cpus = Some(0), "cpus"),
            (
                |payload| payload.cpus = Some(MAX_CPUS + 1),
                "cpus must be at most",
            ),
        ];
        for (change, field) in cases {
            let mut payload = valid.clone();
            change(&mut payload);
            let error = QemuOptions::of(&payload).unwrap_err().to_string();
            assert!(error.starts_with(field), "{error}");
        }
    }

    #[test]
    fn arguments_need_the_permission_of_the_operator() {
        let mut options = QemuOptions::new("/k");
        let policy = HostPolicy::default();
        options.check_policy(&policy).unwrap();
        options.arguments = vec!["-S".into()];
        let error = options.check_policy(&policy).unwrap_err().to_string();
        assert!(error.contains("--allow-qemu-arguments"), "{error}");
        options.check_policy(&policy.allow_arguments(true)).unwrap();
    }

    #[test]
    fn a_network_needs_the_permission_of_the_operator() {
        let mut options = QemuOptions::new("/k");
        options.network = Some(Network::new("/run/netns/pod"));
        let policy = HostPolicy::default();
        let error = options.check_policy(&policy).unwrap_err().to_string();
        assert!(error.contains("--allow-network"), "{error}");
        options.check_policy(&policy.allow_network(true)).unwrap();
    }
}
