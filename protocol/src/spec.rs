//! Typed views of what users write, under Docker's field names.
//!
//! The JSON a user sent is stored as it came, so `inspect` gives every field back; these views are derived on reading and
//! hold what shoal acts on. Source: Docker Engine API v1.50, `ServiceSpec`, `TaskSpec`, `NodeSpec`.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

use crate::token::Role;

pub mod constraint;
pub mod file;
pub mod generic;
mod health;
mod mode;
pub mod mount;
mod placement;
mod port_labels;
pub mod settings;
pub mod templates;
mod transport;
pub mod validate;

pub use constraint::Constraint;
pub use file::{ConfigReference, FileReference, FileTarget, SecretReference};
pub use generic::{GenericResource, GenericResources};
pub use health::Healthcheck;
pub use mode::{Global, GlobalJob, Mode, ModeKind, Replicated, ReplicatedJob};
pub use mount::Mount;
pub use placement::{PREFERENCES_MAX, Placement, Platform, Preference, Spread, SpreadKey};
pub use port_labels::{PortSettings, ProxyVersion};
pub use settings::{LogDriver, Settings};
pub use transport::{PublishedPort, Transport};
pub(crate) use validate::validate_name;
pub use validate::{SpecError, validate};

/// Bytes of JSON in a spec at most.
pub const SPEC_BYTES_MAX: usize = 256 * 1024;

/// Reads JSON's `null` as the default value, as Go's decoder does.
fn null_as_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(deserializer: D) -> Result<T, D::Error> {
    Option::<T>::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// A service as its user wants it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ServiceSpec {
    /// Unique in the cluster; a DNS label of at most 63 characters.
    pub name: String,
    /// Labels of the service itself.
    #[serde(deserialize_with = "null_as_default")]
    pub labels: BTreeMap<String, String>,
    /// What each task runs.
    pub task_template: TaskTemplate,
    /// How many tasks there are.
    pub mode: Mode,
    /// How changes are rolled out; `None` means [`UpdateConfig::default`].
    pub update_config: Option<UpdateConfig>,
    /// How roll-backs are rolled out; `None` means [`UpdateConfig::default`].
    pub rollback_config: Option<UpdateConfig>,
    /// Published ports.
    #[serde(deserialize_with = "null_as_default")]
    pub endpoint_spec: EndpointSpec,
}

impl ServiceSpec {
    /// Returns the policy for rolling out changes.
    pub fn update_policy(&self) -> UpdateConfig {
        self.update_config.as_ref().map(UpdateConfig::normal).unwrap_or_default()
    }

    /// Returns the policy for going back to the previous spec.
    pub fn rollback_policy(&self) -> UpdateConfig {
        self.rollback_config.as_ref().map(UpdateConfig::normal).unwrap_or_default()
    }
}

/// What each task of a service runs, and where.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct TaskTemplate {
    /// The container.
    pub container_spec: ContainerSpec,
    /// Limits and reservations.
    #[serde(deserialize_with = "null_as_default")]
    pub resources: Resources,
    /// When an ended task is replaced.
    #[serde(deserialize_with = "null_as_default")]
    pub restart_policy: RestartPolicy,
    /// Which nodes may run it.
    #[serde(deserialize_with = "null_as_default")]
    pub placement: Placement,
    /// Networks that each task is attached to.
    #[serde(deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<NetworkAttachment>,
    /// What becomes of its output; `None` means the node's default.
    pub log_driver: Option<LogDriver>,
    /// Counted up by the user to replace tasks though nothing else changed.
    pub force_update: u64,
}

/// A network that tasks are attached to. Source: Docker Engine API v1.50, `NetworkAttachmentConfig`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct NetworkAttachment {
    /// Which, by its identifier.
    pub target: String,
    /// Further names of the tasks in it.
    #[serde(deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
}

