//! Who is there: suspicion from silence or a broken connection, confirmed by probes before any verdict.
//!
//! A judge that is itself slow mistrusts itself: it measures how late its own ticks come, does not count the time in which
//! it could not listen as silence of others, and gives no verdict for a while (after Lifeguard: Dadgar, Phillips, Currey,
//! "Lifeguard: Local Health Awareness for More Accurate Failure Detection", arXiv 1707.00788). When most members fall
//! silent at once it is probably the judge's own network, so those verdicts wait longer.
//!
//! Assumes that the caller reports every authenticated frame, and that probes are made on fresh connections. Does not know
//! what a verdict entails.

mod suspicion;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use shoal_protocol::{NodeId, Time};

pub use suspicion::PROBE_WAIT;

use suspicion::{Finding, HELPERS, Suspicion};

/// How often [`Event::Tick`] is due.
pub const TICK_EVERY: Duration = Duration::from_millis(100);

/// How often a peer is pinged that is not heard anyway.
pub const PING_EVERY: Duration = Duration::from_millis(250);

/// Silence after which a peer that is pinged that often is suspected: four missed pings.
const SILENCE_MAX: Duration = Duration::from_millis(1000);

/// Members up to which everyone pings everyone. In larger clusters each node watches [`WATCHED`] others closely and the
/// rest [`REST_SLOWDOWN`] times more slowly; what it hears of those from chitchat makes it probe them at once.
const FULL_WATCH_MAX: usize = 16;

/// Nodes that are watched closely in a larger cluster: those that follow in the order of IDs.
const WATCHED: usize = 3;

/// How much more slowly the others are watched.
const REST_SLOWDOWN: u32 = 8;

/// How often a peer is pinged that is heard all the time: documents are compared by what pings say.
const PING_AT_LEAST: Duration = Duration::from_secs(3);

/// How long a listed node may take to be heard for the first time before it is suspected.
const UNHEARD_MAX: Duration = Duration::from_secs(5);

/// How long a node that announced its restart may be away.
pub const RESTART_MAX: Duration = Duration::from_secs(30);

/// How long frames that were under way may still arrive after a farewell.
const FAREWELL_ECHO: Duration = Duration::from_secs(1);

/// Least time from suspicion to verdict: a daemon that its supervisor starts again at once need not lose its tasks.
const VERDICT_MIN: Duration = Duration::from_millis(250);

/// Least time from suspicion to verdict when most members fell silent at once.
const BRAKED_VERDICT_MIN: Duration = Duration::from_millis(2500);

/// Time within which members fall silent "at once".
const BRAKE_WINDOW: Duration = Duration::from_secs(3);

/// How late a tick may come before this node mistrusts itself.
const LATE_MAX: Duration = Duration::from_millis(150);

/// How much longer than it was late a node mistrusts itself: answers that wait in its queues have to be read first.
const MISTRUST_EXTRA: Duration = Duration::from_millis(300);

/// How long to wait after a round that other nodes' probes contradicted.
const ROUND_PAUSE: Duration = Duration::from_secs(1);

/// What is known of a node's health.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// Listed, and not heard yet.
    Unknown,
    /// Heard lately.
    Alive,
    /// Silent or cut off, not confirmed.
    Suspect,
    /// Confirmed to be gone, until it is heard again.
    Failed,
    /// Announced that it would be back by then; judged like any other afterwards.
    Restarting {
        /// When its absence stops being normal.
        until: Time,
    },
    /// Said that it left the cluster.
    Left,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// An authenticated frame of any kind came from a node.
    Heard {
        /// Which.
        node: NodeId,
    },
    /// A connection to a node is open.
    Connected {
        /// Which.
        node: NodeId,
    },
    /// The last connection to a node broke.
    Disconnected {
        /// Which.
        node: NodeId,
    },
    /// chitchat's opinion: a hint whom to probe, never a verdict.
    Phi {
        /// About whom.
        node: NodeId,
        /// What.
        alive: bool,
    },
    /// The outcome of an [`Action::Probe`].
    Probe {
        /// Of whom.
        node: NodeId,
        /// The number of the question.
        request: u64,
        /// Whether it answered on a fresh connection.
        alive: bool,
    },
    /// The outcome of an [`Action::AskProbe`].
    Probed {
        /// Who probed.
        by: NodeId,
        /// Whom.
        node: NodeId,
        /// The number of the question.
        request: u64,
        /// Whether it answered on a fresh connection.
        alive: bool,
    },
    /// A node said that it goes away.
    Farewell {
        /// Which.
        node: NodeId,
        /// Whether it will be back.
        restarting: bool,
    },
    /// The listed nodes; this one may be among them.
    Members(BTreeSet<NodeId>),
    /// Time has passed; due at [`View::poll_timeout`]. Its lateness is this node's scheduling delay.
    Tick,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Ping a node on the open connection.
    Ping {
        /// Which.
        node: NodeId,
    },
    /// Dial a node afresh, say whether it answers; give up before [`PROBE_WAIT`] is over.
    Probe {
        /// Which.
        node: NodeId,
        /// For the answer.
        request: u64,
    },
    /// Ask another node to do so.
    AskProbe {
        /// Whom to ask.
        via: NodeId,
        /// Whom it shall probe.
        node: NodeId,
        /// For the answer.
        request: u64,
    },
    /// A node's health changed.
    Health {
        /// Whose.
        node: NodeId,
        /// To what.
        health: Health,
    },
}

