use std::time::Duration;

use super::*;
use shoal_control::renewal::Validity;
use shoal_protocol::WallTime;
use shoal_protocol::settings::{CREDENTIAL_DEFAULT, ClusterSettings};
use shoal_protocol::token::{Role, RoleGrant};

const NOW: WallTime = WallTime(1_795_398_702_000_000_000);

/// Days that a credential lasts by default.
const CREDENTIAL_DAYS: u64 = 90;

/// How long a credential of the default settings lasts, from now on.
const VALID: (WallTime, Duration) = (NOW, CREDENTIAL_DEFAULT);

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
    let (membership, cluster) = create_cluster(&key, &Default::default(), NOW).unwrap();
    let credential = membership.verify(&key.public_key(), NOW).unwrap();
    assert_eq!(credential.node, key.node_id());
    assert_eq!(credential.granted.role, Role::Manager);
    assert_eq!(credential.valid, Validity { made: NOW, expires: days_later(CREDENTIAL_DAYS) });
    assert_eq!(membership.valid(&key.public_key()).unwrap(), credential.valid);
    assert!(membership.valid(&NodeKey::generate().public_key()).is_err());
    assert_eq!(membership.cluster().unwrap(), cluster.id);
    assert_eq!(Membership::from_bytes(&membership.to_bytes().unwrap()).unwrap(), membership);
}

#[test]
fn credentials_that_do_not_fit_are_refused() {
    let (key, other_key) = (NodeKey::generate(), NodeKey::generate());
    let (membership, cluster) = create_cluster(&key, &Default::default(), NOW).unwrap();
    let (other, _) = create_cluster(&key, &Default::default(), NOW).unwrap();
    let root = membership.root().unwrap();
    let secrets = ClusterSecrets::open(&cluster.sealed, membership.manager_key.as_ref().unwrap(), cluster.id).unwrap();
    let worker = secrets.issue(&root, &other_key.public_key(), RoleGrant::first(Role::Worker), VALID).unwrap();
    assert_eq!(root.verify(&worker, &other_key.public_key(), NOW).unwrap().granted.role, Role::Worker);

    let public = key.public_key();
    let verify = |credential: &[u8], now| root.verify(credential, &public, now).unwrap_err();
    assert_eq!(verify(&worker, NOW), CredentialError::WrongNode);
    assert_eq!(verify(&other.credential, NOW), CredentialError::WrongCluster);
    assert_eq!(
        verify(&membership.credential, days_later(CREDENTIAL_DAYS)),
        CredentialError::Expired(Validity { made: NOW, expires: days_later(CREDENTIAL_DAYS) })
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
    let (membership, _) = create_cluster(&key, &Default::default(), NOW).unwrap();
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
    let (membership, _) = create_cluster(&key, &Default::default(), NOW).unwrap();
    let (root, _) = Root::generate(NOW).unwrap();
    // The forger's credential must name the right cluster to get as far as the signature.
    let genuine = membership.root().unwrap();
    let (_, forged_key) = Root::generate(NOW).unwrap();
    let forged = genuine.issue(&forged_key, &key.public_key(), RoleGrant::first(Role::Manager), VALID).unwrap();
    assert_eq!(genuine.verify(&forged, &key.public_key(), NOW), Err(CredentialError::NotIssuedHere));
    assert_ne!(root.cluster(), genuine.cluster());
}

#[test]
fn sealed_secrets_open_with_their_key_only() {
    let (membership, mut cluster) = create_cluster(&NodeKey::generate(), &Default::default(), NOW).unwrap();
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

#[test]
fn credentials_last_as_long_as_users_want() {
    let key = NodeKey::generate();
    let settings = ClusterSettings { credential_ns: 3_600_000_000_000, ..Default::default() };
    let (membership, _) = create_cluster(&key, &settings, NOW).unwrap();
    let expires = WallTime(NOW.0 + 3_600_000_000_000);
    assert_eq!(membership.valid(&key.public_key()).unwrap(), Validity { made: NOW, expires });
}

#[test]
fn the_unlock_key_is_the_managers_and_outlives_an_edition() {
    let key = NodeKey::generate();
    let (open, cluster) = create_cluster(&key, &Default::default(), NOW).unwrap();
    let opened = |cluster: &_, key: &ManagerKey| -> ClusterSecrets {
        let cluster: &shoal_protocol::value::ClusterObject = cluster;
        ClusterSecrets::open(&cluster.sealed, key, cluster.id).unwrap()
    };
    assert_eq!((open.lock, cluster.lock, cluster.wanted_lock()), (None, 0, None));
    assert_eq!(opened(&cluster, open.manager_key.as_ref().unwrap()).lock(&cluster), None);

    let settings = ClusterSettings { auto_lock: true, ..Default::default() };
    let (locked, cluster) = create_cluster(&key, &settings, NOW).unwrap();
    let (manager_key, lock) = (locked.manager_key.unwrap(), locked.lock.unwrap());
    let mut secrets = opened(&cluster, &manager_key);
    assert_eq!(secrets.lock(&cluster), Some(lock.clone()));
    assert_eq!(lock.number, 1);

    // Another root and another managers' key leave it as it is; without the former key there has to be another one.
    let managers = [(key.node_id(), key.public_key())].into();
    for (former, number) in [(Some(&manager_key), 1), (None, 2)] {
        let next = next_edition(&cluster, former, &managers, NOW).unwrap();
        let next_key = ManagerKey::sealed_to(&key, &next).unwrap().unwrap();
        let next_lock = opened(&next, &next_key).lock(&next).unwrap();
        assert_eq!((next_lock.number, next_lock.key == lock.key), (number, number == 1));
    }
    secrets.relock().unwrap();
    assert!(secrets.lock(&cluster).unwrap().key != lock.key);
    secrets.unlock();
    assert_eq!(secrets.lock(&cluster), None);
}
