//! Counts and tells what the decisions of a member do and how its links are, over all clusters that this daemon is in one after
//! another. Whether any of it is right is decided in `control`.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use shoal_control::core::{Control, Counts};
use shoal_protocol::lease::LeaseId;
use shoal_protocol::message::PeerMessage;
use shoal_protocol::{NodeId, ServiceId, Time};

use super::health::HealthMetrics;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DirectionLabels {
    direction: &'static str,
}

const ANSWERED: OutcomeLabels = OutcomeLabels { outcome: "answered" };
const SILENT: OutcomeLabels = OutcomeLabels { outcome: "silent" };
const EQUAL: OutcomeLabels = OutcomeLabels { outcome: "equal" };
const DIFFERENT: OutcomeLabels = OutcomeLabels { outcome: "different" };
const EXPIRED: ReasonLabels = ReasonLabels { reason: "expired" };
const GIVEN_BACK: ReasonLabels = ReasonLabels { reason: "given_back" };
const SENT: DirectionLabels = DirectionLabels { direction: "sent" };
const RECEIVED: DirectionLabels = DirectionLabels { direction: "received" };

/// What is counted of a member. Clones count together.
#[derive(Debug, Clone)]
pub(super) struct MemberMetrics {
    incarnation: Gauge<u64, AtomicU64>,
    links: Gauge<u64, AtomicU64>,
    refuted: Counter,
    pings: Counter,
    pings_unanswered: Counter,
    round_trip: Histogram,
    probes: Family<OutcomeLabels, Counter>,
    records: Gauge<u64, AtomicU64>,
    digests: Family<OutcomeLabels, Counter>,
    disagreement: Gauge<f64, AtomicU64>,
    repairs: Counter,
    repair_records: Family<DirectionLabels, Counter>,
    repair_records_new: Counter,
    leases_acquired: Counter,
    leases_lost: Family<ReasonLabels, Counter>,
    renewals: Counter,
    renewals_missed: Counter,
    decisions: Histogram,
    reconciles: Histogram,
    services_planned: Counter,
    plan_writes: Counter,
}

impl Default for MemberMetrics {
    fn default() -> Self {
        Self {
            incarnation: Gauge::default(),
            links: Gauge::default(),
            refuted: Counter::default(),
            pings: Counter::default(),
            pings_unanswered: Counter::default(),
            // From 0.25 ms to 1 s.
            round_trip: Histogram::new(exponential_buckets(0.000_25, 2.0, 13)),
            probes: Family::default(),
            records: Gauge::default(),
            digests: Family::default(),
            disagreement: Gauge::default(),
            repairs: Counter::default(),
            repair_records: Family::default(),
            repair_records_new: Counter::default(),
            leases_acquired: Counter::default(),
            leases_lost: Family::default(),
            renewals: Counter::default(),
            renewals_missed: Counter::default(),
            // From 10 us to 2.6 s.
            decisions: Histogram::new(exponential_buckets(0.000_01, 4.0, 10)),
            reconciles: Histogram::new(exponential_buckets(0.000_01, 4.0, 10)),
            services_planned: Counter::default(),
            plan_writes: Counter::default(),
        }
    }
}

impl MemberMetrics {
    /// Makes the counters known to monitors. What has few labels is shown from the start: a monitor sees the first of it too.
    pub(super) fn register(registry: &mut Registry, incarnation: u64) -> Self {
        let own = Self::default();
        own.incarnation.set(incarnation);
        for outcome in [ANSWERED, SILENT] {
            own.probes.get_or_create(&outcome).inc_by(0);
        }
        for outcome in [EQUAL, DIFFERENT] {
            own.digests.get_or_create(&outcome).inc_by(0);
        }
        for reason in [EXPIRED, GIVEN_BACK] {
            own.leases_lost.get_or_create(&reason).inc_by(0);
        }
        for direction in [SENT, RECEIVED] {
            own.repair_records.get_or_create(&direction).inc_by(0);
        }
        own.register_membership(registry);
        own.register_document(registry);
        own.register_work(registry);
        own
    }

    fn register_membership(&self, registry: &mut Registry) {
        let help = "Starts of a daemon on this node's data directory, this one included";
        registry.register("shoal_incarnation", help, self.incarnation.clone());
        registry.register("shoal_links", "Nodes that this one is connected with", self.links.clone());
        let help = "Suspected nodes that were found to be alive";
        registry.register("shoal_suspicions_refuted", help, self.refuted.clone());
        registry.register("shoal_pings", "Pings sent on open connections", self.pings.clone());
        let help = "Pings without an answer before the next one, or the end of the connection";
        registry.register("shoal_pings_unanswered", help, self.pings_unanswered.clone());
        registry.register("shoal_ping_seconds", "Time from a ping to its answer", self.round_trip.clone());
        let help = "Probes of nodes over fresh connections, for this node or another, by outcome";
        registry.register("shoal_probes", help, self.probes.clone());
    }

    fn register_document(&self, registry: &mut Registry) {
        registry.register("shoal_document_records", "Records of this node's document", self.records.clone());
        let help = "Digests of other nodes' documents that were compared with this node's, by outcome";
        registry.register("shoal_digests_compared", help, self.digests.clone());
        let help = "For how long a connected node's document has differed from this one's; of several, the longest";
        registry.register("shoal_document_disagreement_seconds", help, self.disagreement.clone());
        registry.register("shoal_repairs", "Comparisons of documents that this node began", self.repairs.clone());
        let help = "Records sent and received in comparisons of documents";
        registry.register("shoal_repair_records", help, self.repair_records.clone());
        let help = "Records received in comparisons that this node did not have";
        registry.register("shoal_repair_records_new", help, self.repair_records_new.clone());
    }

