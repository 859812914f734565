//! Managers whose keys are locked on their disks: what a thief finds there, and what brings them back.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use shoal_node::disk;
use shoal_node::identity::{AtRest, UnlockKey};
use shoal_protocol::codec;
use shoal_tests::lab::{IMAGE, Lab, Node};
use shoal_tests::shoal::{Output, run_with, text};
use shoal_tests::wait::wait_until;

use crate::{PUBLISHED, START_WAIT, WAIT, check, formed, wait_well};

const LOCKED: &str = "Swarm is encrypted and needs to be unlocked before it can be used.";
const COMMAND_WAIT: Duration = Duration::from_secs(30);
/// Files of a data directory beyond this are none that hold keys.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// Nodes 1 to 3 are managers, node 4 is a worker.
#[test]
fn a_locked_managers_disk_opens_nothing_without_the_key() -> Result<()> {
    let cluster = formed(4)?;
    check(&cluster, locked(&cluster).and_then(|()| promoted(&cluster)).and_then(|()| made_locked(&cluster)))
}

fn locked(lab: &Lab) -> Result<()> {
    let ports = format!("{PUBLISHED}:80");
    lab.node(2).shoal().ok(&["service", "create", "--name", "http", "--replicas", "4", "-p", &ports, IMAGE])?;
    wait_well(lab, 4, &[])?;
    let secrets: Vec<Vec<u8>> = keys_of(lab, lab.node(1))?;
    wait_until("all nodes are ready", WAIT, || lab.all_ready())?;
    wait_well(lab, 4, &[])?;
    ensure!(
        secrets.iter().all(|secret| shows(&lab.node(1).data_dir(), secret)),
        "the keys are not where they should be"
    );

    // Docker's client turns it on, and every manager can show the key.
    let said = docker(lab.node(1), &["swarm", "update", "--autolock=true"], "")?.success()?;
    let key = lab.node(3).shoal().ok(&["swarm", "unlock-key", "-q"])?.trim().to_owned();
    ensure!(key.starts_with("SWMKEY-1-") && said.contains(&key) && said.starts_with("Swarm updated.\n"), "{said}");
    ensure!(lab.node(2).shoal().ok(&["unlock-key"])?.contains(&format!("\n\n    {key}\n\n")), "another key");
    let output = lab.node(4).shoal().run(&["unlock-key"])?;
    ensure!(output.code == 1 && output.stderr.contains("Worker nodes"), "a worker shows the key: {output:?}");
    wait_until("the keys of node 1 are not on its disk in the clear", WAIT, || {
        Ok(!secrets.iter().any(|secret| shows(&lab.node(1).data_dir(), secret)))
    })?;
    ensure!(!lab.nodes().any(|node| shows(&node.data_dir(), key.as_bytes())), "the unlock key itself is on a disk");
    let raw = codec::encode(&UnlockKey::from_text(&key)?)?;
    ensure!(!lab.nodes().any(|node| shows(&node.data_dir(), &raw[1..])), "the unlock key itself is on a disk");

    // Its daemon starts locked. Its tasks go on, and others take their place.
    let tasks = lab.node(1).tasks();
    lab.node(1).kill_daemon()?;
    stolen(lab.node(1), &key)?;
    lab.node(1).start_and_wait(START_WAIT)?;
    is_locked(lab.node(1))?;
    wait_until("node 2 sees that node 1 is down", WAIT, || Ok(state(lab, 2, "n1")? == "Down"))?;
    wait_until("its tasks run elsewhere", WAIT, || {
        let rows = lab.node(2).shoal().json(&["service", "ls"])?;
        Ok(rows.first().is_some_and(|row| text(row, "Replicas") == "4/4"))
    })?;
    ensure!(!tasks.is_empty() && lab.node(1).tasks() == tasks, "tasks of a locked node were touched");

    // Wrong keys and the right one.
    let wrong = UnlockKey::generate()?.to_text();
    for (key, words) in [("nonsense", "invalid key string"), (&*wrong, "invalid key provided")] {
        let output = unlock(lab.node(1), key)?;
        ensure!(output.code == 1 && output.stderr.contains(words), "{output:?}");
    }
    is_locked(lab.node(1))?;
    unlock(lab.node(1), &key)?.success()?;
    wait_until("all nodes are ready", WAIT, || lab.all_ready())?;
    wait_well(lab, 4, &[])?;
    let output = unlock(lab.node(1), &key)?;
    ensure!(output.code == 1 && output.stderr.contains("swarm is not locked"), "{output:?}");
    rotated(lab, &key)
}

