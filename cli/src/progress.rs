//! Waits until a service runs as its spec says, and shows how far it is. Source: docker/cli, `command/service/progress`.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use shoal_protocol::spec::ModeKind;

use crate::client::{Client, escape};
use crate::commands::tasks::slot_name;
use crate::error::CliError;
use crate::filter::{Filter, query};
use crate::model::{Service, Task};

mod jobs;

/// Between two looks at the service.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// How long all tasks must have run before the service counts as converged, if its spec says nothing.
const MONITOR_DEFAULT: Duration = Duration::from_secs(5);
/// Slots that are shown one by one; with more only the sum is shown.
const BARS_MAX: u64 = 20;
/// Steps of a slot's bar, one for each state up to running.
const STATES: [&str; 8] = ["new", "pending", "assigned", "accepted", "preparing", "ready", "starting", "running"];

/// What one look at the service showed.
#[derive(Debug, Default, PartialEq, Eq)]
struct Look {
    /// How far all is, a line each.
    sums: Vec<String>,
    /// Tasks that are wanted.
    total: u64,
    /// Of them, how many run.
    running: u64,
    /// State and reason of each slot, by its name.
    slots: BTreeMap<String, (String, String)>,
}

/// What the user asked of the service that is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    /// To run a new spec.
    Forward,
    /// To run its previous spec again.
    Back,
}

/// Waits until the service has converged, it cannot, or the user interrupts (which leaves the service as it is). An update
/// that was rolled back is an error, though the service then runs well.
pub(crate) async fn wait(client: &Client, id: &str, name: &str, asked: Asked, quiet: bool) -> Result<(), CliError> {
    let mut display = if quiet { Display::Silent } else { Display::new() };
    let result = tokio::select! {
        result = converge(client, id, name, asked, &mut display) => result,
        _ = tokio::signal::ctrl_c() => {
            display.finish();
            eprintln!("Operation continuing in background.\nUse `shoal service ps {name}` to check progress.");
            return Ok(());
        }
    };
    display.finish();
    result
}

