//! All tasks of one node: joins what is wanted with what the driver reports, and queues what follows.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use shoal_protocol::record::SlotName;
use shoal_protocol::spec::{GenericResources, PortConfig, TaskTemplate};
use shoal_protocol::value::{NodeStatus, TaskReport};
use shoal_protocol::{ClusterId, NodeId, Now, ServiceId, TaskId, TaskState, Time};

use super::admission::{self, Admission, Capacity, Claims, Holding};
use super::life::{self, Call, Container, Goal, Life};
use super::{DriverCall, DriverReport, Found, FoundState, plan};

/// How long a task waits at most for others to leave before it is rejected, so that another node gets its chance.
pub const ADMISSION_WAIT_MAX: Duration = Duration::from_secs(60);

/// The grace that is assumed of a container whose template is not known, because no slot names it any more.
pub const STOP_GRACE_UNKNOWN: Duration = Duration::from_secs(300);

/// Who and what this node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeIdentity {
    /// The node.
    pub id: NodeId,
    /// Its host name.
    pub hostname: String,
    /// Such as `linux`.
    pub os: String,
    /// Such as `x86_64`.
    pub architecture: String,
    /// Its cluster.
    pub cluster: ClusterId,
    /// What it can give to tasks.
    pub capacity: Capacity,
}

impl NodeIdentity {
    /// Returns who and what a node is that says `status` of itself.
    pub fn new(id: NodeId, cluster: ClusterId, status: &NodeStatus) -> Self {
        let NodeStatus { hostname, os, architecture, .. } = status.clone();
        Self { id, hostname, os, architecture, cluster, capacity: Capacity::of(status) }
    }
}

/// A task that a slot places on this node.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted {
    /// Its service.
    pub service: ServiceId,
    /// Its slot.
    pub slot: SlotName,
    /// Ready, running, shutdown or remove.
    pub desired: TaskState,
    /// What it runs, or why that cannot be read.
    pub template: Result<Arc<TaskTemplate>, String>,
    /// The service's name.
    pub service_name: String,
    /// The service's labels, which templates may read.
    pub service_labels: BTreeMap<String, String>,
    /// The service's published ports.
    pub ports: Vec<PortConfig>,
    /// The generic resources of this node that it was given.
    pub generic: GenericResources,
    /// Whether the slot was written under an older epoch than the highest that is known, or is of a job and no manager's document
    /// was seen since the start: a task is not started on its word. One that runs is kept, and one that is to end ends, since no
    /// later writer takes that back.
    pub fenced: bool,
}

/// What the agent asks of its surroundings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AgentAction {
    /// The driver is to do this.
    Call(TaskId, DriverCall),
    /// The driver is to watch a found container for its end.
    Adopt(TaskId),
    /// The node says this of a task of its own.
    Report(TaskId, TaskReport),
    /// The node says nothing of this task any more.
    Forget(TaskId),
}

#[derive(Debug)]
struct Entry {
    life: Life,
    wanted: Option<Wanted>,
    /// What it takes of the node; outlives `wanted`, as the container does.
    claims: Claims,
    /// The container that was found, until it is known whether it is wanted.
    found: Option<Found>,
    /// What was last said of it; `None` if nothing, or if it was taken back.
    said: Option<TaskReport>,
    waits_since: Option<Time>,
}

/// The tasks of one node. Nothing is done before [`Agent::found`] has told what exists, and what nobody wants is left alone
/// until [`Agent::sync_complete`].
///
/// Its queues are bounded by the number of tasks: one call, one report and one farewell each.
#[derive(Debug)]
pub struct Agent {
    node: NodeIdentity,
    tasks: BTreeMap<TaskId, Entry>,
    listed: bool,
    synced: bool,
    forget: BTreeSet<TaskId>,
    adopt: BTreeSet<TaskId>,
    dirty: BTreeSet<TaskId>,
    calls: VecDeque<(TaskId, DriverCall)>,
}

impl Agent {
    /// Returns the agent of a node of which nothing is known yet.
    pub fn new(node: NodeIdentity) -> Self {
        Self {
            node,
            tasks: BTreeMap::new(),
            listed: false,
            synced: false,
            forget: BTreeSet::new(),
            adopt: BTreeSet::new(),
            dirty: BTreeSet::new(),
            calls: VecDeque::new(),
        }
    }

    /// Takes over what is wanted of this node: every task that any slot, history included, places on it. Level-triggered: a
    /// task that is missing is wanted no more.
    pub fn set_wanted(&mut self, mut wanted: BTreeMap<TaskId, Wanted>, now: Now) {
        for (task, entry) in &mut self.tasks {
            entry.set_wanted(wanted.remove(task), now);
            if entry.wanted.is_none() && entry.said.take().is_some() {
                self.dirty.remove(task);
                self.forget.insert(*task);
            }
        }
        for (task, wanted) in wanted {
            let mut entry = Entry::new(Life::assigned(wanted.service, wanted.slot, now));
            entry.set_wanted(Some(wanted), now);
            self.tasks.insert(task, entry);
        }
        self.advance_all(now);
    }

