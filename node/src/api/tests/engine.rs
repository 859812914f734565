//! What is passed on to the engine behind a node, in front of an engine of which only the socket is real.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::header::{CONNECTION, CONTENT_LENGTH, UPGRADE};
use axum::routing::{any, get, head, post};
use axum::{Json, Router};
use http_body_util::StreamBody;
use hyper::body::Frame;
use tokio::io::{AsyncWriteExt, duplex};
use tokio::net::UnixListener;
use tokio::sync::watch;

use super::*;

const WAIT: Duration = Duration::from_secs(10);

/// What the stand-in for an engine was asked.
#[derive(Default)]
struct Asked {
    swarm: AtomicUsize,
    bytes: AtomicUsize,
    /// Streams and raw connections that are open.
    open: watch::Sender<usize>,
}

/// Counts while it lives.
struct Open(Arc<Asked>);

impl Open {
    fn new(asked: &Arc<Asked>) -> Self {
        asked.open.send_modify(|open| *open += 1);
        Self(asked.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.send_modify(|open| *open -= 1);
    }
}

impl Asked {
    async fn wait_for_open(&self, count: usize) {
        let mut open = self.open.subscribe();
        tokio::time::timeout(WAIT, open.wait_for(|open| *open == count)).await.unwrap().unwrap();
    }
}

async fn ping(headers: HeaderMap) -> impl IntoResponse {
    assert!(headers.contains_key("host"));
    [("api-version", "1.41"), ("builder-version", "2"), ("server", "Docker/20.10.24")]
}

/// Sends a line at once and goes on for ever.
async fn follow(State(asked): State<Arc<Asked>>) -> Body {
    let open = Open::new(&asked);
    let lines = stream::unfold((open, false), |(open, sent)| async move {
        if sent {
            std::future::pending::<()>().await;
        }
        Some((Ok::<_, std::io::Error>(Bytes::from_static(b"line\n")), (open, true)))
    });
    Body::from_stream(lines)
}

/// Never answers.
async fn hang(State(asked): State<Arc<Asked>>) -> StatusCode {
    let _open = Open::new(&asked);
    std::future::pending().await
}

/// Repeats what it hears, in capitals, and says that it heard everything.
async fn attach(State(asked): State<Arc<Asked>>, mut request: Request) -> Response {
    assert_eq!(request.headers()[UPGRADE], "tcp");
    let upgrade = hyper::upgrade::on(&mut request);
    let said = request.into_body().collect().await.unwrap().to_bytes();
    tokio::spawn(async move {
        let _open = Open::new(&asked);
        let (mut reader, mut writer) = tokio::io::split(TokioIo::new(upgrade.await.unwrap()));
        writer.write_all(&said).await.unwrap();
        let mut buffer = [0; 64];
        while let Ok(count @ 1..) = reader.read(&mut buffer).await {
            buffer.make_ascii_uppercase();
            if writer.write_all(&buffer[..count]).await.is_err() {
                return;
            }
            if buffer.starts_with(b"QUIET") {
                std::future::pending::<()>().await;
            }
        }
        writer.write_all(b"END").await.unwrap();
    });
    let headers = [(CONNECTION, "Upgrade"), (UPGRADE, "tcp")];
    (StatusCode::SWITCHING_PROTOCOLS, headers, ()).into_response()
}

async fn build(State(asked): State<Arc<Asked>>, body: Body) -> &'static str {
    let mut pieces = body.into_data_stream();
    while let Some(piece) = pieces.next().await {
        match piece {
            Ok(piece) => asked.bytes.fetch_add(piece.len(), Ordering::SeqCst),
            Err(_) => return "broken",
        };
    }
    "{\"stream\":\"built\"}\n"
}

async fn swarm(State(asked): State<Arc<Asked>>) -> &'static str {
    asked.swarm.fetch_add(1, Ordering::SeqCst);
    "\"joined\""
}

