//! What two admitted nodes say to each other on `/shoal/control/1`: one ordered stream of frames each way.

use serde::{Deserialize, Serialize};

use crate::id::NodeId;
use crate::lease::{LeaseId, LeaseMessage};
use crate::record::{Key, Record, Stamp};
use crate::write::{Write, WriteError, Written};

/// Records in one message at most; the size of a frame limits them as well.
pub const RECORDS_MAX: usize = 4096;

/// Buckets that the document's digest is divided into.
pub const BUCKETS: usize = 256;

/// A message between two nodes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum PeerMessage {
    /// Are you there? Answered at once.
    Ping {
        /// Root digest of the sender's document, so that both notice when they differ.
        digest: u128,
    },
    /// The answer.
    Pong {
        /// Root digest of the sender's document.
        digest: u128,
    },
    /// A frame of chitchat's, opened by nobody but chitchat.
    Gossip(#[serde(with = "serde_bytes")] Vec<u8>),
    /// Leases and voters.
    Lease(LeaseMessage),
    /// Writes that their author just made.
    Delta(Vec<Record>),
    /// Repair of differences.
    Sync(SyncMessage),
    /// The holder of a lease asks a voter to make writes durable.
    Append(Append),
    /// The voter's answer.
    Appended(Appended),
    /// A manager forwards a write to the holder of the registry lease.
    Write {
        /// Repeated in the answer.
        request: u64,
        /// What to write.
        write: Write,
    },
    /// The holder's answer.
    WriteReply {
        /// The number of the question.
        request: u64,
        /// `None`: this node does not hold the registry lease; ask again elsewhere.
        result: Option<Result<Written, WriteError>>,
    },
    /// Please dial this node afresh and tell whether it answers.
    Probe {
        /// Repeated in the answer.
        request: u64,
        /// Who is suspected.
        target: NodeId,
    },
    /// What a probe for another node saw.
    Probed {
        /// The number of the question.
        request: u64,
        /// Who was suspected.
        target: NodeId,
        /// Whether it answered on a fresh connection.
        alive: bool,
    },
    /// The holder of a lease would like to forget these tombstones: are they on the receiver's disk?
    Tombstones {
        /// Key and stamp of each.
        asked: Vec<(Key, Stamp)>,
    },
    /// Those that are.
    TombstonesHeld {
        /// Key and stamp of each.
        held: Vec<(Key, Stamp)>,
    },
    /// The sender goes away.
    Farewell {
        /// True when it will be back within 30 s and keeps its tasks; false when it leaves the cluster.
        restarting: bool,
    },
    /// The receiver was removed from the cluster and shall stop its tasks.
    Removed,
}

/// Records to be made durable by a voter, under the sender's lease.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Append {
    /// Repeated in the answer.
    pub request: u64,
    /// The voter set under which the sender counts.
    pub voters: u64,
    /// The lease that allows it.
    pub lease: LeaseId,
    /// The sender's epoch of that lease.
    pub epoch: u64,
    /// What to store.
    pub records: Vec<Record>,
}

/// A voter's answer to [`Append`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Appended {
    /// The number of the question.
    pub request: u64,
    /// Whether the records are on this voter's disk.
    pub result: Result<(), AppendError>,
}

/// Why a voter did not store records.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum AppendError {
    /// The voter granted the lease to someone else since, or does not vote under that set.
    #[error("the lease was granted to another node since")]
    Fenced,
    /// The voter could not write.
    #[error("{0}")]
    Storage(String),
}

/// Repair: four messages at most bring two documents together, as far as frames allow; the rest follows a second later.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum SyncMessage {
    /// "My buckets have these digests." One number per bucket, [`BUCKETS`] in all.
    Digest(Vec<u64>),
    /// "In these buckets that differ I hold these keys."
    Summary {
        /// Which buckets, ascending.
        buckets: Vec<u16>,
        /// Every record of those buckets.
        records: Vec<Summary>,
        /// Whether further buckets differ that did not fit.
        more: bool,
    },
    /// "Here is what you lack; please send me the rest."
    Exchange {
        /// Records that the receiver lacks.
        records: Vec<Record>,
        /// Keys of records that the sender lacks.
        wanted: Vec<Key>,
    },
    /// "Here is what you asked for." The last message.
    Records(Vec<Record>),
}

/// A record's key and how new it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// The key.
    pub key: Key,
    /// The stamp of its base.
    pub stamp: Stamp,
    /// Hash over base and overlay.
    pub hash: u64,
}
