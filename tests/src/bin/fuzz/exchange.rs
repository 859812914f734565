//! Sends one request, quickly or slowly, and sees what comes back.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec};
use serde_json::Value;

use super::request::{Pace, Request};

/// How long an answer may take to begin. Writes wait up to 10 s for a holder; the daemon gives up after 60 s.
const ANSWER_WAIT: Duration = Duration::from_secs(30);

/// How long a refusal of a 5xx status may take to arrive whole.
const BODY_WAIT: Duration = Duration::from_secs(10);

/// Bytes of an answer that are looked at; streams are longer.
const LOOKED_AT_MAX: usize = 64 << 10;

/// How long an answer is listened to that may have no end.
const LISTEN: Duration = Duration::from_millis(100);

/// How long a client that says no more waits before it says so.
const BEFORE_END: Duration = Duration::from_millis(100);

/// How long a slow client goes on.
const SLOW_FOR: Duration = Duration::from_millis(1500);
const SLOW_STEP: Duration = Duration::from_millis(25);

/// What came of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was answered.
    Status(u16),
    /// The connection was closed without an answer.
    Closed,
    /// The client itself went away before it had sent everything.
    GaveUp,
}

/// Sends a request. An error is a fault of the daemon.
pub fn send(socket: &Path, request: &Request, cut_at: u64) -> Result<Outcome> {
    let mut stream = UnixStream::connect(socket).context("the daemon does not accept connections")?;
    stream.set_write_timeout(Some(ANSWER_WAIT))?;
    match request.pace {
        Pace::Quick => {
            if let Err(error) = stream.write_all(&request.bytes) {
                // Whoever refuses a request need not read all of it.
                ensure!(is_closed(error.kind()), "the daemon stopped reading: {error}");
            }
        }
        Pace::Slow => {
            let begun = Instant::now();
            for byte in &request.bytes {
                if begun.elapsed() > SLOW_FOR {
                    return Ok(Outcome::GaveUp);
                }
                if stream.write_all(&[*byte]).is_err() {
                    return Ok(Outcome::Closed);
                }
                std::thread::sleep(SLOW_STEP);
            }
        }
        Pace::Cut => {
            let end = usize::try_from(cut_at % (request.bytes.len() as u64 + 1))?;
            // Gone before anything can be answered.
            let _ = stream.write_all(&request.bytes[..end]);
            return Ok(Outcome::GaveUp);
        }
    }
    if request.answers > 1 {
        return several(&mut stream, request.answers);
    }
    let mut bytes = Vec::new();
    if !request.is_whole {
        // Half a request is never answered; it has to end with the connection.
        if !is_readable(&stream, BEFORE_END)? {
            let _ = stream.shutdown(std::net::Shutdown::Write);
        }
    }
    // The answer to HEAD has a body's head and no body.
    let outcome = answer(&mut stream, &mut bytes, !request.bytes.starts_with(b"HEAD "))?;
    if matches!(outcome, Outcome::Status(status) if status < 500) && cut_at.is_multiple_of(4) {
        let begun = Instant::now();
        while bytes.len() < LOOKED_AT_MAX && begun.elapsed() < LISTEN && is_readable(&stream, LISTEN)? {
            if !read_more(&mut stream, &mut bytes, LISTEN)? {
                break;
            }
        }
    }
    Ok(outcome)
}

/// Waits for as many answers as requests were sent.
fn several(stream: &mut UnixStream, wanted: usize) -> Result<Outcome> {
    const STATUS: &[u8] = b"HTTP/1.1 ";
    let (begun, mut bytes) = (Instant::now(), Vec::new());
    let count = |bytes: &[u8]| bytes.windows(STATUS.len()).filter(|window| *window == STATUS).count();
    while count(&bytes) < wanted {
        let left = ANSWER_WAIT.saturating_sub(begun.elapsed());
        if left.is_zero() || !read_more(stream, &mut bytes, left)? {
            bail!("{} of {wanted} answers came", count(&bytes));
        }
    }
    Ok(Outcome::Status(200))
}

