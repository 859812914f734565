//! Whole clusters of real daemons in network namespaces. Needs root, iproute2 and the demo image; `scripts/test` runs it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use shoal_tests::lab::{Driver, Guard, IMAGE, Lab, LabConfig, PORT, repository};
use shoal_tests::load::{Load, Tally};
use shoal_tests::shoal::text;
use shoal_tests::wait::wait_until;
use shoal_tests::{evidence, http, walk};

#[path = "e2e/rejoin.rs"]
mod rejoin;

const START_WAIT: Duration = Duration::from_secs(30);
const WAIT: Duration = Duration::from_secs(60);
const PUBLISHED: u16 = 8080;

/// A laboratory in a directory of its own; both are removed at the end.
struct Cluster {
    lab: Guard,
    _dir: tempfile::TempDir,
}

impl std::ops::Deref for Cluster {
    type Target = Lab;
    fn deref(&self) -> &Lab {
        &self.lab
    }
}

fn cluster(nodes: usize, driver: Driver, change: impl FnOnce(&mut LabConfig)) -> Result<Cluster> {
    ensure!(rustix::process::geteuid().is_root(), "these tests make network namespaces: run them as root");
    let dir = tempfile::Builder::new().prefix("shoal-e2e").tempdir()?;
    let mut config = LabConfig::new(dir.path().join("lab"), nodes, driver)?;
    change(&mut config);
    Ok(Cluster { lab: Guard(Lab::create(config)?), _dir: dir })
}

fn formed(nodes: usize) -> Result<Cluster> {
    let cluster = cluster(nodes, Driver::Embedded, |_| {})?;
    cluster.form()?;
    cluster.load_image()?;
    Ok(cluster)
}

/// Shows the daemons' logs when a test fails without a panic.
fn check(lab: &Lab, result: Result<()>) -> Result<()> {
    if result.is_err() {
        lab.print_logs();
    }
    result
}

fn serve(lab: &Lab, replicas: usize) -> Result<()> {
    let (count, ports) = (replicas.to_string(), format!("{PUBLISHED}:80"));
    lab.node(1).shoal().ok(&["service", "create", "--name", "http", "--replicas", &count, "-p", &ports, IMAGE])?;
    wait_well(lab, replicas, &[])
}

fn wait_well(lab: &Lab, replicas: usize, excused: &[usize]) -> Result<()> {
    let excused = excused.iter().copied().collect();
    wait_until(&format!("{replicas} replicas run and answer"), WAIT, || {
        let faults = evidence::faults_of(lab, PUBLISHED, replicas, &excused);
        if faults.is_empty() { Ok(true) } else { bail!(faults.join("; ")) }
    })
    .map(|_| ())
}

fn walk_on(driver: Driver) -> Result<()> {
    let cluster = cluster(3, driver, |config| config.bare = true)?;
    check(&cluster, walk::walk(&cluster, &repository().join("target/demo/whoami.tar")))
}

#[test]
fn the_walk_on_the_embedded_driver() -> Result<()> {
    walk_on(Driver::Embedded)
}

#[test]
fn the_walk_on_the_docker_driver() -> Result<()> {
    walk_on(Driver::Docker)
}

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
fn tasks_outlive_their_daemon() -> Result<()> {
    let cluster = formed(3)?;
    check(&cluster, tasks_outlive(&cluster))
}

fn tasks_outlive(lab: &Lab) -> Result<()> {
    serve(lab, 6)?;
    let all = |lab: &Lab| -> BTreeMap<String, BTreeSet<i32>> { lab.nodes().flat_map(|node| node.tasks()).collect() };
    let before = all(lab);
    for announced in [false, true] {
        for node in lab.nodes() {
            if announced {
                node.stop()?
            } else {
                node.kill_daemon()?
            }
            ensure!(!node.tasks().is_empty(), "the tasks of node {} died with its daemon", node.index);
            node.start_and_wait(START_WAIT)?;
            wait_until("all nodes are ready", WAIT, || lab.all_ready())?;
            wait_well(lab, 6, &[])?;
            ensure!(all(lab) == before, "restarting the daemon of node {} changed containers", node.index);
        }
    }
    Ok(())
}

#[test]
fn acknowledged_writes_survive_the_death_of_all() -> Result<()> {
    let cluster = formed(3)?;
    check(&cluster, writes_survive(&cluster))
}

