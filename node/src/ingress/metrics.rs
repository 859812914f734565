//! Counters of the ingress, of each published port and the tasks behind it and of all together, and their form in the
//! OpenMetrics text.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use shoal_control::routes::Backend;
use shoal_protocol::TaskId;
use shoal_protocol::spec::PublishedPort;

mod backends;

pub use backends::{BACKENDS_MAX, BackendCounts};

pub(super) use backends::Reached;

use backends::Backends;

/// Ports with counters of their own; those of further ports are counted as port `other`.
pub const PORTS_MAX: usize = 256;

/// A number that many tasks count.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Counts up.
    pub fn add(&self, amount: u64) {
        self.0.fetch_add(amount, Ordering::Relaxed);
    }

    /// Counts down; only for gauges, never below what was added.
    pub fn sub(&self, amount: u64) {
        self.0.fetch_sub(amount, Ordering::Relaxed);
    }

    /// Returns the present value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What is counted of clients' connections; of UDP, of their flows.
#[derive(Debug, Default)]
pub struct Connections {
    /// Accepted; flows: begun.
    pub accepted: Counter,
    /// Open now (a gauge).
    pub open: Counter,
    /// Reached a task of this node.
    pub connected_local: Counter,
    /// Reached a task of another node.
    pub connected_remote: Counter,
    /// No backend took them in time; they were reset. Of UDP: datagrams that no backend was left for.
    pub given_up: Counter,
    /// Attempts at a backend that failed or were too slow.
    pub attempts_failed: Counter,
    /// Backends sent to rest.
    pub ejections: Counter,
    /// Times that accepting waited because the port forwards as many as its service allows.
    pub paused: Counter,
    /// Bytes from clients to tasks.
    pub bytes_in: Counter,
    /// Bytes from tasks to clients.
    pub bytes_out: Counter,
}

/// The counters of one port, and those of all ports.
#[derive(Debug, Clone)]
pub(super) struct PortMetrics {
    metrics: Arc<IngressMetrics>,
    published: PublishedPort,
    own: Arc<Connections>,
    all: Arc<Connections>,
}

impl PortMetrics {
    /// Counts one of the numbers up.
    pub(super) fn add(&self, which: fn(&Connections) -> &Counter, amount: u64) {
        which(&self.own).add(amount);
        which(&self.all).add(amount);
    }

    /// Returns the counters of the tasks that are now behind the port; those of tasks that are not vanish with their last
    /// connection.
    pub(super) fn backends(&self, route: &BTreeMap<TaskId, Backend>) -> BTreeMap<TaskId, Arc<BackendCounts>> {
        self.metrics.lock().retarget(self.published, route)
    }

    /// Counts one of the gauges down.
    pub(super) fn sub(&self, which: fn(&Connections) -> &Counter, amount: u64) {
        which(&self.own).sub(amount);
        which(&self.all).sub(amount);
    }
}

/// What a node's ingress counts since the daemon's start.
#[derive(Debug, Default)]
pub struct IngressMetrics {
    /// Of all ports, those that are gone included.
    pub all: Arc<Connections>,
    /// Times that accepting waited because the node forwards as many connections as it may.
    pub paused: Counter,
    /// Times that the kernel could not hand over a connection (out of file descriptors or memory).
    pub accept_errors: Counter,
    /// Tunnels from other nodes that were taken.
    pub tunnels_served: Counter,
    /// Tunnels from other nodes that did not reach a task.
    pub tunnels_refused: Counter,
    /// Datagrams that were dropped because their way to a task, or what waits for it, was full.
    pub datagrams_dropped: Counter,
    /// Flows that ended to make room for others.
    pub flows_evicted: Counter,
    ports: Mutex<Ports>,
}

/// Of the ports that are published now.
#[derive(Debug, Default)]
struct Ports {
    /// At most [`PORTS_MAX`].
    own: BTreeMap<PublishedPort, PortCounts>,
    others: PortCounts,
}

#[derive(Debug, Clone, Default)]
struct PortCounts {
    connections: Arc<Connections>,
    backends: Backends,
}

