//! `scripts/chaos`: breaks a laboratory again and again, and looks from outside whether it keeps its promises.
//!
//! Every fault hits one node, so a cluster of three managers keeps its quorum throughout. Checked after each: a request
//! begun after the fault through another node never fails; containers and answers converge; a container that nothing
//! happened to is the same one as before; no lease ends under a lower epoch than it had; every acknowledged object is there.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, ValueEnum};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use shoal_tests::evidence;
use shoal_tests::lab::{IMAGE, Lab};
use shoal_tests::load::{Load, Tally};
use shoal_tests::shoal::text;
use shoal_tests::wait::{parse_duration, wait_until};

/// The port that the victim service publishes.
const PORT: u16 = 8088;

/// The name of the victim service.
const SERVICE: &str = "chaos";

/// How long the cluster may take to converge after a fault or its end; beyond is a violation.
const CONVERGE_WAIT: Duration = Duration::from_secs(30);

/// How long a daemon may take until it answers.
const START_WAIT: Duration = Duration::from_secs(30);

/// Requests a second through the nodes that nothing happens to.
const LOAD_PER_SECOND: u32 = 40;

/// Break a laboratory and look whether it keeps its promises
#[derive(Debug, Parser)]
#[command(name = "chaos")]
struct Args {
    /// What to do to nodes
    #[arg(value_enum)]
    fault: Fault,
    /// The laboratory, as `scripts/lab up` made it
    #[arg(long, env = "SHOAL_LAB_DIR", default_value_os_t = std::env::temp_dir().join("shoal-lab"))]
    dir: PathBuf,
    /// Which nodes, when: equal seeds break the same things in the same order
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// For how long, such as 120s or 2m
    #[arg(long = "for", value_parser = parse_duration, default_value = "120s")]
    duration: Duration,
    /// How to print
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Fault {
    /// Kill everything on a node, later start it again
    Kill,
    /// Stop a daemon's clock for up to five seconds
    Pause,
    /// Pull a node's cable, later plug it in again
    Cut,
    /// Restart daemons in an orderly way, kill daemons alone, and scale the service
    Churn,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
}

/// A run: the laboratory, what is known of it, and what went wrong.
struct Run {
    lab: Lab,
    rng: StdRng,
    start: Instant,
    format: Format,
    replicas: usize,
    /// Greatest epoch seen of each lease.
    epochs: BTreeMap<String, u64>,
    /// Names of objects whose creation was acknowledged.
    acknowledged: Vec<String>,
    violations: Vec<String>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(violations) if violations.is_empty() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("chaos: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<Vec<String>> {
    let lab = Lab::open(&args.dir)?;
    ensure!(lab.config.nodes >= 3, "chaos needs at least three nodes, so that one may be lost");
    let replicas = 2 * lab.config.nodes;
    let mut run = Run {
        lab,
        rng: StdRng::seed_from_u64(args.seed),
        start: Instant::now(),
        format: args.format,
        replicas,
        epochs: BTreeMap::new(),
        acknowledged: Vec::new(),
        violations: Vec::new(),
    };
    let result = run.prepare().and_then(|()| {
        while run.start.elapsed() < args.duration && run.violations.is_empty() {
            run.round(args.fault)?;
        }
        run.finish()
    });
    if let Err(error) = result {
        run.violations.push(format!("{error:#}"));
    }
    run.verdict();
    Ok(run.violations)
}

impl Run {
    fn prepare(&mut self) -> Result<()> {
        let shoal = self.lab.node(1).shoal();
        let services = shoal.json(&["service", "ls"])?;
        ensure!(services.is_empty(), "chaos needs a cluster without services: it counts containers");
        let (replicas, ports) = (self.replicas.to_string(), format!("{PORT}:80"));
        shoal.ok(&["service", "create", "--name", SERVICE, "--replicas", &replicas, "-p", &ports, IMAGE])?;
        let took = self.converge("the service runs", &BTreeSet::new())?;
        self.report("none", 0, Some(took));
        Ok(())
    }

    /// One fault and its end.
    fn round(&mut self, fault: Fault) -> Result<()> {
        let victim = self.rng.random_range(1..=self.lab.config.nodes);
        match fault {
            Fault::Kill => self.kill(victim)?,
            Fault::Pause => self.pause(victim)?,
            Fault::Cut => self.cut(victim)?,
            Fault::Churn => self.churn(victim)?,
        }
        self.write(victim)?;
        self.note_epochs(victim)
    }

