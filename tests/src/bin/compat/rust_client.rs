//! What bollard, a client in Rust, does with a cluster.

use std::collections::HashMap;
use std::future::Future;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bollard::Docker;
use bollard::errors::Error;
use bollard::query_parameters::{
    EventsOptionsBuilder, InspectNetworkOptions, InspectServiceOptionsBuilder, ListConfigsOptionsBuilder,
    ListNetworksOptionsBuilder, ListNodesOptionsBuilder, ListSecretsOptionsBuilder, ListServicesOptionsBuilder,
    ListTasksOptionsBuilder, LogsOptionsBuilder, UpdateNodeOptionsBuilder, UpdateServiceOptionsBuilder,
};
use futures::TryStreamExt;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use shoal_tests::lab::IMAGE;

/// Seconds that a request may take.
const REQUEST_SECS: u64 = 30;

/// How long a condition may take, and between two looks at it.
const WAIT: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Steps by name, with what came of each as JSON.
pub type Steps = Vec<(String, String)>;

/// Takes all steps through the socket of a manager. `began` is the present in seconds.
pub fn run(socket: &Path, began: u64) -> Result<Steps> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let path = socket.to_str().context("the socket's path is not UTF-8")?;
        let docker = Docker::connect_with_unix(path, REQUEST_SECS, bollard::API_DEFAULT_VERSION)?;
        let docker = docker.negotiate_version().await?;
        let mut client = Client { docker, steps: Vec::new() };
        client.cluster().await?;
        let secret = client.objects().await?;
        client.service(&secret, began).await?;
        Ok(client.steps)
    })
}

struct Client {
    docker: Docker,
    steps: Steps,
}

impl Client {
    /// Takes a step.
    async fn step<T: Serialize>(&mut self, name: &str, action: impl Future<Output = Result<T, Error>>) -> Result<()> {
        let value = match action.await {
            Ok(value) => serde_json::to_value(value)?,
            Err(Error::DockerResponseServerError { status_code, message }) => {
                json!({"status": status_code, "message": message})
            }
            Err(error) => return Err(error).with_context(|| name.to_owned()),
        };
        self.steps.push((name.to_owned(), json!([value]).to_string()));
        Ok(())
    }

    async fn cluster(&mut self) -> Result<()> {
        let docker = self.docker.clone();
        self.step("ping", docker.ping()).await?;
        self.step("swarm", async { Ok(docker.inspect_swarm().await?.spec.and_then(|spec| spec.name)) }).await?;
        self.step("init", docker.init_swarm(model(json!({"ListenAddr": "0.0.0.0:2377"}))?)).await?;
        let workers = ListNodesOptionsBuilder::new().filters(&filters("role", "worker")).build();
        self.step("nodes", async { Ok(docker.list_nodes(Some(workers.clone())).await?.len()) }).await?;
        let worker = docker.list_nodes(Some(workers)).await?.pop().context("no worker")?;
        let id = worker.id.context("a node without an id")?;
        let version = worker.version.and_then(|version| version.index).context("a node without a version")?;
        let options = UpdateNodeOptionsBuilder::new().version(i64::try_from(version)?).build();
        let spec: bollard::models::NodeSpec =
            model(json!({"Role": "worker", "Availability": "active", "Labels": {"by": "rust"}}))?;
        self.step("node update", docker.update_node(&id, spec.clone(), options.clone())).await?;
        let other = bollard::models::NodeSpec { labels: None, ..spec };
        self.step("node update, stale", docker.update_node(&id, other, options)).await?;
        self.step("node", async { Ok(docker.inspect_node(&id).await?.spec) }).await?;
        self.step("no node", docker.inspect_node("nosuch")).await
    }

    /// Makes a secret, a config and a network. Returns the secret's identifier.
    async fn objects(&mut self) -> Result<String> {
        let docker = self.docker.clone();
        let secret: bollard::models::SecretSpec =
            model(json!({"Name": "rsecret", "Labels": {"a": "b"}, "Data": "aGlkZGVu"}))?;
        let id = docker.create_secret(secret.clone()).await?.id;
        self.step("secret again", docker.create_secret(secret)).await?;
        self.step("secret", docker.inspect_secret(&id)).await?;
        let named = ListSecretsOptionsBuilder::new().filters(&filters("name", "rsecret")).build();
        self.step("secrets", docker.list_secrets(Some(named))).await?;
        docker.create_config(model(json!({"Name": "rconfig", "Labels": {}, "Data": "Y29uZj0xCg=="}))?).await?;
        self.step("config", docker.inspect_config("rconfig")).await?;
        let named = ListConfigsOptionsBuilder::new().filters(&filters("name", "rconfig")).build();
        self.step("configs", docker.list_configs(Some(named))).await?;
        self.step("no config", docker.inspect_config("nosuch")).await?;
        docker.create_network(model(json!({"Name": "rnet", "Driver": "overlay", "Labels": {"a": "b"}}))?).await?;
        self.step("network", docker.inspect_network("rnet", None::<InspectNetworkOptions>)).await?;
        let named = ListNetworksOptionsBuilder::new().filters(&filters("name", "rnet")).build();
        let names = async {
            let networks = docker.list_networks(Some(named)).await?;
            Ok(networks.into_iter().map(|network| network.name).collect::<Vec<_>>())
        };
        self.step("networks", names).await?;
        Ok(id)
    }

