//! Which of the nodes that may have a task gets it.

use shoal_protocol::NodeId;

use super::{Node, Request};

/// Where a node stands; the lowest is chosen.
///
/// Swarm's spread: fewest tasks of the service first, then the emptiest node. Emptiness counts what is free: first by tenths
/// of the scarcer reserved resource, so that a large reservation outweighs many small tasks, then by tasks per core.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    suspect: bool,
    avoided: bool,
    pub(super) service_tasks: u64,
    reserved_tenths: u64,
    tasks_per_1000_cores: u64,
    pub(super) id: NodeId,
}

const NANOS_PER_CORE: u64 = 1_000_000_000;

/// Ranks a node that has `service_tasks` tasks of the service.
pub(super) fn rank(request: &Request<'_>, id: NodeId, node: &Node, service_tasks: u64) -> Rank {
    let usage = &node.usage;
    let cpu = tenths(usage.nano_cpus, node.nano_cpus);
    let memory = tenths(usage.memory_bytes, node.memory_bytes);
    let nano_cpus = if node.nano_cpus == 0 { NANOS_PER_CORE } else { node.nano_cpus };
    Rank {
        suspect: node.suspect,
        avoided: request.avoid.contains(&id),
        service_tasks,
        reserved_tenths: cpu.max(memory),
        tasks_per_1000_cores: usage.tasks.saturating_mul(1000 * NANOS_PER_CORE) / nano_cpus,
        id,
    }
}

fn tenths(used: u64, all: u64) -> u64 {
    used.saturating_mul(10).checked_div(all).unwrap_or(0)
}
