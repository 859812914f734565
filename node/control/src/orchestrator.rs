//! From what a service's user wants and what its slots, reports and nodes are, to what its slots are to become.
//!
//! Level-triggered: everything is recomputed from the snapshot, and a plan applied to it leaves nothing to do. A new holder
//! starts with an empty [`Memory`], so delays count from its own observation and it never restarts a burst of tasks. How it
//! differs from Swarm: tasks of a failed or drained node are replaced at once, without the restart delay; a task whose node
//! failed stays wanted until its replacement has a node, so that it is adopted if the node is back sooner; slots that are
//! scaled away are those that do not run, then those on the nodes with most tasks of the service, then the highest; new ones
//! take the lowest free numbers.
//!
//! It relies on agents to end and remove every task that no slot names any more.

use std::collections::{BTreeMap, BTreeSet};

use shoal_protocol::record::SlotName;
use shoal_protocol::spec::{ModeKind, ServiceSpec, SpecError, TaskTemplate, validate};
use shoal_protocol::value::{Progress, ServiceObject, Slot, SlotTask, TaskReport};
use shoal_protocol::{NodeId, Now, ServiceId, TaskId, TaskState, Time, WallTime};

use crate::scheduler::{Cluster, Request};

mod effective;
mod global;
mod memory;
mod replicas;
mod slot;
mod work;

pub use effective::{TaskView, effective, is_complete, occupies};
pub use memory::Memory;

use work::Work;

/// Slots that one plan creates at most; the rest follow with the next, which is due at once.
pub const SLOTS_CREATED_MAX: usize = 5_000;

/// A service as it is now wanted: its object, read.
#[derive(Debug, Clone, PartialEq)]
pub struct Desired {
    /// The service's index.
    pub index: u64,
    /// When it was last changed.
    pub updated: WallTime,
    /// Its spec.
    pub spec: ServiceSpec,
    /// Whether the spec is its previous one, taken back.
    pub rolled_back: bool,
    /// The JSON of its task template, as the user sent it.
    pub template: String,
    /// Its published ports, with those filled in that the cluster chose.
    pub ports: Vec<shoal_protocol::spec::PortConfig>,
}

impl Desired {
    /// Reads a stored service.
    pub fn of(object: &ServiceObject) -> Result<Self, SpecError> {
        Ok(Self {
            index: object.index,
            updated: object.updated,
            spec: ServiceSpec::read(&object.spec)?,
            rolled_back: object.rolled_back,
            template: validate::task_template_json(&object.spec)?,
            ports: object.ports.clone(),
        })
    }

    /// Returns whether a task runs what is wanted now. Templates are compared as they are understood, so that a client which
    /// writes back what it read in other words restarts nothing. A job runs anew with each change.
    pub fn is_run_by(&self, task: &SlotTask) -> bool {
        if task.index == self.index {
            return true;
        }
        if self.spec.mode.is_job() {
            return false;
        }
        let sorted = |ports: &[shoal_protocol::spec::PortConfig]| {
            let mut ports = ports.to_vec();
            ports.sort();
            ports
        };
        let same_template = task.template == self.template
            || template_of(task).is_some_and(|template| template == self.spec.task_template);
        same_template && sorted(&task.ports) == sorted(&self.ports)
    }
}

fn template_of(task: &SlotTask) -> Option<TaskTemplate> {
    validate::read_template(&task.template).ok()
}

/// What a plan is made from.
#[derive(Clone, Copy)]
pub struct Input<'a> {
    /// The service.
    pub service: ServiceId,
    /// How it is wanted; `None` if it was removed.
    pub desired: Option<&'a Desired>,
    /// Its slots.
    pub slots: &'a BTreeMap<SlotName, Slot>,
    /// What a node says of a task.
    pub report: &'a dyn Fn(NodeId, TaskId) -> Option<&'a TaskReport>,
    /// How far its last update is.
    pub progress: Option<&'a Progress>,
    /// Past tasks that a slot remembers.
    pub history: u64,
    /// The present moment.
    pub now: Now,
}

/// What is to be written.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    /// Slots to write; `None` removes one.
    pub slots: Vec<(SlotName, Option<Slot>)>,
    /// How far the update is: `Some(None)` removes the record.
    pub progress: Option<Option<Progress>>,
    /// When to plan again though nothing happens.
    pub wake: Option<Time>,
}

impl Plan {
    /// Returns whether nothing is to be written.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty() && self.progress.is_none()
    }
}

/// Plans the slots of one service. What is placed is counted in `cluster`; `ids` returns a new identifier each time.
pub fn reconcile(
    input: Input<'_>,
    cluster: &mut Cluster,
    memory: &mut Memory,
    ids: &mut dyn FnMut() -> TaskId,
) -> Plan {
    match input.desired {
        Some(desired) => Work::new(input, desired, cluster, memory, ids).run(),
        None => remove(input, cluster),
    }
}

/// Returns how many tasks a service is to have, those of a job that completed included.
pub fn desired_tasks(spec: &ServiceSpec, cluster: &Cluster) -> u64 {
    match spec.mode.kind() {
        ModeKind::Replicated { replicas } => replicas,
        ModeKind::ReplicatedJob { completions, .. } => completions,
        ModeKind::Global | ModeKind::GlobalJob => {
            let request = Request::new(ServiceId(0), &spec.task_template, &[]);
            let eligible = cluster
                .nodes
                .iter()
                .filter(|(id, node)| !node.failed && !global::is_drained(node) && request.is_wanted_on(**id, node));
            eligible.count() as u64
        }
    }
}

/// Plans the end of a removed service: its tasks are told to go, its slots go when they have.
fn remove(input: Input<'_>, cluster: &Cluster) -> Plan {
    let mut plan = Plan { progress: input.progress.map(|_| None), ..Plan::default() };
    for (&name, slot) in input.slots {
        let mut next = slot.clone();
        slot::discard(&mut next, |task| is_gone(task, &input, cluster));
        if next.tasks.is_empty() {
            plan.slots.push((name, None));
        } else if next != *slot {
            plan.slots.push((name, Some(next)));
        }
    }
    plan
}

/// Returns the state that a task's node reports.
fn reported(task: &SlotTask, input: &Input<'_>) -> Option<TaskState> {
    Some((input.report)(task.node?, task.id)?.state)
}

/// Returns whether the node of a task is gone: found dead, left or removed.
fn is_lost(task: &SlotTask, cluster: &Cluster) -> bool {
    task.node.is_some_and(|node| cluster.nodes.get(&node).is_none_or(|node| node.failed))
}

/// Returns whether nothing of a task runs where it could be heard of.
fn is_gone(task: &SlotTask, input: &Input<'_>, cluster: &Cluster) -> bool {
    task.node.is_none() || is_lost(task, cluster) || reported(task, input).is_none_or(TaskState::is_terminal)
}

fn names_in_use(slots: &BTreeMap<SlotName, Slot>) -> BTreeSet<SlotName> {
    slots.iter().filter(|(_, slot)| slot::is_live(slot)).map(|(&name, _)| name).collect()
}

#[cfg(test)]
mod tests;
