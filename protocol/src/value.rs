//! What is inside a record's body, by kind of key.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::codec::{self, CodecError};
use crate::id::{ClusterId, NodeId, ServiceId, TaskId};
use crate::lease::{LeaseId, VoterSet};
use crate::object::{Object, Sealed};
use crate::record::{Key, Record, SlotName};
use crate::settings::ClusterSettings;
use crate::spec::{GenericResources, PortConfig};
use crate::task::TaskState;
use crate::time::WallTime;
use crate::token::{Role, RoleGrant};

/// The schema that this version writes for every kind of body.
pub const SCHEMA: u16 = 1;

/// Former roots of a cluster that are remembered: members with a credential of an older one need a token to come back.
pub const FORMER_ROOTS_MAX: usize = 8;

/// Tasks in a slot at most, history and current ones together. A slot with more is not read.
pub const SLOT_TASKS_MAX: usize = 32;

/// The decoded body of a record.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Of [`Key::Cluster`].
    Cluster(ClusterObject),
    /// Of [`Key::Voters`].
    Voters(VoterSet),
    /// Of [`Key::Claim`].
    Claim(Claim),
    /// Of [`Key::Node`].
    Node(NodeObject),
    /// Of [`Key::Service`].
    Service(ServiceObject),
    /// Of [`Key::Progress`].
    Progress(Progress),
    /// Of [`Key::Slot`].
    Slot(Slot),
    /// Of [`Key::NodeStatus`].
    NodeStatus(NodeStatus),
    /// Of [`Key::TaskStatus`].
    TaskReport(TaskReport),
    /// Of [`Key::Object`].
    Object(Object),
}

/// Why a body could not be opened. The record is kept as it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// It was written by a newer version.
    #[error("schema {0} is not known to this version")]
    Schema(u16),
    /// It is damaged.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// It can be decoded but breaks a rule of its type.
    #[error("{0}")]
    Invalid(&'static str),
}

impl Value {
    /// Opens the body of a record; `None` is a tombstone.
    pub fn open(record: &Record) -> Result<Option<Self>, ValueError> {
        let Some(body) = &record.body else {
            return Ok(None); // a removal says the same in every schema
        };
        Self::read(&record.key, record.schema, body).map(Some)
    }

    /// Opens the body of a record about `key`.
    pub fn read(key: &Key, schema: u16, body: &[u8]) -> Result<Self, ValueError> {
        if schema != SCHEMA {
            return Err(ValueError::Schema(schema));
        }
        let value = match key {
            Key::Cluster => Self::Cluster(codec::decode(body)?),
            Key::Voters => Self::Voters(codec::decode(body)?),
            Key::Claim(_) => Self::Claim(codec::decode(body)?),
            Key::Node(_) => Self::Node(codec::decode(body)?),
            Key::Service(_) => Self::Service(codec::decode(body)?),
            Key::Progress(_) => Self::Progress(codec::decode(body)?),
            Key::Slot(..) => Self::Slot(codec::decode(body)?),
            Key::NodeStatus(_) => Self::NodeStatus(codec::decode(body)?),
            Key::TaskStatus(..) => Self::TaskReport(codec::decode(body)?),
            Key::Object(..) => Self::Object(codec::decode(body)?),
        };
        value.check(key)?;
        Ok(value)
    }

    /// Checks what the types alone do not say, for values that come from elsewhere.
    pub fn check(&self, key: &Key) -> Result<(), ValueError> {
        let rule = |holds: bool, broken| if holds { Ok(()) } else { Err(ValueError::Invalid(broken)) };
        rule(self.suits(key), "value is of another kind than its key")?;
        match (self, key) {
            (Self::Voters(voters), _) => rule(voters.is_valid(), "voter set cannot have been decided"),
            (Self::Cluster(cluster), _) => {
                rule(cluster.former_roots.len() <= FORMER_ROOTS_MAX, "cluster has too many former roots")
            }
            (Self::Claim(claim), Key::Claim(lease)) => rule(claim.lease == *lease, "claim is for another lease"),
            (Self::Slot(slot), _) => {
                rule(slot.tasks.len() <= SLOT_TASKS_MAX, "slot has too many tasks")?;
                let tasks: BTreeSet<_> = slot.tasks.iter().map(|task| task.id).collect();
                rule(tasks.len() == slot.tasks.len(), "slot names a task twice")
            }
            _ => Ok(()),
        }
    }

