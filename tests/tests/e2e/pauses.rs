//! Daemons that stand still for a while: who answers meanwhile, and what those that go on can still change.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use shoal_protocol::lease::LeaseId;
use shoal_tests::http;
use shoal_tests::lab::{Driver, Lab, Node};
use shoal_tests::shoal::text;
use shoal_tests::wait::{wait_for, wait_until};

use crate::{WAIT, check, cluster, serve, wait_well};

/// How long the holder stands still: longer than its lease.
const PAUSE: Duration = Duration::from_secs(5);

/// Between two looks at the leases.
const LOOK_EVERY: Duration = Duration::from_millis(100);

#[test]
fn a_worker_answers_alone() -> Result<()> {
    let cluster = cluster(4, Driver::Embedded, |config| config.managers = 3)?;
    cluster.form()?;
    cluster.load_image()?;
    check(&cluster, worker_answers(&cluster))
}

fn worker_answers(lab: &Lab) -> Result<()> {
    let worker = lab.node(4);
    serve(lab, 4)?;
    (1..=3).try_for_each(|index| lab.node(index).pause())?;
    reads_work(worker)?;
    wait_until("the worker notices", WAIT, || Ok(worker.shoal().status()?["Quorum"] == false))?;
    reads_work(worker)?;
    let output = worker.shoal().run(&["service", "scale", "--detach", "http=5"])?;
    ensure!(output.code == 1, "a worker accepted a write");
    ensure!(output.stderr.contains("10.78.0."), "a worker refused a write without naming a manager: {}", output.stderr);
    (1..=3).try_for_each(|index| lab.node(index).resume())?;
    wait_until("all nodes are ready", WAIT, || lab.all_ready())?;
    wait_well(lab, 4, &[])
}

fn reads_work(worker: Node<'_>) -> Result<()> {
    for (path, wanted) in [("/services?status=true", 1), ("/tasks", 4), ("/nodes", 4)] {
        let start = Instant::now();
        let answer = http::unix(&worker.socket(), "GET", path, "", WAIT)?;
        println!("GET {path}: {:?}", start.elapsed());
        let rows: Vec<Value> = serde_json::from_slice(&answer.body)?;
        ensure!(answer.status == 200 && rows.len() == wanted, "{path}: {} {rows:?}", answer.status);
    }
    for (args, wanted) in
        [(&["service", "ls"][..], "http"), (&["service", "ps", "http"], "http.4"), (&["node", "ls"], "n3")]
    {
        let output = worker.shoal().run_within(args, WAIT)?;
        println!("{args:?}: {:?}", output.took);
        ensure!(output.code == 0 && output.stdout.contains(wanted), "{args:?}: {output:?}");
    }
    Ok(())
}

#[test]
fn a_holder_that_stood_still_changes_nothing() -> Result<()> {
    let cluster = cluster(5, Driver::Embedded, |config| config.managers = 3)?;
    cluster.form()?;
    cluster.load_image()?;
    check(&cluster, late_holder(&cluster))
}

fn late_holder(lab: &Lab) -> Result<()> {
    serve(lab, 4)?;
    let lease = lease_of(lab, "http")?;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watch = scope.spawn(|| watch_epochs(lab, &stop));
        let result = (0..4).zip([10, 4, 10, 4]).try_for_each(|(round, replicas)| {
            pause_while_scaling(lab, &lease, replicas, Duration::from_millis(30 * round))
                .with_context(|| format!("round {round}, to {replicas} replicas"))
        });
        stop.store(true, Ordering::Relaxed);
        let looks = watch.join().map_err(|_| anyhow::anyhow!("the watch panicked"))?;
        result?;
        println!("{} looks at the leases", looks?);
        Ok(())
    })
}

