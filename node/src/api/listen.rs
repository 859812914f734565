//! The Unix sockets and TCP ports on which the API is served.
//!
//! Whoever is let in may do everything: there is one API, and it is root's. So a TCP port either asks clients for a
//! certificate or is open to this machine alone.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::Router;
use axum::serve::Listener;
use shoal_protocol::endpoint::{Endpoint, TcpEndpoint};
use tokio::net::unix::SocketAddr;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

mod browser;
mod connection;
mod serve;
mod tcp;
#[cfg(test)]
mod tests;
mod tls;

use connection::Connection;
pub use connection::Hangup;
use serve::Client;
pub use serve::http;
pub use tcp::TcpSocket;
pub use tls::{Tls, TlsError, TlsFiles};

/// Connections to one socket or port at once; further ones wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 1024;
/// Members of this group may use the API without being root.
const GROUP: &str = "shoal";
/// Read and write for owner and group.
const MODE: u32 = 0o660;
/// Why a socket or port could not be opened. Nothing was removed that anyone uses.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another daemon answers there.
    #[error("{0}: another daemon is listening on this socket")]
    InUse(PathBuf),
    /// Something that is no socket is in the way.
    #[error("{0}: exists and is not a socket")]
    NotASocket(PathBuf),
    /// The system refused.
    #[error("{path}: {source}")]
    Failed {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The system refused a port, or there is no such name.
    #[error("failed to listen on tcp://{endpoint}")]
    Tcp {
        /// The port.
        endpoint: TcpEndpoint,
        /// Why.
        source: io::Error,
    },
    /// Everybody could use the API.
    #[error(
        "tcp://{endpoint}: whoever reaches {address} would be root on this machine{}: use --tlsverify with --tlscacert, \
         --tlscert and --tlskey, or listen on a loopback address such as tcp://127.0.0.1, which others reach by \
         'ssh -L'",
        if *with_tls { ", as TLS without --tlsverify asks nobody who he is" } else { "" }
    )]
    Open {
        /// The port.
        endpoint: TcpEndpoint,
        /// What its name stands for.
        address: std::net::SocketAddr,
        /// Whether there is TLS at least.
        with_tls: bool,
    },
}

/// An open socket or port.
pub enum Listening {
    /// A Unix socket.
    Unix(Socket),
    /// A TCP port.
    Tcp(Box<TcpSocket>),
}

impl Listening {
    /// Opens a socket or port; TLS is for ports. Says in the log what is open to all users of this machine.
    pub async fn open(endpoint: &Endpoint, tls: Option<&Tls>) -> Result<Self, ListenError> {
        let tcp = match endpoint {
            Endpoint::Unix(path) => return Socket::bind(path).map(Self::Unix),
            Endpoint::Tcp(tcp) => tcp,
        };
        let socket = TcpSocket::bind(tcp, tls).await?;
        match tls {
            None => tracing::warn!(%endpoint, "the API is open to every user of this machine, who is root by it"),
            Some(tls) if !tls.verifies => {
                tracing::warn!(%endpoint, "the API asks clients for no certificate: every user of this machine is root by it");
            }
            Some(_) => tracing::info!(%endpoint, "the API is open to clients with a certificate of --tlscacert"),
        }
        Ok(Self::Tcp(Box::new(socket)))
    }

    /// Serves the API until `shutdown` resolves and the requests under way are answered.
    pub async fn serve(self, router: Router, shutdown: impl Future<Output = ()> + Send) {
        match self {
            Self::Unix(socket) => socket.serve(router, shutdown).await,
            Self::Tcp(socket) => socket.serve(router, shutdown).await,
        }
    }
}

/// An open socket; its file goes away with it.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    file: SocketFile,
    room: Arc<Semaphore>,
}

#[derive(Debug)]
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // The daemon ends: there is nobody left who could do anything about a failure.
        let _ = fs::remove_file(&self.0);
    }
}

impl Socket {
    /// Opens a socket. One that is left over from a daemon that is gone is replaced.
    pub fn bind(path: &Path) -> Result<Self, ListenError> {
        let failed = |source| ListenError::Failed { path: path.to_owned(), source };
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(failed)?;
        }
        match fs::symlink_metadata(path) {
            Ok(metadata) if !metadata.file_type().is_socket() => return Err(ListenError::NotASocket(path.to_owned())),
            Ok(_) => match std::os::unix::net::UnixStream::connect(path) {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                Ok(_) => return Err(ListenError::InUse(path.to_owned())),
                Err(error) => return Err(failed(error)),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
        // Made under another name and renamed, so that it never exists with other permissions.
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(format!(".{}", std::process::id()));
        let temporary = SocketFile(temporary.into());
        let listener = UnixListener::bind(&temporary.0).map_err(failed)?;
        if let Some(group) = group_id(GROUP) {
            std::os::unix::fs::chown(&temporary.0, None, Some(group)).map_err(failed)?;
        }
        fs::set_permissions(&temporary.0, fs::Permissions::from_mode(MODE)).map_err(failed)?;
        fs::rename(&temporary.0, path).map_err(failed)?;
        let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        Ok(Self { listener, file: SocketFile(path.to_owned()), room })
    }

    /// Serves the API until `shutdown` resolves and the requests under way are answered.
    pub async fn serve(self, router: Router, shutdown: impl Future<Output = ()> + Send) {
        serve::serve(self, router, shutdown).await;
    }

    /// Returns where it listens.
    pub fn path(&self) -> &Path {
        &self.file.0
    }
}

/// Looks a group up in `/etc/group`; groups of other sources are not seen, and then only root uses the socket.
fn group_id(name: &str) -> Option<u32> {
    let groups = fs::read_to_string("/etc/group").ok()?;
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok()).flatten()
    })
}

impl Listener for Socket {
    type Io = Connection<UnixStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection<UnixStream>, SocketAddr) {
        let permit = self.room.clone().acquire_owned().await.expect("the semaphore is never closed");
        let (stream, address) = Listener::accept(&mut self.listener).await;
        (Connection::new(stream, permit), address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

impl Client for Connection<UnixStream> {
    fn hangup(&self) -> Hangup {
        self.hangup()
    }
}
