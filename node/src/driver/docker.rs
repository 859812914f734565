//! Runs containers with Docker Engine.
//!
//! Containers are found by their labels, so several nodes may share one engine and a restarted daemon finds its own. Images
//! that are not there are pulled by the engine.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bollard::Docker;
use bollard::errors::Error;
use bollard::models::{ContainerInspectResponse, ContainerSummary, ContainerSummaryStateEnum};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, ListContainersOptionsBuilder, RemoveContainerOptionsBuilder,
};
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use shoal_control::task::health::HealthStatus;
use shoal_control::task::plan::{LABEL_CLUSTER, LABEL_NODE, LABEL_SERVICE, LABEL_SLOT, LABEL_TASK};
use shoal_control::task::{ContainerPlan, Found, FoundState, Running};
use shoal_protocol::record::SlotName;
use shoal_protocol::registry_auth::RegistryAuth;
use shoal_protocol::{ClusterId, NodeId, TaskId};
use tokio::io::AsyncRead;

use super::{Capacity, Driver, DriverError, Exit, HealthReport, ImageInfo, LogLine, LogQuery};

mod create;
mod health;
mod image;
mod output;
mod time;

/// Where the engine listens unless told otherwise.
pub const HOST_DEFAULT: &str = "unix:///var/run/docker.sock";

/// What a query may take.
const QUERY_MAX: Duration = Duration::from_secs(60);

/// What waiting, stopping and loading may take: they end by themselves, and their callers have deadlines of their own.
const LONG_CALL_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// Containers looked at in parallel when all are listed.
const INSPECTED_AT_ONCE: usize = 8;

/// How long a removal that somebody else began is waited for, and how often it is looked at.
const REMOVAL_MAX: Duration = Duration::from_secs(30);
const REMOVAL_POLL: Duration = Duration::from_millis(100);

/// Exit code of a process that was killed, which is also that of one killed for want of memory.
const KILLED_CODE: i32 = 137;

/// Which engine, and for whom.
#[derive(Debug, Clone)]
pub struct DockerConfig {
    /// `unix://PATH`, `tcp://HOST:PORT` or `http://HOST:PORT`; `None` means [`HOST_DEFAULT`].
    pub host: Option<String>,
    /// The node whose containers these are.
    pub node: NodeId,
    /// Its cluster; `None` means any.
    pub cluster: Option<ClusterId>,
    /// Host name of the node, for messages.
    pub hostname: String,
}

/// A client of Docker Engine.
pub struct DockerDriver {
    config: DockerConfig,
    engine: String,
    docker: Docker,
    /// The same, for calls that take as long as they take.
    patient: Docker,
    /// Containers of tasks that were met; what is missing is looked up by label.
    containers: Mutex<BTreeMap<TaskId, String>>,
}

