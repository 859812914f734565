//! `whoami`: an HTTP server that says which task answered. It is the demo image and what the tests measure.
//!
//! Only the standard library, so that it links statically and starts in a millisecond. It serves one thread a connection,
//! refuses what is over a limit, and as the first process of its container handles SIGTERM itself: the kernel ignores
//! that signal for a first process that does not.

use std::env;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream, UdpSocket};
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

mod proxy;
mod signals;

/// Connections served at once; more are answered 503 and closed.
const CONNECTIONS_MAX: usize = 1024;
/// Requests on one connection; the last one is answered `Connection: close`.
const REQUESTS_PER_CONNECTION_MAX: usize = 100_000;
/// Bytes of a request line with its headers; more are answered 431.
const HEAD_BYTES_MAX: usize = 8 * 1024;
/// Bytes of a request's body, which is read and thrown away; more are answered 413.
const BODY_BYTES_MAX: u64 = 1024 * 1024;
/// Longest `/slow`; more are answered 400.
const SLOW_MS_MAX: u64 = 60_000;
/// Longest `/bytes`; more are answered 400.
const BYTES_MAX: u64 = 1 << 30;
/// Bytes of a datagram that are echoed; the rest is cut off.
const DATAGRAM_BYTES_MAX: usize = 4096;
/// How long a connection may be silent between two requests, or a peer may refuse to read.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// Between a failed accept (no file descriptors left) and the next.
const ACCEPT_RETRY: Duration = Duration::from_millis(5);
const STACK_BYTES: usize = 128 * 1024;

/// How long `whoami check` waits for an answer.
const CHECK_MAX: Duration = Duration::from_secs(5);

static IN_FLIGHT: AtomicUsize = AtomicUsize::new(0);
static CONNECTIONS: AtomicUsize = AtomicUsize::new(0);
/// Whether each connection begins with a header of the PROXY protocol.
static IS_PROXIED: AtomicBool = AtomicBool::new(false);
/// What `/health` was told to say.
static WELL: AtomicBool = AtomicBool::new(true);
/// When the process is warm: until then everything is answered 503.
static WARM: OnceLock<Instant> = OnceLock::new();

fn main() -> ExitCode {
    let port = match variable("PORT", 80) {
        Ok(port) => port,
        Err(error) => {
            eprintln!("whoami: PORT is no port: {error}");
            return ExitCode::from(2);
        }
    };
    if env::args().nth(1).as_deref() == Some("check") {
        return match check(port) {
            Ok(status) => {
                println!("{status}");
                if status.contains(" 200 ") { ExitCode::SUCCESS } else { ExitCode::FAILURE }
            }
            Err(error) => {
                println!("port {port} does not answer: {error}");
                ExitCode::FAILURE
            }
        };
    }
    if env::args().nth(1).as_deref() == Some("work") {
        return work(env::args().nth(2).as_deref().unwrap_or_default());
    }
    match variable("WARM_UP_MS", 0) {
        Ok(milliseconds) => WARM.get_or_init(|| Instant::now() + Duration::from_millis(milliseconds)),
        Err(error) => {
            eprintln!("whoami: WARM_UP_MS is no number: {error}");
            return ExitCode::from(2);
        }
    };
    if let Err(error) = signals::watch(|| IN_FLIGHT.load(Ordering::SeqCst) == 0) {
        eprintln!("whoami: failed to watch signals: {error}");
        return ExitCode::FAILURE;
    }
    let listener = match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
        .or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)))
    {
        Ok(listener) => listener,
        Err(error) => {
            eprintln!("whoami: failed to listen on port {port}: {error}");
            return ExitCode::FAILURE;
        }
    };
    IS_PROXIED.store(env::var_os("PROXY_PROTOCOL").is_some(), Ordering::SeqCst);
    let identity = Arc::new(identity());
    if let Ok(udp_port) = env::var("UDP_PORT")
        && let Err(error) = serve_datagrams(&udp_port, identity.clone())
    {
        eprintln!("whoami: failed to serve UDP port {udp_port}: {error}");
        return ExitCode::FAILURE;
    }
    println!("whoami: listening on port {port}");
    if let Err(error) = variable("LOG_EVERY_MS", 0).map_err(io::Error::other).and_then(count_aloud) {
        eprintln!("whoami: failed to write lines each LOG_EVERY_MS: {error}");
        return ExitCode::from(2);
    }
    serve(&listener, &identity);
    ExitCode::SUCCESS
}

/// Works for so many milliseconds and ends well: a job for an image that holds no other program.
fn work(milliseconds: &str) -> ExitCode {
    match milliseconds.parse() {
        Ok(milliseconds) => thread::sleep(Duration::from_millis(milliseconds)),
        Err(error) => {
            eprintln!("whoami: work takes milliseconds, not '{milliseconds}': {error}");
            return ExitCode::from(2);
        }
    }
    println!("whoami: done");
    ExitCode::SUCCESS
}

