//! Docker's multiplex of standard output and error: a header of eight bytes before each piece.

use std::io;

use axum::body::{Body, BodyDataStream};
use bytes::{BufMut, Bytes, BytesMut};
use futures::StreamExt;
use futures::stream::{self, BoxStream};

use crate::driver::LogStream;

/// Bytes before each piece: the stream, three zeros, and the length, most significant byte first.
const HEADER_BYTES: usize = 8;
/// Bytes of one piece at most; more is not this format, and ends the stream with an error.
const PIECE_BYTES_MAX: usize = 4 << 20;

/// Pieces with their headers, each whole.
pub(super) type Frames = BoxStream<'static, io::Result<Bytes>>;

/// Puts a header before a piece of output.
pub(super) fn frame(stream: LogStream, parts: &[&[u8]]) -> Bytes {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut frame = BytesMut::with_capacity(HEADER_BYTES + length);
    frame.put_u8(match stream {
        LogStream::Stdout => 1,
        LogStream::Stderr => 2,
    });
    frame.put_bytes(0, 3);
    frame.put_u32(u32::try_from(length).expect("a line of output is far below 4 GiB"));
    for part in parts {
        frame.put_slice(part);
    }
    frame.freeze()
}

/// Returns the stream and the bytes of a whole piece.
pub(super) fn unframe(frame: &Bytes) -> Option<(LogStream, Bytes)> {
    let stream = match frame.first()? {
        0 | 1 => LogStream::Stdout,
        2 => LogStream::Stderr,
        _ => return None,
    };
    (frame.len() >= HEADER_BYTES).then(|| (stream, frame.slice(HEADER_BYTES..)))
}

/// Cuts what another node sent into whole pieces, so that several nodes' output can be mixed between them.
pub(super) fn split(body: Body) -> Frames {
    struct State {
        body: BodyDataStream,
        buffer: BytesMut,
        ended: bool,
    }
    let state = State { body: body.into_data_stream(), buffer: BytesMut::new(), ended: false };
    stream::unfold(state, |mut state| async move {
        loop {
            if state.ended {
                return None;
            }
            match take(&mut state.buffer) {
                Ok(Some(frame)) => return Some((Ok(frame), state)),
                Ok(None) => {}
                Err(error) => {
                    state.ended = true;
                    return Some((Err(error), state));
                }
            }
            match state.body.next().await {
                Some(Ok(bytes)) => state.buffer.extend_from_slice(&bytes),
                Some(Err(error)) => {
                    state.ended = true;
                    return Some((Err(io::Error::other(error)), state));
                }
                None if state.buffer.is_empty() => return None,
                None => {
                    state.ended = true;
                    return Some((Err(io::ErrorKind::UnexpectedEof.into()), state));
                }
            }
        }
    })
    .boxed()
}

fn take(buffer: &mut BytesMut) -> io::Result<Option<Bytes>> {
    let Some((header, _)) = buffer.split_first_chunk::<HEADER_BYTES>() else { return Ok(None) };
    let [stream, _, _, _, length @ ..] = *header;
    let length = u32::from_be_bytes(length) as usize;
    if !(0..=2).contains(&stream) || length > PIECE_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not a stream of output"));
    }
    let whole = HEADER_BYTES + length;
    Ok((buffer.len() >= whole).then(|| buffer.split_to(whole).freeze()))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn pieces(chunks: Vec<&'static [u8]>) -> Vec<Result<Bytes, io::ErrorKind>> {
        let chunks = stream::iter(chunks.into_iter().map(|chunk| Ok::<_, io::Error>(Bytes::from_static(chunk))));
        split(Body::from_stream(chunks)).map(|piece| piece.map_err(|error| error.kind())).collect().await
    }

    #[tokio::test]
    async fn pieces_are_whole_however_they_arrive() {
        let a = frame(LogStream::Stdout, &[b"ab", b"c\n"]);
        let b = frame(LogStream::Stderr, &[b"x"]);
        assert_eq!(&a[..], b"\x01\0\0\0\0\0\0\x04abc\n");
        let got = pieces(vec![b"\x01\0\0\0\0\0\0\x04a", b"bc\n\x02\0\0", b"\0\0\0\0\x01x"]).await;
        assert_eq!(unframe(&b), Some((LogStream::Stderr, Bytes::from_static(b"x"))));
        assert_eq!(got, [Ok(a), Ok(b)]);
    }

    #[tokio::test]
    async fn what_is_no_stream_of_output_ends_with_an_error() {
        assert_eq!(pieces(vec![b"{\"message\":\"no\"}"]).await, [Err(io::ErrorKind::InvalidData)]);
        assert_eq!(pieces(vec![b"\x01\0\0\0\0\0\0\x04a"]).await, [Err(io::ErrorKind::UnexpectedEof)]);
    }
}
