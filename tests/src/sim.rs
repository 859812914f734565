//! A simulated cluster: the real decisions of every node, with seeded time, network, disks and containers around them.
//!
//! One seed gives one run, event for event. Faults are drawn from the seed as well, counted, and end before the checks of
//! the final state; the checks of safety are made after every event.

use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use shoal_control::core::{Action, Event, Faults, RequestId, bootstrap};
use shoal_control::task::{DriverCall, DriverReport};
use shoal_protocol::message::PeerMessage;
use shoal_protocol::spec::Availability;
use shoal_protocol::token::Role;
use shoal_protocol::value::ClusterObject;
use shoal_protocol::write::{Write, WriteError, Written};
use shoal_protocol::{ClusterId, NodeId, Now, TaskId, Time, WallTime};

pub mod check;
pub mod host;
mod roles;
pub mod workload;

pub use host::{BROKEN_IMAGE, JOB_IMAGE};

use host::Host;

/// How a run is shaped.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Everything random follows from it.
    pub seed: u64,
    /// Nodes, of which the first three are managers (or all, if fewer).
    pub nodes: usize,
    /// Safety rules that are switched off.
    pub faults: Faults,
    /// Share of messages that are lost, in percent.
    pub loss_percent: u8,
    /// One-way delay of a message at most.
    pub delay_max: Duration,
}

impl Options {
    /// Returns the options of a run with all safety rules on.
    pub fn new(seed: u64, nodes: usize) -> Self {
        Self { seed, nodes, faults: Faults::default(), loss_percent: 0, delay_max: Duration::from_millis(20) }
    }
}

/// What the network, the disks and the containers bring about.
#[derive(Debug, Clone)]
enum Happening {
    /// Time goes on for a node.
    Wake,
    /// An event reaches a node, if it still is in the life it was meant for.
    Event { life: u64, event: Box<Event> },
    /// A manager answers a node that asked for another credential.
    Renewed { life: u64 },
    /// The work of a container is done.
    Ends { task: TaskId },
    /// A batch reaches a node's disk.
    Disk { life: u64, token: u64, batch: Box<shoal_control::core::PersistBatch> },
}

/// A happening in the queue: earliest first, then in the order they were queued.
#[derive(Debug)]
struct Queued {
    at: Time,
    order: u64,
    node: usize,
    what: Happening,
}

impl PartialEq for Queued {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}
impl Eq for Queued {}
impl PartialOrd for Queued {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Queued {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (other.at, other.order).cmp(&(self.at, self.order))
    }
}

/// How often each kind of fault happened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Daemons killed, with or without their containers.
    pub crashes: u64,
    /// Cables cut.
    pub cuts: u64,
    /// Messages lost.
    pub lost: u64,
    /// Messages delayed by more than the usual.
    pub delayed: u64,
    /// Processes of lease holders paused.
    pub pauses: u64,
    /// Nodes that somebody wanted to have another role, or the same again.
    pub roles: u64,
    /// New roots and managers' keys made.
    pub rotations: u64,
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.crashes += other.crashes;
        self.cuts += other.cuts;
        self.lost += other.lost;
        self.delayed += other.delayed;
        self.pauses += other.pauses;
        self.roles += other.roles;
        self.rotations += other.rotations;
    }
}

/// A simulated cluster.
pub struct Sim {
    options: Options,
    now: Time,
    order: u64,
    queue: BinaryHeap<Queued>,
    random: StdRng,
    hosts: Vec<Host>,
    cut: BTreeSet<usize>,
    /// Messages that are under way for as long as it pleases a test, by sender.
    delayed: BTreeMap<usize, Vec<(NodeId, PeerMessage)>>,
    last_request: RequestId,
    answers: BTreeMap<RequestId, Result<Written, WriteError>>,
    history: check::History,
    /// What happened to this cluster so far.
    pub counts: Counts,
}

/// A time of day for records to show; no decision may depend on it.
const WALL_START: u64 = 1_700_000_000_000_000_000;

