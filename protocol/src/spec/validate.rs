//! What makes a spec acceptable: everything in it is either acted on or refused by name, never ignored.
//!
//! [`check_supported`] looks at the JSON, for fields the typed view does not even have; [`validate`] looks at the values of
//! those it has. Both run when a user writes; specs already stored are read with [`ServiceSpec::read`], because a newer
//! version may have accepted more. Texts follow SwarmKit's `controlapi/service.go` where it has them.

use std::collections::BTreeSet;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{
    ModeKind, NodeSpec, PublishMode, SPEC_BYTES_MAX, ServiceSpec, TaskTemplate, UpdateConfig, generic, health,
    settings, templates,
};
use crate::image::Reference;

/// Networks of one service at most.
pub const NETWORKS_MAX: usize = 32;

/// Replicas of one service at most: what a cluster is designed to hold in all.
pub const REPLICAS_MAX: u64 = 100_000;

/// Bytes of memory that a limit or reservation has at least. Source: SwarmKit, `validateResources`.
pub const MEMORY_BYTES_MIN: u64 = 4 << 20;

/// Billionths of a core that a limit or reservation has at least. Source: SwarmKit, `validateResources`.
pub const NANO_CPUS_MIN: u64 = 1_000_000;

/// Characters of a service's name at most: a label of DNS.
pub const NAME_CHARS_MAX: usize = 63;

/// Why a spec was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// It makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// It asks for something that this version cannot do; the text names it with its verb, such as `networks are`.
    #[error("{0} not supported yet")]
    Unsupported(String),
}

pub(super) fn invalid<T>(message: impl Into<String>) -> Result<T, SpecError> {
    Err(SpecError::Invalid(message.into()))
}

impl ServiceSpec {
    /// Reads what a user sent and refuses what is malformed, invalid or not supported.
    pub fn parse(json: &str) -> Result<Self, SpecError> {
        let value = read_value(json)?;
        check_supported(&value)?;
        let spec: Self = typed(value)?;
        validate(&spec)?;
        Ok(spec)
    }

    /// Reads a stored spec, which was checked when it was written.
    pub fn read(json: &str) -> Result<Self, SpecError> {
        typed(read_value(json)?)
    }
}

impl NodeSpec {
    /// Reads what a user sent or what is stored.
    pub fn parse(json: &str) -> Result<Self, SpecError> {
        typed(read_value(json)?)
    }
}

/// Returns the `TaskTemplate` inside the JSON of a service's spec, as the user sent it; `{}` if there is none.
pub fn task_template_json(spec: &str) -> Result<String, SpecError> {
    let value = read_value(spec)?;
    Ok(value.get("TaskTemplate").map_or_else(|| "{}".to_owned(), Value::to_string))
}

/// Reads a stored task template.
pub fn read_template(json: &str) -> Result<TaskTemplate, SpecError> {
    typed(read_value(json)?)
}

/// Parses JSON and drops `null` members: Go's decoder reads them as absent.
fn read_value(json: &str) -> Result<Value, SpecError> {
    if json.len() > SPEC_BYTES_MAX {
        return invalid(format!("spec of {} bytes is larger than the limit of {SPEC_BYTES_MAX}", json.len()));
    }
    let mut value: Value =
        serde_json::from_str(json).map_err(|error| SpecError::Invalid(format!("spec is not JSON: {error}")))?;
    if !value.is_object() {
        return invalid("spec is not a JSON object");
    }
    drop_nulls(&mut value);
    Ok(value)
}

fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(members) => {
            members.retain(|_, member| !member.is_null());
            members.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn typed<T: DeserializeOwned>(value: Value) -> Result<T, SpecError> {
    serde_json::from_value(value).map_err(|error| SpecError::Invalid(format!("spec is malformed: {error}")))
}

/// Fields of `ServiceSpec` that are acted on, with all that is in them.
const SUPPORTED: &[&str] = &[
    "Name",
    "Labels",
    "TaskTemplate.ContainerSpec.Image",
    "TaskTemplate.ContainerSpec.Labels",
    "TaskTemplate.ContainerSpec.Command",
    "TaskTemplate.ContainerSpec.Args",
    "TaskTemplate.ContainerSpec.Env",
    "TaskTemplate.ContainerSpec.Dir",
    "TaskTemplate.ContainerSpec.User",
    "TaskTemplate.ContainerSpec.Hostname",
    "TaskTemplate.ContainerSpec.StopSignal",
    "TaskTemplate.ContainerSpec.StopGracePeriod",
    "TaskTemplate.ContainerSpec.ReadOnly",
    "TaskTemplate.ContainerSpec.Mounts.Type",
    "TaskTemplate.ContainerSpec.Mounts.Source",
    "TaskTemplate.ContainerSpec.Mounts.Target",
    "TaskTemplate.ContainerSpec.Mounts.ReadOnly",
    "TaskTemplate.ContainerSpec.Mounts.BindOptions.Propagation",
    "TaskTemplate.ContainerSpec.Mounts.BindOptions.NonRecursive",
    "TaskTemplate.ContainerSpec.Mounts.VolumeOptions.NoCopy",
    "TaskTemplate.ContainerSpec.Mounts.VolumeOptions.Labels",
    "TaskTemplate.ContainerSpec.Mounts.VolumeOptions.DriverConfig.Name",
    "TaskTemplate.ContainerSpec.Mounts.TmpfsOptions.SizeBytes",
    "TaskTemplate.ContainerSpec.Mounts.TmpfsOptions.Mode",
    "TaskTemplate.ContainerSpec.Secrets.File.Name",
    "TaskTemplate.ContainerSpec.Secrets.File.UID",
    "TaskTemplate.ContainerSpec.Secrets.File.GID",
    "TaskTemplate.ContainerSpec.Secrets.File.Mode",
    "TaskTemplate.ContainerSpec.Secrets.SecretID",
    "TaskTemplate.ContainerSpec.Secrets.SecretName",
    "TaskTemplate.ContainerSpec.Configs.File.Name",
    "TaskTemplate.ContainerSpec.Configs.File.UID",
    "TaskTemplate.ContainerSpec.Configs.File.GID",
    "TaskTemplate.ContainerSpec.Configs.File.Mode",
    "TaskTemplate.ContainerSpec.Configs.ConfigID",
    "TaskTemplate.ContainerSpec.Configs.ConfigName",
    "TaskTemplate.ContainerSpec.Healthcheck.Test",
    "TaskTemplate.ContainerSpec.Healthcheck.Interval",
    "TaskTemplate.ContainerSpec.Healthcheck.Timeout",
    "TaskTemplate.ContainerSpec.Healthcheck.Retries",
    "TaskTemplate.ContainerSpec.Healthcheck.StartPeriod",
    "TaskTemplate.ContainerSpec.Healthcheck.StartInterval",
    "TaskTemplate.ContainerSpec.Init",
    "TaskTemplate.ContainerSpec.TTY",
    "TaskTemplate.ContainerSpec.Groups",
    "TaskTemplate.ContainerSpec.Hosts",
    "TaskTemplate.ContainerSpec.DNSConfig.Nameservers",
    "TaskTemplate.ContainerSpec.DNSConfig.Search",
    "TaskTemplate.ContainerSpec.DNSConfig.Options",
    "TaskTemplate.ContainerSpec.Sysctls",
    "TaskTemplate.ContainerSpec.CapabilityAdd",
    "TaskTemplate.ContainerSpec.CapabilityDrop",
    "TaskTemplate.ContainerSpec.Ulimits.Name",
    "TaskTemplate.ContainerSpec.Ulimits.Soft",
    "TaskTemplate.ContainerSpec.Ulimits.Hard",
    "TaskTemplate.ContainerSpec.OomScoreAdj",
    "TaskTemplate.LogDriver.Name",
    "TaskTemplate.LogDriver.Options",
    "TaskTemplate.Resources.Limits.NanoCPUs",
    "TaskTemplate.Resources.Limits.MemoryBytes",
    "TaskTemplate.Resources.Limits.Pids",
    "TaskTemplate.Resources.Reservations.NanoCPUs",
    "TaskTemplate.Resources.Reservations.MemoryBytes",
    "TaskTemplate.Resources.Reservations.GenericResources.NamedResourceSpec.Kind",
    "TaskTemplate.Resources.Reservations.GenericResources.NamedResourceSpec.Value",
    "TaskTemplate.Resources.Reservations.GenericResources.DiscreteResourceSpec.Kind",
    "TaskTemplate.Resources.Reservations.GenericResources.DiscreteResourceSpec.Value",
    "TaskTemplate.RestartPolicy.Condition",
    "TaskTemplate.RestartPolicy.Delay",
    "TaskTemplate.RestartPolicy.MaxAttempts",
    "TaskTemplate.RestartPolicy.Window",
    "TaskTemplate.Placement.Constraints",
    "TaskTemplate.Placement.MaxReplicas",
    "TaskTemplate.Placement.Platforms",
    "TaskTemplate.Placement.Preferences.Spread.SpreadDescriptor",
    "TaskTemplate.Networks.Target",
    "TaskTemplate.Networks.Aliases",
    "TaskTemplate.ForceUpdate",
    "Mode.Replicated.Replicas",
    "Mode.Global",
    "Mode.ReplicatedJob.MaxConcurrent",
    "Mode.ReplicatedJob.TotalCompletions",
    "Mode.GlobalJob",
    "UpdateConfig.Parallelism",
    "UpdateConfig.Delay",
    "UpdateConfig.FailureAction",
    "UpdateConfig.Monitor",
    "UpdateConfig.MaxFailureRatio",
    "UpdateConfig.Order",
    "RollbackConfig.Parallelism",
    "RollbackConfig.Delay",
    "RollbackConfig.FailureAction",
    "RollbackConfig.Monitor",
    "RollbackConfig.MaxFailureRatio",
    "RollbackConfig.Order",
    "EndpointSpec.Mode",
    "EndpointSpec.Ports",
];

/// Values that clients send for fields we do not act on and that ask for what we do anyway.
const HARMLESS: &[(&str, &str)] = &[
    ("TaskTemplate.ContainerSpec.Isolation", "default"),
    ("TaskTemplate.ContainerSpec.Mounts.Consistency", "default"),
    ("TaskTemplate.Runtime", "container"),
];

/// What people call the fields that are refused; others are named by their path.
const NAMES: &[(&str, &str)] = &[
    ("Networks", "networks outside of the task template are"),
    ("TaskTemplate.Networks.DriverOpts", "driver options of network attachments are"),
    ("TaskTemplate.PluginSpec", "plugin services are"),
    ("TaskTemplate.NetworkAttachmentSpec", "network attachments are"),
    ("TaskTemplate.Runtime", "task runtimes other than 'container' are"),
    ("TaskTemplate.Resources.Limits.GenericResources", "limits of generic resources are"),
    ("TaskTemplate.Resources.SwapBytes", "swap limits are"),
    ("TaskTemplate.Resources.MemorySwappiness", "memory swappiness is"),
    ("TaskTemplate.ContainerSpec.Mounts.Consistency", "the consistency of mounts is"),
    ("TaskTemplate.ContainerSpec.Mounts.BindOptions.CreateMountpoint", "creating a bind mount's source is"),
    ("TaskTemplate.ContainerSpec.Mounts.BindOptions.ReadOnlyNonRecursive", "a bind mount that is read-only in part is"),
    ("TaskTemplate.ContainerSpec.Mounts.BindOptions.ReadOnlyForceRecursive", "the bind option 'readonly' is"),
    ("TaskTemplate.ContainerSpec.Mounts.VolumeOptions.Subpath", "a part of a volume as a mount is"),
    ("TaskTemplate.ContainerSpec.Mounts.VolumeOptions.DriverConfig.Options", "options of volume drivers are"),
    ("TaskTemplate.ContainerSpec.Mounts.ImageOptions", "mounts of type 'image' are"),
    ("TaskTemplate.ContainerSpec.Mounts.TmpfsOptions.Options", "further options of a tmpfs are"),
    ("TaskTemplate.ContainerSpec.Mounts.ClusterOptions", "mounts of type 'cluster' are"),
    ("TaskTemplate.ContainerSpec.Configs.Runtime", "configs that are no files are"),
    ("TaskTemplate.ContainerSpec.Privileges", "privileges are"),
    ("TaskTemplate.ContainerSpec.Isolation", "isolation modes other than 'default' are"),
    ("TaskTemplate.ContainerSpec.OpenStdin", "an open standard input is"),
];

/// Refuses by name whatever in a service's JSON would have to change what shoal does but does not.
///
/// Empty values (`false`, `0`, `""`, `{}`, `[]`, `null`) ask for nothing and pass: clients send many of them.
pub fn check_supported(json: &Value) -> Result<(), SpecError> {
    walk("", json)
}

fn walk(path: &str, value: &Value) -> Result<(), SpecError> {
    if SUPPORTED.contains(&path) {
        return Ok(());
    }
    let leads_on = path.is_empty()
        || SUPPORTED.iter().any(|field| field.strip_prefix(path).is_some_and(|rest| rest.starts_with('.')));
    if let (Value::Object(members), true) = (value, leads_on) {
        return members.iter().try_for_each(|(name, member)| {
            let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            walk(&path, member)
        });
    }
    if let (Value::Array(items), true) = (value, leads_on) {
        return items.iter().try_for_each(|item| walk(path, item));
    }
    let harmless = HARMLESS.iter().any(|(field, harmless)| *field == path && value.as_str() == Some(harmless));
    // What is no object where one belongs is left to the typed view, which says so.
    if leads_on || harmless || is_empty(value) {
        return Ok(());
    }
    let name = NAMES.iter().find(|(field, _)| *field == path).map(|(_, name)| (*name).to_owned());
    Err(SpecError::Unsupported(name.unwrap_or_else(|| format!("{path} is"))))
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(set) => !set,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(members) => members.values().all(is_empty),
    }
}