    fn suits(&self, key: &Key) -> bool {
        matches!(
            (self, key),
            (Self::Cluster(_), Key::Cluster)
                | (Self::Voters(_), Key::Voters)
                | (Self::Claim(_), Key::Claim(_))
                | (Self::Node(_), Key::Node(_))
                | (Self::Service(_), Key::Service(_))
                | (Self::Progress(_), Key::Progress(_))
                | (Self::Slot(_), Key::Slot(..))
                | (Self::NodeStatus(_), Key::NodeStatus(_))
                | (Self::TaskReport(_), Key::TaskStatus(..))
                | (Self::Object(_), Key::Object(..))
        )
    }

    /// Encodes the value as a body.
    pub fn seal(&self) -> Result<Vec<u8>, CodecError> {
        match self {
            Self::Cluster(value) => codec::encode(value),
            Self::Voters(value) => codec::encode(value),
            Self::Claim(value) => codec::encode(value),
            Self::Node(value) => codec::encode(value),
            Self::Service(value) => codec::encode(value),
            Self::Progress(value) => codec::encode(value),
            Self::Slot(value) => codec::encode(value),
            Self::NodeStatus(value) => codec::encode(value),
            Self::TaskReport(value) => codec::encode(value),
            Self::Object(value) => codec::encode(value),
        }
    }
}

/// The cluster's own settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterObject {
    /// The cluster.
    pub id: ClusterId,
    /// Count of writes to this object, from 1: what `?version=` compares.
    pub index: u64,
    /// When it was made.
    pub created: WallTime,
    /// When it was last written.
    pub updated: WallTime,
    /// The root certificate, PEM.
    pub root_pem: String,
    /// The roots before it, newest first, PEM: at most [`FORMER_ROOTS_MAX`].
    pub former_roots: Vec<String>,
    /// Counts the roots and the managers' keys, from 1: both are replaced together.
    pub edition: u64,
    /// Who was given the managers' key of this edition. The value is the key, sealed to the node; it is empty for a node that
    /// made the key or gets it over a connection.
    pub keys: BTreeMap<NodeId, Vec<u8>>,
    /// Whether a user wants another edition.
    pub rotate: bool,
    /// What users have set.
    pub settings: ClusterSettings,
    /// Counts the unlock keys, from 1: which one managers' keys are to be sealed with on their disks while
    /// [`ClusterSettings::auto_lock`] says so. 0 if there was none yet.
    pub lock: u64,
    /// CA key, join secrets and the unlock key, sealed with the key that only managers have.
    #[serde(with = "serde_bytes")]
    pub sealed: Vec<u8>,
}

impl ClusterObject {
    /// Returns the first edition of a new cluster, whose founder made its key.
    pub fn first(id: ClusterId, founder: NodeId, root_pem: String, sealed: Vec<u8>, now: WallTime) -> Self {
        Self {
            id,
            index: 1,
            created: now,
            updated: now,
            root_pem,
            former_roots: Vec::new(),
            edition: 1,
            keys: BTreeMap::from([(founder, Vec::new())]),
            rotate: false,
            settings: ClusterSettings::default(),
            lock: 0,
            sealed,
        }
    }

    /// Returns whether a node is known to have the managers' key of this edition: it is sealed to it, or the node says so.
    pub fn is_key_known_to(&self, node: NodeId, said: Option<&NodeStatus>) -> bool {
        let is_sealed = self.keys.get(&node).is_some_and(|key| !key.is_empty());
        let says_so = |granted: RoleGrant| granted.role == Role::Manager && granted.edition == self.edition;
        is_sealed || said.is_some_and(|status| says_so(status.granted))
    }

