use std::sync::atomic::{AtomicU32, Ordering};

use shoal_control::task::NodeIdentity;
use shoal_control::task::admission::Capacity;
use shoal_protocol::spec::TaskTemplate;
use shoal_protocol::{ClusterId, Kind, ServiceId};

use super::*;
use crate::driver::conformance::plan_of;

fn node() -> NodeIdentity {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = u128::from(std::process::id()) << 32 | u128::from(COUNT.fetch_add(1, Ordering::Relaxed));
    NodeIdentity {
        id: NodeId(number | 1 << 100),
        hostname: "n1".to_owned(),
        os: "linux".to_owned(),
        architecture: "x86_64".to_owned(),
        cluster: ClusterId(1),
        capacity: Capacity::default(),
    }
}

fn plan(node: &NodeIdentity, files: &[(u128, u32)]) -> ContainerPlan {
    let template = TaskTemplate::default();
    let mut plan = plan_of((ServiceId(1), TaskId(1)), &template, node);
    let uid = rustix::process::geteuid().as_raw();
    let gid = rustix::process::getegid().as_raw();
    let file = |(id, mode): &(u128, u32)| PlannedFile {
        kind: Kind::Secret,
        id: ObjectId(*id),
        name: format!("sec{id}"),
        target: format!("sec{id}"),
        path: format!("/run/secrets/sec{id}"),
        uid,
        gid,
        mode: *mode,
    };
    plan.files = files.iter().map(file).collect();
    plan
}

fn known(ids: &[u128]) -> Arc<KnownFiles> {
    Arc::new(KnownFiles(ids.iter().map(|id| (ObjectId(*id), format!("marker-{id}").into_bytes())).collect()))
}

#[tokio::test]
async fn files_are_in_memory_and_go_without_a_trace() {
    let node = node();
    let files = TaskFiles::new(node.id, known(&[1, 2]));
    let plan = plan(&node, &[(1, 0o400), (2, 0o444)]);
    for _ in 0..2 {
        let provided = files.provide(&plan).await.unwrap();
        assert_eq!(provided.mounts.len(), 2, "preparing again replaces what is there");
        for (mount, (text, mode)) in provided.mounts.iter().zip([("marker-1", 0o400), ("marker-2", 0o444)]) {
            assert_eq!((mount.kind, mount.read_only), (MountKind::Bind, true));
            assert_eq!(fs::read_to_string(&mount.source).unwrap(), text);
            assert_eq!(fs::metadata(&mount.source).unwrap().mode() & 0o7777, mode);
            assert_eq!(statfs(Path::new(&mount.source)).unwrap().f_type as u64, TMPFS_MAGIC);
        }
        let directory = Path::new(&provided.mounts[0].source).ancestors().nth(2).unwrap().to_owned();
        assert_eq!(fs::metadata(&directory).unwrap().mode() & 0o777, 0o700, "nobody else looks in");
    }
    files.remove(plan.task);
    for memory in MEMORY {
        assert!(!Path::new(memory).join(format!("shoal-{}", node.id)).exists());
    }
}

#[tokio::test]
async fn templates_are_filled_in_from_the_tasks_other_files() {
    let node = node();
    let contents = [
        (1, "hidden"),
        (2, r#"{{secret "sec1"}}@{{.Node.Hostname}} {{env "SHOAL_TASK_SLOT"}}"#),
        (3, "{{secret \"x\"}}"),
    ];
    let contents: BTreeMap<_, _> = contents.map(|(id, text)| (ObjectId(id), text.as_bytes().to_vec())).into();
    let files = TaskFiles::new(node.id, Arc::new(KnownFiles(contents)));
    let provided = files.provide(&plan(&node, &[(2, 0o400), (1, 0o400)])).await.unwrap();
    assert_eq!(fs::read_to_string(&provided.mounts[0].source).unwrap(), "hidden@n1 1");
    let error = files.provide(&plan(&node, &[(3, 0o400)])).await.unwrap_err();
    assert!(matches!(error, FileError::Withheld(Withheld::Refused(_))), "{error}");
    let want = "secret sec3: failed to expand templated data: template: expansion:1:2: executing \"expansion\" at <secret>: \
                error calling secret: secret target x not found";
    assert_eq!(error.to_string(), want);
}

#[tokio::test]
async fn nothing_is_written_unless_all_is_there() {
    let node = node();
    let files = TaskFiles::new(node.id, known(&[1]));
    let error = files.provide(&plan(&node, &[(1, 0o400), (2, 0o400)])).await.unwrap_err();
    assert_eq!(error.to_string(), "secret sec2: it is not known");
    assert!(MEMORY.iter().all(|memory| !Path::new(memory).join(format!("shoal-{}", node.id)).exists()));
    let none = files.provide(&plan(&node, &[])).await.unwrap();
    assert!(none.mounts.is_empty());
}

#[tokio::test]
async fn a_daemon_that_begins_removes_what_an_earlier_one_left() {
    let node = node();
    let first = TaskFiles::new(node.id, known(&[1]));
    let source = first.provide(&plan(&node, &[(1, 0o400)])).await.unwrap().mounts[0].source.clone();
    let second = TaskFiles::new(node.id, known(&[1]));
    assert!(!Path::new(&source).exists());
    second.provide(&plan(&node, &[(1, 0o400)])).await.unwrap();
    drop(second);
    assert!(!Path::new(&source).exists(), "and what it made itself when it ends");
}

#[test]
fn a_directory_of_somebody_else_is_not_used() {
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().join("a");
    make_private(&place).unwrap();
    make_private(&place).unwrap();
    fs::set_permissions(&place, fs::Permissions::from_mode(0o755)).unwrap();
    assert!(make_private(&place).is_err(), "others can look in");
    let link = directory.path().join("b");
    std::os::unix::fs::symlink(directory.path(), &link).unwrap();
    assert!(make_private(&link).is_err(), "it leads elsewhere");
}
