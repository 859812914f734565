//! From what a user typed to one object, or the refusal that Docker's clients know.

use shoal_protocol::{Kind, NodeId};

use super::snapshot::{NodeView, ObjectView, Pick, PickTasks, ServiceView, TaskView, Want};
use super::{Api, ApiError, Snapshot};

impl Api {
    /// Returns the one service that `name` means, with the snapshot it is in.
    pub(super) async fn service(&self, name: &str, counts: bool) -> Result<(Snapshot, ServiceView), ApiError> {
        let want = Want { services: Pick::Named(vec![name.to_owned()]), counts, ..Want::default() };
        let mut snapshot = self.backend.snapshot(want).await?;
        let found = std::mem::take(&mut snapshot.services);
        one("service", name, found).map(|service| (snapshot, service))
    }

    /// Returns the one node that `name` means, with the snapshot it is in.
    pub(super) async fn node(&self, name: &str) -> Result<(Snapshot, NodeView), ApiError> {
        let want = Want { nodes: Pick::Named(vec![name.to_owned()]), ..Want::default() };
        let mut snapshot = self.backend.snapshot(want).await?;
        let found = std::mem::take(&mut snapshot.nodes);
        one("node", name, found).map(|node| (snapshot, node))
    }

    /// Returns the one object of a kind that `name` means.
    pub(super) async fn object(&self, kind: Kind, name: &str) -> Result<ObjectView, ApiError> {
        let want = Want { objects: Some((kind, Pick::Named(vec![name.to_owned()]))), ..Want::default() };
        one(kind.name(), name, self.backend.snapshot(want).await?.objects)
    }

    /// Returns the one task whose identifier begins with `name`, and which node this is.
    pub(super) async fn task(&self, name: &str) -> Result<(NodeId, TaskView), ApiError> {
        let snapshot =
            self.backend.snapshot(Want { tasks: PickTasks::Named(name.to_owned()), ..Want::default() }).await?;
        one("task", name, snapshot.tasks).map(|task| (snapshot.me, task))
    }
}

fn one<T>(kind: &str, name: &str, mut found: Vec<T>) -> Result<T, ApiError> {
    match (found.len(), found.pop()) {
        (1, Some(object)) => Ok(object),
        (0, _) | (_, None) => Err(ApiError::not_found(kind, name)),
        (count, _) => Err(ApiError::ambiguous(kind, name, count)),
    }
}
