//! How a node finds members of its cluster again whose addresses have all changed: when to call out on the local link, when
//! to ask for the names that it joined by, whom to dial of those that call.
//!
//! Known addresses are dialled by the swarm itself. What is heard here is believed by nobody: it leads to a dial, and the
//! connection proves who is there. So all that a stranger on the link can cause is dials, and those are limited: for each
//! member, and for all callers together. Time and randomness are arguments.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use shoal_protocol::{NodeId, Time};

/// Between two calls, and two looks at the names, while members are missed; with [`JITTER`] at most a second.
const EAGER: Duration = Duration::from_millis(700);

/// How long calls are eager after another member was missed. A node without any connection never tires.
const EAGER_FOR: Duration = Duration::from_secs(30);

/// Between two calls while the same members have been missed for long: who comes back calls by itself.
const PATIENT: Duration = Duration::from_secs(10);

/// Between two calls of a node that misses nobody.
const CONTENT: Duration = Duration::from_secs(60);

/// Added to each pause at most, so that nodes that start together do not call together.
const JITTER: Duration = Duration::from_millis(300);

/// One caller is dialled once in this time; what it says meanwhile is dropped.
const DIAL_EVERY: Duration = Duration::from_millis(700);

/// Callers that are dialled within [`DIAL_EVERY`], all together; the others are dropped and call again.
const DIALS_MAX: usize = 16;

/// Dials that wait to be performed; more are dropped, callers call again.
const ACTIONS_MAX: usize = 64;

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Time went on. Due by [`Discovery::poll_timeout`].
    Tick,
    /// The members other than this node.
    Known(BTreeSet<NodeId>),
    /// A node is connected.
    Up(NodeId),
    /// A node is connected no more.
    Down(NodeId),
    /// Somebody called out on the link in the name of a node.
    Heard {
        /// In whose name.
        node: NodeId,
        /// Where it is said to listen.
        address: SocketAddr,
    },
}

/// Something to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Says on the local link where this node listens.
    Announce,
    /// Resolves the names that the node joined by, and dials what they lead to.
    AskNames,
    /// Dials an address, whoever is there.
    Dial(SocketAddr),
}

/// Whom a node misses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Missed {
    Nobody,
    Some,
    Everybody,
}

/// Decides how to find missing members.
#[derive(Debug)]
pub struct Discovery {
    me: NodeId,
    random: StdRng,
    known: BTreeSet<NodeId>,
    linked: BTreeSet<NodeId>,
    /// When a member was last missed that was not missed before.
    missed_at: Time,
    announce_at: Time,
    names_at: Time,
    /// When each known caller may be dialled again.
    dialled: BTreeMap<NodeId, Time>,
    /// When one of the callers that are not known may be dialled again.
    stranger_at: Time,
    /// When each of the last dials stops counting.
    recent: VecDeque<Time>,
    actions: VecDeque<Action>,
}

impl Discovery {
    /// Starts without knowing anybody.
    pub fn new(me: NodeId, seed: u64, now: Time) -> Self {
        Self {
            me,
            random: StdRng::seed_from_u64(seed),
            known: BTreeSet::new(),
            linked: BTreeSet::new(),
            missed_at: now,
            announce_at: now,
            names_at: now,
            dialled: BTreeMap::new(),
            stranger_at: now,
            recent: VecDeque::new(),
            actions: VecDeque::new(),
        }
    }

    /// Takes in what happened.
    pub fn handle_event(&mut self, event: Event, now: Time) {
        match event {
            Event::Tick => {}
            Event::Known(mut known) => {
                known.remove(&self.me);
                if known.difference(&self.known).any(|node| !self.linked.contains(node)) {
                    self.miss(now);
                }
                self.dialled.retain(|node, _| known.contains(node));
                self.known = known;
            }
            Event::Up(node) => {
                self.linked.insert(node);
            }
            Event::Down(node) => {
                if self.linked.remove(&node) && self.known.contains(&node) {
                    self.miss(now);
                }
            }
            Event::Heard { node, address } => self.heard(node, address, now),
        }
        self.tick(now);
    }

