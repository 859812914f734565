//! Whoever was a member and is none any more: one whose credential has expired, and one that was removed.

use std::fs;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use shoal_node::disk::{self, Batch, Loaded};
use shoal_node::identity::{ClusterSecrets, Membership, NodeKey, Root};
use shoal_protocol::settings::CREDENTIAL_DEFAULT;
use shoal_protocol::value::Value;
use shoal_protocol::{Key, WallTime};
use shoal_tests::lab::{Driver, Lab, Node, process, repository};
use shoal_tests::wait::wait_until;

use crate::strangers::{seed, two_managers};
use crate::watch::{Before, check_wire, listen};
use crate::{START_WAIT, WAIT, check, cluster, wait_well};

/// Longer ago than any credential is valid.
const LONG_AGO: Duration = Duration::from_secs(100 * 86_400);

/// Nodes 1 and 2 are managers, 3 has an expired credential, 4 was removed.
#[test]
fn former_members_are_refused_and_told() -> Result<()> {
    let cluster = cluster(4, Driver::Embedded, |config| config.bare = true)?;
    check(&cluster, former_members(&cluster))
}

fn former_members(lab: &Lab) -> Result<()> {
    let (expired, removed) = (lab.node(3), lab.node(4));
    let capture = listen(lab)?;
    lab.nodes().try_for_each(|node| node.start_and_wait(START_WAIT).map(|_| ()))?;
    let token = two_managers(lab)?;
    for node in [expired, removed] {
        node.shoal().ok(&["join", "--token", token.trim(), &seed(lab)])?;
    }
    wait_until("all nodes are ready", WAIT, || lab.all_ready())?;
    let archive = repository().join("target/demo/whoami.tar");
    lab.node(1).shoal().ok(&["image", "load", "-i", &archive.to_string_lossy(), "--all"])?;
    lab.node(1).shoal().ok(&["service", "scale", "http=8"])?;
    wait_well(lab, 8, &[])?;
    let id = removed.id()?;
    ensure!(!removed.tasks().is_empty(), "nothing runs on the node that is to be removed");

    for node in [expired, removed, lab.node(2)] {
        node.kill_daemon()?;
    }
    let_expire(lab.node(2), expired)?;
    lab.node(2).start_and_wait(START_WAIT)?;
    lab.node(1).shoal().ok(&["node", "rm", "--force", &id])?;
    wait_until("both managers are ready", WAIT, || lab.all_ready())?;
    wait_until("the others run everything", WAIT, || Ok(lab.node(1).tasks().len() + lab.node(2).tasks().len() == 8))?;
    let before = [1, 2].map(|index| Before::of(lab.node(index)));
    let before = before.into_iter().collect::<Result<Vec<_>>>()?;

    removed.start()?;
    expired.start()?;
    says(removed, &["this node was removed from the cluster"])?;
    says(expired, &["the credential expired at", "join again with a token"])?;
    says(lab.node(1), &["refused a node", "expired"])?;
    wait_until("the removed node has stopped its tasks", WAIT, || Ok(process::of_tasks(&id).is_empty()))?;
    let output = removed.shoal().run(&["node", "ls"])?;
    ensure!(output.code == 1 && output.stderr.contains("join"), "the removed node answers: {output:?}");
    for before in before {
        before.check(lab)?;
    }
    check_wire(lab, capture, &[1, 2])?;

    // The way out for both: out of the old membership, in by a token.
    expired.shoal().ok(&["leave", "--force"])?;
    for node in [expired, removed] {
        node.shoal().ok(&["join", "--token", token.trim(), &seed(lab)])?;
    }
    wait_until("all nodes are ready", WAIT, || lab.all_ready()).map(|_| ())
}

/// Waits until a node's log has a line with all of some texts.
fn says(node: Node<'_>, texts: &[&str]) -> Result<()> {
    let what = format!("node {} says '{}'", node.index, texts.join("' and '"));
    wait_until(&what, WAIT, || {
        let log = fs::read_to_string(node.log_path())?;
        let line = log.lines().find(|line| texts.iter().all(|text| line.contains(text)));
        line.inspect(|line| println!("node {}: {line}", node.index));
        Ok(line.is_some())
    })?;
    Ok(())
}

/// Gives a worker a credential that a manager could have issued long ago. Neither daemon runs.
fn let_expire(manager: Node<'_>, worker: Node<'_>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let (store, loaded) = disk::open(&manager.data_dir())?;
    runtime.block_on(store.close());
    let (secrets, root) = secrets(&loaded)?;

    let (store, loaded) = disk::open(&worker.data_dir())?;
    let key = NodeKey::from_bytes(loaded.identity.as_deref().context("no key")?)?;
    let membership = Membership::from_bytes(loaded.cluster.as_deref().context("no membership")?)?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    let then = WallTime(u64::try_from((now - LONG_AGO).as_nanos())?);
    let credential = secrets.issue(&root, &key.public_key(), membership.granted, (then, CREDENTIAL_DEFAULT))?;
    let membership = Membership { credential, ..membership };
    let batch = Batch { cluster: Some(membership.to_bytes()?.to_vec()), ..Batch::default() };
    runtime.block_on(async {
        let written = store.write(batch).await;
        store.close().await;
        written
    })?;
    Ok(())
}

/// Opens what is sealed to managers.
fn secrets(loaded: &Loaded) -> Result<(ClusterSecrets, Root)> {
    let membership = Membership::from_bytes(loaded.cluster.as_deref().context("no membership")?)?;
    let record = loaded.records.iter().find(|record| record.key == Key::Cluster).context("no cluster record")?;
    let Some(Value::Cluster(cluster)) = Value::open(record)? else { bail!("the cluster record is no cluster") };
    let key = membership.manager_key.as_ref().context("not a manager")?;
    Ok((ClusterSecrets::open(&cluster.sealed, key, cluster.id)?, membership.root()?))
}
