//! HTTP/1.1 over the daemon's Unix socket or TCP port, one connection per request.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Full, Limited};
use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::header::{CONTENT_TYPE, HOST, USER_AGENT};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

use crate::error::CliError;

mod target;
mod tls;

pub(crate) use target::{Target, TargetArgs};

/// How long connecting may take, a handshake included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the end of a connection may take to say why it came.
const REASON_TIMEOUT: Duration = Duration::from_secs(1);
/// How long an answer may take to begin; writes wait while a lease changes hands.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// How long loading an image may take.
const UPLOAD_TIMEOUT: Duration = Duration::from_secs(30 * 60);
/// Bytes of an answer that is read whole; larger ones are an error.
const ANSWER_BYTES_MAX: usize = 256 << 20;
/// Bytes of an image archive that are read at once.
const CHUNK_BYTES: usize = 64 << 10;

/// The header that credentials for registries go in.
const REGISTRY_AUTH: &str = "X-Registry-Auth";

/// A client of one daemon.
#[derive(Debug)]
pub(crate) struct Client {
    target: Target,
}

type RequestBody = BoxBody<Bytes, io::Error>;

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl Client {
    /// Makes a client of a daemon. Nothing is read or connected yet.
    pub(crate) fn new(target: Target) -> Self {
        Self { target }
    }

    /// Gets an object.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, CliError> {
        let response = self.send(Method::GET, path, empty(), ANSWER_TIMEOUT).await?;
        decode(&collect(response).await?)
    }

    /// Gets a text.
    pub(crate) async fn get_text(&self, path: &str) -> Result<String, CliError> {
        let response = self.send(Method::GET, path, empty(), ANSWER_TIMEOUT).await?;
        Ok(String::from_utf8_lossy(&collect(response).await?).into_owned())
    }

    /// Posts an object; an answer without content reads as JSON's `null`.
    pub(crate) async fn post<B: Serialize, T: DeserializeOwned>(&self, path: &str, body: &B) -> Result<T, CliError> {
        self.post_as(None, path, body).await
    }

    /// Posts an object with credentials for a registry, if there are any.
    pub(crate) async fn post_as<B: Serialize, T: DeserializeOwned>(
        &self,
        auth: Option<&str>,
        path: &str,
        body: &B,
    ) -> Result<T, CliError> {
        let json = serde_json::to_vec(body).map_err(|error| CliError::Failed(error.to_string()))?;
        let body = Full::new(Bytes::from(json)).map_err(|never| match never {}).boxed();
        let response = self.send_as(auth, Method::POST, path, body, ANSWER_TIMEOUT).await?;
        decode(&collect(response).await?)
    }

    /// Gets what a registry says of an image, with credentials for it if there are any.
    pub(crate) async fn distribution(&self, image: &str, auth: Option<&str>) -> Result<serde_json::Value, CliError> {
        // Slashes, colons and the like mean themselves in this path.
        let path = format!("/distribution/{image}/json");
        let response = self.send_as(auth, Method::GET, &path, empty(), ANSWER_TIMEOUT).await?;
        decode(&collect(response).await?)
    }

    /// Removes an object.
    pub(crate) async fn delete(&self, path: &str) -> Result<(), CliError> {
        let response = self.send(Method::DELETE, path, empty(), ANSWER_TIMEOUT).await?;
        collect(response).await.map(drop)
    }

    /// Gets an answer that is read piece by piece.
    pub(crate) async fn stream(&self, path: &str) -> Result<Incoming, CliError> {
        Ok(self.send(Method::GET, path, empty(), ANSWER_TIMEOUT).await?.into_body())
    }

    /// Posts what `reader` yields and returns the answer whole.
    pub(crate) async fn upload<R>(&self, path: &str, reader: R) -> Result<Bytes, CliError>
    where
        R: AsyncRead + Send + Sync + Unpin + 'static,
    {
        let body = ReaderBody { reader, buffer: vec![0; CHUNK_BYTES] }.boxed();
        let response = self.send(Method::POST, path, body, UPLOAD_TIMEOUT).await?;
        collect(response).await
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: RequestBody,
        timeout: Duration,
    ) -> Result<Response<Incoming>, CliError> {
        self.send_as(None, method, path, body, timeout).await
    }

    async fn send_as(
        &self,
        auth: Option<&str>,
        method: Method,
        path: &str,
        body: RequestBody,
        timeout: Duration,
    ) -> Result<Response<Incoming>, CliError> {
        let stream = self.connect().await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| self.broken(&error))?;
        let connection = tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, self.target.authority())
            .header(USER_AGENT, concat!("shoal/", env!("CARGO_PKG_VERSION")))
            .header(CONTENT_TYPE, "application/json");
        let request = auth.into_iter().fold(request, |request, auth| request.header(REGISTRY_AUTH, auth));
        let request = request.body(body).map_err(|error| CliError::Misused(format!("'{path}': {error}")))?;
        let response = tokio::time::timeout(timeout, sender.send_request(request))
            .await
            .map_err(|_| CliError::Failed(format!("the daemon did not answer within {} s", timeout.as_secs())))?;
        let response = match response {
            Ok(response) => response,
            Err(error) => {
                // Why a daemon refuses a certificate is known to the connection, and only after the request was sent.
                let ended = tokio::time::timeout(REASON_TIMEOUT, connection).await;
                return Err(match ended {
                    Ok(Ok(Err(reason))) => self.broken(&reason),
                    Ok(_) | Err(_) => self.broken(&error),
                });
            }
        };
        if response.status().is_success() { Ok(response) } else { Err(refusal(response).await) }
    }

    async fn connect(&self) -> Result<Box<dyn Stream>, CliError> {
        let unreachable = |source| CliError::Unreachable { daemon: self.target.to_string(), source };
        let connector = match &self.target {
            Target::Tcp(_, Some(files)) => Some(TlsConnector::from(Arc::new(tls::config(files)?))),
            Target::Tcp(_, None) | Target::Unix(_) => None,
        };
        let connect = async {
            let (tcp, stream) = match &self.target {
                Target::Unix(path) => {
                    let stream: Box<dyn Stream> = Box::new(UnixStream::connect(path).await.map_err(unreachable)?);
                    return Ok(stream);
                }
                Target::Tcp(tcp, tls) => {
                    let address = (tcp.host.as_str(), tcp.port(tls.is_some()));
                    (tcp, TcpStream::connect(address).await.map_err(unreachable)?)
                }
            };
            let Some(connector) = connector else { return Ok(Box::new(stream) as Box<dyn Stream>) };
            let name = tcp.host.clone().try_into();
            let name = name.map_err(|_| CliError::Misused(format!("'{}' is no name of a host", tcp.host)))?;
            let stream = connector.connect(name, stream).await.map_err(|error| self.broken(&error))?;
            Ok(Box::new(stream) as Box<dyn Stream>)
        };
        let connected = tokio::time::timeout(CONNECT_TIMEOUT, connect).await;
        connected.unwrap_or_else(|_| Err(unreachable(io::ErrorKind::TimedOut.into())))
    }

    /// Says why a connection broke off.
    fn broken(&self, error: &(dyn std::error::Error + 'static)) -> CliError {
        let is_unread = error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_parse);
        let reason = match &self.target {
            Target::Tcp(_, Some(files)) => tls::explain(error, files),
            Target::Tcp(_, None) if is_unread => {
                Some("it does not speak HTTP: does it want TLS, by --tlsverify?".to_owned())
            }
            Target::Tcp(_, None) | Target::Unix(_) => None,
        };
        let reason = reason.unwrap_or_else(|| error.to_string());
        CliError::Failed(format!("failed to speak to the daemon at {}: {reason}", self.target))
    }
}

