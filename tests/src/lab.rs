//! A laboratory: real daemons on one machine, each a node of its own, with faults at hand.
//!
//! Two layouts. In `namespaces`, node *i* has the network namespace `shoal-i` and the address 10.78.0.*i* behind a switch, so
//! that its cable can be cut; there is one such laboratory on a machine at a time. In `loopback`, node *i* has the address
//! 127.0.0.*i* of the namespace it was started in. All that is known of a laboratory is in its directory: any process may
//! open it, and [`Lab::down`] removes everything, also after a crash of whoever made it.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::http::{self, Answer};
use crate::shoal::text;
use crate::wait::wait_until;

pub mod engine;
pub mod hosts;
pub mod network;
pub mod node;
pub mod process;

pub use node::Node;

/// Nodes of a laboratory at most: each has one number of an address.
pub const NODES_MAX: usize = 200;

/// The port between nodes.
pub const PORT: u16 = 2377;

/// Reference of the demo image.
pub const IMAGE: &str = "shoal/whoami:latest";

/// How long a daemon may take until it answers.
const START_WAIT: Duration = Duration::from_secs(30);

/// How long a new cluster may take until all nodes are ready.
const FORM_WAIT: Duration = Duration::from_secs(60);

/// What runs the containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// libcontainer, inside the daemon.
    Embedded,
    /// A Docker Engine.
    Docker,
}

impl Driver {
    /// Returns the word that `shoald --driver` takes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Embedded => "embedded",
            Self::Docker => "docker",
        }
    }
}

/// Where the nodes live.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// Each in a network namespace of its own, on a switch.
    Namespaces,
    /// The same, with IPv6 addresses.
    NamespacesV6,
    /// All in the present network namespace.
    Loopback,
}

impl Layout {
    /// Returns whether each node has a network namespace of its own.
    pub fn has_namespaces(self) -> bool {
        match self {
            Self::Namespaces | Self::NamespacesV6 => true,
            Self::Loopback => false,
        }
    }
}

/// What a laboratory consists of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LabConfig {
    /// Where everything of it is kept.
    pub dir: PathBuf,
    /// How many nodes, from 1.
    pub nodes: usize,
    /// How many of them, the first ones, are managers.
    pub managers: usize,
    /// What runs the containers.
    pub driver: Driver,
    /// Where the nodes live.
    pub layout: Layout,
    /// The Docker Engine that all nodes of a loopback laboratory share, such as `unix:///run/docker.sock`.
    pub docker_host: Option<String>,
    /// Where `shoal` and `shoald` are.
    pub bin_dir: PathBuf,
    /// Whether daemons are started without being told to join, for a user to do it.
    pub bare: bool,
}

impl LabConfig {
    /// Describes a laboratory in namespaces with at most three managers.
    pub fn new(dir: impl Into<PathBuf>, nodes: usize, driver: Driver) -> Result<Self> {
        Ok(Self {
            dir: dir.into(),
            nodes,
            managers: nodes.min(3),
            driver,
            layout: Layout::Namespaces,
            docker_host: None,
            bin_dir: bin_dir()?,
            bare: false,
        })
    }

    fn validate(&self) -> Result<()> {
        if self.nodes == 0 || self.nodes > NODES_MAX {
            bail!("a laboratory has 1 to {NODES_MAX} nodes, not {}", self.nodes);
        }
        if self.managers == 0 || self.managers > self.nodes {
            bail!("{} nodes have 1 to {} managers, not {}", self.nodes, self.nodes, self.managers);
        }
        for binary in ["shoal", "shoald"] {
            if !self.bin_dir.join(binary).is_file() {
                bail!("no {binary} in {}: cargo build --profile fast --bins", self.bin_dir.display());
            }
        }
        Ok(())
    }
}

/// Returns where the binaries under test are: `SHOAL_BIN_DIR`, or else the build directory of the `fast` profile.
pub fn bin_dir() -> Result<PathBuf> {
    match std::env::var_os("SHOAL_BIN_DIR") {
        Some(dir) => fs::canonicalize(&dir).with_context(|| format!("SHOAL_BIN_DIR {}", dir.display())),
        None => Ok(repository().join("target/fast")),
    }
}

/// Returns the root of the repository.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new(".")).to_path_buf()
}

