//! The docker driver against a real engine: the suite of all drivers, and what is particular to an engine that is shared.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use shoal_control::task::plan::container_plan;
use shoal_control::task::{ContainerPlan, DriverCall, DriverReport, FoundState, NodeIdentity, Wanted};
use shoal_node::agent::Agent;
use shoal_node::driver::conformance::{self, TestImage, test_node};
use shoal_node::driver::docker::{DockerConfig, DockerDriver};
use shoal_node::driver::files::{KnownFiles, TaskFiles};
use shoal_node::driver::{Driver, DriverError};
use shoal_protocol::record::SlotName;
use shoal_protocol::spec::{ContainerSpec, PortConfig, PublishMode, TaskTemplate};
use shoal_protocol::{NodeId, ServiceId, TaskId, TaskState};
use tokio::sync::mpsc;

const CALL_MAX: Duration = Duration::from_secs(60);

fn engine_host() -> anyhow::Result<String> {
    match std::env::var("SHOAL_TEST_DOCKER_HOST") {
        Ok(host) => Ok(host),
        Err(_) => bail!(
            "SHOAL_TEST_DOCKER_HOST is not set: scripts/test starts an engine of its own for this test; by hand: \
             `scripts/engine up DIR` and SHOAL_TEST_DOCKER_HOST=unix://DIR/docker.sock"
        ),
    }
}

async fn connect(node: &NodeIdentity) -> anyhow::Result<DockerDriver> {
    connect_to(engine_host()?, node).await
}

async fn connect_to(host: String, node: &NodeIdentity) -> anyhow::Result<DockerDriver> {
    let config =
        DockerConfig { host: Some(host), node: node.id, cluster: Some(node.cluster), hostname: node.hostname.clone() };
    Ok(DockerDriver::connect(config).await?)
}

fn plan(node: &NodeIdentity, image: &TestImage, number: u128, host_port: u16) -> ContainerPlan {
    let template = TaskTemplate {
        container_spec: ContainerSpec {
            image: image.reference.clone(),
            command: ["/bin/sh", "-c", "trap 'exit 0' TERM; sleep 1000 & wait"].map(str::to_owned).to_vec(),
            ..ContainerSpec::default()
        },
        ..TaskTemplate::default()
    };
    let port = PortConfig {
        target_port: 80,
        published_port: host_port,
        publish_mode: PublishMode::Host,
        ..PortConfig::default()
    };
    let wanted = Wanted {
        service: ServiceId(number),
        slot: SlotName::Node(node.id),
        desired: TaskState::Running,
        template: Ok(Arc::new(template.clone())),
        service_name: "shared".to_owned(),
        ports: vec![port],
        fenced: false,
    };
    container_plan(TaskId(node.id.0 ^ number), &wanted, &template, node)
}

#[tokio::test]
async fn the_docker_driver_conforms() -> anyhow::Result<()> {
    let node = test_node();
    let driver = connect(&node).await?;
    ensure!(driver.engine().starts_with("docker "), "{}", driver.engine());
    let image = TestImage::build()?;
    conformance::run(&driver, &node, &image).await?;
    conformance::run_isolated(&driver, &node, &image).await
}

#[tokio::test]
async fn nodes_share_an_engine_and_a_restarted_daemon_finds_its_own() -> anyhow::Result<()> {
    let image = TestImage::build()?;
    let (one, other) = (test_node(), test_node());
    let (first, second) = (connect(&one).await?, connect(&other).await?);
    first.load_image(&mut &image.archive[..]).await?;

    let plan = plan(&one, &image, 1, 0);
    first.prepare(&plan).await?;
    let running = first.start(plan.task).await?;
    ensure!(second.list().await?.is_empty(), "another node's containers are not listed");
    let foreign = second.start(plan.task).await;
    ensure!(matches!(foreign, Err(DriverError::NoSuchTask(_))), "nor touched: {foreign:?}");

    let restarted = connect(&one).await?;
    let found = restarted.list().await?;
    ensure!(found.len() == 1 && found[0].state == FoundState::Running(running), "{found:?}");
    ensure!(found[0].slot == SlotName::Node(one.id), "{found:?}");
    let in_another_cluster = connect(&NodeIdentity { cluster: other.cluster, ..one.clone() }).await?;
    ensure!(in_another_cluster.list().await?.is_empty(), "those of another cluster are not this one's");

    tokio::time::timeout(CALL_MAX, restarted.stop(plan.task)).await??;
    let exit = tokio::time::timeout(CALL_MAX, first.wait(plan.task)).await??;
    ensure!(exit.code == 0, "{exit:?}");
    restarted.remove(plan.task).await?;
    ensure!(first.list().await?.is_empty());
    Ok(())
}

