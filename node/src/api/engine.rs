//! The Docker Engine behind this node, for what its API has and the cluster's has not: containers, images, builds, volumes.
//!
//! A request is passed on as it came, over a connection of its own: when either end goes away, so does the other. What the
//! cluster answers itself never gets there (see [`owner`]), so that nobody makes the engine join a swarm of its own.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, Version, header};
use axum::response::Response;
use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::client::conn::http1::{Connection, SendRequest};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::task::AbortOnDropHandle;

use super::ApiError;
use super::listen::Hangup;

pub mod owner;
mod pipe;

/// Requests that are with the engine at once, those that stream included; more get status 503.
pub const REQUESTS_MAX: usize = 256;
/// How long connecting may take. How long an answer takes is between client and engine: `docker stop -t 600` has to work.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the node's own questions to the engine may take.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of an answer to such a question; a larger one counts as a failure.
const ANSWER_BYTES_MAX: usize = 4 << 20;
/// How long the engine may take to say which API it speaks, and for how long its word is taken.
const PING_TIMEOUT: Duration = Duration::from_secs(2);
const PING_EVERY: Duration = Duration::from_secs(10);

/// What concerns one connection only. Source: RFC 9110, section 7.6.1.
const HOP_BY_HOP: [HeaderName; 8] = [
    header::CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
];

/// Where an engine listens: `unix://PATH`, `tcp://HOST:PORT` or `http://HOST:PORT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// On a Unix socket.
    Unix(PathBuf),
    /// On a TCP port.
    Tcp(String),
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once("://") {
            Some(("unix", path)) if path.starts_with('/') => Ok(Self::Unix(path.into())),
            Some(("tcp" | "http", host)) if !host.is_empty() => Ok(Self::Tcp(host.trim_end_matches('/').to_owned())),
            _ => {
                Err(format!("'{text}' is not the address of a Docker Engine: expected unix://PATH or tcp://HOST:PORT"))
            }
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp(host) => write!(f, "tcp://{host}"),
        }
    }
}

/// Which API an engine speaks, as it says itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Spoken {
    /// The newest version, such as `1.41`.
    pub(super) version: String,
    /// Which builder clients should use; empty for the classic one.
    pub(super) builder: String,
}

/// A Docker Engine to which requests are passed on.
pub struct Engine {
    address: Address,
    room: Arc<Semaphore>,
    /// What the engine last said, and when it was last asked.
    spoken: Mutex<(Option<Spoken>, Option<Instant>)>,
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

type Io = TokioIo<Box<dyn Stream>>;

impl Engine {
    /// Makes the way to an engine. Nothing is connected yet.
    pub fn new(address: Address) -> Self {
        Self { address, room: Arc::new(Semaphore::new(REQUESTS_MAX)), spoken: Mutex::default() }
    }

    /// Passes a request on and returns the answer as it begins.
    pub(super) async fn pass(&self, mut request: Request) -> Result<Response, ApiError> {
        let permit = self.room.clone().try_acquire_owned();
        let permit = permit.map_err(|_| ApiError::unavailable("too many requests to the Docker Engine; try again"))?;
        let hangup = request.extensions().get::<Hangup>().cloned();
        let client = is_upgrade(request.headers()).then(|| hyper::upgrade::on(&mut request));
        let request = outgoing(request)?;
        let (mut sender, connection) = self.connect().await?;
        let connection = drive(connection);
        let sent = sender.send_request(request).await;
        let mut response = sent.map_err(|error| self.broken(&error))?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let Some(client) = client else {
                return Err(ApiError::new(StatusCode::BAD_GATEWAY, "the Docker Engine switched protocols unasked"));
            };
            let engine = hyper::upgrade::on(&mut response);
            tokio::spawn(async move {
                let _held = (permit, connection);
                match futures::future::try_join(client, engine).await {
                    Ok((client, engine)) => pipe::join(TokioIo::new(client), TokioIo::new(engine), hangup).await,
                    Err(error) => tracing::debug!(%error, "a client of the engine went away"),
                }
            });
            return Ok(response.map(|_| Body::empty()));
        }
        for name in HOP_BY_HOP {
            response.headers_mut().remove(name);
        }
        Ok(response.map(|body| Body::new(Held { body, _connection: connection, _permit: permit })))
    }

