//! Joining by token, and renewal of credentials.

use super::*;

/// Answers join requests and renewals as a manager's runtime would, until `count` are answered.
async fn decide(cluster: &TestCluster, manager: &mut TestNode, count: usize) {
    for _ in 0..count {
        let peers = vec![(manager.id, manager.address())];
        manager
            .expect("a request", |event| match event {
                SwarmEvent::Join { request, reply } => {
                    assert_eq!(request.node, NodeId::from_public_key(&request.public_key));
                    assert!(request.source.is_loopback());
                    let decision = match cluster.secrets.role_of(&request.secret) {
                        None => Err(JoinRefusal::InvalidToken),
                        Some(role) => {
                            let public_key = &request.public_key;
                            let granted = RoleGrant::first(role);
                            let credential = cluster.secrets.issue(&cluster.root, public_key, granted, VALID).unwrap();
                            let manager_key = (role == Role::Manager).then(|| cluster.manager_key.clone());
                            let root_pem = cluster.root.pem().to_owned();
                            let membership = Membership { root_pem, credential, granted, manager_key, lock: None };
                            Ok(JoinReply { membership, peers: peers.clone() })
                        }
                    };
                    reply.send(decision).unwrap();
                    Some(())
                }
                SwarmEvent::Renew { public_key, reply, .. } => {
                    let credential = cluster
                        .secrets
                        .issue(&cluster.root, &public_key, RoleGrant::first(Role::Worker), VALID)
                        .unwrap();
                    reply.send(Ok(Renewed { credential, manager_key: None, lock: None })).unwrap();
                    Some(())
                }
                _ => None,
            })
            .await;
    }
}

