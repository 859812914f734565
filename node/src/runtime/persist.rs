//! Carries batches to the disk in order, several in one transaction when they come faster than the disk takes them, and
//! tells when the disk begins and ends to refuse.

use std::collections::BTreeSet;
use std::time::Duration;

use shoal_control::core::{Event, PersistBatch};
use shoal_protocol::Key;
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval};

use crate::disk::{Batch, Disk, DiskError, KnownPeer};

/// Batches that may wait for the disk. When as many wait the event loop does, too: a disk that is slower than the cluster's
/// changes must slow the node down, not fill its memory.
pub const QUEUE_MAX: usize = 256;

/// Batches that share one transaction at most.
const TOGETHER_MAX: usize = 64;

/// How often the disk is asked whether it has room.
const ROOM_CHECK: Duration = Duration::from_secs(1);

/// Starts carrying batches. Reports [`Event::Persisted`] or [`Event::PersistFailed`] for each, in order, and
/// [`Event::Storage`] when the disk has no room any more or has some again.
pub fn spawn(disk: Disk, reports: mpsc::Sender<Event>) -> mpsc::Sender<(u64, PersistBatch)> {
    let (sender, mut batches) = mpsc::channel::<(u64, PersistBatch)>(QUEUE_MAX);
    tokio::spawn(async move {
        let mut room_check = interval(ROOM_CHECK);
        room_check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut refusal = None;
        loop {
            let reported = tokio::select! {
                biased;
                batch = batches.recv() => match batch {
                    Some(first) => carry(first, &mut batches, &disk, &reports).await,
                    None => return,
                },
                _ = room_check.tick() => tell_room(&disk, &mut refusal, &reports).await,
            };
            if reported.is_err() {
                return;
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

/// Writes a batch and those that wait behind it. What a full disk refuses for its records is tried alone once more: leases
/// still fit where records do not.
async fn carry(
    (token, first): (u64, PersistBatch),
    batches: &mut mpsc::Receiver<(u64, PersistBatch)>,
    disk: &Disk,
    reports: &mpsc::Sender<Event>,
) -> Result<(), mpsc::error::SendError<Event>> {
    let mut together = vec![(token, first)];
    while together.len() < TOGETHER_MAX
        && let Ok(next) = batches.try_recv()
    {
        together.push(next);
    }
    let result = write(disk, together.iter().map(|(_, batch)| batch)).await;
    let alone = matches!(result, Err(WriteFailure::Disk(DiskError::Full { .. }))) && together.len() > 1;
    for (token, batch) in &together {
        let result = if alone { write(disk, std::iter::once(batch)).await } else { result.clone() };
        let event = match result {
            Ok(()) => Event::Persisted { token: *token },
            Err(error) => {
                tracing::debug!(%error, "a batch was not stored");
                Event::PersistFailed { token: *token, error: error.to_string() }
            }
        };
        reports.send(event).await?;
    }
    Ok(())
}

/// Why a batch was not stored.
#[derive(Debug, Clone, thiserror::Error)]
enum WriteFailure {
    #[error(transparent)]
    Disk(DiskError),
    #[error("{0}")]
    Codec(String),
}

async fn write<'a>(disk: &Disk, batches: impl Iterator<Item = &'a PersistBatch>) -> Result<(), WriteFailure> {
    let batch = join(batches).map_err(|error| WriteFailure::Codec(error.to_string()))?;
    disk.write(batch).await.map_err(WriteFailure::Disk)
}

/// Tells of a change in whether the disk has room.
async fn tell_room(
    disk: &Disk,
    told: &mut Option<String>,
    reports: &mpsc::Sender<Event>,
) -> Result<(), mpsc::error::SendError<Event>> {
    let refusal = disk.refusal().map(|error| error.to_string());
    if refusal == *told {
        return Ok(());
    }
    if refusal.is_none() {
        tracing::info!("there is room on the disk again: writes at this node go on");
    }
    told.clone_from(&refusal);
    reports.send(Event::Storage(refusal)).await
}

/// Makes one batch of several; what a later one says of a key is what is kept of it.
fn join<'a>(batches: impl Iterator<Item = &'a PersistBatch>) -> Result<Batch, shoal_protocol::codec::CodecError> {
    let (mut records, mut removed) = (Vec::new(), BTreeSet::new());
    let mut leases = None;
    for batch in batches {
        for record in &batch.records {
            removed.remove(&record.key);
            records.push(record.clone());
        }
        let gone: BTreeSet<Key> = batch.removed.iter().copied().collect();
        records.retain(|record| !gone.contains(&record.key));
        removed.extend(gone);
        leases = batch.leases.as_ref().or(leases);
    }
    Ok(Batch {
        records,
        removed: removed.into_iter().collect(),
        leases: leases.map(shoal_protocol::codec::encode).transpose()?,
        ..Batch::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use shoal_protocol::record::Record;
    use shoal_protocol::{NodeId, ServiceId, Stamp};

    #[test]
    fn the_last_word_on_a_key_is_kept() {
        let (kept, gone) = (Key::Service(ServiceId(1)), Key::Service(ServiceId(2)));
        let record = |key, seq| {
            let stamp = Stamp { lineage: 0, epoch: 1, seq };
            shoal_control::store::Store::seal(key, stamp, NodeId(1), None).unwrap()
        };
        let batch = |records: Vec<Record>, removed: Vec<Key>| PersistBatch { records, removed, leases: None };
        let batches = [
            batch(vec![record(gone, 1), record(kept, 2)], vec![]),
            batch(vec![], vec![gone, kept]),
            batch(vec![record(kept, 3)], vec![]),
        ];
        let joined = join(batches.iter()).unwrap();
        assert_eq!(joined.records, [record(kept, 3)]);
        assert_eq!(joined.removed, [gone]);
    }
}