fn writes_survive(lab: &Lab) -> Result<()> {
    let rounds: usize = std::env::var("SHOAL_E2E_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(3);
    serve(lab, 3)?;
    let mut acknowledged = BTreeSet::new();
    for round in 0..rounds {
        let stop = Instant::now() + Duration::from_millis(200 + 137 * (round as u64 % 7));
        std::thread::scope(|scope| -> Result<()> {
            let writer = scope.spawn(|| {
                let mut written = Vec::new();
                for number in 0.. {
                    let name = format!("object-{round}-{number}");
                    let args = ["service", "create", "--detach", "--name", &name, "--replicas", "0", IMAGE];
                    match lab.node(1 + number % 3).shoal().run_within(&args, WAIT) {
                        Ok(output) if output.code == 0 => written.push(name),
                        _ => break,
                    }
                }
                written
            });
            std::thread::sleep(stop.saturating_duration_since(Instant::now()));
            lab.nodes().try_for_each(|node| node.kill_daemon())?;
            acknowledged.extend(writer.join().map_err(|_| anyhow::anyhow!("the writer panicked"))?);
            Ok(())
        })?;
        // Not the first: started with --init, it would make a cluster of its own.
        let loser = lab.node(2 + round % 2);
        let lost = loser.id()?;
        lose_data(loser)?;
        lab.nodes().try_for_each(|node| node.start())?;
        wait_until("all nodes are ready", WAIT, || lab.all_ready())?;
        // Voters that are gone are not replaced by themselves yet: their removal does it.
        lab.node(1).shoal().ok(&["node", "rm", "--force", &lost])?;
        wait_until("the voters are three again", WAIT, || {
            let status = lab.node(1).shoal().status()?;
            let voters = status["Voters"].as_array().cloned().unwrap_or_default();
            Ok(voters.len() == 3 && !voters.iter().any(|voter| voter == lost.as_str()))
        })?;
        wait_well(lab, 3, &[])?;
        for node in lab.nodes() {
            wait_until("every acknowledged object is there", WAIT, || {
                let rows = node.shoal().json(&["service", "ls"])?;
                let names: BTreeSet<String> = rows.iter().map(|row| text(row, "Name").to_owned()).collect();
                let lost: Vec<&String> = acknowledged.difference(&names).collect();
                if lost.is_empty() { Ok(true) } else { bail!("lost {lost:?}") }
            })?;
        }
    }
    println!("{rounds} rounds, {} acknowledged objects, none lost", acknowledged.len());
    ensure!(!acknowledged.is_empty(), "nothing was written, so nothing was tested");
    Ok(())
}

/// Destroys a stopped node: it will have to join again, as another node.
fn lose_data(node: shoal_tests::lab::Node<'_>) -> Result<()> {
    node.crash()?;
    shoal_tests::lab::process::unmount_below(&node.data_dir())?;
    fs::remove_dir_all(node.data_dir())?;
    fs::create_dir_all(node.data_dir())?;
    Ok(())
}

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

#[test]
fn a_worker_answers_alone() -> Result<()> {
    let cluster = cluster(4, Driver::Embedded, |config| config.managers = 3)?;
    cluster.form()?;
    cluster.load_image()?;
    check(&cluster, worker_answers(&cluster))
}

fn worker_answers(lab: &Lab) -> Result<()> {
    serve(lab, 4)?;
    (1..=3).try_for_each(|index| lab.node(index).pause())?;
    for args in [&["service", "ls"][..], &["service", "ps", "http"], &["node", "ls"]] {
        let output = lab.node(4).shoal().run_within(args, Duration::from_secs(5))?;
        println!("{args:?}: {:?}", output.took);
        ensure!(output.code == 0, "{args:?}: {}", output.stderr);
        ensure!(output.took < Duration::from_millis(500), "{args:?} took {:?}", output.took);
    }
    let output = lab.node(4).shoal().run(&["service", "scale", "--detach", "http=5"])?;
    ensure!(output.code == 1, "a worker accepted a write");
    ensure!(output.stderr.contains("10.78.0."), "a worker refused a write without naming a manager: {}", output.stderr);
    (1..=3).try_for_each(|index| lab.node(index).resume())?;
    wait_until("all nodes are ready", WAIT, || lab.all_ready())?;
    wait_well(lab, 4, &[])
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

#[test]
fn a_corrupt_store_is_named_and_kept() -> Result<()> {
    let cluster = formed(1)?;
    check(&cluster, corrupt_store(&cluster))
}

fn corrupt_store(lab: &Lab) -> Result<()> {
    let node = lab.node(1);
    node.kill_daemon()?;
    let mut files: Vec<_> = fs::read_dir(node.data_dir())?.flatten().map(|entry| entry.path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "redb"));
    let store = files.pop().context("there is no store")?;
    let garbage = vec![0xa5; 1 << 16];
    fs::write(&store, &garbage)?;
    node.start()?;
    wait_until("the daemon gives up", Duration::from_secs(5), || Ok(node.daemon().is_none()))?;
    let log = fs::read_to_string(node.log_path())?;
    let end: String = log.lines().rev().take(10).collect::<Vec<_>>().join("\n");
    ensure!(end.contains(&*store.to_string_lossy()), "the log does not name {}: {end}", store.display());
    ensure!(fs::read(&store)? == garbage, "the corrupt store was overwritten");
    Ok(())
}
