//! A stream to another node, as its users see it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use libp2p::swarm::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt};

/// A stream to another node: ordered bytes both ways, authenticated, encrypted, with back-pressure. Shutting it down ends one
/// direction only. The opener must write first: the far side learns of the stream with its first bytes.
#[derive(Debug)]
pub struct PeerStream {
    inner: Compat<Stream>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl PeerStream {
    pub(super) fn new(stream: Stream, permit: Option<OwnedSemaphorePermit>) -> Self {
        Self { inner: stream.compat(), _permit: permit }
    }
}

impl AsyncRead for PeerStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buffer)
    }
}

impl AsyncWrite for PeerStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