impl DockerDriver {
    /// Connects to an engine and agrees on a version of its API.
    pub async fn connect(config: DockerConfig) -> Result<Self, DriverError> {
        let host = config.host.as_deref().unwrap_or(HOST_DEFAULT);
        let unreachable = |error| failed(&format!("failed to reach Docker Engine at {host}"), error);
        let docker = Docker::connect_with_host(host).map_err(unreachable)?.with_timeout(QUERY_MAX);
        let docker = docker.negotiate_version().await.map_err(unreachable)?;
        let version = docker.version().await.map_err(unreachable)?.version.unwrap_or_default();
        let version = version.split('+').next().unwrap_or_default(); // without Debian's suffix
        let patient = docker.clone().with_timeout(LONG_CALL_MAX);
        let engine = format!("docker {version}");
        Ok(Self { config, engine, docker, patient, containers: Mutex::default() })
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<TaskId, String>> {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn filters(&self, task: Option<TaskId>) -> HashMap<&'static str, Vec<String>> {
        let mut labels = vec![format!("{LABEL_NODE}={}", self.config.node)];
        labels.extend(self.config.cluster.map(|cluster| format!("{LABEL_CLUSTER}={cluster}")));
        labels.extend(task.map(|task| format!("{LABEL_TASK}={task}")));
        HashMap::from([("label", labels)])
    }

    async fn summaries(&self, task: Option<TaskId>) -> Result<Vec<ContainerSummary>, DriverError> {
        let options = ListContainersOptionsBuilder::new().all(true).filters(&self.filters(task)).build();
        self.docker.list_containers(Some(options)).await.map_err(|error| failed("list containers", error))
    }

    async fn find(&self, task: TaskId) -> Result<Option<String>, DriverError> {
        let known = self.known().get(&task).cloned();
        if known.is_some() {
            return Ok(known);
        }
        let id = self.summaries(Some(task)).await?.into_iter().find_map(|summary| summary.id);
        if let Some(id) = &id {
            self.known().insert(task, id.clone());
        }
        Ok(id)
    }

    async fn container(&self, task: TaskId) -> Result<String, DriverError> {
        self.find(task).await?.ok_or(DriverError::NoSuchTask(task))
    }

    /// Translates the failure of a call on a task's container.
    fn task_error(&self, task: TaskId, what: &str, error: Error) -> DriverError {
        if status(&error) == Some(404) {
            self.known().remove(&task);
            return DriverError::NoSuchTask(task);
        }
        failed(what, error)
    }

    async fn inspect(&self, task: TaskId, id: &str) -> Result<ContainerInspectResponse, DriverError> {
        let inspected = self.docker.inspect_container(id, None).await;
        inspected.map_err(|error| self.task_error(task, "inspect container", error))
    }

    async fn create(&self, plan: &ContainerPlan) -> Result<String, Error> {
        let options = CreateContainerOptionsBuilder::new().name(&plan.name).build();
        Ok(self.docker.create_container(Some(options), create::body(plan)).await?.id)
    }

    async fn found(&self, summary: ContainerSummary) -> Result<Option<Found>, DriverError> {
        let labels = summary.labels.unwrap_or_default();
        let label = |key: &str| labels.get(key).map(String::as_str).unwrap_or_default();
        let ids = (label(LABEL_TASK).parse(), label(LABEL_SERVICE).parse(), slot(label(LABEL_SLOT)), summary.id);
        let (Ok(task), Ok(service), Some(slot), Some(id)) = ids else {
            tracing::warn!(names = ?summary.names, "a container of this node has labels that cannot be read");
            return Ok(None);
        };
        self.known().insert(task, id.clone());
        let is_created = matches!(summary.state, Some(ContainerSummaryStateEnum::CREATED));
        let state = if is_created {
            FoundState::Created
        } else {
            let inspected = match self.inspect(task, &id).await {
                Ok(inspected) => inspected,
                Err(DriverError::NoSuchTask(_)) => return Ok(None), // removed meanwhile
                Err(error) => return Err(error),
            };
            let state = inspected.state.as_ref();
            if state.and_then(|state| state.running) == Some(true) {
                FoundState::Running(running(&id, &inspected))
            } else {
                FoundState::Exited { code: exit_code(state.and_then(|state| state.exit_code).unwrap_or_default()) }
            }
        };
        Ok(Some(Found { task, service, slot, state }))
    }

    /// Tells what the exit code does not.
    async fn describe_exit(&self, task: TaskId, id: &str, code: i32, error: String) -> Exit {
        let mut exit = Exit { code, error };
        if code == KILLED_CODE && exit.error.is_empty() {
            let state = self.inspect(task, id).await.ok().and_then(|inspected| inspected.state);
            if state.and_then(|state| state.oom_killed) == Some(true) {
                exit.error = "it ran out of memory".to_owned();
            }
        }
        exit
    }
}

#[async_trait]
impl Driver for DockerDriver {
    fn engine(&self) -> String {
        self.engine.clone()
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
        let info = self.docker.info().await.map_err(|error| failed("ask the engine what it has", error))?;
        let positive = |value: Option<i64>| value.and_then(|value| u64::try_from(value).ok()).unwrap_or_default();
        Ok(Capacity { nano_cpus: positive(info.ncpu) * 1_000_000_000, memory_bytes: positive(info.mem_total) })
    }

    async fn has_image(&self, image: &str) -> Result<bool, DriverError> {
        image::is_there(&self.docker, image).await
    }

    async fn pull(&self, image: &str, auth: Option<&RegistryAuth>) -> Result<(), DriverError> {
        image::pull(&self.patient, image, auth, &self.config.hostname).await
    }

