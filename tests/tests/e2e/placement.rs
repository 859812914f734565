//! Where tasks run: spread over zones, and with generic resources that no other task has.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use anyhow::{Result, ensure};
use serde_json::Value;
use shoal_tests::lab::{IMAGE, Lab};
use shoal_tests::shoal::text;
use shoal_tests::wait::wait_until;

use crate::{START_WAIT, WAIT, check, formed};

#[test]
fn replicas_are_spread_over_zones_and_get_their_own_resources() -> Result<()> {
    let cluster = formed(3)?;
    check(&cluster, spread(&cluster).and_then(|()| resources(&cluster)))
}

fn spread(lab: &Lab) -> Result<()> {
    let shoal = lab.node(1).shoal();
    for (node, zone) in [("n1", "zone=a"), ("n2", "zone=a"), ("n3", "zone=b")] {
        shoal.ok(&["node", "update", "--label-add", zone, node])?;
    }
    let preference = ["--placement-pref", "spread=node.labels.zone"];
    let create = [&["service", "create", "--name", "even", "--replicas", "4"], &preference[..], &[IMAGE]].concat();
    shoal.ok(&create)?;
    let zones = |lab: &Lab| -> Result<(usize, usize)> {
        let nodes = nodes_of(lab, "even")?;
        let count = |names: &[&str]| names.iter().filter_map(|name| nodes.get(*name)).sum::<usize>();
        Ok((count(&["n1", "n2"]), count(&["n3"])))
    };
    ensure!(zones(lab)? == (2, 2), "{:?}", nodes_of(lab, "even")?);
    let pretty = lab.node(2).shoal().ok(&["service", "inspect", "--pretty", "even"])?;
    ensure!(pretty.contains(" Preferences:   [spread=node.labels.zone]\n"), "{pretty}");
    shoal.ok(&["service", "scale", "even=2"])?;
    wait_until("one replica is left in each zone", WAIT, || Ok(zones(lab)? == (1, 1)))?;
    shoal.ok(&["service", "rm", "even"])?;
    Ok(())
}

fn resources(lab: &Lab) -> Result<()> {
    let shoal = lab.node(1).shoal();
    let offering = lab.node(3);
    offering.stop()?;
    offering.start_with(&["--generic-resource", "gpu=UUID1", "--generic-resource", "gpu=UUID2"].map(str::to_owned))?;
    offering.wait_answers(START_WAIT)?;
    wait_until("node 3 tells what it offers", WAIT, || {
        Ok(shoal.ok(&["node", "inspect", "--pretty", "n3"])?.contains("gpu=UUID1, gpu=UUID2"))
    })?;
    let create =
        ["service", "create", "--detach", "--name", "gpus", "--replicas", "3", "--generic-resource", "gpu=1", IMAGE];
    shoal.ok(&create)?;
    wait_until("two of three run, on the node that offers them", WAIT, || {
        Ok(nodes_of(lab, "gpus")? == BTreeMap::from([("n3".to_owned(), 2)]))
    })?;
    let tasks = shoal.json(&["service", "ps", "--no-trunc", "gpus"])?;
    let waits = |task: &Value| text(task, "Error").contains("no suitable node (insufficient resources on 3 nodes)");
    ensure!(tasks.iter().filter(|task| waits(task)).count() == 1, "{tasks:?}");
    let given = variables(lab)?;
    ensure!(given == BTreeSet::from(["UUID1".to_owned(), "UUID2".to_owned()]), "{given:?}");

    shoal.ok(&["service", "scale", "gpus=1"])?;
    shoal.ok(&["service", "update", "--detach", "--generic-resource-add", "gpu=2", "gpus"])?;
    wait_until("one task has both", WAIT, || Ok(variables(lab)? == BTreeSet::from(["UUID1,UUID2".to_owned()])))?;
    Ok(())
}

/// Returns how many tasks of a service run on each node.
fn nodes_of(lab: &Lab, service: &str) -> Result<BTreeMap<String, usize>> {
    let mut nodes = BTreeMap::new();
    for task in lab.node(2).shoal().json(&["service", "ps", "--filter", "desired-state=running", service])? {
        if text(&task, "CurrentState").starts_with("Running") {
            *nodes.entry(text(&task, "Node").to_owned()).or_default() += 1;
        }
    }
    Ok(nodes)
}

/// Returns what the containers on node 3 are told of their resources.
fn variables(lab: &Lab) -> Result<BTreeSet<String>> {
    let mut given = BTreeSet::new();
    for pid in lab.node(3).tasks().into_values().flatten() {
        // A process that ends meanwhile has nothing to tell.
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let texts = environment.split(|byte| *byte == 0).map(|text| String::from_utf8_lossy(text).into_owned());
        given.extend(texts.filter_map(|text| text.strip_prefix("DOCKER_RESOURCE_GPU=").map(str::to_owned)));
    }
    Ok(given)
}
