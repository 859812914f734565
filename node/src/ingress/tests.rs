use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use shoal_control::proxy;
use shoal_protocol::spec::ProxyVersion;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::{Instant, timeout};

use super::*;

mod counted;
mod lanes;
mod limit;
mod udp;
mod v6;

const HERE: NodeId = NodeId(1);
const THERE: NodeId = NodeId(2);
const LOCALHOST: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
const PATIENCE: Duration = Duration::from_secs(20);

/// Carries tunnels to the other ingresses of this process.
#[derive(Default)]
struct Nodes(Mutex<BTreeMap<NodeId, IngressHandle>>);

#[async_trait]
impl Tunnels for Nodes {
    async fn open(&self, node: NodeId) -> io::Result<Box<dyn TunnelStream>> {
        let far = self.0.lock().unwrap().get(&node).cloned();
        let Some(far) = far else {
            // A node that is gone does not answer; nobody says so.
            return std::future::pending().await;
        };
        let (near_end, far_end) = tokio::io::duplex(1 << 16);
        tokio::spawn(async move { far.serve_tunnel(far_end).await });
        Ok(Box::new(near_end))
    }

    async fn open_datagrams(&self, node: NodeId) -> io::Result<Box<dyn TunnelStream>> {
        let far = self.0.lock().unwrap().get(&node).cloned();
        let Some(far) = far else { return std::future::pending().await };
        let (near_end, far_end) = tokio::io::duplex(1 << 16);
        tokio::spawn(async move { far.serve_datagrams(far_end).await });
        Ok(Box::new(near_end))
    }
}

fn config(node: NodeId, connections_max: usize) -> IngressConfig {
    let start = Instant::now();
    IngressConfig {
        node,
        publish_addr: Some(LOCALHOST),
        connections_max,
        flows_max: FLOWS_MAX,
        seed: 1,
        clock: Arc::new(move || Time(u64::try_from(start.elapsed().as_millis()).unwrap())),
        serving: Arc::default(),
        metrics: Arc::default(),
        lanes: Lanes::here(),
    }
}

/// Returns the ingresses of two nodes, of which the first reaches the second.
fn two_nodes() -> (IngressHandle, IngressHandle) {
    let nodes = Arc::new(Nodes::default());
    let near = Ingress::spawn(config(HERE, CONNECTIONS_MAX), nodes.clone());
    let far = Ingress::spawn(config(THERE, CONNECTIONS_MAX), nodes.clone());
    nodes.0.lock().unwrap().insert(THERE, far.clone());
    (near, far)
}

fn ingress() -> IngressHandle {
    Ingress::spawn(config(HERE, CONNECTIONS_MAX), Arc::<Nodes>::default())
}

/// A task that answers each connection with its name, then echoes until the client's end, then says `bye`.
struct EchoTask {
    address: SocketAddr,
    served: Arc<AtomicUsize>,
    server: JoinHandle<()>,
}

impl EchoTask {
    async fn start(name: u8) -> Self {
        Self::start_at(LOCALHOST, name).await
    }

    async fn start_at(address: IpAddr, name: u8) -> Self {
        let listener = TcpListener::bind((address, 0)).await.unwrap();
        let (address, served) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
        let count = served.clone();
        let server = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                count.fetch_add(1, Ordering::SeqCst);
                connections.spawn(async move {
                    stream.write_all(&[name]).await?;
                    let (mut reader, mut writer) = stream.split();
                    tokio::io::copy(&mut reader, &mut writer).await?;
                    writer.write_all(b"bye").await?;
                    writer.shutdown().await
                });
            }
        });
        Self { address, served, server }
    }

    async fn kill(self) {
        self.server.abort();
        let _ = self.server.await;
    }
}

/// An address where connections are queued by the kernel until its queue is full, and then not answered at all.
fn blackhole() -> (TcpListener, Vec<std::net::TcpStream>) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(LOCALHOST, 0)).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut queued = Vec::new();
    while let Ok(stream) = std::net::TcpStream::connect_timeout(&address, Duration::from_millis(100)) {
        queued.push(stream);
    }
    (listener, queued)
}

fn backend(node: NodeId, address: SocketAddr) -> Backend {
    Backend { name: "web.1".into(), node, address: address.ip(), port: address.port(), suspect: false }
}

