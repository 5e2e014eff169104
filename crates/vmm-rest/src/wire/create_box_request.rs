use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    CreateBoxAdvancedOptions, NetworkSpec, SecretSpec, SecurityPreset, VolumeSpec, whole_number,
};

/// The virtual processors of a box whose request and image set none.
#[cfg(feature = "server")]
pub(crate) const DEFAULT_CPUS: u32 = 1;

/// The memory, in MiB, of a box whose request and image set none.
#[cfg(feature = "server")]
pub(crate) const DEFAULT_MEMORY_MIB: u32 = 512;

/// The request to create a box.
///
/// It has every field of the public API, so that the server can reject an unsupported field by
/// name. The `Debug` form shows only name and image, since other fields can hold secrets.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct CreateBoxRequest {
    /// The name of the box, unique: letters, digits, `.`, `_` and `-`, beginning with a letter or digit.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(
        min_length = 1,
        max_length = 128,
        pattern = "^[a-zA-Z0-9][a-zA-Z0-9._-]*$"
    )]
    pub name: Option<String>,
    /// The name of an image in the server's image table; `idle` by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Virtual processors.
    #[serde(
        deserialize_with = "whole_number::deserialize_option",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(minimum = 1, maximum = 32)]
    pub cpus: Option<u32>,
    /// Memory in MiB.
    #[serde(
        deserialize_with = "whole_number::deserialize_option",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(minimum = 128)]
    pub memory_mib: Option<u32>,
    /// The working directory of the payload.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub working_dir: Option<String>,
    /// Environment variables, added to those of the image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub env: Option<BTreeMap<String, String>>,
    /// Replaces the image's entrypoint. The image's command is dropped; set `cmd` for another one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Vec<String>>,
    /// Replaces the image's command.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cmd: Option<Vec<String>>,
    /// Whether the box outlives the server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detach: Option<bool>,
    /// When the server starts the box again after it has ended: `no` (the default),
    /// `on-failure[:max]`, `always` or `unless-stopped`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(pattern = "^(no|always|unless-stopped|on-failure(:[0-9]+)?)$")]
    pub restart_policy: Option<String>,
    /// Whether the server removes the box when it has ended. Excludes a restart policy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auto_remove: Option<bool>,
    /// The network: only `enabled` without an allowlist is supported. The payload uses the host's
    /// network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkSpec>,
    /// How strictly the box is isolated; `maximum` is not supported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub security: Option<SecurityPreset>,
    /// Idle seconds before the box is paused: only 0 and 900, the default of clients, are accepted.
    /// Neither pauses the box.
    #[serde(
        deserialize_with = "whole_number::deserialize_option",
        skip_serializing_if = "Option::is_none"
    )]
    pub auto_pause: Option<u64>,
    /// Seconds between stop and automatic removal: only 0 is supported, see `auto_remove`.
    #[serde(
        deserialize_with = "whole_number::deserialize_option",
        skip_serializing_if = "Option::is_none"
    )]
    pub auto_delete: Option<u64>,
    /// Ignored, since this server does not pause boxes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auto_resume: Option<bool>,
    /// Not supported unless empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advanced: Option<CreateBoxAdvancedOptions>,
    /// Not supported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rootfs_path: Option<String>,
    /// Not supported.
    #[serde(
        deserialize_with = "whole_number::deserialize_option",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(minimum = 1)]
    pub disk_size_gb: Option<u64>,
    /// Not supported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Not supported unless empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volumes: Option<Vec<VolumeSpec>>,
    /// Not supported unless empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secrets: Option<Vec<SecretSpec>>,
}

impl CreateBoxRequest {
    /// Creates a request for a box of this image, with its defaults.
    pub fn of(image: impl Into<String>) -> Self {
        Self {
            image: Some(image.into()),
            ..Self::default()
        }
    }

    /// Sets [`name`](Self::name).
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Sets [`cpus`](Self::cpus).
    #[must_use]
    pub fn cpus(mut self, count: u32) -> Self {
        self.cpus = Some(count);
        self
    }

    /// Sets [`memory_mib`](Self::memory_mib).
    #[must_use]
    pub fn memory_mib(mut self, mib: u32) -> Self {
        self.memory_mib = Some(mib);
        self
    }

    /// Sets [`entrypoint`](Self::entrypoint).
    #[must_use]
    pub fn entrypoint<S: Into<String>>(mut self, words: impl IntoIterator<Item = S>) -> Self {
        self.entrypoint = Some(words.into_iter().map(Into::into).collect());
        self
    }

    /// Sets [`cmd`](Self::cmd).
    #[must_use]
    pub fn cmd<S: Into<String>>(mut self, command: impl IntoIterator<Item = S>) -> Self {
        self.cmd = Some(command.into_iter().map(Into::into).collect());
        self
    }

    /// Adds a variable to [`env`](Self::env).
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        let env = self.env.get_or_insert_default();
        env.insert(name.into(), value.into());
        self
    }

    /// Sets [`working_dir`](Self::working_dir).
    #[must_use]
    pub fn working_dir(mut self, dir: impl Into<String>) -> Self {
        self.working_dir = Some(dir.into());
        self
    }

    /// Sets [`restart_policy`](Self::restart_policy).
    #[must_use]
    pub fn restart_policy(mut self, policy: impl Into<String>) -> Self {
        self.restart_policy = Some(policy.into());
        self
    }

    /// Sets [`auto_remove`](Self::auto_remove).
    #[must_use]
    pub fn auto_remove(mut self, on: bool) -> Self {
        self.auto_remove = Some(on);
        self
    }

    /// Sets [`detach`](Self::detach).
    #[must_use]
    pub fn detach(mut self, detach: bool) -> Self {
        self.detach = Some(detach);
        self
    }
}

impl fmt::Debug for CreateBoxRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CreateBoxRequest")
            .field("name", &self.name)
            .field("image", &self.image)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_debug_form_shows_no_secret() {
        let secret = SecretSpec {
            name: "key".into(),
            value: "hidden".into(),
            hosts: Vec::new(),
            placeholder: None,
        };
        let mut request = CreateBoxRequest::of("idle").env("TOKEN", "hidden");
        let shown = format!("{secret:?}");
        request.secrets = Some(vec![secret]);
        assert!(!shown.contains("hidden") && !format!("{request:?}").contains("hidden"));
    }
}
