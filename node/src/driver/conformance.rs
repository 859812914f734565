//! What every driver must do, as one suite: test support that the daemon never calls.
//!
//! [`run`] holds for all drivers; [`run_isolated`] needs real containers. Both leave no container behind when they pass;
//! the second leaves volumes that have names.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail, ensure};
use futures::StreamExt;
use shoal_control::task::admission::Capacity;
use shoal_control::task::plan::container_plan;
use shoal_control::task::{ContainerPlan, Found, FoundState, NodeIdentity, Running, Wanted};
use shoal_protocol::record::SlotName;
use shoal_protocol::spec::{ContainerSpec, Limits, Resources, TaskTemplate};
use shoal_protocol::{ClusterId, NodeId, ServiceId, TaskId, TaskState, WallTime};

use super::{Driver, DriverError, LogLine, LogQuery, LogStream};

pub use image::TestImage;

mod files;
mod further;
mod health;
mod image;
mod mounts;

/// A call that takes longer has failed; a script that only prints takes much less.
const CALL_MAX: Duration = Duration::from_secs(60);

/// The grace of containers that do not end by themselves when asked.
const SHORT_GRACE: Duration = Duration::from_secs(1);

/// Waits for nothing but signals, and lets a trap run at once.
const SLEEP: &str = "sleep 1000 & wait";

/// Returns an identity for a driver under test, new each time.
pub fn test_node() -> NodeIdentity {
    NodeIdentity {
        id: NodeId(fresh_id()),
        hostname: "test-node".to_owned(),
        os: "linux".to_owned(),
        architecture: std::env::consts::ARCH.to_owned(),
        cluster: ClusterId(fresh_id()),
        capacity: Capacity::default(),
    }
}

/// Checks what holds for every driver, the fake one included. `node` is what the driver was made for.
pub async fn run(driver: &dyn Driver, node: &NodeIdentity, image: &TestImage) -> anyhow::Result<()> {
    let suite = Suite { driver, node, image };
    suite.images().await.context("images")?;
    suite.missing_image().await.context("a missing image")?;
    suite.preparing().await.context("preparing")?;
    suite.missing_sources().await.context("missing sources of mounts")?;
    suite.running().await.context("running")?;
    suite.ends().await.context("ends")?;
    suite.stopping().await.context("stopping")?;
    suite.force().await.context("stopping by force")?;
    suite.removing().await.context("removing")?;
    suite.output().await.context("output")?;
    suite.following().await.context("following")?;
    suite.environment().await.context("environment")?;
    suite.limits().await.context("limits")?;
    suite.health().await.context("health")?;
    suite.leftovers().await.context("what is left")?;
    suite.removing_images().await.context("removing images")
}

/// Checks what only real containers show: user, directory, host name, a read-only root and so on, a program that is not there,
/// mounts, checks that look around, secrets and configs.
pub async fn run_isolated(driver: &dyn Driver, node: &NodeIdentity, image: &TestImage) -> anyhow::Result<()> {
    let suite = Suite { driver, node, image };
    suite.images().await.context("images")?;
    suite.settings().await.context("settings")?;
    suite.further_settings().await.context("further settings")?;
    suite.missing_program().await.context("a missing program")?;
    suite.mounts().await.context("mounts")?;
    suite.files().await.context("secrets and configs")?;
    suite.health_inside().await.context("health inside")?;
    suite.leftovers().await.context("what is left")
}

struct Suite<'a> {
    driver: &'a dyn Driver,
    node: &'a NodeIdentity,
    image: &'a TestImage,
}

