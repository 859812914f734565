//! What a request needs to know of the cluster: copied from the document in one pass on the event loop, rendered elsewhere.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use shoal_protocol::object::network::INGRESS;
use shoal_protocol::object::{Kind, ObjectHead};
use shoal_protocol::record::SlotName;
use shoal_protocol::spec::{NodeSpec, ServiceSpec};
use shoal_protocol::token::Role;
use shoal_protocol::value::{ClusterObject, NodeObject, NodeStatus, Progress, ServiceObject, SlotTask, TaskReport};
use shoal_protocol::{NodeId, ObjectId, ServiceId, TaskId, TaskState, WallTime};

/// Which objects of one kind a request needs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Pick {
    /// None.
    #[default]
    None,
    /// Every one.
    All,
    /// Those that these names fit: whole identifiers, whole names, or beginnings of identifiers.
    Named(Vec<String>),
}

/// Which tasks a request needs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum PickTasks {
    /// None.
    #[default]
    None,
    /// Of these services and on these nodes; an empty list means any.
    Of {
        /// Names as in [`Pick::Named`].
        services: Vec<String>,
        /// Names as in [`Pick::Named`].
        nodes: Vec<String>,
    },
    /// Those whose identifier begins like this.
    Named(String),
    /// What people look for first, at most so many: wanted ones that do not run, then those that run, then what failed.
    Foremost(usize),
}

/// What a request needs to know.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Want {
    /// Nodes.
    pub nodes: Pick,
    /// Services. Those of the wanted tasks come along by themselves.
    pub services: Pick,
    /// Whether the services' tasks are counted.
    pub counts: bool,
    /// Tasks.
    pub tasks: PickTasks,
    /// Whether all tasks are counted by their state, and those that run by their node.
    pub states: bool,
    /// Secrets, configs or networks.
    pub objects: Option<(Kind, Pick)>,
}

/// An answer to [`Want`].
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// This node.
    pub me: NodeId,
    /// The role it acts in.
    pub role: Role,
    /// The cluster's settings; `None` until they arrived.
    pub cluster: Option<ClusterObject>,
    /// Whether its root is being replaced: it is about to be, or a member has a credential of a former one.
    pub rotating: bool,
    /// The wanted nodes, by identifier.
    pub nodes: Vec<NodeView>,
    /// The wanted services, by identifier.
    pub services: Vec<ServiceView>,
    /// The wanted tasks, by service and slot, newest first; those of [`PickTasks::Foremost`] as said there before that.
    pub tasks: Vec<TaskView>,
    /// How many tasks [`PickTasks::Foremost`] would have had with a higher limit.
    pub tasks_left_out: usize,
    /// How many tasks there are in each state, if they were to be counted.
    pub states: BTreeMap<TaskState, u64>,
    /// How many tasks run on each node, if they were to be counted.
    pub running: BTreeMap<NodeId, u64>,
    /// The wanted secrets, configs or networks, by identifier.
    pub objects: Vec<ObjectView>,
}

/// Whether a node is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    /// It answers.
    Ready,
    /// It may be gone; nobody else confirmed that yet.
    Suspect,
    /// It is gone.
    Down,
    /// It was not heard of since this node started.
    Unknown,
}

impl NodeState {
    /// Every state.
    pub const ALL: [NodeState; 4] = [Self::Ready, Self::Suspect, Self::Down, Self::Unknown];

    /// Returns the name that shoal's own answers use.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Suspect => "suspect",
            Self::Down => "down",
            Self::Unknown => "unknown",
        }
    }
}

/// A node.
#[derive(Debug, Clone)]
pub struct NodeView {
    /// The node.
    pub id: NodeId,
    /// Its object.
    pub object: NodeObject,
    /// What its operators want, read from the object.
    pub spec: NodeSpec,
    /// What it says of itself; `None` before it was heard.
    pub status: Option<NodeStatus>,
    /// Whether it is there.
    pub state: NodeState,
    /// Whether it holds the registry lease.
    pub leader: bool,
}

impl NodeView {
    /// Returns the host name, or nothing before the node was heard.
    pub fn hostname(&self) -> &str {
        self.status.as_ref().map_or("", |status| &status.hostname)
    }
}

