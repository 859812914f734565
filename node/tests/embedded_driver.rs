//! The embedded driver with real containers. Needs root and `cc`; each test has a network namespace of its own and leaves
//! nothing behind.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use futures::StreamExt;
use sha2::{Digest, Sha256};
use shoal_control::task::health::HealthStatus;
use shoal_control::task::{ContainerPlan, FoundState, NodeIdentity, Running};
use shoal_node::driver::conformance::{self, TestImage};
use shoal_node::driver::embedded::bundle::{BundleDir, State};
use shoal_node::driver::embedded::cgroup;
use shoal_node::driver::embedded::volumes::VolumeRecord;
use shoal_node::driver::embedded::{EmbeddedConfig, EmbeddedDriver};
use shoal_node::driver::{Driver, DriverError, HealthReport, LogQuery};
use shoal_protocol::record::SlotName;
use shoal_protocol::spec::mount::{BindOptions, MountKind, Propagation, VolumeOptions};
use shoal_protocol::spec::{Healthcheck, Limits, Mount, Settings};
use shoal_protocol::{NodeId, ServiceId, TaskId};

/// Far longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(30);

/// Runs a test in a network namespace of its own: threads started from this one are in it too.
fn isolated(test: impl Future<Output = anyhow::Result<()>>) {
    // SAFETY: only the network is separated; file descriptor tables stay shared.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }.expect("tests need root");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("threads can be made");
    runtime.block_on(test).expect("the test's own promises");
}

/// A node with its driver.
struct Node {
    data: tempfile::TempDir,
    identity: NodeIdentity,
    image: TestImage,
}

impl Node {
    async fn new() -> anyhow::Result<(Self, EmbeddedDriver)> {
        let mut identity = conformance::test_node();
        // Names on the host begin with the node's identifier, and those of one moment begin alike.
        identity.id = NodeId::from_public_key(&Sha256::digest(identity.id.to_string()).into());
        let node = Self { data: tempfile::tempdir()?, identity, image: TestImage::build()? };
        let driver = node.open().await?;
        driver.load_image(&mut &node.image.archive[..]).await?;
        Ok((node, driver))
    }

    async fn open(&self) -> anyhow::Result<EmbeddedDriver> {
        Ok(EmbeddedDriver::open(self.config()).await?)
    }

    fn config(&self) -> EmbeddedConfig {
        EmbeddedConfig {
            data_dir: self.data.path().to_owned(),
            node: self.identity.id,
            cluster: self.identity.cluster,
            hostname: self.identity.hostname.clone(),
            container_pool: "10.212.0.0/16".parse().expect("a range of addresses"),
            insecure_registries: Vec::new(),
            supervisor_exe: env!("CARGO_BIN_EXE_shoald").into(),
        }
    }

    fn plan(&self, number: u128, script: &str) -> ContainerPlan {
        ContainerPlan {
            task: TaskId(self.identity.id.0.wrapping_add(number)),
            service: ServiceId(7),
            service_name: "test".to_owned(),
            slot: SlotName::Replica(1),
            node: self.identity.id,
            name: format!("test.1.{number}"),
            image: self.image.reference.clone(),
            command: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
            args: Vec::new(),
            env: Vec::new(),
            labels: BTreeMap::new(),
            dir: String::new(),
            user: String::new(),
            hostname: String::new(),
            stop_signal: String::new(),
            stop_grace: PATIENCE,
            read_only: false,
            files: Vec::new(),
            mounts: Vec::new(),
            healthcheck: None,
            settings: Settings::default(),
            log_driver: None,
            limits: Limits::default(),
            host_ports: Vec::new(),
            context: Default::default(),
        }
    }

    fn container(&self, plan: &ContainerPlan) -> std::path::PathBuf {
        self.data.path().join("containers").join(plan.task.to_string())
    }

    fn state(&self, plan: &ContainerPlan) -> anyhow::Result<State> {
        BundleDir(self.container(plan)).state()?.context("never started")
    }

