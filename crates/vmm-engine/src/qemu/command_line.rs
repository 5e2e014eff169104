//! The command line of QEMU.

use vmm_protocol::network::MacAddress;
use vmm_protocol::{ConfinementRule, InstanceSpec, Ready};

use super::files::{DiskFiles, GuestFiles};
use super::network::MAX_INTERFACES;
use super::options::{Accelerator, DiskAccess, QemuOptions};
use super::shares::{MAX_SHARES, Share};

pub(super) const PROGRAM: &str = "qemu-system-x86_64";

/// The filter of system calls: QEMU starts no program, and gains no privileges.
pub(super) const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny";

/// QEMU exits at each end of its guest.
const ACTIONS: &str = "reboot=shutdown,shutdown=poweroff,panic=shutdown";

/// The descriptor of QEMU's monitor in QEMU.
pub(super) const QMP_FD: i32 = 3;

/// The descriptor of the agent's serial port in QEMU.
pub(super) const AGENT_FD: i32 = 4;

/// The descriptor of the connection to the server of the first share, in QEMU. The others follow.
pub(super) const FIRST_SHARE_FD: i32 = 5;

/// The descriptor of the first tap device in QEMU. The others follow.
pub(super) const FIRST_NETWORK_FD: i32 = FIRST_SHARE_FD + MAX_SHARES as i32;

/// The first descriptor of the files of the guest, in QEMU.
pub(super) const FIRST_FILE_FD: i32 = FIRST_NETWORK_FD + MAX_INTERFACES as i32;

/// The name of the serial port at which a guest finds its agent's connection.
const AGENT_PORT: &str = "org.vmm.agent.0";

const DEFAULT_CPUS: u32 = 1;
const DEFAULT_MEMORY_MIB: u32 = 256;

/// The memory for translated instructions. QEMU itself would take up to 1 GiB.
const TRANSLATION_MIB: u32 = 256;

/// The CPU whose instructions QEMU translates. A kernel that finds `erms` clears and copies memory with one
/// instruction, which QEMU carries out byte by byte. With `la57`, page tables have a fifth level, which QEMU
/// walks after each switch of processes.
const TRANSLATED_CPU: &str = "max,-erms,-la57";

/// What QEMU may need beyond the memory of the guest: translated instructions, devices, stacks.
const OVERHEAD_MIB: u32 = TRANSLATION_MIB + 256;

/// What the server of a share may need, without the files in its cache.
const SHARE_MIB: u32 = 64;

/// Returns the spec of the process that runs the guest of `spec`, with network interfaces that have these
/// hardware addresses.
pub(super) fn qemu(
    spec: &InstanceSpec,
    options: &QemuOptions,
    files: &GuestFiles,
    macs: &[MacAddress],
) -> InstanceSpec {
    let memory_mib = memory_mib(spec);
    let mut process = spec.clone();
    // The command of the box, with its environment, runs in the guest.
    process.payload.command = arguments(spec, options, files, macs);
    process.payload.env.clear();
    process.payload.working_dir = None;
    process.payload.stdin = None;
    let overhead_mib = OVERHEAD_MIB + SHARE_MIB * options.shares.len() as u32;
    process.payload.memory_mib = Some(memory_mib.saturating_add(overhead_mib));
    process.payload.ready = Ready::Started;
    process.payload.options.clear();
    process
}

fn memory_mib(spec: &InstanceSpec) -> u32 {
    spec.payload.memory_mib.unwrap_or(DEFAULT_MEMORY_MIB)
}

