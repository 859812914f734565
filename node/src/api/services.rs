//! Services.

use std::time::Duration;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use shoal_protocol::write::{CredentialsChange, Write};
use shoal_protocol::{Kind, NodeId, ObjectId, ServiceId};
use tokio::time::Instant;

use super::filters::Filters;
use super::render::{self, Extras};
use super::snapshot::{Pick, ServiceView, Want};
use super::{Api, ApiError, query, registry};

/// Keys that listings of services can be filtered by.
const FILTERS: [&str; 5] = ["id", "label", "mode", "name", "runtime"];
/// How long an answer to a write waits for the write to reach this node's own replica.
const OWN_REPLICA_TIMEOUT: Duration = Duration::from_secs(1);
/// Between two looks at it.
const OWN_REPLICA_INTERVAL: Duration = Duration::from_millis(2);

#[derive(Debug, Deserialize)]
pub(super) struct ListQuery {
    filters: Option<String>,
    status: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct InspectQuery {
    #[serde(rename = "insertDefaults")]
    insert_defaults: Option<String>,
    status: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct UpdateQuery {
    version: Option<String>,
    rollback: Option<String>,
    #[serde(rename = "registryAuthFrom")]
    registry_auth_from: Option<String>,
}

/// `GET /services`.
pub(super) async fn list(
    State(api): State<Api>,
    Query(query): Query<ListQuery>,
) -> Result<Json<Vec<impl serde::Serialize>>, ApiError> {
    let filters = Filters::parse(query.filters.as_deref(), &FILTERS)?;
    let status = query::is_on(query.status.as_deref());
    let want = Want { services: Pick::All, counts: status, ..Want::default() };
    let snapshot = api.backend.snapshot(want).await?;
    let extras = Extras { status, defaults: false };
    let services = snapshot.services.iter().filter(|service| fits(service, &filters));
    Ok(Json(services.map(|service| render::service(service, extras)).collect()))
}

fn fits(service: &ServiceView, filters: &Filters) -> bool {
    let mode = service.spec.mode.kind().name();
    filters.any("id", |id| service.id.to_string().starts_with(id))
        && filters.any("name", |name| service.spec.name.starts_with(name))
        && filters.any("mode", |wanted| wanted == mode)
        && filters.any("runtime", |runtime| runtime == "container")
        && filters.labels("label", &service.spec.labels)
}

/// `GET /services/{id}`.
pub(super) async fn inspect(
    State(api): State<Api>,
    Path(name): Path<String>,
    Query(query): Query<InspectQuery>,
) -> Result<Json<impl serde::Serialize>, ApiError> {
    let status = query::is_on(query.status.as_deref());
    let (_, service) = api.service(&name, status).await?;
    let extras = Extras { status, defaults: query::is_on(query.insert_defaults.as_deref()) };
    Ok(Json(render::service(&service, extras)))
}

/// `POST /services/create`.
pub(super) async fn create(
    State(api): State<Api>,
    headers: HeaderMap,
    body: String,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    let auth = registry::credentials(&headers)?;
    let (sent, mut value) = query::object(&body)?;
    let id = ServiceId(rand::random());
    let mut changed = respell_mode(&mut value);
    if value["Name"].as_str().is_none_or(str::is_empty) {
        value["Name"] = json!(made_up_name(id));
        changed = true;
    }
    let spec = if changed { value.to_string() } else { sent.to_owned() };
    let spec = api.with_network_ids(spec).await?;
    let credentials = match auth {
        Some(auth) => api.seal(id, &auth).await?,
        None => None,
    };
    let written = api.backend.write(Write::CreateService { id, spec, credentials }).await?;
    api.wait_for_service(id, written.index).await;
    let mut answer = json!({"ID": id});
    if !written.warnings.is_empty() {
        answer["Warnings"] = json!(written.warnings);
    }
    Ok((StatusCode::CREATED, Json(answer)))
}

/// `POST /services/{id}/update`.
pub(super) async fn update(
    State(api): State<Api>,
    Path(name): Path<String>,
    Query(query): Query<UpdateQuery>,
    headers: HeaderMap,
    body: String,
) -> Result<Json<Value>, ApiError> {
    let auth = registry::credentials(&headers)?;
    let version = query::version("service", query.version.as_deref())?;
    let rollback = match query.rollback.as_deref().unwrap_or_default() {
        "" => false,
        "previous" => true,
        other => return Err(ApiError::invalid(format!("unrecognized rollback option {other}"))),
    };
    let (sent, mut value) = query::object(&body)?;
    let spec = if respell_mode(&mut value) { value.to_string() } else { sent.to_owned() };
    let (_, service) = api.service(&name, false).await?;
    let spec = api.with_network_ids(spec).await?;
    let credentials = match (auth, query.registry_auth_from.as_deref().unwrap_or_default()) {
        (Some(auth), _) => CredentialsChange::Set(api.seal(service.id, &auth).await?),
        (None, "" | "spec") => CredentialsChange::Keep,
        (None, "previous-spec") => CredentialsChange::Previous,
        (None, _) => return Err(ApiError::invalid("unsupported registryAuthFrom value")),
    };
    let write = Write::UpdateService { id: service.id, version, spec, rollback, credentials };
    let written = api.backend.write(write).await?;
    api.wait_for_service(service.id, written.index).await;
    let warnings = if written.warnings.is_empty() { Value::Null } else { json!(written.warnings) };
    Ok(Json(json!({"Warnings": warnings})))
}

/// `DELETE /services/{id}`.
pub(super) async fn remove(State(api): State<Api>, Path(name): Path<String>) -> Result<StatusCode, ApiError> {
    let (_, service) = api.service(&name, false).await?;
    api.backend.write(Write::RemoveService { id: service.id }).await?;
    api.wait_for_service(service.id, 0).await;
    Ok(StatusCode::OK)
}

impl Api {
    /// Waits until this node itself knows of a write, so that whoever made it can read it here; 0 waits for a removal.
    ///
    /// The write is durable already: if the news does not come in time, the answer goes out all the same.
    async fn wait_for_service(&self, id: ServiceId, index: u64) {
        let want = Want { services: Pick::Named(vec![id.to_string()]), ..Want::default() };
        self.wait_for(want, index, |snapshot| snapshot.services.first().map(|service| service.object.index)).await;
    }

    /// The same for a node.
    pub(super) async fn wait_for_node(&self, id: NodeId, index: u64) {
        let want = Want { nodes: Pick::Named(vec![id.to_string()]), ..Want::default() };
        self.wait_for(want, index, |snapshot| snapshot.nodes.first().map(|node| node.object.index)).await;
    }

    /// The same for a secret, config or network.
    pub(super) async fn wait_for_object(&self, kind: Kind, id: ObjectId, index: u64) {
        let want = Want { objects: Some((kind, Pick::Named(vec![id.to_string()]))), ..Want::default() };
        self.wait_for(want, index, |snapshot| snapshot.objects.first().map(|object| object.head.index)).await;
    }

    async fn wait_for(&self, want: Want, index: u64, index_of: impl Fn(&super::Snapshot) -> Option<u64>) {
        let deadline = Instant::now() + OWN_REPLICA_TIMEOUT;
        while let Ok(snapshot) = self.backend.snapshot(want.clone()).await {
            let arrived = match index_of(&snapshot) {
                Some(known) => index > 0 && known >= index,
                None => index == 0,
            };
            if arrived || Instant::now() >= deadline {
                return;
            }
            tokio::time::sleep(OWN_REPLICA_INTERVAL).await;
        }
    }
}

/// Writes a mode as the API names it. docker-py sends `replicated` and `global`, and Docker, which reads names of fields
/// without regard to case, takes them. Returns whether something was changed.
fn respell_mode(spec: &mut Value) -> bool {
    const NAMES: [&str; 4] = ["Replicated", "Global", "ReplicatedJob", "GlobalJob"];
    let Some(mode) = spec.get_mut("Mode").and_then(Value::as_object_mut) else { return false };
    let mut changed = false;
    for name in NAMES {
        let other = mode.keys().find(|key| *key != name && key.eq_ignore_ascii_case(name)).cloned();
        if let Some(value) = other.and_then(|other| mode.remove(&other)) {
            mode.insert(name.to_owned(), value);
            changed = true;
        }
    }
    changed
}

/// Makes a name up for a service whose user gave none.
fn made_up_name(id: ServiceId) -> String {
    const FIRST: [&str; 16] = [
        "amber", "brisk", "calm", "deep", "eager", "fleet", "gentle", "hidden", "icy", "jolly", "keen", "lively",
        "mossy", "nimble", "quiet", "silver",
    ];
    const SECOND: [&str; 16] = [
        "anchovy", "bream", "cod", "dace", "eel", "flounder", "gar", "herring", "ide", "jack", "koi", "ling", "mullet",
        "perch", "roach", "smelt",
    ];
    let pick = |shift: u32| ((id.0 >> shift) % 16) as usize;
    format!("{}-{}-{}", FIRST[pick(0)], SECOND[pick(4)], &id.short()[6..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_respelled() {
        for (sent, want, changed) in [
            (json!({"Mode": {"replicated": {"Replicas": 2}}}), json!({"Mode": {"Replicated": {"Replicas": 2}}}), true),
            (json!({"Mode": {"global": {}}}), json!({"Mode": {"Global": {}}}), true),
            (json!({"Mode": {"Replicated": {"Replicas": 2}}}), json!({"Mode": {"Replicated": {"Replicas": 2}}}), false),
            (json!({"Mode": {"other": {}}}), json!({"Mode": {"other": {}}}), false),
            (json!({"Mode": null}), json!({"Mode": null}), false),
            (json!({}), json!({}), false),
        ] {
            let mut spec = sent.clone();
            assert_eq!((respell_mode(&mut spec), spec), (changed, want), "{sent}");
        }
    }
}