/// A container. Empty texts and lists mean the image's own setting.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ContainerSpec {
    /// Reference of the image.
    pub image: String,
    /// Labels of the container.
    #[serde(deserialize_with = "null_as_default")]
    pub labels: BTreeMap<String, String>,
    /// Replaces the image's entrypoint.
    #[serde(deserialize_with = "null_as_default")]
    pub command: Vec<String>,
    /// Replaces the image's command.
    #[serde(deserialize_with = "null_as_default")]
    pub args: Vec<String>,
    /// `NAME=VALUE` each.
    #[serde(deserialize_with = "null_as_default")]
    pub env: Vec<String>,
    /// Working directory.
    pub dir: String,
    /// `user`, `uid`, `user:group` or `uid:gid`.
    pub user: String,
    /// Host name inside the container.
    pub hostname: String,
    /// Signal that asks the container to end; empty means the image's, else `SIGTERM`.
    pub stop_signal: String,
    /// Nanoseconds between that signal and SIGKILL; `None` means 10 s.
    pub stop_grace_period: Option<u64>,
    /// Whether the root file system is read-only.
    pub read_only: bool,
    /// What is mounted into it.
    #[serde(deserialize_with = "null_as_default")]
    pub mounts: Vec<Mount>,
    /// Secrets that it finds as files.
    #[serde(deserialize_with = "null_as_default")]
    pub secrets: Vec<SecretReference>,
    /// Configs that it finds as files.
    #[serde(deserialize_with = "null_as_default")]
    pub configs: Vec<ConfigReference>,
    /// How it is found out whether it is well; `None` means as the image says.
    pub healthcheck: Option<Healthcheck>,
    /// Everything else, in the same object.
    #[serde(flatten)]
    pub settings: Settings,
}

/// Nanoseconds between stop signal and SIGKILL when a spec names none. Source: Docker, `--stop-grace-period`.
pub const STOP_GRACE_NANOS_DEFAULT: u64 = 10_000_000_000;

/// Limits and reservations of a task.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Resources {
    /// What the task may use at most.
    #[serde(deserialize_with = "null_as_default")]
    pub limits: Limits,
    /// What is set aside for it.
    #[serde(deserialize_with = "null_as_default")]
    pub reservations: Reservations,
}

/// What a task may use at most; 0 is no limit. Source: Docker Engine API v1.50, `Limit`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Billionths of a CPU core.
    #[serde(rename = "NanoCPUs")]
    pub nano_cpus: u64,
    /// Bytes of memory.
    #[serde(rename = "MemoryBytes")]
    pub memory_bytes: u64,
    /// Processes.
    #[serde(rename = "Pids")]
    pub pids: u64,
}

/// What is set aside for a task; 0 reserves nothing. Source: Docker Engine API v1.50, `ResourceObject`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Reservations {
    /// Billionths of a CPU core: 500_000_000 is half a core.
    #[serde(rename = "NanoCPUs")]
    pub nano_cpus: u64,
    /// Bytes of memory.
    #[serde(rename = "MemoryBytes")]
    pub memory_bytes: u64,
    /// Generic resources, by number.
    #[serde(rename = "GenericResources", deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    pub generic_resources: Vec<GenericResource>,
}

/// When an ended task is replaced.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct RestartPolicy {
    /// After which ends.
    pub condition: RestartCondition,
    /// Nanoseconds between an end and the next start; `None` means 5 s.
    pub delay: Option<u64>,
    /// Restarts within the window at most; 0 or `None` is no limit.
    pub max_attempts: Option<u64>,
    /// Nanoseconds over which attempts are counted; 0 or `None` counts for ever.
    pub window: Option<u64>,
}

/// Nanoseconds between an end and the next start when a spec names none. Source: Docker, `--restart-delay`.
pub const RESTART_DELAY_NANOS_DEFAULT: u64 = 5_000_000_000;

/// After which ends a task is replaced.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartCondition {
    /// Never.
    None,
    /// After a failure.
    OnFailure,
    /// After every end; of a job, whose completed tasks have done their work, after every other end.
    #[default]
    Any,
}

/// How a change is rolled out. Source: Docker Engine API v1.50, `ServiceSpec.UpdateConfig`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct UpdateConfig {
    /// Tasks changed at once; 0 changes all at once.
    pub parallelism: u64,
    /// Nanoseconds between batches.
    pub delay: u64,
    /// What happens when an updated task fails: `pause`, `continue` or `rollback`.
    pub failure_action: String,
    /// Nanoseconds during which a new task's end counts as a failure of the update.
    pub monitor: u64,
    /// Share of failed tasks that is tolerated, 0 to 1.
    pub max_failure_ratio: f64,
    /// `stop-first` or `start-first`.
    pub order: String,
}