    fn kill(&mut self, victim: usize) -> Result<()> {
        self.under_load("kill", victim, |run| {
            let moment = run.lab.node(victim).crash()?;
            run.converge("killed node's tasks run elsewhere", &BTreeSet::from([victim])).map(|_| moment)
        })?;
        self.lab.node(victim).start_and_wait(START_WAIT)?;
        self.converge_back("start", victim)
    }

    fn cut(&mut self, victim: usize) -> Result<()> {
        self.under_load("cut", victim, |run| {
            // Cutting takes some milliseconds in which the node still takes requests; those are open when it takes effect.
            run.lab.cut(&[victim])?;
            let moment = Instant::now();
            run.converge("cut node's tasks run elsewhere", &BTreeSet::from([victim])).map(|_| moment)
        })?;
        self.lab.heal(&[victim])?;
        self.converge_back("heal", victim)
    }

    fn pause(&mut self, victim: usize) -> Result<()> {
        let length = Duration::from_millis(self.rng.random_range(100..5000));
        self.under_load("pause", victim, |run| {
            let moment = Instant::now();
            run.lab.node(victim).pause()?;
            // The length of the fault, not a guess about how long something takes.
            std::thread::sleep(length);
            run.lab.node(victim).resume()?;
            Ok(moment)
        })?;
        self.converge_back("resume", victim)
    }

    fn churn(&mut self, victim: usize) -> Result<()> {
        let node = self.lab.node(victim);
        let before: BTreeSet<String> = node.tasks().into_keys().collect();
        match self.rng.random_range(0..3) {
            0 => {
                node.stop()?;
                node.start_and_wait(START_WAIT)?;
                self.converge_back("restart", victim)?;
                self.same_containers(victim, &before);
            }
            1 => {
                node.kill_daemon()?;
                node.start_and_wait(START_WAIT)?;
                self.converge_back("kill-daemon", victim)?;
            }
            _ => {
                self.replicas = self.rng.random_range(1..=3 * self.lab.config.nodes);
                let target = format!("{SERVICE}={}", self.replicas);
                self.manager_other_than(0)?.shoal().ok(&["service", "scale", "--detach", &target])?;
                self.converge_back("scale", victim)?;
            }
        }
        Ok(())
    }

    /// Does something to `victim` while requests go through the others, and checks that none begun later failed.
    fn under_load(&mut self, name: &str, victim: usize, act: impl FnOnce(&mut Self) -> Result<Instant>) -> Result<()> {
        let others: Vec<usize> = (1..=self.lab.config.nodes).filter(|index| *index != victim).collect();
        let load = Load::start(&self.lab, &others, PORT, LOAD_PER_SECOND);
        let moment = act(self)?;
        let took = moment.elapsed();
        let faults = Tally::of(&load.stop()?, moment).faults();
        self.violations.extend(faults.into_iter().map(|fault| format!("{name} of node {victim}: {fault}")));
        self.report(name, victim, Some(took));
        Ok(())
    }

    fn converge_back(&mut self, name: &str, victim: usize) -> Result<()> {
        let took = self.converge(name, &BTreeSet::new())?;
        self.report(name, victim, Some(took));
        Ok(())
    }

    /// Waits until containers and answers are as wanted on all nodes but `excused`.
    fn converge(&self, what: &str, excused: &BTreeSet<usize>) -> Result<Duration> {
        wait_until(what, CONVERGE_WAIT, || {
            let faults = evidence::faults_of(&self.lab, PORT, self.replicas, excused);
            if faults.is_empty() { Ok(true) } else { bail!(faults.join("; ")) }
        })
    }

    fn same_containers(&mut self, victim: usize, before: &BTreeSet<String>) {
        let after: BTreeSet<String> = self.lab.node(victim).tasks().into_keys().collect();
        if *before != after {
            self.violations.push(format!("an announced restart of node {victim} changed its tasks"));
        }
    }

    /// Creates an object that needs no container.
    fn write(&mut self, victim: usize) -> Result<()> {
        let name = format!("{SERVICE}-{}", self.acknowledged.len());
        let manager = self.manager_other_than(victim)?;
        manager.shoal().ok(&["service", "create", "--detach", "--name", &name, "--replicas", "0", IMAGE])?;
        self.acknowledged.push(name);
        Ok(())
    }

