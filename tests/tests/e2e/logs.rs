//! What tasks write, read and followed from a node that runs none of them, whatever becomes of tasks, nodes and links.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use shoal_tests::lab::{Driver, IMAGE, Lab, Node, process};
use shoal_tests::shoal::{Output, run};
use shoal_tests::wait::{wait_for, wait_until};

use crate::{START_WAIT, WAIT, check, cluster};

/// How long what is not followed may take, with a node that is dead.
const READ_MAX: Duration = Duration::from_secs(10);

/// The node that asks. It runs no task.
const ASKED: usize = 4;

/// How many lines more show that output goes on.
const MORE: u64 = 25;

/// The numbers of the lines that each task wrote, in the order in which they came.
type Numbers = BTreeMap<String, Vec<u64>>;

/// `shoal service logs --follow` on one node, until this is dropped.
struct Follow {
    child: Child,
    path: PathBuf,
}

impl Follow {
    fn begin(node: Node<'_>) -> Result<Self> {
        let (shoal, path) = (node.shoal(), node.dir().join("followed"));
        let output = File::create(&path)?;
        let mut command = Command::new(&shoal.binary);
        command.arg("-H").arg(format!("unix://{}", shoal.socket.display()));
        command.args(["service", "logs", "--follow", "--no-trunc", "count"]);
        let child = command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output).spawn()?;
        Ok(Self { child, path })
    }

    fn text(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&fs::read(&self.path)?).into_owned())
    }

    fn numbers(&mut self) -> Result<Numbers> {
        let text = self.text()?;
        if let Some(status) = self.child.try_wait()? {
            anyhow::bail!("following ended with {status}: {text}");
        }
        // The last line may be half written.
        Ok(numbers(text.rsplit_once('\n').map_or("", |(whole, _)| whole)))
    }

    /// Waits until a task that is none of `known` has written something, and returns it.
    fn wait_other(&mut self, what: &str, known: &BTreeSet<String>) -> Result<String> {
        wait_for(what, WAIT, || Ok(self.numbers()?.into_keys().find(|task| !known.contains(task))))
            .map(|(task, _)| task)
    }

    /// Waits until a task has written some lines more than now.
    fn wait_more(&mut self, what: &str, task: &str) -> Result<()> {
        let last = |numbers: Numbers| numbers.get(task).and_then(|lines| lines.last().copied()).unwrap_or_default();
        let before = last(self.numbers()?);
        wait_until(what, WAIT, || Ok(last(self.numbers()?) > before + MORE)).map(drop)
    }

    /// Waits until all has come that a node knows to have been written, and checks that it came once and without a gap.
    fn wait_whole(&mut self, lab: &Lab) -> Result<()> {
        let read = lab.node(1).shoal().ok(&["service", "logs", "--no-trunc", "count"])?;
        let written = numbers(&read);
        ensure!(!written.is_empty(), "nothing was read: {read}");
        wait_until("all lines that were written have come", WAIT, || {
            let come = self.numbers()?;
            let is_whole = |(task, lines): (&String, &Vec<u64>)| {
                let come: BTreeSet<u64> = come.get(task).into_iter().flatten().copied().collect();
                lines.iter().all(|line| come.contains(line))
            };
            Ok(written.iter().all(is_whole))
        })?;
        for (task, lines) in self.numbers()? {
            let once: BTreeSet<u64> = lines.iter().copied().collect();
            ensure!(once.len() == lines.len(), "{task}: a line came twice: {lines:?}");
            // The tenth lines go another way, so the very last ones may have come before one of those.
            let whole = once.iter().zip(1..).take_while(|(line, number)| *line == number).count();
            let last = written.get(&task).and_then(|lines| lines.iter().max()).copied().unwrap_or_default();
            ensure!(whole as u64 >= last, "{task}: a line of {last} is missing: {lines:?}");
        }
        Ok(())
    }
}

impl Drop for Follow {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads lines such as `count.1.TASK@n2    | line 7`.
fn numbers(text: &str) -> Numbers {
    let mut numbers = Numbers::new();
    for line in text.lines() {
        let Some((name, text)) = line.split_once(" | ") else { continue };
        let task = name.split('@').next().and_then(|name| name.rsplit('.').next());
        let number = text.strip_prefix("line ").and_then(|number| number.parse().ok());
        if let (Some(task), Some(number)) = (task, number) {
            numbers.entry(task.to_owned()).or_default().push(number);
        }
    }
    numbers
}

/// Four nodes, the last of which is a worker that runs no task.
fn prepared() -> Result<crate::Cluster> {
    let cluster = cluster(ASKED, Driver::Embedded, |config| config.managers = 3)?;
    cluster.form()?;
    cluster.load_image()?;
    Ok(cluster)
}

fn count(lab: &Lab, replicas: usize) -> Result<()> {
    let replicas = replicas.to_string();
    let place = ["--constraint", "node.hostname!=n4", "--replicas-max-per-node", "2", "--restart-delay", "200ms"];
    let args = ["--name", "count", "--replicas", &replicas, "--env", "LOG_EVERY_MS=20", IMAGE];
    lab.node(1).shoal().ok(&[&["service", "create"][..], &place, &args].concat()).map(drop)
}

/// Returns which node a task is on.
fn node_of<'a>(lab: &'a Lab, task: &str) -> Result<Node<'a>> {
    lab.nodes().find(|node| node.tasks().contains_key(task)).with_context(|| format!("task {task} runs nowhere"))
}

