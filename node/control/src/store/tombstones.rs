//! When a tombstone may be collected: once every listed node has it on disk.
//!
//! The holder of the key's lease asks the listed nodes which of its tombstones they have on disk ([`Store::tombstones`],
//! [`Store::confirm`]) and notes the answers here. For those that all have confirmed it authors the mark
//! ([`Store::put_collected`]), which supersedes the tombstone, counts in no digest and may be dropped by anyone
//! ([`Store::collect`]).
//!
//! Why nothing comes back: the removed object lives on only where its tombstone never arrived. All listed nodes have it on
//! disk, so a crash does not bring the object back either; nodes that join later start from documents of listed nodes; nodes
//! that were removed are not believed. The holder itself lists nodes, or learns of them before its first write, so it
//! misses none. A listed node that is away for long keeps tombstones from being collected, as the design says.
//!
//! [`Store::tombstones`]: super::Store::tombstones
//! [`Store::confirm`]: super::Store::confirm
//! [`Store::put_collected`]: super::Store::put_collected
//! [`Store::collect`]: super::Store::collect

use std::collections::{BTreeMap, BTreeSet};

use shoal_protocol::NodeId;
use shoal_protocol::record::{Key, Stamp};

/// Tombstones that are asked about at one time at most; further ones follow when these are done.
pub const TOMBSTONES_ASKED_MAX: usize = 4096;

/// Which nodes have confirmed which tombstones.
#[derive(Debug, Clone, Default)]
pub struct Tombstones {
    asked: BTreeMap<Key, (Stamp, BTreeSet<NodeId>)>,
}

impl Tombstones {
    /// Returns a tracker that knows of no confirmation.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the tombstones there are now, forgets those that are gone and returns what to ask of `node`.
    pub fn ask(&mut self, node: NodeId, tombstones: impl Iterator<Item = (Key, Stamp)>) -> Vec<(Key, Stamp)> {
        let now: BTreeMap<Key, Stamp> = tombstones.take(TOMBSTONES_ASKED_MAX).collect();
        self.asked.retain(|key, (stamp, _)| now.get(key) == Some(stamp));
        for (key, stamp) in &now {
            self.asked.entry(*key).or_insert_with(|| (*stamp, BTreeSet::new()));
        }
        let open = self.asked.iter().filter(|(_, (_, confirmed))| !confirmed.contains(&node));
        open.map(|(key, (stamp, _))| (*key, *stamp)).collect()
    }

    /// Notes that `node` has these tombstones on disk. What was not asked is ignored.
    pub fn confirmed(&mut self, node: NodeId, tombstones: &[(Key, Stamp)]) {
        for (key, stamp) in tombstones {
            if let Some((asked, confirmed)) = self.asked.get_mut(key)
                && asked == stamp
            {
                confirmed.insert(node);
            }
        }
    }

    /// Returns the tombstones that all of `listed` have confirmed.
    pub fn ready(&self, listed: &BTreeSet<NodeId>) -> Vec<Key> {
        let ready = self.asked.iter().filter(|(_, (_, confirmed))| confirmed.is_superset(listed));
        ready.map(|(key, _)| *key).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shoal_protocol::ServiceId;

    #[test]
    fn a_tombstone_is_ready_when_all_have_confirmed_this_very_one() {
        let key = Key::Service(ServiceId(1));
        let (old, new) = (Stamp { seq: 1, ..Stamp::default() }, Stamp { seq: 2, ..Stamp::default() });
        let [a, b] = [NodeId(1), NodeId(2)];
        let listed = BTreeSet::from([a, b]);
        let mut tracker = Tombstones::new();
        assert_eq!(tracker.ask(a, [(key, old)].into_iter()), [(key, old)]);
        tracker.confirmed(a, &[(key, old)]);
        assert_eq!(tracker.ask(a, [(key, old)].into_iter()), []);
        assert_eq!(tracker.ready(&listed), []);
        // Written and removed again in between: what was confirmed of the old one says nothing of the new one.
        assert_eq!(tracker.ask(b, [(key, new)].into_iter()), [(key, new)]);
        tracker.confirmed(b, &[(key, old)]);
        tracker.confirmed(b, &[(key, new)]);
        assert_eq!(tracker.ready(&listed), []);
        tracker.confirmed(a, &[(key, new)]);
        assert_eq!(tracker.ready(&listed), [key]);
        assert_eq!(tracker.ready(&BTreeSet::from([a, b, NodeId(3)])), []);
        assert_eq!(tracker.ask(b, std::iter::empty()), []);
        assert_eq!(tracker.ready(&listed), []);
    }
}
