//! What a driver is told: a task's template with identity, environment and labels filled in.

use std::time::Duration;

use shoal_protocol::TaskId;
use shoal_protocol::spec::templates::{self, TaskContext};
use shoal_protocol::spec::{
    FileReference, Mount, PortConfig, PublishMode, STOP_GRACE_NANOS_DEFAULT, TaskTemplate, Transport,
};

use super::{ContainerPlan, NodeIdentity, PlannedFile, Wanted};

/// How long connections to a task are waited for at most before it is told to stop.
pub const DRAIN_MAX: Duration = Duration::from_secs(5);

/// Label with the cluster's identifier.
pub const LABEL_CLUSTER: &str = "shoal.cluster.id";
/// Label with the node's identifier.
pub const LABEL_NODE: &str = "shoal.node.id";
/// Label with the task's slot: a replica's number or a node's identifier.
pub const LABEL_SLOT: &str = "shoal.task.slot";
/// Label with the service's identifier, as Docker sets it.
pub const LABEL_SERVICE: &str = "com.docker.swarm.service.id";
/// Label with the task's identifier, as Docker sets it.
pub const LABEL_TASK: &str = "com.docker.swarm.task.id";

/// Returns the grace of a template: between its stop signal and SIGKILL.
pub fn stop_grace(template: &TaskTemplate) -> Duration {
    Duration::from_nanos(template.container_spec.stop_grace_period.unwrap_or(STOP_GRACE_NANOS_DEFAULT))
}

/// Returns how long connections to a task that is to be stopped are waited for before its stop signal. Many programs end at that
/// signal with what they were answering; those that stay for long cannot hold an update up.
pub fn drain(ports: &[PortConfig], grace: Duration) -> Duration {
    let has_connections = |port: &PortConfig| {
        let is_tcp = match port.transport() {
            Transport::Tcp => true,
            Transport::Udp | Transport::Other => false,
        };
        port.publish_mode == PublishMode::Ingress && is_tcp
    };
    if ports.iter().any(has_connections) { grace.min(DRAIN_MAX) } else { Duration::ZERO }
}

/// Resolves a task for the driver. The error says which template cannot be filled in here.
pub fn container_plan(
    task: TaskId,
    wanted: &Wanted,
    template: &TaskTemplate,
    node: &NodeIdentity,
) -> Result<ContainerPlan, String> {
    let name = format!("{}.{}.{task}", wanted.service_name, wanted.slot);
    let context = TaskContext {
        service_id: wanted.service.to_string(),
        service_name: wanted.service_name.clone(),
        service_labels: wanted.service_labels.clone(),
        node_id: node.id.to_string(),
        hostname: node.hostname.clone(),
        architecture: node.architecture.clone(),
        os: node.os.clone(),
        task_id: task.to_string(),
        task_name: name.clone(),
        slot: wanted.slot.to_string(),
    };
    let spec = templates::expand(&template.container_spec, &context).map_err(|error| error.to_string())?;
    let mut env = spec.env.clone();
    env.extend(wanted.generic.variables());
    env.extend([
        format!("SHOAL_NODE_ID={}", node.id),
        format!("SHOAL_NODE_HOSTNAME={}", node.hostname),
        format!("SHOAL_SERVICE_NAME={}", wanted.service_name),
        format!("SHOAL_TASK_ID={task}"),
        format!("SHOAL_TASK_SLOT={}", wanted.slot),
    ]);
    let mut labels = spec.labels.clone();
    labels.extend(
        [
            (LABEL_CLUSTER, node.cluster.to_string()),
            (LABEL_NODE, node.id.to_string()),
            (LABEL_SLOT, wanted.slot.to_string()),
            ("com.docker.swarm.node.id", node.id.to_string()),
            (LABEL_SERVICE, wanted.service.to_string()),
            ("com.docker.swarm.service.name", wanted.service_name.clone()),
            ("com.docker.swarm.task", String::new()),
            (LABEL_TASK, task.to_string()),
            ("com.docker.swarm.task.name", name.clone()),
        ]
        .map(|(key, value)| (key.to_owned(), value)),
    );
    Ok(ContainerPlan {
        task,
        service: wanted.service,
        service_name: wanted.service_name.clone(),
        slot: wanted.slot,
        node: node.id,
        name,
        image: spec.image.clone(),
        command: spec.command.clone(),
        args: spec.args.clone(),
        env,
        labels,
        dir: spec.dir.clone(),
        user: spec.user.clone(),
        hostname: spec.hostname.clone(),
        stop_signal: spec.stop_signal.clone(),
        stop_grace: stop_grace(template),
        read_only: spec.read_only,
        mounts: spec.mounts.iter().map(Mount::cleaned).collect(),
        // One that cannot be resolved was refused when the template was read.
        files: spec.files().filter_map(|reference| file(reference).ok()).collect(),
        healthcheck: spec.healthcheck.clone(),
        settings: spec.settings.clone(),
        log_driver: template.log_driver.clone(),
        limits: template.resources.limits.clone(),
        host_ports: wanted.ports.iter().filter(|port| port.publish_mode == PublishMode::Host).cloned().collect(),
        context,
    })
}

/// Reads a stored template; the error says what in it this version cannot do.
pub fn read(json: &str) -> Result<TaskTemplate, String> {
    let template: TaskTemplate = serde_json::from_str(json).map_err(|error| error.to_string())?;
    template.container_spec.files().try_for_each(|reference| file(reference).map(drop))?;
    Ok(template)
}

/// Resolves a secret or config.
fn file(reference: FileReference<'_>) -> Result<PlannedFile, String> {
    let FileReference { kind, id, name, file } = reference;
    let malformed = || format!("malformed {} reference", kind.name());
    let (uid, gid, mode) = file.ok_or_else(malformed)?.owner_and_mode().map_err(|error| error.to_string())?;
    let id = id.parse().map_err(|_| malformed())?;
    let target = file.map(|file| file.name.clone()).unwrap_or_default();
    let path = reference.path().ok_or_else(malformed)?;
    Ok(PlannedFile { kind, id, name: name.to_owned(), target, path, uid, gid, mode })
}
