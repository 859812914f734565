//! Leases and writes: taking leases into use, carrying users' writes to the holder, making them durable.

use std::collections::BTreeSet;

use shoal_protocol::lease::{LeaseId, VoterSet};
use shoal_protocol::message::{AppendError, Appended, PeerMessage};
use shoal_protocol::record::Record;
use shoal_protocol::token::Role;
use shoal_protocol::value::{Claim, Value};
use shoal_protocol::write::{Write, WriteError, Written};
use shoal_protocol::{Key, NodeId, Now, Stamp};

use super::bootstrap::voters_stamp;
use super::commit::{Origin, Outcome};
use super::event::{Action, PersistBatch, RequestId};
use super::outbox::Promise;
use super::{Control, lease_of, registry};
use crate::lease;
use crate::store::{PutError, Store};
use crate::view::Health;

/// A newly connected manager is asked for leases after this long: rebalancing to a node that flaps would hurt twice.
const SETTLED_AFTER: std::time::Duration = std::time::Duration::from_secs(60);

/// Bytes of records of earlier holders after which no more of them are written in one go: together with one more they fit
/// into a message.
const LATE_BYTES_MAX: usize = 256 << 10;

impl Control {
    /// Tells the lease core who may hold leases.
    pub(super) fn update_candidates(&mut self, now: Now) -> bool {
        if !std::mem::take(&mut self.dirty.candidates) {
            return false;
        }
        let mut eligible = Vec::new();
        let mut settled = Vec::new();
        for (node, _, _) in self.store.nodes() {
            if !self.is_manager(node) || !self.is_listed(node) || !matches!(self.health(node), Health::Alive) {
                continue;
            }
            if node == self.me && self.leaving {
                continue;
            }
            eligible.push(node);
            let since =
                if node == self.me { self.started } else { self.alive_since.get(&node).copied().unwrap_or(now.time) };
            if now.time.since(since) >= SETTLED_AFTER {
                settled.push(node);
            }
        }
        self.leases.handle_event(lease::Event::Candidates { eligible, settled }, now.time);
        true
    }

    /// Performs what the lease core asks for.
    pub(super) fn drain_leases(&mut self, now: Now) -> bool {
        let mut moved = false;
        while let Some(action) = self.leases.poll_action() {
            moved = true;
            match action {
                lease::Action::Send { to, message } => self.outbox.send(to, PeerMessage::Lease(message)),
                lease::Action::Persist { token, durable } => {
                    let batch = PersistBatch { leases: Some(durable), ..PersistBatch::default() };
                    self.outbox.persist(batch, Promise::Leases(token));
                }
                lease::Action::Acquired { lease, epoch } => {
                    let serial = self.repair.next_serial();
                    self.holds.acquired(lease, epoch, serial);
                    self.outbox.push(Action::LeaseAcquired { lease, epoch });
                    self.start_repairs(now);
                }
                lease::Action::Lost { lease, epoch, expired } => {
                    self.outbox.push(Action::LeaseLost { lease, epoch, expired });
                    self.lease_lost(lease);
                }
                lease::Action::VotersChanged(voters) => self.note_voters(voters),
                lease::Action::CatchUp { version, from, need } => self.catch_up(version, from, need),
            }
        }
        moved
    }

    /// Puts decided voters into the document. Every node that learns of them does so, in the same words: the record is
    /// signed by their first, whoever writes it.
    fn note_voters(&mut self, voters: VoterSet) {
        let Some(&first) = voters.members.first() else { return };
        let stamp = voters_stamp(&voters);
        if let Ok(record) = self.store.put(Key::Voters, stamp, first, Some(&Value::Voters(voters))) {
            self.outbox.save(record.clone());
            if self.is_manager(self.me) {
                self.outbox.spread(record);
            }
        }
    }

    fn lease_lost(&mut self, lease: LeaseId) {
        self.holds.lost(lease);
        if lease != LeaseId::REGISTRY {
            return;
        }
        self.late.clear();
        for origin in self.commit.abandon() {
            self.give_back(origin);
        }
    }