impl Ports {
    fn retarget(
        &mut self,
        published: PublishedPort,
        route: &BTreeMap<TaskId, Backend>,
    ) -> BTreeMap<TaskId, Arc<BackendCounts>> {
        let elsewhere = self.own.iter().filter(|(port, _)| **port != published);
        let room = BACKENDS_MAX.saturating_sub(elsewhere.map(|(_, port)| port.backends.len()).sum());
        match self.own.get_mut(&published) {
            Some(port) => port.backends.retarget(route, room),
            None => self.others.backends.retarget(route, 0),
        }
    }
}

impl IngressMetrics {
    /// Returns the counters of a port that is opened.
    pub(super) fn port(self: &Arc<Self>, published: PublishedPort) -> PortMetrics {
        let mut ports = self.lock();
        let own = match ports.own.len() < PORTS_MAX || ports.own.contains_key(&published) {
            true => ports.own.entry(published).or_default().connections.clone(),
            false => ports.others.connections.clone(),
        };
        PortMetrics { metrics: self.clone(), published, own, all: self.all.clone() }
    }

    /// Forgets the counters of a port that was closed; those of all ports keep what it added.
    pub(super) fn close(&self, published: PublishedPort) {
        self.lock().own.remove(&published);
    }

    fn lock(&self) -> MutexGuard<'_, Ports> {
        // Nothing under this lock leaves the maps half-changed, so a panic elsewhere does not make them unusable.
        self.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Name, help and value of what is counted for each port.
type PortFamily = (&'static str, &'static str, fn(&Connections) -> &Counter);

const PORT_COUNTERS: [PortFamily; 7] = [
    ("shoal_ingress_connections", "Client connections accepted (UDP: flows begun), by published port", |port| {
        &port.accepted
    }),
    ("shoal_ingress_given_up", "Client connections (UDP: datagrams) that no task took, by published port", |port| {
        &port.given_up
    }),
    ("shoal_ingress_attempts_failed", "Attempts at a task that failed or were too slow, by published port", |port| {
        &port.attempts_failed
    }),
    ("shoal_ingress_ejections", "Tasks that were not tried for a while, by published port", |port| &port.ejections),
    (
        "shoal_ingress_limited",
        "Times that accepting waited at the port's limit of connections, by published port",
        |port| &port.paused,
    ),
    ("shoal_ingress_received_bytes", "Bytes from clients to tasks, by published port", |port| &port.bytes_in),
    ("shoal_ingress_sent_bytes", "Bytes from tasks to clients, by published port", |port| &port.bytes_out),
];

/// Names and values of a port's labels.
type Labels = [(&'static str, String); 2];

fn labels_of(published: PublishedPort) -> Labels {
    [("port", published.number.to_string()), ("protocol", published.transport.name().to_owned())]
}

impl Collector for IngressMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let shown: Vec<(Labels, PortCounts)> = {
            let mut ports = self.lock();
            for port in ports.own.values_mut() {
                port.backends.forget_gone();
            }
            let own = ports.own.iter().map(|(published, port)| (labels_of(*published), port.clone()));
            let other = || "other".to_owned();
            let others = ([("port", other()), ("protocol", other())], ports.others.clone());
            own.chain([others].into_iter().filter(|(_, port)| port.connections.accepted.get() > 0)).collect()
        };
        backends::encode(&mut encoder, shown.iter().map(|(labels, port)| (labels, &port.backends)))?;
        let ports: Vec<(Labels, Arc<Connections>)> =
            shown.into_iter().map(|(labels, port)| (labels, port.connections)).collect();
        for (name, help, value) in PORT_COUNTERS {
            let kind = ConstCounter::new(0u64).metric_type();
            let mut family = encoder.encode_descriptor(name, help, None, kind)?;
            for (labels, counters) in &ports {
                ConstCounter::new(value(counters).get()).encode(family.encode_family(labels)?)?;
            }
        }
        let name = "shoal_ingress_connected";
        let help = "Client connections (UDP: flows) that reached a task, by published port and whether the task is on this node";
        let mut family = encoder.encode_descriptor(name, help, None, ConstCounter::new(0u64).metric_type())?;
        for ([port, protocol], counters) in &ports {
            for (node, counter) in [("this", &counters.connected_local), ("other", &counters.connected_remote)] {
                let labels = [port.clone(), protocol.clone(), ("node", node.to_owned())];
                ConstCounter::new(counter.get()).encode(family.encode_family(&labels)?)?;
            }
        }
        let (name, help) = ("shoal_ingress_open", "Client connections (UDP: flows) open now, by published port");
        let mut family = encoder.encode_descriptor(name, help, None, ConstGauge::new(0i64).metric_type())?;
        for (labels, counters) in &ports {
            let open = i64::try_from(counters.open.get()).unwrap_or(i64::MAX);
            ConstGauge::new(open).encode(family.encode_family(labels)?)?;
        }
        for (name, help, counter) in [
            ("shoal_ingress_paused", "Times that accepting waited at the node's limit of connections", &self.paused),
            ("shoal_ingress_accept_errors", "Connections that the kernel could not hand over", &self.accept_errors),
            ("shoal_ingress_datagrams_dropped", "Datagrams whose way to a task was full", &self.datagrams_dropped),
            ("shoal_ingress_flows_evicted", "Flows that ended to make room for others", &self.flows_evicted),
            ("shoal_ingress_tunnels_served", "Tunnels of other nodes that were taken", &self.tunnels_served),
            ("shoal_ingress_tunnels_refused", "Tunnels of other nodes that reached no task", &self.tunnels_refused),
        ] {
            let counter = ConstCounter::new(counter.get());
            counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) fn touch(metrics: &Arc<IngressMetrics>, published: PublishedPort) {
    let backend = Backend {
        name: "web.1".into(),
        node: Default::default(),
        address: [10, 0, 0, 9].into(),
        port: 80,
        suspect: false,
    };
    metrics.port(published).backends(&BTreeMap::from([(TaskId(1), backend)]));
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::encoding::text;
    use prometheus_client::registry::Registry;

    fn text_of(metrics: &Arc<IngressMetrics>) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(metrics.clone()));
        let mut text = String::new();
        text::encode(&mut text, &registry).unwrap();
        text
    }

    #[test]
    fn ports_are_counted_apart_and_together() {
        let metrics = Arc::new(IngressMetrics::default());
        let (web, db) = (metrics.port(PublishedPort::tcp(80)), metrics.port(PublishedPort::tcp(5432)));
        metrics.port(PublishedPort::udp(80)).add(|port| &port.accepted, 7);
        web.add(|port| &port.accepted, 2);
        db.add(|port| &port.accepted, 1);
        db.add(|port| &port.open, 1);
        web.add(|port| &port.bytes_in, 100);
        web.add(|port| &port.connected_remote, 2);
        let text = text_of(&metrics);
        for line in [
            "shoal_ingress_connections_total{port=\"80\",protocol=\"tcp\"} 2",
            "shoal_ingress_connections_total{port=\"80\",protocol=\"udp\"} 7",
            "shoal_ingress_connections_total{port=\"5432\",protocol=\"tcp\"} 1",
            "shoal_ingress_received_bytes_total{port=\"80\",protocol=\"tcp\"} 100",
            "shoal_ingress_connected_total{port=\"80\",protocol=\"tcp\",node=\"other\"} 2",
            "shoal_ingress_open{port=\"5432\",protocol=\"tcp\"} 1",
            "shoal_ingress_paused_total 0",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
        assert_eq!(metrics.all.accepted.get(), 10);
        metrics.close(PublishedPort::tcp(80));
        assert!(!text_of(&metrics).contains("port=\"80\",protocol=\"tcp\""), "a port that is closed is not shown");
        assert_eq!(metrics.all.accepted.get(), 10);
    }

    #[test]
    fn labels_are_bounded() {
        let metrics = Arc::new(IngressMetrics::default());
        for number in 1..=1000 {
            metrics.port(PublishedPort::tcp(number)).add(|port| &port.accepted, 1);
        }
        let text = text_of(&metrics);
        assert_eq!(text.matches("shoal_ingress_connections_total{").count(), PORTS_MAX + 1);
        assert!(text.contains("shoal_ingress_connections_total{port=\"other\",protocol=\"other\"} 744"), "{text}");
    }
}
