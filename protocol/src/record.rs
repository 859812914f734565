//! Replicated records: an envelope that everyone can merge, around bytes that only their reader opens.
//!
//! Merging compares envelopes alone, never a clock and never the content's meaning, so nodes of different versions agree
//! on the outcome even where one of them cannot read the body.

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::id::{NodeId, ObjectId, ServiceId, TaskId};
use crate::lease::LeaseId;
use crate::message::BUCKETS;
use crate::object::Kind;

/// Bytes of the largest record body. Larger ones are refused when written and when received.
pub const BODY_BYTES_MAX: usize = 512 * 1024;

/// Pairs in the clock of an overlay at most. Records with more are refused.
pub const CLOCK_MAX: usize = 64;

/// The schema of a tombstone that every listed node holds on disk: nothing older can come back, so it need not be kept.
pub const SCHEMA_COLLECTED: u16 = 0;

/// The name of a slot: what one task at a time fills.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum SlotName {
    /// Replica number of a replicated service, from 1, or of a replicated job, from 0.
    Replica(u32),
    /// The node of a global service.
    Node(NodeId),
}

impl fmt::Display for SlotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Replica(number) => write!(f, "{number}"),
            Self::Node(node) => write!(f, "{node}"),
        }
    }
}

/// What a record is about. Appended to, never reordered: the variant's position is part of the wire format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Key {
    /// The cluster's own settings ([`crate::value::ClusterObject`]).
    Cluster,
    /// The current voters ([`crate::lease::VoterSet`]).
    Voters,
    /// Who holds a lease ([`crate::value::Claim`]).
    Claim(LeaseId),
    /// A node as its operators want it ([`crate::value::NodeObject`]); removed means banned.
    Node(NodeId),
    /// A service ([`crate::value::ServiceObject`]).
    Service(ServiceId),
    /// How far a service's update is ([`crate::value::Progress`]).
    Progress(ServiceId),
    /// A slot of a service ([`crate::value::Slot`]).
    Slot(ServiceId, SlotName),
    /// What a node says of itself ([`crate::value::NodeStatus`]).
    NodeStatus(NodeId),
    /// What a node says of a task it runs ([`crate::value::TaskReport`]).
    TaskStatus(NodeId, TaskId),
    /// A secret, config or network ([`crate::object::Object`]).
    Object(Kind, ObjectId),
}

impl Key {
    /// Returns the node that alone may author this record, if it is a status; desired state comes from managers.
    pub fn status_of(&self) -> Option<NodeId> {
        match *self {
            Self::NodeStatus(node) | Self::TaskStatus(node, _) => Some(node),
            Self::Cluster
            | Self::Voters
            | Self::Claim(_)
            | Self::Node(_)
            | Self::Service(_)
            | Self::Progress(_)
            | Self::Slot(..)
            | Self::Object(..) => None,
        }
    }

    /// Returns whether a tombstone of this key is ever collected. Those of nodes are bans and stay.
    pub fn is_collectable(&self) -> bool {
        match self {
            Self::Service(_) | Self::Progress(_) | Self::Slot(..) | Self::Object(..) => true,
            Self::Cluster
            | Self::Voters
            | Self::Claim(_)
            | Self::Node(_)
            | Self::NodeStatus(_)
            | Self::TaskStatus(..) => false,
        }
    }

    /// Returns the bucket, below [`BUCKETS`], in which this key is digested: the same on every node and in every version.
    pub fn bucket(&self) -> u16 {
        let hash = Sha256::digest(self.canonical());
        u16::from_le_bytes([hash[0], hash[1]]) % BUCKETS as u16
    }

    /// Returns whether the record is kept on disk. A node's status is said anew after each start.
    pub fn is_durable(&self) -> bool {
        self.status_of().is_none()
    }
}

/// The fencing order of writes to one key: the greater stamp wins.
///
/// Desired state: the lineage and epoch of the lease under which it was written, and a number the holder counts up.
/// Status: lineage 0, the node's incarnation, and a number the node counts up. Voters: lineage and version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Stamp {
    /// Grows with every forced recovery; 0 before the first.
    pub lineage: u32,
    /// Grows with every holder of the lease (or incarnation of the node).
    pub epoch: u64,
    /// Grows with every write under one epoch.
    pub seq: u64,
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.lineage, self.epoch, self.seq)
    }
}

/// Which layer of a key a record belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Layer {
    /// Written under a quorum lease, or a status.
    Base,
    /// Written by a soft holder while there was no quorum.
    Overlay {
        /// (actor, counter) pairs in ascending order of actor; an actor is drawn anew for each soft mandate.
        clock: Vec<(u64, u64)>,
        /// The base on which it was written.
        base: Stamp,
    },
}

/// One write to one key, as its author made it. Kept, passed on and digested unopened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// What it is about.
    pub key: Key,
    /// Its place in the order of writes to `key`.
    pub stamp: Stamp,
    /// The node that wrote it.
    pub author: NodeId,
    /// Version of the body's type: see [`crate::value`].
    pub schema: u16,
    /// Base or overlay.
    pub layer: Layer,
    /// The encoded value; `None` is a tombstone.
    #[serde(with = "optional_bytes")]
    pub body: Option<Vec<u8>>,
}

impl Record {
    /// Returns whether this stands for a tombstone that every listed node holds on disk.
    pub fn is_collected(&self) -> bool {
        self.schema == SCHEMA_COLLECTED && self.body.is_none() && self.layer == Layer::Base
    }