impl Sim {
    /// Starts a cluster and lets every node join it.
    ///
    /// # Panics
    /// When the nodes cannot form a cluster: then there is nothing to test.
    pub fn new(options: Options) -> Self {
        let mut sim = Self {
            options,
            now: Time(1_000),
            order: 0,
            queue: BinaryHeap::new(),
            random: StdRng::seed_from_u64(options.seed),
            hosts: Vec::new(),
            cut: BTreeSet::new(),
            delayed: BTreeMap::new(),
            last_request: 0,
            answers: BTreeMap::new(),
            history: check::History::default(),
            counts: Counts::default(),
        };
        for index in 0..options.nodes {
            let role = if index < 3 { Role::Manager } else { Role::Worker };
            let id = NodeId(sim.random.random());
            sim.hosts.push(Host::new(id, role));
        }
        sim.found();
        for index in 1..options.nodes {
            let write = Write::AdmitNode {
                id: sim.hosts[index].id,
                role: sim.hosts[index].granted.role,
                availability: Availability::Active,
            };
            let request = sim.request(0, write);
            assert!(
                sim.run_until(Duration::from_secs(30), |sim| sim.answers.contains_key(&request)),
                "node {index} was not admitted; replay: SHOAL_SEED={}",
                options.seed
            );
            assert!(sim.answers[&request].is_ok(), "{:?}", sim.answers[&request]);
            sim.start(index);
        }
        assert!(
            sim.run_until(Duration::from_secs(30), Self::is_formed),
            "the nodes do not know each other; replay: SHOAL_SEED={}",
            options.seed
        );
        sim
    }

    /// Returns whether every node knows all others, and the voters are as many as the managers allow.
    fn is_formed(&self) -> bool {
        let voters = if self.hosts.len() < 3 { 1 } else { 3 };
        self.hosts.iter().filter_map(Host::control).all(|control| {
            let store = control.store();
            let known = self.hosts.iter().all(|host| store.node_status(host.id).is_some());
            known && control.voters().members.len() == voters && control.has_quorum(self.now)
        })
    }

    fn found(&mut self) {
        let id = self.hosts[0].id;
        let cluster = ClusterObject::first(ClusterId(1), id, "root".to_owned(), Vec::new(), WallTime(WALL_START));
        let (records, leases) = bootstrap::first_document(id, Availability::Active, cluster, WallTime(WALL_START))
            .expect("a small document can be encoded");
        self.hosts[0].disk_init(records, leases);
        self.start(0);
    }

    /// Returns the present moment of the simulation.
    pub fn now(&self) -> Now {
        Now { time: self.now, wall: WallTime(WALL_START + self.now.0 * 1_000_000) }
    }

    /// Returns the hosts.
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// Returns how many nodes there are.
    pub fn len(&self) -> usize {
        self.hosts.len()
    }

    /// Returns whether there are no nodes.
    pub fn is_empty(&self) -> bool {
        self.hosts.is_empty()
    }

    fn queue(&mut self, after: Duration, node: usize, what: Happening) {
        self.order += 1;
        self.queue.push(Queued { at: self.now + after, order: self.order, node, what });
    }

    /// Starts a host's daemon with what is on its disk, and connects it.
    pub fn start(&mut self, index: usize) {
        let seed = self.random.random();
        let now = self.now();
        self.hosts[index].start(seed, self.options.faults, now);
        let found = self.hosts[index].containers();
        let life = self.hosts[index].life;
        self.queue(Duration::ZERO, index, Happening::Event { life, event: Box::new(Event::Found(found)) });
        self.queue(Duration::ZERO, index, Happening::Wake);
        for other in 0..self.hosts.len() {
            if other != index && self.hosts[other].is_running() {
                self.connect(index, other);
            }
        }
        self.perform(index);
    }

    fn connect(&mut self, a: usize, b: usize) {
        for (at, peer) in [(a, b), (b, a)] {
            let up = Event::PeerUp { node: self.hosts[peer].id, granted: self.hosts[peer].granted };
            let life = self.hosts[at].life;
            self.queue(Duration::from_millis(5), at, Happening::Event { life, event: Box::new(up) });
        }
    }

