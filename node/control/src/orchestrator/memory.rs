//! What one holder has seen of a service since it took over: never stored, lost without harm.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use shoal_protocol::record::SlotName;
use shoal_protocol::value::Slot;
use shoal_protocol::{NodeId, TaskId, Time};

/// Failures of a service on a node that make it the last choice. Source: SwarmKit, `maxFailures`.
const FAILURES_MAX: usize = 5;

/// How long a failure is held against a node. Source: SwarmKit, `monitorFailures`.
const FAILURES_WINDOW: Duration = Duration::from_secs(5 * 60);

/// How long a node that rejected a task of the service is the last choice: an image may be loaded meanwhile.
const REJECTION_WINDOW: Duration = Duration::from_secs(60);

/// Restarts of a slot that are remembered; more are counted as so many.
const RESTARTS_MAX: usize = 1_000;

/// What a holder has seen of one service. One for each service, kept between plans, dropped with the lease.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    /// When a task was first seen running.
    pub(super) running: BTreeMap<TaskId, Time>,
    /// When a task that is meant to run was first seen to have ended.
    pub(super) ended: BTreeMap<TaskId, Time>,
    /// When a task was first seen that has to leave its node and goes on meanwhile.
    pub(super) leaving: BTreeMap<TaskId, Time>,
    /// When tasks of a slot were restarted, oldest first.
    pub(super) restarts: BTreeMap<SlotName, Vec<Time>>,
    /// How often in a row nodes rejected the task of a slot.
    pub(super) rejections: BTreeMap<SlotName, u32>,
    /// When tasks of the service failed on a node, oldest first, at most [`FAILURES_MAX`].
    failures: BTreeMap<NodeId, Vec<Time>>,
    /// When a node last rejected a task of the service.
    rejected: BTreeMap<NodeId, Time>,
    /// The index that began the run of a job whose restarts are counted.
    run: u64,
    /// The index that `update_failures` is about.
    update: u64,
    /// Tasks of the present update that ended too early, and the last of them.
    update_failures: BTreeSet<TaskId>,
    update_failed_last: Option<TaskId>,
}

impl Memory {
    pub(super) fn note_failure(&mut self, node: NodeId, now: Time) {
        let failures = self.failures.entry(node).or_default();
        failures.push(now);
        if failures.len() > FAILURES_MAX {
            failures.remove(0);
        }
    }

    pub(super) fn note_rejection(&mut self, node: NodeId, now: Time) {
        self.rejected.insert(node, now);
    }

    pub(super) fn note_restart(&mut self, name: SlotName, now: Time) {
        let restarts = self.restarts.entry(name).or_default();
        restarts.push(now);
        if restarts.len() > RESTARTS_MAX {
            restarts.remove(0);
        }
    }

    /// Forgets the restarts of earlier runs of a job.
    pub(super) fn watch_run(&mut self, index: u64) {
        if self.run != index {
            self.run = index;
            self.restarts.clear();
            self.rejections.clear();
        }
    }

    pub(super) fn note_update_failure(&mut self, index: u64, task: TaskId) {
        self.watch_update(index);
        self.update_failures.insert(task);
        self.update_failed_last = Some(task);
    }

    /// Returns how many tasks of an update ended too early, and the last of them.
    pub(super) fn update_failures(&mut self, index: u64) -> (usize, Option<TaskId>) {
        self.watch_update(index);
        (self.update_failures.len(), self.update_failed_last)
    }

    fn watch_update(&mut self, index: u64) {
        if self.update != index {
            self.update = index;
            self.update_failures.clear();
            self.update_failed_last = None;
        }
    }

    /// Returns the nodes that are to be tried last.
    pub(super) fn avoid(&self, now: Time) -> BTreeSet<NodeId> {
        let failed = self.failures.iter().filter(|(_, times)| {
            times.len() >= FAILURES_MAX && times.first().is_some_and(|first| now.since(*first) < FAILURES_WINDOW)
        });
        let rejected = self.rejected.iter().filter(|(_, time)| now.since(**time) < REJECTION_WINDOW);
        failed.map(|(&node, _)| node).chain(rejected.map(|(&node, _)| node)).collect()
    }

    /// Forgets what is about tasks, slots and nodes that are no more.
    pub(super) fn prune(&mut self, slots: &BTreeMap<SlotName, Slot>, is_node: impl Fn(NodeId) -> bool) {
        let tasks: BTreeSet<TaskId> = slots.values().flat_map(|slot| slot.tasks.iter()).map(|task| task.id).collect();
        self.running.retain(|task, _| tasks.contains(task));
        self.ended.retain(|task, _| tasks.contains(task));
        self.leaving.retain(|task, _| tasks.contains(task));
        self.restarts.retain(|name, _| slots.contains_key(name));
        self.rejections.retain(|name, _| slots.contains_key(name));
        self.failures.retain(|node, _| is_node(*node));
        self.rejected.retain(|node, _| is_node(*node));
    }
}
