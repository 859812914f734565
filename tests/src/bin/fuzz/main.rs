//! Requests of all kinds, well-formed and not, against the API of a real node: `fuzz --seed N --for 10m`.
//!
//! The daemon must not panic, hang or grow: each request is answered, refused or cut off within a deadline, each status of 500
//! and above says why, and afterwards the node runs a service as before. Requests follow from the seed; what they meet, and so
//! their outcome, depends on the others that are under way.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::Value;
use shoal_tests::evidence;
use shoal_tests::http;
use shoal_tests::lab::{Driver, Guard, IMAGE, Lab, LabConfig};
use shoal_tests::shoal::text;
use shoal_tests::wait::{parse_duration, wait_until};

mod exchange;
mod mutate;
mod request;

use exchange::Outcome;

/// Clients at once.
const CLIENTS: u64 = 6;

/// How long a request may take that is in order.
const WAIT: Duration = Duration::from_secs(60);

/// Between two times at which everything that was made is removed again.
const SWEEP_EVERY: Duration = Duration::from_secs(2);

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
    let lab = Guard(Lab::create(LabConfig::new(&args.dir, 1, Driver::Embedded)?)?);
    lab.form()?;
    lab.load_image()?;
    let result = attack(&lab, args);
    if result.is_err() {
        lab.print_logs();
    }
    result
}

/// What came of all requests.
#[derive(Debug, Default)]
struct Tally {
    /// How many, by kind and outcome.
    outcomes: BTreeMap<(&'static str, String), u64>,
    slowest: Duration,
    faults: Vec<String>,
}

fn attack(lab: &Lab, args: &Args) -> Result<()> {
    let node = lab.node(1);
    let (socket, daemon) = (node.socket(), node.daemon().context("no daemon")?);
    let before = memory(daemon, "VmRSS")?;
    let (tally, begun) = (Mutex::new(Tally::default()), Instant::now());
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (socket, tally) = (&socket, &tally);
            scope.spawn(move || {
                let mut random = StdRng::seed_from_u64(args.seed.wrapping_mul(CLIENTS).wrapping_add(client));
                while begun.elapsed() < args.duration && !is_over(tally) {
                    one(socket, &mut random, tally);
                }
            });
        }
        scope.spawn(|| {
            while begun.elapsed() < args.duration && !is_over(&tally) {
                std::thread::sleep(SWEEP_EVERY);
                // What cannot be removed now is removed later.
                let _ = sweep(&socket);
            }
        });
    });
    let tally = tally.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    let peak = memory(daemon, "VmHWM")?;
    report(&tally, begun.elapsed(), before, peak);
    ensure!(tally.faults.is_empty(), "seed {}: {}", args.seed, tally.faults.join("\n"));
    ensure!(node.daemon() == Some(daemon), "seed {}: the daemon ended", args.seed);
    let log = fs::read_to_string(node.log_path())?;
    let panics: Vec<&str> = log.lines().filter(|line| line.contains("panicked")).collect();
    ensure!(panics.is_empty(), "seed {}: {}", args.seed, panics.join("\n"));
    ensure!(peak < before + GROWTH_MAX, "seed {}: the daemon had {peak} bytes, {before} at first", args.seed);
    is_well(lab, &socket)
}

fn is_over(tally: &Mutex<Tally>) -> bool {
    tally.lock().map_or(true, |tally| !tally.faults.is_empty())
}

/// Sends one request and counts what came of it.
fn one(socket: &Path, random: &mut StdRng, tally: &Mutex<Tally>) {
    let request = request::any(random);
    let begun = Instant::now();
    let outcome = exchange::send(socket, &request, random.random());
    let Ok(mut tally) = tally.lock() else { return };
    tally.slowest = tally.slowest.max(begun.elapsed());
    let told = match outcome {
        Ok(Outcome::Status(status)) => format!("{}xx", status / 100),
        Ok(Outcome::Closed) => "closed".to_owned(),
        Ok(Outcome::GaveUp) => "given up by the client".to_owned(),
        Err(error) => {
            tally.faults.push(format!("{error:#}: {}", request.shown()));
            "fault".to_owned()
        }
    };
    *tally.outcomes.entry((request.kind, told)).or_default() += 1;
}

fn report(tally: &Tally, took: Duration, before: u64, peak: u64) {
    let all: u64 = tally.outcomes.values().sum();
    println!("{all} requests in {:.0} s, slowest {} ms", took.as_secs_f64(), tally.slowest.as_millis());
    println!("memory: {} kB at first, {} kB at most", before >> 10, peak >> 10);
    for ((kind, outcome), count) in &tally.outcomes {
        println!("  {kind:<12} {outcome:<24} {count}");
    }
}

/// Removes everything that requests may have made.
fn sweep(socket: &Path) -> Result<()> {
    for (list, id) in [("services", "ID"), ("secrets", "ID"), ("configs", "ID"), ("networks", "Id")] {
        let answer = http::unix(socket, "GET", &format!("/{list}"), "", WAIT)?;
        let objects: Vec<Value> = serde_json::from_slice(&answer.body).unwrap_or_default();
        for object in objects {
            http::unix(socket, "DELETE", &format!("/{list}/{}", text(&object, id)), "", WAIT)?;
        }
    }
    Ok(())
}

/// Shows that the node still does what it is there for.
fn is_well(lab: &Lab, socket: &Path) -> Result<()> {
    wait_until("everything is removed", WAIT, || {
        sweep(socket)?;
        let services = http::unix(socket, "GET", "/services", "", WAIT)?;
        Ok(services.body == b"[]")
    })?;
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