    /// Checks that nothing of the node is left on this machine.
    async fn close(self, driver: EmbeddedDriver) -> anyhow::Result<()> {
        driver.close().await?;
        let id = self.identity.id.to_string();
        let links = Command::new("ip").args(["-o", "link"]).output()?.stdout;
        let links = String::from_utf8_lossy(&links).into_owned();
        let alone = !links.contains("shl-");
        ensure!(!links.contains(&id[..8]) && (!alone || !links.contains("shv")), "{links}");
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        ensure!(!mounts.contains(&*self.data.path().to_string_lossy()), "{mounts}");
        let groups = Command::new("find").args(["/sys/fs/cgroup", "-name", &id]).output()?.stdout;
        ensure!(groups.is_empty(), "{}", String::from_utf8_lossy(&groups));
        let supervisors = Command::new("ps").args(["-eo", "args"]).output()?.stdout;
        let own = format!("supervise {}", self.data.path().display());
        ensure!(!String::from_utf8_lossy(&supervisors).contains(&own), "a supervisor is left");
        ensure!(fs::read_dir(self.data.path().join("containers"))?.count() == 0);
        Ok(())
    }
}

/// Also after a test that failed, nothing may keep running.
impl Drop for Node {
    fn drop(&mut self) {
        for entry in fs::read_dir(self.data.path().join("containers")).into_iter().flatten().flatten() {
            if let Ok(Some(state)) = BundleDir(entry.path()).state() {
                let _ = state.supervisor.signal(rustix::process::Signal::KILL);
            }
            let _ = cgroup::remove(&format!("shoal/{}/{}", self.identity.id, entry.file_name().to_string_lossy()));
        }
        let _ = cgroup::remove_empty_parents(&format!("shoal/{}", self.identity.id));
    }
}

async fn start(driver: &EmbeddedDriver, plan: &ContainerPlan) -> Result<Running, DriverError> {
    driver.prepare(plan).await?;
    driver.start(plan.task).await
}

/// Runs a container to its end and returns its output.
async fn output(driver: &EmbeddedDriver, plan: &ContainerPlan) -> anyhow::Result<Vec<String>> {
    start(driver, plan).await?;
    tokio::time::timeout(PATIENCE, driver.wait(plan.task)).await??;
    let lines: Vec<_> = driver.logs(plan.task, LogQuery::default()).await?.collect().await;
    lines.into_iter().map(|line| Ok(String::from_utf8_lossy(&line?.bytes).trim_end().to_owned())).collect()
}

#[test]
fn the_embedded_driver_conforms() {
    isolated(async {
        let (node, driver) = Node::new().await?;
        let result = conformance::run(&driver, &node.identity, &node.image).await;
        let isolated = conformance::run_isolated(&driver, &node.identity, &node.image).await;
        node.close(driver).await.context("close")?;
        result.and(isolated)
    });
}

/// Builds a layer that holds a static program.
fn probe_layer() -> anyhow::Result<Vec<u8>> {
    let directory = tempfile::tempdir()?;
    let program = directory.path().join("probe");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/embedded_driver/probe.c");
    ensure!(Command::new("cc").args(["-static", "-O1", "-o"]).arg(&program).arg(source).status()?.success());
    let mut layer = tar::Builder::new(Vec::new());
    layer.append_path_with_name(&program, "probe")?;
    Ok(layer.into_inner()?)
}

