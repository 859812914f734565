//! The daemon itself: is it there, what is it, is its cluster well.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue};
use serde_json::Value;
use shoal_protocol::token::Role;

use super::snapshot::{Pick, Want};
use super::{Api, ApiError, StatusReport, render};

/// `GET` and `HEAD /_ping`.
pub(super) async fn ping(State(api): State<Api>) -> (HeaderMap, &'static str) {
    let swarm = match api.backend.snapshot(Want::default()).await {
        Ok(snapshot) if snapshot.role == Role::Manager => "active/manager",
        Ok(_) => "active/worker",
        Err(_) => "inactive",
    };
    let mut headers = HeaderMap::new();
    headers.insert("swarm", HeaderValue::from_static(swarm));
    headers.insert("cache-control", HeaderValue::from_static("no-cache, no-store, must-revalidate"));
    (headers, "OK")
}

/// `GET /version`.
pub(super) async fn version(State(api): State<Api>) -> Json<Value> {
    Json(render::version(&api.backend.node()))
}

/// `GET /info`.
pub(super) async fn info(State(api): State<Api>) -> Json<Value> {
    let snapshot = api.backend.snapshot(Want { nodes: Pick::All, ..Want::default() }).await.ok();
    Json(render::info(&api.backend.node(), snapshot.as_ref()))
}

/// `GET /shoal/status`.
pub(super) async fn status(State(api): State<Api>) -> Result<Json<StatusReport>, ApiError> {
    api.backend.status().await.map(Json)
}
