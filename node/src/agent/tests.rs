use std::collections::BTreeSet;

use shoal_control::task::{NodeIdentity, PlannedFile};
use shoal_protocol::ServiceId;
use shoal_protocol::registry_auth::RegistryAuth;
use shoal_protocol::spec::{ContainerSpec, TaskTemplate};

use super::*;
use crate::driver::Capacity;
use crate::driver::conformance::{plan_of, test_node};
use crate::driver::fake::{FakeCall, FakeDriver};
use crate::driver::files::KnownFiles;

const SOON: Duration = Duration::from_secs(30);
const GRACE: Duration = Duration::from_secs(10);

struct Bench {
    node: NodeIdentity,
    driver: FakeDriver,
    agent: AgentHandle,
    reports: mpsc::Receiver<(TaskId, DriverReport)>,
}

impl Bench {
    fn new() -> Self {
        let driver = FakeDriver::new("test-node", Capacity { nano_cpus: 1, memory_bytes: 1 });
        Self::around(driver)
    }

    fn around(driver: FakeDriver) -> Self {
        Self::with_deadlines(driver, DEADLINES)
    }

    fn with_deadlines(driver: FakeDriver, deadlines: Deadlines) -> Self {
        let (sender, reports) = mpsc::channel(1);
        let files = TaskFiles::new(test_node().id, Arc::new(KnownFiles::default()));
        let agent = Agent::spawn_with(Arc::new(driver.clone()), files, Arc::default(), sender, deadlines);
        Self { node: test_node(), driver, agent, reports }
    }

    fn prepare(&self, task: TaskId, image: &str) {
        let plan = self.plan(task, image);
        self.agent.call(task, DriverCall::Prepare(Box::new(plan)));
    }

    fn plan(&self, task: TaskId, image: &str) -> ContainerPlan {
        let template = TaskTemplate {
            container_spec: ContainerSpec {
                image: image.to_owned(),
                stop_grace_period: Some(50_000_000),
                ..ContainerSpec::default()
            },
            ..TaskTemplate::default()
        };
        plan_of((ServiceId(1), task), &template, &self.node)
    }

    async fn next(&mut self) -> (TaskId, DriverReport) {
        tokio::time::timeout(SOON, self.reports.recv()).await.expect("no report came").expect("the agent lives")
    }

    async fn expect(&mut self, want: &str) {
        let (_, report) = self.next().await;
        assert_eq!(kind(&report), want, "{report:?}");
    }
}

fn kind(report: &DriverReport) -> String {
    match report {
        DriverReport::Prepared { .. } => "prepared".to_owned(),
        DriverReport::NotYet { reason } => format!("not yet: {reason}"),
        DriverReport::Rejected { error } => format!("rejected: {error}"),
        DriverReport::Failed { error } => format!("failed: {error}"),
        DriverReport::Started(_) => "started".to_owned(),
        DriverReport::Exited { code, .. } => format!("exited {code}"),
        DriverReport::Health { status, .. } => format!("health {status:?}").to_lowercase(),
        DriverReport::Stopped => "stopped".to_owned(),
        DriverReport::Removed => "removed".to_owned(),
    }
}

#[tokio::test]
async fn calls_are_made_in_order_and_an_end_comes_before_its_stop() {
    let mut bench = Bench::new();
    let task = TaskId(1);
    bench.prepare(task, "fake/web");
    bench.agent.call(task, DriverCall::Start(task));
    bench.agent.call(task, DriverCall::Stop { task, grace: GRACE, drain: Duration::ZERO });
    bench.agent.call(task, DriverCall::Remove(task));
    let mut got = Vec::new();
    for _ in 0..5 {
        got.push(kind(&bench.next().await.1));
    }
    assert_eq!(got, ["prepared", "started", "exited 0", "stopped", "removed"]);
    assert!(bench.driver.list().await.unwrap().is_empty());
    let tasks = bench.agent.shared.lock();
    assert!(tasks.watched.is_empty(), "nothing is kept of a removed task");
}

