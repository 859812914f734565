//! Forgetting: tombstones that every node has on disk, reports of tasks that no slot names.

use std::collections::BTreeSet;

use shoal_protocol::message::PeerMessage;
use shoal_protocol::{Key, NodeId, Now, Stamp};

use super::event::PersistBatch;
use super::outbox::Promise;
use super::{Control, SWEEP_EVERY, lease_of};

impl Control {
    /// Looks, once in a while, for what nobody needs any more.
    pub(super) fn sweep(&mut self, now: Now) {
        if now.time < self.next_sweep {
            return;
        }
        self.next_sweep = now.time + SWEEP_EVERY;
        self.store.prune_reports(self.me);
        let removed = self.store.collect();
        if !removed.is_empty() {
            let batch = PersistBatch { removed: removed.into_iter().collect(), ..PersistBatch::default() };
            self.outbox.persist(batch, Promise::Background);
        }
        self.collect_tombstones(now);
    }

    /// As a holder: marks the tombstones as collected that all listed nodes have confirmed, asks about the others.
    fn collect_tombstones(&mut self, now: Now) {
        let listed: BTreeSet<NodeId> = self.store.nodes().map(|(node, _, _)| node).collect();
        let mine: Vec<(Key, Stamp)> = self
            .store
            .tombstones()
            .filter(|(key, _)| lease_of(key).is_some_and(|lease| self.uses(lease, now.time).is_some()))
            .collect();
        let others: BTreeSet<NodeId> = listed.iter().copied().filter(|node| *node != self.me).collect();
        for key in self.tombstones.ready(&others) {
            let Some(lease) = lease_of(&key) else { continue };
            let Some(epoch) = self.uses(lease, now.time) else { continue };
            if !mine.iter().any(|(tombstone, _)| *tombstone == key) {
                continue;
            }
            let stamp = Stamp { lineage: 0, epoch, seq: self.holds.next_seq(lease) };
            if let Ok(record) = self.store.put_collected(key, stamp, self.me) {
                self.outbox.save(record.clone());
                self.outbox.spread(record);
            }
        }
        for node in others {
            let asked = self.tombstones.ask(node, mine.iter().copied());
            if !asked.is_empty() && self.peers.contains_key(&node) {
                self.outbox.send_bulk(node, PeerMessage::Tombstones { asked });
            }
        }
    }

    /// Answers a holder once the tombstones that it asks about are on the disk.
    pub(super) fn confirm_tombstones(&mut self, to: NodeId, asked: &[(Key, Stamp)]) {
        let held = self.store.confirm(asked);
        if !held.is_empty() {
            // Whatever was written before is written once more: the promise is about the disk.
            let records = held.iter().filter_map(|(key, _)| self.store.record(key)).collect();
            let batch = PersistBatch { records, ..PersistBatch::default() };
            self.outbox.persist(batch, Promise::Tombstones { to, held });
        }
    }
}
