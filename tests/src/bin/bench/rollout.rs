//! How long a rolling update and a scale-up take, on shoal and, in the same run, on Docker Swarm; and what an update costs users.
//!
//! Both are driven and watched by the same requests to Docker's API.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use shoal_tests::http;
use shoal_tests::load::Load;
use shoal_tests::shoal::text;

use super::failover::{PORT, REPLICAS, serve};
use super::swarm::api::{API_WAIT, call};
use super::swarm::{SERVICE, Swarm};
use super::{LabArgs, Printer, five_nodes, load_average};

/// Rounds on shoal.
const ROUNDS: usize = 5;

/// Replicas after scaling.
const MANY: usize = 100;

/// Requests a second during an update, each on a connection of its own.
const PER_SECOND: u32 = 500;

/// A round that takes longer has failed.
const ROUND_WAIT: Duration = Duration::from_secs(180);

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Measures from an update's request to the word `completed`: default settings, one task at a time, stop first.
pub(crate) fn update(printer: &Printer, args: &LabArgs, swarms: usize) -> Result<()> {
    compare(printer, args, "update-10", swarms, |socket| {
        let start = Instant::now();
        roll(socket, force)?;
        Ok(start.elapsed().as_secs_f64())
    })
}

/// Measures from a request for a hundred replicas to a hundred running tasks, as the same manager lists them.
pub(crate) fn scale(printer: &Printer, args: &LabArgs, swarms: usize) -> Result<()> {
    compare(printer, args, "scale-10-100", swarms, |socket| {
        let start = Instant::now();
        let replicas = |count: usize| {
            change(socket, |spec| spec["Mode"]["Replicated"]["Replicas"] = json!(count))?;
            wait("the tasks run", || Ok(running(socket)? == count))
        };
        replicas(MANY)?;
        let seconds = start.elapsed().as_secs_f64();
        replicas(REPLICAS)?;
        Ok(seconds)
    })
}

/// Counts what becomes of requests through all nodes while ten replicas are replaced one at a time, each started before its
/// predecessor is stopped, with a health check; and then stop first.
pub(crate) fn load_update(printer: &Printer, args: &LabArgs) -> Result<()> {
    let lab = five_nodes(args)?;
    serve(&lab)?;
    let socket = lab.node(1).socket();
    for (order, name) in [("start-first", "load-update-start-first"), ("stop-first", "load-update-stop-first")] {
        roll(&socket, |spec| {
            // The image has no shell.
            spec["TaskTemplate"]["ContainerSpec"]["Healthcheck"] = json!({"Test": ["CMD", "/whoami", "check"],
                "Interval": 500_000_000, "StartPeriod": 5_000_000_000u64, "StartInterval": 200_000_000});
            spec["UpdateConfig"] = json!({"Parallelism": 1, "Order": order});
            force(spec);
        })?;
        let nodes: Vec<usize> = lab.nodes().map(|node| node.index).collect();
        let load = Load::start(&lab, &nodes, PORT, PER_SECOND);
        let start = Instant::now();
        let rolled = roll(&socket, force);
        let (seconds, requests) = (start.elapsed().as_secs_f64(), load.stop()?);
        rolled?;
        let failed = || requests.iter().filter_map(|request| request.result.as_ref().err());
        failed().take(10).for_each(|fault| eprintln!("{fault}"));
        let all = requests.len();
        printer.figure(&format!("{name}-took"), seconds, "s", 1, None);
        printer.figure(&format!("{name}-rate"), all as f64 / seconds, "per s", all, None);
        printer.figure(&format!("{name}-failed"), failed().count() as f64, "requests", all, None);
    }
    Ok(())
}

/// Measures something on Swarm, if that is wanted, and on shoal: five nodes with a service of ten each, and a manager's socket.
fn compare(
    printer: &Printer,
    args: &LabArgs,
    name: &str,
    swarms: usize,
    measure: impl Fn(&Path) -> Result<f64>,
) -> Result<()> {
    let rounds = |whom: &str, count: usize, socket: &Path| -> Result<Vec<f64>> {
        let mut all = Vec::new();
        for round in 1..=count {
            let load = load_average();
            let seconds = measure(socket).with_context(|| format!("{whom}, round {round}"))?;
            eprintln!("{name}, {whom}, round {round}: {seconds:.2} s (load {load})");
            all.push(seconds);
        }
        Ok(all)
    };
    let mut peers = Vec::new();
    if swarms > 0 {
        let swarm = Swarm::create(&args.swarm_dir())?;
        peers = rounds("swarm", swarms, &swarm.socket(1))?;
    }
    printer.spread(&format!("swarm-{name}"), &peers, "s", &[]);
    let lab = five_nodes(args)?;
    serve(&lab)?;
    printer.spread(name, &rounds("shoal", ROUNDS, &lab.node(1).socket())?, "s", &peers);
    Ok(())
}

/// Changes the service's spec.
fn change(socket: &Path, edit: impl FnOnce(&mut Value)) -> Result<()> {
    let mut service = service(socket)?;
    let path = format!("/services/{}/update?version={}", text(&service, "ID"), service["Version"]["Index"]);
    edit(&mut service["Spec"]);
    call(socket, "POST", &path, &service["Spec"], API_WAIT).map(drop)
}

/// Changes the service's spec and waits until the update that this begins is completed.
fn roll(socket: &Path, edit: impl FnOnce(&mut Value)) -> Result<()> {
    let before = service(socket)?["UpdateStatus"]["StartedAt"].clone();
    change(socket, edit)?;
    wait("the update is completed", || {
        let status = &service(socket)?["UpdateStatus"];
        let state = text(status, "State");
        ensure!(state != "paused", "the update is paused: {status}");
        Ok(state == "completed" && status["StartedAt"] != before)
    })
}

/// Asks for new tasks.
fn force(spec: &mut Value) {
    let template = &mut spec["TaskTemplate"];
    template["ForceUpdate"] = json!(template["ForceUpdate"].as_u64().unwrap_or_default() + 1);
}

fn service(socket: &Path) -> Result<Value> {
    call(socket, "GET", &format!("/services/{SERVICE}"), &Value::Null, API_WAIT)
}

/// Counts the tasks that run.
fn running(socket: &Path) -> Result<usize> {
    let filters = http::encoded(&json!({"service": [SERVICE]}).to_string());
    let tasks = call(socket, "GET", &format!("/tasks?filters={filters}"), &Value::Null, API_WAIT)?;
    let runs = |task: &&Value| text(&task["Status"], "State") == "running";
    Ok(tasks.as_array().context("tasks are not a list")?.iter().filter(runs).count())
}

/// Looks again and again, more often than tests do.
fn wait(what: &str, is_so: impl Fn() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while !is_so()? {
        ensure!(start.elapsed() < ROUND_WAIT, "not within {ROUND_WAIT:?}: {what}");
        std::thread::sleep(LOOK_EVERY);
    }
    Ok(())
}
