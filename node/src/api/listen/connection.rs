//! A connection of a client, and how to tell that the client is gone.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::Shutdown;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::OwnedSemaphorePermit;

/// How often a client that sends nothing any more is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What tokio's sockets can do by reference.
pub trait Stream: AsFd + Send + Sync + 'static {
    /// Resolves when there is something to read.
    fn poll_read_ready(&self, context: &mut Context<'_>) -> Poll<io::Result<()>>;
    /// Resolves when there is room to write.
    fn poll_write_ready(&self, context: &mut Context<'_>) -> Poll<io::Result<()>>;
    /// Reads what is there.
    fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize>;
    /// Writes what fits.
    fn try_write(&self, bytes: &[u8]) -> io::Result<usize>;
    /// Writes what fits of several parts.
    fn try_write_vectored(&self, parts: &[IoSlice<'_>]) -> io::Result<usize>;
}

macro_rules! stream {
    ($stream:ty) => {
        impl Stream for $stream {
            fn poll_read_ready(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
                self.poll_read_ready(context)
            }
            fn poll_write_ready(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
                self.poll_write_ready(context)
            }
            fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
                self.try_read(buffer)
            }
            fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
                self.try_write(bytes)
            }
            fn try_write_vectored(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
                self.try_write_vectored(parts)
            }
        }
    };
}

stream!(UnixStream);
stream!(TcpStream);

/// A connection that gives its place back when it closes.
pub struct Connection<S> {
    stream: Arc<S>,
    _permit: OwnedSemaphorePermit,
}

impl<S: Stream> Connection<S> {
    /// Takes a connection that was let in.
    pub(super) fn new(stream: S, permit: OwnedSemaphorePermit) -> Self {
        Self { stream: Arc::new(stream), _permit: permit }
    }

    /// Returns how to tell that the client is gone.
    pub(super) fn hangup(&self) -> Hangup {
        let stream: Arc<dyn AsFd + Send + Sync> = self.stream.clone();
        Hangup(Arc::downgrade(&stream))
    }

    fn poll_with(
        &self,
        context: &mut Context<'_>,
        mut write: impl FnMut(&S) -> io::Result<usize>,
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

impl<S> AsFd for Connection<S>
where
    S: Stream,
{
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl<S: Stream> AsyncRead for Connection<S> {
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

impl<S: Stream> AsyncWrite for Connection<S> {
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
        Poll::Ready(rustix::net::shutdown(self.stream.as_fd(), Shutdown::Write).map_err(io::Error::from))
    }
}

/// Tells whether a client is gone, which reading does not: the end of what it sends looks the same.
///
/// Over TCP it shows late: when the client's machine refuses what it is sent, probes of the system included.
#[derive(Clone)]
pub struct Hangup(Weak<dyn AsFd + Send + Sync>);

impl Hangup {
    /// Returns when the client has closed its end as a whole, or this end is closed.
    pub(in crate::api) async fn gone(&self) {
        while !self.is_gone() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    fn is_gone(&self) -> bool {
        let Some(stream) = self.0.upgrade() else { return true };
        let fd = (*stream).as_fd();
        let mut found = [PollFd::from_borrowed_fd(fd, PollFlags::empty())];
        let polled = rustix::event::poll(&mut found, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
        polled.is_ok() && found[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)
    }
}
