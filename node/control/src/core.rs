//! One node's decisions, wired together: what happens goes in, what to do comes out.
//!
//! Holds no policy of its own: membership is judged by [`crate::view`], leases by [`crate::lease`], the document by
//! [`crate::store`], tasks by [`crate::orchestrator`] and [`crate::task`]. This module carries their events and actions to
//! each other, drains them after every event, and turns the rest into messages and work for the shells.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::StdRng;
use shoal_protocol::lease::{LeaseId, VoterSet};
use shoal_protocol::record::Record;
use shoal_protocol::spec::{PublishedPort, TaskTemplate};
use shoal_protocol::token::{Role, RoleGrant};
use shoal_protocol::value::NodeStatus;
use shoal_protocol::{ClusterId, Key, NodeId, Now, ServiceId, TaskId, Time};

use crate::lease::{self, Leases};
use crate::orchestrator;
use crate::routes::RouteTable;
use crate::store::{Store, Tombstones};
use crate::task::admission::Capacity;
use crate::task::{Agent, NodeIdentity};
use crate::view::{self, Health, View};

pub mod bootstrap;
pub mod counts;
pub mod event;
pub mod registry;

mod commit;
mod holds;
mod keys;
mod leaving;
mod local;
mod messages;
mod news;
mod outbox;
mod release;
mod repair;
mod requests;
mod roles;
mod schedule;
mod sweep;
#[cfg(test)]
mod testing;
mod troubles;
mod writes;
mod yielding;

pub use counts::Counts;
pub use event::{Action, Event, PersistBatch, RequestId, Trust};
pub use keys::Relocking;
pub use news::News;
pub use release::Withheld;

/// How often time-driven decisions are looked at when nothing happens.
pub const TICK: Duration = Duration::from_millis(100);

/// What a node knows when its daemon starts.
#[derive(Debug, Clone)]
pub struct Boot {
    /// This node.
    pub me: NodeId,
    /// Its cluster.
    pub cluster: ClusterId,
    /// The role in its credential.
    pub granted: RoleGrant,
    /// Counted up durably with every start of the daemon.
    pub incarnation: u64,
    /// The records on disk.
    pub records: Vec<Record>,
    /// Grants and voters on disk; `None` before the node ever voted or heard of voters.
    pub leases: Option<lease::Durable>,
    /// Whether this daemon ran before as a member: then it may have granted leases that still run.
    pub restarted: bool,
    /// What the node says of itself.
    pub status: NodeStatus,
    /// Whether ports that tasks publish on this node alone are forwarded by shoal, not by an engine.
    pub serves_host_ports: bool,
    /// Where members were last reached.
    pub addresses: BTreeMap<NodeId, BTreeSet<SocketAddr>>,
    /// Seeds everything that is drawn at random: identifiers, choices among equals.
    pub seed: u64,
    /// Switches safety rules off, to show that their checks can fail. All on by default.
    pub faults: Faults,
}

/// Safety rules that a simulation can switch off. The daemon never does.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    /// Writes of lower epochs are believed.
    pub no_fencing: bool,
    /// Documents are never compared.
    pub no_repair: bool,
    /// What the lease core can be made to forget.
    pub leases: lease::Faults,
}

