//! What peers say, and what is said to them in turn.

use std::collections::BTreeSet;

use shoal_protocol::message::{Append, Appended, PeerMessage, Summary, SyncMessage};
use shoal_protocol::record::Record;
use shoal_protocol::token::Role;
use shoal_protocol::{Key, NodeId, Now};

use super::commit::Origin;
use super::event::{Action, PersistBatch};
use super::outbox::Promise;
use super::{CatchUp, Control, lease_of};
use crate::lease;
use crate::store::{Merged, authority};
use crate::view;

/// Probes for others that may be under way at once; more are not made, which counts as no information.
const PROBES_MAX: usize = 64;

impl Control {
    pub(super) fn handle_message(&mut self, from: NodeId, message: PeerMessage, now: Now) {
        if !self.peers.contains_key(&from) || self.store.is_banned(from) {
            if self.store.is_banned(from) {
                self.outbox.send(from, PeerMessage::Removed);
            }
            return;
        }
        self.view.handle_event(view::Event::Heard { node: from }, now.time);
        match message {
            PeerMessage::Ping { digest } => {
                self.heard_digest(from, digest, now);
                self.outbox.send(from, PeerMessage::Pong { digest: self.store.digest() });
            }
            PeerMessage::Pong { digest } => self.heard_digest(from, digest, now),
            // The runtime hands these to the gossip shell before they come here.
            PeerMessage::Gossip(_) => {}
            PeerMessage::Lease(message) => {
                if self.is_manager(from) {
                    self.leases.handle_event(lease::Event::Message { from, message }, now.time);
                }
            }
            PeerMessage::Delta(records) => {
                for record in records {
                    if self.is_fenced(&record) {
                        continue;
                    }
                    self.merge(from, record);
                }
            }
            PeerMessage::Sync(message) => self.handle_sync(from, message, now),
            PeerMessage::Append(append) => self.handle_append(from, append),
            PeerMessage::Appended(Appended { request, result }) => self.commit.answer(from, request, result),
            PeerMessage::Write { request, write } => {
                if !self.is_manager(from) {
                    return;
                }
                if let Err(Origin::Peer(to, request)) = self.commit.enqueue(Origin::Peer(from, request), write) {
                    self.outbox.send(to, PeerMessage::WriteReply { request, result: None });
                }
            }
            PeerMessage::WriteReply { request, result } => self.write_reply(request, result),
            PeerMessage::Probe { request, target } => self.probe_for(from, request, target),
            PeerMessage::Probed { request, target, alive } => {
                let event = view::Event::Probed { by: from, node: target, request, alive };
                self.view.handle_event(event, now.time);
            }
            PeerMessage::Tombstones { asked } => {
                if self.is_manager(from) {
                    self.confirm_tombstones(from, &asked);
                }
            }
            PeerMessage::TombstonesHeld { held } => self.tombstones.confirmed(from, &held),
            PeerMessage::Farewell { restarting } => {
                self.view.handle_event(view::Event::Farewell { node: from, restarting }, now.time);
            }
            PeerMessage::Removed => {
                // Only the document may say so: a manager's tombstone follows, or this was a mistake.
                if self.is_manager(from) {
                    self.repair.want(from);
                }
            }
        }
    }

    fn heard_digest(&mut self, from: NodeId, theirs: u128, now: Now) {
        let mine = self.store.digest();
        self.repair.heard(from, theirs, mine, now.time);
        if theirs == mine {
            self.counts.digests_equal += 1;
        } else {
            self.counts.digests_different += 1;
        }
    }

    /// Returns whether a record comes from a holder that was replaced, as far as this node knows.
    fn is_fenced(&self, record: &Record) -> bool {
        if self.faults.no_fencing {
            return false;
        }
        let Some(lease) = lease_of(&record.key) else { return false };
        let (lineage, epoch) = (record.stamp.lineage, record.stamp.epoch);
        self.store.claim(lease).is_some_and(|(stamp, _)| (lineage, epoch) < (stamp.lineage, stamp.epoch))
    }

