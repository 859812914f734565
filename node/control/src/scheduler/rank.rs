//! Which of the nodes that may have a task gets it.

use std::cmp::Reverse;

use shoal_protocol::NodeId;

use super::{Node, Request};

/// Where a node stands; the lowest is chosen.
///
/// Swarm's spread: fewest tasks of the service first, then the emptiest node. Emptiness counts what is free: first by tenths
/// of the scarcer reserved resource, so that a large reservation outweighs many small tasks, then by tasks per core. Among nodes
/// that are as empty the one with the smaller reserved share wins, then the one that has more left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    pub(super) suspect: bool,
    pub(super) avoided: bool,
    pub(super) service_tasks: u64,
    reserved_tenths: u64,
    tasks_per_1000_cores: u64,
    reserved_thousandths: u64,
    free: Reverse<(u64, u64)>,
    pub(super) id: NodeId,
}

const NANOS_PER_CORE: u64 = 1_000_000_000;

/// Ranks a node that has `service_tasks` tasks of the service.
pub(super) fn rank(request: &Request<'_>, id: NodeId, node: &Node, service_tasks: u64) -> Rank {
    let usage = &node.usage;
    let reserved = thousandths(usage.nano_cpus, node.nano_cpus).max(thousandths(usage.memory_bytes, node.memory_bytes));
    let nano_cpus = if node.nano_cpus == 0 { NANOS_PER_CORE } else { node.nano_cpus };
    Rank {
        suspect: node.suspect,
        avoided: request.avoid.contains(&id),
        service_tasks,
        reserved_tenths: reserved / 100,
        tasks_per_1000_cores: usage.tasks.saturating_mul(1000 * NANOS_PER_CORE) / nano_cpus,
        reserved_thousandths: reserved,
        free: Reverse((
            node.nano_cpus.saturating_sub(usage.nano_cpus),
            node.memory_bytes.saturating_sub(usage.memory_bytes),
        )),
        id,
    }
}

fn thousandths(used: u64, all: u64) -> u64 {
    used.saturating_mul(1000).checked_div(all).unwrap_or(0)
}