async fn prune(uri: axum::http::Uri) -> Response {
    match uri.query() {
        Some(query) if query.contains("broken") => {
            (StatusCode::CONFLICT, Json(json!({"message": "a prune operation is already running"}))).into_response()
        }
        _ => Json(json!({"NetworksDeleted": ["old"]})).into_response(),
    }
}

/// A node with a stand-in for an engine behind it.
async fn start() -> (Server, Arc<Asked>, tempfile::TempDir) {
    start_as(Fake::new()).await
}

/// The same with a node of which everything but the engine is given.
async fn start_as(fake: Fake) -> (Server, Arc<Asked>, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("docker.sock");
    let asked = Arc::new(Asked::default());
    let version = json!({"Components": [{"Name": "Engine", "Version": "20.10.24"}, {"Name": "runc", "Version": "1"}]});
    let info = json!({"Name": "engine", "Containers": 7, "Labels": ["a=b"], "Swarm": {"LocalNodeState": "inactive"}});
    let routes = Router::new()
        .route("/_ping", get(ping))
        .route("/version", get(Json(version)))
        .route("/info", get(Json(info)))
        .route("/v1.41/containers/json", get(|uri: axum::http::Uri| async move { uri.to_string() }))
        .route("/v1.41/containers/x/archive", head([("x-docker-container-path-stat", "e30="), ("content-length", "7")]))
        .route("/v1.41/containers/x/logs", get(follow))
        .route("/v1.41/containers/x/wait", post(hang))
        .route("/v1.41/containers/x/attach", post(attach))
        .route("/v1.41/build", post(build))
        .route("/images/load", post("{\"stream\":\"Loaded image: behind:1\\n\"}\n"))
        .route("/networks", get(Json(json!([{"Name": "bridge", "Driver": "bridge", "Scope": "local"}]))))
        .route(
            "/networks/bridge",
            get(Json(json!({"Name": "bridge"})))
                .delete((StatusCode::FORBIDDEN, Json(json!({"message": "predefined"})))),
        )
        .route("/networks/none", get((StatusCode::NOT_FOUND, Json(json!({"message": "network none not found"})))))
        .route("/networks/create", post(|body: String| async move { (StatusCode::CREATED, body) }))
        .route("/networks/prune", post(prune))
        .route("/networks/bridge/connect", post(|body: String| async move { body }))
        .route("/{*path}", any(swarm))
        .with_state(asked.clone());
    let listener = UnixListener::bind(&path).unwrap();
    tokio::spawn(async move { axum::serve(listener, routes).await });
    let address = format!("unix://{}", path.display()).parse().unwrap();
    let fake = Fake { engine: Some(Arc::new(Engine::new(address))), ..fake };
    (Server::start(fake), asked, dir)
}

fn request(method: Method, path: &str) -> axum::http::request::Builder {
    Request::builder().method(method).uri(path).header("host", "x")
}

/// Sends a request and returns the answer as it begins; the connection ends when the second value is dropped.
async fn begin(server: &Server, request: Request) -> (Response, tokio_util::task::AbortOnDropHandle<()>) {
    let stream = UnixStream::connect(&server.path).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    let connection = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(async move {
        let _ = connection.with_upgrades().await;
    }));
    let response = tokio::time::timeout(WAIT, sender.send_request(request)).await.unwrap().unwrap();
    (response.map(Body::new), connection)
}

#[tokio::test]
async fn both_introduce_themselves_together() {
    let (server, _, _dir) = start().await;
    let (parts, _) = server.send_whole(Method::HEAD, "/_ping", "").await;
    for (name, want) in [("api-version", "1.41"), ("builder-version", "2"), ("swarm", "active/manager")] {
        assert_eq!(parts.headers[name], want);
    }
    let version = server.get("/v1.41/version").await;
    let names: Vec<_> = version["Components"].as_array().unwrap().iter().map(|part| &part["Name"]).collect();
    assert_eq!(names, ["Engine", "Docker Engine", "runc"]);
    assert_eq!((&version["ApiVersion"], &version["Version"]), (&json!("1.41"), &json!("0.1.0")));
    let info = server.get("/info").await;
    assert_eq!((&info["Containers"], &info["Name"], &info["Labels"]), (&json!(7), &json!("n1"), &json!(["a=b"])));
    assert_eq!((&info["Swarm"]["LocalNodeState"], &info["Swarm"]["Nodes"]), (&json!("active"), &json!(2)));
}

