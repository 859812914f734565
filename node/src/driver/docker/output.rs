//! A container's output as the engine kept it.

use bollard::Docker;
use bollard::container::LogOutput;
use bollard::query_parameters::LogsOptionsBuilder;
use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};

use super::{failed, time};
use crate::driver::{DriverError, LogLine, LogQuery, LogStream};

/// Streams the lines that a query asks for.
pub(super) fn lines(docker: Docker, id: String, query: LogQuery) -> BoxStream<'static, Result<LogLine, DriverError>> {
    if query.tail == Some(0) && !query.follow {
        return stream::empty().boxed();
    }
    let since = query.since.unwrap_or_default();
    let since_secs = i32::try_from(since.0 / 1_000_000_000).unwrap_or(i32::MAX); // the rest is compared here
    let tail = query.tail.map_or_else(|| "all".to_owned(), |tail| tail.to_string());
    let options = LogsOptionsBuilder::new()
        .stdout(true)
        .stderr(true)
        .timestamps(true)
        .since(since_secs)
        .tail(&tail)
        .follow(query.follow)
        .build();
    let frames = docker.logs(&id, Some(options)).boxed();
    frames
        .filter_map(move |frame| async move {
            match frame {
                Ok(frame) => line(frame).filter(|line| line.time >= since).map(Ok),
                Err(error) => Some(Err(failed("read output", error))),
            }
        })
        .boxed()
}

/// Takes a frame apart: a timestamp, a space, and the line.
fn line(frame: LogOutput) -> Option<LogLine> {
    let (stream, message) = match frame {
        LogOutput::StdOut { message } | LogOutput::Console { message } => (LogStream::Stdout, message),
        LogOutput::StdErr { message } => (LogStream::Stderr, message),
        LogOutput::StdIn { .. } => return None,
    };
    let space = message.iter().position(|byte| *byte == b' ');
    let stamp = space.and_then(|space| std::str::from_utf8(&message[..space]).ok()).and_then(time::parse);
    let (time, bytes): (_, Bytes) = match (stamp, space) {
        (Some(time), Some(space)) => (time, message.slice(space + 1..)),
        (None, _) | (_, None) => (Default::default(), message),
    };
    Some(LogLine { stream, time, bytes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use shoal_protocol::WallTime;

    #[test]
    fn frames_are_taken_apart() {
        let message = Bytes::from_static(b"2026-11-23T01:51:42.500000000Z hello world\n");
        let got = line(LogOutput::StdErr { message }).unwrap();
        let want = LogLine {
            stream: LogStream::Stderr,
            time: WallTime(1_795_398_702_500_000_000),
            bytes: Bytes::from_static(b"hello world\n"),
        };
        assert_eq!(got, want);
        let got = line(LogOutput::StdOut { message: Bytes::from_static(b"no stamp") }).unwrap();
        assert_eq!((got.time, &got.bytes[..]), (WallTime(0), &b"no stamp"[..]));
    }
}
