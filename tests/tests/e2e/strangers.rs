//! Whoever is not a member, against real ports: refused, told why where that helps, and without a trace.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use shoal_tests::http;
use shoal_tests::lab::{Driver, Lab, PORT};
use shoal_tests::shoal::text;

use crate::{START_WAIT, check, cluster};

#[test]
fn strangers_are_refused_and_leave_no_trace() -> Result<()> {
    let cluster = cluster(3, Driver::Embedded, |config| config.bare = true)?;
    check(&cluster, strangers(&cluster))
}

fn strangers(lab: &Lab) -> Result<()> {
    for node in lab.nodes() {
        node.start_and_wait(START_WAIT)?;
    }
    lab.node(1).shoal().ok(&["init"])?;
    lab.node(2).shoal().ok(&["init"])?;
    let (before, rss_before) = (digest(lab, 1)?, rss_kib(lab, 1)?);
    let address = SocketAddr::new(lab.node(1).address(), PORT);
    for (name, bytes) in [
        ("nothing", Vec::new()),
        ("HTTP", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
        ("zeroes", vec![0; 1 << 20]),
        ("noise", (0..1u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect()),
        ("a huge frame", [&b"\x13/multistream/1.0.0\n"[..], &[0xff; 1 << 16]].concat()),
    ] {
        for _ in 0..20 {
            http::in_namespace(lab.client_namespace().as_deref(), || refused(address, &bytes))
                .with_context(|| name.to_owned())?;
        }
    }
    let token = lab.node(1).shoal().ok(&["join-token", "-q", "worker"])?;
    let foreign = lab.node(2).shoal().ok(&["join-token", "-q", "worker"])?;
    let mut wrong = token.trim().to_owned();
    let last = wrong.pop().context("empty token")?;
    wrong.push(if last == 'a' { 'b' } else { 'a' });
    let seed = format!("{}:{PORT}", lab.node(1).address());
    for (name, token) in [("a wrong secret", wrong.as_str()), ("another cluster's", foreign.trim()), ("no token", "no")]
    {
        let output = lab.node(3).shoal().run(&["join", "--token", token, &seed])?;
        ensure!(output.code == 1 || output.code == 2, "a join with {name} exited with {}", output.code);
        ensure!(output.stderr.contains("token"), "a join with {name} said: {}", output.stderr);
        println!("{name}: {}", output.stderr.trim());
    }
    ensure!(digest(lab, 1)? == before, "a stranger changed the document");
    let grown = rss_kib(lab, 1)?.saturating_sub(rss_before);
    println!("memory grew by {grown} KiB");
    ensure!(grown < 5 * 1024, "memory grew by {grown} KiB");
    lab.node(3).shoal().ok(&["join", "--token", token.trim(), &seed])?;
    Ok(())
}

/// Sends bytes to a node's port and waits until it hangs up.
fn refused(address: SocketAddr, bytes: &[u8]) -> Result<()> {
    let mut stream = TcpStream::connect_timeout(&address, START_WAIT)?;
    stream.set_read_timeout(Some(START_WAIT))?;
    stream.set_write_timeout(Some(START_WAIT))?;
    // The node may hang up before it has read everything.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let mut answer = [0; 4096];
    loop {
        match stream.read(&mut answer) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return Ok(()),
            Err(error) => return Err(error).context("the node did not hang up"),
        }
    }
}

fn digest(lab: &Lab, index: usize) -> Result<String> {
    let status = lab.node(index).shoal().status()?;
    let id = lab.node(index).id()?;
    let nodes = status.get("Nodes").and_then(Value::as_array).context("status has no Nodes")?;
    let node = nodes.iter().find(|node| text(node, "ID") == id).context("status does not list the node itself")?;
    Ok(text(node, "Digest").to_owned())
}

fn rss_kib(lab: &Lab, index: usize) -> Result<u64> {
    let pid = lab.node(index).daemon().context("the daemon died")?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse()?)
}