#[tokio::test]
async fn a_task_is_stopped_when_its_connections_have_ended() {
    let mut bench = Bench::new();
    let (task, serving) = (TaskId(1), bench.agent.shared.serving.clone());
    bench.prepare(task, "fake/web");
    bench.agent.call(task, DriverCall::Start(task));
    bench.expect("prepared").await;
    bench.expect("started").await;
    let connection = serving.connect(task).unwrap();
    bench.agent.call(task, DriverCall::Stop { task, grace: GRACE, drain: SOON });
    let retired = async {
        while !serving.is_retired(task) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, retired).await.expect("it is withdrawn");
    assert!(serving.connect(task).is_none(), "it gets no new ones");
    // Nothing tells that something does not happen: a stop without the wait takes microseconds here.
    let early = tokio::time::timeout(Duration::from_millis(100), bench.reports.recv()).await;
    assert!(early.is_err(), "it is stopped under the one that it has: {early:?}");
    drop(connection);
    bench.expect("exited 0").await;
    bench.expect("stopped").await;
    assert!(serving.connect(task).is_some(), "nothing is kept of it");
}

#[tokio::test]
async fn failures_are_told_apart() {
    for (image, want) in [
        ("fake/missing", "rejected: No such image: fake/missing on test-node: told to be missing"),
        ("fake/invalid", "failed: told to be invalid"),
        ("fake/refused", "rejected: told to refuse"),
        ("fake/broken", "failed: start: told to fail"),
    ] {
        let mut bench = Bench::new();
        let task = TaskId(1);
        bench.prepare(task, image);
        let (_, mut report) = bench.next().await;
        if matches!(report, DriverReport::Prepared { .. }) {
            bench.agent.call(task, DriverCall::Start(task));
            (_, report) = bench.next().await;
        }
        assert_eq!(kind(&report), want, "{image}");
    }
}

#[tokio::test]
async fn an_end_of_its_own_is_reported_once() {
    let mut bench = Bench::new();
    let task = TaskId(1);
    bench.prepare(task, "fake/exit:3");
    bench.agent.call(task, DriverCall::Start(task));
    bench.expect("prepared").await;
    bench.expect("started").await;
    bench.expect("exited 3").await;
    bench.agent.call(task, DriverCall::Stop { task, grace: GRACE, drain: Duration::ZERO });
    bench.expect("stopped").await;
    bench.agent.call(task, DriverCall::Remove(task));
    bench.expect("removed").await;
}

#[tokio::test]
async fn found_containers_are_watched_and_survive_the_daemon() {
    let task = TaskId(1);
    let mut first = Bench::new();
    first.prepare(task, "fake/web");
    first.agent.call(task, DriverCall::Start(task));
    first.expect("prepared").await;
    first.expect("started").await;
    let driver = first.driver.clone();
    drop(first);
    assert_eq!(driver.running(), BTreeSet::from([task]));

    let mut second = Bench::around(driver.clone());
    second.agent.adopt(task);
    second.agent.adopt(task);
    driver.crash(task, 7);
    second.expect("exited 7").await;
    second.agent.call(task, DriverCall::Remove(task));
    second.expect("removed").await;
}

#[tokio::test]
async fn a_lost_wait_is_taken_up_again() {
    let mut bench = Bench::new();
    let task = TaskId(1);
    bench.prepare(task, "fake/web");
    bench.agent.call(task, DriverCall::Start(task));
    bench.expect("prepared").await;
    bench.expect("started").await;
    bench.driver.fail_next(FakeCall::Wait, 5);
    bench.driver.crash(task, 9);
    bench.expect("exited 9").await;
}

#[tokio::test]
async fn what_somebody_else_removed_has_ended() {
    let mut bench = Bench::new();
    let task = TaskId(1);
    bench.prepare(task, "fake/web");
    bench.agent.call(task, DriverCall::Start(task));
    bench.expect("prepared").await;
    bench.expect("started").await;
    bench.driver.fail_next(FakeCall::Wait, 1); // so that it asks again
    bench.driver.remove(task).await.unwrap();
    bench.expect("exited 137").await;
    bench.agent.call(task, DriverCall::Stop { task, grace: GRACE, drain: Duration::ZERO });
    bench.expect("stopped").await;
}

