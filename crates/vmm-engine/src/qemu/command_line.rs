//! The command line of QEMU.

use std::path::Path;

use vmm_protocol::{InstanceSpec, Ready};

use super::options::{Accelerator, Disk, DiskAccess, QemuOptions};
use super::shares::Share;

const PROGRAM: &str = "qemu-system-x86_64";

/// The descriptor of QEMU's monitor in QEMU.
pub(super) const QMP_FD: i32 = 3;

/// The descriptor of the agent's serial port in QEMU.
pub(super) const AGENT_FD: i32 = 4;

/// The descriptor of the connection to the server of the first share, in QEMU. The others follow.
pub(super) const FIRST_SHARE_FD: i32 = 5;

/// The name of the serial port at which a guest finds its agent's connection.
const AGENT_PORT: &str = "org.vmm.agent.0";

const DEFAULT_CPUS: u32 = 1;
const DEFAULT_MEMORY_MIB: u32 = 256;

/// The memory for translated instructions. QEMU itself would take up to 1 GiB.
const TRANSLATION_MIB: u32 = 256;

/// What QEMU may need beyond the memory of the guest: translated instructions, devices, stacks.
const OVERHEAD_MIB: u32 = TRANSLATION_MIB + 256;

/// What the server of a share may need, without the files in its cache.
const SHARE_MIB: u32 = 64;

/// Returns the spec of the process that runs the guest of `spec`.
pub(super) fn qemu(spec: &InstanceSpec, options: &QemuOptions, overlay_dir: &Path) -> InstanceSpec {
    let cpus = spec.payload.cpus.unwrap_or(DEFAULT_CPUS);
    let memory_mib = spec.payload.memory_mib.unwrap_or(DEFAULT_MEMORY_MIB);
    let mut process = spec.clone();
    // The command of the box, with its environment, runs in the guest.
    let has_workload = !spec.payload.command.is_empty();
    process.payload.command = arguments(options, cpus, memory_mib, has_workload);
    process.payload.env.clear();
    process.payload.working_dir = None;
    process.payload.stdin = None;
    let overhead_mib = OVERHEAD_MIB + SHARE_MIB * options.shares.len() as u32;
    process.payload.memory_mib = Some(memory_mib.saturating_add(overhead_mib));
    process.payload.ready = Ready::Started;
    process.payload.options.clear();
    // An overlay is a temporary file, which QEMU deletes as soon as it is open.
    let overlay_dir = overlay_dir.to_string_lossy().into_owned();
    let env = &mut process.payload.env;
    env.insert("TMPDIR".to_owned(), overlay_dir);
    process
}

fn arguments(options: &QemuOptions, cpus: u32, memory_mib: u32, has_workload: bool) -> Vec<String> {
    let accelerator = match options.accelerator {
        Accelerator::Tcg => format!("tcg,tb-size={TRANSLATION_MIB}"),
        Accelerator::Kvm => "kvm".to_owned(),
    };
    let mut arguments: Vec<String> = [PROGRAM, "-nodefaults", "-no-user-config"]
        .map(str::to_owned)
        .into();
    let mut add = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
    if options.shares.is_empty() {
        add("-machine", "q35".to_owned());
    } else {
        // The servers of the shares read and write the memory of the guest.
        let memory = format!("memory-backend-memfd,id=memory,size={memory_mib}M,share=on");
        add("-object", memory);
        add("-machine", "q35,memory-backend=memory".to_owned());
    }
    add("-accel", accelerator);
    add("-cpu", "max".to_owned());
    add("-smp", cpus.to_string());
    add("-m", memory_mib.to_string());
    add("-display", "none".to_owned());
    add("-action", "reboot=shutdown,panic=shutdown".to_owned());
    add(
        "-sandbox",
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny".to_owned(),
    );
    add("-chardev", format!("socket,id=qmp,fd={QMP_FD}"));
    add("-mon", "chardev=qmp,mode=control".to_owned());
    // Without `signal=off`, QEMU would change what SIGINT does to it.
    add("-chardev", "stdio,id=console,signal=off".to_owned());
    add("-serial", "chardev:console".to_owned());
    add("-device", "pvpanic".to_owned());
    add("-device", "virtio-serial-pci".to_owned());
    add("-chardev", format!("socket,id=agent,fd={AGENT_FD}"));
    add(
        "-device",
        format!("virtserialport,chardev=agent,name={AGENT_PORT}"),
    );
    for (number, disk) in options.disks.iter().enumerate() {
        add("-drive", drive(number, disk));
        add("-device", format!("virtio-blk-pci,drive=disk{number}"));
    }
    for (fd, share) in (FIRST_SHARE_FD..).zip(&options.shares) {
        let tag = &share.tag;
        add("-chardev", format!("socket,id=share{fd},fd={fd}"));
        add(
            "-device",
            format!("vhost-user-fs-pci,chardev=share{fd},tag={tag}"),
        );
    }
    add("-kernel", options.kernel.to_string_lossy().into_owned());
    if let Some(initrd) = &options.initrd {
        add("-initrd", initrd.to_string_lossy().into_owned());
    }
    // On a loaded host, the kernel may find its emulated timer too slow, and panic.
    let for_accelerator = match options.accelerator {
        Accelerator::Tcg => "no_timer_check ",
        Accelerator::Kvm => "",
    };
    // The console log is that of the workload. A later `loglevel` in `cmdline` counts.
    let for_workload = if has_workload { "quiet " } else { "" };
    let cmdline = &options.cmdline;
    let shares = options.shares.iter().filter_map(Share::kernel_parameter);
    let shares: String = shares.map(|share| format!("{share} ")).collect();
    add(
        "-append",
        format!("console=ttyS0 panic=-1 {for_accelerator}{for_workload}{shares}{cmdline}"),
    );
    arguments
}

fn drive(number: usize, Disk { path, access }: &Disk) -> String {
    let access = match access {
        DiskAccess::ReadOnly => ",readonly=on",
        DiskAccess::Overlay => ",snapshot=on",
        DiskAccess::ReadWrite => "",
    };
    // A comma ends a value, two are one.
    let path = path.to_string_lossy().replace(',', ",,");
    // By default, QEMU stops the guest when the disk of the host is full. The guest gets the error.
    let errors = "werror=report,rerror=report";
    format!("if=none,id=disk{number},format=raw,file={path}{access},{errors}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comma_in_a_path_does_not_add_an_option() {
        let disk = Disk::read_only("/a,readonly=off");
        assert_eq!(
            drive(0, &disk),
            "if=none,id=disk0,format=raw,file=/a,,readonly=off,readonly=on,\
             werror=report,rerror=report"
        );
    }

    #[test]
    fn the_environment_and_the_input_of_the_workload_do_not_reach_qemu() {
        let options = QemuOptions::new("/k");
        let mut payload = options.to_payload();
        payload.command = vec!["server".into(), "hunter2".into()];
        payload.env.insert("TOKEN".into(), "hunter2".into());
        payload.working_dir = Some("/only/in/the/guest".into());
        payload.stdin = Some("hunter2".into());
        let spec = InstanceSpec::new("b1", payload);
        let process = qemu(&spec, &options, Path::new("/box")).payload;
        assert_eq!((process.working_dir, process.stdin), (None, None));
        assert_eq!(process.env.keys().collect::<Vec<_>>(), ["TMPDIR"]);
        let append = process.command.last().unwrap();
        assert!(append.contains("quiet"), "{append}");
        assert!(!process.command.concat().contains("hunter2"));
    }
}
