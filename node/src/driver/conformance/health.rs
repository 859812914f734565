//! Health checks, as every driver has to run them.

use std::time::Duration;

use anyhow::{Context, ensure};
use shoal_control::task::ContainerPlan;
use shoal_control::task::FoundState;
use shoal_control::task::health::HealthStatus::{self, Healthy, Starting, Unhealthy};
use shoal_protocol::spec::Healthcheck;

use super::{SLEEP, Suite, within};
use crate::driver::HealthReport;

/// Nanoseconds between checks, and those that a check which hangs gets.
const INTERVAL: u64 = 100_000_000;
const SHORT_TIMEOUT: u64 = 200_000_000;

impl Suite<'_> {
    pub(super) async fn health(&self) -> anyhow::Result<()> {
        for (name, test, retries, want) in [
            ("succeeds", &["CMD-SHELL", "exit 0"][..], 3, Some((Healthy, ""))),
            ("fails", &["CMD-SHELL", "echo bad; exit 1"], 2, Some((Unhealthy, "bad"))),
            ("hangs", &["CMD-SHELL", "sleep 1000"], 1, Some((Unhealthy, "Health check exceeded timeout (200ms)"))),
            ("is no program", &["CMD", "/no/such/program"], 1, Some((Unhealthy, ""))),
            ("is none", &["NONE"], 1, None),
        ] {
            let plan = self.checked(&format!("trap 'exit 0' TERM; echo up; {SLEEP}"), test, retries);
            let running = self.start(&plan).await?;
            ensure!(running.health == want.map(|_| Starting), "a check that {name}: {running:?} at the start");
            let report = self.next_health(&plan, running.health).await?;
            let got = report.as_ref().map(|report| report.status);
            ensure!(got == want.map(|(status, _)| status), "a check that {name}: {report:?}");
            let said = report.map(|report| report.output).unwrap_or_default();
            ensure!(said.contains(want.unwrap_or((Starting, "")).1), "a check that {name} said {said:?}");
            self.remove(&plan).await?;
        }
        let unchecked = self.plan(SLEEP);
        ensure!(self.start(&unchecked).await?.health.is_none(), "a container without a check");
        ensure!(self.next_health(&unchecked, None).await?.is_none(), "a container without a check");
        self.remove(&unchecked).await
    }

    /// A container that is well for a while.
    pub(super) async fn health_inside(&self) -> anyhow::Result<()> {
        let line =
            "[ \"$GREETING\" = hello ] && [ \"$PWD\" = /here ] && ! [ -e /bad ] || { echo it went bad; exit 1; }";
        let mut plan = self.checked("sleep 2; touch /bad; sleep 1000", &["CMD-SHELL", line], 2);
        plan.env.push("GREETING=hello".to_owned());
        plan.dir = "/here".to_owned();
        self.start(&plan).await?;
        let first = self.next_health(&plan, Some(Starting)).await?.context("it has a check")?;
        ensure!(first.status == Healthy, "{first:?}");
        let found = self.find(plan.task).await?.context("a running container is listed")?.state;
        ensure!(matches!(&found, FoundState::Running(running) if running.health == Some(Healthy)), "{found:?}");
        let then = self.next_health(&plan, Some(Healthy)).await?.context("it has a check")?;
        ensure!(then.status == Unhealthy && then.output.trim() == "it went bad", "{then:?}");
        self.remove(&plan).await
    }

    fn checked(&self, script: &str, test: &[&str], retries: u64) -> ContainerPlan {
        let mut plan = self.plan(script);
        let hangs = test.contains(&"sleep 1000");
        plan.healthcheck = Some(Healthcheck {
            test: test.iter().map(|word| (*word).to_owned()).collect(),
            interval: INTERVAL,
            timeout: if hangs { SHORT_TIMEOUT } else { Duration::from_secs(30).as_nanos() as u64 },
            retries,
            ..Healthcheck::default()
        });
        plan
    }

    async fn next_health(
        &self,
        plan: &ContainerPlan,
        known: Option<HealthStatus>,
    ) -> anyhow::Result<Option<HealthReport>> {
        within(self.driver.health(plan.task, known)).await.context("health")
    }
}
