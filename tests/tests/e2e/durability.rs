//! What was acknowledged and what runs outlive their daemons; a damaged store is named and kept.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use shoal_tests::lab::{IMAGE, Lab, Node, process};
use shoal_tests::shoal::text;
use shoal_tests::wait::wait_until;

use crate::{START_WAIT, WAIT, check, formed, serve, wait_well};

#[test]
fn tasks_outlive_their_daemon() -> Result<()> {
    let cluster = formed(3)?;
    check(&cluster, tasks_outlive(&cluster))
}

fn tasks_outlive(lab: &Lab) -> Result<()> {
    serve(lab, 6)?;
    let all = |lab: &Lab| -> BTreeMap<String, BTreeSet<i32>> { lab.nodes().flat_map(|node| node.tasks()).collect() };
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

fn writes_survive(lab: &Lab) -> Result<()> {
    let rounds: usize = std::env::var("SHOAL_E2E_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(3);
    serve(lab, 3)?;
    let mut acknowledged = BTreeSet::new();
    for round in 0..rounds {
        let stop = Instant::now() + Duration::from_millis(200 + 137 * (round as u64 % 7));
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
        lab.nodes().try_for_each(|node| node.start())?;
        wait_until("all nodes are ready", WAIT, || lab.all_ready())?;
        // Voters that are gone are not replaced by themselves yet: their removal does it.
        lab.node(1).shoal().ok(&["node", "rm", "--force", &lost])?;
        wait_until("the voters are three again", WAIT, || {
            let status = lab.node(1).shoal().status()?;
            let voters = status["Voters"].as_array().cloned().unwrap_or_default();
            Ok(voters.len() == 3 && !voters.iter().any(|voter| voter == lost.as_str()))
        })?;
        wait_well(lab, 3, &[])?;
        for node in lab.nodes() {
            wait_until("every acknowledged object is there", WAIT, || {
                let rows = node.shoal().json(&["service", "ls"])?;
                let names: BTreeSet<String> = rows.iter().map(|row| text(row, "Name").to_owned()).collect();
                let lost: Vec<&String> = acknowledged.difference(&names).collect();
                if lost.is_empty() { Ok(true) } else { bail!("lost {lost:?}") }
            })?;
        }
    }
    println!("{rounds} rounds, {} acknowledged objects, none lost", acknowledged.len());
    ensure!(!acknowledged.is_empty(), "nothing was written, so nothing was tested");
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

#[test]
fn a_corrupt_store_is_named_and_kept() -> Result<()> {
    let cluster = formed(1)?;
    check(&cluster, corrupt_store(&cluster))
}

fn corrupt_store(lab: &Lab) -> Result<()> {
    let node = lab.node(1);
    node.kill_daemon()?;
    let mut files: Vec<_> = fs::read_dir(node.data_dir())?.flatten().map(|entry| entry.path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "redb"));
    let store = files.pop().context("there is no store")?;
    let garbage = vec![0xa5; 1 << 16];
    fs::write(&store, &garbage)?;
    node.start()?;
    wait_until("the daemon gives up", Duration::from_secs(5), || Ok(node.daemon().is_none()))?;
    let log = fs::read_to_string(node.log_path())?;
    let end: String = log.lines().rev().take(10).collect::<Vec<_>>().join("\n");
    ensure!(end.contains(&*store.to_string_lossy()), "the log does not name {}: {end}", store.display());
    ensure!(fs::read(&store)? == garbage, "the corrupt store was overwritten");
    Ok(())
}