    fn give_back(&mut self, origin: Origin) {
        match origin {
            Origin::Here(request) => self.requests.returned(request),
            Origin::Peer(to, request) => self.outbox.send(to, PeerMessage::WriteReply { request, result: None }),
            Origin::Nobody => {}
        }
    }

    /// Takes leases into use that have caught up, and moves writes along.
    pub(super) fn use_leases(&mut self, now: Now) -> bool {
        let majority = self.leases.voters().majority();
        let ready = self.holds.become_ready(self.me, majority, |lease| self.leases.granters(lease));
        let mut moved = !ready.is_empty();
        for (lease, epoch) in ready {
            self.synced = true;
            let stamp = Stamp { lineage: 0, epoch, seq: 0 };
            self.author(Key::Claim(lease), stamp, Some(Value::Claim(Claim { lease, holder: self.me })));
            self.dirty.keys |= lease == LeaseId::REGISTRY;
            if lease != LeaseId::REGISTRY {
                // A new holder looks at everything: there is no second way to begin.
                self.dirty.all_services = true;
            }
        }
        let voters = self.leases.voters().version;
        let enough = |catch_up: &super::CatchUp| catch_up.from.intersection(&catch_up.done).count() >= catch_up.need;
        if let Some((&version, _)) = self.catching_up.iter().find(|(_, catch_up)| enough(catch_up)) {
            self.catching_up.remove(&version);
            self.leases.handle_event(lease::Event::CaughtUp { version }, now.time);
            moved = true;
        }
        self.catching_up.retain(|&version, _| version >= voters);
        self.send_requests(now);
        moved | self.carry_out_writes(now)
    }

    /// Sends users' writes to the holder of the registry lease, this node included.
    fn send_requests(&mut self, now: Now) {
        if self.requests.is_empty() {
            return;
        }
        let here = self.uses(LeaseId::REGISTRY, now.time).is_some();
        let holder = if here { Some(self.me) } else { self.leases.holder(LeaseId::REGISTRY).map(|(holder, _)| holder) };
        let Some(holder) = holder else { return };
        if !here && !self.peers.contains_key(&holder) {
            return;
        }
        for (request, write) in self.requests.take_due(holder, now.time) {
            if !here {
                self.outbox.send(holder, PeerMessage::Write { request, write });
            } else if self.commit.enqueue(Origin::Here(request), write).is_err() {
                self.requests.returned(request);
            }
        }
    }

    /// Takes in a user's write.
    pub(super) fn request(&mut self, request: RequestId, write: Write, now: Now) {
        let refused = if !self.is_manager(self.me) {
            Some(WriteError::NotManager { managers: self.manager_addresses() })
        } else if let Some(refusal) = &self.storage {
            // The other voters could keep it, but a user of this node should learn now what is wrong with it, not when it
            // is the last one left.
            Some(WriteError::Storage(refusal.clone()))
        } else {
            self.requests.add(request, write, now.time).err()
        };
        if let Some(error) = refused {
            self.outbox.push(Action::Reply { request, result: Err(error) });
        }
    }

    /// Returns where live managers can be reached.
    pub fn manager_addresses(&self) -> Vec<String> {
        let managers = self.store.nodes().filter(|(_, _, spec)| spec.role == Role::Manager);
        managers
            .map(|(node, _, _)| node)
            .filter(|node| self.is_alive(*node))
            .filter_map(|node| self.store.node_status(node)?.address)
            .map(|address| address.to_string())
            .collect()
    }

    pub(super) fn write_reply(&mut self, request: u64, result: Option<Result<Written, WriteError>>) {
        match result {
            None => self.requests.returned(request),
            Some(result) => {
                if self.requests.answered(request) {
                    self.outbox.push(Action::Reply { request, result });
                }
            }
        }
    }

    pub(super) fn expire_requests(&mut self, now: Now) {
        let lost = self.quorum_lost.map(|since| now.time.since(since));
        for (request, error) in self.requests.expired(lost, now.time) {
            self.outbox.push(Action::Reply { request, result: Err(error) });
        }
    }

