//! Tasks.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::value::RawValue;
use shoal_protocol::TaskState;
use shoal_protocol::record::SlotName;
use shoal_protocol::spec::{GenericResource, PortConfig, PublishMode};
use shoal_protocol::value::TaskReport;

use super::{Version, iteration, raw};
use crate::api::snapshot::TaskView;

/// A task as Docker's clients read it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Task {
    #[serde(rename = "ID")]
    id: String,
    version: Version,
    created_at: String,
    updated_at: String,
    labels: BTreeMap<String, String>,
    spec: Box<RawValue>,
    #[serde(rename = "ServiceID")]
    service_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    slot: Option<u32>,
    #[serde(rename = "NodeID", skip_serializing_if = "Option::is_none")]
    node_id: Option<String>,
    status: Status,
    desired_state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    job_iteration: Option<Version>,
    networks_attachments: [(); 0],
    /// What Docker's engine and its own client call the next field, which has its name from the description of the API.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    generic_resources: Vec<GenericResource>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    assigned_generic_resources: Vec<GenericResource>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Status {
    timestamp: String,
    state: &'static str,
    message: String,
    #[serde(skip_serializing_if = "str::is_empty")]
    err: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    container_status: Option<ContainerStatus>,
    port_status: PortStatus,
}

#[derive(Debug, Serialize)]
struct ContainerStatus {
    #[serde(rename = "ContainerID")]
    container_id: String,
    #[serde(rename = "PID")]
    pid: u32,
    #[serde(rename = "ExitCode")]
    exit_code: i32,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct PortStatus {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ports: Vec<PortConfig>,
}

/// Renders a task.
pub fn task(view: &TaskView) -> Task {
    let state = view.state();
    let task = &view.task;
    let report = view.report.as_ref();
    let since = view.since().max(task.created).to_string();
    let (message, error) = words(view, state);
    let host_ports = || task.ports.iter().filter(|port| port.publish_mode == PublishMode::Host).cloned().collect();
    Task {
        id: task.id.to_string(),
        version: Version { index: task.index },
        created_at: task.created.to_string(),
        updated_at: since.clone(),
        labels: BTreeMap::new(),
        spec: raw(&task.template),
        service_id: view.service.to_string(),
        slot: match view.slot {
            SlotName::Replica(number) => Some(number),
            SlotName::Node(_) => None,
        },
        node_id: task.node.map(|node| node.to_string()),
        status: Status {
            timestamp: since,
            state: state.name(),
            message,
            err: error,
            container_status: report.and_then(container_status),
            port_status: PortStatus { ports: if state == TaskState::Running { host_ports() } else { Vec::new() } },
        },
        desired_state: view.desired().name(),
        job_iteration: view.is_job.then(|| Version { index: iteration(task.index) }),
        networks_attachments: [],
        generic_resources: task.generic.list(),
        assigned_generic_resources: task.generic.list(),
    }
}

fn container_status(report: &TaskReport) -> Option<ContainerStatus> {
    (!report.container_id.is_empty()).then(|| ContainerStatus {
        container_id: report.container_id.clone(),
        pid: report.pid,
        exit_code: report.exit_code.unwrap_or(0),
    })
}

/// Returns message and error of a task in a state: the node's own words, else the holder's.
pub fn words(view: &TaskView, state: TaskState) -> (String, String) {
    let note = &view.task.note;
    match (&view.report, state) {
        (_, TaskState::Orphaned) => {
            let error = if note.is_empty() { "the node is down".to_owned() } else { note.clone() };
            ("node is gone".to_owned(), error)
        }
        (Some(report), _) if !report.error.is_empty() => (report.message.clone(), report.error.clone()),
        (Some(report), _) => (report.message.clone(), if state.is_terminal() { note.clone() } else { String::new() }),
        (None, TaskState::Pending) => ("pending task scheduling".to_owned(), note.clone()),
        (None, _) => (String::new(), note.clone()),
    }
}
