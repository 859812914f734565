//! What is acknowledged is there again; what is damaged stays as it is; what was full works again.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use shoal_protocol::record::{BODY_BYTES_MAX, Layer, SlotName, Stamp};
use shoal_protocol::{ServiceId, TaskId};

use super::*;

fn record(service: u128, seq: u64, body: &[u8]) -> Record {
    Record {
        key: Key::Service(ServiceId(service)),
        stamp: Stamp { lineage: 0, epoch: 1, seq },
        author: NodeId(1),
        schema: 1,
        layer: Layer::Base,
        body: Some(body.to_vec()),
    }
}

fn storing(records: Vec<Record>) -> Batch {
    Batch { records, ..Batch::default() }
}

/// Opens, acts, closes, and returns what a second opening finds.
async fn reopened(dir: &Path, batches: Vec<Batch>) -> Loaded {
    let (disk, _) = open(dir).unwrap();
    for batch in batches {
        disk.write(batch).await.unwrap();
    }
    disk.close().await;
    let (disk, loaded) = open(dir).unwrap();
    disk.close().await;
    loaded
}

#[tokio::test]
async fn what_was_acknowledged_is_there_again() {
    let dir = tempfile::tempdir().unwrap();
    let data_dir = dir.path().join("not/there/yet");
    let peers = vec![KnownPeer { id: NodeId(4), addresses: vec!["127.0.0.1:2377".parse().unwrap()] }];
    let status = Record { key: Key::TaskStatus(NodeId(1), TaskId(1)), ..record(1, 1, b"status") };
    let first = Batch {
        records: vec![record(1, 1, b"one"), record(2, 1, b"two"), status],
        identity: Some(b"identity".to_vec()),
        cluster: Some(b"cluster".to_vec()),
        leases: Some(b"leases".to_vec()),
        peers: Some(peers.clone()),
        settings: BTreeMap::from([("driver".to_owned(), "docker".to_owned())]),
        ..Batch::default()
    };
    let second = Batch { leases: Some(b"more leases".to_vec()), ..storing(vec![record(1, 2, b"one again")]) };
    let loaded = reopened(&data_dir, vec![first, second, Batch::default()]).await;
    assert_eq!(
        loaded,
        Loaded {
            records: vec![record(1, 2, b"one again"), record(2, 1, b"two")],
            identity: Some(b"identity".to_vec()),
            cluster: Some(b"cluster".to_vec()),
            leases: Some(b"more leases".to_vec()),
            peers,
            settings: BTreeMap::from([("driver".to_owned(), "docker".to_owned())]),
            incarnation: 2,
        }
    );
    for (name, mode) in [("", 0o700), (STORE_FILE, 0o600), (LOCK_FILE, 0o600)] {
        let metadata = std::fs::metadata(data_dir.join(name)).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, mode, "{name:?}");
    }
    assert!(!data_dir.join(NEW_FILE).exists());
}

#[tokio::test]
async fn an_older_record_does_not_replace_a_newer_one() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (record(1, 1, b"old"), record(1, 2, b"new"));
    let loaded = reopened(dir.path(), vec![storing(vec![new.clone()]), storing(vec![old])]).await;
    assert_eq!(loaded.records, [new]);
}

#[tokio::test]
async fn collected_keys_go_with_their_overlay_and_no_others() {
    let dir = tempfile::tempdir().unwrap();
    let slot = |replica| Record { key: Key::Slot(ServiceId(1), SlotName::Replica(replica)), ..record(1, 1, b"slot") };
    let overlay =
        |actor| Record { layer: Layer::Overlay { clock: vec![(actor, 1)], base: Stamp::default() }, ..slot(1) };
    let all = storing(vec![record(1, 1, b"one"), slot(1), overlay(1), overlay(2), slot(2), slot(256)]);
    let removal = Batch { removed: vec![slot(1).key], ..Batch::default() };
    let loaded = reopened(dir.path(), vec![all.clone()]).await;
    assert_eq!(loaded.records.len(), all.records.len());
    let loaded = reopened(dir.path(), vec![removal]).await;
    assert_eq!(loaded.records, [record(1, 1, b"one"), slot(2), slot(256)]);
}

