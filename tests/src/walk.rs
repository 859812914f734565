//! The walk: from three daemons to a service that outlives its node, told step by step.
//!
//! The demo and the end-to-end tests take the same walk; each step checks what it promises and fails otherwise.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::evidence;
use crate::lab::{IMAGE, Lab, PORT};
use crate::load::{Load, Tally};
use crate::shoal::text;
use crate::wait::{wait_for, wait_until};

/// The port that the walk's service publishes.
pub const PUBLISHED: u16 = 8080;

/// How long a step may take that starts or moves containers.
const MOVE_WAIT: Duration = Duration::from_secs(60);

/// How long what is written on one node may take to be seen on the others.
const SEE_WAIT: Duration = Duration::from_secs(10);

/// How long a daemon may take until it answers.
const START_WAIT: Duration = Duration::from_secs(30);

/// Requests a second while a node dies.
const LOAD_PER_SECOND: u32 = 50;

/// Tells what happens.
#[derive(Debug, Default)]
pub struct Voice {
    steps: usize,
}

impl Voice {
    fn step(&mut self, text: &str) {
        self.steps += 1;
        println!("\n{}. {text}", self.steps);
    }

    fn measured(&mut self, text: &str, took: Duration) {
        println!("   [{:.2} s] {text}", took.as_secs_f64());
    }

    fn say(&mut self, text: &str) {
        println!("   {text}");
    }

    /// Runs a command on a node, shows it with what it printed, and returns that.
    fn run(&mut self, lab: &Lab, index: usize, args: &[&str]) -> Result<String> {
        println!("   n{index}$ shoal {}", args.join(" "));
        let output = lab.node(index).shoal().run(args)?;
        for line in output.stdout.lines().chain(output.stderr.lines()) {
            println!("      {line}");
        }
        println!("   [{:.2} s]", output.took.as_secs_f64());
        output.success().with_context(|| format!("shoal {}", args.join(" ")))
    }
}

/// Takes the walk in a bare laboratory of three nodes. `archive` holds the demo image.
pub fn walk(lab: &Lab, archive: &Path) -> Result<()> {
    ensure!(lab.config.nodes == 3 && lab.config.bare, "the walk needs three nodes that have not joined");
    let voice = &mut Voice::default();
    form(lab, voice).context("forming a cluster")?;
    create(lab, voice, archive).context("creating a service")?;
    look(lab, voice).context("looking around")?;
    scale(lab, voice, 5).context("scaling up")?;
    let first = kill_under_load(lab, voice, 2, 5).context("killing node 2")?;
    come_back(lab, voice, 2, first).context("node 2 comes back")?;
    voice.step("Fewer replicas are needed.");
    scale(lab, voice, 1).context("scaling down")?;
    kill_the_holder(lab, voice).context("killing the node that holds most leases")
}

fn form(lab: &Lab, voice: &mut Voice) -> Result<()> {
    voice.step("Three daemons start; none knows of the others.");
    for node in lab.nodes() {
        let took = node.start_and_wait(START_WAIT)?;
        voice.measured(&format!("n{} answers at {}", node.index, node.socket().display()), took);
    }
    voice.step("Node 1 makes a cluster; 2 and 3 join with a token and a seed address.");
    voice.run(lab, 1, &["init"])?;
    let token = lab.node(1).shoal().ok(&["join-token", "-q", "manager"])?;
    let seed = format!("{}:{PORT}", lab.node(1).address());
    for index in [2, 3] {
        println!("   n{index}$ shoal join --token SWMTKN-1-... {seed}");
        let output = lab.node(index).shoal().run(&["join", "--token", token.trim(), &seed])?;
        voice.measured("joined", output.took);
        output.success().context("shoal join")?;
    }
    let took = wait_until("three ready nodes on each node", SEE_WAIT, || lab.all_ready())?;
    voice.measured("every node sees three ready nodes", took);
    for index in 1..=3 {
        voice.run(lab, index, &["node", "ls"])?;
    }
    Ok(())
}

fn create(lab: &Lab, voice: &mut Voice, archive: &Path) -> Result<()> {
    let archive = archive.to_str().context("path of the image is not UTF-8")?;
    voice.step("No registry is needed: the image goes to every node.");
    voice.run(lab, 1, &["image", "load", "-i", archive, "--all"])?;
    voice.step("A service of two replicas, published on port 8080 of every node.");
    let ports = format!("{PUBLISHED}:80");
    voice.run(lab, 1, &["service", "create", "--name", "http", "--replicas", "2", "-p", &ports, IMAGE])?;
    wait_replicas(lab, voice, 2)?;
    for node in lab.running() {
        let what = format!("both replicas answer through node {}", node.index);
        let (seen, took) = wait_for(&what, SEE_WAIT, || {
            let seen = evidence::ask_all(lab, node.index, PUBLISHED, 2)?;
            Ok((seen.len() == 2).then_some(seen))
        })?;
        let slots: Vec<_> = seen.iter().map(|seen| format!("slot {} on {}", seen.slot, seen.node)).collect();
        voice.measured(&format!("{}:{PUBLISHED} reaches {}", node.address(), slots.join(" and ")), took);
    }
    Ok(())
}

