//! Decides when to dial which known member. Pure: time and jitter are arguments.
//!
//! Members are dialled for ever; attempts for one member begin at most a second apart, whether earlier ones have ended or
//! not, so that a member is found soon after its network is back. Of two members the one with the lower identifier dials
//! first, which avoids most double connections.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use shoal_protocol::NodeId;

/// The pause after the first failure; it doubles up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(50);

/// The longest pause, before jitter.
const PAUSE_MAX: Duration = Duration::from_millis(700);

/// Jitter added to a pause at most.
pub(super) const JITTER_MAX: Duration = Duration::from_millis(300);

/// How long the member with the higher identifier leaves the first attempt to the other.
const POLITENESS: Duration = Duration::from_millis(150);

/// Attempts for one member under way at the same time; the next waits for one to end.
const ATTEMPTS_MAX: u8 = 3;

/// Addresses of one member that are tried, the first of those given.
const ADDRESSES_MAX: usize = 8;

/// The members to be dialled.
#[derive(Debug)]
pub(super) struct Dialer {
    own: NodeId,
    targets: BTreeMap<NodeId, Target>,
}

#[derive(Debug)]
struct Target {
    addresses: Vec<SocketAddr>,
    tried: usize,
    failures: u32,
    under_way: u8,
    linked: bool,
    due: Instant,
}

impl Dialer {
    /// Makes a dialer for the node `own` without members.
    pub(super) fn new(own: NodeId) -> Self {
        Self { own, targets: BTreeMap::new() }
    }

    /// Replaces the members. A member with a new address is dialled there at once if it is not linked.
    pub(super) fn set(
        &mut self,
        peers: BTreeMap<NodeId, Vec<SocketAddr>>,
        is_linked: impl Fn(NodeId) -> bool,
        now: Instant,
    ) {
        self.targets.retain(|node, _| peers.contains_key(node));
        for (node, mut addresses) in peers {
            addresses.truncate(ADDRESSES_MAX);
            if node == self.own || addresses.is_empty() {
                self.targets.remove(&node);
                continue;
            }
            let politeness = if node < self.own { POLITENESS } else { Duration::ZERO };
            match self.targets.get_mut(&node) {
                Some(target) if target.addresses == addresses => {}
                Some(target) => {
                    if addresses.iter().any(|address| !target.addresses.contains(address)) {
                        (target.tried, target.failures, target.due) = (0, 0, now);
                    }
                    target.addresses = addresses;
                }
                None => {
                    let linked = is_linked(node);
                    let due = now + politeness;
                    let target = Target { addresses, tried: 0, failures: 0, under_way: 0, linked, due };
                    self.targets.insert(node, target);
                }
            }
        }
    }

    /// Returns the attempts that are due and counts them as begun.
    pub(super) fn take_due(&mut self, now: Instant, mut jitter: impl FnMut() -> Duration) -> Vec<(NodeId, SocketAddr)> {
        let mut due = Vec::new();
        for (node, target) in &mut self.targets {
            if target.linked || target.due > now || target.under_way >= ATTEMPTS_MAX {
                continue;
            }
            due.push((*node, target.addresses[target.tried % target.addresses.len()]));
            target.tried += 1;
            target.under_way += 1;
            target.due = now + PAUSE_MAX + jitter();
        }
        due
    }

    /// Notes that an attempt did not lead to a link.
    pub(super) fn failed(&mut self, node: NodeId, now: Instant, jitter: Duration) {
        if let Some(target) = self.targets.get_mut(&node) {
            target.under_way = target.under_way.saturating_sub(1);
            let pause = PAUSE_MIN.saturating_mul(1 << target.failures.min(8)).min(PAUSE_MAX) + jitter;
            target.failures = target.failures.saturating_add(1);
            target.due = target.due.min(now + pause);
        }
    }

    /// Notes that an attempt ended well.
    pub(super) fn succeeded(&mut self, node: NodeId) {
        if let Some(target) = self.targets.get_mut(&node) {
            target.under_way = target.under_way.saturating_sub(1);
        }
    }