async fn converge(client: &Client, id: &str, name: &str, asked: Asked, display: &mut Display) -> Result<(), CliError> {
    let service_path = format!("/services/{}?status=true", escape(id));
    let tasks_path = format!("/tasks?{}", query(&[Filter::new("service", id), Filter::new("_up-to-date", "true")]));
    let mut converged_since: Option<Instant> = None;
    let mut failure: Option<String> = None;
    loop {
        let service: Service = client.get(&service_path).await?;
        let tasks: Vec<Task> = client.get(&tasks_path).await?;
        if service.spec.mode.is_job() {
            let (look, is_over) = jobs::look(&service, &tasks);
            display.show(&look);
            if is_over {
                display.verify("job complete");
                return Ok(());
            }
            tokio::time::sleep(POLL_INTERVAL).await;
            continue;
        }
        let look = look(&service, &tasks);
        let update = service.update_status.as_ref();
        let state = update.map_or("", |update| update.state.as_str());
        let message = update.map_or("", |update| update.message.as_str());
        let policy =
            if state.starts_with("rollback") { &service.spec.rollback_config } else { &service.spec.update_config };
        let monitor = match policy {
            Some(config) if config.monitor > 0 => Duration::from_nanos(config.monitor),
            _ => MONITOR_DEFAULT,
        };
        let all_run = look.running == look.total && state != "updating" && state != "rollback_started";
        display.show(&look);
        match state {
            "paused" | "rollback_paused" => {
                let what = if state == "paused" { "update" } else { "rollback" };
                return Err(CliError::Failed(format!("service {what} paused: {message}")));
            }
            "rollback_started" if asked == Asked::Forward && failure.is_none() => {
                display.verify(message);
                failure = Some(message.to_owned());
            }
            // The update has watched its tasks for the monitor period already.
            "completed" | "rollback_completed" if all_run && look.total > 0 => {
                return converged(name, failure, display);
            }
            _ => {}
        }
        if all_run {
            let since = *converged_since.get_or_insert_with(Instant::now);
            let Some(left) = monitor.checked_sub(since.elapsed()).filter(|left| !left.is_zero()) else {
                return converged(name, failure, display);
            };
            let seconds = left.as_secs_f64().ceil();
            display.verify(&format!("Waiting {seconds} seconds to verify that tasks are stable..."));
        } else if converged_since.take().is_some() {
            display.verify("Detected task failure");
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

fn converged(name: &str, failure: Option<String>, display: &mut Display) -> Result<(), CliError> {
    display.verify(&format!("Service {name} converged"));
    match failure {
        Some(reason) => Err(CliError::Failed(format!("service rolled back: {reason}"))),
        None => Ok(()),
    }
}

/// Counts one task per slot: the one that is meant to run, and of two such the one that is further.
fn look(service: &Service, tasks: &[Task]) -> Look {
    let mut by_slot: BTreeMap<String, &Task> = BTreeMap::new();
    for task in tasks.iter().filter(|task| rank(&task.desired_state) <= rank("running")) {
        let best = by_slot.entry(slot_key(task)).or_insert(task);
        if rank(&task.status.state) <= rank("running") && rank(&task.status.state) > rank(&best.status.state) {
            *best = task;
        }
    }
    let total = match service.spec.mode.kind() {
        ModeKind::Replicated { replicas } => replicas,
        ModeKind::Global | ModeKind::ReplicatedJob { .. } | ModeKind::GlobalJob => {
            let counted = service.service_status.as_ref().map_or(0, |status| status.desired_tasks);
            counted.max(by_slot.len() as u64)
        }
    };
    let running = by_slot.values().filter(|task| task.status.state == "running").count() as u64;
    let sums = vec![format!("overall progress: {running} out of {total} tasks")];
    let shown = |task: &Task| (slot_name(task), (task.status.state.clone(), task.status.err.clone()));
    Look { sums, total, running, slots: by_slot.into_values().map(shown).collect() }
}

/// Returns a key by which slots are told apart and sorted.
fn slot_key(task: &Task) -> String {
    task.slot.map_or_else(|| task.node_id.clone(), |slot| format!("{slot:09}"))
}

fn rank(state: &str) -> usize {
    STATES.iter().position(|known| *known == state).unwrap_or(STATES.len())
}

/// Where progress is shown: always standard error, so that standard output holds the identifier alone.
enum Display {
    Silent,
    Lines { overall: Vec<String>, reasons: BTreeMap<String, String>, verify: String },
    Bars { all: MultiProgress, overall: Vec<ProgressBar>, slots: BTreeMap<String, ProgressBar>, verify: ProgressBar },
}

impl Display {
    fn new() -> Self {
        if !io::stderr().is_terminal() {
            return Self::Lines { overall: Vec::new(), reasons: BTreeMap::new(), verify: String::new() };
        }
        let all = MultiProgress::new();
        let verify = all.add(line());
        Self::Bars { all, overall: Vec::new(), slots: BTreeMap::new(), verify }
    }

    fn show(&mut self, look: &Look) {
        match self {
            Self::Silent => {}
            Self::Lines { overall, reasons, .. } => {
                look.sums.iter().filter(|sum| !overall.contains(*sum)).for_each(|sum| say(sum));
                overall.clone_from(&look.sums);
                for (slot, (state, reason)) in &look.slots {
                    if !reason.is_empty() && reasons.insert(slot.clone(), reason.clone()).as_ref() != Some(reason) {
                        say(&format!("{}: {state}: {reason}", position(slot, look)));
                    }
                }
            }
            Self::Bars { all, overall, slots, verify } => {
                while overall.len() < look.sums.len() {
                    overall.push(all.insert(overall.len(), line()));
                }
                overall.iter().zip(&look.sums).for_each(|(bar, sum)| bar.set_message(sum.clone()));
                if look.total > BARS_MAX {
                    return;
                }
                slots.retain(|slot, bar| {
                    let wanted = look.slots.contains_key(slot);
                    if !wanted {
                        all.remove(bar);
                    }
                    wanted
                });
                for (slot, (state, reason)) in &look.slots {
                    let bar = slots.entry(slot.clone()).or_insert_with(|| all.insert_before(verify, line()));
                    let reason = if reason.is_empty() { String::new() } else { format!("  {reason}") };
                    bar.set_message(format!("{}: {state:<10} [{}]{reason}", position(slot, look), arrow(state)));
                }
            }
        }
    }

    fn verify(&mut self, text: &str) {
        match self {
            Self::Silent => {}
            Self::Lines { verify, .. } => {
                // The count-down would be a line each second; its beginning and its outcome are enough.
                let kind: String = text.chars().filter(|char| !char.is_ascii_digit()).collect();
                if *verify != kind {
                    say(&format!("verify: {text}"));
                    *verify = kind;
                }
            }
            Self::Bars { verify, .. } => verify.set_message(format!("verify: {text}")),
        }
    }

    fn finish(&mut self) {
        if let Self::Bars { overall, slots, verify, .. } = self {
            for bar in overall.iter().chain(slots.values()).chain([&*verify]) {
                bar.abandon();
            }
        }
    }
}

fn line() -> ProgressBar {
    let style = ProgressStyle::with_template("{wide_msg}").expect("the template is constant and valid");
    ProgressBar::new_spinner().with_style(style)
}

fn position(slot: &str, look: &Look) -> String {
    if slot.len() < 10 { format!("{slot}/{}", look.total) } else { crate::output::short_id(slot).to_owned() }
}

fn arrow(state: &str) -> String {
    let steps = rank(state).min(STATES.len() - 1) * 6;
    format!("{:<43}", format!("{}>", "=".repeat(steps)))
}

fn say(text: &str) {
    // Progress is a courtesy: that nobody reads standard error does not stop the command.
    let _ = writeln!(io::stderr().lock(), "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn task(slot: u64, desired: &str, state: &str, error: &str) -> Task {
        serde_json::from_value(json!({"ID": "x", "Slot": slot, "DesiredState": desired,
            "Status": {"State": state, "Err": error}}))
        .unwrap()
    }

    #[test]
    fn one_task_counts_per_slot() {
        let service =
            serde_json::from_value(json!({"ID": "s", "Spec": {"Mode": {"Replicated": {"Replicas": 3}}}})).unwrap();
        let tasks = [
            task(1, "running", "running", ""),
            task(1, "running", "starting", ""),
            task(1, "shutdown", "running", ""),
            task(2, "running", "pending", "no suitable node"),
            task(4, "shutdown", "running", ""),
        ];
        let look = look(&service, &tasks);
        assert_eq!((look.running, look.total), (1, 3));
        assert_eq!(look.slots["2"].1, "no suitable node");
        assert_eq!(look.slots.len(), 2);
    }
}
