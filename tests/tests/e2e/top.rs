//! `shoal top` in a real terminal, in front of a real daemon, one that dies included.

use std::process::Command;

use anyhow::{Result, ensure};
use rustix::process::Signal;
use shoal_tests::lab::{Driver, Lab};
use shoal_tests::terminal::Terminal;

use crate::{WAIT, check, cluster, serve};

const TAKEN: &str = "\u{1b}[?1049h";
const GIVEN_BACK: &str = "\u{1b}[?1049l";

#[test]
fn the_live_view_follows_the_cluster_and_gives_the_terminal_back() -> Result<()> {
    let cluster = cluster(2, Driver::Embedded, |_| {})?;
    cluster.form()?;
    cluster.load_image()?;
    check(&cluster, follow(&cluster).and_then(|()| end(&cluster)))
}

fn top(lab: &Lab) -> Result<Terminal> {
    let shoal = lab.node(1).shoal();
    let mut command = Command::new(&shoal.binary);
    command.arg("-H").arg(format!("unix://{}", shoal.socket.display())).args(["top", "--interval", "300ms"]);
    let terminal = Terminal::run(&command, 100, 30)?;
    terminal.wait("the services are shown", WAIT, |text| text.contains("Services (") && text.contains("REPLICAS"))?;
    Ok(terminal)
}

fn follow(lab: &Lab) -> Result<()> {
    serve(lab, 2)?;
    let shoal = lab.node(1).shoal();
    let mut top = top(lab)?;
    top.wait("the service runs", WAIT, |text| text.contains("http") && text.contains("2/2"))?;
    shoal.ok(&["service", "scale", "http=3"])?;
    top.wait("the third task runs, and the event is told", WAIT, |text| {
        text.contains("3/3") && text.contains("replicas 2 → 3")
    })?;
    top.press("\r")?;
    top.wait("its tasks are shown", WAIT, |text| {
        text.contains("Tasks of service http (3)") && text.contains("http.3")
    })?;
    top.press("/http.2\r")?;
    top.wait("one is found", WAIT, |text| text.contains("1 of 3 have") && !text.contains("http.3  "))?;
    top.press("\r")?;
    top.wait("all about it", WAIT, |text| text.contains("Details") && text.contains("Desired"))?;
    top.press("\u{1b}")?;
    top.wait("the details are gone", WAIT, |text| !text.contains("Details"))?;
    top.press("1")?;
    let both = |text: &str| text.matches("Ready").count() == 2 && text.contains("n1 *") && text.contains("registry");
    top.wait("both nodes are shown", WAIT, both)?;
    top.press("5")?;
    lab.get(1, crate::PUBLISHED, "/", WAIT)?;
    top.wait("a connection is counted", WAIT, |text| text.contains("8080/tcp"))?;
    top.press("4")?;
    top.wait("leases are held", WAIT, |text| text.contains("shard-15") && !text.contains("nobody"))?;
    top.resize(40, 10)?;
    // A key that is pressed in the moment of a resize may wait for the next one: crossterm hears of each only once.
    top.wait("it is narrow", WAIT, |text| text.contains("4 Leases") && text.contains("q quit"))?;
    top.press("3")?;
    top.wait("it is small", WAIT, |text| text.contains("3 Tasks") && text.contains("http.2"))?;
    top.resize(100, 30)?;
    // The daemon dies: what was known stays, and it is said that it is old.
    lab.node(1).kill_daemon()?;
    top.wait("the silence is told", WAIT, |text| text.contains("No answer for") && text.contains("http.2"))?;
    lab.node(1).start_and_wait(WAIT)?;
    top.wait("it goes on", WAIT, |text| !text.contains("No answer for") && text.contains("tasks 3/3"))?;
    top.press("q")?;
    given_back(top, 0)
}

/// However it ends, the terminal is as it was.
fn end(lab: &Lab) -> Result<()> {
    let mut interrupted = top(lab)?;
    ensure!(!interrupted.is_as_found()?, "the terminal was not taken over");
    interrupted.press("\u{3}")?;
    given_back(interrupted, 0)?;
    for (signal, code) in [(Signal::INT, 0), (Signal::TERM, 1), (Signal::HUP, 1)] {
        let ended = top(lab)?;
        ended.signal(signal)?;
        given_back(ended, code)?;
    }
    let refused = lab.node(1).shoal().run(&["top"])?;
    ensure!(refused.code == 1 && refused.stderr.contains("needs a terminal"), "{refused:?}");
    Ok(())
}

fn given_back(mut top: Terminal, code: i32) -> Result<()> {
    let status = top.wait_end(WAIT)?;
    ensure!(status.code() == Some(code), "it ended with {status}, not {code}: {}", top.text());
    let written = top.written();
    let (taken, back) = (written.rfind(TAKEN), written.rfind(GIVEN_BACK));
    ensure!(taken.is_some() && taken < back, "the screen was not given back: {taken:?}, {back:?}");
    ensure!(written.contains("\u{1b}[?25h"), "the cursor stays hidden");
    ensure!(top.is_as_found()?, "the terminal's modes were not given back");
    Ok(())
}