#[test]
fn a_container_is_confined() {
    isolated(async {
        let (node, driver) = Node::new().await?;
        let image = TestImage::from_layer("shoal-test/probe:latest", &probe_layer()?)?;
        driver.load_image(&mut &image.archive[..]).await?;
        let mut plan = node.plan(1, "");
        plan.image.clone_from(&image.reference);
        plan.command = vec!["/probe".to_owned()];
        let answers = output(&driver, &plan).await?;
        for (call, want) in [
            ("mount", "EPERM"),
            ("unshare-user", "EPERM"),
            ("unshare-mounts", "EPERM"),
            ("clone-user", "EPERM"),
            ("clone3", "ENOSYS"),
            ("setns", "EPERM"),
            ("keyctl", "EPERM"),
            ("add_key", "EPERM"),
            ("bpf", "EPERM"),
            ("perf_event_open", "EPERM"),
            ("io_uring_setup", "EPERM"),
            ("open_by_handle_at", "EPERM"),
            ("init_module", "EPERM"),
            ("reboot", "EPERM"),
            ("settimeofday", "EPERM"),
            ("vsock", "EPERM"),
            ("newer-than-known", "ENOSYS"),
            ("socket", "OK"),
            ("device-in-root", "EACCES"),
            ("device-in-dev", "EPERM"),
            ("null", "OK"),
            ("write-proc-sys", "EROFS"),
            ("groups-written", "0"),
            ("read-cgroup", "OK"),
        ] {
            assert!(answers.contains(&format!("{call} {want}")), "{call} is not {want}: {answers:#?}");
        }

        if !cgroup::is_unified() {
            let mut plan = ContainerPlan { task: node.plan(3, "").task, ..plan.clone() };
            plan.settings.capability_add = ["SYS_ADMIN", "SYS_TIME"].map(str::to_owned).to_vec();
            let answers = output(&driver, &plan).await?;
            for want in ["unshare-mounts OK", "keyctl EPERM", "reboot EPERM", "init_module EPERM"] {
                assert!(answers.contains(&want.to_owned()), "no {want}: {answers:#?}");
            }
            driver.remove(plan.task).await?;
        }

        let mut plan = node.plan(2, "grep -E '^(Seccomp|NoNewPrivs|CapEff|CapBnd|Groups):' /proc/self/status; cat /proc/keys; ls /sys/firmware; ls /proc/self/fd; ps; cat /proc/1/mountinfo | grep -c shm");
        plan.user = "65534".to_owned();
        let answers = output(&driver, &plan).await?;
        assert!(answers.contains(&"Seccomp:\t2".to_owned()), "{answers:#?}");
        assert!(answers.contains(&"NoNewPrivs:\t1".to_owned()), "{answers:#?}");
        assert!(answers.contains(&"CapEff:\t0000000000000000".to_owned()), "{answers:#?}");
        assert!(
            answers.contains(&"CapBnd:\t00000000a80425fb".to_owned()),
            "Docker's default capabilities: {answers:#?}"
        );
        assert!(!answers.iter().any(|line| line.contains("keyring") || line.contains("supervise")), "{answers:#?}");
        driver.remove(plan.task).await?;
        node.close(driver).await
    });
}

#[test]
fn containers_outlive_the_daemon_and_are_found_again() {
    isolated(async {
        let (node, driver) = Node::new().await?;
        let (runs, ended, created) = (
            node.plan(1, "trap 'exit 4' TERM; echo up; sleep 1000 & wait"),
            node.plan(2, "exit 9"),
            node.plan(3, "exit 0"),
        );
        let running = start(&driver, &runs).await?;
        start(&driver, &ended).await?;
        driver.wait(ended.task).await?;
        driver.prepare(&created).await?;
        drop(driver);

        let driver = node.open().await?;
        let states: BTreeMap<TaskId, FoundState> =
            driver.list().await?.into_iter().map(|found| (found.task, found.state)).collect();
        ensure!(states[&runs.task] == FoundState::Running(running.clone()), "{states:?} is not {running:?}");
        ensure!(states[&ended.task] == FoundState::Exited { code: 9 }, "{states:?}");
        ensure!(states[&created.task] == FoundState::Created, "{states:?}");
        let other = start(&driver, &node.plan(4, "sleep 1000")).await?;
        ensure!(other.address != running.address, "an address was given twice: {other:?}");
        let (exit, stopped) = tokio::join!(driver.wait(runs.task), driver.stop(runs.task));
        stopped?;
        ensure!(exit?.code == 4);
        driver.start(created.task).await?;
        ensure!(driver.wait(created.task).await?.code == 0);
        node.close(driver).await
    });
}

fn check(line: &str) -> Option<Healthcheck> {
    let test = ["CMD-SHELL", line].map(str::to_owned).to_vec();
    Some(Healthcheck { test, interval: 100_000_000, retries: 1, ..Healthcheck::default() })
}

