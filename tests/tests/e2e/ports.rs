//! Published ports that are taken.

use anyhow::{Context, Result, ensure};
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
    serve(lab, 1)?;
    let ports = format!("{PUBLISHED}:80");
    let args = ["service", "create", "--detach", "--name", "second", "-p", &ports, IMAGE];
    let output = lab.node(1).shoal().run(&args)?;
    ensure!(output.code == 1, "two services publish one port");
    ensure!(output.stderr.contains(&PUBLISHED.to_string()), "{}", output.stderr);
    Ok(())
}
