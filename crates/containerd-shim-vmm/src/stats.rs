//! Statistics as containerd expects them: the metrics of a control group of version 2.

use containerd_shim_protos::cgroups_v2::metrics::{
    CPUStat, MemoryEvents, MemoryStat, Metrics, PidsStat,
};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageField, MessageFull};
use vmm_protocol::pod::ContainerStats;
use vmm_runtime::BoxUsage;

use crate::error::ShimError;

/// Returns the metrics of a container in its guest.
pub(crate) fn of_guest(stats: &ContainerStats) -> Result<Any, ShimError> {
    let mut pids = PidsStat::new();
    pids.current = stats.pids;
    let mut cpu = CPUStat::new();
    cpu.usage_usec = stats.cpu_micros;
    cpu.user_usec = stats.cpu_user_micros;
    cpu.system_usec = stats.cpu_system_micros;
    let mut memory = MemoryStat::new();
    memory.usage = stats.memory;
    memory.usage_limit = stats.memory_limit;
    memory.inactive_file = stats.memory_inactive_file;
    memory.anon = stats.memory_anonymous;
    memory.pgfault = stats.page_faults;
    memory.pgmajfault = stats.major_page_faults;
    let mut events = MemoryEvents::new();
    events.oom_kill = stats.oom_kills;
    let mut metrics = Metrics::new();
    metrics.pids = MessageField::some(pids);
    metrics.cpu = MessageField::some(cpu);
    metrics.memory = MessageField::some(memory);
    metrics.memory_events = MessageField::some(events);
    encode(&metrics)
}

/// Returns the metrics of a guest on the host.
pub(crate) fn of_host(usage: &BoxUsage) -> Result<Any, ShimError> {
    let mut pids = PidsStat::new();
    pids.current = usage.processes.unwrap_or_default();
    let mut cpu = CPUStat::new();
    let micros = usage.cpu_time.unwrap_or_default().as_micros();
    cpu.usage_usec = u64::try_from(micros).unwrap_or(u64::MAX);
    let mut memory = MemoryStat::new();
    // Without the cached files that were not used recently.
    memory.usage = usage.memory_bytes.unwrap_or_default();
    // The limit of a guest is that of its machine.
    memory.usage_limit = u64::MAX;
    let mut metrics = Metrics::new();
    metrics.pids = MessageField::some(pids);
    metrics.cpu = MessageField::some(cpu);
    metrics.memory = MessageField::some(memory);
    encode(&metrics)
}

fn encode(metrics: &Metrics) -> Result<Any, ShimError> {
    Ok(Any {
        type_url: Metrics::descriptor().full_name().to_owned(),
        value: metrics.write_to_bytes().map_err(ShimError::Encode)?,
        ..Any::default()
    })
}