/// A service.
#[derive(Debug, Clone)]
pub struct ServiceView {
    /// The service.
    pub id: ServiceId,
    /// Its object.
    pub object: ServiceObject,
    /// What its user wants, read from the object.
    pub spec: ServiceSpec,
    /// How far its update is.
    pub progress: Option<Progress>,
    /// Its tasks, if they were to be counted.
    pub counts: Counts,
}

/// A secret, config or network.
#[derive(Debug, Clone)]
pub struct ObjectView {
    /// Which.
    pub id: ObjectId,
    /// Everything but its data.
    pub head: ObjectHead,
    /// Its data, of which a secret's are never here.
    pub data: Vec<u8>,
}

impl ObjectView {
    /// Returns whether it is the network of published ports.
    pub fn is_ingress(&self) -> bool {
        // Of those that users make none can be called so.
        self.head.name == INGRESS && self.head.spec.is_empty()
    }
}

/// How many tasks a service has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Wanted tasks that run.
    pub running: u64,
    /// Wanted tasks.
    pub desired: u64,
    /// Of a job, the pieces of its work that are done in its present run; of other services, tasks that ended well.
    pub completed: u64,
}

/// A task.
#[derive(Debug, Clone)]
pub struct TaskView {
    /// Its service.
    pub service: ServiceId,
    /// Its slot.
    pub slot: SlotName,
    /// The task as the holder of its shard wants it.
    pub task: SlotTask,
    /// What its node says of it.
    pub report: Option<TaskReport>,
    /// Whether its node is gone.
    pub node_down: bool,
    /// Whether its service is a job.
    pub is_job: bool,
}

impl TaskView {
    /// Returns the state that is true as far as anyone knows.
    pub fn state(&self) -> TaskState {
        effective_state(&self.task, self.report.as_ref(), self.node_down)
    }

    /// Returns what the task is to become. A job's is to complete: that is how Docker's clients know it.
    pub fn desired(&self) -> TaskState {
        let is_done = self.task.last_seen == Some(TaskState::Complete);
        if self.is_job && (self.task.desired == TaskState::Running || is_done) {
            return TaskState::Complete;
        }
        self.task.desired
    }

    /// Returns since when the task is in its state.
    pub fn since(&self) -> WallTime {
        self.report.as_ref().map_or(self.task.created, |report| report.since)
    }
}

/// Combines what the holder wants, what the node said and whether the node is still there.
pub fn effective_state(task: &SlotTask, report: Option<&TaskReport>, node_down: bool) -> TaskState {
    let reported = report.map(|report| report.state).or(task.last_seen);
    match (task.node, reported) {
        (None, _) if task.desired > TaskState::Running => TaskState::Shutdown,
        (None, _) => TaskState::Pending,
        (Some(_), Some(state)) if state.is_terminal() => state,
        (Some(_), _) if node_down => TaskState::Orphaned,
        (Some(_), Some(state)) if report.is_some() => state,
        // Its node keeps no word of it any more, so nothing of it is left there.
        (Some(_), _) if task.desired > TaskState::Running => TaskState::Shutdown,
        (Some(_), _) => TaskState::Assigned,
    }
}

/// Finds what a name means: a whole identifier, else whole names, else the beginning of an identifier.
///
/// Returns every candidate of the first kind that has any, so that the caller can tell none from several.
pub fn find<I>(wanted: &str, all: &[(I, &str)], parsed: Option<I>) -> Vec<I>
where
    I: Copy + PartialEq + std::fmt::Display,
{
    if let Some(id) = parsed.filter(|id| all.iter().any(|(other, _)| other == id)) {
        return vec![id];
    }
    let named: Vec<I> = all.iter().filter(|(_, name)| *name == wanted).map(|(id, _)| *id).collect();
    let could_begin_an_id =
        !wanted.is_empty() && wanted.bytes().all(|byte| byte.is_ascii_digit() || byte.is_ascii_lowercase());
    if !named.is_empty() || !could_begin_an_id {
        return named;
    }
    all.iter().filter(|(id, _)| id.to_string().starts_with(wanted)).map(|(id, _)| *id).collect()
}

/// Finds everything that a list of names means.
pub fn find_all<I>(wanted: &[String], all: &[(I, &str)]) -> BTreeSet<I>
where
    I: Copy + Ord + std::fmt::Display + std::str::FromStr,
{
    wanted.iter().flat_map(|name| find(name, all, name.parse().ok())).collect()
}

