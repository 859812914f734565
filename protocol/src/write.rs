//! Writes of objects: what a manager forwards to the holder of the registry lease, and what comes back.

use serde::{Deserialize, Serialize};

use crate::id::{NodeId, ObjectId, ServiceId};
use crate::object::{Kind, Sealed};
use crate::spec::Availability;
use crate::token::Role;
use crate::value::ClusterObject;

/// A change of one object. Retrying one is safe: the same change twice is applied once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Write {
    /// Creates a service from the JSON of its spec. The identifier is chosen by the caller.
    CreateService {
        /// New and random.
        id: ServiceId,
        /// JSON as the user sent it.
        spec: String,
        /// What the image's registry knows the user by.
        credentials: Option<Sealed>,
    },
    /// Replaces a service's spec.
    UpdateService {
        /// Which.
        id: ServiceId,
        /// The index that the caller read.
        version: u64,
        /// JSON as the user sent it; ignored when rolling back.
        spec: String,
        /// Whether to take the previous spec, with its credentials, instead.
        rollback: bool,
        /// What the image's registry knows the user by from now on; ignored when rolling back.
        credentials: CredentialsChange,
    },
    /// Replaces a service's credentials by the same, sealed with a later edition of the managers' key.
    ResealCredentials {
        /// Which service.
        id: ServiceId,
        /// The index that the caller read.
        version: u64,
        /// Those of its spec.
        credentials: Option<Sealed>,
        /// Those of its previous spec.
        previous: Option<Sealed>,
    },
    /// Removes a service and all its tasks.
    RemoveService {
        /// Which.
        id: ServiceId,
    },
    /// Makes a node a member. Its identity was checked by the manager that forwards this.
    AdmitNode {
        /// Which.
        id: NodeId,
        /// The role that its token grants.
        role: Role,
        /// Whether it is to take tasks. Counts for nothing if it is a member already.
        availability: Availability,
    },
    /// Replaces a node's spec.
    UpdateNode {
        /// Which.
        id: NodeId,
        /// The index that the caller read.
        version: u64,
        /// JSON as the user sent it.
        spec: String,
    },
    /// Removes a node for good: its identity is banned.
    RemoveNode {
        /// Which.
        id: NodeId,
        /// Whether to remove it though it is not down.
        force: bool,
    },
    /// Replaces the cluster's settings: join secrets, or all its secrets with a new root.
    UpdateCluster {
        /// The whole object; its index is the one that the caller read.
        cluster: ClusterObject,
    },
    /// Creates a secret, config or network. The identifier is chosen by the caller.
    CreateObject {
        /// Of which kind.
        kind: Kind,
        /// New and random.
        id: ObjectId,
        /// JSON as the user sent it, without the data.
        spec: String,
        /// As in [`crate::object::Object::data`]: what is secret is sealed before it comes here.
        #[serde(with = "serde_bytes")]
        data: Vec<u8>,
        /// With which edition of the managers' key a secret's data are sealed; 0 for everything else.
        edition: u64,
    },
    /// Replaces a secret's data by the same, sealed with a later edition of the managers' key.
    ResealSecret {
        /// Which.
        id: ObjectId,
        /// The later edition.
        edition: u64,
        /// The data, sealed.
        #[serde(with = "serde_bytes")]
        data: Vec<u8>,
    },
    /// Replaces the labels of a secret or config.
    UpdateObject {
        /// Of which kind.
        kind: Kind,
        /// Which.
        id: ObjectId,
        /// The index that the caller read.
        version: u64,
        /// JSON as the user sent it, without the data.
        spec: String,
    },
    /// Removes a secret, config or network that no service uses.
    RemoveObject {
        /// Of which kind.
        kind: Kind,
        /// Which.
        id: ObjectId,
    },
}

/// What becomes of a service's credentials in an update. Source: Docker Engine API v1.50, `registryAuthFrom`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum CredentialsChange {
    /// They stay.
    Keep,
    /// Those of the previous spec are taken.
    Previous,
    /// They are these; `None` removes them.
    Set(Option<Sealed>),
}

impl Write {
    /// Returns how many bytes the user's part of it has, as far as it matters for how much may wait.
    pub fn bytes(&self) -> usize {
        let sealed = |sealed: &Option<Sealed>| sealed.as_ref().map_or(0, |sealed| sealed.data.len());
        match self {
            Self::CreateService { spec, credentials, .. }
            | Self::UpdateService { spec, credentials: CredentialsChange::Set(credentials), .. } => {
                spec.len() + sealed(credentials)
            }
            Self::ResealCredentials { credentials, previous, .. } => sealed(credentials) + sealed(previous),
            Self::UpdateService {
                spec, credentials: CredentialsChange::Keep | CredentialsChange::Previous, ..
            }
            | Self::UpdateNode { spec, .. }
            | Self::UpdateObject { spec, .. } => spec.len(),
            Self::CreateObject { spec, data, .. } => spec.len() + data.len(),
            Self::ResealSecret { data, .. } => data.len(),
            Self::UpdateCluster { cluster } => {
                let roots = cluster.former_roots.iter().chain([&cluster.root_pem]).map(String::len);
                cluster.sealed.len() + roots.sum::<usize>() + cluster.keys.values().map(Vec::len).sum::<usize>()
            }
            Self::RemoveService { .. }
            | Self::AdmitNode { .. }
            | Self::RemoveNode { .. }
            | Self::RemoveObject { .. } => 0,
        }
    }
}

/// What an accepted write did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written {
    /// The object's index after the write; 0 after a removal.
    pub index: u64,
    /// Things the user should know.
    pub warnings: Vec<String>,
}

/// Why a write was refused. Nothing was changed unless a variant says otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum WriteError {
    /// The request makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// There is no such object.
    #[error("{0}")]
    NotFound(String),
    /// A name or port is taken.
    #[error("{0}")]
    Conflict(String),
    /// The object was changed since it was read.
    #[error("update out of sequence")]
    OutOfSequence,
    /// The request makes sense but not now.
    #[error("{0}")]
    Precondition(String),
    /// No majority of the voters is reachable. The write may still take effect.
    #[error("the cluster has no quorum: {0}")]
    NoQuorum(String),
    /// This node is a worker.
    #[error("this node is a worker; send writes to a manager: {}", managers.join(", "))]
    NotManager {
        /// Addresses of managers that it knows.
        managers: Vec<String>,
    },
    /// A voter's disk is full or broken.
    #[error("{0}")]
    Storage(String),
    /// Too many writes wait already.
    #[error("too many writes are waiting; try again")]
    Busy,
}
