//! Links: their order, their ends, their renewal.

use super::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_arrive_in_order_both_ways() {
    let cluster = TestCluster::new();
    let (mut a, mut b) = (cluster.node(Role::Manager).await, cluster.node(Role::Worker).await);
    a.knows(&[&b]);
    assert_eq!(a.expect_up(b.id).await, (Role::Worker, b.address()));
    assert_eq!(b.expect_up(a.id).await, (Role::Manager, a.address()));
    for count in 0..500 {
        assert!(a.handle.send(b.id, &gossip(count), Priority::Own));
        assert!(b.handle.send(a.id, &gossip(count), Priority::Bulk));
    }
    for count in 0..500 {
        assert_eq!(number(&b.expect_message(a.id).await), count);
        assert_eq!(number(&a.expect_message(b.id).await), count);
    }
    assert_eq!(a.handle.node_at(b.address()), Some(b.id));
    assert!(!a.handle.send(NodeId(1), &gossip(0), Priority::Own), "nobody there");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_peer_costs_bounded_memory_and_never_blocks() {
    let cluster = TestCluster::new();
    let (mut a, mut b) = (cluster.node(Role::Manager).await, cluster.node(Role::Manager).await);
    link(&mut a, &mut b).await;
    // Nobody reads b's events: its reader stops, then the stream's window, then the queue fills.
    let big = PeerMessage::Gossip(vec![0; 500_000]);
    let begun = Instant::now();
    let queued = (0..2000).filter(|_| a.handle.send(b.id, &big, Priority::Bulk)).count();
    assert!(queued < 2000, "everything was queued");
    assert!(begun.elapsed() < DEADLINE);
    assert!(a.handle.send(b.id, &gossip(1), Priority::Own), "own messages have room left");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_dial_each_other_at_once_end_up_with_one_link() {
    for _ in 0..10 {
        let cluster = TestCluster::new();
        let (mut a, mut b) = (cluster.node(Role::Manager).await, cluster.node(Role::Manager).await);
        // Seeds are dialled without politeness, so that both dial at the same moment.
        a.handle.dial(b.address());
        b.handle.dial(a.address());
        a.knows(&[&b]);
        b.knows(&[&a]);
        a.expect_up(b.id).await;
        b.expect_up(a.id).await;
        // Messages may be lost while the second connection is given up, but soon all get through.
        let exchange = async {
            loop {
                a.handle.send(b.id, &gossip(1), Priority::Own);
                b.handle.send(a.id, &gossip(1), Priority::Own);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let arrive = async {
            let mut ups = 0;
            for (to, from) in [(&mut a.events, b.id), (&mut b.events, a.id)] {
                loop {
                    match to.recv().await.unwrap() {
                        SwarmEvent::Message { from: sender, .. } if sender == from => break,
                        SwarmEvent::Down { .. } | SwarmEvent::Up { .. } => ups += 1,
                        _ => {}
                    }
                }
            }
            ups
        };
        let changes = tokio::select! {
            () = exchange => 0,
            changes = tokio::time::timeout(DEADLINE, arrive) => changes.unwrap(),
        };
        assert_eq!(changes, 0, "giving up the second connection is silent");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_goes_away_is_down_at_once_and_found_again() {
    let cluster = TestCluster::new();
    let (mut a, mut b) = (cluster.node(Role::Manager).await, cluster.node(Role::Manager).await);
    link(&mut a, &mut b).await;
    let (key, port) = (b.key.clone(), b.address().port());
    let membership = cluster.membership_at(&key, Role::Manager, NOW);
    let begun = Instant::now();
    b.handle.shutdown().await;
    a.expect_down(b.id).await;
    assert!(begun.elapsed() < Duration::from_secs(2), "took {:?}", begun.elapsed());

    let mut again = TestNode::start(key.clone(), Some(membership.clone()), port).await;
    a.expect_up(again.id).await;
    again.expect_up(a.id).await;

    // It comes back at another port, which a is told.
    again.handle.shutdown().await;
    a.expect_down(again.id).await;
    let mut elsewhere = TestNode::start(key, Some(membership), 0).await;
    a.knows(&[&elsewhere]);
    assert_eq!(a.expect_up(elsewhere.id).await.1, elsewhere.address());
    elsewhere.expect_up(a.id).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_peer_is_down_after_a_few_seconds() {
    let cluster = TestCluster::new();
    let (mut a, mut b) = (cluster.node(Role::Manager).await, cluster.node(Role::Manager).await);
    let (proxy, cut) = Proxy::start(b.address()).await;
    a.handle.set_peers([(b.id, vec![proxy])].into());
    a.expect_up(b.id).await;
    b.expect_up(a.id).await;
    // An idle link stays.
    let idle = tokio::time::timeout(link::SILENCE_MAX + Duration::from_secs(2), a.expect_down(b.id)).await;
    assert!(idle.is_err(), "an idle link was closed");
    cut.cancel();
    a.expect_down(b.id).await;
    b.expect_down(a.id).await;
}

/// Passes bytes on until it is cut: then it keeps its connections open and passes on nothing, like a pulled cable.
struct Proxy;

impl Proxy {
    async fn start(to: SocketAddr) -> (SocketAddr, tokio_util::sync::CancellationToken) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let cut = tokio_util::sync::CancellationToken::new();
        let token = cut.clone();
        tokio::spawn(async move {
            let mut kept = Vec::new();
            while let Ok((mut near, _)) = listener.accept().await {
                if token.is_cancelled() {
                    kept.push(near);
                    continue;
                }
                let token = token.clone();
                tokio::spawn(async move {
                    let mut far = tokio::net::TcpStream::connect(to).await.unwrap();
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                        () = token.cancelled() => std::future::pending().await,
                    }
                });
            }
        });
        (address, cut)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn probes_use_fresh_connections_and_disturb_nothing() {
    let cluster = TestCluster::new();
    let (mut a, mut b) = (cluster.node(Role::Manager).await, cluster.node(Role::Worker).await);
    link(&mut a, &mut b).await;
    for _ in 0..20 {
        assert!(a.handle.probe(b.id, b.address(), DEADLINE).await);
    }
    assert!(b.handle.probe(a.id, a.address(), DEADLINE).await);
    assert!(!a.handle.probe(NodeId(7), b.address(), DEADLINE).await, "somebody else is there");
    let address = b.address();
    b.handle.shutdown().await;
    assert!(!a.handle.probe(b.id, address, DEADLINE).await, "nobody is there");
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let limit = Duration::from_millis(300);
    assert!(!a.handle.probe(b.id, silent.local_addr().unwrap(), limit).await, "nobody answers");
    a.expect("the end of the one link, and nothing before it", |event| match event {
        SwarmEvent::Down { .. } => Some(()),
        event => panic!("unexpected {event:?}"),
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tunnels_carry_bytes_and_half_closes() {
    let cluster = TestCluster::new();
    let (mut a, mut b) = (cluster.node(Role::Manager).await, cluster.node(Role::Worker).await);
    link(&mut a, &mut b).await;
    // A burst, opened by either side of the connection.
    let mut opened = Vec::new();
    for count in 0..200u32 {
        let (near, far) = if count % 2 == 0 { (&a, &b) } else { (&b, &a) };
        let mut stream = match count % 3 {
            0 => near.handle.open_api(far.id).await.unwrap(),
            1 => near.handle.open_datagrams(far.id).await.unwrap(),
            _ => near.handle.open_tunnel(far.id).await.unwrap(),
        };
        stream.write_u32(count).await.unwrap();
        stream.shutdown().await.unwrap();
        opened.push(stream);
    }
    for node in [&mut a, &mut b] {
        for _ in 0..100 {
            let mut stream = node
                .expect("stream", |event| match event {
                    SwarmEvent::Tunnel { stream, .. }
                    | SwarmEvent::Datagrams { stream, .. }
                    | SwarmEvent::Api { stream, .. } => Some(stream),
                    _ => None,
                })
                .await;
            tokio::spawn(async move {
                let mut bytes = Vec::new();
                stream.read_to_end(&mut bytes).await.unwrap();
                stream.write_all(&bytes).await.unwrap();
                stream.shutdown().await.unwrap();
            });
        }
    }
    for (count, mut stream) in opened.into_iter().enumerate() {
        let mut bytes = Vec::new();
        tokio::time::timeout(DEADLINE, stream.read_to_end(&mut bytes)).await.unwrap().unwrap();
        assert_eq!(bytes, (count as u32).to_be_bytes());
    }
    assert!(a.handle.open_tunnel(NodeId(9)).await.is_err());
}

#[tokio::test]
async fn a_taken_port_is_an_error_that_names_it() {
    let cluster = TestCluster::new();
    let node = cluster.node(Role::Manager).await;
    let key = NodeKey::generate();
    let listen = node.address();
    let config = SwarmConfig { key, listen, advertise: listen, membership: None, clock: now };
    let error = spawn(config, mpsc::channel(1).0).await.unwrap_err();
    assert_eq!(error.to_string(), format!("failed to listen on {listen}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_goes_on_with_a_new_credential() {
    let cluster = TestCluster::new();
    let (mut a, mut b) = (cluster.node(Role::Worker).await, cluster.node(Role::Manager).await);
    link(&mut a, &mut b).await;
    for role in [Role::Manager, Role::Worker] {
        a.handle.set_membership(Some(cluster.membership_at(&a.key, role, NOW))).unwrap();
        let shown = b.expect("a new credential", |event| match event {
            SwarmEvent::Refreshed { node, granted } => Some((node, granted.role)),
            SwarmEvent::Down { .. } => panic!("the link was closed"),
            _ => None,
        });
        assert_eq!(shown.await, (a.id, role));
        assert_eq!(b.handle.peers().first().map(|peer| peer.granted.role), Some(role));
        assert!(a.handle.send(b.id, &gossip(1), Priority::Own));
        b.expect_message(a.id).await;
    }
}
