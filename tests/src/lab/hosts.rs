//! Docker Engines alone, each in a network namespace of its own: the hosts of a real Docker Swarm, for comparison.
//!
//! Host *i* is the namespace `swarm-i`; its engine is one tree of processes that dies with its first one.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::network::SWARM;
use super::{engine, process, repository};
use crate::shoal;

/// How long loading an image may take.
const LOAD_WAIT: Duration = Duration::from_secs(60);

/// The hosts; they end and everything of them is removed when this is dropped.
#[derive(Debug)]
pub struct Hosts {
    dir: PathBuf,
}

impl Hosts {
    /// Starts `count` hosts called `n1` and so on, with the demo image. Removes what an earlier run left in `dir`.
    pub fn create(dir: &Path, count: usize) -> Result<Self> {
        remove(dir)?;
        fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
        let hosts = Self { dir: fs::canonicalize(dir)? };
        SWARM.up(count)?;
        for index in 1..=count {
            hosts.power_on(index)?;
            load_image(&hosts.socket(index))?;
        }
        Ok(hosts)
    }

    /// Starts a host's engine.
    pub fn power_on(&self, index: usize) -> Result<()> {
        engine::power_on(&self.directory(index), &SWARM.namespace(index), &format!("n{index}"))
    }

    /// Returns where a host has its things.
    pub fn directory(&self, index: usize) -> String {
        self.dir.join(format!("h{index}")).to_string_lossy().into_owned()
    }

    /// Returns where a host's engine answers.
    pub fn socket(&self, index: usize) -> PathBuf {
        Path::new(&self.directory(index)).join("docker.sock")
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.dir) {
            eprintln!("failed to remove the swarm: {error:#}");
        }
    }
}

/// Ends the hosts in `dir` and removes everything of them. Goes on after failures and tells the first.
pub fn remove(dir: &Path) -> Result<()> {
    let Ok(dir) = fs::canonicalize(dir) else { return Ok(()) };
    let mut results = Vec::new();
    for entry in fs::read_dir(&dir)?.flatten() {
        let is_host = entry.file_name().to_str().and_then(|name| name.strip_prefix('h')?.parse::<usize>().ok());
        if is_host.is_some() {
            results.push(engine::remove(&entry.path().to_string_lossy(), false));
        }
    }
    results.push(SWARM.down());
    results.push(process::unmount_below(&dir));
    results.push(fs::remove_dir_all(&dir).with_context(|| dir.display().to_string()));
    results.into_iter().collect()
}

/// Gives whoever speaks Docker's API at a socket the demo image.
pub fn load_image(socket: &Path) -> Result<()> {
    let mut command = Command::new("docker");
    command.arg("-H").arg(format!("unix://{}", socket.display())).args(["load", "-q", "-i"]);
    command.arg(repository().join("target/demo/whoami.tar"));
    shoal::run(command, LOAD_WAIT)?.success().context("load the demo image")?;
    Ok(())
}
