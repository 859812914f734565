//! What the commands read of the API's answers. Source: Docker Engine API v1.50; unknown fields are passed over.

use serde::{Deserialize, Deserializer};
use shoal_protocol::spec::{GenericResource, NodeSpec, PortConfig, ServiceSpec, TaskTemplate};

/// Reads JSON's `null` as the default value, as Go's decoder does.
fn null_as_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(deserializer: D) -> Result<T, D::Error> {
    Option::<T>::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// The count of an object's writes.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct Version {
    pub(crate) index: u64,
}

/// A node.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct Node {
    #[serde(rename = "ID")]
    pub(crate) id: String,
    pub(crate) created_at: String,
    pub(crate) spec: NodeSpec,
    pub(crate) description: Description,
    pub(crate) status: NodeStatus,
    pub(crate) manager_status: Option<ManagerStatus>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct Description {
    pub(crate) hostname: String,
    pub(crate) platform: Platform,
    pub(crate) resources: NodeResources,
    pub(crate) engine: Engine,
    #[serde(rename = "TLSInfo", deserialize_with = "null_as_default")]
    pub(crate) tls_info: TlsInfo,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Platform {
    #[serde(rename = "Architecture")]
    pub(crate) architecture: String,
    #[serde(rename = "OS")]
    pub(crate) os: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct NodeResources {
    #[serde(rename = "NanoCPUs")]
    pub(crate) nano_cpus: u64,
    #[serde(rename = "MemoryBytes")]
    pub(crate) memory_bytes: u64,
    #[serde(rename = "GenericResources", deserialize_with = "null_as_default")]
    pub(crate) generic_resources: Vec<GenericResource>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct Engine {
    pub(crate) engine_version: String,
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) labels: std::collections::BTreeMap<String, String>,
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) plugins: Vec<Plugin>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct Plugin {
    pub(crate) r#type: String,
    pub(crate) name: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct TlsInfo {
    pub(crate) trust_root: String,
    pub(crate) cert_issuer_subject: String,
    pub(crate) cert_issuer_public_key: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct NodeStatus {
    pub(crate) state: String,
    pub(crate) message: String,
    pub(crate) addr: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct ManagerStatus {
    pub(crate) leader: bool,
    pub(crate) reachability: String,
    pub(crate) addr: String,
}

/// A service.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct Service {
    #[serde(rename = "ID")]
    pub(crate) id: String,
    pub(crate) spec: ServiceSpec,
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) endpoint: Endpoint,
    pub(crate) update_status: Option<UpdateStatus>,
    pub(crate) service_status: Option<ServiceStatus>,
    pub(crate) job_status: Option<JobStatus>,
}

/// How often a job was run again.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct JobStatus {
    pub(crate) job_iteration: Version,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct Endpoint {
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) ports: Vec<PortConfig>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct UpdateStatus {
    pub(crate) state: String,
    pub(crate) started_at: String,
    pub(crate) completed_at: String,
    pub(crate) message: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct ServiceStatus {
    pub(crate) running_tasks: u64,
    pub(crate) desired_tasks: u64,
    pub(crate) completed_tasks: u64,
}

/// A task.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct Task {
    #[serde(rename = "ID")]
    pub(crate) id: String,
    pub(crate) created_at: String,
    pub(crate) spec: TaskTemplate,
    #[serde(rename = "ServiceID")]
    pub(crate) service_id: String,
    /// The number of its slot, which jobs count from 0; `None` if its slot is a node.
    pub(crate) slot: Option<u64>,
    #[serde(rename = "NodeID")]
    pub(crate) node_id: String,
    pub(crate) status: TaskStatus,
    pub(crate) desired_state: String,
    pub(crate) job_iteration: Option<Version>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct TaskStatus {
    pub(crate) timestamp: String,
    pub(crate) state: String,
    pub(crate) message: String,
    pub(crate) err: String,
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) port_status: PortStatus,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct PortStatus {
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) ports: Vec<PortConfig>,
}

/// The daemon's view of itself.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct Info {
    pub(crate) swarm: SwarmInfo,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct SwarmInfo {
    #[serde(rename = "NodeID")]
    pub(crate) node_id: String,
    pub(crate) local_node_state: String,
    pub(crate) control_available: bool,
    pub(crate) cluster: Option<ClusterInfo>,
}

/// What a manager says of its cluster.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ClusterInfo {
    #[serde(rename = "TLSInfo", deserialize_with = "null_as_default")]
    pub(crate) tls_info: TlsInfo,
}

/// The cluster.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct Swarm {
    pub(crate) version: Version,
    pub(crate) join_tokens: JoinTokens,
    #[serde(rename = "TLSInfo")]
    pub(crate) tls_info: TlsInfo,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct JoinTokens {
    pub(crate) worker: String,
    pub(crate) manager: String,
}

impl std::fmt::Debug for JoinTokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JoinTokens(…)")
    }
}

/// What creating a service answers.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct Created {
    #[serde(rename = "ID")]
    pub(crate) id: String,
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) warnings: Vec<String>,
}

/// What updating a service answers.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct Updated {
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) warnings: Vec<String>,
}

/// An image.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct Image {
    pub(crate) id: String,
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) repo_tags: Vec<String>,
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) repo_digests: Vec<String>,
    /// Seconds since 1970.
    pub(crate) created: i64,
    pub(crate) size: u64,
}

/// A secret or config.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct FileObject {
    #[serde(rename = "ID")]
    pub(crate) id: String,
    pub(crate) created_at: String,
    pub(crate) updated_at: String,
    pub(crate) spec: FileObjectSpec,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct FileObjectSpec {
    pub(crate) name: String,
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) labels: std::collections::BTreeMap<String, String>,
    /// Of a config, base64.
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) data: String,
}

/// A network.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct Network {
    pub(crate) name: String,
    pub(crate) id: String,
    pub(crate) created: String,
    pub(crate) scope: String,
    pub(crate) driver: String,
    #[serde(rename = "EnableIPv4")]
    pub(crate) enable_ipv4: bool,
    #[serde(rename = "EnableIPv6")]
    pub(crate) enable_ipv6: bool,
    pub(crate) internal: bool,
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) labels: std::collections::BTreeMap<String, String>,
}