    /// Takes over what the node can give to tasks from now on.
    pub fn set_capacity(&mut self, capacity: Capacity) {
        self.node.capacity = capacity;
    }

    /// Takes over the containers that the driver listed. Called once, after the start and before anything is done; later calls
    /// add containers of tasks that are not known.
    pub fn found(&mut self, found: Vec<Found>, now: Now) {
        for found in found {
            let known = self.tasks.get(&found.task);
            if self.listed && known.is_some() {
                continue;
            }
            let wanted = known.and_then(|entry| entry.wanted.clone());
            match found.state {
                FoundState::Running(_) => {
                    self.adopt.insert(found.task);
                }
                FoundState::Created | FoundState::Exited { .. } => {}
            }
            let task = found.task;
            let mut entry = Entry::new(Life::adopted(&found, false, now));
            entry.found = Some(found);
            entry.set_wanted(wanted, now);
            self.tasks.insert(task, entry);
        }
        self.listed = true;
        self.advance_all(now);
    }

    /// Notes that this node has heard a manager since it started: what nobody wants by now is removed.
    pub fn sync_complete(&mut self, now: Now) {
        self.synced = true;
        self.advance_all(now);
    }

    /// Takes over what the driver reports. A report about a task that is not known, or that answers no outstanding call, is
    /// ignored.
    pub fn handle_report(&mut self, task: TaskId, report: DriverReport, now: Now) {
        self.advance(task, Some(report), now);
        let waiting: Vec<TaskId> =
            self.tasks.iter().filter(|(_, entry)| entry.waits_since.is_some()).map(|(task, _)| *task).collect();
        for task in waiting {
            self.advance(task, None, now);
        }
    }

    /// Does what has become due. Called when [`Agent::poll_timeout`] has passed; harmless earlier.
    pub fn handle_timeout(&mut self, now: Now) {
        self.advance_all(now);
    }

    /// Returns the next thing to do.
    pub fn poll_action(&mut self) -> Option<AgentAction> {
        if let Some(task) = self.forget.pop_first() {
            return Some(AgentAction::Forget(task));
        }
        if let Some(task) = self.adopt.pop_first() {
            return Some(AgentAction::Adopt(task));
        }
        while let Some(task) = self.dirty.pop_first() {
            let Some(entry) = self.tasks.get_mut(&task) else { continue };
            if entry.wanted.is_some() && entry.said.as_ref() != Some(&entry.life.status) {
                entry.said = Some(entry.life.status.clone());
                return Some(AgentAction::Report(task, entry.life.status.clone()));
            }
        }
        self.calls.pop_front().map(|(task, call)| AgentAction::Call(task, call))
    }

    /// Returns when [`Agent::handle_timeout`] is next due.
    pub fn poll_timeout(&self) -> Option<Time> {
        self.tasks
            .values()
            .filter_map(|entry| {
                let retry = (entry.life.attempts > 0 && entry.life.call.is_none()).then_some(entry.life.retry);
                let wait = entry.waits_since.map(|since| since + ADMISSION_WAIT_MAX);
                retry.into_iter().chain(wait).min()
            })
            .min()
    }

    /// Returns what this node says of its tasks that are wanted.
    pub fn statuses(&self) -> impl Iterator<Item = (TaskId, &TaskReport)> {
        self.tasks.iter().filter(|(_, entry)| entry.wanted.is_some()).map(|(task, entry)| (*task, &entry.life.status))
    }

    /// Returns whether no task and no container of this node is left: what a node that leaves waits for after it was told that
    /// nothing is wanted.
    pub fn is_empty(&self) -> bool {
        self.listed && self.tasks.is_empty()
    }

    fn advance_all(&mut self, now: Now) {
        let tasks: Vec<TaskId> = self.tasks.keys().copied().collect();
        for task in tasks {
            self.advance(task, None, now);
        }
    }

    fn advance(&mut self, task: TaskId, report: Option<DriverReport>, now: Now) {
        if !self.listed {
            return;
        }
        let Some(entry) = self.tasks.get(&task) else { return };
        let goal = goal(entry.wanted.as_ref(), self.synced);
        if matches!(goal, Goal::Ready | Goal::Run) && entry.life.status.state <= TaskState::Assigned {
            self.ask_admission(task, now);
        }
        let Some(entry) = self.tasks.get_mut(&task) else { return };
        let (life, call) = life::step(entry.life.clone(), goal, report, now);
        entry.life = life;
        let call = call.and_then(|call| entry.driver_call(task, call, &self.node, now));
        if entry.life.status.state > TaskState::Assigned || goal == Goal::Keep {
            entry.waits_since = None;
        }
        let is_gone = entry.wanted.is_none() && entry.life.status.state == TaskState::Remove;
        if entry.wanted.is_some() && entry.said.as_ref() != Some(&entry.life.status) {
            self.forget.remove(&task);
            self.dirty.insert(task);
        }
        if let Some(call) = call {
            self.calls.push_back((task, call));
        }
        if is_gone {
            self.tasks.remove(&task);
        }
    }

