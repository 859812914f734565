//! A port forwards no more connections at once than its service allows.

use std::num::NonZeroU32;

use super::*;

/// The limit of the node, and here that of a port, is met by waiting: nobody is refused.
#[tokio::test]
async fn a_port_accepts_as_many_as_its_service_allows() {
    let (task, port, other) = (EchoTask::start(b'a').await, free_port().await, free_port().await);
    let config = config(HERE, CONNECTIONS_MAX);
    let counts = config.metrics.all.clone();
    let ingress = Ingress::spawn(config, Arc::<Nodes>::default());
    let open = route(&[(1, HERE, task.address)]);
    let limited = |most| {
        let settings = PortSettings { connections: NonZeroU32::new(most), ..PortSettings::default() };
        let table = [(tcp(port), Route { settings, ..open.clone() }), (tcp(other), open.clone())];
        ingress.apply(BTreeMap::from(table), BTreeMap::new());
    };
    limited(2);
    let (first, _) = connect_when_open(port).await;
    let (second, _) = connect(port).await.unwrap();
    let mut third = TcpStream::connect((LOCALHOST, port)).await.unwrap();
    wait_for("the port to be full", || async { counts.paused.get() > 0 }).await;
    // Other ports are not held up, and by the time one has answered, this one would have.
    let (_elsewhere, _) = connect_when_open(other).await;
    assert_eq!(third.try_read(&mut [0]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    assert_eq!(counts.open.get(), 3, "two there and one on the other port");
    drop(first);
    assert_eq!(timeout(PATIENCE, third.read_u8()).await.unwrap().unwrap(), b'a', "room that became free is used");
    let mut fourth = TcpStream::connect((LOCALHOST, port)).await.unwrap();
    limited(3);
    assert_eq!(timeout(PATIENCE, fourth.read_u8()).await.unwrap().unwrap(), b'a', "so is room that was given");
    drop(second);
}