    pub(super) fn watch_quorum(&mut self, now: Now) {
        if self.has_quorum(now.time) {
            self.quorum_lost = None;
        } else {
            self.quorum_lost.get_or_insert(now.time);
        }
    }

    /// Decides, sends and finishes writes as the holder of the registry lease.
    fn carry_out_writes(&mut self, now: Now) -> bool {
        let Some(epoch) = self.uses(LeaseId::REGISTRY, now.time) else {
            // A write that was forwarded here by mistake goes back at once.
            for origin in self.commit.abandon() {
                self.give_back(origin);
            }
            return false;
        };
        let mut moved = self.finish_write();
        while !self.commit.is_busy() {
            let Some((origin, write)) = self.commit.next() else { break };
            moved = true;
            let older = registry::relies_on_older(&write, epoch, &self.store);
            if let Some(record) = older.and_then(|key| self.store.record(&key)) {
                let records = vec![self.restamp(record, epoch)];
                self.make_durable(Origin::Nobody, Written { index: 0, warnings: Vec::new() }, records, epoch, now);
                self.commit.follow(origin, write);
                break;
            }
            self.begin_write(origin, &write, epoch, now);
        }
        if !self.commit.is_busy() {
            moved |= self.settle_late_records(epoch, now);
        }
        if let Some((voters, append)) = self.commit.resend(now.time) {
            for voter in voters.into_iter().filter(|voter| *voter != self.me) {
                self.outbox.send(voter, PeerMessage::Append(append.clone()));
            }
        }
        moved
    }

    fn begin_write(&mut self, origin: Origin, write: &Write, epoch: u64, now: Now) {
        let is_down = |node| matches!(self.health(node), Health::Failed | Health::Left);
        match registry::decide(write, &self.store, is_down, now.wall) {
            Err(error) => self.reply(origin, Err(error)),
            Ok(decision) => {
                let mut records: Vec<Record> = Vec::new();
                for (key, value) in decision.changes {
                    match self.draft(key, value.as_ref(), epoch) {
                        Ok(record) => records.push(record),
                        Err(error) => return self.reply(origin, Err(WriteError::Invalid(error.to_string()))),
                    }
                }
                // What is there already may be on a minority of the disks only: make sure before saying that it is done.
                records.extend(decision.confirm.iter().filter_map(|key| self.store.record(key)));
                self.make_durable(origin, decision.written, records, epoch, now);
            }
        }
    }

    /// Makes a record under the registry lease without putting it into the document.
    fn draft(&mut self, key: Key, value: Option<&Value>, epoch: u64) -> Result<Record, PutError> {
        let seq = self.holds.next_seq(LeaseId::REGISTRY);
        let record = Store::seal(key, Stamp { lineage: 0, epoch, seq }, self.me, value)?;
        // What nobody could read must not be acknowledged.
        Value::open(&record)?;
        Ok(record)
    }

    fn make_durable(&mut self, origin: Origin, written: Written, records: Vec<Record>, epoch: u64, now: Now) {
        let voters = self.leases.voters().clone();
        let append = self.commit.begin(origin, written, records, (LeaseId::REGISTRY, epoch), voters.clone(), now.time);
        for &voter in &voters.members {
            if voter == self.me {
                let batch = PersistBatch { records: append.records.clone(), ..PersistBatch::default() };
                self.outbox.persist(batch, Promise::Commit(append.request));
            } else {
                self.outbox.send(voter, PeerMessage::Append(append.clone()));
            }
        }
    }

    /// Ends the write in flight if it is decided.
    fn finish_write(&mut self) -> bool {
        let outcome = self.commit.outcome();
        if outcome == Outcome::Waiting {
            return false;
        }
        let Some(in_flight) = self.commit.take() else { return false };
        let result = match outcome {
            Outcome::Waiting => return false,
            Outcome::Durable => {
                if let Some((origin, write)) = in_flight.then {
                    self.commit.put_first(origin, write);
                }
                for record in in_flight.append.records {
                    self.store.merge(&record);
                    self.outbox.save(record.clone());
                    self.outbox.spread(record);
                }
                Ok(in_flight.written)
            }
            Outcome::Failed(AppendError::Storage(error)) => {
                if let Some((origin, _)) = in_flight.then {
                    self.reply(origin, Err(WriteError::Storage(error.clone())));
                }
                Err(WriteError::Storage(error))
            }
            Outcome::Failed(AppendError::Fenced) => {
                // Somebody else holds the lease by now, or soon will: the write goes there.
                for origin in in_flight.origins() {
                    self.give_back(origin);
                }
                return true;
            }
        };
        self.reply(in_flight.origin, result);
        true
    }

