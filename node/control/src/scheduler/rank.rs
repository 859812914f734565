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
    service_tasks: u64,
    reserved_tenths: u64,
    tasks_per_1000_cores: u64,
    pub(super) id: NodeId,
}

const NANOS_PER_CORE: u64 = 1_000_000_000;

pub(super) fn rank(request: &Request<'_>, id: NodeId, node: &Node) -> Rank {
    let usage = &node.usage;
    let cpu = tenths(usage.nano_cpus, node.nano_cpus);
    let memory = tenths(usage.memory_bytes, node.memory_bytes);
    let nano_cpus = if node.nano_cpus == 0 { NANOS_PER_CORE } else { node.nano_cpus };
    let tasks_per_1000_cores = u128::from(usage.tasks) * 1000 * u128::from(NANOS_PER_CORE) / u128::from(nano_cpus);
    Rank {
        suspect: node.suspect,
        avoided: request.avoid.contains(&id),
        service_tasks: usage.services.get(&request.service).copied().unwrap_or(0),
        reserved_tenths: cpu.max(memory),
        tasks_per_1000_cores: u64::try_from(tasks_per_1000_cores).unwrap_or(u64::MAX),
        id,
    }
}

fn tenths(used: u64, all: u64) -> u64 {
    if all == 0 {
        return 0;
    }
    u64::try_from(u128::from(used) * 10 / u128::from(all)).unwrap_or(u64::MAX)
}
