//! Counts, times and logs what is asked of a driver, whatever that is.

use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use futures::stream::BoxStream;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use shoal_control::task::health::HealthStatus;
use shoal_control::task::{ContainerPlan, Found, Running};
use shoal_protocol::TaskId;
use shoal_protocol::registry_auth::RegistryAuth;
use tokio::io::AsyncRead;
use tracing::{Instrument, field};

use super::inventory::Inventory;
use super::{Capacity, Driver, DriverError, Exit, HealthReport, ImageInfo, LogLine, LogQuery};

/// From starting a container, which takes milliseconds, to pulling a large image.
const BUCKETS: [f64; 10] = [0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10.0, 60.0, 300.0, 1800.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallLabels {
    call: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    call: &'static str,
    outcome: &'static str,
}

/// What is counted of the calls of drivers. Clones count together.
#[derive(Debug, Clone)]
pub struct DriverMetrics {
    calls: Family<OutcomeLabels, Counter>,
    seconds: Family<CallLabels, Histogram, fn() -> Histogram>,
}

impl DriverMetrics {
    /// Makes the counters known to monitors.
    pub fn register(registry: &mut Registry) -> Self {
        let (calls, seconds) =
            (Family::default(), Family::new_with_constructor((|| Histogram::new(BUCKETS)) as fn() -> _));
        let metrics = Self { calls, seconds };
        let help = "Calls of what runs containers that ended, by kind and what came of them";
        registry.register("shoal_driver_calls", help, metrics.calls.clone());
        let help = "Time that calls of what runs containers took, but for those that last as long as a container";
        registry.register("shoal_driver_call_seconds", help, metrics.seconds.clone());
        metrics
    }
}

/// A driver whose calls are counted, timed and logged.
pub struct Measured {
    driver: Arc<dyn Driver>,
    metrics: DriverMetrics,
}

/// One kind of call: its name, and whether it lasts as long as something else does.
#[derive(Clone, Copy)]
struct Call {
    name: &'static str,
    lasts: bool,
}

impl Call {
    const fn short(name: &'static str) -> Self {
        Self { name, lasts: false }
    }

    const fn lasting(name: &'static str) -> Self {
        Self { name, lasts: true }
    }
}

/// A call that is under way; counted once, also when whoever made it does not wait for its end.
struct Pending<'a> {
    metrics: &'a DriverMetrics,
    call: Call,
    began: Instant,
    outcome: &'static str,
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        // Whoever waits for something that lasts may stop waiting.
        let is_left = self.call.lasts && self.outcome == ABANDONED;
        let (call, outcome) = (self.call.name, if is_left { "left" } else { self.outcome });
        let seconds = self.began.elapsed().as_secs_f64();
        self.metrics.calls.get_or_create(&OutcomeLabels { call, outcome }).inc();
        if !self.call.lasts {
            self.metrics.seconds.get_or_create(&CallLabels { call }).observe(seconds);
        }
        tracing::debug!(outcome, seconds, "driver call ended");
    }
}

/// How a call ends that nobody waited for.
const ABANDONED: &str = "abandoned";

fn outcome(error: &DriverError) -> &'static str {
    match error {
        DriverError::NoSuchImage { .. } => "no_such_image",
        DriverError::NotPulled { .. } => "not_pulled",
        DriverError::Refused(_) => "refused",
        DriverError::Invalid(_) => "invalid",
        DriverError::Full { .. } => "full",
        DriverError::NoSuchTask(_) => "no_such_task",
        DriverError::Failed { .. } => "failed",
    }
}

impl Measured {
    /// Returns a driver that does what `driver` does, and is counted.
    pub fn wrap(driver: Arc<dyn Driver>, metrics: DriverMetrics) -> Arc<dyn Driver> {
        Arc::new(Self { driver, metrics })
    }

