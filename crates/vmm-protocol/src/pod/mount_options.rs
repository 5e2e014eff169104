use rustix::mount::{MountFlags, MountPropagationFlags};

/// Options of a mount, as in `mount(8)`, an OCI runtime spec, and the mounts of containerd.
///
/// ```
/// use vmm_protocol::pod::MountOptions;
///
/// let options = MountOptions::parse(["rbind", "nosuid", "mode=755"]);
/// assert!(options.is_bind && options.is_recursive);
/// assert_eq!(options.data, "mode=755");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MountOptions {
    /// The flags of `mount(2)`.
    pub flags: MountFlags,
    /// How mounts propagate; as they do at the parent by default.
    pub propagation: Option<MountPropagationFlags>,
    /// Whether a file or directory is mounted rather than a file system.
    pub is_bind: bool,
    /// Whether mounts below a file or directory are mounted, too.
    pub is_recursive: bool,
    /// The options of the file system.
    pub data: String,
}

impl MountOptions {
    /// Parses options. What is not an option of every file system is one of this file system.
    pub fn parse<'a>(options: impl IntoIterator<Item = &'a str>) -> Self {
        let mut parsed = Self {
            flags: MountFlags::empty(),
            propagation: None,
            is_bind: false,
            is_recursive: false,
            data: String::new(),
        };
        let mut is_recursively_read_only = false;
        for option in options {
            if option == "rro" {
                is_recursively_read_only = true;
            } else {
                parsed.add(option);
            }
        }
        // It is applied after the mount, so no `rw` beside it counts. A mount of the host that is read-only is so with all
        // mounts below it.
        if is_recursively_read_only {
            parsed.flags.insert(MountFlags::RDONLY);
        }
        parsed
    }

    fn add(&mut self, option: &str) {
        if let Some((flag, is_set)) = flag(option) {
            self.flags.set(flag, is_set);
            return;
        }
        match option {
            "defaults" => {}
            "bind" => self.is_bind = true,
            "rbind" => (self.is_bind, self.is_recursive) = (true, true),
            _ => match propagation(option) {
                Some(propagation) => self.propagation = Some(propagation),
                None => {
                    let separator = if self.data.is_empty() { "" } else { "," };
                    self.data.extend([separator, option]);
                }
            },
        }
    }
}

/// Returns a flag, and whether the option sets it.
fn flag(option: &str) -> Option<(MountFlags, bool)> {
    Some(match option {
        "ro" => (MountFlags::RDONLY, true),
        "rw" => (MountFlags::RDONLY, false),
        "nosuid" => (MountFlags::NOSUID, true),
        "suid" => (MountFlags::NOSUID, false),
        "nodev" => (MountFlags::NODEV, true),
        "dev" => (MountFlags::NODEV, false),
        "noexec" => (MountFlags::NOEXEC, true),
        "exec" => (MountFlags::NOEXEC, false),
        "sync" => (MountFlags::SYNCHRONOUS, true),
        "async" => (MountFlags::SYNCHRONOUS, false),
        "dirsync" => (MountFlags::DIRSYNC, true),
        "noatime" => (MountFlags::NOATIME, true),
        "atime" => (MountFlags::NOATIME, false),
        "nodiratime" => (MountFlags::NODIRATIME, true),
        "diratime" => (MountFlags::NODIRATIME, false),
        "nosymfollow" => (MountFlags::NOSYMFOLLOW, true),
        "symfollow" => (MountFlags::NOSYMFOLLOW, false),
        "relatime" => (MountFlags::RELATIME, true),
        "norelatime" => (MountFlags::RELATIME, false),
        "strictatime" => (MountFlags::STRICTATIME, true),
        "nostrictatime" => (MountFlags::STRICTATIME, false),
        _ => return None,
    })
}

fn propagation(option: &str) -> Option<MountPropagationFlags> {
    let (option, recursive) = match option.strip_prefix('r') {
        Some(option) => (option, MountPropagationFlags::REC),
        None => (option, MountPropagationFlags::empty()),
    };
    let propagation = match option {
        "private" => MountPropagationFlags::PRIVATE,
        "shared" => MountPropagationFlags::SHARED,
        "slave" => MountPropagationFlags::DOWNSTREAM,
        "unbindable" => MountPropagationFlags::UNBINDABLE,
        _ => return None,
    };
    Some(propagation | recursive)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_propagation_and_data_are_told_apart() {
        let options = MountOptions::parse(["rbind", "rprivate", "ro", "size=1m", "mode=755"]);
        assert_eq!(options.flags, MountFlags::RDONLY);
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        assert_eq!(options.propagation, Some(private));
        assert_eq!(options.data, "size=1m,mode=755");
    }

    #[test]
    fn a_mount_that_is_read_only_with_those_below_it_is_read_only() {
        for options in [&["rbind", "rro"][..], &["rbind", "rro", "rw"]] {
            let parsed = MountOptions::parse(options.iter().copied());
            assert_eq!(parsed.flags, MountFlags::RDONLY, "{options:?}");
        }
    }

    #[test]
    fn the_last_of_two_contrary_options_counts() {
        let options = MountOptions::parse(["ro", "nosuid", "rw"]);
        assert_eq!(options.flags, MountFlags::NOSUID);
    }
}
