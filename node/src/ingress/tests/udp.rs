use tokio::net::UdpSocket;

use super::*;

/// How long a datagram may take before a client sends it again, as clients of UDP do.
const RESEND: Duration = Duration::from_millis(100);

/// A task that answers each datagram with its name and the datagram.
pub(super) struct EchoDatagrams {
    pub(super) address: SocketAddr,
    server: JoinHandle<()>,
}

impl EchoDatagrams {
    async fn start(name: u8) -> Self {
        Self::start_at(LOCALHOST, name).await
    }

    pub(super) async fn start_at(address: IpAddr, name: u8) -> Self {
        let socket = UdpSocket::bind((address, 0)).await.unwrap();
        let address = socket.local_addr().unwrap();
        let server = tokio::spawn(async move {
            let mut buffer = vec![0; 1 << 16];
            loop {
                let (bytes, from) = socket.recv_from(&mut buffer[1..]).await.unwrap();
                buffer[0] = name;
                // One byte of the longest is lost to the name: an answer is no longer than a datagram may be.
                let _ = socket.send_to(&buffer[..(bytes + 1).min(datagrams::DATAGRAM_BYTES_MAX)], from).await;
            }
        });
        Self { address, server }
    }

    async fn kill(self) {
        self.server.abort();
        let _ = self.server.await;
    }
}

/// A client whose socket takes answers of the published port alone.
pub(super) async fn client(port: u16) -> UdpSocket {
    let socket = UdpSocket::bind((LOCALHOST, 0)).await.unwrap();
    socket.connect((LOCALHOST, port)).await.unwrap();
    socket
}

/// Sends until there is an answer and returns who gave it.
pub(super) async fn ask(client: &UdpSocket, datagram: &[u8]) -> u8 {
    let mut buffer = vec![0; 1 << 16];
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        // A port that is not open yet is an error here.
        let _ = client.send(datagram).await;
        if let Ok(Ok(bytes)) = timeout(RESEND, client.recv(&mut buffer)).await {
            let echoed = &datagram[..datagram.len().min(datagrams::DATAGRAM_BYTES_MAX - 1)];
            assert_eq!(&buffer[1..bytes], echoed);
            return buffer[0];
        }
    }
    panic!("no answer");
}