/// Checks the values of a service's spec.
pub fn validate(spec: &ServiceSpec) -> Result<(), SpecError> {
    validate_name(&spec.name)?;
    super::port_labels::validate(spec)?;
    let container = &spec.task_template.container_spec;
    if container.image.trim().is_empty() {
        return invalid("ContainerSpec: image reference must be provided");
    }
    if Reference::parse(&container.image).is_none() {
        return invalid(format!("ContainerSpec: \"{}\" is not a valid repository/tag", container.image));
    }
    templates::validate(spec)?;
    if let Some(check) = &container.healthcheck {
        health::validate(check)?;
    }
    settings::validate(&container.settings)?;
    let resources = &spec.task_template.resources;
    for (nano_cpus, memory_bytes) in [
        (resources.limits.nano_cpus, resources.limits.memory_bytes),
        (resources.reservations.nano_cpus, resources.reservations.memory_bytes),
    ] {
        validate_resources(nano_cpus, memory_bytes)?;
    }
    generic::validate(&resources.reservations.generic_resources)?;
    spec.task_template.placement.validate()?;
    validate_mode(spec)?;
    let networks = spec.task_template.networks.len();
    if networks > NETWORKS_MAX {
        return invalid(format!("{networks} networks are more than the limit of {NETWORKS_MAX}"));
    }
    if let Some(policy) = &spec.update_config {
        validate_update(policy, "update", &["pause", "continue", "rollback"])?;
    }
    if let Some(policy) = &spec.rollback_config {
        validate_update(policy, "rollback", &["pause", "continue"])?;
    }
    validate_endpoint(spec)
}

