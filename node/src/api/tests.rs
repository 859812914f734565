//! The API over a real socket, in front of a fake node that has a real document.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use async_trait::async_trait;
use axum::body::Body;
use axum::extract::Request;
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::StreamExt;
use futures::stream;
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use shoal_control::core::registry;
use shoal_control::renewal::Validity;
use shoal_control::store::Store;
use shoal_protocol::lease::{LeaseId, VoterSet};
use shoal_protocol::object::{self, Sealed};
use shoal_protocol::record::SlotName;
use shoal_protocol::settings::ClusterSettings;
use shoal_protocol::spec::{Availability, PortConfig};
use shoal_protocol::token::Role;
use shoal_protocol::value::{
    self, ClusterObject, NodeObject, NodeStatus, Progress, ServiceObject, Slot, SlotTask, TaskReport, UpdateState,
};
use shoal_protocol::write::{Write, WriteError, Written};
use shoal_protocol::{ClusterId, Key, Kind, NodeId, ObjectId, ServiceId, Stamp, TaskId, TaskState, WallTime};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::UnixStream;
use zeroize::Zeroizing;

use super::frames;
use super::listen::Socket;
use super::read::Source;
use super::snapshot::NodeState;
use super::status::{LeaseFacts, NodeFacts, StatusFacts};
use super::{
    ApiError, Backend, Engine, Hub, JoinTokens, LogLines, Metrics, Rotation, Snapshot, StatusReport, Want, router,
};
use crate::driver::inventory::Inventory;
use crate::driver::{DriverError, ImageInfo, LogLine, LogQuery, LogStream};
use crate::identity::{Purpose, UnlockKey};

mod containers;
mod engine;
mod events;
mod logs;
mod networks;
mod objects;
mod page;
mod reads;
mod swarm;
mod writes;

const ME: NodeId = NodeId(1);
const OTHER: NodeId = NodeId(2);
const WEB: ServiceId = ServiceId(10);
const NOW: WallTime = WallTime(1_795_398_720_000_000_000);
const SPEC: &str = r#"{"Name":"web","Labels":{"tier":"front"},"TaskTemplate":{"ContainerSpec":{"Image":"lab/web:1","Init":false},"Unknown":7},"Mode":{"Replicated":{"Replicas":3}},"EndpointSpec":{"Mode":"vip","Ports":[{"Protocol":"tcp","TargetPort":80,"PublishedPort":8080,"PublishMode":"ingress"}]}}"#;

/// A node whose document is filled by hand.
struct Fake {
    store: Mutex<Store>,
    role: Role,
    in_cluster: bool,
    other_is: NodeState,
    writes: Mutex<Vec<Write>>,
    /// What opens this node's keys while they are locked.
    lock: Option<UnlockKey>,
    /// Clusters that were made.
    made: Mutex<Vec<(ClusterSettings, Availability)>>,
    rotations: Mutex<Vec<Rotation>>,
    refusal: Mutex<Option<WriteError>>,
    loaded: Mutex<Vec<Vec<u8>>>,
    /// Whose output was asked for.
    read: Mutex<Vec<TaskId>>,
    /// What the other node answers when it is asked for output, and after that always the same.
    answers: Mutex<VecDeque<Result<Body, ApiError>>>,
    /// What it was asked.
    asked: Mutex<Vec<String>>,
    engine: Option<Arc<Engine>>,
    inventory: Option<Arc<dyn Inventory>>,
    events: Arc<Hub>,
}

fn put(store: &mut Store, key: Key, value: &value::Value) {
    let stamp = Stamp { lineage: 0, epoch: 1, seq: store.stamp(&key).map_or(1, |stamp| stamp.seq + 1) };
    let author = key.status_of().unwrap_or(ME);
    store.put(key, stamp, author, Some(value)).unwrap();
}