#[tokio::test]
async fn leaving_forgets_the_cluster_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let joined = Batch {
        records: vec![record(1, 1, b"one")],
        identity: Some(b"me".to_vec()),
        cluster: Some(b"cluster".to_vec()),
        leases: Some(b"leases".to_vec()),
        peers: Some(Vec::new()),
        settings: BTreeMap::from([("driver".to_owned(), "docker".to_owned())]),
        ..Batch::default()
    };
    let left = Batch { forget_cluster: true, ..storing(vec![record(2, 1, b"two")]) };
    let loaded = reopened(dir.path(), vec![joined, left]).await;
    assert_eq!(loaded.records, [record(2, 1, b"two")]);
    assert_eq!((loaded.identity, loaded.cluster, loaded.leases), (Some(b"me".to_vec()), None, None));
    assert_eq!((loaded.settings.len(), loaded.incarnation), (1, 2));
}

#[tokio::test]
async fn commits_are_timed_and_failures_counted() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, _) = open(dir.path()).unwrap();
    let mut registry = prometheus_client::registry::Registry::default();
    disk.metrics().register(&mut registry);
    for seq in 1..=3 {
        disk.write(storing(vec![record(1, seq, b"one")])).await.unwrap();
    }
    let unfit = storing(vec![record(1, 4, &vec![0; 3 * BODY_BYTES_MAX])]);
    disk.write(unfit).await.unwrap_err();
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    for line in ["shoal_disk_commit_seconds_count 3", "shoal_disk_commit_errors_total 1"] {
        assert!(text.contains(line), "{line}: {text}");
    }
    disk.close().await;
}

#[tokio::test]
async fn what_cannot_be_stored_is_refused_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, _) = open(dir.path()).unwrap();
    let unfit = storing(vec![record(1, 1, &vec![0; 3 * BODY_BYTES_MAX])]);
    let [first, refused, last] = [storing(vec![record(2, 1, b"two")]), unfit, storing(vec![record(3, 1, b"three")])]
        .map(|batch| disk.write(batch));
    let (first, refused, last) = tokio::join!(first, refused, last);
    assert!(matches!(refused, Err(DiskError::Unfit { .. })), "{refused:?}");
    first.unwrap();
    last.unwrap();
    disk.close().await;
    assert!(matches!(disk.write(Batch::default()).await, Err(DiskError::Closed)));
    assert_eq!(open(dir.path()).unwrap().1.records.len(), 2);
}

#[tokio::test]
async fn a_second_process_is_told_that_the_directory_is_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, _) = open(dir.path()).unwrap();
    let error = open(dir.path()).unwrap_err();
    assert!(matches!(error, DiskError::Locked { .. }));
    assert!(error.to_string().contains("in use by another process"));
    disk.close().await;
    open(dir.path()).unwrap();
}

#[tokio::test]
async fn permissions_that_are_too_wide_are_narrowed() {
    let dir = tempfile::tempdir().unwrap();
    reopened(dir.path(), Vec::new()).await;
    let path = dir.path().join(STORE_FILE);
    std::fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
    reopened(dir.path(), Vec::new()).await;
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn places_that_hold_no_store_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let error = open(&file).unwrap_err();
    assert!(matches!(&error, DiskError::Io { path, .. } if *path == file), "{error:?}");
    let store = dir.path().join(STORE_FILE);
    std::fs::create_dir(&store).unwrap();
    let error = open(dir.path()).unwrap_err();
    assert!(matches!(&error, DiskError::Io { path, .. } if *path == store), "{error:?}");
}

#[tokio::test]
async fn half_a_creation_is_begun_anew() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(NEW_FILE), "half").unwrap();
    assert_eq!(reopened(dir.path(), Vec::new()).await.incarnation, 2);
}

