//! Renews this node's credential: performs what [`shoal_control::renewal`] decides.
//!
//! The new credential is on disk before it is used. Links go on with it; a peer closes one only when the credential ends that
//! it was begun with, and it is dialled again at once.

use std::collections::BTreeSet;

use shoal_control::renewal::{Renewal, Source, Validity};
use shoal_protocol::token::Role;
use shoal_protocol::{NodeId, Now, Time, WallTime};
use tokio::sync::{mpsc, watch};

use crate::disk::{Batch, Disk, DiskError};
use crate::identity::{AtRest, IdentityError, Lock, Membership, NodeKey, Root};
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
    /// It came with another unlock key than this node knows of: one of the two lags behind.
    #[error("the new credential comes with another unlock key than the cluster's present one")]
    Lock,
    /// It could not be stored.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// It could not be taken into use; it is stored, and used after the next start.
    #[error(transparent)]
    Swarm(#[from] SwarmError),
}

/// What came of an attempt.
pub(super) type Outcome = Result<(Membership, Validity), RenewalError>;

/// The state of this node's credential.
pub(super) struct Renewing {
    decisions: Renewal,
    pub(super) key: NodeKey,
    disk: Disk,
    results: mpsc::Receiver<Outcome>,
    sender: mpsc::Sender<Outcome>,
    /// When the credential was made and when it ends, for whoever wants to know.
    valid: watch::Sender<Validity>,
}

impl Renewing {
    pub(super) fn start(key: NodeKey, valid: Validity, disk: Disk, seed: u64, now: Time) -> Self {
        // One attempt is under way at a time.
        let (sender, results) = mpsc::channel(1);
        let decisions = Renewal::new(valid, seed, now);
        Self { decisions, key, disk, results, sender, valid: watch::Sender::new(valid) }
    }

    pub(super) fn validity(&self) -> watch::Receiver<Validity> {
        self.valid.subscribe()
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
        let (sender, disk, key) = (self.sender.clone(), self.disk.clone(), self.key.clone());
        tokio::spawn(async move {
            let renewed = obtain(&swarm, &disk, wanted, &key, from, wall).await;
            // The membership may have ended meanwhile.
            let _ = sender.send(renewed).await;
        });
    }

