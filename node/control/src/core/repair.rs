//! Which peer to compare documents with, and which peers a new holder has caught up with.
//!
//! Repair is the tail of every write: a delta that was lost is found because two digests differ. A new holder of a lease
//! uses the same four messages to merge from the voters that granted it, before it writes anything.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use shoal_protocol::{NodeId, Time};

/// How long two documents may differ before they are compared: deltas under way make them differ for moments.
const DIFFERS_FOR: Duration = Duration::from_secs(2);

/// Time between two comparisons that this node starts on its own.
const REPAIR_EVERY: Duration = Duration::from_secs(1);

/// After this long without an answer a comparison is started anew.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);

/// Comparisons with peers.
#[derive(Debug, Default)]
pub(super) struct Repair {
    peers: BTreeMap<NodeId, Peer>,
    next: Time,
    sessions: u64,
}

#[derive(Debug, Default)]
struct Peer {
    digest: u128,
    differs_since: Option<Time>,
    /// The same, whatever comparisons were made meanwhile: for people.
    apart_since: Option<Time>,
    session: Option<Session>,
    wanted: bool,
}

/// One comparison that this node started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Session {
    serial: u64,
    since: Time,
}

impl Repair {
    /// Notes a peer's root digest, heard with a ping.
    pub(super) fn heard(&mut self, node: NodeId, theirs: u128, mine: u128, now: Time) {
        let peer = self.peers.entry(node).or_default();
        peer.digest = theirs;
        if theirs == mine {
            (peer.differs_since, peer.apart_since) = (None, None);
        } else {
            peer.differs_since.get_or_insert(now);
            peer.apart_since.get_or_insert(now);
        }
    }

    /// Returns for how long the peer that has differed longest has done so.
    pub(super) fn disagrees_for(&self, now: Time) -> Duration {
        let since = self.peers.values().filter_map(|peer| peer.apart_since).min();
        since.map_or(Duration::ZERO, |since| now.since(since))
    }

    /// Returns the last digest heard from a peer.
    pub(super) fn digest_of(&self, node: NodeId) -> Option<u128> {
        self.peers.get(&node).map(|peer| peer.digest)
    }

    /// Forgets a peer that is gone.
    pub(super) fn forget(&mut self, node: NodeId) {
        self.peers.remove(&node);
    }

    /// Asks for a comparison with a peer as soon as possible.
    pub(super) fn want(&mut self, node: NodeId) {
        self.peers.entry(node).or_default().wanted = true;
    }

    /// Returns the number that the next comparison will have: those with lower numbers began before this moment.
    pub(super) fn next_serial(&self) -> u64 {
        self.sessions + 1
    }

    /// Returns the peers to send this node's digest to now. `eligible` are connected peers whose records are believed;
    /// `pick` chooses among them.
    pub(super) fn due(
        &mut self,
        eligible: &BTreeSet<NodeId>,
        now: Time,
        pick: impl FnOnce(usize) -> usize,
    ) -> Vec<NodeId> {
        let mut due: Vec<NodeId> = Vec::new();
        for (&node, peer) in &mut self.peers {
            let idle = peer.session.is_none_or(|session| now.since(session.since) >= ANSWER_WITHIN);
            if peer.wanted && idle {
                due.push(node);
            }
        }
        if due.is_empty() && self.next <= now {
            self.next = now + REPAIR_EVERY;
            let differing: Vec<NodeId> = eligible
                .iter()
                .filter(|node| {
                    self.peers.get(node).is_some_and(|peer| {
                        peer.differs_since.is_some_and(|since| now.since(since) >= DIFFERS_FOR)
                            && peer.session.is_none_or(|session| now.since(session.since) >= ANSWER_WITHIN)
                    })
                })
                .copied()
                .collect();
            if !differing.is_empty() {
                due.push(differing[pick(differing.len()) % differing.len()]);
            }
        }
        for node in &due {
            self.sessions += 1;
            let session = Session { serial: self.sessions, since: now };
            self.peers.entry(*node).or_default().session = Some(session);
        }
        due
    }

    /// Notes what a peer's summary showed. Returns the number of the comparison if this node now has everything that the
    /// peer had when it began.
    pub(super) fn summary(&mut self, node: NodeId, lacking: bool) -> Option<u64> {
        let peer = self.peers.get_mut(&node)?;
        let session = peer.session?;
        if lacking {
            return None;
        }
        peer.session = None;
        peer.wanted = false;
        peer.differs_since = None;
        Some(session.serial)
    }

    /// Notes that the records asked for arrived: where somebody waits to have caught up, compare once more.
    pub(super) fn records(&mut self, node: NodeId) {
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.session = None;
            peer.differs_since = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: NodeId = NodeId(7);

    #[test]
    fn only_lasting_differences_are_repaired() {
        let mut repair = Repair::default();
        let eligible = BTreeSet::from([PEER]);
        repair.heard(PEER, 1, 2, Time(0));
        assert!(repair.due(&eligible, Time(1_000), |_| 0).is_empty());
        assert_eq!(repair.due(&eligible, Time(2_000), |_| 0), [PEER]);
        assert!(repair.due(&eligible, Time(2_500), |_| 0).is_empty(), "one comparison at a time");
        repair.heard(PEER, 2, 2, Time(2_600));
        assert!(repair.due(&eligible, Time(9_000), |_| 0).is_empty(), "they agree");
    }

    #[test]
    fn catching_up_lasts_until_nothing_is_lacking() {
        let mut repair = Repair::default();
        repair.want(PEER);
        let serial = repair.next_serial();
        assert_eq!(repair.due(&BTreeSet::new(), Time(0), |_| 0), [PEER]);
        assert_eq!(repair.summary(PEER, true), None);
        repair.heard(PEER, 1, 2, Time(5));
        repair.records(PEER);
        assert_eq!(repair.disagrees_for(Time(1_005)), Duration::from_secs(1), "until the digests are equal");
        assert_eq!(repair.due(&BTreeSet::new(), Time(10), |_| 0), [PEER], "compared again at once");
        assert!(repair.summary(PEER, false) >= Some(serial));
        assert!(repair.due(&BTreeSet::new(), Time(20), |_| 0).is_empty());
    }

    #[test]
    fn a_lost_answer_is_asked_for_again() {
        let mut repair = Repair::default();
        repair.want(PEER);
        assert_eq!(repair.due(&BTreeSet::new(), Time(0), |_| 0), [PEER]);
        assert!(repair.due(&BTreeSet::new(), Time(500), |_| 0).is_empty());
        assert_eq!(repair.due(&BTreeSet::new(), Time(1_000), |_| 0), [PEER]);
    }
}
