//! Manifests, indexes and refusals of registries. Sources: OCI image specification 1.1; Docker, "Image Manifest Version 2,
//! Schema 2"; OCI distribution specification 1.1, "Error Codes". Pure.

use serde::{Deserialize, Serialize};
use shoal_protocol::image::is_digest;

use crate::driver::embedded::images::platform_architecture;

/// What is asked for.
pub(super) const ACCEPTED: &str = "application/vnd.oci.image.index.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.v2+json";

/// Layers or images that a manifest may name; one with more is refused.
const ENTRIES_MAX: usize = 1000;
/// Characters that are told of a refusal.
const REFUSAL_CHARS_MAX: usize = 300;

/// Names a blob or a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What it is.
    #[serde(default)]
    pub media_type: String,
    /// `sha256:` and 64 hexadecimal digits.
    pub digest: String,
    /// Bytes.
    pub size: u64,
    /// For what an image is, in an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<PlatformName>,
}

/// An operating system and processor architecture.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlatformName {
    /// Such as `amd64`.
    #[serde(default)]
    pub architecture: String,
    /// Such as `linux`.
    #[serde(default)]
    pub os: String,
    /// Such as `v7`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// What a reference leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    /// Images for several platforms.
    Index(Index),
    /// One image.
    Manifest(Manifest),
}

/// Images for several platforms.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Index {
    /// Their manifests.
    pub manifests: Vec<Descriptor>,
}

/// One image.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Manifest {
    /// Its configuration.
    pub config: Descriptor,
    /// Its layers, lowest first.
    pub layers: Vec<Descriptor>,
}

impl Index {
    /// Returns the image for this machine.
    pub fn for_this_machine(&self) -> Option<&Descriptor> {
        let fits = |platform: &PlatformName| platform.os == "linux" && platform.architecture == platform_architecture();
        let named = self.manifests.iter().find(|entry| entry.platform.as_ref().is_some_and(fits));
        named.or_else(|| self.manifests.iter().find(|entry| entry.platform.is_none()))
    }
}

/// Reads what a registry has under a tag or digest, and returns its media type. The error says what is wrong with it.
pub(super) fn read(bytes: &[u8], media_type: &str) -> Result<(Document, String), String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Any {
        schema_version: Option<u64>,
        media_type: Option<String>,
        manifests: Option<Vec<Descriptor>>,
        config: Option<Descriptor>,
        layers: Option<Vec<Descriptor>>,
    }
    let any: Any = serde_json::from_slice(bytes).map_err(|error| format!("cannot read the manifest: {error}"))?;
    if any.schema_version != Some(2) {
        return Err("manifests of Docker's schema 1 are not supported: push the image with a newer Docker".to_owned());
    }
    let media_type = any.media_type.unwrap_or_else(|| media_type.split(';').next().unwrap_or_default().to_owned());
    let document = match (any.manifests, any.config, any.layers) {
        (Some(manifests), None, None) => Document::Index(Index { manifests }),
        (None, Some(config), Some(layers)) => Document::Manifest(Manifest { config, layers }),
        _ => return Err("it is neither an image nor an index of images".to_owned()),
    };
    let named: Vec<&Descriptor> = match &document {
        Document::Index(index) => index.manifests.iter().collect(),
        Document::Manifest(manifest) => manifest.layers.iter().chain([&manifest.config]).collect(),
    };
    if named.len() > ENTRIES_MAX {
        return Err(format!("the manifest names more than {ENTRIES_MAX} things"));
    }
    match named.iter().find(|entry| !is_digest(&entry.digest)) {
        Some(entry) => Err(format!("the manifest names something by '{}', which is no SHA-256", entry.digest)),
        None => Ok((document, media_type)),
    }
}

impl Manifest {
    /// Checks that it is an image that this node can unpack. The error says what is in the way.
    pub fn check(&self) -> Result<(), String> {
        let config = &self.config.media_type;
        if !config.is_empty() && !config.contains("image.config") && !config.contains("container.image") {
            return Err(format!("it is no image: its configuration is of the type {config}"));
        }
        let odd = |layer: &&Descriptor| {
            let name = &layer.media_type;
            let is_tar =
                name.is_empty() || name.ends_with("tar") || name.ends_with("tar.gzip") || name.ends_with("gzip");
            !is_tar || name.contains("foreign") || name.contains("nondistributable")
        };
        match self.layers.iter().find(odd) {
            Some(layer) => Err(format!("layers of the type {} are not supported", layer.media_type)),
            None => Ok(()),
        }
    }
}

