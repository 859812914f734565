//! Renews this node's credential: performs what [`shoal_control::renewal`] decides.
//!
//! The new credential is on disk before it is used. Links go on with it; a peer closes one only when the credential ends that
//! it was begun with, and it is dialled again at once.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use shoal_control::renewal::{Renewal, Source};
use shoal_protocol::token::Role;
use shoal_protocol::{NodeId, Now, Time, WallTime};
use tokio::sync::mpsc;

use crate::disk::{Batch, Disk, DiskError};
use crate::identity::{IdentityError, Membership, NodeKey, Root};
use crate::swarm::{RenewError, Renewed, SwarmError, SwarmHandle};

/// Why a credential was not renewed. The present one stays in use.
#[derive(Debug, thiserror::Error)]
pub(super) enum RenewalError {
    /// This node could not sign it.
    #[error("{0}")]
    Unsigned(String),
    /// The asked manager gave none.
    #[error(transparent)]
    Manager(#[from] RenewError),
    /// What it gave does not do.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// What it gave is for another role.
    #[error("the new credential is for a {0}")]
    Role(Role),
    /// It gave a manager no key.
    #[error("the new credential is a manager's but comes without the managers' key")]
    NoKey,
    /// It could not be stored.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// It could not be taken into use; it is stored, and used after the next start.
    #[error(transparent)]
    Swarm(#[from] SwarmError),
}

/// What came of an attempt.
pub(super) type Outcome = Result<(Membership, WallTime), RenewalError>;

/// The state of this node's credential.
pub(super) struct Renewing {
    decisions: Renewal,
    pub(super) key: NodeKey,
    disk: Disk,
    results: mpsc::Receiver<Outcome>,
    sender: mpsc::Sender<Outcome>,
    /// When the credential ends, in nanoseconds since 1970, for whoever wants to know.
    expires: Arc<AtomicU64>,
}

impl Renewing {
    pub(super) fn start(key: NodeKey, expires: WallTime, disk: Disk, seed: u64, now: Time) -> Self {
        // One attempt is under way at a time.
        let (sender, results) = mpsc::channel(1);
        let decisions = Renewal::new(expires, seed, now);
        Self { decisions, key, disk, results, sender, expires: Arc::new(AtomicU64::new(expires.0)) }
    }

    pub(super) fn expires(&self) -> Arc<AtomicU64> {
        self.expires.clone()
    }

    pub(super) fn timeout(&self) -> Option<Time> {
        self.decisions.poll_timeout()
    }

    /// Waits for the end of an attempt. Cancelling it loses nothing.
    pub(super) async fn next(&mut self) -> Outcome {
        match self.results.recv().await {
            Some(renewed) => renewed,
            None => std::future::pending().await,
        }
    }

    /// Returns whether it is time to look for the next credential. `outdated` tells whether the present one says the wrong
    /// thing.
    pub(super) fn is_due(&mut self, outdated: bool, now: Time) -> bool {
        self.decisions.set_outdated(outdated, now);
        self.decisions.poll_timeout().is_some_and(|due| due <= now)
    }

    /// Returns where to get the next credential, if it is time to, of those that give one.
    pub(super) fn due(&mut self, managers: &BTreeSet<NodeId>, signs: bool, now: Now) -> Option<Source> {
        self.decisions.poll(managers, signs, now)
    }

    /// Gets the credential that is wanted and stores it, beside the event loop.
    pub(super) fn begin(&self, swarm: SwarmHandle, wanted: Wanted, from: Issuer, wall: WallTime) {
        let (sender, disk, public_key) = (self.sender.clone(), self.disk.clone(), self.key.public_key());
        tokio::spawn(async move {
            let renewed = obtain(&swarm, &disk, wanted, &public_key, from, wall).await;
            // The membership may have ended meanwhile.
            let _ = sender.send(renewed).await;
        });
    }

    /// Notes what came of an attempt; returns the membership to use from now on.
    pub(super) fn ended(&mut self, renewed: Outcome, now: Time) -> Option<Membership> {
        match renewed {
            Ok((membership, expires)) => {
                tracing::info!(%expires, "this node has a new credential");
                self.expires.store(expires.0, Ordering::Relaxed);
                self.decisions.renewed(expires, now);
                Some(membership)
            }
            Err(error) => {
                tracing::warn!(%error, "failed to renew this node's credential; trying again");
                self.decisions.failed(now);
                None
            }
        }
    }
}

/// What the next credential is to say.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    /// For this role.
    pub(super) role: Role,
    /// By this root.
    pub(super) root: Root,
}

/// Who gives the credential.
pub(super) enum Issuer {
    /// This node has signed it, or failed to.
    Itself(Result<Renewed, String>),
    /// A linked manager.
    Manager(NodeId),
}

async fn obtain(
    swarm: &SwarmHandle,
    disk: &Disk,
    wanted: Wanted,
    public_key: &[u8; 32],
    from: Issuer,
    wall: WallTime,
) -> Outcome {
    let Wanted { role, root } = wanted;
    let Renewed { credential, manager_key } = match from {
        Issuer::Itself(signed) => signed.map_err(RenewalError::Unsigned)?,
        Issuer::Manager(manager) => swarm.renew(manager).await?,
    };
    // Whoever is no manager any more keeps nothing of one.
    let manager_key = manager_key.filter(|_| role == Role::Manager);
    if role == Role::Manager && manager_key.is_none() {
        return Err(RenewalError::NoKey);
    }
    let verified = root.verify(&credential, public_key, wall).map_err(IdentityError::from)?;
    if verified.granted.role != role {
        return Err(RenewalError::Role(verified.granted.role));
    }
    let renewed = Membership { root_pem: root.pem().to_owned(), credential, granted: verified.granted, manager_key };
    disk.write(Batch { cluster: Some(renewed.to_bytes()?.to_vec()), ..Batch::default() }).await?;
    swarm.set_membership(Some(renewed.clone()))?;
    Ok((renewed, verified.expires))
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};
    use std::time::Duration;

