//! What is counted of each task behind a published port.

use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;

use super::*;

fn text_of(ingress: &IngressHandle) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(ingress.metrics()));
    let mut text = String::new();
    text::encode(&mut text, &registry).unwrap();
    text
}

/// Returns what one family says of each task of a port, by the task's identifier.
fn of_tasks(ingress: &IngressHandle, family: &str, published: PublishedPort) -> BTreeMap<String, u64> {
    let (number, protocol) = (published.number, published.transport.name());
    let start =
        format!("shoal_ingress_backend_{family}{{port=\"{number}\",protocol=\"{protocol}\",name=\"web.1\",task=\"");
    let text = text_of(ingress);
    let lines = text.lines().filter_map(|line| line.strip_prefix(&start)?.split_once("\"} "));
    lines.map(|(task, value)| (task.to_owned(), value.parse().unwrap())).collect()
}

fn count(ingress: &IngressHandle, family: &str, port: u16, task: u128) -> Option<u64> {
    of_tasks(ingress, family, tcp(port)).get(&TaskId(task).to_string()).copied()
}

#[tokio::test]
async fn connections_are_counted_for_the_task_that_took_them() {
    let (a, b, port) = (EchoTask::start(b'a').await, EchoTask::start(b'b').await, free_port().await);
    let (near, far) = two_nodes();
    let backends = [(1, HERE, a.address), (2, THERE, b.address)];
    publish(&near, port, &backends).await;
    far.apply(BTreeMap::from([(tcp(port), route(&backends))]), BTreeMap::new());
    let (mut kept, mut names) = (Vec::new(), std::collections::BTreeSet::new());
    while names.len() < 2 || kept.len() < 20 {
        let (stream, name) = connect(port).await.unwrap();
        kept.push(stream);
        names.insert(name);
    }
    wait_for("the probe of the port to end", || async { near.metrics().all.open.get() == kept.len() as u64 }).await;
    let (open, reached) = (of_tasks(&near, "open", tcp(port)), of_tasks(&near, "connections_total", tcp(port)));
    assert_eq!((open.len(), open.values().sum::<u64>()), (2, kept.len() as u64));
    let all = near.metrics().all.clone();
    assert_eq!(reached.values().sum::<u64>(), all.connected_local.get() + all.connected_remote.get());
    assert_eq!(count(&near, "connections_total", port, 2), Some(all.connected_remote.get()));
    drop(kept);
    wait_for("connections to end", || async { of_tasks(&near, "open", tcp(port)).values().all(|open| *open == 0) })
        .await;
    assert_eq!(of_tasks(&near, "connections_total", tcp(port)), reached, "what was counted stays");
}

#[tokio::test]
async fn a_task_that_fails_is_counted_apart_from_one_that_does_not() {
    let (a, b, port) = (EchoTask::start(b'a').await, EchoTask::start(b'b').await, free_port().await);
    let ingress = ingress();
    publish(&ingress, port, &[(1, HERE, a.address), (2, HERE, b.address)]).await;
    a.kill().await;
    wait_for("the dead task to be tried", || async {
        connect(port).await.unwrap();
        count(&ingress, "attempts_failed_total", port, 1) > Some(0)
    })
    .await;
    assert!(count(&ingress, "ejections_total", port, 1) >= Some(1));
    for family in ["attempts_failed_total", "ejections_total"] {
        assert_eq!(count(&ingress, family, port, 2), Some(0), "{family}");
    }
    let all = ingress.metrics().all.clone();
    assert_eq!(count(&ingress, "attempts_failed_total", port, 1), Some(all.attempts_failed.get()));
}

#[tokio::test]
async fn a_task_that_left_is_shown_until_its_last_connection_ends() {
    let (a, b, port) = (EchoTask::start(b'a').await, EchoTask::start(b'b').await, free_port().await);
    let ingress = ingress();
    publish(&ingress, port, &[(1, HERE, a.address)]).await;
    let (old, _) = connect(port).await.unwrap();
    publish(&ingress, port, &[(2, HERE, b.address)]).await;
    wait_for("the other task", || async { count(&ingress, "open", port, 2).is_some() }).await;
    assert!(count(&ingress, "open", port, 1) >= Some(1));
    drop(old);
    wait_for("the old task to vanish", || async { count(&ingress, "open", port, 1).is_none() }).await;
    assert_eq!(count(&ingress, "connections_total", port, 1), None);
}

#[tokio::test]
async fn flows_are_counted_for_the_task_that_has_them() {
    let task = tokio::net::UdpSocket::bind((LOCALHOST, 0)).await.unwrap();
    let port = std::net::UdpSocket::bind((LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
    let published = PublishedPort::udp(port);
    let ingress = ingress();
    let table = |backends: &[_]| BTreeMap::from([(published, route(backends))]);
    ingress.apply(table(&[(1, HERE, task.local_addr().unwrap())]), BTreeMap::new());
    let client = tokio::net::UdpSocket::bind((LOCALHOST, 0)).await.unwrap();
    client.connect((LOCALHOST, port)).await.unwrap();
    let want = BTreeMap::from([(TaskId(1).to_string(), 1)]);
    wait_for("a flow", || async {
        // A port that is not open yet is an error here.
        let _ = client.send(b"hello").await;
        of_tasks(&ingress, "open", published) == want
    })
    .await;
    assert_eq!(of_tasks(&ingress, "connections_total", published), want);
    ingress.apply(BTreeMap::new(), BTreeMap::new());
    wait_for("the port to close", || async { of_tasks(&ingress, "open", published).is_empty() }).await;
}

#[test]
fn tasks_beyond_the_bound_are_counted_together() {
    let metrics = Arc::new(IngressMetrics::default());
    let address = SocketAddr::new(LOCALHOST, 1);
    let tasks: Vec<_> = (1..=600).map(|task| (task, HERE, address)).collect();
    let (first, second) = (metrics.port(tcp(80)), metrics.port(tcp(81)));
    for port in [&first, &second] {
        for counts in port.backends(&route(&tasks).backends).values() {
            drop(metrics::Reached::new(counts.clone()));
        }
    }
    let shown = || {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(metrics.clone()));
        let mut text = String::new();
        text::encode(&mut text, &registry).unwrap();
        text
    };
    let text = shown();
    let family = "shoal_ingress_backend_connections_total";
    assert_eq!(text.matches(&format!("{family}{{")).count(), metrics::BACKENDS_MAX + 1);
    let others = format!("{family}{{port=\"81\",protocol=\"tcp\",name=\"other\",task=\"other\"}} 176");
    assert!(text.contains(&others), "{others}");
    // Room that becomes free is used: nobody is counted with the others for ever.
    first.backends(&BTreeMap::new());
    let counts = second.backends(&route(&tasks).backends);
    drop(metrics::Reached::new(counts[&TaskId(600)].clone()));
    let own = format!("{family}{{port=\"81\",protocol=\"tcp\",name=\"web.1\",task=\"{}\"}} 1\n", TaskId(600));
    assert!(shown().contains(&own));
}
