//! Jobs: real containers that end, on nodes of which one dies meanwhile.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use shoal_tests::lab::{IMAGE, Lab};
use shoal_tests::shoal::text;
use shoal_tests::wait::{wait_for, wait_until};

use crate::{WAIT, check, formed};

#[test]
fn jobs_complete_although_a_node_dies() -> Result<()> {
    let cluster = formed(3)?;
    check(&cluster, complete(&cluster))
}

fn complete(lab: &Lab) -> Result<()> {
    let shoal = lab.node(1).shoal();
    let job = ["--name", "job", "--mode", "replicated-job", "--replicas", "5", "--max-concurrent", "2"];
    let output = shoal.run_within(&create(&job, "300"), WAIT)?;
    ensure!(output.code == 0, "exit status {}: {}", output.code, output.stderr);
    for words in ["job progress: 5 out of 5 complete", "job complete"] {
        ensure!(output.stderr.contains(words), "no '{words}' in {}", output.stderr);
    }
    let row = row(lab, "job")?;
    ensure!((text(&row, "Mode"), text(&row, "Replicas")) == ("replicated job", "0/0 (5/5 completed)"), "{row}");
    let tasks = shoal.json(&["service", "ps", "job"])?;
    let is_done =
        |task: &Value| text(task, "DesiredState") == "Complete" && text(task, "CurrentState").starts_with("Complete ");
    ensure!(tasks.len() == 5 && tasks.iter().all(is_done), "{tasks:?}");
    ensure!(text(&tasks[0], "Name") == "job.0", "{tasks:?}");

    // A change runs it once more, and this time a node dies with a part of the work.
    shoal.ok(&["service", "update", "--detach", "--args", "work 4000", "job"])?;
    // Two are at work at once, on nodes of their own: one of them is not the node that is asked.
    let at_work = || Ok(lab.nodes().skip(1).find(|node| !node.tasks().is_empty()));
    let (victim, _) = wait_for("another node works", WAIT, at_work)?;
    victim.crash()?;
    wait_until("the second run completes", WAIT, || {
        Ok(text(&self::row(lab, "job")?, "Replicas") == "0/0 (5/5 completed)")
    })?;
    let object: Value = serde_json::from_str(&shoal.ok(&["service", "inspect", "--format", "{{json .}}", "job"])?)?;
    ensure!(object["JobStatus"]["JobIteration"]["Index"] == 1, "{}", object["JobStatus"]);
    ensure!(object["JobStatus"]["LastExecution"] == object["UpdatedAt"], "{}", object["JobStatus"]);

    let output = shoal.run_within(&create(&["--name", "each", "--mode", "global-job"], "100"), WAIT)?;
    ensure!(output.code == 0 && output.stderr.contains("job progress: 2 out of 2 complete"), "{}", output.stderr);
    let global = self::row(lab, "each")?;
    ensure!((text(&global, "Mode"), text(&global, "Replicas")) == ("global job", "0/0 (2/2 completed)"), "{global}");
    Ok(())
}

fn create<'a>(flags: &[&'a str], work: &'a str) -> Vec<&'a str> {
    [&["service", "create"], flags, &[IMAGE, "work", work]].concat()
}

fn row(lab: &Lab, name: &str) -> Result<Value> {
    let mut rows = lab.node(1).shoal().json(&["service", "ls", "--filter", &format!("name={name}")])?;
    rows.pop().context("the service is not listed")
}
