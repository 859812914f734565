//! The images of this node: configurations and references in `images/`, unpacked layers in `layers/`.
//!
//! A layer is kept under the digest of its content and unpacked once, whichever images share it. What is being unpacked
//! has a name that no finished layer has; the index is replaced as a whole after everything it names is in place. So
//! after a crash there may be too much on disk, never too little, and opening removes it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use flate2::read::MultiGzDecoder;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use shoal_protocol::WallTime;
use shoal_protocol::image::{Reference, is_digest};

use super::archive::{Archive, ArchivedImage};
use super::bundle::{read_json, write_json};
use super::layer;
use super::time::parse_time;
use crate::driver::inventory::ImageDetails;
use crate::driver::{DriverError, ImageInfo};

mod config;

pub use config::Config;

/// Bytes of an archive, decompressed; a larger one is refused.
pub const ARCHIVE_BYTES_MAX: u64 = 64 << 30;
/// Layers of an image; the kernel mounts no more.
const LAYERS_MAX: usize = 127;

/// Why an image could not be stored or removed. Whatever the variant, the images are as they were.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The archive is not what it should be.
    #[error("{0}")]
    Invalid(String),
    /// There is no such image.
    #[error("No such image: {0}")]
    Missing(String),
    /// Containers need it.
    #[error("{0}")]
    InUse(String),
    /// The disk failed or is full.
    #[error("{what}")]
    Io {
        /// What was being done.
        what: String,
        /// What went wrong.
        source: io::Error,
    },
}

impl ImageError {
    /// Says what failed on disk.
    pub fn io(what: &str, error: impl Into<io::Error>) -> Self {
        Self::Io { what: what.to_owned(), source: error.into() }
    }

    /// The archive could not be read; if only for its content, it is to blame.
    pub fn archive(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(_) => Self::io("failed to read the archive", error),
            None => Self::Invalid(format!("cannot read the archive: {error}")),
        }
    }

    /// An entry of a layer could not be created.
    pub fn entry(path: &str, error: rustix::io::Errno) -> Self {
        use rustix::io::Errno;
        match error {
            Errno::NAMETOOLONG
            | Errno::ISDIR
            | Errno::NOTDIR
            | Errno::NOENT
            | Errno::LOOP
            | Errno::XDEV
            | Errno::INVAL => Self::Invalid(format!("cannot unpack {path}: {error}")),
            error => Self::io(&format!("failed to unpack {path}"), error),
        }
    }

    /// Tells the caller of the driver on this node.
    pub fn into_driver_error(self, node: &str) -> DriverError {
        match self {
            Self::Invalid(text) => DriverError::Invalid(text),
            Self::Missing(image) => DriverError::NoSuchImage { image, node: node.to_owned() },
            Self::InUse(text) => DriverError::Refused(text),
            Self::Io { what, source } => DriverError::Failed { what, source: source.into() },
        }
    }
}

/// What is kept of an image beside its configuration and layers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    references: BTreeSet<String>,
    /// Digests of manifests and indexes it was loaded by.
    manifests: BTreeSet<String>,
    layers: Vec<String>,
    bytes: u64,
    created: WallTime,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Index {
    /// By identifier: `sha256:` and the digest of the configuration.
    images: BTreeMap<String, Record>,
}

/// An image that a container can be made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// `sha256:` and 64 hexadecimal digits.
    pub id: String,
    /// What the container takes from it.
    pub config: Config,
    /// Its layers, lowest first.
    pub layers: Vec<PathBuf>,
}

/// The images of a node. Calls block; one at a time changes anything.
pub struct ImageStore {
    images: PathBuf,
    layers: PathBuf,
    index: Mutex<Index>,
    /// Held while layers come and go, so that loading the same image twice at once unpacks it once.
    changing: Mutex<()>,
    counter: AtomicU64,
}

impl ImageStore {
    /// Opens the images below a data directory and removes what a crash left. `used` are the layers of containers.
    pub fn open(data_dir: &Path, used: &BTreeSet<PathBuf>) -> Result<Self, ImageError> {
        let (images, layers) = (data_dir.join("images"), data_dir.join("layers"));
        let _ = fs::remove_dir_all(images.join("tmp"));
        for directory in [&images.join("blobs/sha256"), &images.join("tmp"), &layers] {
            fs::create_dir_all(directory)
                .map_err(|error| ImageError::io(&format!("failed to create {}", directory.display()), error))?;
        }
        let index = read_json(&images.join("index.json"))
            .map_err(|error| ImageError::io("failed to read the index of images", error))?
            .unwrap_or_default();
        let store =
            Self { images, layers, index: Mutex::new(index), changing: Mutex::new(()), counter: AtomicU64::new(0) };
        store.sweep(used).map_err(|error| ImageError::io("failed to clean up images", error))?;
        Ok(store)
    }