    /// Notes what came of an attempt; returns the membership to use from now on.
    pub(super) fn ended(&mut self, renewed: Outcome, now: Time) -> Option<Membership> {
        match renewed {
            Ok((membership, valid)) => {
                tracing::info!(expires = %valid.expires, "this node has a new credential");
                self.valid.send_replace(valid);
                self.decisions.renewed(valid, now);
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
    /// With this unlock key on a manager's disk, if with any.
    pub(super) lock: Option<u64>,
    /// What this node's keys are sealed with on its disk at present.
    pub(super) present: Option<Lock>,
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
    key: &NodeKey,
    from: Issuer,
    wall: WallTime,
) -> Outcome {
    let Wanted { role, root, lock: wanted_lock, present } = wanted;
    let Renewed { credential, manager_key, lock } = match from {
        Issuer::Itself(signed) => signed.map_err(RenewalError::Unsigned)?,
        Issuer::Manager(manager) => swarm.renew(manager).await?,
    };
    // Whoever is no manager any more keeps nothing of one.
    let (manager_key, lock) = if role == Role::Manager { (manager_key, lock) } else { (None, None) };
    if role == Role::Manager && manager_key.is_none() {
        return Err(RenewalError::NoKey);
    }
    let verified = root.verify(&credential, &key.public_key(), wall).map_err(IdentityError::from)?;
    if verified.granted.role != role {
        return Err(RenewalError::Role(verified.granted.role));
    }
    if lock.as_ref().map(|lock| lock.number) != wanted_lock {
        return Err(RenewalError::Lock);
    }
    let relocks = lock != present;
    let renewed =
        Membership { root_pem: root.pem().to_owned(), credential, granted: verified.granted, manager_key, lock };
    let AtRest { identity, membership } = AtRest::of(key, &renewed)?;
    let identity = relocks.then_some(identity);
    // What was in the clear before, or sealed with a key that somebody else may have by now, must not be left there.
    disk.write(Batch { identity, cluster: Some(membership), scrub: relocks, ..Batch::default() }).await?;
    if relocks {
        match &renewed.lock {
            Some(lock) => tracing::info!(unlock_key = lock.number, "this node's keys are sealed on its disk"),
            None => tracing::info!("this node's keys are not sealed on its disk any more"),
        }
    }
    swarm.set_membership(Some(renewed.clone()))?;
    Ok((renewed, verified.valid))
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    use shoal_protocol::settings::{CREDENTIAL_DEFAULT, ClusterSettings};
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

    fn wanted(role: Role, present: &Membership) -> Wanted {
        Wanted { role, root: present.root().unwrap(), lock: None, present: present.lock.clone() }
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
        let (of_manager, cluster) = create_cluster(&manager_key, &Default::default(), START).unwrap();
        let root = of_manager.root().unwrap();
        let opened = ClusterSecrets::open(&cluster.sealed, of_manager.manager_key.as_ref().unwrap(), cluster.id);
        let secrets = opened.unwrap();
        let issue = move |key: &[u8; 32], role| {
            secrets.issue(&root, key, RoleGrant::first(role), (wall(), CREDENTIAL_DEFAULT)).unwrap()
        };
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
        let valid = of_worker.valid(&worker_key.public_key()).unwrap();
        let mut renewing = Renewing::start(worker_key.clone(), valid, disk.clone(), 7, now.time);
        let managers = BTreeSet::from([manager_key.node_id()]);
        assert!(renewing.is_due(false, now.time));
        assert_eq!(renewing.due(&managers, false, now), Some(Source::Manager(manager_key.node_id())));
        renewing.begin(
            worker.clone(),
            wanted(Role::Worker, &of_worker),
            Issuer::Manager(manager_key.node_id()),
            now.wall,
        );
        let serving = async {
            loop {
                if let SwarmEvent::Renew { public_key, reply, .. } = manager_events.recv().await.unwrap() {
                    let credential = issue(&public_key, Role::Worker);
                    return reply.send(Ok(Renewed { credential, manager_key: None, lock: None })).unwrap();
                }
            }
        };
        tokio::time::timeout(DEADLINE, serving).await.unwrap();
        let renewed = tokio::time::timeout(DEADLINE, renewing.next()).await.unwrap();
        let membership = renewing.ended(renewed, now.time).unwrap();
        assert_eq!(renewing.validity().borrow().expires.0, wall().0 + 90 * DAY);
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
        let (membership, _) = create_cluster(&key, &Default::default(), wall()).unwrap();
        let (swarm, _events) = start(&key, membership.clone()).await;
        let dir = tempfile::tempdir().unwrap();
        let (disk, _) = disk::open(dir.path()).unwrap();
        for from in [
            Issuer::Itself(Err("no key".to_owned())),
            Issuer::Itself(Ok(Renewed { credential: vec![1, 2, 3], manager_key: None, lock: None })),
            Issuer::Manager(NodeId(9)),
        ] {
            let renewed = obtain(&swarm, &disk, wanted(Role::Manager, &membership), &key, from, wall()).await;
            assert!(renewed.is_err());
        }
        disk.close().await;
        assert_eq!(disk::open(dir.path()).unwrap().1.cluster, None);
    }

    /// Keys are sealed, sealed anew and opened with the credential that comes with it, and never half.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn keys_on_disk_follow_the_lock() {
        let key = NodeKey::generate();
        let settings = ClusterSettings { auto_lock: true, ..Default::default() };
        let (locked, cluster) = create_cluster(&key, &settings, wall()).unwrap();
        let (manager_key, first) = (locked.manager_key.clone().unwrap(), locked.lock.clone().unwrap());
        let mut secrets = ClusterSecrets::open(&cluster.sealed, &manager_key, cluster.id).unwrap();
        secrets.relock().unwrap();
        let second = Lock { number: 2, ..secrets.lock(&cluster).unwrap() };
        let (swarm, _events) = start(&key, locked.clone()).await;
        let dir = tempfile::tempdir().unwrap();
        let (disk, _) = disk::open(dir.path()).unwrap();
        let mut present = Membership { lock: None, ..locked.clone() };
        let shows = |secret: &[u8]| {
            let files = std::fs::read_dir(dir.path()).unwrap().map(|file| std::fs::read(file.unwrap().path()).unwrap());
            files.into_iter().any(|bytes| bytes.windows(secret.len()).any(|window| window == secret))
        };
        let private = key.to_bytes()[..32].to_vec();
        for (wanted_lock, given) in [
            (Some(1), Some(&first)),
            (Some(2), Some(&second)),
            (Some(3), Some(&second)),
            (None, Some(&second)),
            (None, None),
            (Some(2), Some(&second)),
        ] {
            let wanted = Wanted { lock: wanted_lock, ..wanted(Role::Manager, &present) };
            let renewed = Renewed {
                credential: locked.credential.clone(),
                manager_key: Some(manager_key.clone()),
                lock: given.cloned(),
            };
            let outcome = obtain(&swarm, &disk, wanted, &key, Issuer::Itself(Ok(renewed)), wall()).await;
            let fits = wanted_lock == given.map(|lock| lock.number);
            assert_eq!(outcome.is_ok(), fits, "{wanted_lock:?}: {:?}", outcome.as_ref().err());
            if let Ok((membership, _)) = outcome {
                present = membership;
            }
            assert_eq!(shows(&private), present.lock.is_none(), "{wanted_lock:?}");
        }
        disk.close().await;
        let (_, loaded) = disk::open(dir.path()).unwrap();
        let (identity, membership) = (loaded.identity.unwrap(), loaded.cluster.unwrap());
        assert!(AtRest::open(&identity, &membership, Some(&first.key)).is_err(), "the former key opens nothing");
        assert_eq!(AtRest::open(&identity, &membership, Some(&second.key)).unwrap().1, present);
    }
}
