//! Tells and counts what this node thinks of the others. Whether it is right is decided in `control`.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use shoal_control::view::Health;
use shoal_protocol::NodeId;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HealthLabels {
    health: &'static str,
}

/// How often this node changed its mind about others since its daemon started. Clones count together.
#[derive(Debug, Clone, Default)]
pub(super) struct HealthMetrics {
    changes: Family<HealthLabels, Counter>,
}

impl HealthMetrics {
    /// Makes the counters known to monitors.
    pub(super) fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let help = "Times that this node began to think so of another one";
        registry.register("shoal_health_changes", help, metrics.changes.clone());
        metrics
    }

    /// Takes note that `node` is now thought to be in that health.
    pub(super) fn note(&self, node: NodeId, health: Health) {
        let name = match health {
            Health::Unknown => "unknown",
            Health::Alive => "alive",
            Health::Suspect => "suspect",
            Health::Failed => "failed",
            Health::Restarting { .. } => "restarting",
            Health::Left => "left",
        };
        self.changes.get_or_create(&HealthLabels { health: name }).inc();
        match health {
            Health::Failed => tracing::warn!(%node, "a node has failed: its tasks are placed elsewhere"),
            Health::Unknown | Health::Alive | Health::Suspect | Health::Restarting { .. } | Health::Left => {
                tracing::debug!(%node, health = name, "a node's health changed");
            }
        }
    }
}
