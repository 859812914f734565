use super::*;
use shoal_protocol::WallTime;
use shoal_protocol::token::{Role, RoleGrant};

const NOW: WallTime = WallTime(1_795_398_702_000_000_000);

fn days_later(days: u64) -> WallTime {
    WallTime(NOW.0 + days * 86_400 * 1_000_000_000)
}

#[test]
fn a_key_survives_the_disk() {
    let key = NodeKey::generate();
    let read = NodeKey::from_bytes(&key.to_bytes()).unwrap();
    assert_eq!(read.node_id(), key.node_id());
    assert!(matches!(NodeKey::from_bytes(&[1; 63]), Err(IdentityError::NotAKey)));
    assert!(matches!(NodeKey::from_bytes(&[1; 64]), Err(IdentityError::NotAKey)));
}

#[test]
fn the_first_manager_is_a_member_of_its_cluster() {
    let key = NodeKey::generate();
    let (membership, cluster) = create_cluster(&key, NOW).unwrap();
    let credential = membership.verify(&key.public_key(), NOW).unwrap();
    assert_eq!(credential.node, key.node_id());
    assert_eq!(credential.granted.role, Role::Manager);
    assert_eq!(credential.expires, days_later(CREDENTIAL_DAYS));
    assert_eq!(membership.expires(&key.public_key()).unwrap(), credential.expires);
    assert!(membership.expires(&NodeKey::generate().public_key()).is_err());
    assert_eq!(membership.cluster().unwrap(), cluster.id);
    assert_eq!(Membership::from_bytes(&membership.to_bytes().unwrap()).unwrap(), membership);
}

#[test]
fn credentials_that_do_not_fit_are_refused() {
    let (key, other_key) = (NodeKey::generate(), NodeKey::generate());
    let (membership, cluster) = create_cluster(&key, NOW).unwrap();
    let (other, _) = create_cluster(&key, NOW).unwrap();
    let root = membership.root().unwrap();
    let secrets = ClusterSecrets::open(&cluster.sealed, membership.manager_key.as_ref().unwrap(), cluster.id).unwrap();
    let worker = secrets.issue(&root, &other_key.public_key(), RoleGrant::first(Role::Worker), NOW).unwrap();
    assert_eq!(root.verify(&worker, &other_key.public_key(), NOW).unwrap().granted.role, Role::Worker);

    let public = key.public_key();
    let verify = |credential: &[u8], now| root.verify(credential, &public, now).unwrap_err();
    assert_eq!(verify(&worker, NOW), CredentialError::WrongNode);
    assert_eq!(verify(&other.credential, NOW), CredentialError::WrongCluster);
    assert_eq!(
        verify(&membership.credential, days_later(CREDENTIAL_DAYS)),
        CredentialError::Expired(days_later(CREDENTIAL_DAYS))
    );
    assert!(matches!(verify(&membership.credential, WallTime(0)), CredentialError::NotYetValid(_)));
    assert!(matches!(verify(root.der(), NOW), CredentialError::Malformed(_)));
    assert!(matches!(verify(b"", NOW), CredentialError::Malformed(_)));
    assert!(matches!(verify(&[0x30; 5000], NOW), CredentialError::Malformed(_)));
    let mut trailing = membership.credential.clone();
    trailing.push(0);
    assert!(matches!(verify(&trailing, NOW), CredentialError::Malformed(_)));
}

#[test]
fn no_flipped_bit_changes_what_a_credential_says() {
    let key = NodeKey::generate();
    let (membership, _) = create_cluster(&key, NOW).unwrap();
    let root = membership.root().unwrap();
    let genuine = root.verify(&membership.credential, &key.public_key(), NOW).unwrap();
    let mut accepted = 0;
    for at in 0..membership.credential.len() {
        let mut forged = membership.credential.clone();
        forged[at] ^= 1;
        if let Ok(credential) = root.verify(&forged, &key.public_key(), NOW) {
            assert_eq!(credential, genuine, "byte {at}");
            accepted += 1;
        }
    }
    // The parser is lenient about the tag of the outer, unsigned copy of the algorithm's name.
    assert!(accepted <= 1, "{accepted} forgeries");
}

#[test]
fn a_credential_of_a_root_with_the_same_names_is_refused() {
    let key = NodeKey::generate();
    let (membership, _) = create_cluster(&key, NOW).unwrap();
    let (root, _) = Root::generate(NOW).unwrap();
    // The forger's credential must name the right cluster to get as far as the signature.
    let genuine = membership.root().unwrap();
    let (_, forged_key) = Root::generate(NOW).unwrap();
    let forged = genuine.issue(&forged_key, &key.public_key(), RoleGrant::first(Role::Manager), NOW).unwrap();
    assert_eq!(genuine.verify(&forged, &key.public_key(), NOW), Err(CredentialError::NotIssuedHere));
    assert_ne!(root.cluster(), genuine.cluster());
}

#[test]
fn sealed_secrets_open_with_their_key_only() {
    let (membership, mut cluster) = create_cluster(&NodeKey::generate(), NOW).unwrap();
    let key = membership.manager_key.clone().unwrap();
    let root = membership.root().unwrap();
    let mut secrets = ClusterSecrets::open(&cluster.sealed, &key, cluster.id).unwrap();
    for role in [Role::Worker, Role::Manager] {
        let token = secrets.token(&root, role);
        assert!(token.is_for_root(root.der()));
        assert_eq!(secrets.role_of(&token.secret), Some(role));
        secrets.rotate(role).unwrap();
        assert_eq!(secrets.role_of(&token.secret), None);
    }
    assert_eq!(ClusterSecrets::open(&secrets.seal(&key, cluster.id).unwrap(), &key, cluster.id).unwrap(), secrets);

    let refused = |sealed: &[u8], key: &ManagerKey, cluster| {
        assert!(matches!(ClusterSecrets::open(sealed, key, cluster), Err(IdentityError::Sealed)));
    };
    refused(&cluster.sealed, &ManagerKey::generate().unwrap(), cluster.id);
    refused(&cluster.sealed, &key, shoal_protocol::ClusterId(1));
    refused(&[], &key, cluster.id);
    cluster.sealed[30] ^= 1;
    refused(&cluster.sealed, &key, cluster.id);
    assert!(!format!("{membership:?} {secrets:?}").contains(&format!("{:?}", key.0)), "secrets are not printed");
}