    /// Notes that there is a link, dialled by either side.
    pub(super) fn linked(&mut self, node: NodeId) {
        if let Some(target) = self.targets.get_mut(&node) {
            (target.linked, target.failures) = (true, 0);
        }
    }

    /// Notes that there is no link any more.
    pub(super) fn unlinked(&mut self, node: NodeId, now: Instant, jitter: Duration) {
        let politeness = if node < self.own { POLITENESS } else { Duration::ZERO };
        if let Some(target) = self.targets.get_mut(&node) {
            (target.linked, target.due) = (false, now + politeness + jitter / 8);
        }
    }

    /// Returns when [`Dialer::take_due`] will next have something to say.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let waiting = |target: &&Target| !target.linked && target.under_way < ATTEMPTS_MAX;
        self.targets.values().filter(waiting).map(|target| target.due).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peers(node: u128, ports: &[u16]) -> BTreeMap<NodeId, Vec<SocketAddr>> {
        [(NodeId(node), ports.iter().map(|port| ([127, 0, 0, 1], *port).into()).collect())].into()
    }

    fn ports(due: &[(NodeId, SocketAddr)]) -> Vec<u16> {
        due.iter().map(|(_, address)| address.port()).collect()
    }

    #[test]
    fn attempts_never_end_and_begin_at_most_a_second_apart() {
        let mut now = Instant::now();
        let mut dialer = Dialer::new(NodeId(1));
        dialer.set(peers(2, &[10, 11]), |_| false, now);
        let mut last = now;
        for attempt in 0..50 {
            now = dialer.next_due().unwrap().max(now);
            assert!(now - last <= Duration::from_secs(1), "attempt {attempt}");
            last = now;
            let due = dialer.take_due(now, || JITTER_MAX);
            assert_eq!(ports(&due), [10 + attempt % 2]);
            dialer.failed(NodeId(2), now, JITTER_MAX);
        }
    }

    #[test]
    fn an_attempt_that_hangs_does_not_hold_up_the_next() {
        let now = Instant::now();
        let mut dialer = Dialer::new(NodeId(1));
        dialer.set(peers(2, &[10]), |_| false, now);
        assert_eq!(dialer.take_due(now, || Duration::ZERO).len(), 1);
        assert_eq!(dialer.take_due(now, || Duration::ZERO).len(), 0);
        assert_eq!(dialer.take_due(now + PAUSE_MAX, || Duration::ZERO).len(), 1);
        assert_eq!(dialer.take_due(now + PAUSE_MAX * 2, || Duration::ZERO).len(), 1);
        assert_eq!(dialer.next_due(), None, "enough are under way");
        dialer.failed(NodeId(2), now + PAUSE_MAX * 2, Duration::ZERO);
        assert!(dialer.next_due().is_some());
    }

    #[test]
    fn linked_members_and_the_node_itself_are_not_dialled() {
        let now = Instant::now();
        let mut dialer = Dialer::new(NodeId(5));
        dialer.set(peers(5, &[10]), |_| false, now);
        assert_eq!(dialer.next_due(), None);
        dialer.set(peers(2, &[10]), |_| false, now);
        assert_eq!(dialer.next_due(), Some(now + POLITENESS), "the lower identifier dials first");
        dialer.linked(NodeId(2));
        assert_eq!(dialer.next_due(), None);
        dialer.unlinked(NodeId(2), now, Duration::ZERO);
        assert_eq!(ports(&dialer.take_due(now + POLITENESS, || Duration::ZERO)), [10]);
    }

    #[test]
    fn a_new_address_is_tried_at_once() {
        let now = Instant::now();
        let mut dialer = Dialer::new(NodeId(1));
        dialer.set(peers(2, &[10]), |_| false, now);
        dialer.take_due(now, || Duration::ZERO);
        dialer.set(peers(2, &[20, 10]), |_| false, now);
        assert_eq!(ports(&dialer.take_due(now, || Duration::ZERO)), [20]);
    }
}
