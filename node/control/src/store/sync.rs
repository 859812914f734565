//! Repair: finds what two documents do not share by comparing digests of buckets, then stamps, then sending records.
//!
//! Every message stays below the limits of a frame; what does not fit is left out and differs again in the next round.
//! A round that brought news may begin the next at once; one that brought none waits. Received records are the caller's to
//! check and merge ([`super::authority`], [`Store::merge`]); nothing here changes the document.
//!
//! A node that holds a collected tombstone does not list it, so a round heals a straggler only if the straggler is the one
//! that lists: nodes begin rounds with each other in both directions.

use std::collections::{BTreeMap, BTreeSet};

use shoal_protocol::NodeId;
use shoal_protocol::codec::FRAME_BYTES_MAX;
use shoal_protocol::message::{BUCKETS, RECORDS_MAX, Summary, SyncMessage};
use shoal_protocol::record::{Key, Layer, Record};
use shoal_protocol::token::Role;

use super::Store;
use super::check::believes;

/// Summaries in one message at most. Further buckets wait for the next round; of a single bucket that has more keys than
/// this, which is far beyond what shoal is made for, the rest is not repaired.
pub const SUMMARIES_MAX: usize = 12_000;

/// Bytes of records in one message at most, by estimate; the keys that are asked for have room beside them.
pub(super) const RECORDS_BYTES_MAX: usize = FRAME_BYTES_MAX / 4 * 3;

/// Bytes of an encoded record at most, without body and clock.
const ENVELOPE_BYTES_MAX: usize = 160;
/// Bytes of one pair of an encoded clock at most.
const CLOCK_PAIR_BYTES_MAX: usize = 18;

impl Store {
    /// Returns the digests of all buckets.
    pub fn buckets(&self) -> Vec<u64> {
        self.digests.clone()
    }

    /// Returns the message that begins a round of repair.
    pub fn sync_digest(&self) -> SyncMessage {
        SyncMessage::Digest(self.buckets())
    }

    /// Answers [`SyncMessage::Digest`] with a summary of the buckets that differ; `None` if none does, or if the digests
    /// are malformed.
    pub fn answer_digest(&mut self, theirs: &[u64]) -> Option<SyncMessage> {
        if theirs.len() != BUCKETS {
            return None;
        }
        let differs = |bucket: &usize| self.digests[*bucket] != theirs[*bucket];
        let waiting: Vec<usize> = (self.turn..BUCKETS).chain(0..self.turn).filter(differs).collect();
        let mut records = Vec::new();
        let mut buckets = BTreeSet::new();
        for &bucket in &waiting {
            let of_bucket = self.summaries(bucket);
            if !buckets.is_empty() && records.len() + of_bucket.len() > SUMMARIES_MAX {
                break;
            }
            records.extend(of_bucket);
            buckets.insert(bucket as u16);
        }
        records.truncate(SUMMARIES_MAX);
        let last = *waiting.get(buckets.len().checked_sub(1)?)?;
        self.turn = (last + 1) % BUCKETS;
        let more = buckets.len() < waiting.len();
        Some(SyncMessage::Summary { buckets: buckets.into_iter().collect(), records, more })
    }