/// Waits until a container's check finds it otherwise than `known`, and returns how.
async fn next_health(
    driver: &EmbeddedDriver,
    plan: &ContainerPlan,
    known: HealthStatus,
) -> anyhow::Result<HealthReport> {
    let report = tokio::time::timeout(PATIENCE, driver.health(plan.task, Some(known))).await??;
    report.context("it has a health check")
}

#[test]
fn a_health_check_is_confined_as_its_container() {
    isolated(async {
        let (node, driver) = Node::new().await?;
        let line = "grep -E '^(Seccomp|NoNewPrivs|Cap...|Uid|Gid|Groups):' /proc/self/status; cat /proc/self/cgroup; \
                    ls -l /proc/self/ns | grep -o '[a-z]*:.[0-9]*'; ls /proc/self/fd; hostname; env | grep -v SHLVL";
        let mut plan = node.plan(1, &format!("{line}; sleep 1000"));
        plan.user = "65534:7".to_owned();
        plan.healthcheck = check(line);
        start(&driver, &plan).await?;
        let report = next_health(&driver, &plan, HealthStatus::Starting).await?;
        ensure!(report.status == HealthStatus::Healthy, "{report:?}");
        let lines: Vec<_> = driver.logs(plan.task, LogQuery::default()).await?.collect().await;
        let own: anyhow::Result<Vec<String>> =
            lines.into_iter().map(|line| Ok(String::from_utf8_lossy(&line?.bytes).into_owned())).collect();
        let own = own?.concat();
        ensure!(own.contains("Seccomp:\t2") && own.contains("Uid:\t65534"), "{own}");
        ensure!(report.output == own, "the check's:\n{}\nthe container's own:\n{own}", report.output);
        node.close(driver).await
    });
}

#[test]
fn checks_go_on_without_the_daemon() {
    isolated(async {
        let (node, driver) = Node::new().await?;
        let mut plan = node.plan(1, "sleep 1000");
        plan.healthcheck = check("! [ -e /bad ]");
        let before = start(&driver, &plan).await?;
        ensure!(next_health(&driver, &plan, HealthStatus::Starting).await?.status == HealthStatus::Healthy);
        drop(driver);
        fs::write(format!("/proc/{}/root/bad", before.pid), "")?;
        let driver = node.open().await?;
        ensure!(next_health(&driver, &plan, HealthStatus::Healthy).await?.status == HealthStatus::Unhealthy);
        let found = driver.list().await?.remove(0).state;
        let want = Running { health: Some(HealthStatus::Unhealthy), ..before };
        ensure!(found == FoundState::Running(want), "{found:?}");
        node.close(driver).await
    });
}

