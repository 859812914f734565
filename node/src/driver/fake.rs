//! A driver without an engine: containers are tasks of this process that follow a few words of shell.
//!
//! It passes the same suite as the real ones. What a container does is told by its image: see [`Behaviour`]. Cloning shares
//! the containers, as several clients share one engine, so a test can restart the daemon around them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use futures::stream::BoxStream;
use shoal_control::task::health::{HealthStatus, Policy};
use shoal_control::task::{ContainerPlan, Found, FoundState, Running};
use shoal_protocol::registry_auth::RegistryAuth;
use shoal_protocol::{TaskId, WallTime};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::{mpsc, watch};

use super::{Capacity, Driver, DriverError, Exit, HealthReport, ImageInfo, LogLine, LogQuery, missing_source};
use output::Output;
use script::{Process, Signal};

mod archive;
mod checks;
mod output;
mod script;

/// Bytes of an image archive at most; larger ones are refused.
pub const ARCHIVE_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// Signals that wait for a container to look at them; further ones are dropped, as the kernel does.
const SIGNALS_MAX: usize = 8;

/// Process numbers begin above what Linux gives out, so that nobody meets a real process under one.
const PID_MIN: u32 = 5_000_000;

/// What a container of an image does.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Behaviour {
    /// `fake/missing`: there is no such image. So are all that do not begin with `fake/` and were not loaded.
    Missing,
    /// `fake/invalid`: its settings work nowhere.
    Invalid,
    /// `fake/refused`: it does not start here.
    Refused,
    /// `fake/broken`: the engine fails to start it.
    Broken,
    /// `fake/exit:3`: ends by itself at once with that code.
    Exit(i32),
    /// `fake/slow:100`: takes that many milliseconds to prepare.
    Slow(Duration),
    /// `fake/stubborn`: does not end when asked.
    Stubborn,
    /// Anything else: follows the plan's `sh -c SCRIPT`, or runs until asked to end.
    Plain,
}

/// Calls that can be made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FakeCall {
    /// [`Driver::stop`].
    Stop,
    /// [`Driver::remove`].
    Remove,
    /// [`Driver::wait`], also those that wait already.
    Wait,
    /// [`Driver::list`].
    List,
}

/// A driver without an engine.
#[derive(Clone)]
pub struct FakeDriver {
    hostname: String,
    capacity: Capacity,
    engine: Arc<Mutex<Engine>>,
    interrupted: watch::Sender<u64>,
}

#[derive(Default)]
struct Engine {
    images: BTreeMap<String, ImageInfo>,
    removed: BTreeSet<String>,
    containers: BTreeMap<TaskId, Container>,
    started: u32,
    faults: BTreeMap<FakeCall, u32>,
}

struct Container {
    id: String,
    plan: ContainerPlan,
    running: Option<Running>,
    signals: Option<mpsc::Sender<Signal>>,
    exit: watch::Sender<Option<Exit>>,
    output: Arc<Mutex<Output>>,
    /// What its check finds; nothing if it has none.
    health: watch::Sender<Option<HealthReport>>,
    /// What its checks are told to find, whatever their commands say.
    is_well: Arc<Mutex<Option<bool>>>,
}

impl FakeDriver {
    /// Returns a driver of an engine of its own.
    pub fn new(hostname: &str, capacity: Capacity) -> Self {
        Self { hostname: hostname.to_owned(), capacity, engine: Arc::default(), interrupted: watch::Sender::new(0) }
    }

    /// Makes the next calls of a kind fail.
    pub fn fail_next(&self, call: FakeCall, times: u32) {
        *self.lock().faults.entry(call).or_default() += times;
        if call == FakeCall::Wait {
            self.interrupted.send_modify(|count| *count += 1);
        }
    }

    /// Ends a container by itself, as if its process had crashed.
    pub fn crash(&self, task: TaskId, code: i32) {
        if let Some(container) = self.lock().containers.get(&task) {
            container.signal(Signal::Exit(code));
        }
    }

    /// Makes the checks of a container succeed or fail from now on, whatever their command says.
    pub fn set_health(&self, task: TaskId, is_well: bool) {
        if let Some(container) = self.lock().containers.get(&task) {
            *container.is_well.lock().unwrap_or_else(PoisonError::into_inner) = Some(is_well);
        }
    }

