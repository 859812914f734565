//! The node's store on disk: what it has promised, who it is, and where its peers were.
//!
//! One thread owns the database. It takes what is queued, writes it in one transaction with one fsync and answers each
//! batch when that is done. A write that failed leaves the store as it was; the database is then opened anew with the next
//! batch, so a disk that had no space left works again as soon as it has some.
//!
//! The last of the space is kept for what the node must be able to promise: records are refused a little earlier than leases.
//!
//! A damaged store is never altered: see [`backend`]. One kind of damage cannot be told from a crash, as it would take a
//! second fsync for each write: when the process was killed and exactly what it wrote last is damaged as well, the store
//! opens as it was before that write.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use redb::{Builder, Database};
use serde::{Deserialize, Serialize};
use shoal_protocol::{Key, NodeId, Record};
use tokio::sync::{mpsc, oneshot};

mod backend;
mod layout;
mod metrics;
mod rewrite;
#[cfg(test)]
mod tests;

pub use metrics::DiskMetrics;

use backend::Backend;
use layout::LayoutError;

/// The database, within the data directory.
const STORE_FILE: &str = "store.redb";
/// A database that is being made, within the data directory.
const NEW_FILE: &str = "store.redb.new";
/// Locked as long as a process uses the data directory.
const LOCK_FILE: &str = "store.lock";

/// Batches that wait for the disk at most; whoever writes more waits for room.
const QUEUE_MAX: usize = 256;
/// Bytes of free space below which records are refused. What is left is for leases and memberships, which take a few pages,
/// so that a node whose disk is full of records still votes.
const RESERVE_BYTES: u64 = 1 << 20;
/// Bytes that the database caches. Everything is in memory already, so it needs next to none.
const CACHE_BYTES: usize = 4 << 20;

/// Why the disk did not do as asked. What was asked is not stored, all else is as before.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DiskError {
    /// There is no space left; the next write is tried anew.
    #[error("no space left on device: {} (make room there)", path.display())]
    Full {
        /// The file that could not grow.
        path: PathBuf,
    },
    /// Another process has the data directory.
    #[error("data directory {} is in use by another process", path.display())]
    Locked {
        /// The data directory.
        path: PathBuf,
    },
    /// The store is damaged. It was left as it is.
    #[error("store {0} is damaged ({reason}): move {0} away and join the cluster again", path.display())]
    Corrupt {
        /// The damaged file.
        path: PathBuf,
        /// What was found.
        reason: String,
    },
    /// The store was written by a newer version. It was left as it is.
    #[error("store {} has layout {version}, this version reads up to {}: start a newer version", path.display(), layout::VERSION)]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its layout.
        version: u32,
    },
    /// The system refused an operation.
    #[error("failed to {what} {}", path.display())]
    Io {
        /// What was being done.
        what: &'static str,
        /// With what.
        path: PathBuf,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// Something cannot be stored, such as a record that no message could carry.
    #[error("refused to store {reason}")]
    Unfit {
        /// What, and why.
        reason: String,
    },
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
}

/// A node that was once known, and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownPeer {
    /// Who.
    pub id: NodeId,
    /// Where it was reached or said to be.
    pub addresses: Vec<SocketAddr>,
}

/// What was on disk when the store was opened.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Loaded {
    /// The records, in no particular order.
    pub records: Vec<Record>,
    /// The node's own keys.
    pub identity: Option<Vec<u8>>,
    /// The membership in a cluster.
    pub cluster: Option<Vec<u8>>,
    /// What this node has granted as a voter.
    pub leases: Option<Vec<u8>>,
    /// Where its peers were.
    pub peers: Vec<KnownPeer>,
    /// Choices that outlive a restart, by name.
    pub settings: BTreeMap<String, String>,
    /// How often the store was opened, this time included; on disk before it is returned.
    pub incarnation: u64,
}

