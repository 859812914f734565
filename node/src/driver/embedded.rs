//! The driver that needs no engine: images and containers of this node's own, run by libcontainer.
//!
//! Each container has a supervisor (see [`crate::supervisor`]) that outlives the daemon; everything that is known of a
//! container lies in its directory (see [`bundle`]), where a restarted daemon finds it again. The driver prepares
//! directories, starts supervisors, gives them their network, signals containers and clears away.
//!
//! Ports published on one node alone (`mode=host`) are not the driver's affair: the daemon's ingress listens on them and
//! forwards to the container's address, as it does for all published ports.
//!
//! Different from Docker Engine: set-user-ID programs gain nothing (`no_new_privs`), and an image's volumes are directories of
//! the container.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::{BoxStream, StreamExt};
use rustix::process::Signal;
use shoal_control::task::health::HealthStatus;
use shoal_control::task::{ContainerPlan, Found, FoundState, Running};
use shoal_protocol::registry_auth::RegistryAuth;
use shoal_protocol::subnet::Subnet;
use shoal_protocol::{ClusterId, NodeId, TaskId};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;

use self::bundle::{Bundle, BundleDir, CONNECTED, ExitRecord, Progress, State};
use self::images::ImageStore;
use self::network::Network;
use self::pull::Puller;
use self::subnet::Addresses;
use super::inventory::Inventory;
use super::registry::Insecure;
use super::{Capacity, Driver, DriverError, Exit, HealthReport, ImageInfo, LogLine, LogQuery};

mod archive;
pub mod bundle;
pub mod cgroup;
mod health;
pub(super) mod images;
mod intake;
mod inventory;
mod layer;
mod logs;
mod network;
mod plan;
pub mod process;
mod pull;
pub mod settings;
pub mod subnet;
pub(crate) mod time;
pub mod volumes;

/// How long a supervisor may take to start its container.
const START_MAX: Duration = Duration::from_secs(30);
/// How long the kernel may take to end what was killed.
const KILL_MAX: Duration = Duration::from_secs(10);
/// What could not be done when a container's health cannot be read.
const HEALTH_FAILED: &str = "failed to look at the container's health";
/// Exit code of a container whose supervisor was lost: as if killed, which it was.
const LOST_CODE: i32 = 137;

/// What the embedded driver of a node works with.
#[derive(Debug, Clone)]
pub struct EmbeddedConfig {
    /// Where images and containers are kept.
    pub data_dir: PathBuf,
    /// The node.
    pub node: NodeId,
    /// Its cluster. Containers of another one that lie in the data directory are removed.
    pub cluster: ClusterId,
    /// The node's name in messages.
    pub hostname: String,
    /// Where containers' addresses come from; one /24 of it is the node's.
    pub container_pool: Subnet,
    /// Registries that need not prove who they are.
    pub insecure_registries: Vec<Insecure>,
    /// The program whose subcommand `supervise` is the supervisor: `shoald` itself.
    pub supervisor_exe: PathBuf,
}

/// Runs containers without an engine. See the module's documentation.
pub struct EmbeddedDriver {
    config: EmbeddedConfig,
    containers: PathBuf,
    images: Arc<ImageStore>,
    puller: Arc<Puller>,
    network: Network,
    addresses: Mutex<Addresses>,
    /// Held while an image is being chosen or removed, so that no container is made from what is being removed.
    choosing: tokio::sync::Mutex<()>,
}