    /// Asks the engine for something that goes on, and returns the answer as it begins.
    pub(super) async fn stream(&self, path: &str) -> Result<Response, ApiError> {
        let ask = async {
            let response = self.pass(question(Method::GET, path)?).await?;
            if response.status().is_success() { Ok(response) } else { Err(self.refusal(response).await) }
        };
        self.within(QUESTION_TIMEOUT, ask).await
    }

    /// Asks the engine something and reads the answer whole.
    pub(super) async fn ask(&self, path: &str) -> Result<Value, ApiError> {
        self.within(QUESTION_TIMEOUT, async { self.pass_for_value(question(Method::GET, path)?).await }).await
    }

    /// Passes a request on and reads the answer whole.
    pub(super) async fn pass_for_value(&self, request: Request) -> Result<Value, ApiError> {
        let response = self.pass(request).await?;
        if !response.status().is_success() {
            return Err(self.refusal(response).await);
        }
        self.value(response).await
    }

    async fn value(&self, response: Response) -> Result<Value, ApiError> {
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(|error| self.broken(&error))?.to_bytes();
        serde_json::from_slice(&body).map_err(|error| self.broken(&error))
    }

    async fn refusal(&self, response: Response) -> ApiError {
        let status = response.status();
        match self.value(response).await {
            Ok(value) => ApiError::new(status, value["message"].as_str().unwrap_or_default()),
            Err(error) => error,
        }
    }

    /// Returns which API the engine speaks, as it said lately; `None` if it never did.
    pub(super) async fn spoken(&self) -> Option<Spoken> {
        let asked = self.known().1;
        if asked.is_some_and(|asked| asked.elapsed() < PING_EVERY) {
            return self.last_spoken();
        }
        let ping = async { self.pass(question(Method::HEAD, "/_ping")?).await };
        let said = self.within(PING_TIMEOUT, ping).await.ok().and_then(|answer| {
            let text = |name| Some(answer.headers().get(name)?.to_str().ok()?.to_owned());
            Some(Spoken { version: text("api-version")?, builder: text("builder-version").unwrap_or_default() })
        });
        let mut known = self.known();
        known.1 = Some(Instant::now());
        // An engine that restarts will most likely speak what it spoke before.
        if said.is_some() {
            known.0 = said;
        }
        known.0.clone()
    }

    /// Returns the same without asking.
    pub(super) fn last_spoken(&self) -> Option<Spoken> {
        self.known().0.clone()
    }

    /// Returns how many requests are with the engine.
    #[cfg(test)]
    pub(super) fn in_use(&self) -> usize {
        REQUESTS_MAX - self.room.available_permits()
    }

    fn known(&self) -> MutexGuard<'_, (Option<Spoken>, Option<Instant>)> {
        self.spoken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn connect(&self) -> Result<(SendRequest<Body>, Connection<Io, Body>), ApiError> {
        let connect = async {
            let stream: Box<dyn Stream> = match &self.address {
                Address::Unix(path) => Box::new(UnixStream::connect(path).await?),
                Address::Tcp(host) => Box::new(TcpStream::connect(host).await?),
            };
            Ok::<_, io::Error>(stream)
        };
        let stream = tokio::time::timeout(CONNECT_TIMEOUT, connect).await;
        let stream = stream.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        let stream = stream.map_err(|error| {
            ApiError::unavailable(format!("the Docker Engine at {} does not answer: {error}", self.address))
        })?;
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| self.broken(&error))
    }

    async fn within<T>(&self, limit: Duration, call: impl Future<Output = Result<T, ApiError>>) -> Result<T, ApiError> {
        tokio::time::timeout(limit, call).await.unwrap_or_else(|_| {
            let seconds = limit.as_secs();
            Err(ApiError::unavailable(format!(
                "the Docker Engine at {} did not answer within {seconds} s",
                self.address
            )))
        })
    }

    fn broken(&self, error: &dyn fmt::Display) -> ApiError {
        let text = format!("the Docker Engine at {} broke off: {error}", self.address);
        ApiError::new(StatusCode::BAD_GATEWAY, text)
    }
}