    fn reply(&mut self, origin: Origin, result: Result<Written, WriteError>) {
        match origin {
            Origin::Here(request) => {
                if self.requests.answered(request) {
                    self.outbox.push(Action::Reply { request, result });
                }
            }
            Origin::Peer(to, request) => {
                self.outbox.send(to, PeerMessage::WriteReply { request, result: Some(result) });
            }
            Origin::Nobody => {}
        }
    }

    /// Rewrites what a replaced holder wrote and nobody had seen: under this epoch if it fits, as removed if it does not.
    fn settle_late_records(&mut self, epoch: u64, now: Now) -> bool {
        let mut records = Vec::new();
        let mut bytes = 0;
        while bytes < LATE_BYTES_MAX
            && let Some(key) = self.late.pop_first()
        {
            let Some(current) = self.store.record(&key).filter(|record| record.stamp.epoch < epoch) else { continue };
            if lease_of(&key) != Some(LeaseId::REGISTRY) {
                continue;
            }
            let clashes = registry::clashes(&key, &self.store);
            let body = if clashes { None } else { current.body.clone() };
            bytes += body.as_ref().map_or(0, Vec::len);
            records.push(self.restamp(Record { body, ..current }, epoch));
        }
        if records.is_empty() {
            return false;
        }
        let written = Written { index: 0, warnings: Vec::new() };
        self.make_durable(Origin::Nobody, written, records, epoch, now);
        true
    }

    /// Makes the record of an earlier holder one of this one.
    fn restamp(&mut self, record: Record, epoch: u64) -> Record {
        let seq = self.holds.next_seq(LeaseId::REGISTRY);
        Record { stamp: Stamp { lineage: 0, epoch, seq }, author: self.me, ..record }
    }

    /// Asks for other voters when the managers have changed.
    pub(super) fn propose_voters(&mut self, now: Now) {
        if self.uses(LeaseId::REGISTRY, now.time).is_none() || self.commit.is_busy() {
            return;
        }
        let listed: BTreeSet<NodeId> = self
            .store
            .nodes()
            .filter(|(_, _, spec)| spec.role == Role::Manager)
            .map(|(node, _, _)| node)
            .filter(|node| !matches!(self.health(*node), Health::Left))
            .collect();
        let alive = listed.iter().copied().filter(|node| self.is_manager(*node) && self.is_alive(*node)).collect();
        let desired = lease::desired_voters(self.leases.voters(), &alive, &listed);
        if desired != self.leases.voters().members {
            self.leases.handle_event(lease::Event::ProposeVoters(desired), now.time);
        }
    }

    /// Puts a value of this node's into the document, on its way to peers and disk.
    pub(super) fn author(&mut self, key: Key, stamp: Stamp, value: Option<Value>) {
        match self.store.put(key, stamp, self.me, value.as_ref()) {
            Ok(record) => {
                self.accepted(&key);
                self.outbox.save(record.clone());
                self.outbox.spread(record);
            }
            // Somebody has written later than this node knew; what was written then stands.
            Err(PutError::Superseded { .. }) => {}
            // The value stays as it was, mostly because the new one is too large for a record.
            Err(error @ (PutError::Value(_) | PutError::Codec(_) | PutError::Record(_))) => {
                self.refused(key, error.to_string());
            }
        }
    }

