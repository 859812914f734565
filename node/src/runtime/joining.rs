//! How a node joins a cluster by a token, and how a member whose credential has ended comes back with one.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use shoal_protocol::spec::Availability;
use shoal_protocol::token::{InvalidToken, JoinToken};
use tokio::sync::{mpsc, oneshot};

use super::Daemon;
use super::command::MembershipError;
use super::member::EVENTS_MAX;
use super::membership::{Start, Stored, wall};
use crate::identity::{Membership, NodeKey};
use crate::swarm::{self, JoinError, JoinRefusal, JoinReply, SwarmConfig, SwarmEvent, SwarmHandle};

/// Between two attempts to join that `--join` asked for.
const JOIN_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// A node that is on its way into a cluster.
pub(super) struct Joining {
    result: oneshot::Receiver<Joined>,
    reply: Option<Reply>,
}

type Reply = oneshot::Sender<Result<(), MembershipError>>;

/// How a node tries to join.
#[derive(Clone)]
struct Attempt {
    /// The same for every attempt: one whose answer was late may have been admitted after all.
    key: NodeKey,
    seeds: Vec<String>,
    token: JoinToken,
    /// Whether the node is to take tasks; if it is a member already, that stays as it is.
    availability: Availability,
    /// What the node has from the time before its credential ended.
    stored: Option<Arc<Stored>>,
    /// Whether to try until it succeeds.
    again: bool,
}

/// What came of an attempt to join.
pub(super) struct Joined {
    attempt: Attempt,
    outcome: Result<(SwarmHandle, mpsc::Receiver<SwarmEvent>, JoinReply), Failure>,
    reply: Option<Reply>,
}

/// Why an attempt to join failed.
struct Failure {
    /// With every cause.
    reason: String,
    /// Whether the cluster has removed this identity.
    is_banned: bool,
}

impl Failure {
    fn new(error: &(dyn std::error::Error + 'static)) -> Self {
        let refused = error.downcast_ref::<JoinError>();
        let is_banned = matches!(refused, Some(JoinError::Refused { reason: JoinRefusal::Banned, .. }));
        Self { reason: with_causes(error), is_banned }
    }
}

/// Waits for the end of an attempt to join.
pub(super) async fn next_joined(joining: &mut Option<Joining>) -> Joined {
    let Some(attempt) = joining else { return std::future::pending().await };
    match (&mut attempt.result).await {
        Ok(mut joined) => {
            joined.reply = attempt.reply.take();
            *joining = None;
            joined
        }
        Err(_) => {
            *joining = None;
            std::future::pending().await
        }
    }
}

impl Daemon {
    /// Begins to join for a user who waits for the result.
    pub(super) fn join_for(
        &mut self,
        (seeds, token, availability): (Vec<String>, &str, Availability),
        reply: Reply,
    ) -> Result<(), (Reply, MembershipError)> {
        if self.member.is_some() || self.joining.is_some() || self.locked.is_locked() {
            return Err((reply, MembershipError::Member));
        }
        match token.parse::<JoinToken>() {
            Ok(token) => {
                let key = NodeKey::generate();
                let attempt = Attempt { key, seeds, token, availability, stored: None, again: false };
                self.try_to_join(attempt, Some(reply), Duration::ZERO);
                Ok(())
            }
            Err(error) => Err((reply, MembershipError::Invalid(error.to_string()))),
        }
    }

    /// Begins to join because the daemon was started with `--join`, and tries again until it succeeds. With what it has
    /// `stored` it comes back as the member that it was.
    pub(super) fn join(&mut self, token: &str, stored: Option<Stored>) -> Result<(), InvalidToken> {
        let (seeds, token) = (self.config.join.clone(), token.parse()?);
        let key = stored.as_ref().map_or_else(NodeKey::generate, |stored| stored.key.clone());
        let (availability, stored) = (Availability::Active, stored.map(Arc::new));
        self.try_to_join(Attempt { key, seeds, token, availability, stored, again: true }, None, Duration::ZERO);
        Ok(())
    }

    fn try_to_join(&mut self, attempt: Attempt, reply: Option<Reply>, after: Duration) {
        let (sender, result) = oneshot::channel();
        let (listen, advertise) = (self.config.listen_addr, self.advertised);
        tokio::spawn(async move {
            tokio::time::sleep(after).await;
            let (events, receiver) = mpsc::channel(EVENTS_MAX);
            let config = SwarmConfig { key: attempt.key.clone(), listen, advertise, membership: None, clock: wall };
            let outcome = match swarm::spawn(config, events).await {
                Ok(handle) => match handle.join(&attempt.seeds, &attempt.token, attempt.availability).await {
                    Ok(joined) => Ok((handle, receiver, joined)),
                    Err(error) => {
                        handle.shutdown().await;
                        Err(Failure::new(&error))
                    }
                },
                Err(error) => Err(Failure::new(&error)),
            };
            // The daemon may have ended meanwhile.
            let _ = sender.send(Joined { attempt, outcome, reply: None });
        });
        self.joining = Some(Joining { result, reply });
    }

