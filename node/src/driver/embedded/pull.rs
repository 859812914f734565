//! Images from registries. What is pulled is put together as an archive first, and stored as any other archive is.
//!
//! An archive of a pulled image has what the registry names it by, and of its layers those that this node lacks. Pulls of one
//! image by one user at the same time are one pull.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures::FutureExt;
use futures::StreamExt;
use futures::future::{BoxFuture, Shared};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use shoal_protocol::image::Reference;
use shoal_protocol::registry_auth::RegistryAuth;
use tokio::fs::File;
use tokio::io::AsyncWriteExt;
use tokio::sync::Semaphore;

use super::images::{ARCHIVE_BYTES_MAX, Config, ImageError, ImageStore, Incoming};
use crate::driver::PULL_MAX;
use crate::driver::registry::{Descriptor, Document, Insecure, Registries, RegistryError, Repository, Resolved};

/// Pulls at a time; further ones wait. Docker receives three layers at a time.
const PULLS_AT_ONCE: usize = 3;
/// Bytes of a block of an archive. Source: POSIX, `pax`.
const BLOCK_BYTES: u64 = 512;

/// Why an image could not be pulled. Whatever the variant, nothing of it is left.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PullError {
    /// No registry gave it.
    #[error(transparent)]
    Registry(Arc<RegistryError>),
    /// It could not be stored.
    #[error(transparent)]
    Store(Arc<ImageError>),
    /// It took too long.
    #[error("it was not pulled within {} minutes", PULL_MAX.as_secs() / 60)]
    TooLong,
}

impl From<RegistryError> for PullError {
    fn from(error: RegistryError) -> Self {
        Self::Registry(Arc::new(error))
    }
}

impl From<ImageError> for PullError {
    fn from(error: ImageError) -> Self {
        Self::Store(Arc::new(error))
    }
}

/// An image, and whose credentials it is pulled with.
type Wanted = (String, [u8; 32]);
type Pulling = Shared<BoxFuture<'static, Result<(), PullError>>>;

/// Pulls images into a store.
pub struct Puller {
    registries: Registries,
    images: Arc<ImageStore>,
    room: Semaphore,
    running: Mutex<BTreeMap<Wanted, Pulling>>,
}

impl Puller {
    /// Returns the way from registries, of which these need not prove who they are, to a store.
    pub fn new(images: Arc<ImageStore>, insecure: Vec<Insecure>) -> Arc<Self> {
        let (room, running) = (Semaphore::new(PULLS_AT_ONCE), Mutex::default());
        Arc::new(Self { registries: Registries::new(insecure), images, room, running })
    }

    /// Asks a registry where a reference leads.
    pub async fn resolve(&self, image: &str, auth: Option<&RegistryAuth>) -> Result<Resolved, RegistryError> {
        self.registries.resolve(image, auth).await
    }

    /// Pulls an image, or waits for the pull of it that goes on already.
    pub async fn pull(self: &Arc<Self>, image: &str, auth: Option<&RegistryAuth>) -> Result<(), PullError> {
        let reference = Reference::parse(image).ok_or_else(|| RegistryError::Name(image.to_owned()))?;
        let reference = reference.with_default_tag();
        let wanted = (reference.to_string(), fingerprint(auth));
        let pulling = {
            let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
            running.get(&wanted).cloned().unwrap_or_else(|| {
                let (this, auth, key) = (Arc::clone(self), auth.cloned(), wanted.clone());
                // A task of its own: it goes on though whoever began it gave up, for those that joined in.
                let work = tokio::spawn(async move {
                    let pulled = this.pull_alone(&reference, auth.as_ref()).await;
                    this.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
                    pulled
                });
                let pulling =
                    work.map(|ended| ended.unwrap_or_else(|error| Err(failed(io::Error::other(error)).into())));
                let pulling = pulling.boxed().shared();
                running.insert(wanted, pulling.clone());
                pulling
            })
        };
        pulling.await
    }

    async fn pull_alone(&self, reference: &Reference, auth: Option<&RegistryAuth>) -> Result<(), PullError> {
        let _room = self.room.acquire().await; // the semaphore is never closed
        let pull = async {
            let incoming = self.receive(reference, auth).await?;
            let images = Arc::clone(&self.images);
            let loaded = tokio::task::spawn_blocking(move || images.load(incoming)).await;
            loaded.map_err(|error| failed(io::Error::other(error)))??;
            Ok(())
        };
        let pulled = tokio::time::timeout(PULL_MAX, pull).await.unwrap_or(Err(PullError::TooLong));
        match &pulled {
            Ok(()) => tracing::info!(image = %reference, "pulled an image"),
            Err(error) => tracing::warn!(image = %reference, %error, "failed to pull an image"),
        }
        pulled
    }

