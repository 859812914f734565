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
        service_labels: Default::default(),
        ports: vec![port],
        generic: Default::default(),
        fenced: false,
    };
    container_plan(TaskId(node.id.0 ^ number), &wanted, &template, node).expect("nothing in it is a template")
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
    let agent = Agent::spawn(driver, files, Arc::default(), sender);
    agent.call(task, DriverCall::Prepare(Box::new(plan)));
    agent.call(task, DriverCall::Start(task));
    let mut next = async || anyhow::Ok(tokio::time::timeout(CALL_MAX, reports.recv()).await?.context("no report")?.1);
    ensure!(matches!(next().await?, DriverReport::Prepared { .. }));
    ensure!(matches!(next().await?, DriverReport::Started(_)));

    engine.command("down", &["--keep"])?;
    engine.command("up", &[])?;
    let report = next().await?;
    ensure!(matches!(report, DriverReport::Exited { .. }), "{report:?}");
    agent.call(task, DriverCall::Stop { task, grace: Duration::from_secs(1), drain: Duration::ZERO });
    agent.call(task, DriverCall::Remove(task));
    ensure!(next().await? == DriverReport::Stopped);
    ensure!(next().await? == DriverReport::Removed);
    Ok(())
}

/// A daemon of this repository in front of an engine, in no cluster.
struct Daemon {
    process: std::process::Child,
    /// What tells Docker's client the way to it.
    way: Vec<String>,
    _dir: tempfile::TempDir,
}

