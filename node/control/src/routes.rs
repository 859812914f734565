//! Which published port leads to which tasks, derived from services, slots, reports and health.
//!
//! Knows nothing of sockets: the ingress compares two tables and opens, closes and re-targets accordingly.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use shoal_protocol::spec::{PortConfig, PortSettings, PublishMode, PublishedPort, Transport};
use shoal_protocol::value::SlotTask;
use shoal_protocol::{NodeId, ServiceId, TaskId, TaskState};

use crate::store::Store;
use crate::view::Health;

/// Every published port of TCP and UDP and what is behind it.
pub type RouteTable = BTreeMap<PublishedPort, Route>;

/// One published port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Whose port it is.
    pub service: ServiceId,
    /// What its service sets of it.
    pub settings: PortSettings,
    /// Healthy running tasks.
    pub backends: BTreeMap<TaskId, Backend>,
}

/// One task behind a published port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backend {
    /// The task's name as users see it, such as `web.1`. Nothing is decided by it.
    pub name: Arc<str>,
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
    for (service, object, spec) in store.services() {
        let ports: Vec<&PortConfig> = object.ports.iter().filter(|port| is_routed(port)).collect();
        if ports.is_empty() {
            continue;
        }
        let settings = PortSettings::of(&spec.labels);
        let route = |published: PublishedPort| {
            let settings = settings.get(&published).copied().unwrap_or_default();
            Route { service, settings, backends: BTreeMap::new() }
        };
        let mut routes: RouteTable = ports.iter().map(|port| (port.published(), route(port.published()))).collect();
        for (number, slot) in store.slots(service) {
            let name: Arc<str> = format!("{}.{number}", spec.name).into();
            for task in slot.tasks.iter().filter(|task| task.desired == TaskState::Running) {
                let Some((node, address, suspect)) = reachable(task, store, &health) else { continue };
                for port in &ports {
                    let name = name.clone();
                    let backend = Backend { name, node, address, port: target(task, port), suspect };
                    if let Some(route) = routes.get_mut(&port.published()) {
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
    let is_forwarded = match port.transport() {
        Transport::Tcp | Transport::Udp => true,
        Transport::Other => false,
    };
    port.publish_mode == PublishMode::Ingress && is_forwarded && port.published_port != 0
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
    let own = task.ports.iter().find(|own| is_routed(own) && own.published() == port.published());
    own.unwrap_or(port).target_port
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(protocol: &str, target_port: u16) -> PortConfig {
        PortConfig { protocol: protocol.to_owned(), target_port, published_port: 53, ..PortConfig::default() }
    }

    #[test]
    fn one_number_leads_to_another_port_in_each_transport() {
        let task = SlotTask { ports: vec![port("udp", 5353), port("tcp", 53)], ..SlotTask::default() };
        for (protocol, want) in [("tcp", 53), ("", 53), ("udp", 5353)] {
            assert_eq!(target(&task, &port(protocol, 1)), want, "{protocol}");
        }
        assert_eq!(target(&SlotTask::default(), &port("udp", 1)), 1, "a task without the port has the service's");
    }

    #[test]
    fn only_what_can_be_forwarded_is_routed() {
        let host = PortConfig { publish_mode: PublishMode::Host, ..port("udp", 53) };
        for (port, want) in [(port("udp", 53), true), (port("", 53), true), (port("sctp", 53), false), (host, false)] {
            assert_eq!(is_routed(&port), want, "{port:?}");
        }
    }
}