/// How the cluster is, for people and monitors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct StatusReport {
    /// The cluster.
    pub cluster: String,
    /// This node.
    pub node: NodeId,
    /// Whether a majority of the voters answers.
    pub quorum: bool,
    /// The voters.
    pub voters: Vec<NodeId>,
    /// Every lease, held or not.
    pub leases: Vec<LeaseReport>,
    /// Every node.
    pub nodes: Vec<NodeReport>,
    /// Whether all nodes that answer have the same document, as far as they said.
    pub agree: bool,
    /// What is not as it should be; empty when the cluster is well.
    pub warnings: Vec<String>,
    /// Records that this node cannot read.
    #[serde(skip)]
    pub quarantined: u64,
}

/// One lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct LeaseReport {
    /// `registry` or `shard-0` to `shard-15`.
    pub lease: String,
    /// Who holds it; empty if nobody does as far as this node knows.
    pub holder: String,
    /// Under which epoch; 0 if it was never held.
    pub epoch: u64,
    /// Milliseconds until it ends unless it is renewed; 0 where only the holder knows.
    #[serde(rename = "ExpiresInMs")]
    pub expires_in_ms: u64,
}

/// One node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct NodeReport {
    /// The node.
    #[serde(rename = "ID")]
    pub id: NodeId,
    /// Its host name.
    pub hostname: String,
    /// Whether it is there.
    pub state: NodeState,
    /// Digest of its document in hexadecimal, as it last said; empty if it never did.
    pub digest: String,
}

/// Picks tasks by the beginning of an identifier; a whole one beats longer ones.
pub fn task_fits(wanted: &str, parsed: Option<TaskId>, id: TaskId) -> bool {
    parsed.map_or_else(|| id.to_string().starts_with(wanted), |parsed| parsed == id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use TaskState::{Assigned, Complete, Failed, Orphaned, Pending, Running, Shutdown};

    fn task(node: Option<u128>, desired: TaskState, last_seen: Option<TaskState>) -> SlotTask {
        SlotTask {
            id: TaskId(1),
            node: node.map(NodeId),
            desired,
            created: WallTime(1),
            index: 1,
            template: String::new(),
            ports: Vec::new(),
            note: String::new(),
            last_seen,
            ..SlotTask::default()
        }
    }

    fn report(state: TaskState) -> TaskReport {
        TaskReport {
            service: ServiceId(1),
            slot: SlotName::Replica(1),
            state,
            since: WallTime(2),
            message: String::new(),
            error: String::new(),
            container_id: String::new(),
            pid: 0,
            exit_code: None,
            address: None,
        }
    }

    #[test]
    fn the_state_is_what_is_true_as_far_as_anyone_knows() {
        for (name, node, desired, last_seen, reported, down, want) in [
            ("no node fits", None, Running, None, None, false, Pending),
            ("given up without a node", None, Shutdown, None, None, false, Shutdown),
            ("not heard of yet", Some(1), Running, None, None, false, Assigned),
            ("runs", Some(1), Running, None, Some(Running), false, Running),
            ("its node is gone", Some(1), Running, None, Some(Running), true, Orphaned),
            ("ended before its node was gone", Some(1), Running, None, Some(Failed), true, Failed),
            ("moved away from a lost node", Some(1), Shutdown, Some(Running), None, true, Orphaned),
            ("being stopped", Some(1), Shutdown, None, Some(Running), false, Running),
            ("cleaned up", Some(1), Shutdown, Some(Running), None, false, Shutdown),
            ("cleaned up after its end", Some(1), Shutdown, Some(Complete), None, false, Complete),
        ] {
            let report = reported.map(report);
            assert_eq!(effective_state(&task(node, desired, last_seen), report.as_ref(), down), want, "{name}");
        }
    }

    #[test]
    fn names_beat_beginnings_of_identifiers() {
        let all = [(ServiceId(1), "web"), (ServiceId(2), "00"), (ServiceId(3), "web")];
        let parse = |text: &str| text.parse().ok();
        assert_eq!(find("00", &all, parse("00")), [ServiceId(2)]);
        assert_eq!(find("000", &all, parse("000")).len(), 3);
        assert_eq!(find("web", &all, parse("web")).len(), 2);
        assert_eq!(find("we", &all, parse("we")), []);
        let whole = ServiceId(3).to_string();
        assert_eq!(find(&whole, &all, parse(&whole)), [ServiceId(3)]);
        assert_eq!(find("", &all, parse("")), []);
    }
}
