//! `GET /metrics`: what monitors read, in the OpenMetrics text format.

use std::fmt;
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use axum::extract::State;
use axum::http::{Method, StatusCode, header};
use axum::response::IntoResponse;
use prometheus_client::encoding::{EncodeLabelSet, text::encode};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use shoal_protocol::TaskState;

use super::snapshot::{NodeState, StatusReport, Want};
use super::{Api, ApiError};

type Count = Gauge<u64, AtomicU64>;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    method: String,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabels {
    state: &'static str,
}

/// The metrics of the API, and the registry with everybody's.
pub struct Metrics {
    registry: Mutex<Registry>,
    requests: Family<RequestLabels, Counter>,
    latency: Histogram,
    nodes: Family<StateLabels, Count>,
    tasks: Family<StateLabels, Count>,
    leases_held: Count,
    quarantined: Count,
    quorum: Count,
}

impl Metrics {
    /// Adds the API's metrics to those that other parts registered.
    pub fn new(mut registry: Registry) -> Self {
        let requests = Family::default();
        // From 0.25 ms to 8 s.
        let latency = Histogram::new(exponential_buckets(0.000_25, 2.0, 16));
        let (nodes, tasks) = (Family::<StateLabels, Count>::default(), Family::<StateLabels, Count>::default());
        for state in NodeState::ALL {
            nodes.get_or_create(&StateLabels { state: state.name() }).set(0);
        }
        for state in TaskState::ALL {
            tasks.get_or_create(&StateLabels { state: state.name() }).set(0);
        }
        let (leases_held, quarantined, quorum) = (Count::default(), Count::default(), Count::default());
        registry.register("shoal_api_requests", "Requests answered, by method and status", requests.clone());
        registry.register("shoal_api_latency_seconds", "Time until an answer began", latency.clone());
        registry.register("shoal_nodes", "Nodes of the cluster, by health as this node sees it", nodes.clone());
        registry.register("shoal_tasks", "Tasks of the cluster, by state as this node sees it", tasks.clone());
        registry.register("shoal_leases_held", "Leases that this node holds", leases_held.clone());
        registry.register("shoal_quarantined_records", "Records that this node cannot read", quarantined.clone());
        registry.register("shoal_quorum", "1 if a majority of the voters answers, else 0", quorum.clone());
        let registry = Mutex::new(registry);
        Self { registry, requests, latency, nodes, tasks, leases_held, quarantined, quorum }
    }

    pub(crate) fn count_request(&self, method: &Method, status: StatusCode, took: Duration) {
        // Whoever sends a request chooses its method: only known ones may become labels.
        let known = [Method::GET, Method::HEAD, Method::POST, Method::DELETE, Method::PUT];
        let method = if known.contains(method) { method.as_str() } else { "other" };
        let labels = RequestLabels { method: method.to_owned(), status: status.as_u16() };
        self.requests.get_or_create(&labels).inc();
        self.latency.observe(took.as_secs_f64());
    }

    /// Returns everybody's metrics in the OpenMetrics text format.
    pub(crate) fn encode(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        // Encoding changes nothing, so a panic in it does not make the registry unusable.
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        encode(&mut text, &registry)?;
        Ok(text)
    }

    fn set_status(&self, status: &StatusReport) {
        for state in NodeState::ALL {
            let count = status.nodes.iter().filter(|node| node.state == state).count() as u64;
            self.nodes.get_or_create(&StateLabels { state: state.name() }).set(count);
        }
        let me = status.node.to_string();
        self.leases_held.set(status.leases.iter().filter(|lease| lease.holder == me).count() as u64);
        self.quarantined.set(status.quarantined);
        self.quorum.set(u64::from(status.quorum));
    }
}

/// `GET /metrics`.
pub(super) async fn show(State(api): State<Api>) -> Result<impl IntoResponse, ApiError> {
    // Outside a cluster there is nothing to count, but the daemon's own metrics are still there.
    if let (Ok(status), Ok(snapshot)) =
        (api.backend.status().await, api.backend.snapshot(Want { states: true, ..Want::default() }).await)
    {
        api.metrics.set_status(&status);
        for state in TaskState::ALL {
            let count = snapshot.states.get(&state).copied().unwrap_or(0);
            api.metrics.tasks.get_or_create(&StateLabels { state: state.name() }).set(count);
        }
    }
    let text = api.metrics.encode().map_err(|error| ApiError::internal(error.to_string()))?;
    Ok(([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text))
}
