//! Health checks of fake containers, by the same decisions as those of real ones.

use std::sync::{Arc, Mutex, PoisonError};

use shoal_control::task::health::{Checks, HealthStatus, Policy};
use shoal_protocol::Time;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::script::{self, Process};
use super::{Container, HealthReport};

/// Begins to check a container that was just started, until it ends.
pub(super) fn begin(container: &Container, policy: Policy) {
    let health = container.health.clone();
    let (mut exit, is_well) = (container.exit.subscribe(), Arc::clone(&container.is_well));
    health.send_replace(Some(HealthReport { status: HealthStatus::Starting, output: String::new() }));
    tokio::spawn(async move {
        let started = Instant::now();
        let now = || Time(u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX));
        let checking = async {
            let mut checks = Checks::new(&policy, now());
            loop {
                tokio::time::sleep(checks.due().since(now())).await;
                let began = now();
                let (succeeded, output) = check(&policy, &is_well).await;
                checks.take_result(&policy, began, succeeded, now());
                let status = checks.status();
                health.send_if_modified(|report| {
                    let is_news = report.as_ref().is_none_or(|report| report.status != status);
                    *report = Some(HealthReport { status, output });
                    is_news
                });
            }
        };
        tokio::select! {
            _ = exit.wait_for(Option::is_some) => {}
            () = checking => {}
        }
    });
}

async fn check(policy: &Policy, is_well: &Mutex<Option<bool>>) -> (bool, String) {
    if let Some(is_well) = *is_well.lock().unwrap_or_else(PoisonError::into_inner) {
        return (is_well, "told so".to_owned());
    }
    let words: Vec<&str> = policy.command.iter().map(String::as_str).collect();
    let line = script::line_of(&words).map_or_else(|| words.join(" "), str::to_owned);
    let (_signals, received) = mpsc::channel(1);
    let mut output = String::new();
    let run = Process::new(&line, Vec::new(), received).run(|_, text| output.push_str(&text));
    match tokio::time::timeout(policy.timeout, run).await {
        Ok(code) => (code == 0, output),
        Err(_) => (false, format!("Health check exceeded timeout ({:?})", policy.timeout)),
    }
}
