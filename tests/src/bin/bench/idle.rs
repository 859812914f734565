//! What five nodes with one service of ten cost while nothing happens.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::json;
use shoal_tests::http;
use shoal_tests::lab::{IMAGE, Lab, Node};
use shoal_tests::wait::wait_until;

use super::{LabArgs, Printer, control, five_nodes};

/// How long is averaged over.
const WINDOW: Duration = Duration::from_secs(60);

/// How long what was done before may echo.
pub(crate) const SETTLE: Duration = Duration::from_secs(10);

/// What memory is measured with: services, and slots of some more services.
const SERVICES: usize = 1_000;
const SLOTS: usize = 10_000;
const SLOTTED: usize = 10;

/// How long it may take until all nodes have heard of all slots.
const SLOTS_WAIT: Duration = Duration::from_secs(60);

/// Ticks of process times a second. Source: Linux, `USER_HZ`, 100 on every architecture that Rust's std supports.
const TICKS_PER_SECOND: f64 = 100.0;

/// What a node has used so far.
struct Usage {
    cpu_s: f64,
    received: f64,
    sent: f64,
}

/// What daemons cost on the average of a while, a value for each node.
pub(crate) struct Cost {
    rss_mb: Vec<f64>,
    cpu_percent: Vec<f64>,
    received_kb: Vec<f64>,
    sent_kb: Vec<f64>,
}

impl Cost {
    /// Averages over a while, for all nodes.
    pub(crate) fn of(lab: &Lab, window: Duration) -> Result<Self> {
        Self::of_each(&lab.nodes().collect::<Vec<_>>(), window)
    }

    /// Averages over a while, for some nodes.
    pub(crate) fn of_each(nodes: &[Node<'_>], window: Duration) -> Result<Self> {
        let usages = || nodes.iter().map(|node| usage(*node)).collect::<Result<Vec<_>>>();
        let (start, before) = (Instant::now(), usages()?);
        let mut rss_mb = vec![Vec::new(); nodes.len()];
        while start.elapsed() < window {
            for (node, samples) in nodes.iter().zip(&mut rss_mb) {
                samples.push(rss_of(*node)?);
            }
            std::thread::sleep(Duration::from_secs(1));
        }
        let (seconds, after) = (start.elapsed().as_secs_f64(), usages()?);
        let per_second = |part: fn(&Usage) -> f64, factor: f64| -> Vec<f64> {
            before.iter().zip(&after).map(|(before, after)| (part(after) - part(before)) / seconds * factor).collect()
        };
        Ok(Self {
            rss_mb: rss_mb.iter().map(|samples| samples.iter().sum::<f64>() / samples.len() as f64).collect(),
            cpu_percent: per_second(|usage| usage.cpu_s, 100.0),
            received_kb: per_second(|usage| usage.received, 1e-3),
            sent_kb: per_second(|usage| usage.sent, 1e-3),
        })
    }

    /// Prints what was seen.
    pub(crate) fn print(&self, printer: &Printer, name: &str) {
        printer.spread(&format!("{name}-rss"), &self.rss_mb, "MB", &[]);
        printer.spread(&format!("{name}-cpu"), &self.cpu_percent, "% of a core", &[]);
        printer.spread(&format!("{name}-received"), &self.received_kb, "kB/s", &[]);
        printer.spread(&format!("{name}-sent"), &self.sent_kb, "kB/s", &[]);
    }
}

/// Measures memory, CPU and traffic of the daemons.
pub(crate) fn idle(printer: &Printer, args: &LabArgs) -> Result<()> {
    let lab = five_nodes(args)?;
    lab.node(1).shoal().ok(&["service", "create", "--name", "idle", "--replicas", "10", "-p", "8080:80", IMAGE])?;
    std::thread::sleep(SETTLE);
    Cost::of(&lab, WINDOW)?.print(printer, "idle");
    Ok(())
}

/// Measures what a daemon's memory grows by with a thousand services, and with ten thousand slots of ten more services. None
/// of their tasks can be placed: so many containers would measure the machine.
pub(crate) fn memory(printer: &Printer, args: &LabArgs) -> Result<()> {
    let lab = five_nodes(args)?;
    let rss = || -> Result<Vec<f64>> {
        std::thread::sleep(SETTLE);
        lab.nodes().map(rss_of).collect()
    };
    let growth = |before: &[f64], after: &[f64]| -> Vec<f64> {
        before.iter().zip(after).map(|(before, after)| after - before).collect()
    };
    let empty = rss()?;
    for service in 0..SERVICES {
        control::create(&lab, &format!("service-{service}"), 0, &[])?;
    }
    let services = rss()?;
    printer.spread("memory-empty", &empty, "MB", &[]);
    printer.spread("memory-1000-services", &growth(&empty, &services), "MB more", &[]);
    for service in 0..SLOTTED {
        control::create(&lab, &format!("slots-{service}"), SLOTS / SLOTTED, &["node.labels.nowhere==true"])?;
    }
    wait_until("all slots are listed everywhere", SLOTS_WAIT, || {
        let filter = http::encoded(&json!({"desired-state": ["running"]}).to_string());
        for node in lab.nodes() {
            let answer = http::unix(&node.socket(), "GET", &format!("/tasks?filters={filter}"), "", SLOTS_WAIT)?;
            let tasks: Vec<serde::de::IgnoredAny> = serde_json::from_slice(&answer.body)?;
            if tasks.len() != SLOTS {
                return Ok(false);
            }
        }
        Ok(true)
    })?;
    // Listing so many took memory for a moment, which the allocator keeps: it is a part of what it costs.
    printer.spread("memory-10000-slots", &growth(&services, &rss()?), "MB more", &[]);
    Ok(())
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
