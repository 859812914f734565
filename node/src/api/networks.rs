//! Networks. Source: Docker Engine API v1.50, the part for networks of a swarm.

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use shoal_protocol::object::network::NetworkSpec;
use shoal_protocol::write::{Write, WriteError};
use shoal_protocol::{Kind, ObjectId};

use super::filters::Filters;
use super::render;
use super::snapshot::{ObjectView, Pick, Want};
use super::{Api, ApiError, query};

/// Keys that listings can be filtered by.
const FILTERS: [&str; 6] = ["driver", "id", "label", "name", "scope", "type"];
/// Keys that choose what is pruned.
const PRUNE_FILTERS: [&str; 1] = ["label"];

#[derive(Debug, Deserialize)]
pub(super) struct ListQuery {
    filters: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct InspectQuery {
    scope: Option<String>,
}

/// `GET /networks`.
pub(super) async fn list(
    State(api): State<Api>,
    Query(query): Query<ListQuery>,
) -> Result<Json<Vec<impl serde::Serialize>>, ApiError> {
    let filters = Filters::parse(query.filters.as_deref(), &FILTERS)?;
    let networks = api.networks().await?;
    Ok(Json(networks.iter().filter(|network| fits(network, &filters)).map(render::network).collect()))
}

fn fits(network: &ObjectView, filters: &Filters) -> bool {
    let labels = NetworkSpec::parse(&network.head.spec).unwrap_or_default().labels;
    filters.any("driver", |driver| driver == "overlay")
        && filters.any("scope", |scope| scope == "swarm")
        && filters.any("type", |kind| kind == "custom")
        && filters.any("id", |id| network.id.to_string().contains(id))
        && filters.any("name", |name| network.head.name.contains(name))
        && filters.labels("label", &labels)
}

/// `GET /networks/{id}`. What `verbose` adds there is nothing of: tasks have no addresses in networks yet.
pub(super) async fn inspect(
    State(api): State<Api>,
    Path(name): Path<String>,
    Query(query): Query<InspectQuery>,
) -> Result<Json<impl serde::Serialize>, ApiError> {
    if !matches!(query.scope.as_deref(), None | Some("" | "swarm")) {
        return Err(ApiError::not_found("network", &name));
    }
    Ok(Json(render::network(&api.object(Kind::Network, &name).await?)))
}

/// `POST /networks/create`.
pub(super) async fn create(State(api): State<Api>, body: String) -> Result<(StatusCode, Json<Value>), ApiError> {
    let (spec, _) = query::object(&body)?;
    let id = ObjectId(rand::random());
    let write = Write::CreateObject { kind: Kind::Network, id, spec: spec.to_owned(), data: Vec::new() };
    let written = api.backend.write(write).await.map_err(|error| match error {
        // In Docker the engine says so, not the swarm.
        WriteError::Conflict(text) => ApiError::new(StatusCode::CONFLICT, text),
        error => error.into(),
    })?;
    api.wait_for_object(Kind::Network, id, written.index).await;
    Ok((StatusCode::CREATED, Json(json!({"Id": id, "Warning": written.warnings.join("; ")}))))
}

/// `DELETE /networks/{id}`.
pub(super) async fn remove(State(api): State<Api>, Path(name): Path<String>) -> Result<StatusCode, ApiError> {
    let network = api.object(Kind::Network, &name).await?;
    if network.is_ingress() {
        return Err(ApiError::unsupported("removing the ingress network"));
    }
    api.backend.write(Write::RemoveObject { kind: Kind::Network, id: network.id }).await?;
    api.wait_for_object(Kind::Network, network.id, 0).await;
    Ok(StatusCode::NO_CONTENT)
}

/// `POST /networks/prune`: removes what no service uses.
pub(super) async fn prune(State(api): State<Api>, Query(query): Query<ListQuery>) -> Result<Json<Value>, ApiError> {
    let filters = Filters::parse(query.filters.as_deref(), &PRUNE_FILTERS)?;
    let mut deleted = Vec::new();
    for network in api.networks().await?.into_iter().filter(|network| !network.is_ingress() && fits(network, &filters))
    {
        match api.backend.write(Write::RemoveObject { kind: Kind::Network, id: network.id }).await {
            Ok(_) => {
                api.wait_for_object(Kind::Network, network.id, 0).await;
                deleted.push(network.head.name);
            }
            // Used, or gone meanwhile.
            Err(WriteError::Precondition(_) | WriteError::NotFound(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Json(json!({"NetworksDeleted": deleted})))
}

impl Api {
    async fn networks(&self) -> Result<Vec<ObjectView>, ApiError> {
        let want = Want { objects: Some((Kind::Network, Pick::All)), ..Want::default() };
        Ok(self.backend.snapshot(want).await?.objects)
    }

    /// Writes the identifiers of networks into a service's spec where it has names. A spec without networks stays as it is.
    pub(super) async fn with_network_ids(&self, spec: String) -> Result<String, ApiError> {
        let Ok(mut value) = serde_json::from_str::<Value>(&spec) else { return Ok(spec) };
        let networks = value.pointer_mut("/TaskTemplate/Networks").and_then(Value::as_array_mut);
        let Some(networks) = networks else { return Ok(spec) };
        let mut changed = false;
        for network in networks {
            let Some(target) = network["Target"].as_str().filter(|target| target.parse::<ObjectId>().is_err()) else {
                continue;
            };
            network["Target"] = json!(self.object(Kind::Network, target).await?.id);
            changed = true;
        }
        Ok(if changed { value.to_string() } else { spec })
    }
}