    /// Receives an image as an archive.
    async fn receive(&self, reference: &Reference, auth: Option<&RegistryAuth>) -> Result<Incoming, PullError> {
        let mut repository = self.registries.repository(reference, auth);
        let incoming = self.images.incoming()?;
        let file = incoming.file.try_clone().map_err(failed)?;
        let mut archive = ArchiveWriter { file: File::from_std(file), bytes: 0, members: BTreeSet::new() };
        let invalid = |reason: String| RegistryError::Invalid { registry: reference.registry().to_owned(), reason };

        let (top, document, bytes) = repository.manifest(reference.version()).await?;
        archive.document(&top, &bytes).await?;
        let manifest = match document {
            Document::Manifest(manifest) => manifest,
            Document::Index(index) => {
                let entry = index.for_this_machine().ok_or_else(|| {
                    let own = super::images::platform_architecture();
                    RegistryError::Missing(format!("no matching manifest for linux/{own} in the manifest list entries"))
                })?;
                let (descriptor, document, bytes) = repository.manifest(&entry.digest).await?;
                archive.document(&descriptor, &bytes).await?;
                match document {
                    Document::Manifest(manifest) => manifest,
                    Document::Index(_) => return Err(invalid("it has an index within an index".to_owned()).into()),
                }
            }
        };
        manifest.check().map_err(invalid)?;
        let bytes = manifest.layers.iter().fold(0u64, |sum, layer| sum.saturating_add(layer.size));
        if bytes > ARCHIVE_BYTES_MAX {
            return Err(invalid(format!("the image of {bytes} bytes exceeds {ARCHIVE_BYTES_MAX} bytes")).into());
        }
        let config = repository.document(&manifest.config).await?;
        archive.document(&manifest.config, &config).await?;
        let config: Config = serde_json::from_slice(&config)
            .map_err(|error| invalid(format!("cannot read the configuration of the image: {error}")))?;
        let diff_ids = config.diff_ids();
        if diff_ids.len() != manifest.layers.len() {
            let (named, present) = (diff_ids.len(), manifest.layers.len());
            return Err(invalid(format!("the image names {named} layers, its manifest {present}")).into());
        }
        for (layer, diff_id) in manifest.layers.iter().zip(diff_ids) {
            if !self.images.has_layer(diff_id) {
                archive.blob(layer, &mut repository).await?;
            }
        }
        archive.finish(&top, reference).await?;
        Ok(incoming)
    }
}

/// Tells credentials apart without keeping them.
fn fingerprint(auth: Option<&RegistryAuth>) -> [u8; 32] {
    let json = auth.and_then(|auth| serde_json::to_vec(auth).ok()).map(zeroize::Zeroizing::new);
    Sha256::digest(json.as_deref().map_or(&[][..], Vec::as_slice)).into()
}

fn failed(error: io::Error) -> ImageError {
    ImageError::io("failed to store the archive", error)
}

/// Writes an image layout of one image. Source: OCI image specification 1.1, "Image Layout".
struct ArchiveWriter {
    file: File,
    bytes: u64,
    members: BTreeSet<String>,
}

impl ArchiveWriter {
    async fn document(&mut self, descriptor: &Descriptor, bytes: &Bytes) -> Result<(), PullError> {
        if self.begin(&path(descriptor), bytes.len() as u64).await? {
            self.write(bytes).await?;
            self.end().await?;
        }
        Ok(())
    }

    /// Writes a blob as it is received; one that is there already is not received again.
    async fn blob(&mut self, descriptor: &Descriptor, repository: &mut Repository<'_>) -> Result<(), PullError> {
        if !self.begin(&path(descriptor), descriptor.size).await? {
            return Ok(());
        }
        let mut pieces = repository.blob(descriptor).await?;
        while let Some(piece) = pieces.next().await {
            self.write(&piece?).await?;
        }
        self.end().await
    }

    async fn finish(mut self, top: &Descriptor, reference: &Reference) -> Result<(), PullError> {
        let mut entry = json!(top);
        // One that was asked for by digest gets no tag, as with Docker.
        if reference.digest.is_none() {
            entry["annotations"] = json!({"io.containerd.image.name": reference.to_string()});
        }
        let index: Value = json!({"schemaVersion": 2, "manifests": [entry]});
        let bytes = Bytes::from(index.to_string());
        self.begin("index.json", bytes.len() as u64).await?;
        self.write(&bytes).await?;
        self.end().await?;
        self.write(&[0; 2 * BLOCK_BYTES as usize]).await?;
        self.file.flush().await.map_err(|error| failed(error).into())
    }

    /// Begins a member; returns whether it is new.
    async fn begin(&mut self, path: &str, bytes: u64) -> Result<bool, PullError> {
        if !self.members.insert(path.to_owned()) {
            return Ok(false);
        }
        let mut header = tar::Header::new_gnu();
        header.set_path(path).map_err(failed)?;
        header.set_size(bytes);
        header.set_mode(0o600);
        header.set_cksum();
        self.write(header.as_bytes()).await?;
        Ok(true)
    }

    async fn end(&mut self) -> Result<(), PullError> {
        let missing = self.bytes.next_multiple_of(BLOCK_BYTES) - self.bytes;
        self.write(&vec![0; usize::try_from(missing).unwrap_or_default()]).await
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), PullError> {
        self.bytes += bytes.len() as u64;
        self.file.write_all(bytes).await.map_err(|error| failed(error).into())
    }
}

fn path(descriptor: &Descriptor) -> String {
    format!("blobs/sha256/{}", descriptor.digest.trim_start_matches("sha256:"))
}

#[cfg(test)]
mod tests;