/// Another key while node 2 is off: it comes back with the old one, and only once.
fn rotated(lab: &Lab, old: &str) -> Result<()> {
    lab.node(2).kill_daemon()?;
    wait_until("node 2 is down", WAIT, || Ok(state(lab, 3, "n2")? == "Down"))?;
    let key = docker(lab.node(3), &["swarm", "unlock-key", "--rotate", "-q"], "")?.success()?.trim().to_owned();
    ensure!(key.starts_with("SWMKEY-1-") && key != old, "{key}");
    lab.node(2).start_and_wait(START_WAIT)?;
    let output = unlock(lab.node(2), &key)?;
    ensure!(output.code == 1, "a key that it has not heard of opens it: {output:?}");
    unlock(lab.node(2), old)?.success()?;
    wait_until("all nodes are ready", WAIT, || lab.all_ready())?;
    for index in [1, 2, 3] {
        let node = lab.node(index);
        wait_until(&format!("node {index} has taken the new key"), WAIT, || {
            Ok(opens(node, &key)? && !opens(node, old)?)
        })?;
    }
    // It counts at the next start.
    lab.node(2).kill_daemon()?;
    lab.node(2).start_and_wait(START_WAIT)?;
    ensure!(unlock(lab.node(2), old)?.code == 1, "the former key opens it");
    unlock(lab.node(2), &key)?.success()?;
    wait_until("all nodes are ready", WAIT, || lab.all_ready())?;
    wait_well(lab, 4, &[])
}

/// Keys are locked on managers alone, whoever that is, and on nobody once users do not want it.
fn promoted(lab: &Lab) -> Result<()> {
    let shoal = lab.node(1).shoal();
    let [third, fourth] = [lab.node(3).id()?, lab.node(4).id()?];
    shoal.ok(&["node", "promote", &fourth])?;
    wait_until("the new manager's keys are locked", WAIT, || is_sealed(lab.node(4)))?;
    shoal.ok(&["node", "demote", &third])?;
    wait_until("the demoted one's are not", WAIT, || Ok(!is_sealed(lab.node(3))?))?;
    lab.node(3).kill_daemon()?;
    lab.node(3).start_and_wait(START_WAIT)?;
    wait_until("it is back by itself", WAIT, || lab.all_ready())?;

    // The demotion has the cluster's keys replaced meanwhile: an update made from what was read before that is refused.
    wait_until("autolock is off", WAIT, || shoal.ok(&["swarm", "update", "--autolock=false"]).map(|_| true))?;
    for index in [1, 2, 4] {
        wait_until(&format!("node {index} is not locked any more"), WAIT, || Ok(!is_sealed(lab.node(index))?))?;
    }
    let output = shoal.run(&["unlock-key"])?;
    ensure!(output.code == 1 && output.stderr.contains("no unlock key is set"), "{output:?}");
    let output = docker(lab.node(1), &["swarm", "unlock-key", "--rotate"], "")?;
    ensure!(output.code == 1 && output.stderr.contains("autolock is not turned on"), "{output:?}");
    lab.node(2).kill_daemon()?;
    lab.node(2).start_and_wait(START_WAIT)?;
    wait_until("all nodes are ready", WAIT, || lab.all_ready()).map(|_| ())
}

