//! Keys that are replaced: because a user wants it, and because a manager is none any more.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;

use anyhow::{Context, Result, bail, ensure};
use shoal_node::disk::{self, Loaded};
use shoal_node::identity::{ClusterSecrets, ManagerKey, Membership, NodeKey, Root, open_secret};
use shoal_node::swarm::{self, SwarmConfig, SwarmEvent};
use shoal_protocol::settings::CREDENTIAL_DEFAULT;
use shoal_protocol::token::{Role, RoleGrant};
use shoal_protocol::value::{ClusterObject, Value};
use shoal_protocol::{Key, Kind};
use shoal_tests::http;
use shoal_tests::lab::{IMAGE, Lab, Node, PORT};
use shoal_tests::load::Load;
use shoal_tests::shoal::text;
use shoal_tests::wait::wait_until;

use crate::secrets::wall;
use crate::{PUBLISHED, START_WAIT, WAIT, check, formed, wait_well};

const HIDDEN: &str = "hidden-before-the-keys-were-replaced";

/// Nodes 1 to 3 are managers. What nodes 1 and 5 know at the beginning is stolen; node 5 is off while keys are replaced, node 6
/// joins later.
#[test]
fn replaced_keys_open_nothing_and_drop_no_link() -> Result<()> {
    let cluster = formed(6)?;
    check(&cluster, replaced(&cluster))
}

fn replaced(lab: &Lab) -> Result<()> {
    let shoal = lab.node(2).shoal();
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("key");
    fs::write(&file, HIDDEN)?;
    shoal.ok(&["secret", "create", "key", &file.to_string_lossy()])?;
    let ports = format!("{PUBLISHED}:80");
    shoal.ok(&["service", "create", "--name", "http", "--replicas", "6", "--secret", "key", "-p", &ports, IMAGE])?;
    wait_well(lab, 6, &[])?;
    lab.node(6).shoal().ok(&["leave"])?;
    let old_tokens = tokens(lab.node(2))?;
    let old_root = shoal.ok(&["ca"])?;
    lab.node(5).kill_daemon()?;
    let stolen = Stolen::from(lab.node(1))?;
    ensure!(stolen.opens(&stolen.loaded)? == (true, true), "what is stolen opens nothing at the beginning");
    wait_until("all managers are ready", WAIT, || managers_ready(lab))?;

    // A user wants other keys.
    let before = disconnects(lab)?;
    let load = Load::start(lab, &[1, 2, 3, 4], PUBLISHED, 50);
    let root = lab.node(3).shoal().ok(&["ca", "--rotate"])?;
    ensure!(root != old_root && root.starts_with("-----BEGIN CERTIFICATE-----"), "{root}");
    ensure!(shoal.ok(&["swarm", "ca"])? == root, "nodes do not agree on the root");
    tls_ready(lab, 4)?;
    let requests = load.stop()?;
    let failed: Vec<_> = requests.iter().filter_map(|request| request.result.as_ref().err()).collect();
    ensure!(
        !requests.is_empty() && failed.is_empty(),
        "{} of {} requests failed: {failed:?}",
        failed.len(),
        requests.len()
    );
    ensure!(disconnects(lab)? == before, "links were dropped while keys were replaced");
    println!("{} requests while the keys were replaced, none failed, no link was dropped", requests.len());

    // Whoever was away comes back with what it has, and gets a credential of the new root.
    lab.node(5).start_and_wait(START_WAIT)?;
    tls_ready(lab, 5)?;

    // A manager that is demoted takes nothing with it.
    let first = lab.node(1).id()?;
    let before = disconnects(lab)?;
    shoal.ok(&["node", "demote", &first])?;
    let newest = wait_for_another_root(lab, &root)?;
    tls_ready(lab, 5)?;
    ensure!(disconnects(lab)? == before, "links were dropped by the demotion");
    let tokens = tokens(lab.node(2))?;
    ensure!(tokens.iter().all(|token| !old_tokens.contains(token)), "tokens are the old ones");
    for token in &old_tokens {
        let output = lab.node(6).shoal().run(&["join", "--token", token, &lab.node(2).address().to_string()])?;
        ensure!(output.code == 1 && output.stderr.contains("does not match fingerprint"), "{output:?}");
    }
    thief(lab, &stolen, &newest)?;

    // Secrets are still there for those who may have them.
    lab.node(6).shoal().ok(&["join", "--token", &tokens[0], &lab.node(2).address().to_string()])?;
    wait_until("all nodes are ready", WAIT, || lab.all_ready())?;
    let archive = shoal_tests::lab::repository().join("target/demo/whoami.tar");
    shoal.ok(&["image", "load", "-i", &archive.to_string_lossy(), "--all"])?;
    shoal.ok(&["service", "update", "--force", "http"])?;
    wait_well(lab, 6, &[])?;
    for node in lab.nodes() {
        for pid in node.tasks().values().flatten() {
            let path = format!("/proc/{pid}/root/run/secrets/key");
            ensure!(fs::read_to_string(&path)? == HIDDEN, "{path} says something else");
        }
    }
    Ok(())
}

