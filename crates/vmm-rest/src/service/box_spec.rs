use std::ops::RangeInclusive;

use vmm_runtime::{BoxSpec, Image, ImageTable, PayloadSpecError, RestartPolicy};

use super::ApiError;
use crate::wire::{
    CreateBoxRequest, DEFAULT_CPUS, DEFAULT_MEMORY_MIB, DEFAULT_STOP_GRACE, ErrorCode, NetworkMode,
    SecurityPreset,
};

/// The `auto_pause` that clients of the public API send by default.
const DEFAULT_AUTO_PAUSE_SECONDS: u64 = 900;

/// Returns the spec of the box that a request describes. Blocks if the image is in a store.
pub(crate) fn box_spec(
    request: CreateBoxRequest,
    images: &ImageTable,
    apply_default_limits: bool,
) -> Result<BoxSpec, ApiError> {
    reject_unsupported(&request)?;
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
        restart_policy,
        auto_remove,
        ..
    } = request;
    let image_name = image.unwrap_or_else(|| ImageTable::IDLE.to_owned());
    let image = match images.get(&image_name)? {
        Some(info) => info.image,
        None => return Err(image_not_found(&image_name, images)),
    };
    let default_limit = |value| apply_default_limits.then_some(value);
    let cpus = cpus.or(image.cpus).or(default_limit(DEFAULT_CPUS));
    let memory_mib = memory_mib
        .or(image.memory_mib)
        .or(default_limit(DEFAULT_MEMORY_MIB));
    check_range("cpus", cpus, &Image::CPUS_RANGE)?;
    check_range("memory_mib", memory_mib, &Image::MEMORY_MIB_RANGE)?;

    let mut payload = image.payload(entrypoint, cmd);
    payload.env.extend(env.into_iter().flatten());
    if let Some(dir) = working_dir {
        payload.working_dir = Some(dir.into());
    }
    payload.cpus = cpus;
    payload.memory_mib = memory_mib;
    payload.check().map_err(|error| {
        ApiError::invalid(match error {
            // The name of the field in a request.
            PayloadSpecError::Command(reason) => format!("cmd: {reason}"),
            error => error.to_string(),
        })
    })?;

    let restart = match restart_policy.map(|text| text.parse()) {
        None => RestartPolicy::No,
        Some(Ok(policy)) => policy,
        Some(Err(error)) => return Err(ApiError::invalid(format!("restart_policy: {error}"))),
    };

    let mut spec = BoxSpec::of(payload)
        .image(image_name)
        .detached(detach.unwrap_or_default())
        .restart(restart)
        .auto_remove(auto_remove.unwrap_or_default())
        .stop_grace(DEFAULT_STOP_GRACE);
    spec.name = name;
    spec.health.clone_from(&image.health);
    Ok(spec)
}

fn image_not_found(name: &str, images: &ImageTable) -> ApiError {
    match images.list() {
        Ok(images) => {
            let names: Vec<_> = images.into_iter().map(|info| info.name).collect();
            let names = names.join(", ");
            ApiError::new(
                ErrorCode::ImagePullFailed,
                format!("the image {name:?} was not found; available images: {names}"),
            )
        }
        Err(error) => error.into(),
    }
}

fn reject_unsupported(request: &CreateBoxRequest) -> Result<(), ApiError> {
    let advanced = request.advanced.as_ref();
    let capabilities = advanced.and_then(|advanced| advanced.capabilities.as_ref());
    let network = request.network.as_ref();
    let unsupported = [
        (
            capabilities.is_some_and(|requested| !requested.add.is_empty()),
            "advanced.capabilities.add",
            "changing Linux capabilities",
        ),
        (
            capabilities.is_some_and(|requested| !requested.drop.is_empty()),
            "advanced.capabilities.drop",
            "changing Linux capabilities",
        ),
        (
            request.security == Some(SecurityPreset::Maximum),
            "security",
            "the preset `maximum`",
        ),
        (
            request.rootfs_path.is_some(),
            "rootfs_path",
            "root file systems; name an image instead",
        ),
        (request.disk_size_gb.is_some(), "disk_size_gb", "disks"),
        (
            request.user.is_some(),
            "user",
            "choosing a user; the payload runs as the user of the server",
        ),
        (has_items(request.volumes.as_ref()), "volumes", "volumes"),
        (has_items(request.secrets.as_ref()), "secrets", "secrets"),
        (
            network.is_some_and(|requested| requested.mode == NetworkMode::Disabled),
            "network.mode",
            "boxes without a network",
        ),
        (
            network.is_some_and(|requested| !requested.allow_net.is_empty()),
            "network.allow_net",
            "network allowlists",
        ),
        (
            !matches!(
                request.auto_pause,
                None | Some(0 | DEFAULT_AUTO_PAUSE_SECONDS)
            ),
            "auto_pause",
            "pausing boxes",
        ),
        (
            !matches!(request.auto_delete, None | Some(0)),
            "auto_delete",
            "automatic removal",
        ),
    ];
    match unsupported
        .into_iter()
        .find(|(is_requested, ..)| *is_requested)
    {
        Some((_, field, feature)) => Err(ApiError::unsupported(field, feature)),
        None => Ok(()),
    }
}

fn has_items<T>(list: Option<&Vec<T>>) -> bool {
    list.is_some_and(|list| !list.is_empty())
}

fn check_range(
    field: &str,
    value: Option<u32>,
    range: &RangeInclusive<u32>,
) -> Result<(), ApiError> {
    if value.is_none_or(|value| range.contains(&value)) {
        return Ok(());
    }
    let (min, max) = (range.start(), range.end());
    Err(ApiError::invalid(format!(
        "{field} must be between {min} and {max}"
    )))
}