#[test]
fn output_is_followed_wherever_tasks_go() -> Result<()> {
    let cluster = prepared()?;
    check(&cluster, wherever(&cluster))
}

fn wherever(lab: &Lab) -> Result<()> {
    count(lab, 3)?;
    let mut follow = Follow::begin(lab.node(ASKED))?;
    wait_until("three tasks write", WAIT, || Ok(follow.numbers()?.len() == 3))?;
    let mut known: BTreeSet<String> = follow.numbers()?.into_keys().collect();

    println!("a task is killed");
    let killed = known.first().context("no task")?.clone();
    let pids = node_of(lab, &killed)?.tasks().remove(&killed).unwrap_or_default();
    process::signal(&process::hold(pids), Signal::KILL);
    let successor = follow.wait_other("its successor writes", &known)?;
    known.insert(successor.clone());
    follow.wait_more("and goes on", &successor)?;
    follow.wait_whole(lab)?;

    println!("a node is killed");
    let task = known.iter().find(|task| matches!(node_of(lab, task), Ok(node) if node.index != 1));
    let node = node_of(lab, task.context("all tasks are on one node")?)?;
    node.crash()?;
    let successor = follow.wait_other("a successor on another node writes", &known)?;
    ensure!(node_of(lab, &successor)?.index != node.index, "it is on the dead node");
    follow.wait_more("and goes on", &successor)?;
    follow.wait_whole(lab)?;
    wait_until("that its output is missing is said", WAIT, || Ok(follow.text()?.contains("is missing: ")))?;

    println!("what is not followed ends, and says what is missing");
    for program in ["shoal", "docker"] {
        let output = logs(lab.node(ASKED), program, &["--no-trunc", "count"])?;
        let missing = format!("on node {} is missing: its node is down\n", node.id().unwrap_or_default());
        ensure!(output.code == 0 && output.stderr.contains(&missing), "{program}: {output:?}");
        ensure!(output.took < READ_MAX, "{program} took {:?}", output.took);
        ensure!(numbers(&output.stdout).contains_key(&successor), "{program}: {output:?}");
    }

    println!("the node comes back, and with it what its tasks wrote before");
    node.start_and_wait(START_WAIT)?;
    wait_until("all nodes are ready", WAIT, || lab.all_ready())?;
    follow.wait_whole(lab)
}

#[test]
fn following_goes_on_where_a_link_broke() -> Result<()> {
    let cluster = prepared()?;
    check(&cluster, cut(&cluster))
}

fn cut(lab: &Lab) -> Result<()> {
    count(lab, 3)?;
    let asked = lab.node(ASKED);
    let mut follow = Follow::begin(asked)?;
    wait_until("three tasks write", WAIT, || Ok(follow.numbers()?.len() == 3))?;
    let tasks: BTreeSet<String> = follow.numbers()?.into_keys().collect();

    println!("the node that asks is cut off");
    lab.cut(&[ASKED])?;
    wait_until("what is missing is said", WAIT, || Ok(follow.text()?.matches("is missing: ").count() >= 3))?;
    lab.heal(&[ASKED])?;
    for task in &tasks {
        follow.wait_more("a task is heard again", task)?;
    }
    follow.wait_whole(lab)?;
    ensure!(follow.numbers()?.into_keys().collect::<BTreeSet<_>>() == tasks, "the tasks should be the same");

    println!("a daemon is started again beside its tasks");
    let task = tasks.iter().find(|task| matches!(node_of(lab, task), Ok(node) if node.index != 1));
    let task = task.context("all tasks are on one node")?;
    let node = node_of(lab, task)?;
    node.stop()?;
    node.start_and_wait(START_WAIT)?;
    follow.wait_more("its task is heard again", task)?;
    follow.wait_whole(lab)?;
    ensure!(follow.numbers()?.into_keys().collect::<BTreeSet<_>>() == tasks, "the tasks should be the same");

    println!("the node of a task is cut off");
    lab.cut(&[node.index])?;
    let successor = follow.wait_other("its successor writes", &tasks)?;
    lab.heal(&[node.index])?;
    wait_until("all nodes are ready", WAIT, || lab.all_ready())?;
    follow.wait_more("and goes on", &successor)?;
    wait_until("the task that was replaced is gone", WAIT, || Ok(!node.tasks().contains_key(task)))?;
    follow.wait_whole(lab)
}

