//! A small cluster in simulated time: clocks that drift, a network that loses, delays and parts, disks that take their
//! time, nodes that crash and stall; and an observer that sees all of it at once.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use shoal_protocol::lease::{LeaseId, LeaseMessage, VoterSet};
use shoal_protocol::{NodeId, Time};

use crate::lease::rank::favourite;
use crate::lease::{Action, Durable, Event, Faults, Leases, desired_voters};

/// Simulated milliseconds from one look at the cluster to the next.
const STEP_MS: u64 = 5;

/// What went wrong, for people.
pub(super) type Violation = String;

#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Counts {
    pub acquired: usize,
    pub lost: usize,
    pub crashes: usize,
    pub stalls: usize,
    pub cuts: usize,
    pub dropped: usize,
    pub voter_changes: usize,
    pub failed_writes: usize,
}

impl Counts {
    fn numbers(&mut self) -> [&mut usize; 8] {
        let Self { acquired, lost, crashes, stalls, cuts, dropped, voter_changes, failed_writes } = self;
        [acquired, lost, crashes, stalls, cuts, dropped, voter_changes, failed_writes]
    }

    pub fn add(&mut self, other: &Counts) {
        for (total, number) in self.numbers().into_iter().zip(other.clone().numbers()) {
            *total += *number;
        }
    }

    /// Whether each of these happened at least once.
    pub fn is_complete(&self) -> bool {
        self.clone().numbers().into_iter().all(|number| *number > 0)
    }
}

pub(super) struct Node {
    pub id: NodeId,
    pub leases: Option<Leases>,
    pub disk: Durable,
    writing: Option<(u64, u64, Durable)>,
    catching_up: Option<(u64, u64)>,
    /// Local milliseconds at real time 0, and per million real ones.
    origin: u64,
    rate_ppm: u64,
    stalled_until: u64,
    down_until: u64,
    backlog: Vec<(NodeId, LeaseMessage)>,
}

impl Node {
    fn now(&self, real: u64) -> Time {
        Time(self.origin + real * self.rate_ppm / 1_000_000)
    }

    fn runs(&self, real: u64) -> bool {
        self.leases.is_some() && self.stalled_until <= real
    }
}

pub(super) struct Cluster {
    pub seed: u64,
    pub random: StdRng,
    pub real: u64,
    pub nodes: Vec<Node>,
    pub listed: BTreeSet<NodeId>,
    pub settled: Vec<NodeId>,
    pub loss_percent: u32,
    pub counts: Counts,
    faults: Faults,
    flying: BTreeMap<(u64, u64), (NodeId, NodeId, LeaseMessage)>,
    sent: u64,
    cut: BTreeSet<NodeId>,
    highest: BTreeMap<LeaseId, (u64, NodeId, u64)>,
    decided: BTreeMap<u64, VoterSet>,
}

