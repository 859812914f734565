//! What becomes of requests through a surviving node when another one is lost.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use shoal_tests::evidence;
use shoal_tests::lab::Lab;
use shoal_tests::load::{Load, Tally};

use super::failover::{Cluster, Loss, PORT, serve};
use super::{LabArgs, Printer, five_nodes};

/// Requests a second, each on a connection of its own.
const PER_SECOND: u32 = 200;

/// How long is sent before the loss, and after it.
const BEFORE: Duration = Duration::from_secs(5);
const AFTER: Duration = Duration::from_secs(15);

/// Loses a worker and then the node that holds most leases, each under load, and counts what failed.
pub(crate) fn under_load(printer: &Printer, args: &LabArgs, loss: Loss) -> Result<()> {
    let lab = five_nodes(args)?;
    serve(&lab)?;
    let worker = lab.config.nodes;
    lose(printer, &lab, loss, "worker", worker)?;
    lab.recover(loss, worker)?;
    let holder = evidence::holder_of_most(&lab, worker)?.context("no holder is known")?;
    lose(printer, &lab, loss, "holder", holder)
}

fn lose(printer: &Printer, lab: &Lab, loss: Loss, kind: &str, victim: usize) -> Result<()> {
    let through = lab.nodes().map(|node| node.index).find(|index| *index != victim).context("no survivor")?;
    let load = Load::start(lab, &[through], PORT, PER_SECOND);
    let started = Instant::now();
    std::thread::sleep(BEFORE);
    let moment = loss.inflict(lab.node(victim))?;
    std::thread::sleep(AFTER);
    let (requests, seconds) = (load.stop()?, started.elapsed().as_secs_f64());
    let tally = Tally::of(&requests, moment);
    tally.faults().iter().take(10).for_each(|fault| eprintln!("{fault}"));
    let slowest = requests.iter().map(|request| request.ended.duration_since(request.begun)).max().unwrap_or_default();
    let name = |part: &str| match loss {
        Loss::Crash => format!("load-kill-{kind}-{part}"),
        Loss::Cut => format!("load-cut-{kind}-{part}"),
        Loss::CutThenKill => format!("load-cut-kill-{kind}-{part}"),
    };
    let count = |part: &str, value: usize| printer.figure(&name(part), value as f64, "requests", tally.all, None);
    printer.figure(&name("rate"), tally.all as f64 / seconds, "per s", tally.all, None);
    count("failed-before", tally.failed_before.len());
    count("open", tally.open);
    count("failed-open", tally.failed_open);
    count("failed-after", tally.failed_after.len());
    printer.figure(&name("slowest"), slowest.as_secs_f64() * 1000.0, "ms", tally.all, None);
    Ok(())
}
