//! What more nodes change: how long they take to join, how long news takes to reach them all, what each costs while nothing
//! happens, and how long a lost one is missed.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use shoal_tests::lab::{Guard, Lab, LabConfig};

use super::failover::{Loss, rounds, serve};
use super::idle::Cost;
use super::{LabArgs, Printer, control};

const NODES: [usize; 4] = [3, 5, 10, 20];

/// How long idle cost is averaged over, and how long the service's start may echo before.
const WINDOW: Duration = Duration::from_secs(30);
const SETTLE: Duration = Duration::from_secs(10);

/// Nodes lost of each cluster: workers and holders in turn.
const LOSSES: usize = 4;

/// Objects that are written on one node and looked for on all others, and how long each may take.
const NEWS: usize = 20;
const NEWS_WAIT: Duration = Duration::from_secs(10);

/// Measures clusters of several sizes one after another, each with one service of ten.
pub(crate) fn growth(printer: &Printer, args: &LabArgs) -> Result<()> {
    for nodes in NODES {
        let lab = Guard(Lab::create(LabConfig::new(&args.dir, nodes, args.driver)?)?);
        let start = Instant::now();
        lab.form()?;
        printer.figure(&format!("growth-{nodes}-join"), start.elapsed().as_secs_f64(), "s", 1, None);
        printer.spread(&format!("growth-{nodes}-converge"), &converge(&lab)?, "ms", &[]);
        lab.load_image()?;
        serve(&lab)?;
        std::thread::sleep(SETTLE);
        Cost::of(&lab, WINDOW)?.print(printer, &format!("growth-{nodes}"));
        for (kind, seconds) in rounds(&format!("{nodes} nodes"), &*lab, Loss::Crash, LOSSES)? {
            printer.spread(&format!("growth-{nodes}-failover-crash{kind}"), &seconds, "s", &[]);
        }
    }
    Ok(())
}

/// Measures from asking one node to store a config until every other node shows it. They are asked in turn, so with many
/// nodes asking is a part of it.
fn converge(lab: &Lab) -> Result<Vec<f64>> {
    let mut took_ms = Vec::new();
    for news in 0..NEWS {
        let name = format!("news-{news}");
        let start = Instant::now();
        control::create_config(lab, &name)?;
        for node in lab.nodes().skip(1) {
            while !control::has_config(node, &name)? {
                ensure!(start.elapsed() < NEWS_WAIT, "news did not reach every node");
            }
        }
        took_ms.push(start.elapsed().as_secs_f64() * 1000.0);
    }
    Ok(took_ms)
}
