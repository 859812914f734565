//! Services.

use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use shoal_protocol::spec::{
    Mode, ModeKind, PortConfig, RESTART_DELAY_NANOS_DEFAULT, STOP_GRACE_NANOS_DEFAULT, UpdateConfig,
};
use shoal_protocol::value::{Progress, UpdateState};

use super::{Version, iteration, raw};
use crate::api::snapshot::ServiceView;

/// What an answer holds beside the service itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Extras {
    /// `status=true`: how many tasks there are.
    pub status: bool,
    /// `insertDefaults=true`: settings that the user left out.
    pub defaults: bool,
}

/// A service as Docker's clients read it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Service {
    #[serde(rename = "ID")]
    id: String,
    version: Version,
    created_at: String,
    updated_at: String,
    spec: Box<RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    previous_spec: Option<Box<RawValue>>,
    endpoint: Endpoint,
    #[serde(skip_serializing_if = "Option::is_none")]
    update_status: Option<UpdateStatus>,
    #[serde(skip_serializing_if = "Option::is_none")]
    service_status: Option<ServiceStatus>,
    #[serde(skip_serializing_if = "Option::is_none")]
    job_status: Option<JobStatus>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Endpoint {
    spec: Value,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ports: Vec<PortConfig>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct UpdateStatus {
    state: &'static str,
    started_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    completed_at: Option<String>,
    message: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct JobStatus {
    job_iteration: Version,
    last_execution: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct ServiceStatus {
    running_tasks: u64,
    desired_tasks: u64,
    completed_tasks: u64,
}

/// Renders a service.
pub fn service(view: &ServiceView, extras: Extras) -> Service {
    let object = &view.object;
    let is_job = view.spec.mode.is_job();
    let written = as_written(&object.spec);
    let spec = raw(&if extras.defaults { with_defaults(&written, is_job) } else { written });
    // What an earlier spec's update came to says nothing about this one.
    let progress = view.progress.as_ref().filter(|progress| progress.index == object.index && object.index > 1);
    Service {
        id: view.id.to_string(),
        version: Version { index: object.index },
        created_at: object.created.to_string(),
        updated_at: object.updated.to_string(),
        spec,
        previous_spec: object.previous_spec.as_deref().map(|spec| raw(&as_written(spec))),
        endpoint: endpoint(view),
        update_status: progress.map(update_status),
        service_status: extras.status.then_some(ServiceStatus {
            running_tasks: view.counts.running,
            desired_tasks: view.counts.desired,
            completed_tasks: view.counts.completed,
        }),
        // Every change of a job runs it once more.
        job_status: is_job.then(|| JobStatus {
            job_iteration: Version { index: iteration(object.index) },
            last_execution: object.updated.to_string(),
        }),
    }
}

fn endpoint(view: &ServiceView) -> Endpoint {
    let has_endpoint = !view.object.ports.is_empty() || !view.spec.task_template.networks.is_empty();
    let mut spec = view.spec.endpoint_spec.clone();
    if spec.mode.is_empty() {
        "vip".clone_into(&mut spec.mode);
    }
    let spec = if has_endpoint { json!(spec) } else { json!({}) };
    Endpoint { spec, ports: view.object.ports.clone() }
}

fn update_status(progress: &Progress) -> UpdateStatus {
    UpdateStatus {
        state: update_state(progress.state),
        started_at: progress.started.to_string(),
        completed_at: progress.completed.map(|moment| moment.to_string()),
        message: progress.message.clone(),
    }
}

/// Returns Docker's name of where an update stands.
pub fn update_state(state: UpdateState) -> &'static str {
    match state {
        UpdateState::Updating => "updating",
        UpdateState::Paused => "paused",
        UpdateState::Completed => "completed",
        UpdateState::RollbackStarted => "rollback_started",
        UpdateState::RollbackPaused => "rollback_paused",
        UpdateState::RollbackCompleted => "rollback_completed",
    }
}

/// Fills in what Swarm writes into a spec when it stores it: Docker's clients wait for no service of which they do not know
/// how many tasks it has, and fail on such a job. Source: Docker Engine 20.10, as captured.
fn as_written(json: &str) -> String {
    let Ok(mut spec) = serde_json::from_str::<Value>(json) else { return json.to_owned() };
    let mode: Mode = serde_json::from_value(spec["Mode"].clone()).unwrap_or_default();
    match mode.kind() {
        ModeKind::Replicated { replicas } => fill(&mut spec, &["Mode", "Replicated"], &json!({"Replicas": replicas})),
        ModeKind::ReplicatedJob { completions, concurrent } => {
            let numbers = json!({"MaxConcurrent": concurrent, "TotalCompletions": completions});
            fill(&mut spec, &["Mode", "ReplicatedJob"], &numbers);
        }
        ModeKind::Global | ModeKind::GlobalJob => {}
    }
    let template = json!({"Runtime": "container", "ForceUpdate": 0, "ContainerSpec": {"Isolation": "default"}});
    fill(&mut spec, &["TaskTemplate"], &template);
    fill(&mut spec, &["EndpointSpec"], &json!({"Mode": "vip"}));
    for port in spec["EndpointSpec"]["Ports"].as_array_mut().into_iter().flatten() {
        fill(port, &[], &json!({"Protocol": "tcp", "PublishMode": "ingress"}));
    }
    let policy = json!({"FailureAction": "pause", "MaxFailureRatio": 0, "Order": "stop-first"});
    for name in ["UpdateConfig", "RollbackConfig"] {
        if spec[name].is_object() {
            fill(&mut spec, &[name], &policy);
        }
    }
    if spec["TaskTemplate"]["RestartPolicy"].is_object() {
        fill(&mut spec, &["TaskTemplate", "RestartPolicy"], &json!({"MaxAttempts": 0}));
    }
    drop_nulls(&mut spec);
    spec.to_string()
}

/// Fills in what Swarm would do where the user left it open. Source: Docker Engine 20.10, as captured.
fn with_defaults(json: &str, is_job: bool) -> String {
    let Ok(mut spec) = serde_json::from_str::<Value>(json) else { return json.to_owned() };
    let mut policy = json!(UpdateConfig::default());
    if let Some(policy) = policy.as_object_mut() {
        policy.remove("Delay");
        policy.insert("MaxFailureRatio".to_owned(), json!(0));
    }
    for name in ["UpdateConfig", "RollbackConfig"].iter().filter(|_| !is_job) {
        fill(&mut spec, &[name], &policy);
    }
    let condition = if is_job { "on-failure" } else { "any" };
    let restart = json!({"Condition": condition, "Delay": RESTART_DELAY_NANOS_DEFAULT, "MaxAttempts": 0});
    fill(&mut spec, &["TaskTemplate", "RestartPolicy"], &restart);
    let grace = json!({"StopGracePeriod": STOP_GRACE_NANOS_DEFAULT});
    fill(&mut spec, &["TaskTemplate", "ContainerSpec"], &grace);
    spec.to_string()
}

/// Takes out fields that say nothing, as Docker does.
fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, value| !value.is_null());
            fields.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Adds the fields of `defaults` that the object at `path` lacks, in objects inside as well.
fn fill(spec: &mut Value, path: &[&str], defaults: &Value) {
    let mut place = spec;
    for key in path {
        let Some(object) = place.as_object_mut() else { return };
        place = object.entry(*key).or_insert_with(|| json!({}));
        if place.is_null() {
            *place = json!({});
        }
    }
    let (Some(place), Some(defaults)) = (place.as_object_mut(), defaults.as_object()) else { return };
    for (name, value) in defaults {
        let field = place.entry(name.clone()).or_insert(Value::Null);
        if field.is_null() {
            *field = value.clone();
        } else if value.is_object() {
            fill(field, &[], value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specs_are_shown_as_swarm_stores_them() {
        // As docker-py sends it.
        let sent = json!({"Name": "py", "Mode": {"Replicated": {}}, "Other": {"kept": [1, null]},
            "TaskTemplate": {"ContainerSpec": {"Image": "a", "Args": null}, "RestartPolicy": {"Delay": 1}},
            "EndpointSpec": {"Ports": [{"TargetPort": 80, "PublishedPort": 8090}]}, "UpdateConfig": {"Order": "start-first"}});
        let want = json!({"Name": "py", "Mode": {"Replicated": {"Replicas": 1}}, "Other": {"kept": [1, null]},
            "TaskTemplate": {"ContainerSpec": {"Image": "a", "Isolation": "default"}, "Runtime": "container",
                "RestartPolicy": {"Delay": 1, "MaxAttempts": 0}, "ForceUpdate": 0},
            "EndpointSpec": {"Mode": "vip", "Ports": [{"TargetPort": 80, "PublishedPort": 8090, "Protocol": "tcp",
                "PublishMode": "ingress"}]},
            "UpdateConfig": {"Order": "start-first", "FailureAction": "pause", "MaxFailureRatio": 0}});
        let shown = as_written(&sent.to_string());
        assert_eq!(serde_json::from_str::<Value>(&shown).unwrap(), want);
        assert_eq!(as_written(&shown), shown, "a client that writes back what it read changes nothing");
        assert_eq!(as_written("nonsense"), "nonsense");
    }
}
