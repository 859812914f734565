//! Tasks.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::{Path, Query, State};
use serde::Deserialize;
use shoal_protocol::ServiceId;
use shoal_protocol::spec::{PortConfig, PublishMode, TaskTemplate};

use super::filters::Filters;
use super::render;
use super::snapshot::{PickTasks, ServiceView, TaskView, Want};
use super::{Api, ApiError};

/// Keys that listings of tasks can be filtered by. `_up-to-date` is what Docker's clients use while they wait.
const FILTERS: [&str; 8] = ["_up-to-date", "desired-state", "id", "label", "name", "node", "runtime", "service"];

#[derive(Debug, Deserialize)]
pub(super) struct ListQuery {
    filters: Option<String>,
}

/// `GET /tasks`.
pub(super) async fn list(
    State(api): State<Api>,
    Query(query): Query<ListQuery>,
) -> Result<Json<Vec<impl serde::Serialize>>, ApiError> {
    let filters = Filters::parse(query.filters.as_deref(), &FILTERS)?;
    let states = filters.values("desired-state");
    if let Some(state) = states.iter().find(|state| !matches!(state.as_str(), "running" | "shutdown" | "accepted")) {
        return Err(ApiError::invalid(format!("invalid filter 'desired-state={state}'")));
    }
    let tasks = PickTasks::Of { services: filters.values("service"), nodes: filters.values("node") };
    let snapshot = api.backend.snapshot(Want { tasks, ..Want::default() }).await?;
    let services: BTreeMap<ServiceId, &ServiceView> =
        snapshot.services.iter().map(|service| (service.id, service)).collect();
    let wants_current = filters.any("_up-to-date", |value| super::query::is_on(Some(value)));
    let checks_current = !filters.values("_up-to-date").is_empty();
    let mut current = Current::default();
    let fitting = snapshot.tasks.iter().filter(|task| {
        let Some(service) = services.get(&task.service) else { return false };
        fits(task, service, &filters) && (!checks_current || current.is_current(task, service) == wants_current)
    });
    Ok(Json(fitting.map(render::task).collect()))
}

fn fits(task: &TaskView, service: &ServiceView, filters: &Filters) -> bool {
    filters.any("id", |id| task.task.id.to_string().starts_with(id))
        && filters.any("name", |name| {
            let full = format!("{}.{}.{}", service.spec.name, task.slot, task.task.id);
            full.starts_with(name) || task.task.id.to_string() == name
        })
        && filters.any("desired-state", |state| task.desired().name() == state)
        && filters.any("runtime", |runtime| runtime == "container")
        && filters.labels("label", &service.spec.labels)
}

/// Tells tasks that run their service's present spec from others. Remembers templates, of which few differ.
#[derive(Default)]
struct Current<'a> {
    templates: BTreeMap<(ServiceId, &'a str), bool>,
}

impl<'a> Current<'a> {
    fn is_current(&mut self, task: &'a TaskView, service: &ServiceView) -> bool {
        if task.task.index == service.object.index {
            return true;
        }
        if task.is_job {
            return false;
        }
        let same = *self.templates.entry((service.id, &task.task.template)).or_insert_with(|| {
            serde_json::from_str::<TaskTemplate>(&task.task.template)
                .is_ok_and(|template| template == service.spec.task_template)
        });
        same && host_ports(&task.task.ports) == host_ports(&service.object.ports)
    }
}

/// Ports on every node are moved from service to service without touching tasks; those of a task's own node are not.
fn host_ports(ports: &[PortConfig]) -> Vec<&PortConfig> {
    ports.iter().filter(|port| port.publish_mode == PublishMode::Host).collect()
}

/// `GET /tasks/{id}`.
pub(super) async fn inspect(
    State(api): State<Api>,
    Path(name): Path<String>,
) -> Result<Json<impl serde::Serialize>, ApiError> {
    let (_, task) = api.task(&name).await?;
    Ok(Json(render::task(&task)))
}