/// Stops the holder of the service's shard `after` the request to scale was sent, and lets it go on later.
fn pause_while_scaling(lab: &Lab, lease: &str, replicas: usize, after: Duration) -> Result<()> {
    let (holder, epoch) = wait_for("the shard has a holder", WAIT, || holder_of(lab, lab.node(5), lease))?.0;
    let asked = lab.nodes().find(|node| node.is_manager() && node.index != holder.index).context("no other manager")?;
    let wanted = format!("http={replicas}");
    let start = std::thread::scope(|scope| -> Result<Instant> {
        let scale = scope.spawn(|| asked.shoal().run_within(&["service", "scale", "--detach", &wanted], WAIT));
        // Each round another moment: before the request arrives, while it is carried out, while tasks are placed.
        std::thread::sleep(after);
        holder.pause()?;
        let start = Instant::now();
        let output = scale.join().map_err(|_| anyhow::anyhow!("scaling panicked"))??;
        ensure!(output.code == 0, "{output:?}");
        Ok(start)
    })?;
    let (successor, later) = wait_for("another node has the shard", WAIT, || {
        let now = holder_of(lab, asked, lease)?;
        Ok(now.filter(|(node, _)| node.index != holder.index))
    })?
    .0;
    ensure!(later > epoch, "node {} holds {lease} under epoch {later}, before it was {epoch}", successor.index);
    println!(
        "{lease}: node {} under {epoch}, node {} under {later} after {:.2} s",
        holder.index,
        successor.index,
        start.elapsed().as_secs_f64()
    );
    // The containers of the node that stands still run on: only the document and the others are as they should be.
    let before = wait_for("the others have all replicas", WAIT, || {
        let slots = slots(asked)?;
        Ok(settled(&slots, replicas).then_some(slots))
    })?
    .0;
    std::thread::sleep(PAUSE.saturating_sub(start.elapsed()));
    holder.resume()?;
    wait_until("all nodes are ready", WAIT, || lab.all_ready())?;
    wait_well(lab, replicas, &[])?;
    wait_until("all agree", WAIT, || Ok(lab.node(5).shoal().run(&["status"])?.code == 0))?;
    for node in lab.nodes() {
        let now = slots(node)?;
        ensure!(now == before, "node {}: {before:?} became {now:?}", node.index);
    }
    let (_, last) = holder_of(lab, asked, lease)?.context("the shard has no holder")?;
    ensure!(last >= later, "the epoch of {lease} fell from {later} to {last}");
    Ok(())
}

/// Returns the lease under which a service is scheduled.
fn lease_of(lab: &Lab, service: &str) -> Result<String> {
    let rows = lab.node(1).shoal().ok(&["service", "inspect", service])?;
    let rows: Vec<Value> = serde_json::from_str(&rows)?;
    let id = rows.first().map(|row| text(row, "ID")).context("inspect printed nothing")?;
    Ok(LeaseId::of_service(id.parse()?).to_string())
}

/// Returns who holds a lease and under which epoch, as `asked` sees it.
fn holder_of<'a>(lab: &'a Lab, asked: Node<'_>, lease: &str) -> Result<Option<(Node<'a>, u64)>> {
    let status = asked.shoal().status()?;
    let leases = status["Leases"].as_array().context("status has no Leases")?;
    let row = leases.iter().find(|row| text(row, "Lease") == lease).with_context(|| format!("no lease {lease}"))?;
    for node in lab.nodes() {
        if node.id()? == text(row, "Holder") {
            return Ok(Some((node, row["Epoch"].as_u64().context("no epoch")?)));
        }
    }
    Ok(None)
}

/// Returns the tasks of the service that should run, by slot, as a node knows them.
fn slots(node: Node<'_>) -> Result<BTreeMap<u64, BTreeSet<String>>> {
    let answer = http::unix(&node.socket(), "GET", "/tasks", "", WAIT)?;
    let tasks: Vec<Value> = serde_json::from_slice(&answer.body)?;
    let mut slots: BTreeMap<u64, BTreeSet<String>> = BTreeMap::new();
    for task in tasks.iter().filter(|task| text(task, "DesiredState") == "running") {
        if task["Status"]["State"] != "running" {
            bail!("task {} is {}", text(task, "ID"), task["Status"]["State"]);
        }
        let slot = task["Slot"].as_u64().context("a task without a slot")?;
        slots.entry(slot).or_default().insert(text(task, "ID").to_owned());
    }
    Ok(slots)
}

fn settled(slots: &BTreeMap<u64, BTreeSet<String>>, replicas: usize) -> bool {
    slots.len() == replicas && slots.values().all(|tasks| tasks.len() == 1)
}

/// Looks at the leases on every node that answers until told to stop: on none may an epoch fall. Returns how often it looked.
fn watch_epochs(lab: &Lab, stop: &AtomicBool) -> Result<usize> {
    let mut highest: BTreeMap<(usize, String), u64> = BTreeMap::new();
    let mut looks = 0;
    while !stop.load(Ordering::Relaxed) {
        for node in lab.nodes() {
            // One that stands still does not answer.
            let Ok(answer) = http::unix(&node.socket(), "GET", "/shoal/status", "", LOOK_EVERY) else { continue };
            let status: Value = serde_json::from_slice(&answer.body)?;
            looks += 1;
            for row in status["Leases"].as_array().context("status has no Leases")? {
                let (lease, epoch) = (text(row, "Lease"), row["Epoch"].as_u64().context("no epoch")?);
                // Without a known holder there is no epoch to show.
                let known = !text(row, "Holder").is_empty();
                let before = highest.entry((node.index, lease.to_owned())).or_default();
                ensure!(!known || epoch >= *before, "node {}: {lease} fell from {before} to {epoch}", node.index);
                *before = epoch.max(*before);
            }
        }
        std::thread::sleep(LOOK_EVERY);
    }
    Ok(looks)
}
