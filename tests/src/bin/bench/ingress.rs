//! A published port against HAProxy in TCP mode, which balances over the same tasks on the same node, and against the tasks
//! themselves; and a port whose tasks are all on another node.
//!
//! Who asks is on the node, so that every way is as long. Ways take turns, and who comes first changes, since they share two
//! cores with whatever else runs. Small answers over connections that stay are asked for by `wrk`, a client that costs little.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use shoal_tests::http;
use shoal_tests::lab::{Guard, IMAGE, Lab, LabConfig, Node};
use shoal_tests::wait::wait_until;

use super::failover::PORT;
use super::{LabArgs, Printer, load_average, median};

/// Where HAProxy listens.
const PEER_PORT: u16 = 8090;

/// Tasks behind a port.
const REPLICAS: &str = "2";

/// Connections at once of clients that make new ones.
const CLIENTS: usize = 32;

/// Threads and connections of `wrk`, over all addresses of a way.
const WRK_THREADS: usize = 2;
const WRK_CONNECTIONS: usize = 64;

/// Connections at once that carry much.
const BULK_CLIENTS: usize = 2;

/// Bytes of one answer that is much.
const BULK_BYTES: usize = 64 << 20;

/// How long each way is measured in a round, and how many rounds there are.
const WINDOW: Duration = Duration::from_secs(2);
const ROUNDS: usize = 5;

/// How long one request may take.
const LIMIT: Duration = Duration::from_secs(10);

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A connection of its own for each small answer: requests a second.
    New,
    /// Small answers over connections that stay: requests a second.
    Kept,
    /// Large answers: bytes a second.
    Bulk,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Kept => "kept",
            Self::Bulk => "bulk",
        }
    }

    fn unit(self) -> &'static str {
        if self == Self::Bulk { "MB/s" } else { "requests/s" }
    }
}

/// One way to the tasks.
struct Way {
    name: &'static str,
    namespace: Option<PathBuf>,
    addresses: Vec<SocketAddr>,
}

/// Measures all ways and prints each, with its ratio to HAProxy.
pub(crate) fn ingress(printer: &Printer, args: &LabArgs) -> Result<()> {
    let lab = Guard(Lab::create(LabConfig::new(&args.dir, 2, args.driver)?)?);
    lab.form()?;
    lab.load_image()?;
    let (node, other) = (lab.node(1), lab.node(2));
    let ports = format!("{PORT}:80");
    let place = ["--constraint", "node.hostname==n1", "--replicas", REPLICAS, "-p", &ports];
    node.shoal().ok(&[&["service", "create", "--name", "http"], &place[..], &[IMAGE]].concat())?;
    let tasks = task_addresses(node)?;
    for node in [node, other] {
        have_many_ports(node)?;
    }
    let proxy = Proxy::start(node, &args.dir, &tasks)?;
    let through = |node: Node<'_>, port| Way {
        name: "",
        namespace: node.namespace(),
        addresses: vec![(node.address(), port).into()],
    };
    let ways = [
        Way { name: "ingress", ..through(node, PORT) },
        Way { name: "haproxy", ..through(node, PEER_PORT) },
        Way { name: "bare", namespace: node.namespace(), addresses: tasks },
        Way { name: "tunnel", ..through(other, PORT) },
    ];
    for way in &ways {
        wait_until(way.name, LIMIT, || Ok(rate(way, Kind::New, Duration::from_millis(100)).is_ok()))?;
    }
    for kind in [Kind::New, Kind::Kept, Kind::Bulk] {
        let mut rates = vec![Vec::new(); ways.len()];
        for round in 0..ROUNDS {
            for turn in 0..ways.len() {
                let at = (round + turn) % ways.len();
                let measured =
                    rate(&ways[at], kind, WINDOW).with_context(|| format!("{} {}", ways[at].name, kind.name()))?;
                rates[at].push(measured);
            }
        }
        let middle = |rates: &[f64]| {
            let mut sorted = rates.to_vec();
            sorted.sort_by(f64::total_cmp);
            median(&sorted)
        };
        let peer = middle(&rates[1]);
        for (way, rates) in ways.iter().zip(&rates) {
            let name = format!("{}-{}", way.name, kind.name());
            printer.against(
                "HAProxy",
                &name,
                middle(rates),
                kind.unit(),
                ROUNDS,
                (way.name != "haproxy").then_some(peer),
            );
        }
    }
    let congestion = fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control")?;
    eprintln!("load average {}, congestion control {}", load_average(), congestion.trim());
    proxy.stop()
}