/// What somebody knows who has read a manager's disk.
struct Stolen {
    loaded: Loaded,
    key: ManagerKey,
}

impl Stolen {
    /// Reads a manager's disk; its daemon is started again.
    fn from(manager: Node<'_>) -> Result<Self> {
        manager.kill_daemon()?;
        let loaded = read(manager)?;
        manager.start_and_wait(START_WAIT)?;
        let key = membership(&loaded)?.manager_key.clone().context("not a manager")?;
        Ok(Self { loaded, key })
    }

    /// Returns whether the stolen key opens the cluster's secrets, and those of users, in somebody's document.
    fn opens(&self, document: &Loaded) -> Result<(bool, bool)> {
        let cluster = cluster(document)?;
        let is_secret = |key: &Key| matches!(key, Key::Object(Kind::Secret, _));
        let record = document.records.iter().find(|record| is_secret(&record.key)).context("no secret")?;
        let (Key::Object(_, id), Some(Value::Object(secret))) = (record.key, Value::open(record)?) else {
            bail!("the secret is none");
        };
        let opened = open_secret(&self.key, cluster.id, id, &secret.data);
        Ok((ClusterSecrets::open(&cluster.sealed, &self.key, cluster.id).is_ok(), opened.is_ok()))
    }

    /// Issues a credential to a node, as a manager of the cluster as it was.
    fn issue(&self, node: &NodeKey) -> Result<Membership> {
        let cluster = cluster(&self.loaded)?;
        let secrets = ClusterSecrets::open(&cluster.sealed, &self.key, cluster.id)?;
        let root = Root::from_pem(&cluster.root_pem)?;
        let granted = RoleGrant { role: Role::Manager, index: u64::MAX, edition: root.edition() };
        let credential = secrets.issue(&root, &node.public_key(), granted, (wall(), CREDENTIAL_DEFAULT))?;
        let manager_key = Some(self.key.clone());
        Ok(Membership { root_pem: cluster.root_pem, credential, granted, manager_key, lock: None })
    }
}

/// Tries what can be done with the stolen keys, on the demoted manager, which is still a worker, and as a stranger.
fn thief(lab: &Lab, stolen: &Stolen, root: &str) -> Result<()> {
    let node = lab.node(1);
    let mut present = None;
    wait_until("the old key opens nothing of what the demoted node has on disk", WAIT, || {
        node.kill_daemon()?;
        let loaded = read(node)?;
        let is_new = cluster(&loaded)?.root_pem == root && stolen.opens(&loaded)? == (false, false);
        if !is_new {
            node.start_and_wait(START_WAIT)?;
        }
        present = Some(loaded);
        Ok(is_new)
    })?;
    let present = present.context("nothing was read")?;
    let own = NodeKey::from_bytes(present.identity.as_deref().context("no key")?)?;
    ensure!(membership(&present)?.manager_key.is_none(), "the demoted node has kept a key");

    let stranger = NodeKey::generate();
    let forged = stolen.issue(&stranger)?;
    ensure!(!is_let_in(lab, &stranger, forged)?, "a stranger with a credential of the old root was let in");
    // As itself it is let in, as the worker that it is: the manager gives it no key.
    let forged = stolen.issue(&own)?;
    ensure!(is_let_in(lab, &own, forged)?, "a listed node is let in for what its record says");
    node.start_and_wait(START_WAIT)?;
    wait_until("the demoted node is ready", WAIT, || lab_ready(lab, 5)).map(|_| ())
}

