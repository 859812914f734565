//! What is mounted into a container beside its root file system. Source: Docker Engine API v1.50, `Mount`.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::null_as_default;
use super::validate::{SpecError, invalid};

/// Mounts of one container at most; a spec with more is refused.
pub const MOUNTS_MAX: usize = 256;

/// Bytes of a mount's path at most. Source: Linux, `PATH_MAX` without its NUL.
pub const PATH_BYTES_MAX: usize = 4095;

/// Characters of a volume's name at most: it names a directory.
pub const VOLUME_NAME_CHARS_MAX: usize = 255;

/// Labels of one volume at most.
pub const VOLUME_LABELS_MAX: usize = 128;

/// One mount of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Mount {
    /// What is mounted.
    #[serde(rename = "Type")]
    pub kind: MountKind,
    /// A path of the node, or a volume's name; empty means a volume of this container alone, and is a must for tmpfs.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub source: String,
    /// Where, as an absolute path in the container.
    pub target: String,
    /// Whether it can only be read, with all that is mounted below it.
    #[serde(skip_serializing_if = "is_false")]
    pub read_only: bool,
    /// Settings of a bind mount.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bind_options: Option<BindOptions>,
    /// Settings of a volume.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume_options: Option<VolumeOptions>,
    /// Settings of a tmpfs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tmpfs_options: Option<TmpfsOptions>,
}

/// What is mounted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MountKind {
    /// Nothing was said, which is refused.
    #[default]
    #[serde(rename = "")]
    Unset,
    /// A file or directory of the node.
    Bind,
    /// A directory that the node keeps.
    Volume,
    /// Memory.
    Tmpfs,
    /// Of Windows; not supported.
    Npipe,
    /// A volume of the cluster; not supported yet.
    Cluster,
    /// An image's files; not supported yet.
    Image,
}

impl MountKind {
    /// Returns its name in the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unset => "",
            Self::Bind => "bind",
            Self::Volume => "volume",
            Self::Tmpfs => "tmpfs",
            Self::Npipe => "npipe",
            Self::Cluster => "cluster",
            Self::Image => "image",
        }
    }
}

/// Settings of a bind mount.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct BindOptions {
    /// Whether later mounts on the node and in the container appear in the other.
    #[serde(skip_serializing_if = "Propagation::is_unset")]
    pub propagation: Propagation,
    /// Whether what is mounted below the source is left out.
    #[serde(skip_serializing_if = "is_false")]
    pub non_recursive: bool,
}

/// Which way mounts travel between node and container. Source: mount_namespaces(7).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Propagation {
    /// As `rprivate`.
    #[default]
    #[serde(rename = "")]
    Unset,
    /// None, for the mount itself.
    Private,
    /// None, for all mounts below it too.
    Rprivate,
    /// Into the container.
    Slave,
    /// Into the container, for all mounts below it too.
    Rslave,
    /// Both ways.
    Shared,
    /// Both ways, for all mounts below it too.
    Rshared,
}

impl Propagation {
    fn is_unset(&self) -> bool {
        *self == Self::Unset
    }
}

/// Settings of a volume.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct VolumeOptions {
    /// Whether an empty volume stays empty instead of getting what the image has at the target.
    #[serde(skip_serializing_if = "is_false")]
    pub no_copy: bool,
    /// Labels that a volume gets when it is created.
    #[serde(deserialize_with = "null_as_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Who keeps the volume.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub driver_config: Option<VolumeDriver>,
}

/// Who keeps a volume.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct VolumeDriver {
    /// Only `local`; empty means that too.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
}

/// Settings of a tmpfs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct TmpfsOptions {
    /// Bytes; 0 means half of the node's memory.
    #[serde(skip_serializing_if = "is_zero")]
    pub size_bytes: u64,
    /// Permission bits of its root, such as 0o1777; 0 means those of the image's directory, or else 0o1777.
    #[serde(skip_serializing_if = "is_zero")]
    pub mode: u32,
}

fn is_false(value: &bool) -> bool {
    !value
}

fn is_zero<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Mount {
    /// Returns the same mount with paths cleaned as Docker does; valid mounts stay valid.
    #[must_use]
    pub fn cleaned(&self) -> Self {
        let source = if self.kind == MountKind::Bind { clean_path(&self.source) } else { self.source.clone() };
        Self { source, target: clean_path(&self.target), ..self.clone() }
    }
}

/// Returns an absolute path without `.`, `..` and doubled slashes, by its text alone. Source: Go, `filepath.Clean`.
pub fn clean_path(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            other => parts.push(other),
        }
    }
    format!("/{}", parts.join("/"))
}

