//! What is where in the database, and how a batch gets in.

use std::collections::BTreeMap;

use redb::{Database, ReadableDatabase, ReadableTable, Table, TableDefinition, TableHandle, WriteTransaction};
use shoal_protocol::Record;
use shoal_protocol::codec::{self, CodecError};
use shoal_protocol::record::Layer;

use super::{Batch, KnownPeer, Loaded};

/// Version of the layout below. A store with a greater one is refused.
pub(super) const VERSION: u32 = 1;

/// Rows of [`row_key`] and encoded records.
const RECORDS: TableDefinition<'static, &[u8], &[u8]> = TableDefinition::new("records");
/// Single things, by the names below.
const THINGS: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("things");
const SETTINGS: TableDefinition<'static, &str, &str> = TableDefinition::new("settings");

/// What follows the key in a row of its base.
const BASE: u8 = 0;
/// What follows the key in the rows of its overlay, before the hash of each.
const OVERLAY: u8 = 1;

const LAYOUT: &str = "layout";
const INCARNATION: &str = "incarnation";
const IDENTITY: &str = "identity";
const CLUSTER: &str = "cluster";
const LEASES: &str = "leases";
const PEERS: &str = "peers";

/// Why the database could not be read or written.
#[derive(Debug, thiserror::Error)]
pub(super) enum LayoutError {
    #[error(transparent)]
    Database(#[from] redb::Error),
    #[error("{what}: {source}")]
    Decode { what: &'static str, source: CodecError },
    #[error("{what}: {source}")]
    Encode { what: &'static str, source: CodecError },
    #[error("{0} is missing or malformed")]
    Malformed(&'static str),
    #[error("layout {0} is newer than this version's")]
    Newer(u32),
}

macro_rules! from_redb {
    ($($error:ident),+) => {$(
        impl From<redb::$error> for LayoutError {
            fn from(error: redb::$error) -> Self {
                Self::Database(error.into())
            }
        }
    )+};
}

from_redb!(CommitError, DatabaseError, StorageError, TableError, TransactionError);

/// Makes the tables of a new store.
pub(super) fn initialise(database: &Database) -> Result<(), LayoutError> {
    let transaction = database.begin_write()?;
    transaction.open_table(RECORDS)?;
    transaction.open_table(SETTINGS)?;
    {
        let mut things = transaction.open_table(THINGS)?;
        things.insert(LAYOUT, VERSION.to_le_bytes().as_slice())?;
        things.insert(INCARNATION, 0u64.to_le_bytes().as_slice())?;
    }
    Ok(transaction.commit()?)
}

/// Reads everything.
pub(super) fn load(database: &Database) -> Result<Loaded, LayoutError> {
    let transaction = database.begin_read()?;
    let things = transaction.open_table(THINGS)?;
    let thing = |name| Ok::<_, LayoutError>(things.get(name)?.map(|bytes| bytes.value().to_vec()));
    let number = |name| thing(name).map(|bytes| bytes.unwrap_or_default());
    let version: [u8; 4] = number(LAYOUT)?.try_into().map_err(|_| LayoutError::Malformed("layout version"))?;
    let version = u32::from_le_bytes(version);
    if version != VERSION {
        return Err(LayoutError::Newer(version));
    }
    let incarnation: [u8; 8] = number(INCARNATION)?.try_into().map_err(|_| LayoutError::Malformed("incarnation"))?;
    let mut records = Vec::new();
    for row in transaction.open_table(RECORDS)?.iter()? {
        let (_, bytes) = row?;
        records.push(decode::<Record>("record", bytes.value())?);
    }
    let mut settings = BTreeMap::new();
    for row in transaction.open_table(SETTINGS)?.iter()? {
        let (name, value) = row?;
        settings.insert(name.value().to_owned(), value.value().to_owned());
    }
    let peers = match thing(PEERS)? {
        Some(bytes) => decode::<Vec<KnownPeer>>("peers", &bytes)?,
        None => Vec::new(),
    };
    Ok(Loaded {
        records,
        identity: thing(IDENTITY)?,
        cluster: thing(CLUSTER)?,
        leases: thing(LEASES)?,
        peers,
        settings,
        incarnation: u64::from_le_bytes(incarnation),
    })
}

/// Counts the incarnation up to `incarnation`, durably.
pub(super) fn set_incarnation(database: &Database, incarnation: u64) -> Result<(), LayoutError> {
    let transaction = database.begin_write()?;
    transaction.open_table(THINGS)?.insert(INCARNATION, incarnation.to_le_bytes().as_slice())?;
    Ok(transaction.commit()?)
}

/// Fills a new store with all that another one has, and then batches, in one transaction that is on disk when this returns.
pub(super) fn copy(from: &Database, to: &Database, batches: &[&Batch]) -> Result<(), LayoutError> {
    let source = from.begin_read()?;
    // What is not copied here would be lost with the old store.
    let known = [RECORDS.name(), THINGS.name(), SETTINGS.name()];
    if source.list_tables()?.any(|table| !known.contains(&table.name())) {
        return Err(LayoutError::Malformed("the list of tables, which has one that this version does not know,"));
    }
    let transaction = to.begin_write()?;
    {
        let mut rows = transaction.open_table(RECORDS)?;
        for row in source.open_table(RECORDS)?.iter()? {
            let (key, value) = row?;
            rows.insert(key.value(), value.value())?;
        }
        let mut things = transaction.open_table(THINGS)?;
        for row in source.open_table(THINGS)?.iter()? {
            let (name, value) = row?;
            things.insert(name.value(), value.value())?;
        }
        let mut settings = transaction.open_table(SETTINGS)?;
        for row in source.open_table(SETTINGS)?.iter()? {
            let (name, value) = row?;
            settings.insert(name.value(), value.value())?;
        }
    }
    for batch in batches {
        apply(&transaction, batch)?;
    }
    Ok(transaction.commit()?)
}

/// Writes batches in order, all in one transaction that is on disk when this returns.
pub(super) fn commit<'a>(database: &Database, batches: impl Iterator<Item = &'a Batch>) -> Result<(), LayoutError> {
    let transaction = database.begin_write()?;
    for batch in batches {
        apply(&transaction, batch)?;
    }
    Ok(transaction.commit()?)
}

fn apply(transaction: &WriteTransaction, batch: &Batch) -> Result<(), LayoutError> {
    let mut rows = transaction.open_table(RECORDS)?;
    let mut things = transaction.open_table(THINGS)?;
    if batch.forget_cluster {
        rows.retain(|_, _| false)?;
        for name in [CLUSTER, LEASES, PEERS] {
            things.remove(name)?;
        }
    }
    for key in &batch.removed {
        let (first, end) = (key.canonical(), [key.canonical(), vec![OVERLAY + 1]].concat());
        rows.retain_in(first.as_slice()..end.as_slice(), |_, _| false)?;
    }
    for record in batch.records.iter().filter(|record| record.key.is_durable()) {
        insert(&mut rows, record)?;
    }
    let peers = match &batch.peers {
        Some(peers) => Some(encode("peers", peers)?),
        None => None,
    };
    let single = [(IDENTITY, &batch.identity), (CLUSTER, &batch.cluster), (LEASES, &batch.leases), (PEERS, &peers)];
    for (name, bytes) in single {
        if let Some(bytes) = bytes {
            things.insert(name, bytes.as_slice())?;
        }
    }
    let mut settings = transaction.open_table(SETTINGS)?;
    for (name, value) in &batch.settings {
        settings.insert(name.as_str(), value.as_str())?;
    }
    Ok(())
}

/// Stores a record unless a newer one is there: batches may be queued in another order than their records were merged in.
fn insert(rows: &mut Table<'_, &[u8], &[u8]>, record: &Record) -> Result<(), LayoutError> {
    let row = row_key(record);
    let place = |record: &Record| (record.stamp, record.author, record.hash());
    let stored = match rows.get(row.as_slice())? {
        Some(bytes) => Some(decode::<Record>("record", bytes.value())?),
        None => None,
    };
    if stored.is_none_or(|stored| place(&stored) < place(record)) {
        rows.insert(row.as_slice(), encode("record", record)?.as_slice())?;
    }
    Ok(())
}

/// A key's base has one row, each record of its overlay another. No row key is a prefix of another key's rows: what
/// precedes the layer says how long it is.
fn row_key(record: &Record) -> Vec<u8> {
    let mut row = record.key.canonical();
    match record.layer {
        Layer::Base => row.push(BASE),
        Layer::Overlay { .. } => {
            row.push(OVERLAY);
            row.extend(record.hash().to_be_bytes());
        }
    }
    row
}

fn encode<T: serde::Serialize>(what: &'static str, value: &T) -> Result<Vec<u8>, LayoutError> {
    codec::encode(value).map_err(|source| LayoutError::Encode { what, source })
}

fn decode<T: serde::de::DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<T, LayoutError> {
    codec::decode(bytes).map_err(|source| LayoutError::Decode { what, source })
}

#[cfg(test)]
pub(super) fn set_version(database: &Database, version: u32) {
    let transaction = database.begin_write().unwrap();
    transaction.open_table(THINGS).unwrap().insert(LAYOUT, version.to_le_bytes().as_slice()).unwrap();
    transaction.commit().unwrap();
}

#[cfg(test)]
pub(super) fn set_row(database: &Database, key: &shoal_protocol::Key, bytes: &[u8]) {
    let transaction = database.begin_write().unwrap();
    let mut row = key.canonical();
    row.push(BASE);
    transaction.open_table(RECORDS).unwrap().insert(row.as_slice(), bytes).unwrap();
    transaction.commit().unwrap();
}
