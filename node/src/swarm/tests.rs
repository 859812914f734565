//! Several swarms in one process, on loopback addresses.

mod admission;
mod hostile;
mod joining;
mod links;
mod throughput;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::*;
use crate::identity::{ClusterSecrets, ManagerKey, Root, create_cluster};
use shoal_protocol::settings::CREDENTIAL_DEFAULT;
use shoal_protocol::token::JoinToken;

/// How long anything may take on a busy machine.
const DEADLINE: Duration = Duration::from_secs(20);

/// What the nodes of these tests take for the present time.
const NOW: WallTime = WallTime(1_795_398_702_000_000_000);

/// How long the credentials of these tests are valid.
const VALID: (WallTime, Duration) = (NOW, CREDENTIAL_DEFAULT);

fn now() -> WallTime {
    NOW
}

/// A cluster's secrets, by which tests issue credentials.
struct TestCluster {
    root: Root,
    secrets: ClusterSecrets,
    manager_key: ManagerKey,
}

impl TestCluster {
    fn new() -> Self {
        let (membership, object) = create_cluster(&NodeKey::generate(), &Default::default(), NOW).unwrap();
        let manager_key = membership.manager_key.clone().unwrap();
        let secrets = ClusterSecrets::open(&object.sealed, &manager_key, object.id).unwrap();
        Self { root: membership.root().unwrap(), secrets, manager_key }
    }

    fn membership_at(&self, key: &NodeKey, role: Role, at: WallTime) -> Membership {
        Membership {
            root_pem: self.root.pem().to_owned(),
            credential: self
                .secrets
                .issue(&self.root, &key.public_key(), RoleGrant::first(role), (at, CREDENTIAL_DEFAULT))
                .unwrap(),
            granted: RoleGrant::first(role),
            manager_key: (role == Role::Manager).then(|| self.manager_key.clone()),
            lock: None,
        }
    }

    fn token(&self, role: Role) -> JoinToken {
        self.secrets.token(&self.root, role)
    }

    async fn node(&self, role: Role) -> TestNode {
        let key = NodeKey::generate();
        let membership = self.membership_at(&key, role, NOW);
        TestNode::start(key, Some(membership), 0).await
    }
}

struct TestNode {
    key: NodeKey,
    id: NodeId,
    handle: SwarmHandle,
    events: mpsc::Receiver<SwarmEvent>,
}

impl TestNode {
    async fn start(key: NodeKey, membership: Option<Membership>, port: u16) -> Self {
        Self::start_with_clock(key, membership, port, now).await
    }

    async fn start_with_clock(
        key: NodeKey,
        membership: Option<Membership>,
        port: u16,
        clock: fn() -> WallTime,
    ) -> Self {
        let (sender, events) = mpsc::channel(1024);
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let config = SwarmConfig { key: key.clone(), listen: address, advertise: address, membership, clock };
        let handle = spawn(config, sender).await.unwrap();
        Self { id: key.node_id(), key, handle, events }
    }

    fn address(&self) -> SocketAddr {
        self.handle.listen_address()
    }

    fn knows(&self, others: &[&TestNode]) {
        self.handle.set_peers(others.iter().map(|other| (other.id, vec![other.address()])).collect());
    }

    /// Waits for an event that `wanted` turns into something.
    async fn expect<T>(&mut self, what: &str, mut wanted: impl FnMut(SwarmEvent) -> Option<T>) -> T {
        let found = async {
            loop {
                let event = self.events.recv().await.unwrap_or_else(|| panic!("stopped before: {what}"));
                if let Some(found) = wanted(event) {
                    return found;
                }
            }
        };
        tokio::time::timeout(DEADLINE, found).await.unwrap_or_else(|_| panic!("not in time: {what}"))
    }

    async fn expect_up(&mut self, other: NodeId) -> (Role, SocketAddr) {
        self.expect("up", |event| match event {
            SwarmEvent::Up { node, granted, address } if node == other => Some((granted.role, address)),
            _ => None,
        })
        .await
    }

    async fn expect_down(&mut self, other: NodeId) {
        self.expect("down", |event| match event {
            SwarmEvent::Down { node } if node == other => Some(()),
            _ => None,
        })
        .await;
    }

    async fn expect_message(&mut self, from: NodeId) -> PeerMessage {
        self.expect("message", |event| match event {
            SwarmEvent::Message { from: sender, message } if sender == from => Some(message),
            _ => None,
        })
        .await
    }

    async fn expect_refused(&mut self) -> (Refusal, Option<(NodeId, Role)>) {
        self.expect("refused", |event| match event {
            SwarmEvent::Refused { reason, by, .. } => Some((reason, by)),
            _ => None,
        })
        .await
    }
}

/// Connects `a` to `b` and waits until both know it.
async fn link(a: &mut TestNode, b: &mut TestNode) {
    a.knows(&[b]);
    a.expect_up(b.id).await;
    b.expect_up(a.id).await;
}

fn gossip(number: u32) -> PeerMessage {
    PeerMessage::Gossip(number.to_be_bytes().to_vec())
}

fn number(message: &PeerMessage) -> u32 {
    match message {
        PeerMessage::Gossip(bytes) => u32::from_be_bytes(bytes.as_slice().try_into().unwrap()),
        other => panic!("unexpected {other:?}"),
    }
}