    pub(super) fn persisted(&mut self, token: u64, now: Now) {
        self.disk_works();
        let Some((promise, _)) = self.outbox.take_promise(token) else { return };
        match promise {
            Promise::Leases(token) => self.leases.handle_event(lease::Event::Persisted(token), now.time),
            Promise::Append { to, request } => {
                self.outbox.send(to, PeerMessage::Appended(Appended { request, result: Ok(()) }));
            }
            Promise::Commit(request) => self.commit.answer(self.me, request, Ok(())),
            Promise::Tombstones { to, held } => self.outbox.send(to, PeerMessage::TombstonesHeld { held }),
            Promise::Background => self.outbox.go_on(),
        }
    }

    pub(super) fn persist_failed(&mut self, token: u64, error: String, now: Now) {
        self.outbox.back_off(now.time);
        self.disk_failed(&error);
        let error = AppendError::Storage(error);
        let Some((promise, keys)) = self.outbox.take_promise(token) else { return };
        match promise {
            Promise::Append { to, request } => {
                self.outbox.send(to, PeerMessage::Appended(Appended { request, result: Err(error) }));
            }
            Promise::Commit(request) => self.commit.answer(self.me, request, Err(error)),
            Promise::Leases(token) => self.leases.handle_event(lease::Event::PersistFailed(token), now.time),
            Promise::Tombstones { .. } | Promise::Background => {}
        }
        // Whoever waited was told; what the document has belongs on the disk all the same, and will not arrive again.
        for key in keys {
            if let Some(record) = self.store.record(&key) {
                self.outbox.save(record);
            }
        }
    }

    /// The disk has no room any more, or has some again: then what it refused is stored at once.
    pub(super) fn storage_changed(&mut self, refusal: Option<String>) {
        match &refusal {
            Some(error) => self.disk_failed(error),
            None => self.outbox.go_on(),
        }
        self.storage = refusal;
    }