/// Checks the mounts of a container. Texts follow moby's `container/validate.go` and `volume/mounts` where they have them.
pub(super) fn validate(mounts: &[Mount]) -> Result<(), SpecError> {
    if mounts.len() > MOUNTS_MAX {
        return invalid(format!("ContainerSpec: {} mounts are more than the limit of {MOUNTS_MAX}", mounts.len()));
    }
    let mut targets = BTreeSet::new();
    for mount in mounts {
        validate_paths(mount)?;
        validate_options(mount)?;
        if !targets.insert(clean_path(&mount.target)) {
            return invalid(format!("ContainerSpec: duplicate mount point: {}", mount.target));
        }
    }
    Ok(())
}

fn validate_paths(mount: &Mount) -> Result<(), SpecError> {
    let Mount { kind, source, target, .. } = mount;
    for path in [source, target] {
        if path.len() > PATH_BYTES_MAX {
            return invalid(format!("a mount's path of {} bytes exceeds {PATH_BYTES_MAX}", path.len()));
        }
        if path.contains('\0') {
            return invalid("a mount's path has a NUL byte");
        }
    }
    let unsupported = |what: &str| Err(SpecError::Unsupported(what.to_owned()));
    match kind {
        MountKind::Unset => return invalid("invalid mount: its type must be provided"),
        MountKind::Npipe => return unsupported("mounts of type 'npipe' are"),
        MountKind::Cluster => return unsupported("mounts of type 'cluster' are"),
        MountKind::Image => return unsupported("mounts of type 'image' are"),
        MountKind::Bind if !source.starts_with('/') => {
            return invalid(format!("invalid bind mount source, must be an absolute path: {source}"));
        }
        MountKind::Volume if source.starts_with('/') => {
            return invalid(format!("invalid volume mount source, must not be an absolute path: {source}"));
        }
        MountKind::Volume if !source.is_empty() => validate_volume_name(source)?,
        MountKind::Tmpfs if !source.is_empty() => return invalid("invalid tmpfs source, source must be empty"),
        MountKind::Bind | MountKind::Volume | MountKind::Tmpfs => {}
    }
    if !target.starts_with('/') {
        return invalid(format!("invalid mount target, must be an absolute path: {target}"));
    }
    if clean_path(target) == "/" {
        return invalid(format!(
            "invalid mount config for type \"{}\": invalid specification: destination can't be '/'",
            kind.name()
        ));
    }
    Ok(())
}

/// Source: moby, `volume/names` and `volume/service`.
fn validate_volume_name(name: &str) -> Result<(), SpecError> {
    if name.len() < 2 {
        return invalid(format!(
            "create {name}: volume name is too short, names should be at least two alphanumeric characters"
        ));
    }
    if name.len() > VOLUME_NAME_CHARS_MAX {
        return invalid(format!("volume name must be {VOLUME_NAME_CHARS_MAX} characters or fewer"));
    }
    let starts_well = name.starts_with(|char: char| char.is_ascii_alphanumeric());
    if !starts_well || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte)) {
        return invalid(format!(
            "create {name}: \"{name}\" includes invalid characters for a local volume name, only \
             \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. If you intended to pass a host directory, use absolute path"
        ));
    }
    Ok(())
}

