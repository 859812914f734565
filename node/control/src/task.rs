//! The life of the tasks of one node: from what the cluster wants and what the driver reports to driver calls and status.
//!
//! [`Agent`] keeps all tasks of a node; [`life`] is the machine of a single one, [`admission`] decides whether there is room
//! for it, [`plan`] resolves what a driver is told, and [`health`] makes of checks whether a container is well. Which
//! task runs where is decided elsewhere and arrives as [`Wanted`].

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use shoal_protocol::record::SlotName;
use shoal_protocol::spec::templates::TaskContext;
use shoal_protocol::spec::{Healthcheck, Limits, LogDriver, Mount, PortConfig, Settings};
use shoal_protocol::{Kind, NodeId, ObjectId, ServiceId, TaskId, WallTime};

pub use agent::{Agent, AgentAction, NodeIdentity, Wanted};
use health::HealthStatus;

pub mod admission;
mod agent;
pub mod health;
pub mod life;
pub mod plan;

/// Everything a driver needs to know to run one task: spec, identity and environment resolved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerPlan {
    /// The task.
    pub task: TaskId,
    /// Its service.
    pub service: ServiceId,
    /// The service's name.
    pub service_name: String,
    /// Its slot.
    pub slot: SlotName,
    /// The node that runs it.
    pub node: NodeId,
    /// `<service>.<slot>.<task>`, the container's name.
    pub name: String,
    /// Reference of the image.
    pub image: String,
    /// Replaces the image's entrypoint unless empty.
    pub command: Vec<String>,
    /// Replaces the image's command unless empty.
    pub args: Vec<String>,
    /// `NAME=VALUE` each, over the image's; holds the `SHOAL_*` variables.
    pub env: Vec<String>,
    /// Labels of the container, with those that identify cluster, node, service and task.
    pub labels: BTreeMap<String, String>,
    /// Working directory; empty means the image's.
    pub dir: String,
    /// User; empty means the image's.
    pub user: String,
    /// Host name inside; empty means the first 12 characters of the task's ID.
    pub hostname: String,
    /// Signal that asks it to end; empty means the image's, else `SIGTERM`.
    pub stop_signal: String,
    /// Between that signal and SIGKILL.
    pub stop_grace: Duration,
    /// Whether the root file system is read-only.
    pub read_only: bool,
    /// What is mounted, paths cleaned.
    #[serde(default)] // plans that an earlier version wrote have none
    pub mounts: Vec<Mount>,
    /// Secrets and configs that it finds as files. Whoever calls the driver fetches them and adds them to the mounts.
    #[serde(default)]
    pub files: Vec<PlannedFile>,
    /// Its health check; what it leaves open, and `None`, is as the image says.
    #[serde(default)]
    pub healthcheck: Option<Healthcheck>,
    /// Its further settings.
    #[serde(default)]
    pub settings: Settings,
    /// What becomes of its output; `None` means the driver's default.
    #[serde(default)]
    pub log_driver: Option<LogDriver>,
    /// What it may use.
    pub limits: Limits,
    /// Ports to publish on this node alone (`mode=host`).
    pub host_ports: Vec<PortConfig>,
    /// What the templates in secrets and configs may read.
    #[serde(default)]
    pub context: TaskContext,
}

/// A secret or config that a container finds as a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedFile {
    /// Secret or config.
    pub kind: Kind,
    /// Which.
    pub id: ObjectId,
    /// Its name, for messages.
    pub name: String,
    /// Where it is in the container, as its user wrote it.
    #[serde(default)]
    pub target: String,
    /// Where it is in the container, absolute and cleaned.
    pub path: String,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Its permission bits.
    pub mode: u32,
}

/// What the agent asks a driver to do. Calls for one task are made one after another, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DriverCall {
    /// Gets image and container ready.
    Prepare(Box<ContainerPlan>),
    /// Starts a prepared container.
    Start(TaskId),
    /// Lets a container get no new connections, asks it to end and kills it after the grace of its plan. Idempotent.
    Stop {
        /// Which.
        task: TaskId,
        /// The grace of its plan, or a guess at it: what the call's own deadline is derived from.
        grace: Duration,
        /// How long the connections that it has are waited for at most before it is asked.
        drain: Duration,
    },
    /// Removes a container with everything it left. Idempotent.
    Remove(TaskId),
}

/// A container that exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Running {
    /// The driver's identifier of it: 64 hexadecimal digits.
    pub container_id: String,
    /// Its first process as the node sees it.
    pub pid: u32,
    /// Its address, reachable from its node.
    pub address: Option<IpAddr>,
    /// When its process was started.
    pub started: WallTime,
    /// How its health check finds it; `None` if it has none.
    pub health: Option<HealthStatus>,
}

/// What a driver reports about a task. Every call is answered by exactly one report; [`DriverReport::Exited`] and
/// [`DriverReport::Health`] answer none and come when they come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DriverReport {
    /// Image and container are ready.
    Prepared {
        /// The driver's identifier of the container.
        container_id: String,
    },
    /// The call to prepare could not be made: something that the task needs cannot be had at present. It is to be made again.
    NotYet {
        /// For people.
        reason: String,
    },
    /// The call failed: the node cannot run this task (image missing, port taken); another may.
    Rejected {
        /// For people.
        error: String,
    },
    /// The call failed: when preparing or starting, for a reason that is the task's own or the engine's.
    Failed {
        /// For people.
        error: String,
    },
    /// It runs.
    Started(Running),
    /// It ended, by itself or because it was told to.
    Exited {
        /// Exit code; 128 + signal when killed.
        code: i32,
        /// For people; empty when the code says it all.
        error: String,
    },
    /// Its health check finds it otherwise than before.
    Health {
        /// How.
        status: HealthStatus,
        /// What the last check wrote, for people; may be empty.
        output: String,
    },
    /// A call to stop it is done: it does not run. Its end was reported before, if it could be seen.
    Stopped,
    /// Nothing of it is left.
    Removed,
}

/// A container of this node that a driver found when the daemon started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The task it was made for.
    pub task: TaskId,
    /// The service of the task.
    pub service: ServiceId,
    /// The slot of the task.
    pub slot: SlotName,
    /// Whether it runs, waits to be started, or ended.
    pub state: FoundState,
}

/// What became of a found container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FoundState {
    /// Made, never started.
    Created,
    /// Runs.
    Running(Running),
    /// Ended while nobody looked.
    Exited {
        /// Exit code.
        code: i32,
    },
}