/// A laboratory.
#[derive(Debug, Clone)]
pub struct Lab {
    /// What it consists of.
    pub config: LabConfig,
}

impl Lab {
    /// Lays cables and starts what the driver needs, but no daemon. Removes a laboratory that was left in the directory.
    pub fn create(mut config: LabConfig) -> Result<Self> {
        config.validate()?;
        if let Ok(old) = Self::open(&config.dir) {
            old.down()?;
        }
        fs::create_dir_all(&config.dir).with_context(|| format!("create {}", config.dir.display()))?;
        config.dir = fs::canonicalize(&config.dir)?;
        let lab = Self { config };
        let text = serde_json::to_vec_pretty(&lab.config)?;
        fs::write(lab.config.dir.join("lab.json"), text)?;
        for node in lab.nodes() {
            fs::create_dir_all(node.data_dir())?;
        }
        if lab.config.layout.has_namespaces() {
            network::SHOAL.up(lab.config.nodes)?;
        }
        engine::up(&lab)?;
        Ok(lab)
    }

    /// Opens a laboratory that exists.
    pub fn open(dir: &Path) -> Result<Self> {
        let path = dir.join("lab.json");
        let text = fs::read(&path).with_context(|| format!("no laboratory: {}", path.display()))?;
        let mut config: LabConfig = serde_json::from_slice(&text).with_context(|| path.display().to_string())?;
        config.dir = fs::canonicalize(dir)?;
        Ok(Self { config })
    }