/// The decisions of one node.
#[derive(Debug)]
pub struct Control {
    me: NodeId,
    granted: RoleGrant,
    incarnation: u64,
    status_seq: u64,
    status: NodeStatus,
    random: StdRng,
    faults: Faults,
    store: Store,
    view: View,
    leases: Leases,
    agent: Agent,
    outbox: outbox::Outbox,
    repair: repair::Repair,
    requests: requests::Requests,
    troubles: troubles::Troubles,
    commit: commit::Commit,
    holds: holds::Holds,
    keys: keys::Keys,
    news: News,
    counts: Counts,
    peers: BTreeMap<NodeId, RoleGrant>,
    addresses: BTreeMap<NodeId, BTreeSet<SocketAddr>>,
    alive_since: BTreeMap<NodeId, Time>,
    /// Probes made for others: own number to (asker, their number).
    probes: BTreeMap<u64, (NodeId, u64)>,
    last_probe: u64,
    catching_up: BTreeMap<u64, CatchUp>,
    late: BTreeSet<Key>,
    tombstones: Tombstones,
    yielding: yielding::Yielding,
    /// The voter set under which this node has said that it is ready to vote.
    votes_said: u64,
    next_sweep: Time,
    templates: BTreeMap<TaskId, Result<Arc<TaskTemplate>, String>>,
    dirty: Dirty,
    memory: BTreeMap<ServiceId, orchestrator::Memory>,
    wakes: BTreeMap<ServiceId, Time>,
    routes: RouteTable,
    /// Whom the shells were told to let in.
    trust: Trust,
    host_ports: BTreeMap<PublishedPort, SocketAddr>,
    quorum_lost: Option<Time>,
    /// Why this node's disk takes no records, if it does not.
    storage: Option<String>,
    /// Whether a manager's document was seen since the start: before that, nothing is known to be unwanted.
    synced: bool,
    agent_synced: bool,
    serves_host_ports: bool,
    leaving: bool,
    removed: bool,
    next_tick: Time,
    started: Time,
}

/// A voter set that this node joins once it has merged from enough members of the previous one.
#[derive(Debug)]
struct CatchUp {
    serial: u64,
    from: BTreeSet<NodeId>,
    need: usize,
    done: BTreeSet<NodeId>,
}

/// What has to be looked at again before the next event.
#[derive(Debug, Default)]
struct Dirty {
    services: BTreeSet<ServiceId>,
    claims: BTreeSet<LeaseId>,
    voters: bool,
    members: bool,
    all_services: bool,
    wanted: bool,
    routes: bool,
    peers: bool,
    candidates: bool,
    keys: bool,
}

impl Control {
    /// Starts deciding for a node that is a member of a cluster.
    pub fn new(boot: Boot, now: Now) -> Self {
        let store = stored(&boot.records);
        let durable = boot.leases.unwrap_or_default();
        let identity = NodeIdentity::new(boot.me, boot.cluster, &boot.status);
        let mut control = Self {
            me: boot.me,
            granted: boot.granted,
            incarnation: boot.incarnation,
            status_seq: 0,
            agent: Agent::new(identity),
            status: boot.status,
            random: StdRng::seed_from_u64(boot.seed),
            faults: boot.faults,
            store,
            view: View::new(boot.me, now.time),
            leases: Leases::with_faults(boot.me, durable, boot.restarted, boot.faults.leases, now.time),
            outbox: outbox::Outbox::default(),
            repair: repair::Repair::default(),
            requests: requests::Requests::default(),
            troubles: troubles::Troubles::default(),
            commit: commit::Commit::default(),
            holds: holds::Holds::default(),
            keys: keys::Keys::default(),
            news: News::default(),
            counts: Counts::default(),
            peers: BTreeMap::new(),
            addresses: boot.addresses,
            alive_since: BTreeMap::new(),
            probes: BTreeMap::new(),
            last_probe: 0,
            catching_up: BTreeMap::new(),
            late: BTreeSet::new(),
            tombstones: Tombstones::new(),
            yielding: yielding::Yielding::default(),
            votes_said: 0,
            next_sweep: now.time + SWEEP_EVERY,
            templates: BTreeMap::new(),
            dirty: Dirty {
                all_services: true,
                wanted: true,
                routes: true,
                peers: true,
                candidates: true,
                members: true,
                voters: true,
                claims: LeaseId::all().collect(),
                ..Dirty::default()
            },
            memory: BTreeMap::new(),
            wakes: BTreeMap::new(),
            routes: RouteTable::new(),
            trust: Trust::default(),
            host_ports: BTreeMap::new(),
            quorum_lost: None,
            storage: None,
            synced: false,
            agent_synced: false,
            serves_host_ports: boot.serves_host_ports,
            leaving: false,
            removed: false,
            next_tick: now.time,
            started: now.time,
        };
        control.say_status();
        control.settle(now);
        control
    }

