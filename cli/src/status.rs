//! What the daemon says of the cluster. Source: shoal's own API, `GET /shoal/status`.

use serde::Deserialize;

/// Whether the cluster is well, and if not, what is wrong.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct Status {
    pub(crate) cluster: String,
    /// The node that was asked.
    pub(crate) node: String,
    pub(crate) quorum: bool,
    pub(crate) voters: Vec<String>,
    pub(crate) leases: Vec<Lease>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) agree: bool,
    pub(crate) warnings: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct Lease {
    pub(crate) lease: String,
    pub(crate) holder: String,
    pub(crate) epoch: u64,
    /// 0 where only the holder knows.
    pub(crate) expires_in_ms: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct Node {
    #[serde(rename = "ID")]
    pub(crate) id: String,
    pub(crate) hostname: String,
    pub(crate) state: String,
    pub(crate) digest: String,
}

impl Status {
    /// Returns whether nothing is wrong.
    pub(crate) fn is_well(&self) -> bool {
        self.quorum && self.agree && self.warnings.is_empty()
    }

    /// Names the registry and counts the shards that a node holds.
    pub(crate) fn held_by(&self, node: &str) -> String {
        let held = || self.leases.iter().filter(|lease| lease.holder == node);
        let shards = held().filter(|lease| lease.lease.starts_with("shard")).count();
        let registry = if held().any(|lease| lease.lease == "registry") { "registry" } else { "" };
        let shards = match shards {
            0 => return registry.to_owned(),
            1 => "1 shard".to_owned(),
            shards => format!("{shards} shards"),
        };
        if registry.is_empty() { shards } else { format!("{registry}, {shards}") }
    }
}
