//! Peers that do not keep to the protocol.

use super::*;
use crate::swarm::SecretError;
use crate::swarm::service::{self, Behaviour, CONTROL, HELLO};
use crate::swarm::wire::{self, Hello, HelloReply, Introduction, JoinAnswer, JoinAsk, Purpose};
use futures::StreamExt;
use libp2p::StreamProtocol;
use libp2p::swarm::dial_opts::DialOpts;
use shoal_control::core::Withheld;
use shoal_protocol::message::PeerMessage;
use shoal_protocol::spec::Availability;
use shoal_protocol::{ObjectId, TaskId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use zeroize::Zeroizing;

/// A libp2p node that speaks the right transport, and otherwise does as a test tells it.
struct Intruder {
    swarm: libp2p::Swarm<Behaviour>,
    connection: libp2p::swarm::ConnectionId,
    peer: libp2p::PeerId,
    is_closed: bool,
}

impl Intruder {
    async fn connect(key: &NodeKey, to: SocketAddr) -> Self {
        let mut swarm = service::build(key).unwrap();
        let address = format!("/ip4/{}/tcp/{}", to.ip(), to.port()).parse().unwrap();
        swarm.dial(DialOpts::unknown_peer_id().address(address).allocate_new_port().build()).unwrap();
        let connected = async {
            loop {
                let event = swarm.select_next_some().await;
                if let libp2p::swarm::SwarmEvent::ConnectionEstablished { connection_id, peer_id, .. } = event {
                    return (connection_id, peer_id);
                }
            }
        };
        let (connection, peer) = tokio::time::timeout(DEADLINE, connected).await.unwrap();
        Self { swarm, connection, peer, is_closed: false }
    }

    /// Runs `work` on a stream of a protocol while the connection is driven.
    async fn on_stream<T>(&mut self, protocol: StreamProtocol, work: impl AsyncFnOnce(PeerStream) -> T) -> T {
        let (reply, stream) = oneshot::channel();
        self.swarm.behaviour_mut().streams.open(self.peer, self.connection, protocol, reply);
        let work = async {
            let stream = stream.await.unwrap().unwrap();
            work(PeerStream::new(stream)).await
        };
        let drive = async {
            loop {
                self.is_closed |= is_end(&self.swarm.select_next_some().await);
            }
        };
        tokio::select! {
            done = tokio::time::timeout(DEADLINE, work) => done.expect("in time"),
            () = drive => unreachable!(),
        }
    }

    /// Waits until the other side has closed the connection.
    async fn expect_end(mut self) {
        let closed = async {
            while !self.is_closed {
                self.is_closed = is_end(&self.swarm.select_next_some().await);
            }
        };
        tokio::time::timeout(DEADLINE, closed).await.expect("thrown out in time");
    }
}

fn is_end<T>(event: &libp2p::swarm::SwarmEvent<T>) -> bool {
    matches!(event, libp2p::swarm::SwarmEvent::ConnectionClosed { .. })
}

fn hello(credential: Vec<u8>) -> Hello {
    let introduction = Introduction { credential, incarnation: 1, advertise: ([127, 0, 0, 1], 1).into() };
    Hello { purpose: Purpose::Link, introduction }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn raw_connections_are_dropped_and_cost_little() {
    let cluster = TestCluster::new();
    let (mut a, mut b) = (cluster.node(Role::Manager).await, cluster.node(Role::Manager).await);
    let mut clients = Vec::new();
    for count in 0..200 {
        let mut client = TcpStream::connect(a.address()).await.unwrap();
        let _ = match count % 3 {
            0 => client.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await,
            1 => client.write_all(&[0xff; 4096]).await,
            _ => Ok(()), // Says nothing and waits.
        };
        clients.push(client);
    }
    for mut client in clients {
        let mut buffer = Vec::new();
        let read = tokio::time::timeout(DEADLINE, client.read_to_end(&mut buffer)).await;
        assert!(read.is_ok(), "a raw connection was kept");
    }
    link(&mut b, &mut a).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_credential_no_protocol_does_anything() {
    let cluster = TestCluster::new();
    let mut a = cluster.node(Role::Manager).await;
    let mut intruder = Intruder::connect(&NodeKey::generate(), a.address()).await;
    for protocol in [CONTROL, service::TUNNEL, service::DATAGRAMS, service::API, service::RENEW, service::SECRET] {
        let answer = intruder
            .on_stream(protocol, async |mut stream| {
                let frame = codec::encode(&PeerMessage::Ping { digest: 0 }).unwrap();
                let _ = stream.write_all(&wire::length(&frame)).await;
                let _ = stream.write_all(&frame).await;
                let _ = stream.flush().await;
                let mut answer = Vec::new();
                let _ = stream.read_to_end(&mut answer).await;
                answer
            })
            .await;
        // The name of the protocol is confirmed before the stream is dropped; nothing of the cluster is said.
        assert!(answer.is_empty(), "{answer:?}");
    }
    intruder.expect_end().await;
    assert!(a.events.try_recv().is_err(), "an event was caused");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_hellos_are_refused_with_the_reason() {
    let cluster = TestCluster::new();
    let mut a = cluster.node(Role::Manager).await;
    let key = NodeKey::generate();
    let stolen = cluster.membership_at(&NodeKey::generate(), Role::Manager, NOW).credential;
    for (credential, want) in [(vec![1, 2, 3], "malformed"), (stolen, "another node"), (vec![0; 9000], "malformed")] {
        let mut intruder = Intruder::connect(&key, a.address()).await;
        let reply = intruder
            .on_stream(HELLO, async |mut stream| {
                wire::write(&mut stream, &hello(credential)).await.unwrap();
                wire::read::<HelloReply>(&mut stream).await.unwrap()
            })
            .await;
        let HelloReply::Refused(reason, _) = reply else { panic!("admitted") };
        assert!(reason.to_string().contains(want), "{reason}");
        intruder.expect_end().await;
    }
    assert!(a.events.try_recv().is_err(), "an event was caused");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn oversized_frames_end_the_connection() {
    let cluster = TestCluster::new();
    let mut a = cluster.node(Role::Manager).await;
    for protocol in [HELLO, service::JOIN] {
        let mut intruder = Intruder::connect(&NodeKey::generate(), a.address()).await;
        let answer = intruder
            .on_stream(protocol, async |mut stream| {
                let _ = stream.write_all(&u32::MAX.to_be_bytes()).await;
                let _ = stream.flush().await;
                let mut answer = Vec::new();
                let _ = stream.read_to_end(&mut answer).await;
                answer
            })
            .await;
        assert!(answer.is_empty(), "{answer:?}");
        intruder.expect_end().await;
    }
    assert!(a.events.try_recv().is_err(), "an event was caused");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_without_the_question_for_the_root_is_not_heard() {
    let cluster = TestCluster::new();
    let mut a = cluster.node(Role::Manager).await;
    let mut intruder = Intruder::connect(&NodeKey::generate(), a.address()).await;
    let secret = cluster.token(Role::Manager).secret;
    let answer = intruder
        .on_stream(service::JOIN, async |mut stream| {
            let ask =
                JoinAsk::Admit { secret, advertise: ([127, 0, 0, 1], 1).into(), availability: Availability::Active };
            wire::write(&mut stream, &ask).await.unwrap();
            wire::read::<JoinAnswer>(&mut stream).await
        })
        .await;
    assert!(answer.is_err(), "{answer:?}");
    assert!(a.events.try_recv().is_err(), "an event was caused");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_breaks_the_protocol_is_cut_off() {
    let cluster = TestCluster::new();
    let mut a = cluster.node(Role::Manager).await;
    for bytes in [u32::MAX.to_be_bytes().to_vec(), vec![0, 0, 0, 3, 1, 255, 255], vec![0, 0, 0, 2, 99, 0]] {
        let key = NodeKey::generate();
        let credential = cluster.membership_at(&key, Role::Worker, NOW).credential;
        let mut intruder = Intruder::connect(&key, a.address()).await;
        let reply = intruder
            .on_stream(HELLO, async |mut stream| {
                wire::write(&mut stream, &hello(credential)).await.unwrap();
                wire::read::<HelloReply>(&mut stream).await.unwrap()
            })
            .await;
        assert!(matches!(reply, HelloReply::Welcome(_)), "{reply:?}");
        intruder
            .on_stream(CONTROL, async |mut stream| {
                let _ = stream.write_all(&bytes).await;
                let _ = stream.flush().await;
                let _ = stream.read_to_end(&mut Vec::new()).await;
            })
            .await;
        a.expect_up(key.node_id()).await;
        a.expect_down(key.node_id()).await;
        intruder.expect_end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manager_learns_who_asks_for_a_secret_and_its_word_arrives() {
    let cluster = TestCluster::new();
    let (mut manager, mut worker) = (cluster.node(Role::Manager).await, cluster.node(Role::Worker).await);
    link(&mut worker, &mut manager).await;
    let (id, asked_node, task, secret) = (worker.id, manager.id, TaskId(3), Hidden::Secret(ObjectId(4)));
    let large = vec![7; shoal_protocol::object::DATA_BYTES_LIMIT - 1];
    for (given, want) in [
        (Ok(Zeroizing::new(large.clone())), Ok(large)),
        (Err(Withheld::NotYet("later".to_owned())), Err(Withheld::NotYet("later".to_owned()))),
        (Err(Withheld::Refused("no".to_owned())), Err(Withheld::Refused("no".to_owned()))),
    ] {
        let deciding = manager.expect("a question", |event| match event {
            SwarmEvent::Secret { from, task, what, reply } => Some(((from, task, what), reply)),
            _ => None,
        });
        let deciding = async {
            let (asked, reply) = deciding.await;
            assert_eq!(asked, (id, task, secret));
            reply.send(given).unwrap();
        };
        let (got, ()) = tokio::join!(worker.handle.secret(asked_node, task, secret), deciding);
        match (got, want) {
            (Ok(got), Ok(want)) => assert_eq!(*got, want),
            (Err(SecretError::Withheld(got)), Err(want)) => assert_eq!(got, want),
            (got, want) => panic!("{got:?} is not {want:?}"),
        }
    }
    let asked_of_worker = manager.handle.secret(worker.id, task, secret).await;
    assert!(matches!(asked_of_worker, Err(SecretError::Withheld(Withheld::NotYet(_)))), "{asked_of_worker:?}");
    let stranger = worker.handle.secret(NodeId(99), task, secret).await;
    assert!(matches!(stranger, Err(SecretError::Unreachable(_))), "{stranger:?}");
}
