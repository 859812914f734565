//! Which published port leads to which tasks, derived from services, slots, reports and health.
//!
//! Knows nothing of sockets: the ingress compares two tables and opens, closes and re-targets accordingly.

use std::collections::BTreeMap;
use std::net::IpAddr;

use shoal_protocol::{NodeId, ServiceId, TaskId};

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
