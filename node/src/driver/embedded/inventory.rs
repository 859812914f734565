//! What this driver tells of its containers, images and volumes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use async_trait::async_trait;
use shoal_protocol::WallTime;
use shoal_protocol::registry_auth::RegistryAuth;

use super::bundle::{self, Bundle, BundleDir, CheckRecord, HealthRecord};
use super::volumes::{self, VolumeDir, VolumeRecord};
use super::{EmbeddedDriver, Life, failed, look};
use crate::driver::DriverError;
use crate::driver::inventory::{
    CheckInfo, ContainerHealth, ContainerInfo, ContainerSizes, ContainerState, ImageDetails, Inventory, VolumeInfo,
};
use crate::driver::registry::{RegistryError, Resolved};

#[async_trait]
impl Inventory for EmbeddedDriver {
    async fn containers(&self, sizes: bool) -> Result<Vec<ContainerInfo>, DriverError> {
        let containers = self.containers.clone();
        let image_bytes: BTreeMap<String, u64> =
            self.images.list().into_iter().map(|image| (image.id, image.size)).collect();
        let sizes = sizes.then_some(image_bytes);
        let list = move || {
            let found = bundle::list(&containers)?.into_iter().filter_map(|(directory, bundle)| {
                match info(&directory, bundle, sizes.as_ref()) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => None, // removed since it was listed
                    result => Some(result),
                }
            });
            found.collect::<io::Result<Vec<_>>>()
        };
        blocking("failed to list containers", list).await
    }

    async fn image(&self, image: &str) -> Result<ImageDetails, DriverError> {
        let (images, image) = (Arc::clone(&self.images), image.to_owned());
        let details = tokio::task::spawn_blocking(move || images.details(&image)).await;
        details.map_err(failed("failed to read the image"))?.map_err(|error| self.image_error(error))
    }

    async fn image_details(&self) -> Result<Vec<ImageDetails>, DriverError> {
        let images = Arc::clone(&self.images);
        let list = move || images.list().iter().map(|image| images.details(&image.id)).collect::<Result<_, _>>();
        let details = tokio::task::spawn_blocking(list).await;
        details.map_err(failed("failed to read the images"))?.map_err(|error| self.image_error(error))
    }

    async fn resolve(&self, image: &str, auth: Option<&RegistryAuth>) -> Result<Resolved, RegistryError> {
        self.puller.resolve(image, auth).await
    }

    async fn volumes(&self, sizes: bool) -> Result<Vec<VolumeInfo>, DriverError> {
        let directory = self.config.data_dir.join(volumes::DIRECTORY);
        blocking("failed to list volumes", move || list_volumes(&directory, sizes)).await
    }
}

async fn blocking<T: Send + 'static>(
    what: &str,
    call: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, DriverError> {
    tokio::task::spawn_blocking(call).await.map_err(failed(what))?.map_err(failed(what))
}

/// Describes a container; its files are counted if the sizes of images are given.
fn info(directory: &BundleDir, bundle: Bundle, images: Option<&BTreeMap<String, u64>>) -> io::Result<ContainerInfo> {
    let state = match look(directory)? {
        Life::Created => ContainerState::Created,
        Life::Running(state) => ContainerState::Running { pid: state.container.pid, started: state.started },
        Life::Ended(record) => ContainerState::Exited {
            code: record.code,
            error: record.error,
            started: directory.state()?.map(|state| state.started),
            ended: record.ended,
        },
    };
    let sizes = images.map(|images| {
        let written_bytes = tree_bytes(&directory.path("upper"))?;
        let image_bytes = images.get(&bundle.image_id).copied().unwrap_or_default();
        Ok::<_, io::Error>(ContainerSizes { written_bytes, image_bytes })
    });
    let health = bundle.health.is_some().then(|| directory.health()).transpose()?;
    Ok(ContainerInfo {
        id: bundle.container_id,
        image_id: bundle.image_id,
        args: bundle.args,
        env: bundle.env,
        dir: bundle.dir,
        user: bundle.user,
        hostname: bundle.hostname,
        address: bundle.address,
        gateway: bundle.gateway,
        prefix: bundle.prefix,
        volumes: bundle.volumes.into_iter().map(|(target, volume)| (target, volume.data())).collect(),
        // Written once, when the container is created.
        created: modified(&directory.path("bundle.json"))?,
        plan: bundle.plan,
        state,
        health: health.map(health_info),
        exposed: bundle.exposed,
        sizes: sizes.transpose()?,
    })
}

fn health_info(record: HealthRecord) -> ContainerHealth {
    let check = |CheckRecord { began, ended, code, output }| CheckInfo { began, ended, code, output };
    ContainerHealth {
        status: record.status,
        failures: record.failures,
        checks: record.log.into_iter().map(check).collect(),
    }
}

fn modified(path: &Path) -> io::Result<WallTime> {
    let since = fs::metadata(path)?.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(WallTime(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)))
}

fn list_volumes(directory: &Path, sizes: bool) -> io::Result<Vec<VolumeInfo>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        let volume = VolumeDir(entry.path());
        // One that is half made has no record, and nobody uses it yet.
        let Some(VolumeRecord { labels, created }) = bundle::read_json(&volume.0.join(volumes::RECORD))? else {
            continue;
        };
        let bytes = if sizes { Some(tree_bytes(&volume.data())?) } else { None };
        found.push(VolumeInfo { name, labels, created, path: volume.data(), bytes });
    }
    found.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(found)
}

/// Counts the bytes that a directory takes on disk. A file with several names counts once; what goes away meanwhile, not.
fn tree_bytes(directory: &Path) -> io::Result<u64> {
    const BLOCK_BYTES: u64 = 512; // the unit of `blocks`, whatever the file system's own is
    let mut bytes = 0;
    let mut shared = BTreeSet::new();
    let mut left: Vec<PathBuf> = vec![directory.to_owned()];
    while let Some(path) = left.pop() {
        let entries = match fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        for entry in entries {
            let entry = entry?;
            let status = match entry.metadata() {
                Ok(status) => status,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            if status.is_dir() {
                left.push(entry.path());
            } else if status.nlink() > 1 && !shared.insert((status.dev(), status.ino())) {
                continue;
            }
            bytes += status.blocks() * BLOCK_BYTES;
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_directory_takes_is_counted_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        assert_eq!(tree_bytes(&path("nosuch")).unwrap(), 0);
        fs::create_dir(path("below")).unwrap();
        fs::write(path("below/file"), vec![1; 100_000]).unwrap();
        let before = tree_bytes(directory.path()).unwrap();
        assert!((100_000..400_000).contains(&before), "{before}");
        fs::hard_link(path("below/file"), path("again")).unwrap();
        std::os::unix::fs::symlink("/", path("everything")).unwrap();
        assert_eq!(tree_bytes(directory.path()).unwrap(), before);
    }

    #[test]
    fn volumes_are_listed_by_name() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["b", "a", "half"] {
            fs::create_dir_all(directory.path().join(name).join("_data")).unwrap();
        }
        let record = VolumeRecord { labels: [("k".to_owned(), "v".to_owned())].into(), created: WallTime(7) };
        for name in ["b", "a"] {
            bundle::write_json(&directory.path().join(name).join(volumes::RECORD), &record).unwrap();
        }
        let found = list_volumes(directory.path(), true).unwrap();
        let names: Vec<_> = found.iter().map(|volume| (volume.name.as_str(), volume.created, volume.bytes)).collect();
        assert_eq!(names, [("a", WallTime(7), Some(0)), ("b", WallTime(7), Some(0))]);
        assert_eq!(found[0].labels["k"], "v");
    }
}
