//! The Unix sockets on which the API is served.

use std::fs;
use std::io::{self, IoSlice};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::Shutdown;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::unix::SocketAddr;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Connections to one socket at once; further ones wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 1024;
/// Members of this group may use the API without being root.
const GROUP: &str = "shoal";
/// Read and write for owner and group.
const MODE: u32 = 0o660;
/// How often a client that sends nothing any more is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Why a socket could not be opened. Nothing was removed that anyone uses.
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
    pub async fn serve<F>(self, router: Router, shutdown: F) -> io::Result<()>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let service = router.into_make_service_with_connect_info::<Hangup>();
        axum::serve(self, service).with_graceful_shutdown(shutdown).await
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
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        let permit = self.room.clone().acquire_owned().await.expect("the semaphore is never closed");
        let (stream, address) = Listener::accept(&mut self.listener).await;
        (Connection { stream: Arc::new(stream), _permit: permit }, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection that gives its place back when it closes.
pub struct Connection {
    stream: Arc<UnixStream>,
    _permit: OwnedSemaphorePermit,
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.stream.poll_read_ready(context))?;
            match self.stream.try_read(buffer.initialize_unfilled()) {
                Ok(count) => {
                    buffer.advance(count);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl Connection {
    fn poll_with(
        &self,
        context: &mut Context<'_>,
        mut write: impl FnMut(&UnixStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.stream.poll_write_ready(context))?;
            match write(&self.stream) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_with(context, |stream| stream.try_write(bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_with(context, |stream| stream.try_write_vectored(parts))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(rustix::net::shutdown(&self.stream, Shutdown::Write).map_err(io::Error::from))
    }
}

/// Tells whether a client is gone, which reading does not: the end of what it sends looks the same.
#[derive(Debug, Clone)]
pub struct Hangup(Weak<UnixStream>);

impl Connected<IncomingStream<'_, Socket>> for Hangup {
    fn connect_info(stream: IncomingStream<'_, Socket>) -> Self {
        Self(Arc::downgrade(&stream.io().stream))
    }
}

impl Hangup {
    /// Returns when the client has closed its end as a whole, or this end is closed.
    pub(super) async fn gone(&self) {
        while !self.is_gone() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    fn is_gone(&self) -> bool {
        let Some(stream) = self.0.upgrade() else { return true };
        let mut found = [PollFd::new(&stream, PollFlags::empty())];
        let polled = rustix::event::poll(&mut found, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
        polled.is_ok() && found[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_is_replaced_only_when_nobody_answers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/shoal.sock");
        let socket = Socket::bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, MODE);
        assert!(matches!(Socket::bind(&path), Err(ListenError::InUse(_))));
        // A daemon that was killed leaves the file behind.
        let Socket { listener, file, .. } = socket;
        std::mem::forget(file);
        drop(listener);
        let socket = Socket::bind(&path).unwrap();
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        drop(socket);
        assert!(!path.exists());
        fs::write(&path, "").unwrap();
        assert!(matches!(Socket::bind(&path), Err(ListenError::NotASocket(_))));
        assert!(path.exists());
    }
}