    /// Merges one record from a peer, if that peer may say it.
    pub(super) fn merge(&mut self, from: NodeId, record: Record) -> bool {
        let key = record.key;
        if authority(&record, from, self.role_of(from)).is_err() {
            return false;
        }
        let stamp = record.stamp;
        let is_replaced = self.role_of(from) == Role::Manager && self.yielding.given_up.remove(&key);
        let merged = if is_replaced { self.store.replace(&record) } else { self.store.merge(&record) };
        match merged {
            Merged::New { .. } => {
                if let Some(record) = self.store.record(&key) {
                    self.outbox.save(record);
                }
                let under = lease_of(&key).filter(|_| !matches!(key, Key::Claim(_)));
                if under.and_then(|lease| self.holds.ready(lease)).is_some_and(|epoch| stamp.epoch < epoch) {
                    self.late.insert(key);
                }
                true
            }
            Merged::Known | Merged::Stale | Merged::Refused(_) => false,
        }
    }

    fn handle_sync(&mut self, from: NodeId, message: SyncMessage, now: Now) {
        match message {
            SyncMessage::Digest(buckets) => {
                let nothing = SyncMessage::Summary { buckets: Vec::new(), records: Vec::new(), more: false };
                let answer = self.store.answer_digest(&buckets).unwrap_or(nothing);
                self.outbox.send_bulk(from, PeerMessage::Sync(answer));
            }
            SyncMessage::Summary { buckets, records, more } => {
                let role = self.role_of(from);
                if role == Role::Manager && !self.is_manager(self.me) {
                    self.give_up_refused(&buckets, &records, now);
                }
                let given_up = &self.yielding.given_up;
                let exchange = self.store.answer_summary(&buckets, &records, (from, role), given_up);
                let wants = matches!(&exchange, Some(SyncMessage::Exchange { wanted, .. }) if !wanted.is_empty());
                if let Some(serial) = self.repair.summary(from, more || wants) {
                    self.caught_up(from, serial);
                }
                if let Some(exchange) = exchange {
                    self.send_repair(from, exchange);
                }
            }
            SyncMessage::Exchange { records, wanted } => {
                self.merge_repair(from, records);
                if let Some(answer) = self.store.answer_exchange(&wanted) {
                    self.send_repair(from, answer);
                }
            }
            SyncMessage::Records(records) => {
                self.merge_repair(from, records);
                self.repair.records(from);
            }
        }
    }

    fn send_repair(&mut self, to: NodeId, message: SyncMessage) {
        if let SyncMessage::Exchange { records, .. } | SyncMessage::Records(records) = &message {
            self.counts.repair_records_sent += records.len() as u64;
        }
        self.outbox.send_bulk(to, PeerMessage::Sync(message));
    }

    fn merge_repair(&mut self, from: NodeId, records: Vec<Record>) {
        for record in records {
            self.counts.repair_records_received += 1;
            self.counts.repair_records_new += u64::from(self.merge(from, record));
        }
    }

    /// Gives up what a manager has had something else for, for long.
    fn give_up_refused(&mut self, buckets: &[u16], records: &[Summary], now: Now) {
        let excess = self.store.excess(buckets, records);
        let removed = self.yielding.note(buckets, &excess, now.time);
        removed.iter().for_each(|key| self.store.forget(key));
        if !removed.is_empty() {
            self.outbox.persist(PersistBatch { removed, ..PersistBatch::default() }, Promise::Background);
        }
    }

    /// Notes that this node has all that a peer had when a comparison began.
    fn caught_up(&mut self, node: NodeId, serial: u64) {
        self.synced |= self.is_manager(node);
        self.holds.caught_up(node, serial);
        for catch_up in self.catching_up.values_mut().filter(|catch_up| catch_up.serial <= serial) {
            catch_up.done.insert(node);
        }
    }

