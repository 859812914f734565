//! Named volumes of this node, where no engine answers for them: read only.

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::filters::Filters;
use super::{Api, ApiError, render};

/// Keys that listings of volumes can be filtered by.
const FILTERS: [&str; 3] = ["driver", "label", "name"];

#[derive(Debug, Deserialize)]
pub(super) struct ListQuery {
    filters: Option<String>,
}

/// `GET /volumes`.
pub(super) async fn list(State(api): State<Api>, Query(query): Query<ListQuery>) -> Result<Json<Value>, ApiError> {
    let filters = Filters::parse(query.filters.as_deref(), &FILTERS)?;
    let mut volumes = api.backend.inventory().await?.volumes(false).await?;
    volumes.retain(|volume| {
        filters.any("name", |part| volume.name.contains(part))
            && filters.any("driver", |driver| driver == "local")
            && filters.labels("label", &volume.labels)
    });
    let volumes: Vec<Value> = volumes.iter().map(|volume| render::volume(volume, None)).collect();
    Ok(Json(json!({"Volumes": volumes, "Warnings": null})))
}

/// `GET /volumes/{name}`.
pub(super) async fn inspect(State(api): State<Api>, Path(name): Path<String>) -> Result<Json<Value>, ApiError> {
    let volumes = api.backend.inventory().await?.volumes(false).await?;
    let found = volumes.iter().find(|volume| volume.name == name);
    let missing = || ApiError::new(StatusCode::NOT_FOUND, format!("get {name}: no such volume"));
    found.map(|volume| Json(render::volume(volume, None))).ok_or_else(missing)
}