/// Checks that a name can be a DNS label. Underscores pass, as in SwarmKit: stacks name their services `stack_service`.
pub(crate) fn validate_name(name: &str) -> Result<(), SpecError> {
    let ends_well = |char: Option<char>| char.is_some_and(|char| char.is_ascii_alphanumeric());
    let all_fit = name.chars().all(|char| char.is_ascii_alphanumeric() || char == '-' || char == '_');
    if !all_fit || !ends_well(name.chars().next()) || !ends_well(name.chars().next_back()) {
        return invalid("name must be valid as a DNS name component");
    }
    if name.len() > NAME_CHARS_MAX {
        return invalid(format!("name must be {NAME_CHARS_MAX} characters or fewer"));
    }
    Ok(())
}

fn validate_resources(nano_cpus: u64, memory_bytes: u64) -> Result<(), SpecError> {
    if nano_cpus != 0 && nano_cpus < NANO_CPUS_MIN {
        let cores = nano_cpus as f64 / 1e9;
        return invalid(format!("invalid cpu value {cores}: Must be at least 0.001"));
    }
    if memory_bytes != 0 && memory_bytes < MEMORY_BYTES_MIN {
        return invalid(format!("invalid memory value {memory_bytes}: Must be at least 4MiB"));
    }
    Ok(())
}