    /// Returns the hash that stands for the whole record in digests: 128 bits of SHA-256 over a canonical form.
    ///
    /// The form is ours, not an encoder's, so that two nodes never disagree over how an equal value is encoded.
    pub fn hash(&self) -> u128 {
        let mut hash = Sha256::new();
        let mut part = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        part(&self.key.canonical());
        part(&self.stamp.lineage.to_le_bytes());
        part(&self.stamp.epoch.to_le_bytes());
        part(&self.stamp.seq.to_le_bytes());
        part(&self.author.0.to_le_bytes());
        part(&self.schema.to_le_bytes());
        match &self.layer {
            Layer::Base => part(b"base"),
            Layer::Overlay { clock, base } => {
                part(b"overlay");
                for (actor, counter) in clock {
                    part(&actor.to_le_bytes());
                    part(&counter.to_le_bytes());
                }
                part(&base.lineage.to_le_bytes());
                part(&base.epoch.to_le_bytes());
                part(&base.seq.to_le_bytes());
            }
        }
        match &self.body {
            None => part(b"removed"),
            Some(body) => {
                part(b"value");
                part(body);
            }
        }
        u128::from_le_bytes(hash.finalize()[..16].try_into().expect("SHA-256 has 32 bytes"))
    }
}

impl Key {
    /// Returns the bytes that stand for this key in hashes and on disk; their order is not that of [`Key`].
    pub fn canonical(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(40);
        match *self {
            Self::Cluster => bytes.push(0),
            Self::Voters => bytes.push(1),
            Self::Claim(lease) => bytes.extend([2, lease.0]),
            Self::Node(node) => push_ids(&mut bytes, 3, &[node.0]),
            Self::Service(service) => push_ids(&mut bytes, 4, &[service.0]),
            Self::Progress(service) => push_ids(&mut bytes, 5, &[service.0]),
            Self::Slot(service, SlotName::Replica(number)) => {
                push_ids(&mut bytes, 6, &[service.0]);
                bytes.extend(number.to_be_bytes());
            }
            Self::Slot(service, SlotName::Node(node)) => push_ids(&mut bytes, 7, &[service.0, node.0]),
            Self::NodeStatus(node) => push_ids(&mut bytes, 8, &[node.0]),
            Self::TaskStatus(node, task) => push_ids(&mut bytes, 9, &[node.0, task.0]),
            Self::Object(kind, id) => {
                push_ids(&mut bytes, 10, &[id.0]);
                bytes.push(kind.number());
            }
        }
        bytes
    }
}

fn push_ids(bytes: &mut Vec<u8>, tag: u8, ids: &[u128]) {
    bytes.push(tag);
    for id in ids {
        bytes.extend(id.to_be_bytes());
    }
}

mod optional_bytes {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(body: &Option<Vec<u8>>, serializer: S) -> Result<S::Ok, S::Error> {
        body.as_deref().map(serde_bytes::Bytes::new).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<u8>>, D::Error> {
        Ok(Option::<serde_bytes::ByteBuf>::deserialize(deserializer)?.map(serde_bytes::ByteBuf::into_vec))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::codec;

    fn record() -> Record {
        Record {
            key: Key::Slot(ServiceId(7), SlotName::Replica(3)),
            stamp: Stamp { lineage: 1, epoch: 2, seq: 300 },
            author: NodeId(9),
            schema: 1,
            layer: Layer::Overlay { clock: vec![(4, 5)], base: Stamp::default() },
            body: Some(b"ab".to_vec()),
        }
    }

    #[test]
    fn golden_bytes() {
        let mut want = vec![codec::VERSION, 6];
        want.extend(7u128.to_le_bytes());
        want.extend([0, 3, 1, 2, 251, 44, 1]);
        want.extend(9u128.to_le_bytes());
        want.extend([1, 1, 1, 4, 5, 0, 0, 0, 1, 2, b'a', b'b']);
        assert_eq!(codec::encode(&record()).unwrap(), want);
        assert_eq!(codec::decode::<Record>(&want).unwrap(), record());
    }

    // Computed apart, with Python's hashlib.
    #[test]
    fn golden_hash_and_bucket() {
        assert_eq!(record().hash(), 240_094_054_130_182_097_328_882_636_926_484_761_911);
        assert_eq!(record().key.bucket(), 236);
    }

    #[test]
    fn golden_bytes_of_an_object() {
        let key = Key::Object(Kind::Config, ObjectId(7));
        let mut want = vec![codec::VERSION, 9, 1];
        want.extend(7u128.to_le_bytes());
        assert_eq!(codec::encode(&key).unwrap(), want);
        assert_eq!(codec::decode::<Key>(&want).unwrap(), key);
        let mut want = vec![10];
        want.extend(7u128.to_be_bytes());
        want.push(1);
        assert_eq!(key.canonical(), want);
    }

    #[test]
    fn every_part_of_a_record_counts_in_its_hash() {
        let base = Record { layer: Layer::Base, ..record() };
        let all = [
            record(),
            base.clone(),
            Record { body: None, ..base.clone() },
            Record { body: Some(Vec::new()), ..base.clone() },
            Record { schema: 2, ..base.clone() },
            Record { author: NodeId(8), ..base.clone() },
            Record { stamp: Stamp { seq: 301, ..base.stamp }, ..base.clone() },
            Record { key: Key::Slot(ServiceId(7), SlotName::Node(NodeId(3))), ..base.clone() },
            Record { key: Key::Service(ServiceId(7)), ..base.clone() },
            Record { key: Key::Object(Kind::Secret, ObjectId(7)), ..base.clone() },
            Record { key: Key::Object(Kind::Config, ObjectId(7)), ..base },
        ];
        assert_eq!(all.iter().map(Record::hash).collect::<BTreeSet<_>>().len(), all.len());
    }
}
