//! Finding images in an archive: what `docker save` writes, or an OCI image layout.
//!
//! Only the table of contents is held in memory; members are read where they lie in the file. Digests are checked by
//! whoever reads a member to its end. Sources: OCI image specification 1.1; Docker image specification 1.2.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use flate2::read::MultiGzDecoder;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::images::{ImageError, hex, platform_architecture};

/// Members of an archive; one with more is refused.
const MEMBERS_MAX: usize = 100_000;
/// Bytes of a manifest, an index or a configuration; a larger one is refused.
const DOCUMENT_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Links from one member to the next that are followed.
const LINKS_MAX: usize = 4;
/// Indexes within indexes that are followed.
const INDEX_DEPTH_MAX: usize = 3;
/// Images of an archive; one with more is refused.
const IMAGES_MAX: usize = 256;

const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// An archive on disk, not compressed as a whole.
pub struct Archive {
    file: File,
    members: BTreeMap<String, Member>,
}

enum Member {
    File { offset: u64, bytes: u64 },
    Link(String),
}

/// An image as an archive describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArchivedImage {
    /// References, such as `shoal/whoami:latest`; not yet in their normal form.
    pub references: Vec<String>,
    /// Digests of its manifest and of the indexes that name that, as far as the archive has any.
    pub digests: Vec<String>,
    /// Its configuration as it lies in the archive; its digest has been checked if the archive names one.
    pub config: Vec<u8>,
    /// Members that hold its layers, lowest first.
    pub layers: Vec<String>,
}

impl Archive {
    /// Reads the table of contents.
    pub fn open(file: File) -> Result<Self, ImageError> {
        let mut members = BTreeMap::new();
        let mut archive = tar::Archive::new(&file);
        for entry in archive.entries_with_seek().map_err(ImageError::archive)? {
            let entry = entry.map_err(ImageError::archive)?;
            if members.len() >= MEMBERS_MAX {
                return Err(ImageError::Invalid(format!("archive has more than {MEMBERS_MAX} members")));
            }
            let name = String::from_utf8_lossy(&entry.path_bytes()).trim_start_matches("./").to_owned();
            let kind = entry.header().entry_type();
            if kind.is_file() {
                members.insert(name, Member::File { offset: entry.raw_file_position(), bytes: entry.size() });
            } else if (kind.is_symlink() || kind.is_hard_link())
                && let Some(target) = entry.link_name_bytes()
            {
                // Older engines store a layer that several images share once, and link to it.
                let target = String::from_utf8_lossy(&target).into_owned();
                let target = if kind.is_symlink() { beside(&name, &target) } else { target };
                members.insert(name, Member::Link(target));
            }
        }
        Ok(Self { file, members })
    }

    /// Lists the images for this machine.
    pub fn images(&self) -> Result<Vec<ArchivedImage>, ImageError> {
        let images = if self.members.contains_key("manifest.json") {
            self.docker_images()?
        } else if self.members.contains_key("index.json") {
            let index: Index = self.document("index.json", None)?;
            let mut images = Vec::new();
            self.index_images(&index, &[], &[], INDEX_DEPTH_MAX, &mut images)?;
            images
        } else {
            return Err(ImageError::Invalid(
                "not an image: the archive has neither manifest.json nor index.json".to_owned(),
            ));
        };
        if images.is_empty() {
            return Err(ImageError::Invalid("the archive holds no image for this node's platform".to_owned()));
        }
        Ok(images)
    }