impl Daemon {
    /// One that listens on a Unix socket.
    fn start(engine: &str) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let host = format!("unix://{}", dir.path().join("shoal.sock").display());
        let way = vec!["--host".to_owned(), host];
        Self::start_on(engine, &way, way.clone(), dir)
    }

    /// One that listens on a TCP port for clients with a certificate.
    fn start_on_tcp(engine: &str) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let path = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
        let mut params = rcgen::CertificateParams::new([])?;
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, "ca");
        let ca = rcgen::CertifiedIssuer::self_signed(params, rcgen::KeyPair::generate()?)?;
        std::fs::write(path("ca"), ca.pem())?;
        for (name, usage) in [
            ("server", rcgen::ExtendedKeyUsagePurpose::ServerAuth),
            ("client", rcgen::ExtendedKeyUsagePurpose::ClientAuth),
        ] {
            let (key, mut params) =
                (rcgen::KeyPair::generate()?, rcgen::CertificateParams::new(["localhost".to_owned()])?);
            params.extended_key_usages = vec![usage];
            std::fs::write(path(name), params.signed_by(&key, &ca)?.pem())?;
            std::fs::write(path(&format!("{name}-key")), key.serialize_pem())?;
        }
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let way = |of: &str| {
            let flags = [
                ("--host", format!("tcp://localhost:{port}")),
                ("--tlscacert", path("ca")),
                ("--tlscert", path(of)),
                ("--tlskey", path(&format!("{of}-key"))),
            ];
            let flags = flags.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]);
            flags.chain(["--tlsverify".to_owned()]).collect::<Vec<_>>()
        };
        let (server, client) = (way("server"), way("client"));
        Self::start_on(engine, &server, client, dir)
    }

    fn start_on(engine: &str, flags: &[String], way: Vec<String>, dir: tempfile::TempDir) -> anyhow::Result<Self> {
        let process = Command::new(env!("CARGO_BIN_EXE_shoald"))
            .args(["--driver", "docker", "--docker-host", engine, "--listen-addr", "127.0.0.1:0", "--multicast=false"])
            .arg("--data-dir")
            .arg(dir.path().join("data"))
            .args(flags)
            .spawn()?;
        let daemon = Self { process, way, _dir: dir };
        let deadline = std::time::Instant::now() + CALL_MAX;
        while daemon.docker(&["version"]).output()?.status.code() != Some(0) {
            ensure!(std::time::Instant::now() < deadline, "the daemon does not answer");
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(daemon)
    }

    /// Docker's own client, as a command in front of the daemon.
    fn docker(&self, arguments: &[&str]) -> Command {
        // A client that waits for ever is a failure, not a hanging test.
        let mut command = Command::new("timeout");
        command.args(["60", "docker"]).args(&self.way).args(arguments);
        command.env("DOCKER_BUILDKIT", "0").env("DOCKER_CLI_HINTS", "false").stdin(std::process::Stdio::null());
        command
    }

    fn ok(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = self.docker(arguments).output()?;
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "docker {}: {out}{err}", arguments.join(" "));
        Ok(out.into_owned())
    }

    fn refused(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = self.docker(arguments).output()?;
        ensure!(!output.status.success(), "docker {} was not refused", arguments.join(" "));
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Gives a command its input and returns what it says.
fn fed(mut command: Command, input: &[u8]) -> anyhow::Result<String> {
    use std::io::Write;
    use std::process::Stdio;

    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    child.stdin.take().context("it has an input")?.write_all(input)?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "{command:?}: {}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn dockers_client_drives_the_engine_through_the_node() -> anyhow::Result<()> {
    drives_the_engine(&Daemon::start(&engine_host()?)?)
}

#[test]
fn dockers_client_drives_the_engine_through_the_node_over_tcp() -> anyhow::Result<()> {
    drives_the_engine(&Daemon::start_on_tcp(&engine_host()?)?)
}

fn drives_the_engine(daemon: &Daemon) -> anyhow::Result<()> {
    let image = TestImage::build()?;
    let name = format!("shoal-pass-{}", std::process::id());
    let tag = format!("{name}:built");

    let loaded = fed(daemon.docker(&["load"]), &image.archive)?;
    ensure!(loaded.contains(&format!("Loaded image: {}", image.reference)), "{loaded}");
    ensure!(daemon.ok(&["run", "--rm", &image.reference, "echo", "hi"])? == "hi\n");
    let script = "while read line; do echo got $line; done; echo end";
    let said = fed(daemon.docker(&["run", "--rm", "-i", &image.reference, "sh", "-c", script]), b"a\nb\n")?;
    ensure!(said == "got a\ngot b\nend\n", "{said}");

    daemon.ok(&["run", "-d", "--name", &name, &image.reference, "sh", "-c", "echo started; sleep 1000"])?;
    let check = || -> anyhow::Result<()> {
        ensure!(daemon.ok(&["ps", "--format", "{{.Names}}", "--filter", &format!("name={name}")])?.trim() == name);
        ensure!(daemon.ok(&["exec", &name, "echo", "inside"])? == "inside\n");
        ensure!(daemon.docker(&["exec", &name, "sh", "-c", "exit 3"]).status()?.code() == Some(3));
        let echoed = fed(daemon.docker(&["exec", "-i", &name, "cat"]), &[b'x'; 300_000])?;
        ensure!(echoed.len() == 300_000, "{} bytes", echoed.len());
        ensure!(daemon.ok(&["logs", &name])? == "started\n");
        ensure!(daemon.ok(&["top", &name])?.contains("sleep 1000"));
        ensure!(daemon.ok(&["stats", "--no-stream", "--format", "{{.Name}}", &name])?.trim() == name);
        ensure!(daemon.ok(&["inspect", "--format", "{{.State.Status}}", &name])?.trim() == "running");
        let dir = tempfile::tempdir()?;
        let path = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
        std::fs::write(path("file"), "copied")?;
        daemon.ok(&["cp", &path("file"), &format!("{name}:/there")])?;
        daemon.ok(&["cp", &format!("{name}:/there"), &path("back")])?;
        ensure!(std::fs::read_to_string(path("back"))? == "copied");
        let dockerfile = format!("FROM {}\nCOPY file /file\nRUN cat /file\n", image.reference);
        std::fs::write(path("Dockerfile"), dockerfile)?;
        ensure!(daemon.ok(&["build", "-t", &tag, &path("")])?.contains("copied"));
        ensure!(daemon.ok(&["image", "inspect", "--format", "{{.Os}}", &tag])?.trim() == "linux");
        ensure!(daemon.ok(&["images", "-q", &tag])?.lines().count() == 1);
        daemon.ok(&["volume", "create", &name])?;
        ensure!(daemon.ok(&["volume", "ls", "-q"])?.lines().any(|volume| volume == name));
        daemon.ok(&["system", "df"])?;
        ensure!(daemon.ok(&["info", "--format", "{{.Driver}} {{.Swarm.LocalNodeState}}"])?.ends_with(" inactive\n"));
        ensure!(daemon.ok(&["version", "--format", "{{.Server.Version}}"])?.trim() == env!("CARGO_PKG_VERSION"));
        Ok(())
    };
    let checked = check();
    daemon.ok(&["rm", "-f", &name])?;
    let _ = daemon.docker(&["volume", "rm", &name]).output()?;
    let _ = daemon.docker(&["rmi", &tag]).output()?;
    checked
}

#[test]
fn output_is_followed_through_the_node_until_the_container_ends() -> anyhow::Result<()> {
    follows_output(&Daemon::start(&engine_host()?)?)
}

#[test]
fn output_is_followed_through_the_node_over_tcp() -> anyhow::Result<()> {
    follows_output(&Daemon::start_on_tcp(&engine_host()?)?)
}

fn follows_output(daemon: &Daemon) -> anyhow::Result<()> {
    let image = TestImage::build()?;
    let name = format!("shoal-follow-{}", std::process::id());
    fed(daemon.docker(&["load", "-q"]), &image.archive)?;
    daemon.ok(&["create", "-i", "--name", &name, &image.reference, "sh", "-c", "read line; echo heard $line"])?;
    daemon.ok(&["start", &name])?;
    let logs = daemon.docker(&["logs", "-f", &name]).stdout(std::process::Stdio::piped()).spawn()?;
    let attached = fed(daemon.docker(&["attach", &name]), b"it\n")?;
    let followed = String::from_utf8(logs.wait_with_output()?.stdout)?;
    daemon.ok(&["rm", "-f", &name])?;
    ensure!(attached == "heard it\n" && followed == attached, "{attached} {followed}");
    Ok(())
}

#[test]
fn the_engines_own_swarm_is_out_of_reach() -> anyhow::Result<()> {
    let host = engine_host()?;
    let daemon = Daemon::start(&host)?;
    let refused = daemon.refused(&["swarm", "join", "--token", "SWMTKN-1-x-y", "127.0.0.1"])?;
    ensure!(refused.contains("valid join token"), "{refused}");
    daemon.refused(&["secret", "ls"])?;
    ensure!(daemon.refused(&["service", "ls"])?.contains("This node is not a swarm manager"));
    let state = Command::new("docker").args(["-H", &host, "info", "--format", "{{.Swarm.LocalNodeState}}"]).output()?;
    ensure!(String::from_utf8_lossy(&state.stdout).trim() == "inactive", "{state:?}");
    Ok(())
}
