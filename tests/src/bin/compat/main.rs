//! `scripts/compat`: Docker's own clients against a real Docker Swarm and against shoal, and what differs.
//!
//! The same scripts (`tests/compat/*.steps`) run against two Docker Engines in Swarm mode and two nodes of shoal, with either
//! driver. What they print is compared after a normaliser whose rules [`normal`] lists; differences that
//! `tests/compat/differences.txt` does not list fail, and so do listed ones that do not occur.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use shoal_tests::lab::{Driver, Lab, hosts, repository};

mod cluster;
mod differ;
mod normal;
mod rust_client;
mod script;

use cluster::{Cluster, Peer};
use script::Record;

/// The script that makes the cluster which the others use.
const FIRST: &str = "1-tutorial";

/// Compare what Docker's clients see of Swarm and of shoal
#[derive(Debug, Parser)]
#[command(name = "compat")]
struct Args {
    /// Scripts to run, such as stack; all if absent. The tutorial runs in any case, as it makes the cluster
    scripts: Vec<String>,
    /// Drivers of shoal to compare; both if absent
    #[arg(long, value_enum)]
    driver: Vec<Driver>,
    /// Docker's client
    #[arg(long, default_value = "docker")]
    docker: PathBuf,
    /// A Python with docker-py, as tests/compat/requirements.txt names it
    #[arg(long, default_value_os_t = repository().join("target/compat-venv/bin/python"))]
    python: PathBuf,
    /// Where the clusters are made
    #[arg(long, default_value_os_t = std::env::temp_dir().join("shoal-compat"))]
    dir: PathBuf,
    /// Run the scripts on shoal alone and compare nothing
    #[arg(long)]
    alone: bool,
    /// Print everything that is compared
    #[arg(long)]
    verbose: bool,
    /// Compare nothing; remove what a run that was killed left in the directory
    #[arg(long)]
    down: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let outcome = run(&args);
    // What is kept in it, after a failure to clean up, keeps it.
    let _ = fs::remove_dir(&args.dir);
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("compat: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    if args.down {
        return down(&args.dir);
    }
    ensure!(rustix::process::geteuid().is_root(), "this makes network namespaces: run it as root");
    let list = fs::read_to_string(data("differences.txt"))?;
    let listed = differ::read(&list).context("differences.txt")?;
    let scripts = scripts(&args.scripts)?;
    let drivers = if args.driver.is_empty() { vec![Driver::Docker, Driver::Embedded] } else { args.driver.clone() };
    tell_client(args)?;
    // Swarm and shoal do not share names, and both mostly wait.
    let (swarm, ours) = std::thread::scope(|scope| {
        let swarm = scope.spawn(|| if args.alone { Ok(Records::new()) } else { record(Peer::Swarm, args, &scripts) });
        let ours = drivers.iter().map(|driver| (*driver, record(Peer::Shoal(*driver), args, &scripts)));
        let ours: BTreeMap<&str, Result<Records>> = ours.map(|(driver, records)| (driver.name(), records)).collect();
        (swarm.join().unwrap_or_else(|_| bail!("the thread for Swarm panicked")), ours)
    });
    let broken = |(peer, error): (&str, &anyhow::Error)| println!("{peer}: {error:#}");
    ours.iter().filter_map(|(driver, records)| Some((*driver, records.as_ref().err()?))).for_each(broken);
    let swarm = swarm.context("swarm")?;
    let mut failed = false;
    for (driver, records) in ours {
        failed |= match records {
            Ok(records) => !judge(driver, &swarm, &records, &listed)?,
            Err(_) => true,
        }
    }
    ensure!(!failed, "a script failed, or there are differences that are not listed, or listed ones that do not occur");
    Ok(())
}

/// What was recorded, by script.
type Records = BTreeMap<String, Vec<Record>>;