/// Shows a credential to node 2. Returns whether it was accepted.
fn is_let_in(lab: &Lab, key: &NodeKey, membership: Membership) -> Result<bool> {
    let (from, to) = (lab.node(1), lab.node(2));
    let manager = to.id()?.parse()?;
    let (listen, address) = (SocketAddr::new(from.address(), 0), SocketAddr::new(to.address(), PORT));
    http::in_namespace(from.namespace().as_deref(), || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let (sender, mut events) = tokio::sync::mpsc::channel(64);
            // It believes its victim, whatever that shows.
            let listed = BTreeMap::from([(manager, Role::Manager), (key.node_id(), Role::Manager)]);
            let config =
                SwarmConfig { key: key.clone(), listen, advertise: listen, membership: Some(membership), clock: wall };
            let swarm = swarm::spawn(config, sender).await?;
            swarm.set_trust(shoal_control::core::Trust { listed, ..Default::default() })?;
            swarm.set_peers(BTreeMap::from([(manager, vec![address])]));
            let answer = async {
                loop {
                    match events.recv().await {
                        Some(SwarmEvent::Up { .. }) => return Ok(true),
                        Some(SwarmEvent::Refused { .. }) => return Ok(false),
                        Some(_) => {}
                        None => bail!("the swarm ended"),
                    }
                }
            };
            let answer = tokio::time::timeout(WAIT, answer).await.context("no answer")?;
            if answer.as_ref().is_ok_and(|is_in| *is_in) {
                tokio::spawn(async move { while events.recv().await.is_some() {} });
                let renewed = swarm.renew(manager).await;
                ensure!(renewed.as_ref().is_ok_and(|renewed| renewed.manager_key.is_none()), "{:?}", renewed.err());
            }
            swarm.shutdown().await;
            answer
        })
    })
}

fn read(node: Node<'_>) -> Result<Loaded> {
    let (store, loaded) = disk::open(&node.data_dir())?;
    tokio::runtime::Builder::new_current_thread().build()?.block_on(store.close());
    Ok(loaded)
}

fn membership(loaded: &Loaded) -> Result<Membership> {
    Ok(Membership::from_bytes(loaded.cluster.as_deref().context("no membership")?)?)
}

fn cluster(loaded: &Loaded) -> Result<ClusterObject> {
    let record = loaded.records.iter().find(|record| record.key == Key::Cluster).context("no cluster record")?;
    let Some(Value::Cluster(cluster)) = Value::open(record)? else { bail!("the cluster record is no cluster") };
    Ok(cluster)
}

fn tokens(manager: Node<'_>) -> Result<[String; 2]> {
    let token = |role| Ok::<_, anyhow::Error>(manager.shoal().ok(&["join-token", "-q", role])?.trim().to_owned());
    Ok([token("worker")?, token("manager")?])
}

/// Returns how often links ended, by all logs.
fn disconnects(lab: &Lab) -> Result<usize> {
    let logs = lab.nodes().map(|node| fs::read_to_string(node.log_path()));
    Ok(logs.collect::<Result<Vec<_>, _>>()?.iter().map(|log| log.matches("disconnected").count()).sum())
}

fn managers_ready(lab: &Lab) -> Result<bool> {
    lab_ready(lab, 4)
}

/// Returns whether node 2 sees so many nodes ready.
fn lab_ready(lab: &Lab, count: usize) -> Result<bool> {
    let rows = lab.node(2).shoal().json(&["node", "ls"])?;
    Ok(rows.iter().filter(|row| text(row, "Status") == "Ready").count() == count)
}

/// Waits until so many nodes are ready and have a credential of the present root.
fn tls_ready(lab: &Lab, count: usize) -> Result<()> {
    wait_until(&format!("{count} nodes have a credential of the present root"), WAIT, || {
        let rows = lab.node(2).shoal().json(&["node", "ls"])?;
        let is_ready = |row: &&serde_json::Value| text(row, "Status") == "Ready" && text(row, "TLSStatus") == "Ready";
        Ok(rows.iter().filter(is_ready).count() == count)
    })
    .map(|_| ())
}

/// Waits for another root than this one, and until no rotation is under way; returns it.
fn wait_for_another_root(lab: &Lab, root: &str) -> Result<String> {
    let shoal = lab.node(2).shoal();
    wait_until("there is another root", WAIT, || Ok(shoal.ok(&["ca"])? != root))?;
    shoal.ok(&["ca"])
}