    /// Hands leases over and says farewell.
    pub(super) fn leave(&mut self, restarting: bool, now: Now) {
        self.leaving = true;
        self.dirty.candidates = true;
        self.leases.handle_event(lease::Event::Leave, now.time);
        let peers: Vec<NodeId> = self.peers.keys().copied().collect();
        for peer in peers {
            self.outbox.send(peer, PeerMessage::Farewell { restarting });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::Event;
    use crate::core::testing::{Disk, ME, at, run};
    use shoal_protocol::value::NodeStatus;
    use shoal_protocol::{ServiceId, WallTime};

    const SPEC: &str = r#"{"Name": "web", "TaskTemplate": {"ContainerSpec": {"Image": "x"}}}"#;

    fn alone() -> Control {
        crate::core::testing::alone(NodeStatus::default())
    }

    #[test]
    fn what_a_disk_refused_is_stored_later_whoever_waited_for_it() {
        let mut disk = Disk { is_full: true, ..Disk::default() };
        let mut control = alone();
        run(&mut control, &mut disk, 0, 4_000);
        let claimed = |control: &Control| LeaseId::all().all(|lease| control.store().claim(lease).is_some());
        assert!(claimed(&control), "a disk that is full of records still lets a node hold leases");
        assert!(disk.keys.is_empty());
        disk.is_full = false;
        run(&mut control, &mut disk, 4_000, 1_500);
        let durable = LeaseId::all().map(Key::Claim).filter(Key::is_durable);
        let lacking: Vec<Key> = durable.filter(|key| !disk.keys.contains(key)).collect();
        assert!(lacking.is_empty(), "{lacking:?}");
        assert!(!disk.keys.is_empty());
    }

    #[test]
    fn a_node_without_room_refuses_writes_until_it_has_some() {
        let (mut control, mut disk) = (alone(), Disk::default());
        run(&mut control, &mut disk, 0, 4_000);
        let write = || Write::CreateService { id: ServiceId(7), spec: SPEC.to_owned(), credentials: None };
        control.handle_event(Event::Storage(Some("no space left: /data".to_owned())), at(4_000));
        control.handle_event(Event::Request { request: 1, write: write() }, at(4_000));
        let refused = Err(WriteError::Storage("no space left: /data".to_owned()));
        assert_eq!(run(&mut control, &mut disk, 4_000, 1), [(1, refused)]);
        assert_eq!(control.storage_refusal(), Some("no space left: /data"));
        assert!(control.store().service_spec(ServiceId(7)).is_none());

        control.handle_event(Event::Storage(None), at(4_001));
        control.handle_event(Event::Request { request: 2, write: write() }, at(4_001));
        let answers = run(&mut control, &mut disk, 4_001, 100);
        assert!(matches!(answers[..], [(2, Ok(_))]), "{answers:?}");
        assert!(control.store().service_spec(ServiceId(7)).is_some());
    }

    #[test]
    fn what_earlier_holders_wrote_is_written_again_in_pieces_that_fit_a_message() {
        use shoal_protocol::object::{Object, ObjectHead};
        use shoal_protocol::{Kind, ObjectId};
        let (mut control, mut disk) = (alone(), Disk::default());
        run(&mut control, &mut disk, 0, 4_000);
        let keys: Vec<Key> = (0..6).map(|id| Key::Object(Kind::Config, ObjectId(id))).collect();
        for key in &keys {
            let Key::Object(_, id) = *key else { unreachable!() };
            let (created, updated) = (WallTime(0), WallTime(0));
            let head =
                ObjectHead { index: 1, created, updated, edition: 1, name: id.to_string(), spec: "{}".to_owned() };
            let value = Value::Object(Object { head, data: vec![0; 500_000] });
            let record = Store::seal(*key, Stamp::default(), ME, Some(&value)).unwrap();
            control.store.merge(&record);
            control.late.insert(*key);
        }
        for time in 4_000..4_500 {
            control.handle_event(Event::Tick, at(time));
            while let Some(action) = control.poll_action() {
                if let Action::Persist { token, batch } = action {
                    let bytes: usize =
                        batch.records.iter().filter_map(|record| record.body.as_ref()).map(Vec::len).sum();
                    assert!(bytes < shoal_protocol::codec::FRAME_BYTES_MAX, "{bytes}");
                    control.handle_event(disk.write(token, batch), at(time));
                }
            }
        }
        let epochs: Vec<u64> =
            keys.iter().filter_map(|key| control.store.stamp(key)).map(|stamp| stamp.epoch).collect();
        assert!(epochs.len() == 6 && epochs.iter().all(|epoch| *epoch > 0), "{epochs:?}");
    }

    #[test]
    fn a_service_waits_until_what_it_uses_is_of_the_present_epoch() {
        use shoal_protocol::object::{Object, ObjectHead};
        use shoal_protocol::{Kind, ObjectId};
        let (mut control, mut disk) = (alone(), Disk::default());
        run(&mut control, &mut disk, 0, 4_000);
        let (id, key) = (ObjectId(5), Key::Object(Kind::Config, ObjectId(5)));
        let (created, updated) = (WallTime(0), WallTime(0));
        let head =
            ObjectHead { index: 1, created, updated, edition: 1, name: "con1".to_owned(), spec: "{}".to_owned() };
        let value = Value::Object(Object { head, data: vec![1] });
        let early = Store::seal(key, Stamp { lineage: 0, epoch: 0, seq: 1 }, ME, Some(&value)).unwrap();
        control.store.merge(&early);
        let spec = format!(
            r#"{{"Name":"web","TaskTemplate":{{"ContainerSpec":{{"Image":"x","Configs":[
            {{"File":{{"Name":"f"}},"ConfigID":"{id}","ConfigName":"con1"}}]}}}}}}"#
        );
        let write = Write::CreateService { id: ServiceId(7), spec, credentials: None };
        disk.is_full = true;
        control.handle_event(Event::Request { request: 1, write: write.clone() }, at(4_000));
        let full = Err(WriteError::Storage("full".to_owned()));
        assert_eq!(run(&mut control, &mut disk, 4_000, 100), [(1, full)], "it learns why at once");
        disk.is_full = false;
        control.handle_event(Event::Request { request: 2, write }, at(4_100));
        let answers = run(&mut control, &mut disk, 4_100, 100);
        assert!(matches!(answers[..], [(2, Ok(_))]), "{answers:?}");
        assert!(control.store().stamp(&key).is_some_and(|stamp| stamp.epoch > 0));
        assert!(disk.keys.contains(&key) && control.store().service(ServiceId(7)).is_some());
    }
}
