//! Images of the engine.

use std::io;

use bollard::Docker;
use bollard::auth::DockerCredentials;
use bollard::errors::Error;
use bollard::query_parameters::{
    CreateImageOptionsBuilder, ImportImageOptionsBuilder, ListImagesOptions, RemoveImageOptions,
};
use bytes::{Bytes, BytesMut};
use futures::stream::{self, StreamExt, TryStreamExt};
use shoal_protocol::WallTime;
use shoal_protocol::image::Reference;
use shoal_protocol::registry_auth::RegistryAuth;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::mpsc;

use super::{create, failed, message, status};
use crate::driver::{DriverError, ImageInfo, PULL_MAX};

/// Bytes of an archive that are read at a time, and such pieces that wait for the engine.
const CHUNK_BYTES: usize = 64 * 1024;
const CHUNKS_MAX: usize = 4;

/// Returns whether the engine has an image.
pub(super) async fn is_there(docker: &Docker, image: &str) -> Result<bool, DriverError> {
    match docker.inspect_image(image).await {
        Ok(_) => Ok(true),
        Err(error) if status(&error) == Some(404) => Ok(false),
        Err(error) => Err(failed("look for the image", error)),
    }
}

/// Has the engine pull an image.
pub(super) async fn pull(
    docker: &Docker,
    image: &str,
    auth: Option<&RegistryAuth>,
    hostname: &str,
) -> Result<(), DriverError> {
    let missing = |reason| DriverError::NotPulled { image: image.to_owned(), node: hostname.to_owned(), reason };
    let (name, tag) = create::name_and_tag(image);
    let options = CreateImageOptionsBuilder::new().from_image(name).tag(tag).build();
    let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let registry = Reference::parse(image).map(|reference| reference.registry().to_owned()).unwrap_or_default();
    let credentials = auth.filter(|auth| auth.is_for(&registry)).map(|auth| DockerCredentials {
        username: given(&auth.username),
        password: given(&auth.password),
        serveraddress: given(&auth.serveraddress),
        identitytoken: given(&auth.identitytoken),
        registrytoken: given(&auth.registrytoken),
        ..DockerCredentials::default()
    });
    let pull = docker.create_image(Some(options), None, credentials).try_for_each(|_| async { Ok(()) });
    match tokio::time::timeout(PULL_MAX, pull).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(Error::DockerStreamError { error })) => Err(missing(error)),
        Ok(Err(error)) => Err(missing(message(error))),
        Err(_) => Err(missing(format!("the engine did not pull it within {} minutes", PULL_MAX.as_secs() / 60))),
    }
}

/// Hands an archive to the engine and returns the references that it found in it.
pub(super) async fn load(
    docker: &Docker,
    archive: &mut (dyn AsyncRead + Send + Unpin),
) -> Result<Vec<String>, DriverError> {
    let (sender, receiver) = mpsc::channel(CHUNKS_MAX);
    let ((), loaded) = tokio::join!(pump(archive, sender), send(docker, receiver));
    loaded
}

/// Reads the archive to its end, or until nobody takes it any more.
async fn pump(archive: &mut (dyn AsyncRead + Send + Unpin), chunks: mpsc::Sender<io::Result<Bytes>>) {
    loop {
        let mut chunk = BytesMut::with_capacity(CHUNK_BYTES);
        let chunk = match archive.read_buf(&mut chunk).await {
            Ok(0) => return,
            Ok(_) => Ok(chunk.freeze()),
            Err(error) => Err(error),
        };
        let is_last = chunk.is_err();
        if chunks.send(chunk).await.is_err() || is_last {
            return;
        }
    }
}

async fn send(docker: &Docker, chunks: mpsc::Receiver<io::Result<Bytes>>) -> Result<Vec<String>, DriverError> {
    let body = stream::unfold(chunks, |mut chunks| async move { chunks.recv().await.map(|chunk| (chunk, chunks)) });
    let options = ImportImageOptionsBuilder::new().quiet(true).build();
    let mut answers = Box::pin(docker.import_image_stream(options, body, None));
    let mut references = Vec::new();
    while let Some(answer) = answers.next().await {
        match answer {
            Ok(info) => references.extend(info.stream.as_deref().and_then(loaded_reference).map(str::to_owned)),
            Err(Error::DockerStreamError { error }) => return Err(DriverError::Invalid(error)),
            Err(error) => match status(&error) {
                Some(_) => return Err(DriverError::Invalid(message(error))),
                None => return Err(failed("load image", error)),
            },
        }
    }
    if references.is_empty() {
        return Err(DriverError::Invalid("the archive holds no image".to_owned()));
    }
    Ok(references)
}

/// Reads `Loaded image: REF` or, of an image without a name, `Loaded image ID: sha256:…`.
fn loaded_reference(text: &str) -> Option<&str> {
    let text = text.trim();
    text.strip_prefix("Loaded image: ").or_else(|| text.strip_prefix("Loaded image ID: "))
}

/// Lists images.
pub(super) async fn list(docker: &Docker) -> Result<Vec<ImageInfo>, DriverError> {
    let images = docker.list_images(None::<ListImagesOptions>).await.map_err(|error| failed("list images", error))?;
    let images = images.into_iter().map(|image| ImageInfo {
        id: image.id,
        tags: image.repo_tags.into_iter().filter(|tag| tag != "<none>:<none>").collect(),
        size: u64::try_from(image.size).unwrap_or_default(),
        created: WallTime(u64::try_from(image.created).unwrap_or_default().saturating_mul(1_000_000_000)),
    });
    Ok(images.collect())
}

/// Removes an image.
pub(super) async fn remove(docker: &Docker, image: &str, hostname: &str) -> Result<(), DriverError> {
    match docker.remove_image(image, None::<RemoveImageOptions>, None).await {
        Ok(_) => Ok(()),
        Err(error) => Err(match status(&error) {
            Some(404) => DriverError::NoSuchImage { image: image.to_owned(), node: hostname.to_owned() },
            Some(409) => DriverError::Refused(message(error)), // a container uses it
            Some(_) | None => failed("remove image", error),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_read_from_the_answer() {
        for (text, want) in [
            ("Loaded image: shoal/whoami:latest\n", Some("shoal/whoami:latest")),
            ("Loaded image ID: sha256:ab\n", Some("sha256:ab")),
            ("Loading layer", None),
        ] {
            assert_eq!(loaded_reference(text), want);
        }
    }
}