#[test]
fn a_check_that_hangs_is_killed_with_what_it_started() {
    isolated(async {
        let (node, driver) = Node::new().await?;
        let hang = format!("sleep {}", 1_000_000 + std::process::id());
        let mut plan = node.plan(1, "sleep 1000");
        let line = format!("echo begun; {hang} & {hang}");
        plan.healthcheck =
            check(&line).map(|check| Healthcheck { timeout: 300_000_000, start_interval: 1_000_000, ..check });
        plan.healthcheck.iter_mut().for_each(|check| check.interval = 1_000_000_000);
        start(&driver, &plan).await?;
        let report = next_health(&driver, &plan, HealthStatus::Starting).await?;
        ensure!(report.status == HealthStatus::Unhealthy && report.output.contains("exceeded timeout"), "{report:?}");
        ensure!(processes(&hang)? == 0, "the check left processes behind");
        // One that runs when its container ends goes with it.
        let deadline = Instant::now() + PATIENCE;
        while processes(&hang)? == 0 {
            ensure!(Instant::now() < deadline, "there was no second check");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        driver.remove(plan.task).await?;
        ensure!(processes(&hang)? == 0, "a check outlived its container");
        node.close(driver).await
    });
}

/// Counts the processes of this machine with a command line.
fn processes(command: &str) -> anyhow::Result<usize> {
    let wanted = format!("{}\0", command.replace(' ', "\0"));
    let lines =
        fs::read_dir("/proc")?.flatten().map(|entry| fs::read(entry.path().join("cmdline")).unwrap_or_default());
    Ok(lines.filter(|line| *line == wanted.as_bytes()).count())
}

#[test]
fn without_its_supervisor_a_container_is_dead() {
    isolated(async {
        let (node, driver) = Node::new().await?;
        let plan = node.plan(1, "sleep 1000");
        start(&driver, &plan).await?;
        let state = node.state(&plan)?;
        ensure!(state.supervisor.signal(rustix::process::Signal::KILL)?);
        let exit = tokio::time::timeout(PATIENCE, driver.wait(plan.task)).await??;
        ensure!(exit.code == 137 && exit.error.contains("supervisor"), "{exit:?}");
        ensure!(state.container.ended_within(PATIENCE).await?, "the container outlived its supervisor");
        ensure!(driver.list().await?[0].state == FoundState::Exited { code: 137 });
        node.close(driver).await
    });
}

#[test]
fn output_is_bounded_and_never_blocks() {
    isolated(async {
        let (node, driver) = Node::new().await?;
        let plan = node.plan(1, "busybox seq 1 6000000; echo last >&2");
        let lines = output(&driver, &plan).await?;
        ensure!(
            lines.contains(&"6000000".to_owned()) && lines.contains(&"last".to_owned()),
            "the newest lines are kept"
        );
        ensure!(!lines.contains(&"1".to_owned()), "the oldest lines are gone");
        let bytes: u64 = fs::read_dir(node.container(&plan))?
            .filter_map(|entry| entry.ok()?.metadata().ok())
            .filter(std::fs::Metadata::is_file)
            .map(|metadata| metadata.len())
            .sum();
        ensure!(bytes <= 31 << 20, "{bytes} bytes of files");
        node.close(driver).await
    });
}

#[test]
fn limits_are_kept() {
    isolated(async {
        let (node, driver) = Node::new().await?;
        let mut plan = node.plan(1, "x=$(busybox yes | busybox head -c 200000000); echo $x");
        plan.limits.memory_bytes = 32 << 20;
        start(&driver, &plan).await?;
        let exit = tokio::time::timeout(PATIENCE, driver.wait(plan.task)).await??;
        ensure!(exit.code == 137 && exit.error == "out of memory", "{exit:?}");

        let mut plan = node.plan(2, "for i in 1 2 3 4 5 6 7 8 9; do sleep 2 & done; echo forked");
        plan.limits.pids = 4;
        let lines = output(&driver, &plan).await?;
        ensure!(lines.iter().any(|line| line.contains("can't fork")), "{lines:?}");
        node.close(driver).await
    });
}

/// Asks a web server; it may not listen yet.
fn get(address: std::net::IpAddr) -> anyhow::Result<String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match TcpStream::connect((address, 80)) {
            Ok(mut stream) => {
                stream.write_all(b"GET /name HTTP/1.0\r\n\r\n")?;
                let mut text = String::new();
                stream.read_to_string(&mut text)?;
                return Ok(text);
            }
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(error) => return Err(error.into()),
        }
    }
}

#[test]
fn nodes_of_one_machine_do_not_collide_and_reach_their_containers() {
    isolated(async {
        let image = TestImage::build()?;
        let nodes = [0, 1, 2].map(|_| async {
            let (node, driver) = Node::new().await?;
            let mut plan = node.plan(1, "hostname > /tmp/name; exec busybox httpd -f -p 80 -h /tmp");
            plan.hostname = format!("web-{}", node.identity.id.short());
            plan.user = "65534".to_owned();
            let running = start(&driver, &plan).await?;
            anyhow::Ok((node, driver, plan, running))
        });
        let nodes = futures::future::try_join_all(nodes).await?;
        for (_, _, plan, running) in &nodes {
            let answer = tokio::task::block_in_place(|| get(running.address.context("no address")?))?;
            ensure!(answer.contains(&plan.hostname), "{answer}");
        }
        for (node, driver, plan, _) in nodes {
            // An address is used again without confusing those who remember the one who had it.
            driver.remove(plan.task).await?;
            let again = start(&driver, &ContainerPlan { task: TaskId(plan.task.0 + 1), ..plan.clone() }).await?;
            let answer = tokio::task::block_in_place(|| get(again.address.context("no address")?))?;
            ensure!(answer.contains(&plan.hostname), "{answer}");
            let refused = driver.remove_image(&image.reference).await;
            ensure!(matches!(refused, Err(DriverError::Refused(_))), "{refused:?}");
            driver.remove(TaskId(plan.task.0 + 1)).await?;
            driver.remove_image(&image.reference).await?;
            ensure!(driver.images().await?.is_empty());
            node.close(driver).await?;
        }
        Ok(())
    });
}

