//! From the resources of an OCI runtime spec, which has the limits of control groups of version 1, to those of version 2.

use std::collections::BTreeMap;

use oci_spec::runtime::{LinuxCpu, LinuxMemory, LinuxResources};
use vmm_protocol::pod::Resources;

use crate::error::ShimError;

/// The period of a CPU limit without one, as in the kernel.
const DEFAULT_PERIOD_MICROS: u64 = 100_000;

/// Returns the limits of a container.
pub(crate) fn of(limits: &LinuxResources) -> Result<Resources, ShimError> {
    let (memory, cpu) = (limits.memory().as_ref(), limits.cpu().as_ref());
    let pids = limits.pids().as_ref().map(|pids| pids.limit());
    let quota = cpu.and_then(|cpu| cpu.quota()).and_then(positive);
    let period = cpu
        .and_then(|cpu| cpu.period())
        .unwrap_or(DEFAULT_PERIOD_MICROS);
    let mut unified = BTreeMap::new();
    if let Some(cpu) = cpu {
        add_cpu(&mut unified, cpu);
    }
    if let Some(memory) = memory {
        add_memory(&mut unified, memory)?;
    }
    // Last, because they override the others.
    for (name, value) in limits.unified().iter().flatten() {
        if name.contains('/') {
            let message = format!("the unified resource {name:?} is not a file of a control group");
            return Err(ShimError::Spec(message));
        }
        unified.insert(name.clone(), value.clone());
    }
    Ok(Resources {
        memory: memory.and_then(|memory| memory.limit()).and_then(positive),
        pids: pids.and_then(positive),
        cpu: quota.map(|quota| (quota, period)),
        unified,
    })
}

/// Returns a limit; `None` if it is not positive, which means unlimited or not set.
fn positive(limit: i64) -> Option<u64> {
    u64::try_from(limit).ok().filter(|limit| *limit > 0)
}

fn add_cpu(unified: &mut BTreeMap<String, String>, cpu: &LinuxCpu) {
    if let Some(shares) = cpu.shares().filter(|shares| *shares > 0) {
        unified.insert("cpu.weight".to_owned(), weight(shares).to_string());
    }
    for (name, list) in [("cpuset.cpus", cpu.cpus()), ("cpuset.mems", cpu.mems())] {
        if let Some(list) = list.as_ref().filter(|list| !list.is_empty()) {
            unified.insert(name.to_owned(), list.clone());
        }
    }
}

/// Returns the weight of CPU shares, by the formula of runc: `ConvertCPUSharesToCgroupV2Value` in
/// <https://github.com/opencontainers/cgroups/blob/v0.0.5/utils.go>.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss
)]
fn weight(shares: u64) -> u64 {
    let log = (shares.clamp(2, 1 << 18) as f64).log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    10_f64.powf(exponent).ceil() as u64
}

fn add_memory(
    unified: &mut BTreeMap<String, String>,
    memory: &LinuxMemory,
) -> Result<(), ShimError> {
    if let Some(bytes) = memory.reservation().and_then(positive) {
        unified.insert("memory.low".to_owned(), bytes.to_string());
    }
    if let Some(max) = swap(memory.limit(), memory.swap())? {
        unified.insert("memory.swap.max".to_owned(), max);
    }
    Ok(())
}

/// Returns the limit of the swap alone. That of a spec is of memory and swap together.
fn swap(limit: Option<i64>, both: Option<i64>) -> Result<Option<String>, ShimError> {
    let swap = match (limit.unwrap_or(0), both.unwrap_or(0)) {
        (_, 0) => return Ok(None),
        (_, -1) => "max".to_owned(),
        (-1, both) if both > 0 => both.to_string(),
        (limit, both) if limit > 0 && both >= limit => (both - limit).to_string(),
        (limit, both) => {
            let message = format!(
                "memory.swap is {both}, and memory.limit {limit}; set a limit that is not above memory.swap"
            );
            return Err(ShimError::Spec(message));
        }
    };
    Ok(Some(swap))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn parse(limits: Value) -> Result<Resources, ShimError> {
        of(&serde_json::from_value(limits).unwrap())
    }

    #[test]
    fn limits_of_version_1_become_files_of_version_2() {
        let resources = parse(json!({
            "memory": {"limit": 1024, "reservation": 512, "swap": 1536},
            "pids": {"limit": -1},
            "cpu": {"quota": 5000, "shares": 1024, "cpus": "0-1", "mems": ""},
            "unified": {"memory.high": "900", "cpu.weight": "7"},
        }))
        .unwrap();
        assert_eq!(resources.memory, Some(1024));
        assert_eq!(resources.pids, None);
        assert_eq!(resources.cpu, Some((5000, DEFAULT_PERIOD_MICROS)));
        let unified = [
            ("cpu.weight", "7"),
            ("cpuset.cpus", "0-1"),
            ("memory.high", "900"),
            ("memory.low", "512"),
            ("memory.swap.max", "512"),
        ];
        let unified = unified.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(resources.unified, unified.into());
    }

    #[test]
    fn the_shares_of_version_1_have_the_minimum_default_and_maximum_of_weights() {
        let weights = [1, 2, 3, 1024, (1 << 18) - 1, 1 << 18, 1 << 20].map(weight);
        assert_eq!(weights, [1, 1, 2, 100, 10_000, 10_000, 10_000]);
        let unset = parse(json!({"cpu": {"shares": 0}})).unwrap();
        assert_eq!(unset, Resources::default());
    }

    #[test]
    fn the_limit_of_swap_is_that_of_both_without_that_of_memory() {
        for (limit, both, expected) in [
            (Some(1000), Some(1000), Some("0")),
            (Some(200), Some(500), Some("300")),
            (Some(1000), Some(-1), Some("max")),
            (Some(-1), Some(500), Some("500")),
            (Some(1000), Some(0), None),
            (Some(1000), None, None),
        ] {
            let found = swap(limit, both).unwrap();
            assert_eq!(found.as_deref(), expected, "{limit:?} {both:?}");
        }
        for (limit, both) in [(Some(400), 300), (None, 300), (Some(400), -2)] {
            assert!(swap(limit, Some(both)).is_err(), "{limit:?} {both}");
        }
    }

    #[test]
    fn a_unified_resource_is_a_file_of_the_control_group() {
        let error = parse(json!({"unified": {"../memory.max": "max"}})).unwrap_err();
        assert!(error.to_string().contains("../memory.max"), "{error}");
    }
}