    fn manager_other_than(&self, victim: usize) -> Result<shoal_tests::lab::Node<'_>> {
        let mut managers = self.lab.running().filter(|node| node.is_manager());
        managers.find(|node| node.index != victim).context("no other manager runs")
    }

    /// Remembers the greatest epoch of each lease that any manager has shown. Managers may lag behind each other, and one shows
    /// a lease that it was granted before it has said so to the others; if it dies first, they do not hear of that epoch.
    fn note_epochs(&mut self, victim: usize) -> Result<()> {
        for (name, epoch) in epochs(self.manager_other_than(victim)?)? {
            let greatest = self.epochs.entry(name).or_default();
            *greatest = epoch.max(*greatest);
        }
        Ok(())
    }

    /// Checks that no lease ends under a lower epoch than one that was granted before.
    fn check_epochs(&mut self) -> Result<()> {
        let manager = self.manager_other_than(0)?;
        let fallen = || -> Result<Vec<String>> {
            let now = epochs(manager)?;
            let fell = |(name, greatest): (&String, &u64)| {
                let epoch = now.get(name).copied().unwrap_or_default();
                (epoch < *greatest).then(|| format!("the epoch of lease {name} fell from {greatest} to {epoch}"))
            };
            Ok(self.epochs.iter().filter_map(fell).collect())
        };
        // A lease that nobody holds for a moment is taken under the next epoch.
        if wait_until("epochs have grown", CONVERGE_WAIT, || Ok(fallen()?.is_empty())).is_err() {
            let fallen = fallen()?;
            self.violations.extend(fallen);
        }
        Ok(())
    }

    /// Checks what holds only once everything is quiet, and removes what was created.
    fn finish(&mut self) -> Result<()> {
        let asked = self.lab.config.nodes;
        wait_until("all documents agree", CONVERGE_WAIT, || {
            Ok(self.lab.node(asked).shoal().status()?.get("Agree") == Some(&Value::Bool(true)))
        })?;
        self.check_epochs()?;
        let rows = self.lab.node(asked).shoal().json(&["service", "ls"])?;
        let names: BTreeSet<&str> = rows.iter().map(|row| text(row, "Name")).collect();
        let lost: Vec<&String> = self.acknowledged.iter().filter(|name| !names.contains(name.as_str())).collect();
        self.violations.extend(lost.iter().map(|name| format!("acknowledged object {name} is lost")));
        let all: Vec<&str> = ["service", "rm"].into_iter().chain(names.iter().copied()).collect();
        self.manager_other_than(0)?.shoal().ok(&all)?;
        wait_until("no container is left", CONVERGE_WAIT, || {
            Ok(evidence::containers(&self.lab).values().all(BTreeSet::is_empty))
        })?;
        Ok(())
    }

    fn report(&self, fault: &str, node: usize, converged: Option<Duration>) {
        let (t, converged_ms) = (self.start.elapsed().as_secs_f64(), converged.map(|took| took.as_millis()));
        match self.format {
            Format::Json => {
                let t = (t * 1000.0).round() / 1000.0;
                println!("{}", json!({"t": t, "fault": fault, "node": node, "converged_ms": converged_ms}));
            }
            Format::Text => println!("{t:8.2} s  {fault:<12} node {node}  {} ms", converged_ms.unwrap_or_default()),
        }
    }

    fn verdict(&self) {
        let verdict = if self.violations.is_empty() { "pass" } else { "fail" };
        match self.format {
            Format::Json => println!("{}", json!({"verdict": verdict, "violations": self.violations})),
            Format::Text => {
                self.violations.iter().for_each(|violation| println!("violation: {violation}"));
                println!("{verdict}");
            }
        }
    }
}

/// Returns the epoch of each lease as a manager shows it.
fn epochs(manager: shoal_tests::lab::Node<'_>) -> Result<BTreeMap<String, u64>> {
    let status = manager.shoal().status()?;
    let leases = status.get("Leases").and_then(Value::as_array).context("status has no Leases")?;
    let epoch = |lease: &Value| {
        let name = lease.get("Lease").map(Value::to_string).unwrap_or_default();
        (name, lease.get("Epoch").and_then(Value::as_u64).unwrap_or_default())
    };
    Ok(leases.iter().map(epoch).collect())
}