#[test]
fn what_another_node_or_a_crash_left_is_removed() {
    isolated(async {
        let (node, driver) = Node::new().await?;
        let plan = node.plan(1, "sleep 1000");
        start(&driver, &plan).await?;
        drop(driver);
        let containers = node.data.path().join("containers");
        fs::create_dir_all(containers.join("partial-abc/upper"))?;
        fs::create_dir_all(containers.join("removed-abc/upper"))?;
        let state = node.state(&plan)?;
        let mut config = node.config();
        config.cluster = shoal_protocol::ClusterId(1);
        let driver = EmbeddedDriver::open(config).await?;
        ensure!(driver.list().await?.is_empty());
        ensure!(!state.container.lives()?, "a container of another cluster still runs");
        node.close(driver).await
    });
}

#[test]
fn without_root_it_names_the_other_driver() {
    let run = std::thread::spawn(|| {
        let nobody = rustix::process::Uid::from_raw(65534);
        rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let config = EmbeddedConfig {
                data_dir: "/nonexistent".into(),
                node: NodeId(1),
                cluster: shoal_protocol::ClusterId(1),
                hostname: "node".to_owned(),
                container_pool: "10.212.0.0/16".parse().expect("a range of addresses"),
                insecure_registries: Vec::new(),
                supervisor_exe: Path::new("/nonexistent").to_owned(),
            };
            EmbeddedDriver::open(config).await.err().map(|error| error.to_string())
        })
    });
    let error = run.join().unwrap().expect("refused");
    assert!(error.contains("root") && error.contains("--driver docker"), "{error}");
}

#[test]
fn many_containers_start_and_end() {
    isolated(async {
        let (node, driver) = Node::new().await?;
        let mut times = Vec::new();
        for number in 0..30 {
            let plan = node.plan(number, "exit 0");
            let began = Instant::now();
            driver.prepare(&plan).await?;
            let prepared = began.elapsed();
            driver.start(plan.task).await?;
            let started = began.elapsed();
            driver.wait(plan.task).await?;
            let ended = began.elapsed();
            driver.remove(plan.task).await?;
            times.push((began.elapsed(), prepared, started, ended));
        }
        times.sort_unstable();
        println!(
            "removed, prepared, started, ended, each since the beginning: median {:?}, worst {:?}",
            times[15], times[29]
        );

        let began = Instant::now();
        let plans: Vec<ContainerPlan> = (100..200).map(|number| node.plan(number, "sleep 1000")).collect();
        futures::stream::iter(&plans).map(|plan| start(&driver, plan)).buffer_unordered(8).collect::<Vec<_>>().await;
        println!("100 containers, 8 at a time: started after {:?}", began.elapsed());
        ensure!(
            driver.list().await?.iter().filter(|found| matches!(found.state, FoundState::Running(_))).count() == 100
        );
        let state = node.state(&plans[50])?;
        let memory = fs::read_to_string(format!("/proc/{}/smaps_rollup", state.supervisor.pid))?;
        println!(
            "a supervisor: {}",
            memory
                .lines()
                .filter(|line| line.starts_with("Rss") || line.starts_with("Pss:") || line.starts_with("Private"))
                .collect::<Vec<_>>()
                .join(", ")
        );
        let began = Instant::now();
        node.close(driver).await?;
        println!("100 containers removed one by one after {:?}", began.elapsed());
        // An order of magnitude above what it takes on an idle machine.
        ensure!(times[15].2 < Duration::from_millis(500), "{times:?}");
        Ok(())
    });
}

