//! Writes the store anew, so that nothing is left of what it had.
//!
//! A database keeps what was replaced or removed in pages that it has not used again yet. That must not be when keys are sealed
//! that were in the clear. The new store is made aside, with what is to be written, and takes the name of the old one: a crash
//! leaves either. Then the old file is overwritten, as far as a file can be: what the file system or the medium has elsewhere of
//! it, this cannot reach.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use redb::Database;

use super::layout;
use super::{Batch, DiskError, io_error, make_store, open_store, put_in_place, remove_new};

/// Bytes that are overwritten at once.
const BLOCK: usize = 64 << 10;

/// Replaces the store at `path`, which is open as `database`, by one with all that it has and `batches`.
///
/// On an error the store on disk is the old one or, if only its being there could not be made sure of, the new one.
pub(super) fn rewrite(path: &Path, database: Database, batches: &[&Batch]) -> Result<Database, DiskError> {
    let data_dir = path.parent().unwrap_or(Path::new("."));
    let new = remove_new(data_dir)?;
    let made = make_store(&new, |to| super::guarded(|| layout::copy(&database, to, batches)))
        .and_then(|()| OpenOptions::new().write(true).open(path).map_err(|source| io_error("open", path, source)))
        .and_then(|old| put_in_place(data_dir, &new, path).map(|()| old));
    let old = match made {
        Ok(old) => old,
        Err(error) => {
            let _ = std::fs::remove_file(&new);
            return Err(error);
        }
    };
    // It may write when it is closed.
    drop(database);
    if let Err(error) = erase(&old) {
        tracing::warn!(%error, store = %path.display(), "failed to overwrite the old store, which held keys");
    }
    open_store(path, false, |_| Ok(())).map(|(database, ())| database)
}

/// Overwrites a file with zeros.
fn erase(mut file: &File) -> io::Result<()> {
    let mut left = file.metadata()?.len();
    let zeros = vec![0; BLOCK];
    while left > 0 {
        let count = usize::try_from(left).unwrap_or(BLOCK).min(BLOCK);
        file.write_all(&zeros[..count])?;
        left -= count as u64;
    }
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;

    use super::*;
    use crate::disk::{Disk, Loaded, NEW_FILE, STORE_FILE, open};

    const KEY: &[u8] = b"the key that was in the clear";
    const SEALED: &[u8] = b"what nobody can read";

    fn key(bytes: &[u8]) -> Batch {
        Batch { identity: Some(bytes.to_vec()), ..Batch::default() }
    }

    fn shows(dir: &Path) -> bool {
        let files = fs::read_dir(dir).unwrap().map(|entry| fs::read(entry.unwrap().path()).unwrap());
        files.into_iter().any(|bytes| bytes.windows(KEY.len()).any(|window| window == KEY))
    }

    fn reopened(dir: &Path) -> (Disk, Loaded) {
        open(dir).unwrap()
    }

    /// A store that has a key, and had it in the clear in several places.
    async fn store() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let (disk, _) = open(dir.path()).unwrap();
        for _ in 0..3 {
            disk.write(key(KEY)).await.unwrap();
            disk.write(Batch { settings: [("a".to_owned(), "b".to_owned())].into(), ..key(b"") }).await.unwrap();
        }
        disk.write(key(KEY)).await.unwrap();
        disk.close().await;
        dir
    }

    #[tokio::test]
    async fn what_is_replaced_is_gone() {
        let dir = store().await;
        let (disk, before) = reopened(dir.path());
        disk.write(key(SEALED)).await.unwrap();
        disk.close().await;
        assert!(shows(dir.path()), "a write like any other leaves it there");
        let (disk, _) = reopened(dir.path());
        // Somebody looks on.
        let old = fs::File::open(dir.path().join(STORE_FILE)).unwrap();
        disk.write(Batch { scrub: true, ..key(SEALED) }).await.unwrap();
        disk.write(Batch { cluster: Some(b"more".to_vec()), ..Batch::default() }).await.unwrap();
        disk.close().await;
        assert!(!shows(dir.path()));
        let (mut left, mut reader) = (Vec::new(), old);
        io::Read::read_to_end(&mut reader, &mut left).unwrap();
        assert!(!left.is_empty() && left.iter().all(|byte| *byte == 0), "the old file is overwritten");
        let (disk, after) = reopened(dir.path());
        disk.close().await;
        let want = Loaded {
            identity: Some(SEALED.to_vec()),
            cluster: Some(b"more".to_vec()),
            incarnation: before.incarnation + 2,
            ..before
        };
        assert_eq!(after, want, "all else is there");
        let mode = fs::metadata(dir.path().join(STORE_FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    /// Whenever it stops, the store is the old one or the new one, and nothing else is left.
    #[tokio::test]
    async fn a_crash_at_any_step_leaves_one_of_the_two() {
        let dir = store().await;
        let path = dir.path().join(STORE_FILE);
        let old = fs::read(&path).unwrap();
        let (disk, _) = reopened(dir.path());
        disk.write(Batch { scrub: true, ..key(SEALED) }).await.unwrap();
        disk.close().await;
        let new = fs::read(&path).unwrap();

        // Before the new one has its name: however much of it was written, or none.
        let steps = 16;
        for step in 0..=steps {
            fs::write(&path, &old).unwrap();
            fs::write(dir.path().join(NEW_FILE), &new[..new.len() * step / steps]).unwrap();
            let (disk, loaded) = reopened(dir.path());
            assert_eq!(loaded.identity.as_deref(), Some(KEY), "step {step}");
            assert!(!dir.path().join(NEW_FILE).exists(), "step {step}");
            disk.write(Batch { scrub: true, ..key(SEALED) }).await.unwrap();
            disk.close().await;
            assert!(!shows(dir.path()), "it is done with the next try, step {step}");
        }
        // After that, however much of the old one was overwritten.
        fs::write(&path, &new).unwrap();
        let (disk, loaded) = reopened(dir.path());
        assert_eq!(loaded.identity.as_deref(), Some(SEALED));
        disk.close().await;
        // A new one with keys in the clear, as the cluster was not to be locked any more, is not left beside a sealed one.
        fs::write(&path, &new).unwrap();
        fs::write(dir.path().join(NEW_FILE), &old).unwrap();
        let (disk, loaded) = reopened(dir.path());
        assert_eq!(loaded.identity.as_deref(), Some(SEALED));
        disk.close().await;
        assert!(!shows(dir.path()));
    }

    #[tokio::test]
    async fn what_cannot_be_written_anew_stays_as_it_is() {
        let dir = store().await;
        let (disk, _) = reopened(dir.path());
        let in_the_way: PathBuf = dir.path().join(NEW_FILE);
        fs::create_dir(&in_the_way).unwrap();
        let refused = disk.write(Batch { scrub: true, ..key(SEALED) }).await;
        assert!(matches!(refused, Err(DiskError::Io { .. })), "{refused:?}");
        fs::remove_dir(&in_the_way).unwrap();
        disk.write(Batch { cluster: Some(b"more".to_vec()), ..Batch::default() }).await.unwrap();
        disk.close().await;
        let (disk, loaded) = reopened(dir.path());
        assert_eq!((loaded.identity.as_deref(), loaded.cluster.as_deref()), (Some(KEY), Some(&b"more"[..])));
        disk.write(Batch { scrub: true, ..key(SEALED) }).await.unwrap();
        disk.close().await;
        assert_eq!(reopened(dir.path()).1.identity.as_deref(), Some(SEALED));
    }
}
