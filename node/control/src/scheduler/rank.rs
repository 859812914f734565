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
    reserved_tenths: u16,
    tasks_per_1000_cores: u64,
    reserved_thousandths: u16,
    /// Thousandths of a core, then MiB.
    free: Reverse<(u32, u32)>,
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
            left(usage.nano_cpus, node.nano_cpus, NANOS_PER_CORE / 1000),
            left(usage.memory_bytes, node.memory_bytes, 1 << 20),
        )),
        id,
    }
}

fn thousandths(used: u64, all: u64) -> u16 {
    let share = used.saturating_mul(1000).checked_div(all).unwrap_or(0);
    u16::try_from(share).unwrap_or(u16::MAX)
}

fn left(used: u64, all: u64, unit: u64) -> u32 {
    u32::try_from(all.saturating_sub(used) / unit).unwrap_or(u32::MAX)
}
