//! The shells of a member that others use directly: the API reads logs and images, the ingress opens tunnels.

use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use shoal_control::renewal::Validity;
use shoal_protocol::NodeId;
use tokio::sync::watch;

use crate::driver::Driver;
use crate::ingress::{TunnelStream, Tunnels};
use crate::swarm::SwarmHandle;

/// What the API needs of a member besides its decisions.
#[derive(Clone)]
pub struct Shells {
    /// This node.
    pub node: NodeId,
    /// What runs the containers.
    pub driver: Arc<dyn Driver>,
    /// The way to other nodes.
    pub swarm: SwarmHandle,
    /// When this node's credential was made, and when it ends.
    pub credential: watch::Receiver<Validity>,
}

impl Shells {
    pub(super) fn new(
        node: NodeId,
        driver: Arc<dyn Driver>,
        swarm: SwarmHandle,
        credential: watch::Receiver<Validity>,
    ) -> Self {
        Self { node, driver, swarm, credential }
    }
}

/// Stops and removes every container of a node.
pub(super) async fn stop_all(driver: &Arc<dyn Driver>) {
    let found = match driver.list().await {
        Ok(found) => found,
        Err(error) => {
            tracing::error!(%error, "failed to list this node's containers");
            return;
        }
    };
    let ends = found.into_iter().map(|found| {
        let driver = driver.clone();
        async move {
            if let Err(error) = driver.stop(found.task).await {
                tracing::warn!(task = %found.task, %error, "failed to stop a task");
            }
            if let Err(error) = driver.remove(found.task).await {
                tracing::warn!(task = %found.task, %error, "failed to remove a container");
            }
        }
    });
    futures::future::join_all(ends).await;
    if let Err(error) = driver.close().await {
        tracing::warn!(%error, "failed to remove what the driver set up on this machine");
    }
}

/// Opens tunnels over the swarm.
pub(super) struct SwarmTunnels(pub(super) SwarmHandle);

#[async_trait]
impl Tunnels for SwarmTunnels {
    async fn open(&self, node: NodeId) -> io::Result<Box<dyn TunnelStream>> {
        let stream = self.0.open_tunnel(node).await?;
        Ok(Box::new(stream))
    }

    async fn open_datagrams(&self, node: NodeId) -> io::Result<Box<dyn TunnelStream>> {
        let stream = self.0.open_datagrams(node).await?;
        Ok(Box::new(stream))
    }
}
