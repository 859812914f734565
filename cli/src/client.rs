//! HTTP/1.1 over the daemon's Unix socket, one connection per request.

use std::io;
use std::path::PathBuf;
use std::pin::Pin;
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
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::UnixStream;

use crate::error::CliError;

/// How long connecting may take: the daemon is on this machine.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long an answer may take to begin; writes wait while a lease changes hands.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// How long loading an image may take.
const UPLOAD_TIMEOUT: Duration = Duration::from_secs(30 * 60);
/// Bytes of an answer that is read whole; larger ones are an error.
const ANSWER_BYTES_MAX: usize = 256 << 20;
/// Bytes of an image archive that are read at once.
const CHUNK_BYTES: usize = 64 << 10;

/// A client of one daemon.
#[derive(Debug)]
pub(crate) struct Client {
    socket: PathBuf,
}

type RequestBody = BoxBody<Bytes, io::Error>;

impl Client {
    /// Makes a client for a `unix://` address. Nothing is connected yet.
    pub(crate) fn new(host: &str) -> Result<Self, CliError> {
        match host.split_once("://") {
            Some(("unix", path)) if path.starts_with('/') => Ok(Self { socket: PathBuf::from(path) }),
            Some(("tcp" | "http" | "https" | "ssh", _)) => {
                Err(CliError::Misused(format!("'{host}': only unix:// sockets are supported yet")))
            }
            None if host.starts_with('/') => Err(CliError::Misused(format!(
                "'{host}' is not the address of a daemon: did you mean 'unix://{host}'?"
            ))),
            _ => Err(CliError::Misused(format!("'{host}' is not the address of a daemon: expected unix:///PATH"))),
        }
    }

    /// Gets an object.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, CliError> {
        let response = self.send(Method::GET, path, empty(), ANSWER_TIMEOUT).await?;
        decode(&collect(response).await?)
    }

    /// Posts an object; an answer without content reads as JSON's `null`.
    pub(crate) async fn post<B: Serialize, T: DeserializeOwned>(&self, path: &str, body: &B) -> Result<T, CliError> {
        let json = serde_json::to_vec(body).map_err(|error| CliError::Failed(error.to_string()))?;
        let body = Full::new(Bytes::from(json)).map_err(|never| match never {}).boxed();
        let response = self.send(Method::POST, path, body, ANSWER_TIMEOUT).await?;
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
        let unreachable = |source| CliError::Unreachable { socket: self.socket.clone(), source };
        let stream = tokio::time::timeout(CONNECT_TIMEOUT, UnixStream::connect(&self.socket))
            .await
            .map_err(|_| unreachable(io::ErrorKind::TimedOut.into()))?
            .map_err(unreachable)?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| CliError::Failed(format!("failed to speak to the daemon: {error}")))?;
        tokio::spawn(async move {
            // A broken connection shows as an error of the request that uses it.
            let _ = connection.await;
        });
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "shoal")
            .header(USER_AGENT, concat!("shoal/", env!("CARGO_PKG_VERSION")))
            .header(CONTENT_TYPE, "application/json")
            .body(body)
            .map_err(|error| CliError::Misused(format!("'{path}': {error}")))?;
        let response = tokio::time::timeout(timeout, sender.send_request(request))
            .await
            .map_err(|_| CliError::Failed(format!("the daemon did not answer within {} s", timeout.as_secs())))?
            .map_err(|error| CliError::Failed(format!("failed to speak to the daemon: {error}")))?;
        if response.status().is_success() { Ok(response) } else { Err(refusal(response).await) }
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
    fn only_sockets_are_taken_for_a_daemon() {
        assert!(Client::new("unix:///run/x.sock").is_ok());
        for host in ["tcp://1.2.3.4:2375", "unix://relative", "/run/x.sock", ""] {
            assert_eq!(Client::new(host).unwrap_err().exit_status(), 2, "{host}");
        }
    }

    #[test]
    fn reserved_characters_are_escaped() {
        assert_eq!(escape("a b/{é}"), "a%20b%2F%7B%C3%A9%7D");
    }
}
