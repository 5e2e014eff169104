use std::collections::BTreeMap;
use std::fs;

use super::error::ContainerError;

/// Sets parameters of the kernel: for the namespaces of this process where they belong to one, else for the guest. The
/// root of a container may have no `/proc`, so call it before this process enters it.
pub(super) fn set(sysctls: &BTreeMap<String, String>) -> Result<(), ContainerError> {
    for (name, value) in sysctls {
        let error = ContainerError::system(format!("set the sysctl {name} to {value:?}"));
        fs::write(path(name), value).map_err(error)?;
    }
    Ok(())
}

/// As in `sysctl.d(5)`: the first separator of a name separates its parts, and the other one stands for a dot in a part.
fn path(name: &str) -> String {
    let separator = name.find(['.', '/']).map(|at| &name[at..=at]);
    let parts = match separator {
        Some(".") => {
            let swap = |letter| match letter {
                '.' => '/',
                '/' => '.',
                letter => letter,
            };
            name.chars().map(swap).collect()
        }
        _ => name.to_owned(),
    };
    format!("/proc/sys/{parts}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_separator_of_a_name_separates_its_parts() {
        for (name, expected) in [
            ("kernel.shm_rmid_forced", "kernel/shm_rmid_forced"),
            ("net/ipv4/ip_forward", "net/ipv4/ip_forward"),
            (
                "net.ipv4.conf.eth0/1.rp_filter",
                "net/ipv4/conf/eth0.1/rp_filter",
            ),
            (
                "net/ipv4/conf/eth0.1/rp_filter",
                "net/ipv4/conf/eth0.1/rp_filter",
            ),
        ] {
            assert_eq!(path(name), format!("/proc/sys/{expected}"));
        }
    }
}
