//! Secrets and configs: who can read them, and that they outlive daemons and nodes.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::SystemTime;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use shoal_control::core::Withheld;
use shoal_node::disk;
use shoal_node::identity::{Membership, NodeKey};
use shoal_node::swarm::{self, Hidden, SecretError, SwarmConfig, SwarmEvent};
use shoal_protocol::{ObjectId, TaskId, WallTime};
use shoal_tests::http;
use shoal_tests::lab::{IMAGE, Lab, Node, PORT};
use shoal_tests::shoal::text;
use shoal_tests::wait::wait_until;

use crate::watch::{MARKER, check_wire, listen};
use crate::{PUBLISHED, START_WAIT, WAIT, check, formed, wait_well};

/// How often the marker is in the secret: two frames, or two pages of a file, may share one.
const REPEATS: usize = 200;

/// Nodes 1 to 3 are managers, 4 and 5 workers. The service runs on the workers.
#[test]
fn secrets_reach_the_tasks_that_use_them_and_nobody_else() -> Result<()> {
    let cluster = formed(5)?;
    check(&cluster, secrets(&cluster))
}

fn secrets(lab: &Lab) -> Result<()> {
    let capture = listen(lab)?;
    let secret = create(lab)?;
    let ports = format!("{PUBLISHED}:80");
    let target = "source=sec1,target=key,uid=33,gid=34,mode=0400";
    let args = ["service", "create", "--name", "http", "--replicas", "2", "--constraint", "node.role==worker"];
    let files = ["--secret", target, "--config", "source=con1,target=/etc/app.conf", "-p", &ports];
    let templates = ["--config", "source=con2,target=/etc/filled", "--hostname", "{{.Node.Hostname}}-{{.Task.Slot}}"];
    let templates = [&templates[..], &["--env", "WHO={{.Task.Name}} {{.Node.Platform.OS}}", IMAGE]].concat();
    lab.node(2).shoal().ok(&[&args[..], &files[..], &templates[..]].concat())?;
    wait_well(lab, 2, &[])?;
    check_files(lab)?;
    in_use(lab)?;
    check_wire(lab, capture, &[1, 2, 3, 4, 5])?;
    for node in lab.nodes() {
        nowhere_on_disk(node)?;
    }

    // A restarted daemon adopts its tasks, which keep their files.
    let before: BTreeMap<_, _> = lab.nodes().map(|node| (node.index, node.tasks())).collect();
    for index in [4, 5] {
        lab.node(index).kill_daemon()?;
        lab.node(index).start_and_wait(START_WAIT)?;
    }
    wait_until("all nodes are ready", WAIT, || lab.all_ready())?;
    wait_well(lab, 2, &[])?;
    ensure!(lab.nodes().map(|node| (node.index, node.tasks())).collect::<BTreeMap<_, _>>() == before, "tasks changed");
    check_files(lab)?;

    // The node that the secret was given to is lost; new tasks get it from others.
    lab.node(1).crash()?;
    lab.node(3).shoal().ok(&["service", "update", "--force", "http"])?;
    wait_well(lab, 2, &[1])?;
    for index in [4, 5] {
        let old = &before[&index];
        ensure!(lab.node(index).tasks().keys().all(|task| !old.contains_key(task)), "node {index} has old tasks");
    }
    check_files(lab)?;
    a_thief(lab, secret)
}

