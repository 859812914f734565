//! The cluster, the daemon and its version.

use serde_json::{Value, json};
use shoal_protocol::value::{ClusterObject, NodeStatus};

use super::{API_VERSION_MIN, TlsInfo};
use crate::api::error::LOCKED;
use crate::api::snapshot::{NodeState, Snapshot};
use shoal_protocol::token::Role;

/// The join tokens of a cluster. The `Debug` form hides them.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct JoinTokens {
    /// Lets workers in.
    pub worker: String,
    /// Lets managers in.
    pub manager: String,
}

impl std::fmt::Debug for JoinTokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JoinTokens(…)")
    }
}

/// Returns the settings that `swarm update` may send back but not change yet.
pub fn spec_of_swarm(cluster: &ClusterObject) -> Value {
    json!({
        "Name": "default",
        "Labels": {},
        "Orchestration": {"TaskHistoryRetentionLimit": cluster.settings.task_history},
        "Raft": {},
        "Dispatcher": {"HeartbeatPeriod": 5_000_000_000u64},
        "CAConfig": {"NodeCertExpiry": cluster.settings.credential_ns, "ForceRotate": cluster.edition - 1},
        "TaskDefaults": {},
        "EncryptionConfig": {"AutoLockManagers": cluster.settings.auto_lock},
    })
}

/// Renders the cluster for a manager. `rotating` tells whether its root is being replaced.
pub fn swarm(cluster: &ClusterObject, rotating: bool, tokens: &JoinTokens) -> Value {
    json!({
        "ID": cluster.id,
        "Version": {"Index": cluster.index},
        "CreatedAt": cluster.created.to_string(),
        "UpdatedAt": cluster.updated.to_string(),
        "Spec": spec_of_swarm(cluster),
        "TLSInfo": TlsInfo::of(&cluster.root_pem),
        "RootRotationInProgress": rotating,
        "DefaultAddrPool": pools(cluster),
        "SubnetSize": cluster.settings.pool_prefix,
        "DataPathPort": 0,
        "JoinTokens": {"Worker": tokens.worker, "Manager": tokens.manager},
    })
}

/// Renders the daemon; `snapshot` holds all nodes, or is `None` outside a cluster.
pub fn info(node: &NodeStatus, snapshot: Option<&Snapshot>, is_locked: bool) -> Value {
    let labels: Vec<String> = node.engine_labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
    json!({
        "ID": snapshot.map_or_else(String::new, |snapshot| snapshot.me.to_string()),
        "Name": node.hostname,
        "ServerVersion": node.version,
        "Driver": node.engine,
        "OSType": node.os,
        "OperatingSystem": node.os,
        "Architecture": node.architecture,
        "NCPU": node.nano_cpus / 1_000_000_000,
        "MemTotal": node.memory_bytes,
        "Labels": labels,
        "ExperimentalBuild": false,
        "LiveRestoreEnabled": true,
        "Plugins": {"Volume": [], "Network": [], "Authorization": null, "Log": []},
        "SecurityOptions": [],
        "Warnings": [],
        "GenericResources": if node.generic.is_empty() { Value::Null } else { json!(node.generic.list()) },
        "Swarm": swarm_info(node, snapshot, is_locked),
    })
}

/// Docker shows no pools where users named none.
fn pools(cluster: &ClusterObject) -> Option<Vec<String>> {
    let pools = &cluster.settings.pools;
    (!pools.is_empty()).then(|| pools.iter().map(ToString::to_string).collect())
}

