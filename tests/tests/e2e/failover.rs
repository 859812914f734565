//! Nodes die, nodes are cut off: tasks move and requests go on.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use shoal_tests::http;
use shoal_tests::lab::{IMAGE, Lab};
use shoal_tests::load::{Load, Tally};
use shoal_tests::wait::wait_until;

use crate::{PUBLISHED, START_WAIT, WAIT, check, formed, serve, wait_well};

/// How long a client may be left with a connection that leads nowhere. A link is given up after four seconds of silence.
const BREAK_WAIT: Duration = Duration::from_secs(30);

#[test]
fn tasks_move_when_a_node_dies_and_requests_go_on() -> Result<()> {
    let cluster = formed(5)?;
    check(&cluster, tasks_move(&cluster))
}

fn tasks_move(lab: &Lab) -> Result<()> {
    serve(lab, 10)?;
    for (cable, victim) in [(false, 5), (true, 4), (true, 1)] {
        let others: Vec<usize> = (1..=5).filter(|index| *index != victim).collect();
        let load = Load::start(lab, &others[..1], PUBLISHED, 200);
        std::thread::sleep(Duration::from_secs(1));
        let moment = Instant::now();
        if cable {
            lab.cut(&[victim])?;
        } else {
            lab.node(victim).crash()?;
        }
        wait_well(lab, 10, &[victim])?;
        println!("node {victim}, cable {cable}: well again after {:.2} s", moment.elapsed().as_secs_f64());
        let tally = Tally::of(&load.stop()?, moment);
        println!("{} requests, {} open at the fault, {} of those failed", tally.all, tally.open, tally.failed_open);
        ensure!(tally.faults().is_empty(), "{}", tally.faults().join("; "));
        if cable {
            lab.heal(&[victim])?;
        } else {
            lab.node(victim).start_and_wait(START_WAIT)?;
        }
        wait_until("all nodes are ready", WAIT, || lab.all_ready())?;
        wait_well(lab, 10, &[])?;
    }
    Ok(())
}

#[test]
fn connections_to_a_node_that_fell_silent_break() -> Result<()> {
    let cluster = formed(3)?;
    check(&cluster, connections_break(&cluster))
}

/// A client whose task is on a node that nobody hears any more is told so, once the link is given up. Its own connection to the
/// node that it asked is well, so nothing else would ever tell it.
fn connections_break(lab: &Lab) -> Result<()> {
    let place = ["--name", "http", "--constraint", "node.hostname==n3", "-p", &format!("{PUBLISHED}:80")];
    lab.node(1).shoal().ok(&[&["service", "create"][..], &place, &[IMAGE]].concat())?;
    let mut stream = http::in_namespace(lab.client_namespace().as_deref(), || {
        TcpStream::connect((lab.node(1).address(), PUBLISHED)).context("connect")
    })?;
    stream.set_read_timeout(Some(BREAK_WAIT))?;
    stream.write_all(b"GET /health HTTP/1.1\r\nHost: test\r\nConnection: keep-alive\r\n\r\n")?;
    ensure!(stream.read(&mut [0; 4096])? > 0, "the task did not answer");
    let cut = Instant::now();
    lab.cut(&[3])?;
    let ended = stream.read(&mut [0; 4096]).map_err(|error| error.kind());
    println!("{ended:?} after {:.2} s", cut.elapsed().as_secs_f64());
    ensure!(matches!(ended, Ok(0) | Err(ErrorKind::ConnectionReset)), "the connection stays: {ended:?}");
    Ok(())
}

#[test]
fn without_quorum_writes_are_refused_and_tasks_stay() -> Result<()> {
    let cluster = formed(3)?;
    check(&cluster, without_quorum(&cluster))
}

fn without_quorum(lab: &Lab) -> Result<()> {
    serve(lab, 3)?;
    let before = lab.node(1).tasks();
    lab.node(2).crash()?;
    lab.node(3).crash()?;
    wait_until("status says that there is no quorum", WAIT, || {
        let output = lab.node(1).shoal().run(&["status", "--format", "json"])?;
        ensure!(output.code != 0 || !output.stdout.is_empty(), "status printed nothing");
        Ok(output.code == 1 && lab.node(1).shoal().status()?.get("Quorum") == Some(&Value::Bool(false)))
    })?;
    let args = ["service", "create", "--detach", "--name", "refused", "--replicas", "0", IMAGE];
    let output = lab.node(1).shoal().run_within(&args, Duration::from_secs(30))?;
    ensure!(output.code == 1 && output.stderr.contains("quorum"), "a write without quorum: {output:?}");
    ensure!(lab.node(1).shoal().ok(&["service", "ls"])?.contains("http"), "reads do not work without quorum");
    let kept = lab.node(1).tasks();
    ensure!(before.keys().all(|task| kept.contains_key(task)), "running tasks did not stay");
    lab.node(2).start_and_wait(START_WAIT)?;
    lab.node(3).start_and_wait(START_WAIT)?;
    wait_until("all nodes are ready", WAIT, || lab.all_ready())?;
    wait_well(lab, 3, &[])
}
