//! What can be seen of a service from outside: containers as the kernel or the engine shows them, and HTTP answers.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::http::{self, Answer};
use crate::lab::Lab;
use crate::shoal::text;

/// How long one request may take; published ports pass over backends that are silent within this.
pub const REQUEST_WAIT: Duration = Duration::from_secs(3);

/// Requests per replica at most until every replica has answered: each is chosen with a probability of about one in as many.
const SAMPLES_PER_REPLICA: usize = 40;

/// One answer of the demo image.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seen {
    /// The task that answered.
    pub task: String,
    /// Its slot.
    pub slot: String,
    /// Its node's identifier or name, as the task was told.
    pub node: String,
}

impl Seen {
    /// Reads the answer to `GET /`.
    pub fn read(answer: &Answer) -> Result<Self> {
        if answer.status != 200 {
            bail!("status {}", answer.status);
        }
        let fields = answer.fields();
        let field = |name: &str| fields.get(name).cloned().with_context(|| format!("answer has no {name}"));
        Ok(Self { task: field("Task")?, slot: field("Slot")?, node: field("Node")? })
    }
}

/// Asks the demo image behind a published port of node `index` who it is.
pub fn whoami(lab: &Lab, index: usize, port: u16) -> Result<Seen> {
    Seen::read(&lab.get(index, port, "/", REQUEST_WAIT)?)
}

/// Asks through node `index` until `replicas` different tasks have answered or too many requests were sent; returns who
/// answered. A failed request is an error.
pub fn ask_all(lab: &Lab, index: usize, port: u16, replicas: usize) -> Result<BTreeSet<Seen>> {
    let address = std::net::SocketAddr::new(lab.node(index).address(), port);
    http::in_namespace(lab.client_namespace().as_deref(), || {
        let mut seen = BTreeSet::new();
        for _ in 0..SAMPLES_PER_REPLICA * replicas.max(1) {
            let answer = http::get(address, "/", REQUEST_WAIT).with_context(|| format!("node {index}"))?;
            seen.insert(Seen::read(&answer)?);
            if seen.len() >= replicas {
                break;
            }
        }
        Ok(seen)
    })
}

/// Returns the tasks whose containers run, by node, on all nodes: those of dead nodes too, if any survived.
pub fn containers(lab: &Lab) -> BTreeMap<usize, BTreeSet<String>> {
    lab.nodes().map(|node| (node.index, node.tasks().into_keys().collect())).collect()
}

/// Tells what is wrong with a service that should have `replicas` running replicas and publish `port`; nothing if all is
/// well: as many containers as wanted, each slot once, and every running node's port reaching only those.
///
/// Assumes that nothing but this service runs in the laboratory, and nodes in `excused` are not looked at.
pub fn faults_of(lab: &Lab, port: u16, replicas: usize, excused: &BTreeSet<usize>) -> Vec<String> {
    let mut faults = Vec::new();
    let mut running = BTreeSet::new();
    for (index, tasks) in containers(lab) {
        if excused.contains(&index) {
            continue;
        }
        for task in tasks {
            if !running.insert(task.clone()) {
                faults.push(format!("task {task} runs twice, again on node {index}"));
            }
        }
    }
    if running.len() != replicas {
        faults.push(format!("{} containers run instead of {replicas}", running.len()));
        return faults;
    }
    for node in lab.running().filter(|node| !excused.contains(&node.index)) {
        match ask_all(lab, node.index, port, replicas) {
            Err(error) => faults.push(format!("{error:#}")),
            Ok(seen) => faults.extend(faults_of_answers(node.index, &seen, &running, replicas)),
        }
    }
    faults
}

fn faults_of_answers(index: usize, seen: &BTreeSet<Seen>, running: &BTreeSet<String>, replicas: usize) -> Vec<String> {
    let mut faults = Vec::new();
    let slots: BTreeSet<&str> = seen.iter().map(|seen| seen.slot.as_str()).collect();
    if slots.len() != replicas || seen.len() != replicas {
        faults.push(format!("through node {index}, {} tasks of {} slots answered", seen.len(), slots.len()));
    }
    faults.extend(
        seen.iter().filter(|seen| !running.contains(&seen.task)).map(|seen| format!("task {} answers", seen.task)),
    );
    faults
}

/// Returns the node that holds most leases, as node `asked` sees it, if any holder is known.
pub fn holder_of_most(lab: &Lab, asked: usize) -> Result<Option<usize>> {
    let status = lab.node(asked).shoal().status()?;
    let leases = status.get("Leases").and_then(serde_json::Value::as_array).context("status has no Leases")?;
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for lease in leases {
        *counts.entry(text(lease, "Holder")).or_default() += 1;
    }
    let mut most = None;
    for node in lab.running() {
        let id = node.id()?;
        // Holders may be shown by identifier or by name.
        let count = counts.get(id.as_str()).or_else(|| counts.get(format!("n{}", node.index).as_str())).copied();
        most = most.max(count.map(|count| (count, node.index)));
    }
    Ok(most.map(|(_, index)| index))
}

/// Returns `Replicas` of a service, such as `2/2`, as node `asked` sees it.
pub fn replicas(lab: &Lab, asked: usize, service: &str) -> Result<String> {
    let rows = lab.node(asked).shoal().json(&["service", "ls"])?;
    let row = rows.iter().find(|row| text(row, "Name") == service).with_context(|| format!("no service {service}"))?;
    Ok(text(row, "Replicas").to_owned())
}
