//! What runs containers, behind one trait.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use shoal_control::task::health::HealthStatus;
use shoal_control::task::{ContainerPlan, Found, Running};
use shoal_protocol::registry_auth::RegistryAuth;
use shoal_protocol::spec::mount::MountKind;
use shoal_protocol::{TaskId, WallTime};
use tokio::io::AsyncRead;

pub mod choice;
pub mod conformance;
pub mod docker;
pub mod embedded;
pub mod fake;
pub mod files;
pub mod inventory;
pub mod measured;
pub mod registry;

/// What a pull of an image may take; a task whose image takes longer is rejected, and tried elsewhere.
pub const PULL_MAX: Duration = Duration::from_secs(30 * 60);

/// Why a driver could not do what it was asked. Every call may be retried.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// The image is not on this node.
    #[error("No such image: {image} on {node}")]
    NoSuchImage {
        /// The reference that was asked for.
        image: String,
        /// Host name of this node.
        node: String,
    },
    /// The image is not on this node, and no registry gave it.
    #[error("No such image: {image} on {node}: {reason}")]
    NotPulled {
        /// The reference that was asked for.
        image: String,
        /// Host name of this node.
        node: String,
        /// Why not.
        reason: String,
    },
    /// The node lacks something that another node may have (a free port, memory).
    #[error("{0}")]
    Refused(String),
    /// The task's own settings cannot work anywhere.
    #[error("{0}")]
    Invalid(String),
    /// There is no space left for what was to be stored.
    #[error("no space left on device: {} (make room there)", path.display())]
    Full {
        /// Below which there is none.
        path: PathBuf,
    },
    /// There is no such container.
    #[error("no container for task {0}")]
    NoSuchTask(TaskId),
    /// The engine or the kernel failed.
    #[error("{what}: {source}")]
    Failed {
        /// What was being done.
        what: String,
        /// What went wrong.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl DriverError {
    /// Returns this error, or that there is no space left below `path` if that is its cause.
    #[must_use]
    pub fn or_full(self, path: &Path) -> Self {
        match self {
            Self::Failed { source, .. } if is_full(&*source) => Self::Full { path: path.to_owned() },
            other => other,
        }
    }
}

fn is_full(error: &(dyn Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| (*error).source())
        .filter_map(|error| error.downcast_ref::<io::Error>())
        .any(|error| matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
}

/// Returns what is said of a bind mount whose source is not on this node, in Docker's words.
fn missing_source(plan: &ContainerPlan) -> Option<String> {
    let mut sources = plan.mounts.iter().filter(|mount| mount.kind == MountKind::Bind).map(|mount| &mount.source);
    let missing = sources.find(|source| std::fs::metadata(source).is_err())?;
    Some(missing_source_text(missing))
}

pub(crate) fn missing_source_text(source: &str) -> String {
    format!("invalid mount config for type \"bind\": bind source path does not exist: {source}")
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// Exit code; 128 + signal when killed by one.
    pub code: i32,
    /// For people; empty when the code says it all.
    pub error: String,
}

/// What the health check of a container finds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthReport {
    /// How it finds it.
    pub status: HealthStatus,
    /// What the last check wrote, at most [`shoal_control::task::health::OUTPUT_BYTES_MAX`] bytes.
    pub output: String,
}

/// What the node can give to tasks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capacity {
    /// Billionths of a core.
    pub nano_cpus: u64,
    /// Bytes of memory.
    pub memory_bytes: u64,
}

/// An image on this node. Source: Docker Engine API v1.50, `ImageSummary`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageInfo {
    /// `sha256:` and 64 hexadecimal digits of its configuration.
    pub id: String,
    /// References, such as `shoal/whoami:latest`.
    pub tags: Vec<String>,
    /// Bytes of its layers.
    pub size: u64,
    /// When it was made, as its configuration says.
    pub created: WallTime,
}

/// Which stream a piece of output came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// One line of a task's output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// Where it was written.
    pub stream: LogStream,
    /// When.
    pub time: WallTime,
    /// The line with its line feed, if it had one.
    pub bytes: Bytes,
}

/// Which lines of a task's output are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LogQuery {
    /// The last so many lines; `None` means all.
    pub tail: Option<usize>,
    /// Lines not older than this.
    pub since: Option<WallTime>,
    /// Whether to go on with what is written later, until the container has ended.
    pub follow: bool,
}