#[tokio::test]
async fn a_port_that_is_taken_is_refused() -> anyhow::Result<()> {
    let image = TestImage::build()?;
    let node = test_node();
    let driver = connect(&node).await?;
    driver.load_image(&mut &image.archive[..]).await?;
    let (first, second) = (plan(&node, &image, 1, 28_411), plan(&node, &image, 2, 28_411));
    driver.prepare(&first).await?;
    driver.start(first.task).await?;
    driver.prepare(&second).await?;
    let refused = driver.start(second.task).await;
    for plan in [&first, &second] {
        driver.remove(plan.task).await?;
    }
    match refused {
        Err(DriverError::Refused(reason)) => ensure!(reason.contains("port"), "{reason}"),
        other => bail!("not refused: {other:?}"),
    }
    Ok(())
}

#[tokio::test]
async fn an_engine_that_is_not_there_is_an_error() -> anyhow::Result<()> {
    engine_host()?;
    let dir = tempfile::tempdir()?;
    let host = format!("unix://{}/docker.sock", dir.path().display());
    let config = DockerConfig { host: Some(host.clone()), node: NodeId(1), cluster: None, hostname: "test".to_owned() };
    let error = DockerDriver::connect(config).await.err().context("connected to nothing")?;
    ensure!(error.to_string().contains(&host), "{error}");
    Ok(())
}

/// An engine that this test alone uses.
struct Engine {
    dir: tempfile::TempDir,
}

impl Engine {
    fn up() -> anyhow::Result<Self> {
        let engine = Self { dir: tempfile::tempdir()? };
        engine.command("up", &[])?;
        Ok(engine)
    }

    fn host(&self) -> String {
        format!("unix://{}/docker.sock", self.dir.path().display())
    }

    fn command(&self, command: &str, options: &[&str]) -> anyhow::Result<()> {
        let script: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/engine");
        let output = Command::new(script).arg(command).arg(self.dir.path()).args(options).output()?;
        ensure!(output.status.success(), "engine {command}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Err(error) = self.command("down", &[]) {
            eprintln!("{error:#}");
        }
    }
}

#[tokio::test]
async fn an_end_is_seen_across_a_restart_of_the_engine() -> anyhow::Result<()> {
    let engine = Engine::up()?;
    let (node, image) = (test_node(), TestImage::build()?);
    let driver = Arc::new(connect_to(engine.host(), &node).await?);
    driver.load_image(&mut &image.archive[..]).await?;
    let plan = plan(&node, &image, 1, 0);
    let task = plan.task;

    let (sender, mut reports) = mpsc::channel(8);
    let files = TaskFiles::new(node.id, Arc::new(KnownFiles::default()));
    let agent = Agent::spawn(driver, files, sender);
    agent.call(task, DriverCall::Prepare(Box::new(plan)));
    agent.call(task, DriverCall::Start(task));
    let mut next = async || anyhow::Ok(tokio::time::timeout(CALL_MAX, reports.recv()).await?.context("no report")?.1);
    ensure!(matches!(next().await?, DriverReport::Prepared { .. }));
    ensure!(matches!(next().await?, DriverReport::Started(_)));

    engine.command("down", &["--keep"])?;
    engine.command("up", &[])?;
    let report = next().await?;
    ensure!(matches!(report, DriverReport::Exited { .. }), "{report:?}");
    agent.call(task, DriverCall::Stop { task, grace: Duration::from_secs(1) });
    agent.call(task, DriverCall::Remove(task));
    ensure!(next().await? == DriverReport::Stopped);
    ensure!(next().await? == DriverReport::Removed);
    Ok(())
}