fn look(lab: &Lab, voice: &mut Voice) -> Result<()> {
    voice.step("Any node answers for all of them.");
    let listed = voice.run(lab, 2, &["service", "ps", "http"])?;
    ensure!(listed.contains("http.1") && listed.contains("http.2"), "service ps does not list both replicas");
    let inspected = voice.run(lab, 3, &["service", "inspect", "--pretty", "http"])?;
    ensure!(inspected.contains(IMAGE), "service inspect does not show the image");
    voice.run(lab, 1, &["node", "ps", "self"])?;
    voice.run(lab, 1, &["node", "ps", &lab.node(3).id()?])?;
    Ok(())
}

fn scale(lab: &Lab, voice: &mut Voice, replicas: usize) -> Result<()> {
    voice.step(&format!("Scaled to {replicas}."));
    voice.run(lab, 1, &["service", "scale", &format!("http={replicas}")])?;
    wait_replicas(lab, voice, replicas)?;
    wait_well(lab, voice, replicas)
}

fn wait_replicas(lab: &Lab, voice: &mut Voice, replicas: usize) -> Result<()> {
    let want = format!("{replicas}/{replicas}");
    let took = wait_until(&format!("service ls shows {want} on every node"), SEE_WAIT, || {
        lab.running().try_fold(true, |well, node| Ok(well && evidence::replicas(lab, node.index, "http")? == want))
    })?;
    voice.measured(&format!("service ls shows {want} on every node"), took);
    Ok(())
}

/// Waits until containers and answers are as they should be, seen from outside.
fn wait_well(lab: &Lab, voice: &mut Voice, replicas: usize) -> Result<()> {
    let took = wait_until("containers and answers are as wanted", MOVE_WAIT, || {
        let faults = evidence::faults_of(lab, PUBLISHED, replicas, &BTreeSet::new());
        if faults.is_empty() { Ok(true) } else { bail!(faults.join("; ")) }
    })?;
    voice.measured(&format!("{replicas} containers run and answer through every node"), took);
    Ok(())
}

/// Kills `victim` while requests flow through the others. Returns the tasks that ran on it.
fn kill_under_load(lab: &Lab, voice: &mut Voice, victim: usize, replicas: usize) -> Result<BTreeSet<String>> {
    voice.step(&format!("Node {victim} loses power, while requests go to the other nodes."));
    let lost: BTreeSet<String> = lab.node(victim).tasks().into_keys().collect();
    ensure!(!lost.is_empty(), "node {victim} runs no task, so its death would show nothing");
    let survivors: Vec<usize> = (1..=3).filter(|index| *index != victim).collect();
    let load = Load::start(lab, &survivors, PUBLISHED, LOAD_PER_SECOND);
    // Some requests before the kill, so that there is a before.
    std::thread::sleep(Duration::from_secs(1));
    let moment = lab.node(victim).crash()?;
    voice.say(&format!("killed its daemon and {} tasks", lost.len()));
    let what = format!("{replicas} replicas run on the others");
    wait_until(&what, MOVE_WAIT, || {
        Ok(survivors.iter().map(|index| lab.node(*index).tasks().len()).sum::<usize>() == replicas)
    })?;
    voice.measured(&what, moment.elapsed());
    wait_well(lab, voice, replicas)?;
    voice.measured("since the kill", moment.elapsed());
    let tally = Tally::of(&load.stop()?, moment);
    voice.say(&format!(
        "{} requests; {} were open at the kill and {} of those failed; of those begun later {} failed",
        tally.all,
        tally.open,
        tally.failed_open,
        tally.failed_after.len()
    ));
    let faults = tally.faults();
    ensure!(faults.is_empty(), "{}", faults.join("; "));
    voice.run(lab, survivors[0], &["service", "ps", "http"])?;
    voice.run(lab, survivors[0], &["node", "ls"])?;
    Ok(lost)
}

fn come_back(lab: &Lab, voice: &mut Voice, index: usize, lost: BTreeSet<String>) -> Result<()> {
    voice.step(&format!("Node {index} comes back, and is used again for new tasks."));
    let took = lab.node(index).start_and_wait(START_WAIT)?;
    voice.measured("its daemon answers", took);
    let took = wait_until("three ready nodes on each node", MOVE_WAIT, || lab.all_ready())?;
    voice.measured("every node sees three ready nodes", took);
    let again = lab.node(index).tasks();
    ensure!(!again.keys().any(|task| lost.contains(task)), "a task that was replaced runs again");
    scale(lab, voice, 8)?;
    ensure!(!lab.node(index).tasks().is_empty(), "node {index} got none of the new tasks");
    voice.run(lab, 1, &["node", "ps", &lab.node(index).id()?])?;
    Ok(())
}

fn kill_the_holder(lab: &Lab, voice: &mut Voice) -> Result<()> {
    voice.step("The node that holds most leases loses power: others take over.");
    let (holder, _) = wait_for("leases are held", SEE_WAIT, || evidence::holder_of_most(lab, 1))?;
    voice.run(lab, holder, &["status"])?;
    let moment = lab.node(holder).crash()?;
    voice.say(&format!("killed node {holder}"));
    let asked = (1..=3).find(|index| *index != holder).context("no node is left")?;
    voice.run(lab, asked, &["service", "scale", "http=3"])?;
    voice.measured("scaling works again, since the kill", moment.elapsed());
    wait_well(lab, voice, 3)?;
    let rows = lab.node(asked).shoal().json(&["node", "ls"])?;
    let down = rows.iter().filter(|row| text(row, "Status").eq_ignore_ascii_case("down")).count();
    ensure!(down == 1, "node ls shows {down} nodes as down instead of 1");
    voice.run(lab, asked, &["node", "ls"])?;
    Ok(())
}