    /// Returns with which unlock key managers' keys are to be sealed on their disks, if with any.
    pub fn wanted_lock(&self) -> Option<u64> {
        self.settings.auto_lock.then_some(self.lock)
    }

    /// Returns the next edition, to be filled: the present root becomes a former one.
    pub fn next_edition(&self) -> Self {
        let roots = std::iter::once(&self.root_pem).chain(&self.former_roots);
        Self {
            former_roots: roots.take(FORMER_ROOTS_MAX).cloned().collect(),
            edition: self.edition + 1,
            keys: BTreeMap::new(),
            rotate: false,
            root_pem: String::new(),
            sealed: Vec::new(),
            settings: self.settings.clone(),
            ..*self
        }
    }
}

/// Who holds a lease, as its holder announced it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The lease.
    pub lease: LeaseId,
    /// Its holder. The epoch is in the record's stamp.
    pub holder: NodeId,
}

/// A node as its operators want it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeObject {
    /// Count of writes to this object, from 1.
    pub index: u64,
    /// When it joined.
    pub created: WallTime,
    /// When the object was last written.
    pub updated: WallTime,
    /// JSON of [`crate::spec::NodeSpec`].
    pub spec: String,
}

/// A service as its user wants it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceObject {
    /// Count of writes to this object, from 1: what `?version=` compares.
    pub index: u64,
    /// When it was created.
    pub created: WallTime,
    /// When it was last written.
    pub updated: WallTime,
    /// JSON of [`crate::spec::ServiceSpec`], as the user sent it.
    pub spec: String,
    /// The spec before the last update.
    pub previous_spec: Option<String>,
    /// Whether the last update took the previous spec back: its roll-back policy then applies.
    pub rolled_back: bool,
    /// The published ports in force, with those filled in that the cluster chose.
    pub ports: Vec<PortConfig>,
    /// What the image's registry knows the user by: a [`crate::registry_auth::RegistryAuth`] as JSON, sealed; `None` if nobody
    /// has to know.
    pub credentials: Option<Sealed>,
    /// The same for the previous spec.
    pub previous_credentials: Option<Sealed>,
}

impl ServiceObject {
    /// Returns the credentials for tasks that were made when the service had this index.
    pub fn credentials_at(&self, index: u64) -> Option<&Sealed> {
        if index == self.index { self.credentials.as_ref() } else { self.previous_credentials.as_ref() }
    }

    /// Returns the oldest edition of the managers' key that sealed any of its credentials.
    pub fn oldest_edition(&self) -> Option<u64> {
        self.credentials.iter().chain(&self.previous_credentials).map(|sealed| sealed.edition).min()
    }
}

/// How far a service's update is; written by the holder of its shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// The service's index that is being rolled out.
    pub index: u64,
    /// Where it stands.
    pub state: UpdateState,
    /// When it began.
    pub started: WallTime,
    /// When it ended.
    pub completed: Option<WallTime>,
    /// For people.
    pub message: String,
}

/// Where an update stands. Source: Docker Engine API v1.50, `Service.UpdateStatus.State`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UpdateState {
    /// Tasks are being replaced.
    Updating,
    /// Stopped after a failure; waits for a person.
    Paused,
    /// All tasks run the new spec.
    Completed,
    /// The update failed or a user wants the previous spec back: tasks are being replaced, or will be once it is in force.
    RollbackStarted,
    /// Going back stopped after a failure; waits for a person.
    RollbackPaused,
    /// All tasks run the previous spec again.
    RollbackCompleted,
}

/// A slot: the task that fills it, its predecessors, and why it is empty if it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot {
    /// Newest first. Those with a desired state up to running are current (two during a start-first update, three if the newer one is lost); the others are
    /// history: at most [`ClusterSettings::task_history`] that have ended, and some more that still do.
    pub tasks: Vec<SlotTask>,
}