    /// Takes in what came of an attempt to join.
    pub(super) async fn joined(&mut self, joined: Joined) {
        let Joined { attempt, outcome, reply } = joined;
        let result = match outcome {
            Ok((handle, receiver, answer)) => {
                let Attempt { key, seeds, stored, .. } = attempt;
                match start(key, answer, stored, seeds, (handle, receiver)) {
                    Ok(start) => {
                        self.begin(start, true).await.map_err(|error| MembershipError::Failed(format!("{error:#}")))
                    }
                    Err(error) => Err(error),
                }
            }
            Err(Failure { reason, is_banned }) => {
                tracing::warn!(%reason, "failed to join");
                if attempt.again {
                    // What was removed while this node did not know that it had been admitted.
                    let is_another = is_banned && attempt.stored.is_none();
                    let key = if is_another { NodeKey::generate() } else { attempt.key };
                    self.try_to_join(Attempt { key, ..attempt }, None, JOIN_AGAIN_AFTER);
                }
                Err(MembershipError::Invalid(reason))
            }
        };
        if let Some(reply) = reply {
            let _ = reply.send(result);
        } else if let Err(error) = result
            && self.joining.is_none()
        {
            tracing::error!(%error, "failed to become a member");
        }
    }
}

/// Returns what a node starts with that was admitted: for a member that comes back, all that it had.
fn start(
    key: NodeKey,
    answer: JoinReply,
    stored: Option<Arc<Stored>>,
    seeds: Vec<String>,
    swarm: (SwarmHandle, mpsc::Receiver<SwarmEvent>),
) -> Result<Start, MembershipError> {
    let named = answer.peers.into_iter().map(|(node, address)| (node, BTreeSet::from([address])));
    let membership = answer.membership;
    let mut start = Start {
        key,
        membership,
        records: Vec::new(),
        leases: None,
        restarted: false,
        addresses: named.collect(),
        swarm: Some(swarm),
        seeds,
    };
    if let Some(stored) = stored {
        let cluster =
            |membership: &Membership| membership.cluster().map_err(|error| MembershipError::Invalid(error.to_string()));
        if cluster(&start.membership)? != cluster(&stored.membership)? {
            let text =
                "the token is for another cluster than the one that this node is in: move its data directory away";
            return Err(MembershipError::Invalid(text.to_owned()));
        }
        (start.records, start.leases, start.restarted) = (stored.records.clone(), stored.leases.clone(), true);
        for (node, addresses) in &stored.addresses {
            start.addresses.entry(*node).or_default().extend(addresses);
        }
    }
    Ok(start)
}

/// Writes an error with the errors that caused it.
fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};

    use shoal_control::core::bootstrap;
    use shoal_protocol::{NodeId, WallTime};

    use super::*;
    use crate::identity::create_cluster;

    const OTHER: NodeId = NodeId(9);

    fn address(port: u16) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, port).into()
    }

    /// A worker as it was on disk after its credential had been made at `made`.
    fn stored(key: &NodeKey, made: WallTime) -> Stored {
        let (membership, cluster) = create_cluster(key, &Default::default(), made).unwrap();
        let (records, leases) = bootstrap::first_document(key.node_id(), Availability::Active, cluster, made).unwrap();
        let addresses = [(OTHER, BTreeSet::from([address(1)]))].into();
        let membership = Membership { manager_key: None, ..membership };
        Stored { key: key.clone(), membership, records, leases: Some(leases), addresses }
    }

    #[tokio::test]
    async fn a_member_comes_back_with_all_that_it_had() {
        let key = NodeKey::generate();
        let listen = address(0);
        let (events, _) = mpsc::channel(1);
        let config = SwarmConfig { key: key.clone(), listen, advertise: listen, membership: None, clock: wall };
        let handle = swarm::spawn(config, events).await.unwrap();
        let stored = Arc::new(stored(&key, WallTime(0)));
        let begin = |membership: &Membership| {
            let answer = JoinReply { membership: membership.clone(), peers: vec![(OTHER, address(2))] };
            start(key.clone(), answer, Some(stored.clone()), Vec::new(), (handle.clone(), mpsc::channel(1).1))
        };
        let start = begin(&stored.membership).unwrap();
        assert_eq!((start.records, start.leases), (stored.records.clone(), stored.leases.clone()));
        assert!(start.restarted, "it may have granted leases that still run");
        assert_eq!(start.addresses[&OTHER], BTreeSet::from([address(1), address(2)]));
        let (foreign, _) = create_cluster(&key, &Default::default(), WallTime(0)).unwrap();
        assert!(matches!(begin(&foreign), Err(MembershipError::Invalid(_))), "nothing of it goes to another cluster");
    }

    #[test]
    fn only_who_cannot_sign_needs_a_token() {
        let key = NodeKey::generate();
        assert!(stored(&key, WallTime(0)).needs_token().unwrap());
        assert!(!stored(&key, wall()).needs_token().unwrap());
        let (manager, _) = create_cluster(&key, &Default::default(), WallTime(0)).unwrap();
        assert!(!Stored { membership: manager, ..stored(&key, WallTime(0)) }.needs_token().unwrap());
    }
}
