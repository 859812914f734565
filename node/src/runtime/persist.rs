//! Carries batches to the disk in order, several in one transaction when they come faster than the disk takes them.

use std::time::Duration;

use shoal_control::core::{Event, PersistBatch};
use tokio::sync::{mpsc, watch};

use crate::disk::{Batch, Disk, KnownPeer};

/// Batches that may wait for the disk. When as many wait the event loop does, too: a disk that is slower than the cluster's
/// changes must slow the node down, not fill its memory.
pub const QUEUE_MAX: usize = 256;

/// Batches that share one transaction at most.
const TOGETHER_MAX: usize = 64;

/// Starts carrying batches. Reports [`Event::Persisted`] or [`Event::PersistFailed`] for each, in order.
pub fn spawn(disk: Disk, reports: mpsc::Sender<Event>) -> mpsc::Sender<(u64, PersistBatch)> {
    let (sender, mut batches) = mpsc::channel::<(u64, PersistBatch)>(QUEUE_MAX);
    tokio::spawn(async move {
        while let Some((token, first)) = batches.recv().await {
            let mut tokens = vec![token];
            let mut together = vec![first];
            while together.len() < TOGETHER_MAX
                && let Ok((token, next)) = batches.try_recv()
            {
                tokens.push(token);
                together.push(next);
            }
            let result = match join(together) {
                Ok(batch) => disk.write(batch).await.map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
            };
            for token in tokens {
                let event = match &result {
                    Ok(()) => Event::Persisted { token },
                    Err(error) => Event::PersistFailed { token, error: error.clone() },
                };
                if reports.send(event).await.is_err() {
                    return;
                }
            }
        }
    });
    sender
}

/// Between two attempts to note where the other nodes are.
const PEERS_AGAIN_AFTER: Duration = Duration::from_secs(5);

/// Starts noting where the other nodes are: what was said last is on disk in the end, whatever came before.
pub fn spawn_peers(disk: Disk) -> watch::Sender<Vec<KnownPeer>> {
    let (sender, mut peers) = watch::channel(Vec::new());
    tokio::spawn(async move {
        while peers.changed().await.is_ok() {
            let newest = peers.borrow_and_update().clone();
            let batch = Batch { peers: Some(newest), ..Batch::default() };
            if let Err(error) = disk.write(batch).await {
                tracing::warn!(%error, "failed to note where the other nodes are");
                tokio::time::sleep(PEERS_AGAIN_AFTER).await;
                if peers.has_changed().is_err() {
                    break;
                }
                peers.mark_changed();
            }
        }
    });
    sender
}

/// Makes one batch of several; later ones win.
fn join(batches: Vec<PersistBatch>) -> Result<Batch, shoal_protocol::codec::CodecError> {
    let mut joined = Batch::default();
    for batch in batches {
        joined.records.extend(batch.records);
        joined.removed.extend(batch.removed);
        if let Some(leases) = batch.leases {
            joined.leases = Some(shoal_protocol::codec::encode(&leases)?);
        }
    }
    Ok(joined)
}