    /// Kills a host's daemon, and its containers too if `all`; peers see the connection end unless the cable is cut.
    pub fn crash(&mut self, index: usize, all: bool) {
        self.counts.crashes += 1;
        self.hosts[index].crash(all);
        let node = self.hosts[index].id;
        for peer in 0..self.hosts.len() {
            if peer != index && self.hosts[peer].is_running() && self.linked(index, peer) {
                let life = self.hosts[peer].life;
                let down = Box::new(Event::PeerDown { node });
                self.queue(Duration::from_millis(2), peer, Happening::Event { life, event: down });
            }
        }
    }

    /// Pauses a host's daemon: nothing reaches it until it is resumed, then everything does.
    pub fn pause(&mut self, index: usize) {
        self.counts.pauses += 1;
        self.hosts[index].paused = true;
    }

    /// Resumes a paused daemon.
    pub fn resume(&mut self, index: usize) {
        self.hosts[index].paused = false;
        for what in std::mem::take(&mut self.hosts[index].held_back) {
            self.queue(Duration::ZERO, index, what);
        }
        self.queue(Duration::ZERO, index, Happening::Wake);
    }

    /// Cuts a host's cable.
    pub fn cut(&mut self, index: usize) {
        if self.cut.insert(index) {
            self.counts.cuts += 1;
        }
    }

    /// Puts a host's cable back.
    pub fn heal(&mut self, index: usize) {
        self.cut.remove(&index);
    }

    /// Keeps what a host says from now on under way, until [`Sim::deliver_from`].
    pub fn delay_from(&mut self, index: usize) {
        self.delayed.entry(index).or_default();
    }

    /// Delivers what a host said since [`Sim::delay_from`].
    pub fn deliver_from(&mut self, index: usize) {
        for (to, message) in self.delayed.remove(&index).unwrap_or_default() {
            self.send(index, to, message);
        }
    }

    /// Sets the share of messages that get lost.
    pub fn set_loss(&mut self, percent: u8) {
        self.options.loss_percent = percent;
    }

    fn linked(&self, a: usize, b: usize) -> bool {
        !self.cut.contains(&a) && !self.cut.contains(&b)
    }

    /// Asks a node for a write; the answer can be read with [`Sim::answer`].
    pub fn request(&mut self, index: usize, write: Write) -> RequestId {
        self.last_request += 1;
        let request = self.last_request;
        let life = self.hosts[index].life;
        let event = Box::new(Event::Request { request, write });
        self.queue(Duration::ZERO, index, Happening::Event { life, event });
        request
    }

    /// Returns what came of a write so far.
    pub fn answer(&self, request: RequestId) -> Option<&Result<Written, WriteError>> {
        self.answers.get(&request)
    }

    /// Lets time pass.
    pub fn run_for(&mut self, duration: Duration) {
        let end = self.now + duration;
        while self.queue.peek().is_some_and(|queued| queued.at <= end) {
            self.step();
        }
        self.now = end;
    }

    /// Lets time pass until a condition holds. Returns whether it did within the deadline.
    pub fn run_until(&mut self, deadline: Duration, mut condition: impl FnMut(&Self) -> bool) -> bool {
        let end = self.now + deadline;
        while self.now < end {
            if condition(self) {
                return true;
            }
            self.run_for(Duration::from_millis(50));
        }
        condition(self)
    }

    fn step(&mut self) {
        let Some(Queued { at, node, what, .. }) = self.queue.pop() else { return };
        self.now = self.now.max(at);
        if let Happening::Ends { task } = what {
            if self.hosts[node].end(task) {
                let life = self.hosts[node].life;
                let report = DriverReport::Exited { code: 0, error: String::new() };
                let event = Box::new(Event::Driver { task, report });
                self.queue(Duration::ZERO, node, Happening::Event { life, event });
            }
            return;
        }
        if self.hosts[node].paused {
            if !matches!(what, Happening::Wake) {
                self.hosts[node].held_back.push(what);
            }
            return;
        }
        let now = self.now();
        let host = &mut self.hosts[node];
        match what {
            Happening::Wake => host.wake(now),
            Happening::Event { life, event } if life == host.life => host.handle(*event, now),
            Happening::Disk { life, token, batch } if life == host.life => {
                host.write_disk(*batch);
                host.handle(Event::Persisted { token }, now);
            }
            Happening::Renewed { life } if life == host.life => self.renew(node),
            Happening::Event { .. } | Happening::Disk { .. } | Happening::Renewed { .. } | Happening::Ends { .. } => {
                return;
            }
        }
        self.perform(node);
        self.history.observe(&self.hosts, self.now, self.options.seed);
    }