/// Runs scripts against one cluster, in the order of their names.
fn record(peer: Peer, args: &Args, scripts: &BTreeMap<String, String>) -> Result<Records> {
    let mut records = Records::new();
    let begun = Instant::now();
    let cluster = Cluster::create(peer, &args.dir, &args.docker)?;
    println!("{}: started in {:.1} s", peer.name(), begun.elapsed().as_secs_f64());
    for (name, text) in scripts {
        let begun = Instant::now();
        let recorded = script::run(&cluster, &args.python, name, text);
        if recorded.is_err()
            && let Some(lab) = cluster.lab()
        {
            lab.print_logs();
        }
        let recorded = recorded?;
        println!("{}: {name}: {} commands in {:.1} s", peer.name(), recorded.len(), begun.elapsed().as_secs_f64());
        if args.verbose {
            show(peer, &recorded);
        }
        records.insert(name.clone(), recorded);
    }
    Ok(records)
}

fn show(peer: Peer, records: &[Record]) {
    for record in records {
        println!("{}$ {}", peer.name(), record.at);
        record.lines.iter().for_each(|line| println!("    {line}"));
    }
}

/// Compares and tells. Returns whether all is as listed.
fn judge(driver: &str, swarm: &Records, shoal: &Records, listed: &[differ::Entry]) -> Result<bool> {
    let mut found = Vec::new();
    for (name, theirs) in swarm {
        let ours = shoal.get(name).with_context(|| format!("{name} did not run"))?;
        found.extend(differ::differences(theirs, ours).with_context(|| name.clone())?);
    }
    let (unlisted, stale) = differ::unexpected(&found, listed, driver);
    println!("\n{driver}: {}; {} lines differ, {} of them unlisted", extent(swarm), found.len(), unlisted.len());
    differ::print(&unlisted);
    if !stale.is_empty() {
        println!("{driver}: listed, and not seen:");
        stale.iter().for_each(|line| println!("  {line}"));
    }
    Ok(unlisted.is_empty() && stale.is_empty())
}

/// Tells how much is compared: what was done, with how many different flags, and what it printed.
fn extent(records: &Records) -> String {
    let all = || records.values().flatten();
    let flags: BTreeSet<&str> = all().flat_map(|record| flags(&record.at)).collect();
    let lines: usize = all().map(|record| record.lines.len()).sum();
    format!("{} commands with {} different flags, {lines} lines compared", all().count(), flags.len())
}

/// Returns the flags of a command, long and short ones.
fn flags(command: &str) -> impl Iterator<Item = &str> {
    let flags = command.split_whitespace().filter(|word| word.starts_with('-') && word.len() > 1);
    flags.map(|flag| flag.split('=').next().unwrap_or(flag))
}

/// Says which client it is: its words are compared with themselves, whatever its version.
fn tell_client(args: &Args) -> Result<()> {
    let mut command = std::process::Command::new(&args.docker);
    command.arg("--version");
    let version = shoal_tests::shoal::run(command, std::time::Duration::from_secs(20))?.success()?;
    println!("client: {}", version.trim());
    Ok(())
}

/// Returns the scripts that were asked for, by name.
fn scripts(wanted: &[String]) -> Result<BTreeMap<String, String>> {
    let mut scripts = BTreeMap::new();
    for entry in fs::read_dir(data(""))?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(name) = name.strip_suffix(".steps") else { continue };
        if wanted.is_empty() || name.starts_with(FIRST) || wanted.iter().any(|wanted| name.contains(wanted)) {
            scripts.insert(name.to_owned(), fs::read_to_string(entry.path())?);
        }
    }
    ensure!(scripts.len() > 1 || wanted.iter().all(|wanted| FIRST.contains(wanted)), "there is no such script");
    Ok(scripts)
}

/// Returns where a file for these tests is.
fn data(name: &str) -> PathBuf {
    repository().join("tests/compat").join(name)
}

/// Removes what a run left behind that could not do so itself.
fn down(dir: &Path) -> Result<()> {
    let swarm = hosts::remove(&Peer::Swarm.dir(dir));
    for driver in [Driver::Docker, Driver::Embedded] {
        let dir = Peer::Shoal(driver).dir(dir);
        if dir.join("lab.json").exists() {
            Lab::open(&dir)?.down()?;
        }
    }
    swarm
}