/// A cluster that is locked from the beginning, with what else can be said then, and how it is left without the key.
fn made_locked(lab: &Lab) -> Result<()> {
    let node = lab.node(3);
    node.shoal().ok(&["leave", "--force"])?;
    let flags = ["--autolock", "--availability", "drain", "--task-history-limit", "2", "--cert-expiry", "2h"];
    let pools = ["--default-addr-pool", "10.20.0.0/16", "--default-addr-pool-mask-length", "26"];
    let advertise = node.address().to_string();
    let init = [&["swarm", "init", "--advertise-addr", &advertise][..], &flags, &pools].concat();
    let said = docker(node, &init, "")?.success()?;
    let key = node.shoal().ok(&["unlock-key", "-q"])?.trim().to_owned();
    ensure!(said.contains(&key) && is_sealed(node)?, "{said}");
    let spec = docker(node, &["info", "--format", "{{json .Swarm.Cluster}}"], "")?.success()?;
    for part in [
        r#""TaskHistoryRetentionLimit":2"#,
        r#""NodeCertExpiry":7200000000000"#,
        r#""AutoLockManagers":true"#,
        r#""DefaultAddrPool":["10.20.0.0/16"]"#,
        r#""SubnetSize":26"#,
    ] {
        ensure!(spec.contains(part), "{part} is not in {spec}");
    }
    ensure!(text(&node.shoal().json(&["node", "ls"])?[0], "Availability") == "Drain", "the node takes tasks");
    // What was read goes back, with one thing changed.
    docker(node, &["swarm", "update", "--task-history-limit", "3"], "")?.success()?;
    let output = docker(node, &["swarm", "update", "--dispatcher-heartbeat", "6s"], "")?;
    ensure!(output.code == 1 && output.stderr.contains("--dispatcher-heartbeat"), "{output:?}");

    node.kill_daemon()?;
    node.start_and_wait(START_WAIT)?;
    is_locked(node)?;
    let output = docker(node, &["swarm", "leave"], "")?;
    ensure!(output.code == 1 && output.stderr.contains("encrypted and locked"), "{output:?}");
    docker(node, &["swarm", "leave", "--force"], "")?.success()?;
    let output = unlock(node, &key)?;
    ensure!(output.code == 1 && output.stderr.contains("not part of a swarm"), "{output:?}");

    let token = lab.node(1).shoal().ok(&["join-token", "-q", "worker"])?;
    let seed = lab.node(1).address().to_string();
    docker(node, &["swarm", "join", "--token", token.trim(), "--availability", "pause", &seed], "")?.success()?;
    let rows = lab.node(1).shoal().json(&["node", "ls", "--filter", &format!("id={}", node.id()?)])?;
    ensure!(rows.len() == 1 && text(&rows[0], "Availability") == "Pause", "{rows:?}");
    Ok(())
}

/// Returns what a node keeps to itself: its private key and the managers' key. Its daemon is started again.
fn keys_of(lab: &Lab, node: Node<'_>) -> Result<Vec<Vec<u8>>> {
    node.kill_daemon()?;
    let (store, loaded) = disk::open(&node.data_dir())?;
    tokio::runtime::Builder::new_current_thread().build()?.block_on(store.close());
    node.start_and_wait(START_WAIT)?;
    let (identity, membership) = (loaded.identity.context("no key")?, loaded.cluster.context("no membership")?);
    let (key, membership) = AtRest::open(&identity, &membership, None)?;
    ensure!(lab.node(1).id()? == key.node_id().to_string(), "another node's");
    let manager_key = codec::encode(membership.manager_key.as_ref().context("not a manager")?)?;
    // The seed is the first half of the private key; before the managers' key is the codec's version.
    Ok(vec![identity[..32].to_vec(), manager_key[1..].to_vec()])
}

/// Returns whether bytes are anywhere in a directory's own files.
fn shows(directory: &Path, secret: &[u8]) -> bool {
    let Ok(device) = fs::metadata(directory).map(|metadata| metadata.dev()) else { return false };
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.into_iter().any(|entry| match fs::symlink_metadata(entry.path()) {
        // What is mounted is a container's, and looks into the whole machine.
        Ok(metadata) if metadata.is_dir() => metadata.dev() == device && shows(&entry.path(), secret),
        Ok(metadata) if metadata.is_file() && metadata.len() <= FILE_BYTES_MAX => {
            fs::read(entry.path()).is_ok_and(|bytes| bytes.windows(secret.len()).any(|window| window == secret))
        }
        Ok(_) | Err(_) => false,
    })
}

/// Returns a node's keys as its disk has them, from a copy: its daemon may run.
fn at_rest(node: Node<'_>) -> Result<(Vec<u8>, Vec<u8>)> {
    let mut last = None;
    // A copy of what is being written may be torn.
    for _ in 0..50 {
        let copy = tempfile::tempdir()?;
        fs::copy(node.data_dir().join("store.redb"), copy.path().join("store.redb"))?;
        match disk::open(copy.path()) {
            Ok((store, loaded)) => {
                tokio::runtime::Builder::new_current_thread().build()?.block_on(store.close());
                return Ok((loaded.identity.context("no key")?, loaded.cluster.context("no membership")?));
            }
            Err(error) => last = Some(error),
        }
    }
    bail!("node {} has no store that can be read: {last:?}", node.index)
}