/// Asks over one way for so long; returns how much came a second.
fn rate(way: &Way, kind: Kind, window: Duration) -> Result<f64> {
    let clients = match kind {
        Kind::New => CLIENTS,
        Kind::Kept => return rate_of_wrk(way, window),
        Kind::Bulk => BULK_CLIENTS,
    };
    let done = AtomicUsize::new(0);
    let start = Instant::now();
    std::thread::scope(|scope| {
        let work = |number: usize| {
            let address = way.addresses[number % way.addresses.len()];
            let done = &done;
            scope.spawn(move || {
                http::enter(way.namespace.as_deref())?;
                let mut kept = None;
                while start.elapsed() < window {
                    done.fetch_add(ask(address, kind, &mut kept)?, Ordering::Relaxed);
                }
                Ok(())
            })
        };
        let threads: Vec<_> = (0..clients).map(work).collect();
        threads.into_iter().try_for_each(|thread| thread.join().unwrap_or_else(|_| bail!("a client panicked")))
    })?;
    let count = done.load(Ordering::Relaxed) as f64 / start.elapsed().as_secs_f64();
    Ok(if kind == Kind::Bulk { count / 1e6 } else { count })
}

/// Lets `wrk` ask over one way, whole seconds, one for each of its addresses; returns how many requests a second were answered.
fn rate_of_wrk(way: &Way, window: Duration) -> Result<f64> {
    let each = |number: usize| (number / way.addresses.len()).max(1);
    let limits = [format!("-t{}", each(WRK_THREADS)), format!("-c{}", each(WRK_CONNECTIONS))];
    let seconds = format!("-d{}s", window.as_secs());
    let start = |address: &SocketAddr| {
        let mut command = Command::new("wrk");
        command.args(&limits).args([&seconds, &format!("http://{address}/health")]);
        command.stdout(Stdio::piped()).spawn().context("failed to start wrk: install the Debian package 'wrk'")
    };
    let started =
        http::in_namespace(way.namespace.as_deref(), || Ok(way.addresses.iter().map(start).collect::<Vec<_>>()))?;
    let mut rates = 0.0;
    for child in started {
        let output = child?.wait_with_output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success(), "wrk failed: {text}");
        ensure!(!text.contains("Non-2xx") && !text.contains("Socket errors"), "requests failed: {text}");
        let rate = text.lines().find_map(|line| line.strip_prefix("Requests/sec:")).context("wrk says no rate")?;
        rates += rate.trim().parse::<f64>()?;
    }
    Ok(rates)
}

/// Sends one request and reads its answer. Returns how much it counts.
fn ask(address: SocketAddr, kind: Kind, kept: &mut Option<TcpStream>) -> Result<usize> {
    let mut stream = match kept.take() {
        Some(stream) => stream,
        None => {
            let stream = TcpStream::connect_timeout(&address, LIMIT)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(LIMIT))?;
            stream
        }
    };
    let path = if kind == Kind::Bulk { format!("/bytes?n={BULK_BYTES}") } else { "/health".to_owned() };
    let connection = if kind == Kind::Bulk { "keep-alive" } else { "close" };
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: bench\r\nConnection: {connection}\r\n\r\n").as_bytes())?;
    let body = read_answer(&mut stream)?;
    if kind == Kind::Bulk {
        *kept = Some(stream);
        return Ok(body);
    }
    Ok(1)
}