impl EmbeddedDriver {
    /// Opens what is in the data directory, removes what a crash left half made, and creates the node's bridge.
    pub async fn open(mut config: EmbeddedConfig) -> Result<Self, DriverError> {
        if !rustix::process::geteuid().is_root() {
            return Err(DriverError::Refused(
                "the embedded driver needs root: run shoald as root, or let a Docker engine run containers (--driver docker)"
                    .to_owned(),
            ));
        }
        // Images hold set-user-ID programs, output may hold secrets: none of it is for the users of this machine.
        for private in ["containers", "images", "layers", volumes::DIRECTORY].map(|name| config.data_dir.join(name)) {
            fs::create_dir_all(&private)
                .and_then(|()| fs::set_permissions(&private, fs::Permissions::from_mode(0o700)))
                .map_err(failed(&format!("failed to create {}", private.display())))?;
        }
        config.data_dir = config.data_dir.canonicalize().map_err(failed("failed to find the data directory"))?;
        let containers = config.data_dir.join("containers");
        let network = Network::open(&config.data_dir, config.node, config.container_pool)
            .await
            .map_err(failed("failed to create the containers' network"))?;
        for directory in leftovers(&containers, &config).map_err(failed("failed to list containers"))? {
            clear(&directory, &network).await?;
        }
        let bundles = bundle::list(&containers).map_err(failed("failed to list containers"))?;
        let used = bundles.iter().flat_map(|(_, bundle)| bundle.layers.clone()).collect();
        let addresses = bundles.iter().map(|(_, bundle)| bundle.address).collect();
        let images = ImageStore::open(&config.data_dir, &used).map_err(|e| e.into_driver_error(&config.hostname))?;
        let addresses = Mutex::new(Addresses::new(network.subnet(), addresses));
        let images = Arc::new(images);
        let puller = Puller::new(images.clone(), config.insecure_registries.clone());
        let choosing = tokio::sync::Mutex::new(());
        Ok(Self { config, containers, images, puller, network, addresses, choosing })
    }

    fn directory(&self, task: TaskId) -> BundleDir {
        BundleDir(self.containers.join(task.to_string()))
    }

    /// Reads what a container runs.
    fn bundle(&self, task: TaskId) -> Result<(BundleDir, Bundle), DriverError> {
        let directory = self.directory(task);
        match directory.bundle() {
            Ok(bundle) => Ok((directory, bundle)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(DriverError::NoSuchTask(task)),
            Err(error) => Err(failed("failed to read container")(error)),
        }
    }

    /// Starts the supervisor of a container and sees it through until the program runs.
    async fn supervise(&self, directory: &BundleDir, bundle: &Bundle) -> Result<(), DriverError> {
        let what = "failed to start the supervisor of the container";
        let errors = File::create(directory.path("supervisor.log")).map_err(failed(what))?;
        let mut child = Command::new(&self.config.supervisor_exe)
            .arg(crate::supervisor::SUBCOMMAND)
            .arg(&directory.0)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()
            .map_err(failed(what))?;
        let result = match timeout(START_MAX, self.converse(&mut child, directory, bundle)).await {
            Ok(result) => result,
            Err(elapsed) => Err(failed("the container took too long to start")(elapsed)),
        };
        if result.is_err() {
            let _ = child.start_kill();
        }
        // Collects its exit status while this daemon lives; afterwards that is the init system's part.
        tokio::spawn(async move { child.wait().await });
        result
    }

    async fn converse(&self, child: &mut Child, directory: &BundleDir, bundle: &Bundle) -> Result<(), DriverError> {
        let what = "failed to talk to the supervisor of the container";
        let (Some(pid), Some(mut input), Some(output)) = (child.id(), child.stdin.take(), child.stdout.take()) else {
            return Err(failed(what)(io::Error::from(io::ErrorKind::BrokenPipe)));
        };
        let mut lines = BufReader::new(output).lines();
        while let Some(line) = lines.next_line().await.map_err(failed(what))? {
            match serde_json::from_str(&line).map_err(failed(what))? {
                Progress::Waiting => {
                    if let Err(error) = self.network.connect(bundle.plan.task, bundle.address, pid).await {
                        drop(input); // the supervisor gives up, unless that is why it cannot be connected
                        let error = failed("failed to connect the container to the network")(error);
                        return Err(invalid_setting(&mut lines).await.unwrap_or(error));
                    }
                    input.write_all(format!("{CONNECTED}\n").as_bytes()).await.map_err(failed(what))?;
                }
                Progress::Started => return Ok(()),
                Progress::Failed { invalid: true, error } => return Err(DriverError::Invalid(error)),
                Progress::Failed { invalid: false, error } => return Err(failed("failed to start container")(error)),
            }
        }
        let said = fs::read_to_string(directory.path("supervisor.log")).unwrap_or_default();
        Err(failed("the supervisor of the container ended")(said.trim().to_owned()))
    }
}

#[async_trait]
impl Driver for EmbeddedDriver {
    fn engine(&self) -> String {
        concat!("embedded ", env!("CARGO_PKG_VERSION")).to_owned()
    }

