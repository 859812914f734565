//! Docker Engines for the nodes of a laboratory: one in each node's namespace, or one that all share.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::{Driver, Lab, Layout, Node, network, process, repository};
use crate::shoal;

/// How long starting or stopping an engine may take.
const ENGINE_WAIT: Duration = Duration::from_secs(60);

/// How long the client of an engine may take.
const DOCKER_WAIT: Duration = Duration::from_secs(20);

/// Starts what engines the laboratory needs.
pub(super) fn up(lab: &Lab) -> Result<()> {
    if has_own(lab) { lab.nodes().try_for_each(start) } else { Ok(()) }
}

/// Stops every engine of the laboratory.
pub(super) fn down(lab: &Lab) -> Result<()> {
    if has_own(lab) {
        for node in lab.nodes() {
            remove(&directory(node), false)?;
        }
    }
    Ok(())
}

/// Starts a node's engine unless it runs.
pub(super) fn start(node: Node<'_>) -> Result<()> {
    if !has_own(node.lab) || docker(node, &["version"]).is_ok() {
        return Ok(());
    }
    // What a power failure left behind has to go first; the engine's data stays.
    remove(&directory(node), true)?;
    power_on(&directory(node), &network::SHOAL.namespace(node.index), &format!("n{}", node.index))
}

/// Starts an engine that has its data in `directory`, in a network namespace, as a host called `hostname`.
pub fn power_on(directory: &str, namespace: &str, hostname: &str) -> Result<()> {
    script(&["up", directory, "--netns", namespace, "--hostname", hostname])
}

/// Takes an engine down, with its data unless they are to be kept.
pub fn remove(directory: &str, keep: bool) -> Result<()> {
    let keep = if keep { &["--keep"][..] } else { &[] };
    script(&[&["down", directory], keep].concat())
}

/// Returns where a node finds its engine.
pub(super) fn docker_host(node: Node<'_>) -> Option<String> {
    let config = &node.lab.config;
    match (config.driver, config.layout) {
        (Driver::Embedded, _) => None,
        (Driver::Docker, Layout::Loopback) => config.docker_host.clone(),
        (Driver::Docker, Layout::Namespaces | Layout::NamespacesV6) => {
            Some(format!("unix://{}/docker.sock", directory(node)))
        }
    }
}

/// Returns the processes whose death is that of a node's own engine with all its containers.
pub(super) fn processes(node: Node<'_>) -> BTreeSet<i32> {
    if has_own(node.lab) { processes_of(&directory(node)) } else { BTreeSet::new() }
}

/// Returns the processes whose death is that of an engine with all its containers: the one that holds its namespaces, and
/// the first one inside.
pub fn processes_of(directory: &str) -> BTreeSet<i32> {
    let text = fs::read_to_string(Path::new(directory).join("engine.pid")).unwrap_or_default();
    let Some(holder) = text.split_whitespace().next().and_then(|pid| pid.parse::<i32>().ok()) else {
        return BTreeSet::new();
    };
    if !process::arguments(holder).iter().any(|argument| argument == "--kill-child") {
        return BTreeSet::new();
    }
    let children = fs::read_to_string(format!("/proc/{holder}/task/{holder}/children")).unwrap_or_default();
    children.split_whitespace().filter_map(|pid| pid.parse().ok()).chain([holder]).collect()
}

/// Returns the tasks whose containers run, with their first process, as the engine tells.
pub(super) fn tasks(node: Node<'_>, node_id: &str) -> Result<BTreeMap<String, BTreeSet<i32>>> {
    let filter = format!("label=shoal.node.id={node_id}");
    let ids = docker(node, &["ps", "-q", "--no-trunc", "--filter", &filter])?;
    let ids: Vec<&str> = ids.split_whitespace().collect();
    if ids.is_empty() {
        return Ok(BTreeMap::new());
    }
    let format = "{{index .Config.Labels \"com.docker.swarm.task.id\"}} {{.State.Pid}}";
    let lines = docker(node, &[&["inspect", "-f", format], &ids[..]].concat())?;
    let tasks = lines.lines().filter_map(|line| {
        let (task, pid) = line.split_once(' ')?;
        Some((task.to_owned(), BTreeSet::from([pid.parse().ok()?])))
    });
    Ok(tasks.collect())
}

/// Has a shared engine kill the containers of one node.
pub(super) fn kill_tasks(node: Node<'_>, node_id: &str) -> Result<()> {
    if node.lab.config.driver != Driver::Docker {
        return Ok(());
    }
    let ids = docker(node, &["ps", "-q", "--no-trunc", "--filter", &format!("label=shoal.node.id={node_id}")])?;
    let ids: Vec<&str> = ids.split_whitespace().collect();
    if !ids.is_empty() {
        docker(node, &[&["kill"], &ids[..]].concat())?;
    }
    Ok(())
}

fn docker(node: Node<'_>, args: &[&str]) -> Result<String> {
    let host = docker_host(node).context("the node has no engine")?;
    let mut command = Command::new("docker");
    command.args(["-H", &host]).args(args);
    shoal::run(command, DOCKER_WAIT)?.success().with_context(|| format!("docker {}", args.join(" ")))
}

pub(super) fn has_own(lab: &Lab) -> bool {
    lab.config.driver == Driver::Docker && lab.config.layout.has_namespaces()
}

fn directory(node: Node<'_>) -> String {
    let path: PathBuf = node.dir().join("engine");
    path.to_string_lossy().into_owned()
}

fn script(args: &[&str]) -> Result<()> {
    let mut command = Command::new(repository().join("scripts/engine"));
    command.args(args);
    shoal::run(command, ENGINE_WAIT)?
        .success()
        .map(|_| ())
        .with_context(|| format!("scripts/engine {}", args.join(" ")))
}