    fn ask_admission(&mut self, task: TaskId, now: Now) {
        let Some(entry) = self.tasks.get(&task) else { return };
        let admission = match entry.wanted.as_ref().map(|wanted| &wanted.template) {
            None => return,
            Some(Err(error)) => Admission::Reject(error.clone()),
            Some(Ok(_)) => admission::admit(&entry.claims, &self.holdings(), &self.node.capacity, &self.node.hostname),
        };
        let Some(entry) = self.tasks.get_mut(&task) else { return };
        match admission {
            Admission::Admit => entry.life.advance(TaskState::Accepted, "accepted", now.wall),
            Admission::Reject(reason) => entry.life.fail(TaskState::Rejected, &reason, now),
            Admission::Wait(reason) => {
                let since = *entry.waits_since.get_or_insert(now.time);
                if now.time >= since + ADMISSION_WAIT_MAX {
                    entry.life.fail(TaskState::Rejected, &reason, now);
                } else {
                    entry.life.status.message = format!("waiting for tasks to end: {reason}");
                }
            }
        }
    }

    /// What is taken on this node: by tasks that were accepted, until their container has ended.
    fn holdings(&self) -> Vec<Holding<'_>> {
        self.tasks
            .iter()
            .filter(|(_, entry)| (TaskState::Accepted..=TaskState::Running).contains(&entry.life.status.state))
            .map(|(task, entry)| {
                let leaving = match goal(entry.wanted.as_ref(), self.synced) {
                    Goal::Keep | Goal::Ready | Goal::Run => false,
                    Goal::Stop | Goal::Discard => true,
                };
                Holding { task: *task, claims: &entry.claims, leaving }
            })
            .collect()
    }
}

impl Entry {
    fn new(life: Life) -> Self {
        Self { life, wanted: None, claims: Claims::default(), found: None, said: None, waits_since: None }
    }

    fn set_wanted(&mut self, wanted: Option<Wanted>, now: Now) {
        self.wanted = wanted;
        let Some(wanted) = &self.wanted else { return };
        if let Ok(template) = &wanted.template {
            self.claims = Claims::new(&template.resources.reservations, &wanted.ports, &wanted.generic);
        }
        let told_to_end = wanted.desired > TaskState::Running;
        if let Some(found) = self.found.take()
            && told_to_end
            && self.life.container == Container::Ended
            && matches!(found.state, FoundState::Exited { .. })
        {
            self.life = Life::adopted(&found, told_to_end, now);
        }
    }

    fn driver_call(&mut self, task: TaskId, call: Call, node: &NodeIdentity, now: Now) -> Option<DriverCall> {
        let template = self.wanted.as_ref().and_then(|wanted| wanted.template.as_ref().ok());
        match call {
            Call::Prepare => {
                let planned = match self.wanted.as_ref().zip(template) {
                    Some((wanted, template)) => plan::container_plan(task, wanted, template, node),
                    None => Err("its template cannot be read any more".to_owned()),
                };
                match planned {
                    Ok(plan) => Some(DriverCall::Prepare(Box::new(plan))),
                    Err(error) => {
                        self.life.call = None;
                        self.life.fail(TaskState::Rejected, &error, now);
                        None
                    }
                }
            }
            Call::Start => Some(DriverCall::Start(task)),
            Call::Stop => {
                let grace = template.map_or(STOP_GRACE_UNKNOWN, |template| plan::stop_grace(template));
                let drain = self.wanted.as_ref().map_or(Duration::ZERO, |wanted| plan::drain(&wanted.ports, grace));
                Some(DriverCall::Stop { task, grace, drain })
            }
            Call::Remove => Some(DriverCall::Remove(task)),
        }
    }
}

/// Returns what the node does with a task.
fn goal(wanted: Option<&Wanted>, synced: bool) -> Goal {
    let Some(wanted) = wanted else {
        return if synced { Goal::Discard } else { Goal::Keep };
    };
    match wanted.desired {
        TaskState::New | TaskState::Pending | TaskState::Assigned | TaskState::Accepted => Goal::Keep,
        TaskState::Preparing | TaskState::Ready if !wanted.fenced => Goal::Ready,
        TaskState::Starting | TaskState::Running if !wanted.fenced => Goal::Run,
        TaskState::Preparing | TaskState::Ready | TaskState::Starting | TaskState::Running => Goal::Keep,
        TaskState::Complete | TaskState::Shutdown | TaskState::Failed | TaskState::Rejected | TaskState::Orphaned => {
            Goal::Stop
        }
        TaskState::Remove => Goal::Discard,
    }
}

#[cfg(test)]
mod tests;