    async fn service(&mut self, secret: &str, began: u64) -> Result<()> {
        let docker = self.docker.clone();
        let spec = json!({"Name": "rust", "Labels": {"l": "1"}, "Mode": {"Replicated": {"Replicas": 2}},
            "TaskTemplate": {
                "ContainerSpec": {"Image": IMAGE, "Env": ["A=1"], "Secrets": [{"SecretID": secret, "SecretName": "rsecret",
                    "File": {"Name": "key", "UID": "0", "GID": "0", "Mode": 0o444}}]},
                "RestartPolicy": {"Condition": "any", "Delay": 100_000_000}},
            "UpdateConfig": {"Parallelism": 0, "Monitor": 1_000_000_000, "FailureAction": "pause", "Order": "stop-first"},
            "EndpointSpec": {"Mode": "vip", "Ports": [{"TargetPort": 80, "PublishedPort": 8091, "Protocol": "tcp"}]}});
        let id = docker.create_service(model(spec.clone())?, None).await?.id.context("a service without an id")?;
        let mut other = spec.clone();
        other["EndpointSpec"] = json!({});
        self.step("service again", docker.create_service(model(other)?, None)).await?;
        wait("two tasks run", async || Ok(running(&docker).await? == 2)).await?;
        self.step("service", docker.inspect_service("rust", None)).await?;
        let defaults = InspectServiceOptionsBuilder::new().insert_defaults(true).build();
        self.step("service with defaults", docker.inspect_service("rust", Some(defaults))).await?;
        let named = ListServicesOptionsBuilder::new().filters(&filters("name", "rust")).status(true).build();
        self.step("services", async { Ok(docker.list_services(Some(named)).await?[0].service_status.clone()) }).await?;
        let tasks = async {
            let tasks = tasks(&docker).await?.into_iter();
            let mut told: Vec<_> =
                tasks.map(|task| json!([task.slot, task.status.map(|status| status.state)])).collect();
            told.sort_by_key(Value::to_string);
            Ok(told)
        };
        self.step("tasks", tasks).await?;
        let options = LogsOptionsBuilder::new().stdout(true).build();
        let logs = docker.service_logs("rust", Some(options)).map_ok(|line| line.to_string().trim().to_owned());
        self.step("logs", logs.try_collect::<Vec<_>>()).await?;
        self.update(&id, spec).await?;
        self.step("secret in use", docker.delete_secret(secret)).await?;
        self.step("remove", docker.delete_service("rust")).await?;
        self.step("no service", docker.inspect_service("rust", None)).await?;
        wait("no task is left", async || Ok(tasks_of(&docker, &id).await?.is_empty())).await?;
        self.step("secret gone", docker.delete_secret(secret)).await?;
        self.step("config gone", docker.delete_config("rconfig")).await?;
        self.step("network gone", docker.remove_network("rnet")).await?;
        let until = std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH)?.as_secs() + 1;
        let (since, until) = (began.to_string(), until.to_string());
        let secrets = filters("type", "secret");
        let options = EventsOptionsBuilder::new().since(&since).until(&until).filters(&secrets).build();
        let told = docker.events(Some(options)).map_ok(|event| json!([event.action, event.scope]));
        self.step("events", told.try_collect::<Vec<_>>()).await
    }

    async fn update(&mut self, id: &str, mut spec: Value) -> Result<()> {
        let docker = self.docker.clone();
        let read = docker.inspect_service(id, None).await?;
        let version = read.version.and_then(|version| version.index).context("a service without a version")?;
        let options = UpdateServiceOptionsBuilder::new().version(i32::try_from(version)?).build();
        spec["TaskTemplate"]["ContainerSpec"]["Env"] = json!(["A=2"]);
        self.step("update", docker.update_service(id, model(spec.clone())?, options.clone(), None)).await?;
        spec["TaskTemplate"]["ContainerSpec"]["Env"] = json!(["A=3"]);
        self.step("update, stale", docker.update_service(id, model(spec)?, options, None)).await?;
        wait("the update is over", async || {
            let read = docker.inspect_service(id, None).await?;
            let state = read.update_status.and_then(|status| status.state);
            Ok(state == Some(bollard::models::ServiceUpdateStatusStateEnum::COMPLETED))
        })
        .await?;
        let env = async {
            let read = docker.inspect_service(id, None).await?;
            Ok(read.spec.and_then(|spec| spec.task_template?.container_spec?.env))
        };
        self.step("updated", env).await
    }
}

/// Reads one of the client's models, as it would read an answer.
fn model<T: DeserializeOwned>(value: Value) -> Result<T> {
    serde_json::from_value(value).context("the client knows no such model")
}

fn filters(key: &'static str, value: &'static str) -> HashMap<&'static str, Vec<&'static str>> {
    HashMap::from([(key, vec![value])])
}

async fn tasks(docker: &Docker) -> Result<Vec<bollard::models::Task>, Error> {
    let wanted = HashMap::from([("service", vec!["rust"]), ("desired-state", vec!["running"])]);
    docker.list_tasks(Some(ListTasksOptionsBuilder::new().filters(&wanted).build())).await
}

async fn tasks_of(docker: &Docker, service: &str) -> Result<Vec<bollard::models::Task>, Error> {
    let all = docker.list_tasks(None).await?;
    Ok(all.into_iter().filter(|task| task.service_id.as_deref() == Some(service)).collect())
}

async fn running(docker: &Docker) -> Result<usize, Error> {
    let runs = |task: &bollard::models::Task| {
        task.status.as_ref().is_some_and(|status| status.state == Some(bollard::models::TaskState::RUNNING))
    };
    Ok(tasks(docker).await?.iter().filter(|task| runs(task)).count())
}

async fn wait(what: &str, condition: impl AsyncFn() -> Result<bool, Error>) -> Result<()> {
    let holds = async {
        while !condition().await? {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok::<(), Error>(())
    };
    match tokio::time::timeout(WAIT, holds).await {
        Ok(held) => held.with_context(|| what.to_owned()),
        Err(_) => bail!("{what}: not so after {} s", WAIT.as_secs()),
    }
}
