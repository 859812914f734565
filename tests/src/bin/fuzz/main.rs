//! Requests of all kinds, well-formed and not, against the API of a real node: `fuzz --seed N --for 10m`.
//!
//! The daemon must not panic, hang or grow: each request is answered, refused or cut off within a deadline, each status of 500
//! and above says why, and afterwards the node runs a service as before. Requests follow from the seed and from what there is on
//! the node; what they meet, and so their outcome, depends on the others that are under way. At the end each endpoint of the
//! daemon must have answered something else than that it does not exist.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use serde_json::Value;
use shoal_tests::evidence;
use shoal_tests::http;
use shoal_tests::lab::{Driver, Guard, IMAGE, Lab, LabConfig};
use shoal_tests::shoal::text;
use shoal_tests::wait::{parse_duration, wait_until};

mod archive;
mod endpoints;
mod exchange;
mod known;
mod mutate;
mod report;
mod request;
mod service;
mod wire;

use endpoints::ENDPOINTS;
use exchange::Outcome;
use known::{Known, Shared};
use report::Tally;
use request::Request;

/// Clients at once.
const CLIENTS: u64 = 6;

/// How long a request may take that is in order.
const WAIT: Duration = Duration::from_secs(60);

/// Between two looks at what there is.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Of so many looks one is followed by the removal of everything that was made.
const LOOKS_A_SWEEP: usize = 5;

/// A service that is always there, with tasks that have written something, and a secret and a config of this name.
const STEADY: &str = "steady";

/// A service that is there unless a request has just removed it, to be updated.
const MOVING: &str = "moving";

/// Connections on which half a head is sent, in runs that are longer than a daemon waits for the other half.
const HALF_HEADS: usize = 10;
const HALF_HEAD_WAIT: Duration = Duration::from_secs(150);

/// How long after its time a run goes on with endpoints that have not answered as they should.
const MISSED_WAIT: Duration = Duration::from_secs(60);

/// Bytes by which the daemon's memory may grow.
const GROWTH_MAX: u64 = 256 << 20;

/// The port of the service that shows that the node is well.
const PORT: u16 = 8080;

/// Send requests of all kinds to a node of its own and see whether it stays well
#[derive(Debug, Parser)]
#[command(name = "fuzz")]
struct Args {
    /// What the requests follow from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// For how long, such as 30s or 10m
    #[arg(long = "for", value_parser = parse_duration, default_value = "30s", value_name = "DURATION")]
    duration: Duration,
    /// What runs the containers
    #[arg(long, value_enum, default_value_t = Driver::Embedded)]
    driver: Driver,
    /// Where the node is kept
    #[arg(long, default_value_os_t = std::env::temp_dir().join("shoal-fuzz"))]
    dir: PathBuf,
    /// Send nothing; remove what a run that was killed left in the directory
    #[arg(long)]
    down: bool,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fuzz: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    if args.down {
        return if args.dir.join("lab.json").exists() { Lab::open(&args.dir)?.down() } else { Ok(()) };
    }
    let lab = Guard(Lab::create(LabConfig::new(&args.dir, 1, args.driver)?)?);
    lab.form()?;
    lab.load_image()?;
    let result = attack(&lab, args);
    if result.is_err() {
        lab.print_logs();
    }
    result
}

fn attack(lab: &Lab, args: &Args) -> Result<()> {
    let node = lab.node(1);
    let (socket, daemon) = (node.socket(), node.daemon().context("no daemon")?);
    let before = memory(daemon, "VmRSS")?;
    let (tally, shared, begun) = (Mutex::new(Tally::default()), Shared::default(), Instant::now());
    // What chance has left out by the end is asked for until it has answered.
    let goes_on = || {
        let (took, tally) = (begun.elapsed(), tally.lock());
        let is_over = |tally: &Tally| took >= args.duration + MISSED_WAIT || tally.missed().is_empty();
        tally.is_ok_and(|tally| tally.faults.is_empty() && (took < args.duration || !is_over(&tally)))
    };
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (socket, tally, shared, goes_on) = (&socket, &tally, &shared, &goes_on);
            scope.spawn(move || {
                let mut random = StdRng::seed_from_u64(args.seed.wrapping_mul(CLIENTS).wrapping_add(client));
                while goes_on() {
                    let missed = match begun.elapsed() < args.duration {
                        true => None,
                        false => tally.lock().ok().and_then(|tally| tally.missed().choose(&mut random).copied()),
                    };
                    let known = shared.get();
                    let request = match missed {
                        Some(place) => request::to(place, &mut random, &known),
                        None => request::any(&mut random, &known),
                    };
                    one(socket, &request, &mut random, tally);
                }
            });
        }
        scope.spawn(|| {
            for look in 0.. {
                if !goes_on() {
                    break;
                }
                // What fails now is done later.
                let _ = keep_steady(lab, &socket, look);
                shared.set(Known::ask(&socket));
                std::thread::sleep(LOOK_EVERY);
            }
        });
        if args.duration > HALF_HEAD_WAIT {
            for _ in 0..HALF_HEADS {
                scope.spawn(|| match exchange::half_a_head(&socket, HALF_HEAD_WAIT) {
                    Ok(took) => tally.lock().map(|mut tally| tally.half_heads.push(took)).unwrap_or_default(),
                    Err(error) => {
                        tally.lock().map(|mut tally| tally.faults.push(format!("{error:#}"))).unwrap_or_default()
                    }
                });
            }
        }
    });
    let tally = tally.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    let peak = memory(daemon, "VmHWM")?;
    tally.report(begun.elapsed(), before, peak);
    ensure!(tally.faults.is_empty(), "seed {}: {}", args.seed, tally.faults.join("\n"));
    ensure!(node.daemon() == Some(daemon), "seed {}: the daemon ended", args.seed);
    let log = fs::read_to_string(node.log_path())?;
    let panics: Vec<&str> = log.lines().filter(|line| line.contains("panicked")).collect();
    ensure!(panics.is_empty(), "seed {}: {}", args.seed, panics.join("\n"));
    let missed: Vec<String> = tally.missed().into_iter().map(|place| ENDPOINTS[place].to_string()).collect();
    ensure!(missed.is_empty(), "seed {}: never answered as an endpoint should: {}", args.seed, missed.join(", "));
    ensure!(peak < before + GROWTH_MAX, "seed {}: the daemon had {peak} bytes, {before} at first", args.seed);
    is_well(lab, &socket)
}

