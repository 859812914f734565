//! Health checks: what is not well yet gets no requests, what falls ill is replaced, and an update waits for the well.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use shoal_tests::lab::{Driver, IMAGE, Lab};
use shoal_tests::load::Load;
use shoal_tests::shoal::text;
use shoal_tests::wait::wait_until;
use shoal_tests::{evidence, http};

use crate::{PUBLISHED, START_WAIT, WAIT, check, cluster, formed, wait_well};

const REPLICAS: usize = 3;

/// How long a new task answers everything with 503: longer than a check that would find it well too early.
const WARM_UP: Duration = Duration::from_millis(2_500);

/// Requests a second.
const RATE: u32 = 500;

/// The same where three engines share the machine.
const RATE_ON_DOCKER: u32 = 200;

#[test]
fn tasks_get_requests_when_they_are_well_and_while_they_are() -> Result<()> {
    let cluster = formed(3)?;
    check(&cluster, health(&cluster))
}

fn health(lab: &Lab) -> Result<()> {
    create(lab)?;
    wait_until("a task that runs but is not well is starting", WAIT, || {
        Ok(tasks(lab)?.iter().any(|task| text(task, "CurrentState").starts_with("Starting")))
    })?;
    // The ingress lets it wait for a task that is well, but not for ever.
    if let Err(error) = evidence::whoami(lab, 1, PUBLISHED) {
        ensure!(!format!("{error:#}").contains("status"), "a task answered that was not well: {error:#}");
    }
    wait_well(lab, REPLICAS, &[])?;

    println!("a task falls ill");
    let load = Load::start(lab, &[1, 2, 3], PUBLISHED, RATE);
    let ill = fall_ill(lab)?;
    let replaced = wait_failed(lab, &ill)?;
    wait_well(lab, REPLICAS, &[])?;
    let requests = load.stop_without_loss(RATE as usize)?;
    let late = requests.iter().filter(|request| request.begun > replaced);
    ensure!(
        late.filter_map(|request| request.result.as_ref().ok()).all(|seen| seen.task != ill),
        "{ill} still answers"
    );

    println!("a daemon is started again");
    let before = running(lab)?;
    lab.node(2).stop()?;
    lab.node(2).start_and_wait(START_WAIT)?;
    wait_until("all nodes are ready", WAIT, || lab.all_ready())?;
    wait_well(lab, REPLICAS, &[])?;
    ensure!(running(lab)? == before, "a restart of the daemon replaced tasks: {before:?}");
    let load = Load::start(lab, &[1, 2, 3], PUBLISHED, RATE);
    for task in &before {
        // Each of them, so that it hits the one that was adopted.
        fall_ill_of(lab, task)?;
        wait_failed(lab, task)?;
        wait_well(lab, REPLICAS, &[])?;
    }
    load.stop_without_loss(RATE as usize)?;

    update(lab, RATE)?;

    println!("an update whose tasks are never well");
    let before = running(lab)?;
    let checks = ["--health-retries", "1", "--health-start-period", "1s"];
    let change = ["--update-order", "start-first", "--env-add", "WARM_UP_MS=600000", "http"];
    lab.node(1).shoal().ok(&[&["service", "update", "--detach"][..], &checks, &change].concat())?;
    wait_until("the update is paused", WAIT, || {
        Ok(lab.node(1).shoal().json(&["service", "inspect", "http"])?[0]["UpdateStatus"]["State"] == "paused")
    })?;
    let left = running(lab)?;
    ensure!(left == before, "an update that failed cost tasks that were well: {left:?} of {before:?}");
    Ok(())
}

#[test]
fn updates_lose_no_request_on_docker() -> Result<()> {
    let cluster = cluster(3, Driver::Docker, |_| {})?;
    cluster.form()?;
    cluster.load_image()?;
    check(&cluster, on_docker(&cluster))
}

fn on_docker(lab: &Lab) -> Result<()> {
    create(lab)?;
    wait_well(lab, REPLICAS, &[])?;
    update(lab, RATE_ON_DOCKER)
}