/// Runs a connection for as long as what is returned is held.
fn drive(connection: Connection<Io, Body>) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(async move {
        // How it ends shows in the answer, or in what both ends say to each other after it.
        let _ = connection.with_upgrades().await;
    }))
}

fn is_upgrade(headers: &HeaderMap) -> bool {
    headers.contains_key(header::UPGRADE)
}

/// Makes the engine's request of a client's: the same but for what concerns the client's connection alone.
fn outgoing(request: Request) -> Result<Request, ApiError> {
    let (mut parts, body) = request.into_parts();
    let upgrade = parts.headers.get(header::UPGRADE).cloned();
    for name in HOP_BY_HOP {
        parts.headers.remove(name);
    }
    // The answer to it is this node's business: it reads the body as the engine takes it.
    parts.headers.remove(header::EXPECT);
    if let Some(protocol) = upgrade {
        parts.headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        parts.headers.insert(header::UPGRADE, protocol);
    }
    parts.headers.entry(header::HOST).or_insert(HeaderValue::from_static("docker"));
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    let uri: Uri = path.parse().map_err(|_| ApiError::invalid("the path makes no sense"))?;
    let mut request = Request::new(body);
    *request.method_mut() = parts.method;
    *request.uri_mut() = uri;
    *request.version_mut() = Version::HTTP_11;
    *request.headers_mut() = parts.headers;
    Ok(request)
}

fn question(method: Method, path: &str) -> Result<Request, ApiError> {
    let request = Request::builder().method(method).uri(path).body(Body::empty());
    request.map_err(|error| ApiError::internal(error.to_string()))
}

/// An answer's body with what has to last as long as it is read.
struct Held {
    body: Incoming,
    _connection: AbortOnDropHandle<()>,
    _permit: OwnedSemaphorePermit,
}

impl hyper::body::Body for Held {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_those_that_the_driver_takes() {
        for (text, want) in [
            ("unix:///var/run/docker.sock", Some("unix:///var/run/docker.sock")),
            ("tcp://10.0.0.1:2375", Some("tcp://10.0.0.1:2375")),
            ("http://10.0.0.1:2375/", Some("tcp://10.0.0.1:2375")),
            ("unix://relative", None),
            ("ssh://host", None),
            ("tcp://", None),
            ("/var/run/docker.sock", None),
        ] {
            assert_eq!(text.parse::<Address>().ok().map(|address| address.to_string()).as_deref(), want, "{text}");
        }
    }

    #[test]
    fn what_concerns_the_clients_connection_is_not_passed_on() {
        let request = |headers: &[(&str, &str)]| {
            let request = Request::builder().method(Method::POST).uri("http://there/v1.41/build?t=a%20b");
            let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
            outgoing(request.body(Body::empty()).unwrap()).unwrap()
        };
        let plain = request(&[
            ("connection", "keep-alive"),
            ("keep-alive", "5"),
            ("transfer-encoding", "chunked"),
            ("expect", "100-continue"),
            ("x-registry-auth", "e30="),
        ]);
        assert_eq!(plain.uri(), "/v1.41/build?t=a%20b");
        let headers: Vec<_> =
            plain.headers().iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        assert_eq!(headers, [("x-registry-auth", "e30="), ("host", "docker")]);
        let upgrade = request(&[("connection", "Upgrade"), ("upgrade", "h2c"), ("host", "api")]);
        assert_eq!(
            (&upgrade.headers()["connection"], &upgrade.headers()["upgrade"]),
            (&"Upgrade".parse().unwrap(), &"h2c".parse().unwrap())
        );
        assert_eq!(upgrade.headers()["host"], "api");
    }
}