    /// Returns whether a layer is there, by the digest of its content: an archive need not carry it then.
    pub fn has_layer(&self, diff_id: &str) -> bool {
        let digits = diff_id.strip_prefix("sha256:").filter(|_| is_digest(diff_id));
        digits.is_some_and(|digits| {
            self.layers.join(digits).exists() && self.layers.join(format!("{digits}.size")).exists()
        })
    }

    /// Creates a file for an archive that is on its way; dropping it removes it.
    pub fn incoming(&self) -> Result<Incoming, ImageError> {
        let name = format!("incoming-{}", self.counter.fetch_add(1, Ordering::Relaxed));
        let path = self.images.join("tmp").join(name);
        let create = File::options().read(true).write(true).create(true).truncate(true).open(&path);
        let file = create.map_err(|error| ImageError::io(&format!("failed to create {}", path.display()), error))?;
        Ok(Incoming { path, file })
    }

    /// Stores the images of an archive and returns their references (identifiers of those that have none).
    pub fn load(&self, incoming: Incoming) -> Result<Vec<String>, ImageError> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut unpacked = None;
        let mut magic = [0; 2];
        let is_gzip = (&incoming.file).read_exact(&mut magic).is_ok() && magic == [0x1f, 0x8b];
        let rewind = |file: &mut &File| io::Seek::rewind(file).map_err(ImageError::archive);
        rewind(&mut &incoming.file)?;
        if is_gzip {
            let plain = self.incoming()?;
            let mut decoder = MultiGzDecoder::new(io::BufReader::new(&incoming.file)).take(ARCHIVE_BYTES_MAX + 1);
            let bytes = io::copy(&mut decoder, &mut &plain.file).map_err(ImageError::archive)?;
            if bytes > ARCHIVE_BYTES_MAX {
                return Err(ImageError::Invalid(format!("archive exceeds {ARCHIVE_BYTES_MAX} bytes")));
            }
            rewind(&mut &plain.file)?;
            unpacked = Some(plain);
        }
        let source = unpacked.as_ref().unwrap_or(&incoming);
        let file = source.file.try_clone().map_err(ImageError::archive)?;
        let archive = Archive::open(file)?;
        let mut fresh = Vec::new();
        let stored = self.store_all(&archive, &mut fresh);
        if stored.is_err() {
            // Nothing names them, and nothing can begin to while this call changes the images.
            for layer in fresh {
                let _ = fs::remove_dir_all(self.layers.join(&layer));
                let _ = fs::remove_file(self.layers.join(format!("{layer}.size")));
            }
        }
        stored
    }

    /// Stores the images of an archive; `fresh` gets the layers that were not there before.
    fn store_all(&self, archive: &Archive, fresh: &mut Vec<String>) -> Result<Vec<String>, ImageError> {
        let mut index = self.index().clone();
        let mut references = Vec::new();
        for image in archive.images()? {
            references.extend(self.store(archive, &image, &mut index, fresh)?);
        }
        // One flush for all layers: the index must not name what a power loss can still take away.
        File::open(&self.layers)
            .and_then(|directory| Ok(rustix::fs::syncfs(directory)?))
            .map_err(|error| ImageError::io("failed to write the image to disk", error))?;
        self.replace_index(index)?;
        Ok(references)
    }

    fn store(
        &self,
        archive: &Archive,
        image: &ArchivedImage,
        index: &mut Index,
        fresh: &mut Vec<String>,
    ) -> Result<Vec<String>, ImageError> {
        let config: Config = serde_json::from_slice(&image.config)
            .map_err(|error| ImageError::Invalid(format!("cannot read the configuration of the image: {error}")))?;
        let diff_ids: Vec<&str> = config
            .diff_ids()
            .iter()
            .map(|id| {
                id.strip_prefix("sha256:").filter(|digits| {
                    digits.len() == 64 && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
                })
            })
            .collect::<Option<_>>()
            .ok_or_else(|| ImageError::Invalid("the image names a layer by something else than SHA-256".to_owned()))?;
        if diff_ids.len() != image.layers.len() || diff_ids.len() > LAYERS_MAX {
            let (named, present) = (diff_ids.len(), image.layers.len());
            return Err(ImageError::Invalid(format!(
                "the image names {named} layers, the archive has {present} (at most {LAYERS_MAX})"
            )));
        }
        let parsed: Vec<Reference> =
            image.references.iter().map(|text| Reference::parse(text)).collect::<Option<_>>().ok_or_else(|| {
                ImageError::Invalid(format!("the archive has an invalid reference: {:?}", image.references))
            })?;
        let mut bytes = 0;
        for (diff_id, member) in diff_ids.iter().zip(&image.layers) {
            bytes += self.store_layer(archive, member, diff_id, fresh)?;
        }
        let digest = hex(&Sha256::digest(&image.config));
        write_blob(&self.images.join("blobs/sha256").join(&digest), &image.config)
            .map_err(|error| ImageError::io("failed to store the configuration of the image", error))?;

        let id = format!("sha256:{digest}");
        let names: Vec<String> = parsed.iter().filter_map(Reference::tagged).collect();
        for record in index.images.values_mut() {
            record.references.retain(|reference| !names.contains(reference));
        }
        let record = index.images.entry(id.clone()).or_insert_with(|| Record {
            references: BTreeSet::new(),
            manifests: BTreeSet::new(),
            layers: diff_ids.iter().map(|id| (*id).to_owned()).collect(),
            bytes,
            created: config.created.as_deref().and_then(parse_time).unwrap_or_default(),
        });
        record.references.extend(names.iter().cloned());
        record.manifests.extend(image.digests.iter().cloned());
        Ok(if names.is_empty() { vec![id] } else { names })
    }

    /// Unpacks a layer unless it is there; returns the bytes of its archive.
    fn store_layer(
        &self,
        archive: &Archive,
        member: &str,
        diff_id: &str,
        fresh: &mut Vec<String>,
    ) -> Result<u64, ImageError> {
        let place = self.layers.join(diff_id);
        let size = self.layers.join(format!("{diff_id}.size"));
        if place.exists()
            && let Some(bytes) = read_json(&size).map_err(|error| ImageError::io("failed to read a layer", error))?
        {
            return Ok(bytes);
        }
        let partial = self.layers.join(format!("partial-{}", self.counter.fetch_add(1, Ordering::Relaxed)));
        let failed = |error: io::Error| ImageError::io("failed to store a layer", error);
        fs::create_dir(&partial).map_err(failed)?;
        let result = layer::unpack(archive.layer(member)?, &partial, layer::LAYER_BYTES_MAX).and_then(|unpacked| {
            if unpacked.diff_id != diff_id {
                return Err(ImageError::Invalid(format!("layer {member} does not match its digest {diff_id}")));
            }
            write_json(&size, &unpacked.bytes).map_err(failed)?;
            let _ = fs::remove_dir_all(&place);
            fresh.push(diff_id.to_owned());
            fs::rename(&partial, &place).map_err(failed)?;
            Ok(unpacked.bytes)
        });
        if result.is_err() {
            let _ = fs::remove_dir_all(&partial);
        }
        result
    }

    /// Returns whether there is an image, by what [`ImageStore::find`] finds it by.
    pub fn has(&self, image: &str) -> bool {
        self.index().find(image).is_some()
    }

    /// Finds an image by reference, identifier or beginning of an identifier.
    pub fn find(&self, image: &str) -> Result<Image, ImageError> {
        let (id, layers) = {
            let index = self.index();
            let id = index.find(image).ok_or_else(|| ImageError::Missing(image.to_owned()))?;
            (id.clone(), index.images[&id].layers.clone())
        };
        let digest = id.trim_start_matches("sha256:");
        let config = read_json(&self.images.join("blobs/sha256").join(digest))
            .map_err(|error| ImageError::io("failed to read the configuration of the image", error))?
            .ok_or_else(|| ImageError::Missing(image.to_owned()))?;
        Ok(Image { id, config, layers: layers.iter().map(|layer| self.layers.join(layer)).collect() })
    }

    /// Lists the images.
    pub fn list(&self) -> Vec<ImageInfo> {
        self.index().images.iter().map(|(id, record)| record.info(id)).collect()
    }

    /// Returns everything that is known of an image, found as by [`ImageStore::find`].
    pub fn details(&self, image: &str) -> Result<ImageDetails, ImageError> {
        let (info, layers) = {
            let index = self.index();
            let id = index.find(image).ok_or_else(|| ImageError::Missing(image.to_owned()))?;
            (index.images[&id].info(&id), index.images[&id].layers.clone())
        };
        let failed = |error| ImageError::io("failed to read the image", error);
        let config = self.images.join("blobs/sha256").join(info.id.trim_start_matches("sha256:"));
        let config = fs::read_to_string(config).map_err(failed)?;
        let sized = |layer: String| {
            let bytes = read_json(&self.layers.join(format!("{layer}.size")))?.unwrap_or_default();
            Ok::<_, io::Error>((format!("sha256:{layer}"), bytes))
        };
        let layers = layers.into_iter().map(sized).collect::<Result<_, _>>().map_err(failed)?;
        Ok(ImageDetails { info, config, layers })
    }

    /// Removes a reference, and the image with its last one. `users` are the identifiers of images that containers use.
    pub fn remove(&self, image: &str, users: &BTreeSet<String>, used: &BTreeSet<PathBuf>) -> Result<(), ImageError> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut index = self.index().clone();
        let id = index.find(image).ok_or_else(|| ImageError::Missing(image.to_owned()))?;
        let Some(record) = index.images.get_mut(&id) else { return Err(ImageError::Missing(image.to_owned())) };
        let name = Reference::parse(image).and_then(|reference| reference.tagged());
        let by_name = name.is_some_and(|name| record.references.remove(&name));
        if !by_name || record.references.is_empty() {
            if users.contains(&id) {
                return Err(ImageError::InUse(format!("image {image} is used by a container")));
            }
            index.images.remove(&id);
        }
        self.replace_index(index)?;
        self.sweep(used).map_err(|error| ImageError::io("failed to clean up images", error))
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn replace_index(&self, index: Index) -> Result<(), ImageError> {
        let path = self.images.join("index.json");
        let write = || {
            let partial = path.with_extension("partial");
            let mut file = File::create(&partial)?;
            file.write_all(&serde_json::to_vec(&index)?)?;
            file.sync_all()?;
            fs::rename(&partial, &path)?;
            File::open(&self.images)?.sync_all()
        };
        write().map_err(|error| ImageError::io("failed to write the index of images", error))?;
        *self.index() = index;
        Ok(())
    }

    /// Removes what neither the index nor a container names.
    fn sweep(&self, used: &BTreeSet<PathBuf>) -> io::Result<()> {
        let index = self.index().clone();
        let layers: BTreeSet<&String> = index.images.values().flat_map(|record| &record.layers).collect();
        for entry in fs::read_dir(&self.layers)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
            let layer = name.trim_end_matches(".size").to_owned();
            if layers.contains(&layer) || used.contains(&self.layers.join(&layer)) {
                continue;
            }
            if path.is_dir() { fs::remove_dir_all(&path)? } else { fs::remove_file(&path)? }
        }
        for entry in fs::read_dir(self.images.join("blobs/sha256"))? {
            let entry = entry?;
            if !index.images.contains_key(&format!("sha256:{}", entry.file_name().to_string_lossy())) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }
}

