//! One question and its answer, over a connection of its own.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::HeaderName;
use hyper::{HeaderMap, Request, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;

use super::place::Place;
use super::tls;

/// How long connecting may take, looking the name up and a handshake included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an answer may take to begin.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the next piece of an answer may take.
const PIECE_TIMEOUT: Duration = Duration::from_secs(30);

/// A connection, encrypted or not.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// An answer that has begun.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    headers: HeaderMap,
    body: Incoming,
    _connection: AbortOnDropHandle<()>,
}

/// Connects. Without `tls` the place need not prove who it is: TLS is tried, and if it speaks none, it is asked in the clear.
pub(super) async fn connect(place: &Place, tls: Option<Arc<ClientConfig>>) -> io::Result<Box<dyn Stream>> {
    let Some(config) = tls else { return connect_somehow(place).await };
    timeout(CONNECT_TIMEOUT, encrypted(place, config)).await?
}

async fn connect_somehow(place: &Place) -> io::Result<Box<dyn Stream>> {
    let encrypted = encrypted(place, tls::believing()?);
    let tls_error = match timeout(CONNECT_TIMEOUT / 2, encrypted).await.map_err(io::Error::from) {
        Ok(Ok(stream)) => return Ok(stream),
        Ok(Err(error)) | Err(error) => error,
    };
    match timeout(CONNECT_TIMEOUT / 2, tcp(place, false)).await.map_err(io::Error::from) {
        Ok(Ok(stream)) => Ok(Box::new(stream)),
        Ok(Err(error)) | Err(error) => Err(io::Error::new(error.kind(), format!("{error} (with TLS: {tls_error})"))),
    }
}

/// Sends a request and waits for its answer to begin.
pub(super) async fn exchange(stream: Box<dyn Stream>, request: Request<Full<Bytes>>) -> io::Result<Answer> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    let connection = AbortOnDropHandle::new(tokio::spawn(async move {
        // How it ends shows in the answer.
        let _ = connection.await;
    }));
    let sent = timeout(ANSWER_TIMEOUT, sender.send_request(request)).await?;
    let (parts, body) = sent.map_err(io::Error::other)?.into_parts();
    Ok(Answer { status: parts.status, headers: parts.headers, body, _connection: connection })
}

async fn tcp(place: &Place, is_tls: bool) -> io::Result<TcpStream> {
    TcpStream::connect((place.host.as_str(), place.port(is_tls))).await
}

async fn encrypted(place: &Place, config: Arc<ClientConfig>) -> io::Result<Box<dyn Stream>> {
    let name = place.host.clone().try_into();
    let name = name.map_err(|_| io::Error::other(format!("'{}' is no name of a host", place.host)))?;
    Ok(Box::new(TlsConnector::from(config).connect(name, tcp(place, true).await?).await?))
}

impl Answer {
    /// Returns a header, if it is text.
    pub(super) fn header(&self, name: HeaderName) -> Option<String> {
        Some(self.headers.get(name)?.to_str().ok()?.to_owned())
    }

    /// Returns all headers of a name that are text.
    pub(super) fn headers(&self, name: HeaderName) -> Vec<String> {
        self.headers.get_all(name).iter().filter_map(|value| Some(value.to_str().ok()?.to_owned())).collect()
    }

    /// Returns the next piece of the body; nothing at its end.
    pub(super) async fn piece(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            let Some(frame) = timeout(PIECE_TIMEOUT, self.body.frame()).await? else { return Ok(None) };
            // Trailers say nothing that is needed.
            if let Ok(data) = frame.map_err(io::Error::other)?.into_data() {
                return Ok(Some(data));
            }
        }
    }

    /// Reads the body whole; more than `limit` bytes are an error.
    pub(super) async fn whole(mut self, limit: u64) -> io::Result<Bytes> {
        let read = async {
            let mut bytes = Vec::new();
            while let Some(piece) = self.piece().await? {
                bytes.extend_from_slice(&piece);
                if bytes.len() as u64 > limit {
                    let text = format!("an answer is larger than {limit} bytes");
                    return Err(io::Error::new(io::ErrorKind::InvalidData, text));
                }
            }
            Ok(bytes.into())
        };
        // A piece now and then must not make it endless.
        timeout(ANSWER_TIMEOUT, read).await?
    }
}