    /// Returns the tasks whose containers run.
    pub fn running(&self) -> BTreeSet<TaskId> {
        self.lock().containers.iter().filter(|(_, container)| container.runs()).map(|(task, _)| *task).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Engine> {
        self.engine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check_fault(&self, call: FakeCall) -> Result<(), DriverError> {
        match self.lock().faults.get_mut(&call) {
            Some(times) if *times > 0 => {
                *times -= 1;
                Err(failed(&format!("{call:?}").to_lowercase(), "told to fail"))
            }
            Some(_) | None => Ok(()),
        }
    }

    fn behaviour(&self, image: &str) -> Behaviour {
        let engine = self.lock();
        let Some(name) = image.strip_prefix("fake/") else {
            let is_loaded = engine.images.contains_key(image)
                || (!image.contains(':') && engine.images.contains_key(&format!("{image}:latest")));
            return if is_loaded { Behaviour::Plain } else { Behaviour::Missing };
        };
        let (name, tag) = name.split_once(':').unwrap_or((name, ""));
        match name {
            "missing" => Behaviour::Missing,
            "invalid" => Behaviour::Invalid,
            "refused" => Behaviour::Refused,
            "broken" => Behaviour::Broken,
            "exit" => Behaviour::Exit(tag.parse().unwrap_or(0)),
            "slow" => Behaviour::Slow(Duration::from_millis(tag.parse().unwrap_or(0))),
            "stubborn" => Behaviour::Stubborn,
            _ if engine.removed.contains(image) => Behaviour::Missing,
            _ => Behaviour::Plain,
        }
    }
}

#[async_trait]
impl Driver for FakeDriver {
    fn engine(&self) -> String {
        format!("fake {}", env!("CARGO_PKG_VERSION"))
    }

    fn publishes_host_ports(&self) -> bool {
        true
    }

    async fn close(&self) -> Result<(), DriverError> {
        for found in self.list().await? {
            self.remove(found.task).await?;
        }
        Ok(())
    }

    async fn capacity(&self) -> Result<Capacity, DriverError> {
        Ok(self.capacity.clone())
    }

    async fn has_image(&self, image: &str) -> Result<bool, DriverError> {
        Ok(!matches!(self.behaviour(image), Behaviour::Missing))
    }

    async fn pull(&self, image: &str, _: Option<&RegistryAuth>) -> Result<(), DriverError> {
        Err(DriverError::NotPulled {
            image: image.to_owned(),
            node: self.hostname.clone(),
            reason: "told to be missing".to_owned(),
        })
    }

    async fn prepare(&self, plan: &ContainerPlan) -> Result<String, DriverError> {
        match self.behaviour(&plan.image) {
            Behaviour::Missing => {
                return Err(DriverError::NoSuchImage { image: plan.image.clone(), node: self.hostname.clone() });
            }
            Behaviour::Invalid => return Err(DriverError::Invalid("told to be invalid".to_owned())),
            Behaviour::Slow(delay) => tokio::time::sleep(delay).await,
            Behaviour::Refused | Behaviour::Broken | Behaviour::Exit(_) | Behaviour::Stubborn | Behaviour::Plain => {}
        }
        if let Some(missing) = missing_source(plan) {
            return Err(DriverError::Refused(missing));
        }
        let mut engine = self.lock();
        let container = engine.containers.entry(plan.task).or_insert_with(|| Container {
            id: format!("{:064x}", plan.task.0),
            plan: plan.clone(),
            running: None,
            signals: None,
            exit: watch::Sender::new(None),
            output: Arc::default(),
            health: watch::Sender::new(None),
            is_well: Arc::default(),
        });
        Ok(container.id.clone())
    }

    async fn start(&self, task: TaskId) -> Result<Running, DriverError> {
        let image = self.lock().containers.get(&task).map(|container| container.plan.image.clone());
        let behaviour = self.behaviour(&image.ok_or(DriverError::NoSuchTask(task))?);
        let mut engine = self.lock();
        engine.started += 1;
        let count = engine.started;
        let container = engine.containers.get_mut(&task).ok_or(DriverError::NoSuchTask(task))?;
        if let Some(running) = container.running.as_ref().filter(|_| container.runs()) {
            return Ok(container.as_found(running));
        }
        let script = match behaviour {
            Behaviour::Refused => return Err(DriverError::Refused("told to refuse".to_owned())),
            Behaviour::Broken => return Err(failed("start", "told to fail")),
            Behaviour::Exit(code) => format!("exit {code}"),
            Behaviour::Stubborn => "sleep infinity".to_owned(),
            Behaviour::Missing | Behaviour::Invalid | Behaviour::Slow(_) | Behaviour::Plain => {
                script::of(&container.plan)
            }
        };
        let running = Running {
            container_id: container.id.clone(),
            pid: PID_MIN + count,
            address: Some(IpAddr::V4(Ipv4Addr::from_bits(0x0aff_0000 | (count & 0xffff)))),
            started: wall_now(),
            health: None,
        };
        Ok(container.start(running, &script))
    }

    async fn wait(&self, task: TaskId) -> Result<Exit, DriverError> {
        self.check_fault(FakeCall::Wait)?;
        let mut interrupted = self.interrupted.subscribe();
        let mut exit = self.lock().containers.get(&task).ok_or(DriverError::NoSuchTask(task))?.exit.subscribe();
        tokio::select! {
            ended = exit.wait_for(Option::is_some) => match ended {
                Ok(ended) => ended.clone().ok_or(DriverError::NoSuchTask(task)),
                Err(_) => Err(DriverError::NoSuchTask(task)),
            },
            _ = interrupted.changed() => Err(self.check_fault(FakeCall::Wait).err().unwrap_or_else(|| failed("wait", "interrupted"))),
        }
    }

    async fn health(&self, task: TaskId, known: Option<HealthStatus>) -> Result<Option<HealthReport>, DriverError> {
        let mut health = self.lock().containers.get(&task).ok_or(DriverError::NoSuchTask(task))?.health.subscribe();
        let is_news = |report: &Option<HealthReport>| report.as_ref().is_none_or(|report| Some(report.status) != known);
        let report = health.wait_for(is_news).await.map_err(|_| DriverError::NoSuchTask(task))?;
        Ok(report.clone())
    }

    async fn stop(&self, task: TaskId) -> Result<(), DriverError> {
        self.check_fault(FakeCall::Stop)?;
        let (mut exit, grace) = {
            let engine = self.lock();
            let container = engine.containers.get(&task).ok_or(DriverError::NoSuchTask(task))?;
            if !container.runs() {
                return Ok(());
            }
            container.signal(Signal::Named(script::signal_name(&container.plan.stop_signal)));
            (container.exit.subscribe(), container.plan.stop_grace)
        };
        if tokio::time::timeout(grace, exit.wait_for(Option::is_some)).await.is_err() {
            if let Some(container) = self.lock().containers.get(&task) {
                container.signal(Signal::Kill);
            }
            // An error means that the container was removed meanwhile: it has ended, too.
            let _ = exit.wait_for(Option::is_some).await;
        }
        Ok(())
    }

    async fn remove(&self, task: TaskId) -> Result<(), DriverError> {
        self.check_fault(FakeCall::Remove)?;
        if let Some(container) = self.lock().containers.remove(&task) {
            container.signal(Signal::Kill);
        }
        Ok(())
    }

    async fn list(&self) -> Result<Vec<Found>, DriverError> {
        self.check_fault(FakeCall::List)?;
        let engine = self.lock();
        let found = engine.containers.values().map(|container| {
            let exit = container.exit.borrow().clone();
            let state = match (&container.running, exit) {
                (None, _) => FoundState::Created,
                (Some(_), Some(exit)) => FoundState::Exited { code: exit.code },
                (Some(running), None) => FoundState::Running(container.as_found(running)),
            };
            Found { task: container.plan.task, service: container.plan.service, slot: container.plan.slot, state }
        });
        Ok(found.collect())
    }

    async fn logs(
        &self,
        task: TaskId,
        query: LogQuery,
    ) -> Result<BoxStream<'static, Result<LogLine, DriverError>>, DriverError> {
        let engine = self.lock();
        let container = engine.containers.get(&task).ok_or(DriverError::NoSuchTask(task))?;
        let (output, exit) = (Arc::clone(&container.output), container.exit.subscribe());
        Ok(output::stream(output, exit, query))
    }

    async fn load_image(&self, archive: &mut (dyn AsyncRead + Send + Unpin)) -> Result<Vec<String>, DriverError> {
        let mut bytes = Vec::new();
        let read = archive.take(ARCHIVE_BYTES_MAX + 1).read_to_end(&mut bytes).await;
        let size =
            read.map_err(|source| DriverError::Failed { what: "read archive".to_owned(), source: source.into() })?;
        if size as u64 > ARCHIVE_BYTES_MAX {
            return Err(DriverError::Invalid(format!("the archive is larger than {ARCHIVE_BYTES_MAX} bytes")));
        }
        let images = archive::list_images(&bytes).map_err(|error| DriverError::Invalid(error.to_string()))?;
        let mut engine = self.lock();
        let mut loaded = Vec::new();
        for image in images {
            for tag in &image.tags {
                engine.images.insert(tag.clone(), image.clone());
                engine.removed.remove(tag);
                loaded.push(tag.clone());
            }
        }
        Ok(loaded)
    }

    async fn images(&self) -> Result<Vec<ImageInfo>, DriverError> {
        let engine = self.lock();
        let mut images: BTreeMap<String, ImageInfo> = BTreeMap::new();
        for (tag, image) in &engine.images {
            let entry =
                images.entry(image.id.clone()).or_insert_with(|| ImageInfo { tags: Vec::new(), ..image.clone() });
            entry.tags.push(tag.clone());
        }
        Ok(images.into_values().collect())
    }

    async fn remove_image(&self, image: &str) -> Result<(), DriverError> {
        let mut engine = self.lock();
        let before = engine.images.len();
        engine.images.retain(|tag, info| tag != image && info.id != image);
        if engine.images.len() == before {
            return Err(DriverError::NoSuchImage { image: image.to_owned(), node: self.hostname.clone() });
        }
        engine.removed.insert(image.to_owned());
        Ok(())
    }
}

impl Container {
    fn runs(&self) -> bool {
        self.running.is_some() && self.exit.borrow().is_none()
    }