/// Reads a variable of the environment; one that is not set has a default.
fn variable<T: FromStr>(name: &str, default: T) -> Result<T, T::Err> {
    env::var(name).map_or(Ok(default), |text| text.parse())
}

/// Asks the server on this machine how it is and returns the first line of its answer: a health check for an image that holds
/// no other program.
fn check(port: u16) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&(Ipv4Addr::LOCALHOST, port).into(), CHECK_MAX)?;
    stream.set_read_timeout(Some(CHECK_MAX))?;
    stream.write_all(b"GET /health HTTP/1.1\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer.lines().next().unwrap_or_default().to_owned())
}

/// Writes a numbered line each so many milliseconds, unless that is zero, in a thread of its own; each tenth to standard error.
fn count_aloud(milliseconds: u64) -> io::Result<()> {
    if milliseconds == 0 {
        return Ok(());
    }
    thread::Builder::new().stack_size(STACK_BYTES).spawn(move || {
        for number in 1_u64.. {
            if number.is_multiple_of(10) {
                eprintln!("line {number}");
            } else {
                println!("line {number}");
            }
            thread::sleep(Duration::from_millis(milliseconds));
        }
    })?;
    Ok(())
}

/// Answers each datagram on `port` with who this is and the datagram, in a thread of its own.
fn serve_datagrams(port: &str, identity: Arc<String>) -> io::Result<()> {
    let port: u16 = port.parse().map_err(io::Error::other)?;
    let socket =
        UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)).or_else(|_| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)))?;
    thread::Builder::new().stack_size(STACK_BYTES).spawn(move || {
        let mut buffer = [0; DATAGRAM_BYTES_MAX];
        // An error is of one client that went away, told on the next call: it concerns nobody else.
        loop {
            if let Ok((count, from)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(&[identity.as_bytes(), &buffer[..count]].concat(), from);
            }
        }
    })?;
    Ok(())
}

/// Returns the answer to `GET /`, which never changes while the process lives.
fn identity() -> String {
    let hostname = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let variable = |name: &str| env::var(name).unwrap_or_default();
    format!(
        "Hostname: {}\nNode: {}\nService: {}\nTask: {}\nSlot: {}\n",
        hostname.trim(),
        variable("SHOAL_NODE_HOSTNAME"),
        variable("SHOAL_SERVICE_NAME"),
        variable("SHOAL_TASK_ID"),
        variable("SHOAL_TASK_SLOT"),
    )
}

