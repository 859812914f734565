//! Nodes.

use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use serde::Deserialize;
use shoal_control::departure::{self, Ask};
use shoal_protocol::write::Write;

use super::filters::Filters;
use super::render::{self, TlsInfo};
use super::snapshot::{NodeView, Pick, Want};
use super::{Api, ApiError, FromPeer, Snapshot, query};

/// Keys that listings of nodes can be filtered by.
const FILTERS: [&str; 6] = ["id", "label", "membership", "name", "node.label", "role"];

#[derive(Debug, Deserialize)]
pub(super) struct ListQuery {
    filters: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct ForceQuery {
    force: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct UpdateQuery {
    version: Option<String>,
}

/// `GET /nodes`.
pub(super) async fn list(
    State(api): State<Api>,
    Query(query): Query<ListQuery>,
) -> Result<Json<Vec<impl serde::Serialize>>, ApiError> {
    let filters = Filters::parse(query.filters.as_deref(), &FILTERS)?;
    let snapshot = api.backend.snapshot(Want { nodes: Pick::All, ..Want::default() }).await?;
    let fitting = snapshot.nodes.iter().filter(|node| fits(node, &filters));
    Ok(Json(fitting.map(|node| render::node(node, &tls_info(&snapshot, node))).collect()))
}

/// Returns the root that issued a node's credential, as far as the node has said.
fn tls_info(snapshot: &Snapshot, node: &NodeView) -> TlsInfo {
    let Some(cluster) = &snapshot.cluster else { return TlsInfo::default() };
    let age = node.status.as_ref().map_or(0, |status| cluster.edition.saturating_sub(status.granted.edition));
    let former = usize::try_from(age).ok().and_then(|age| cluster.former_roots.get(age.checked_sub(1)?));
    TlsInfo::of(former.unwrap_or(&cluster.root_pem))
}

fn fits(node: &NodeView, filters: &Filters) -> bool {
    let engine_labels = node.status.as_ref().map(|status| &status.engine_labels);
    filters.any("id", |id| node.id.to_string().starts_with(id))
        && filters.any("name", |name| node.hostname().starts_with(name))
        && filters.any("role", |role| node.spec.role.to_string() == role)
        // Every listed node was admitted: there is no other membership.
        && filters.any("membership", |membership| membership == "accepted")
        && filters.labels("node.label", &node.spec.labels)
        && engine_labels.map_or_else(|| filters.labels("label", &Default::default()), |labels| filters.labels("label", labels))
}

/// `GET /nodes/{id}`.
pub(super) async fn inspect(
    State(api): State<Api>,
    Path(name): Path<String>,
) -> Result<Json<impl serde::Serialize>, ApiError> {
    let (snapshot, node) = api.node(&name).await?;
    Ok(Json(render::node(&node, &tls_info(&snapshot, &node))))
}

/// `POST /nodes/{id}/update`.
pub(super) async fn update(
    State(api): State<Api>,
    Path(name): Path<String>,
    Query(query): Query<UpdateQuery>,
    body: String,
) -> Result<StatusCode, ApiError> {
    let version = query::version("node", query.version.as_deref())?;
    let (spec, _) = query::object(&body)?;
    let (_, node) = api.node(&name).await?;
    let written = api.backend.write(Write::UpdateNode { id: node.id, version, spec: spec.to_owned() }).await?;
    api.wait_for_node(node.id, written.index).await;
    Ok(StatusCode::OK)
}

/// `POST /shoal/self/drain` and `POST /shoal/self/resume`: what a node asks for itself and cannot ask for another one.
pub(super) async fn change_self(
    State(api): State<Api>,
    Path(what): Path<String>,
    peer: Option<Extension<FromPeer>>,
) -> Result<StatusCode, ApiError> {
    let ask = match what.as_str() {
        "drain" => Ask::Drain,
        "resume" => Ask::Resume,
        _ => return Err(ApiError::not_found("page", &what)),
    };
    let Some(Extension(FromPeer(id))) = peer else { return Err(ApiError::not_found("page", &what)) };
    let (_, node) = api.node(&id.to_string()).await?;
    if let Some(spec) = departure::rewritten(ask, &node.object.spec, node.object.index) {
        api.backend.write(Write::UpdateNode { id, version: node.object.index, spec }).await?;
    }
    Ok(StatusCode::OK)
}

/// `DELETE /nodes/{id}`.
pub(super) async fn remove(
    State(api): State<Api>,
    Path(name): Path<String>,
    Query(query): Query<ForceQuery>,
) -> Result<StatusCode, ApiError> {
    let (_, node) = api.node(&name).await?;
    let force = query::is_on(query.force.as_deref());
    api.backend.write(Write::RemoveNode { id: node.id, force }).await?;
    api.wait_for_node(node.id, 0).await;
    Ok(StatusCode::OK)
}
