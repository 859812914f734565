//! What is compared: two hosts of a real Docker Swarm, and two nodes of shoal with either driver.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use shoal_tests::lab::hosts::Hosts;
use shoal_tests::lab::network::SWARM;
use shoal_tests::lab::{Driver, Guard, Lab, LabConfig};
use shoal_tests::shoal;

use super::normal::Normaliser;

/// Hosts and nodes.
const NODES: usize = 2;

/// How long a daemon may take until it answers.
const START_WAIT: Duration = Duration::from_secs(30);

/// How long the client may take to ask for versions.
const VERSION_WAIT: Duration = Duration::from_secs(20);

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// Docker Engines in Swarm mode.
    Swarm,
    /// shoal.
    Shoal(Driver),
}

impl Peer {
    /// Returns its name, which is that of the driver.
    pub fn name(self) -> &'static str {
        match self {
            Self::Swarm => "swarm",
            Self::Shoal(driver) => driver.name(),
        }
    }

    /// Returns where it is kept, below where everything is.
    pub fn dir(self, below: &Path) -> PathBuf {
        below.join(self.name())
    }
}

#[derive(Debug)]
enum Nodes {
    Swarm(Hosts),
    Shoal(Guard),
}

/// Two nodes that are in no cluster yet. They are removed when this is dropped.
#[derive(Debug)]
pub struct Cluster {
    nodes: Nodes,
    dir: PathBuf,
    docker: PathBuf,
    normaliser: Normaliser,
    started: SystemTime,
}

impl Cluster {
    /// Starts daemons. `docker` is the client that speaks to them.
    pub fn create(peer: Peer, below: &Path, docker: &Path) -> Result<Self> {
        let dir = peer.dir(below);
        let nodes = match peer {
            Peer::Swarm => Nodes::Swarm(Hosts::create(&dir, NODES)?),
            Peer::Shoal(driver) => {
                let mut config = LabConfig::new(&dir, NODES, driver)?;
                config.bare = true;
                let lab = Guard(Lab::create(config)?);
                for node in lab.nodes() {
                    node.start_and_wait(START_WAIT)?;
                }
                Nodes::Shoal(lab)
            }
        };
        let started = SystemTime::now();
        let mut cluster = Self { nodes, dir, docker: docker.to_owned(), normaliser: Normaliser::default(), started };
        fs::create_dir_all(cluster.dir().join("client"))?;
        cluster.normaliser = Normaliser::new(cluster.versions()?);
        Ok(cluster)
    }

    /// Asks which versions its programs have.
    fn versions(&self) -> Result<Vec<String>> {
        let mut command = self.docker(1);
        command.args(["version", "--format", "{{.Server.Version}}{{range .Server.Components}} {{.Version}}{{end}}"]);
        let printed = shoal::run(command, VERSION_WAIT)?.success().context("docker version")?;
        Ok(printed.split_whitespace().map(str::to_owned).collect())
    }

    /// Returns where a node answers.
    pub fn socket(&self, index: usize) -> PathBuf {
        match &self.nodes {
            Nodes::Swarm(hosts) => hosts.socket(index),
            Nodes::Shoal(lab) => lab.node(index).socket(),
        }
    }

    /// Returns the laboratory, of shoal.
    pub fn lab(&self) -> Option<&Lab> {
        match &self.nodes {
            Nodes::Swarm(_) => None,
            Nodes::Shoal(lab) => Some(lab),
        }
    }

    /// Returns where files may be put.
    pub fn dir(&self) -> PathBuf {
        self.dir.clone()
    }

    /// Returns what makes its output comparable.
    pub fn normaliser(&self) -> &Normaliser {
        &self.normaliser
    }

    /// Returns Docker's client, to be told what to do with a node.
    pub fn docker(&self, index: usize) -> Command {
        let mut command = Command::new(&self.docker);
        command.arg("-H").arg(format!("unix://{}", self.socket(index).display()));
        command.env("DOCKER_CONFIG", self.dir.join("client")).env("DOCKER_CLI_HINTS", "false").env("NO_COLOR", "1");
        for name in ["DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_API_VERSION"] {
            command.env_remove(name);
        }
        command
    }

    /// Returns what scripts know from the start.
    pub fn variables(&self) -> BTreeMap<String, String> {
        let address = |index: usize| match &self.nodes {
            Nodes::Swarm(_) => SWARM.address(index).to_string(),
            Nodes::Shoal(lab) => lab.node(index).address().to_string(),
        };
        let mut known: BTreeMap<_, _> = (1..=NODES).map(|index| (format!("n{index}"), address(index))).collect();
        let start = self.started.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        known.insert("start".to_owned(), start.to_string());
        known
    }
}