fn volume(source: &str, target: &str) -> Mount {
    Mount { kind: MountKind::Volume, source: source.to_owned(), target: target.to_owned(), ..Mount::default() }
}

#[test]
fn volumes_are_kept_and_filled_once() {
    isolated(async {
        let (node, driver) = Node::new().await?;
        let labels = BTreeMap::from([("a".to_owned(), "b".to_owned())]);
        let mut named = volume("kept", "/etc");
        named.volume_options = Some(VolumeOptions { labels: labels.clone(), ..VolumeOptions::default() });
        let mut plan = node.plan(1, "echo mine > /etc/group; echo other > /private/file; mknod /private/null c 1 3");
        plan.mounts = vec![named.clone(), volume("", "/private")];
        output(&driver, &plan).await?;
        let private = node.container(&plan).join("volumes/1/_data/file");
        ensure!(fs::read_to_string(&private)? == "other\n");
        driver.remove(plan.task).await?;
        ensure!(!private.exists(), "a volume without a name outlives its container");

        let place = node.data.path().join("volumes/kept");
        let record: VolumeRecord = serde_json::from_slice(&fs::read(place.join("volume.json"))?)?;
        ensure!(record.labels == labels, "{record:?}");
        // As a crash in the middle of the first copy would leave it, with one file that a container wrote meanwhile.
        fs::remove_file(place.join("_data/passwd"))?;
        fs::write(place.join("filling"), "")?;
        fs::write(place.join("partial"), "half")?;
        let mut plan = node.plan(2, "cat /etc/group; id -un nobody; cat /etc/partial");
        plan.mounts = vec![named.clone()];
        let lines = output(&driver, &plan).await?;
        ensure!(lines[..2] == ["mine", "nobody"], "the copy goes on and overwrites nothing: {lines:?}");
        ensure!(!place.join("filling").exists() && !place.join("partial").exists());
        driver.remove(plan.task).await?;
        node.close(driver).await
    });
}

#[test]
fn mounts_that_a_node_cannot_have_are_refused() {
    isolated(async {
        let (node, driver) = Node::new().await?;
        let bind = |source: &str, propagation| Mount {
            kind: MountKind::Bind,
            source: source.to_owned(),
            target: "/mnt".to_owned(),
            bind_options: Some(BindOptions { propagation, non_recursive: false }),
            ..Mount::default()
        };
        for (mount, want) in [
            (bind("/tmp", Propagation::Rshared), "passes mounts back"),
            (bind("/dev/null", Propagation::Unset), "bind mounts of devices"),
        ] {
            let mut plan = node.plan(1, "exit 0");
            plan.mounts = vec![mount];
            match driver.prepare(&plan).await {
                Err(DriverError::Refused(said)) if said.contains(want) => {}
                other => anyhow::bail!("{other:?} is not {want}"),
            }
        }
        let host = tempfile::tempdir()?;
        ensure!(Command::new("mknod").arg(host.path().join("null")).args(["c", "1", "3"]).status()?.success());
        for (number, propagation, want) in [(2, Propagation::Unset, false), (3, Propagation::Rslave, true)] {
            let mut plan = node.plan(number, "cat /mnt/null || echo closed; grep ' /mnt ' /proc/self/mountinfo");
            plan.mounts = vec![bind(&host.path().to_string_lossy(), propagation)];
            let lines = output(&driver, &plan).await?;
            ensure!(lines.iter().any(|line| line == "closed"), "a device in a mount can be opened: {lines:?}");
            let follows = lines.iter().any(|line| line.contains(" master:"));
            let table = fs::read_to_string("/proc/self/mountinfo")?;
            // Where the host shares none of its mounts there is nothing to follow.
            let can = table.lines().all(|line| line.contains(" shared:"));
            ensure!(!follows || want, "{propagation:?}: {lines:?}");
            ensure!(follows || !want || !can, "{propagation:?}: {lines:?}");
            driver.remove(plan.task).await?;
        }
        node.close(driver).await
    });
}
