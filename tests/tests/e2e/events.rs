//! Events, told by nodes that did not bring them about.

use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use shoal_tests::lab::{IMAGE, Lab, Node};
use shoal_tests::wait::wait_until;

use crate::{WAIT, check, formed};

/// Kind, action, beginning of the name, and attributes that an event has among others.
type Wanted<'a> = (&'a str, &'a str, &'a str, &'a [(&'a str, &'a str)]);

/// `shoal events` on one node, until this is dropped.
struct Events {
    child: Child,
    path: std::path::PathBuf,
}

impl Events {
    fn follow(node: Node<'_>) -> Result<Self> {
        let (shoal, path) = (node.shoal(), node.dir().join("events.jsonl"));
        let mut command = Command::new(&shoal.binary);
        command.arg("-H").arg(format!("unix://{}", shoal.socket.display())).args(["events", "--format", "json"]);
        // Without a beginning it is told what happens once it is connected, and who asks does not know since when it is.
        command.args(["--since", "10m"]);
        let output = std::fs::File::create(&path)?;
        Ok(Self { child: command.stdin(Stdio::null()).stdout(output).spawn()?, path })
    }

    /// Waits until all of these were told.
    fn wait(&self, wanted: &[Wanted]) -> Result<()> {
        for (kind, action, name, attributes) in wanted {
            let what = format!("{kind} {action} {name} {attributes:?} is told in {}", self.path.display());
            wait_until(&what, WAIT, || {
                let text = std::fs::read_to_string(&self.path)?;
                let events = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
                Ok(events.into_iter().any(|event| {
                    let told = &event["Actor"]["Attributes"];
                    event["Type"] == *kind
                        && event["Action"] == *action
                        && told["name"].as_str().is_some_and(|told| told.starts_with(name))
                        && attributes.iter().all(|(key, value)| told[key] == *value)
                }))
            })?;
        }
        Ok(())
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn events_are_told_by_nodes_that_did_not_bring_them_about() -> Result<()> {
    let cluster = formed(3)?;
    check(&cluster, events(&cluster))
}

fn events(lab: &Lab) -> Result<()> {
    let (first, third) = (lab.node(1), lab.node(3));
    let hostname = |index: usize| -> Result<String> {
        let inspected =
            lab.node(index).shoal().ok(&["node", "inspect", "self", "--format", "{{.Description.Hostname}}"])?;
        Ok(inspected.trim().to_owned())
    };
    let (second, own) = (hostname(2)?, third.id()?);
    let events = Events::follow(third)?;
    first.shoal().ok(&[
        "service",
        "create",
        "--name",
        "web",
        "--replicas",
        "1",
        "--constraint",
        &format!("node.id=={own}"),
        IMAGE,
    ])?;
    events.wait(&[
        ("service", "create", "web", &[]),
        ("container", "create", "web.1.", &[("image", IMAGE), ("com.docker.swarm.service.name", "web")]),
        ("container", "start", "web.1.", &[]),
    ])?;
    first.shoal().ok(&["service", "scale", "web=2"])?;
    events.wait(&[("service", "update", "web", &[("replicas.new", "2"), ("replicas.old", "1")])])?;
    first.shoal().ok(&["service", "update", "--env-add", "A=1", "web"])?;
    events.wait(&[
        ("service", "update", "web", &[("updatestate.new", "updating")]),
        ("service", "update", "web", &[("updatestate.new", "completed"), ("updatestate.old", "updating")]),
        ("container", "die", "web.", &[]),
    ])?;
    first.shoal().ok(&["node", "update", "--availability", "drain", &second])?;
    events.wait(&[("node", "update", &second, &[("availability.new", "drain"), ("availability.old", "active")])])?;
    first.shoal().ok(&["service", "rm", "web"])?;
    events.wait(&[("service", "remove", "web", &[])])?;
    first.shoal().ok(&["network", "create", "--driver", "overlay", "back"])?;
    first.shoal().ok(&["network", "rm", "back"])?;
    events.wait(&[("network", "create", "back", &[]), ("network", "remove", "back", &[])])?;
    lab.node(2).crash()?;
    events.wait(&[("node", "update", &second, &[("state.new", "down"), ("state.old", "ready")])])?;

    // Another node tells the same of the cluster, and nothing of the containers on the third.
    let past = first.shoal().json(&["events", "--since", "10m", "--until", "0s", "--filter", "service=web"])?;
    let actions: Vec<&str> = past.iter().filter_map(|event| event["Action"].as_str()).collect();
    ensure!(actions.first() == Some(&"create") && actions.last() == Some(&"remove"), "{actions:?}");
    let created = past.first().context("it was created")?["timeNano"].as_u64().context("at a time")?;
    ensure!(past.iter().all(|event| event["timeNano"].as_u64() >= Some(created)), "{past:?}");
    let containers =
        first.shoal().json(&["events", "--since", "10m", "--until", "0s", "--filter", "type=container"])?;
    ensure!(containers.is_empty(), "{containers:?}");
    Ok(())
}
