//! What every request passes: its version, the choice of who answers, its share of the node's attention, its time limit, its
//! place in the metrics.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{Query, Request, State};
use axum::http::{HeaderValue, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use tracing::Instrument;

use super::engine::Engine;
use super::engine::owner::{Owner, owner};
use super::images::LoadQuery;
use super::render::{API_VERSION, API_VERSION_MIN};
use super::{Api, ApiError, FromPeer};

/// How long an answer may take to begin, the request's body included.
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
    within(limit, request, |request| next.run(request)).await
}

/// Answers a request, if that begins in time.
async fn within<F>(limit: Duration, request: Request, answer: impl FnOnce(Request) -> F) -> Result<Response, ApiError>
where
    F: Future<Output = Response>,
{
    let is_awaited = Arc::new(AtomicBool::new(false));
    let request = request.map(|body| Body::new(Arriving { body, is_awaited: is_awaited.clone() }));
    let answered = tokio::time::timeout(limit, answer(request)).await;
    answered.map_err(|_| late(limit, is_awaited.load(Ordering::Relaxed)))
}

/// Says who was too slow: the client, whose body is still waited for, or this node.
fn late(limit: Duration, body_is_awaited: bool) -> ApiError {
    let seconds = limit.as_secs();
    if body_is_awaited {
        let text = format!("the request's body did not arrive within {seconds} s");
        ApiError::new(StatusCode::REQUEST_TIMEOUT, text)
    } else {
        ApiError::unavailable(format!("no answer within {seconds} s"))
    }
}

/// A request's body of which can be told whether somebody waits for more of it.
struct Arriving {
    body: Body,
    is_awaited: Arc<AtomicBool>,
}

impl hyper::body::Body for Arriving {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        self.is_awaited.store(polled.is_pending(), Ordering::Relaxed);
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
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

    #[tokio::test]
    async fn who_is_too_slow_is_told_apart() {
        let limit = Duration::from_millis(20);
        let silent = || Body::from_stream(futures::stream::pending::<std::io::Result<Bytes>>());
        let read = |request: Request| async {
            let _ = axum::body::to_bytes(request.into_body(), 100).await;
            std::future::pending().await
        };
        let refused = |body: Body| async { within(limit, Request::new(body), read).await.unwrap_err() };
        let (slow_client, slow_node) = (refused(silent()).await, refused(Body::from("whole")).await);
        assert_eq!(slow_client.status, StatusCode::REQUEST_TIMEOUT);
        assert_eq!(slow_client.message, "the request's body did not arrive within 0 s");
        assert_eq!(slow_node.status, StatusCode::SERVICE_UNAVAILABLE);
        // A body that nobody reads keeps nobody waiting.
        let unread = within(limit, Request::new(silent()), |_| std::future::pending()).await.unwrap_err();
        assert_eq!(unread.status, StatusCode::SERVICE_UNAVAILABLE);
        let at_once = |_| std::future::ready(StatusCode::OK.into_response());
        assert_eq!(within(limit, Request::new(silent()), at_once).await.unwrap().status(), StatusCode::OK);
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