/// Runs containers. Implementations keep no state that a restart of the daemon would lose: what exists is found again by
/// [`Driver::list`]. Calls for one task never overlap, except that [`Driver::wait`] and [`Driver::health`] may run beside any of
/// them.
#[async_trait]
pub trait Driver: Send + Sync + 'static {
    /// Returns the name and version of the engine, such as `docker 20.10.24` or `embedded 0.1.0`.
    fn engine(&self) -> String;

    /// Returns whether ports that tasks publish on their node alone are opened by the engine; if not, the ingress does it.
    fn publishes_host_ports(&self) -> bool;

    /// Returns what this node can give to tasks.
    async fn capacity(&self) -> Result<Capacity, DriverError>;

    /// Returns whether an image is on this node, so that it need not be pulled.
    async fn has_image(&self, image: &str) -> Result<bool, DriverError>;

    /// Gets an image from its registry, for a user if there are credentials. What fails leaves nothing behind; how long it may
    /// take is the driver's affair.
    async fn pull(&self, image: &str, auth: Option<&RegistryAuth>) -> Result<(), DriverError>;

    /// Checks image and settings and creates the container, without starting it. Returns the container's identifier.
    /// Preparing a task that was prepared before returns the same container.
    async fn prepare(&self, plan: &ContainerPlan) -> Result<String, DriverError>;

    /// Starts a prepared container. Starting a running one returns what runs.
    async fn start(&self, task: TaskId) -> Result<Running, DriverError>;

    /// Waits until a started container has ended; returns at once if it has already.
    async fn wait(&self, task: TaskId) -> Result<Exit, DriverError>;

    /// Waits until the health check of a started container finds it otherwise than `known`, and returns how; nothing, at once,
    /// if it has no check. Checks run as long as the container does, also while no daemon does.
    async fn health(&self, task: TaskId, known: Option<HealthStatus>) -> Result<Option<HealthReport>, DriverError>;

    /// Sends the stop signal, and SIGKILL after the grace of the plan; returns when the container has ended.
    async fn stop(&self, task: TaskId) -> Result<(), DriverError>;

    /// Kills the container if it runs and removes everything of it. Removing what is not there succeeds.
    async fn remove(&self, task: TaskId) -> Result<(), DriverError>;

    /// Lists the containers of this node of this cluster.
    async fn list(&self) -> Result<Vec<Found>, DriverError>;

    /// Returns what a task has written so far, oldest first, as long as its container exists; and what it writes from then on
    /// if the query asks for it.
    async fn logs(
        &self,
        task: TaskId,
        query: LogQuery,
    ) -> Result<BoxStream<'static, Result<LogLine, DriverError>>, DriverError>;

    /// Stores the images of a docker-save or OCI archive, compressed or not, and returns their references.
    async fn load_image(&self, archive: &mut (dyn AsyncRead + Send + Unpin)) -> Result<Vec<String>, DriverError>;

    /// Lists the images of this node.
    async fn images(&self) -> Result<Vec<ImageInfo>, DriverError>;

    /// Removes an image by reference or identifier.
    async fn remove_image(&self, image: &str) -> Result<(), DriverError>;

    /// Removes every container of this node and what the driver set up on the machine: the node leaves its cluster. Images
    /// stay.
    async fn close(&self) -> Result<(), DriverError>;

    /// Returns what this driver tells of its containers, images and volumes; `None` where an engine answers for itself.
    fn inventory(self: Arc<Self>) -> Option<Arc<dyn inventory::Inventory>> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_from_other_failures() {
        let failed = |source: Box<dyn Error + Send + Sync>| DriverError::Failed { what: "store".to_owned(), source };
        let full = io::Error::from(io::ErrorKind::StorageFull);
        for (name, error, want) in [
            ("full", failed(full.into()), "no space left on device: /data (make room there)"),
            ("refused", failed(io::Error::from(io::ErrorKind::PermissionDenied).into()), "store: permission denied"),
            ("no failure of the system", failed("why".into()), "store: why"),
            ("not a failure", DriverError::Invalid("no".to_owned()), "no"),
        ] {
            assert_eq!(error.or_full(Path::new("/data")).to_string(), want, "{name}");
        }
    }
}
