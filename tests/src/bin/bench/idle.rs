//! What five nodes with one service of ten cost while nothing happens.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use shoal_tests::http;
use shoal_tests::lab::{IMAGE, Lab, Node};

use super::{LabArgs, Printer, five_nodes};

/// How long is averaged over.
const WINDOW: Duration = Duration::from_secs(60);

/// How long the start of the service may echo before.
const SETTLE: Duration = Duration::from_secs(10);

/// Ticks of process times a second. Source: Linux, `USER_HZ`, 100 on every architecture that Rust's std supports.
const TICKS_PER_SECOND: f64 = 100.0;

/// What a node has used so far.
struct Usage {
    cpu_s: f64,
    received: f64,
    sent: f64,
}

/// Measures memory, CPU and traffic of the daemons.
pub(crate) fn idle(printer: &Printer, args: &LabArgs) -> Result<()> {
    let lab = five_nodes(args)?;
    lab.node(1).shoal().ok(&["service", "create", "--name", "idle", "--replicas", "10", "-p", "8080:80", IMAGE])?;
    std::thread::sleep(SETTLE);
    let (start, before) = (Instant::now(), usages(&lab)?);
    let mut rss_mb = vec![Vec::new(); lab.config.nodes];
    while start.elapsed() < WINDOW {
        for node in lab.nodes() {
            rss_mb[node.index - 1].push(rss_of(node)?);
        }
        std::thread::sleep(Duration::from_secs(1));
    }
    let (seconds, after) = (start.elapsed().as_secs_f64(), usages(&lab)?);
    let means: Vec<f64> = rss_mb.iter().map(|samples| samples.iter().sum::<f64>() / samples.len() as f64).collect();
    let per_second = |part: fn(&Usage) -> f64| -> Vec<f64> {
        before.iter().zip(&after).map(|(before, after)| (part(after) - part(before)) / seconds).collect()
    };
    let percent: Vec<f64> = per_second(|usage| usage.cpu_s).iter().map(|share| share * 100.0).collect();
    let kilo = |rates: Vec<f64>| -> Vec<f64> { rates.iter().map(|rate| rate / 1000.0).collect() };
    printer.spread("idle-rss", &means, "MB", &[]);
    printer.spread("idle-cpu", &percent, "% of a core", &[]);
    printer.spread("idle-received", &kilo(per_second(|usage| usage.received)), "kB/s", &[]);
    printer.spread("idle-sent", &kilo(per_second(|usage| usage.sent)), "kB/s", &[]);
    Ok(())
}

fn usages(lab: &Lab) -> Result<Vec<Usage>> {
    lab.nodes().map(usage).collect()
}

fn usage(node: Node<'_>) -> Result<Usage> {
    let pid = node.daemon().context("a daemon ended")?;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name of the program, which may hold blanks, ends at the last parenthesis.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<f64>().ok()).unwrap_or_default();
    let cpu_s = (ticks(11) + ticks(12)) / TICKS_PER_SECOND;
    let devices = http::in_namespace(node.namespace().as_deref(), || {
        fs::read_to_string("/proc/thread-self/net/dev").context("read traffic")
    })?;
    let line = devices.lines().find_map(|line| line.trim().strip_prefix("eth0:")).context("no eth0")?;
    let counters: Vec<f64> = line.split_whitespace().filter_map(|field| field.parse().ok()).collect();
    let counter = |index: usize| counters.get(index).copied().unwrap_or_default();
    Ok(Usage { cpu_s, received: counter(0), sent: counter(8) })
}

fn rss_of(node: Node<'_>) -> Result<f64> {
    let pid = node.daemon().context("a daemon ended")?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib * 1024.0 / 1e6)
}
