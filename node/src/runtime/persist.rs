//! Carries batches to the disk in order, several in one transaction when they come faster than the disk takes them.

use std::collections::BTreeSet;

use shoal_control::core::{Event, PersistBatch};
use shoal_protocol::Key;
use tokio::sync::mpsc;

use crate::disk::{Batch, Disk};

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

/// Makes one batch of several; what a later one says of a key is what is kept of it.
fn join(batches: Vec<PersistBatch>) -> Result<Batch, shoal_protocol::codec::CodecError> {
    let (mut records, mut removed) = (Vec::new(), BTreeSet::new());
    let mut leases = None;
    for batch in batches {
        for record in batch.records {
            removed.remove(&record.key);
            records.push(record);
        }
        let gone: BTreeSet<Key> = batch.removed.into_iter().collect();
        records.retain(|record| !gone.contains(&record.key));
        removed.extend(gone);
        leases = batch.leases.or(leases);
    }
    Ok(Batch {
        records,
        removed: removed.into_iter().collect(),
        leases: leases.as_ref().map(shoal_protocol::codec::encode).transpose()?,
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
        let joined = join(vec![
            batch(vec![record(gone, 1), record(kept, 2)], vec![]),
            batch(vec![], vec![gone, kept]),
            batch(vec![record(kept, 3)], vec![]),
        ])
        .unwrap();
        assert_eq!(joined.records, [record(kept, 3)]);
        assert_eq!(joined.removed, [gone]);
    }
}