    use shoal_protocol::token::RoleGrant;

    use super::*;
    use crate::disk;
    use crate::identity::{ClusterSecrets, NodeKey, create_cluster};
    use crate::swarm::{self, Priority, SwarmConfig, SwarmEvent};
    use shoal_protocol::message::PeerMessage;

    const DEADLINE: Duration = Duration::from_secs(20);
    const DAY: u64 = 86_400 * 1_000_000_000;
    const START: WallTime = WallTime(1_795_398_702_000_000_000);
    static CLOCK: AtomicU64 = AtomicU64::new(START.0);

    fn wall() -> WallTime {
        WallTime(CLOCK.load(Ordering::SeqCst))
    }

    async fn start(key: &NodeKey, membership: Membership) -> (SwarmHandle, mpsc::Receiver<SwarmEvent>) {
        let (sender, events) = mpsc::channel(64);
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let config =
            SwarmConfig { key: key.clone(), listen, advertise: listen, membership: Some(membership), clock: wall };
        (swarm::spawn(config, sender).await.unwrap(), events)
    }

    async fn up(events: &mut mpsc::Receiver<SwarmEvent>) {
        let up = async { while !matches!(events.recv().await.unwrap(), SwarmEvent::Up { .. }) {} };
        tokio::time::timeout(DEADLINE, up).await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_worker_gets_stores_and_uses_a_new_credential() {
        let (manager_key, worker_key) = (NodeKey::generate(), NodeKey::generate());
        let (of_manager, cluster) = create_cluster(&manager_key, START).unwrap();
        let root = of_manager.root().unwrap();
        let opened = ClusterSecrets::open(&cluster.sealed, of_manager.manager_key.as_ref().unwrap(), cluster.id);
        let secrets = opened.unwrap();
        let issue = move |key: &[u8; 32], role| secrets.issue(&root, key, RoleGrant::first(role), wall()).unwrap();
        let of_worker = Membership {
            credential: issue(&worker_key.public_key(), Role::Worker),
            granted: RoleGrant::first(Role::Worker),
            manager_key: None,
            ..of_manager.clone()
        };
        // The last days of the old credentials; the manager has renewed its own.
        CLOCK.store(START.0 + 80 * DAY, Ordering::SeqCst);
        let credential = issue(&manager_key.public_key(), Role::Manager);
        let (manager, mut manager_events) = start(&manager_key, Membership { credential, ..of_manager }).await;
        let (worker, mut worker_events) = start(&worker_key, of_worker.clone()).await;
        worker.set_peers([(manager_key.node_id(), vec![manager.listen_address()])].into());
        up(&mut worker_events).await;
        up(&mut manager_events).await;

        let dir = tempfile::tempdir().unwrap();
        let (disk, _) = disk::open(dir.path()).unwrap();
        let now = Now { time: Time(1), wall: wall() };
        let expires = of_worker.expires(&worker_key.public_key()).unwrap();
        let mut renewing = Renewing::start(worker_key.clone(), expires, disk.clone(), 7, now.time);
        let managers = BTreeSet::from([manager_key.node_id()]);
        assert!(renewing.is_due(false, now.time));
        assert_eq!(renewing.due(&managers, false, now), Some(Source::Manager(manager_key.node_id())));
        renewing.begin(
            worker.clone(),
            Wanted { role: Role::Worker, root: of_worker.root().unwrap() },
            Issuer::Manager(manager_key.node_id()),
            now.wall,
        );
        let serving = async {
            loop {
                if let SwarmEvent::Renew { public_key, reply, .. } = manager_events.recv().await.unwrap() {
                    let credential = issue(&public_key, Role::Worker);
                    return reply.send(Ok(Renewed { credential, manager_key: None })).unwrap();
                }
            }
        };
        tokio::time::timeout(DEADLINE, serving).await.unwrap();
        let renewed = tokio::time::timeout(DEADLINE, renewing.next()).await.unwrap();
        let membership = renewing.ended(renewed, now.time).unwrap();
        assert_eq!(renewing.expires().load(Ordering::Relaxed), wall().0 + 90 * DAY);
        assert_eq!(worker.peers().len(), 1, "the link goes on");

        // The old credential ends: the link goes on, for the new one was shown on it.
        let shown = async { while !matches!(manager_events.recv().await.unwrap(), SwarmEvent::Refreshed { .. }) {} };
        tokio::time::timeout(DEADLINE, shown).await.unwrap();
        CLOCK.store(START.0 + 91 * DAY, Ordering::SeqCst);
        manager.set_banned(BTreeSet::new());
        let next = async {
            loop {
                worker.send(manager_key.node_id(), &PeerMessage::Gossip(Vec::new()), Priority::Own);
                // A link that is not admitted any more is closed without a pause, long before this.
                if let Ok(event) = tokio::time::timeout(Duration::from_secs(1), manager_events.recv()).await {
                    return event.unwrap();
                }
            }
        };
        let next = tokio::time::timeout(DEADLINE, next).await.unwrap();
        assert!(matches!(next, SwarmEvent::Message { .. }), "{next:?}");

        disk.close().await;
        let (_, loaded) = disk::open(dir.path()).unwrap();
        assert_eq!(Membership::from_bytes(&loaded.cluster.unwrap()).unwrap(), membership);
        assert!(of_worker.verify(&worker_key.public_key(), wall()).is_err(), "the old one is of no use any more");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_credential_that_does_not_fit_changes_nothing() {
        let key = NodeKey::generate();
        let (membership, _) = create_cluster(&key, wall()).unwrap();
        let (swarm, _events) = start(&key, membership.clone()).await;
        let dir = tempfile::tempdir().unwrap();
        let (disk, _) = disk::open(dir.path()).unwrap();
        for from in [
            Issuer::Itself(Err("no key".to_owned())),
            Issuer::Itself(Ok(Renewed { credential: vec![1, 2, 3], manager_key: None })),
            Issuer::Manager(NodeId(9)),
        ] {
            let wanted = Wanted { role: Role::Manager, root: membership.root().unwrap() };
            let renewed = obtain(&swarm, &disk, wanted, &key.public_key(), from, wall()).await;
            assert!(renewed.is_err());
        }
        disk.close().await;
        assert_eq!(disk::open(dir.path()).unwrap().1.cluster, None);
    }
}
