//! Nodes.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::value::RawValue;
use shoal_protocol::spec::GenericResource;
use shoal_protocol::token::Role;

use super::{TlsInfo, Version, raw};
use crate::api::snapshot::{NodeState, NodeView};

/// A node as Docker's clients read it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Node {
    #[serde(rename = "ID")]
    id: String,
    version: Version,
    created_at: String,
    updated_at: String,
    spec: Box<RawValue>,
    description: Description,
    status: Status,
    #[serde(skip_serializing_if = "Option::is_none")]
    manager_status: Option<ManagerStatus>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Description {
    hostname: String,
    platform: Platform,
    resources: Resources,
    engine: Engine,
    #[serde(rename = "TLSInfo")]
    tls_info: TlsInfo,
}

#[derive(Debug, Serialize)]
struct Platform {
    #[serde(rename = "Architecture")]
    architecture: String,
    #[serde(rename = "OS")]
    os: String,
}

#[derive(Debug, Serialize)]
struct Resources {
    #[serde(rename = "NanoCPUs")]
    nano_cpus: u64,
    #[serde(rename = "MemoryBytes")]
    memory_bytes: u64,
    #[serde(rename = "GenericResources", skip_serializing_if = "Vec::is_empty")]
    generic_resources: Vec<GenericResource>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Engine {
    engine_version: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    labels: BTreeMap<String, String>,
    plugins: Vec<Plugin>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Plugin {
    r#type: &'static str,
    name: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Status {
    state: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    message: String,
    addr: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct ManagerStatus {
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    leader: bool,
    reachability: &'static str,
    addr: String,
}

/// Renders a node; `tls` is the authority that issued its credential.
pub fn node(view: &NodeView, tls: &TlsInfo) -> Node {
    let status = view.status.clone().unwrap_or_default();
    let address = status.address.map_or_else(String::new, |address| address.to_string());
    let reachability = match view.state {
        NodeState::Ready | NodeState::Suspect => "reachable",
        NodeState::Down => "unreachable",
        NodeState::Unknown => "unknown",
    };
    let message = message(view);
    Node {
        id: view.id.to_string(),
        version: Version { index: view.object.index },
        created_at: view.object.created.to_string(),
        updated_at: view.object.updated.to_string(),
        spec: raw(&view.object.spec),
        description: Description {
            hostname: status.hostname,
            platform: Platform { architecture: status.architecture, os: status.os },
            resources: Resources {
                nano_cpus: status.nano_cpus,
                memory_bytes: status.memory_bytes,
                generic_resources: status.generic.list(),
            },
            engine: Engine {
                engine_version: status.version,
                labels: status.engine_labels,
                plugins: vec![Plugin { r#type: "Driver", name: status.engine }],
            },
            tls_info: tls.clone(),
        },
        status: Status {
            state: state(view.state),
            message,
            addr: status.address.map_or_else(String::new, |address| address.ip().to_string()),
        },
        manager_status: (view.spec.role == Role::Manager).then_some(ManagerStatus {
            leader: view.leader,
            reachability,
            addr: address,
        }),
    }
}

/// Returns Docker's name; a suspect node is still ready, since nothing was taken from it.
fn state(state: NodeState) -> &'static str {
    match state {
        NodeState::Ready | NodeState::Suspect => "ready",
        NodeState::Down => "down",
        NodeState::Unknown => "unknown",
    }
}

/// Says what is wrong with a node that still counts as one.
fn message(view: &NodeView) -> String {
    let mut parts = Vec::new();
    if view.state == NodeState::Suspect {
        parts.push("does not answer; being probed".to_owned());
    }
    if let Some(status) = &view.status {
        if status.restarting {
            parts.push("announced a restart".to_owned());
        }
        parts.extend(status.port_errors.iter().map(|(port, error)| format!("port {port}: {error}")));
    }
    parts.join("; ")
}