    async fn measure<T>(
        &self,
        call: Call,
        task: Option<TaskId>,
        image: Option<&str>,
        running: impl Future<Output = Result<T, DriverError>>,
    ) -> Result<T, DriverError> {
        let span = tracing::info_span!("driver", call = call.name, task = task.map(field::display), image);
        let measured = async {
            let mut pending = Pending { metrics: &self.metrics, call, began: Instant::now(), outcome: ABANDONED };
            let result = running.await;
            pending.outcome = result.as_ref().map_or_else(outcome, |_| "ok");
            result
        };
        measured.instrument(span).await
    }
}

#[async_trait]
impl Driver for Measured {
    fn engine(&self) -> String {
        self.driver.engine()
    }

    fn publishes_host_ports(&self) -> bool {
        self.driver.publishes_host_ports()
    }

    async fn capacity(&self) -> Result<Capacity, DriverError> {
        self.measure(Call::short("capacity"), None, None, self.driver.capacity()).await
    }

    async fn has_image(&self, image: &str) -> Result<bool, DriverError> {
        self.measure(Call::short("has_image"), None, Some(image), self.driver.has_image(image)).await
    }

    async fn pull(&self, image: &str, auth: Option<&RegistryAuth>) -> Result<(), DriverError> {
        self.measure(Call::short("pull"), None, Some(image), self.driver.pull(image, auth)).await
    }

    async fn prepare(&self, plan: &ContainerPlan) -> Result<String, DriverError> {
        self.measure(Call::short("prepare"), Some(plan.task), Some(&plan.image), self.driver.prepare(plan)).await
    }

    async fn start(&self, task: TaskId) -> Result<Running, DriverError> {
        self.measure(Call::short("start"), Some(task), None, self.driver.start(task)).await
    }

    async fn wait(&self, task: TaskId) -> Result<Exit, DriverError> {
        self.measure(Call::lasting("wait"), Some(task), None, self.driver.wait(task)).await
    }

    async fn health(&self, task: TaskId, known: Option<HealthStatus>) -> Result<Option<HealthReport>, DriverError> {
        self.measure(Call::lasting("health"), Some(task), None, self.driver.health(task, known)).await
    }

    async fn stop(&self, task: TaskId) -> Result<(), DriverError> {
        self.measure(Call::short("stop"), Some(task), None, self.driver.stop(task)).await
    }

    async fn remove(&self, task: TaskId) -> Result<(), DriverError> {
        self.measure(Call::short("remove"), Some(task), None, self.driver.remove(task)).await
    }

    async fn list(&self) -> Result<Vec<Found>, DriverError> {
        self.measure(Call::short("list"), None, None, self.driver.list()).await
    }