    /// Returns the next thing to do.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Returns when the next [`Event::Tick`] is due.
    pub fn poll_timeout(&self) -> Time {
        match self.missed() {
            Missed::Nobody => self.announce_at,
            Missed::Some | Missed::Everybody => self.announce_at.min(self.names_at),
        }
    }

    fn missed(&self) -> Missed {
        match (self.known.is_subset(&self.linked), self.linked.is_empty()) {
            (true, _) => Missed::Nobody,
            (false, false) => Missed::Some,
            (false, true) => Missed::Everybody,
        }
    }

    /// A member is missed that was not missed before: the next call comes soon.
    fn miss(&mut self, now: Time) {
        self.missed_at = now;
        let soon = now + self.jitter();
        self.announce_at = self.announce_at.min(soon);
        self.names_at = self.names_at.min(soon);
    }

    fn tick(&mut self, now: Time) {
        let missed = self.missed();
        let eager = match missed {
            Missed::Nobody => CONTENT,
            Missed::Some if now.since(self.missed_at) > EAGER_FOR => PATIENT,
            Missed::Some | Missed::Everybody => EAGER,
        };
        if self.announce_at <= now {
            self.announce_at = now + eager + self.jitter();
            self.act(Action::Announce);
        }
        if self.names_at <= now && missed != Missed::Nobody {
            self.names_at = now + eager + self.jitter();
            self.act(Action::AskNames);
        }
    }

    fn heard(&mut self, node: NodeId, address: SocketAddr, now: Time) {
        if node == self.me || self.linked.contains(&node) || !is_dialable(address) {
            return;
        }
        let is_known = self.known.contains(&node);
        let due = match is_known {
            true => self.dialled.get(&node).copied().unwrap_or(now),
            // Members that joined while this node was away may be the only ones left. Who misses nobody needs no others.
            false if self.missed() == Missed::Nobody => return,
            false => self.stranger_at,
        };
        while self.recent.front().is_some_and(|until| *until <= now) {
            self.recent.pop_front();
        }
        if due > now || self.recent.len() >= DIALS_MAX {
            return;
        }
        let again = now + DIAL_EVERY;
        self.recent.push_back(again);
        match is_known {
            true => drop(self.dialled.insert(node, again)),
            false => self.stranger_at = again,
        }
        self.act(Action::Dial(address));
    }

    fn act(&mut self, action: Action) {
        if self.actions.len() < ACTIONS_MAX {
            self.actions.push_back(action);
        }
    }

    fn jitter(&mut self) -> Duration {
        JITTER.mul_f64(self.random.random())
    }
}

