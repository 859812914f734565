//! Whoever never was a member, against real ports: refused, told why where that helps, and without a trace.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use anyhow::{Context, Result, ensure};
use shoal_tests::http;
use shoal_tests::lab::{Driver, IMAGE, Lab, Node, PORT, repository};
use shoal_tests::wait::wait_until;

use crate::watch::{Before, MARKER, check_wire, listen, marked};
use crate::{PUBLISHED, START_WAIT, WAIT, check, cluster, intruder, wait_well};

/// How often each kind of garbage is sent: one of each might leave a trace that is too small to be seen.
const REPEATS: usize = 20;

/// Nodes 1 and 2 are the cluster, 3 is another cluster, 4 is in none.
#[test]
fn strangers_are_refused_and_leave_no_trace() -> Result<()> {
    let cluster = cluster(4, Driver::Embedded, |config| config.bare = true)?;
    check(&cluster, strangers(&cluster))
}

fn strangers(lab: &Lab) -> Result<()> {
    let capture = listen(lab)?;
    lab.nodes().try_for_each(|node| node.start_and_wait(START_WAIT).map(|_| ()))?;
    lab.node(3).shoal().ok(&["init"])?;
    let token = two_managers(lab)?;
    let before = [1, 2].map(|index| Before::of(lab.node(index)));
    let before = before.into_iter().collect::<Result<Vec<_>>>()?;

    for index in [1, 2] {
        let address = SocketAddr::new(lab.node(index).address(), PORT);
        garbage(lab, address)?;
        let refusals = intruder::intrude(lab.client_namespace(), address)?;
        println!("node {index} hung up on a libp2p client {refusals} times");
    }
    tokens(lab, token.trim())?;
    for before in before {
        before.check(lab)?;
    }
    wait_well(lab, 2, &[3, 4])?;
    check_wire(lab, capture, &[1, 2])?;
    // Nobody has locked the right ones out.
    lab.node(4).shoal().ok(&["join", "--token", token.trim(), &seed(lab)])?;
    let ready = || Ok(lab.node(1).shoal().ok(&["node", "ls"])?.matches("Ready").count() == 3);
    wait_until("the one with the right token is a member", WAIT, ready).map(|_| ())
}

/// Makes a cluster of nodes 1 and 2 that runs a service with the marker in its spec. Returns the token for workers.
pub(crate) fn two_managers(lab: &Lab) -> Result<String> {
    let first = lab.node(1);
    first.shoal().ok(&["init"])?;
    let manager = first.shoal().ok(&["join-token", "-q", "manager"])?;
    lab.node(2).shoal().ok(&["join", "--token", manager.trim(), &seed(lab)])?;
    let archive = repository().join("target/demo/whoami.tar");
    first.shoal().ok(&["image", "load", "-i", &archive.to_string_lossy(), "--all"])?;
    let (ports, marked) = (format!("{PUBLISHED}:80"), marked());
    let mut args = vec!["service", "create", "--name", "http", "--replicas", "2", "-p", &ports];
    args.extend(marked.iter().map(String::as_str));
    args.push(IMAGE);
    first.shoal().ok(&args)?;
    let has_marker = |node: Node<'_>| Ok(node.shoal().ok(&["service", "inspect", "http"])?.contains(MARKER));
    wait_until("the marker has crossed the wire", WAIT, || has_marker(lab.node(2)))?;
    first.shoal().ok(&["join-token", "-q", "worker"])
}

pub(crate) fn seed(lab: &Lab) -> String {
    format!("{}:{PORT}", lab.node(1).address())
}

fn garbage(lab: &Lab, address: SocketAddr) -> Result<()> {
    for (name, bytes) in [
        ("nothing", Vec::new()),
        ("HTTP", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
        ("zeroes", vec![0; 1 << 20]),
        ("noise", (0..1u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect()),
        ("a huge frame", [&b"\x13/multistream/1.0.0\n"[..], &[0xff; 1 << 16]].concat()),
    ] {
        for _ in 0..REPEATS {
            http::in_namespace(lab.client_namespace().as_deref(), || hung_up(address, &bytes))
                .with_context(|| name.to_owned())?;
        }
    }
    Ok(())
}

/// Sends bytes to a node's port and waits until it hangs up.
fn hung_up(address: SocketAddr, bytes: &[u8]) -> Result<()> {
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

/// Tries to join with tokens that are none of this cluster's.
fn tokens(lab: &Lab, token: &str) -> Result<()> {
    let foreign = lab.node(3).shoal().ok(&["join-token", "-q", "manager"])?;
    let mut wrong = token.to_owned();
    let last = wrong.pop().context("empty token")?;
    wrong.push(if last == 'a' { 'b' } else { 'a' });
    for (name, token) in [("a wrong secret", wrong.as_str()), ("another cluster's", foreign.trim()), ("no token", "no")]
    {
        for _ in 0..3 {
            let output = lab.node(4).shoal().run(&["join", "--token", token, &seed(lab)])?;
            ensure!(output.code == 1 || output.code == 2, "a join with {name} exited with {}", output.code);
            ensure!(output.stderr.contains("token"), "a join with {name} said: {}", output.stderr);
            println!("{name}: {}", output.stderr.trim());
        }
    }
    Ok(())
}
