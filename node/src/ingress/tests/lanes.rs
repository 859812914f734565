//! Connections are forwarded by threads of their own, as in the daemon.

use std::num::NonZeroU32;

use super::*;

const CLIENTS: usize = 40;

/// What a port allows, or nothing.
fn published(task: &EchoTask, most: Option<u32>) -> Route {
    let settings = PortSettings { connections: most.and_then(NonZeroU32::new), ..PortSettings::default() };
    Route { settings, ..route(&[(1, HERE, task.address)]) }
}

#[tokio::test]
async fn threads_share_a_port_and_leave_it_together() {
    let (task, port) = (EchoTask::start(b'a').await, free_port().await);
    let config = IngressConfig { lanes: Lanes::start().unwrap(), ..config(HERE, CONNECTIONS_MAX) };
    let counts = config.metrics.all.clone();
    let ingress = Ingress::spawn(config, Arc::<Nodes>::default());
    for _ in 0..3 {
        ingress.apply(BTreeMap::from([(tcp(port), published(&task, None))]), BTreeMap::new());
        let mut clients = Vec::new();
        for _ in 0..CLIENTS {
            clients.push(connect_when_open(port).await.0);
        }
        for client in &mut clients {
            client.write_all(b"x").await.unwrap();
            assert_eq!(timeout(PATIENCE, client.read_u8()).await.unwrap().unwrap(), b'x');
        }
        // Whoever opens the port next finds it free, while connections that were made go on.
        ingress.apply(BTreeMap::new(), BTreeMap::new());
        wait_for("the port to be closed", || async { connect(port).await.is_err() }).await;
        drop(TcpListener::bind((LOCALHOST, port)).await.unwrap());
        clients[0].write_all(b"y").await.unwrap();
        assert_eq!(timeout(PATIENCE, clients[0].read_u8()).await.unwrap().unwrap(), b'y');
    }
    assert!(ingress.port_errors().borrow().is_empty());
    wait_for("all to be counted as closed", || async { counts.open.get() == 0 }).await;
    assert!(counts.accepted.get() >= 3 * CLIENTS as u64);
}

#[tokio::test]
async fn a_limit_is_one_limit_for_all_threads() {
    let (task, port) = (EchoTask::start(b'a').await, free_port().await);
    let config = IngressConfig { lanes: Lanes::start().unwrap(), ..config(HERE, CONNECTIONS_MAX) };
    let counts = config.metrics.all.clone();
    let ingress = Ingress::spawn(config, Arc::<Nodes>::default());
    ingress.apply(BTreeMap::from([(tcp(port), published(&task, Some(1)))]), BTreeMap::new());
    let (first, _) = connect_when_open(port).await;
    let mut second = TcpStream::connect((LOCALHOST, port)).await.unwrap();
    wait_for("the port to be full", || async { counts.paused.get() > 0 }).await;
    assert_eq!(counts.open.get(), 1);
    drop(first);
    assert_eq!(timeout(PATIENCE, second.read_u8()).await.unwrap().unwrap(), b'a');
}

#[tokio::test]
async fn a_limit_holds_for_all_threads_from_when_it_is_set() {
    let (task, port, other) = (EchoTask::start(b'a').await, free_port().await, free_port().await);
    let config = IngressConfig { lanes: Lanes::start().unwrap(), ..config(HERE, CONNECTIONS_MAX) };
    let counts = config.metrics.all.clone();
    let ingress = Ingress::spawn(config, Arc::<Nodes>::default());
    let limited = |most| {
        let mut table = BTreeMap::from([(tcp(port), published(&task, most))]);
        if most.is_some() {
            table.insert(tcp(other), published(&task, None));
        }
        ingress.apply(table, BTreeMap::new());
    };
    limited(None);
    let mut held = Vec::new();
    for _ in 0..8 {
        held.push(connect_when_open(port).await.0);
    }
    assert_eq!(counts.paused.get(), 0, "nothing waits where nothing is limited");
    limited(Some(8));
    // The other port is opened when this one has its limit.
    let (_elsewhere, _) = connect_when_open(other).await;
    let mut ninth = TcpStream::connect((LOCALHOST, port)).await.unwrap();
    wait_for("the port to be full", || async { counts.paused.get() > 0 }).await;
    // By the time that another port has answered, this one would have.
    let (_elsewhere_too, _) = connect_when_open(other).await;
    assert_eq!(counts.open.get(), 10, "eight there and two on the other port");
    assert_eq!(ninth.try_read(&mut [0]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    limited(None);
    assert_eq!(timeout(PATIENCE, ninth.read_u8()).await.unwrap().unwrap(), b'a');
    for _ in 0..8 {
        held.push(connect_when_open(port).await.0);
    }
}