impl Suite<'_> {
    async fn images(&self) -> anyhow::Result<()> {
        let capacity = within(self.driver.capacity()).await?;
        ensure!(capacity.nano_cpus > 0 && capacity.memory_bytes > 0, "a node has something: {capacity:?}");
        ensure!(!self.driver.engine().is_empty());
        for _ in 0..2 {
            let references = within(self.driver.load_image(&mut &self.image.archive[..])).await?;
            ensure!(references == [self.image.reference.clone()], "loading names the image: {references:?}");
        }
        let garbage = vec![7u8; 4096];
        ensure!(within(self.driver.load_image(&mut &garbage[..])).await.is_err(), "garbage is no image");

        let images = within(self.driver.images()).await?;
        let image = images.iter().find(|image| image.tags.contains(&self.image.reference));
        let image = image.context("a loaded image is listed")?;
        let digits = image.id.strip_prefix("sha256:").unwrap_or_default();
        ensure!(digits.len() == 64 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()), "{}", image.id);
        ensure!(image.size > 0);
        Ok(())
    }

    /// Removes an image of its own: others may be using the suite's.
    async fn removing_images(&self) -> anyhow::Result<()> {
        let image = TestImage::from_layer(&format!("shoal-test/removed:{:x}", fresh_id()), &[0; 1024])?;
        within(self.driver.load_image(&mut &image.archive[..])).await?;
        within(self.driver.remove_image(&image.reference)).await?;
        let images = within(self.driver.images()).await?;
        ensure!(!images.iter().any(|listed| listed.tags.contains(&image.reference)), "a removed image is listed");
        let again = within(self.driver.remove_image(&image.reference)).await;
        ensure!(matches!(again, Err(DriverError::NoSuchImage { .. })), "removing it again: {again:?}");
        Ok(())
    }

    async fn missing_image(&self) -> anyhow::Result<()> {
        let mut plan = self.plan("exit 0");
        plan.image = "shoal-test/no-such-image:1".to_owned();
        match tokio::time::timeout(CALL_MAX * 4, self.driver.prepare(&plan)).await? {
            Err(error @ DriverError::NoSuchImage { .. }) => {
                let want = format!("No such image: {} on {}", plan.image, self.node.hostname);
                ensure!(error.to_string() == want, "{error}");
            }
            other => bail!("not refused: {other:?}"),
        }
        ensure!(self.find(plan.task).await?.is_none(), "nothing was made");
        Ok(())
    }

    async fn preparing(&self) -> anyhow::Result<()> {
        let plan = self.plan("exit 0");
        let first = within(self.driver.prepare(&plan)).await?;
        let second = within(self.driver.prepare(&plan)).await?;
        ensure!(first == second, "preparing twice makes one container");
        ensure!(first.len() == 64 && first.bytes().all(|byte| byte.is_ascii_hexdigit()), "{first}");
        let found = self.find(plan.task).await?.context("a prepared container is listed")?;
        ensure!(found.state == FoundState::Created, "{found:?}");
        ensure!((found.service, found.slot) == (plan.service, plan.slot), "{found:?}");
        self.remove(&plan).await
    }

    async fn running(&self) -> anyhow::Result<()> {
        let plan = self.plan(&format!("trap 'exit 0' TERM; echo up; {SLEEP}"));
        let running = self.start(&plan).await?;
        ensure!(running.pid > 1, "{running:?}");
        ensure!(running.address.is_some_and(|address| !address.is_loopback()), "{running:?}");
        let age = wall_now().0.abs_diff(running.started.0);
        ensure!(age < CALL_MAX.as_nanos() as u64, "started just now: {running:?}");
        ensure!(within(self.driver.start(plan.task)).await? == running, "starting twice starts once");

        let found = self.find(plan.task).await?.context("a running container is listed")?;
        ensure!(found.state == FoundState::Running(running), "{found:?}");
        self.wait_for_line(&plan, "up").await?;
        within(self.driver.stop(plan.task)).await?;
        self.remove(&plan).await
    }

    async fn ends(&self) -> anyhow::Result<()> {
        for code in [0, 3, 255] {
            let plan = self.plan(&format!("exit {code}"));
            self.start(&plan).await?;
            for _ in 0..2 {
                let exit = within(self.driver.wait(plan.task)).await?;
                ensure!(exit.code == code, "{exit:?} and not {code}");
            }
            let found = self.find(plan.task).await?.context("an ended container is listed")?;
            ensure!(found.state == FoundState::Exited { code }, "{found:?}");
            within(self.driver.stop(plan.task)).await.context("stopping what has ended")?;
            self.remove(&plan).await?;
        }
        Ok(())
    }

    async fn stopping(&self) -> anyhow::Result<()> {
        for (signal, trap) in [("", "TERM"), ("SIGTERM", "TERM"), ("SIGUSR1", "USR1"), ("INT", "INT")] {
            let mut plan = self.plan(&format!("trap 'echo asked; exit 5' {trap}; echo up; {SLEEP}"));
            plan.stop_signal = signal.to_owned();
            plan.stop_grace = CALL_MAX;
            self.start(&plan).await?;
            self.wait_for_line(&plan, "up").await?;
            let started = Instant::now();
            let (exit, stopped) =
                tokio::join!(within(self.driver.wait(plan.task)), within(self.driver.stop(plan.task)));
            stopped.with_context(|| format!("stop by {signal:?}"))?;
            ensure!(exit?.code == 5, "the trap decides how it ends");
            ensure!(started.elapsed() < CALL_MAX / 2, "it did not wait for the grace to pass");
            let lines = self.lines(&plan, LogQuery::default()).await?;
            ensure!(text(&lines, LogStream::Stdout) == ["up", "asked"], "{lines:?}");
            self.remove(&plan).await?;
        }
        Ok(())
    }

    async fn force(&self) -> anyhow::Result<()> {
        let mut plan = self.plan("echo up; sleep 1000");
        plan.stop_grace = SHORT_GRACE;
        self.start(&plan).await?;
        self.wait_for_line(&plan, "up").await?;
        let started = Instant::now();
        within(self.driver.stop(plan.task)).await?;
        ensure!(started.elapsed() >= SHORT_GRACE, "killed before its grace was over: {:?}", started.elapsed());
        let exit = within(self.driver.wait(plan.task)).await?;
        ensure!(exit.code == 137, "killed: {exit:?}");
        self.remove(&plan).await
    }

    async fn removing(&self) -> anyhow::Result<()> {
        let plan = self.plan("echo up; sleep 1000");
        within(self.driver.remove(plan.task)).await.context("what was never there")?;
        self.start(&plan).await?;
        self.wait_for_line(&plan, "up").await?;
        for _ in 0..2 {
            within(self.driver.remove(plan.task)).await?;
            ensure!(self.find(plan.task).await?.is_none(), "what was removed is not listed");
        }
        let wait = within(self.driver.wait(plan.task)).await;
        ensure!(wait.is_err(), "what was removed cannot be waited for: {wait:?}");
        let start = within(self.driver.start(plan.task)).await;
        ensure!(matches!(no_task(start), Some(task) if task == plan.task), "what was removed cannot be started");
        let logs = within(self.driver.logs(plan.task, LogQuery::default())).await.map(|_| ());
        ensure!(matches!(no_task(logs), Some(task) if task == plan.task), "what was removed has no output");
        Ok(())
    }

    async fn output(&self) -> anyhow::Result<()> {
        let plan = self.plan("echo one; echo two >&2; echo three; sleep 1.1; echo four");
        let before = wall_now();
        self.start(&plan).await?;
        within(self.driver.wait(plan.task)).await?;
        let lines = self.lines(&plan, LogQuery::default()).await?;
        ensure!(text(&lines, LogStream::Stdout) == ["one", "three", "four"], "{lines:?}");
        ensure!(text(&lines, LogStream::Stderr) == ["two"], "{lines:?}");
        ensure!(lines.iter().all(|line| line.bytes.ends_with(b"\n")), "{lines:?}");
        let slack = Duration::from_secs(1).as_nanos() as u64;
        ensure!(lines.iter().all(|line| line.time.0 + slack >= before.0), "{lines:?}");

        for (tail, want) in [(0, 0), (1, 1), (2, 2), (100, 4)] {
            let lines = self.lines(&plan, LogQuery { tail: Some(tail), ..LogQuery::default() }).await?;
            ensure!(lines.len() == want, "the last {tail} of 4 lines are not {lines:?}");
            ensure!(tail == 0 || lines.last().is_some_and(|line| &line.bytes[..] == b"four\n"), "{lines:?}");
        }
        let last = lines.iter().map(|line| line.time).max().unwrap_or_default();
        let recent = self.lines(&plan, LogQuery { since: Some(last), ..LogQuery::default() }).await?;
        ensure!(text(&recent, LogStream::Stdout) == ["four"] && recent.len() == 1, "since: {recent:?}");
        let later = WallTime(last.0 + 60_000_000_000);
        ensure!(self.lines(&plan, LogQuery { since: Some(later), ..LogQuery::default() }).await?.is_empty());
        self.remove(&plan).await
    }

    async fn following(&self) -> anyhow::Result<()> {
        let plan = self.plan("echo one; sleep 1.1; echo two; sleep 600");
        self.start(&plan).await?;
        self.wait_for_line(&plan, "one").await?;
        let query = LogQuery { tail: Some(1), follow: true, ..LogQuery::default() };
        let mut lines = within(self.driver.logs(plan.task, query)).await?;
        for want in ["one", "two"] {
            let line = tokio::time::timeout(CALL_MAX, lines.next()).await?.context("the output ended early")??;
            ensure!(text(std::slice::from_ref(&line), LogStream::Stdout) == [want], "{line:?} is not {want}");
        }
        within(self.driver.stop(plan.task)).await?;
        let end =
            tokio::time::timeout(CALL_MAX, lines.next()).await.context("the end of a container ends its output")?;
        ensure!(end.is_none(), "{end:?} was never written");
        self.remove(&plan).await
    }

    async fn environment(&self) -> anyhow::Result<()> {
        let mut plan = self.plan("env");
        plan.env.push("GREETING=hello, world".to_owned());
        self.start(&plan).await?;
        within(self.driver.wait(plan.task)).await?;
        let lines = self.lines(&plan, LogQuery::default()).await?;
        let got: BTreeSet<String> = text(&lines, LogStream::Stdout).into_iter().collect();
        for want in [
            "GREETING=hello, world".to_owned(),
            format!("SHOAL_NODE_ID={}", self.node.id),
            format!("SHOAL_NODE_HOSTNAME={}", self.node.hostname),
            "SHOAL_SERVICE_NAME=conformance".to_owned(),
            format!("SHOAL_TASK_ID={}", plan.task),
            "SHOAL_TASK_SLOT=1".to_owned(),
        ] {
            ensure!(got.contains(&want), "{want} is not in {got:?}");
        }
        ensure!(got.iter().any(|variable| variable.starts_with("PATH=")), "a path is set: {got:?}");
        self.remove(&plan).await
    }

    async fn limits(&self) -> anyhow::Result<()> {
        let mut plan = self.plan("echo fine");
        plan.limits = Limits { nano_cpus: 500_000_000, memory_bytes: 64 << 20, pids: 32 };
        self.start(&plan).await?;
        let exit = within(self.driver.wait(plan.task)).await?;
        ensure!(exit.code == 0, "{exit:?}");
        self.remove(&plan).await
    }

    async fn settings(&self) -> anyhow::Result<()> {
        let mut plan = self.plan("id -u; pwd; hostname; touch /file || echo read-only");
        plan.user = "65534".to_owned();
        plan.dir = "/tmp".to_owned();
        plan.hostname = "inside".to_owned();
        plan.read_only = true;
        self.start(&plan).await?;
        within(self.driver.wait(plan.task)).await?;
        let lines = self.lines(&plan, LogQuery::default()).await?;
        let want = ["65534", "/tmp", "inside", "read-only"];
        ensure!(text(&lines, LogStream::Stdout) == want, "{lines:?}");
        self.remove(&plan).await
    }

    async fn missing_program(&self) -> anyhow::Result<()> {
        let mut plan = self.plan("");
        plan.command = vec!["/no/such/program".to_owned()];
        plan.args = Vec::new();
        let started = self.start(&plan).await;
        ensure!(started.is_err(), "a program that is not there was started: {started:?}");
        self.remove(&plan).await
    }

    async fn leftovers(&self) -> anyhow::Result<()> {
        let found = within(self.driver.list()).await?;
        ensure!(found.is_empty(), "the suite left {found:?}");
        Ok(())
    }

    /// Returns the plan of a task that runs `sh -c script`.
    fn plan(&self, script: &str) -> ContainerPlan {
        let template = TaskTemplate {
            container_spec: ContainerSpec {
                image: self.image.reference.clone(),
                command: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
                ..ContainerSpec::default()
            },
            resources: Resources::default(),
            ..TaskTemplate::default()
        };
        plan_of((ServiceId(fresh_id()), TaskId(fresh_id())), &template, self.node)
    }

    async fn start(&self, plan: &ContainerPlan) -> anyhow::Result<Running> {
        let id = within(self.driver.prepare(plan)).await.context("prepare")?;
        let running = within(self.driver.start(plan.task)).await.context("start")?;
        ensure!(running.container_id == id, "{running:?} is not {id}");
        Ok(running)
    }

    /// Runs a container to its end, removes it and returns what it wrote to its standard output.
    async fn run_to_end(&self, plan: &ContainerPlan) -> anyhow::Result<Vec<String>> {
        self.start(plan).await?;
        within(self.driver.wait(plan.task)).await?;
        let lines = self.lines(plan, LogQuery::default()).await?;
        self.remove(plan).await?;
        Ok(text(&lines, LogStream::Stdout))
    }

    async fn remove(&self, plan: &ContainerPlan) -> anyhow::Result<()> {
        within(self.driver.remove(plan.task)).await.context("remove")
    }

    async fn find(&self, task: TaskId) -> anyhow::Result<Option<Found>> {
        Ok(within(self.driver.list()).await?.into_iter().find(|found| found.task == task))
    }

    async fn lines(&self, plan: &ContainerPlan, query: LogQuery) -> anyhow::Result<Vec<LogLine>> {
        let stream = within(self.driver.logs(plan.task, query)).await?;
        let lines: Vec<_> = tokio::time::timeout(CALL_MAX, stream.collect()).await?;
        lines.into_iter().map(|line| line.map_err(anyhow::Error::from)).collect()
    }

    async fn wait_for_line(&self, plan: &ContainerPlan, want: &str) -> anyhow::Result<()> {
        let deadline = Instant::now() + CALL_MAX;
        loop {
            let lines = self.lines(plan, LogQuery::default()).await?;
            if text(&lines, LogStream::Stdout).iter().any(|line| line == want) {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{want:?} was never written: {lines:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

async fn within<T>(call: impl Future<Output = Result<T, DriverError>>) -> Result<T, DriverError> {
    match tokio::time::timeout(CALL_MAX, call).await {
        Ok(result) => result,
        Err(elapsed) => Err(DriverError::Failed { what: "call".to_owned(), source: elapsed.into() }),
    }
}

fn no_task<T>(result: Result<T, DriverError>) -> Option<TaskId> {
    match result {
        Err(DriverError::NoSuchTask(task)) => Some(task),
        Ok(_)
        | Err(
            DriverError::NoSuchImage { .. }
            | DriverError::NotPulled { .. }
            | DriverError::Refused(_)
            | DriverError::Invalid(_)
            | DriverError::Full { .. }
            | DriverError::Failed { .. },
        ) => None,
    }
}

fn text(lines: &[LogLine], stream: LogStream) -> Vec<String> {
    lines
        .iter()
        .filter(|line| line.stream == stream)
        .map(|line| String::from_utf8_lossy(&line.bytes).trim_end().to_owned())
        .collect()
}

/// Returns an identifier that no other run of the suite has: several may share one engine.
fn fresh_id() -> u128 {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    u128::from(wall_now().0) << 64 | u128::from(std::process::id()) << 32 | u128::from(count)
}

fn wall_now() -> WallTime {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    WallTime(u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX))
}

/// Returns the plan of the first task of a service. There must be no templates in `template`.
pub(crate) fn plan_of(
    (service, task): (ServiceId, TaskId),
    template: &TaskTemplate,
    node: &NodeIdentity,
) -> ContainerPlan {
    let wanted = Wanted {
        service,
        slot: SlotName::Replica(1),
        desired: TaskState::Running,
        template: Ok(Arc::new(template.clone())),
        service_name: "conformance".to_owned(),
        service_labels: Default::default(),
        ports: Vec::new(),
        generic: Default::default(),
        fenced: false,
    };
    container_plan(task, &wanted, template, node).expect("the template has no templates")
}
