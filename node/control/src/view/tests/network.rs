//! Views of several nodes over simulated connections that lose packets (and so delay frames, as TCP does), between daemons
//! that pause, die or are cut off.

use std::collections::{BTreeMap, BTreeSet};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use shoal_protocol::{NodeId, Time};

use crate::view::{Action, Event, Health, View};

/// What a shell waits for on a fresh connection, in milliseconds.
const DIAL_MS: u64 = 500;

enum Happening {
    Tick,
    Frame {
        from: NodeId,
        frame: Frame,
    },
    Event(Event),
    /// A helper's probe is over.
    Answer {
        to: NodeId,
        frame: Frame,
    },
}

enum Frame {
    Ping,
    Pong,
    Probe { target: NodeId, request: u64 },
    Probed { target: NodeId, request: u64, alive: bool },
}

struct Daemon {
    view: View,
    is_dead: bool,
    is_cut: bool,
    paused_until: u64,
}

pub(super) struct Network {
    pub now: u64,
    pub loss_percent: u32,
    /// When, by whom, of whom, what.
    pub log: Vec<(u64, NodeId, NodeId, Health)>,
    pub frames: u64,
    random: StdRng,
    daemons: BTreeMap<NodeId, Daemon>,
    queue: BTreeMap<(u64, u64), (NodeId, Happening)>,
    queued: u64,
    /// Frames of one connection arrive in order.
    arrivals: BTreeMap<(NodeId, NodeId), u64>,
}

impl Network {
    pub fn new(seed: u64, size: u128) -> Self {
        let ids: Vec<NodeId> = (1..=size).map(NodeId).collect();
        let mut network = Self {
            now: 1000,
            loss_percent: 0,
            log: Vec::new(),
            frames: 0,
            random: StdRng::seed_from_u64(seed),
            daemons: BTreeMap::new(),
            queue: BTreeMap::new(),
            queued: 0,
            arrivals: BTreeMap::new(),
        };
        for &id in &ids {
            let view = View::new(id, Time(network.now));
            network.daemons.insert(id, Daemon { view, is_dead: false, is_cut: false, paused_until: 0 });
        }
        for &id in &ids {
            network.handle(id, Event::Members(ids.iter().copied().collect()));
            for &other in ids.iter().filter(|&&other| other != id) {
                network.handle(id, Event::Connected { node: other });
            }
            network.push(50, id, Happening::Tick);
        }
        network
    }

    fn push(&mut self, delay: u64, to: NodeId, happening: Happening) {
        self.queued += 1;
        self.queue.insert((self.now + delay, self.queued), (to, happening));
    }

    fn connects(&self, a: NodeId, b: NodeId) -> bool {
        let is_up = |id| self.daemons.get(&id).is_some_and(|daemon| !daemon.is_dead && !daemon.is_cut);
        is_up(a) && is_up(b)
    }

    /// Returns how long a packet takes if every loss costs a retransmission, each of which waits twice as long.
    fn packet(&mut self, first_timeout: u64) -> u64 {
        let (mut delay, mut timeout) = (self.random.random_range(1..5), first_timeout);
        while self.random.random_range(0..100) < self.loss_percent {
            delay += timeout;
            timeout *= 2;
        }
        delay
    }

    fn send(&mut self, from: NodeId, to: NodeId, frame: Frame) {
        self.frames += 1;
        let arrival = self.now + self.packet(200);
        let arrival = arrival.max(self.arrivals.get(&(from, to)).copied().unwrap_or_default());
        self.arrivals.insert((from, to), arrival);
        self.push(arrival - self.now, to, Happening::Frame { from, frame });
    }

    /// Dials, and returns after how long the outcome is known and what it is.
    fn dial(&mut self, from: NodeId, to: NodeId) -> (u64, bool) {
        if self.connects(from, to) {
            let handshake = 2 * self.packet(1000) + (0..4).map(|_| self.packet(200)).sum::<u64>();
            let took = handshake + self.daemons[&to].paused_until.saturating_sub(self.now);
            return (took.min(DIAL_MS), took <= DIAL_MS);
        }
        let is_refused = self.daemons[&to].is_dead && !self.daemons[&to].is_cut && !self.daemons[&from].is_cut;
        (if is_refused { 3 } else { DIAL_MS }, false)
    }