fn route(backends: &[(u128, NodeId, SocketAddr)]) -> Route {
    let backends = backends.iter().map(|&(task, node, address)| (TaskId(task), backend(node, address))).collect();
    Route { service: ServiceId(5), settings: PortSettings::default(), backends }
}

fn tcp(port: u16) -> PublishedPort {
    PublishedPort::tcp(port)
}

async fn free_port() -> u16 {
    TcpListener::bind((LOCALHOST, 0)).await.unwrap().local_addr().unwrap().port()
}

async fn publish(ingress: &IngressHandle, port: u16, backends: &[(u128, NodeId, SocketAddr)]) {
    ingress.apply(BTreeMap::from([(tcp(port), route(backends))]), BTreeMap::new());
    wait_for("port open", || async { TcpStream::connect((LOCALHOST, port)).await.is_ok() }).await;
}

async fn wait_for<F: Future<Output = bool>>(what: &str, condition: impl Fn() -> F) {
    let wait = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("waited in vain for {what}"));
}

/// Connects and returns the name of the task that answered.
async fn connect(port: u16) -> io::Result<(TcpStream, u8)> {
    let connect = async {
        let mut stream = TcpStream::connect((LOCALHOST, port)).await?;
        let name = stream.read_u8().await?;
        Ok((stream, name))
    };
    timeout(PATIENCE, connect).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

async fn connect_when_open(port: u16) -> (TcpStream, u8) {
    let start = Instant::now();
    loop {
        match connect(port).await {
            Ok(connected) => return connected,
            Err(error) => assert!(start.elapsed() < PATIENCE, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn echo(stream: &mut TcpStream, text: &[u8]) {
    stream.write_all(text).await.unwrap();
    let mut back = vec![0; text.len()];
    stream.read_exact(&mut back).await.unwrap();
    assert_eq!(back, text);
}

#[tokio::test]
async fn both_local_and_remote_tasks_are_reached() {
    let (a, b, port) = (EchoTask::start(b'a').await, EchoTask::start(b'b').await, free_port().await);
    let (near, far) = two_nodes();
    let backends = [(1, HERE, a.address), (2, THERE, b.address)];
    // The far node shares the loopback address, so that only its table matters here: its listener finds the port taken.
    publish(&near, port, &backends).await;
    far.apply(BTreeMap::from([(tcp(port), route(&backends))]), BTreeMap::new());
    let mut names = std::collections::BTreeSet::new();
    for _ in 0..100 {
        let (mut stream, name) = connect(port).await.unwrap();
        echo(&mut stream, b"hello").await;
        names.insert(name);
    }
    assert_eq!(names, [b'a', b'b'].into());
    assert!(near.metrics().all.connected_remote.get() > 0);
    assert!(far.metrics().tunnels_served.get() > 0);
}

#[tokio::test]
async fn a_tunnel_reaches_only_published_ports_of_local_tasks() {
    let (task, other, port) = (EchoTask::start(b'a').await, EchoTask::start(b'b').await, free_port().await);
    let far = ingress();
    publish(&far, port, &[(1, HERE, task.address), (2, THERE, other.address)]).await;
    for (id, container_port, want) in [
        (1, task.address.port(), None),
        (1, other.address.port(), Some(tunnel::Refusal::NoSuchTask)),
        (2, other.address.port(), Some(tunnel::Refusal::NoSuchTask)),
        (3, task.address.port(), Some(tunnel::Refusal::NoSuchTask)),
    ] {
        let (mut near_end, far_end) = tokio::io::duplex(1024);
        let far = far.clone();
        tokio::spawn(async move { far.serve_tunnel(far_end).await });
        let got = match tunnel::request(&mut near_end, TaskId(id), container_port).await {
            Ok(()) => None,
            Err(TunnelError::Answered(refusal)) => Some(refusal),
            Err(error) => panic!("{error}"),
        };
        assert_eq!(got, want, "task {id}");
    }
    task.kill().await;
}

#[tokio::test]
async fn a_dead_task_behind_a_tunnel_is_an_answer_not_a_connection() {
    let (task, port) = (EchoTask::start(b'a').await, free_port().await);
    let (far, address) = (ingress(), task.address);
    publish(&far, port, &[(1, HERE, address)]).await;
    task.kill().await;
    let (mut near_end, far_end) = tokio::io::duplex(1024);
    tokio::spawn(async move { far.serve_tunnel(far_end).await });
    let result = tunnel::request(&mut near_end, TaskId(1), address.port()).await;
    assert!(matches!(result, Err(TunnelError::Answered(tunnel::Refusal::Refused))), "{result:?}");
}

#[tokio::test]
async fn no_request_fails_when_a_task_dies() {
    let (a, b, port) = (EchoTask::start(b'a').await, EchoTask::start(b'b').await, free_port().await);
    let ingress = ingress();
    publish(&ingress, port, &[(1, HERE, a.address), (2, HERE, b.address)]).await;
    a.kill().await;
    for _ in 0..50 {
        let (mut stream, name) = connect(port).await.unwrap();
        assert_eq!(name, b'b');
        echo(&mut stream, b"still here").await;
    }
    assert!(ingress.metrics().all.ejections.get() >= 1);
    assert!(ingress.metrics().all.attempts_failed.get() < 10, "a resting backend is not tried each time");
}

#[tokio::test]
async fn a_task_that_is_about_to_be_stopped_gets_no_connection_from_anywhere() {
    let (a, b, port) = (EchoTask::start(b'a').await, EchoTask::start(b'b').await, free_port().await);
    let (near, far) = two_nodes();
    // Neither table says so yet.
    let backends = [(1, THERE, a.address), (2, HERE, b.address)];
    publish(&near, port, &backends).await;
    far.apply(BTreeMap::from([(tcp(port), route(&backends))]), BTreeMap::new());
    let mut open = loop {
        let (stream, name) = connect(port).await.unwrap();
        if name == b'a' {
            break stream;
        }
    };
    let retired = far.serving().retire(TaskId(1), Duration::ZERO).await;
    assert!(retired.left >= 1, "the connection that it has is counted");
    let begun = a.served.load(Ordering::SeqCst);
    for _ in 0..50 {
        assert_eq!(connect(port).await.unwrap().1, b'b');
    }
    assert_eq!(a.served.load(Ordering::SeqCst), begun);
    echo(&mut open, b"and it goes on").await;
    drop(open);
    assert_eq!(far.serving().retire(TaskId(1), PATIENCE).await.left, 0);
    // The same where the task is.
    let (stream, _) = connect(port).await.unwrap();
    assert!(near.serving().retire(TaskId(2), Duration::ZERO).await.left >= 1);
    drop(stream);
    assert_eq!(near.serving().retire(TaskId(2), PATIENCE).await.left, 0);
}

#[tokio::test]
async fn stalled_tasks_and_silent_nodes_are_passed_over() {
    let (task, port) = (EchoTask::start(b'a').await, free_port().await);
    let (stalled, _queue) = blackhole();
    let ingress = ingress();
    let gone = SocketAddr::new(LOCALHOST, 1);
    let stalled = stalled.local_addr().unwrap();
    publish(&ingress, port, &[(1, HERE, stalled), (2, NodeId(99), gone), (3, HERE, task.address)]).await;
    for _ in 0..20 {
        let start = Instant::now();
        assert_eq!(connect(port).await.unwrap().1, b'a');
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    }
}

#[tokio::test]
async fn suspect_tasks_are_used_when_no_other_is_left() {
    let (a, b, port) = (EchoTask::start(b'a').await, EchoTask::start(b'b').await, free_port().await);
    let ingress = ingress();
    let mut route = route(&[(1, HERE, a.address), (2, HERE, b.address)]);
    route.backends.get_mut(&TaskId(1)).unwrap().suspect = true;
    ingress.apply(BTreeMap::from([(tcp(port), route)]), BTreeMap::new());
    wait_for("port open", || async { connect(port).await.is_ok() }).await;
    for _ in 0..20 {
        assert_eq!(connect(port).await.unwrap().1, b'b');
    }
    b.kill().await;
    assert_eq!(connect(port).await.unwrap().1, b'a');
}

#[tokio::test]
async fn a_client_without_backends_is_reset_and_one_that_waits_is_served() {
    let (task, port) = (EchoTask::start(b'a').await, free_port().await);
    let ingress = ingress();
    publish(&ingress, port, &[]).await;
    let error = connect(port).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    let waiting = tokio::spawn(connect(port));
    wait_for("waiting client", || async { ingress.metrics().all.accepted.get() >= 3 }).await;
    publish(&ingress, port, &[(1, HERE, task.address)]).await;
    assert_eq!(waiting.await.unwrap().unwrap().1, b'a');
}

#[tokio::test]
async fn either_side_may_end_first() {
    let (task, port) = (EchoTask::start(b'a').await, free_port().await);
    let (near, far) = two_nodes();
    far.apply(BTreeMap::from([(tcp(port), route(&[(1, THERE, task.address)]))]), BTreeMap::new());
    for node in [HERE, THERE] {
        let nodes = if node == HERE { "local" } else { "remote" };
        publish(&near, port, &[(1, node, task.address)]).await;
        let (mut stream, _) = connect(port).await.unwrap();
        stream.write_all(b"last words").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut rest = Vec::new();
        timeout(PATIENCE, stream.read_to_end(&mut rest)).await.unwrap().unwrap();
        assert_eq!(rest, b"last wordsbye", "{nodes}");
    }
    wait_for("connections to end", || async { near.metrics().all.open.get() == 0 }).await;
}

#[tokio::test]
async fn a_broken_task_connection_is_a_reset_not_an_end() {
    let listener = TcpListener::bind((LOCALHOST, 0)).await.unwrap();
    let (address, port, ingress) = (listener.local_addr().unwrap(), free_port().await, ingress());
    publish(&ingress, port, &[(1, HERE, address)]).await;
    // Any number of earlier connections came from waiting for the port.
    let server = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            if stream.read_u8().await.is_ok() {
                stream.set_zero_linger().unwrap();
            }
        }
    });
    let mut stream = TcpStream::connect((LOCALHOST, port)).await.unwrap();
    stream.write_u8(1).await.unwrap();
    let result = timeout(PATIENCE, stream.read_u8()).await.unwrap();
    assert_eq!(result.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    assert_eq!(ingress.metrics().all.given_up.get(), 0);
    server.abort();
}

#[tokio::test]
async fn bulk_arrives_whole_and_a_slow_reader_stops_the_writer() {
    const BYTES: usize = 64 << 20;
    let listener = TcpListener::bind((LOCALHOST, 0)).await.unwrap();
    let (address, port, ingress) = (listener.local_addr().unwrap(), free_port().await, ingress());
    let sent = Arc::new(AtomicUsize::new(0));
    let count = sent.clone();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let count = count.clone();
            tokio::spawn(async move {
                if stream.read_u8().await.is_err() {
                    return;
                }
                let chunk = vec![7; 1 << 16];
                for _ in 0..BYTES / chunk.len() {
                    stream.write_all(&chunk).await.unwrap();
                    count.fetch_add(chunk.len(), Ordering::SeqCst);
                }
            });
        }
    });
    publish(&ingress, port, &[(1, HERE, address)]).await;
    let mut stream = TcpStream::connect((LOCALHOST, port)).await.unwrap();
    stream.write_u8(1).await.unwrap();
    // The writer comes to rest although the reader has not read: what lies between is bounded.
    let before = std::sync::atomic::AtomicUsize::new(usize::MAX);
    wait_for("writer to rest", || async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let now = sent.load(Ordering::SeqCst);
        now > 0 && before.swap(now, Ordering::SeqCst) == now
    })
    .await;
    assert!(sent.load(Ordering::SeqCst) < BYTES / 2);
    let mut all = Vec::with_capacity(BYTES);
    timeout(PATIENCE, stream.read_to_end(&mut all)).await.unwrap().unwrap();
    assert_eq!(all.len(), BYTES);
    assert!(all.iter().all(|byte| *byte == 7));
}

