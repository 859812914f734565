//! A small HTTP client over std's sockets, from inside any network namespace.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Bytes of an answer at most; whatever sends more is not what was asked for.
const ANSWER_BYTES_MAX: u64 = 64 << 20;

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Body.
    pub body: Vec<u8>,
}

impl Answer {
    /// Reads the body as lines `Name: value`, as the demo image's `GET /` answers.
    pub fn fields(&self) -> BTreeMap<String, String> {
        let text = String::from_utf8_lossy(&self.body);
        text.lines().filter_map(|line| line.split_once(": ")).map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
    }
}

/// Sends one `GET` on a connection of its own and reads the whole answer; all of it within `limit`.
pub fn get(address: SocketAddr, path: &str, limit: Duration) -> Result<Answer> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    send(address, &request, |_| false, limit)
}

/// Sends one request with a body of JSON on a connection of its own and reads the answer, which has to tell its length; all of
/// it within `limit`. Whether the other side then closes the connection is its own business.
pub fn request(address: SocketAddr, method: &str, path: &str, body: &str, limit: Duration) -> Result<Answer> {
    let length = body.len();
    let head = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n");
    let request = format!("{head}Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}");
    send(address, &request, |bytes| parse(bytes).is_ok(), limit)
}

fn send(address: SocketAddr, request: &str, is_whole: impl Fn(&[u8]) -> bool, limit: Duration) -> Result<Answer> {
    let deadline = Instant::now() + limit;
    let mut stream = TcpStream::connect_timeout(&address, limit).with_context(|| format!("connect {address}"))?;
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(left(deadline)?))?;
    stream.write_all(request.as_bytes()).context("send request")?;
    read(&mut stream, is_whole, |stream| Ok(stream.set_read_timeout(Some(left(deadline)?))?))
}

/// Sends one request to a daemon's socket and reads the whole answer; all of it within `limit`.
pub fn unix(socket: &Path, method: &str, path: &str, body: &str, limit: Duration) -> Result<Answer> {
    let deadline = Instant::now() + limit;
    let mut stream = UnixStream::connect(socket).with_context(|| format!("connect {}", socket.display()))?;
    stream.set_write_timeout(Some(left(deadline)?))?;
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: shoal\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\n\r\n{body}"
    )
    .context("send request")?;
    read(&mut stream, |_| false, |stream| Ok(stream.set_read_timeout(Some(left(deadline)?))?))
}

/// Percent-encodes everything but letters and digits, for a query.
pub fn encoded(text: &str) -> String {
    let byte = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => char::from(byte).to_string(),
        other => format!("%{other:02X}"),
    };
    text.bytes().map(byte).collect()
}

fn left(deadline: Instant) -> Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(anyhow!("no answer in time")) } else { Ok(left) }
}

/// Reads until the other side closes, or what has come is all.
fn read<S: Read>(
    stream: &mut S,
    is_whole: impl Fn(&[u8]) -> bool,
    set_timeout: impl Fn(&S) -> Result<()>,
) -> Result<Answer> {
    let (mut bytes, mut chunk) = (Vec::new(), vec![0; 1 << 16]);
    while !is_whole(&bytes) {
        set_timeout(stream)?;
        match stream.read(&mut chunk).context("read answer")? {
            0 => break,
            read => bytes.extend_from_slice(&chunk[..read]),
        }
        if bytes.len() as u64 > ANSWER_BYTES_MAX {
            bail!("answer is larger than {ANSWER_BYTES_MAX} bytes");
        }
    }
    parse(&bytes)
}

fn parse(bytes: &[u8]) -> Result<Answer> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n").context("answer has no end of headers")?;
    let head = std::str::from_utf8(&bytes[..end]).context("headers are not text")?;
    let (line, headers) = head.split_once("\r\n").unwrap_or((head, ""));
    let status = line.split(' ').nth(1).and_then(|code| code.parse().ok()).context("answer has no status")?;
    let header = |wanted: &str| {
        let mut headers = headers.lines().filter_map(|header| header.split_once(':'));
        headers.find_map(|(name, value)| name.eq_ignore_ascii_case(wanted).then(|| value.trim()))
    };
    if header("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) {
        return Ok(Answer { status, body: unchunk(&bytes[end + 4..])? });
    }
    let body = bytes[end + 4..].to_vec();
    if let Some(length) = header("content-length") {
        let length: usize = length.parse().context("length is not a number")?;
        if body.len() != length {
            bail!("answer was cut: {} of {length} bytes", body.len());
        }
    }
    Ok(Answer { status, body })
}

/// Joins the chunks of a body. Source: RFC 9112, section 7.1.
fn unchunk(mut bytes: &[u8]) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = bytes.windows(2).position(|window| window == b"\r\n").context("answer was cut in a chunk's head")?;
        let head = std::str::from_utf8(&bytes[..end]).context("a chunk's head is not text")?;
        let digits = head.split(';').next().unwrap_or_default().trim();
        let length = usize::from_str_radix(digits, 16).with_context(|| format!("a chunk of '{digits}' bytes"))?;
        if length == 0 {
            return Ok(body);
        }
        let rest = &bytes[end + 2..];
        body.extend_from_slice(rest.get(..length).context("answer was cut in a chunk")?);
        bytes = rest.get(length + 2..).context("answer was cut after a chunk")?;
    }
}

/// Runs `work` in a thread of its own that is inside the network namespace at `path`, or in this one if there is none.
pub fn in_namespace<T: Send>(path: Option<&Path>, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            enter(path)?;
            work()
        });
        thread.join().unwrap_or_else(|_| bail!("a thread in a network namespace panicked"))
    })
}

/// Moves this thread into a network namespace.
pub fn enter(path: Option<&Path>) -> Result<()> {
    let Some(path) = path else { return Ok(()) };
    let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    move_into_link_name_space(std::os::fd::AsFd::as_fd(&file), Some(LinkNameSpaceType::Network))
        .with_context(|| format!("enter network namespace {}", path.display()))
}

/// Where the handle of a named network namespace is.
pub fn namespace_path(name: &str) -> PathBuf {
    Path::new("/run/netns").join(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_whole_or_refused() {
        let answer = parse(b"HTTP/1.1 200 OK\r\ncontent-length: 14\r\n\r\nTask: a\nSlot: 2").unwrap_err();
        assert_eq!(answer.to_string(), "answer was cut: 15 of 14 bytes");
        let answer = parse(b"HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\nTask: a\nSlot: 2").unwrap();
        assert_eq!(answer.status, 200);
        assert_eq!(answer.fields()["Slot"], "2");
        assert!(parse(b"HTTP/1.1 200 OK\r\n").is_err());
    }

    #[test]
    fn chunks_are_joined() {
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        let answer = parse(format!("{head}4\r\nTask\r\n5;x=y\r\n: abc\r\n0\r\n\r\n").as_bytes()).unwrap();
        assert_eq!(answer.body, b"Task: abc");
        assert!(parse(format!("{head}4\r\nTa").as_bytes()).is_err());
    }
}
