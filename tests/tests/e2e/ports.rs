//! Published ports that are taken.

use anyhow::{Context, Result, bail, ensure};
use shoal_tests::http;
use shoal_tests::lab::{IMAGE, Lab};
use shoal_tests::wait::wait_until;

use crate::{PUBLISHED, WAIT, check, formed, serve, wait_well};

#[test]
fn a_taken_port_is_reported() -> Result<()> {
    let cluster = formed(3)?;
    check(&cluster, taken_port(&cluster))
}

fn taken_port(lab: &Lab) -> Result<()> {
    let node = lab.node(2);
    let squatter = http::in_namespace(node.namespace().as_deref(), || {
        std::net::TcpListener::bind(("0.0.0.0", PUBLISHED)).context("bind")
    })?;
    let (ports, args) = (format!("{PUBLISHED}:80"), ["service", "create", "--detach", "--name", "http", "-p"]);
    lab.node(1).shoal().ok(&[&args[..], &[&ports, IMAGE]].concat())?;
    let told = |lab: &Lab| -> Result<bool> {
        let mut places = lab.node(1).shoal().ok(&["service", "ps", "http", "--no-trunc"])?;
        places += &lab.node(1).shoal().ok(&["service", "inspect", "http"])?;
        places += &lab.node(1).shoal().status()?.to_string();
        Ok(places.contains(&PUBLISHED.to_string()) && places.contains("in use"))
    };
    wait_until("the taken port is reported", WAIT, || told(lab))?;
    drop(squatter);
    wait_well(lab, 1, &[])?;
    wait_until("the report is gone", WAIT, || Ok(!told(lab)?))?;
    Ok(())
}

#[test]
fn two_services_cannot_publish_one_port() -> Result<()> {
    let cluster = formed(1)?;
    check(&cluster, one_port(&cluster))
}

fn one_port(lab: &Lab) -> Result<()> {
    serve(lab, 2)?;
    wait_until("each task's connections are counted, and all of them", WAIT, || counted(lab))?;
    let ports = format!("{PUBLISHED}:80");
    let args = ["service", "create", "--detach", "--name", "second", "-p", &ports, IMAGE];
    let output = lab.node(1).shoal().run(&args)?;
    ensure!(output.code == 1, "two services publish one port");
    ensure!(output.stderr.contains(&PUBLISHED.to_string()), "{}", output.stderr);
    Ok(())
}

/// Whether the two tasks have taken all connections between them, as the node's metrics say: each took some, none is open now.
fn counted(lab: &Lab) -> Result<bool> {
    let answer = http::unix(&lab.node(1).socket(), "GET", "/metrics", "", WAIT)?;
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    let port = format!("port=\"{PUBLISHED}\",protocol=\"tcp\"");
    // What one family says of the port: a number for each of its lines, with the labels beside the port's.
    let of_port = |family: &str| -> Vec<(String, u64)> {
        let start = format!("shoal_ingress_{family}{{{port}");
        let lines = text.lines().filter_map(|line| line.strip_prefix(&start)?.split_once("} "));
        lines.filter_map(|(labels, value)| Some((labels.to_owned(), value.parse().ok()?))).collect()
    };
    let sum = |family: &str| of_port(family).into_iter().map(|(_, value)| value).sum::<u64>();
    let tasks = of_port("backend_connections_total");
    let each = |name: &str| tasks.iter().any(|(labels, value)| labels.contains(name) && *value > 0);
    let (accepted, given_up) = (sum("connections_total"), sum("given_up_total"));
    let reached = sum("backend_connections_total");
    let are_all = tasks.len() == 2 && each("name=\"http.1\"") && each("name=\"http.2\"");
    if are_all && reached == sum("connected_total") && reached == accepted - given_up && sum("backend_open") == 0 {
        return Ok(true);
    }
    bail!("{tasks:?} do not add up to {accepted} accepted and {given_up} given up")
}
