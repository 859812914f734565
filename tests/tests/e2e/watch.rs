//! What strangers must not change or see: looked at before and after.

use std::fs;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use shoal_tests::capture::Capture;
use shoal_tests::lab::{Lab, Node};
use shoal_tests::shoal::text;
use shoal_tests::wait::wait_until;

use crate::{PUBLISHED, WAIT};

/// What is written into a spec, to be looked for on the wire.
pub(crate) const MARKER: &str = "a-marker-that-nobody-else-may-read";

/// What is sent in the clear, to show that it would have been found.
const PLAIN: &str = "a-marker-that-everybody-may-read";

/// How often the marker is in a spec: two frames may share one.
const REPEATS: usize = 50;

/// Memory by which a daemon may grow.
const GROWTH_KIB_MAX: u64 = 5 * 1024;

/// Returns flags of `service create` that put the marker into a spec, again and again.
pub(crate) fn marked() -> Vec<String> {
    (0..REPEATS).flat_map(|number| ["--label".to_owned(), format!("mark-{number}={MARKER}")]).collect()
}

/// Begins to listen on the wire.
pub(crate) fn listen(lab: &Lab) -> Result<Capture> {
    Capture::start(lab, &[MARKER, PLAIN])
}

/// Ends listening: everything was heard, what was sent in the clear through `members` was found, the marker was not.
pub(crate) fn check_wire(lab: &Lab, capture: Capture, members: &[usize]) -> Result<()> {
    for index in members {
        let answer = lab.get(*index, PUBLISHED, &format!("/bytes?n=1&{PLAIN}"), WAIT)?;
        ensure!(answer.status == 200, "node {index} answers with status {}", answer.status);
    }
    let heard = capture.stop()?;
    println!("{heard:?}");
    ensure!(heard.frames > 0 && heard.hits[1] > 0, "what was sent in the clear was not heard: {heard:?}");
    ensure!(heard.hits[0] == 0, "the marker of the spec was on the wire {} times", heard.hits[0]);
    Ok(())
}

/// A node's document and memory.
#[derive(Debug)]
pub(crate) struct Before {
    index: usize,
    pid: Option<i32>,
    digest: String,
    rss_kib: u64,
}

impl Before {
    /// Waits until all nodes that answer have the same document, and looks at one of them.
    pub(crate) fn of(node: Node<'_>) -> Result<Self> {
        wait_until("all agree", WAIT, || Ok(node.shoal().status()?["Agree"] == true))?;
        Ok(Self { index: node.index, pid: node.daemon(), digest: digest(node)?, rss_kib: rss_kib(node)? })
    }

    /// Looks again: the same process, the same document, about the same memory.
    pub(crate) fn check(&self, lab: &Lab) -> Result<()> {
        let node = lab.node(self.index);
        ensure!(node.daemon() == self.pid, "the daemon of node {} is another one", self.index);
        let now = digest(node)?;
        ensure!(now == self.digest, "the document of node {} changed", self.index);
        let grown = rss_kib(node)?.saturating_sub(self.rss_kib);
        println!("node {}: memory grew by {grown} KiB from {} KiB", self.index, self.rss_kib);
        ensure!(grown < GROWTH_KIB_MAX, "the memory of node {} grew by {grown} KiB", self.index);
        Ok(())
    }
}

fn digest(node: Node<'_>) -> Result<String> {
    let status = node.shoal().status()?;
    let id = node.id()?;
    let nodes = status.get("Nodes").and_then(Value::as_array).context("status has no Nodes")?;
    let node = nodes.iter().find(|node| text(node, "ID") == id).context("status does not list the node itself")?;
    Ok(text(node, "Digest").to_owned())
}

fn rss_kib(node: Node<'_>) -> Result<u64> {
    let pid = node.daemon().context("the daemon died")?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse()?)
}
