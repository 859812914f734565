//! Whole clusters of real daemons in network namespaces. Needs root, iproute2 and the demo image; `scripts/test` runs it.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use shoal_tests::lab::{Driver, Guard, IMAGE, Lab, LabConfig, repository};
use shoal_tests::wait::wait_until;
use shoal_tests::{evidence, walk};

mod disk;
mod drains;
mod durability;
mod events;
mod failover;
mod health;
mod intruder;
mod jobs;
mod keys;
mod lock;
mod logs;
mod outcasts;
mod page;
mod pauses;
mod placement;
mod ports;
mod proxy;
mod registry;
mod rejoin;
mod roles;
mod secrets;
mod strangers;
mod tcp;
mod top;
mod udp;
mod updates;
mod watch;

const START_WAIT: Duration = Duration::from_secs(30);
const WAIT: Duration = Duration::from_secs(60);
const PUBLISHED: u16 = 8080;

/// A laboratory in a directory of its own; both are removed at the end.
struct Cluster {
    lab: Guard,
    _dir: tempfile::TempDir,
}

impl std::ops::Deref for Cluster {
    type Target = Lab;
    fn deref(&self) -> &Lab {
        &self.lab
    }
}

fn cluster(nodes: usize, driver: Driver, change: impl FnOnce(&mut LabConfig)) -> Result<Cluster> {
    ensure!(rustix::process::geteuid().is_root(), "these tests make network namespaces: run them as root");
    let dir = tempfile::Builder::new().prefix("shoal-e2e").tempdir()?;
    let mut config = LabConfig::new(dir.path().join("lab"), nodes, driver)?;
    change(&mut config);
    Ok(Cluster { lab: Guard(Lab::create(config)?), _dir: dir })
}

fn formed(nodes: usize) -> Result<Cluster> {
    let cluster = cluster(nodes, Driver::Embedded, |_| {})?;
    cluster.form()?;
    cluster.load_image()?;
    Ok(cluster)
}

/// Shows the daemons' logs when a test fails without a panic.
fn check(lab: &Lab, result: Result<()>) -> Result<()> {
    if result.is_err() {
        lab.print_logs();
    }
    result
}

fn serve(lab: &Lab, replicas: usize) -> Result<()> {
    let (count, ports) = (replicas.to_string(), format!("{PUBLISHED}:80"));
    lab.node(1).shoal().ok(&["service", "create", "--name", "http", "--replicas", &count, "-p", &ports, IMAGE])?;
    wait_well(lab, replicas, &[])
}

fn wait_well(lab: &Lab, replicas: usize, excused: &[usize]) -> Result<()> {
    let excused = excused.iter().copied().collect();
    wait_until(&format!("{replicas} replicas run and answer"), WAIT, || {
        let faults = evidence::faults_of(lab, PUBLISHED, replicas, &excused);
        if faults.is_empty() { Ok(true) } else { bail!(faults.join("; ")) }
    })
    .map(|_| ())
}

fn walk_on(driver: Driver) -> Result<()> {
    let cluster = cluster(3, driver, |config| config.bare = true)?;
    check(&cluster, walk::walk(&cluster, &repository().join("target/demo/whoami.tar")))
}

#[test]
fn the_walk_on_the_embedded_driver() -> Result<()> {
    walk_on(Driver::Embedded)
}

#[test]
fn the_walk_on_the_docker_driver() -> Result<()> {
    walk_on(Driver::Docker)
}
