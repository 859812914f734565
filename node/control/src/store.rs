//! The cluster's document: one small register per key, merged in any order to the same state on every node.
//!
//! Records come from deltas, from repair and from disk, and all go through [`Store::merge`]. Values are opened once, on
//! merging. The store does not know who this node is, who is alive or what time it is, and it trusts its caller to have
//! asked [`authority`] about records of peers.
//!
//! Two kinds of record are held without being part of the document, that is without counting in digests: a status that
//! nothing in the document names (its slot or node is unknown or gone), and the tombstone that every listed node has on
//! disk. Both rules are functions of the document itself, so nodes that hold equal documents agree on what counts, and
//! either kind may be dropped at any time: [`Store::prune_reports`], [`Store::collect`].

use std::collections::{BTreeMap, BTreeSet};

use shoal_protocol::codec::CodecError;
use shoal_protocol::message::BUCKETS;
use shoal_protocol::record::{BODY_BYTES_MAX, Key, Layer, Record, SCHEMA_COLLECTED, SlotName, Stamp};
use shoal_protocol::value::{SCHEMA, Value, ValueError};
use shoal_protocol::{NodeId, ServiceId, TaskId};

mod check;
mod entry;
mod read;
mod sync;
#[cfg(test)]
mod tests;
mod tombstones;
mod yielding;

pub use check::{RecordError, authority, check};
pub use tombstones::Tombstones;
pub use yielding::Excess;

use entry::{Change, Entry, Opened, Removed};

/// Reports of one node that no slot names yet and that are held all the same, as a report may overtake its slot. Further
/// ones are refused; repair brings them once the slot is known.
pub const REPORTS_AHEAD_MAX: usize = 1024;

/// What became of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Merged {
    /// It changed the store.
    New {
        /// Whether it belongs on disk.
        durable: bool,
    },
    /// It was there already.
    Known,
    /// Something newer was there already.
    Stale,
    /// It must not be in any store.
    Refused(RecordError),
}

/// Why a write could not be authored. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PutError {
    /// The value breaks a rule of its type, or is of another kind than its key.
    #[error(transparent)]
    Value(#[from] ValueError),
    /// The value cannot be encoded.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The record would be refused everywhere.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The store holds a write with this or a greater stamp.
    #[error("write {stamp} is superseded by {current}")]
    Superseded {
        /// The stamp of the write.
        stamp: Stamp,
        /// The stamp of what is there.
        current: Stamp,
    },
}

/// The replicated document as this node knows it.
#[derive(Debug, Clone)]
pub struct Store {
    entries: BTreeMap<Key, Entry>,
    /// Which keys are held in each bucket.
    members: Vec<BTreeSet<Key>>,
    /// The sums of what is digested, over each bucket and over all: order plays no part, so merging updates them in place.
    digests: Vec<u64>,
    root: u128,
    /// The tasks that readable slots give to nodes.
    assigned: BTreeSet<(NodeId, TaskId, ServiceId, SlotName)>,
    quarantined: BTreeSet<Key>,
    /// What is held without counting, and whether the last sweep saw it already.
    idle: BTreeMap<Key, bool>,
    dirty: BTreeSet<Key>,
    /// The bucket at which the next summary begins, so that no difference waits behind others for ever.
    turn: usize,
    /// How many messages of records were made.
    parcels: usize,
}

impl Default for Store {
    fn default() -> Self {
        Self::new()
    }
}

impl Store {
    /// Returns an empty document.
    pub fn new() -> Self {
        Self {
            entries: BTreeMap::new(),
            members: vec![BTreeSet::new(); BUCKETS],
            digests: vec![0; BUCKETS],
            root: 0,
            assigned: BTreeSet::new(),
            quarantined: BTreeSet::new(),
            idle: BTreeMap::new(),
            dirty: BTreeSet::new(),
            turn: 0,
            parcels: 0,
        }
    }