/// Creates the secret and the config on one manager. Returns the secret's identifier.
fn create(lab: &Lab) -> Result<ObjectId> {
    let shoal = lab.node(1).shoal();
    let directory = tempfile::tempdir()?;
    let file = |name: &str| directory.path().join(name).to_string_lossy().into_owned();
    fs::write(file("s"), format!("{MARKER}\n").repeat(REPEATS))?;
    fs::write(file("c"), "conf=1\n")?;
    fs::write(
        file("t"),
        "{{.Service.Name}} {{env \"SHOAL_TASK_SLOT\"}} {{config \"/etc/app.conf\"}}{{secret \"key\"}}",
    )?;
    fs::write(file("bad"), "{{")?;
    let id = shoal.ok(&["secret", "create", "--label", "a=b", "sec1", &file("s")])?;
    shoal.ok(&["config", "create", "con1", &file("c")])?;
    let golang = ["config", "create", "--template-driver", "golang"];
    shoal.ok(&[&golang[..], &["con2", &file("t")]].concat())?;
    let bad = shoal.run(&[&golang[..], &["con3", &file("bad")]].concat())?;
    ensure!(bad.code == 1 && bad.stderr.contains("template: expansion:1: unclosed action"), "{bad:?}");
    let again = shoal.run(&["secret", "create", "sec1", &file("s")])?;
    ensure!(again.code == 1 && again.stderr.contains("secret sec1 already exists"), "{again:?}");
    for node in lab.nodes() {
        let seen = || Ok(node.shoal().run(&["secret", "inspect", "sec1"])?.code == 0);
        wait_until(&format!("node {} knows the secret", node.index), WAIT, seen)?;
        let shown = node.shoal().ok(&["secret", "inspect", "sec1"])?;
        ensure!(!shown.contains("Data") && !shown.contains(MARKER), "the secret came back: {shown}");
        let shown: Value = serde_json::from_str(&node.shoal().ok(&["config", "inspect", "con1"])?)?;
        ensure!(shown[0]["Spec"]["Data"] == "Y29uZj0xCg==", "{shown}");
    }
    Ok(id.trim().parse()?)
}

/// Looks at what became of the templates of a task's spec and config.
fn check_templates(node: &Node, pid: i32) -> Result<()> {
    let environment = fs::read_to_string(format!("/proc/{pid}/environ"))?;
    let variable = |name: &str| {
        let mut values = environment.split('\0').filter_map(|variable| variable.strip_prefix(name)?.strip_prefix('='));
        values.next().with_context(|| format!("no {name} in {environment}"))
    };
    let (slot, task) = (variable("SHOAL_TASK_SLOT")?, variable("SHOAL_TASK_ID")?);
    ensure!(variable("WHO")? == format!("http.{slot}.{task} linux"), "{environment}");
    let hostname = fs::read_to_string(format!("/proc/{pid}/root/etc/hostname"))?;
    ensure!(
        hostname.trim() == format!("{}-{slot}", variable("SHOAL_NODE_HOSTNAME")?),
        "{hostname} on node {}",
        node.index
    );
    let filled = fs::read_to_string(format!("/proc/{pid}/root/etc/filled"))?;
    ensure!(filled == format!("http {slot} conf=1\n{}", format!("{MARKER}\n").repeat(REPEATS)), "{filled}");
    Ok(())
}

/// Looks at the files as the tasks see them.
fn check_files(lab: &Lab) -> Result<()> {
    let mut count = 0;
    for node in [lab.node(4), lab.node(5)] {
        for pids in node.tasks().into_values() {
            let pid = pids.first().context("a task without a process")?;
            let path = |name: &str| format!("/proc/{pid}/root{name}");
            let secret = path("/run/secrets/key");
            ensure!(fs::read_to_string(&secret)? == format!("{MARKER}\n").repeat(REPEATS));
            let status = fs::metadata(&secret)?;
            ensure!((status.uid(), status.gid(), status.mode() & 0o7777) == (33, 34, 0o400), "{status:?}");
            ensure!(fs::read_to_string(path("/etc/app.conf"))? == "conf=1\n");
            check_templates(&node, *pid)?;
            let mounts = fs::read_to_string(format!("/proc/{pid}/mounts"))?;
            let mount = mounts.lines().find(|line| line.contains(" /run/secrets/key "));
            let mount = mount.context("the secret is not mounted")?;
            ensure!(mount.starts_with("tmpfs ") && mount.contains(" ro,"), "{mount}");
            count += 1;
        }
        let id = node.id()?;
        for memory in ["/dev/shm", "/run"] {
            let place = Path::new(memory).join(format!("shoal-{id}"));
            ensure!(!place.exists(), "{} was left", place.display());
        }
    }
    ensure!(count == 2, "{count} tasks were looked at");
    Ok(())
}

