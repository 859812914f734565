//! `scripts/bench`: the figures of docs/benchmarks.md, measured on real daemons.
//!
//! Every bench makes what it needs and takes it down. Results are JSON lines `{name,value,unit,peer,ratio,n}`: the median of
//! `n` measurements; `peer` is the same figure of Docker Swarm (`--swarm`) or HAProxy if it was measured in the same run, and
//! `ratio` is value over peer.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Parser, ValueEnum};
use serde_json::json;
use shoal_tests::lab::{Driver, Guard, Lab, LabConfig, hosts};
use shoal_tests::wait::parse_duration;

mod alarms;
mod control;
mod failover;
mod growth;
mod idle;
mod ingress;
mod load;
mod rollout;
mod swarm;
mod watch;

use alarms::Disturbance;

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
    /// Rounds of each failover, update and scaling on a real Docker Swarm, beside ours
    #[arg(long, default_value_t = 0, value_name = "ROUNDS")]
    swarm: usize,
    /// For how long false alarms are looked for under each disturbance, such as 60s or 10m
    #[arg(long = "for", value_parser = parse_duration, default_value = "10m", value_name = "DURATION")]
    duration: Duration,
    /// Where 'watch' puts pictures of what it shows; none are made if absent
    #[arg(long, value_name = "DIRECTORY")]
    pictures: Option<PathBuf>,
    /// Measure nothing; remove what a run that was killed left in the directory
    #[arg(long)]
    down: bool,
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
    /// Memory of a daemon for 1,000 services and for 10,000 slots
    Memory,
    /// Clusters of 3, 5, 10 and 20 nodes: joining, idle cost, failover
    Growth,
    /// A rolling update of ten replicas, one at a time
    Update,
    /// Requests lost in such an update under 500 requests a second
    LoadUpdate,
    /// From 10 to 100 running containers
    Scale,
    /// What `shoal top` and the page cost a daemon of 20 nodes with 200 tasks
    Watch,
    /// A node is killed: until every replacement has answered
    FailoverCrash,
    /// A node's cable is cut, then it is killed
    FailoverCutKill,
    /// A node's cable is cut
    FailoverCut,
    /// Nodes that live and are called dead while 5% of packets are lost
    FalseAlarmsLoss,
    /// Nodes that live and are called dead while each daemon pauses for 300 ms every 5 s
    FalseAlarmsPause,
    /// A published port against HAProxy and against the tasks themselves, local and through the tunnel
    Ingress,
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
}

impl Printer {
    /// Prints one figure with the number of measurements behind it, and Swarm's if it is known.
    pub(crate) fn figure(&self, name: &str, value: f64, unit: &str, n: usize, peer: Option<f64>) {
        self.against("Swarm", name, value, unit, n, peer);
    }

    /// Prints one figure, and its ratio to the same figure of somebody else.
    pub(crate) fn against(&self, whom: &str, name: &str, value: f64, unit: &str, n: usize, peer: Option<f64>) {
        let ratio = peer.filter(|peer| *peer != 0.0).map(|peer| value / peer);
        match self.format {
            Format::Json => {
                let line = json!({"name": name, "value": value, "unit": unit, "peer": peer, "ratio": ratio, "n": n});
                println!("{line}");
            }
            Format::Text => {
                let against = ratio.map(|ratio| format!("  ({ratio:.3} of {whom})")).unwrap_or_default();
                println!("{name:<36} {value:>12.3} {unit:<12} n={n}{against}");
            }
        }
    }

    /// Prints median, least and greatest of some measurements; and Swarm's, if there are such.
    pub(crate) fn spread(&self, name: &str, values: &[f64], unit: &str, peers: &[f64]) {
        let Some([middle, least, greatest]) = spread(values) else { return };
        let peers = spread(peers);
        let print = |suffix: &str, value: f64, place: usize| {
            self.figure(&format!("{name}{suffix}"), value, unit, values.len(), peers.map(|peers| peers[place]));
        };
        print("", middle, 0);
        print("-min", least, 1);
        print("-max", greatest, 2);
    }
}

/// Returns median, least and greatest.
fn spread(values: &[f64]) -> Option<[f64; 3]> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    Some([median(&sorted), *sorted.first()?, *sorted.last()?])
}

/// Returns how busy this machine was in the last minute, as the kernel says.
pub(crate) fn load_average() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or_default().to_owned()
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

impl LabArgs {
    /// Where the hosts of a Docker Swarm are.
    pub(crate) fn swarm_dir(&self) -> PathBuf {
        let mut name = self.dir.file_name().unwrap_or_default().to_owned();
        name.push("-swarm");
        self.dir.with_file_name(name)
    }
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
    use failover::Loss;
    let printer = Printer { format: args.format };
    let lab = LabArgs { dir: args.dir.clone(), driver: args.driver };
    if args.down {
        return down(&lab);
    }
    let failover = |loss| failover::compare(&printer, &lab, loss, args.rounds, args.swarm);
    let names = args.name.map_or(Name::value_variants().to_vec(), |name| vec![name]);
    for name in names {
        match name {
            Name::Placement => control::placement(&printer)?,
            Name::Assign => control::assign(&printer, &lab)?,
            Name::Ls => control::ls(&printer, &lab)?,
            Name::Idle => idle::idle(&printer, &lab)?,
            Name::Memory => idle::memory(&printer, &lab)?,
            Name::Growth => growth::growth(&printer, &lab)?,
            Name::Update => rollout::update(&printer, &lab, args.swarm)?,
            Name::LoadUpdate => rollout::load_update(&printer, &lab)?,
            Name::Scale => rollout::scale(&printer, &lab, args.swarm)?,
            Name::Watch => watch::watch(&printer, &lab, args.pictures.as_deref())?,
            Name::FailoverCrash => failover(Loss::Crash)?,
            Name::FailoverCutKill => failover(Loss::CutThenKill)?,
            Name::FailoverCut => failover(Loss::Cut)?,
            Name::FalseAlarmsLoss => alarms::false_alarms(&printer, &lab, Disturbance::Loss, args.duration)?,
            Name::FalseAlarmsPause => alarms::false_alarms(&printer, &lab, Disturbance::Pause, args.duration)?,
            Name::Ingress => ingress::ingress(&printer, &lab)?,
            Name::LoadKill => load::under_load(&printer, &lab, Loss::Crash)?,
            Name::LoadCut => load::under_load(&printer, &lab, Loss::Cut)?,
        }
    }
    Ok(())
}

/// Removes what a run left behind that could not do so itself.
fn down(args: &LabArgs) -> Result<()> {
    let swarm = hosts::remove(&args.swarm_dir());
    if args.dir.join("lab.json").exists() {
        Lab::open(&args.dir)?.down()?;
    }
    swarm
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