#[tokio::test]
async fn requests_are_passed_on_as_they_came() {
    let (server, _, _dir) = start().await;
    let path = "/v1.41/containers/json?all=1&filters=%7B%22name%22:%7B%22a%22:true%7D%7D";
    assert_eq!(server.send(Method::GET, path, "").await, (StatusCode::OK, Bytes::from(path)));
    let (parts, body) = server.send_whole(Method::HEAD, "/v1.41/containers/x/archive?path=/etc", "").await;
    assert_eq!((parts.status, body.len()), (StatusCode::OK, 0));
    assert_eq!(parts.headers["x-docker-container-path-stat"], "e30=");
    assert_eq!(parts.headers[CONTENT_LENGTH], "7");
    let refused = server.refused(Method::GET, "/v1.41/networks/none", "").await;
    assert_eq!(refused, (404, "network none not found".to_owned()));
}

fn names(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|one| one["Name"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn networks_are_the_clusters_and_the_engines() {
    let (server, asked, _dir) = start().await;
    let (status, _) = server.send(Method::POST, "/v1.41/networks/create", r#"{"Name":"ov","Driver":"overlay"}"#).await;
    assert_eq!(status, StatusCode::CREATED);
    let local = r#"{"Name":"br","Driver":"bridge"}"#;
    for path in ["/v1.41/networks/create", "/networks/bridge/connect"] {
        let (status, body) = server.send(Method::POST, path, local).await;
        assert!(status.is_success() && body == local, "{path}: {status} {body:?}");
    }
    let mut listed: Vec<_> = names(&server.get("/v1.41/networks").await).into_iter().map(str::to_owned).collect();
    listed.sort_unstable();
    assert_eq!(listed, ["bridge", "ingress", "ov"]);
    let dangling = server.get("/networks?filters=%7B%22dangling%22:%5B%22true%22%5D%7D").await;
    assert_eq!(names(&dangling), ["bridge"]);
    assert_eq!(server.get("/networks/ov").await["Driver"], "overlay");
    assert_eq!(server.get("/networks/bridge").await, json!({"Name": "bridge"}));
    let refused = server.refused(Method::DELETE, "/networks/bridge", "").await;
    assert_eq!(refused, (403, "predefined".to_owned()));
    let refused = server.refused(Method::POST, "/networks/prune?broken", "").await;
    assert_eq!(refused, (409, "a prune operation is already running".to_owned()));
    assert_eq!(asked.swarm.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn both_prune_their_networks() {
    let (server, _, _dir) = start().await;
    server.send(Method::POST, "/networks/create", r#"{"Name":"ov","Driver":"overlay"}"#).await;
    let prune = async |query: &str| {
        let (status, body) = server.send(Method::POST, &format!("/networks/prune{query}"), "").await;
        assert_eq!(status, StatusCode::OK, "{body:?}");
        serde_json::from_slice::<Value>(&body).unwrap()
    };
    let until = prune("?filters=%7B%22until%22:%5B%221h%22%5D%7D").await;
    assert_eq!(until, json!({"NetworksDeleted": ["old"]}), "the cluster knows no ages");
    assert_eq!(prune("").await, json!({"NetworksDeleted": ["ov", "old"]}));
}

#[tokio::test]
async fn outside_any_cluster_all_networks_are_the_engines() {
    let (server, _, _dir) = start_as(Fake { in_cluster: false, ..Fake::new() }).await;
    assert_eq!(names(&server.get("/networks").await), ["bridge"]);
    assert_eq!(server.get("/networks/bridge").await, json!({"Name": "bridge"}));
    assert_eq!(server.send(Method::POST, "/networks/prune", "").await.0, StatusCode::OK);
}

#[tokio::test]
async fn a_large_upload_of_unknown_length_is_not_kept() {
    const PIECES: usize = 96;
    const PIECE: usize = 1 << 20; // together far more than what the node's own requests may hold
    let (server, asked, _dir) = start().await;
    let pieces = (0..PIECES).map(|_| Ok::<_, std::io::Error>(Frame::data(Bytes::from(vec![7; PIECE]))));
    let body = Body::new(StreamBody::new(stream::iter(pieces)));
    let (response, _connection) = begin(&server, request(Method::POST, "/v1.41/build").body(body).unwrap()).await;
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "{\"stream\":\"built\"}\n");
    assert_eq!(asked.bytes.load(Ordering::SeqCst), PIECES * PIECE);
}

#[tokio::test]
async fn a_client_that_goes_away_ends_what_the_engine_does_for_it() {
    let (server, asked, _dir) = start().await;
    let logs = request(Method::GET, "/v1.41/containers/x/logs?follow=1").body(Body::empty()).unwrap();
    let (response, connection) = begin(&server, logs).await;
    let first = response.into_body().into_data_stream().next().await.unwrap().unwrap();
    assert_eq!(first, "line\n");
    asked.wait_for_open(1).await;
    drop(connection);
    asked.wait_for_open(0).await;
    // Before an answer has begun, too.
    let wait = request(Method::POST, "/v1.41/containers/x/wait").body(Body::empty()).unwrap();
    let waiting = async { drop(begin(&server, wait).await) };
    tokio::select! {
        () = waiting => unreachable!("it never answers"),
        () = asked.wait_for_open(1) => {}
    }
    asked.wait_for_open(0).await;
}

async fn attached(
    server: &Server,
) -> (impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin, tokio_util::task::AbortOnDropHandle<()>) {
    let attach = request(Method::POST, "/v1.41/containers/x/attach?stream=1&stdin=1")
        .header(CONNECTION, "Upgrade")
        .header(UPGRADE, "tcp")
        .body(Body::from("hello "))
        .unwrap();
    let (mut response, connection) = begin(server, attach).await;
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    assert_eq!(
        (&response.headers()[CONNECTION], &response.headers()[UPGRADE]),
        (&"Upgrade".parse().unwrap(), &"tcp".parse().unwrap())
    );
    (TokioIo::new(hyper::upgrade::on(&mut response).await.unwrap()), connection)
}

#[tokio::test]
async fn attached_clients_hear_the_answer_to_their_last_word() {
    let (server, asked, _dir) = start().await;
    let (mut client, _connection) = attached(&server).await;
    client.write_all(b"abc").await.unwrap();
    client.shutdown().await.unwrap();
    let mut heard = String::new();
    tokio::time::timeout(WAIT, client.read_to_string(&mut heard)).await.unwrap().unwrap();
    assert_eq!(heard, "hello ABCEND");
    asked.wait_for_open(0).await;
}

#[tokio::test]
async fn an_attached_client_that_goes_away_is_noticed_in_silence() {
    let (server, asked, _dir) = start().await;
    let (mut client, connection) = attached(&server).await;
    client.write_all(b"quiet").await.unwrap();
    let mut heard = [0; 11];
    client.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"hello QUIET");
    asked.wait_for_open(1).await;
    drop((client, connection));
    // The stand-in waits for ever; only the far end of its connection can tell that nobody listens.
    let engine = server.fake.engine.clone().unwrap();
    let is_free = async {
        while engine.in_use() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(WAIT, is_free).await.unwrap();
}

#[tokio::test]
async fn no_way_leads_to_the_engines_own_swarm() {
    let (server, asked, _dir) = start().await;
    for (path, want) in [
        ("/v1.41/swarm/init", 400), // the cluster's own, which asks for JSON
        ("/v1.41/containers/../swarm/init", 400),
        ("/v1.41/containers/%2e%2e/swarm/init", 400),
        ("/v1.41/containers/..%2fswarm%2finit", 400),
        ("/v1.41//swarm/init", 404),
        ("//swarm/init", 404),
        ("/v1.41/v1.41/swarm/init", 404),
        ("/v1/swarm/init", 404),
        ("/v1.41/%73warm/init", 404),
        ("/v1.41/secrets/create", 400),
        ("/v1.41/configs/create", 400),
    ] {
        let (status, message) = server.refused(Method::POST, path, "").await;
        assert_eq!(status, want, "{path}: {message}");
    }
    assert_eq!(asked.swarm.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn images_for_all_nodes_are_not_the_engines_alone() {
    let (server, _, _dir) = start().await;
    let (status, body) = server.send(Method::POST, "/images/load", "archive").await;
    assert_eq!((status, body), (StatusCode::OK, "{\"stream\":\"Loaded image: behind:1\\n\"}\n".into()));
    let (status, body) = server.send(Method::POST, "/images/load?all=1", "archive").await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(String::from_utf8_lossy(&body).matches("Loaded image: lab/web:1").count(), 2, "{body:?}");
}

#[tokio::test]
async fn other_nodes_never_reach_the_engine() {
    let (server, asked, _dir) = start().await;
    let router = router(server.fake.clone(), Arc::new(Metrics::new(Registry::default())));
    let (ours, theirs) = duplex(4096);
    let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(super::super::FromPeer(super::OTHER));
        tower_call(router.clone(), request)
    });
    tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(theirs), service));
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(ours)).await.unwrap();
    tokio::spawn(connection);
    let request = request(Method::GET, "/v1.41/containers/json").body(Body::empty()).unwrap();
    let response = sender.send_request(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::NOT_IMPLEMENTED);
    assert_eq!(asked.swarm.load(Ordering::SeqCst), 0);
}

async fn tower_call(router: Router, request: Request) -> Result<Response, std::convert::Infallible> {
    use hyper::service::Service;
    hyper_util::service::TowerToHyperService::new(router).call(request).await
}

#[tokio::test]
async fn an_engine_that_is_away_takes_nothing_of_the_cluster_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let address = format!("unix://{}/nosuch.sock", dir.path().display());
    let fake = Fake { engine: Some(Arc::new(Engine::new(address.parse().unwrap()))), ..Fake::new() };
    let server = Server::start(fake);
    let (parts, _) = server.send_whole(Method::HEAD, "/_ping", "").await;
    assert_eq!((parts.status, &parts.headers["api-version"]), (StatusCode::OK, &"1.50".parse().unwrap()));
    let (status, message) = server.refused(Method::GET, "/v1.41/containers/json", "").await;
    assert_eq!(status, 503);
    assert!(message.starts_with(&format!("the Docker Engine at {address} does not answer: ")), "{message}");
    assert_eq!(server.get("/services").await[0]["Spec"]["Name"], "web");
    let warning = server.get("/info").await["Warnings"][0].as_str().unwrap().to_owned();
    assert!(warning.contains("does not answer"), "{warning}");
}

#[tokio::test]
async fn requests_beyond_the_bound_are_refused() {
    let (server, asked, _dir) = start().await;
    let mut held = Vec::new();
    for _ in 0..crate::api::engine::REQUESTS_MAX {
        let logs = request(Method::GET, "/v1.41/containers/x/logs").body(Body::empty()).unwrap();
        held.push(begin(&server, logs).await);
    }
    let (status, message) = server.refused(Method::GET, "/v1.41/containers/json", "").await;
    assert_eq!((status, message.as_str()), (503, "too many requests to the Docker Engine; try again"));
    held.clear();
    asked.wait_for_open(0).await;
    assert_eq!(server.send(Method::GET, "/v1.41/containers/json", "").await.0, StatusCode::OK);
}
