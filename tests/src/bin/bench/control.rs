//! How fast the cluster decides and answers, apart from containers.

use std::fs::File;
use std::io::Write;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use shoal_tests::http;
use shoal_tests::lab::{IMAGE, Lab, Node, repository};
use shoal_tests::shoal;
use shoal_tests::wait::wait_until;

use super::{LabArgs, Printer, five_nodes};

/// How long one request to the API may take.
const API_WAIT: Duration = Duration::from_secs(10);

/// How long the scheduler's own measurement may take, building included.
const EXAMPLE_WAIT: Duration = Duration::from_secs(1200);

/// Services that are created one after another.
const ASSIGN_ROUNDS: usize = 20;

/// Listings.
const LS_ROUNDS: usize = 50;

/// Services while listing, and tasks of each: a thousand together.
const LS_SERVICES: usize = 10;
const LS_TASKS_EACH: usize = 100;

/// What else is asked for while there are so many, as `node ls`, `service ps`, `service inspect`, `info` and monitors ask.
const API_PATHS: [&str; 7] = ["/_ping", "/info", "/nodes", "/services/many-0", "/tasks", "/shoal/status", "/metrics"];

/// Measures the pure scheduler by its example, which ends each line with so many `a second`.
pub(crate) fn placement(printer: &Printer) -> Result<()> {
    let mut command = Command::new("cargo");
    let profile = std::env::var("SHOAL_BENCH_PROFILE").unwrap_or_else(|_| "fast".to_owned());
    command.current_dir(repository()).args(["run", "--quiet", "--profile", &profile]);
    command.args(["--package", "shoal-control", "--example", "placement"]);
    let printed = shoal::run(command, EXAMPLE_WAIT)?.success()?;
    let mut figures = 0;
    for line in printed.lines() {
        let Some(value) = line.strip_suffix(" a second").and_then(|line| line.rsplit(' ').next()) else { continue };
        let what = line.split(':').next().unwrap_or_default().replace(' ', "-");
        printer.figure(&format!("placement-{what}"), value.parse().with_context(|| line.to_owned())?, "per s", 1, None);
        figures += 1;
    }
    ensure!(figures > 0, "the example printed no figure: {printed}");
    Ok(())
}

/// Measures from sending `POST /services/create` until the same node lists ten tasks with a node each; and an fsync.
pub(crate) fn assign(printer: &Printer, args: &LabArgs) -> Result<()> {
    let lab = five_nodes(args)?;
    let mut took_ms = Vec::new();
    for round in 0..ASSIGN_ROUNDS {
        let name = format!("assign-{round}");
        let start = Instant::now();
        create(&lab, &name, 10, &[])?;
        let path = format!("/tasks?filters={}", http::encoded(&json!({"service": {&name: true}}).to_string()));
        loop {
            let tasks = get(&lab, &path)?;
            let tasks = tasks.as_array().context("tasks are not a list")?;
            let assigned = tasks.iter().filter(|task| !shoal::text(task, "NodeID").is_empty()).count();
            if assigned == 10 {
                break;
            }
            ensure!(start.elapsed() < API_WAIT, "only {assigned} tasks were assigned");
        }
        took_ms.push(start.elapsed().as_secs_f64() * 1000.0);
        remove(&lab, &name)?;
    }
    printer.spread("assign-10", &took_ms, "ms", &[]);
    printer.spread("fsync", &fsyncs_ms(&lab)?, "ms", &[]);
    Ok(())
}