    fn publishes_host_ports(&self) -> bool {
        false
    }

    fn inventory(self: Arc<Self>) -> Option<Arc<dyn Inventory>> {
        Some(self)
    }

    async fn close(&self) -> Result<(), DriverError> {
        for found in self.list().await? {
            self.remove(found.task).await?;
        }
        self.network.remove().await.map_err(failed("failed to remove the containers' network"))?;
        cgroup::remove_empty_parents(&node_group(self.config.node)).map_err(failed("failed to remove control groups"))
    }

    async fn capacity(&self) -> Result<Capacity, DriverError> {
        let cores = std::thread::available_parallelism().map_err(failed("failed to count processors"))?;
        let memory = rustix::system::sysinfo();
        Ok(Capacity {
            nano_cpus: cores.get() as u64 * 1_000_000_000,
            memory_bytes: memory.totalram * u64::from(memory.mem_unit),
        })
    }

    async fn has_image(&self, image: &str) -> Result<bool, DriverError> {
        Ok(self.images.has(image))
    }

    async fn pull(&self, image: &str, auth: Option<&RegistryAuth>) -> Result<(), DriverError> {
        self.pull_image(image, auth).await
    }

    async fn prepare(&self, plan: &ContainerPlan) -> Result<String, DriverError> {
        let _choosing = self.choosing.lock().await;
        match self.bundle(plan.task) {
            Ok((_, bundle)) => return Ok(bundle.container_id),
            Err(DriverError::NoSuchTask(_)) => {}
            Err(error) => return Err(error),
        }
        volumes::check(plan)?;
        settings::check(plan)?;
        let image = self.images.find(&plan.image).map_err(|error| self.image_error(error))?;
        let address = self.addresses.lock().unwrap_or_else(PoisonError::into_inner).take();
        let address = address.ok_or_else(|| {
            DriverError::Refused(format!("no free address for a container in {}", self.network.subnet()))
        })?;
        let result = plan::resolve(plan, &image, &self.config, self.network.subnet(), address)
            .and_then(|bundle| self.store(&bundle).map(|()| bundle.container_id))
            .map_err(|error| error.or_full(&self.config.data_dir));
        if result.is_err() {
            self.addresses.lock().unwrap_or_else(PoisonError::into_inner).give_back(address);
        }
        result
    }

    async fn start(&self, task: TaskId) -> Result<Running, DriverError> {
        let (directory, bundle) = self.bundle(task)?;
        match look(&directory).map_err(failed("failed to look at container"))? {
            Life::Created => {}
            Life::Running(state) => return running(&directory, &bundle, &state),
            Life::Ended(_) => return Err(DriverError::Invalid("the container has ended already".to_owned())),
        }
        if !Subnet::new(bundle.address, bundle.prefix).is_within(self.network.subnet()) {
            return Err(DriverError::Refused(
                "the node's container addresses changed since the task was prepared".to_owned(),
            ));
        }
        self.supervise(&directory, &bundle).await?;
        let state = directory.state().map_err(failed("failed to look at container"))?;
        let state = state.ok_or_else(|| DriverError::NoSuchTask(task))?;
        running(&directory, &bundle, &state)
    }

    async fn wait(&self, task: TaskId) -> Result<Exit, DriverError> {
        let (directory, _) = self.bundle(task)?;
        loop {
            match look(&directory).map_err(failed("failed to look at container"))? {
                Life::Ended(record) => return Ok(Exit { code: record.code, error: record.error }),
                Life::Created => return Err(DriverError::Invalid("the container was never started".to_owned())),
                Life::Running(state) => {
                    state.supervisor.ended().await.map_err(failed("failed to wait for container"))?;
                    // Removed meanwhile?
                    self.bundle(task)?;
                }
            }
        }
    }