/// One other node.
#[derive(Debug, Clone)]
struct Peer {
    health: Health,
    /// When it was heard, or began to be waited for.
    heard: Time,
    pinged: Time,
    /// When it said goodbye, until its connection breaks.
    farewell: Option<Time>,
    suspicion: Option<Suspicion>,
}

impl Peer {
    fn new(now: Time) -> Self {
        Self { health: Health::Unknown, heard: now, pinged: Time(0), farewell: None, suspicion: None }
    }
}

/// The health of all listed nodes, as one of them sees it.
#[derive(Debug)]
pub struct View {
    me: NodeId,
    peers: BTreeMap<NodeId, Peer>,
    /// Nodes with an open connection, listed or not yet.
    connected: BTreeSet<NodeId>,
    ticked: Time,
    mistrust_until: Time,
    /// When members fell silent lately.
    fallen: BTreeMap<NodeId, Time>,
    requests: u64,
    /// Suspects that were found to be alive, since somebody last asked.
    refuted: u64,
    actions: VecDeque<Action>,
}

impl View {
    /// Returns a view that knows no other node yet.
    pub fn new(me: NodeId, now: Time) -> Self {
        Self {
            me,
            peers: BTreeMap::new(),
            connected: BTreeSet::new(),
            ticked: now,
            mistrust_until: Time(0),
            fallen: BTreeMap::new(),
            requests: 0,
            refuted: 0,
            actions: VecDeque::new(),
        }
    }

    /// Advances by one event.
    pub fn handle_event(&mut self, event: Event, now: Time) {
        match event {
            Event::Heard { node } => self.on_heard(node, now),
            Event::Connected { node } => self.on_connected(node, now),
            Event::Disconnected { node } => self.on_disconnected(node, now),
            Event::Phi { node, alive } => self.on_hint(node, alive, now),
            Event::Probe { node, request, alive } => self.on_probe(node, request, alive, now),
            Event::Probed { by, node, request, alive } => self.on_probed(by, node, request, alive, now),
            Event::Farewell { node, restarting } => self.on_farewell(node, restarting, now),
            Event::Members(members) => self.on_members(&members, now),
            Event::Tick => self.on_tick(now),
        }
    }

    /// Returns the next thing to do.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Returns when [`Event::Tick`] is due.
    pub fn poll_timeout(&self) -> Option<Time> {
        let suspicions = self.peers.values().filter_map(|peer| peer.suspicion.as_ref());
        let next_steps = suspicions.map(|suspicion| suspicion.next_step(VERDICT_MIN)).filter(|&at| at > self.ticked);
        next_steps.chain([self.ticked + TICK_EVERY]).min()
    }

    /// Returns a node's health; this node is alive, an unlisted one unknown.
    pub fn health(&self, node: NodeId) -> Health {
        match self.peers.get(&node) {
            _ if node == self.me => Health::Alive,
            Some(peer) => peer.health,
            None => Health::Unknown,
        }
    }

    /// Returns the nodes that are alive, this one included.
    pub fn alive(&self) -> BTreeSet<NodeId> {
        let alive = self.peers.iter().filter(|(_, peer)| peer.health == Health::Alive);
        alive.map(|(&node, _)| node).chain([self.me]).collect()
    }

    /// Returns when a node was last heard, if ever.
    pub fn last_heard(&self, node: NodeId) -> Option<Time> {
        self.peers.get(&node).filter(|peer| peer.health != Health::Unknown).map(|peer| peer.heard)
    }

    /// Returns how many suspects were found to be alive since this was last asked.
    pub fn take_refuted(&mut self) -> u64 {
        std::mem::take(&mut self.refuted)
    }

    /// Returns how late this node's next tick is already.
    pub fn scheduling_delay(&self, now: Time) -> Duration {
        now.since(self.ticked).saturating_sub(TICK_EVERY)
    }

