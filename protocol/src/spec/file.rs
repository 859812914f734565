//! Secrets and configs of a container: which of them it finds as which files.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::mount::clean_path;
use super::validate::invalid;
use super::{ContainerSpec, SpecError};
use crate::object::Kind;

/// Files of one kind in one container at most.
pub const FILES_MAX: usize = 128;

/// Bytes of a file's path at most. Source: Linux, `PATH_MAX`.
const PATH_BYTES_MAX: usize = 4095;

/// Who may do what with a file of which nobody says it. Source: docker/cli, `opts.SecretOpt`.
pub const MODE_DEFAULT: u32 = 0o444;

/// A secret of a container. Source: Docker Engine API v1.50, `SecretReference`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct SecretReference {
    /// As which file.
    pub file: Option<FileTarget>,
    /// Which secret.
    #[serde(rename = "SecretID")]
    pub secret_id: String,
    /// Its name, for people.
    pub secret_name: String,
}

/// A config of a container. Source: Docker Engine API v1.50, `ConfigReference`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ConfigReference {
    /// As which file.
    pub file: Option<FileTarget>,
    /// Which config.
    #[serde(rename = "ConfigID")]
    pub config_id: String,
    /// Its name, for people.
    pub config_name: String,
}

/// A file in a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct FileTarget {
    /// Its path; one that is not absolute is below `/run/secrets` for a secret, below `/` for a config.
    pub name: String,
    /// Number of its owner; empty means 0.
    #[serde(rename = "UID")]
    pub uid: String,
    /// Number of its group; empty means 0.
    #[serde(rename = "GID")]
    pub gid: String,
    /// Permission bits; `None` means [`MODE_DEFAULT`].
    pub mode: Option<u32>,
}

/// What a secret's and a config's reference have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileReference<'a> {
    /// Secret or config.
    pub kind: Kind,
    /// Its identifier.
    pub id: &'a str,
    /// Its name.
    pub name: &'a str,
    /// As which file.
    pub file: Option<&'a FileTarget>,
}

impl ContainerSpec {
    /// Returns the secrets and configs of the container.
    pub fn files(&self) -> impl Iterator<Item = FileReference<'_>> {
        let secrets = self.secrets.iter().map(|secret| FileReference {
            kind: Kind::Secret,
            id: &secret.secret_id,
            name: &secret.secret_name,
            file: secret.file.as_ref(),
        });
        let configs = self.configs.iter().map(|config| FileReference {
            kind: Kind::Config,
            id: &config.config_id,
            name: &config.config_name,
            file: config.file.as_ref(),
        });
        secrets.chain(configs)
    }
}

impl FileReference<'_> {
    /// Returns where the file is in the container; `None` without a file. Source: moby, `container/container_unix.go`.
    pub fn path(&self) -> Option<String> {
        let name = &self.file?.name;
        Some(match self.kind {
            Kind::Secret if !name.starts_with('/') => clean_path(&format!("/run/secrets/{name}")),
            Kind::Secret | Kind::Config | Kind::Network => clean_path(name),
        })
    }
}

impl FileTarget {
    /// Returns owner, group and permission bits.
    pub fn owner_and_mode(&self) -> Result<(u32, u32, u32), SpecError> {
        let number = |what: &str, text: &str| match text {
            "" => Ok(0),
            text => text.parse::<u32>().map_err(|_| {
                SpecError::Invalid(format!("invalid {what} '{text}' of the file {}: expected a number", self.name))
            }),
        };
        let mode = self.mode.unwrap_or(MODE_DEFAULT);
        if mode > 0o777 {
            return invalid(format!("invalid mode {mode:o} of the file {}: expected 0 to 777", self.name));
        }
        Ok((number("UID", &self.uid)?, number("GID", &self.gid)?, mode))
    }
}

