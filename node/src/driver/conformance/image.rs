//! The image of the suite: busybox alone, as an archive that is docker-save and OCI layout at once.

use std::path::Path;

use anyhow::Context;
use serde_json::json;
use sha2::{Digest, Sha256};

/// Where Debian's `busybox-static` puts its binary.
const BUSYBOX_PATHS: [&str; 2] = ["/bin/busybox", "/usr/bin/busybox"];

/// The commands that scripts of the suite use, and a few for whoever looks inside.
const APPLETS: [&str; 14] =
    ["sh", "echo", "env", "sleep", "cat", "id", "pwd", "hostname", "touch", "ls", "ps", "grep", "kill", "wget"];

/// An image and the archive it is loaded from.
#[derive(Debug, Clone)]
pub struct TestImage {
    /// Its reference.
    pub reference: String,
    /// The archive, not compressed.
    pub archive: Vec<u8>,
}

impl TestImage {
    /// Builds `shoal-test/busybox:latest` from this machine's static busybox.
    pub fn build() -> anyhow::Result<Self> {
        let path = BUSYBOX_PATHS.iter().map(Path::new).find(|path| path.exists());
        let path = path.context("no busybox on this machine: install Debian's busybox-static")?;
        let busybox = std::fs::read(path).with_context(|| format!("failed to read {}", path.display()))?;
        Self::from_layer("shoal-test/busybox:latest", &layer(&busybox)?)
    }

    /// Builds an image of one layer, a tar archive.
    pub fn from_layer(reference: &str, layer: &[u8]) -> anyhow::Result<Self> {
        let config = serde_json::to_vec(&json!({
            "created": "2026-01-01T00:00:00Z",
            "architecture": oci_architecture(),
            "os": "linux",
            "config": { "Env": ["PATH=/bin"], "Cmd": ["/bin/sh"], "WorkingDir": "/" },
            "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", sha256(layer))] },
            "history": [{ "created": "2026-01-01T00:00:00Z", "created_by": "conformance suite" }],
        }))?;
        let (layer_digest, config_digest) = (sha256(layer), sha256(&config));
        let manifest = serde_json::to_vec(&json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": format!("sha256:{config_digest}"),
                "size": config.len(),
            },
            "layers": [{
                "mediaType": "application/vnd.oci.image.layer.v1.tar",
                "digest": format!("sha256:{layer_digest}"),
                "size": layer.len(),
            }],
        }))?;
        let manifest_digest = sha256(&manifest);
        let index = serde_json::to_vec(&json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [{
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": format!("sha256:{manifest_digest}"),
                "size": manifest.len(),
                "annotations": {
                    "io.containerd.image.name": format!("docker.io/{reference}"),
                    "org.opencontainers.image.ref.name": reference.rsplit(':').next(),
                },
            }],
        }))?;
        let docker = serde_json::to_vec(&json!([{
            "Config": format!("blobs/sha256/{config_digest}"),
            "RepoTags": [reference],
            "Layers": [format!("blobs/sha256/{layer_digest}")],
        }]))?;

        let mut archive = tar::Builder::new(Vec::new());
        append_dir(&mut archive, "blobs/", 0o755)?;
        append_dir(&mut archive, "blobs/sha256/", 0o755)?;
        append_file(&mut archive, &format!("blobs/sha256/{layer_digest}"), layer, 0o644)?;
        append_file(&mut archive, &format!("blobs/sha256/{config_digest}"), &config, 0o644)?;
        append_file(&mut archive, &format!("blobs/sha256/{manifest_digest}"), &manifest, 0o644)?;
        append_file(&mut archive, "index.json", &index, 0o644)?;
        append_file(&mut archive, "manifest.json", &docker, 0o644)?;
        append_file(&mut archive, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#, 0o644)?;
        Ok(Self { reference: reference.to_owned(), archive: archive.into_inner()? })
    }
}

/// Returns the file system: busybox, its commands as links, and what a user database needs.
fn layer(busybox: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut layer = tar::Builder::new(Vec::new());
    for (dir, mode) in
        [("bin/", 0o755), ("dev/", 0o755), ("etc/", 0o755), ("proc/", 0o555), ("sys/", 0o555), ("tmp/", 0o1777)]
    {
        append_dir(&mut layer, dir, mode)?;
    }
    append_file(&mut layer, "bin/busybox", busybox, 0o755)?;
    for applet in APPLETS {
        let mut header = header(tar::EntryType::Symlink, 0, 0o777);
        layer.append_link(&mut header, format!("bin/{applet}"), "busybox")?;
    }
    append_file(
        &mut layer,
        "etc/passwd",
        b"root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n",
        0o644,
    )?;
    append_file(&mut layer, "etc/group", b"root:x:0:\nnogroup:x:65534:\n", 0o644)?;
    Ok(layer.into_inner()?)
}

fn header(kind: tar::EntryType, size: usize, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_size(size as u64);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

fn append_dir(archive: &mut tar::Builder<Vec<u8>>, path: &str, mode: u32) -> std::io::Result<()> {
    archive.append_data(&mut header(tar::EntryType::Directory, 0, mode), path, std::io::empty())
}

fn append_file(archive: &mut tar::Builder<Vec<u8>>, path: &str, bytes: &[u8], mode: u32) -> std::io::Result<()> {
    archive.append_data(&mut header(tar::EntryType::Regular, bytes.len(), mode), path, bytes)
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn oci_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