/// Opens a store that must be refused, and checks that this leaves it as it is and takes no longer than a start may.
fn refused(dir: &Path) -> DiskError {
    let path = dir.join(STORE_FILE);
    let before = std::fs::read(&path).unwrap();
    let began = Instant::now();
    let error = open(dir).unwrap_err();
    assert!(began.elapsed() < Duration::from_secs(5));
    assert!(std::fs::read(&path).unwrap() == before, "a refused store was altered");
    assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    error
}

async fn filled(dir: &Path) -> Vec<Record> {
    let records: Vec<Record> = (0..50).map(|service| record(service, 1, &[service as u8; 3000])).collect();
    assert_eq!(reopened(dir, vec![storing(records.clone())]).await.records, records);
    records
}

#[tokio::test]
async fn a_damaged_store_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path()).await;
    let path = dir.path().join(STORE_FILE);
    let good = std::fs::read(&path).unwrap();
    let cases: [(&str, Vec<u8>); 5] = [
        ("empty", Vec::new()),
        ("text", b"this is no store".repeat(1000)),
        ("zeros", vec![0; good.len()]),
        ("cut short", good[..good.len() / 2].to_vec()),
        (
            "damaged from the first page on",
            good.iter().enumerate().map(|(at, byte)| if at < 4096 { *byte } else { !byte }).collect(),
        ),
    ];
    for (name, bytes) in cases {
        std::fs::write(&path, bytes).unwrap();
        let error = refused(dir.path());
        assert!(matches!(error, DiskError::Corrupt { .. }), "{name}: {error:?}");
        assert!(error.to_string().contains("away and join the cluster again"), "{name}");
    }
    std::fs::write(&path, good).unwrap();
    assert_eq!(open(dir.path()).unwrap().1.records.len(), 50);
}

/// Damages single bytes all over the store in `dir`: each time it is either refused untouched or holds one of `allowed`.
async fn damage_everywhere(dir: &Path, good: &[u8], allowed: &[&[Record]]) {
    let path = dir.join(STORE_FILE);
    let header = (0..400).step_by(7);
    let pages = (400..good.len()).step_by(good.len() / 150 + 1);
    let mut refusals = 0;
    for at in header.chain(pages) {
        let mut bad = good.to_vec();
        bad[at] ^= 0x55;
        std::fs::write(&path, &bad).unwrap();
        match open(dir) {
            Ok((disk, loaded)) => {
                assert!(allowed.contains(&&*loaded.records), "byte {at}: {} records", loaded.records.len());
                disk.close().await;
            }
            Err(DiskError::Corrupt { .. }) => {
                refusals += 1;
                assert!(std::fs::read(&path).unwrap() == bad, "byte {at}: a refused store was altered");
            }
            Err(error) => panic!("byte {at}: {error}"),
        }
    }
    assert!(refusals > 20, "{refusals} refusals");
}

#[tokio::test]
async fn no_damaged_byte_goes_unnoticed() {
    let dir = tempfile::tempdir().unwrap();
    let records = filled(dir.path()).await;
    let good = std::fs::read(dir.path().join(STORE_FILE)).unwrap();
    damage_everywhere(dir.path(), &good, &[&records]).await;
}

/// The same where the process was killed. The very last write may then be missing: it looks as if it had been cut off
/// before it was acknowledged. Nothing before it ever is.
#[tokio::test]
async fn no_damaged_byte_goes_unnoticed_after_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let mut records = filled(dir.path()).await;
    let (disk, _) = open(dir.path()).unwrap();
    for service in 1000..1003 {
        records.push(record(service, 1, b"late"));
        disk.write(storing(records[records.len() - 1..].to_vec())).await.unwrap();
    }
    let crashed = std::fs::read(dir.path().join(STORE_FILE)).unwrap();
    disk.close().await;
    damage_everywhere(dir.path(), &crashed, &[&records, &records[..records.len() - 1]]).await;
}