/// Checks the files of a container. Texts follow SwarmKit's `validateSecretRefsSpec` where it has them.
pub(super) fn validate(container: &ContainerSpec) -> Result<(), SpecError> {
    let mounts = container.mounts.iter().map(|mount| clean_path(&mount.target));
    let mut paths: BTreeSet<String> = mounts.collect();
    let mut targets: BTreeMap<(Kind, &str), &str> = BTreeMap::new();
    for reference in container.files() {
        let FileReference { kind, id, name, file } = reference;
        let kind_name = kind.name();
        if id.is_empty() || name.is_empty() {
            return invalid(format!("malformed {kind_name} reference"));
        }
        let (Some(file), Some(path)) = (file, reference.path()) else {
            return invalid(format!("malformed {kind_name} reference, no target provided"));
        };
        let is_path = !file.name.is_empty() && file.name.len() <= PATH_BYTES_MAX && !file.name.contains('\0');
        if !is_path || path == "/" || file.name.ends_with('/') {
            return invalid(format!("malformed file {kind_name} reference, invalid target file name provided"));
        }
        if let Some(other) = targets.insert((kind, &file.name), name) {
            return invalid(format!(
                "{kind_name} references '{other}' and '{name}' have a conflicting target: '{}'",
                file.name
            ));
        }
        if !paths.insert(path) {
            return invalid(format!("ContainerSpec: duplicate mount point: {}", file.name));
        }
        file.owner_and_mode()?;
    }
    for (what, count) in [("secrets", container.secrets.len()), ("configs", container.configs.len())] {
        if count > FILES_MAX {
            return invalid(format!("ContainerSpec: {count} {what} are more than the limit of {FILES_MAX}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::ServiceSpec;

    fn parse(container: &str) -> Result<ServiceSpec, String> {
        let json = format!(r#"{{"Name":"web","TaskTemplate":{{"ContainerSpec":{{"Image":"x",{container}}}}}}}"#);
        ServiceSpec::parse(&json).map_err(|error| error.to_string())
    }

    #[test]
    fn what_dockers_client_sends_is_read() {
        let spec = parse(
            r#""Secrets":[{"File":{"Name":"sec1","UID":"0","GID":"0","Mode":292},"SecretID":"a","SecretName":"sec1"},
            {"File":{"Name":"/etc/key","UID":"33","GID":"","Mode":256},"SecretID":"b","SecretName":"sec2"}],
            "Configs":[{"File":{"Name":"/con1","UID":"0","GID":"0","Mode":292},"ConfigID":"c","ConfigName":"con1"},
            {"File":{"Name":"etc/../x"},"ConfigID":"c","ConfigName":"con1"}]"#,
        )
        .unwrap();
        let files: Vec<_> = spec.task_template.container_spec.files().collect();
        let paths: Vec<_> = files.iter().map(|file| file.path().unwrap()).collect();
        assert_eq!(paths, ["/run/secrets/sec1", "/etc/key", "/con1", "/x"]);
        let modes: Vec<_> = files.iter().map(|file| file.file.unwrap().owner_and_mode().unwrap()).collect();
        assert_eq!(modes, [(0, 0, 0o444), (33, 0, 0o400), (0, 0, 0o444), (0, 0, 0o444)]);
    }

    #[test]
    fn references_that_cannot_work_are_refused() {
        let file = |name: &str| format!(r#""File":{{"Name":"{name}"}},"SecretID":"a""#);
        let secrets = |list: &str| format!(r#""Secrets":[{list}]"#);
        let secret = |name: &str, target: &str| format!(r#"{{{},"SecretName":"{name}"}}"#, file(target));
        for (container, want) in [
            (secrets(r#"{"SecretName":"s"}"#), "malformed secret reference"),
            (secrets(r#"{"SecretID":"a"}"#), "malformed secret reference"),
            (secrets(r#"{"SecretID":"a","SecretName":"s"}"#), "malformed secret reference, no target provided"),
            (secrets(&secret("s", "")), "malformed file secret reference, invalid target file name provided"),
            (secrets(&secret("s", "/../")), "malformed file secret reference, invalid target file name provided"),
            (
                secrets(&[secret("s", "a"), secret("t", "a")].join(",")),
                "secret references 's' and 't' have a conflicting target: 'a'",
            ),
            (
                secrets(&[secret("s", "a"), secret("t", "/run/secrets/a")].join(",")),
                "ContainerSpec: duplicate mount point: /run/secrets/a",
            ),
            (
                r#""Secrets":[{"File":{"Name":"s","UID":"web"},"SecretID":"a","SecretName":"s"}]"#.to_owned(),
                "invalid UID 'web' of the file s: expected a number",
            ),
            (
                r#""Secrets":[{"File":{"Name":"s","Mode":2048},"SecretID":"a","SecretName":"s"}]"#.to_owned(),
                "invalid mode 4000 of the file s: expected 0 to 777",
            ),
            (
                r#""Configs":[{"Runtime":{"x":1},"ConfigID":"a","ConfigName":"c"}]"#.to_owned(),
                "configs that are no files are not supported yet",
            ),
            (
                format!(r#""Mounts":[{{"Type":"tmpfs","Target":"/run/secrets/s"}}],{}"#, secrets(&secret("s", "s"))),
                "ContainerSpec: duplicate mount point: s",
            ),
        ] {
            assert_eq!(parse(&container).unwrap_err(), want, "{container}");
        }
        let many: Vec<String> = (0..=FILES_MAX).map(|number| secret("s", &number.to_string())).collect();
        assert!(parse(&secrets(&many.join(","))).unwrap_err().contains("more than the limit of 128"));
    }
}