    /// Returns node `index`, from 1.
    pub fn node(&self, index: usize) -> Node<'_> {
        Node { lab: self, index }
    }

    /// Returns all nodes.
    pub fn nodes(&self) -> impl Iterator<Item = Node<'_>> {
        (1..=self.config.nodes).map(|index| self.node(index))
    }

    /// Returns the nodes whose daemon runs.
    pub fn running(&self) -> impl Iterator<Item = Node<'_>> {
        self.nodes().filter(|node| node.daemon().is_some())
    }

    /// Starts all daemons and makes them one cluster; returns when every node sees all as ready.
    pub fn form(&self) -> Result<()> {
        let first = self.node(1);
        first.start()?;
        first.wait_answers(START_WAIT)?;
        self.note_tokens(first)?;
        for node in self.nodes().skip(1) {
            node.start()?;
        }
        wait_until("all nodes are ready on all nodes", FORM_WAIT, || self.all_ready())?;
        Ok(())
    }

    /// Notes the present join tokens of a manager's cluster, for nodes that are started from now on.
    pub fn note_tokens(&self, manager: Node<'_>) -> Result<()> {
        for role in ["manager", "worker"] {
            let token = manager.shoal().ok(&["join-token", "-q", role])?;
            fs::write(self.token_file(role), token)?;
        }
        Ok(())
    }

    /// Loads the demo image on every node.
    pub fn load_image(&self) -> Result<()> {
        let archive = repository().join("target/demo/whoami.tar");
        let path = archive.to_str().context("path of the repository is not UTF-8")?;
        self.node(1).shoal().ok(&["image", "load", "-i", path, "--all"])?;
        Ok(())
    }

    /// Returns whether each running node sees as many ready nodes as daemons run.
    pub fn all_ready(&self) -> Result<bool> {
        let want = self.running().count();
        for node in self.running() {
            let nodes = node.shoal().json(&["node", "ls"])?;
            let ready = nodes.iter().filter(|row| text(row, "Status").eq_ignore_ascii_case("ready")).count();
            if ready != want {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Sends `GET path` to a published port of node `index`, from beside the cluster.
    pub fn get(&self, index: usize, port: u16, path: &str, limit: Duration) -> Result<Answer> {
        let address = SocketAddr::new(self.node(index).address(), port);
        http::in_namespace(self.client_namespace().as_deref(), || http::get(address, path, limit))
    }

    /// Returns the network namespace from which clients come: the switch, which no cut cable isolates.
    pub fn client_namespace(&self) -> Option<PathBuf> {
        match self.config.layout {
            Layout::Namespaces | Layout::NamespacesV6 => Some(http::namespace_path(&network::SHOAL.switch())),
            Layout::Loopback => None,
        }
    }

    /// Moves the cables of `nodes` to a second switch: they see each other and nobody else. One alone is unplugged.
    pub fn cut(&self, nodes: &[usize]) -> Result<()> {
        self.need_cables()?;
        match nodes {
            [index] => network::SHOAL.unplug(*index),
            several => several.iter().try_for_each(|index| network::SHOAL.plug(*index, network::Side::Second)),
        }
    }

    /// Plugs the cables of `nodes` into the first switch again; of all, if none is named.
    pub fn heal(&self, nodes: &[usize]) -> Result<()> {
        self.need_cables()?;
        let all: Vec<usize> = (1..=self.config.nodes).collect();
        let nodes = if nodes.is_empty() { &all[..] } else { nodes };
        nodes.iter().try_for_each(|index| network::SHOAL.plug(*index, network::Side::First))
    }

    fn need_cables(&self) -> Result<()> {
        match self.config.layout {
            Layout::Namespaces | Layout::NamespacesV6 => Ok(()),
            Layout::Loopback => bail!("a laboratory on loopback has no cables"),
        }
    }

    /// Kills everything and removes everything, network and directory included. Goes on after failures and tells the first.
    pub fn down(&self) -> Result<()> {
        let mut results = Vec::new();
        if self.config.layout == Layout::Loopback {
            self.retire();
        }
        for node in self.nodes() {
            results.push(node.crash().map(|_| ()));
        }
        results.push(engine::down(self));
        if self.config.layout.has_namespaces() {
            results.push(network::SHOAL.down());
        }
        for node in self.nodes() {
            results.push(node.remove_traces());
        }
        results.push(process::unmount_below(&self.config.dir));
        results.push(fs::remove_dir_all(&self.config.dir).with_context(|| self.config.dir.display().to_string()));
        results.into_iter().collect()
    }

    /// Lets the daemons take away what they made in a network namespace that outlives them. Best effort, with limits:
    /// [`Node::remove_traces`] does the rest where the tools for it exist.
    fn retire(&self) {
        const LIMIT: Duration = Duration::from_secs(20);
        for node in self.running() {
            let shoal = node.shoal();
            let Ok(services) = shoal.json(&["service", "ls"]) else { continue };
            let names: Vec<&str> = services.iter().map(|service| text(service, "Name")).collect();
            let args: Vec<&str> = ["service", "rm"].into_iter().chain(names.iter().copied()).collect();
            if names.is_empty() || shoal.run_within(&args, LIMIT).is_ok_and(|output| output.code == 0) {
                break;
            }
        }
        let gone = || Ok(self.running().all(|node| node.tasks().is_empty()));
        // Whatever is left is killed.
        let _ = wait_until("tasks gone", LIMIT, gone);
        for node in self.running() {
            let _ = node.shoal().run_within(&["leave", "--force"], LIMIT);
        }
    }

    pub(crate) fn token_file(&self, role: &str) -> PathBuf {
        self.config.dir.join(format!("token-{role}"))
    }
}

/// A laboratory that is taken down when this is dropped, also by a panic.
#[derive(Debug)]
pub struct Guard(pub Lab);

impl std::ops::Deref for Guard {
    type Target = Lab;
    fn deref(&self) -> &Lab {
        &self.0
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.print_logs();
        }
        if let Err(error) = self.0.down() {
            eprintln!("failed to remove the laboratory: {error:#}");
        }
    }
}

impl Lab {
    /// Prints the end of each daemon's log, for whoever has to find out why a test failed.
    pub fn print_logs(&self) {
        const LINES: usize = 60;
        for node in self.nodes() {
            let log = fs::read_to_string(node.log_path()).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("--- log of node {} (last {LINES} of {} lines)", node.index, lines.len());
            lines.iter().skip(lines.len().saturating_sub(LINES)).for_each(|line| eprintln!("{line}"));
        }
    }
}

/// Returns the address of node `index` in a layout.
fn address(layout: Layout, index: usize) -> IpAddr {
    match layout {
        Layout::Namespaces => IpAddr::V4(network::SHOAL.address(index)),
        Layout::NamespacesV6 => IpAddr::V6(network::SHOAL.address_v6(index)),
        Layout::Loopback => IpAddr::V4(Ipv4Addr::new(127, 0, 0, u8::try_from(index).unwrap_or(u8::MAX))),
    }
}
