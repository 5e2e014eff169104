use std::env;
use std::fs;
use std::path::PathBuf;

use serde::Deserialize;
use vmm_runtime::Image;

use crate::error::ShimError;

const DEFAULT_PATH: &str = "/etc/containerd-shim-vmm.json";

/// The environment variable of containerd that names another configuration.
const PATH_VARIABLE: &str = "CONTAINERD_SHIM_VMM_CONFIG";

/// The configuration of the program.
///
/// ```json
/// {
///   "guest": {
///     "engine": "qemu",
///     "memory_mib": 512,
///     "options": {"kernel": "/usr/lib/vmm/kernel", "initrd": "/usr/lib/vmm/initrd", "agent": true}
///   }
/// }
/// ```
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// The guest that runs the containers of a pod.
    pub(crate) guest: Image,
    /// The directory with a directory for each pod.
    #[serde(default = "default_state_dir")]
    pub(crate) state_dir: PathBuf,
}

fn default_state_dir() -> PathBuf {
    "/run/containerd-shim-vmm".into()
}

impl Config {
    pub(crate) fn load() -> Result<Self, ShimError> {
        let path = env::var_os(PATH_VARIABLE).map_or_else(|| DEFAULT_PATH.into(), PathBuf::from);
        let text = fs::read(&path).map_err(ShimError::file("read the configuration", &path))?;
        serde_json::from_slice(&text).map_err(|source| ShimError::Config { path, source })
    }
}
