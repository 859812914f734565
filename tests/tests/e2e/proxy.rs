//! Tasks that are told who their clients are, by a header of the PROXY protocol.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};

use anyhow::{Context, Result, ensure};
use shoal_tests::evidence::REQUEST_WAIT;
use shoal_tests::http::{self, Answer};
use shoal_tests::lab::{IMAGE, Lab, network};
use shoal_tests::wait::wait_until;

use crate::{PUBLISHED, WAIT, check, formed};

#[test]
fn tasks_learn_who_their_clients_are() -> Result<()> {
    let cluster = formed(2)?;
    check(&cluster, learn(&cluster))
}

fn learn(lab: &Lab) -> Result<()> {
    let publish = |version: &str| format!("published={PUBLISHED},target=80,proxy={version}");
    let place = ["--name", "http", "--constraint", "node.hostname==n2", "--env", "PROXY_PROTOCOL=1"];
    lab.node(1).shoal().ok(&[&["service", "create", "-p", &publish("v1")][..], &place, &[IMAGE]].concat())?;
    all_ways(lab, "v1")?;

    // What no header announces is no connection for this task.
    lab.node(1).shoal().ok(&["service", "update", "--label-rm", &format!("shoal.proxy.{PUBLISHED}"), "http"])?;
    for through in [1, 2] {
        let address = SocketAddr::new(lab.node(through).address(), PUBLISHED);
        wait_until("no header comes any more", WAIT, || Ok(ask(lab, address).is_err()))?;
    }
    lab.node(2).shoal().ok(&["service", "update", "--publish-add", &publish("v2"), "http"])?;
    all_ways(lab, "v2")?;

    // As a client of Docker sets it.
    let label = format!("shoal.proxy.{PUBLISHED}/tcp=v1");
    lab.node(1).shoal().ok(&["service", "update", "--label-rm", &format!("shoal.proxy.{PUBLISHED}"), "http"])?;
    lab.node(1).shoal().ok(&["service", "update", "--label-add", &label, "http"])?;
    all_ways(lab, "v1")
}

/// Asks the task on node 2 through both nodes, one of them by a tunnel, by their addresses of both families.
fn all_ways(lab: &Lab, version: &str) -> Result<()> {
    for through in [1, 2] {
        let addresses = [IpAddr::V4(network::SHOAL.address(through)), IpAddr::V6(network::SHOAL.address_v6(through))];
        for address in addresses.map(|address| SocketAddr::new(address, PUBLISHED)) {
            wait_until(&format!("a client of {address} is told of in version {version}"), WAIT, || {
                let (client, answer) = ask(lab, address)?;
                let fields = answer.fields();
                let field = |name: &str| fields.get(name).map(String::as_str).unwrap_or_default();
                ensure!(field("Node") == "n2", "not the task on n2 answered: {fields:?}");
                let told = (field("Client"), field("Server"), field("Proxy"));
                ensure!(told == (&client.to_string(), &address.to_string(), version), "{client}: {fields:?}");
                Ok(true)
            })?;
        }
    }
    Ok(())
}

/// Asks who the client is, and returns also who it was.
fn ask(lab: &Lab, address: SocketAddr) -> Result<(SocketAddr, Answer)> {
    http::in_namespace(lab.client_namespace().as_deref(), || {
        let mut stream = TcpStream::connect_timeout(&address, REQUEST_WAIT)?;
        stream.set_read_timeout(Some(REQUEST_WAIT))?;
        stream.write_all(b"GET /client HTTP/1.1\r\nHost: whoami\r\nConnection: close\r\n\r\n")?;
        let client = stream.local_addr()?;
        let mut text = Vec::new();
        stream.read_to_end(&mut text)?;
        let at = text.windows(4).position(|bytes| bytes == b"\r\n\r\n").context("no answer")?;
        Ok((client, Answer { status: 200, body: text.split_off(at + 4) }))
    })
}
