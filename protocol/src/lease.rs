//! The names of leases and voters, and the messages by which they are granted.

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

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

    /// Returns how strongly `node` should hold this lease: of the nodes that could, the greatest weight should
    /// (rendezvous hashing; Thaler and Ravishankar, "A Name-Based Mapping Scheme for Rendezvous", 1996).
    ///
    /// Part of the protocol, since all nodes must rank alike: the first 64 bits, big-endian, of the SHA-256 of
    /// "shoal lease rank", the lease's number and the node's ID in little-endian.
    pub fn weight(self, node: NodeId) -> u64 {
        let hash = Sha256::new()
            .chain_update(b"shoal lease rank")
            .chain_update([self.0])
            .chain_update(node.0.to_le_bytes())
            .finalize();
        u64::from_be_bytes(hash[..8].try_into().expect("SHA-256 has 32 bytes"))
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
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct VoterSet {
    /// Grows by one with every change; the first set has 1, 0 means that none is known.
    pub version: u64,
    /// The voters, sorted, each once, at most [`VOTERS_MAX`].
    pub members: Vec<NodeId>,
    /// The members of the set that this one replaced, whose majority knows every grant; none for the first set.
    pub previous: Vec<NodeId>,
}

impl VoterSet {
    /// Returns the first set of a new cluster.
    pub fn first(node: NodeId) -> Self {
        Self { version: 1, members: vec![node], previous: Vec::new() }
    }

    /// Returns the set that would replace this one.
    pub fn successor(&self, members: impl IntoIterator<Item = NodeId>) -> Self {
        let mut members: Vec<NodeId> = members.into_iter().collect();
        members.sort_unstable();
        members.dedup();
        Self { version: self.version + 1, members, previous: self.members.clone() }
    }

    /// Returns how many voters are a majority.
    pub fn majority(&self) -> usize {
        majority(&self.members)
    }

    /// Returns how many of the previous voters are a majority.
    pub fn previous_majority(&self) -> usize {
        majority(&self.previous)
    }

    /// Returns whether `node` is one of the voters.
    pub fn contains(&self, node: NodeId) -> bool {
        self.members.binary_search(&node).is_ok()
    }

    /// Returns whether this can be a decided set; received ones may be anything.
    pub fn is_valid(&self) -> bool {
        let list_is_valid = |list: &[NodeId]| list.len() <= VOTERS_MAX && list.is_sorted_by(|a, b| a < b);
        let has_previous = !self.previous.is_empty();
        (1..u64::MAX).contains(&self.version)
            && !self.members.is_empty()
            && list_is_valid(&self.members)
            && list_is_valid(&self.previous)
            && has_previous == (self.version > 1)
    }
}

fn majority(members: &[NodeId]) -> usize {
    members.len() / 2 + 1
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Grant {
    /// Which lease.
    pub lease: LeaseId,
    /// The highest epoch this voter has granted.
    pub epoch: u64,
    /// To whom; zero if the voter learnt of several and cannot tell who may use it.
    pub holder: NodeId,
    /// Which start of the holder.
    pub incarnation: u64,
    /// Milliseconds for which it may still be used; 0 if it has ended.
    pub remaining_ms: u64,
}

/// One lease asked for or renewed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Ask {
    /// Which lease.
    pub lease: LeaseId,
    /// Under which epoch: above every epoch the asker knows when acquiring, its own when renewing.
    pub epoch: u64,
}

/// One lease given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Release {
    /// Which lease.
    pub lease: LeaseId,
    /// Under which epoch it was granted, if it was.
    pub epoch: u64,
    /// False if the sender never had a majority under that epoch: the voter may then forget the grant.
    pub used: bool,
}

/// A voter's answer to one [`Ask`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Answer {
    /// Granted for one lease duration, counted by the asker from before it asked.
    Granted(Ask),
    /// Not granted: this voter has granted `epoch` to `holder`, or the asked epoch is not above it.
    Refused {
        /// What was asked.
        ask: Ask,
        /// The highest epoch this voter has granted.
        epoch: u64,
        /// To whom.
        holder: NodeId,
        /// Milliseconds until that ends unless it is renewed; 0 if only the asked epoch was too low.
        remaining_ms: u64,
    },
}

