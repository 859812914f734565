//! Scripts of what a user types, run against one cluster.
//!
//! A line is a command for Docker's client on a node, `n1 service ls`, whose exit status, output and errors are recorded to be
//! compared. Words are split and quoted as a shell does; `{n1}` is that node's address, `{now}` and `{start}` are moments in
//! seconds, `{NAME}` what `let` kept. Before a command may stand
//!
//! - `sorted`: its lines have no order;
//! - `follow "TEXT"`: it ends only when it is ended, which is done as soon as it printed TEXT;
//! - `let NAME =`: what it printed is kept, and not compared;
//! - `until "TEXT"`: it is repeated until it prints TEXT, blanks and ends of lines aside, and not compared;
//!
//! and after it `<<< TEXT`, which is its standard input. `answers N n1 PORT` waits until N tasks answer through a port of a
//! node, on shoal alone: the routing mesh of Swarm needs a module of the kernel that may not be there. `load n1` gives a node of
//! shoal the demo image, which Swarm's have from the start: with the embedded driver that takes a cluster. `python n1 FILE`
//! and `bollard n1` do what docker-py and bollard shall do, which is compared step by step.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use shoal_tests::evidence;
use shoal_tests::lab::hosts::load_image;
use shoal_tests::lab::repository;
use shoal_tests::shoal::{self, Output};
use shoal_tests::wait::{wait_for, wait_until};

use super::cluster::Cluster;
use super::rust_client;

/// How long a command may take; the longest waits until a service has run for its monitor period.
const COMMAND_WAIT: Duration = Duration::from_secs(60);

/// How long a condition may take. Swarm notices after about 20 s that a node has left.
const WAIT: Duration = Duration::from_secs(90);

/// What Docker says to a client whose change met one that the engine had just made itself (the state of an update): whether it
/// does is a matter of milliseconds, and who types the command again is served.
const OUTPACED: &str = "update out of sequence";
/// How often a command is typed again.
const OUTPACED_MAX: usize = 10;

/// What a command did, made comparable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The command, as the script has it.
    pub at: String,
    /// Exit status, output and errors.
    pub lines: Vec<String>,
}

/// One line of a script.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Step {
    number: usize,
    kind: Kind,
    node: usize,
    /// The command with its node, as it is written.
    text: String,
    words: Vec<String>,
    input: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    Run { sorted: bool },
    Follow(String),
    Let(String),
    Until(String),
    Answers(usize),
    Load,
    Python,
    Bollard,
}

/// Runs a script. What went wrong is told with the number of its line.
pub fn run(cluster: &Cluster, python: &Path, name: &str, text: &str) -> Result<Vec<Record>> {
    let steps = parse(text).with_context(|| name.to_owned())?;
    let mut runner = Runner { cluster, python, known: cluster.variables(), records: Vec::new() };
    for step in &steps {
        let what = || format!("{name}, line {}: {}", step.number, step.text);
        if let Err(error) = runner.step(step).with_context(what) {
            eprintln!("{name}: these had failed before, as some shall:");
            let failed =
                runner.records.iter().filter(|record| record.lines.first().is_none_or(|line| line != "exit status 0"));
            failed.for_each(|record| eprintln!("  {}: {}", record.at, record.lines.join("; ")));
            return Err(error);
        }
    }
    Ok(runner.records)
}

struct Runner<'a> {
    cluster: &'a Cluster,
    python: &'a Path,
    known: BTreeMap<String, String>,
    records: Vec<Record>,
}