    /// Answers [`SyncMessage::Summary`] of `from` with what it lacks and with the keys that this node lacks and would
    /// believe it about, and those that it has `given_up`; `None` if there is nothing to say.
    pub fn answer_summary(
        &mut self,
        buckets: &[u16],
        summaries: &[Summary],
        (from, from_role): (NodeId, Role),
        given_up: &BTreeSet<Key>,
    ) -> Option<SyncMessage> {
        let theirs: BTreeMap<Key, &Summary> = summaries.iter().map(|summary| (summary.key, summary)).collect();
        let mut parcel = self.parcel();
        let mut wanted = Vec::new();
        for summary in theirs.values().filter(|summary| buckets.contains(&summary.key.bucket())) {
            let (offer, want) = self.compare(summary);
            if offer {
                parcel.pack(self.records(&summary.key));
            }
            let want = want || given_up.contains(&summary.key);
            if want && wanted.len() < RECORDS_MAX && believes(&summary.key, from, from_role) {
                wanted.push(summary.key);
            }
        }
        let buckets: BTreeSet<usize> = buckets.iter().map(|bucket| usize::from(*bucket)).collect();
        let members = buckets.iter().filter_map(|bucket| self.members.get(*bucket)).flatten();
        for key in members.filter(|key| !theirs.contains_key(key) && self.counts(key)) {
            if parcel.is_full() {
                break;
            }
            parcel.pack(self.records(key));
        }
        let nothing = parcel.records.is_empty() && wanted.is_empty();
        (!nothing).then_some(SyncMessage::Exchange { records: parcel.records, wanted })
    }

    /// Answers the wishes of [`SyncMessage::Exchange`]; `None` if there is nothing to send.
    pub fn answer_exchange(&mut self, wanted: &[Key]) -> Option<SyncMessage> {
        let mut parcel = self.parcel();
        for key in wanted.iter().take(RECORDS_MAX) {
            if parcel.is_full() {
                break;
            }
            parcel.pack(self.records(key));
        }
        (!parcel.records.is_empty()).then_some(SyncMessage::Records(parcel.records))
    }

    fn parcel(&mut self) -> Parcel {
        self.parcels = self.parcels.wrapping_add(1);
        Parcel { number: self.parcels, ..Parcel::default() }
    }

    fn summaries(&self, bucket: usize) -> Vec<Summary> {
        let counted = self.members[bucket].iter().filter(|key| self.counts(key));
        let summary = |key: &Key| {
            let registers = &self.entries.get(key)?.registers;
            Some(Summary { key: *key, stamp: registers.stamp().unwrap_or_default(), hash: registers.hash() as u64 })
        };
        counted.filter_map(summary).collect()
    }

    /// Returns whether the sender of a summary lacks something that is here, and whether something is lacking here.
    fn compare(&self, theirs: &Summary) -> (bool, bool) {
        let Some(entry) = self.entries.get(&theirs.key) else {
            return (false, true);
        };
        let registers = &entry.registers;
        if registers.hash() as u64 == theirs.hash {
            return (false, false);
        }
        // The older side cannot supersede a base, but may hold an overlay that the newer side lacks. Whether it does shows
        // once the bases are equal; this node knows it of itself.
        match registers.stamp().unwrap_or_default().cmp(&theirs.stamp) {
            std::cmp::Ordering::Less => (registers.has_overlay(), true),
            std::cmp::Ordering::Equal => (true, true),
            std::cmp::Ordering::Greater => (true, false),
        }
    }
}

/// Records that fit into one message.
#[derive(Debug, Default)]
struct Parcel {
    records: Vec<Record>,
    bytes: usize,
    full: bool,
    number: usize,
}

impl Parcel {
    fn is_full(&self) -> bool {
        self.full
    }

    /// Packs the records of one key. Each parcel begins with another one of them: all of a key's overlay may be more than
    /// any frame holds.
    fn pack(&mut self, mut records: Vec<Record>) {
        let first = self.number % records.len().max(1);
        records.rotate_left(first);
        for record in records {
            let bytes = bytes_of(&record);
            if self.full || self.records.len() == RECORDS_MAX || self.bytes + bytes > RECORDS_BYTES_MAX {
                self.full = true;
                return;
            }
            self.bytes += bytes;
            self.records.push(record);
        }
    }
}

fn bytes_of(record: &Record) -> usize {
    let clock = match &record.layer {
        Layer::Base => 0,
        Layer::Overlay { clock, .. } => clock.len() * CLOCK_PAIR_BYTES_MAX,
    };
    ENVELOPE_BYTES_MAX + clock + record.body.as_ref().map_or(0, Vec::len)
}