    /// Opens a layer, decompressed.
    pub fn layer(&self, name: &str) -> Result<Box<dyn Read + '_>, ImageError> {
        let mut magic = [0; 4];
        let count = self.member(name)?.read(&mut magic).map_err(ImageError::archive)?;
        let member = self.member(name)?;
        if magic[..count].starts_with(&GZIP_MAGIC) {
            Ok(Box::new(MultiGzDecoder::new(io::BufReader::with_capacity(256 * 1024, member))))
        } else if magic[..count] == ZSTD_MAGIC {
            Err(ImageError::Invalid(format!("layer {name} is compressed with zstd, which is not supported")))
        } else {
            Ok(Box::new(io::BufReader::with_capacity(256 * 1024, member)))
        }
    }

    fn docker_images(&self) -> Result<Vec<ArchivedImage>, ImageError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Entry {
            config: String,
            repo_tags: Option<Vec<String>>,
            layers: Vec<String>,
        }
        let entries: Vec<Entry> = self.document("manifest.json", None)?;
        if entries.len() > IMAGES_MAX {
            return Err(ImageError::Invalid(format!("archive has more than {IMAGES_MAX} images")));
        }
        let image = |entry: Entry| {
            // Engines name this member after its digest: `<digest>.json`, or as a blob.
            let stem = entry.config.rsplit('/').next().unwrap_or_default().trim_end_matches(".json").to_owned();
            let named = stem.len() == 64 && stem.bytes().all(|byte| byte.is_ascii_hexdigit());
            let config = self.bytes(&entry.config, named.then_some(stem.as_str()))?;
            let references = entry.repo_tags.unwrap_or_default();
            Ok(ArchivedImage { references, digests: Vec::new(), config, layers: entry.layers })
        };
        entries.into_iter().map(image).collect()
    }

    fn index_images(
        &self,
        index: &Index,
        inherited: &[String],
        above: &[String],
        depth: usize,
        images: &mut Vec<ArchivedImage>,
    ) -> Result<(), ImageError> {
        for entry in &index.manifests {
            if images.len() >= IMAGES_MAX {
                return Err(ImageError::Invalid(format!("archive has more than {IMAGES_MAX} images")));
            }
            let fits = entry
                .platform
                .as_ref()
                .is_none_or(|platform| platform.os == "linux" && platform.architecture == platform_architecture());
            let name = entry.blob()?;
            // An archive may list platforms that it does not carry.
            if !fits || !self.members.contains_key(&name) {
                continue;
            }
            let references = entry.references().map_or_else(|| inherited.to_vec(), |reference| vec![reference]);
            let digest = entry.hexadecimal()?;
            let digests = [above, std::slice::from_ref(&entry.digest)].concat();
            if entry.media_type.contains("index") || entry.media_type.contains("manifest.list") {
                if depth == 0 {
                    return Err(ImageError::Invalid("archive has indexes within indexes without end".to_owned()));
                }
                let inner: Index = self.document(&name, Some(digest))?;
                self.index_images(&inner, &references, &digests, depth - 1, images)?;
                continue;
            }
            let manifest: Manifest = self.document(&name, Some(digest))?;
            images.push(ArchivedImage {
                references,
                digests,
                config: self.bytes(&manifest.config.blob()?, Some(manifest.config.hexadecimal()?))?,
                layers: manifest.layers.iter().map(Descriptor::blob).collect::<Result<_, _>>()?,
            });
        }
        Ok(())
    }

    fn document<T: for<'a> Deserialize<'a>>(&self, name: &str, digest: Option<&str>) -> Result<T, ImageError> {
        serde_json::from_slice(&self.bytes(name, digest)?)
            .map_err(|error| ImageError::Invalid(format!("cannot read {name} of the archive: {error}")))
    }

    /// Reads a small member, and checks its digest if that is known.
    fn bytes(&self, name: &str, digest: Option<&str>) -> Result<Vec<u8>, ImageError> {
        let mut bytes = Vec::new();
        self.member(name)?.take(DOCUMENT_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(ImageError::archive)?;
        if bytes.len() as u64 > DOCUMENT_BYTES_MAX {
            return Err(ImageError::Invalid(format!("{name} of the archive exceeds {DOCUMENT_BYTES_MAX} bytes")));
        }
        match digest {
            Some(digest) if !digest.eq_ignore_ascii_case(&hex(&Sha256::digest(&bytes))) => {
                Err(ImageError::Invalid(format!("{name} of the archive does not match its digest")))
            }
            _ => Ok(bytes),
        }
    }

    fn member(&self, name: &str) -> Result<Section<'_>, ImageError> {
        let mut name = name.trim_start_matches("./");
        for _ in 0..=LINKS_MAX {
            match self.members.get(name) {
                Some(Member::File { offset, bytes }) => {
                    return Ok(Section { file: &self.file, at: *offset, end: offset.saturating_add(*bytes) });
                }
                Some(Member::Link(target)) => name = target,
                None => return Err(ImageError::Invalid(format!("the archive lacks {name}"))),
            }
        }
        Err(ImageError::Invalid("the archive has links in a circle".to_owned()))
    }
}

/// Resolves a relative link inside the archive by its names alone.
fn beside(name: &str, target: &str) -> String {
    let mut parts: Vec<&str> = name.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// A part of a file, read without moving the file's own position.
struct Section<'a> {
    file: &'a File,
    at: u64,
    end: u64,
}

impl Read for Section<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let room = usize::try_from(self.end - self.at).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.file.read_at(&mut buffer[..room], self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Manifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    platform: Option<PlatformName>,
}

#[derive(Deserialize)]
struct PlatformName {
    os: String,
    architecture: String,
}

impl Descriptor {
    fn hexadecimal(&self) -> Result<&str, ImageError> {
        self.digest
            .strip_prefix("sha256:")
            .filter(|digits| digits.len() == 64 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
            .ok_or_else(|| {
                ImageError::Invalid(format!("the archive has a digest that is not SHA-256: {}", self.digest))
            })
    }

    fn blob(&self) -> Result<String, ImageError> {
        Ok(format!("blobs/sha256/{}", self.hexadecimal()?))
    }

    /// Containerd's annotation holds the whole reference; the standard's may hold a tag alone, which names nothing.
    fn references(&self) -> Option<String> {
        let whole = self.annotations.get("io.containerd.image.name");
        let standard =
            self.annotations.get("org.opencontainers.image.ref.name").filter(|name| name.contains(['/', ':']));
        whole.or(standard).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_resolved_inside_the_archive() {
        for (name, target, want) in [
            ("aa/layer.tar", "../bb/layer.tar", "bb/layer.tar"),
            ("layer.tar", "../../../etc/passwd", "etc/passwd"),
            ("a/b/c", "./d", "a/b/d"),
        ] {
            assert_eq!(beside(name, target), want);
        }
    }
}
