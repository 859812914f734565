//! Daemons that drain their node before they end.

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use shoal_tests::lab::{IMAGE, Lab, Node, process};
use shoal_tests::load::Load;
use shoal_tests::shoal::text;
use shoal_tests::wait::wait_until;

use crate::{PUBLISHED, START_WAIT, WAIT, check, formed, serve, wait_well};

/// The label of a node that drained itself.
const LABEL: &str = "shoal.drained";

#[test]
fn a_node_gives_its_tasks_up_before_its_daemon_ends() -> Result<()> {
    let cluster = formed(3)?;
    check(&cluster, drained(&cluster))
}

fn drained(lab: &Lab) -> Result<()> {
    serve(lab, 6)?;
    // A worker cannot change its record; a manager can. The first one holds leases, most likely all.
    lab.node(1).shoal().ok(&["node", "demote", &lab.node(3).id()?])?;
    for index in [3, 1] {
        let node = lab.node(index);
        restart(lab, node, &["--drain-on-exit".to_owned()])?;
        let others: Vec<usize> = (1..=3).filter(|other| *other != index).collect();
        let watcher = lab.node(2);
        rebalance(lab, node)?;

        let load = Load::start(lab, &others, PUBLISHED, 200);
        node.stop()?;
        load.stop_without_loss(500)?;
        ensure!(node.tasks().is_empty(), "tasks run on a node that was drained: {:?}", node.tasks());
        ensure!(availability(watcher, node)? == "drain" && is_marked(watcher, node)?, "node {index} is not drained");
        wait_well(lab, 6, &[index])?;

        // Whatever flags it is started with, it takes tasks again.
        node.start_and_wait(START_WAIT)?;
        wait_until("the node is active again", WAIT, || {
            Ok(availability(watcher, node)? == "active" && !is_marked(watcher, node)?)
        })?;
    }

    // What an operator drains stays drained.
    let (node, watcher) = (lab.node(3), lab.node(2));
    restart(lab, node, &["--drain-on-exit".to_owned()])?;
    watcher.shoal().ok(&["node", "update", "--availability", "drain", &node.id()?])?;
    node.stop()?;
    node.start_and_wait(START_WAIT)?;
    wait_until("all nodes are ready", WAIT, || lab.all_ready())?;
    ensure!(availability(watcher, node)? == "drain" && !is_marked(watcher, node)?, "an operator's drain was undone");
    Ok(())
}

#[test]
fn tasks_are_moved_and_scaled_away_without_loss() -> Result<()> {
    let cluster = formed(3)?;
    check(&cluster, moved(&cluster))
}

/// Requests a second.
const RATE: u32 = 500;

fn moved(lab: &Lab) -> Result<()> {
    serve(lab, 1)?;
    let node = lab.nodes().find(|node| !node.tasks().is_empty()).context("no node runs the task")?;
    let (id, shoal) = (node.id()?, lab.node(1).shoal());
    let load = Load::start(lab, &[1, 2, 3], PUBLISHED, RATE);
    shoal.ok(&["node", "update", "--availability", "drain", &id])?;
    wait_until("the node is empty", WAIT, || Ok(node.tasks().is_empty()))?;
    wait_well(lab, 1, &[])?;
    load.stop_without_loss(500)?;

    shoal.ok(&["node", "update", "--availability", "active", &id])?;
    shoal.ok(&["service", "scale", "http=6"])?;
    wait_well(lab, 6, &[])?;
    let load = Load::start(lab, &[1, 2, 3], PUBLISHED, RATE);
    shoal.ok(&["service", "scale", "http=2"])?;
    wait_until("two tasks are left", WAIT, || Ok(lab.nodes().map(|node| node.tasks().len()).sum::<usize>() == 2))?;
    wait_well(lab, 2, &[])?;
    load.stop_without_loss(500)?;
    Ok(())
}

/// Nobody takes the tasks of the only node, so it does not wait; and a limit is a limit.
#[test]
fn a_node_that_is_alone_ends_at_once() -> Result<()> {
    let cluster = formed(1)?;
    check(&cluster, alone(&cluster))
}

fn alone(lab: &Lab) -> Result<()> {
    serve(lab, 2)?;
    let node = lab.node(1);
    restart(lab, node, &["--drain-on-exit".to_owned(), "--drain-timeout=600".to_owned()])?;
    node.stop()?;
    ensure!(node.tasks().len() == 2, "{:?}", node.tasks());
    ensure!(std::fs::read_to_string(node.log_path())?.contains("no other node takes tasks"), "it did not say why");
    node.start_and_wait(START_WAIT)?;
    wait_well(lab, 2, &[])
}

#[test]
fn a_second_signal_waits_for_nothing() -> Result<()> {
    let cluster = formed(2)?;
    check(&cluster, impatient(&cluster))
}

fn impatient(lab: &Lab) -> Result<()> {
    // The signal does nothing, so the tasks run on for as long as they are given.
    let stops = ["--stop-signal", "SIGWINCH", "--stop-grace-period", "600s"];
    let create = [&["service", "create", "--name", "http", "--replicas", "2"], &stops[..], &[IMAGE]].concat();
    lab.node(1).shoal().ok(&create)?;
    let node = lab.node(2);
    ensure!(!node.tasks().is_empty(), "nothing runs on the node");
    restart(lab, node, &["--drain-on-exit".to_owned(), "--drain-timeout=600".to_owned()])?;
    let pid = node.daemon().context("the daemon does not run")?;
    process::signal(&process::hold([pid]), Signal::TERM);
    wait_until("the node is drained", WAIT, || Ok(availability(lab.node(1), node)? == "drain"))?;
    wait_until("its tasks run elsewhere", WAIT, || Ok(lab.node(1).tasks().len() == 2))?;
    ensure!(node.daemon() == Some(pid) && !node.tasks().is_empty(), "the daemon did not wait");
    node.stop()
}

/// Restarts a daemon with other flags; its tasks are adopted.
fn restart(lab: &Lab, node: Node<'_>, flags: &[String]) -> Result<()> {
    node.stop()?;
    node.start_with(flags)?;
    node.wait_answers(START_WAIT)?;
    wait_until("all nodes are ready", WAIT, || lab.all_ready()).map(|_| ())
}

/// Sees to it that something runs on a node.
fn rebalance(lab: &Lab, node: Node<'_>) -> Result<()> {
    if node.tasks().is_empty() {
        lab.node(2).shoal().ok(&["service", "update", "--detach", "--force", "http"])?;
        wait_until("something runs on the node", WAIT, || Ok(!node.tasks().is_empty()))?;
    }
    wait_until("the service has converged", WAIT, || {
        let services = lab.node(2).shoal().json(&["service", "ls"])?;
        let nodes: usize = lab.running().map(|node| node.tasks().len()).sum();
        Ok(services.iter().all(|service| text(service, "Replicas") == "6/6") && nodes == 6)
    })?;
    wait_well(lab, 6, &[])
}

fn inspect(watcher: Node<'_>, node: Node<'_>, template: &str) -> Result<String> {
    let said = watcher.shoal().ok(&["node", "inspect", "--format", template, &node.id()?])?;
    Ok(said.trim().to_owned())
}

fn availability(watcher: Node<'_>, node: Node<'_>) -> Result<String> {
    inspect(watcher, node, "{{.Spec.Availability}}")
}

fn is_marked(watcher: Node<'_>, node: Node<'_>) -> Result<bool> {
    Ok(inspect(watcher, node, "{{json .Spec.Labels}}")?.contains(LABEL))
}
