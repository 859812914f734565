//! What tests of this module share: the only manager of a new cluster, and its disk.

use std::collections::{BTreeMap, BTreeSet};

use shoal_protocol::spec::Availability;
use shoal_protocol::token::{Role, RoleGrant};
use shoal_protocol::value::{ClusterObject, NodeStatus};
use shoal_protocol::write::{WriteError, Written};
use shoal_protocol::{ClusterId, Key, NodeId, Now, Time, WallTime};

use super::{Action, Boot, Control, Event, Faults, PersistBatch, RequestId, bootstrap};

/// The node whose decisions are tested.
pub(super) const ME: NodeId = NodeId(1);

/// The only manager of a new cluster, just started.
pub(super) fn alone(status: NodeStatus) -> Control {
    let cluster = ClusterObject::first(ClusterId(1), ME, String::new(), Vec::new(), WallTime(0));
    let (records, leases) = bootstrap::first_document(ME, Availability::Active, cluster, WallTime(0)).unwrap();
    let boot = Boot {
        me: ME,
        cluster: ClusterId(1),
        granted: RoleGrant::first(Role::Manager),
        incarnation: 1,
        records,
        leases: Some(leases),
        restarted: false,
        status,
        serves_host_ports: false,
        addresses: BTreeMap::new(),
        seed: 1,
        faults: Faults::default(),
    };
    Control::new(boot, at(0))
}

/// The moment `ms` milliseconds after the start.
pub(super) fn at(ms: u64) -> Now {
    Now { time: Time(ms), wall: WallTime(0) }
}

/// A disk that may refuse records; leases it takes always.
#[derive(Default)]
pub(super) struct Disk {
    pub(super) is_full: bool,
    pub(super) keys: BTreeSet<Key>,
}

impl Disk {
    pub(super) fn write(&mut self, token: u64, batch: PersistBatch) -> Event {
        if self.is_full && !batch.records.is_empty() {
            return Event::PersistFailed { token, error: "full".to_owned() };
        }
        self.keys.extend(batch.records.iter().map(|record| record.key));
        Event::Persisted { token }
    }
}

/// Lets `ms` milliseconds pass; returns what was to be done beside keeping and answering.
pub(super) fn watch(control: &mut Control, disk: &mut Disk, from: u64, ms: u64) -> (Answers, Vec<Action>) {
    let (mut answers, mut others) = (Vec::new(), Vec::new());
    for time in from..from + ms {
        control.handle_event(Event::Tick, at(time));
        while let Some(action) = control.poll_action() {
            match action {
                Action::Persist { token, batch } => {
                    let event = disk.write(token, batch);
                    control.handle_event(event, at(time));
                }
                Action::Reply { request, result } => answers.push((request, result)),
                other => others.push(other),
            }
        }
    }
    (answers, others)
}

/// Lets `ms` milliseconds pass; returns the answers to users.
pub(super) fn run(control: &mut Control, disk: &mut Disk, from: u64, ms: u64) -> Answers {
    watch(control, disk, from, ms).0
}

/// Answers to users' writes.
pub(super) type Answers = Vec<(RequestId, Result<Written, WriteError>)>;
