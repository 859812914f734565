//! A node's disk that is full, and one that is damaged.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use shoal_tests::http;
use shoal_tests::lab::{Driver, IMAGE, Lab, Node, process, repository};
use shoal_tests::shoal::{self, text};
use shoal_tests::wait::wait_until;

use crate::{WAIT, check, cluster, formed, serve, wait_well};

/// Room of the small disk: the image and a store, and not much more.
const DISK_BYTES: u64 = 64 << 20;

#[test]
fn a_full_disk_refuses_writes_and_nothing_else() -> Result<()> {
    let cluster = cluster(3, Driver::Embedded, |_| {})?;
    let small = cluster.node(2).data_dir();
    let options = std::ffi::CString::new(format!("size={DISK_BYTES}"))?;
    let flags = rustix::mount::MountFlags::empty();
    // Unmounted with the laboratory.
    rustix::mount::mount("tmpfs", &small, "tmpfs", flags, options.as_c_str()).context("mount tmpfs")?;
    cluster.form()?;
    cluster.load_image()?;
    check(&cluster, full_disk(&cluster, cluster.node(2)))
}

fn full_disk(lab: &Lab, node: Node<'_>) -> Result<()> {
    serve(lab, 3)?;
    let (daemon, tasks) = (node.daemon(), node.tasks());
    let ballast = node.data_dir().join("ballast");
    for round in 0..2 {
        fill(&ballast)?;
        writes_are_refused(node)?;
        let elsewhere = format!("elsewhere-{round}");
        create(lab.node(1), &elsewhere)?.success()?;
        wait_until("the full node knows what was written elsewhere", WAIT, || {
            Ok(node.shoal().ok(&["service", "ls"])?.contains(&elsewhere))
        })?;
        let listed = node.shoal().ok(&["service", "ps", "http"])?;
        ensure!(listed.lines().filter(|line| line.contains("Running")).count() == 3, "service ps: {listed}");
        ensure!(node.shoal().json(&["node", "ls"])?.len() == 3, "node ls does not list three nodes");
        wait_well(lab, 3, &[])?;
        ensure!(node.tasks() == tasks, "a full disk changed which containers run");

        fs::remove_file(&ballast)?;
        let here = format!("here-{round}");
        create(node, &here)?.success().context("after room was made")?;
        wait_until("the cluster is well", WAIT, || Ok(node.shoal().run(&["status"])?.code == 0))?;
    }
    ensure!(node.daemon() == daemon, "the daemon was restarted");
    // One voter of three is gone: what is acknowledged now is on this disk, and so is what it had refused.
    lab.node(3).kill_daemon()?;
    create(node, "last")?.success()?;
    lab.running().try_for_each(|node| node.kill_daemon())?;
    // Nobody else is there to tell it.
    node.start()?;
    wait_until("what was written is in the small store", WAIT, || {
        let rows = node.shoal().json(&["service", "ls"])?;
        let names: BTreeSet<&str> = rows.iter().map(|row| text(row, "Name")).collect();
        let wanted = BTreeSet::from(["elsewhere-0", "elsewhere-1", "here-0", "here-1", "http", "last"]);
        if names == wanted { Ok(true) } else { bail!("there is {names:?}") }
    })?;
    lab.node(1).start()?;
    lab.node(3).start()?;
    wait_until("all nodes are ready", WAIT, || lab.all_ready())?;
    wait_well(lab, 3, &[])
}

fn writes_are_refused(node: Node<'_>) -> Result<()> {
    let store = node.data_dir().join("store.redb");
    let names_store = |text: &str| text.contains(&*store.to_string_lossy());
    let spec = format!(r#"{{"Name": "refused", "TaskTemplate": {{"ContainerSpec": {{"Image": "{IMAGE}"}}}}}}"#);
    let answer = http::unix(&node.socket(), "POST", "/services/create", &spec, WAIT)?;
    let message = serde_json::from_slice::<Value>(&answer.body)?;
    println!("{} {message}", answer.status);
    ensure!(answer.status == 507 && names_store(text(&message, "message")), "{} {message}", answer.status);
    let output = create(node, "refused")?;
    ensure!(output.code == 1 && names_store(&output.stderr), "create on a full disk: {output:?}");
    let output = node.shoal().run(&["service", "scale", "--detach", "http=4"])?;
    ensure!(output.code == 1 && names_store(&output.stderr), "scale on a full disk: {output:?}");
    let archive = repository().join("target/demo/whoami.tar");
    let output = node.shoal().run(&["image", "load", "-i", &archive.to_string_lossy()])?;
    let data_dir = node.data_dir();
    ensure!(output.code == 1 && output.stderr.contains(&*data_dir.to_string_lossy()), "image load: {output:?}");
    wait_until("status tells why", WAIT, || {
        let status = node.shoal().status()?;
        Ok(status["Warnings"].as_array().is_some_and(|all| all.iter().filter_map(Value::as_str).any(names_store)))
    })?;
    Ok(())
}

fn create(node: Node<'_>, name: &str) -> Result<shoal::Output> {
    node.shoal().run(&["service", "create", "--detach", "--name", name, "--replicas", "0", IMAGE])
}

/// Writes zeros until nothing more fits.
fn fill(path: &Path) -> Result<()> {
    let mut file = File::create(path)?;
    for size in [1 << 20, 4096, 1] {
        while file.write(&vec![0; size]).is_ok_and(|written| written > 0) {}
    }
    Ok(())
}

#[test]
fn a_corrupt_store_is_named_and_kept() -> Result<()> {
    let cluster = formed(3)?;
    check(&cluster, corrupt_store(&cluster, cluster.node(3)))
}

fn corrupt_store(lab: &Lab, node: Node<'_>) -> Result<()> {
    serve(lab, 3)?;
    let id = node.id()?;
    node.kill_daemon()?;
    let mut files: Vec<_> = fs::read_dir(node.data_dir())?.flatten().map(|entry| entry.path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "redb"));
    let store = files.pop().context("there is no store")?;
    let garbage = vec![0xa5; 1 << 16];
    fs::write(&store, &garbage)?;
    for attempt in 1..=2 {
        // One that does not end by itself is killed then, and has no exit status.
        let output = shoal::run(node.command()?, Duration::from_secs(5))?;
        println!("attempt {attempt}: exit status {} after {:?}: {}", output.code, output.took, output.stderr.trim());
        ensure!(output.code == 1, "exit status {}", output.code);
        for part in [&*store.to_string_lossy(), "move", "away and join the cluster again"] {
            ensure!(output.stderr.contains(part), "the log does not say {part}: {}", output.stderr);
        }
        ensure!(fs::read(&store)? == garbage, "the corrupt store was overwritten");
    }
    // The way out, as the log says; the daemon was told to join.
    fs::rename(&store, node.dir().join("damaged"))?;
    node.start()?;
    wait_until("all nodes are ready", WAIT, || lab.all_ready())?;
    ensure!(node.id()? != id, "a node without a store is the one that it was");
    wait_well(lab, 3, &[])?;
    wait_until("nothing runs that the lost node had", WAIT, || Ok(process::of_tasks(&id).is_empty())).map(|_| ())
}
