//! `scripts/bench`: the figures of docs/benchmarks.md, measured on real daemons.
//!
//! Every bench makes what it needs and takes it down. Results are JSON lines `{name,value,unit,peer,ratio,n}`: the median of
//! `n` measurements; `peer` is the same figure of Docker Swarm if `--peer FILE` holds it, and `ratio` is value over peer.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use serde_json::{Value, json};
use shoal_tests::lab::{Driver, Guard, Lab, LabConfig};

mod control;
mod failover;
mod idle;

/// Measure shoal on this machine
#[derive(Debug, Parser)]
#[command(name = "bench")]
struct Args {
    /// What to measure; everything if absent
    #[arg(value_enum)]
    name: Option<Name>,
    /// How to print
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// Where the laboratories are made
    #[arg(long, default_value_os_t = std::env::temp_dir().join("shoal-bench"))]
    dir: PathBuf,
    /// What runs the containers
    #[arg(long, value_enum, default_value_t = Driver::Embedded)]
    driver: Driver,
    /// Rounds of each failover
    #[arg(long, default_value_t = 10)]
    rounds: usize,
    /// JSON lines of the same form, measured on Docker Swarm
    #[arg(long)]
    peer: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Name {
    /// Placements a second of the pure scheduler over 1,000 nodes
    Placement,
    /// From create to ten tasks assigned
    Assign,
    /// Listing services with 1,000 tasks, at the API
    Ls,
    /// Memory, CPU and traffic of five nodes with one service of ten
    Idle,
    /// A node is killed: until every replacement has answered
    FailoverCrash,
    /// A node's cable is cut, then it is killed
    FailoverCutKill,
    /// A node's cable is cut
    FailoverCut,
    /// A node is killed under 200 requests a second through another
    LoadKill,
    /// A node's cable is cut under the same load
    LoadCut,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
}

/// Prints results.
pub(crate) struct Printer {
    format: Format,
    peers: BTreeMap<String, f64>,
}

impl Printer {
    /// Prints one figure with the number of measurements behind it.
    pub(crate) fn figure(&self, name: &str, value: f64, unit: &str, n: usize) {
        let peer = self.peers.get(name).copied();
        let ratio = peer.filter(|peer| *peer != 0.0).map(|peer| value / peer);
        match self.format {
            Format::Json => {
                let line = json!({"name": name, "value": value, "unit": unit, "peer": peer, "ratio": ratio, "n": n});
                println!("{line}");
            }
            Format::Text => {
                let against = ratio.map(|ratio| format!("  ({ratio:.3} of Swarm)")).unwrap_or_default();
                println!("{name:<36} {value:>12.3} {unit:<12} n={n}{against}");
            }
        }
    }

    /// Prints median, least and greatest of some measurements.
    pub(crate) fn spread(&self, name: &str, values: &[f64], unit: &str) {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        if let (Some(least), Some(greatest)) = (sorted.first(), sorted.last()) {
            self.figure(name, median(&sorted), unit, sorted.len());
            self.figure(&format!("{name}-min"), *least, unit, sorted.len());
            self.figure(&format!("{name}-max"), *greatest, unit, sorted.len());
        }
    }
}

/// Returns the middle of sorted values, 0 if there are none.
pub(crate) fn median(sorted: &[f64]) -> f64 {
    match sorted.len() {
        0 => 0.0,
        n if n % 2 == 1 => sorted[n / 2],
        n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
    }
}

/// The laboratory of most benches: three managers and two workers.
pub(crate) fn five_nodes(args: &LabArgs) -> Result<Guard> {
    let lab = Guard(Lab::create(LabConfig::new(&args.dir, 5, args.driver)?)?);
    lab.form()?;
    lab.load_image()?;
    Ok(lab)
}

/// How laboratories are made.
pub(crate) struct LabArgs {
    dir: PathBuf,
    driver: Driver,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let peers = args.peer.as_deref().map(read_peers).transpose()?.unwrap_or_default();
    let printer = Printer { format: args.format, peers };
    let lab = LabArgs { dir: args.dir.clone(), driver: args.driver };
    let names = args.name.map_or(Name::value_variants().to_vec(), |name| vec![name]);
    for name in names {
        match name {
            Name::Placement => control::placement(&printer)?,
            Name::Assign => control::assign(&printer, &lab)?,
            Name::Ls => control::ls(&printer, &lab)?,
            Name::Idle => idle::idle(&printer, &lab)?,
            Name::FailoverCrash => failover::rounds(&printer, &lab, failover::Loss::Crash, args.rounds)?,
            Name::FailoverCutKill => failover::rounds(&printer, &lab, failover::Loss::CutThenKill, args.rounds)?,
            Name::FailoverCut => failover::rounds(&printer, &lab, failover::Loss::Cut, args.rounds)?,
            Name::LoadKill => failover::under_load(&printer, &lab, failover::Loss::Crash)?,
            Name::LoadCut => failover::under_load(&printer, &lab, failover::Loss::Cut)?,
        }
    }
    Ok(())
}

fn read_peers(path: &std::path::Path) -> Result<BTreeMap<String, f64>> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let mut peers = BTreeMap::new();
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        let row: Value = serde_json::from_str(line).with_context(|| format!("{}: {line}", path.display()))?;
        let value = row.get("value").and_then(Value::as_f64).with_context(|| format!("no value: {line}"))?;
        peers.insert(shoal_tests::shoal::text(&row, "name").to_owned(), value);
    }
    Ok(peers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&[]), 0.0);
        assert_eq!(median(&[1.0, 2.0, 9.0]), 2.0);
        assert_eq!(median(&[1.0, 2.0, 3.0, 9.0]), 2.5);
    }
}
