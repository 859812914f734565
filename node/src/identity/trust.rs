//! Which credentials make their bearers members, while roots change.
//!
//! Noise proves a peer's key, and a credential adds what the document may not say yet: that the owner of the key was admitted,
//! and in which role. The newest known root is believed in both. A former root is not, as its key may be in wrong hands: its
//! credentials let in listed members alone, for what their records say. A root that is not known at all may be a later one that
//! this node has not heard of; its credentials let in those whom this node's document lists as managers, from which it then hears.

use std::collections::BTreeMap;

use shoal_protocol::token::Role;
use shoal_protocol::{ClusterId, NodeId, WallTime};

use super::{Credential, CredentialError, IdentityError, Membership, Root};

/// Whom a node lets into its cluster.
#[derive(Debug)]
pub struct Trust {
    newest: Root,
    /// Newest first.
    former: Vec<Root>,
    listed: BTreeMap<NodeId, Role>,
}

impl Trust {
    /// Returns whom a node trusts that knows no more than its own membership.
    pub fn of(membership: &Membership) -> Result<Self, IdentityError> {
        Ok(Self { newest: membership.root()?, former: Vec::new(), listed: BTreeMap::new() })
    }

    /// Returns whom a node trusts by its membership and by the document. A root of the document that cannot be read, or is of
    /// another cluster, is passed over.
    pub fn with(membership: &Membership, document: &shoal_control::core::Trust) -> Result<Self, IdentityError> {
        let own = membership.root()?;
        let cluster = own.cluster();
        let listed = document.listed.clone();
        let texts = std::iter::once(&document.root_pem).chain(&document.former_roots);
        let read = texts.filter_map(|text| Root::from_pem(text).ok());
        let mut roots: Vec<Root> = read.filter(|root| root.cluster() == cluster).collect();
        if !roots.contains(&own) {
            roots.push(own);
        }
        roots.sort_by_key(|root| std::cmp::Reverse(root.edition()));
        let newest = roots.remove(0);
        Ok(Self { newest, former: roots, listed })
    }

    /// Returns the cluster.
    pub fn cluster(&self) -> ClusterId {
        self.newest.cluster()
    }

    /// Returns the newest root.
    pub fn newest(&self) -> &Root {
        &self.newest
    }

    /// Verifies that `credential` makes the owner of `public_key` a member at the time `now`.
    pub fn verify(
        &self,
        credential: &[u8],
        public_key: &[u8; 32],
        now: WallTime,
    ) -> Result<Credential, CredentialError> {
        let verified = self.newest.verify(credential, public_key, now);
        let Err(CredentialError::NotIssuedHere) = verified else { return verified };
        let node = NodeId::from_public_key(public_key);
        let Some(role) = self.listed.get(&node) else { return verified };
        let by_former = self.former.iter().map(|root| root.verify(credential, public_key, now));
        let unknown = Err(CredentialError::NotIssuedHere);
        match by_former.into_iter().find(|verified| *verified != unknown) {
            Some(by_former) => by_former,
            None if *role == Role::Manager => self.newest.read_unverified(credential, public_key, now),
            None => unknown,
        }
    }

