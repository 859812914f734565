//! Several gossips in one process; the bytes go through channels instead of links.

use super::*;
use std::sync::{Arc, Mutex};
use tokio::time::timeout;

const DEADLINE: Duration = Duration::from_secs(30);

/// Carries frames between the gossips that are plugged in.
#[derive(Clone, Default)]
struct Net(Arc<Mutex<BTreeMap<SocketAddr, Gossip>>>);

impl Net {
    async fn node(&self, node: u128, incarnation: u64, port: u16, seeds: &[u16]) -> TestGossip {
        let address = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        let (outbound, mut frames) = mpsc::channel::<(SocketAddr, Vec<u8>)>(64);
        let (sender, events) = mpsc::channel(16);
        let config = GossipConfig {
            node: NodeId(node),
            incarnation,
            advertise: address(port),
            cluster: ClusterId(1),
            seeds: seeds.iter().copied().map(address).collect(),
        };
        let gossip = Gossip::spawn(config, outbound, sender).await.unwrap();
        self.0.lock().unwrap().insert(address(port), gossip.clone());
        let net = self.clone();
        tokio::spawn(async move {
            while let Some((to, bytes)) = frames.recv().await {
                if let Some(receiver) = net.0.lock().unwrap().get(&to) {
                    receiver.received(address(port), bytes);
                }
            }
        });
        TestGossip { gossip, events }
    }

    fn unplug(&self, port: u16) {
        self.0.lock().unwrap().remove(&([127, 0, 0, 1], port).into());
    }
}

struct TestGossip {
    gossip: Gossip,
    events: mpsc::Receiver<GossipEvent>,
}

impl TestGossip {
    async fn wait(&mut self, what: &str, fits: impl Fn(&BTreeMap<NodeId, Heard>) -> bool) {
        let found = async {
            while let Some(GossipEvent::Live(live)) = self.events.recv().await {
                if fits(&live) {
                    return;
                }
            }
            panic!("stopped before: {what}");
        };
        timeout(DEADLINE, found).await.unwrap_or_else(|_| panic!("not in time: {what}"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_hear_of_each_other_and_of_their_facts() {
    let net = Net::default();
    let mut first = net.node(1, 1, 7001, &[]).await;
    let mut others = Vec::new();
    for node in 2..=5 {
        others.push(net.node(node, 1, 7000 + node as u16, &[7001]).await);
    }
    first.gossip.set("digest", "abc");
    first.wait("all four", |live| live.len() == 4).await;
    for other in &mut others {
        other
            .wait("the fact", |live| {
                live.len() == 4 && live[&NodeId(1)].values.get("digest").is_some_and(|value| value == "abc")
            })
            .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_back_elsewhere_is_heard_of_with_its_new_address() {
    let net = Net::default();
    let mut first = net.node(1, 1, 7011, &[]).await;
    let second = net.node(2, 1, 7012, &[7011]).await;
    first.wait("the second node", |live| live.contains_key(&NodeId(2))).await;
    net.unplug(7012);
    drop(second);
    let _again = net.node(2, 2, 7013, &[7011]).await;
    first
        .wait("its new address", |live| {
            live.get(&NodeId(2)).is_some_and(|heard| heard.address.port() == 7013 && heard.incarnation == 2)
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_stops_is_not_live_for_long() {
    let net = Net::default();
    let mut first = net.node(1, 1, 7021, &[]).await;
    let second = net.node(2, 1, 7022, &[7021]).await;
    first.wait("the second node", |live| live.contains_key(&NodeId(2))).await;
    net.unplug(7022);
    drop(second);
    first.wait("its end", |live| live.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_does_not_stop_gossip() {
    let net = Net::default();
    let mut first = net.node(1, 1, 7031, &[]).await;
    for bytes in [vec![], vec![0xff; 10], vec![0; 70_000], vec![1; 60_000]] {
        first.gossip.received(([127, 0, 0, 1], 7032).into(), bytes);
    }
    // No seed: they meet because they were told to.
    let second = net.node(2, 1, 7032, &[]).await;
    second.gossip.meet(([127, 0, 0, 1], 7031).into());
    first.wait("the second node", |live| live.contains_key(&NodeId(2))).await;
}
