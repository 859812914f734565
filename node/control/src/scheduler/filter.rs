//! Which nodes may have a task, and why the others may not.

use std::collections::BTreeMap;
use std::fmt;

use shoal_protocol::NodeId;
use shoal_protocol::spec::constraint::ConstraintKey;
use shoal_protocol::spec::{Availability, Constraint, Platform};
use shoal_protocol::token::Role;

use super::{Node, Request, host_ports};

/// A reason for which a node may not have a task, in the order in which they are looked at: a node counts for the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Filter {
    /// It is not alive, or has not said yet what it is.
    NotReady,
    /// It is paused or drained.
    NotAvailable,
    /// A constraint of the service does not hold.
    Constraints,
    /// The image is for another platform.
    Platform,
    /// Its driver lacks what only an engine has.
    Driver,
    /// Too little unreserved CPU or memory, or too few generic resources.
    Resources,
    /// Another task has a port that this one publishes on its node.
    HostPorts,
    /// It has as many tasks of the service as one node may have.
    MaxReplicas,
}

/// How many nodes each filter refused.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Refusals {
    counts: BTreeMap<Filter, usize>,
}

impl Refusals {
    /// Counts one more node that a filter refused.
    pub fn count(&mut self, filter: Filter) {
        *self.counts.entry(filter).or_default() += 1;
    }

    /// Returns how many nodes a filter refused.
    pub fn of(&self, filter: Filter) -> usize {
        self.counts.get(&filter).copied().unwrap_or(0)
    }
}

impl From<Filter> for Refusals {
    fn from(filter: Filter) -> Self {
        Self { counts: BTreeMap::from([(filter, 1)]) }
    }
}

impl fmt::Display for Refusals {
    /// Explains in Docker's words, the filter that refused most first. Source: SwarmKit, `Pipeline.Explain`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no suitable node")?;
        let mut counts: Vec<(Filter, usize)> = self.counts.iter().map(|(&filter, &count)| (filter, count)).collect();
        counts.sort_by_key(|&(filter, count)| (std::cmp::Reverse(count), filter));
        for (position, (filter, count)) in counts.iter().enumerate() {
            f.write_str(if position == 0 { " (" } else { "; " })?;
            let nodes = if *count == 1 { "node" } else { "nodes" };
            match filter {
                Filter::NotReady => write!(f, "{count} {nodes} not ready")?,
                Filter::NotAvailable => write!(f, "{count} {nodes} not available for new tasks")?,
                Filter::Constraints => write!(f, "scheduling constraints not satisfied on {count} {nodes}")?,
                Filter::Platform => write!(f, "unsupported platform on {count} {nodes}")?,
                Filter::Driver => write!(f, "missing plugin on {count} {nodes}")?,
                Filter::Resources => write!(f, "insufficient resources on {count} {nodes}")?,
                Filter::HostPorts => write!(f, "host-mode port already in use on {count} {nodes}")?,
                Filter::MaxReplicas => write!(f, "max replicas per node limit exceed on {count} {nodes}")?,
            }
        }
        if self.counts.is_empty() { Ok(()) } else { f.write_str(")") }
    }
}

impl std::error::Error for Refusals {}

/// Returns why a node that has `service_tasks` tasks of the service may not have one more.
pub(super) fn refusal(request: &Request<'_>, id: NodeId, node: &Node, service_tasks: u64) -> Option<Filter> {
    if !node.ready || node.failed {
        return Some(Filter::NotReady);
    }
    if node.availability != Availability::Active {
        return Some(Filter::NotAvailable);
    }
    if let Some(filter) = suits(request, id, node) {
        return Some(filter);
    }
    if request.needs_engine && !node.has_engine {
        return Some(Filter::Driver);
    }
    has_no_room(request, node, service_tasks)
}

/// Returns why a node is none of those that the service wants, whatever its health and load.
pub(super) fn suits(request: &Request<'_>, id: NodeId, node: &Node) -> Option<Filter> {
    let all_hold = |constraints: &Vec<Constraint>| constraints.iter().all(|constraint| holds(constraint, id, node));
    if !request.constraints.as_ref().is_some_and(all_hold) {
        return Some(Filter::Constraints);
    }
    let fits = request.platforms.is_empty() || request.platforms.iter().any(|platform| is_platform(platform, node));
    (!fits).then_some(Filter::Platform)
}

fn has_no_room(request: &Request<'_>, node: &Node, service_tasks: u64) -> Option<Filter> {
    let lacks = |wanted: u64, used: u64, all: u64| wanted > 0 && wanted > all.saturating_sub(used);
    let (wanted, usage) = (&request.reservations, &node.usage);
    if lacks(wanted.nano_cpus, usage.nano_cpus, node.nano_cpus)
        || lacks(wanted.memory_bytes, usage.memory_bytes, node.memory_bytes)
        || !usage.generic.leaves(&request.generic, &node.generic)
    {
        return Some(Filter::Resources);
    }
    if host_ports(request.ports).any(|port| usage.host_ports.contains_key(&port)) {
        return Some(Filter::HostPorts);
    }
    (request.max_replicas != 0 && service_tasks >= request.max_replicas).then_some(Filter::MaxReplicas)
}

fn holds(constraint: &Constraint, id: NodeId, node: &Node) -> bool {
    match &constraint.key {
        ConstraintKey::NodeId => constraint.holds_for(&id.to_string()),
        ConstraintKey::Hostname => constraint.holds_for(&node.hostname),
        ConstraintKey::Role => constraint.holds_for(match node.role {
            Role::Manager => "manager",
            Role::Worker => "worker",
        }),
        ConstraintKey::Os => constraint.holds_for(&node.os),
        ConstraintKey::Architecture => constraint.holds_for(&node.architecture),
        ConstraintKey::NodeLabel(name) => constraint.holds_for(node.labels.get(name).map_or("", String::as_str)),
        ConstraintKey::EngineLabel(name) => {
            constraint.holds_for(node.engine_labels.get(name).map_or("", String::as_str))
        }
    }
}

/// Returns whether a node is of a platform; what either side leaves empty fits. Source: SwarmKit, `PlatformFilter`.
fn is_platform(platform: &Platform, node: &Node) -> bool {
    let same = |wanted: &str, actual: &str| wanted.is_empty() || actual.is_empty() || wanted == actual;
    same(&platform.os, &node.os) && same(normal(&platform.architecture), normal(&node.architecture))
}

/// Returns the one name that kernel and image registries' names for an architecture stand for.
fn normal(architecture: &str) -> &str {
    match architecture {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