fn in_use(lab: &Lab) -> Result<()> {
    for (kind, name) in [("secret", "sec1"), ("config", "con1")] {
        let output = lab.node(3).shoal().run(&[kind, "rm", name])?;
        let want = format!("{kind} '{name}' is in use by the following service: http");
        ensure!(output.code == 1 && output.stderr.contains(&want), "{output:?}");
    }
    Ok(())
}

/// Looks through everything that a node has on disk and has logged.
pub(crate) fn nowhere_on_disk(node: Node<'_>) -> Result<()> {
    let mut left = vec![node.dir()];
    let mut files = 0;
    while let Some(path) = left.pop() {
        if path.is_dir() {
            // What is mounted there is seen by the container alone.
            left.extend(
                fs::read_dir(&path)?.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>()?,
            );
        } else if path.is_file() && !path.is_symlink() {
            files += 1;
            let bytes = fs::read(&path)?;
            let found = bytes.windows(MARKER.len()).any(|window| window == MARKER.as_bytes());
            ensure!(!found, "the secret is in {}", path.display());
        }
    }
    ensure!(files > 2, "node {} has only {files} files", node.index);
    Ok(())
}

/// A worker that has its place in the cluster, and no task that uses the secret, asks for it all the same.
fn a_thief(lab: &Lab, secret: ObjectId) -> Result<()> {
    let (thief, manager) = (lab.node(5), lab.node(2));
    let task_of = |node: Node<'_>| -> Result<TaskId> {
        let tasks =
            manager.shoal().json(&["service", "ps", "--no-trunc", "--filter", "desired-state=running", "http"])?;
        let host = format!("n{}", node.index);
        let task = tasks.iter().find(|task| text(task, "Node") == host).context("no task there")?;
        Ok(text(task, "ID").parse()?)
    };
    let (own, others) = (task_of(thief)?, task_of(lab.node(4))?);
    thief.stop()?;
    let (store, loaded) = disk::open(&thief.data_dir())?;
    let key = NodeKey::from_bytes(loaded.identity.as_deref().context("no key")?)?;
    let membership = Membership::from_bytes(loaded.cluster.as_deref().context("no membership")?)?;
    let manager_id = manager.id()?.parse()?;
    let to = SocketAddr::new(manager.address(), PORT);
    let listen = SocketAddr::new(thief.address(), 0);
    http::in_namespace(thief.namespace().as_deref(), || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            store.close().await;
            let (sender, mut events) = tokio::sync::mpsc::channel(64);
            let config = SwarmConfig { key, listen, advertise: listen, membership: Some(membership), clock: wall };
            let swarm = swarm::spawn(config, sender).await?;
            swarm.set_peers(BTreeMap::from([(manager_id, vec![to])]));
            let up = async {
                loop {
                    match events.recv().await {
                        Some(SwarmEvent::Up { node, .. }) if node == manager_id => return Ok(()),
                        Some(_) => {}
                        None => bail!("the swarm ended"),
                    }
                }
            };
            tokio::time::timeout(WAIT, up).await.context("no link")??;
            tokio::spawn(async move { while events.recv().await.is_some() {} });
            for (name, task) in [("another node's task", others), ("no task at all", TaskId(7))] {
                let got = swarm.secret(manager_id, task, Hidden::Secret(secret)).await;
                ensure!(matches!(got, Err(SecretError::Withheld(_))), "{name}: {:?}", got.map(|bytes| bytes.len()));
            }
            let other = swarm.secret(manager_id, own, Hidden::Secret(ObjectId(7))).await;
            ensure!(matches!(other, Err(SecretError::Withheld(Withheld::Refused(_)))), "{other:?}");
            // What shows that the others were not refused for some other reason.
            let given = swarm.secret(manager_id, own, Hidden::Secret(secret)).await?;
            ensure!(given.starts_with(MARKER.as_bytes()), "its own task's secret is given");
            swarm.shutdown().await;
            Ok(())
        })
    })
}

pub(crate) fn wall() -> WallTime {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    WallTime(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}