    /// Takes in what happened.
    pub fn handle_event(&mut self, event: Event, now: Now) {
        if self.removed {
            return;
        }
        // First of all: how late this is tells the view how far to trust what it did not hear.
        if self.view.poll_timeout().is_some_and(|due| due <= now.time) {
            self.view.handle_event(view::Event::Tick, now.time);
        }
        match event {
            Event::Tick => self.tick(now),
            Event::PeerUp { node, granted } => self.peer_up(node, granted, now),
            Event::PeerDown { node } => self.peer_down(node, now),
            Event::Message { from, message } => self.handle_message(from, message, now),
            Event::Persisted { token } => self.persisted(token, now),
            Event::PersistFailed { token, error } => self.persist_failed(token, error, now),
            Event::Storage(refusal) => self.storage_changed(refusal),
            Event::Request { request, write } => self.request(request, write, now),
            Event::Driver { task, report } => self.agent.handle_report(task, report, now),
            Event::Found(found) => self.agent.found(found, now),
            Event::Probed { node, request, alive } => self.probed(node, request, alive, now),
            Event::Phi { node, alive } => self.view.handle_event(view::Event::Phi { node, alive }, now.time),
            Event::Address { node, address } => self.learn_address(node, address),
            Event::Status(status) => {
                if self.status != status {
                    self.status = status;
                    self.agent.set_capacity(Capacity::of(&self.status));
                    self.say_status();
                }
            }
            Event::Granted(granted) => self.set_granted(granted, now),
            Event::Banned => self.end(),
            Event::Leave { restarting } => self.leave(restarting, now),
        }
        if self.next_tick <= now.time {
            self.tick(now);
        }
        self.settle(now);
    }

    /// Returns the next thing to do.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.outbox.pop()
    }

    /// Returns when the next [`Event::Tick`] is due.
    pub fn poll_timeout(&self) -> Time {
        let others =
            [self.view.poll_timeout(), self.leases.poll_timeout(), self.agent.poll_timeout(), self.outbox.timeout()];
        let wakes = self.wakes.values().copied();
        others.into_iter().flatten().chain(wakes).fold(self.next_tick, Time::min)
    }

    /// Everything that time alone brings about.
    fn tick(&mut self, now: Now) {
        self.next_tick = now.time + TICK;
        self.leases.handle_event(lease::Event::Tick, now.time);
        self.agent.handle_timeout(now);
        self.dirty.candidates = true;
        self.watch_quorum(now);
        self.start_repairs(now);
        self.expire_requests(now);
        self.propose_voters(now);
        self.sweep(now);
    }

    /// Carries events and actions between the parts until nothing is left to do.
    fn settle(&mut self, now: Now) {
        // Each round may cause another, but every cause is used up: changes of the document only ever move forward.
        for _ in 0..ROUNDS_MAX {
            let mut moved = self.drain_view(now);
            moved |= self.update_candidates(now);
            moved |= self.drain_leases(now);
            moved |= self.use_leases(now);
            moved |= self.say_readiness();
            moved |= self.take_changes();
            moved |= self.pass_on(now);
            moved |= self.reconcile(now);
            moved |= self.drain_agent(now);
            self.watch_keys(now);
            if !moved {
                break;
            }
        }
        self.update_routes();
        self.update_peers();
        self.outbox.flush(&self.peers, now.time);
    }

    /// This node was removed from its cluster.
    fn end(&mut self) {
        self.removed = true;
        self.outbox.push(Action::Removed);
    }

    fn peer_up(&mut self, node: NodeId, granted: RoleGrant, now: Now) {
        self.peers.insert(node, granted);
        self.view.handle_event(view::Event::Connected { node }, now.time);
        // Whoever just connected may have missed anything, and so may this node.
        if granted.role == Role::Manager && !self.faults.no_repair {
            self.repair.want(node);
        }
        self.say_everything_to(node);
        self.dirty.candidates = true;
    }

    fn peer_down(&mut self, node: NodeId, now: Now) {
        self.peers.remove(&node);
        self.repair.forget(node);
        self.view.handle_event(view::Event::Disconnected { node }, now.time);
        self.dirty.candidates = true;
    }
}

