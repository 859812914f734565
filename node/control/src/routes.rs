//! Which published port leads to which tasks, derived from services, slots, reports and health.
//!
//! Knows nothing of sockets: the ingress compares two tables and opens, closes and re-targets accordingly.

use std::collections::BTreeMap;
use std::net::IpAddr;

use shoal_protocol::spec::{PortConfig, PublishMode};
use shoal_protocol::value::SlotTask;
use shoal_protocol::{NodeId, ServiceId, TaskId, TaskState};

use crate::store::Store;
use crate::view::Health;

/// Every published TCP port and what is behind it.
pub type RouteTable = BTreeMap<u16, Route>;

/// One published port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Whose port it is.
    pub service: ServiceId,
    /// Healthy running tasks.
    pub backends: BTreeMap<TaskId, Backend>,
}

/// One task behind a published port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backend {
    /// Where the task runs.
    pub node: NodeId,
    /// The task's address, as its own node reaches it.
    pub address: IpAddr,
    /// The container's port.
    pub port: u16,
    /// Whether the node is under suspicion: used only when no other backend is left.
    pub suspect: bool,
}

/// Returns where every published port leads.
///
/// Backends are tasks that are meant to run, are reported running with an address, and whose node was not found dead. A
/// service without any has its port all the same: the ingress listens and refuses. If two services have one port, which only
/// a conflict that is not resolved yet allows, the lower identifier has it.
pub fn route_table(store: &Store, health: impl Fn(NodeId) -> Health) -> RouteTable {
    let mut table = RouteTable::new();
    for (service, object, _) in store.services() {
        let ports: Vec<&PortConfig> = object.ports.iter().filter(|port| is_routed(port)).collect();
        if ports.is_empty() {
            continue;
        }
        let mut routes: RouteTable =
            ports.iter().map(|port| (port.published_port, Route { service, backends: BTreeMap::new() })).collect();
        for (_, slot) in store.slots(service) {
            for task in slot.tasks.iter().filter(|task| task.desired == TaskState::Running) {
                let Some((node, address, suspect)) = reachable(task, store, &health) else { continue };
                for port in &ports {
                    let backend = Backend { node, address, port: target(task, port), suspect };
                    if let Some(route) = routes.get_mut(&port.published_port) {
                        route.backends.insert(task.id, backend);
                    }
                }
            }
        }
        for (port, route) in routes {
            table.entry(port).or_insert(route);
        }
    }
    table
}

fn is_routed(port: &PortConfig) -> bool {
    let is_tcp = matches!(port.protocol.as_str(), "" | "tcp");
    port.publish_mode == PublishMode::Ingress && is_tcp && port.published_port != 0
}

/// Returns node, address and whether the node is suspected, for a task that serves.
fn reachable(task: &SlotTask, store: &Store, health: impl Fn(NodeId) -> Health) -> Option<(NodeId, IpAddr, bool)> {
    let node = task.node?;
    let report = store.report(node, task.id).filter(|report| report.state == TaskState::Running)?;
    let address = report.address?;
    match health(node) {
        // A node that was not heard yet, or restarts, may well serve: the balancer tries others first.
        Health::Unknown | Health::Suspect | Health::Restarting { .. } => Some((node, address, true)),
        Health::Alive => Some((node, address, false)),
        Health::Failed | Health::Left => None,
    }
}

/// Returns the container's port behind a published one: during an update older tasks still listen where they did.
fn target(task: &SlotTask, port: &PortConfig) -> u16 {
    let own = task.ports.iter().find(|own| is_routed(own) && own.published_port == port.published_port);
    own.unwrap_or(port).target_port
}