/// A task that reads a header of `bytes` and one byte more, and sends all of it back.
async fn read_header(bytes: usize) -> SocketAddr {
    let listener = TcpListener::bind((LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut all = vec![0; bytes + 1];
                stream.read_exact(&mut all).await?;
                stream.write_all(&all).await
            });
        }
    });
    address
}

#[tokio::test]
async fn a_task_is_told_who_the_client_is_if_it_wants_to_know() {
    let port = free_port().await;
    let (near, far) = two_nodes();
    for (node, version) in
        [(HERE, ProxyVersion::V1), (HERE, ProxyVersion::V2), (THERE, ProxyVersion::V1), (THERE, ProxyVersion::V2)]
    {
        publish(&near, port, &[]).await;
        let client = TcpSocket::new_v4().unwrap();
        client.bind(SocketAddr::new(LOCALHOST, 0)).unwrap();
        let want = proxy::header(version, client.local_addr().unwrap(), SocketAddr::new(LOCALHOST, port));
        let settings = PortSettings { proxy: Some(version), ..PortSettings::default() };
        let route = Route { settings, ..route(&[(1, node, read_header(want.len()).await)]) };
        far.apply(BTreeMap::from([(tcp(port), route.clone())]), BTreeMap::new());
        near.apply(BTreeMap::from([(tcp(port), route)]), BTreeMap::new());
        // A client that comes before the route waits for a backend.
        let mut stream = client.connect(SocketAddr::new(LOCALHOST, port)).await.unwrap();
        stream.write_all(b"!").await.unwrap();
        let mut got = vec![0; want.len() + 1];
        timeout(PATIENCE, stream.read_exact(&mut got)).await.unwrap().unwrap();
        assert_eq!(got, [&want[..], b"!"].concat(), "{version:?} on {node}");
    }
}

