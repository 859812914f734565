//! Which driver a node uses. The choice of `auto` is kept, so that a restart never strands containers with another driver.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use shoal_protocol::{ClusterId, NodeId};

use super::docker::{DockerConfig, DockerDriver};
use super::embedded::{EmbeddedConfig, EmbeddedDriver};
use super::fake::FakeDriver;
use super::{Capacity, Driver, DriverError};
use crate::config::{Config, DriverChoice};

/// Name of the setting that keeps what `auto` chose.
pub const SETTING: &str = "driver";

/// How long an engine may take to show that it is there.
const ENGINE_TIMEOUT: Duration = Duration::from_secs(5);

/// What the fake driver pretends to have.
const FAKE_CAPACITY: Capacity = Capacity { nano_cpus: 2_000_000_000, memory_bytes: 4 << 30 };

/// Returns whether a Docker Engine runs this node's containers, as far as that is decided before a cluster is joined.
pub fn is_docker(config: &Config, settings: &BTreeMap<String, String>) -> bool {
    let kept = settings.get(SETTING).map(String::as_str);
    matches!((config.driver, kept), (DriverChoice::Docker, _) | (DriverChoice::Auto, Some("docker")))
}

/// A driver, and what is to be remembered of how it was chosen.
pub struct Opened {
    /// The driver.
    pub driver: Arc<dyn Driver>,
    /// What `auto` chose now, to be kept under [`SETTING`].
    pub chosen: Option<&'static str>,
}

/// Opens the driver that the configuration names, or that `auto` chose before or chooses now.
pub async fn open(
    config: &Config,
    hostname: &str,
    settings: &BTreeMap<String, String>,
    node: NodeId,
    cluster: ClusterId,
) -> Result<Opened, DriverError> {
    let docker = || async {
        let config = DockerConfig {
            host: Some(config.docker_host.clone()),
            node,
            cluster: Some(cluster),
            hostname: hostname.to_owned(),
        };
        let driver = DockerDriver::connect(config).await?;
        Ok::<Arc<dyn Driver>, DriverError>(Arc::new(driver))
    };
    let embedded = || async {
        let failed = |source| DriverError::Failed { what: "failed to find this program's file".to_owned(), source };
        let config = EmbeddedConfig {
            data_dir: config.data_dir.clone(),
            node,
            cluster,
            hostname: hostname.to_owned(),
            container_pool: config.container_pool,
            insecure_registries: config.insecure_registries.clone(),
            supervisor_exe: std::env::current_exe().map_err(|error| failed(Box::new(error)))?,
        };
        Ok::<Arc<dyn Driver>, DriverError>(Arc::new(EmbeddedDriver::open(config).await?))
    };
    let kept = settings.get(SETTING).map(String::as_str);
    let (driver, chosen) = match (config.driver, kept) {
        (DriverChoice::Docker, _) | (DriverChoice::Auto, Some("docker")) => (docker().await?, None),
        (DriverChoice::Embedded, _) | (DriverChoice::Auto, Some("embedded")) => (embedded().await?, None),
        (DriverChoice::Fake, _) => {
            let fake: Arc<dyn Driver> = Arc::new(FakeDriver::new(hostname, FAKE_CAPACITY));
            (fake, None)
        }
        (DriverChoice::Auto, _) => match tokio::time::timeout(ENGINE_TIMEOUT, docker()).await {
            Ok(Ok(driver)) => (driver, Some("docker")),
            Ok(Err(error)) => {
                tracing::info!(%error, "no Docker Engine answers: containers are run without one");
                (embedded().await?, Some("embedded"))
            }
            Err(_) => {
                tracing::info!("the Docker Engine does not answer: containers are run without one");
                (embedded().await?, Some("embedded"))
            }
        },
    };
    tracing::info!(engine = driver.engine(), "containers are run by");
    Ok(Opened { driver, chosen })
}