fn is_sealed(node: Node<'_>) -> Result<bool> {
    Ok(AtRest::sealed_of(&at_rest(node)?.0).is_some())
}

fn opens(node: Node<'_>, key: &str) -> Result<bool> {
    let (identity, membership) = at_rest(node)?;
    Ok(is_sealed(node)? && AtRest::open(&identity, &membership, Some(&UnlockKey::from_text(key)?)).is_ok())
}

/// Starts a daemon elsewhere on what is stolen of a node: it is as locked there.
fn stolen(node: Node<'_>, key: &str) -> Result<()> {
    let (identity, membership) = at_rest(node)?;
    let other = UnlockKey::generate()?;
    ensure!(AtRest::open(&identity, &membership, None).is_err(), "it opens without a key");
    ensure!(AtRest::open(&identity, &membership, Some(&other)).is_err(), "it opens with another key");
    ensure!(opens(node, key)?, "it does not open with its key");

    let elsewhere = tempfile::tempdir()?;
    fs::copy(node.data_dir().join("store.redb"), elsewhere.path().join("store.redb"))?;
    let socket = elsewhere.path().join("shoal.sock");
    let mut command = Command::new(shoal_tests::lab::bin_dir()?.join("shoald"));
    command.args(["--config", "/dev/null", "--driver", "fake", "--listen-addr", "127.0.0.1:0"]);
    command.arg("--data-dir").arg(elsewhere.path()).arg("--host").arg(format!("unix://{}", socket.display()));
    let mut daemon = command.stderr(std::process::Stdio::null()).spawn()?;
    let answer = wait_until("the thief's daemon answers", START_WAIT, || Ok(socket.exists())).and_then(|_| {
        let info = run(docker_at(&socket, &["info", "--format", "{{.Swarm.LocalNodeState}}"]), "")?.success()?;
        let nodes = run(docker_at(&socket, &["node", "ls"]), "")?;
        ensure!(info.trim() == "locked" && nodes.stderr.contains(LOCKED), "{info} {nodes:?}");
        let wrong = docker_at(&socket, &["swarm", "unlock"]);
        ensure!(run(wrong, &format!("{}\n", &*other.to_text()))?.code == 1, "another key opens it");
        Ok(())
    });
    daemon.kill()?;
    daemon.wait()?;
    answer
}

fn is_locked(node: Node<'_>) -> Result<()> {
    let state = docker(node, &["info", "--format", "{{.Swarm.LocalNodeState}}"], "")?.success()?;
    let (docker, shoal) = (docker(node, &["node", "ls"], "")?, node.shoal().run(&["service", "ls"])?);
    ensure!(state.trim() == "locked", "{state}");
    ensure!(docker.code == 1 && docker.stderr.contains(LOCKED), "{docker:?}");
    ensure!(shoal.code == 1 && shoal.stderr.contains(LOCKED), "{shoal:?}");
    Ok(())
}

fn unlock(node: Node<'_>, key: &str) -> Result<Output> {
    let shoal = node.shoal();
    let mut command = Command::new(&shoal.binary);
    command.arg("-H").arg(format!("unix://{}", shoal.socket.display())).args(["swarm", "unlock"]);
    run(command, &format!("{key}\n"))
}

/// Returns the state of a node as another one sees it.
fn state(lab: &Lab, at: usize, hostname: &str) -> Result<String> {
    let rows = lab.node(at).shoal().json(&["node", "ls"])?;
    let row = rows.iter().find(|row| text(row, "Hostname") == hostname).context("no such node")?;
    Ok(text(row, "Status").to_owned())
}

/// Runs Docker's client at a node.
fn docker(node: Node<'_>, args: &[&str], input: &str) -> Result<Output> {
    run(docker_at(&node.socket(), args), input)
}

fn docker_at(socket: &Path, args: &[&str]) -> Command {
    let mut command = Command::new("docker");
    command.arg("-H").arg(format!("unix://{}", socket.display())).args(args);
    command
}

fn run(command: Command, input: &str) -> Result<Output> {
    run_with(command, input.to_owned(), COMMAND_WAIT)
}