pub(super) fn udp_free_port() -> u16 {
    std::net::UdpSocket::bind((LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

fn table(port: u16, backends: &[(u128, NodeId, SocketAddr)]) -> RouteTable {
    BTreeMap::from([(PublishedPort::udp(port), route(backends))])
}

/// Two nodes; the far one knows the port, but finds it taken, for both share the loopback address.
pub(super) async fn pair(port: u16, backends: &[(u128, NodeId, SocketAddr)]) -> (IngressHandle, IngressHandle) {
    let (near, far) = two_nodes();
    near.apply(table(port, backends), BTreeMap::new());
    // Whether it is open shows in a socket of ours no longer getting it.
    wait_for("port open", || async { UdpSocket::bind((LOCALHOST, port)).await.is_err() }).await;
    far.apply(table(port, backends), BTreeMap::new());
    (near, far)
}

#[tokio::test]
async fn clients_are_spread_and_each_keeps_its_task() {
    let (a, b, port) = (EchoDatagrams::start(b'a').await, EchoDatagrams::start(b'b').await, udp_free_port());
    let (near, far) = pair(port, &[(1, HERE, a.address), (2, THERE, b.address)]).await;
    let mut names = std::collections::BTreeSet::new();
    // Nobody gets the port of one that is gone, whose flow would be its own.
    let mut clients = Vec::new();
    for _ in 0..40 {
        let client = client(port).await;
        let name = ask(&client, b"first").await;
        for datagram in [&b"second"[..], b""] {
            assert_eq!(ask(&client, datagram).await, name);
        }
        names.insert(name);
        clients.push(client);
    }
    assert_eq!(names, [b'a', b'b'].into());
    let counted = near.metrics();
    assert_eq!(counted.all.accepted.get(), 40);
    assert_eq!(counted.all.open.get(), 40);
    assert_eq!(counted.all.connected_local.get() + counted.all.connected_remote.get(), 40);
    assert_eq!(far.metrics().tunnels_served.get(), counted.all.connected_remote.get());
}

#[tokio::test]
async fn the_longest_datagram_passes_both_ways() {
    for node in [HERE, THERE] {
        let (task, port) = (EchoDatagrams::start(b'a').await, udp_free_port());
        let _nodes = pair(port, &[(1, node, task.address)]).await;
        assert_eq!(ask(&client(port).await, &vec![7; datagrams::DATAGRAM_BYTES_MAX]).await, b'a');
    }
}

#[tokio::test]
async fn a_task_that_dies_is_replaced_for_its_flows() {
    for node in [HERE, THERE] {
        let (a, b, port) = (EchoDatagrams::start(b'a').await, EchoDatagrams::start(b'b').await, udp_free_port());
        let (near, far) = pair(port, &[(1, node, a.address)]).await;
        let client = client(port).await;
        assert_eq!(ask(&client, b"hello").await, b'a');
        for handle in [&near, &far] {
            handle.apply(table(port, &[(1, node, a.address), (2, node, b.address)]), BTreeMap::new());
        }
        assert_eq!(ask(&client, b"hello").await, b'a', "another task moves no flow");
        a.kill().await;
        let start = Instant::now();
        assert_eq!(ask(&client, b"hello").await, b'b');
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
        assert!(near.metrics().all.ejections.get() >= 1);
        assert_eq!(near.metrics().all.open.get(), 1);
    }
}

#[tokio::test]
async fn a_task_that_left_the_route_gets_no_more() {
    let (a, b, port) = (EchoDatagrams::start(b'a').await, EchoDatagrams::start(b'b').await, udp_free_port());
    let ingress = ingress();
    ingress.apply(table(port, &[(1, HERE, a.address)]), BTreeMap::new());
    let client = client(port).await;
    assert_eq!(ask(&client, b"hello").await, b'a');
    ingress.apply(table(port, &[(2, HERE, b.address)]), BTreeMap::new());
    wait_for("route to move", || async { ask(&client, b"hello").await == b'b' }).await;
}

#[tokio::test]
async fn a_node_that_does_not_answer_is_passed_over() {
    let (task, port) = (EchoDatagrams::start(b'a').await, udp_free_port());
    let ingress = ingress();
    let gone = SocketAddr::new(LOCALHOST, 1);
    ingress.apply(table(port, &[(1, NodeId(99), gone), (2, HERE, task.address)]), BTreeMap::new());
    for _ in 0..10 {
        assert_eq!(ask(&client(port).await, b"hello").await, b'a');
    }
}

#[tokio::test]
async fn without_a_backend_nothing_is_said_and_nothing_kept() {
    let (port, ingress) = (udp_free_port(), ingress());
    ingress.apply(table(port, &[]), BTreeMap::new());
    let client = client(port).await;
    wait_for("datagram counted", || async {
        let _ = client.send(b"hello").await;
        ingress.metrics().all.given_up.get() > 0
    })
    .await;
    let mut buffer = [0; 16];
    while timeout(Duration::ZERO, client.recv(&mut buffer)).await.is_ok_and(|result| result.is_err()) {}
    assert!(timeout(RESEND, client.recv(&mut buffer)).await.is_err());
    assert!(ingress.shared.flows().is_empty());
}

#[tokio::test]
async fn the_table_of_flows_is_bounded() {
    let (task, port) = (EchoDatagrams::start(b'a').await, udp_free_port());
    let config = IngressConfig { flows_max: 4, ..config(HERE, CONNECTIONS_MAX) };
    let ingress = Ingress::spawn(config, Arc::<Nodes>::default());
    ingress.apply(table(port, &[(1, HERE, task.address)]), BTreeMap::new());
    let mut clients = Vec::new();
    for _ in 0..20 {
        let client = client(port).await;
        assert_eq!(ask(&client, b"hello").await, b'a');
        clients.push(client);
        assert!(ingress.shared.flows().len() <= 4);
    }
    assert_eq!(ingress.metrics().flows_evicted.get(), 16);
    assert_eq!(ingress.metrics().all.open.get(), 4);
    // Whoever was pushed out is served again.
    assert_eq!(ask(&clients[0], b"hello").await, b'a');
}

#[tokio::test]
async fn both_transports_may_publish_one_number() {
    let (stream, datagrams) = (EchoTask::start(b's').await, EchoDatagrams::start(b'd').await);
    let (port, ingress) = (free_port().await, ingress());
    let table = BTreeMap::from([
        (tcp(port), route(&[(1, HERE, stream.address)])),
        (PublishedPort::udp(port), route(&[(2, HERE, datagrams.address)])),
    ]);
    ingress.apply(table, BTreeMap::new());
    assert_eq!(ask(&client(port).await, b"hello").await, b'd');
    wait_for("port open", || async { connect(port).await.is_ok_and(|(_, name)| name == b's') }).await;
    // Nor does a tunnel of one reach a port of the other.
    for (task, container_port, is_stream) in [(1, stream.address.port(), true), (2, datagrams.address.port(), false)] {
        for asks_stream in [true, false] {
            let (mut near_end, far_end) = tokio::io::duplex(1024);
            let far = ingress.clone();
            tokio::spawn(async move {
                match asks_stream {
                    true => far.serve_tunnel(far_end).await,
                    false => far.serve_datagrams(far_end).await,
                }
            });
            let answer = tunnel::request(&mut near_end, TaskId(task), container_port).await;
            assert_eq!(answer.is_ok(), is_stream == asks_stream, "{answer:?}");
        }
    }
}

#[tokio::test]
async fn a_host_port_leads_to_the_local_task() {
    let (task, port, ingress) = (EchoDatagrams::start(b'a').await, udp_free_port(), ingress());
    ingress.apply(BTreeMap::new(), BTreeMap::from([(PublishedPort::udp(port), task.address)]));
    assert_eq!(ask(&client(port).await, b"hello").await, b'a');
}

#[tokio::test]
async fn a_taken_port_is_reported_and_a_closed_one_is_free() {
    let (task, ingress) = (EchoDatagrams::start(b'a').await, ingress());
    let squatter = UdpSocket::bind((LOCALHOST, 0)).await.unwrap();
    let port = squatter.local_addr().unwrap().port();
    ingress.apply(table(port, &[(1, HERE, task.address)]), BTreeMap::new());
    let mut errors = ingress.port_errors();
    let reported = timeout(PATIENCE, errors.wait_for(|errors| !errors.is_empty())).await.unwrap().unwrap().clone();
    assert!(reported[&PublishedPort::udp(port)].contains("in use"), "{reported:?}");
    drop(squatter);
    assert_eq!(ask(&client(port).await, b"hello").await, b'a');
    assert!(ingress.port_errors().borrow().is_empty());
    ingress.apply(BTreeMap::new(), BTreeMap::new());
    wait_for("port closed", || async { UdpSocket::bind((LOCALHOST, port)).await.is_ok() }).await;
    wait_for("flows to end", || async { ingress.shared.flows().is_empty() }).await;
    assert_eq!(ingress.metrics().all.open.get(), 0);
}