    /// Returns whether a peer stays that was let in by a credential.
    pub fn fits(&self, credential: &Credential, now: WallTime) -> bool {
        credential.cluster == self.cluster()
            && credential.valid.expires > now
            && (credential.granted.edition == self.newest.edition() || self.listed.contains_key(&credential.node))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::{ClusterSecrets, ManagerKey, NodeKey, create_cluster, next_edition};
    use shoal_control::renewal::Validity;
    use shoal_protocol::settings::CREDENTIAL_DEFAULT;
    use shoal_protocol::token::RoleGrant;
    use shoal_protocol::value::ClusterObject;

    const NOW: WallTime = WallTime(1_795_398_702_000_000_000);

    /// An edition of a cluster's keys.
    struct Edition {
        cluster: ClusterObject,
        key: ManagerKey,
    }

    impl Edition {
        fn issue(&self, node: &NodeKey, role: Role) -> Vec<u8> {
            let secrets = ClusterSecrets::open(&self.cluster.sealed, &self.key, self.cluster.id).unwrap();
            let root = Root::from_pem(&self.cluster.root_pem).unwrap();
            let granted = RoleGrant { role, index: 9, edition: root.edition() };
            secrets.issue(&root, &node.public_key(), granted, (NOW, CREDENTIAL_DEFAULT)).unwrap()
        }
    }

    fn said(cluster: &ClusterObject, listed: &[(&NodeKey, Role)]) -> shoal_control::core::Trust {
        shoal_control::core::Trust {
            edition: cluster.edition,
            root_pem: cluster.root_pem.clone(),
            former_roots: cluster.former_roots.clone(),
            listed: listed.iter().map(|(key, role)| (key.node_id(), *role)).collect(),
        }
    }

    #[test]
    fn a_former_root_vouches_for_nobody() {
        let [me, member, stranger] = [(); 3].map(|()| NodeKey::generate());
        let (membership, cluster) = create_cluster(&me, &Default::default(), NOW).unwrap();
        let first = Edition { key: membership.manager_key.clone().unwrap(), cluster };
        let managers = [(me.node_id(), me.public_key())].into();
        let next = next_edition(&first.cluster, Some(&first.key), &managers, NOW).unwrap();
        let second = Edition { key: ManagerKey::sealed_to(&me, &next).unwrap().unwrap(), cluster: next };
        assert_eq!(Root::from_pem(&second.cluster.root_pem).unwrap().cluster(), first.cluster.id, "it is the same one");

        // Before: whoever the root vouches for.
        let before = Trust::with(&membership, &said(&first.cluster, &[(&member, Role::Worker)])).unwrap();
        let old = |key| first.issue(key, Role::Manager);
        assert!(before.verify(&old(&stranger), &stranger.public_key(), NOW).is_ok());
        // Of a root that it does not know it lets in only whom it knows as managers, for what their records say.
        let new = |key| second.issue(key, Role::Manager);
        let refused = Err(CredentialError::NotIssuedHere);
        assert_eq!(before.verify(&new(&stranger), &stranger.public_key(), NOW), refused);
        assert_eq!(before.verify(&new(&member), &member.public_key(), NOW), refused, "a worker is not enough");
        let before = Trust::with(&membership, &said(&first.cluster, &[(&member, Role::Manager)])).unwrap();
        let unknown = before.verify(&new(&member), &member.public_key(), NOW).unwrap();
        assert_eq!((unknown.granted.edition, unknown.node), (0, member.node_id()));
        assert_eq!(before.verify(&new(&member), &stranger.public_key(), NOW), refused, "another one's credential");

        // After: the former root's credentials let in listed members.
        let after = Trust::with(&membership, &said(&second.cluster, &[(&member, Role::Worker)])).unwrap();
        assert_eq!(after.verify(&old(&stranger), &stranger.public_key(), NOW), refused);
        assert_eq!(after.verify(&old(&member), &member.public_key(), NOW).unwrap().granted.edition, 1);
        assert_eq!(after.verify(&new(&stranger), &stranger.public_key(), NOW).unwrap().granted.edition, 2);
        let ended = WallTime(NOW.0 + 91 * 86_400 * 1_000_000_000);
        assert!(matches!(after.verify(&old(&member), &member.public_key(), ended), Err(CredentialError::Expired(_))));

        // Links that were there before: a listed member's stays, a stranger's does not.
        let link = |key: &NodeKey, edition| Credential {
            node: key.node_id(),
            cluster: first.cluster.id,
            granted: RoleGrant { role: Role::Manager, index: 9, edition },
            valid: Validity { made: NOW, expires: WallTime(NOW.0 + 1) },
        };
        assert!(after.fits(&link(&member, 1), NOW) && !after.fits(&link(&stranger, 1), NOW));
        assert!(after.fits(&link(&stranger, 2), NOW) && !after.fits(&link(&stranger, 2), ended));
    }

    #[test]
    fn a_document_of_nonsense_changes_nothing() {
        let me = NodeKey::generate();
        let (membership, cluster) = create_cluster(&me, &Default::default(), NOW).unwrap();
        let (other, _) = create_cluster(&me, &Default::default(), NOW).unwrap();
        for text in [String::new(), "nonsense".to_owned(), other.root_pem] {
            let mut document = said(&cluster, &[]);
            document.root_pem = text;
            let trust = Trust::with(&membership, &document).unwrap();
            assert_eq!(trust.newest(), &membership.root().unwrap());
            assert!(trust.verify(&membership.credential, &me.public_key(), NOW).is_ok());
        }
    }
}
