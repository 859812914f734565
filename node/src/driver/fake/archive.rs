//! Names and sizes of the images in a docker-save archive; nothing is unpacked.

use std::collections::BTreeMap;
use std::io::{self, Read};

use flate2::read::GzDecoder;
use serde::Deserialize;
use shoal_protocol::WallTime;

use crate::driver::ImageInfo;

/// Bytes of JSON in an archive at most; larger files are not read.
const JSON_BYTES_MAX: u64 = 4 * 1024 * 1024;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ManifestEntry {
    config: String,
    #[serde(default)]
    repo_tags: Vec<String>,
    layers: Vec<String>,
}

/// Lists the images of an archive, compressed or not.
pub(super) fn list_images(bytes: &[u8]) -> io::Result<Vec<ImageInfo>> {
    let reader: Box<dyn Read + '_> =
        if bytes.starts_with(&[0x1f, 0x8b]) { Box::new(GzDecoder::new(bytes)) } else { Box::new(bytes) };
    let mut sizes = BTreeMap::new();
    let mut manifest = None;
    for entry in tar::Archive::new(reader).entries()? {
        let entry = entry?;
        let path = entry.path()?.to_string_lossy().into_owned();
        sizes.insert(path.clone(), entry.size());
        if path == "manifest.json" {
            let mut text = String::new();
            entry.take(JSON_BYTES_MAX).read_to_string(&mut text)?;
            manifest = Some(text);
        }
    }
    let manifest = manifest.ok_or_else(|| io::Error::other("the archive has no manifest.json"))?;
    let entries: Vec<ManifestEntry> = serde_json::from_str(&manifest)?;
    let images = entries.into_iter().map(|entry| {
        let digest = entry.config.rsplit('/').next().unwrap_or_default().trim_end_matches(".json");
        ImageInfo {
            id: format!("sha256:{digest}"),
            tags: entry.repo_tags,
            size: entry.layers.iter().filter_map(|layer| sizes.get(layer)).sum(),
            created: WallTime(0),
        }
    });
    Ok(images.collect())
}