/// Returns whether a node can be behind an address at all.
fn is_dialable(address: SocketAddr) -> bool {
    let is_broadcast = matches!(address.ip(), IpAddr::V4(ip) if ip.is_broadcast());
    address.port() != 0 && !address.ip().is_unspecified() && !address.ip().is_multicast() && !is_broadcast
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: NodeId = NodeId(1);
    const SECOND: Duration = Duration::from_secs(1);

    fn nodes(ids: &[u128]) -> BTreeSet<NodeId> {
        ids.iter().copied().map(NodeId).collect()
    }

    fn address(last: u8) -> SocketAddr {
        ([10, 0, 0, last], 2377).into()
    }

    fn actions(discovery: &mut Discovery) -> Vec<Action> {
        std::iter::from_fn(|| discovery.poll_action()).collect()
    }

    /// Lets time go on until `end` and returns what was done, and when.
    fn run(discovery: &mut Discovery, end: Time) -> Vec<(Time, Action)> {
        let mut done = Vec::new();
        while discovery.poll_timeout() <= end {
            let now = discovery.poll_timeout();
            discovery.handle_event(Event::Tick, now);
            done.extend(actions(discovery).into_iter().map(|action| (now, action)));
        }
        done
    }

    fn count(done: &[(Time, Action)], wanted: Action) -> usize {
        done.iter().filter(|(_, action)| *action == wanted).count()
    }

    fn discovery(known: &[u128], linked: &[u128]) -> Discovery {
        let mut discovery = Discovery::new(ME, 7, Time(0));
        for node in linked {
            discovery.handle_event(Event::Up(NodeId(*node)), Time(0));
        }
        discovery.handle_event(Event::Known(nodes(known)), Time(0));
        actions(&mut discovery);
        discovery
    }

    #[test]
    fn a_node_alone_never_tires() {
        let mut discovery = discovery(&[1, 2, 3], &[]);
        let hour = Time(0) + SECOND * 3600;
        let done = run(&mut discovery, hour);
        for wanted in [Action::Announce, Action::AskNames] {
            let times: Vec<Time> = done.iter().filter(|(_, action)| *action == wanted).map(|(at, _)| *at).collect();
            assert!(times.windows(2).all(|pair| pair[1].since(pair[0]) <= SECOND), "{wanted:?}");
            assert!(times[0] <= Time(1000) && hour.since(times[times.len() - 1]) <= SECOND, "{wanted:?}");
        }
    }

    #[test]
    fn who_misses_few_becomes_patient_and_who_misses_nobody_nearly_silent() {
        let mut some = discovery(&[2, 3], &[2]);
        let early = run(&mut some, Time(0) + EAGER_FOR);
        assert!(count(&early, Action::Announce) >= 30 && count(&early, Action::AskNames) >= 30, "{early:?}");
        let late = run(&mut some, Time(0) + EAGER_FOR + SECOND * 100);
        assert!((8..=14).contains(&count(&late, Action::Announce)), "{late:?}");
        some.handle_event(Event::Down(NodeId(2)), Time(200_000));
        assert!(some.poll_timeout() <= Time(200_000) + SECOND, "another one is missed: eager again");

        let mut nobody = discovery(&[2], &[2]);
        let done = run(&mut nobody, Time(0) + SECOND * 3600);
        assert!((50..=60).contains(&count(&done, Action::Announce)), "{done:?}");
        assert_eq!(count(&done, Action::AskNames), 0);
        let mut single = discovery(&[], &[]);
        assert_eq!(count(&run(&mut single, Time(0) + SECOND * 600), Action::AskNames), 0);
    }

    #[test]
    fn missing_members_that_call_are_dialled_and_nobody_else() {
        for (name, node, address, want) in [
            ("a member that is missed", 3, address(3), true),
            ("the node itself", 1, address(1), false),
            ("a member that is connected", 2, address(2), false),
            ("one that joined meanwhile", 9, address(9), true),
            ("no port", 3, SocketAddr::from(([10, 0, 0, 3], 0)), false),
            ("no address", 3, SocketAddr::from(([0, 0, 0, 0], 2377)), false),
            ("a group", 3, SocketAddr::from(([239, 0, 0, 1], 2377)), false),
        ] {
            let mut discovery = discovery(&[2, 3], &[2]);
            discovery.handle_event(Event::Heard { node: NodeId(node), address }, Time(0));
            assert_eq!(actions(&mut discovery) == [Action::Dial(address)], want, "{name}");
        }
        let mut content = discovery(&[2], &[2]);
        content.handle_event(Event::Heard { node: NodeId(9), address: address(9) }, Time(0));
        assert_eq!(actions(&mut content), [], "who misses nobody follows no stranger");
    }

    #[test]
    fn strangers_cause_few_dials() {
        let known: Vec<u128> = (2..=40).collect();
        let mut discovery = discovery(&known, &[]);
        let heard = |node: u128, last: u8| Event::Heard { node: NodeId(node), address: address(last) };
        let mut dials = 0;
        // A second of lies: every member at many places, and many that nobody knows.
        for moment in 0..1000u64 {
            for lie in [heard(2, (moment % 250) as u8), heard(1000 + u128::from(moment), 7)] {
                discovery.handle_event(lie, Time(moment));
            }
            dials += actions(&mut discovery).iter().filter(|action| matches!(action, Action::Dial(_))).count();
        }
        assert_eq!(dials, 4, "two for the one, two for all unknown ones");
        let mut dials = 0;
        for node in known {
            discovery.handle_event(heard(node, 3), Time(10_000));
            dials += actions(&mut discovery).iter().filter(|action| matches!(action, Action::Dial(_))).count();
        }
        assert_eq!(dials, DIALS_MAX);
        assert!(discovery.dialled.len() <= 39 && discovery.recent.len() <= DIALS_MAX);
    }
}