/// Reads one answer of status 200; returns the bytes of its body.
fn read_answer(stream: &mut TcpStream) -> Result<usize> {
    let mut buffer = vec![0; 64 << 10];
    let mut filled = 0;
    let end = loop {
        let read = stream.read(&mut buffer[filled..])?;
        ensure!(read > 0, "the connection ended");
        filled += read;
        if let Some(end) = buffer[..filled].windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
        ensure!(filled < buffer.len(), "the answer's head has no end");
    };
    let head = String::from_utf8_lossy(&buffer[..end]).to_lowercase();
    ensure!(head.starts_with("http/1.1 200"), "{head}");
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).context("no length")?;
    let length: usize = length.trim().parse()?;
    let mut left = length.checked_sub(filled - end).context("more than was announced")?;
    while left > 0 {
        let read = stream.read(&mut buffer)?;
        ensure!(read > 0, "the connection ended");
        left = left.checked_sub(read).context("more than was announced")?;
    }
    Ok(length)
}

/// Returns where the tasks of a node listen, as soon as all run.
fn task_addresses(node: Node<'_>) -> Result<Vec<SocketAddr>> {
    let mut addresses = Vec::new();
    wait_until("the tasks run", LIMIT, || {
        let pids: Vec<i32> = node.tasks().values().filter_map(|pids| pids.first().copied()).collect();
        addresses =
            pids.into_iter().filter_map(|pid| address_of(pid).ok()).map(|address| (address, 80).into()).collect();
        Ok(addresses.len().to_string() == REPLICAS)
    })?;
    Ok(addresses)
}

fn address_of(pid: i32) -> Result<IpAddr> {
    let namespace = PathBuf::from(format!("/proc/{pid}/ns/net"));
    let output = http::in_namespace(Some(&namespace), || {
        Command::new("ip").args(["-4", "-o", "addr", "show", "scope", "global"]).output().context("run ip")
    })?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let address = text.split_whitespace().skip_while(|word| *word != "inet").nth(1).context("no address")?;
    Ok(address.split('/').next().unwrap_or_default().parse()?)
}

/// Lets a node's namespace use its own ports again soon: what is measured is who forwards, not how many connections a minute
/// the kernel has ports for.
fn have_many_ports(node: Node<'_>) -> Result<()> {
    http::in_namespace(node.namespace().as_deref(), || {
        fs::write("/proc/sys/net/ipv4/ip_local_port_range", "1024 65535")?;
        fs::write("/proc/sys/net/ipv4/tcp_tw_reuse", "1")?;
        Ok(())
    })
}

/// A running HAProxy.
struct Proxy {
    child: Child,
}

impl Proxy {
    fn start(node: Node<'_>, dir: &Path, tasks: &[SocketAddr]) -> Result<Self> {
        let servers = tasks.iter().enumerate().map(|(index, task)| format!("  server task{index} {task}\n"));
        let config = format!(
            "global\n  nbthread 2\n  maxconn 8192\ndefaults\n  mode tcp\n  timeout connect 3s\n  timeout client 1m\n  timeout server 1m\n\
             frontend published\n  bind {}:{PEER_PORT}\n  default_backend tasks\nbackend tasks\n  balance random(2)\n{}",
            node.address(),
            servers.collect::<String>()
        );
        let path = dir.join("haproxy.cfg");
        fs::write(&path, config)?;
        let child = http::in_namespace(node.namespace().as_deref(), || {
            // A session of its own, as the daemon has: the kernel divides the processors among sessions first.
            let haproxy = ["haproxy", "-db", "-f"];
            let command = Command::new("setsid").args(haproxy).arg(&path).stdout(Stdio::null()).spawn();
            command.context("failed to start haproxy: install the Debian package 'haproxy'")
        })?;
        Ok(Self { child })
    }

    fn stop(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