#[tokio::test]
async fn a_row_that_is_no_record_is_damage() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path()).await;
    let (database, ()) = open_store(&dir.path().join(STORE_FILE), false, |_| Ok(())).unwrap();
    layout::set_row(&database, &record(1, 1, b"").key, b"\x01garbage");
    drop(database);
    assert!(matches!(refused(dir.path()), DiskError::Corrupt { .. }));
}

#[tokio::test]
async fn a_newer_layout_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path()).await;
    let (database, ()) = open_store(&dir.path().join(STORE_FILE), false, |_| Ok(())).unwrap();
    layout::set_version(&database, layout::VERSION + 1);
    drop(database);
    assert!(matches!(refused(dir.path()), DiskError::Newer { version: 2, .. }));
}

/// Writes until it is killed; tells on its standard output what was acknowledged.
#[tokio::test]
#[ignore = "is the child process of the next test"]
async fn child_that_writes_until_killed() {
    let dir = PathBuf::from(std::env::var_os("SHOAL_TEST_DIR").unwrap());
    let (disk, loaded) = open(&dir).unwrap();
    for seq in loaded.records.first().map_or(1, |record| record.stamp.seq + 1).. {
        disk.write(storing(vec![record(1, seq, &[7; 20_000])])).await.unwrap();
        println!("acknowledged {seq}");
    }
}

#[tokio::test]
async fn a_killed_process_loses_nothing_it_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged = 0;
    for round in 1..=5u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "disk::tests::child_that_writes_until_killed", "--ignored", "--nocapture"])
            .env("SHOAL_TEST_DIR", dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let mut numbers = lines.filter_map(|line| line.split_once("acknowledged ")?.1.parse::<u64>().ok());
        acknowledged = numbers.by_ref().nth(10 * round as usize).expect("the child writes until it is killed");
        child.kill().unwrap();
        child.wait().unwrap();
        acknowledged = numbers.last().unwrap_or(acknowledged);
        let (disk, loaded) = open(dir.path()).unwrap();
        assert_eq!(loaded.incarnation, 2 * round);
        let stored = loaded.records[0].stamp.seq;
        assert!(stored >= acknowledged, "{acknowledged} was acknowledged, {stored} is stored");
        assert_eq!(loaded.records, [record(1, stored, &[7; 20_000])]);
        disk.close().await;
    }
    assert!(acknowledged > 100);
}

/// Runs `test` in a mount namespace of its own with a tmpfs of `bytes` on `dir`; both end with the threads in it.
fn on_a_small_disk(dir: &Path, bytes: u64, test: impl FnOnce() + Send) {
    use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
    use rustix::thread::{UnshareFlags, unshare_unsafe};
    std::thread::scope(|scope| {
        let test = scope.spawn(|| {
            // SAFETY: neither file descriptors nor memory are unshared.
            unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.expect("this test needs root");
            mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
            let options = std::ffi::CString::new(format!("size={bytes}")).unwrap();
            mount("tmpfs", dir, "tmpfs", MountFlags::empty(), options.as_c_str()).unwrap();
            test();
        });
        test.join().unwrap();
    });
}

#[test]
fn a_full_disk_is_told_and_works_again_when_it_has_space() {
    let dir = tempfile::tempdir().unwrap();
    on_a_small_disk(dir.path(), 16 << 20, || {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(fill_and_recover(dir.path()));
    });
}