    /// Merges a record, wherever it came from. Whether its sender may author it is [`authority`]'s business.
    pub fn merge(&mut self, record: &Record) -> Merged {
        if let Err(error) = self.admit(record) {
            return Merged::Refused(error);
        }
        let key = record.key;
        let entry = self.entries.entry(key).or_default();
        match entry.registers.merge(record) {
            Change::Known => Merged::Known,
            Change::Stale => Merged::Stale,
            Change::Overlay => {
                self.changed(key);
                Merged::New { durable: key.is_durable() }
            }
            Change::Base => {
                let opened = entry.registers.open(&key);
                let before = std::mem::replace(&mut entry.opened, opened);
                self.changed(key);
                self.reindex(key, before);
                Merged::New { durable: key.is_durable() }
            }
        }
    }

    /// Makes the record of a write without merging it: `None` removes.
    pub fn seal(key: Key, stamp: Stamp, author: NodeId, value: Option<&Value>) -> Result<Record, PutError> {
        let body = value
            .map(|value| {
                value.check(&key)?;
                Ok::<_, PutError>(value.seal()?)
            })
            .transpose()?;
        let record = Record { key, stamp, author, schema: SCHEMA, layer: Layer::Base, body };
        check(&record)?;
        Ok(record)
    }

    /// Authors a write: merges it and returns the record to send. `None` removes.
    pub fn put(&mut self, key: Key, stamp: Stamp, author: NodeId, value: Option<&Value>) -> Result<Record, PutError> {
        let record = Self::seal(key, stamp, author, value)?;
        self.author(record)
    }

    /// Authors the mark that every listed node has the tombstone of `key` on disk: from now on it does not count any more
    /// and each node may drop it. See [`Tombstones`] for when this is sound.
    pub fn put_collected(&mut self, key: Key, stamp: Stamp, author: NodeId) -> Result<Record, PutError> {
        let record = Record { key, stamp, author, schema: SCHEMA_COLLECTED, layer: Layer::Base, body: None };
        self.author(record)
    }

    fn author(&mut self, record: Record) -> Result<Record, PutError> {
        match self.merge(&record) {
            Merged::New { .. } | Merged::Known => Ok(record),
            Merged::Refused(error) => Err(error.into()),
            Merged::Stale => {
                let current = self.stamp(&record.key).unwrap_or_default();
                Err(PutError::Superseded { stamp: record.stamp, current })
            }
        }
    }

    /// Returns the keys that changed since this was last asked.
    pub fn take_dirty(&mut self) -> BTreeSet<Key> {
        std::mem::take(&mut self.dirty)
    }

    /// Drops status records that nothing in the document names and that the previous call saw already. `own` is this node:
    /// what it says of itself is kept even before the cluster lists it.
    ///
    /// Calls should be some seconds apart: that is how far a report may run ahead of the slot that names its task.
    pub fn prune_reports(&mut self, own: NodeId) {
        self.sweep(|key| key.status_of().is_some() && *key != Key::NodeStatus(own));
    }

    /// Drops collected tombstones that the previous call saw already, and returns their keys, to be removed from disk.
    ///
    /// Calls should be minutes apart: until then stragglers learn from this node that the tombstone was collected. Dropping
    /// one too early is harmless: a straggler then brings the tombstone back, never the object.
    pub fn collect(&mut self) -> BTreeSet<Key> {
        self.sweep(|key| key.status_of().is_none())
    }

    /// Returns the tombstones that may be collected once they are confirmed.
    pub fn tombstones(&self) -> impl Iterator<Item = (Key, Stamp)> {
        self.entries.iter().filter_map(|(key, entry)| {
            let removed = key.is_collectable() && entry.registers.removed() == Some(Removed::Tombstone);
            removed.then_some((*key, entry.registers.stamp()?))
        })
    }

    /// Returns those of `asked` tombstones that this node holds, or that it knows to be superseded or collected. The caller
    /// answers with them only after what is queued for its disk is on disk.
    pub fn confirm(&self, asked: &[(Key, Stamp)]) -> Vec<(Key, Stamp)> {
        let holds = |(key, stamp): &&(Key, Stamp)| self.stamp(key).is_some_and(|ours| ours >= *stamp);
        asked.iter().filter(holds).copied().collect()
    }

