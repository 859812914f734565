//! What is on disk of one container, shared by the driver and the container's supervisor.
//!
//! `containers/<task id>/` holds `bundle.json` (what to run; written by the driver, never changed), `state.json` (what
//! runs; written by the supervisor before the container's program starts), `health.json` (what its checks find, if it has any;
//! written by the supervisor when that changes), `exit.json` (how it ended; written by the
//! supervisor, or by the driver if the supervisor died), the logs and the file systems. Each file is replaced as a whole,
//! so a reader sees the old content or the new one. A directory with another name is half made or half removed.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use shoal_control::task::health::{HealthStatus, Policy};
use shoal_control::task::{ContainerPlan, Running};
use shoal_protocol::{ClusterId, TaskId, WallTime};

use super::process;
use super::settings::LogLimits;
use super::volumes::VolumeDir;

/// What a container runs: the plan with everything resolved that the image decides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bundle {
    /// What the agent asked for.
    pub plan: ContainerPlan,
    /// The cluster of the node.
    pub cluster: ClusterId,
    /// 64 hexadecimal digits.
    pub container_id: String,
    /// Identifier of the image.
    pub image_id: String,
    /// Directories of the image's layers, lowest first.
    pub layers: Vec<PathBuf>,
    /// Directories of the volumes among the plan's mounts, by their targets.
    #[serde(default)] // bundles that an earlier version wrote have none
    pub volumes: BTreeMap<String, VolumeDir>,
    /// Program and arguments; never empty.
    pub args: Vec<String>,
    /// `NAME=VALUE` each, names unique.
    pub env: Vec<String>,
    /// Working directory, absolute.
    pub dir: String,
    /// As the plan or the image has it; empty means root.
    pub user: String,
    /// Host name.
    pub hostname: String,
    /// Ports that its image says it listens on, such as `80/tcp`.
    #[serde(default)]
    pub exposed: Vec<String>,
    /// Its health check, if it has one.
    #[serde(default)]
    pub health: Option<Policy>,
    /// The program on the node that stands before its own, if one does.
    #[serde(default)]
    pub init: Option<PathBuf>,
    /// Which of its output is kept.
    #[serde(default)]
    pub log: LogLimits,
    /// Number of the signal that asks it to end.
    pub stop_signal: i32,
    /// Its address.
    pub address: Ipv4Addr,
    /// The address of the node's bridge, its way out.
    pub gateway: Ipv4Addr,
    /// Bits of the network part of both.
    pub prefix: u8,
    /// Its control group below the root of every hierarchy, such as `shoal/<node id>/<task id>`.
    pub cgroup: String,
}

/// What runs. Processes are named by identifier, start time and boot, so that a reused identifier is not taken for them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// The supervisor.
    pub supervisor: process::Identity,
    /// The first process of the container.
    pub container: process::Identity,
    /// When that was started.
    pub started: WallTime,
}

/// What [`ExitRecord::error`] says of a container whose processes were killed for want of memory.
pub const OUT_OF_MEMORY: &str = "out of memory";

/// What the health checks of a container find.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthRecord {
    /// How they find it.
    pub status: HealthStatus,
    /// What the check wrote that made it so.
    pub output: String,
    /// Checks that failed since the last one that did not.
    #[serde(default)]
    pub failures: u64,
    /// The last checks, newest last, [`CHECKS_KEPT`] at most.
    #[serde(default)]
    pub log: Vec<CheckRecord>,
}

/// Checks that a record keeps. Source: Docker Engine.
pub const CHECKS_KEPT: usize = 5;

/// One health check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckRecord {
    /// When it began.
    pub began: WallTime,
    /// When it ended.
    pub ended: WallTime,
    /// Exit code; -1 if it has none.
    pub code: i32,
    /// What it wrote.
    pub output: String,
}

impl HealthRecord {
    /// Returns what is found before the first check has ended.
    pub fn starting() -> Self {
        Self { status: HealthStatus::Starting, output: String::new(), failures: 0, log: Vec::new() }
    }
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// Exit code; 128 + signal when killed by one.
    pub code: i32,
    /// For people; empty when the code says it all.
    pub error: String,
    /// When it ended.
    pub ended: WallTime,
}

/// What a supervisor tells the driver that started it, one JSON object a line on its standard output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Progress {
    /// Its network namespace exists and may be given an interface; it goes on after [`CONNECTED`] arrived.
    Waiting,
    /// The program runs, and `state.json` says so.
    Started,
    /// Nothing runs, and the supervisor has gone.
    Failed {
        /// Whether the task's own settings are the reason.
        invalid: bool,
        /// For people.
        error: String,
    },
}

/// The line that tells a waiting supervisor that its interface exists.
pub const CONNECTED: &str = "connected";

/// The files of one container.
#[derive(Debug, Clone)]
pub struct BundleDir(pub PathBuf);

impl BundleDir {
    /// Returns the path of a file of this container.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Reads what to run.
    pub fn bundle(&self) -> io::Result<Bundle> {
        read_json(&self.path("bundle.json"))?
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("{} has no bundle.json", self.0.display())))
    }

    /// Reads what runs, if it was ever started.
    pub fn state(&self) -> io::Result<Option<State>> {
        read_json(&self.path("state.json"))
    }

    /// Reads what its checks find; until the first has ended, it is starting.
    pub fn health(&self) -> io::Result<HealthRecord> {
        Ok(read_json(&self.path("health.json"))?.unwrap_or_else(HealthRecord::starting))
    }

    /// Reads how it ended, if it has.
    pub fn exit(&self) -> io::Result<Option<ExitRecord>> {
        read_json(&self.path("exit.json"))
    }

    /// Records how it ended.
    pub fn write_exit(&self, code: i32, error: &str) -> io::Result<ExitRecord> {
        let record = ExitRecord { code, error: error.to_owned(), ended: wall_now() };
        write_json(&self.path("exit.json"), &record)?;
        Ok(record)
    }
}

impl Bundle {
    /// Returns what runs as the agent knows it.
    pub fn running(&self, directory: &BundleDir, state: &State) -> io::Result<Running> {
        let health = self.health.as_ref().map(|_| directory.health()).transpose()?;
        Ok(Running {
            container_id: self.container_id.clone(),
            pid: state.container.pid,
            address: Some(self.address.into()),
            started: state.started,
            health: health.map(|record| record.status),
        })
    }
}

/// Lists the containers in a directory.
pub fn list(containers: &Path) -> io::Result<Vec<(BundleDir, Bundle)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(containers)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().parse::<TaskId>().is_err() {
            continue;
        }
        let directory = BundleDir(entry.path());
        match directory.bundle() {
            Ok(bundle) => found.push((directory, bundle)),
            // Removed since it was listed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    found.sort_by_key(|(_, bundle)| bundle.plan.task);
    Ok(found)
}

/// Returns the present moment.
pub fn wall_now() -> WallTime {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    WallTime(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

/// Reads a JSON file; `None` if there is none.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, format!("{}: {error}", path.display())))
}

/// Replaces a JSON file as a whole. Survives a crash of the process; a power loss ends the containers anyway.
pub fn write_json<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    let partial = path.with_extension("partial");
    let mut file = File::create(&partial)?;
    file.write_all(&serde_json::to_vec(value)?)?;
    fs::rename(partial, path)
}