    /// Begins to merge from `need` of these, members of the previous voter set or one that has done so.
    pub(super) fn catch_up(&mut self, version: u64, from: Vec<NodeId>, need: usize) {
        let serial = self.repair.next_serial();
        for &node in from.iter().filter(|node| **node != self.me) {
            self.repair.want(node);
        }
        let from = BTreeSet::from_iter(from);
        let fresh = || CatchUp { serial, from: BTreeSet::new(), need, done: BTreeSet::from([self.me]) };
        let catch_up = self.catching_up.entry(version).or_insert_with(fresh);
        // What was merged counts as long as it is part of what is asked for now: whoever is to be enough alone may have
        // learned of more since.
        if catch_up.need != need || !catch_up.from.is_subset(&from) {
            *catch_up = fresh();
        }
        catch_up.from = from;
    }

    /// Sends this node's digest to whom it should be compared with.
    pub(super) fn start_repairs(&mut self, now: Now) {
        for node in self.holds.waiting_for(self.me, |lease| self.leases.granters(lease)) {
            self.repair.want(node);
        }
        if !self.synced {
            // Until a manager's document was seen whole, nothing that runs here can be called unwanted.
            let managers: Vec<NodeId> = self.peers.keys().filter(|peer| self.is_manager(**peer)).copied().collect();
            for manager in managers {
                self.repair.want(manager);
            }
        }
        let i_am_manager = self.is_manager(self.me);
        let eligible = self.peers.keys().filter(|peer| i_am_manager || self.is_manager(**peer)).copied().collect();
        let eligible = if self.faults.no_repair { BTreeSet::new() } else { eligible };
        let random = rand::RngExt::random::<u32>(&mut self.random) as usize;
        let due = self.repair.due(&eligible, now.time, |count| random % count.max(1));
        for node in due {
            if self.peers.contains_key(&node) {
                let buckets = self.store.buckets();
                self.counts.repairs_begun += 1;
                self.outbox.send_bulk(node, PeerMessage::Sync(SyncMessage::Digest(buckets)));
            }
        }
    }

    /// A holder asks this voter to keep records: promise only what is on disk.
    fn handle_append(&mut self, from: NodeId, append: Append) {
        let Append { request, voters, lease, epoch, records } = append;
        if !self.is_manager(from) || !self.leases.may_append(voters, lease, epoch) {
            let result = Err(shoal_protocol::message::AppendError::Fenced);
            self.outbox.send(from, PeerMessage::Appended(Appended { request, result }));
            return;
        }
        let keys: Vec<Key> = records.iter().map(|record| record.key).collect();
        for record in records {
            self.merge(from, record);
        }
        // Whatever was known already is written once more: the promise is about the disk.
        let records = keys.iter().filter_map(|key| self.store.record(key)).collect();
        let batch = PersistBatch { records, ..PersistBatch::default() };
        self.outbox.persist(batch, Promise::Append { to: from, request });
    }

    fn probe_for(&mut self, asker: NodeId, request: u64, target: NodeId) {
        if self.probes.len() >= PROBES_MAX || self.store.node(target).is_none() {
            return;
        }
        let own = self.next_probe();
        self.probes.insert(own, (asker, request));
        let address = self.address_of(target);
        self.outbox.push(Action::Probe { node: target, address, request: own });
    }

    pub(super) fn next_probe(&mut self) -> u64 {
        // Own numbers have the highest bit, so that they never meet those of the view.
        self.last_probe += 1;
        self.last_probe | 1 << 63
    }

    pub(super) fn probed(&mut self, node: NodeId, request: u64, alive: bool, now: Now) {
        match self.probes.remove(&request) {
            Some((asker, request)) => {
                self.outbox.send(asker, PeerMessage::Probed { request, target: node, alive });
            }
            None => self.view.handle_event(view::Event::Probe { node, request, alive }, now.time),
        }
    }
}