    async fn health(&self, task: TaskId, known: Option<HealthStatus>) -> Result<Option<HealthReport>, DriverError> {
        let (directory, bundle) = self.bundle(task)?;
        let Some(policy) = bundle.health else { return Ok(None) };
        health::next(&directory, &policy, known).await.map(Some).map_err(failed(HEALTH_FAILED))
    }

    async fn stop(&self, task: TaskId) -> Result<(), DriverError> {
        let (directory, bundle) = self.bundle(task)?;
        let Life::Running(state) = look(&directory).map_err(failed("failed to look at container"))? else {
            return Ok(());
        };
        let what = "failed to stop container";
        state.container.signal(process::signal(bundle.stop_signal)).map_err(failed(what))?;
        if state.supervisor.ended_within(bundle.plan.stop_grace).await.map_err(failed(what))? {
            return Ok(());
        }
        kill(&state).await
    }

    async fn remove(&self, task: TaskId) -> Result<(), DriverError> {
        let directory = self.directory(task);
        let address = match self.bundle(task) {
            Ok((_, bundle)) => bundle.address,
            Err(DriverError::NoSuchTask(_)) => return Ok(()),
            Err(error) => return Err(error),
        };
        clear(&directory, &self.network).await?;
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner).give_back(address);
        Ok(())
    }

    async fn list(&self) -> Result<Vec<Found>, DriverError> {
        let mut found = Vec::new();
        for (directory, bundle) in bundle::list(&self.containers).map_err(failed("failed to list containers"))? {
            let state = match look(&directory).map_err(failed("failed to look at container"))? {
                Life::Created => FoundState::Created,
                Life::Running(state) => FoundState::Running(running(&directory, &bundle, &state)?),
                Life::Ended(record) => FoundState::Exited { code: record.code },
            };
            found.push(Found { task: bundle.plan.task, service: bundle.plan.service, slot: bundle.plan.slot, state });
        }
        Ok(found)
    }

    async fn logs(
        &self,
        task: TaskId,
        query: LogQuery,
    ) -> Result<BoxStream<'static, Result<LogLine, DriverError>>, DriverError> {
        let (directory, bundle) = self.bundle(task)?;
        if bundle.log.files == 0 {
            return Err(DriverError::Invalid("configured logging driver does not support reading".to_owned()));
        }
        let path = directory.0.clone();
        let has_ended = move || !matches!(look(&directory), Ok(Life::Created | Life::Running(_)));
        let lines = logs::stream(path, query, has_ended).await.map_err(failed("failed to read output"))?;
        Ok(lines.map(|line| line.map_err(failed("failed to read output"))).boxed())
    }

    async fn load_image(&self, archive: &mut (dyn AsyncRead + Send + Unpin)) -> Result<Vec<String>, DriverError> {
        self.take_archive(archive).await.map_err(|error| error.or_full(&self.config.data_dir))
    }

    async fn images(&self) -> Result<Vec<ImageInfo>, DriverError> {
        Ok(self.images.list())
    }

    async fn remove_image(&self, image: &str) -> Result<(), DriverError> {
        let _choosing = self.choosing.lock().await;
        let bundles = bundle::list(&self.containers).map_err(failed("failed to list containers"))?;
        let users: BTreeSet<String> = bundles.iter().map(|(_, bundle)| bundle.image_id.clone()).collect();
        let layers: BTreeSet<PathBuf> = bundles.into_iter().flat_map(|(_, bundle)| bundle.layers).collect();
        let (images, image) = (Arc::clone(&self.images), image.to_owned());
        let removed = tokio::task::spawn_blocking(move || images.remove(&image, &users, &layers));
        removed.await.map_err(failed("failed to remove the image"))?.map_err(|error| self.image_error(error))
    }
}

impl EmbeddedDriver {
    /// Puts a container's directory in place, as a whole.
    fn store(&self, bundle: &Bundle) -> Result<(), DriverError> {
        let what = "failed to create container";
        let place = self.directory(bundle.plan.task).0;
        let partial = self.containers.join(format!("partial-{}", bundle.plan.task));
        let _ = fs::remove_dir_all(&partial);
        fs::create_dir_all(&partial).map_err(failed(what))?;
        bundle::write_json(&partial.join("bundle.json"), bundle).map_err(failed(what))?;
        fs::rename(&partial, place).map_err(failed(what))
    }
}

