//! The listening socket of one published port.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rustix::net::SocketFlags;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::{TcpSocket, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, error, info, warn};

use super::port::{Admitted, Port};
use super::{Shared, forward, relay};

/// Between two attempts to open a port that is taken.
const BIND_RETRY: Duration = Duration::from_secs(1);

/// Pause after the kernel could not hand over a connection: time for others to end and free what it lacks.
pub(super) const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// Connections that wait in the kernel to be accepted; the kernel lowers it to `net.core.somaxconn` and drops the rest.
const BACKLOG: u32 = 4096;

/// Opens the port of TCP and forwards what arrives, until it is told to close. When it returns nothing listens any more.
pub(super) async fn listen(shared: Arc<Shared>, port: Arc<Port>, closing: CancellationToken) {
    let opened = closing.run_until_cancelled(open_port(&shared, &port, open)).await;
    let Some(listener) = opened else { return };
    let lane = shared.config.lanes.acceptor(port.published.number).clone();
    let (published, of_acceptor) = (port.published, shared.clone());
    // Aborted with whoever waits for it: an acceptor that is left holds the lanes, and so itself.
    let accepting = AbortOnDropHandle::new(lane.spawn(async move {
        closing.run_until_cancelled(accept(&of_acceptor, &port, listener)).await.unwrap_or(Ok(()))
    }));
    if let Err(error) = accepting.await.map_err(io::Error::other).flatten() {
        error!(port = %published, %error, "nobody accepts connections any more");
        shared.set_port_error(published, error.to_string());
    }
}

/// Opens a port by `open`, trying again while it is taken.
pub(super) async fn open_port<T>(shared: &Shared, port: &Port, open: fn(SocketAddr) -> io::Result<T>) -> T {
    let mut reported = false;
    loop {
        let address = address(shared.config.publish_addr, port.address);
        match address.and_then(|address| bind(address, port.published.number, open)) {
            Ok(opened) => {
                info!(port = %port.published, "listening on published port");
                shared.clear_port_error(port.published);
                return opened;
            }
            Err(error) => {
                if !reported {
                    warn!(port = %port.published, %error, "failed to open published port; trying again");
                }
                reported = true;
                let text = match port.address {
                    Some(address) => format!("{address}: {error}"),
                    None => error.to_string(),
                };
                shared.set_port_error(port.published, text);
                tokio::time::sleep(BIND_RETRY).await;
            }
        }
    }
}

/// Returns where to listen, given the node's own address for published ports and the service's. What the node's operator set is a
/// limit: another address is refused.
pub(super) fn address(own: Option<IpAddr>, wanted: Option<IpAddr>) -> io::Result<Option<IpAddr>> {
    match (own, wanted) {
        (Some(own), Some(wanted)) if !own.is_unspecified() && own != wanted => {
            let reason = format!("published ports of this node are on {own} alone (--publish-addr)");
            Err(io::Error::new(io::ErrorKind::AddrNotAvailable, reason))
        }
        (own, wanted) => Ok(wanted.or(own)),
    }
}

fn bind<T>(address: Option<IpAddr>, port: u16, open: fn(SocketAddr) -> io::Result<T>) -> io::Result<T> {
    match address {
        Some(address) => open(SocketAddr::new(address, port)),
        None => match open(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port)) {
            Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
                debug!(%error, "no IPv6 here, using IPv4 alone");
                open(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port))
            }
            result => result,
        },
    }
}

/// Opens a socket that belongs to no runtime yet.
fn open(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    if address.ip() == Ipv6Addr::UNSPECIFIED {
        // One socket for both families, whatever `net.ipv6.bindv6only` says.
        rustix::net::sockopt::set_ipv6_v6only(&socket, false)?;
    }
    socket.set_reuseaddr(true)?;
    relay::set_up(&socket);
    socket.bind(address)?;
    socket.listen(BACKLOG)?.into_std()
}

/// Accepts one connection after another, each once the port has room for it: who has to wait does so in the kernel's backlog.
async fn accept(shared: &Arc<Shared>, port: &Arc<Port>, listener: std::net::TcpListener) -> io::Result<()> {
    // SAFETY: the listener owns its descriptor, which is open and the same until the `AsyncFd`, which keeps it, is dropped.
    let listener = unsafe { AsyncFd::register_with_interest(listener, Interest::READABLE) }.map_err(io::Error::from)?;
    loop {
        // However many come, the thread's other connections have their turn.
        tokio::task::coop::consume_budget().await;
        let mut waiting = listener.readable().await?;
        let admitted = port.admit().await;
        // Another thread may be the one that forwards it: what is accepted is registered with that one's runtime alone.
        let accepted = waiting
            .try_io(|listener| Ok(rustix::net::accept_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC)?));
        match accepted {
            Err(_nobody) => {}
            Ok(Ok(client)) => take(shared, (port, admitted), client.into()).await,
            Ok(Err(error)) => {
                shared.metrics.accept_errors.add(1);
                debug!(port = %port.published, %error, "failed to accept");
                tokio::time::sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

/// Forwards `client` in a task of its own, as soon as the node may forward one more connection.
async fn take(shared: &Arc<Shared>, (port, admitted): (&Arc<Port>, Admitted), client: std::net::TcpStream) {
    let permit = match shared.connections.clone().try_acquire_owned() {
        Ok(permit) => permit,
        Err(_) => {
            shared.metrics.paused.add(1);
            shared.connections.clone().acquire_owned().await.expect("the semaphore is never closed")
        }
    };
    port.metrics.add(|port| &port.accepted, 1);
    let (shared, port) = (shared.clone(), port.clone());
    let (lanes, number) = (shared.config.lanes.clone(), port.published.number);
    lanes.spawn(number, |place| async move {
        let _permits = (permit, admitted);
        port.metrics.add(|port| &port.open, 1);
        match TcpStream::from_std(client) {
            Ok(client) => forward::forward(&shared, &port, client, place).await,
            Err(error) => {
                shared.metrics.accept_errors.add(1);
                debug!(port = %port.published, %error, "failed to take over a connection");
            }
        }
        port.metrics.sub(|port| &port.open, 1);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::sockopt;
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn accepted_connections_are_set_up_as_the_listener_is() {
        let listener = TcpListener::from_std(open((Ipv4Addr::LOCALHOST, 0).into()).unwrap()).unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        assert!(sockopt::tcp_nodelay(&accepted).unwrap());
        assert!(sockopt::socket_keepalive(&accepted).unwrap());
        assert_eq!(sockopt::tcp_keepidle(&accepted).unwrap(), relay::KEEPALIVE_IDLE);
    }
}