#[tokio::test]
async fn a_call_without_an_answer_fails_at_its_deadline() {
    let driver = Bench::new().driver;
    let mut bench = Bench::with_deadlines(driver, Deadlines { prepare: Duration::from_millis(50), ..DEADLINES });
    bench.prepare(TaskId(1), "fake/slow:10000000");
    bench.expect("failed: prepare: no answer from the engine within 50ms").await;
}

#[tokio::test]
async fn few_are_prepared_at_a_time() {
    let mut bench = Bench::new();
    let started = tokio::time::Instant::now();
    for id in 0..(2 * AT_ONCE_MAX as u128) {
        bench.prepare(TaskId(id), "fake/slow:100");
    }
    for _ in 0..2 * AT_ONCE_MAX {
        bench.expect("prepared").await;
    }
    assert!(started.elapsed() >= Duration::from_millis(200), "in two batches");
}

#[tokio::test]
async fn a_flood_of_calls_is_refused() {
    let mut bench = Bench::new();
    let task = TaskId(1);
    for _ in 0..10 * CALLS_MAX {
        bench.agent.call(task, DriverCall::Remove(task));
    }
    let mut refused = 0;
    for _ in 0..10 * CALLS_MAX {
        refused += usize::from(matches!(bench.next().await.1, DriverReport::Failed { .. }));
    }
    assert!(refused >= 8 * CALLS_MAX, "{refused} were refused");
}

#[tokio::test]
async fn failed_stops_are_reported_as_failures() {
    let mut bench = Bench::new();
    let task = TaskId(1);
    bench.prepare(task, "fake/stubborn");
    bench.agent.call(task, DriverCall::Start(task));
    bench.expect("prepared").await;
    bench.expect("started").await;
    bench.driver.fail_next(FakeCall::Stop, 1);
    bench.agent.call(task, DriverCall::Stop { task, grace: GRACE, drain: Duration::ZERO });
    bench.expect("failed: stop: told to fail").await;
    bench.agent.call(task, DriverCall::Stop { task, grace: GRACE, drain: Duration::ZERO });
    bench.expect("exited 137").await;
    bench.expect("stopped").await;
}

#[tokio::test]
async fn a_task_whose_file_cannot_be_had_is_not_prepared() {
    struct Withholding(Withheld);
    #[async_trait::async_trait]
    impl crate::driver::files::FileSource for Withholding {
        async fn content(&self, _: TaskId, _: &PlannedFile) -> Result<crate::driver::files::FileContent, Withheld> {
            Err(self.0.clone())
        }

        async fn credentials(&self, _: TaskId) -> Result<Option<RegistryAuth>, Withheld> {
            Err(self.0.clone())
        }
    }
    for (withheld, want) in [
        (Withheld::NotYet("no manager is connected".to_owned()), "not yet: secret sec1: no manager is connected"),
        (Withheld::Refused("it was removed".to_owned()), "rejected: secret sec1: it was removed"),
    ] {
        let driver = FakeDriver::new("test-node", Capacity { nano_cpus: 1, memory_bytes: 1 });
        let (sender, reports) = mpsc::channel(1);
        let files = TaskFiles::new(test_node().id, Arc::new(Withholding(withheld)));
        let agent = Agent::spawn(Arc::new(driver.clone()), files, Arc::default(), sender);
        let mut bench = Bench { node: test_node(), driver, agent, reports };
        let mut plan = bench.plan(TaskId(1), "fake/web");
        plan.files = vec![PlannedFile {
            kind: shoal_protocol::Kind::Secret,
            id: shoal_protocol::ObjectId(1),
            name: "sec1".to_owned(),
            target: "sec1".to_owned(),
            path: "/run/secrets/sec1".to_owned(),
            uid: 0,
            gid: 0,
            mode: 0o444,
        }];
        bench.agent.call(TaskId(1), DriverCall::Prepare(Box::new(plan)));
        bench.expect(want).await;
        assert!(bench.driver.list().await.unwrap().is_empty());
    }
}