async fn stranger() -> TestNode {
    TestNode::start(NodeKey::generate(), None, 0).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_makes_a_node_a_member_with_its_role() {
    let cluster = TestCluster::new();
    let mut manager = cluster.node(Role::Manager).await;
    for role in [Role::Worker, Role::Manager] {
        let mut node = stranger().await;
        // The first seed is of no use.
        let seeds = ["127.0.0.1:1".to_owned(), manager.address().to_string()];
        let token = cluster.token(role);
        let (reply, ()) =
            tokio::join!(node.handle.join(&seeds, &token, Availability::Active), decide(&cluster, &mut manager, 1));
        let reply = reply.unwrap();
        assert_eq!(reply.membership.role(), role);
        assert_eq!(reply.membership.manager_key.is_some(), role == Role::Manager);
        assert_eq!(reply.peers, [(manager.id, manager.address())]);
        node.handle.set_membership(Some(reply.membership)).unwrap();
        node.knows(&[&manager]);
        assert_eq!(node.expect_up(manager.id).await.0, Role::Manager);
        assert_eq!(manager.expect_up(node.id).await.0, role);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_names_managers() {
    let cluster = TestCluster::new();
    let (mut manager, mut worker) = (cluster.node(Role::Manager).await, cluster.node(Role::Worker).await);
    let node = stranger().await;
    let (seeds, token) = ([worker.address().to_string()], cluster.token(Role::Worker));
    let error = node.handle.join(&seeds, &token, Availability::Active).await.unwrap_err();
    assert!(matches!(error, JoinError::Refused { reason: JoinRefusal::NoManager, .. }), "{error:?}");
    link(&mut worker, &mut manager).await;
    let (reply, ()) =
        tokio::join!(node.handle.join(&seeds, &token, Availability::Active), decide(&cluster, &mut manager, 1));
    assert_eq!(reply.unwrap().membership.role(), Role::Worker);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_secret_is_refused_in_swarms_words() {
    let cluster = TestCluster::new();
    let mut manager = cluster.node(Role::Manager).await;
    let node = stranger().await;
    let secret = shoal_protocol::token::JoinSecret::from_random([7; 16]);
    let token = JoinToken::new(cluster.root.der(), secret);
    let seeds = [manager.address().to_string()];
    let (reply, ()) =
        tokio::join!(node.handle.join(&seeds, &token, Availability::Active), decide(&cluster, &mut manager, 1));
    assert_eq!(reply.unwrap_err().to_string(), "A valid join token is necessary to join this cluster");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_secret_is_not_said_to_another_cluster() {
    let (ours, theirs) = (TestCluster::new(), TestCluster::new());
    let mut manager = theirs.node(Role::Manager).await;
    let node = stranger().await;
    let error = node
        .handle
        .join(&[manager.address().to_string()], &ours.token(Role::Manager), Availability::Active)
        .await
        .unwrap_err();
    assert!(matches!(error, JoinError::WrongCluster { .. }), "{error:?}");
    node.handle.shutdown().await;
    assert!(manager.events.try_recv().is_err(), "the other cluster heard of it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_secret_is_not_said_to_whom_the_root_does_not_vouch_for() {
    let cluster = TestCluster::new();
    // It shows the right root, but somebody else's credential.
    let membership = cluster.membership_at(&NodeKey::generate(), Role::Manager, NOW);
    let mut impostor = TestNode::start(NodeKey::generate(), Some(membership), 0).await;
    let node = stranger().await;
    let seeds = [impostor.address().to_string()];
    let error = node.handle.join(&seeds, &cluster.token(Role::Worker), Availability::Active).await.unwrap_err();
    assert!(matches!(error, JoinError::Untrusted { .. }), "{error:?}");
    node.handle.shutdown().await;
    assert!(impostor.events.try_recv().is_err(), "the impostor got the secret");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_node_may_not_join_again() {
    let cluster = TestCluster::new();
    let manager = cluster.node(Role::Manager).await;
    let node = stranger().await;
    manager.handle.set_banned([node.id].into());
    let seeds = [manager.address().to_string()];
    let error = node.handle.join(&seeds, &cluster.token(Role::Worker), Availability::Active).await.unwrap_err();
    assert!(matches!(error, JoinError::Refused { reason: JoinRefusal::Banned, .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn useless_seeds_are_named() {
    let cluster = TestCluster::new();
    let (node, other) = (stranger().await, stranger().await);
    let token = cluster.token(Role::Worker);
    assert!(matches!(node.handle.join(&[], &token, Availability::Active).await, Err(JoinError::NoSeeds)));
    let seed = "no-such-host.invalid".to_owned();
    assert!(matches!(
        node.handle.join(&[seed], &token, Availability::Active).await,
        Err(JoinError::Unresolvable { .. })
    ));
    let seeds = [other.address().to_string()];
    let error = node.handle.join(&seeds, &token, Availability::Active).await.unwrap_err();
    assert!(matches!(error, JoinError::Refused { reason: JoinRefusal::NotInCluster, .. }), "{error:?}");
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = node.handle.join(&[closed.to_string()], &token, Availability::Active).await.unwrap_err();
    assert!(matches!(error, JoinError::Unreachable { address, .. } if address == closed), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guessing_tokens_is_slowed_down() {
    let cluster = TestCluster::new();
    let mut manager = cluster.node(Role::Manager).await;
    let node = stranger().await;
    let token = JoinToken::new(cluster.root.der(), shoal_protocol::token::JoinSecret::from_random([7; 16]));
    let seeds = [manager.address().to_string()];
    let guess = async {
        for attempt in 0..100 {
            let error = node.handle.join(&seeds, &token, Availability::Active).await.unwrap_err();
            if matches!(error, JoinError::Refused { reason: JoinRefusal::Busy, .. }) {
                return attempt;
            }
        }
        panic!("never slowed down");
    };
    let allowed = tokio::select! {
        allowed = guess => allowed,
        () = decide(&cluster, &mut manager, 1000) => unreachable!(),
    };
    assert!((10..60).contains(&allowed), "{allowed} guesses in a row");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manager_renews_a_members_credential() {
    let cluster = TestCluster::new();
    let (mut manager, mut worker) = (cluster.node(Role::Manager).await, cluster.node(Role::Worker).await);
    link(&mut worker, &mut manager).await;
    let (renewed, ()) = tokio::join!(worker.handle.renew(manager.id), decide(&cluster, &mut manager, 1));
    let credential = cluster.root.verify(&renewed.unwrap().credential, &worker.key.public_key(), NOW).unwrap();
    assert_eq!(credential.granted.role, Role::Worker);
    let error = manager.handle.renew(worker.id).await.unwrap_err();
    assert!(matches!(error, RenewError::Refused(_)), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_credential_ended_comes_back_with_a_token() {
    let cluster = TestCluster::new();
    let mut manager = cluster.node(Role::Manager).await;
    let key = NodeKey::generate();
    let ended = cluster.membership_at(&key, Role::Worker, WallTime(NOW.0 - 91 * 86_400 * 1_000_000_000));
    let mut off_too_long = TestNode::start(key.clone(), Some(ended), 0).await;
    off_too_long.knows(&[&manager]);
    assert!(matches!(off_too_long.expect_refused().await.0, Refusal::Credential(_)));
    off_too_long.handle.shutdown().await;

    let mut node = TestNode::start(key, None, 0).await;
    let (seeds, token) = ([manager.address().to_string()], cluster.token(Role::Worker));
    let (reply, ()) =
        tokio::join!(node.handle.join(&seeds, &token, Availability::Active), decide(&cluster, &mut manager, 1));
    node.handle.set_membership(Some(reply.unwrap().membership)).unwrap();
    node.knows(&[&manager]);
    node.expect_up(manager.id).await;
    assert_eq!(manager.expect_up(off_too_long.id).await.0, Role::Worker, "the same node as before");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn seeds_are_asked_again_by_name() {
    let cluster = TestCluster::new();
    let mut member = cluster.node(Role::Manager).await;
    let mut lost = cluster.node(Role::Worker).await;
    let seeds =
        ["127.0.0.1:1".to_owned(), format!("localhost:{}", member.address().port()), lost.address().to_string()];
    lost.handle.dial_seeds(&seeds).await;
    lost.expect_up(member.id).await;
    member.expect_up(lost.id).await;
}
