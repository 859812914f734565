//! What is on its way out: actions for the shells, records for the peers, records for the disk.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use shoal_protocol::message::{PeerMessage, RECORDS_MAX};
use shoal_protocol::record::Record;
use shoal_protocol::token::{Role, RoleGrant};
use shoal_protocol::{Key, NodeId, Stamp, Time};

use super::event::{Action, PersistBatch};

/// Bytes of record bodies in one delta at most; further records go into further messages.
const DELTA_BYTES_MAX: usize = 256 * 1024;

/// How long status records wait for company on their way to peers that take no decisions.
const STATUS_EVERY: Duration = Duration::from_millis(200);

/// How long a disk that refused a write is left alone.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Why a batch is made durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Promise {
    /// Records that arrived; nobody waits.
    Background,
    /// A grant of leases, by the lease core's own number.
    Leases(u64),
    /// Records that a holder asked this voter to keep.
    Append {
        /// Who asked.
        to: NodeId,
        /// The number of the question.
        request: u64,
    },
    /// Tombstones that a holder wants to collect.
    Tombstones {
        /// Who asked.
        to: NodeId,
        /// Those that are on this node's disk once this batch is.
        held: Vec<(Key, Stamp)>,
    },
    /// The holder's own copy of a write.
    Commit(u64),
}

/// Everything that is to leave the decisions.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    actions: VecDeque<Action>,
    deltas: Vec<Record>,
    status: BTreeMap<Key, Record>,
    status_due: Option<Time>,
    unsaved: BTreeMap<Key, Record>,
    /// With the keys of the records in each batch: they are written again if it fails.
    promises: BTreeMap<u64, (Promise, BTreeSet<Key>)>,
    last_token: u64,
    background: bool,
    /// Set while the disk refuses: when to try again.
    retry_at: Option<Time>,
}

impl Outbox {
    pub(super) fn push(&mut self, action: Action) {
        self.actions.push_back(action);
    }

    pub(super) fn pop(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    pub(super) fn send(&mut self, to: NodeId, message: PeerMessage) {
        self.push(Action::Send { to, message, bulk: false });
    }

    pub(super) fn send_bulk(&mut self, to: NodeId, message: PeerMessage) {
        self.push(Action::Send { to, message, bulk: true });
    }

    /// Queues a record that this node authored for all peers.
    pub(super) fn spread(&mut self, record: Record) {
        if record.key.status_of().is_some() {
            self.status.insert(record.key, record.clone());
        }
        self.deltas.push(record);
    }

    /// Sends records to one peer now.
    pub(super) fn say(&mut self, to: NodeId, records: Vec<Record>) {
        for chunk in chunks(records) {
            self.send(to, PeerMessage::Delta(chunk));
        }
    }

    /// Queues a record for the disk; nobody waits for it.
    pub(super) fn save(&mut self, record: Record) {
        if record.key.is_durable() {
            self.unsaved.insert(record.key, record);
        }
    }

    /// Asks for a batch to be made durable at once and remembers why.
    pub(super) fn persist(&mut self, mut batch: PersistBatch, promise: Promise) {
        // What waits anyway shares the transaction, unless the disk would refuse leases for its sake.
        if self.retry_at.is_none() || !matches!(promise, Promise::Leases(_)) {
            let waiting = std::mem::take(&mut self.unsaved);
            batch.records.extend(waiting.into_values());
        }
        self.last_token += 1;
        let keys = batch.records.iter().map(|record| record.key).collect();
        self.promises.insert(self.last_token, (promise, keys));
        self.push(Action::Persist { token: self.last_token, batch });
    }

    /// Returns why a batch was written and of which records, once.
    pub(super) fn take_promise(&mut self, token: u64) -> Option<(Promise, BTreeSet<Key>)> {
        let promise = self.promises.remove(&token);
        if matches!(promise, Some((Promise::Background, _))) {
            self.background = false;
        }
        promise
    }

    /// Holds back writes that nobody waits for: the disk just refused one.
    pub(super) fn back_off(&mut self, now: Time) {
        self.retry_at = Some(now + RETRY_AFTER);
    }

    /// Holds nothing back any more: the disk took what nobody waits for.
    pub(super) fn go_on(&mut self) {
        self.retry_at = None;
    }

    /// Turns what was queued into messages. Status goes to managers at once and to the others a little later, together.
    pub(super) fn flush(&mut self, peers: &BTreeMap<NodeId, RoleGrant>, now: Time) {
        let deltas = std::mem::take(&mut self.deltas);
        let status_is_due = self.status_due.is_some_and(|due| due <= now);
        let status = if status_is_due { std::mem::take(&mut self.status) } else { BTreeMap::new() };
        self.status_due = match (self.status.is_empty(), self.status_due) {
            (true, _) => None,
            (false, Some(due)) if !status_is_due => Some(due),
            (false, _) => Some(now + STATUS_EVERY),
        };
        for (&peer, granted) in peers {
            let records: Vec<Record> = match granted.role {
                Role::Manager => deltas.clone(),
                Role::Worker => deltas
                    .iter()
                    .filter(|record| record.key.status_of().is_none())
                    .chain(status.values())
                    .cloned()
                    .collect(),
            };
            self.say(peer, records);
        }
        if !self.background && !self.unsaved.is_empty() && self.retry_at.is_none_or(|at| at <= now) {
            self.background = true;
            self.persist(PersistBatch::default(), Promise::Background);
        }
    }

    /// When coalesced status is due to leave.
    pub(super) fn timeout(&self) -> Option<Time> {
        self.status_due
    }
}

/// Divides records into messages that fit a frame.
fn chunks(records: Vec<Record>) -> Vec<Vec<Record>> {
    let mut chunks: Vec<Vec<Record>> = Vec::new();
    let mut room = 0usize;
    for record in records {
        let bytes = 128 + record.body.as_ref().map_or(0, Vec::len);
        let full = chunks.last().is_none_or(|chunk| chunk.len() >= RECORDS_MAX || bytes > room);
        if full {
            chunks.push(Vec::new());
            room = DELTA_BYTES_MAX;
        }
        room = room.saturating_sub(bytes);
        if let Some(chunk) = chunks.last_mut() {
            chunk.push(record);
        }
    }
    chunks
}

#[cfg(test)]
mod tests {
    use super::*;
    use shoal_protocol::ServiceId;
    use shoal_protocol::record::Layer;

