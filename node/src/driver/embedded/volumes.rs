//! Named volumes: `volumes/<name>/` holds `_data`, which is mounted, and `volume.json`, what is known of it.
//!
//! A volume is created by the first container that names it and kept until somebody removes its directory. Volumes without a
//! name lie in their container's directory, in the same form, and go with it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use shoal_control::task::ContainerPlan;
use shoal_protocol::WallTime;
use shoal_protocol::spec::Mount;
use shoal_protocol::spec::mount::{MountKind, Propagation};

use crate::driver::{DriverError, missing_source};

/// Where all named volumes of a node are, below its data directory.
pub const DIRECTORY: &str = "volumes";

/// The file with what is known of a volume, in its directory.
pub const RECORD: &str = "volume.json";

/// The directory of one volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeDir(pub PathBuf);

/// What is known of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeRecord {
    /// Labels of the mount that created it.
    pub labels: BTreeMap<String, String>,
    /// When that was.
    pub created: WallTime,
}

impl VolumeDir {
    /// Returns what is mounted.
    pub fn data(&self) -> PathBuf {
        self.0.join("_data")
    }
}

/// Returns the directories of the volumes of a container, by their targets. `container` is its own.
pub fn resolve(mounts: &[Mount], data_dir: &Path, container: &Path) -> BTreeMap<String, VolumeDir> {
    let volumes = mounts.iter().filter(|mount| mount.kind == MountKind::Volume);
    volumes
        .enumerate()
        .map(|(number, mount)| {
            let place = match mount.source.as_str() {
                "" => container.join(DIRECTORY).join(number.to_string()),
                name => data_dir.join(DIRECTORY).join(name),
            };
            (mount.target.clone(), VolumeDir(place))
        })
        .collect()
}

/// Checks that this node can mount what a container asks for.
pub fn check(plan: &ContainerPlan) -> Result<(), DriverError> {
    if let Some(missing) = missing_source(plan) {
        return Err(DriverError::Refused(missing));
    }
    for mount in plan.mounts.iter().filter(|mount| mount.kind == MountKind::Bind) {
        match mount.bind_options.clone().unwrap_or_default().propagation {
            Propagation::Shared | Propagation::Rshared => {
                return Err(DriverError::Refused(format!(
                    "a bind mount that passes mounts back to the node (at {}) is not supported by the embedded driver yet",
                    mount.target
                )));
            }
            Propagation::Unset
            | Propagation::Private
            | Propagation::Rprivate
            | Propagation::Slave
            | Propagation::Rslave => {}
        }
        let kind = fs::metadata(&mount.source).map(|status| status.file_type());
        if kind.is_ok_and(|kind| kind.is_char_device() || kind.is_block_device()) {
            return Err(DriverError::Refused(format!(
                "bind mounts of devices ({}) are not supported by the embedded driver yet",
                mount.source
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_without_a_name_are_their_containers() {
        let volume = |source: &str, target: &str| Mount {
            kind: MountKind::Volume,
            source: source.to_owned(),
            target: target.to_owned(),
            ..Mount::default()
        };
        let mounts = [volume("", "/a"), volume("shared", "/b"), volume("", "/c")];
        let places = resolve(&mounts, Path::new("/data"), Path::new("/data/containers/1"));
        let places: Vec<_> =
            places.iter().map(|(target, place)| (target.as_str(), place.0.to_str().unwrap())).collect();
        let want = [
            ("/a", "/data/containers/1/volumes/0"),
            ("/b", "/data/volumes/shared"),
            ("/c", "/data/containers/1/volumes/2"),
        ];
        assert_eq!(places, want);
    }
}
