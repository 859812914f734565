//! Nodes that get another role.

use anyhow::{Result, ensure};
use shoal_tests::lab::Lab;
use shoal_tests::shoal::text;
use shoal_tests::wait::wait_until;

use crate::{WAIT, check, formed, serve, wait_well};

#[test]
fn managers_can_be_replaced_by_workers() -> Result<()> {
    let cluster = formed(4)?;
    check(&cluster, replaced(&cluster))
}

fn replaced(lab: &Lab) -> Result<()> {
    serve(lab, 4)?;
    let (first, fourth) = (lab.node(1).id()?, lab.node(4).id()?);
    ensure!(!lab.node(4).is_manager(), "this shows nothing");
    let ends = || -> Result<usize> {
        let logs = lab.nodes().map(|node| std::fs::read_to_string(node.log_path()));
        Ok(logs.collect::<Result<Vec<_>, _>>()?.iter().map(|log| log.matches("disconnected").count()).sum())
    };
    let before = ends()?;

    // A worker's own API does not take writes: another node promotes it, and then it does.
    ensure!(lab.node(4).shoal().run(&["node", "promote", "self"])?.code == 1, "a worker promoted itself");
    let said = lab.node(2).shoal().ok(&["node", "promote", &fourth])?;
    ensure!(said == format!("Node {fourth} promoted to a manager in the swarm.\n"), "{said}");
    wait_until("the promoted node takes writes", WAIT, || {
        Ok(lab.node(4).shoal().run(&["service", "scale", "--detach", "http=5"])?.code == 0)
    })?;
    lab.node(4).shoal().ok(&["join-token", "manager"])?;
    let said = lab.node(4).shoal().ok(&["node", "demote", &first])?;
    ensure!(said == format!("Manager {first} demoted in the swarm.\n"), "{said}");
    wait_until("the demoted node takes no writes", WAIT, || {
        let refusal = lab.node(1).shoal().run(&["service", "scale", "--detach", "http=5"])?;
        Ok(refusal.code == 1 && refusal.stderr.contains("worker"))
    })?;
    ensure!(lab.node(1).shoal().run(&["join-token", "worker"])?.code == 1, "a worker shows tokens");
    wait_well(lab, 5, &[])?;
    ensure!(ends()? == before, "links were dropped by changes of roles");

    // The others carry the cluster, without the first and one more.
    let votes = |lab: &Lab| -> Result<Vec<String>> {
        let status = lab.node(4).shoal().status()?;
        let voters = status["Voters"].as_array().cloned().unwrap_or_default();
        Ok(voters.iter().filter_map(|voter| voter.as_str().map(str::to_owned)).collect())
    };
    wait_until("the promoted node votes and the demoted one does not", WAIT, || {
        let voters = votes(lab)?;
        Ok(voters.len() == 3 && voters.contains(&fourth) && !voters.contains(&first))
    })?;
    wait_until("the cluster is well", WAIT, || lab.all_ready())?;
    lab.node(1).crash()?;
    lab.node(2).crash()?;
    wait_until("writes go on", WAIT, || {
        Ok(lab.node(4).shoal().run(&["service", "scale", "--detach", "http=4"])?.code == 0)
    })?;
    wait_well(lab, 4, &[1, 2])?;

    for index in [1, 2] {
        lab.node(index).start()?;
    }
    wait_until("all nodes are ready", WAIT, || lab.all_ready())?;
    let rows = lab.node(1).shoal().json(&["node", "ls"])?;
    let managers = rows.iter().filter(|row| !text(row, "ManagerStatus").is_empty()).count();
    ensure!(managers == 3, "{rows:?}");
    let output = lab.node(1).shoal().run(&["service", "scale", "--detach", "http=3"])?;
    ensure!(output.code == 1 && output.stderr.contains("worker"), "a demoted node is a manager again: {output:?}");
    for index in [2, 3] {
        lab.node(3).shoal().ok(&["node", "update", "--role", "worker", &lab.node(index).id()?])?;
    }
    let output = lab.node(4).shoal().run(&["node", "demote", "self"])?;
    ensure!(output.code == 1 && output.stderr.contains("last manager"), "{output:?}");
    Ok(())
}
