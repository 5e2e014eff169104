use std::ops::RangeInclusive;

use vmm_runtime::BoxSpec;

use super::ApiError;
use crate::images::{ImageTable, Origin, check};
use crate::wire::box_size::{CPUS, DEFAULT_CPUS, DEFAULT_MEMORY_MIB, MEMORY_MIB};
use crate::wire::{CreateBoxRequest, ErrorCode, NetworkMode, STOP_GRACE, SecurityPreset};

/// What clients send as `auto_pause` when their user has not said anything.
const AUTO_PAUSE_BY_DEFAULT: u64 = 900;

/// What the runtime is to make, if this server has all that the request asks for.
pub(crate) fn spec_of(
    request: CreateBoxRequest,
    images: &ImageTable,
    apply_default_limits: bool,
) -> Result<BoxSpec, ApiError> {
    refuse_what_is_lacking(&request)?;
    let CreateBoxRequest {
        name,
        image,
        cpus,
        memory_mib,
        working_dir,
        env,
        entrypoint,
        cmd,
        detach,
        ..
    } = request;
    let image_name = image.unwrap_or_else(|| ImageTable::IDLE.to_owned());
    let image = images.get(&image_name).ok_or_else(|| {
        let known: Vec<_> = images.names().collect();
        ApiError::new(
            ErrorCode::ImagePullFailed,
            format!(
                "there is no image {image_name:?}; there are {}",
                known.join(", ")
            ),
        )
    })?;
    let by_default = |value| apply_default_limits.then_some(value);
    let cpus = cpus.or(image.cpus).or(by_default(DEFAULT_CPUS));
    let memory_mib = memory_mib
        .or(image.memory_mib)
        .or(by_default(DEFAULT_MEMORY_MIB));
    within("cpus", cpus, &CPUS)?;
    within("memory_mib", memory_mib, &MEMORY_MIB)?;

    let mut payload = image.payload(entrypoint, cmd);
    payload.env.extend(env.into_iter().flatten());
    if let Some(dir) = working_dir {
        payload.working_dir = Some(dir.into());
    }
    payload.cpus = cpus;
    payload.memory_mib = memory_mib;
    check(&payload, "cmd").map_err(ApiError::invalid)?;

    let mut spec = BoxSpec::of(payload)
        .detached(detach.unwrap_or_default())
        .stop_grace(STOP_GRACE);
    spec.name = name;
    spec.health.clone_from(&image.health);
    Origin::of(image_name).put_into(&mut spec.labels);
    Ok(spec)
}

fn refuse_what_is_lacking(request: &CreateBoxRequest) -> Result<(), ApiError> {
    let advanced = request.advanced.as_ref();
    let capabilities = advanced.and_then(|advanced| advanced.capabilities.as_ref());
    let network = request.network.as_ref();
    let lacking = [
        (
            capabilities.is_some_and(|wanted| !wanted.add.is_empty()),
            "advanced.capabilities.add",
            "choice of Linux capabilities",
        ),
        (
            capabilities.is_some_and(|wanted| !wanted.drop.is_empty()),
            "advanced.capabilities.drop",
            "choice of Linux capabilities",
        ),
        (
            request.security == Some(SecurityPreset::Maximum),
            "security",
            "preset `maximum`",
        ),
        (
            request.rootfs_path.is_some(),
            "rootfs_path",
            "root file systems; name an image",
        ),
        (request.disk_size_gb.is_some(), "disk_size_gb", "disks"),
        (
            request.user.is_some(),
            "user",
            "choice of users; the payload runs as the server does",
        ),
        (is_filled(request.volumes.as_ref()), "volumes", "volumes"),
        (is_filled(request.secrets.as_ref()), "secrets", "secrets"),
        (
            network.is_some_and(|wanted| wanted.mode == NetworkMode::Disabled),
            "network.mode",
            "way to take the network away",
        ),
        (
            network.is_some_and(|wanted| !wanted.allow_net.is_empty()),
            "network.allow_net",
            "filter for the network",
        ),
        (
            !matches!(request.auto_pause, None | Some(0 | AUTO_PAUSE_BY_DEFAULT)),
            "auto_pause",
            "way to pause a box",
        ),
        (
            !matches!(request.auto_delete, None | Some(0)),
            "auto_delete",
            "removal by time",
        ),
    ];
    match lacking.into_iter().find(|(asked, ..)| *asked) {
        Some((_, field, wanted)) => Err(ApiError::unsupported(field, wanted)),
        None => Ok(()),
    }
}

fn is_filled<T>(list: Option<&Vec<T>>) -> bool {
    list.is_some_and(|list| !list.is_empty())
}

fn within(field: &str, value: Option<u32>, range: &RangeInclusive<u32>) -> Result<(), ApiError> {
    match value.is_none_or(|value| range.contains(&value)) {
        true => Ok(()),
        false => Err(ApiError::invalid(format!(
            "{field} must be between {} and {}",
            range.start(),
            range.end()
        ))),
    }
}
