//! Published UDP ports: every node answers, and a task that dies is replaced for its clients.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use shoal_tests::http;
use shoal_tests::lab::{Driver, IMAGE, Lab, Layout, process};
use shoal_tests::wait::wait_until;

use crate::{PUBLISHED, WAIT, check, cluster, formed, wait_well};

const PORT: u16 = 5353;
const REPLICAS: usize = 6;
/// How long a client waits before it sends its datagram again.
const RESEND: Duration = Duration::from_millis(100);

#[test]
fn datagrams_are_answered_through_every_node_while_a_task_dies() -> Result<()> {
    let cluster = formed(3)?;
    check(&cluster, datagrams(&cluster))
}

/// Nodes that know each other by IPv6 addresses alone, and clients that have such: published ports of both kinds answer.
#[test]
fn published_ports_are_answered_over_ipv6() -> Result<()> {
    let cluster = cluster(3, Driver::Embedded, |config| config.layout = Layout::NamespacesV6)?;
    cluster.form()?;
    cluster.load_image()?;
    check(&cluster, datagrams(&cluster))
}

fn datagrams(lab: &Lab) -> Result<()> {
    let (replicas, variable) = (REPLICAS.to_string(), format!("UDP_PORT={PORT}"));
    let (tcp, udp) = (format!("{PUBLISHED}:80"), format!("{PORT}:{PORT}/udp"));
    let args = ["service", "create", "--name", "http", "--replicas", &replicas, "-e", &variable];
    lab.node(1).shoal().ok(&[&args[..], &["-p", &tcp, "-p", &udp, IMAGE]].concat())?;
    wait_well(lab, REPLICAS, &[])?;
    let clients: Vec<Client> = lab.nodes().map(|node| Client::new(lab, node.address())).collect::<Result<_>>()?;
    let mut tasks = Vec::new();
    for client in &clients {
        wait_until("a datagram is answered", WAIT, || Ok(client.ask(b"hello")?.is_some()))?;
        tasks.push(client.patiently(b"again")?);
    }
    // The task of the first client, and perhaps of others: their clients must find another.
    let victim = &tasks[0];
    let pids = lab.nodes().find_map(|node| node.tasks().remove(victim)).context("the task runs nowhere")?;
    let killed = Instant::now();
    process::signal(&process::hold(pids), Signal::KILL);
    for (client, before) in clients.iter().zip(&tasks) {
        let after = client.patiently(b"still there?")?;
        println!("{before} before, {after} after {:.2} s", killed.elapsed().as_secs_f64());
        ensure!(after != *victim, "a task that was killed answered");
        ensure!(before == victim || after == *before, "a flow moved although its task lives");
    }
    ensure!(killed.elapsed() < Duration::from_secs(5), "answers took {:?}", killed.elapsed());
    wait_well(lab, REPLICAS, &[])
}

/// A client of one node, connected to it: it takes answers of the published port alone.
struct Client(UdpSocket);

impl Client {
    fn new(lab: &Lab, node: std::net::IpAddr) -> Result<Self> {
        let socket = http::in_namespace(lab.client_namespace().as_deref(), || {
            let any: std::net::IpAddr = if node.is_ipv6() {
                std::net::Ipv6Addr::UNSPECIFIED.into()
            } else {
                std::net::Ipv4Addr::UNSPECIFIED.into()
            };
            let socket = UdpSocket::bind((any, 0)).context("bind")?;
            socket.connect(SocketAddr::new(node, PORT)).context("connect")?;
            Ok(socket)
        })?;
        socket.set_read_timeout(Some(RESEND))?;
        Ok(Self(socket))
    }

    /// Sends once; returns the task that answered, if any did in time.
    fn ask(&self, datagram: &[u8]) -> Result<Option<String>> {
        if self.0.send(datagram).is_err() {
            return Ok(None);
        }
        let mut answer = [0; 4096];
        let Ok(count) = self.0.recv(&mut answer) else { return Ok(None) };
        let text = String::from_utf8_lossy(&answer[..count]);
        let task = text.lines().find_map(|line| line.strip_prefix("Task: ")).context("an answer without a task")?;
        Ok(Some(task.to_owned()))
    }

    /// Sends again and again until there is an answer. Answers to earlier datagrams that have come meanwhile do not count.
    fn patiently(&self, datagram: &[u8]) -> Result<String> {
        self.0.set_nonblocking(true)?;
        while self.0.recv(&mut [0; 4096]).is_ok() {}
        self.0.set_nonblocking(false)?;
        let deadline = Instant::now() + WAIT;
        loop {
            if let Some(task) = self.ask(datagram)? {
                return Ok(task);
            }
            ensure!(Instant::now() < deadline, "no answer within {WAIT:?}");
        }
    }
}
