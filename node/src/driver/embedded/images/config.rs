//! What an image says of itself.

use serde::Deserialize;

/// What a container takes from its image. Source: OCI image specification 1.1, "Image Configuration".
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Config {
    /// Such as `amd64`.
    #[serde(default)]
    pub architecture: String,
    /// Such as `linux`.
    #[serde(default)]
    pub os: String,
    /// Defaults of containers.
    #[serde(default)]
    pub config: Option<Defaults>,
    /// When it was made, by RFC 3339.
    pub created: Option<String>,
    rootfs: RootFs,
}

impl Config {
    /// Returns the digests of the layers' content, lowest first, as the image names them.
    pub fn diff_ids(&self) -> &[String] {
        &self.rootfs.diff_ids
    }
}

/// Defaults of containers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Defaults {
    /// `user`, `uid`, `user:group` or `uid:gid`.
    pub user: Option<String>,
    /// `NAME=VALUE` each.
    pub env: Option<Vec<String>>,
    /// What is executed.
    pub entrypoint: Option<Vec<String>>,
    /// Its arguments, or what is executed if there is no entrypoint.
    pub cmd: Option<Vec<String>>,
    /// Working directory.
    pub working_dir: Option<String>,
    /// What it listens on, such as `80/tcp`, as an object with these names. It is only shown.
    pub exposed_ports: Option<serde_json::Value>,
    /// Signal that asks it to end.
    pub stop_signal: Option<String>,
    /// Its health check, not read yet: what makes no sense concerns only who wants to run it.
    pub healthcheck: Option<serde_json::Value>,
    /// What runs lines for the shell.
    pub shell: Option<Vec<String>>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Vec<String>,
}