#[tokio::test]
async fn changing_the_table_keeps_connections_and_draws_no_new_ones_to_what_left() {
    let (a, b, port) = (EchoTask::start(b'a').await, EchoTask::start(b'b').await, free_port().await);
    let ingress = ingress();
    publish(&ingress, port, &[(1, HERE, a.address)]).await;
    let (mut old, _) = connect(port).await.unwrap();
    publish(&ingress, port, &[(1, HERE, a.address), (2, HERE, b.address)]).await;
    echo(&mut old, b"unchanged").await;
    publish(&ingress, port, &[(2, HERE, b.address)]).await;
    wait_for("route to move", || async { connect(port).await.unwrap().1 == b'b' }).await;
    let served = a.served.load(Ordering::SeqCst);
    for _ in 0..30 {
        assert_eq!(connect(port).await.unwrap().1, b'b');
    }
    assert_eq!(a.served.load(Ordering::SeqCst), served);
    echo(&mut old, b"draining").await;
    ingress.apply(BTreeMap::new(), BTreeMap::new());
    wait_for("port closed", || async { TcpStream::connect((LOCALHOST, port)).await.is_err() }).await;
    echo(&mut old, b"port is gone").await;
}

#[tokio::test]
async fn the_table_may_change_under_load() {
    let (a, b, port) = (EchoTask::start(b'a').await, EchoTask::start(b'b').await, free_port().await);
    let ingress = ingress();
    let all = [(1, HERE, a.address), (2, HERE, b.address)];
    publish(&ingress, port, &all).await;
    let clients: Vec<_> = (0..8)
        .map(|_| {
            tokio::spawn(async move {
                for _ in 0..100 {
                    let (mut stream, _) = connect(port).await.unwrap();
                    echo(&mut stream, b"request").await;
                }
            })
        })
        .collect();
    for turn in 0.. {
        let keep = if turn % 3 == 2 { &all[..] } else { &all[turn % 3..turn % 3 + 1] };
        ingress.apply(BTreeMap::from([(tcp(port), route(keep))]), BTreeMap::new());
        tokio::task::yield_now().await;
        if clients.iter().all(JoinHandle::is_finished) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    for client in clients {
        client.await.unwrap();
    }
}

#[tokio::test]
async fn connections_beyond_the_bound_wait() {
    let (task, port) = (EchoTask::start(b'a').await, free_port().await);
    let ingress = Ingress::spawn(config(HERE, 2), Arc::<Nodes>::default());
    publish(&ingress, port, &[(1, HERE, task.address)]).await;
    wait_for("probe to end", || async { ingress.metrics().all.open.get() == 0 }).await;
    let (first, _) = connect(port).await.unwrap();
    let (_second, _) = connect(port).await.unwrap();
    let third = tokio::spawn(connect(port));
    wait_for("accepting to pause", || async { ingress.metrics().paused.get() == 1 }).await;
    assert_eq!(ingress.metrics().all.open.get(), 2);
    assert!(!third.is_finished());
    drop(first);
    assert_eq!(third.await.unwrap().unwrap().1, b'a');
}

#[tokio::test]
async fn a_taken_port_is_reported_and_opened_once_it_is_free() {
    let (task, ingress) = (EchoTask::start(b'a').await, ingress());
    let squatter = TcpListener::bind((LOCALHOST, 0)).await.unwrap();
    let port = squatter.local_addr().unwrap().port();
    ingress.apply(BTreeMap::from([(tcp(port), route(&[(1, HERE, task.address)]))]), BTreeMap::new());
    let mut errors = ingress.port_errors();
    let reported = timeout(PATIENCE, errors.wait_for(|errors| errors.contains_key(&tcp(port)))).await.unwrap().unwrap()
        [&tcp(port)]
        .clone();
    assert!(reported.contains("in use"), "{reported}");
    drop(squatter);
    timeout(PATIENCE, errors.wait_for(BTreeMap::is_empty)).await.unwrap().unwrap();
    assert_eq!(connect(port).await.unwrap().1, b'a');
}

#[tokio::test]
async fn a_port_is_opened_on_the_address_of_its_service_alone() {
    let (task, port) = (EchoTask::start(b'a').await, free_port().await);
    let config = IngressConfig { publish_addr: None, ..config(HERE, CONNECTIONS_MAX) };
    let ingress = Ingress::spawn(config, Arc::<Nodes>::default());
    let on = |address: &str| Route {
        settings: PortSettings { address: Some(address.parse().unwrap()), ..PortSettings::default() },
        ..route(&[(1, HERE, task.address)])
    };
    let apply = |address: &str| ingress.apply(BTreeMap::from([(tcp(port), on(address))]), BTreeMap::new());
    let answers = |address: &str| {
        let address: IpAddr = address.parse().unwrap();
        async move { TcpStream::connect((address, port)).await.is_ok() }
    };
    apply("127.0.0.7");
    wait_for("the address", || answers("127.0.0.7")).await;
    assert!(!answers("127.0.0.1").await);
    apply("127.0.0.8");
    wait_for("another address", || answers("127.0.0.8")).await;
    assert!(!answers("127.0.0.7").await);
    let mut errors = ingress.port_errors();
    apply("192.0.2.1"); // TEST-NET-1, which nobody has
    let reported = timeout(PATIENCE, errors.wait_for(|errors| !errors.is_empty())).await.unwrap().unwrap().clone();
    assert!(reported[&tcp(port)].contains("192.0.2.1: "), "{reported:?}");
    apply("127.0.0.7");
    wait_for("the first address again", || answers("127.0.0.7")).await;
    assert!(ingress.port_errors().borrow().is_empty());
}

#[test]
fn a_node_that_publishes_on_one_address_opens_no_other() {
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    for (own, wanted, want) in [
        (None, None, Ok(None)),
        (None, Some("10.0.0.1"), Ok(Some("10.0.0.1"))),
        (Some("10.0.0.1"), None, Ok(Some("10.0.0.1"))),
        (Some("10.0.0.1"), Some("10.0.0.1"), Ok(Some("10.0.0.1"))),
        (Some("0.0.0.0"), Some("10.0.0.1"), Ok(Some("10.0.0.1"))),
        (Some("10.0.0.1"), Some("10.0.0.2"), Err(())),
        (Some("10.0.0.1"), Some("0.0.0.0"), Err(())),
    ] {
        let got = listener::address(own.map(ip), wanted.map(ip)).map_err(drop);
        assert_eq!(got, want.map(|address: Option<&str>| address.map(ip)), "{own:?} {wanted:?}");
    }
}

#[tokio::test]
async fn a_host_port_leads_to_the_local_task_alone() {
    let (task, port, ingress) = (EchoTask::start(b'a').await, free_port().await, ingress());
    ingress.apply(BTreeMap::new(), BTreeMap::from([(tcp(port), task.address)]));
    wait_for("host port", || async { connect(port).await.is_ok() }).await;
    let (mut near_end, far_end) = tokio::io::duplex(1024);
    let far = ingress.clone();
    tokio::spawn(async move { far.serve_tunnel(far_end).await });
    let result = tunnel::request(&mut near_end, TaskId::default(), task.address.port()).await;
    assert!(matches!(result, Err(TunnelError::Answered(tunnel::Refusal::NoSuchTask))));
    ingress.apply(BTreeMap::new(), BTreeMap::new());
    wait_for("port closed", || async { TcpStream::connect((LOCALHOST, port)).await.is_err() }).await;
}

#[tokio::test]
async fn ports_close_with_the_last_handle() {
    let (task, port, ingress) = (EchoTask::start(b'a').await, free_port().await, ingress());
    publish(&ingress, port, &[(1, HERE, task.address)]).await;
    drop(ingress);
    wait_for("port closed", || async { TcpStream::connect((LOCALHOST, port)).await.is_err() }).await;
}