fn validate_mode(spec: &ServiceSpec) -> Result<(), SpecError> {
    if spec.mode.given() > 1 {
        return invalid("must specify only one service mode");
    }
    if spec.mode.is_job() && spec.update_config.is_some() {
        return invalid("Jobs may not have an update config");
    }
    if spec.mode.is_job() && spec.rollback_config.is_some() {
        return invalid("Jobs may not have a rollback config");
    }
    match spec.mode.kind() {
        ModeKind::Replicated { replicas } if replicas > REPLICAS_MAX => {
            invalid(format!("{replicas} replicas are more than the limit of {REPLICAS_MAX}"))
        }
        ModeKind::ReplicatedJob { completions, .. } if completions > REPLICAS_MAX => {
            invalid(format!("{completions} completions are more than the limit of {REPLICAS_MAX}"))
        }
        ModeKind::ReplicatedJob { completions: 1.., concurrent: 0 } => {
            invalid("a job of which no task may run never completes: MaxConcurrent must be at least 1")
        }
        ModeKind::Replicated { .. } | ModeKind::Global | ModeKind::ReplicatedJob { .. } | ModeKind::GlobalJob => Ok(()),
    }
}

/// Checks the policy of an `update` or `rollback`, which is what `kind` says.
fn validate_update(policy: &UpdateConfig, kind: &str, actions: &[&str]) -> Result<(), SpecError> {
    let action = policy.failure_action.as_str();
    if !action.is_empty() && !actions.contains(&action) {
        return invalid(format!("unrecognized {kind} failure action {action}"));
    }
    match policy.order.as_str() {
        "" | "stop-first" | "start-first" => {}
        other => return invalid(format!("unrecognized {kind} order {other}")),
    }
    if !(0.0..=1.0).contains(&policy.max_failure_ratio) {
        return invalid(format!("TaskSpec: {kind}-maxfailureratio cannot be less than 0 or bigger than 1"));
    }
    Ok(())
}

fn validate_endpoint(spec: &ServiceSpec) -> Result<(), SpecError> {
    let endpoint = &spec.endpoint_spec;
    if !["", "vip", "dnsrr"].contains(&endpoint.mode.as_str()) {
        return invalid(format!("unrecognized endpoint mode {}", endpoint.mode));
    }
    let mut published = BTreeSet::new();
    for port in &endpoint.ports {
        match port.protocol.as_str() {
            "" | "tcp" | "udp" => {}
            "sctp" => return Err(SpecError::Unsupported("sctp ports are".to_owned())),
            other => return invalid(format!("unrecognized port protocol {other}")),
        }
        if port.target_port == 0 {
            return invalid("EndpointSpec: target port must be provided");
        }
        if endpoint.mode == "dnsrr" && port.publish_mode == PublishMode::Ingress {
            return invalid("EndpointSpec: port published with ingress mode can't be used with dnsrr mode");
        }
        if port.published_port != 0 && !published.insert(port.published()) {
            return invalid("EndpointSpec: duplicate published ports provided");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