/// Sends one request and counts what came of it.
fn one(socket: &Path, request: &Request, random: &mut StdRng, tally: &Mutex<Tally>) {
    let begun = Instant::now();
    let outcome = exchange::send(socket, request, random.random());
    let Ok(mut tally) = tally.lock() else { return };
    tally.slowest = tally.slowest.max(begun.elapsed());
    let told = match outcome {
        Ok(Outcome::Status(status)) => {
            if let Some(endpoint) = request.endpoint {
                *tally.endpoints.entry(endpoint).or_default().entry(status).or_default() += 1;
            }
            format!("{}xx", status / 100)
        }
        Ok(Outcome::Closed) => "closed".to_owned(),
        Ok(Outcome::GaveUp) => "given up by the client".to_owned(),
        Err(error) => {
            tally.faults.push(format!("{error:#}: {}", request.shown()));
            "fault".to_owned()
        }
    };
    *tally.outcomes.entry((request.kind, told)).or_default() += 1;
}

/// Sees to it that there is something to ask about, and now and then that there is nothing else.
fn keep_steady(lab: &Lab, socket: &Path, look: usize) -> Result<()> {
    if look.is_multiple_of(LOOKS_A_SWEEP) {
        sweep(socket, Some(STEADY))?;
    }
    let client = lab.node(1).shoal();
    // Requests drain the node, and take the image or the service away.
    client.run(&["node", "update", "--availability", "active", "self"])?;
    let tasks = http::unix(socket, "GET", "/tasks?filters=%7B%22service%22%3A%5B%22steady%22%5D%7D", "", WAIT)?;
    let tasks: Vec<Value> = serde_json::from_slice(&tasks.body).unwrap_or_default();
    if !tasks.iter().any(|task| text(&task["Status"], "State") == "running") && look.is_multiple_of(LOOKS_A_SWEEP) {
        lab.load_image()?;
        client.run(&["service", "rm", STEADY])?;
        let volume = "type=volume,source=vol,target=/v";
        client.run(&[
            "service",
            "create",
            "--detach",
            "--name",
            STEADY,
            "--replicas",
            "2",
            "--mount",
            volume,
            IMAGE,
        ])?;
    }
    let moving = format!(r#"{{"Name": "{MOVING}", "TaskTemplate": {{"ContainerSpec": {{"Image": "{IMAGE}"}}}}}}"#);
    http::unix(socket, "POST", "/services/create", &moving, WAIT)?;
    for kind in ["secrets", "configs"] {
        let body = format!(r#"{{"Name": "{STEADY}", "Data": "aGlkZGVu"}}"#);
        http::unix(socket, "POST", &format!("/{kind}/create"), &body, WAIT)?;
    }
    Ok(())
}

/// Removes everything that requests may have made.
fn sweep(socket: &Path, kept: Option<&str>) -> Result<()> {
    for (list, id) in [("services", "ID"), ("secrets", "ID"), ("configs", "ID"), ("networks", "Id")] {
        let answer = http::unix(socket, "GET", &format!("/{list}"), "", WAIT)?;
        let objects: Vec<Value> = serde_json::from_slice(&answer.body).unwrap_or_default();
        for object in objects {
            if kept.is_some() && object["Spec"]["Name"].as_str() == kept {
                continue;
            }
            http::unix(socket, "DELETE", &format!("/{list}/{}", text(&object, id)), "", WAIT)?;
        }
    }
    Ok(())
}

/// Shows that the node still does what it is there for.
fn is_well(lab: &Lab, socket: &Path) -> Result<()> {
    wait_until("everything is removed", WAIT, || {
        sweep(socket, None)?;
        let services = http::unix(socket, "GET", "/services", "", WAIT)?;
        Ok(services.body == b"[]")
    })?;
    // Requests may have taken the image away, or put another in its place.
    lab.load_image()?;
    let node = lab.node(1).shoal();
    node.ok(&["node", "update", "--availability", "active", "self"])?;
    node.ok(&["service", "create", "--name", "well", "--replicas", "2", "-p", &format!("{PORT}:80"), IMAGE])?;
    wait_until("two replicas answer", WAIT, || {
        let seen = evidence::ask_all(lab, 1, PORT, 2)?;
        if seen.len() == 2 { Ok(true) } else { bail!("only {} answer", seen.len()) }
    })?;
    println!("afterwards the node is well");
    Ok(())
}

/// Returns what the kernel says of a process's memory, in bytes. Source: proc(5), `status`.
fn memory(pid: i32, field: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("the daemon ended")?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')).context("no such field")?;
    let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kilobytes << 10)
}