impl Runner<'_> {
    fn step(&mut self, step: &Step) -> Result<()> {
        match &step.kind {
            Kind::Run { sorted } => {
                let mut output = self.output(step)?;
                for _ in 0..OUTPACED_MAX {
                    if !output.stderr.contains(OUTPACED) {
                        break;
                    }
                    output = self.output(step)?;
                }
                self.record(step, &output, *sorted);
            }
            Kind::Follow(wanted) => {
                let output = self.follow(step, wanted)?;
                self.record(step, &output, true);
            }
            Kind::Let(name) => {
                let output = self.output(step)?.success()?;
                self.known.insert(name.clone(), output.trim().to_owned());
            }
            Kind::Until(wanted) => {
                let mut seen = String::new();
                let condition = wait_until("it prints what is waited for", WAIT, || {
                    let output = self.output(step)?;
                    seen = format!("{}{}", output.stdout, output.stderr);
                    let printed: Vec<&str> = seen.split_whitespace().collect();
                    Ok(printed.join(" ") == *wanted)
                });
                condition.with_context(|| format!("at last it printed: {seen}"))?;
            }
            Kind::Python => {
                let mut command = Command::new(self.python);
                command.args(&step.words).arg(self.cluster.socket(step.node));
                command.current_dir(repository().join("tests/compat"));
                let printed = shoal::run(command, WAIT)?.success()?;
                let steps = printed.split("## ").skip(1).map(|step| step.split_once('\n').unwrap_or((step, "")));
                self.record_all("docker-py", steps);
            }
            Kind::Bollard => {
                let steps = rust_client::run(&self.cluster.socket(step.node), now()?)?;
                self.record_all("bollard", steps.iter().map(|(name, text)| (name.as_str(), text.as_str())));
            }
            Kind::Load => {
                if self.cluster.lab().is_some() {
                    load_image(&self.cluster.socket(step.node))?;
                }
            }
            Kind::Answers(count) => {
                let Some(lab) = self.cluster.lab() else { return Ok(()) };
                let port = step.words.first().context("no port")?.parse()?;
                wait_for("tasks answer", WAIT, || {
                    let seen = evidence::ask_all(lab, step.node, port, *count)?;
                    Ok((seen.len() == *count).then_some(()))
                })?;
            }
        }
        Ok(())
    }

    fn record(&mut self, step: &Step, output: &Output, sorted: bool) {
        let normaliser = self.cluster.normaliser();
        let mut printed = normaliser.lines(&output.stdout);
        if sorted {
            printed.sort();
        }
        let errors = normaliser.lines(&output.stderr).into_iter().map(|line| format!("stderr: {line}"));
        let mut lines = vec![format!("exit status {}", output.code)];
        lines.extend(printed.into_iter().chain(errors));
        self.records.push(Record { at: step.text.clone(), lines });
    }

    /// Records what a library did, step by step.
    fn record_all<'s>(&mut self, client: &str, steps: impl Iterator<Item = (&'s str, &'s str)>) {
        let normaliser = self.cluster.normaliser();
        let record =
            |(name, text): (&str, &str)| Record { at: format!("{client} {name}"), lines: normaliser.lines(text) };
        self.records.extend(steps.map(record));
    }

    fn command(&mut self, step: &Step) -> Result<Command> {
        // What happened within this second is wanted, too.
        self.known.insert("now".into(), (now()? + 1).to_string());
        let mut command = self.cluster.docker(step.node);
        command.current_dir(repository().join("tests/compat"));
        command.args(step.words.iter().map(|word| fill_in(word, &self.known)));
        Ok(command)
    }

    fn output(&mut self, step: &Step) -> Result<Output> {
        let command = self.command(step)?;
        shoal::run_with(command, step.input.clone(), COMMAND_WAIT)
    }

    /// Runs a command until it printed a text.
    fn follow(&mut self, step: &Step, wanted: &str) -> Result<Output> {
        let path = self.cluster.dir().join("followed");
        let mut command = self.command(step)?;
        let mut child = command.stdin(Stdio::null()).stdout(File::create(&path)?).stderr(Stdio::null()).spawn()?;
        let printed = wait_until(&format!("it prints {wanted}"), WAIT, || {
            ensure!(child.try_wait()?.is_none(), "it has ended");
            Ok(fs::read_to_string(&path)?.contains(wanted))
        });
        let process = Pid::from_raw(i32::try_from(child.id())?).context("a process without a number")?;
        // It may have ended by itself.
        let _ = kill_process(process, Signal::TERM);
        child.wait()?;
        let stdout = fs::read_to_string(&path)?;
        printed.with_context(|| format!("it printed: {stdout}"))?;
        Ok(Output { code: 0, stdout, stderr: String::new(), took: Duration::ZERO })
    }
}