impl Cluster {
    pub fn new(seed: u64, size: u128, faults: Faults) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let mut nodes = Vec::new();
        for number in 0..size {
            let id = NodeId(1 + number * 7);
            nodes.push(Node {
                id,
                leases: None,
                disk: if number == 0 { Leases::bootstrap(id) } else { Durable::default() },
                writing: None,
                catching_up: None,
                origin: random.random_range(0..1_000_000),
                rate_ppm: random.random_range(995_100..1_004_900),
                stalled_until: 0,
                down_until: 0,
                backlog: Vec::new(),
            });
        }
        let listed = nodes.iter().map(|node| node.id).collect();
        let mut cluster = Self {
            seed,
            random,
            real: 0,
            nodes,
            listed,
            settled: Vec::new(),
            loss_percent: 0,
            counts: Counts::default(),
            faults,
            flying: BTreeMap::new(),
            sent: 0,
            cut: BTreeSet::new(),
            highest: BTreeMap::new(),
            decided: BTreeMap::new(),
        };
        for index in 0..cluster.nodes.len() {
            cluster.start(index, false);
        }
        cluster
    }

    fn start(&mut self, index: usize, restarted: bool) {
        let (real, faults) = (self.real, self.faults);
        let node = &mut self.nodes[index];
        let leases = Leases::with_faults(node.id, node.disk.clone(), restarted, faults, node.now(real));
        node.leases = Some(leases);
        (node.writing, node.catching_up) = (None, None);
        node.backlog.clear();
    }

    pub fn index(&self, id: NodeId) -> usize {
        self.nodes.iter().position(|node| node.id == id).expect("nodes are never removed from the simulation")
    }

    pub fn crash(&mut self, index: usize, for_ms: u64) {
        let node = &mut self.nodes[index];
        node.leases = None;
        node.down_until = self.real + for_ms;
        // The write under way may or may not have reached the disk.
        if let Some((_, _, durable)) = node.writing.take()
            && self.random.random_bool(0.5)
        {
            node.disk = durable;
        }
        self.counts.crashes += 1;
    }

    pub fn stall(&mut self, index: usize, for_ms: u64) {
        self.nodes[index].stalled_until = self.real + for_ms;
        self.counts.stalls += 1;
    }

    pub fn cut(&mut self, index: usize) {
        self.cut = BTreeSet::from([self.nodes[index].id]);
        self.counts.cuts += 1;
    }

    pub fn heal(&mut self) {
        self.cut.clear();
        self.loss_percent = 0;
    }

    /// Delivers an event to one node and performs what it asks for.
    pub fn handle(&mut self, index: usize, event: Event) -> Result<(), Violation> {
        let real = self.real;
        let node = &mut self.nodes[index];
        let now = node.now(real);
        let Some(leases) = node.leases.as_mut() else { return Ok(()) };
        leases.handle_event(event, now);
        while let Some(action) = self.nodes[index].leases.as_mut().and_then(Leases::poll_action) {
            self.perform(index, action)?;
        }
        Ok(())
    }

    fn perform(&mut self, index: usize, action: Action) -> Result<(), Violation> {
        let real = self.real;
        match action {
            Action::Send { to, message } => self.send(index, to, message),
            Action::Persist { token, durable } => {
                let done_at = real + self.random.random_range(1..30);
                let node = &mut self.nodes[index];
                if node.writing.replace((done_at, token, durable)).is_some() {
                    return Err(format!("{} writes twice at once", node.id));
                }
            }
            Action::Acquired { lease, epoch } => {
                self.counts.acquired += 1;
                return self.check_acquired(index, lease, epoch);
            }
            Action::Lost { .. } => self.counts.lost += 1,
            Action::VotersChanged(set) => {
                let decided = self.decided.entry(set.version).or_insert_with(|| {
                    self.counts.voter_changes += 1;
                    set.clone()
                });
                if *decided != set {
                    return Err(format!("two sets were decided: {decided:?} and {set:?}"));
                }
            }
            Action::CatchUp { version, from, need } => {
                let up = from.iter().filter(|id| self.nodes[self.index(**id)].leases.is_some()).count();
                if up >= need {
                    let done_at = real + self.random.random_range(5..200);
                    self.nodes[index].catching_up = Some((done_at, version));
                }
            }
        }
        Ok(())
    }

    fn send(&mut self, index: usize, to: NodeId, message: LeaseMessage) {
        let from = self.nodes[index].id;
        let is_cut = self.cut.contains(&from) != self.cut.contains(&to);
        if is_cut || self.random.random_range(0..100) < self.loss_percent {
            self.counts.dropped += 1;
            return;
        }
        let is_slow = self.loss_percent > 0 && self.random.random_range(0..20) == 0;
        let delay = self.random.random_range(if is_slow { 100..4000 } else { 1..20 });
        self.sent += 1;
        self.flying.insert((self.real + delay, self.sent), (from, to, message));
    }

    /// Lets every node do what is due, then looks at all of them.
    pub fn step(&mut self) -> Result<(), Violation> {
        self.real += STEP_MS;
        let real = self.real;
        while let Some(entry) = self.flying.first_entry().filter(|entry| entry.key().0 <= real) {
            let (from, to, message) = entry.remove();
            let index = self.index(to);
            self.nodes[index].backlog.push((from, message));
        }
        for index in 0..self.nodes.len() {
            self.step_node(index)?;
        }
        self.check_holders()?;
        self.check_fence()
    }

    fn step_node(&mut self, index: usize) -> Result<(), Violation> {
        let real = self.real;
        let node = &mut self.nodes[index];
        if node.leases.is_none() {
            node.backlog.clear();
            if node.down_until > real {
                return Ok(());
            }
            self.start(index, true);
        }
        if !self.nodes[index].runs(real) {
            return Ok(());
        }
        if real.is_multiple_of(200) {
            self.feed(index)?;
        }
        for (from, message) in std::mem::take(&mut self.nodes[index].backlog) {
            self.handle(index, Event::Message { from, message })?;
        }
        if let Some((_, token, durable)) = self.nodes[index].writing.take_if(|(done_at, ..)| *done_at <= real) {
            if self.loss_percent > 0 && self.random.random_range(0..50) == 0 {
                self.counts.failed_writes += 1;
                self.handle(index, Event::PersistFailed(token))?;
            } else {
                self.nodes[index].disk = durable;
                self.handle(index, Event::Persisted(token))?;
            }
        }
        if let Some((_, version)) = self.nodes[index].catching_up.take_if(|(done_at, _)| *done_at <= real) {
            self.handle(index, Event::CaughtUp { version })?;
        }
        let node = &self.nodes[index];
        let due = node.leases.as_ref().and_then(Leases::poll_timeout);
        if due.is_some_and(|due| due <= node.now(real)) {
            self.handle(index, Event::Tick)?;
        }
        Ok(())
    }

    /// What the rest of a node would tell: who is alive, who holds what, who should vote.
    fn feed(&mut self, index: usize) -> Result<(), Violation> {
        let id = self.nodes[index].id;
        let is_seen = |node: &&Node| node.leases.is_some() && self.cut.contains(&node.id) == self.cut.contains(&id);
        let mut alive: BTreeSet<NodeId> = self.nodes.iter().filter(is_seen).map(|node| node.id).collect();
        alive.retain(|node| self.listed.contains(node));
        let others: Vec<VoterSet> =
            self.nodes.iter().filter(is_seen).filter_map(|node| Some(node.leases.as_ref()?.voters().clone())).collect();
        let eligible: Vec<NodeId> = alive.iter().copied().collect();
        self.handle(index, Event::Candidates { eligible, settled: self.settled.clone() })?;
        if self.random.random_range(0..10) == 0
            && let Some(newest) = others.into_iter().max_by_key(|set| set.version)
        {
            self.handle(index, Event::VotersSeen(newest))?;
        }
        let node = &self.nodes[index];
        let Some(leases) = node.leases.as_ref() else { return Ok(()) };
        if leases.held(LeaseId::REGISTRY, node.now(self.real)).is_some() {
            let desired = desired_voters(leases.voters(), &alive, &self.listed);
            self.handle(index, Event::ProposeVoters(desired))?;
        }
        Ok(())
    }

    /// Runs until `done`, at most `for_ms`.
    pub fn run_until(&mut self, for_ms: u64, mut done: impl FnMut(&Self) -> bool) -> Result<bool, Violation> {
        let end = self.real + for_ms;
        while self.real < end {
            self.step()?;
            if done(self) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    pub fn run(&mut self, for_ms: u64) -> Result<(), Violation> {
        self.run_until(for_ms, |_| false).map(|_| ())
    }

    pub fn holders(&self, lease: LeaseId) -> Vec<(NodeId, u64)> {
        let held = |node: &Node| Some((node.id, node.leases.as_ref()?.held(lease, node.now(self.real))?));
        self.nodes.iter().filter_map(held).collect()
    }

    /// Whether every lease is held, and every voter of the newest set is ready and known to all.
    pub fn is_well(&self) -> bool {
        let newest =
            self.nodes.iter().filter_map(|node| node.leases.as_ref()).map(|leases| leases.voters().version).max();
        let is_settled = |node: &Node| {
            node.leases.as_ref().is_some_and(|leases| {
                Some(leases.voters().version) == newest
                    && leases.has_quorum(node.now(self.real))
                    && (leases.is_ready() || !leases.voters().contains(node.id))
            })
        };
        self.nodes.iter().all(is_settled) && LeaseId::all().all(|lease| self.holders(lease).len() == 1)
    }

    fn check_holders(&self) -> Result<(), Violation> {
        for lease in LeaseId::all() {
            let holders = self.holders(lease);
            if holders.len() > 1 {
                return Err(format!("two holders of {lease} at {} ms: {holders:?}", self.real));
            }
        }
        Ok(())
    }

    fn check_acquired(&mut self, index: usize, lease: LeaseId, epoch: u64) -> Result<(), Violation> {
        let node = &self.nodes[index];
        let incarnation = node.disk.incarnation;
        let last = self.highest.insert(lease, (epoch, node.id, incarnation));
        match last {
            Some((before, ..)) if before >= epoch => {
                Err(format!("epoch of {lease} went from {before} to {epoch} at {} ms", self.real))
            }
            _ => Ok(()),
        }
    }

    /// No write under an ended epoch finds a majority, whatever set of voters its sender counts under.
    fn check_fence(&self) -> Result<(), Violation> {
        for (&lease, &(epoch, holder, _)) in &self.highest {
            for set in self.decided.values().chain([&VoterSet::first(self.nodes[0].id)]) {
                let accepts = |id: &&NodeId| {
                    let leases = self.nodes[self.index(**id)].leases.as_ref();
                    leases.is_some_and(|leases| leases.may_append(set.version, lease, epoch - 1))
                };
                if set.members.iter().filter(accepts).count() >= set.majority() {
                    return Err(format!(
                        "{lease}: {set:?} at {} ms accepts writes under {} though {} acquired {epoch}",
                        self.real,
                        epoch - 1,
                        holder.short(),
                    ));
                }
            }
        }
        Ok(())
    }
}

/// Forty seconds of everything going wrong, then peace, in which all leases have to be held again.
pub(super) fn chaos(seed: u64, faults: Faults) -> Result<Counts, Violation> {
    let mut cluster = Cluster::new(seed, 3 + u128::from(seed % 3), faults);
    let size = cluster.nodes.len();
    for _ in 0..20 {
        cluster.loss_percent = cluster.random.random_range(0..25);
        let victim = cluster.random.random_range(0..size);
        match cluster.random.random_range(0..9) {
            0 | 1 => {
                let down_ms = cluster.random.random_range(10..5000);
                cluster.crash(victim, down_ms);
            }
            2 => (0..size).for_each(|index| cluster.crash(index, 10)),
            3 | 4 => {
                let stall_ms = cluster.random.random_range(200..5000);
                cluster.stall(victim, stall_ms);
            }
            5 => cluster.cut(victim),
            6 => {
                // A holder that cannot renew, while all who know of it forget what they can.
                cluster.cut(victim);
                (0..size).filter(|&index| index != victim).for_each(|index| cluster.crash(index, 10));
            }
            7 => cluster.cut.clear(),
            _ => {
                let id = cluster.nodes[victim].id;
                if !cluster.listed.remove(&id) || cluster.listed.is_empty() {
                    cluster.listed.insert(id);
                }
            }
        }
        cluster.run(2000)?;
    }
    cluster.heal();
    cluster.listed = cluster.nodes.iter().map(|node| node.id).collect();
    if !cluster.run_until(40_000, Cluster::is_well)? {
        return Err(format!("not well again: {}", cluster.describe()));
    }
    Ok(cluster.counts)
}

impl Cluster {
    /// Whether every lease is held by the node that should have it.
    pub fn is_balanced(&self) -> bool {
        LeaseId::all().all(|lease| {
            let wanted = favourite(lease, self.nodes.iter().map(|node| node.id));
            self.holders(lease).first().map(|(holder, _)| *holder) == wanted
        })
    }

    /// Returns the node that holds most leases.
    pub fn busiest(&self) -> usize {
        let count = |node: &Node| LeaseId::all().filter(|&lease| self.holders(lease)[0].0 == node.id).count();
        (0..self.nodes.len()).max_by_key(|&index| count(&self.nodes[index])).expect("a cluster has nodes")
    }

    pub fn describe(&self) -> String {
        let mut text = String::new();
        for node in &self.nodes {
            let Some(leases) = &node.leases else { continue };
            let held: Vec<_> = LeaseId::all().filter_map(|lease| leases.held(lease, node.now(self.real))).collect();
            text += &format!(
                "\n{} voters {:?} ready {} held {held:?} quorum {} change {:?}",
                node.id.short(),
                leases.voters(),
                leases.is_ready(),
                leases.has_quorum(node.now(self.real)),
                leases.change,
            );
        }
        text
    }

    pub fn expect_within(&mut self, limit: Duration, what: &str, done: impl FnMut(&Self) -> bool) -> Duration {
        let began = self.real;
        let is_done = self.run_until(u64::try_from(limit.as_millis()).unwrap(), done).unwrap();
        assert!(is_done, "{what} did not happen within {limit:?}, seed {}{}", self.seed, self.describe());
        Duration::from_millis(self.real - began)
    }
}