/// What to write; all of it or, on an error, nothing. Empty fields change nothing.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Batch {
    /// First of all removes records, membership, leases and peers. Identity and settings stay.
    pub forget_cluster: bool,
    /// Keys to remove, base and overlay: tombstones that were collected.
    pub removed: Vec<Key>,
    /// Records to store, those of durable keys alone; a newer one that is stored already stays.
    pub records: Vec<Record>,
    /// Replaces the node's own keys.
    pub identity: Option<Vec<u8>>,
    /// Replaces the membership in a cluster.
    pub cluster: Option<Vec<u8>>,
    /// Replaces what this node has granted as a voter.
    pub leases: Option<Vec<u8>>,
    /// Replaces where its peers were.
    pub peers: Option<Vec<KnownPeer>>,
    /// Choices to set, by name.
    pub settings: BTreeMap<String, String>,
    /// Leaves nothing behind of what this replaces or removes, or of what was replaced before: see [`rewrite`].
    pub scrub: bool,
}

/// A handle on the store; clones share it.
#[derive(Debug, Clone)]
pub struct Disk {
    jobs: mpsc::Sender<Job>,
    path: Arc<PathBuf>,
    metrics: DiskMetrics,
}

/// Where the result of a write goes.
type Done = oneshot::Sender<Result<(), DiskError>>;

#[derive(Debug)]
enum Job {
    Write(Box<Batch>, Done),
    Close(oneshot::Sender<()>),
}

/// Opens the store in `data_dir`, making both if they are missing, and counts the incarnation up. Blocks.
pub fn open(data_dir: &Path) -> Result<(Disk, Loaded), DiskError> {
    let lock = lock(data_dir)?;
    let path = data_dir.join(STORE_FILE);
    // What a crash left of a store that was being made may hold keys that this one has only sealed.
    remove_new(data_dir)?;
    if !path.try_exists().map_err(|source| io_error("look for", &path, source))? {
        create(data_dir, &path)?;
    }
    let (database, mut loaded) = open_store(&path, true, layout::load)?;
    loaded.incarnation += 1;
    layout::set_incarnation(&database, loaded.incarnation).map_err(|error| disk_error(&path, error))?;
    let (jobs, queue) = mpsc::channel(QUEUE_MAX);
    let metrics = DiskMetrics::default();
    let writer = Writer { path: path.clone(), database: Some(database), metrics: metrics.clone(), _lock: lock };
    std::thread::Builder::new()
        .name("disk".to_owned())
        .spawn(move || writer.run(queue))
        .map_err(|source| io_error("start a thread for", &path, source))?;
    Ok((Disk { jobs, path: Arc::new(path), metrics }, loaded))
}

impl Disk {
    /// Writes a batch and returns when it is on disk. Batches are written in the order in which they are queued.
    pub async fn write(&self, batch: Batch) -> Result<(), DiskError> {
        let (done, answer) = oneshot::channel();
        self.jobs.send(Job::Write(Box::new(batch), done)).await.map_err(|_| DiskError::Closed)?;
        answer.await.map_err(|_| DiskError::Closed)?
    }

    /// Returns why a record would be refused if it were written now. Blocks no longer than the system takes for an answer.
    pub fn refusal(&self) -> Option<DiskError> {
        refusal(&self.path)
    }

    /// Returns what is counted of this store.
    pub fn metrics(&self) -> &DiskMetrics {
        &self.metrics
    }

    /// Writes what is queued before this and closes the store for all handles; another [`open`] then succeeds.
    pub async fn close(&self) {
        let (done, closed) = oneshot::channel();
        if self.jobs.send(Job::Close(done)).await.is_ok() {
            // An error means that another handle has closed it in the meantime.
            let _ = closed.await;
        }
    }
}

/// What the thread owns.
struct Writer {
    path: PathBuf,
    /// `None` after a failed write, until the store could be opened again.
    database: Option<Database>,
    metrics: DiskMetrics,
    _lock: File,
}