#[test]
fn output_is_shown_as_docker_shows_it() -> Result<()> {
    let cluster = prepared()?;
    check(&cluster, as_docker(&cluster))
}

fn as_docker(lab: &Lab) -> Result<()> {
    let asked = lab.node(ASKED);
    count(lab, 2)?;
    // What they have written does not change any more once they are told to run no more.
    wait_until("two tasks write", WAIT, || {
        let read = numbers(&asked.shoal().ok(&["service", "logs", "--no-trunc", "count"])?);
        Ok(read.len() == 2 && read.values().all(|lines| lines.len() > 30))
    })?;
    for index in 1..=3 {
        for pids in lab.node(index).tasks().into_values() {
            process::signal(&process::hold(pids), Signal::STOP);
        }
    }
    let all = logs(asked, "shoal", &["--no-trunc", "count"])?.success()?;
    let counts: BTreeMap<String, usize> = numbers(&all).into_iter().map(|(task, lines)| (task, lines.len())).collect();
    let stamped = logs(asked, "shoal", &["--no-trunc", "--timestamps", "count"])?.success()?;
    let line = stamped.lines().find(|line| line.ends_with(" line 17")).context("no line 17")?;
    let (since, rest) = line.split_once(' ').context("no time")?;
    let (name, _) = rest.split_once("    | ").context("no name")?;
    let task = name.split('@').next().and_then(|name| name.rsplit('.').next()).context("no task")?;

    for (flags, want) in [
        (&[][..], None),
        (&["--timestamps"], None),
        (&["--raw"], None),
        (&["--raw", "--timestamps"], None),
        (&["--no-resolve"], None),
        (&["--no-task-ids"], None),
        (&["--no-trunc", "--tail", "all"], None),
        (&["--tail", "0"], Some(0)),
        (&["--tail", "3"], Some(6)),
        (&["--since", "2h"], None),
        (&["--since", since, "--tail", "2"], Some(4)),
        (&["--since", "2100-01-01T00:00:00Z"], Some(0)),
    ] {
        let args = [flags, &["count"]].concat();
        let (ours, theirs) = (logs(asked, "shoal", &args)?, logs(asked, "docker", &args)?);
        ensure!(ours.code == 0 && theirs.code == 0, "{args:?}: {ours:?} {theirs:?}");
        for (ours, theirs) in [(&ours.stdout, &theirs.stdout), (&ours.stderr, &theirs.stderr)] {
            ensure!(sorted(ours) == sorted(theirs), "{args:?}: {ours} is not {theirs}");
        }
        let lines = ours.stdout.lines().count() + ours.stderr.lines().count();
        ensure!(want.is_none_or(|want| lines == want), "{args:?}: {lines} lines: {ours:?}");
    }
    let later = logs(asked, "shoal", &["--no-trunc", "--since", since, "count"])?;
    let first = numbers(&later.stdout).remove(task).unwrap_or_default();
    ensure!(first.first() == Some(&17), "since {since}: {first:?}");
    let last = numbers(&logs(asked, "shoal", &["--no-trunc", "--tail", "1", task])?.stdout).remove(task);
    let most = counts.get(task).copied().unwrap_or_default() as u64;
    ensure!(last.as_ref().is_some_and(|last| last.len() <= 1 && last[0] >= most), "{last:?} of {most}");

    println!("what is not there is refused");
    for program in ["shoal", "docker"] {
        let output = logs(asked, program, &["missing"])?;
        ensure!(output.code == 1 && output.stderr.contains("no such task or service: missing"), "{output:?}");
    }
    Ok(())
}

fn sorted(text: &str) -> Vec<&str> {
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    lines
}

/// Runs `service logs` of shoal's client or of Docker's.
fn logs(node: Node<'_>, program: &str, args: &[&str]) -> Result<Output> {
    let shoal = node.shoal();
    let mut command = if program == "shoal" { Command::new(&shoal.binary) } else { Command::new(program) };
    command.arg("-H").arg(format!("unix://{}", shoal.socket.display())).args(["service", "logs"]).args(args);
    command.env_remove("DOCKER_HOST").env_remove("DOCKER_CONTEXT").env("NO_COLOR", "1");
    run(command, WAIT)
}