/// Makes the document of what was on disk.
fn stored(records: &[Record]) -> Store {
    let mut store = Store::new();
    for record in records {
        // What was on disk was checked before it was stored; what a newer version wrote is kept unopened.
        store.merge(record);
    }
    store.take_dirty();
    store
}

/// Returns the lease under which a record is written, if any.
fn lease_of(key: &Key) -> Option<LeaseId> {
    match *key {
        Key::Cluster | Key::Node(_) | Key::Service(_) | Key::Object(..) => Some(LeaseId::REGISTRY),
        Key::Progress(service) | Key::Slot(service, _) => Some(LeaseId::of_service(service)),
        // Its own stamp says under which epoch, and a voter set has an order of its own.
        Key::Claim(_) | Key::Voters | Key::NodeStatus(_) | Key::TaskStatus(..) => None,
    }
}

/// How often what nobody needs any more is looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(60);

/// Rounds of [`Control::settle`] for one event; what is left over waits for the next tick.
const ROUNDS_MAX: usize = 8;

/// What anyone may ask of a node.
impl Control {
    /// Returns this node's identifier.
    pub fn me(&self) -> NodeId {
        self.me
    }

    /// Returns the document.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Returns what is thought of a node.
    pub fn health(&self, node: NodeId) -> Health {
        if node == self.me { Health::Alive } else { self.view.health(node) }
    }

    /// Returns the role this node acts in.
    pub fn role(&self) -> Role {
        self.role_of(self.me)
    }

    /// Returns the voters that this node knows of.
    pub fn voters(&self) -> &VoterSet {
        self.leases.voters()
    }

    /// Returns whether a majority of the voters was heard lately. Workers, who do not ask them, judge by who is alive.
    pub fn has_quorum(&self, now: Time) -> bool {
        if self.is_manager(self.me) {
            return self.leases.has_quorum(now);
        }
        let voters = self.leases.voters();
        let alive = voters.members.iter().filter(|voter| self.is_alive(**voter)).count();
        !voters.members.is_empty() && alive >= voters.majority()
    }

    /// Returns why this node's disk takes no records, if it does not.
    pub fn storage_refusal(&self) -> Option<&str> {
        self.storage.as_deref()
    }

    /// Returns who holds a lease and under which epoch, as far as this node knows.
    pub fn holder(&self, lease: LeaseId) -> Option<(NodeId, u64)> {
        self.leases.holder(lease)
    }

    /// Returns how long a lease that this node holds is certainly valid.
    pub fn expires_in(&self, lease: LeaseId, now: Time) -> Option<Duration> {
        self.leases.expires_in(lease, now)
    }

    /// Returns whether this node holds a lease and has caught up with its last holder.
    pub fn uses(&self, lease: LeaseId, now: Time) -> Option<u64> {
        self.holds.ready(lease).filter(|epoch| self.leases.held(lease, now) == Some(*epoch))
    }

    /// Returns the root digest that a node sent last; this node's own is exact.
    pub fn digest_of(&self, node: NodeId) -> Option<u128> {
        if node == self.me { Some(self.store.digest()) } else { self.repair.digest_of(node) }
    }

    /// Returns what this node says of itself.
    pub fn own_status(&self) -> &NodeStatus {
        &self.status
    }

    /// Returns where a node listens, as last heard.
    pub fn addresses_of(&self, node: NodeId) -> BTreeSet<SocketAddr> {
        self.addresses.get(&node).cloned().unwrap_or_default()
    }

    /// Returns whether this node was removed from its cluster.
    pub fn is_removed(&self) -> bool {
        self.removed
    }

    /// Returns how many nodes' processes are connected.
    pub fn peers(&self) -> &BTreeMap<NodeId, RoleGrant> {
        &self.peers
    }

    pub(crate) fn is_alive(&self, node: NodeId) -> bool {
        matches!(self.health(node), Health::Alive | Health::Suspect)
    }
}
