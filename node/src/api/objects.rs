//! Secrets and configs. Source: Docker Engine API v1.50; they differ in whether their data come back.

use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};
use shoal_protocol::ObjectId;
use shoal_protocol::object::{self, FileSpec, Kind};
use shoal_protocol::spec::templates;
use shoal_protocol::write::{Write, WriteError};
use zeroize::Zeroizing;

use super::filters::Filters;
use super::render;
use super::snapshot::{ObjectView, Pick, Want};
use super::{Api, ApiError, query};

/// Keys that listings can be filtered by.
const FILTERS: [&str; 4] = ["id", "label", "name", "names"];

#[derive(Debug, Deserialize)]
pub(super) struct ListQuery {
    filters: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct UpdateQuery {
    version: Option<String>,
}

/// Returns the routes of secrets or configs.
pub(super) fn routes(kind: Kind) -> Router<Api> {
    let path = |rest: &str| format!("/{}s{rest}", kind.name());
    Router::new()
        .route(&path(""), get(move |api, query| list(kind, api, query)))
        .route(&path("/create"), post(move |api, body| create(kind, api, body)))
        .route(
            &path("/{id}"),
            get(move |api, name| inspect(kind, api, name)).delete(move |api, name| remove(kind, api, name)),
        )
        .route(&path("/{id}/update"), post(move |api, name, query, body| update(kind, api, name, query, body)))
}

async fn list(
    kind: Kind,
    State(api): State<Api>,
    Query(query): Query<ListQuery>,
) -> Result<Json<Vec<impl serde::Serialize>>, ApiError> {
    let filters = Filters::parse(query.filters.as_deref(), &FILTERS)?;
    let snapshot = api.backend.snapshot(Want { objects: Some((kind, Pick::All)), ..Want::default() }).await?;
    let files = snapshot.objects.iter().filter(|object| fits(kind, object, &filters));
    Ok(Json(files.map(|object| render::file(kind, object)).collect()))
}

fn fits(kind: Kind, object: &ObjectView, filters: &Filters) -> bool {
    let labels = || FileSpec::parse(kind, &object.head.spec).unwrap_or_default().labels;
    filters.any("id", |id| object.id.to_string().starts_with(id))
        && filters.any("name", |name| object.head.name.starts_with(name))
        && filters.any("names", |name| object.head.name == name)
        && filters.labels("label", &labels())
}

async fn inspect(
    kind: Kind,
    State(api): State<Api>,
    Path(name): Path<String>,
) -> Result<Json<impl serde::Serialize>, ApiError> {
    Ok(Json(render::file(kind, &api.object(kind, &name).await?)))
}

async fn create(kind: Kind, State(api): State<Api>, body: String) -> Result<(StatusCode, Json<Value>), ApiError> {
    let (spec, data) = take_apart(&body)?;
    let id = ObjectId(rand::random());
    let data = data.unwrap_or_default();
    // Before it is sealed, so that what is refused anyway goes no further.
    let file = FileSpec::parse(kind, &spec).map_err(refused)?;
    object::check_data(kind, data.len()).map_err(refused)?;
    if file.is_template {
        templates::check_payload(&data).map_err(refused)?;
    }
    let (edition, data) = match kind {
        Kind::Secret => {
            let sealed = api.backend.seal(id.into(), data).await?;
            (sealed.edition, sealed.data)
        }
        Kind::Config | Kind::Network => (0, data.to_vec()),
    };
    let written = api.backend.write(Write::CreateObject { kind, id, spec, data, edition }).await?;
    api.wait_for_object(kind, id, written.index).await;
    Ok((StatusCode::CREATED, Json(json!({"ID": id}))))
}

async fn update(
    kind: Kind,
    State(api): State<Api>,
    Path(name): Path<String>,
    Query(query): Query<UpdateQuery>,
    body: String,
) -> Result<StatusCode, ApiError> {
    let version = query::version(kind.name(), query.version.as_deref())?;
    let (spec, data) = take_apart(&body)?;
    let object = api.object(kind, &name).await?;
    if let Some(data) = data {
        let is_same = match kind {
            Kind::Secret => api.backend.holds(object.id, data).await?,
            Kind::Config | Kind::Network => object.data == *data,
        };
        if !is_same {
            return Err(WriteError::Invalid("only updates to Labels are allowed".to_owned()).into());
        }
    }
    let written = api.backend.write(Write::UpdateObject { kind, id: object.id, version, spec }).await?;
    api.wait_for_object(kind, object.id, written.index).await;
    Ok(StatusCode::OK)
}

async fn remove(kind: Kind, State(api): State<Api>, Path(name): Path<String>) -> Result<StatusCode, ApiError> {
    let object = api.object(kind, &name).await?;
    api.backend.write(Write::RemoveObject { kind, id: object.id }).await?;
    api.wait_for_object(kind, object.id, 0).await;
    Ok(StatusCode::NO_CONTENT)
}

/// What a secret or config holds. Dropping it erases it.
type Data = Zeroizing<Vec<u8>>;

/// Takes the data out of a spec. Nothing of them may be in an error: it is shown and logged.
fn take_apart(body: &str) -> Result<(String, Option<Data>), ApiError> {
    let mut spec: Value =
        serde_json::from_str(body).map_err(|error| ApiError::invalid(format!("invalid JSON: {error}")))?;
    let Some(members) = spec.as_object_mut() else {
        return Err(ApiError::invalid("invalid JSON: expected an object"));
    };
    let data = match members.remove("Data") {
        None | Some(Value::Null) => None,
        Some(Value::String(text)) => {
            let text = Zeroizing::new(text);
            let bytes = STANDARD.decode(&*text).map_err(|_| ApiError::invalid("invalid JSON: illegal base64 data"))?;
            Some(Zeroizing::new(bytes))
        }
        Some(Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_)) => {
            return Err(ApiError::invalid("invalid JSON: Data is not a text in base64"));
        }
    };
    Ok((spec.to_string(), data))
}

fn refused(error: shoal_protocol::spec::SpecError) -> ApiError {
    WriteError::Invalid(error.to_string()).into()
}
