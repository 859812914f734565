//! Counters of the tasks behind published ports.
//!
//! A connection holds the counters of its task, so counting takes no lock. What is shown is bounded: see [`BACKENDS_MAX`].

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use shoal_control::routes::Backend;
use shoal_protocol::TaskId;

use super::{Counter, Labels};

/// Tasks with counters of their own, over all ports, those included that are gone and still have connections. Further ones
/// are counted together as task `other` of their port.
pub const BACKENDS_MAX: usize = 1024;

/// What is counted of one task behind a published port.
#[derive(Debug, Default)]
pub struct BackendCounts {
    /// Connections that reached it; of UDP, flows.
    pub connections: Counter,
    /// Attempts at it that failed or were too slow.
    pub attempts_failed: Counter,
    /// Times that it was sent to rest.
    pub ejections: Counter,
    /// Open now (a gauge).
    pub open: Counter,
}

/// A connection that reached a task and is counted as open for as long as this lives.
#[derive(Debug)]
pub(in super::super) struct Reached(Arc<BackendCounts>);

impl Reached {
    pub(in super::super) fn new(counts: Arc<BackendCounts>) -> Self {
        counts.connections.add(1);
        counts.open.add(1);
        Self(counts)
    }
}

impl Drop for Reached {
    fn drop(&mut self) {
        self.0.open.sub(1);
    }
}

/// The tasks behind one port.
#[derive(Debug, Clone, Default)]
pub(super) struct Backends {
    tasks: BTreeMap<TaskId, Shown>,
    /// Of the tasks for which there was no room.
    others: Arc<BackendCounts>,
}

#[derive(Debug, Clone)]
struct Shown {
    name: Arc<str>,
    counts: Arc<BackendCounts>,
    /// It is not behind the port any more.
    is_gone: bool,
}

impl Backends {
    /// Returns how many tasks have counters of their own.
    pub(super) fn len(&self) -> usize {
        self.tasks.len()
    }

    /// Takes in which tasks are behind the port now, and returns the counters of each; at most `room` have their own.
    pub(super) fn retarget(
        &mut self,
        route: &BTreeMap<TaskId, Backend>,
        room: usize,
    ) -> BTreeMap<TaskId, Arc<BackendCounts>> {
        for (task, shown) in &mut self.tasks {
            shown.is_gone = !route.contains_key(task);
        }
        self.forget_gone();
        let mut counts = BTreeMap::new();
        for (&task, backend) in route {
            if self.tasks.len() < room && !self.tasks.contains_key(&task) {
                let shown = Shown { name: backend.name.clone(), counts: Arc::default(), is_gone: false };
                self.tasks.insert(task, shown);
            }
            let own = self.tasks.get(&task).map_or(&self.others, |shown| &shown.counts);
            counts.insert(task, own.clone());
        }
        counts
    }

    /// Forgets tasks that are gone and have no connection left.
    pub(super) fn forget_gone(&mut self) {
        self.tasks.retain(|_, shown| !shown.is_gone || shown.counts.open.get() > 0);
    }

    /// Returns the labels of each task, name and identifier, and its counters.
    fn shown(&self) -> impl Iterator<Item = (String, String, &BackendCounts)> {
        let own = self.tasks.iter().map(|(task, shown)| (shown.name.to_string(), label(*task), &*shown.counts));
        let is_used = self.others.connections.get() + self.others.attempts_failed.get() > 0;
        let others = is_used.then(|| (OTHER.to_owned(), OTHER.to_owned(), &*self.others));
        own.chain(others)
    }
}

/// What stands for the tasks without counters of their own.
const OTHER: &str = "other";

/// A port of this node alone has one task, which is not known here.
fn label(task: TaskId) -> String {
    if task == TaskId::default() { String::new() } else { task.to_string() }
}

/// Name, help and value of what is counted for each task.
type Family = (&'static str, &'static str, fn(&BackendCounts) -> &Counter);

const COUNTERS: [Family; 3] = [
    (
        "shoal_ingress_backend_connections",
        "Client connections (UDP: flows) that reached a task, by published port and task",
        |task| &task.connections,
    ),
    (
        "shoal_ingress_backend_attempts_failed",
        "Attempts at a task that failed or were too slow, by published port and task",
        |task| &task.attempts_failed,
    ),
    (
        "shoal_ingress_backend_ejections",
        "Times that a task was not tried for a while, by published port and task",
        |task| &task.ejections,
    ),
];

/// Writes the families of the tasks behind all ports.
pub(super) fn encode<'a>(
    encoder: &mut DescriptorEncoder<'_>,
    ports: impl Iterator<Item = (&'a Labels, &'a Backends)> + Clone,
) -> fmt::Result {
    let tasks = ports.flat_map(|(port, backends)| {
        let [number, protocol] = port;
        backends.shown().map(move |(name, task, counts)| {
            let labels = [number.clone(), protocol.clone(), ("name", name), ("task", task)];
            (labels, counts)
        })
    });
    let tasks: Vec<_> = tasks.collect();
    for (name, help, value) in COUNTERS {
        let mut family = encoder.encode_descriptor(name, help, None, ConstCounter::new(0u64).metric_type())?;
        for (labels, counts) in &tasks {
            ConstCounter::new(value(counts).get()).encode(family.encode_family(labels)?)?;
        }
    }
    let help = "Client connections (UDP: flows) open to a task now, by published port and task";
    let kind = ConstGauge::new(0i64).metric_type();
    let mut family = encoder.encode_descriptor("shoal_ingress_backend_open", help, None, kind)?;
    for (labels, counts) in &tasks {
        let open = i64::try_from(counts.open.get()).unwrap_or(i64::MAX);
        ConstGauge::new(open).encode(family.encode_family(labels)?)?;
    }
    Ok(())
}
