//! Whether a tunnel is fast enough for what it is there for. Run with `--nocapture` for the figure.

use super::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_carries_bulk() {
    const BYTES: usize = 512 << 20;
    let cluster = TestCluster::new();
    let (mut a, mut b) = (cluster.node(Role::Manager).await, cluster.node(Role::Manager).await);
    link(&mut a, &mut b).await;
    let mut near = a.handle.open_tunnel(b.id).await.unwrap();
    let begun = Instant::now();
    let writing = tokio::spawn(async move {
        let chunk = vec![7; 64 << 10];
        for _ in 0..BYTES / chunk.len() {
            near.write_all(&chunk).await.unwrap();
        }
        near.shutdown().await.unwrap();
    });
    let mut far = b
        .expect("tunnel", |event| match event {
            SwarmEvent::Tunnel { stream, .. } => Some(stream),
            _ => None,
        })
        .await;
    let mut buffer = vec![0; 64 << 10];
    let mut total = 0;
    loop {
        match far.read(&mut buffer).await.unwrap() {
            0 => break,
            read => total += read,
        }
    }
    writing.await.unwrap();
    assert_eq!(total, BYTES);
    let rate = (BYTES >> 20) as f64 / begun.elapsed().as_secs_f64();
    println!("{rate:.0} MiB/s through one tunnel, both nodes on this machine");
    assert!(rate > 20.0, "{rate:.0} MiB/s is far too slow");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_overtake_bulk() {
    let cluster = TestCluster::new();
    let (mut a, mut b) = (cluster.node(Role::Manager).await, cluster.node(Role::Manager).await);
    link(&mut a, &mut b).await;
    let mut near = a.handle.open_tunnel(b.id).await.unwrap();
    let flood = tokio::spawn(async move {
        let chunk = vec![7; 64 << 10];
        while near.write_all(&chunk).await.is_ok() {}
    });
    let mut far = b
        .expect("tunnel", |event| match event {
            SwarmEvent::Tunnel { stream, .. } => Some(stream),
            _ => None,
        })
        .await;
    let drain = tokio::spawn(async move {
        let mut buffer = vec![0; 64 << 10];
        while far.read(&mut buffer).await.is_ok_and(|read| read > 0) {}
    });
    let mut times = Vec::new();
    for count in 0..200 {
        let begun = Instant::now();
        a.handle.send(b.id, &gossip(count), Priority::Own);
        b.expect_message(a.id).await;
        times.push(begun.elapsed());
    }
    flood.abort();
    drain.abort();
    times.sort();
    println!("one message beside a tunnel at full speed: median {:?}, worst {:?}", times[100], times[199]);
    assert!(times[100] < Duration::from_millis(200), "{:?}", times[100]);
}
