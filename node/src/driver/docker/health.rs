//! Health checks, which the engine runs and judges by itself. Source: Docker Engine API v1.41, `ContainerState.Health`.

use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bollard::models::{ContainerInspectResponse, HealthConfig, HealthStatusEnum};
use bollard::query_parameters::EventsOptionsBuilder;
use futures::StreamExt;
use shoal_control::task::ContainerPlan;
use shoal_control::task::health::HealthStatus;
use shoal_protocol::TaskId;
use shoal_protocol::spec::Healthcheck;

use super::DockerDriver;
use crate::driver::{DriverError, HealthReport};

/// How long the engine's word that something changed is waited for: one of another machine may have another time of day, and
/// what it said just before would be missed.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// Seconds of the past whose events are told anew, so that none is lost between looking and listening.
const OVERLAP_SECS: u64 = 2;

/// The API's first version with an interval for the start period. Source: Docker Engine API, version history.
const START_INTERVAL_SINCE: (usize, usize) = (1, 44);

impl DockerDriver {
    /// Waits until the engine finds a container otherwise than `known`.
    pub(super) async fn next_health(
        &self,
        task: TaskId,
        known: Option<HealthStatus>,
    ) -> Result<Option<HealthReport>, DriverError> {
        let id = self.container(task).await?;
        loop {
            let filters = HashMap::from([("container", vec![id.clone()]), ("event", vec!["health_status".to_owned()])]);
            let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
            let since = wall.saturating_sub(OVERLAP_SECS).to_string();
            let options = EventsOptionsBuilder::default().since(&since).filters(&filters).build();
            let mut events = Box::pin(self.patient.events(Some(options)));
            loop {
                let report = report(&self.inspect(task, &id).await?);
                if report.as_ref().is_none_or(|report| Some(report.status) != known) {
                    return Ok(report);
                }
                match tokio::time::timeout(LOOK_AGAIN, events.next()).await {
                    Ok(Some(Ok(_))) | Err(_) => {}
                    Ok(Some(Err(error))) => return Err(self.task_error(task, "listen for health", error)),
                    Ok(None) => break, // the engine ended the answer
                }
            }
        }
    }

    /// Refuses what this engine would ignore.
    pub(super) fn check_health_plan(&self, plan: &ContainerPlan) -> Result<(), DriverError> {
        let version = self.docker.client_version();
        let is_old = (version.major_version, version.minor_version) < START_INTERVAL_SINCE;
        if is_old && plan.healthcheck.as_ref().is_some_and(|check| check.start_interval > 0) {
            let (major, minor) = START_INTERVAL_SINCE;
            return Err(DriverError::Refused(format!(
                "can't set healthcheck.start_interval: it needs Docker Engine 25 (API {major}.{minor}), here is {} (API {version})",
                self.engine
            )));
        }
        Ok(())
    }
}

/// Translates a health check.
pub(super) fn config(check: &Healthcheck) -> HealthConfig {
    let number = |value: u64| (value > 0).then(|| i64::try_from(value).unwrap_or(i64::MAX));
    HealthConfig {
        test: Some(check.test.clone()).filter(|test| !test.is_empty()),
        interval: number(check.interval),
        timeout: number(check.timeout),
        retries: number(check.retries),
        start_period: number(check.start_period),
        start_interval: number(check.start_interval),
    }
}

/// Returns how the engine finds a container, if it has a check.
pub(super) fn report(inspected: &ContainerInspectResponse) -> Option<HealthReport> {
    let health = inspected.state.as_ref()?.health.as_ref()?;
    let status = match health.status? {
        HealthStatusEnum::EMPTY | HealthStatusEnum::NONE => return None,
        HealthStatusEnum::STARTING => HealthStatus::Starting,
        HealthStatusEnum::HEALTHY => HealthStatus::Healthy,
        HealthStatusEnum::UNHEALTHY => HealthStatus::Unhealthy,
    };
    let last = health.log.iter().flatten().next_back();
    Some(HealthReport { status, output: last.and_then(|last| last.output.clone()).unwrap_or_default() })
}