/// Returns what a supervisor that gave up says of the task's own settings, if they were the reason.
async fn invalid_setting(lines: &mut Lines<BufReader<ChildStdout>>) -> Option<DriverError> {
    while let Ok(Some(line)) = lines.next_line().await {
        if let Ok(Progress::Failed { invalid: true, error }) = serde_json::from_str(&line) {
            return Some(DriverError::Invalid(error));
        }
    }
    None
}

/// Where a container is in its life.
enum Life {
    Created,
    Running(State),
    Ended(ExitRecord),
}

/// Finds out where a container is in its life. If its supervisor was killed, it is ended and that is written down.
fn look(directory: &BundleDir) -> io::Result<Life> {
    if let Some(record) = directory.exit()? {
        return Ok(Life::Ended(record));
    }
    let Some(state) = directory.state()? else { return Ok(Life::Created) };
    if state.supervisor.lives()? {
        return Ok(Life::Running(state));
    }
    // Its last act may have been to write down the end.
    if let Some(record) = directory.exit()? {
        return Ok(Life::Ended(record));
    }
    state.container.signal(Signal::KILL)?;
    let record = directory.write_exit(LOST_CODE, "the supervisor of the container was killed")?;
    Ok(Life::Ended(record))
}

fn running(directory: &BundleDir, bundle: &Bundle, state: &State) -> Result<Running, DriverError> {
    bundle.running(directory, state).map_err(failed(HEALTH_FAILED))
}

async fn kill(state: &State) -> Result<(), DriverError> {
    let what = "failed to kill container";
    state.container.signal(Signal::KILL).map_err(failed(what))?;
    if state.supervisor.ended_within(KILL_MAX).await.map_err(failed(what))? {
        return Ok(());
    }
    Err(failed(what)(io::Error::from(io::ErrorKind::TimedOut)))
}

/// Ends a container and removes everything of it. Each step may be repeated.
async fn clear(directory: &BundleDir, network: &Network) -> Result<(), DriverError> {
    let what = "failed to remove container";
    if let Life::Running(state) = look(directory).map_err(failed(what))? {
        kill(&state).await?;
    }
    if let Ok(bundle) = directory.bundle() {
        network.disconnect(bundle.plan.task).await.map_err(failed("failed to remove the container's interface"))?;
        let group = bundle.cgroup;
        let removed = tokio::task::spawn_blocking(move || cgroup::remove(&group));
        removed.await.map_err(failed(what))?.map_err(failed("failed to remove the container's control group"))?;
    }
    let path = directory.0.clone();
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    // Renamed first: half a container must not be taken for one.
    let doomed = path.with_file_name(format!("removed-{}", name.trim_start_matches("removed-")));
    let removed = tokio::task::spawn_blocking(move || {
        if path != doomed {
            fs::rename(&path, &doomed)?;
        }
        fs::remove_dir_all(&doomed)
    });
    match removed.await.map_err(failed(what))? {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(what)(error)),
        _ => Ok(()),
    }
}

/// Lists what is no container of this node and cluster: half made, half removed, or from before the node left another.
fn leftovers(containers: &Path, config: &EmbeddedConfig) -> io::Result<Vec<BundleDir>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(containers)? {
        let entry = entry?;
        let directory = BundleDir(entry.path());
        let is_ours = entry.file_name().to_string_lossy().parse::<TaskId>().is_ok()
            && directory
                .bundle()
                .is_ok_and(|bundle| bundle.plan.node == config.node && bundle.cluster == config.cluster);
        if !is_ours {
            found.push(directory);
        }
    }
    Ok(found)
}

fn node_group(node: NodeId) -> String {
    format!("shoal/{node}")
}

fn failed<E: Into<Box<dyn std::error::Error + Send + Sync>>>(what: &str) -> impl FnOnce(E) -> DriverError {
    let what = what.to_owned();
    move |error| DriverError::Failed { what, source: error.into() }
}