    fn register_work(&self, registry: &mut Registry) {
        registry.register("shoal_leases_acquired", "Leases that this node came to hold", self.leases_acquired.clone());
        let help = "Leases that this node held no longer, as they ran out or were given back";
        registry.register("shoal_leases_lost", help, self.leases_lost.clone());
        registry.register("shoal_lease_renewals", "Renewals of held leases that were asked for", self.renewals.clone());
        let help = "Renewals of held leases that no majority of the voters had granted when the next was due";
        registry.register("shoal_lease_renewals_missed", help, self.renewals_missed.clone());
        registry.register(
            "shoal_decision_seconds",
            "Time that one event took to be decided upon",
            self.decisions.clone(),
        );
        let help = "Time that the decision upon an event took where services were planned";
        registry.register("shoal_reconcile_seconds", help, self.reconciles.clone());
        registry.register("shoal_reconcile_services", "Services that were planned", self.services_planned.clone());
        let help = "Slots and states of updates that plans wrote";
        registry.register("shoal_reconcile_writes", help, self.plan_writes.clone());
    }

    fn add(&self, counts: &Counts) {
        self.refuted.inc_by(counts.suspicions_refuted);
        self.digests.get_or_create(&EQUAL).inc_by(counts.digests_equal);
        self.digests.get_or_create(&DIFFERENT).inc_by(counts.digests_different);
        self.repairs.inc_by(counts.repairs_begun);
        self.repair_records.get_or_create(&SENT).inc_by(counts.repair_records_sent);
        self.repair_records.get_or_create(&RECEIVED).inc_by(counts.repair_records_received);
        self.repair_records_new.inc_by(counts.repair_records_new);
        self.renewals.inc_by(counts.renewals.asked);
        self.renewals_missed.inc_by(counts.renewals.missed);
        self.services_planned.inc_by(counts.services_planned);
        self.plan_writes.inc_by(counts.plan_writes);
    }
}

/// Takes note of what a member does.
#[derive(Debug)]
pub(super) struct Notes {
    /// Of what is thought of other nodes.
    pub(super) health: HealthMetrics,
    metrics: MemberMetrics,
    /// When pings were sent that are not answered; one for each node that is connected.
    pings: BTreeMap<NodeId, Instant>,
}

impl Notes {
    pub(super) fn new(metrics: MemberMetrics, health: HealthMetrics) -> Self {
        Self { health, metrics, pings: BTreeMap::new() }
    }

    /// An event was decided upon.
    pub(super) fn decided(&self, counts: Counts, took: Duration) {
        self.metrics.decisions.observe(took.as_secs_f64());
        if counts.services_planned > 0 {
            self.metrics.reconciles.observe(took.as_secs_f64());
        }
        if counts != Counts::default() {
            self.metrics.add(&counts);
        }
    }

    /// Takes in how things are.
    pub(super) fn see(&self, control: &Control, now: Time) {
        self.metrics.links.set(control.peers().len() as u64);
        self.metrics.records.set(control.store().len() as u64);
        self.metrics.disagreement.set(control.disagrees_for(now).as_secs_f64());
    }

    /// A message is about to be sent.
    pub(super) fn sending(&mut self, to: NodeId, message: &PeerMessage) {
        if matches!(message, PeerMessage::Ping { .. }) {
            self.metrics.pings.inc();
            if self.pings.insert(to, Instant::now()).is_some() {
                self.metrics.pings_unanswered.inc();
            }
        }
    }

    /// A message came.
    pub(super) fn heard(&mut self, from: NodeId, message: &PeerMessage) {
        if matches!(message, PeerMessage::Pong { .. })
            && let Some(sent) = self.pings.remove(&from)
        {
            self.metrics.round_trip.observe(sent.elapsed().as_secs_f64());
        }
    }

    /// A connection ended.
    pub(super) fn parted(&mut self, node: NodeId) {
        if self.pings.remove(&node).is_some() {
            self.metrics.pings_unanswered.inc();
        }
    }

    /// Returns what counts probes that ended, and tells of them.
    pub(super) fn probes(&self) -> impl Fn(NodeId, bool) + Send + 'static {
        let probes = self.metrics.probes.clone();
        move |node, is_alive| {
            probes.get_or_create(if is_alive { &ANSWERED } else { &SILENT }).inc();
            tracing::debug!(%node, is_alive, "a node was probed");
        }
    }

    pub(super) fn lease_acquired(&self, lease: LeaseId, epoch: u64) {
        self.metrics.leases_acquired.inc();
        tracing::debug!(%lease, epoch, "a lease was acquired");
    }

    pub(super) fn lease_lost(&self, lease: LeaseId, epoch: u64, expired: bool) {
        self.metrics.leases_lost.get_or_create(if expired { &EXPIRED } else { &GIVEN_BACK }).inc();
        match expired {
            true => tracing::warn!(%lease, epoch, "a lease was lost: no majority of the voters renewed it in time"),
            false => tracing::debug!(%lease, epoch, "a lease was given back"),
        }
    }

    pub(super) fn planned(&self, service: ServiceId, epoch: u64, writes: usize) {
        tracing::debug!(%service, epoch, writes, "a service's plan was written");
    }
}

impl Drop for Notes {
    /// Outside of a cluster there are no links and no document.
    fn drop(&mut self) {
        self.metrics.links.set(0);
        self.metrics.records.set(0);
        self.metrics.disagreement.set(0.0);
    }
}

#[cfg(test)]
mod tests;