    async fn prepare(&self, plan: &ContainerPlan) -> Result<String, DriverError> {
        if let Some(id) = self.find(plan.task).await? {
            return Ok(id);
        }
        self.check_health_plan(plan)?;
        let id = match self.create(plan).await {
            Ok(id) => id,
            Err(error) => match status(&error) {
                Some(404) if !self.has_image(&plan.image).await? => {
                    let (image, node) = (plan.image.clone(), self.config.hostname.clone());
                    return Err(DriverError::NoSuchImage { image, node });
                }
                Some(400) => return Err(refusal(message(error))),
                // An earlier call was given up, and the engine finished it.
                Some(409) => match self.find(plan.task).await? {
                    Some(id) => id,
                    None => return Err(failed("create container", error)),
                },
                Some(_) | None => return Err(failed("create container", error)),
            },
        };
        self.known().insert(plan.task, id.clone());
        Ok(id)
    }

    async fn start(&self, task: TaskId) -> Result<Running, DriverError> {
        let id = self.container(task).await?;
        if let Err(error) = self.docker.start_container(&id, None).await {
            return Err(match status(&error) {
                Some(400) => DriverError::Invalid(message(error)),
                Some(_) if is_port_conflict(&error) => DriverError::Refused(message(error)),
                Some(_) | None => self.task_error(task, "start container", error),
            });
        }
        Ok(running(&id, &self.inspect(task, &id).await?))
    }

    async fn wait(&self, task: TaskId) -> Result<Exit, DriverError> {
        let id = self.container(task).await?;
        let mut ends = Box::pin(self.patient.wait_container(&id, None));
        match ends.next().await {
            Some(Ok(end)) => {
                let error = end.error.and_then(|error| error.message).unwrap_or_default();
                Ok(self.describe_exit(task, &id, exit_code(end.status_code), error).await)
            }
            Some(Err(Error::DockerContainerWaitError { error, code })) => {
                Ok(self.describe_exit(task, &id, exit_code(code), error).await)
            }
            Some(Err(error)) => Err(self.task_error(task, "wait for container", error)),
            None => Err(DriverError::Failed {
                what: "wait for container".to_owned(),
                source: "the engine closed the connection".into(),
            }),
        }
    }

    async fn health(&self, task: TaskId, known: Option<HealthStatus>) -> Result<Option<HealthReport>, DriverError> {
        self.next_health(task, known).await
    }

    async fn stop(&self, task: TaskId) -> Result<(), DriverError> {
        let id = self.container(task).await?;
        let stopped = self.patient.stop_container(&id, None).await; // signal and grace are the container's own
        stopped.map_err(|error| self.task_error(task, "stop container", error))
    }

    async fn remove(&self, task: TaskId) -> Result<(), DriverError> {
        let Some(id) = self.find(task).await? else { return Ok(()) };
        let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
        let removed = match self.docker.remove_container(&id, Some(options)).await {
            Ok(()) => Ok(()),
            Err(error) => match status(&error) {
                Some(404) => Ok(()),
                Some(409) => self.removal(task, &id).await, // already in progress
                Some(_) | None => Err(failed("remove container", error)),
            },
        };
        if removed.is_ok() {
            self.known().remove(&task);
        }
        removed
    }

    async fn list(&self) -> Result<Vec<Found>, DriverError> {
        let summaries = self.summaries(None).await?;
        let found: Vec<Option<Found>> = stream::iter(summaries)
            .map(|summary| self.found(summary))
            .buffer_unordered(INSPECTED_AT_ONCE)
            .try_collect()
            .await?;
        Ok(found.into_iter().flatten().collect())
    }

    async fn logs(
        &self,
        task: TaskId,
        query: LogQuery,
    ) -> Result<BoxStream<'static, Result<LogLine, DriverError>>, DriverError> {
        let id = self.container(task).await?;
        self.inspect(task, &id).await?; // a missing container is an error of the call, not of the stream
        Ok(output::lines(self.docker.clone(), id, query))
    }

    async fn load_image(&self, archive: &mut (dyn AsyncRead + Send + Unpin)) -> Result<Vec<String>, DriverError> {
        image::load(&self.patient, archive).await
    }

    async fn images(&self) -> Result<Vec<ImageInfo>, DriverError> {
        image::list(&self.docker).await
    }

    async fn remove_image(&self, image: &str) -> Result<(), DriverError> {
        image::remove(&self.docker, image, &self.config.hostname).await
    }
}