async fn fill_and_recover(dir: &Path) {
    let (disk, _) = open(dir).unwrap();
    let mut acknowledged = Vec::new();
    for service in 0..3 {
        acknowledged.push(record(service, 1, &[1; 1000]));
        disk.write(storing(vec![acknowledged[service as usize].clone()])).await.unwrap();
    }
    let ballast = dir.join("ballast");
    for round in 0..3 {
        fill(&ballast);
        let mut refusals = 0;
        for attempt in 0..40 {
            let batch = storing(vec![record(100 + attempt, round, &[round as u8; 300_000])]);
            match disk.write(batch.clone()).await {
                Ok(()) => acknowledged.extend(batch.records), // free pages within the file
                Err(DiskError::Full { path }) => {
                    assert_eq!(path, dir.join(STORE_FILE));
                    refusals += 1;
                }
                Err(error) => panic!("{error:?}"),
            }
        }
        assert!(refusals > 0, "the disk was never full");
        std::fs::remove_file(&ballast).unwrap();
        let fine = record(10 + u128::from(round), 1, &[2; 100_000]);
        disk.write(storing(vec![fine.clone()])).await.unwrap();
        acknowledged.push(fine);
    }
    disk.close().await;
    let (disk, loaded) = open(dir).unwrap();
    for record in acknowledged {
        let stored = loaded.records.iter().find(|stored| stored.key == record.key);
        assert!(stored.is_some_and(|stored| stored.stamp >= record.stamp), "{:?}", record.key);
    }
    disk.close().await;
}

#[test]
fn on_a_disk_full_of_records_leases_can_still_be_promised() {
    let dir = tempfile::tempdir().unwrap();
    on_a_small_disk(dir.path(), 16 << 20, || {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (disk, _) = open(dir.path()).unwrap();
            assert!(disk.refusal().is_none());
            let ballast = File::create(dir.path().join("ballast")).unwrap();
            let free = |dir: &Path| rustix::fs::statvfs(dir).map(|space| space.f_bfree * space.f_frsize).unwrap();
            let room = free(dir.path()) - RESERVE_BYTES / 2;
            std::os::unix::fs::FileExt::write_all_at(&ballast, &vec![0; room as usize], 0).unwrap();
            let leases = |epoch: u8| Batch { leases: Some(vec![epoch; 4000]), ..Batch::default() };
            let records = storing(vec![record(1, 1, b"one")]);
            for epoch in 0..100 {
                // Together in the queue, perhaps in one transaction: what becomes of one is not what becomes of the other.
                let (stored, refused) = tokio::join!(disk.write(leases(epoch)), disk.write(records.clone()));
                stored.unwrap();
                assert!(matches!(refused, Err(DiskError::Full { .. })), "{refused:?}");
            }
            assert!(matches!(disk.refusal(), Some(DiskError::Full { .. })));
            ballast.set_len(0).unwrap();
            assert!(disk.refusal().is_none());
            disk.write(records).await.unwrap();
            disk.close().await;
            let (disk, loaded) = open(dir.path()).unwrap();
            assert_eq!((loaded.leases, loaded.records.len()), (Some(vec![99; 4000]), 1));
            disk.close().await;
        });
    });
}

/// Writes zeros until nothing more fits.
fn fill(path: &Path) {
    use std::io::Write;
    let mut file = File::create(path).unwrap();
    for size in [1 << 20, 4096, 1] {
        while file.write(&vec![0; size]).is_ok_and(|written| written > 0) {}
    }
}

/// Wherever on the first start space ends, the next start with more space works.
#[test]
fn a_disk_full_on_the_first_start_leaves_no_half_store() {
    let mut refusals = 0;
    for kilobytes in (4..80).step_by(4) {
        let dir = tempfile::tempdir().unwrap();
        on_a_small_disk(dir.path(), kilobytes << 10, || {
            match open(dir.path()) {
                Ok(_) => {}
                Err(DiskError::Full { .. }) => refusals += 1,
                Err(error) => panic!("{kilobytes} KiB: {error:?}"),
            }
            let flags = rustix::mount::MountFlags::empty();
            rustix::mount::mount_remount(dir.path(), flags, c"size=16m").unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let opened_within = Instant::now() + Duration::from_secs(5);
            let (disk, _) = loop {
                match open(dir.path()) {
                    // The thread of a store that could be opened needs a moment to let go of it.
                    Err(DiskError::Locked { .. }) if Instant::now() < opened_within => std::thread::yield_now(),
                    opened => break opened.unwrap(),
                }
            };
            runtime.block_on(disk.write(storing(vec![record(1, 1, b"one")]))).unwrap();
            runtime.block_on(disk.close());
        });
    }
    assert!(refusals > 0, "there was always enough space");
}