fn now() -> Result<u64> {
    Ok(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs())
}

/// Puts what is known in place of `{NAME}`; templates, which have two braces, stay.
fn fill_in(word: &str, known: &BTreeMap<String, String>) -> String {
    known.iter().fold(word.to_owned(), |word, (name, value)| word.replace(&format!("{{{name}}}"), value))
}

fn parse(text: &str) -> Result<Vec<Step>> {
    let lines = text.lines().enumerate().map(|(place, line)| (place + 1, line.trim()));
    let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    lines.map(|(number, line)| parse_line(number, line).with_context(|| format!("line {number}: {line}"))).collect()
}

fn parse_line(number: usize, line: &str) -> Result<Step> {
    let (line, input) = line.split_once(" <<< ").unwrap_or((line, ""));
    let (first, rest) = line.split_once(' ').context("expected a node and a command")?;
    let (kind, text) = match first {
        "sorted" => (Kind::Run { sorted: true }, rest),
        "follow" | "until" => {
            let (quoted, rest) = rest.strip_prefix('"').and_then(|rest| rest.split_once("\" ")).context("no text")?;
            let quoted = quoted.to_owned();
            (if first == "until" { Kind::Until(quoted) } else { Kind::Follow(quoted) }, rest)
        }
        "let" => {
            let (name, rest) = rest.split_once(" = ").context("expected NAME = COMMAND")?;
            (Kind::Let(name.to_owned()), rest)
        }
        "load" => (Kind::Load, rest),
        "python" => (Kind::Python, rest),
        "bollard" => (Kind::Bollard, rest),
        "answers" => {
            let (count, rest) = rest.split_once(' ').context("expected a number of tasks")?;
            (Kind::Answers(count.parse()?), rest)
        }
        _ => (Kind::Run { sorted: false }, line),
    };
    let mut words = split(text)?.into_iter();
    let node = words.next().and_then(|node| node.strip_prefix('n')?.parse().ok()).context("expected a node")?;
    Ok(Step { number, kind, node, text: text.to_owned(), words: words.collect(), input: input.to_owned() })
}

/// Splits a line as a shell does, as far as quotes go.
fn split(line: &str) -> Result<Vec<String>> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for c in line.chars() {
        match (quote, c) {
            (None, ' ') => words.extend(word.take()),
            (None, '"' | '\'') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (Some(open), c) if open == c => quote = None,
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    if quote.is_some() {
        bail!("a quote is not closed");
    }
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read() {
        let kind = |line: &str| {
            let step = parse_line(1, line).unwrap();
            (step.kind, step.node, step.words.join("|"), step.input)
        };
        let run = |sorted| Kind::Run { sorted };
        let none = String::new;
        assert_eq!(kind("n1 service ls"), (run(false), 1, "service|ls".into(), none()));
        assert_eq!(kind("sorted n2 ps -f 'a b' \"\""), (run(true), 2, "ps|-f|a b|".into(), none()));
        assert_eq!(kind("let t = n1 x"), (Kind::Let("t".into()), 1, "x".into(), none()));
        assert_eq!(kind("until \"1/1 x\" n1 y"), (Kind::Until("1/1 x".into()), 1, "y".into(), none()));
        assert_eq!(kind("follow \"a\" n1 y"), (Kind::Follow("a".into()), 1, "y".into(), none()));
        assert_eq!(kind("answers 3 n2 8080"), (Kind::Answers(3), 2, "8080".into(), none()));
        assert_eq!(
            kind("n1 secret create s - <<< hidden"),
            (run(false), 1, "secret|create|s|-".into(), "hidden".into())
        );
        for wrong in ["service ls", "n1", "until 3 n1 x", "let n1 ls", "n1 'x"] {
            assert!(parse_line(1, wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn templates_are_left_alone() {
        let known = BTreeMap::from([("n1".to_owned(), "10.0.0.1".to_owned())]);
        assert_eq!(fill_in("{n1}:2377 {{.ID}} {n2}", &known), "10.0.0.1:2377 {{.ID}} {n2}");
    }
}