/// Writes `text` so that it can stand in a path or query.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

async fn refusal(response: Response<Incoming>) -> CliError {
    let status = response.status();
    let body = match collect(response).await {
        Ok(body) => body,
        Err(error) => return error,
    };
    let message = serde_json::from_slice::<serde_json::Value>(&body)
        .ok()
        .and_then(|value| value.get("message").and_then(|text| text.as_str().map(str::to_owned)))
        .unwrap_or_else(|| match std::str::from_utf8(&body) {
            Ok(text) if !text.trim().is_empty() => text.trim().to_owned(),
            _ => status.to_string(),
        });
    CliError::Daemon { status: status.as_u16(), message }
}

async fn collect(response: Response<Incoming>) -> Result<Bytes, CliError> {
    let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX);
    match tokio::time::timeout(ANSWER_TIMEOUT, body.collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) => Err(CliError::Failed(format!("failed to read the daemon's answer: {error}"))),
        Err(_) => Err(CliError::Failed("the daemon's answer did not end in time".to_owned())),
    }
}

fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, CliError> {
    let json = if body.is_empty() { b"null" } else { body };
    serde_json::from_slice(json)
        .map_err(|error| CliError::Failed(format!("the daemon's answer makes no sense: {error}")))
}

fn empty() -> RequestBody {
    Empty::new().map_err(|never| match never {}).boxed()
}

/// A request body that is read as it is sent.
struct ReaderBody<R> {
    reader: R,
    buffer: Vec<u8>,
}

impl<R: AsyncRead + Unpin> Body for ReaderBody<R> {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let this = self.get_mut();
        let mut buffer = ReadBuf::new(&mut this.buffer);
        if let Err(error) = ready!(Pin::new(&mut this.reader).poll_read(context, &mut buffer)) {
            return Poll::Ready(Some(Err(error)));
        }
        let filled = buffer.filled();
        Poll::Ready(if filled.is_empty() { None } else { Some(Ok(Frame::data(Bytes::copy_from_slice(filled)))) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_characters_are_escaped() {
        assert_eq!(escape("a b/{é}"), "a%20b%2F%7B%C3%A9%7D");
    }
}
