//! How long a service lacks replicas when a node is lost.
//!
//! The clock starts before the first signal or the pulled cable, and stops when every replacement has answered an HTTP
//! request through a surviving node.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use shoal_tests::evidence::{self, Seen};
use shoal_tests::http;
use shoal_tests::lab::{IMAGE, Lab, Node};
use shoal_tests::load::{Load, Tally};
use shoal_tests::wait::wait_until;

use super::{LabArgs, Printer, five_nodes};

const PORT: u16 = 8080;
const REPLICAS: usize = 10;

/// A round that takes longer has failed.
const ROUND_WAIT: Duration = Duration::from_secs(30);

/// How long everything may take to be as before between rounds.
const RECOVER_WAIT: Duration = Duration::from_secs(90);

/// How a node is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Loss {
    /// Daemon and tasks are killed; the kernel closes their connections.
    Crash,
    /// The cable is cut, then everything is killed: nothing says goodbye.
    CutThenKill,
    /// The cable is cut; everything runs on.
    Cut,
}

impl Loss {
    fn name(self) -> &'static str {
        match self {
            Self::Crash => "crash",
            Self::CutThenKill => "cut-kill",
            Self::Cut => "cut",
        }
    }

    /// Loses a node. Returns when it began.
    fn inflict(self, node: Node<'_>) -> Result<Instant> {
        match self {
            Self::Crash => node.crash(),
            Self::Cut | Self::CutThenKill => {
                let start = Instant::now();
                node.lab.cut(&[node.index])?;
                if self == Self::CutThenKill {
                    node.crash()?;
                }
                Ok(start)
            }
        }
    }

    /// Gives the node back.
    fn undo(self, node: Node<'_>) -> Result<()> {
        if self != Self::Crash {
            node.lab.heal(&[node.index])?;
        }
        if self != Self::Cut {
            node.start_and_wait(Duration::from_secs(30))?;
        }
        Ok(())
    }
}

/// Loses nodes in turn: a worker in odd rounds, the node that holds most leases in even ones.
pub(crate) fn rounds(printer: &Printer, args: &LabArgs, loss: Loss, rounds: usize) -> Result<()> {
    let lab = five_nodes(args)?;
    serve(&lab)?;
    let mut took: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for round in 0..rounds {
        let workers: Vec<usize> = lab.nodes().filter(|node| !node.is_manager()).map(|node| node.index).collect();
        let (kind, victim) = if round % 2 == 0 {
            ("worker", workers[round / 2 % workers.len()])
        } else {
            ("holder", evidence::holder_of_most(&lab, workers[0])?.context("no holder is known")?)
        };
        let seconds = lose(&lab, loss, victim).with_context(|| format!("round {round}: {} of {kind}", loss.name()))?;
        eprintln!("round {round}: {} of {kind} (node {victim}): {seconds:.2} s", loss.name());
        took.entry(kind).or_default().push(seconds);
        took.entry("all").or_default().push(seconds);
        loss.undo(lab.node(victim))?;
        refill(&lab)?;
    }
    for (kind, values) in took {
        let name = if kind == "all" { String::new() } else { format!("-{kind}") };
        printer.spread(&format!("failover-{}{name}", loss.name()), &values, "s");
    }
    Ok(())
}

/// Loses a node under 200 requests a second through another one and counts what failed.
pub(crate) fn under_load(printer: &Printer, args: &LabArgs, loss: Loss) -> Result<()> {
    let lab = five_nodes(args)?;
    serve(&lab)?;
    let (victim, through) = (5, 1);
    let load = Load::start(&lab, &[through], PORT, 200);
    std::thread::sleep(Duration::from_secs(5));
    let moment = loss.inflict(lab.node(victim))?;
    std::thread::sleep(Duration::from_secs(10));
    let tally = Tally::of(&load.stop()?, moment);
    tally.faults().iter().take(10).for_each(|fault| eprintln!("{fault}"));
    let name = |part: &str| format!("load-{}-{part}", if loss == Loss::Crash { "kill" } else { loss.name() });
    printer.figure(&name("requests"), tally.all as f64, "requests", 1);
    printer.figure(&name("failed-before"), tally.failed_before.len() as f64, "requests", 1);
    printer.figure(&name("open"), tally.open as f64, "requests", 1);
    printer.figure(&name("failed-open"), tally.failed_open as f64, "requests", 1);
    printer.figure(&name("failed-after"), tally.failed_after.len() as f64, "requests", 1);
    Ok(())
}

fn serve(lab: &Lab) -> Result<()> {
    let (replicas, ports) = (REPLICAS.to_string(), format!("{PORT}:80"));
    lab.node(1).shoal().ok(&["service", "create", "--name", "http", "--replicas", &replicas, "-p", &ports, IMAGE])?;
    wait_well(lab)
}

/// Brings tasks back to a node that returned empty: only new tasks go there.
fn refill(lab: &Lab) -> Result<()> {
    wait_until("all nodes are ready", RECOVER_WAIT, || lab.all_ready())?;
    wait_well(lab)?;
    let shoal = lab.node(1).shoal();
    shoal.ok(&["service", "scale", "http=0"])?;
    shoal.ok(&["service", "scale", &format!("http={REPLICAS}")])?;
    wait_well(lab)
}

fn wait_well(lab: &Lab) -> Result<()> {
    wait_until("ten replicas run and answer", RECOVER_WAIT, || {
        let faults = evidence::faults_of(lab, PORT, REPLICAS, &BTreeSet::new());
        if faults.is_empty() { Ok(true) } else { bail!(faults.join("; ")) }
    })
    .map(|_| ())
}

/// Loses `victim` and returns the seconds until every slot it had has another task that answers.
fn lose(lab: &Lab, loss: Loss, victim: usize) -> Result<f64> {
    let lost: BTreeSet<String> = lab.node(victim).tasks().into_keys().collect();
    ensure!(!lost.is_empty(), "the victim runs nothing");
    let through = lab.running().map(|node| node.index).find(|index| *index != victim).context("no survivor")?;
    let all = evidence::ask_all(lab, through, PORT, REPLICAS)?;
    let slots: BTreeSet<String> = all.iter().filter(|seen| lost.contains(&seen.task)).map(|s| s.slot.clone()).collect();
    ensure!(slots.len() == lost.len(), "not all tasks of the victim answered before");
    let start = loss.inflict(lab.node(victim))?;
    let address = SocketAddr::new(lab.node(through).address(), PORT);
    http::in_namespace(lab.client_namespace().as_deref(), || {
        let mut missing = slots.clone();
        while !missing.is_empty() {
            ensure!(start.elapsed() < ROUND_WAIT, "slots {missing:?} were not replaced within {ROUND_WAIT:?}");
            let answer = http::get(address, "/", evidence::REQUEST_WAIT);
            if let Ok(seen) = answer.and_then(|answer| Seen::read(&answer))
                && !lost.contains(&seen.task)
            {
                missing.remove(&seen.slot);
            }
        }
        Ok(start.elapsed().as_secs_f64())
    })
}
