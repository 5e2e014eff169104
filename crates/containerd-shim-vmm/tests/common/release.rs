//! The release of containerd that the tests run, and how it is configured.

use std::path::Path;
use std::process::Command;

use super::IMAGE;

/// A major version of containerd.
#[derive(Clone, Copy, Debug)]
pub(super) enum Release {
    /// 1.6 and 1.7.
    V1,
    V2,
}

/// The tables of the CRI plugin of containerd 1.x, beside the runtime handler.
const CRI_OF_V1: &str = "
[plugins.'io.containerd.grpc.v1.cri']
sandbox_image = '$IMAGE'
netns_mounts_under_state_dir = true
stream_server_address = '127.0.0.1'
[plugins.'io.containerd.grpc.v1.cri'.containerd]
snapshotter = 'native'
[plugins.'io.containerd.grpc.v1.cri'.cni]
bin_dir = '/usr/lib/cni'
conf_dir = '$NETWORKS'
";

const CRI_OF_V2: &str = "
[plugins.'io.containerd.cri.v1.images']
snapshotter = 'native'
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = '$IMAGE'
[plugins.'io.containerd.cri.v1.runtime']
netns_mounts_under_state_dir = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dir = '/usr/lib/cni'
conf_dir = '$NETWORKS'
";

impl Release {
    /// Returns the release of the first containerd in the `PATH`; `None` if there is none.
    pub(super) fn find() -> Option<Self> {
        let output = Command::new("containerd").arg("--version").output().ok()?;
        // `containerd github.com/containerd/containerd/v2 2.1.9 ...`
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let version = text.split_whitespace().nth(2).unwrap_or_default();
        let is_v2 = version.starts_with("2.");
        let is_known = is_v2 || version.starts_with("1.");
        assert!(is_known, "containerd of an unknown version: {text}");
        Some(if is_v2 { Self::V2 } else { Self::V1 })
    }

    /// Returns the line that a configuration begins with.
    pub(super) fn config_version(self) -> &'static str {
        match self {
            Self::V1 => "version = 2\n",
            Self::V2 => "version = 3\n",
        }
    }

    /// Returns the lines of a configuration without the CRI plugin.
    pub(super) fn without_cri(self) -> String {
        let plugins = match self {
            Self::V1 => "'io.containerd.grpc.v1.cri'",
            Self::V2 => "'io.containerd.grpc.v1.cri', 'io.containerd.cri.v1.runtime'",
        };
        format!("disabled_plugins = [{plugins}]\n")
    }

    /// Returns the tables of the CRI plugin, whose runtime handler is that of `dist/`, with the directory of the
    /// networks.
    pub(super) fn with_cri(self, networks: &Path) -> String {
        let (handler, plugin) = match self {
            Self::V1 => (include_str!("../../dist/containerd-1.toml"), CRI_OF_V1),
            Self::V2 => (include_str!("../../dist/containerd-2.toml"), CRI_OF_V2),
        };
        let handler = handler.replace(self.config_version(), "");
        let plugin = plugin.replace("$IMAGE", IMAGE);
        handler + &plugin.replace("$NETWORKS", &networks.to_string_lossy())
    }

    /// Returns the options with which `ctr image import` unpacks an image for any snapshotter.
    pub(super) fn import_options(self) -> &'static [&'static str] {
        match self {
            Self::V1 => &[],
            // Otherwise containerd unpacks the image itself, only for the snapshotters of its configuration.
            Self::V2 => &["--local"],
        }
    }
}