/// Waits until there is something to read, or the other end has closed; false after `limit`.
fn is_readable(stream: &UnixStream, limit: Duration) -> Result<bool> {
    let mut found = [PollFd::new(stream, PollFlags::IN)];
    let limit = Timespec { tv_sec: 0, tv_nsec: i64::from(limit.subsec_nanos()) };
    Ok(rustix::event::poll(&mut found, Some(&limit))? > 0)
}

/// Sends half a head and waits for the daemon to give the connection up; `limit` at most.
pub fn half_a_head(socket: &Path, limit: Duration) -> Result<Duration> {
    let (mut stream, begun) = (UnixStream::connect(socket)?, Instant::now());
    stream.write_all(b"GET /info HTTP/1.1\r\nHost:")?;
    stream.set_read_timeout(Some(limit))?;
    let ended = stream.read(&mut [0]);
    ensure!(matches!(ended, Ok(0)), "half a head was held for {} s: {ended:?}", begun.elapsed().as_secs());
    Ok(begun.elapsed())
}

fn is_closed(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::BrokenPipe | ErrorKind::ConnectionReset)
}

fn answer(stream: &mut UnixStream, bytes: &mut Vec<u8>, has_body: bool) -> Result<Outcome> {
    let begun = Instant::now();
    let head_end = loop {
        if let Some(end) = find(bytes, b"\r\n\r\n") {
            if !bytes.starts_with(b"HTTP/1.1 100 ") {
                break end;
            }
            // Whoever is told to go on has said everything that he will.
            bytes.drain(..end + 4);
            let _ = stream.shutdown(std::net::Shutdown::Write);
            continue;
        }
        let left = ANSWER_WAIT.saturating_sub(begun.elapsed());
        ensure!(!left.is_zero(), "no answer within {} s", ANSWER_WAIT.as_secs());
        if !read_more(stream, bytes, left)? {
            ensure!(bytes.is_empty(), "the answer was cut in its head");
            return Ok(Outcome::Closed);
        }
        ensure!(bytes.len() < LOOKED_AT_MAX, "the answer's head has no end");
    };
    let head = String::from_utf8_lossy(&bytes[..head_end]).into_owned();
    let status: u16 =
        head.split(' ').nth(1).and_then(|code| code.parse().ok()).context("an answer without a status")?;
    if status >= 500 && has_body {
        let begun = Instant::now();
        while bytes.len() < LOOKED_AT_MAX && !says_why(&bytes[head_end..]) {
            let left = BODY_WAIT.saturating_sub(begun.elapsed());
            if left.is_zero() || !read_more(stream, bytes, left)? {
                bail!("status {status} without a message: {}", String::from_utf8_lossy(bytes));
            }
        }
    }
    Ok(Outcome::Status(status))
}

/// Reads what is there; false at the end.
fn read_more(stream: &mut UnixStream, bytes: &mut Vec<u8>, limit: Duration) -> Result<bool> {
    let mut chunk = [0; 4096];
    stream.set_read_timeout(Some(limit))?;
    match stream.read(&mut chunk) {
        Ok(read) => {
            bytes.extend_from_slice(&chunk[..read]);
            Ok(read > 0)
        }
        Err(error) if is_closed(error.kind()) => Ok(false),
        Err(error) => Err(error).context("no answer in time"),
    }
}

/// Whether a body, with or without the head of a chunk, is `{"message": "…"}`.
fn says_why(body: &[u8]) -> bool {
    let text = String::from_utf8_lossy(body);
    let object = text.find('{').zip(text.rfind('}')).and_then(|(from, to)| text.get(from..=to));
    let value: Option<Value> = object.and_then(|object| serde_json::from_str(object).ok());
    value.is_some_and(|value| value["message"].as_str().is_some_and(|message| !message.is_empty()))
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_found() {
        for (body, want) in [
            ("\r\n\r\n{\"message\":\"no\"}", true),
            ("10\r\n{\"message\":\"a\"}\r\n0\r\n\r\n", true),
            ("{\"message\":\"\"}", false),
            ("{\"message\":", false),
            ("oops", false),
            ("", false),
        ] {
            assert_eq!(says_why(body.as_bytes()), want, "{body}");
        }
    }
}