/// A lease that is free at a voter, or will soon be unless its holder renews it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Ending {
    /// Which lease.
    pub lease: LeaseId,
    /// The highest epoch the voter has granted; 0 if none.
    pub epoch: u64,
    /// Milliseconds until the voter may grant it to another; 0 if at once.
    pub remaining_ms: u64,
}

/// Messages between candidates and voters. All leases travel in one message per peer and tick.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum LeaseMessage {
    /// Asks for leases and gives others back. With neither it asks whether the voter is there and what is free.
    Ask {
        /// The voter set under which the asker counts.
        voters: u64,
        /// Repeated in the answer; an answer to an unknown round is ignored.
        round: u64,
        /// Which start of the asker: what an earlier one was granted is not its.
        incarnation: u64,
        /// Leases to acquire or renew.
        asks: Vec<Ask>,
        /// Leases that the asker does not use any more.
        releases: Vec<Release>,
    },
    /// A voter's answers to one round; those that wait for its disk follow in another message of the same round.
    Answers {
        /// The voter set under which the voter grants.
        voters: u64,
        /// The round of the question.
        round: u64,
        /// False while the voter catches up with the previous voters: it grants nothing and `answers` is empty.
        ready: bool,
        /// At most one for each ask.
        answers: Vec<Answer>,
        /// Every lease that is free or whose renewal is overdue.
        ending: Vec<Ending>,
    },
    /// The sender has just given a lease back for the receiver to take.
    Handover {
        /// Which lease.
        lease: LeaseId,
        /// The epoch that ended.
        epoch: u64,
    },
    /// The sender's voter set, because the receiver named another one, or the same that the sender grants nothing under
    /// since it accepted a successor. Whoever knows a newer set answers with [`LeaseMessage::Decided`].
    StaleVoters {
        /// The newest set the sender knows to be decided.
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
    /// A new set was decided. Its members ask the previous ones for their grants before they grant.
    Decided(VoterSet),
    /// A member of the set after `version` asks a voter of `version`, or of its own set, for all its grants.
    GrantsWanted {
        /// The replaced set.
        version: u64,
    },
    /// All grants of a voter that will grant nothing under `version` any more.
    Grants {
        /// The replaced set.
        version: u64,
        /// Whether it votes under a later set already: then it knows what a majority of the replaced one had granted.
        is_complete: bool,
        /// Each lease at most once.
        grants: Vec<Grant>,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_part_of_the_protocol() {
        let weights = [0, 1, 16].map(|lease| LeaseId(lease).weight(NodeId(7)));
        assert_eq!(weights, [11353180980408699535, 2177603846043800198, 13487590492547892727]);
    }

    #[test]
    fn only_sets_that_can_have_been_decided_are_valid() {
        let first = VoterSet::first(NodeId(2));
        let set = |version, members: &[u128], previous: &[u128]| VoterSet {
            version,
            members: members.iter().copied().map(NodeId).collect(),
            previous: previous.iter().copied().map(NodeId).collect(),
        };
        for (name, set, want) in [
            ("the first", first.clone(), true),
            ("its successor", first.successor([3, 1, 2, 3].map(NodeId)), true),
            ("unknown", VoterSet::default(), false),
            ("nobody", set(2, &[], &[1]), false),
            ("unsorted", set(2, &[2, 1], &[1]), false),
            ("twice the same", set(2, &[1, 1], &[1]), false),
            ("too many", set(2, &[1, 2, 3, 4, 5, 6, 7, 8], &[1]), false),
            ("without a past", set(2, &[1], &[]), false),
            ("first with a past", set(1, &[1], &[1]), false),
        ] {
            assert_eq!(set.is_valid(), want, "{name}");
        }
    }
}