impl Slot {
    /// Returns the tasks that are meant to run.
    pub fn current(&self) -> impl Iterator<Item = &SlotTask> {
        self.tasks.iter().filter(|task| task.desired <= TaskState::Running)
    }
}

/// One task of a slot as its shard's holder wants it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotTask {
    /// The task.
    pub id: TaskId,
    /// Where it runs; `None` while no node fits.
    pub node: Option<NodeId>,
    /// Ready, running, shutdown or remove.
    pub desired: TaskState,
    /// When it was made.
    pub created: WallTime,
    /// The service's index whose spec it runs.
    pub index: u64,
    /// JSON of [`crate::spec::TaskTemplate`].
    pub template: String,
    /// Published ports of the service at that index.
    pub ports: Vec<PortConfig>,
    /// Why it has no node, or why it ended before its node said so; empty otherwise.
    pub note: String,
    /// The last state its node was seen to report before it was ended for it (its node failed), if any.
    pub last_seen: Option<TaskState>,
    /// The generic resources of its node that it was given.
    pub generic: GenericResources,
}

/// What a node says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Host name.
    pub hostname: String,
    /// Where other nodes reach it.
    pub address: Option<SocketAddr>,
    /// Where its published ports are, if one address.
    pub publish_address: Option<IpAddr>,
    /// Such as `linux`.
    pub os: String,
    /// Such as `x86_64`.
    pub architecture: String,
    /// Billionths of a core that it has.
    pub nano_cpus: u64,
    /// Bytes of memory that it has.
    pub memory_bytes: u64,
    /// Labels given to the daemon at its start.
    pub engine_labels: BTreeMap<String, String>,
    /// What runs the containers, such as `docker 20.10.24` or `embedded`.
    pub engine: String,
    /// Version of the daemon.
    pub version: String,
    /// Published ports of the cluster that it could not open, with the reason.
    pub port_errors: BTreeMap<u16, String>,
    /// The version of the voter set under which it is ready to vote; 0 if it is no voter, or not yet.
    pub votes: u64,
    /// Whether it announced that it goes away for a moment; its tasks are kept for 30 s.
    pub restarting: bool,
    /// What its credential says.
    pub granted: RoleGrant,
    /// The generic resources that it offers.
    pub generic: GenericResources,
}

/// What [`NodeStatus::engine`] begins with where shoal itself runs the containers.
const EMBEDDED: &str = "embedded";

impl NodeStatus {
    /// Returns whether the node's driver can do all that a Docker Engine can.
    pub fn has_engine(&self) -> bool {
        !self.engine.starts_with(EMBEDDED)
    }
}

