//! What was acknowledged and what runs outlive their daemons.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::str::FromStr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Result, bail, ensure};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use shoal_tests::lab::{IMAGE, Lab, Node, process};
use shoal_tests::shoal::text;
use shoal_tests::wait::wait_until;

use crate::{START_WAIT, WAIT, check, formed, serve, wait_well};

#[test]
fn tasks_outlive_their_daemon() -> Result<()> {
    let cluster = formed(3)?;
    check(&cluster, tasks_outlive(&cluster))
}

/// The containers of a node as the kernel shows them: by task, each process with the moment at which it was started.
type Containers = BTreeMap<String, BTreeSet<(i32, Option<u64>)>>;

fn containers_of(node: Node<'_>) -> Containers {
    let processes = |pids: BTreeSet<i32>| pids.into_iter().map(|pid| (pid, process::started(pid))).collect();
    node.tasks().into_iter().map(|(task, pids)| (task, processes(pids))).collect()
}

fn tasks_outlive(lab: &Lab) -> Result<()> {
    serve(lab, 6)?;
    let all = |lab: &Lab| -> Containers { lab.nodes().flat_map(containers_of).collect() };
    let before = all(lab);
    for announced in [false, true] {
        for node in lab.nodes() {
            if announced {
                node.stop()?
            } else {
                node.kill_daemon()?
            }
            ensure!(!node.tasks().is_empty(), "the tasks of node {} died with its daemon", node.index);
            node.start_and_wait(START_WAIT)?;
            wait_until("all nodes are ready", WAIT, || lab.all_ready())?;
            wait_well(lab, 6, &[])?;
            ensure!(all(lab) == before, "restarting the daemon of node {} changed containers", node.index);
        }
    }
    Ok(())
}

#[test]
fn acknowledged_writes_survive_the_death_of_all() -> Result<()> {
    let cluster = formed(3)?;
    check(&cluster, writes_survive(&cluster))
}

fn from_env<T: FromStr>(name: &str) -> Option<T> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

/// Another one each time: what one run does not hit, another may.
fn seed_of_the_day() -> Result<u64> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH)?;
    Ok(since.as_secs() << 32 | u64::from(since.subsec_nanos()))
}

fn writes_survive(lab: &Lab) -> Result<()> {
    let rounds: usize = from_env("SHOAL_E2E_ROUNDS").unwrap_or(3);
    let seed: u64 = from_env("SHOAL_SEED").map_or_else(seed_of_the_day, Ok)?;
    println!("kills at the moments of SHOAL_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    serve(lab, 3)?;
    let mut acknowledged = BTreeSet::new();
    let mut adopted = 0;
    for round in 0..rounds {
        let stop = Instant::now() + Duration::from_millis(random.random_range(200..1200));
        std::thread::scope(|scope| -> Result<()> {
            let writer = scope.spawn(|| {
                let mut written = Vec::new();
                for number in 0.. {
                    let name = format!("object-{round}-{number}");
                    let args = ["service", "create", "--detach", "--name", &name, "--replicas", "0", IMAGE];
                    match lab.node(1 + number % 3).shoal().run_within(&args, WAIT) {
                        Ok(output) if output.code == 0 => written.push(name),
                        _ => break,
                    }
                }
                written
            });
            std::thread::sleep(stop.saturating_duration_since(Instant::now()));
            lab.nodes().try_for_each(|node| node.kill_daemon())?;
            acknowledged.extend(writer.join().map_err(|_| anyhow::anyhow!("the writer panicked"))?);
            Ok(())
        })?;
        // Not the first: started with --init, it would make a cluster of its own.
        let loser = lab.node(2 + round % 2);
        let lost = loser.id()?;
        lose_data(loser)?;
        let kept: Containers = lab.nodes().flat_map(containers_of).collect();
        lab.nodes().try_for_each(|node| node.start())?;
        wait_until("all nodes are ready", WAIT, || lab.all_ready())?;
        // Voters that are gone are not replaced by themselves yet: their removal does it.
        let root = lab.node(1).shoal().ok(&["ca"])?;
        lab.node(1).shoal().ok(&["node", "rm", "--force", &lost])?;
        wait_until("the lost node's keys are replaced", WAIT, || Ok(lab.node(1).shoal().ok(&["ca"])? != root))?;
        lab.note_tokens(lab.node(1))?;
        wait_until("three voters are in place again", WAIT, || {
            let status = lab.node(1).shoal().status()?;
            let voters = status["Voters"].as_array().cloned().unwrap_or_default();
            let warnings = status["Warnings"].as_array().cloned().unwrap_or_default();
            let are_in_place = !warnings.iter().any(|warning| warning.to_string().contains("not in place yet"));
            Ok(are_in_place && voters.len() == 3 && !voters.iter().any(|voter| voter == lost.as_str()))
        })?;
        wait_well(lab, 3, &[])?;
        let now: Containers = lab.nodes().flat_map(containers_of).collect();
        let restarted: Vec<&String> =
            kept.iter().filter(|(task, is)| now.get(*task) != Some(is)).map(|(task, _)| task).collect();
        ensure!(restarted.is_empty(), "round {round}: not adopted as they were: {restarted:?}");
        adopted += kept.len();
        for node in lab.nodes() {
            wait_until("every acknowledged object is there", WAIT, || {
                let rows = node.shoal().json(&["service", "ls"])?;
                let names: BTreeSet<String> = rows.iter().map(|row| text(row, "Name").to_owned()).collect();
                let lost: Vec<&String> = acknowledged.difference(&names).collect();
                if lost.is_empty() { Ok(true) } else { bail!("lost {lost:?}") }
            })?;
        }
    }
    println!("{rounds} rounds, {} acknowledged objects, none lost, {adopted} tasks adopted", acknowledged.len());
    ensure!(!acknowledged.is_empty() && adopted > 0, "nothing was written or ran, so nothing was tested");
    Ok(())
}

/// Destroys a stopped node: it will have to join again, as another node.
fn lose_data(node: Node<'_>) -> Result<()> {
    node.crash()?;
    process::unmount_below(&node.data_dir())?;
    fs::remove_dir_all(node.data_dir())?;
    fs::create_dir_all(node.data_dir())?;
    Ok(())
}
