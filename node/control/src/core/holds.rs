//! The leases that this node holds, and whether it has caught up enough to use them.
//!
//! A new holder first merges from a majority of the voters that granted its epoch: whatever the last holder made durable is
//! on one of them, and none of them accepts a write of a lower epoch any more.

use std::collections::{BTreeMap, BTreeSet};

use shoal_protocol::NodeId;
use shoal_protocol::lease::LeaseId;

/// Leases held by this node.
#[derive(Debug, Default)]
pub(super) struct Holds {
    held: BTreeMap<LeaseId, Hold>,
}

#[derive(Debug)]
struct Hold {
    epoch: u64,
    /// Comparisons of documents from this number on began after the lease was acquired.
    serial: u64,
    caught_up: BTreeSet<NodeId>,
    ready: bool,
    seq: u64,
}

impl Holds {
    /// Notes a lease that was just acquired.
    pub(super) fn acquired(&mut self, lease: LeaseId, epoch: u64, serial: u64) {
        let hold = Hold { epoch, serial, caught_up: BTreeSet::new(), ready: false, seq: 0 };
        self.held.insert(lease, hold);
    }

    /// Notes a lease that is gone.
    pub(super) fn lost(&mut self, lease: LeaseId) {
        self.held.remove(&lease);
    }

    /// Notes that this node has everything that `node` had when comparison `serial` began.
    pub(super) fn caught_up(&mut self, node: NodeId, serial: u64) {
        for hold in self.held.values_mut().filter(|hold| hold.serial <= serial) {
            hold.caught_up.insert(node);
        }
    }

    /// Returns the nodes from which leases still wait to be caught up.
    pub(super) fn waiting_for(&self, me: NodeId, granters: impl Fn(LeaseId) -> Vec<NodeId>) -> BTreeSet<NodeId> {
        let unready = self.held.iter().filter(|(_, hold)| !hold.ready);
        unready
            .flat_map(|(&lease, hold)| granters(lease).into_iter().filter(|node| !hold.caught_up.contains(node)))
            .filter(|node| *node != me)
            .collect()
    }

    /// Marks as ready, and returns, the leases whose grants by `majority` voters have all been caught up with.
    pub(super) fn become_ready(
        &mut self,
        me: NodeId,
        majority: usize,
        granters: impl Fn(LeaseId) -> Vec<NodeId>,
    ) -> Vec<(LeaseId, u64)> {
        let mut ready = Vec::new();
        for (&lease, hold) in self.held.iter_mut().filter(|(_, hold)| !hold.ready) {
            let known = granters(lease).into_iter().filter(|node| *node == me || hold.caught_up.contains(node)).count();
            if known >= majority {
                hold.ready = true;
                ready.push((lease, hold.epoch));
            }
        }
        ready
    }

    /// Returns the epoch of a lease that is held and ready to be used.
    pub(super) fn ready(&self, lease: LeaseId) -> Option<u64> {
        self.held.get(&lease).filter(|hold| hold.ready).map(|hold| hold.epoch)
    }

    /// Returns the next number for a write under a lease, from 1.
    pub(super) fn next_seq(&mut self, lease: LeaseId) -> u64 {
        match self.held.get_mut(&lease) {
            Some(hold) => {
                hold.seq += 1;
                hold.seq
            }
            None => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: LeaseId = LeaseId::REGISTRY;
    const ME: NodeId = NodeId(1);

    #[test]
    fn a_lease_is_ready_after_a_majority_of_its_granters() {
        let granters = |_| vec![NodeId(1), NodeId(2), NodeId(3)];
        let mut holds = Holds::default();
        holds.acquired(LEASE, 4, 10);
        assert!(holds.become_ready(ME, 2, granters).is_empty());
        assert_eq!(holds.waiting_for(ME, granters), BTreeSet::from([NodeId(2), NodeId(3)]));
        holds.caught_up(NodeId(2), 9);
        assert!(holds.become_ready(ME, 2, granters).is_empty(), "that comparison began before the grant");
        holds.caught_up(NodeId(9), 10);
        assert!(holds.become_ready(ME, 2, granters).is_empty(), "that node granted nothing");
        holds.caught_up(NodeId(3), 10);
        assert_eq!(holds.become_ready(ME, 2, granters), [(LEASE, 4)]);
        assert_eq!(holds.ready(LEASE), Some(4));
        holds.lost(LEASE);
        assert_eq!(holds.ready(LEASE), None);
    }

    #[test]
    fn a_single_voter_is_ready_at_once() {
        let mut holds = Holds::default();
        holds.acquired(LEASE, 1, 1);
        assert_eq!(holds.become_ready(ME, 1, |_| vec![ME]), [(LEASE, 1)]);
        assert_eq!((holds.next_seq(LEASE), holds.next_seq(LEASE)), (1, 2));
    }
}