/// Replaces all tasks under load, in both orders.
fn update(lab: &Lab, rate: u32) -> Result<()> {
    for order in ["start-first", "stop-first"] {
        println!("an update, {order}");
        let before = running(lab)?;
        let load = Load::start(lab, &[1, 2, 3], PUBLISHED, rate);
        let variable = format!("ORDER={order}");
        let args = ["service", "update", "--update-order", order, "--env-add", &variable, "http"];
        let began = Instant::now();
        lab.node(1).shoal().ok(&args)?;
        ensure!(began.elapsed() > WARM_UP * REPLICAS as u32, "the update did not wait for its tasks to be well");
        wait_well(lab, REPLICAS, &[])?;
        load.stop_without_loss(rate as usize)?;
        ensure!(running(lab)?.is_disjoint(&before), "the update left tasks as they were");
    }
    Ok(())
}

fn create(lab: &Lab) -> Result<()> {
    // Docker Engine knows it since version 25 alone.
    let start_interval = if lab.config.driver == Driver::Embedded { 100_000_000 } else { 0 };
    // The image has no shell, which is what the client's flag asks for.
    let spec = json!({"Name": "http", "TaskTemplate": {"ContainerSpec": {"Image": IMAGE,
        "Env": [format!("WARM_UP_MS={}", WARM_UP.as_millis())], "Healthcheck": {"Test": ["CMD", "/whoami", "check"],
        "Interval": 200_000_000, "Timeout": 10_000_000_000u64, "Retries": 2, "StartPeriod": 30_000_000_000u64,
        "StartInterval": start_interval}}, "RestartPolicy": {"Delay": 100_000_000}},
        "Mode": {"Replicated": {"Replicas": REPLICAS}},
        "EndpointSpec": {"Ports": [{"TargetPort": 80, "PublishedPort": PUBLISHED}]}});
    let answer = http::unix(&lab.node(1).socket(), "POST", "/services/create", &spec.to_string(), WAIT)?;
    ensure!(answer.status == 201, "{}: {}", answer.status, String::from_utf8_lossy(&answer.body));
    Ok(())
}

fn tasks(lab: &Lab) -> Result<Vec<Value>> {
    lab.node(1).shoal().json(&["service", "ps", "--no-trunc", "http"])
}

fn running(lab: &Lab) -> Result<BTreeSet<String>> {
    let is_running = |task: &&Value| text(task, "CurrentState").starts_with("Running");
    Ok(tasks(lab)?.iter().filter(is_running).map(|task| text(task, "ID").to_owned()).collect())
}

/// Makes the health check of some task fail from now on, and returns which.
fn fall_ill(lab: &Lab) -> Result<String> {
    let answer = lab.get(1, PUBLISHED, "/fall-ill", evidence::REQUEST_WAIT)?;
    answer.fields().remove("Task").context("an answer without a task")
}

/// Makes the health check of a task fail from now on, if it still runs.
fn fall_ill_of(lab: &Lab, wanted: &str) -> Result<()> {
    let id = format!("/tasks/{wanted}");
    for node in lab.nodes().filter(|node| node.tasks().contains_key(wanted)) {
        let answer = http::unix(&node.socket(), "GET", &id, "", WAIT)?;
        let task: Value = serde_json::from_slice(&answer.body)?;
        let pid = task["Status"]["ContainerStatus"]["PID"].as_i64().context("the task has no process")?;
        let namespace = std::path::PathBuf::from(format!("/proc/{pid}/ns/net"));
        let address = std::net::SocketAddr::from(([127, 0, 0, 1], 80));
        http::in_namespace(Some(&namespace), || http::get(address, "/fall-ill", evidence::REQUEST_WAIT).map(drop))?;
    }
    Ok(())
}

/// Waits until a task has failed because it was not well; returns when that was seen.
fn wait_failed(lab: &Lab, id: &str) -> Result<Instant> {
    wait_until("the task that is not well has failed", WAIT, || {
        let tasks = tasks(lab)?;
        let task = tasks.iter().find(|task| text(task, "ID") == id).context("the task is not listed")?;
        if !text(task, "CurrentState").starts_with("Failed") {
            return Ok(false);
        }
        let error = text(task, "Error");
        ensure!(error.contains("unhealthy container: HTTP/1.1 503 Service Unavailable"), "failed with {error:?}");
        Ok(true)
    })?;
    Ok(Instant::now())
}