impl Default for UpdateConfig {
    /// Swarm's policy: one at a time, stop first, watch each for 5 s, pause on failure.
    fn default() -> Self {
        Self {
            parallelism: 1,
            delay: 0,
            failure_action: "pause".to_owned(),
            monitor: 5_000_000_000,
            max_failure_ratio: 0.0,
            order: "stop-first".to_owned(),
        }
    }
}

impl UpdateConfig {
    /// Returns the same policy with what was left empty filled in, as Swarm does: a monitor of 0 means 5 s.
    pub fn normal(&self) -> Self {
        let default = Self::default();
        let or = |text: &str, default: String| if text.is_empty() { default } else { text.to_owned() };
        Self {
            failure_action: or(&self.failure_action, default.failure_action),
            order: or(&self.order, default.order),
            monitor: if self.monitor == 0 { default.monitor } else { self.monitor },
            ..self.clone()
        }
    }
}

/// Published ports of a service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct EndpointSpec {
    /// `vip` or `dnsrr`; empty means `vip`.
    pub mode: String,
    /// The ports.
    #[serde(deserialize_with = "null_as_default")]
    pub ports: Vec<PortConfig>,
}

/// One published port, also part of stored records: the codec knows no absent fields, so all are written. Source: Docker Engine API v1.50, `EndpointPortConfig`.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct PortConfig {
    /// A label without effect.
    pub name: String,
    /// `tcp` or `udp`; `sctp` is not supported yet. Empty means `tcp`.
    pub protocol: String,
    /// The container's port.
    pub target_port: u16,
    /// The node's port; 0 lets the cluster choose one from 30000 to 32767.
    pub published_port: u16,
    /// On every node, or only where a task runs.
    pub publish_mode: PublishMode,
}

impl Serialize for PortConfig {
    /// Leaves an empty name out where fields have names, as Docker does; the positional codec writes every field.
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct;
        let Self { name, protocol, target_port, published_port, publish_mode } = self;
        let has_name = !name.is_empty() || !serializer.is_human_readable();
        let mut fields = serializer.serialize_struct("PortConfig", 4 + usize::from(has_name))?;
        if has_name {
            fields.serialize_field("Name", name)?;
        }
        fields.serialize_field("Protocol", protocol)?;
        fields.serialize_field("TargetPort", target_port)?;
        fields.serialize_field("PublishedPort", published_port)?;
        fields.serialize_field("PublishMode", publish_mode)?;
        fields.end()
    }
}

/// Where a published port listens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PublishMode {
    /// On every node, balanced over all tasks.
    #[default]
    Ingress,
    /// On the node of each task, straight to that task.
    Host,
}

/// A node as its operators want it. Source: Docker Engine API v1.50, `NodeSpec`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct NodeSpec {
    /// A name without effect.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Labels for constraints on `node.labels`.
    #[serde(deserialize_with = "null_as_default")]
    pub labels: BTreeMap<String, String>,
    /// What the node may do.
    pub role: Role,
    /// Whether it takes tasks.
    pub availability: Availability,
}

/// Whether a node takes tasks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Availability {
    /// Takes new tasks.
    #[default]
    Active,
    /// Keeps its tasks, takes no new ones.
    Pause,
    /// Its tasks move away.
    Drain,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_docker_cli_sends_is_read() {
        let spec: ServiceSpec = serde_json::from_str(
            r#"{"Name":"web","Labels":{},"TaskTemplate":{"ContainerSpec":{"Image":"lab/web:1","Init":false,
            "DNSConfig":{},"Isolation":"default"},"Resources":{"Limits":{},"Reservations":null},"Placement":{},"ForceUpdate":0,
            "Runtime":"container"},"Mode":{"Replicated":{"Replicas":3}},"EndpointSpec":{"Mode":"vip","Ports":[{"Protocol":"tcp",
            "TargetPort":8080,"PublishedPort":8080,"PublishMode":"ingress"}]}}"#,
        )
        .unwrap();
        assert_eq!(spec.mode.kind(), ModeKind::Replicated { replicas: 3 });
        assert_eq!(spec.endpoint_spec.ports[0].published_port, 8080);
        assert_eq!(spec.update_policy().parallelism, 1);
        assert_eq!(spec.task_template.restart_policy.condition, RestartCondition::Any);
    }
}
