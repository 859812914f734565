//! A stream to another node, as its users see it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use libp2p::swarm::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// A stream to another node: ordered bytes both ways, authenticated, encrypted, with back-pressure. Shutting it down ends one
/// direction only. The opener must write first: the far side learns of the stream with its first bytes.
#[derive(Debug)]
pub struct PeerStream {
    inner: Bound<Compat<Stream>>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl PeerStream {
    /// Returns a stream that ends by itself alone.
    pub(super) fn new(stream: Stream) -> Self {
        Self { inner: Bound { inner: stream.compat(), ended: None }, _permit: None }
    }

    /// Returns a stream that breaks when `ended` is cancelled: libp2p closes a connection whose other end is gone by sending
    /// what is left first, and until that fails, which may take minutes, its streams neither end nor break.
    pub(super) fn bound(stream: Stream, ended: CancellationToken, permit: OwnedSemaphorePermit) -> Self {
        Self { inner: Bound::new(stream.compat(), ended), _permit: Some(permit) }
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

/// A stream that breaks when a token is cancelled. What has arrived by then can still be read.
#[derive(Debug)]
struct Bound<S> {
    inner: S,
    ended: Option<Ended>,
}

/// The halves of a stream may be polled by two tasks, and a future wakes only one.
#[derive(Debug)]
struct Ended {
    reader: Pin<Box<WaitForCancellationFutureOwned>>,
    writer: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl<S> Bound<S> {
    fn new(inner: S, ended: CancellationToken) -> Self {
        let ended =
            Ended { reader: Box::pin(ended.clone().cancelled_owned()), writer: Box::pin(ended.cancelled_owned()) };
        Self { inner, ended: Some(ended) }
    }

    /// Breaks what would have to wait longer than the link lasts.
    fn or_broken<T>(
        &mut self,
        polled: Poll<io::Result<T>>,
        side: fn(&mut Ended) -> &mut Pin<Box<WaitForCancellationFutureOwned>>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        if let (Poll::Pending, Some(ended)) = (&polled, &mut self.ended)
            && side(ended).as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::ConnectionAborted,
                "the link to the node has ended",
            )));
        }
        polled
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Bound<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.inner).poll_read(cx, buffer);
        self.or_broken(polled, |ended| &mut ended.reader, cx)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Bound<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write(cx, bytes);
        self.or_broken(polled, |ended| &mut ended.writer, cx)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.inner).poll_flush(cx);
        self.or_broken(polled, |ended| &mut ended.writer, cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.inner).poll_shutdown(cx);
        self.or_broken(polled, |ended| &mut ended.writer, cx)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::timeout;

    use super::*;

    const WAIT: Duration = Duration::from_secs(20);

    /// Returns a stream of which nobody reads, full, and its other end.
    async fn full() -> (Bound<tokio::io::DuplexStream>, tokio::io::DuplexStream, CancellationToken) {
        let (near, mut far) = tokio::io::duplex(4);
        far.write_all(b"left").await.unwrap();
        let token = CancellationToken::new();
        let mut stream = Bound::new(near, token.clone());
        stream.write_all(b"full").await.unwrap();
        (stream, far, token)
    }

    #[tokio::test]
    async fn both_halves_of_a_stream_break_with_its_link_whoever_waits() {
        let (stream, _far, token) = full().await;
        let (mut reader, mut writer) = tokio::io::split(stream);
        let mut read = [0; 4];
        reader.read_exact(&mut read).await.unwrap();
        let reading = tokio::spawn(async move { reader.read_u8().await });
        let writing = tokio::spawn(async move { writer.write_all(b"more").await });
        // Both have to be waiting when the link ends, or nobody would have to be woken.
        for _ in 0..50 {
            tokio::task::yield_now().await;
        }
        assert!(!reading.is_finished() && !writing.is_finished());
        token.cancel();
        let broken = io::ErrorKind::ConnectionAborted;
        assert_eq!(timeout(WAIT, reading).await.unwrap().unwrap().unwrap_err().kind(), broken);
        assert_eq!(timeout(WAIT, writing).await.unwrap().unwrap().unwrap_err().kind(), broken);
    }

    #[tokio::test]
    async fn what_has_arrived_is_read_before_a_stream_breaks() {
        let (mut stream, _far, token) = full().await;
        token.cancel();
        let mut read = [0; 4];
        timeout(WAIT, stream.read_exact(&mut read)).await.unwrap().unwrap();
        assert_eq!(&read, b"left");
        assert_eq!(stream.read_u8().await.unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
    }
}