fn arguments(
    spec: &InstanceSpec,
    options: &QemuOptions,
    files: &GuestFiles,
    macs: &[MacAddress],
) -> Vec<String> {
    let memory_mib = memory_mib(spec);
    let cpus = spec.payload.cpus.unwrap_or(DEFAULT_CPUS);
    let has_workload = !spec.payload.command.is_empty();
    let (accelerator, cpu) = match options.accelerator {
        Accelerator::Kvm => ("kvm".to_owned(), "max"),
        Accelerator::Tcg | Accelerator::Auto => {
            (format!("tcg,tb-size={TRANSLATION_MIB}"), TRANSLATED_CPU)
        }
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
    add("-cpu", cpu.to_owned());
    add("-smp", cpus.to_string());
    add("-m", memory_mib.to_string());
    add("-display", "none".to_owned());
    if spec.policy.applies(ConfinementRule::Seccomp) {
        add("-sandbox", SANDBOX.to_owned());
    }
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
    for (number, disk) in files.disks.iter().enumerate() {
        for fd in [Some(disk.image), disk.overlay].into_iter().flatten() {
            add("-add-fd", format!("fd={fd},set={fd}"));
        }
        for node in block_nodes(number, disk) {
            add("-blockdev", node);
        }
        // By default, QEMU stops the guest when the disk of the host is full. The guest gets the error.
        let errors = "werror=report,rerror=report";
        add(
            "-device",
            format!("virtio-blk-pci,drive=disk{number},{errors}"),
        );
    }
    for (fd, share) in (FIRST_SHARE_FD..).zip(&options.shares) {
        let tag = &share.tag;
        add("-chardev", format!("socket,id=share{fd},fd={fd}"));
        add(
            "-device",
            format!("vhost-user-fs-pci,chardev=share{fd},tag={tag}"),
        );
    }
    for (fd, mac) in (FIRST_NETWORK_FD..).zip(macs) {
        add("-netdev", format!("tap,id=net{fd},fd={fd}"));
        // Without `romfile`, QEMU reads a program that boots from the network.
        let device = format!("virtio-net-pci,netdev=net{fd},mac={mac},romfile=");
        add("-device", device);
    }
    add("-kernel", format!("/proc/self/fd/{}", files.kernel));
    if let Some(initrd) = files.initrd {
        add("-initrd", format!("/proc/self/fd/{initrd}"));
    }
    // On a loaded host, the kernel may find its emulated timer too slow, and panic.
    let for_accelerator = match options.accelerator {
        Accelerator::Kvm => "",
        Accelerator::Tcg | Accelerator::Auto => "no_timer_check ",
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
    arguments.extend(options.arguments.iter().cloned());
    // Last, so that it wins: a QEMU that resets its guest, or stays, would run for ever.
    arguments.extend(["-action", ACTIONS].map(str::to_owned));
    arguments
}

/// Returns the block nodes of a disk: that of its base, if it has an overlay, and `disk<number>`.
fn block_nodes(number: usize, disk: &DiskFiles) -> Vec<String> {
    let driver = if disk.is_block_device {
        "host_device"
    } else {
        "file"
    };
    let image = format!(
        "driver=raw,file.driver={driver},file.filename=/dev/fdset/{}",
        disk.image
    );
    let Some(overlay) = disk.overlay else {
        let is_read_only = disk.access == DiskAccess::ReadOnly;
        let read_only = if is_read_only { "on" } else { "off" };
        return vec![format!(
            "{image},node-name=disk{number},read-only={read_only}"
        )];
    };
    // What is lost anyway need not reach the disk of the host.
    let is_temporary = disk.access == DiskAccess::Overlay;
    let no_flush = if is_temporary { "on" } else { "off" };
    vec![
        format!("{image},node-name=base{number},read-only=on"),
        format!(
            "driver=qcow2,node-name=disk{number},backing=base{number},cache.no-flush={no_flush},\
             file.driver=file,file.filename=/dev/fdset/{overlay}"
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(disks: Vec<DiskFiles>) -> GuestFiles {
        GuestFiles {
            kernel: 10,
            initrd: None,
            disks,
            fds: Vec::new(),
        }
    }

    #[test]
    fn qemu_gets_descriptors_and_no_paths() {
        let options = QemuOptions::new("/private/kernel");
        let spec = InstanceSpec::new("b1", options.to_payload());
        let disk = DiskFiles {
            image: 11,
            is_block_device: false,
            overlay: Some(12),
            access: DiskAccess::Persistent,
        };
        let command = qemu(&spec, &options, &files(vec![disk]), &[])
            .payload
            .command;
        let command = command.join(" ");
        for expected in [
            "-kernel /proc/self/fd/10",
            "-add-fd fd=11,set=11 -add-fd fd=12,set=12",
            "file.filename=/dev/fdset/11,node-name=base0,read-only=on",
            "backing=base0,cache.no-flush=off,file.driver=file,file.filename=/dev/fdset/12",
        ] {
            assert!(command.contains(expected), "{command}");
        }
        assert!(!command.contains("/private"), "{command}");
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
        let process = qemu(&spec, &options, &files(Vec::new()), &[]).payload;
        assert_eq!((process.working_dir, process.stdin), (None, None));
        assert!(process.env.is_empty());
        let append = process
            .command
            .iter()
            .find(|text| text.contains("console="));
        assert!(append.unwrap().contains("quiet"), "{append:?}");
        assert!(!process.command.concat().contains("hunter2"));
    }

    #[test]
    fn further_arguments_do_not_keep_qemu_after_its_guest() {
        let mut options = QemuOptions::new("/k");
        options.arguments = vec!["-action".into(), "reboot=reset".into()];
        let spec = InstanceSpec::new("b1", options.to_payload());
        let command = qemu(&spec, &options, &files(Vec::new()), &[])
            .payload
            .command;
        let expected = ["-action", "reboot=reset", "-action", ACTIONS];
        assert!(command.ends_with(&expected.map(str::to_owned)));
    }

    #[test]
    fn a_guest_without_kvm_gets_no_instructions_that_are_slow_to_translate() {
        for (accelerator, expected) in [
            (Accelerator::Kvm, "-accel kvm -cpu max -smp"),
            (Accelerator::Tcg, "-cpu max,-erms,-la57 -smp"),
        ] {
            let mut options = QemuOptions::new("/k");
            options.accelerator = accelerator;
            let spec = InstanceSpec::new("b1", options.to_payload());
            let command = qemu(&spec, &options, &files(Vec::new()), &[])
                .payload
                .command;
            let command = command.join(" ");
            assert!(command.contains(expected), "{command}");
        }
    }
}
