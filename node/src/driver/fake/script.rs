//! The few words of shell that fake containers understand: `echo`, `env`, `sleep`, `trap` and `exit`, enough for the suite
//! that every driver passes. What is not understood fails like a missing command.

use std::collections::BTreeMap;
use std::time::Duration;

use shoal_control::task::ContainerPlan;
use tokio::sync::mpsc;

use crate::driver::LogStream;

/// What is sent to a fake process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Signal {
    /// By its name without `SIG`.
    Named(String),
    /// Ends it, whatever it thinks of that.
    Kill,
    /// Makes it end by itself.
    Exit(i32),
}

/// A fake process: a script and what it was given.
pub(super) struct Process {
    commands: Vec<String>,
    env: Vec<String>,
    signals: mpsc::Receiver<Signal>,
    traps: BTreeMap<String, String>,
}

/// Returns what the container of a plan runs.
pub(super) fn of(plan: &ContainerPlan) -> String {
    let words: Vec<&str> = plan.command.iter().chain(&plan.args).map(String::as_str).collect();
    line_of(&words).unwrap_or("trap 'exit 0' TERM; sleep infinity & wait").to_owned()
}

/// Returns the line that a command hands to the shell, if it does.
pub(super) fn line_of<'a>(words: &[&'a str]) -> Option<&'a str> {
    match words {
        ["sh" | "/bin/sh", "-c", line] => Some(*line),
        _ => None,
    }
}

/// Returns the name of a stop signal as `trap` knows it.
pub(super) fn signal_name(text: &str) -> String {
    match text.trim_start_matches("SIG") {
        "" | "15" => "TERM".to_owned(),
        "2" => "INT".to_owned(),
        "10" => "USR1".to_owned(),
        name => name.to_owned(),
    }
}

impl Process {
    pub(super) fn new(script: &str, env: Vec<String>, signals: mpsc::Receiver<Signal>) -> Self {
        Self { commands: split(script), env, signals, traps: BTreeMap::new() }
    }

    /// Runs to the end and returns the exit code.
    pub(super) async fn run(mut self, mut write: impl FnMut(LogStream, String)) -> i32 {
        for command in std::mem::take(&mut self.commands) {
            if let Some(code) = self.execute(&command, &mut write).await {
                return code;
            }
        }
        0
    }

    async fn execute(&mut self, command: &str, write: &mut impl FnMut(LogStream, String)) -> Option<i32> {
        let (word, rest) = command.split_once(' ').unwrap_or((command, ""));
        match word {
            "sleep" => {
                let secs = rest.split(' ').next().unwrap_or_default().parse::<f64>();
                // What is no number is `infinity`.
                let length =
                    secs.map_or(Duration::MAX, |secs| Duration::try_from_secs_f64(secs).unwrap_or(Duration::MAX));
                self.sleep(length, write).await
            }
            "trap" => {
                let (action, signal) = rest.trim_start_matches('\'').split_once("' ").unwrap_or_default();
                self.traps.insert(signal.to_owned(), action.to_owned());
                None
            }
            _ => simple(command, &self.env, write),
        }
    }

    async fn sleep(&mut self, length: Duration, write: &mut impl FnMut(LogStream, String)) -> Option<i32> {
        let end = tokio::time::sleep(length.min(Duration::from_secs(365 * 86_400)));
        tokio::pin!(end);
        loop {
            let signal = tokio::select! {
                () = &mut end => return None,
                signal = self.signals.recv() => signal,
            };
            match signal {
                None | Some(Signal::Kill) => return Some(137),
                Some(Signal::Exit(code)) => return Some(code),
                Some(Signal::Named(name)) => {
                    // Without a trap nothing happens: the first process of a container has no default actions.
                    let action = self.traps.get(&name).cloned().unwrap_or_default();
                    for command in split(&action) {
                        if let Some(code) = simple(&command, &self.env, write) {
                            return Some(code);
                        }
                    }
                }
            }
        }
    }
}

fn simple(command: &str, env: &[String], write: &mut impl FnMut(LogStream, String)) -> Option<i32> {
    let (word, rest) = command.split_once(' ').unwrap_or((command, ""));
    match word {
        "exit" => Some(rest.parse().unwrap_or(2)),
        "echo" => {
            match rest.strip_suffix(" >&2") {
                Some(text) => write(LogStream::Stderr, text.to_owned()),
                None => write(LogStream::Stdout, rest.to_owned()),
            }
            None
        }
        "env" => {
            env.iter().for_each(|variable| write(LogStream::Stdout, variable.clone()));
            None
        }
        _ => {
            write(LogStream::Stderr, format!("{word}: not found"));
            Some(127)
        }
    }
}

/// Splits a script at the semicolons that are not quoted.
fn split(script: &str) -> Vec<String> {
    let mut commands = vec![String::new()];
    let mut is_quoted = false;
    for character in script.chars() {
        is_quoted ^= character == '\'';
        match (character, commands.last_mut()) {
            (';', _) if !is_quoted => commands.push(String::new()),
            (_, Some(command)) => command.push(character),
            (_, None) => {}
        }
    }
    commands.into_iter().map(|command| command.trim().to_owned()).filter(|command| !command.is_empty()).collect()
}
