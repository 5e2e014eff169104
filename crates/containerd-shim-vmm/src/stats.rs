use containerd_shim_protos::cgroups_v2::metrics::{
    CPUStat, MemoryEvents, MemoryStat, Metrics, PidsStat,
};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageField, MessageFull};
use vmm_protocol::pod::ContainerStats;

use crate::error::ShimError;

/// Returns the statistics of a container as containerd expects them: the metrics of a control group of
/// version 2.
pub(crate) fn metrics(stats: &ContainerStats) -> Result<Any, ShimError> {
    let mut pids = PidsStat::new();
    pids.current = stats.pids;
    let mut cpu = CPUStat::new();
    cpu.usage_usec = stats.cpu_micros;
    cpu.user_usec = stats.cpu_user_micros;
    cpu.system_usec = stats.cpu_system_micros;
    let mut memory = MemoryStat::new();
    memory.usage = stats.memory;
    let mut events = MemoryEvents::new();
    events.oom_kill = stats.oom_kills;
    let mut metrics = Metrics::new();
    metrics.pids = MessageField::some(pids);
    metrics.cpu = MessageField::some(cpu);
    metrics.memory = MessageField::some(memory);
    metrics.memory_events = MessageField::some(events);
    Ok(Any {
        type_url: Metrics::descriptor().full_name().to_owned(),
        value: metrics.write_to_bytes().map_err(ShimError::Encode)?,
        ..Any::default()
    })
}
