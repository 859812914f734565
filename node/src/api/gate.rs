//! What every request passes: its version, the choice of who answers, its share of the node's attention, its time limit, its
//! place in the metrics.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use axum::extract::{Query, Request, State};
use axum::http::{HeaderValue, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tracing::Instrument;

use super::engine::Engine;
use super::engine::owner::{Owner, owner};
use super::images::LoadQuery;
use super::render::{API_VERSION, API_VERSION_MIN};
use super::{Api, ApiError, FromPeer};

/// How long an answer may take to begin.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// The same for images, which have to arrive first.
const LOAD_TIMEOUT: Duration = Duration::from_secs(30 * 60);

/// Bytes of a path in the log at most, as far as it is cut between characters.
const PATH_BYTES_MAX: usize = 256;

/// Bytes of a plain text refusal at most; the rest is dropped.
const REFUSAL_BYTES_MAX: usize = 4096;

/// Lets a request through to its handler. What is logged meanwhile, also by the event loop, has the request's number.
pub(super) async fn pass(State(api): State<Api>, request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let span = tracing::info_span!(
        "request",
        id = api.requests.fetch_add(1, Ordering::Relaxed) + 1,
        method = %request.method(),
        path = path.get(..PATH_BYTES_MAX).unwrap_or(path),
        node = request.extensions().get::<FromPeer>().map(|from| tracing::field::display(from.0)),
    );
    answer(api, request, next).instrument(span).await
}

async fn answer(api: Api, mut request: Request, next: Next) -> Response {
    let started = Instant::now();
    let method = request.method().clone();
    let outcome = match strip_version(request.uri()).and_then(|uri| Ok((engine_for(&api, &request, &uri)?, uri))) {
        Ok((Some(engine), _)) => Ok(engine.pass(request).await.unwrap_or_else(IntoResponse::into_response)),
        Ok((None, uri)) => {
            *request.uri_mut() = uri;
            let outcome = run(&api, request, next).await;
            Ok(as_message(outcome.unwrap_or_else(IntoResponse::into_response)).await)
        }
        Err(error) => Err(error),
    };
    let mut response = outcome.unwrap_or_else(IntoResponse::into_response);
    let headers = response.headers_mut();
    let spoken = api.backend.engine().and_then(|engine| engine.last_spoken());
    let version = announced(spoken.as_ref().map(|spoken| spoken.version.as_str()));
    if let Ok(version) = HeaderValue::from_str(version) {
        headers.insert("api-version", version);
    }
    for (name, value) in [
        ("ostype", "linux"),
        ("docker-experimental", "false"),
        ("server", concat!("shoal/", env!("CARGO_PKG_VERSION"), " (linux)")),
    ] {
        headers.entry(name).or_insert(HeaderValue::from_static(value)); // the engine's own answers have the engine's
    }
    let took = started.elapsed();
    api.metrics.count_request(&method, response.status(), took);
    tracing::debug!(status = response.status().as_u16(), seconds = took.as_secs_f64(), "request answered");
    response
}

/// Returns the engine if a request is for it; `uri` has no version.
fn engine_for(api: &Api, request: &Request, uri: &Uri) -> Result<Option<Arc<Engine>>, ApiError> {
    let Some(engine) = api.backend.engine() else { return Ok(None) };
    if request.extensions().get::<FromPeer>().is_some() {
        return Ok(None);
    }
    match owner(request.method(), uri.path())? {
        Owner::Cluster | Owner::Both => return Ok(None),
        Owner::Engine => {}
    }
    let loads = uri.path() == "/images/load";
    let loads_on_all = loads && Query::<LoadQuery>::try_from_uri(uri).is_ok_and(|Query(query)| query.on_all());
    Ok((!loads_on_all).then_some(engine))
}

/// Returns the newest version that clients may use: the lower one of this API's and the engine's.
pub(super) fn announced(engine: Option<&str>) -> &str {
    let engine = engine.filter(|engine| number(engine).is_some());
    engine.filter(|engine| number(engine) < number(API_VERSION)).unwrap_or(API_VERSION)
}

/// Gives refusals that came from below the handlers, which are plain text, the shape that clients expect.
async fn as_message(response: Response) -> Response {
    let is_refusal = response.status().is_client_error() || response.status().is_server_error();
    let content = response.headers().get(header::CONTENT_TYPE);
    if !is_refusal || !content.is_some_and(|content| content.as_bytes().starts_with(b"text/plain")) {
        return response;
    }
    let status = response.status();
    let text = axum::body::to_bytes(response.into_body(), REFUSAL_BYTES_MAX).await.unwrap_or_default();
    ApiError::new(status, String::from_utf8_lossy(&text)).into_response()
}

async fn run(api: &Api, request: Request, next: Next) -> Result<Response, ApiError> {
    // The permit is held until the answer begins; bodies that stream are bounded by the connections that carry them.
    let _permit = api.room.try_acquire().map_err(|_| ApiError::unavailable("too many requests; try again"))?;
    if api.backend.is_locked() && !is_open_while_locked(request.uri().path()) {
        return Err(ApiError::locked());
    }
    let limit = if request.uri().path() == "/images/load" { LOAD_TIMEOUT } else { ANSWER_TIMEOUT };
    tokio::time::timeout(limit, next.run(request))
        .await
        .map_err(|_| ApiError::unavailable(format!("no answer within {} s", limit.as_secs())))
}

/// Returns whether a node whose keys are locked answers: what it is, and how to change that.
fn is_open_while_locked(path: &str) -> bool {
    let swarm = ["/swarm/unlock", "/swarm/leave", "/swarm/init", "/swarm/join"];
    swarm.contains(&path) || ["/_ping", "/version", "/info", "/metrics"].contains(&path)
}

/// Takes `/v1.NN` off a path after checking that this version is spoken.
fn strip_version(uri: &Uri) -> Result<Uri, ApiError> {
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let Some((version, rest)) = versioned(path) else { return Ok(uri.clone()) };
    let too = |what: &str, limit: &str| ApiError::invalid(format!("client version {version} is too {what}. {limit}"));
    if number(version) > number(API_VERSION) {
        return Err(too("new", &format!("Maximum supported API version is {API_VERSION}")));
    }
    if number(version) < number(API_VERSION_MIN) {
        let limit = format!(
            "Minimum supported API version is {API_VERSION_MIN}, please upgrade your client to a newer version"
        );
        return Err(too("old", &limit));
    }
    rest.parse().map_err(|_| ApiError::invalid("the path makes no sense"))
}

/// Splits `/v1.41/info` into `1.41` and `/info`.
fn versioned(path: &str) -> Option<(&str, &str)> {
    let rest = path.strip_prefix("/v")?;
    let (version, _) = rest.split_once('/')?;
    number(version)?;
    Some((version, &rest[version.len()..]))
}

fn number(version: &str) -> Option<(u32, u32)> {
    let (major, minor) = version.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lower_version_is_announced() {
        for (engine, want) in
            [(None, "1.50"), (Some("1.41"), "1.41"), (Some("1.9"), "1.9"), (Some("1.52"), "1.50"), (Some("x"), "1.50")]
        {
            assert_eq!(announced(engine), want, "{engine:?}");
        }
    }

    #[test]
    fn versions_are_taken_off_the_path() {
        for (path, want) in [
            ("/v1.41/info?a=b", Ok("/info?a=b")),
            ("/v1.50/services/x", Ok("/services/x")),
            ("/v1.24/nodes", Ok("/nodes")),
            ("/info", Ok("/info")),
            ("/version", Ok("/version")),
            ("/v1/x", Ok("/v1/x")),
            ("/v1.99/info", Err("client version 1.99 is too new. Maximum supported API version is 1.50")),
            ("/v2.0/info", Err("client version 2.0 is too new. Maximum supported API version is 1.50")),
        ] {
            let got = strip_version(&path.parse().unwrap());
            let got = got.as_ref().map(Uri::to_string).map_err(|error| error.message.as_str());
            assert_eq!(got.as_deref(), want.as_deref(), "{path}");
        }
        let old = strip_version(&"/v1.12/info".parse().unwrap()).unwrap_err();
        assert!(old.message.contains("too old"), "{old}");
    }
}