impl Record {
    fn info(&self, id: &str) -> ImageInfo {
        ImageInfo {
            id: id.to_owned(),
            tags: self.references.iter().cloned().collect(),
            size: self.bytes,
            created: self.created,
        }
    }
}

impl Index {
    fn find(&self, image: &str) -> Option<String> {
        /// Digits of an identifier that name an image. Docker takes fewer, but then a name may look like one.
        const PREFIX_DIGITS_MIN: usize = 12;
        if let Some(reference) = Reference::parse(image) {
            let name = reference.tagged();
            let by_name = self.images.iter().find(|(_, record)| match (&reference.digest, &name) {
                (Some(digest), _) => record.manifests.contains(digest),
                (None, Some(name)) => record.references.contains(name),
                (None, None) => false,
            });
            if let Some((id, _)) = by_name {
                return Some(id.clone());
            }
        }
        let digits = image.strip_prefix("sha256:").unwrap_or(image);
        if digits.len() < PREFIX_DIGITS_MIN || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        let mut matching = self.images.keys().filter(|id| id.trim_start_matches("sha256:").starts_with(digits));
        matching.next().filter(|_| matching.next().is_none()).cloned()
    }
}

/// An archive that is being received.
pub struct Incoming {
    path: PathBuf,
    /// Where it is written to.
    pub file: File,
}

impl Drop for Incoming {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

fn write_blob(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let partial = path.with_extension("partial");
    fs::write(&partial, bytes)?;
    fs::rename(partial, path)
}

/// Prints bytes in hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Returns this machine's architecture as images name it.
pub fn platform_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests;
