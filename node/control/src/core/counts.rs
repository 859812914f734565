//! What the decisions did since somebody last asked, for whoever counts it. Nothing is decided from it.

use std::time::Duration;

use shoal_protocol::Time;

use super::Control;
use crate::lease::Renewals;

/// Numbers of what was done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Nodes that were suspected and found to be alive.
    pub suspicions_refuted: u64,
    /// Digests of peers that were equal to this node's.
    pub digests_equal: u64,
    /// Digests of peers that were not.
    pub digests_different: u64,
    /// Comparisons of documents that this node began.
    pub repairs_begun: u64,
    /// Records sent in comparisons, whoever began them.
    pub repair_records_sent: u64,
    /// Records received in comparisons.
    pub repair_records_received: u64,
    /// Of them, those that this node did not have.
    pub repair_records_new: u64,
    /// Renewals of leases that this node holds.
    pub renewals: Renewals,
    /// Services whose plan was computed.
    pub services_planned: u64,
    /// Slots and states of updates that plans wrote.
    pub plan_writes: u64,
}

impl Control {
    /// Returns what was done since this was last asked.
    pub fn take_counts(&mut self) -> Counts {
        let (renewals, suspicions_refuted) = (self.leases.take_renewals(), self.view.take_refuted());
        Counts { renewals, suspicions_refuted, ..std::mem::take(&mut self.counts) }
    }

    /// Returns for how long, at the most, a connected peer's document has differed from this node's.
    pub fn disagrees_for(&self, now: Time) -> Duration {
        self.repair.disagrees_for(now)
    }
}

#[cfg(test)]
mod tests {
    use shoal_protocol::message::{PeerMessage, SyncMessage};
    use shoal_protocol::token::{Role, RoleGrant};
    use shoal_protocol::value::{NodeStatus, Value};
    use shoal_protocol::write::Write;
    use shoal_protocol::{Key, NodeId, ServiceId, Stamp};

    use super::*;
    use crate::core::testing::{Disk, alone, at, run, watch};
    use crate::core::{Action, Event};
    use crate::store::Store;

    const PEER: NodeId = NodeId(2);

    /// The only manager of a cluster, which has its leases, at 5 s, and a peer that just connected.
    fn with_peer() -> (Control, Disk) {
        let (mut control, mut disk) = (alone(NodeStatus::default()), Disk::default());
        run(&mut control, &mut disk, 0, 5_000);
        control.handle_event(Event::PeerUp { node: PEER, granted: RoleGrant::first(Role::Manager) }, at(5_000));
        while control.poll_action().is_some() {}
        control.take_counts();
        (control, disk)
    }

    fn say(control: &mut Control, message: PeerMessage, ms: u64) {
        control.handle_event(Event::Message { from: PEER, message }, at(ms));
    }

    #[test]
    fn plans_and_renewals_are_counted_and_leases_told() {
        let (mut control, mut disk) = (alone(NodeStatus::default()), Disk::default());
        let (_, actions) = watch(&mut control, &mut disk, 0, 5_000);
        let acquired = actions.iter().filter(|action| matches!(action, Action::LeaseAcquired { epoch: 1, .. })).count();
        assert_eq!(acquired, 17);
        let counts = control.take_counts();
        assert!(counts.renewals.asked > 17 && counts.renewals.missed == 0, "{counts:?}");
        assert_eq!(counts.services_planned, 0);
        assert_eq!(control.take_counts(), Counts::default(), "nothing is counted twice");
        let spec =
            r#"{"Name":"web","TaskTemplate":{"ContainerSpec":{"Image":"a"}},"Mode":{"Replicated":{"Replicas":2}}}"#;
        let write = Write::CreateService { id: ServiceId(7), spec: spec.to_owned(), credentials: None };
        control.handle_event(Event::Request { request: 1, write }, at(5_000));
        let (answers, actions) = watch(&mut control, &mut disk, 5_000, 500);
        assert!(answers.iter().all(|(_, result)| result.is_ok()), "{answers:?}");
        let counts = control.take_counts();
        assert!(counts.services_planned >= 1 && counts.plan_writes >= 2, "{counts:?}");
        let told = actions.iter().filter_map(|action| match action {
            Action::Planned { service: ServiceId(7), epoch: 1, writes } => Some(*writes as u64),
            _ => None,
        });
        assert_eq!(told.sum::<u64>(), counts.plan_writes);
    }

    #[test]
    fn a_holder_that_leaves_tells_of_each_lease_that_it_gives_back() {
        let (mut control, mut disk) = (alone(NodeStatus::default()), Disk::default());
        run(&mut control, &mut disk, 0, 5_000);
        control.handle_event(Event::Leave { restarting: true }, at(5_000));
        let actions: Vec<_> = std::iter::from_fn(|| control.poll_action()).collect();
        let lost = actions.iter().filter(|action| matches!(action, Action::LeaseLost { expired: false, .. })).count();
        assert_eq!(lost, 17, "given back, not run out");
    }

    #[test]
    fn digests_and_what_repairs_them_are_counted() {
        let (mut control, _) = with_peer();
        let digest = control.store().digest();
        assert_eq!(control.disagrees_for(at(5_000).time), Duration::ZERO);
        say(&mut control, PeerMessage::Pong { digest }, 5_000);
        say(&mut control, PeerMessage::Ping { digest: !digest }, 5_100);
        let counts = control.take_counts();
        assert_eq!((counts.digests_equal, counts.digests_different), (1, 1));
        assert_eq!(control.disagrees_for(at(7_100).time), Duration::from_secs(2));
        let (stamp, status) = (Stamp { lineage: 0, epoch: 1, seq: 1 }, Value::NodeStatus(NodeStatus::default()));
        let record = Store::seal(Key::NodeStatus(PEER), stamp, PEER, Some(&status)).unwrap();
        let exchange = SyncMessage::Exchange { records: vec![record.clone(), record], wanted: vec![Key::Cluster] };
        say(&mut control, PeerMessage::Sync(exchange), 7_200);
        let counts = control.take_counts();
        assert_eq!((counts.repair_records_received, counts.repair_records_new), (2, 1), "{counts:?}");
        assert_eq!(counts.repair_records_sent, 1);
        let digest = control.store().digest();
        say(&mut control, PeerMessage::Pong { digest }, 7_300);
        assert_eq!(control.disagrees_for(at(9_000).time), Duration::ZERO);
    }
}
