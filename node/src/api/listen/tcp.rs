//! The API over TCP.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::serve::Listener;
use rustix::net::sockopt;
use shoal_protocol::endpoint::TcpEndpoint;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{self, JoinSet};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;

use super::connection::{Connection, Hangup};
use super::serve::{self, Client};
use super::tls::{Tls, may_serve};
use super::{CONNECTIONS_MAX, ListenError, browser};

/// How long a client may take to show who it is.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Handshakes at once; further connections wait in the kernel's queue.
const HANDSHAKES_MAX: usize = 128;
/// Those of one address (of IPv6: one /64); further connections of it are closed at once.
const HANDSHAKES_OF_ONE_MAX: usize = 16;
/// How long a refused client may take to read why.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(1);
/// What a client gets that speaks HTTP where TLS is spoken. Source: Go's net/http, whose words Docker's client shows.
const NOT_TLS: &[u8] = b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n";
/// A silent connection is probed after this long and again as often, and given up when so many probes in a row are not
/// answered. Source: Go's net package, by which Docker's daemon lives.
const PROBE_AFTER: Duration = Duration::from_secs(15);
const PROBES: u32 = 9;

/// A connection of a client.
pub(super) type TcpConnection = Either<Connection<TcpStream>, TlsStream<Connection<TcpStream>>>;

/// An open TCP port.
pub struct TcpSocket {
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    room: Arc<Semaphore>,
    /// Whose handshakes are under way, and for whom each is.
    handshakes: JoinSet<Option<(TlsStream<Connection<TcpStream>>, SocketAddr)>>,
    callers: BTreeMap<task::Id, IpAddr>,
}

impl TcpSocket {
    /// Opens a port. A name stands for its first IPv4 address, or else its first one, as in Docker.
    pub(super) async fn bind(endpoint: &TcpEndpoint, tls: Option<&Tls>) -> Result<Self, ListenError> {
        let failed = |source| ListenError::Tcp { endpoint: endpoint.clone(), source };
        let port = endpoint.port(tls.is_some());
        let found = tokio::net::lookup_host((endpoint.host.as_str(), port)).await.map_err(failed)?;
        let found: Vec<SocketAddr> = found.collect();
        let address = found.iter().find(|address| address.is_ipv4()).or(found.first());
        let address = *address.ok_or_else(|| failed(io::ErrorKind::AddrNotAvailable.into()))?;
        if !may_serve(address.ip(), tls) {
            return Err(ListenError::Open { endpoint: endpoint.clone(), address, with_tls: tls.is_some() });
        }
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let tls = tls.map(|tls| TlsAcceptor::from(tls.config.clone()));
        let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        Ok(Self { listener, tls, room, handshakes: JoinSet::new(), callers: BTreeMap::new() })
    }

    /// Serves the API until `shutdown` resolves and the requests under way are answered.
    pub(super) async fn serve(self, router: Router, shutdown: impl Future<Output = ()> + Send) {
        // A web page that somebody looks at on this machine can reach a port of it, but shows no certificate.
        let router = if self.tls.is_none() { router.layer(axum::middleware::from_fn(browser::refuse)) } else { router };
        serve::serve(self, router, shutdown).await;
    }

    /// Begins a handshake, unless its caller has too many under way.
    fn begin(&mut self, tls: TlsAcceptor, stream: TcpStream, address: SocketAddr, permit: OwnedSemaphorePermit) {
        let caller = network(address.ip());
        if self.callers.values().filter(|other| **other == caller).count() >= HANDSHAKES_OF_ONE_MAX {
            tracing::debug!(%address, "too many handshakes of one client at once");
            return;
        }
        let handshake = async move {
            match tokio::time::timeout(HANDSHAKE_TIMEOUT, shake_hands(tls, stream, permit)).await {
                Ok(Ok(stream)) => return stream.map(|stream| (stream, address)),
                Ok(Err(error)) => tracing::info!(%address, %error, "refused a client of the API"),
                Err(_) => tracing::debug!(%address, "a client of the API did not finish its handshake"),
            }
            None
        };
        let id = self.handshakes.spawn(handshake).id();
        self.callers.insert(id, caller);
    }
}

/// Makes a secured connection; `None` for a client that does not speak TLS, which is told so.
async fn shake_hands(
    tls: TlsAcceptor,
    mut stream: TcpStream,
    permit: OwnedSemaphorePermit,
) -> io::Result<Option<TlsStream<Connection<TcpStream>>>> {
    let mut first = [0];
    // TLS begins with a byte that is no letter (RFC 8446, section 5.1), HTTP with a method.
    if stream.peek(&mut first).await? == 1 && first[0].is_ascii_uppercase() {
        stream.write_all(NOT_TLS).await?;
        linger(&mut stream).await;
        return Ok(None);
    }
    match tls.accept(Connection::new(stream, permit)).into_fallible().await {
        Ok(stream) => Ok(Some(stream)),
        Err((error, mut stream)) => {
            linger(&mut stream).await;
            Err(error)
        }
    }
}

/// Lets the last word reach a client: if something of it was left unread, the system would take the word back.
async fn linger(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) {
    let read_out = async {
        stream.shutdown().await?;
        tokio::io::copy(stream, &mut tokio::io::sink()).await
    };
    let _ = tokio::time::timeout(REFUSAL_TIMEOUT, read_out).await;
}

impl Listener for TcpSocket {
    type Io = TcpConnection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (TcpConnection, SocketAddr) {
        loop {
            tokio::select! {
                biased;
                Some(ended) = self.handshakes.join_next_with_id() => {
                    let id = ended.as_ref().map_or_else(task::JoinError::id, |(id, _)| *id);
                    self.callers.remove(&id);
                    if let Ok((_, Some((stream, address)))) = ended {
                        return (Either::Right(stream), address);
                    }
                }
                (stream, address, permit) = accept(&self.room, &mut self.listener),
                    if self.handshakes.len() < HANDSHAKES_MAX =>
                {
                    if let Err(error) = prepare(&stream) {
                        tracing::debug!(%address, %error, "a client was gone at once");
                        continue;
                    }
                    match self.tls.clone() {
                        None => return (Either::Left(Connection::new(stream, permit)), address),
                        Some(tls) => self.begin(tls, stream, address, permit),
                    }
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// Waits for room and for a connection. Cancelling it loses neither.
async fn accept(room: &Arc<Semaphore>, listener: &mut TcpListener) -> (TcpStream, SocketAddr, OwnedSemaphorePermit) {
    let permit = room.clone().acquire_owned().await.expect("the semaphore is never closed");
    let (stream, address) = Listener::accept(listener).await;
    (stream, address, permit)
}

/// Makes answers leave at once, and a client whose machine is gone be noticed.
fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, PROBE_AFTER)?;
    sockopt::set_tcp_keepintvl(stream, PROBE_AFTER)?;
    sockopt::set_tcp_keepcnt(stream, PROBES)?;
    Ok(())
}

/// Returns what counts as one caller: whoever has one IPv6 address has the /64 around it.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
    }
}

impl Client for TcpConnection {
    fn hangup(&self) -> Hangup {
        match self {
            Either::Left(connection) => connection.hangup(),
            Either::Right(tls) => tls.get_ref().0.hangup(),
        }
    }
}
