//! Networks. Source: Docker Engine API v1.50, the part for networks of a swarm.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{FromRequest, Path, Query, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};
use shoal_protocol::object::network::NetworkSpec;
use shoal_protocol::write::{Write, WriteError};
use shoal_protocol::{Kind, ObjectId};

use super::engine::Engine;
use super::filters::Filters;
use super::render;
use super::snapshot::{ObjectView, Pick, Want};
use super::{Api, ApiError, FromPeer, query, unsupported};

/// Keys that listings can be filtered by.
const FILTERS: [&str; 6] = ["driver", "id", "label", "name", "scope", "type"];
/// Keys that only an engine's networks can be listed by.
const FILTERS_OF_ENGINE: [&str; 1] = ["dangling"];
/// Keys that choose what is pruned.
const PRUNE_FILTERS: [&str; 1] = ["label"];
/// Keys that choose among an engine's networks only.
const PRUNE_FILTERS_OF_ENGINE: [&str; 2] = ["label!", "until"];

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
    request: Request,
) -> Result<Json<Vec<Value>>, ApiError> {
    let engine = api.engine_behind(&request);
    let networks = api.chosen(query.filters.as_deref(), &FILTERS, &FILTERS_OF_ENGINE, engine.is_some()).await?;
    let mut list: Vec<Value> = networks.iter().map(|network| json!(render::network(network))).collect();
    if let Some(engine) = engine {
        let path = request.uri().path_and_query().map_or("/networks", |path| path.as_str());
        list.extend(engine.ask(path).await?.as_array().cloned().unwrap_or_default());
    }
    Ok(Json(list))
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
    request: Request,
) -> Result<Response, ApiError> {
    let found = match query.scope.as_deref() {
        None | Some("" | "swarm") => api.object(Kind::Network, &name).await,
        Some(_) => Err(ApiError::not_found("network", &name)),
    };
    match found {
        Ok(network) => Ok(Json(render::network(&network)).into_response()),
        Err(error) => api.or_of_engine(error, request).await,
    }
}

/// `POST /networks/create`.
pub(super) async fn create(State(api): State<Api>, request: Request) -> Result<Response, ApiError> {
    let engine = api.engine_behind(&request);
    let (parts, body) = request.into_parts();
    let body = String::from_request(Request::from_parts(parts.clone(), body), &()).await;
    let body = body.map_err(|error| ApiError::new(error.status(), error.body_text()))?;
    let (spec, value) = query::object(&body)?;
    if let Some(engine) = engine.filter(|_| is_local(&value)) {
        return engine.pass(Request::from_parts(parts, Body::from(body))).await;
    }
    let id = ObjectId(rand::random());
    let write = Write::CreateObject { kind: Kind::Network, id, spec: spec.to_owned(), data: Vec::new(), edition: 0 };
    let written = api.backend.write(write).await.map_err(|error| match error {
        // In Docker the engine says so, not the swarm.
        WriteError::Conflict(text) => ApiError::new(StatusCode::CONFLICT, text),
        error => error.into(),
    })?;
    api.wait_for_object(Kind::Network, id, written.index).await;
    Ok((StatusCode::CREATED, Json(json!({"Id": id, "Warning": written.warnings.join("; ")}))).into_response())
}

/// Returns whether somebody who asks for a network wants one of this machine alone, as Docker's engine reads it.
fn is_local(spec: &Value) -> bool {
    spec["Driver"].as_str() != Some("overlay") && spec["Scope"].as_str() != Some("swarm")
}

/// `DELETE /networks/{id}`.
pub(super) async fn remove(
    State(api): State<Api>,
    Path(name): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    let network = match api.object(Kind::Network, &name).await {
        Ok(network) => network,
        Err(error) => return api.or_of_engine(error, request).await,
    };
    if network.is_ingress() {
        return Err(ApiError::unsupported("removing the ingress network"));
    }
    api.backend.write(Write::RemoveObject { kind: Kind::Network, id: network.id }).await?;
    api.wait_for_object(Kind::Network, network.id, 0).await;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// `POST /networks/{id}/connect` and `…/disconnect`: only the engine's networks take containers.
pub(super) async fn attach(State(api): State<Api>, request: Request) -> Result<Response, ApiError> {
    match api.engine_behind(&request) {
        Some(engine) => engine.pass(request).await,
        None => {
            let (head, body) = request.into_parts();
            Err(unsupported::fallback(head.method, head.uri, body).await)
        }
    }
}

/// `POST /networks/prune`: removes what no service uses.
pub(super) async fn prune(
    State(api): State<Api>,
    Query(query): Query<ListQuery>,
    request: Request,
) -> Result<Json<Value>, ApiError> {
    let (engine, filters) = (api.engine_behind(&request), query.filters.as_deref());
    let networks = api.chosen(filters, &PRUNE_FILTERS, &PRUNE_FILTERS_OF_ENGINE, engine.is_some()).await?;
    let mut deleted = Vec::new();
    for network in networks.into_iter().filter(|network| !network.is_ingress()) {
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
    if let Some(engine) = engine {
        let pruned = engine.pass_for_value(request).await?;
        let names = pruned["NetworksDeleted"].as_array().into_iter().flatten();
        deleted.extend(names.filter_map(|name| name.as_str().map(str::to_owned)));
    }
    Ok(Json(json!({"NetworksDeleted": deleted})))
}

impl Api {
    /// Returns the engine that has networks of its own, unless another node asks.
    fn engine_behind(&self, request: &Request) -> Option<Arc<Engine>> {
        self.backend.engine().filter(|_| request.extensions().get::<FromPeer>().is_none())
    }

    /// Asks the engine about a network that the cluster has not.
    async fn or_of_engine(&self, error: ApiError, request: Request) -> Result<Response, ApiError> {
        let is_elsewhere = error.status == StatusCode::NOT_FOUND || error == ApiError::not_in_cluster();
        match self.engine_behind(&request).filter(|_| is_elsewhere) {
            Some(engine) => engine.pass(request).await,
            None => Err(error),
        }
    }

    /// Returns the cluster's networks that fit filters by `keys`: none if a filter is by one of `keys_of_engine`, or if this
    /// node is in no cluster. Without an engine, both are refused.
    async fn chosen(
        &self,
        filters: Option<&str>,
        keys: &[&str],
        keys_of_engine: &[&str],
        has_engine: bool,
    ) -> Result<Vec<ObjectView>, ApiError> {
        let keys_of_engine = if has_engine { keys_of_engine } else { &[] };
        let filters = Filters::parse(filters, &[keys, keys_of_engine].concat())?;
        if keys_of_engine.iter().any(|key| !filters.values(key).is_empty()) {
            return Ok(Vec::new());
        }
        let want = Want { objects: Some((Kind::Network, Pick::All)), ..Want::default() };
        let mut networks = match self.backend.snapshot(want).await {
            Err(error) if has_engine && error == ApiError::not_in_cluster() => Vec::new(),
            seen => seen?.objects,
        };
        networks.retain(|network| fits(network, &filters));
        Ok(networks)
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