    async fn logs(
        &self,
        task: TaskId,
        query: LogQuery,
    ) -> Result<BoxStream<'static, Result<LogLine, DriverError>>, DriverError> {
        self.measure(Call::short("logs"), Some(task), None, self.driver.logs(task, query)).await
    }

    async fn load_image(&self, archive: &mut (dyn AsyncRead + Send + Unpin)) -> Result<Vec<String>, DriverError> {
        self.measure(Call::short("load_image"), None, None, self.driver.load_image(archive)).await
    }

    async fn images(&self) -> Result<Vec<ImageInfo>, DriverError> {
        self.measure(Call::short("images"), None, None, self.driver.images()).await
    }

    async fn remove_image(&self, image: &str) -> Result<(), DriverError> {
        self.measure(Call::short("remove_image"), None, Some(image), self.driver.remove_image(image)).await
    }

    async fn close(&self) -> Result<(), DriverError> {
        self.measure(Call::short("close"), None, None, self.driver.close()).await
    }

    fn inventory(self: Arc<Self>) -> Option<Arc<dyn Inventory>> {
        self.driver.clone().inventory()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use prometheus_client::encoding::text;

    use shoal_control::task::NodeIdentity;
    use shoal_protocol::spec::{ContainerSpec, TaskTemplate};
    use shoal_protocol::value::NodeStatus;
    use shoal_protocol::{ClusterId, NodeId, ServiceId};

    use super::*;
    use crate::driver::conformance::plan_of;
    use crate::driver::fake::{FakeCall, FakeDriver};
    use crate::logged::Logged;

    fn text_of(registry: &Registry) -> String {
        let mut text = String::new();
        text::encode(&mut text, registry).unwrap();
        text
    }

    fn measured() -> (Arc<FakeDriver>, Arc<dyn Driver>, Registry) {
        let capacity = Capacity { nano_cpus: 1, memory_bytes: 1 };
        let fake = Arc::new(FakeDriver::new("n1", capacity));
        let mut registry = Registry::default();
        let metrics = DriverMetrics::register(&mut registry);
        (fake.clone(), Measured::wrap(fake, metrics), registry)
    }

    fn plan(image: &str) -> ContainerPlan {
        let container_spec = ContainerSpec { image: image.to_owned(), ..ContainerSpec::default() };
        let template = TaskTemplate { container_spec, ..TaskTemplate::default() };
        let node = NodeIdentity::new(NodeId(1), ClusterId(1), &NodeStatus::default());
        plan_of((ServiceId(1), TaskId(7)), &template, &node)
    }

    #[tokio::test]
    async fn calls_are_counted_by_kind_and_outcome_and_timed() {
        let (fake, driver, registry) = measured();
        driver.prepare(&plan("fake/app")).await.unwrap();
        driver.start(TaskId(7)).await.unwrap();
        driver.prepare(&plan("fake/invalid")).await.unwrap_err();
        driver.pull("fake/missing", None).await.unwrap_err();
        driver.start(TaskId(8)).await.unwrap_err();
        fake.fail_next(FakeCall::Stop, 1);
        driver.stop(TaskId(7)).await.unwrap_err();
        driver.stop(TaskId(7)).await.unwrap();
        driver.wait(TaskId(7)).await.unwrap();
        let text = text_of(&registry);
        for line in [
            "shoal_driver_calls_total{call=\"prepare\",outcome=\"ok\"} 1",
            "shoal_driver_calls_total{call=\"prepare\",outcome=\"invalid\"} 1",
            "shoal_driver_calls_total{call=\"pull\",outcome=\"not_pulled\"} 1",
            "shoal_driver_calls_total{call=\"start\",outcome=\"ok\"} 1",
            "shoal_driver_calls_total{call=\"start\",outcome=\"no_such_task\"} 1",
            "shoal_driver_calls_total{call=\"stop\",outcome=\"failed\"} 1",
            "shoal_driver_calls_total{call=\"stop\",outcome=\"ok\"} 1",
            "shoal_driver_calls_total{call=\"wait\",outcome=\"ok\"} 1",
            "shoal_driver_call_seconds_count{call=\"prepare\"} 2",
            "shoal_driver_call_seconds_count{call=\"stop\"} 2",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
        assert!(!text.contains("seconds_count{call=\"wait\"}"), "how long containers last is no measure of the driver");
    }

    #[tokio::test]
    async fn a_call_that_nobody_waits_for_is_counted_as_abandoned() {
        let (_, driver, registry) = measured();
        let plan = plan("fake/slow:3600000");
        let call = tokio::time::timeout(Duration::from_millis(10), driver.prepare(&plan));
        assert!(call.await.is_err());
        let line = "shoal_driver_calls_total{call=\"prepare\",outcome=\"abandoned\"} 1";
        assert!(text_of(&registry).contains(line));
    }

    #[tokio::test]
    async fn a_call_is_logged_with_the_task_that_it_is_for() {
        let logged = Logged::capture();
        let (_, driver, _) = measured();
        driver.prepare(&plan("fake/app")).await.unwrap();
        let line = logged.lines().pop().unwrap();
        assert_eq!(line["fields"]["outcome"], "ok");
        assert!(line["fields"]["seconds"].as_f64().is_some());
        let (span, task) = (&line["span"], TaskId(7).to_string());
        assert_eq!((&span["name"], &span["call"]), (&"driver".into(), &"prepare".into()));
        assert_eq!((&span["task"], &span["image"]), (&task.into(), &"fake/app".into()));
    }
}
