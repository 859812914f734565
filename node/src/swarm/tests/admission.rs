//! Who gets a link and who does not.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_banned_node_is_cut_off_and_told_by_whom() {
    let cluster = TestCluster::new();
    let (mut a, mut b) = (cluster.node(Role::Manager).await, cluster.node(Role::Worker).await);
    link(&mut a, &mut b).await;
    b.knows(&[&a]);
    a.handle.set_banned([b.id].into());
    a.expect_down(b.id).await;
    b.expect_down(a.id).await;
    assert_eq!(b.expect_refused().await, (Refusal::Banned, Some((a.id, Role::Manager))));
    assert!(a.handle.peers().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expired_credential_is_refused() {
    let cluster = TestCluster::new();
    let mut a = cluster.node(Role::Manager).await;
    let key = NodeKey::generate();
    let old = WallTime(NOW.0 - 91 * 86_400 * 1_000_000_000);
    let expired = cluster.membership_at(&key, Role::Manager, old);
    let mut b = TestNode::start(key, Some(expired), 0).await;
    b.knows(&[&a]);
    let (reason, by) = b.expect_refused().await;
    assert!(reason.to_string().contains("expired"), "{reason}");
    assert_eq!(by, Some((a.id, Role::Manager)));

    // Nor does a node accept an expired credential where it dialled itself.
    a.knows(&[&b]);
    assert!(!a.handle.probe(b.id, b.address(), DEADLINE).await);
    assert!(a.handle.peers().is_empty());

    // A new credential gets it in, without a restart.
    b.handle.set_membership(Some(cluster.membership_at(&b.key, Role::Manager, NOW))).unwrap();
    b.expect_up(a.id).await;
    a.expect_up(b.id).await;
}

static CLOCK: AtomicU64 = AtomicU64::new(NOW.0);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_ends_with_its_credential() {
    let cluster = TestCluster::new();
    let key = NodeKey::generate();
    let membership = cluster.membership_at(&key, Role::Manager, NOW);
    let clock = || WallTime(CLOCK.load(Ordering::SeqCst));
    let mut a = TestNode::start_with_clock(key, Some(membership.clone()), 0, clock).await;
    let mut b = cluster.node(Role::Worker).await;
    link(&mut a, &mut b).await;
    CLOCK.store(NOW.0 + 91 * 86_400 * 1_000_000_000, Ordering::SeqCst);
    a.handle.set_membership(Some(membership)).unwrap();
    a.expect_down(b.id).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_of_two_clusters_do_not_link() {
    let (ours, theirs) = (TestCluster::new(), TestCluster::new());
    let (mut a, b) = (ours.node(Role::Manager).await, theirs.node(Role::Manager).await);
    a.knows(&[&b]);
    let (reason, by) = a.expect_refused().await;
    assert!(reason.to_string().contains("another cluster"), "{reason}");
    assert_eq!(by, None, "a stranger's word counts for nothing");
    assert!(!a.handle.probe(b.id, b.address(), DEADLINE).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_leaves_its_cluster_has_no_links() {
    let cluster = TestCluster::new();
    let (mut a, mut b) = (cluster.node(Role::Manager).await, cluster.node(Role::Worker).await);
    link(&mut a, &mut b).await;
    b.handle.set_membership(None).unwrap();
    b.expect_down(a.id).await;
    a.expect_down(b.id).await;
    assert_eq!(a.expect_refused().await.0, Refusal::NotInCluster);
}
