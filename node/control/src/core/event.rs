//! What happens to a node's decisions, and what they ask for.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use shoal_protocol::lease::LeaseId;
use shoal_protocol::message::PeerMessage;
use shoal_protocol::record::Record;
use shoal_protocol::spec::PublishedPort;
use shoal_protocol::token::{Role, RoleGrant};
use shoal_protocol::value::NodeStatus;
use shoal_protocol::write::{Write, WriteError, Written};
use shoal_protocol::{Key, NodeId, ObjectId, ServiceId, TaskId};

use crate::lease;
use crate::routes::RouteTable;
use crate::task::{DriverCall, DriverReport, Found};
use crate::view::Health;

/// Number of a write that waits for its answer; chosen by whoever asks.
pub type RequestId = u64;

/// Something that happened outside.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Time went on. Due by [`super::Control::poll_timeout`] at the latest.
    Tick,
    /// An admitted peer is connected.
    PeerUp {
        /// Who.
        node: NodeId,
        /// The role in its credential.
        granted: RoleGrant,
    },
    /// The connection to a peer is gone.
    PeerDown {
        /// Who.
        node: NodeId,
    },
    /// A peer said something.
    Message {
        /// Who.
        from: NodeId,
        /// What.
        message: PeerMessage,
    },
    /// A batch is on disk.
    Persisted {
        /// The number in [`Action::Persist`].
        token: u64,
    },
    /// A batch is not on disk; everything that waited for it is refused.
    PersistFailed {
        /// The number in [`Action::Persist`].
        token: u64,
        /// For people, with the path and the way out.
        error: String,
    },
    /// Whether this node's disk takes records has changed: why it does not, or `None`.
    Storage(Option<String>),
    /// A user wants to write.
    Request {
        /// Repeated in [`Action::Reply`].
        request: RequestId,
        /// What.
        write: Write,
    },
    /// A driver reports about a task.
    Driver {
        /// Which task.
        task: TaskId,
        /// What.
        report: DriverReport,
    },
    /// The containers that the driver found when the daemon started.
    Found(Vec<Found>),
    /// A fresh connection that was asked for with [`Action::Probe`] answered, or did not.
    Probed {
        /// Who was probed.
        node: NodeId,
        /// The number in [`Action::Probe`].
        request: u64,
        /// Whether it answered.
        alive: bool,
    },
    /// The gossip layer changed its mind about a node: a hint, never a verdict.
    Phi {
        /// Who.
        node: NodeId,
        /// Whether heartbeats arrive as expected.
        alive: bool,
    },
    /// The gossip layer learned where a node listens.
    Address {
        /// Who.
        node: NodeId,
        /// Where.
        address: SocketAddr,
    },
    /// What this node says of itself changed.
    Status(NodeStatus),
    /// This node has a new credential, and shows it to its peers. Of a peer's new credential [`Event::PeerUp`] tells.
    Granted(RoleGrant),
    /// A manager of this cluster said, over a connection that proves who it is, that this node was removed.
    Banned,
    /// This node goes away: hands its leases over and says so.
    Leave {
        /// Whether it will be back and keeps its tasks.
        restarting: bool,
    },
}

/// Something the shells are to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Sends a message; it may be lost.
    Send {
        /// To whom.
        to: NodeId,
        /// What.
        message: PeerMessage,
        /// Whether it may wait behind other messages.
        bulk: bool,
    },
    /// Makes a batch durable, then reports [`Event::Persisted`] or [`Event::PersistFailed`]. Batches are made durable in order.
    Persist {
        /// Repeated in the event.
        token: u64,
        /// What.
        batch: PersistBatch,
    },
    /// Answers a user's write.
    Reply {
        /// The number of [`Event::Request`].
        request: RequestId,
        /// What came of it.
        result: Result<Written, WriteError>,
    },
    /// Calls the driver; its answer comes as [`Event::Driver`].
    Driver {
        /// For which task.
        task: TaskId,
        /// What.
        call: DriverCall,
    },
    /// Waits for the end of a container that was adopted.
    Adopt {
        /// Of which task.
        task: TaskId,
    },
    /// Dials a node afresh, then reports [`Event::Probed`].
    Probe {
        /// Who.
        node: NodeId,
        /// Where, if known.
        address: Option<SocketAddr>,
        /// Repeated in the event.
        request: u64,
    },
    /// Forwards published ports as this table says; replaces the last one.
    Routes {
        /// Ports on every node.
        ingress: RouteTable,
        /// Ports of tasks on this node alone.
        host: BTreeMap<PublishedPort, SocketAddr>,
    },
    /// Keeps connections to these nodes and to no others; replaces the last list.
    Peers {
        /// Members other than this node, with the addresses last heard.
        known: BTreeMap<NodeId, BTreeSet<SocketAddr>>,
        /// Removed nodes, refused for good.
        banned: BTreeSet<NodeId>,
    },
    /// Lets in who fits this; replaces the last one. Comes after [`Action::Peers`].
    Trust(Trust),
    /// Makes the next edition of the cluster's root, managers' key and join secrets, and asks for it to be written. Repeated
    /// until it is.
    Rotate,
    /// Seals a secret anew, with the present edition of the managers' key, and asks for it to be written. Repeated until it is.
    Reseal {
        /// Which.
        secret: ObjectId,
    },
    /// The same for a service's credentials.
    ResealCredentials {
        /// Which service.
        service: ServiceId,
    },
    /// This node changed its mind about another one: to be told and counted, nothing else.
    Health {
        /// About whom.
        node: NodeId,
        /// To what.
        health: Health,
    },
    /// This node holds a lease from now on: to be told and counted, nothing else, as are the next two.
    LeaseAcquired {
        /// Which.
        lease: LeaseId,
        /// Under which epoch.
        epoch: u64,
    },
    /// This node holds a lease no longer.
    LeaseLost {
        /// Which.
        lease: LeaseId,
        /// Under which epoch it was held.
        epoch: u64,
        /// Whether it ran out, because it could not be renewed; if not, it was given back.
        expired: bool,
    },
    /// A plan for a service changed something.
    Planned {
        /// Which service.
        service: ServiceId,
        /// Under which epoch.
        epoch: u64,
        /// How many slots and states of updates were written.
        writes: usize,
    },
    /// Something went wrong that an operator must know; see also [`super::Control::troubles`].
    Trouble {
        /// For people.
        what: String,
    },
    /// This node was removed from the cluster: stop its tasks, forget the membership.
    Removed,
}

/// What the document says of whom to let in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trust {
    /// The cluster's edition; 0 before anything was heard of it.
    pub edition: u64,
    /// The root certificate of that edition, PEM.
    pub root_pem: String,
    /// Certificates of former roots, PEM, newest first.
    pub former_roots: Vec<String>,
    /// The members, and whether they may be managers.
    pub listed: BTreeMap<NodeId, Role>,
}

/// What one transaction makes durable.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PersistBatch {
    /// Records to keep, replacing those of the same key.
    pub records: Vec<Record>,
    /// Keys to forget.
    pub removed: Vec<Key>,
    /// Grants and voters, if they changed.
    pub leases: Option<lease::Durable>,
}

impl PersistBatch {
    /// Returns whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty() && self.removed.is_empty() && self.leases.is_none()
    }
}
