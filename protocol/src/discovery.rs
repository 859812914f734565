//! What a node calls out on its local link when it has lost members of its cluster.
//!
//! A datagram says where one node listens and nothing else. Its tag is a digest of what it says with the identifier of the
//! cluster, which the datagram does not name: whoever never saw that cluster can neither forge one nor tell which clusters
//! are on a link. That keeps noise out, not attackers: an announcement decides nothing but whom to dial, and who is there is
//! proved by the connection.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::codec::{self, CodecError};
use crate::id::{ClusterId, NodeId};

/// Bytes of a datagram at most; longer ones are refused unread.
pub const DATAGRAM_BYTES_MAX: usize = 64;

/// Bytes of a tag.
const TAG_BYTES: usize = 16;

/// Where a node listens, as it calls it out. Its address is where the datagram comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Announcement {
    /// Who.
    pub node: NodeId,
    /// The TCP port on which others reach it, from 1.
    pub port: u16,
}

/// Why a datagram is no announcement for this cluster.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AnnouncementError {
    /// It is longer than any announcement.
    #[error("datagram of {bytes} bytes is larger than the limit of {DATAGRAM_BYTES_MAX}")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// It is none.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// It belongs to another cluster, or was made up.
    #[error("announcement is not of this cluster")]
    Foreign,
    /// Nobody listens on port 0.
    #[error("announcement names no port")]
    NoPort,
}

/// The announcement as it travels.
#[derive(Serialize, Deserialize)]
struct Datagram {
    node: NodeId,
    port: u16,
    tag: [u8; TAG_BYTES],
}

impl Announcement {
    /// Encodes the announcement for the members of a cluster.
    pub fn encode(&self, cluster: ClusterId) -> Result<Vec<u8>, CodecError> {
        codec::encode(&Datagram { node: self.node, port: self.port, tag: self.tag(cluster) })
    }

    /// Decodes what a member of this cluster has sent.
    pub fn decode(bytes: &[u8], cluster: ClusterId) -> Result<Self, AnnouncementError> {
        if bytes.len() > DATAGRAM_BYTES_MAX {
            return Err(AnnouncementError::TooLarge { bytes: bytes.len() });
        }
        let Datagram { node, port, tag } = codec::decode(bytes)?;
        let announcement = Self { node, port };
        match announcement.tag(cluster) == tag {
            false => Err(AnnouncementError::Foreign),
            true if port == 0 => Err(AnnouncementError::NoPort),
            true => Ok(announcement),
        }
    }

    fn tag(&self, cluster: ClusterId) -> [u8; TAG_BYTES] {
        let hash = Sha256::new()
            .chain_update(b"shoal announcement")
            .chain_update(cluster.0.to_le_bytes())
            .chain_update(self.node.0.to_le_bytes())
            .chain_update(self.port.to_le_bytes())
            .finalize();
        hash[..TAG_BYTES].try_into().expect("SHA-256 has 32 bytes")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CLUSTER: ClusterId = ClusterId(7);

    proptest! {
        #[test]
        fn announcements_survive_the_link(node: u128, port in 1u16..) {
            let announcement = Announcement { node: NodeId(node), port };
            let bytes = announcement.encode(CLUSTER).unwrap();
            prop_assert!(bytes.len() <= DATAGRAM_BYTES_MAX);
            prop_assert_eq!(Announcement::decode(&bytes, CLUSTER), Ok(announcement));
        }

        #[test]
        fn noise_is_refused(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            prop_assert!(Announcement::decode(&bytes, CLUSTER).is_err());
        }
    }

    #[test]
    fn golden_bytes() {
        let bytes = Announcement { node: NodeId(2), port: 2377 }.encode(CLUSTER).unwrap();
        let want = "01020000000000000000000000000000 00fb4909";
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(&hex[..40], want.replace(' ', ""), "{hex}");
        assert_eq!(bytes.len(), 36);
    }

    #[test]
    fn what_is_not_of_this_cluster_is_refused() {
        let announcement = Announcement { node: NodeId(2), port: 2377 };
        let bytes = announcement.encode(CLUSTER).unwrap();
        assert_eq!(Announcement::decode(&bytes, ClusterId(8)), Err(AnnouncementError::Foreign));
        for at in 1..bytes.len() {
            let mut forged = bytes.clone();
            forged[at] ^= 1;
            assert!(Announcement::decode(&forged, CLUSTER).is_err(), "byte {at}");
        }
        let nowhere = Announcement { port: 0, ..announcement }.encode(CLUSTER).unwrap();
        assert_eq!(Announcement::decode(&nowhere, CLUSTER), Err(AnnouncementError::NoPort));
        let long = vec![codec::VERSION; DATAGRAM_BYTES_MAX + 1];
        assert_eq!(Announcement::decode(&long, CLUSTER), Err(AnnouncementError::TooLarge { bytes: long.len() }));
    }
}