impl DockerDriver {
    /// Waits for the end of a removal.
    async fn removal(&self, task: TaskId, id: &str) -> Result<(), DriverError> {
        let gone = async {
            loop {
                match self.inspect(task, id).await {
                    Ok(_) => tokio::time::sleep(REMOVAL_POLL).await,
                    Err(DriverError::NoSuchTask(_)) => return Ok(()),
                    Err(error) => return Err(error),
                }
            }
        };
        tokio::time::timeout(REMOVAL_MAX, gone).await.unwrap_or_else(|elapsed| {
            Err(DriverError::Failed { what: "remove container".to_owned(), source: elapsed.into() })
        })
    }
}

fn running(id: &str, inspected: &ContainerInspectResponse) -> Running {
    let state = inspected.state.as_ref();
    Running {
        container_id: id.to_owned(),
        pid: state.and_then(|state| state.pid).and_then(|pid| u32::try_from(pid).ok()).unwrap_or_default(),
        address: address(inspected),
        started: state.and_then(|state| state.started_at.as_deref()).and_then(time::parse).unwrap_or_default(),
        health: health::report(inspected).map(|report| report.status),
    }
}

/// Returns where a container is reached: its lowest IPv4 address, without one its lowest IPv6 address that is not of its link
/// alone. The engine gives empty text for what there is not.
fn address(inspected: &ContainerInspectResponse) -> Option<IpAddr> {
    let networks = inspected.network_settings.as_ref().and_then(|settings| settings.networks.as_ref());
    let texts =
        networks.into_iter().flatten().flat_map(|(_, network)| [&network.ip_address, &network.global_ipv6_address]);
    texts.flatten().filter_map(|text| text.parse().ok()).min()
}

fn slot(text: &str) -> Option<SlotName> {
    text.parse().map(SlotName::Replica).or_else(|_| text.parse().map(SlotName::Node)).ok()
}

fn exit_code(code: i64) -> i32 {
    i32::try_from(code).unwrap_or(KILLED_CODE)
}

fn status(error: &Error) -> Option<u16> {
    match error {
        Error::DockerResponseServerError { status_code, .. } => Some(*status_code),
        _ => None, // the enum is not ours: it has no other variant with a status
    }
}

fn message(error: Error) -> String {
    match error {
        Error::DockerResponseServerError { message, .. } => message,
        other => other.to_string(),
    }
}

/// What the engine finds wrong with a container's settings is wrong anywhere, but for paths that other nodes may have.
fn refusal(message: String) -> DriverError {
    if message.contains("bind source path does not exist") {
        DriverError::Refused(message)
    } else {
        DriverError::Invalid(message)
    }
}

fn is_port_conflict(error: &Error) -> bool {
    let text = error.to_string();
    text.contains("port is already allocated") || text.contains("address already in use")
}

fn failed(what: &str, error: Error) -> DriverError {
    DriverError::Failed { what: what.to_owned(), source: Box::new(error) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_of_a_container_is_of_either_family() {
        for (name, networks, want) in [
            ("IPv4", r#"{"bridge": {"IPAddress": "172.17.0.2", "GlobalIPv6Address": ""}}"#, Some("172.17.0.2")),
            ("both", r#"{"bridge": {"IPAddress": "172.17.0.2", "GlobalIPv6Address": "fd00::2"}}"#, Some("172.17.0.2")),
            ("IPv6", r#"{"bridge": {"IPAddress": "", "GlobalIPv6Address": "fd00::2"}}"#, Some("fd00::2")),
            (
                "several networks",
                r#"{"a": {"GlobalIPv6Address": "fd00::2"}, "b": {"IPAddress": "10.0.0.3"}, "c": {"IPAddress": "10.0.0.2"}}"#,
                Some("10.0.0.2"),
            ),
            ("none", r#"{"none": {"IPAddress": "", "GlobalIPv6Address": ""}}"#, None),
            ("no network", "{}", None),
        ] {
            let text = format!(r#"{{"NetworkSettings": {{"Networks": {networks}}}}}"#);
            let inspected = serde_json::from_str(&text).unwrap();
            assert_eq!(address(&inspected).map(|address| address.to_string()).as_deref(), want, "{name}");
        }
    }
}