fn node(store: &mut Store, id: NodeId, hostname: &str, role: &str) {
    let spec = format!(r#"{{"Labels":{{"zone":"a"}},"Role":"{role}","Availability":"active"}}"#);
    let object = NodeObject { index: 4, created: WallTime(1), updated: WallTime(2), spec };
    put(store, Key::Node(id), &value::Value::Node(object));
    put(store, Key::NodeStatus(id), &value::Value::NodeStatus(status_of(hostname)));
}

fn status_of(hostname: &str) -> NodeStatus {
    NodeStatus {
        hostname: hostname.to_owned(),
        address: Some("10.77.0.1:2377".parse().unwrap()),
        os: "linux".to_owned(),
        architecture: "x86_64".to_owned(),
        nano_cpus: 2_000_000_000,
        memory_bytes: 25_276_502_016,
        engine: "embedded 0.1.0".to_owned(),
        version: "0.1.0".to_owned(),
        ..NodeStatus::default()
    }
}

fn service(store: &mut Store, id: ServiceId, spec: &str, index: u64) {
    let ports: Vec<PortConfig> =
        serde_json::from_value(serde_json::from_str::<Value>(spec).unwrap()["EndpointSpec"]["Ports"].clone())
            .unwrap_or_default();
    let object = ServiceObject {
        index,
        created: WallTime(1_795_398_702_500_000_000),
        updated: WallTime(1_795_398_702_500_000_000),
        spec: spec.to_owned(),
        previous_spec: (index > 1).then(|| spec.to_owned()),
        rolled_back: false,
        credentials: None,
        previous_credentials: None,
        ports,
    };
    put(store, Key::Service(id), &value::Value::Service(object));
}

fn slot(store: &mut Store, service: ServiceId, number: u32, node: Option<NodeId>, state: Option<TaskState>) {
    let id = TaskId(u128::from(number) + service.0 * 1_000_000);
    let task = SlotTask {
        id,
        node,
        desired: TaskState::Running,
        created: WallTime(1_795_398_703_000_000_000),
        index: 1,
        template: r#"{"ContainerSpec":{"Image":"lab/web:1","Init":false},"Unknown":7}"#.to_owned(),
        ports: Vec::new(),
        note: if node.is_none() { "no suitable node (1 node not ready)".to_owned() } else { String::new() },
        last_seen: None,
        generic: Default::default(),
    };
    let name = SlotName::Replica(number);
    put(store, Key::Slot(service, name), &value::Value::Slot(Slot { tasks: vec![task] }));
    if let (Some(node), Some(state)) = (node, state) {
        let report = TaskReport {
            service,
            slot: name,
            state,
            since: WallTime(1_795_398_704_000_000_000),
            message: "started".to_owned(),
            error: String::new(),
            container_id: "c".repeat(64),
            pid: 7,
            exit_code: None,
            address: None,
        };
        put(store, Key::TaskStatus(node, id), &value::Value::TaskReport(report));
    }
}

impl Fake {
    fn new() -> Self {
        let mut store = Store::new();
        let root = "-----BEGIN CERTIFICATE-----\n".to_owned();
        let first = ClusterObject::first(ClusterId(5), ME, root, vec![1], WallTime(1));
        let cluster = ClusterObject { index: 3, updated: WallTime(2), ..first };
        put(&mut store, Key::Cluster, &value::Value::Cluster(cluster));
        node(&mut store, ME, "n1", "manager");
        node(&mut store, OTHER, "n2", "worker");
        service(&mut store, WEB, SPEC, 1);
        slot(&mut store, WEB, 1, Some(ME), Some(TaskState::Running));
        slot(&mut store, WEB, 2, Some(OTHER), Some(TaskState::Running));
        slot(&mut store, WEB, 3, None, None);
        Self {
            store: Mutex::new(store),
            role: Role::Manager,
            in_cluster: true,
            other_is: NodeState::Ready,
            writes: Mutex::default(),
            rotations: Mutex::default(),
            lock: None,
            made: Mutex::default(),
            refusal: Mutex::default(),
            loaded: Mutex::default(),
            read: Mutex::default(),
            answers: Mutex::default(),
            asked: Mutex::default(),
            engine: None,
            inventory: None,
            events: Arc::default(),
        }
    }

    fn state(&self, node: NodeId) -> NodeState {
        if node == OTHER { self.other_is } else { NodeState::Ready }
    }
}

fn line(text: &str, stream: LogStream) -> Result<LogLine, DriverError> {
    Ok(LogLine { stream, time: WallTime(0), bytes: Bytes::copy_from_slice(text.as_bytes()) })
}

#[async_trait]
impl Backend for Fake {
    fn node(&self) -> NodeStatus {
        status_of("n1")
    }

    fn events(&self) -> Arc<Hub> {
        self.events.clone()
    }

    fn now(&self) -> WallTime {
        NOW
    }

    fn engine(&self) -> Option<Arc<Engine>> {
        self.engine.clone()
    }

    async fn snapshot(&self, want: Want) -> Result<Snapshot, ApiError> {
        if !self.in_cluster {
            return Err(ApiError::not_in_cluster());
        }
        let store = self.store.lock().unwrap();
        let state = |node| self.state(node);
        Ok(Source { store: &store, me: ME, role: self.role, leader: Some(ME), rotating: false, state: &state }
            .snapshot(&want))
    }

    async fn status(&self) -> Result<StatusReport, ApiError> {
        let nodes = [ME, OTHER].map(|id| NodeFacts { id, state: self.state(id), status: None, digest: Some(1) });
        Ok(StatusReport::new(&StatusFacts {
            cluster: Some(ClusterId(5)),
            me: ME,
            quorum: true,
            voters: VoterSet::default(),
            leases: vec![LeaseFacts { lease: LeaseId::REGISTRY, holder: Some((ME, 1)), expires_in: None }],
            nodes: nodes.to_vec(),
            quarantined: 0,
            troubles: Vec::new(),
            credential: Validity { made: WallTime(0), expires: WallTime(u64::MAX) },
            now: WallTime(0),
        }))
    }

    async fn write(&self, write: Write) -> Result<Written, WriteError> {
        if let Some(error) = self.refusal.lock().unwrap().clone() {
            return Err(error);
        }
        let mut store = self.store.lock().unwrap();
        let mut warnings = Vec::new();
        let index = match &write {
            Write::CreateService { id, spec, .. } => {
                service(&mut store, *id, spec, 1);
                1
            }
            Write::UpdateService { id, version, spec, .. } => {
                service(&mut store, *id, spec, version + 1);
                version + 1
            }
            Write::CreateObject { .. } | Write::UpdateObject { .. } | Write::RemoveObject { .. } => {
                let decision = registry::decide(&write, &store, |_| false, WallTime(7_000_000_000))?;
                for (key, value) in decision.changes {
                    let stamp = Stamp { lineage: 0, epoch: 1, seq: store.stamp(&key).map_or(1, |stamp| stamp.seq + 1) };
                    store.put(key, stamp, ME, value.as_ref()).unwrap();
                }
                warnings = decision.written.warnings;
                decision.written.index
            }
            _ => 0,
        };
        self.writes.lock().unwrap().push(write);
        Ok(Written { index, warnings })
    }

    async fn seal(&self, _: Purpose, data: Zeroizing<Vec<u8>>) -> Result<Sealed, WriteError> {
        // As hard to read as it takes to see that it was done.
        let hidden: Vec<u8> = data.iter().map(|byte| byte ^ 0x55).collect();
        Ok(Sealed { edition: 1, data: [&[0; object::SEAL_BYTES], hidden.as_slice()].concat() })
    }

    async fn holds(&self, id: ObjectId, data: Zeroizing<Vec<u8>>) -> Result<bool, WriteError> {
        let stored = self.store.lock().unwrap().object_with_data(Kind::Secret, id).unwrap().data;
        Ok(stored == self.seal(id.into(), data).await?.data)
    }

    fn listen(&self) -> SocketAddr {
        ([0, 0, 0, 0], 7000).into()
    }

    fn is_locked(&self) -> bool {
        self.lock.is_some()
    }

    async fn init(&self, settings: ClusterSettings, availability: Availability) -> Result<(), ApiError> {
        self.made.lock().unwrap().push((settings, availability));
        Ok(())
    }

    async fn join(&self, _: Vec<String>, _: String, _: Availability) -> Result<(), ApiError> {
        Ok(())
    }

    async fn unlock(&self, key: UnlockKey) -> Result<(), ApiError> {
        match Some(key) == self.lock {
            true => Ok(()),
            false => Err(ApiError::new(StatusCode::UNAUTHORIZED, "swarm could not be unlocked: invalid key provided")),
        }
    }

    async fn unlock_key(&self) -> Result<Option<Zeroizing<String>>, ApiError> {
        let is_on = self.store.lock().unwrap().cluster().unwrap().settings.auto_lock;
        Ok(is_on.then(|| Zeroizing::new("SWMKEY-1-x".to_owned())))
    }

    async fn leave(&self, _: bool) -> Result<(), ApiError> {
        Ok(())
    }

    async fn tokens(&self) -> Result<JoinTokens, ApiError> {
        Ok(JoinTokens { worker: "SWMTKN-1-w".to_owned(), manager: "SWMTKN-1-m".to_owned() })
    }

    async fn rotate(&self, what: Rotation, version: u64) -> Result<Written, WriteError> {
        assert_eq!(version, 3);
        self.rotations.lock().unwrap().push(what);
        Ok(Written { index: 4, warnings: Vec::new() })
    }

    async fn logs(&self, task: TaskId, _: LogQuery) -> Result<LogLines, DriverError> {
        self.read.lock().unwrap().push(task);
        Ok(stream::iter([line("hello\n", LogStream::Stdout), line("oops\n", LogStream::Stderr)]).boxed())
    }

    async fn load_image(&self, mut archive: Box<dyn AsyncRead + Send + Unpin>) -> Result<Vec<String>, DriverError> {
        let mut bytes = vec![0; 4];
        let read = archive.read_exact(&mut bytes).await;
        read.map_err(|error| DriverError::Invalid(error.to_string()))?;
        if bytes == b"full" {
            return Err(DriverError::Full { path: "/data".into() });
        }
        archive.read_to_end(&mut bytes).await.map_err(|error| DriverError::Invalid(error.to_string()))?;
        self.loaded.lock().unwrap().push(bytes);
        Ok(vec!["lab/web:1".to_owned()])
    }

    async fn images(&self) -> Result<Vec<ImageInfo>, DriverError> {
        let image = ImageInfo {
            id: "sha256:6d".to_owned(),
            tags: vec!["lab/web:1".to_owned()],
            size: 5,
            created: WallTime(7_000_000_000),
        };
        Ok(vec![image])
    }

    async fn inventory(&self) -> Result<Arc<dyn Inventory>, ApiError> {
        self.inventory.clone().ok_or_else(|| ApiError::unsupported("looking at containers"))
    }

    async fn remove_image(&self, image: &str) -> Result<(), DriverError> {
        match image {
            "shoal/whoami:latest" => Ok(()),
            _ => Err(DriverError::NoSuchImage { image: image.to_owned(), node: "n1".to_owned() }),
        }
    }

    async fn forward(&self, node: NodeId, request: Request) -> Result<Response, ApiError> {
        assert_eq!(node, OTHER);
        if request.method() == Method::POST {
            let bytes = request.into_body().collect().await.unwrap().to_bytes();
            self.loaded.lock().unwrap().push(bytes.to_vec());
            return Ok("{\"stream\":\"Loaded image: lab/web:1\\n\"}\n".into_response());
        }
        assert!(request.uri().path().ends_with("/logs"), "{}", request.uri());
        assert!(request.headers().contains_key("x-shoal-forwarded"));
        self.asked.lock().unwrap().push(request.uri().query().unwrap_or_default().to_owned());
        let far = Body::from(frames::frame(LogStream::Stdout, &[b"1970-01-01T00:00:00.000000000Z far \n"]));
        let answer = self.answers.lock().unwrap().pop_front();
        answer.unwrap_or(Ok(far)).map(IntoResponse::into_response)
    }
}

/// A served fake and a way to talk to it.
struct Server {
    fake: Arc<Fake>,
    path: std::path::PathBuf,
    _dir: tempfile::TempDir,
}

impl Server {
    fn start(fake: Fake) -> Self {
        Self::start_with(fake, Registry::default())
    }

    fn start_with(fake: Fake, registry: Registry) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("shoal.sock");
        let fake = Arc::new(fake);
        let router = router(fake.clone(), Arc::new(Metrics::new(registry)));
        tokio::spawn(Socket::bind(&path).unwrap().serve(router, std::future::pending()));
        Self { fake, path, _dir: dir }
    }

    async fn send(&self, method: Method, path: &str, body: impl Into<Bytes>) -> (StatusCode, Bytes) {
        let (parts, body) = self.send_whole(method, path, body).await;
        (parts.status, body)
    }

    async fn send_whole(
        &self,
        method: Method,
        path: &str,
        body: impl Into<Bytes>,
    ) -> (axum::http::response::Parts, Bytes) {
        let request = Request::builder().method(method).uri(path).header("host", "x");
        self.exchange(request.body(Body::from(body.into())).unwrap()).await
    }

    /// Sends credentials for a registry along.
    async fn send_as(&self, auth: &str, method: Method, path: &str, body: &'static str) -> (StatusCode, Bytes) {
        let request = Request::builder().method(method).uri(path).header("host", "x").header("X-Registry-Auth", auth);
        let (parts, body) = self.exchange(request.body(Body::from(body)).unwrap()).await;
        (parts.status, body)
    }

    async fn exchange(&self, request: Request) -> (axum::http::response::Parts, Bytes) {
        let stream = UnixStream::connect(&self.path).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let (parts, body) = sender.send_request(request).await.unwrap().into_parts();
        (parts, body.collect().await.unwrap().to_bytes())
    }

    async fn get(&self, path: &str) -> Value {
        let (status, body) = self.send(Method::GET, path, "").await;
        assert_eq!(status, StatusCode::OK, "{path}: {body:?}");
        serde_json::from_slice(&body).unwrap()
    }

    async fn refused(&self, method: Method, path: &str, body: &'static str) -> (u16, String) {
        let (status, body) = self.send(method, path, body).await;
        let message: Value = serde_json::from_slice(&body).unwrap();
        (status.as_u16(), message["message"].as_str().unwrap().to_owned())
    }
}