    fn signal(&self, signal: Signal) {
        if let Some(signals) = &self.signals {
            // Full means that others are pending; closed that it has ended.
            let _ = signals.try_send(signal);
        }
    }

    fn as_found(&self, running: &Running) -> Running {
        Running { health: self.health.borrow().as_ref().map(|report| report.status), ..running.clone() }
    }

    fn start(&mut self, running: Running, script: &str) -> Running {
        let (signals, received) = mpsc::channel(SIGNALS_MAX);
        let mut env = vec!["PATH=/bin".to_owned()];
        env.extend(self.plan.env.iter().cloned());
        let process = Process::new(script, env, received);
        self.running = Some(running.clone());
        self.signals = Some(signals);
        self.exit.send_replace(None);
        let (exit, output) = (self.exit.clone(), Arc::clone(&self.output));
        tokio::spawn(async move {
            let code = process.run(|stream, text| output::keep(&output, stream, text)).await;
            exit.send_replace(Some(Exit { code, error: String::new() }));
        });
        if let Some(policy) = Policy::resolve(self.plan.healthcheck.as_ref(), None, &[]) {
            checks::begin(self, policy);
        }
        self.running.as_ref().map(|running| self.as_found(running)).unwrap_or(running)
    }
}

fn wall_now() -> WallTime {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    WallTime(u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX))
}

fn failed(what: &str, why: &str) -> DriverError {
    DriverError::Failed { what: what.to_owned(), source: why.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::conformance;

    #[tokio::test]
    async fn the_fake_driver_conforms() {
        let node = conformance::test_node();
        let capacity = Capacity { nano_cpus: 2_000_000_000, memory_bytes: 1 << 30 };
        let driver = FakeDriver::new(&node.hostname, capacity);
        conformance::run(&driver, &node, &conformance::TestImage::build().unwrap()).await.unwrap();
    }
}
