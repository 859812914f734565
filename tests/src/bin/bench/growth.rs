//! What more nodes change: how long they take to join, what each costs while nothing happens, and how long a lost one is missed.

use std::time::{Duration, Instant};

use anyhow::Result;
use shoal_tests::lab::{Guard, Lab, LabConfig};

use super::failover::{Loss, rounds, serve};
use super::idle::Cost;
use super::{LabArgs, Printer};

const NODES: [usize; 4] = [3, 5, 10, 20];

/// How long idle cost is averaged over, and how long the service's start may echo before.
const WINDOW: Duration = Duration::from_secs(30);
const SETTLE: Duration = Duration::from_secs(10);

/// Nodes lost of each cluster: workers and holders in turn.
const LOSSES: usize = 4;

/// Measures clusters of several sizes one after another, each with one service of ten.
pub(crate) fn growth(printer: &Printer, args: &LabArgs) -> Result<()> {
    for nodes in NODES {
        let lab = Guard(Lab::create(LabConfig::new(&args.dir, nodes, args.driver)?)?);
        let start = Instant::now();
        lab.form()?;
        printer.figure(&format!("growth-{nodes}-join"), start.elapsed().as_secs_f64(), "s", 1, None);
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
