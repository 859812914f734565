//! Images that come to this node: from users' archives, and from registries.

use std::io;
use std::sync::Arc;

use shoal_protocol::registry_auth::RegistryAuth;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};

use super::images::{ARCHIVE_BYTES_MAX, ImageError};
use super::pull::PullError;
use super::{EmbeddedDriver, failed};
use crate::driver::DriverError;

impl EmbeddedDriver {
    /// Stores the images of an archive.
    pub(super) async fn take_archive(
        &self,
        archive: &mut (dyn AsyncRead + Send + Unpin),
    ) -> Result<Vec<String>, DriverError> {
        let incoming = self.images.incoming().map_err(|error| self.image_error(error))?;
        let what = "failed to store the archive";
        let mut file = tokio::fs::File::from_std(incoming.file.try_clone().map_err(failed(what))?);
        let bytes = tokio::io::copy(&mut archive.take(ARCHIVE_BYTES_MAX + 1), &mut file).await.map_err(failed(what))?;
        if bytes > ARCHIVE_BYTES_MAX {
            return Err(DriverError::Invalid(format!("archive exceeds {ARCHIVE_BYTES_MAX} bytes")));
        }
        file.flush().await.map_err(failed(what))?;
        drop(file);
        let images = Arc::clone(&self.images);
        let loaded = tokio::task::spawn_blocking(move || {
            io::Seek::rewind(&mut &incoming.file)
                .map_err(|error| ImageError::io("failed to read the archive", error))?;
            images.load(incoming)
        });
        loaded.await.map_err(failed("failed to load the image"))?.map_err(|error| self.image_error(error))
    }

    /// Gets an image from its registry.
    pub(super) async fn pull_image(&self, image: &str, auth: Option<&RegistryAuth>) -> Result<(), DriverError> {
        self.puller.pull(image, auth).await.map_err(|error| match error {
            PullError::Registry(_) | PullError::TooLong => DriverError::NotPulled {
                image: image.to_owned(),
                node: self.config.hostname.clone(),
                reason: error.to_string(),
            },
            PullError::Store(error) => match &*error {
                ImageError::Invalid(text) => DriverError::Invalid(format!("{image}: {text}")),
                ImageError::Missing(_) | ImageError::InUse(_) | ImageError::Io { .. } => {
                    let what = format!("failed to store the image {image}");
                    DriverError::Failed { what, source: error.into() }.or_full(&self.config.data_dir)
                }
            },
        })
    }

    /// Tells the caller of the driver.
    pub(super) fn image_error(&self, error: ImageError) -> DriverError {
        error.into_driver_error(&self.config.hostname)
    }
}