    /// Performs what a node asks for.
    fn perform(&mut self, index: usize) {
        while let Some(action) = self.hosts[index].poll_action() {
            let life = self.hosts[index].life;
            match action {
                Action::Send { to, message, .. } => self.send(index, to, message),
                Action::Persist { token, batch } => {
                    let after = Duration::from_millis(self.random.random_range(0..5));
                    self.queue(after, index, Happening::Disk { life, token, batch: Box::new(batch) });
                }
                Action::Reply { request, result } => {
                    self.answers.insert(request, result);
                }
                Action::Driver { task, call } => {
                    let starts = matches!(call, DriverCall::Start(_));
                    let reports = self.hosts[index].drive(task, call, &mut self.random);
                    if starts && let Some(after) = self.hosts[index].works_for(task, &mut self.random) {
                        self.queue(after, index, Happening::Ends { task });
                    }
                    for (after, report) in reports {
                        let event = Box::new(Event::Driver { task, report });
                        self.queue(after, index, Happening::Event { life, event });
                    }
                }
                Action::Adopt { .. }
                | Action::Routes { .. }
                | Action::Peers { .. }
                | Action::Trust(_)
                | Action::Reseal { .. }
                | Action::ResealCredentials { .. }
                | Action::Health { .. }
                | Action::LeaseAcquired { .. }
                | Action::LeaseLost { .. }
                | Action::Planned { .. }
                | Action::Trouble { .. } => {}
                Action::Probe { node, request, .. } => self.probe(index, node, request),
                Action::Rotate => self.rotate(index),
                Action::Removed => self.hosts[index].crash(true),
            }
        }
        self.watch_role(index);
        if let Some(at) = self.hosts[index].next_wake(self.now) {
            let after = at.since(self.now);
            self.queue(after, index, Happening::Wake);
        }
    }

    fn send(&mut self, from: usize, to: NodeId, message: PeerMessage) {
        if let Some(delayed) = self.delayed.get_mut(&from) {
            delayed.push((to, message));
            return;
        }
        let Some(peer) = self.hosts.iter().position(|host| host.id == to) else { return };
        if !self.hosts[peer].is_running() || !self.linked(from, peer) {
            return;
        }
        if self.random.random_range(0..100) < self.options.loss_percent {
            self.counts.lost += 1;
            return;
        }
        let mut delay = self.random.random_range(0..=self.options.delay_max.as_millis() as u64);
        if self.options.loss_percent > 0 && self.random.random_range(0..100) < 5 {
            self.counts.delayed += 1;
            delay += self.random.random_range(100..1_000);
        }
        // A stream keeps its order: nothing overtakes what was sent before.
        let at = (self.now + Duration::from_millis(delay)).max(self.hosts[from].last_arrival(peer));
        self.hosts[from].set_last_arrival(peer, at);
        let event = Box::new(Event::Message { from: self.hosts[from].id, message });
        let life = self.hosts[peer].life;
        self.queue(at.since(self.now), peer, Happening::Event { life, event });
    }

    fn probe(&mut self, from: usize, node: NodeId, request: u64) {
        let peer = self.hosts.iter().position(|host| host.id == node);
        let alive = peer
            .is_some_and(|peer| self.hosts[peer].is_running() && !self.hosts[peer].paused && self.linked(from, peer));
        let refused = peer.is_some_and(|peer| !self.hosts[peer].is_running() && self.linked(from, peer));
        let after = Duration::from_millis(if alive || refused { 10 } else { 500 });
        let event = Box::new(Event::Probed { node, request, alive });
        let life = self.hosts[from].life;
        self.queue(after, from, Happening::Event { life, event });
    }
}
