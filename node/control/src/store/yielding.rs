//! Giving up what nobody believes, in favour of what a peer has.
//!
//! Everything else here only moves forward. A manager that was demoted may hold writes that its peers, who heard of that
//! first, have refused and will refuse for ever; merging alone would leave the documents apart. See
//! [`crate::core::Control`] for when a record counts as not believed.

use std::collections::{BTreeMap, BTreeSet};

use shoal_protocol::message::Summary;
use shoal_protocol::record::{Key, Record};

use super::{Merged, Store, tasks_of};

/// What is here (as a hash) of a key, and what a peer has instead, if anything.
pub type Excess = (u64, Option<u64>);

impl Store {
    /// Returns what a peer that listed these buckets ought to take over from here, and has not. Statuses are not among it.
    pub fn excess(&self, buckets: &[u16], summaries: &[Summary]) -> BTreeMap<Key, Excess> {
        let theirs: BTreeMap<Key, &Summary> = summaries.iter().map(|summary| (summary.key, summary)).collect();
        let buckets: BTreeSet<usize> = buckets.iter().map(|bucket| usize::from(*bucket)).collect();
        let members = buckets.iter().filter_map(|bucket| self.members.get(*bucket)).flatten();
        let mut excess = BTreeMap::new();
        for key in members.filter(|key| key.status_of().is_none() && self.counts(key)) {
            let Some(registers) = self.entries.get(key).map(|entry| &entry.registers) else { continue };
            let mine = registers.hash() as u64;
            match theirs.get(key) {
                None => excess.insert(*key, (mine, None)),
                Some(summary) if summary.hash != mine && registers.stamp().unwrap_or_default() >= summary.stamp => {
                    excess.insert(*key, (mine, Some(summary.hash)))
                }
                Some(_) => None,
            };
        }
        excess
    }

    /// Forgets all that is held of a key.
    pub fn forget(&mut self, key: &Key) {
        let Some(entry) = self.entries.remove(key) else { return };
        let bucket = usize::from(key.bucket());
        self.digests[bucket] = self.digests[bucket].wrapping_sub(entry.digested as u64);
        self.root = self.root.wrapping_sub(entry.digested);
        self.members[bucket].remove(key);
        self.quarantined.remove(key);
        self.idle.remove(key);
        self.dirty.insert(*key);
        if let Key::Node(node) = *key {
            self.recount(Key::NodeStatus(node));
        }
        for gone in tasks_of(*key, Some(&entry.opened)) {
            self.assigned.remove(&gone);
            let (node, task, ..) = gone;
            self.recount(Key::TaskStatus(node, task));
        }
    }

    /// Takes a record though what is here may be newer. Returns what [`Store::merge`] would, were nothing here.
    pub fn replace(&mut self, record: &Record) -> Merged {
        if let Err(error) = self.admit(record) {
            return Merged::Refused(error);
        }
        self.forget(&record.key);
        self.merge(record)
    }
}
