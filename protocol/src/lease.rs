//! The names of leases and voters, and the messages by which they are granted.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::id::{NodeId, ServiceId};

/// Shards that the services are divided into, by their identifier.
pub const SHARDS: u8 = 16;

/// Voters of a cluster at most.
pub const VOTERS_MAX: usize = 7;

/// A lease: the registry (orders all object writes) or one shard (schedules the slots of its services).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LeaseId(pub u8);

impl LeaseId {
    /// The right to write objects.
    pub const REGISTRY: LeaseId = LeaseId(0);

    /// Every lease: the registry and then the shards.
    pub fn all() -> impl Iterator<Item = LeaseId> {
        (0..=SHARDS).map(LeaseId)
    }

    /// Returns the lease of the shard that a service belongs to.
    pub fn of_service(service: ServiceId) -> LeaseId {
        LeaseId(1 + (service.0 % u128::from(SHARDS)) as u8)
    }

    /// Returns whether this names an existing lease; received ones may not.
    pub fn is_valid(self) -> bool {
        self.0 <= SHARDS
    }
}

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => f.write_str("registry"),
            shard => write!(f, "shard-{}", shard - 1),
        }
    }
}

/// The nodes whose majority grants leases and makes writes durable.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct VoterSet {
    /// Grows by one with every change; the first set has 1, 0 means that none is known.
    pub version: u64,
    /// The voters, sorted, each once, at most [`VOTERS_MAX`].
    pub members: Vec<NodeId>,
}

impl VoterSet {
    /// Returns how many voters are a majority.
    pub fn majority(&self) -> usize {
        self.members.len() / 2 + 1
    }

    /// Returns whether `node` is one of the voters.
    pub fn contains(&self, node: NodeId) -> bool {
        self.members.binary_search(&node).is_ok()
    }
}

/// The ballot of one attempt to agree on the next voters. Source: Lamport, "Paxos Made Simple".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Ballot {
    /// Counted up by whoever tries again.
    pub round: u64,
    /// Who tries.
    pub node: NodeId,
}

/// What one voter knows of one lease: handed to the voters of the next set so that no grant is forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// Which lease.
    pub lease: LeaseId,
    /// The highest epoch this voter has granted.
    pub epoch: u64,
    /// To whom.
    pub holder: NodeId,
}

/// One lease asked for, renewed or given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ask {
    /// Which lease.
    pub lease: LeaseId,
    /// Under which epoch: above every epoch the asker knows when acquiring, its own when renewing or releasing.
    pub epoch: u64,
}

/// A voter's answer to one [`Ask`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// Granted for one lease duration, counted by the asker from before it asked.
    Granted(Ask),
    /// Not granted: this voter has granted `epoch` to `holder` and not seen it end.
    Refused {
        /// What was asked.
        ask: Ask,
        /// The highest epoch this voter has granted.
        epoch: u64,
        /// To whom.
        holder: NodeId,
    },
    /// Not granted: this voter restarted or joined less than a lease duration ago.
    NotYet(Ask),
}

/// Messages between candidates and voters. All leases travel in one message per peer and tick.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum LeaseMessage {
    /// Asks for leases and gives others back.
    Ask {
        /// The voter set under which the asker counts.
        voters: u64,
        /// Repeated in the answer; an answer to another round is ignored.
        round: u64,
        /// Leases to acquire or renew.
        asks: Vec<Ask>,
        /// Leases that the asker does not use any more.
        releases: Vec<Ask>,
    },
    /// A voter's answers to one round.
    Answers {
        /// The voter set under which the voter grants.
        voters: u64,
        /// The round of the question.
        round: u64,
        /// One for each ask.
        answers: Vec<Answer>,
    },
    /// The voter grants nothing under the asker's set: it knows a newer one, or has accepted a successor of this one.
    StaleVoters {
        /// The newest set the voter knows to be decided.
        current: VoterSet,
    },
    /// First phase of the agreement on the set after `version`.
    Prepare {
        /// The set that is to be replaced.
        version: u64,
        /// The attempt.
        ballot: Ballot,
    },
    /// A voter of `version` promises to ignore lower ballots.
    Promise {
        /// The set that is to be replaced.
        version: u64,
        /// The attempt that is promised.
        ballot: Ballot,
        /// What the voter accepted before, if anything.
        accepted: Option<(Ballot, VoterSet)>,
    },
    /// Second phase: proposes the next set. Who accepts it grants and acknowledges nothing under `version` any more.
    Accept {
        /// The set that is to be replaced.
        version: u64,
        /// The attempt.
        ballot: Ballot,
        /// The proposed successor, `version + 1`.
        next: VoterSet,
    },
    /// A voter of `version` accepted, durably.
    Accepted {
        /// The set that is replaced.
        version: u64,
        /// The attempt.
        ballot: Ballot,
    },
    /// A higher ballot was promised; try again above it.
    Outbid {
        /// The set in question.
        version: u64,
        /// The highest ballot promised.
        ballot: Ballot,
    },
    /// A new set was decided. Members ask the previous ones for their grants before they grant.
    Decided {
        /// The members of the set it replaces, whose majority knows every grant.
        previous: VoterSet,
        /// The decided set.
        current: VoterSet,
    },
    /// A member of the set after `version` asks a voter of `version` for all its grants.
    GrantsWanted {
        /// The replaced set.
        version: u64,
    },
    /// All grants of a voter of `version` that will grant nothing under it any more.
    Grants {
        /// The replaced set.
        version: u64,
        /// Each lease at most once.
        grants: Vec<Grant>,
    },
}