impl Writer {
    fn run(mut self, mut queue: mpsc::Receiver<Job>) {
        while let Some(first) = queue.blocking_recv() {
            let mut batches = Vec::new();
            let mut close = None;
            let mut next = Some(first);
            while let Some(job) = next {
                match job {
                    Job::Write(batch, done) => batches.push((batch, done)),
                    Job::Close(done) => {
                        close = Some(done);
                        break;
                    }
                }
                next = queue.try_recv().ok();
            }
            self.answer(batches);
            if let Some(done) = close {
                drop(self);
                let _ = done.send(());
                return;
            }
        }
    }

    fn answer(&mut self, batches: Vec<(Box<Batch>, Done)>) {
        let together = self.write(batches.iter().map(|(batch, _)| &**batch));
        // What is refused for its records must not take leases with it.
        let alone = matches!(together, Err(DiskError::Unfit { .. } | DiskError::Full { .. })) && batches.len() > 1;
        for (batch, done) in batches {
            let result = if alone { self.write(std::iter::once(&*batch)) } else { together.clone() };
            // Whoever does not wait any more does not need the answer.
            let _ = done.send(result);
        }
    }

    fn write<'a>(&mut self, batches: impl Iterator<Item = &'a Batch>) -> Result<(), DiskError> {
        let batches: Vec<&Batch> = batches.collect();
        if batches.is_empty() {
            return Ok(());
        }
        let began = Instant::now();
        let result = self.commit(&batches);
        self.metrics.note(began.elapsed(), result.is_ok());
        result
    }

    fn commit(&mut self, batches: &[&Batch]) -> Result<(), DiskError> {
        if batches.iter().any(|batch| !batch.records.is_empty())
            && let Some(refusal) = refusal(&self.path)
        {
            return Err(refusal);
        }
        let database = match self.database.take() {
            Some(database) => database,
            None => open_store(&self.path, false, |_| Ok(()))?.0,
        };
        if batches.iter().any(|batch| batch.scrub) {
            self.database = Some(rewrite::rewrite(&self.path, database, batches)?);
            return Ok(());
        }
        let result = guarded(|| layout::commit(&database, batches.iter().copied()))
            .map_err(|error| disk_error(&self.path, error));
        // After a failure of the system the database refuses everything; whatever the failure, it is opened anew.
        if result.is_ok() {
            self.database = Some(database);
        }
        result
    }
}

fn refusal(path: &Path) -> Option<DiskError> {
    // Where the system does not say, the write itself will show.
    let space = rustix::fs::statvfs(path).ok()?;
    (space.f_bfree.saturating_mul(space.f_frsize) < RESERVE_BYTES).then(|| DiskError::Full { path: path.to_owned() })
}

fn lock(data_dir: &Path) -> Result<File, DiskError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(data_dir);
    made.map_err(|source| io_error("make data directory", data_dir, source))?;
    let path = data_dir.join(LOCK_FILE);
    let lock = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
    let lock = lock.map_err(|source| io_error("open", &path, source))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(DiskError::Locked { path: data_dir.to_owned() }),
        Err(TryLockError::Error(source)) => Err(io_error("lock", &path, source)),
    }
}

/// Makes a store aside and moves it into place, so that a crash never leaves half of one.
fn create(data_dir: &Path, path: &Path) -> Result<(), DiskError> {
    let new = data_dir.join(NEW_FILE);
    let made = make_store(&new, layout::initialise).and_then(|()| put_in_place(data_dir, &new, path));
    if made.is_err() {
        // It is made afresh with the next try anyway; leaving it behind would only cost space.
        let _ = std::fs::remove_file(&new);
    }
    made
}

/// Removes a store that was being made when the process ended.
fn remove_new(data_dir: &Path) -> Result<PathBuf, DiskError> {
    let new = data_dir.join(NEW_FILE);
    match std::fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("remove", &new, error)),
        Ok(()) | Err(_) => Ok(new),
    }
}

