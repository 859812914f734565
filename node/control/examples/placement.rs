//! Measures how many placements a second the pure scheduler makes over 1,000 nodes.
//!
//! Run with `cargo run --profile fast -p shoal-control --example placement`.

use std::time::Instant;

use shoal_control::scheduler::{Cluster, Node, Request, assign, place, place_many};
use shoal_protocol::spec::{Preference, Spread, TaskTemplate};
use shoal_protocol::{NodeId, ServiceId};

const NODES: u128 = 1_000;
const PLACEMENTS: usize = 100_000;

fn main() {
    let mut template = TaskTemplate::default();
    template.resources.reservations.memory_bytes = 8 << 20;
    template.resources.reservations.nano_cpus = 1_000_000;
    template.placement.constraints = vec!["node.role==worker".to_owned(), "node.labels.zone!=b".to_owned()];
    for batch in [10, 100, 1_000] {
        measure(&format!("services of {batch} tasks"), batch, &template);
    }
    let spread =
        |label: &str| Preference { spread: Some(Spread { spread_descriptor: format!("node.labels.{label}") }) };
    let mut spread_template = template.clone();
    spread_template.placement.preferences = vec![spread("zone"), spread("rack")];
    for batch in [10, 100, 1_000] {
        measure(&format!("services of {batch} tasks over zones and racks"), batch, &spread_template);
    }
    let mut cluster = cluster();
    let request = Request::new(ServiceId(1), &template, &[]);
    let started = Instant::now();
    let mut placed = 0;
    for _ in 0..PLACEMENTS / 10 {
        if let Ok(node) = place(&request, &cluster) {
            assign(&request, node, &mut cluster);
            placed += 1;
        }
    }
    report("one task at a time", placed, started);
}

fn measure(what: &str, batch: usize, template: &TaskTemplate) {
    let mut cluster = cluster();
    let started = Instant::now();
    let mut placed = 0;
    for service in 0..PLACEMENTS / batch {
        let request = Request::new(ServiceId(service as u128), template, &[]);
        placed += place_many(&request, batch, &mut cluster).iter().filter(|choice| choice.is_ok()).count();
    }
    report(what, placed, started);
}

fn report(what: &str, placed: usize, started: Instant) {
    let secs = started.elapsed().as_secs_f64();
    println!("{what}: {placed} placements in {secs:.3} s, {:.0} a second", placed as f64 / secs);
}

fn cluster() -> Cluster {
    let node = |n: u128| Node {
        hostname: format!("n{n}"),
        nano_cpus: 64_000_000_000,
        memory_bytes: 256 << 30,
        labels: [
            ("zone".to_owned(), if n.is_multiple_of(10) { "b" } else { "a" }.to_owned()),
            ("rack".to_owned(), (n % 30).to_string()),
        ]
        .into(),
        ..Node::default()
    };
    Cluster::new((1..=NODES).map(|n| (NodeId(n), node(n))).collect())
}
