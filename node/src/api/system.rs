//! The daemon itself: is it there, what is it, is its cluster well.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue};
use serde_json::Value;
use shoal_protocol::token::Role;

use super::gate::announced;
use super::snapshot::{Pick, Want};
use super::{Api, ApiError, StatusReport, render};

/// `GET` and `HEAD /_ping`.
pub(super) async fn ping(State(api): State<Api>) -> (HeaderMap, &'static str) {
    let swarm = match api.backend.snapshot(Want::default()).await {
        Ok(snapshot) if snapshot.role == Role::Manager => "active/manager",
        Ok(_) => "active/worker",
        Err(_) if api.backend.is_locked() => "locked",
        Err(_) => "inactive",
    };
    let mut headers = HeaderMap::new();
    headers.insert("swarm", HeaderValue::from_static(swarm));
    headers.insert("cache-control", HeaderValue::from_static("no-cache, no-store, must-revalidate"));
    // Asked here, so that what the gate announces is no older than the client's first question.
    let spoken = match api.backend.engine() {
        Some(engine) => engine.spoken().await,
        None => None,
    };
    if let Some(builder) = spoken.and_then(|spoken| HeaderValue::from_str(&spoken.builder).ok()) {
        headers.insert("builder-version", builder);
    }
    (headers, "OK")
}

/// `GET /version`.
pub(super) async fn version(State(api): State<Api>) -> Json<Value> {
    let node = api.backend.node();
    let Some(engine) = api.backend.engine() else {
        return Json(render::version(&node, announced(None), None));
    };
    let spoken = engine.spoken().await;
    let behind = engine.ask("/version").await.ok();
    let version = announced(spoken.as_ref().map(|spoken| spoken.version.as_str()));
    Json(render::version(&node, version, behind.as_ref()))
}

/// `GET /info`.
pub(super) async fn info(State(api): State<Api>) -> Json<Value> {
    let snapshot = api.backend.snapshot(Want { nodes: Pick::All, ..Want::default() }).await.ok();
    // In a cluster the node has measured itself.
    let measured = snapshot.as_ref().and_then(|snapshot| {
        snapshot.nodes.iter().find(|node| node.id == snapshot.me).and_then(|node| node.status.clone())
    });
    let is_locked = api.backend.is_locked();
    let own = render::info(&measured.unwrap_or_else(|| api.backend.node()), snapshot.as_ref(), is_locked);
    Json(match api.backend.engine() {
        Some(engine) => render::info_with_engine(own, engine.ask("/info").await.map_err(|error| error.message)),
        None => own,
    })
}

/// `GET /shoal/status`.
pub(super) async fn status(State(api): State<Api>) -> Result<Json<StatusReport>, ApiError> {
    api.backend.status().await.map(Json)
}
