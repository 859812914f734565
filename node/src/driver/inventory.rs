//! What a driver without an engine tells of its containers, images and volumes. An engine answers for itself.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use async_trait::async_trait;
use shoal_control::task::ContainerPlan;
use shoal_control::task::health::HealthStatus;
use shoal_protocol::WallTime;
use shoal_protocol::registry_auth::RegistryAuth;

use super::registry::{RegistryError, Resolved};
use super::{DriverError, ImageInfo};

/// Looks at what a node has. Nothing is changed.
#[async_trait]
pub trait Inventory: Send + Sync {
    /// Returns the containers, by task. With `sizes` their files are counted, which takes as long as there are many.
    async fn containers(&self, sizes: bool) -> Result<Vec<ContainerInfo>, DriverError>;

    /// Returns an image by reference, identifier or beginning of an identifier.
    async fn image(&self, image: &str) -> Result<ImageDetails, DriverError>;

    /// Returns all images.
    async fn image_details(&self) -> Result<Vec<ImageDetails>, DriverError>;

    /// Asks a registry where a reference leads, for a user if there are credentials, within a bounded time.
    async fn resolve(&self, image: &str, auth: Option<&RegistryAuth>) -> Result<Resolved, RegistryError>;

    /// Returns the named volumes, by name. With `sizes` their files are counted.
    async fn volumes(&self, sizes: bool) -> Result<Vec<VolumeInfo>, DriverError>;
}

/// A container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerInfo {
    /// 64 hexadecimal digits.
    pub id: String,
    /// What the agent asked for.
    pub plan: ContainerPlan,
    /// Identifier of its image.
    pub image_id: String,
    /// Program and arguments; never empty.
    pub args: Vec<String>,
    /// `NAME=VALUE` each.
    pub env: Vec<String>,
    /// Working directory.
    pub dir: String,
    /// Empty means root.
    pub user: String,
    /// Host name.
    pub hostname: String,
    /// Its address.
    pub address: Ipv4Addr,
    /// Its way out.
    pub gateway: Ipv4Addr,
    /// Bits of the network part of both.
    pub prefix: u8,
    /// Where its volumes are on the node, by their targets.
    pub volumes: BTreeMap<String, PathBuf>,
    /// When it was created.
    pub created: WallTime,
    /// Where it is in its life.
    pub state: ContainerState,
    /// What its health checks find, if it has any.
    pub health: Option<ContainerHealth>,
    /// Ports that its image says it listens on, such as `80/tcp`.
    pub exposed: Vec<String>,
    /// What its files take, if they were counted.
    pub sizes: Option<ContainerSizes>,
}

/// What the health checks of a container find.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerHealth {
    /// How they find it.
    pub status: HealthStatus,
    /// Checks that failed since the last one that did not.
    pub failures: u64,
    /// The last checks, newest last.
    pub checks: Vec<CheckInfo>,
}

/// One health check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckInfo {
    /// When it began.
    pub began: WallTime,
    /// When it ended.
    pub ended: WallTime,
    /// Exit code; -1 if it has none.
    pub code: i32,
    /// What it wrote.
    pub output: String,
}

/// What a container's files take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContainerSizes {
    /// Bytes that it has written.
    pub written_bytes: u64,
    /// Bytes of its image's layers.
    pub image_bytes: u64,
}

/// Where a container is in its life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContainerState {
    /// It was not started yet.
    Created,
    /// It runs.
    Running {
        /// Its first process, as the node sees it.
        pid: u32,
        /// Since when.
        started: WallTime,
    },
    /// It has ended.
    Exited {
        /// Exit code; 128 + signal when killed by one.
        code: i32,
        /// For people; empty when the code says it all.
        error: String,
        /// When it was started, if it was.
        started: Option<WallTime>,
        /// When it ended.
        ended: WallTime,
    },
}

/// An image with everything that is known of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageDetails {
    /// What a listing shows.
    pub info: ImageInfo,
    /// Its configuration, JSON as it was stored. Source: OCI image specification 1.1, "Image Configuration".
    pub config: String,
    /// Its layers, lowest first, by the digest of their content, with their bytes.
    pub layers: Vec<(String, u64)>,
}

/// A named volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeInfo {
    /// Its name.
    pub name: String,
    /// Labels of the mount that created it.
    pub labels: BTreeMap<String, String>,
    /// When that was.
    pub created: WallTime,
    /// What is mounted.
    pub path: PathBuf,
    /// Bytes of its files, if they were counted.
    pub bytes: Option<u64>,
}