/// What a node says of a task that it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskReport {
    /// The service of the task.
    pub service: ServiceId,
    /// The slot of the task.
    pub slot: SlotName,
    /// How far it is.
    pub state: TaskState,
    /// When it came into this state.
    pub since: WallTime,
    /// What happens, for people.
    pub message: String,
    /// What went wrong; empty if nothing did.
    pub error: String,
    /// The container, once there is one.
    pub container_id: String,
    /// Its first process as the node sees it, 0 if none.
    pub pid: u32,
    /// How it ended.
    pub exit_code: Option<i32>,
    /// The container's address on its node, for the node's own ingress.
    pub address: Option<IpAddr>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(key: Key, value: &Value) -> Result<Value, ValueError> {
        Value::read(&key, SCHEMA, &value.seal().unwrap())
    }

    #[test]
    fn values_that_break_a_rule_are_not_read() {
        let voters = |members: &[u128]| {
            let members = members.iter().copied().map(NodeId).collect();
            Value::Voters(VoterSet { version: 1, members, previous: Vec::new() })
        };
        let slot = |tasks: &[u128]| {
            let task = |id: &u128| SlotTask { id: TaskId(*id), ..SlotTask::default() };
            Value::Slot(Slot { tasks: tasks.iter().map(task).collect() })
        };
        let claim = |lease| Value::Claim(Claim { lease: LeaseId(lease), holder: NodeId(1) });
        let many: Vec<u128> = (0..=SLOT_TASKS_MAX as u128).collect();
        let slot_key = Key::Slot(ServiceId(1), SlotName::Replica(1));
        for (name, key, value, good) in [
            ("sorted voters", Key::Voters, voters(&[1, 2, 3]), true),
            ("unsorted voters", Key::Voters, voters(&[2, 1]), false),
            ("a voter twice", Key::Voters, voters(&[1, 1]), false),
            ("no voters", Key::Voters, voters(&[]), false),
            ("eight voters", Key::Voters, voters(&[1, 2, 3, 4, 5, 6, 7, 8]), false),
            ("a claim", Key::Claim(LeaseId(3)), claim(3), true),
            ("a claim of another lease", Key::Claim(LeaseId(3)), claim(4), false),
            ("a slot", slot_key, slot(&[1, 2]), true),
            ("a task twice", slot_key, slot(&[1, 1]), false),
            ("too many tasks", slot_key, slot(&many), false),
        ] {
            assert_eq!(read(key, &value).is_ok(), good, "{name}");
        }
        assert_eq!(claim(3).check(&Key::Voters), Err(ValueError::Invalid("value is of another kind than its key")));
    }

    #[test]
    fn a_newer_schema_is_not_read_but_its_removal_is() {
        let mut record = Record {
            key: Key::Voters,
            stamp: crate::Stamp::default(),
            author: NodeId(1),
            schema: SCHEMA + 1,
            layer: crate::record::Layer::Base,
            body: Some(Vec::new()),
        };
        assert_eq!(Value::open(&record), Err(ValueError::Schema(SCHEMA + 1)));
        record.body = None;
        assert_eq!(Value::open(&record), Ok(None));
    }
}

#[cfg(test)]
mod round_trip {
    use super::*;

    #[test]
    fn golden_bytes_of_a_task() {
        let generic = GenericResources::parse(["gpu=u1"]).unwrap();
        let task = SlotTask { node: Some(NodeId(2)), note: "n".to_owned(), generic, ..SlotTask::default() };
        let mut want = vec![codec::VERSION];
        want.extend(0u128.to_le_bytes());
        want.push(1);
        want.extend(2u128.to_le_bytes());
        want.extend([0, 0, 0, 0, 0, 1, b'n', 0, 1, 3, b'g', b'p', b'u', 1, 1, 2, b'u', b'1']);
        assert_eq!(codec::encode(&task), Ok(want.clone()));
        assert_eq!(codec::decode::<SlotTask>(&want), Ok(task));
    }

    /// The codec is positional: a field that is left out when it is empty would shift all that follow.
    #[test]
    fn stored_objects_with_empty_fields_are_read_back() {
        let port = PortConfig { target_port: 80, published_port: 8080, ..PortConfig::default() };
        let service = ServiceObject {
            index: 1,
            created: WallTime(1),
            updated: WallTime(2),
            spec: "{}".to_owned(),
            previous_spec: None,
            rolled_back: false,
            ports: vec![port.clone()],
            credentials: Some(Sealed { edition: 1, data: vec![7] }),
            previous_credentials: None,
        };
        let generic = GenericResources::parse(["gpu=2", "ssd=a", "ssd=b"]).unwrap();
        let given = SlotTask { generic: generic.clone(), ..SlotTask::default() };
        let task = SlotTask { id: TaskId(1), ports: vec![port], ..SlotTask::default() };
        let id = ServiceId(1);
        for (key, value) in [
            (Key::Service(id), Value::Service(service)),
            (Key::Slot(id, SlotName::Replica(1)), Value::Slot(Slot { tasks: vec![task, given] })),
            (Key::NodeStatus(NodeId(1)), Value::NodeStatus(NodeStatus::default())),
            (Key::NodeStatus(NodeId(2)), Value::NodeStatus(NodeStatus { generic, ..NodeStatus::default() })),
        ] {
            let body = value.seal().unwrap();
            assert_eq!(Value::read(&key, SCHEMA, &body), Ok(value), "{key:?}");
        }
    }
}