/// Gives a store that was made aside its name; what had that name before is gone.
fn put_in_place(data_dir: &Path, new: &Path, path: &Path) -> Result<(), DiskError> {
    std::fs::rename(new, path).map_err(|source| io_error("make", path, source))?;
    let directory = File::open(data_dir).and_then(|directory| directory.sync_all());
    directory.map_err(|source| io_error("sync", data_dir, source))
}

/// Makes a store in a new file, with what `fill` puts in; it is on disk when this returns.
fn make_store(new: &Path, fill: impl FnOnce(&Database) -> Result<(), LayoutError>) -> Result<(), DiskError> {
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(new);
    let file = file.map_err(|source| io_error("make", new, source))?;
    let synced = file.try_clone().map_err(|source| io_error("make", new, source))?;
    let database = builder().create_with_backend(Backend::live(file)).map_err(|error| disk_error(new, error.into()))?;
    fill(&database).map_err(|error| disk_error(new, error))?;
    drop(database);
    synced.sync_all().map_err(|source| io_error("sync", new, source))
}

/// Opens an existing store and reads from it before a single byte of it is changed.
fn open_store<T>(
    path: &Path,
    verify: bool,
    read: impl FnOnce(&Database) -> Result<T, LayoutError>,
) -> Result<(Database, T), DiskError> {
    let file = OpenOptions::new().read(true).write(true).open(path);
    let file = file.map_err(|source| io_error("open", path, source))?;
    let metadata = file.metadata().map_err(|source| io_error("read", path, source))?;
    if metadata.len() == 0 {
        return Err(corrupt(path, "it is empty".to_owned()));
    }
    if metadata.permissions().mode() & 0o077 != 0 {
        // It holds private keys.
        let tightened = file.set_permissions(Permissions::from_mode(0o600));
        tightened.map_err(|source| io_error("restrict permissions of", path, source))?;
    }
    let backend = Backend::rehearsing(file).map_err(|source| io_error("read", path, source))?;
    let opened = guarded(|| {
        let mut builder = builder();
        let database = builder.set_check_integrity_on_open(verify).create_with_backend(backend.clone())?;
        let content = read(&database)?;
        Ok((database, content))
    });
    let opened = opened.map_err(|error| disk_error(path, error))?;
    backend.perform().map_err(|source| io_error("write", path, source))?;
    Ok(opened)
}

fn builder() -> Builder {
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE_BYTES);
    builder
}

/// Runs `act` and turns a panic into an error: redb may panic over a file that it did not write like that.
fn guarded<T>(act: impl FnOnce() -> Result<T, LayoutError>) -> Result<T, LayoutError> {
    catch_unwind(AssertUnwindSafe(act)).unwrap_or(Err(LayoutError::Malformed("the database's structure")))
}

fn disk_error(path: &Path, error: LayoutError) -> DiskError {
    match error {
        LayoutError::Newer(version) => DiskError::Newer { path: path.to_owned(), version },
        LayoutError::Encode { .. } | LayoutError::Database(redb::Error::ValueTooLarge(_)) => {
            DiskError::Unfit { reason: error.to_string() }
        }
        LayoutError::Database(redb::Error::Io(source)) => match source.kind() {
            // So the file is cut short or was never a store.
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => corrupt(path, source.to_string()),
            _ => io_error("use", path, source),
        },
        LayoutError::Database(redb::Error::PreviousIo) => io_error("use", path, io::Error::other(error.to_string())),
        LayoutError::Database(_) | LayoutError::Decode { .. } | LayoutError::Malformed(_) => {
            corrupt(path, error.to_string())
        }
    }
}

fn corrupt(path: &Path, reason: String) -> DiskError {
    DiskError::Corrupt { path: path.to_owned(), reason }
}

fn io_error(what: &'static str, path: &Path, source: io::Error) -> DiskError {
    let path = path.to_owned();
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => DiskError::Full { path },
        _ => DiskError::Io { what, path, source: Arc::new(source) },
    }
}