/// Reads why a registry said no, as Docker words it; empty if it does not say.
pub(super) fn read_refusal(bytes: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Refusal {
        #[serde(default)]
        errors: Vec<Reason>,
        #[serde(default)]
        details: String,
    }
    #[derive(Deserialize)]
    struct Reason {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let Ok(refusal) = serde_json::from_slice::<Refusal>(bytes) else { return String::new() };
    let text = |reason: &Reason| format!("{}: {}", reason.code.to_lowercase().replace('_', " "), reason.message);
    let text = refusal.errors.first().map_or(refusal.details, text);
    text.chars().filter(|char| !char.is_control()).take(REFUSAL_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(digit: char, more: &str) -> String {
        format!(r#"{{"mediaType":"m","size":1,"digest":"sha256:{}"{more}}}"#, digit.to_string().repeat(64))
    }

    #[test]
    fn manifests_are_told_from_indexes_and_nonsense_is_refused() {
        let (one, two) = (descriptor('1', ""), descriptor('2', ""));
        let many = vec![one.as_str(); ENTRIES_MAX + 1].join(",");
        for (text, want) in [
            (format!(r#"{{"schemaVersion":2,"config":{one},"layers":[{two}]}}"#), Ok(false)),
            (format!(r#"{{"schemaVersion":2,"mediaType":"x","manifests":[{one}]}}"#), Ok(true)),
            (format!(r#"{{"schemaVersion":2,"manifests":[{one}],"config":{one},"layers":[]}}"#), Err("neither")),
            (format!(r#"{{"schemaVersion":2,"manifests":[{many}]}}"#), Err("more than 1000")),
            (r#"{"schemaVersion":1,"fsLayers":[]}"#.to_owned(), Err("schema 1")),
            (r#"{"schemaVersion":2}"#.to_owned(), Err("neither")),
            (r#"{"schemaVersion":2,"manifests":[{"digest":"sha256:../../x","size":1}]}"#.to_owned(), Err("no SHA-256")),
            (r#"{"schemaVersion":2,"manifests":[{"digest":"x","size":-1}]}"#.to_owned(), Err("cannot read")),
            ("[".to_owned(), Err("cannot read")),
        ] {
            match (read(text.as_bytes(), "type; charset=x"), want) {
                (Ok((document, _)), Ok(index)) => {
                    assert_eq!(matches!(document, Document::Index(_)), index, "{text}");
                }
                (Err(reason), Err(want)) => assert!(reason.contains(want), "{reason}"),
                (got, want) => panic!("{got:?} {want:?}"),
            }
        }
    }

    #[test]
    fn the_image_for_this_machine_is_chosen() {
        let platform =
            |os: &str, architecture: &str| format!(r#","platform":{{"os":"{os}","architecture":"{architecture}"}}"#);
        let own = descriptor('3', &platform("linux", platform_architecture()));
        let others = [descriptor('1', &platform("unknown", "unknown")), descriptor('2', &platform("linux", "s390x"))];
        let index = |entries: &[&str]| {
            let text = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, entries.join(","));
            let Ok((Document::Index(index), _)) = read(text.as_bytes(), "") else { panic!("{text}") };
            index.for_this_machine().map(|entry| entry.digest.clone())
        };
        assert_eq!(index(&[&others[0], &others[1], &own]), Some(format!("sha256:{}", "3".repeat(64))));
        assert_eq!(index(&[&others[0], &others[1]]), None);
        assert_eq!(index(&[&others[0], &descriptor('4', "")]), Some(format!("sha256:{}", "4".repeat(64))));
    }

    #[test]
    fn what_cannot_be_unpacked_is_refused_by_name() {
        let manifest = |config: &str, layer: &str| {
            let one = |media_type: &str| Descriptor {
                media_type: media_type.to_owned(),
                digest: String::new(),
                size: 1,
                platform: None,
            };
            Manifest { config: one(config), layers: vec![one(layer)] }.check()
        };
        let oci = "application/vnd.oci.image.config.v1+json";
        assert_eq!(manifest(oci, "application/vnd.oci.image.layer.v1.tar+gzip"), Ok(()));
        let docker = "application/vnd.docker.container.image.v1+json";
        assert_eq!(manifest(docker, "application/vnd.docker.image.rootfs.diff.tar.gzip"), Ok(()));
        assert!(manifest(oci, "application/vnd.oci.image.layer.v1.tar+zstd").unwrap_err().contains("zstd"));
        assert!(manifest(docker, "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip").is_err());
        assert!(manifest("application/vnd.cncf.helm.config.v1+json", "").unwrap_err().contains("no image"));
    }

    #[test]
    fn refusals_are_worded_as_docker_words_them() {
        for (text, want) in [
            (
                r#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required","detail":[]}]}"#,
                "unauthorized: authentication required",
            ),
            (r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"a\u001bb"}]}"#, "manifest unknown: ab"),
            (r#"{"details":"incorrect username or password"}"#, "incorrect username or password"),
            ("<html>", ""),
        ] {
            assert_eq!(read_refusal(text.as_bytes()), want);
        }
    }
}