    fn admit(&self, record: &Record) -> Result<(), RecordError> {
        check(record)?;
        let Key::TaskStatus(node, task) = record.key else {
            return Ok(());
        };
        if self.entries.contains_key(&record.key) || self.is_assigned(node, task) {
            return Ok(());
        }
        let reports = Key::TaskStatus(node, TaskId(0))..=Key::TaskStatus(node, TaskId(u128::MAX));
        if self.idle.range(reports).count() < REPORTS_AHEAD_MAX {
            Ok(())
        } else {
            Err(RecordError::TooManyReports { node })
        }
    }

    fn changed(&mut self, key: Key) {
        self.members[usize::from(key.bucket())].insert(key);
        self.dirty.insert(key);
        self.recount(key);
    }

    /// Brings the indices and whatever hangs on `key` in line with its new base.
    fn reindex(&mut self, key: Key, before: Opened) {
        let opened = self.opened(&key);
        let sealed = matches!(opened, Some(Opened::Sealed(_)));
        let after = tasks_of(key, opened);
        if sealed {
            self.quarantined.insert(key);
        } else {
            self.quarantined.remove(&key);
        }
        if let Key::Node(node) = key {
            self.recount(Key::NodeStatus(node));
        }
        let before = tasks_of(key, Some(&before));
        for gone in before.difference(&after) {
            self.assigned.remove(gone);
        }
        self.assigned.extend(after.difference(&before));
        for (node, task, ..) in before.symmetric_difference(&after) {
            self.recount(Key::TaskStatus(*node, *task));
        }
    }

    /// Brings the digests in line with `key`.
    fn recount(&mut self, key: Key) {
        let counts = self.counts(&key);
        let Some(entry) = self.entries.get_mut(&key) else {
            return;
        };
        let now = if counts { entry.registers.hash() } else { 0 };
        let was = std::mem::replace(&mut entry.digested, now);
        let digest = &mut self.digests[usize::from(key.bucket())];
        *digest = digest.wrapping_sub(was as u64).wrapping_add(now as u64);
        self.root = self.root.wrapping_sub(was).wrapping_add(now);
        if counts {
            self.idle.remove(&key);
        } else {
            self.idle.entry(key).or_insert(false);
        }
    }

    /// Returns whether a held key is part of the document: a function of the document alone.
    fn counts(&self, key: &Key) -> bool {
        match *key {
            Key::TaskStatus(node, task) => self.is_assigned(node, task),
            Key::NodeStatus(node) => self.is_listed(node),
            Key::Cluster | Key::Voters | Key::Claim(_) | Key::Node(_) => true,
            Key::Service(_) | Key::Progress(_) | Key::Slot(..) | Key::Object(..) => {
                self.entries.get(key).is_none_or(|entry| entry.registers.removed() != Some(Removed::Collected))
            }
        }
    }

    fn is_assigned(&self, node: NodeId, task: TaskId) -> bool {
        let from = (node, task, ServiceId(0), SlotName::Replica(0));
        self.assigned.range(from..).next().is_some_and(|(owner, id, ..)| (*owner, *id) == (node, task))
    }

    fn sweep(&mut self, concerned: impl Fn(&Key) -> bool) -> BTreeSet<Key> {
        let mut dropped = BTreeSet::new();
        for (key, seen) in self.idle.iter_mut().filter(|(key, _)| concerned(key)) {
            if *seen {
                dropped.insert(*key);
            }
            *seen = true;
        }
        for key in &dropped {
            self.idle.remove(key);
            self.entries.remove(key);
            self.members[usize::from(key.bucket())].remove(key);
            self.quarantined.remove(key);
            self.dirty.insert(*key);
        }
        dropped
    }

    fn opened(&self, key: &Key) -> Option<&Opened> {
        self.entries.get(key).map(|entry| &entry.opened)
    }
}

fn tasks_of(key: Key, opened: Option<&Opened>) -> BTreeSet<(NodeId, TaskId, ServiceId, SlotName)> {
    let (Key::Slot(service, name), Some(Opened::Content(content))) = (key, opened) else {
        return BTreeSet::new();
    };
    let slot = content.slot();
    let tasks = slot.into_iter().flat_map(|slot| &slot.tasks);
    tasks.filter_map(|task| Some((task.node?, task.id, service, name))).collect()
}

// What the limits promise each other: any one record fits into a frame with room for everything around it.
const _: () = assert!(BODY_BYTES_MAX < sync::RECORDS_BYTES_MAX);