/// Measures `GET /services?status=true`, which `service ls` is, while the cluster has a thousand tasks in ten services. None
/// can be placed: so many containers would measure the machine.
pub(crate) fn ls(printer: &Printer, args: &LabArgs) -> Result<()> {
    let lab = five_nodes(args)?;
    for service in 0..LS_SERVICES {
        create(&lab, &format!("many-{service}"), LS_TASKS_EACH, &["node.labels.nowhere==true"])?;
    }
    wait_until("a thousand tasks are listed", API_WAIT, || {
        Ok(get(&lab, "/tasks")?.as_array().is_some_and(|tasks| tasks.len() == LS_SERVICES * LS_TASKS_EACH))
    })?;
    let mut took_ms = Vec::new();
    for _ in 0..LS_ROUNDS {
        let start = Instant::now();
        let services = get(&lab, "/services?status=true")?;
        took_ms.push(start.elapsed().as_secs_f64() * 1000.0);
        let desired = |service: &Value| service["ServiceStatus"]["DesiredTasks"].as_u64() == Some(LS_TASKS_EACH as u64);
        let all = services.as_array().context("services are not a list")?;
        ensure!(all.len() == LS_SERVICES && all.iter().all(desired), "not all services were counted: {services}");
    }
    printer.spread("ls-1000", &took_ms, "ms", &[]);
    for path in API_PATHS {
        let mut took_ms = Vec::new();
        for _ in 0..LS_ROUNDS {
            let start = Instant::now();
            get_bytes(lab.node(1), path)?;
            took_ms.push(start.elapsed().as_secs_f64() * 1000.0);
        }
        printer.spread(&format!("api {path}"), &took_ms, "ms", &[]);
    }
    Ok(())
}

/// Creates a service that may run where the constraints allow.
pub(crate) fn create(lab: &Lab, name: &str, replicas: usize, constraints: &[&str]) -> Result<()> {
    let spec = json!({
        "Name": name,
        "TaskTemplate": {"ContainerSpec": {"Image": IMAGE}, "Placement": {"Constraints": constraints}},
        "Mode": {"Replicated": {"Replicas": replicas}},
    });
    let answer = http::unix(&lab.node(1).socket(), "POST", "/services/create", &spec.to_string(), API_WAIT)?;
    ensure!(answer.status == 201, "create: {} {}", answer.status, String::from_utf8_lossy(&answer.body));
    Ok(())
}

fn remove(lab: &Lab, name: &str) -> Result<()> {
    lab.node(1).shoal().ok(&["service", "rm", name])?;
    wait_until("its containers are gone", Duration::from_secs(60), || {
        Ok(lab.nodes().all(|node| node.tasks().is_empty()))
    })?;
    Ok(())
}

/// Stores a small config through node 1.
pub(crate) fn create_config(lab: &Lab, name: &str) -> Result<()> {
    let spec = json!({"Name": name, "Data": "bmV3cw=="}).to_string();
    let answer = http::unix(&lab.node(1).socket(), "POST", "/configs/create", &spec, API_WAIT)?;
    ensure!(answer.status == 201, "create: {} {}", answer.status, String::from_utf8_lossy(&answer.body));
    Ok(())
}

/// Returns whether a node shows a config.
pub(crate) fn has_config(node: Node<'_>, name: &str) -> Result<bool> {
    let answer = http::unix(&node.socket(), "GET", &format!("/configs/{name}"), "", API_WAIT)?;
    ensure!([200, 404].contains(&answer.status), "{}", String::from_utf8_lossy(&answer.body));
    Ok(answer.status == 200)
}

fn get(lab: &Lab, path: &str) -> Result<Value> {
    serde_json::from_slice(&get_bytes(lab.node(1), path)?).with_context(|| format!("{path}: not JSON"))
}

fn get_bytes(node: Node<'_>, path: &str) -> Result<Vec<u8>> {
    let answer = http::unix(&node.socket(), "GET", path, "", API_WAIT)?;
    ensure!(answer.status == 200, "{path}: {} {}", answer.status, String::from_utf8_lossy(&answer.body));
    Ok(answer.body)
}

/// Measures appending 4 kB to a file and syncing it, where node 1 keeps its data.
fn fsyncs_ms(lab: &Lab) -> Result<Vec<f64>> {
    let path = lab.node(1).dir().join("fsync");
    let mut file = File::create(&path)?;
    let mut took_ms = Vec::new();
    for _ in 0..50 {
        let start = Instant::now();
        file.write_all(&[7; 4096])?;
        file.sync_data()?;
        took_ms.push(start.elapsed().as_secs_f64() * 1000.0);
    }
    std::fs::remove_file(&path)?;
    Ok(took_ms)
}
