//! Tasks that have an IPv6 address, behind ports that clients of either family use.

use std::net::Ipv6Addr;

use super::udp::{EchoDatagrams, ask, client, pair, udp_free_port};
use super::*;

const LOCALHOST_V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

#[tokio::test]
async fn connections_reach_tasks_of_both_families_here_and_there() {
    let (a, b) = (EchoTask::start_at(LOCALHOST_V6, b'a').await, EchoTask::start_at(LOCALHOST_V6, b'b').await);
    let (c, port) = (EchoTask::start(b'c').await, free_port().await);
    let (near, far) = two_nodes();
    for (backends, want) in
        [(&[(1, HERE, a.address)][..], b'a'), (&[(2, THERE, b.address)], b'b'), (&[(3, HERE, c.address)], b'c')]
    {
        publish(&near, port, backends).await;
        far.apply(BTreeMap::from([(tcp(port), route(backends))]), BTreeMap::new());
        // The table that was there before may be in use for a moment.
        wait_for("the task", || async { connect(port).await.is_ok_and(|(_, name)| name == want) }).await;
        let (mut stream, _) = connect(port).await.unwrap();
        echo(&mut stream, b"hello").await;
    }
}

#[tokio::test]
async fn datagrams_reach_tasks_here_and_there() {
    let a = EchoDatagrams::start_at(LOCALHOST_V6, b'a').await;
    for node in [HERE, THERE] {
        let port = udp_free_port();
        let _nodes = pair(port, &[(1, node, a.address)]).await;
        assert_eq!(ask(&client(port).await, b"hello").await, b'a', "{node}");
    }
}
