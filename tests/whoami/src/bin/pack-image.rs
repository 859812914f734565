//! `pack-image BINARY OUTPUT`: packs a static program as a container image, in one archive that is both an OCI image
//! layout and what `docker save` writes (Debian's engine refuses an archive without `manifest.json`).
//!
//! Equal input gives an equal archive: no times, no owners, a fixed order. Sources: OCI image specification 1.1 (layout,
//! manifest, configuration) and Docker image specification 1.2.

use std::error::Error;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const REPOSITORY: &str = "shoal/whoami";
const TAG: &str = "latest";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [binary, output] = arguments.as_slice() else {
        eprintln!("usage: pack-image BINARY OUTPUT");
        return ExitCode::from(2);
    };
    match run(Path::new(binary), Path::new(output)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pack-image: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(binary: &Path, output: &Path) -> Result<(), Box<dyn Error>> {
    let program = fs::read(binary).map_err(|error| format!("failed to read {}: {error}", binary.display()))?;
    let architecture = architecture(&program)?;
    let archive = pack(&program, architecture)?;
    // Never leave half an archive under the final name.
    let partial = output.with_extension("partial");
    fs::File::create(&partial).and_then(|mut file| file.write_all(&archive))?;
    fs::rename(&partial, output)?;
    Ok(())
}

/// Returns Docker's name of the architecture that an ELF program is for, and refuses one that needs a loader: the image
/// holds nothing but the program.
fn architecture(program: &[u8]) -> Result<&'static str, String> {
    const HEADER_BYTES: usize = 64;
    const INTERPRETER: u32 = 3;
    if program.len() < HEADER_BYTES || !program.starts_with(b"\x7fELF\x02\x01") {
        return Err("not a 64-bit little-endian ELF program".to_owned());
    }
    let u16_at = |at: usize| program.get(at..at + 2).map(|b| u16::from_le_bytes([b[0], b[1]]));
    let u32_at = |at: usize| program.get(at..at + 4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    let table = u32_at(32).unwrap_or_default() as usize;
    let (size, count) = (u16_at(54).unwrap_or_default() as usize, u16_at(56).unwrap_or_default() as usize);
    if (0..count).any(|index| u32_at(table + index * size) == Some(INTERPRETER)) {
        return Err("the program is not static: it asks for a loader".to_owned());
    }
    match u16_at(18) {
        Some(62) => Ok("amd64"),
        Some(183) => Ok("arm64"),
        machine => Err(format!("unknown ELF machine {machine:?}")),
    }
}

fn pack(program: &[u8], architecture: &str) -> Result<Vec<u8>, Box<dyn Error>> {
    let mut layer = tar::Builder::new(Vec::new());
    append(&mut layer, "whoami", program, 0o755)?;
    let layer = layer.into_inner()?;
    let config = serde_json::to_vec(&config(architecture, &digest(&layer)))?;
    let manifest = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", &layer)],
    }))?;
    let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
    entry["annotations"] = json!({
        "io.containerd.image.name": format!("docker.io/{REPOSITORY}:{TAG}"),
        "org.opencontainers.image.ref.name": TAG,
    });
    entry["platform"] = json!({"architecture": architecture, "os": "linux"});
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [entry],
    });
    let docker_manifest = json!([{
        "Config": blob_path(&config),
        "RepoTags": [format!("{REPOSITORY}:{TAG}")],
        "Layers": [blob_path(&layer)],
    }]);

    let mut archive = tar::Builder::new(Vec::new());
    append(&mut archive, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#, 0o644)?;
    append(&mut archive, "index.json", &serde_json::to_vec(&index)?, 0o644)?;
    append(&mut archive, "manifest.json", &serde_json::to_vec(&docker_manifest)?, 0o644)?;
    for blob in [&config, &manifest, &layer] {
        append(&mut archive, &blob_path(blob), blob, 0o644)?;
    }
    Ok(archive.into_inner()?)
}

fn config(architecture: &str, diff_id: &str) -> Value {
    json!({
        "architecture": architecture,
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": {
            "Entrypoint": ["/whoami"],
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "ExposedPorts": {"80/tcp": {}},
            "StopSignal": "SIGTERM",
            "WorkingDir": "/",
        },
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "shoal pack-image"}],
    })
}

fn descriptor(media_type: &str, blob: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": digest(blob), "size": blob.len()})
}

fn digest(blob: &[u8]) -> String {
    format!("sha256:{}", hex(blob))
}

fn blob_path(blob: &[u8]) -> String {
    format!("blobs/sha256/{}", hex(blob))
}

fn hex(blob: &[u8]) -> String {
    Sha256::digest(blob).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn append(archive: &mut tar::Builder<Vec<u8>>, path: &str, bytes: &[u8], mode: u32) -> std::io::Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_size(bytes.len() as u64);
    header.set_mode(mode);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    archive.append_data(&mut header, path, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elf(machine: u16, segment: u32) -> Vec<u8> {
        let mut program = vec![0; 128];
        program[..6].copy_from_slice(b"\x7fELF\x02\x01");
        program[18..20].copy_from_slice(&machine.to_le_bytes());
        program[32..36].copy_from_slice(&64u32.to_le_bytes());
        program[54..56].copy_from_slice(&56u16.to_le_bytes());
        program[56..58].copy_from_slice(&1u16.to_le_bytes());
        program[64..68].copy_from_slice(&segment.to_le_bytes());
        program
    }

    #[test]
    fn only_static_programs_are_packed() {
        assert_eq!(architecture(&elf(62, 1)), Ok("amd64"));
        assert_eq!(architecture(&elf(183, 1)), Ok("arm64"));
        assert!(architecture(&elf(62, 3)).unwrap_err().contains("not static"));
        assert!(architecture(&elf(8, 1)).is_err());
        assert!(architecture(b"#!/bin/sh").is_err());
    }

    #[test]
    fn equal_input_gives_equal_archives_of_both_forms() {
        let archive = pack(b"program", "amd64").unwrap();
        assert_eq!(archive, pack(b"program", "amd64").unwrap());
        let mut reader = tar::Archive::new(archive.as_slice());
        let paths: Vec<String> =
            reader.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().display().to_string()).collect();
        assert_eq!(paths[..3], ["oci-layout", "index.json", "manifest.json"]);
        assert!(paths[3..].iter().all(|path| path.starts_with("blobs/sha256/")), "{paths:?}");
        assert_eq!(paths.len(), 6);
    }
}