    fn record(service: u128) -> Record {
        Record {
            key: Key::Service(ServiceId(service)),
            stamp: Stamp { lineage: 0, epoch: 1, seq: 1 },
            author: NodeId(1),
            schema: 1,
            layer: Layer::Base,
            body: Some(vec![1]),
        }
    }

    /// Takes the batches that are on their way to the disk: number, records in them, whether leases are.
    fn batches(outbox: &mut Outbox) -> Vec<(u64, usize, bool)> {
        let actions = std::iter::from_fn(|| outbox.pop());
        let batches = actions.filter_map(|action| match action {
            Action::Persist { token, batch } => Some((token, batch.records.len(), batch.leases.is_some())),
            _ => None,
        });
        batches.collect()
    }

    fn leases() -> PersistBatch {
        PersistBatch { leases: Some(crate::lease::Durable::default()), ..PersistBatch::default() }
    }

    #[test]
    fn records_travel_with_leases_only_while_the_disk_takes_them() {
        let mut outbox = Outbox::default();
        outbox.save(record(1));
        outbox.persist(leases(), Promise::Leases(1));
        assert_eq!(batches(&mut outbox), [(1, 1, true)]);

        outbox.save(record(2));
        outbox.flush(&BTreeMap::new(), Time(0));
        assert_eq!(batches(&mut outbox), [(2, 1, false)], "nothing else goes to the disk: they go alone");
        outbox.back_off(Time(0));
        assert_eq!(outbox.take_promise(2), Some((Promise::Background, BTreeSet::from([record(2).key]))));
        outbox.save(record(2));
        outbox.flush(&BTreeMap::new(), Time(10));
        outbox.persist(leases(), Promise::Leases(2));
        assert_eq!(batches(&mut outbox), [(3, 0, true)], "the leases do not fail with the records");

        outbox.flush(&BTreeMap::new(), Time(RETRY_AFTER.as_millis() as u64));
        assert_eq!(batches(&mut outbox), [(4, 1, false)], "tried again");
        outbox.take_promise(4);
        outbox.go_on();
        outbox.save(record(3));
        outbox.persist(leases(), Promise::Leases(3));
        assert_eq!(batches(&mut outbox), [(5, 1, true)]);
    }
}