    /// Returns whether this node trusts itself to judge others: it runs on time, and has for a while.
    pub fn judges(&self, now: Time) -> bool {
        self.scheduling_delay(now) <= LATE_MAX && self.mistrust_until <= now
    }

    fn on_heard(&mut self, node: NodeId, now: Time) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        if peer.farewell.is_some_and(|at| now.since(at) < FAREWELL_ECHO) {
            return;
        }
        peer.heard = now;
        peer.farewell = None;
        peer.suspicion = None;
        self.fallen.remove(&node);
        self.set_health(node, Health::Alive);
    }

    fn on_connected(&mut self, node: NodeId, now: Time) {
        self.connected.insert(node);
        let Some(peer) = self.peers.get_mut(&node) else { return };
        peer.farewell = None;
        self.on_heard(node, now);
    }

    fn on_disconnected(&mut self, node: NodeId, now: Time) {
        self.connected.remove(&node);
        let Some(peer) = self.peers.get_mut(&node) else { return };
        peer.farewell = None;
        match peer.health {
            Health::Alive => self.suspect(node, now),
            Health::Unknown | Health::Suspect | Health::Failed | Health::Restarting { .. } | Health::Left => {}
        }
    }

    fn on_hint(&mut self, node: NodeId, alive: bool, now: Time) {
        let Some(peer) = self.peers.get(&node) else { return };
        if !alive && peer.health == Health::Alive && now.since(peer.heard) > 2 * PING_EVERY {
            self.suspect(node, now);
        }
    }

    fn on_farewell(&mut self, node: NodeId, restarting: bool, now: Time) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        peer.farewell = Some(now);
        peer.suspicion = None;
        self.fallen.remove(&node);
        let health = if restarting { Health::Restarting { until: now + RESTART_MAX } } else { Health::Left };
        self.set_health(node, health);
    }

    fn on_members(&mut self, members: &BTreeSet<NodeId>, now: Time) {
        self.peers.retain(|node, _| members.contains(node));
        self.fallen.retain(|node, _| members.contains(node));
        for &node in members.iter().filter(|&&node| node != self.me) {
            self.peers.entry(node).or_insert_with(|| Peer::new(now));
        }
    }

    fn on_probe(&mut self, node: NodeId, request: u64, alive: bool, now: Time) {
        if alive {
            return self.on_heard(node, now);
        }
        let suspicion = self.peers.get_mut(&node).and_then(|peer| peer.suspicion.as_mut());
        if let Some(suspicion) = suspicion.filter(|suspicion| suspicion.request == request) {
            suspicion.note_own(false);
            self.judge(node, now);
        }
    }

    fn on_probed(&mut self, by: NodeId, node: NodeId, request: u64, alive: bool, now: Time) {
        let suspicion = self.peers.get_mut(&node).and_then(|peer| peer.suspicion.as_mut());
        if let Some(suspicion) = suspicion.filter(|suspicion| suspicion.request == request) {
            suspicion.note_helper(by, alive);
            self.judge(node, now);
        }
    }

    fn on_tick(&mut self, now: Time) {
        let delay = self.scheduling_delay(now);
        self.ticked = now;
        if delay > LATE_MAX {
            self.mistrust_until = self.mistrust_until.max(now + delay + MISTRUST_EXTRA);
        }
        // Nobody was silent while this node did not listen, and no probe had its time.
        for peer in self.peers.values_mut().filter(|_| !delay.is_zero()) {
            peer.heard = (peer.heard + delay).min(now);
            if let Some(suspicion) = &mut peer.suspicion {
                suspicion.deadline = suspicion.deadline + delay;
            }
        }
        let nodes: Vec<NodeId> = self.peers.keys().copied().collect();
        for (place, &node) in nodes.iter().enumerate() {
            let slowdown = if self.is_watched(&nodes, place) { 1 } else { REST_SLOWDOWN };
            self.tick_peer(node, slowdown, now);
        }
    }

    /// Whether a peer is watched closely: all are in a small cluster, in a large one those that follow this node.
    fn is_watched(&self, nodes: &[NodeId], place: usize) -> bool {
        let first = nodes.partition_point(|&node| node < self.me);
        nodes.len() < FULL_WATCH_MAX || (place + nodes.len() - first) % nodes.len() < WATCHED
    }

    fn tick_peer(&mut self, node: NodeId, slowdown: u32, now: Time) {
        let Some(peer) = self.peers.get(&node) else { return };
        let silence = now.since(peer.heard);
        match peer.health {
            Health::Alive if silence > SILENCE_MAX * slowdown => self.suspect(node, now),
            Health::Unknown if silence > UNHEARD_MAX => self.suspect(node, now),
            Health::Restarting { until } if until <= now => self.suspect(node, now),
            Health::Suspect => self.judge(node, now),
            Health::Alive | Health::Unknown | Health::Restarting { .. } | Health::Failed | Health::Left => {}
        }
        let Some(peer) = self.peers.get_mut(&node).filter(|_| self.connected.contains(&node)) else { return };
        // A ping is heard by both ends: the one with the greater ID pings only if the other does not.
        let patience = if self.me < node { PING_EVERY } else { PING_EVERY * 3 / 2 } * slowdown;
        let slack = TICK_EVERY / 2;
        let is_silent =
            now.since(peer.heard) + slack >= patience && now.since(peer.pinged) + slack >= PING_EVERY * slowdown;
        if is_silent || (self.me < node && now.since(peer.pinged) >= PING_AT_LEAST) {
            peer.pinged = now;
            self.actions.push_back(Action::Ping { node });
        }
    }

    fn suspect(&mut self, node: NodeId, now: Time) {
        self.fallen.retain(|_, &mut at| now.since(at) <= BRAKE_WINDOW);
        self.fallen.insert(node, now);
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.suspicion = Some(Suspicion::new(now));
        }
        self.set_health(node, Health::Suspect);
        self.begin_round(node, now);
    }

    /// Probes a suspect on a fresh connection, and has it probed by the next nodes that are alive.
    fn begin_round(&mut self, node: NodeId, now: Time) {
        let is_fit = |(other, peer): &(&NodeId, &Peer)| {
            **other != node && peer.health == Health::Alive && self.connected.contains(other)
        };
        let fit: Vec<NodeId> = self.peers.iter().filter(is_fit).map(|(&other, _)| other).collect();
        self.requests += 1;
        let request = self.requests;
        let turn = usize::try_from(request % fit.len().max(1) as u64).unwrap_or_default();
        let helpers = fit.iter().cycle().skip(turn).take(HELPERS.min(fit.len())).copied();
        let Some(suspicion) = self.peers.get_mut(&node).and_then(|peer| peer.suspicion.as_mut()) else { return };
        suspicion.begin_round(request, helpers, now);
        self.actions.push_back(Action::Probe { node, request });
        for via in suspicion.helpers() {
            self.actions.push_back(Action::AskProbe { via, node, request });
        }
    }

    fn judge(&mut self, node: NodeId, now: Time) {
        let (judges, is_braked) = (self.judges(now), self.is_braked(now));
        let Some(suspicion) = self.peers.get_mut(&node).and_then(|peer| peer.suspicion.as_mut()) else { return };
        if let Some(until) = suspicion.rests_until {
            if until <= now {
                self.begin_round(node, now);
            }
            return;
        }
        let age = now.since(suspicion.since);
        match suspicion.finding(now) {
            Finding::Waiting => {}
            Finding::Reachable => self.on_heard(node, now),
            Finding::Unclear => self.begin_round(node, now),
            Finding::ReachableByOthers => suspicion.rests_until = Some(now + ROUND_PAUSE),
            Finding::Dead if !judges => suspicion.rests_until = Some(self.mistrust_until.max(now + TICK_EVERY)),
            Finding::Dead if is_braked && age < BRAKED_VERDICT_MIN => suspicion.rests_until = Some(now + PROBE_WAIT),
            Finding::Dead if age < VERDICT_MIN => {}
            Finding::Dead => {
                suspicion.rests_until = None;
                self.set_health(node, Health::Failed);
            }
        }
    }

    /// Whether most of the members that were there fell silent at once: then it is probably this node that is cut off.
    fn is_braked(&self, now: Time) -> bool {
        let fell = |node: &NodeId| self.fallen.get(node).is_some_and(|&at| now.since(at) <= BRAKE_WINDOW);
        let fallen = self.peers.keys().filter(|node| fell(node)).count();
        let was_there = |(node, peer): &(&NodeId, &Peer)| fell(node) || peer.health == Health::Alive;
        let members = 1 + self.peers.iter().filter(was_there).count();
        fallen >= 2 && fallen * 2 > members
    }

    fn set_health(&mut self, node: NodeId, health: Health) {
        let Some(peer) = self.peers.get_mut(&node).filter(|peer| peer.health != health) else { return };
        self.refuted += u64::from(peer.health == Health::Suspect && health == Health::Alive);
        peer.health = health;
        if health != Health::Suspect {
            peer.suspicion = None;
        }
        self.actions.push_back(Action::Health { node, health });
    }
}