fn serve(listener: &TcpListener, identity: &Arc<String>) {
    loop {
        let Ok((stream, _)) = listener.accept() else {
            thread::sleep(ACCEPT_RETRY);
            continue;
        };
        if CONNECTIONS.fetch_add(1, Ordering::SeqCst) >= CONNECTIONS_MAX {
            CONNECTIONS.fetch_sub(1, Ordering::SeqCst);
            let _ = stream.set_nonblocking(true);
            let _ = (&stream)
                .write_all(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            continue;
        }
        let identity = Arc::clone(identity);
        let spawned = thread::Builder::new().stack_size(STACK_BYTES).spawn(move || {
            // A peer that goes away is its own affair.
            let _ = converse(stream, &identity);
            CONNECTIONS.fetch_sub(1, Ordering::SeqCst);
        });
        if spawned.is_err() {
            CONNECTIONS.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

/// Answers the requests of one connection, one after another.
fn converse(mut stream: TcpStream, identity: &str) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(IDLE_MAX))?;
    stream.set_write_timeout(Some(IDLE_MAX))?;
    let client = client(&mut stream)?;
    let mut buffer = Vec::with_capacity(1024);
    for number in 1..=REQUESTS_PER_CONNECTION_MAX {
        let request = match read_request(&mut stream, &mut buffer)? {
            Received::Request(request) => request,
            Received::Refused(status) => return respond(&mut stream, status, false, "", true),
            Received::End => return Ok(()),
        };
        IN_FLIGHT.fetch_add(1, Ordering::SeqCst);
        let keep = request.keep_alive && number < REQUESTS_PER_CONNECTION_MAX && !signals::is_stopping();
        let answered = answer(&mut stream, &request, &client, identity, keep);
        IN_FLIGHT.fetch_sub(1, Ordering::SeqCst);
        answered?;
        if !keep {
            return Ok(());
        }
    }
    Ok(())
}

/// Returns the beginning of the answer to `GET /client`: who is at the other end, and of which version the header was that says so.
fn client(stream: &mut TcpStream) -> io::Result<String> {
    if !IS_PROXIED.load(Ordering::SeqCst) {
        return Ok(format!("Client: {}\nServer: {}\nProxy: none\n", stream.peer_addr()?, stream.local_addr()?));
    }
    let told = proxy::read(stream)?;
    Ok(format!("Client: {}\nServer: {}\nProxy: v{}\n", told.client, told.server, told.version))
}

#[derive(Debug, PartialEq, Eq)]
struct Request {
    method: String,
    path: String,
    query: String,
    keep_alive: bool,
    body_bytes: u64,
}

enum Received {
    Request(Request),
    Refused(&'static str),
    End,
}

fn read_request(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<Received> {
    let head_end = loop {
        if let Some(at) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        if buffer.len() >= HEAD_BYTES_MAX {
            return Ok(Received::Refused("431 Request Header Fields Too Large"));
        }
        let mut chunk = [0; 2048];
        let count = stream.read(&mut chunk)?;
        if count == 0 {
            return Ok(Received::End);
        }
        buffer.extend_from_slice(&chunk[..count]);
    };
    let request = match parse(&buffer[..head_end]) {
        Ok(request) => request,
        Err(status) => return Ok(Received::Refused(status)),
    };
    // The body may lie partly in the buffer, which may also hold the next request already.
    let in_buffer = (buffer.len() - head_end).min(usize::try_from(request.body_bytes).unwrap_or(usize::MAX));
    let mut rest = request.body_bytes - in_buffer as u64;
    buffer.drain(..head_end + in_buffer);
    let mut sink = [0; 4096];
    while rest > 0 {
        let count = stream.read(&mut sink[..rest.min(4096) as usize])?;
        if count == 0 {
            return Ok(Received::End);
        }
        rest -= count as u64;
    }
    Ok(Received::Request(request))
}

/// Reads a request line and the three headers that matter here. The error is the status to refuse with.
fn parse(head: &[u8]) -> Result<Request, &'static str> {
    const BAD: &str = "400 Bad Request";
    let head = std::str::from_utf8(head).map_err(|_| BAD)?;
    let mut lines = head.split("\r\n");
    let mut words = lines.next().unwrap_or_default().split(' ');
    let (Some(method), Some(target), Some(version), None) = (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(BAD);
    };
    if version != "HTTP/1.1" && version != "HTTP/1.0" {
        return Err("505 HTTP Version Not Supported");
    }
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut request = Request {
        method: method.to_owned(),
        path: path.to_owned(),
        query: query.to_owned(),
        keep_alive: version == "HTTP/1.1",
        body_bytes: 0,
    };
    for line in lines.filter(|line| !line.is_empty()) {
        let (name, value) = line.split_once(':').ok_or(BAD)?;
        let value = value.trim();
        if name.eq_ignore_ascii_case("connection") {
            request.keep_alive = match value.to_ascii_lowercase().as_str() {
                "close" => false,
                "keep-alive" => true,
                _ => request.keep_alive,
            };
        } else if name.eq_ignore_ascii_case("content-length") {
            request.body_bytes = value.parse().map_err(|_| BAD)?;
            if request.body_bytes > BODY_BYTES_MAX {
                return Err("413 Content Too Large");
            }
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            return Err("411 Length Required");
        }
    }
    Ok(request)
}

fn answer(stream: &mut TcpStream, request: &Request, client: &str, identity: &str, keep: bool) -> io::Result<()> {
    let with_body = match request.method.as_str() {
        "GET" => true,
        "HEAD" => false,
        _ => return respond(stream, "405 Method Not Allowed", keep, "", true),
    };
    const UNAVAILABLE: &str = "503 Service Unavailable";
    if WARM.get().is_some_and(|warm| Instant::now() < *warm) {
        return respond(stream, UNAVAILABLE, keep, "warming up\n", with_body);
    }
    match request.path.as_str() {
        "/" => respond(stream, "200 OK", keep, identity, with_body),
        "/client" => respond(stream, "200 OK", keep, &format!("{client}{identity}"), with_body),
        "/health" if WELL.load(Ordering::SeqCst) => respond(stream, "200 OK", keep, "ok\n", with_body),
        "/health" => respond(stream, UNAVAILABLE, keep, "told to be unwell\n", with_body),
        // Only what `/health` says changes: requests go on being answered, so that tests see who answers them.
        "/fall-ill" => {
            WELL.store(false, Ordering::SeqCst);
            respond(stream, "200 OK", keep, identity, with_body)
        }
        "/slow" => match number(&request.query, "ms", SLOW_MS_MAX) {
            Ok(milliseconds) => {
                thread::sleep(Duration::from_millis(milliseconds));
                respond(stream, "200 OK", keep, identity, with_body)
            }
            Err(problem) => respond(stream, "400 Bad Request", keep, &problem, with_body),
        },
        "/bytes" => match number(&request.query, "n", BYTES_MAX) {
            Ok(count) => respond_bytes(stream, count, keep, with_body),
            Err(problem) => respond(stream, "400 Bad Request", keep, &problem, with_body),
        },
        _ => respond(stream, "404 Not Found", keep, "not found\n", with_body),
    }
}

fn number(query: &str, name: &str, max: u64) -> Result<u64, String> {
    query
        .split('&')
        .find_map(|pair| pair.split_once('=').filter(|(key, _)| *key == name))
        .and_then(|(_, value)| value.parse::<u64>().ok())
        .filter(|value| *value <= max)
        .ok_or_else(|| format!("expected {name}=N with N from 0 to {max}\n"))
}

fn head(status: &str, length: u64, keep: bool) -> String {
    let connection = if keep { "keep-alive" } else { "close" };
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\nConnection: {connection}\r\n\r\n"
    )
}

fn respond(stream: &mut TcpStream, status: &str, keep: bool, body: &str, with_body: bool) -> io::Result<()> {
    let mut text = head(status, body.len() as u64, keep);
    if with_body {
        text.push_str(body);
    }
    stream.write_all(text.as_bytes())
}

fn respond_bytes(stream: &mut TcpStream, count: u64, keep: bool, with_body: bool) -> io::Result<()> {
    stream.write_all(head("200 OK", count, keep).as_bytes())?;
    let block = [b'x'; 16 * 1024];
    let mut rest = if with_body { count } else { 0 };
    while rest > 0 {
        let size = rest.min(block.len() as u64) as usize;
        stream.write_all(&block[..size])?;
        rest -= size as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read_or_refused() {
        let good =
            parse(b"GET /slow?ms=5 HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 3\r\n\r\n").unwrap();
        assert_eq!(
            (good.path.as_str(), good.query.as_str(), good.keep_alive, good.body_bytes),
            ("/slow", "ms=5", false, 3)
        );
        for (head, want) in [
            ("GET /\r\n\r\n", "400 Bad Request"),
            ("GET / HTTP/2\r\n\r\n", "505 HTTP Version Not Supported"),
            ("GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", "400 Bad Request"),
            ("GET / HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n", "413 Content Too Large"),
            ("GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", "411 Length Required"),
        ] {
            assert_eq!(parse(head.as_bytes()), Err(want), "{head:?}");
        }
    }

    #[test]
    fn numbers_have_bounds() {
        for (query, want) in [("ms=5", Some(5)), ("a=1&ms=0", Some(0)), ("ms=11", None), ("ms=-1", None), ("", None)] {
            assert_eq!(number(query, "ms", 10).ok(), want, "{query}");
        }
    }

    #[test]
    fn one_connection_carries_many_requests() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || serve(&listener, &Arc::new("Hostname: me\n".to_owned())));
        let mut stream = TcpStream::connect(address).unwrap();
        let requests = "GET / HTTP/1.1\r\n\r\nPOST /health HTTP/1.1\r\nContent-Length: 4\r\n\r\nbodyGET /bytes?n=20000 HTTP/1.1\r\n\r\n\
                        GET /nowhere HTTP/1.1\r\nConnection: close\r\n\r\n";
        stream.write_all(requests.as_bytes()).unwrap();
        let mut answers = String::new();
        stream.read_to_string(&mut answers).unwrap();
        let statuses: Vec<&str> = answers.split("HTTP/1.1 ").skip(1).map(|answer| &answer[..3]).collect();
        assert_eq!(statuses, ["200", "405", "200", "404"]);
        assert_eq!(answers.matches('x').count(), 20_000 + answers.matches("text/plain").count());
        assert!(answers.contains("Hostname: me\n"));
    }

    #[test]
    fn datagrams_are_echoed_behind_the_name() {
        let free = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        serve_datagrams(&free.port().to_string(), Arc::new("Hostname: me\n".to_owned())).unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        client.send_to(b"hello", free).unwrap();
        let mut answer = [0; 64];
        let (count, from) = client.recv_from(&mut answer).unwrap();
        assert_eq!((&answer[..count], from), (&b"Hostname: me\nhello"[..], free));
        assert!(serve_datagrams("x", Arc::default()).is_err());
    }

    #[test]
    fn an_endless_head_is_refused() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || serve(&listener, &Arc::new(String::new())));
        let mut stream = TcpStream::connect(address).unwrap();
        let _ = stream.write_all(&vec![b'a'; HEAD_BYTES_MAX]);
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"HTTP/1.1 431");
    }
}
