//! What is hardly HTTP, or HTTP as its authors hardly meant it.

use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

use super::request::{Pace, Request, write};

/// Requests that are sent at once, before the first is answered.
const PIPELINED_MAX: usize = 40;

/// Draws something.
pub fn any(random: &mut StdRng) -> Request {
    let bytes = match random.random_range(0..9) {
        0 => {
            let length = random.random_range(1..4096);
            (0..length).map(|_| random.random()).collect()
        }
        1 => line(random),
        2 => chunks(random),
        3 => lengths(random),
        4 => headers(random),
        5 => other_protocol(random),
        6 => upgrade(random),
        7 => expecting(random),
        _ => {
            let mut bytes = write("malformed", "POST", "/services/create", "{}").bytes;
            for _ in 0..random.random_range(1..8) {
                let place = random.random_range(0..bytes.len());
                bytes[place] = random.random();
            }
            bytes
        }
    };
    Request { kind: "malformed", bytes, pace: Pace::Quick, is_whole: false, endpoint: None, answers: 0 }
}

/// Several requests in one go, sometimes with rubbish behind them. All the good ones have to be answered.
pub fn pipelined(random: &mut StdRng) -> Request {
    const PATHS: [&str; 4] = ["/_ping", "/version", "/nosuch", "/services"];
    let answers = random.random_range(2..PIPELINED_MAX);
    let mut bytes = Vec::new();
    for _ in 0..answers {
        let path = PATHS.choose(random).copied().unwrap_or("/_ping");
        bytes.extend(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").bytes());
    }
    if random.random() {
        bytes.extend(b"\0\x01rubbish\r\n\r\n");
    }
    Request { kind: "pipelined", bytes, pace: Pace::Quick, is_whole: true, endpoint: None, answers }
}

fn line(random: &mut StdRng) -> Vec<u8> {
    const LINES: [&[u8]; 18] = [
        b"GET /info\r\n\r\n",
        b"GET /info HTTP/9.9\r\nHost: x\r\n\r\n",
        b"GET /info HTTP/0.9\r\n\r\n",
        b"GET /info HTTP/1.0\r\n\r\n",
        b"GET  /info  HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /info HTTP/1.1\nHost: x\n\n",
        b"GET /in fo HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET info HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET http://other/info HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET http://other:99999/info HTTP/1.1\r\nHost: x\r\n\r\n",
        b"CONNECT other:80 HTTP/1.1\r\nHost: x\r\n\r\nabc",
        b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET * HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /info#fragment HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /info\x7f\xff HTTP/1.1\r\nHost: x\r\n\r\n",
        b"G\0T /info HTTP/1.1\r\nHost: x\r\n\r\n",
        b"TRACE /info HTTP/1.1\r\nHost: x\r\nMax-Forwards: 0\r\n\r\n",
        b"\r\n\r\n\r\n\r\nGET /info HTTP/1.1\r\nHost: x\r\n\r\n",
    ];
    LINES.choose(random).map_or_else(Vec::new, |line| line.to_vec())
}

/// Bodies in chunks that are none.
fn chunks(random: &mut StdRng) -> Vec<u8> {
    const BODIES: [&str; 14] = [
        "zz\r\n{}\r\n0\r\n\r\n",
        "2\r\n{}\r\n",
        "2\r\n{}0\r\n\r\n",
        "5\r\n{}\r\n0\r\n\r\n",
        "-2\r\n{}\r\n0\r\n\r\n",
        "ffffffffffffffff\r\n{}\r\n0\r\n\r\n",
        "fffffffffffffffff\r\n{}\r\n0\r\n\r\n",
        "7fffffff\r\n{}\r\n",
        "0x2\r\n{}\r\n0\r\n\r\n",
        "2 \r\n{}\r\n0\r\n\r\n",
        "2;a=b;c=\"d\"\r\n{}\r\n0\r\nTrailer: x\r\n\r\n",
        "2\n{}\n0\n\n",
        "\r\n\r\n",
        "2\r\n{}\r\n0\r\nContent-Length: 5\r\nHost: y\r\nbroken\r\n\r\n",
    ];
    let mut body = BODIES.choose(random).copied().unwrap_or_default().to_owned();
    match random.random_range(0..6) {
        // Names of chunks, and trailers, without end.
        0 => body = format!("2;{}\r\n{{}}\r\n0\r\n\r\n", "a".repeat(random.random_range(1..500_000))),
        1 => body = format!("2\r\n{{}}\r\n0\r\n{}\r\n", "A: b\r\n".repeat(random.random_range(1..50_000))),
        2 => body = "1\r\n \r\n".repeat(random.random_range(1..50_000)),
        _ => {}
    }
    let path =
        ["/services/create", "/configs/create", "/images/load", "/nosuch"].choose(random).copied().unwrap_or("/");
    format!("POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{body}").into_bytes()
}

/// Lengths that contradict each other, the body or reason.
fn lengths(random: &mut StdRng) -> Vec<u8> {
    const LENGTHS: [&str; 12] = [
        "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 7\r\n",
        "Content-Length: 100\r\n",
        "Content-Length: -1\r\n",
        "Content-Length: 2\r\nContent-Length: 7\r\n",
        "Content-Length: 2, 2\r\n",
        "Content-Length: 18446744073709551615\r\n",
        "Content-Length: 18446744073709551616\r\n",
        "Content-Length: 0x2\r\n",
        "Transfer-Encoding: chunked, chunked\r\n",
        "Transfer-Encoding: gzip, chunked\r\n",
        "Transfer-Encoding: identity\r\nContent-Length: 2\r\n",
    ];
    let lengths = LENGTHS.choose(random).copied().unwrap_or_default();
    let (method, path) =
        *[("POST", "/services/create"), ("GET", "/info"), ("POST", "/images/load"), ("DELETE", "/services/a")]
            .choose(random)
            .unwrap_or(&("GET", "/info"));
    let body = if random.random() { "{}" } else { "2\r\n{}\r\n0\r\n\r\nGET /info HTTP/1.1\r\nHost: x\r\n\r\n" };
    format!("{method} {path} HTTP/1.1\r\nHost: x\r\n{lengths}\r\n{body}").into_bytes()
}

fn headers(random: &mut StdRng) -> Vec<u8> {
    const HEADERS: [&[u8]; 12] = [
        b"",
        b"Host: x\r\nHost: y\r\n",
        b"Host: a b\r\n",
        b"Host: x\r\nBroken\r\n",
        b"Host: x\r\n: empty\r\n",
        b"Host: x\r\nA B: c\r\n",
        b"Host: x\r\nA : c\r\n",
        b"Host: x\r\nA: b\r\n folded\r\n",
        b"Host: x\r\nA: \0\r\n",
        b"Host: x\r\nA: \xff\xfe\r\n",
        b"Host: x\rA: b\r\n",
        b"Host: x\r\nConnection: close, keep-alive, upgrade\r\nConnection: host\r\n",
    ];
    let headers = HEADERS.choose(random).copied().unwrap_or_default();
    [b"GET /info HTTP/1.1\r\n", headers, b"\r\n"].concat()
}

/// What speaks something else: HTTP/2, TLS, SSH, a proxy in front.
fn other_protocol(random: &mut StdRng) -> Vec<u8> {
    const HTTP2: &[u8] =
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x12\x04\0\0\0\0\0\0\x03\0\0\0\x80\0\x04\0\x01\0\0\0\x05\0\xff\xff\xff";
    // A record of TLS with a ClientHello that says hardly anything. Source: RFC 8446, sections 4.1.2 and 5.1.
    const TLS: &[u8] =
        b"\x16\x03\x01\0\x2d\x01\0\0\x29\x03\x03\0\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\x0f\x10\x11\
          \x12\x13\x14\x15\x16\x17\x18\x19\x1a\x1b\x1c\x1d\x1e\x1f\0\0\x02\x13\x01\x01\0";
    const OTHERS: [&[u8]; 6] = [
        HTTP2,
        TLS,
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\nGET /info HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x0a\0\0\x01\x0a\0\0\x02\0\x01\0\x02",
        b"{\"jsonrpc\":\"2.0\",\"method\":\"x\"}\n",
    ];
    let mut bytes = OTHERS.choose(random).copied().unwrap_or_default().to_vec();
    if random.random() {
        let length = random.random_range(0..300);
        bytes.extend((0..length).map(|_| random.random::<u8>()));
    }
    bytes
}

/// Wishes to leave HTTP, where there is nothing else.
fn upgrade(random: &mut StdRng) -> Vec<u8> {
    const PROTOCOLS: [&str; 5] = [
        "tcp",
        "h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__",
        "websocket\r\nSec-WebSocket-Key: eA==\r\nSec-WebSocket-Version: 13",
        "",
        "x, y, z",
    ];
    const PATHS: [(&str, &str); 6] = [
        ("GET", "/info"),
        ("POST", "/services/create"),
        ("POST", "/session"),
        ("POST", "/grpc"),
        ("POST", "/containers/nosuch/attach?stream=1&stdin=1"),
        ("POST", "/exec/nosuch/start"),
    ];
    let protocol = PROTOCOLS.choose(random).copied().unwrap_or("tcp");
    let (method, path) = PATHS.choose(random).copied().unwrap_or(("GET", "/info"));
    let connection = if random.random() { "Upgrade" } else { "keep-alive" };
    format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: {connection}\r\nUpgrade: {protocol}\r\nContent-Length: 2\r\n\r\n{{}}raw bytes"
    )
    .into_bytes()
}

/// Clients that want to be told to go on, and go on or not.
fn expecting(random: &mut StdRng) -> Vec<u8> {
    let expect =
        ["100-continue", "100-Continue", "200-ok", "", "100-continue, x"].choose(random).copied().unwrap_or("");
    let path = ["/services/create", "/images/load", "/swarm/unlock", "/nosuch"].choose(random).copied().unwrap_or("/");
    let (length, body) = *[(2, "{}"), (2, ""), (5_000_000, "{}"), (0, "")].choose(random).unwrap_or(&(2, "{}"));
    format!("POST {path} HTTP/1.1\r\nHost: x\r\nExpect: {expect}\r\nContent-Length: {length}\r\n\r\n{body}")
        .into_bytes()
}