fn swarm_info(node: &NodeStatus, snapshot: Option<&Snapshot>, is_locked: bool) -> Value {
    let address = node.address.map_or_else(String::new, |address| address.ip().to_string());
    let Some(snapshot) = snapshot else {
        if is_locked {
            return json!({"NodeID": "", "NodeAddr": address, "LocalNodeState": "locked", "ControlAvailable": false,
                "Error": LOCKED, "RemoteManagers": null});
        }
        return json!({"NodeID": "", "NodeAddr": "", "LocalNodeState": "inactive", "ControlAvailable": false, "Error": "",
            "RemoteManagers": null});
    };
    let is_manager = snapshot.role == Role::Manager;
    let managers: Vec<_> = snapshot.nodes.iter().filter(|node| node.spec.role == Role::Manager).collect();
    let remote: Vec<Value> = managers
        .iter()
        .filter(|manager| manager.state != NodeState::Down)
        .filter_map(|manager| {
            let address = manager.status.as_ref()?.address?;
            Some(json!({"NodeID": manager.id, "Addr": address.to_string()}))
        })
        .collect();
    let cluster = snapshot.cluster.as_ref().filter(|_| is_manager).map(|cluster| {
        json!({
            "ID": cluster.id,
            "Version": {"Index": cluster.index},
            "CreatedAt": cluster.created.to_string(),
            "UpdatedAt": cluster.updated.to_string(),
            "Spec": spec_of_swarm(cluster),
            "TLSInfo": TlsInfo::of(&cluster.root_pem),
            "RootRotationInProgress": snapshot.rotating,
            "DefaultAddrPool": pools(cluster),
            "SubnetSize": cluster.settings.pool_prefix,
            "DataPathPort": 0,
        })
    });
    json!({
        "NodeID": snapshot.me,
        "NodeAddr": address,
        "LocalNodeState": "active",
        "ControlAvailable": is_manager,
        "Error": "",
        "RemoteManagers": remote,
        "Nodes": snapshot.nodes.len(),
        "Managers": managers.len(),
        "Cluster": cluster,
    })
}

/// Puts the cluster's part of [`info`] into what the engine behind the node says of itself, or tells why it says nothing.
pub fn info_with_engine(own: Value, engine: Result<Value, String>) -> Value {
    match engine {
        Ok(mut engine) if engine.is_object() => {
            let names = |value: &Value| value["Labels"].as_array().cloned().unwrap_or_default();
            let labels: Vec<Value> = names(&own).into_iter().chain(names(&engine)).collect();
            engine["Swarm"] = own["Swarm"].clone();
            engine["Name"] = own["Name"].clone();
            engine["Labels"] = json!(labels);
            engine["GenericResources"] = own["GenericResources"].clone();
            engine
        }
        said => {
            let mut own = own;
            let error = said.err().unwrap_or_else(|| "what the Docker Engine says of itself makes no sense".to_owned());
            own["Warnings"] = json!([format!("WARNING: {error}")]);
            own
        }
    }
}

/// Renders versions; `engine` is what the engine behind the node says of its own. Docker's client reads `Components`, not the
/// fields beside it, and knows the daemon by the name `Engine`.
pub fn version(node: &NodeStatus, api_version: &str, engine: Option<&Value>) -> Value {
    // Docker's clients compare architectures in Go's notation.
    let architecture = match node.architecture.as_str() {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let own = json!({"Name": "Engine", "Version": node.version, "Details": {"ApiVersion": api_version,
        "MinAPIVersion": API_VERSION_MIN, "Os": node.os, "Arch": architecture, "Experimental": "false",
        "GitCommit": "", "GoVersion": "", "KernelVersion": "", "BuildTime": ""}});
    let behind = engine.and_then(|engine| engine["Components"].as_array()).into_iter().flatten().cloned();
    let behind = behind.map(|mut component| {
        if component["Name"] == "Engine" {
            component["Name"] = json!("Docker Engine");
        }
        component
    });
    let components: Vec<Value> = std::iter::once(own).chain(behind).collect();
    json!({
        "Platform": {"Name": "shoal"},
        "Components": components,
        "Version": node.version,
        "ApiVersion": api_version,
        "MinAPIVersion": API_VERSION_MIN,
        "GitCommit": "",
        "GoVersion": "",
        "Os": node.os,
        "Arch": architecture,
        "KernelVersion": "",
        "BuildTime": "",
    })
}
