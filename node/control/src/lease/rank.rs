//! Who should hold which lease, and who should vote.

use std::collections::BTreeSet;

use shoal_protocol::NodeId;
use shoal_protocol::lease::{LeaseId, VOTERS_MAX, VoterSet};

/// Returns how many of `nodes` should hold `lease` rather than `me`.
pub(super) fn rank(lease: LeaseId, me: NodeId, nodes: &[NodeId]) -> usize {
    let mine = (lease.weight(me), me);
    nodes.iter().filter(|&&node| (lease.weight(node), node) > mine).count()
}

/// Returns which of `nodes` should hold `lease`. Ties go to the greater ID.
pub(super) fn favourite(lease: LeaseId, nodes: impl IntoIterator<Item = NodeId>) -> Option<NodeId> {
    nodes.into_iter().max_by_key(|&node| (lease.weight(node), node))
}

/// Returns who should vote: as many of the listed managers as their number asks for, odd, at most [`VOTERS_MAX`].
///
/// Voters stay while they are listed, dead or not; who is added is alive, lowest ID first. Only the removal of managers
/// makes a set smaller: when fewer than enough are alive it stays as it is, and a place that a removal has left is filled
/// with a listed manager that is down rather than left empty, which costs nothing and helps once that one is back.
pub fn desired_voters(
    current: &VoterSet,
    eligible_alive: &BTreeSet<NodeId>,
    listed_managers: &BTreeSet<NodeId>,
) -> Vec<NodeId> {
    let target = match listed_managers.len() {
        0 => return current.members.clone(),
        1 | 2 => 1,
        3 | 4 => 3,
        5 | 6 => 5,
        _ => VOTERS_MAX,
    };
    let is_alive = |node: NodeId| eligible_alive.contains(&node);
    let mut members: Vec<NodeId> = current.members.clone();
    members.retain(|node| listed_managers.contains(node));
    members.sort_by_key(|&node| (!is_alive(node), node));
    members.truncate(target);
    let kept = members.len();
    let others = || listed_managers.iter().copied().filter(|&node| !current.contains(node));
    members.extend(others().filter(|&node| is_alive(node)).take(target - kept));
    if members.is_empty() {
        return current.members.clone();
    }
    if members.len().is_multiple_of(2) {
        if members.len() > kept {
            members.pop();
        } else {
            members.extend(others().find(|&node| !is_alive(node)));
        }
    }
    members.sort_unstable();
    members
}