fn validate_options(mount: &Mount) -> Result<(), SpecError> {
    for (kind, given, name) in [
        (MountKind::Bind, mount.bind_options.is_some(), "BindOptions"),
        (MountKind::Volume, mount.volume_options.is_some(), "VolumeOptions"),
        (MountKind::Tmpfs, mount.tmpfs_options.is_some(), "TmpfsOptions"),
    ] {
        if given && mount.kind != kind {
            return invalid(format!(
                "invalid mount config for type \"{}\": field {name} must not be specified",
                mount.kind.name()
            ));
        }
    }
    if let Some(VolumeOptions { labels, driver_config, .. }) = &mount.volume_options {
        if labels.len() > VOLUME_LABELS_MAX {
            return invalid(format!(
                "{} labels of a volume are more than the limit of {VOLUME_LABELS_MAX}",
                labels.len()
            ));
        }
        if let Some(driver) = driver_config.as_ref().filter(|driver| !["", "local"].contains(&driver.name.as_str())) {
            return Err(SpecError::Unsupported(format!("the volume driver '{}' is", driver.name)));
        }
    }
    match &mount.tmpfs_options {
        Some(options) if options.mode > 0o7777 => invalid(format!("invalid tmpfs mode {:o}", options.mode)),
        Some(options) if i64::try_from(options.size_bytes).is_err() => {
            invalid(format!("invalid tmpfs size {}", options.size_bytes))
        }
        Some(_) | None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Vec<Mount>, SpecError> {
        let mounts: Vec<Mount> = serde_json::from_str(json).map_err(|error| SpecError::Invalid(error.to_string()))?;
        validate(&mounts).map(|()| mounts)
    }

    #[test]
    fn paths_are_cleaned_by_their_text() {
        for (path, want) in [
            ("/", "/"),
            ("/a/./b//c/", "/a/b/c"),
            ("/a/../b", "/b"),
            ("/../../etc", "/etc"),
            ("/a/b/../..", "/"),
            ("/..a/b..", "/..a/b.."),
        ] {
            assert_eq!(clean_path(path), want, "{path}");
        }
    }

    #[test]
    fn what_dockers_client_sends_is_read_and_written_alike() {
        let json = r#"[{"Type":"bind","Source":"/src","Target":"/a","ReadOnly":true,"BindOptions":{"Propagation":"rslave"}},{"Type":"volume","Source":"vv","Target":"/v","VolumeOptions":{"NoCopy":true,"Labels":{"a":"b"},"DriverConfig":{}}},{"Type":"tmpfs","Target":"/t","TmpfsOptions":{"SizeBytes":1048576,"Mode":1016}},{"Type":"volume","Target":"/anon"},{"Type":"volume","Source":"xx","Target":"/w","VolumeOptions":{"DriverConfig":{"Name":"local"}}}]"#;
        assert_eq!(serde_json::to_string(&read(json).unwrap()).unwrap(), json);
    }

    #[test]
    fn mounts_that_make_no_sense_are_refused() {
        for (json, want) in [
            (r#"[{"Target":"/a"}]"#, "invalid mount: its type must be provided"),
            (
                r#"[{"Type":"bind","Source":"a","Target":"/a"}]"#,
                "invalid bind mount source, must be an absolute path: a",
            ),
            (r#"[{"Type":"bind","Target":"/a"}]"#, "invalid bind mount source, must be an absolute path: "),
            (
                r#"[{"Type":"volume","Source":"/a","Target":"/a"}]"#,
                "invalid volume mount source, must not be an absolute path: /a",
            ),
            (r#"[{"Type":"tmpfs","Source":"a","Target":"/a"}]"#, "invalid tmpfs source, source must be empty"),
            (
                r#"[{"Type":"volume","Source":"x","Target":"/a"}]"#,
                "create x: volume name is too short, names should be at least two alphanumeric characters",
            ),
            (r#"[{"Type":"tmpfs","Target":"a"}]"#, "invalid mount target, must be an absolute path: a"),
            (
                r#"[{"Type":"tmpfs","Target":"/a/.."}]"#,
                "invalid mount config for type \"tmpfs\": invalid specification: destination can't be '/'",
            ),
            (
                r#"[{"Type":"tmpfs","Target":"/a"},{"Type":"tmpfs","Target":"/b/../a/"}]"#,
                "ContainerSpec: duplicate mount point: /b/../a/",
            ),
            (
                r#"[{"Type":"bind","Source":"/a","Target":"/a","TmpfsOptions":{}}]"#,
                "invalid mount config for type \"bind\": field TmpfsOptions must not be specified",
            ),
            (r#"[{"Type":"tmpfs","Target":"/a","TmpfsOptions":{"Mode":4096}}]"#, "invalid tmpfs mode 10000"),
            (
                r#"[{"Type":"tmpfs","Target":"/a","TmpfsOptions":{"SizeBytes":18446744073709551615}}]"#,
                "invalid tmpfs size 18446744073709551615",
            ),
            (r#"[{"Type":"tmpfs","Target":"/a\u0000"}]"#, "a mount's path has a NUL byte"),
        ] {
            assert_eq!(read(json), Err(SpecError::Invalid(want.to_owned())), "{json}");
        }
        for name in ["..", "../up", "a/b", "a b", "-a"] {
            let json = format!(r#"[{{"Type":"volume","Source":"{name}","Target":"/a"}}]"#);
            assert!(
                read(&json).unwrap_err().to_string().contains("invalid characters for a local volume name"),
                "{name}"
            );
        }
        let many = vec![Mount::default(); MOUNTS_MAX + 1];
        assert!(validate(&many).unwrap_err().to_string().contains("more than the limit"));
        let long = format!(r#"[{{"Type":"tmpfs","Target":"/{}"}}]"#, "a".repeat(PATH_BYTES_MAX));
        assert!(read(&long).unwrap_err().to_string().contains("exceeds 4095"));
    }
}