    pub fn handle(&mut self, id: NodeId, event: Event) {
        let now = Time(self.now);
        self.daemons.get_mut(&id).unwrap().view.handle_event(event, now);
        while let Some(action) = self.daemons.get_mut(&id).and_then(|daemon| daemon.view.poll_action()) {
            match action {
                Action::Ping { node } => self.send(id, node, Frame::Ping),
                Action::Probe { node, request } => {
                    let (took, alive) = self.dial(id, node);
                    self.push(took, id, Happening::Event(Event::Probe { node, request, alive }));
                }
                Action::AskProbe { via, node, request } => self.send(id, via, Frame::Probe { target: node, request }),
                Action::Health { node, health } => self.log.push((self.now, id, node, health)),
            }
        }
    }

    pub fn run_until(&mut self, end: u64) {
        while let Some(entry) = self.queue.first_entry().filter(|entry| entry.key().0 <= end) {
            self.now = self.now.max(entry.key().0);
            let (id, happening) = entry.remove();
            let daemon = &self.daemons[&id];
            if daemon.is_dead {
                continue;
            }
            if daemon.paused_until > self.now {
                self.push(daemon.paused_until - self.now, id, happening);
                continue;
            }
            self.happen(id, happening);
        }
        self.now = end;
    }

    fn happen(&mut self, id: NodeId, happening: Happening) {
        match happening {
            Happening::Tick => {
                self.handle(id, Event::Tick);
                let due = self.daemons[&id].view.poll_timeout().unwrap();
                self.push(due.0.saturating_sub(self.now), id, Happening::Tick);
            }
            Happening::Event(event) => self.handle(id, event),
            Happening::Answer { to, frame } => self.send(id, to, frame),
            Happening::Frame { from, frame } if self.connects(from, id) => {
                self.handle(id, Event::Heard { node: from });
                self.receive(id, from, &frame);
            }
            Happening::Frame { .. } => {}
        }
    }

    fn receive(&mut self, id: NodeId, from: NodeId, frame: &Frame) {
        match *frame {
            Frame::Ping => self.send(id, from, Frame::Pong),
            Frame::Pong => {}
            Frame::Probe { target, request } => {
                let (took, alive) = self.dial(id, target);
                let frame = Frame::Probed { target, request, alive };
                self.push(took, id, Happening::Answer { to: from, frame });
            }
            Frame::Probed { target, request, alive } => {
                self.handle(id, Event::Probed { by: from, node: target, request, alive });
            }
        }
    }

    pub fn kill(&mut self, id: NodeId) {
        self.daemons.get_mut(&id).unwrap().is_dead = true;
        let others: BTreeSet<NodeId> = self.daemons.keys().copied().filter(|&other| other != id).collect();
        for other in others {
            self.push(2, other, Happening::Event(Event::Disconnected { node: id }));
        }
    }

    pub fn cut(&mut self, id: NodeId, is_cut: bool) {
        self.daemons.get_mut(&id).unwrap().is_cut = is_cut;
    }

    pub fn pause(&mut self, id: NodeId, for_ms: u64) {
        self.daemons.get_mut(&id).unwrap().paused_until = self.now + for_ms;
    }

    pub fn health(&self, id: NodeId, of: NodeId) -> Health {
        self.daemons[&id].view.health(of)
    }

    /// Returns when each other node called `id` failed, in milliseconds after `since`.
    pub fn verdicts(&self, id: NodeId, since: u64) -> BTreeMap<NodeId, u64> {
        let verdicts =
            self.log.iter().filter(|(at, _, node, health)| *node == id && *health == Health::Failed && *at >= since);
        verdicts.map(|(at, by, ..)| (*by, at - since)).collect()
    }

    pub fn count(&self, wanted: Health) -> usize {
        self.log.iter().filter(|(_, _, _, health)| *health == wanted).count()
    }
}
