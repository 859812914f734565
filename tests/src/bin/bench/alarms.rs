//! Whether nodes that live are ever taken for dead: with packets lost, and with daemons that stand still for a moment.
//!
//! Every change of mind of every daemon counts, however short: daemons count them themselves (`shoal_health_changes`).
//! A suspicion is no alarm, only a reason to probe; a verdict is one.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use shoal_tests::lab::network::SHOAL;
use shoal_tests::lab::{Lab, Node};
use shoal_tests::{evidence, http, shoal};

use super::failover::serve;
use super::{LabArgs, Printer, five_nodes, load_average};

/// How long each daemon stands still.
const PAUSE: Duration = Duration::from_millis(300);

/// Between two pauses of one daemon.
const PAUSE_EVERY: Duration = Duration::from_secs(5);

/// Between two looks at the daemons while packets are lost.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How long what the last fault caused may take to become a verdict.
const AFTERMATH: Duration = Duration::from_secs(5);

/// Every twentieth packet that reaches a node is lost. The kernel's own queue discipline for that is not everywhere.
const LOSS_RULES: &str = "table inet bench_loss { chain arriving { type filter hook prerouting priority raw; \
                          iifname \"eth0\" numgen random mod 100 < 5 counter drop; }; }";

/// What daemons and kernel have counted so far.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Counts {
    suspect: u64,
    failed: u64,
    daemons: BTreeSet<i32>,
    tasks: BTreeSet<String>,
}

/// What is disturbed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Disturbance {
    /// Packets are lost.
    Loss,
    /// Daemons stand still for a moment.
    Pause,
}

/// Disturbs five nodes for a while.
pub(crate) fn false_alarms(printer: &Printer, args: &LabArgs, what: Disturbance, length: Duration) -> Result<()> {
    let lab = five_nodes(args)?;
    serve(&lab)?;
    match what {
        Disturbance::Loss => watch(printer, &lab, "loss", || lose_packets(&lab, length)),
        Disturbance::Pause => watch(printer, &lab, "pause", || pause_daemons(&lab, length)),
    }
}

/// Counts alarms and replaced tasks while `disturb` does what it does.
fn watch(printer: &Printer, lab: &Lab, name: &str, disturb: impl FnOnce() -> Result<u64>) -> Result<()> {
    let before = counts(lab)?;
    let (started, load) = (Instant::now(), load_average());
    let faults = usize::try_from(disturb()?)?;
    std::thread::sleep(AFTERMATH);
    let after = counts(lab)?;
    ensure!(before.daemons == after.daemons, "a daemon ended");
    eprintln!(
        "{name}: {faults} faults in {:.0} s (load {load}, then {})",
        started.elapsed().as_secs_f64(),
        load_average()
    );
    let count =
        |part: &str, value: f64| printer.figure(&format!("false-alarms-{name}-{part}"), value, "", faults, None);
    count("suspicions", (after.suspect - before.suspect) as f64);
    count("verdicts", (after.failed - before.failed) as f64);
    count("replaced", after.tasks.difference(&before.tasks).count() as f64);
    Ok(())
}

/// Returns how many packets were lost.
fn lose_packets(lab: &Lab, length: Duration) -> Result<u64> {
    lab.nodes().try_for_each(|node| nft(node, &[LOSS_RULES]).map(|_| ()))?;
    let deadline = Instant::now() + length;
    while Instant::now() < deadline {
        std::thread::sleep(LOOK_EVERY);
        ensure!(lab.running().count() == lab.config.nodes, "a daemon ended");
    }
    let mut lost = 0;
    for node in lab.nodes() {
        let rules = nft(node, &["list table inet bench_loss"])?;
        let mut words = rules.split_whitespace().skip_while(|word| *word != "packets").skip(1);
        lost += words.next().and_then(|count| count.parse::<u64>().ok()).context("no counter in the rules")?;
        nft(node, &["delete table inet bench_loss"])?;
    }
    Ok(lost)
}

fn nft(node: Node<'_>, arguments: &[&str]) -> Result<String> {
    const LIMIT: Duration = Duration::from_secs(10);
    let namespace = SHOAL.path(node.index).context("the node has no namespace")?;
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", namespace.display())).args(["--", "nft"]).args(arguments);
    shoal::run(command, LIMIT)?.success().with_context(|| format!("nft {}", arguments.join(" ")))
}

/// Pauses every daemon once in each period: one after the other in one, all at once in the next. Returns how many times.
fn pause_daemons(lab: &Lab, length: Duration) -> Result<u64> {
    let start = Instant::now();
    let step = PAUSE_EVERY / u32::try_from(lab.config.nodes)?;
    let mut pauses = 0;
    for period in 0.. {
        let begin = start + PAUSE_EVERY * period;
        if begin.duration_since(start) >= length {
            break;
        }
        let nodes: Vec<Node<'_>> = lab.nodes().collect();
        let together = if period % 2 == 0 { 1 } else { nodes.len() };
        for (turn, group) in (0..).zip(nodes.chunks(together)) {
            sleep_until(begin + step * turn);
            group.iter().try_for_each(|node| node.pause())?;
            std::thread::sleep(PAUSE);
            group.iter().try_for_each(|node| node.resume())?;
            pauses += group.len() as u64;
        }
    }
    Ok(pauses)
}

fn sleep_until(at: Instant) {
    std::thread::sleep(at.saturating_duration_since(Instant::now()));
}

fn counts(lab: &Lab) -> Result<Counts> {
    let mut counts = Counts { suspect: 0, failed: 0, daemons: BTreeSet::new(), tasks: BTreeSet::new() };
    for node in lab.nodes() {
        counts.daemons.insert(node.daemon().with_context(|| format!("daemon {} ended", node.index))?);
        let changes = health_changes(node)?;
        counts.suspect += changes.get("suspect").copied().unwrap_or(0);
        counts.failed += changes.get("failed").copied().unwrap_or(0);
    }
    counts.tasks = evidence::containers(lab).into_values().flatten().collect();
    Ok(counts)
}

/// Returns how often a daemon changed its mind about another node, by what it then thought.
fn health_changes(node: Node<'_>) -> Result<BTreeMap<String, u64>> {
    const LIMIT: Duration = Duration::from_secs(10);
    let answer = http::unix(&node.socket(), "GET", "/metrics", "", LIMIT)?;
    let text = String::from_utf8(answer.body).context("metrics are not text")?;
    let changes = read_changes(&text);
    // Every daemon once found that the others live; if that is not there, nothing else would be either.
    ensure!(changes.contains_key("alive"), "node {} does not count its changes of mind", node.index);
    Ok(changes)
}

fn read_changes(metrics: &str) -> BTreeMap<String, u64> {
    let lines = metrics.lines().filter_map(|line| line.strip_prefix("shoal_health_changes_total{health=\""));
    lines
        .filter_map(|line| line.split_once("\"} "))
        .filter_map(|(name, n)| Some((name.to_owned(), n.parse().ok()?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_of_mind_are_read() {
        let metrics = "# TYPE shoal_health_changes counter\nshoal_health_changes_total{health=\"alive\"} 4\n\
                       shoal_health_changes_total{health=\"failed\"} 1\nother 3\n";
        assert_eq!(read_changes(metrics), [("alive".to_owned(), 4), ("failed".to_owned(), 1)].into());
    }
}
