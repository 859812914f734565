//! The page for people: complete, harmless whatever things are called, and bounded.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

use super::*;
use crate::api::events::{Event, Scope};

/// What a joker calls things.
const JOKE: &str = "\"'><script>alert(1)</script>";

async fn page(server: &Server, path: &str) -> (axum::http::response::Parts, String) {
    let (parts, body) = server.send_whole(Method::GET, path, "").await;
    (parts, String::from_utf8(body.to_vec()).unwrap())
}

fn between<'a>(text: &'a str, begin: &str, end: &str) -> &'a str {
    let (_, rest) = text.split_once(begin).unwrap();
    rest.split_once(end).unwrap().0
}

#[tokio::test]
async fn the_page_shows_the_cluster() {
    let fake = Fake { other_is: NodeState::Down, ..Fake::new() };
    fake.events.tell(Event {
        kind: "service",
        action: "update",
        id: "x".to_owned(),
        attributes: [("name".to_owned(), "web".to_owned()), ("replicas.new".to_owned(), "3".to_owned())].into(),
        scope: Scope::Swarm,
        time: WallTime(NOW.0 - 5_000_000_000),
    });
    let server = Server::start(fake);
    let (parts, text) = page(&server, "/").await;
    assert_eq!(parts.status, StatusCode::OK);
    assert_eq!(parts.headers["content-type"], "text/html; charset=utf-8");
    for want in [
        "<title>n1</title>",
        "is down</li>",
        "1 of 2</dd>",
        "manager, leader",
        "10.77.0.1:2377",
        "2 cores, 23.5 GiB",
        "<span class=\"label\">zone=a</span>",
        "1 of 3</span>",
        "8080 → 80/tcp",
        "lab/web:1",
        "no suitable node (1 node not ready)",
        "orphaned",
        "registry",
        "5 seconds ago",
        "replicas: 3",
    ] {
        assert!(text.contains(want), "{want}: {text}");
    }
    // What does not run comes first.
    let place = |name: &str| text.find(&format!("<td>{name}")).unwrap();
    assert!(place("web.2") < place("web.1") && place("web.3") < place("web.1"), "{text}");
    let (_, contents) = page(&server, "/v1.41/shoal/page").await;
    assert!(contents.starts_with("<ul class=\"warnings\">") && text.contains(&contents), "{contents}");
    let (status, body) = server.send(Method::HEAD, "/", "").await;
    assert_eq!((status, body.len()), (StatusCode::OK, 0));
    assert_eq!(server.send(Method::POST, "/", "").await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn nothing_that_anybody_wrote_becomes_markup() {
    let fake = Fake::new();
    {
        let mut store = fake.store.lock().unwrap();
        let spec = json!({"Name": JOKE, "Labels": {JOKE: JOKE}, "TaskTemplate": {"ContainerSpec": {"Image": JOKE}},
            "Mode": {"Global": {}}, "EndpointSpec": {"Ports": [{"Protocol": JOKE, "TargetPort": 1, "PublishedPort": 2}]}});
        service(&mut store, ServiceId(11), &spec.to_string(), 1);
        slot(&mut store, ServiceId(11), 1, Some(OTHER), Some(TaskState::Failed));
        let mut status = status_of(JOKE);
        status.engine = JOKE.to_owned();
        put(&mut store, Key::NodeStatus(OTHER), &value::Value::NodeStatus(status));
        let spec = json!({"Labels": {JOKE: JOKE}, "Role": "worker", "Availability": "drain"}).to_string();
        let object = NodeObject { index: 4, created: WallTime(1), updated: WallTime(2), spec };
        put(&mut store, Key::Node(OTHER), &value::Value::Node(object));
    }
    fake.events.tell(Event {
        kind: "service",
        action: "create",
        id: JOKE.to_owned(),
        attributes: [("name".to_owned(), JOKE.to_owned()), (format!("{JOKE}.new"), JOKE.to_owned())].into(),
        scope: Scope::Swarm,
        time: NOW,
    });
    let server = Server::start(fake);
    let (parts, text) = page(&server, "/").await;
    assert_eq!(text.matches("<script").count(), 1, "the page's own: {text}");
    let escaped = "&quot;&#39;&gt;&lt;script&gt;alert(1)&lt;/script&gt;";
    // Name, label and its value, image, protocol, task; host name (twice), engine, label and its value; event, key, value.
    assert!(text.matches(escaped).count() >= 13, "{text}");
    // The browser would stop it if it did: only this very style and script are let.
    let policy = parts.headers["content-security-policy"].to_str().unwrap();
    for (kind, part) in
        [("style", between(&text, "<style>", "</style>")), ("script", between(&text, "<script>", "</script>"))]
    {
        let hash = STANDARD.encode(Sha256::digest(part));
        assert!(policy.contains(&format!("{kind}-src 'sha256-{hash}';")), "{policy}");
    }
    assert!(policy.starts_with("default-src 'none';") && !policy.contains("unsafe"), "{policy}");
    assert!(policy.contains("frame-ancestors 'none'") && parts.headers["x-content-type-options"] == "nosniff");
    assert!(
        !text.contains("http://") && !text.contains("https://") && !text.contains("//cdn"),
        "nothing from elsewhere"
    );
}

#[tokio::test]
async fn no_secret_is_on_the_page() {
    let fake = Fake::new();
    // What services are given as environment or command is often a password.
    let spec = SPEC.replace(
        "\"Init\":false",
        "\"Env\":[\"PASSWORD=hidden-1\"],\"Args\":[\"hidden-2\"],\"Labels\":{\"a\":\"hidden-3\"}",
    );
    assert_ne!(spec, SPEC);
    service(&mut fake.store.lock().unwrap(), WEB, &spec, 2);
    let server = Server::start(fake);
    let (_, text) = page(&server, "/").await;
    assert!(text.contains("lab/web:1"));
    for hidden in ["SWMTKN", "BEGIN CERTIFICATE", "hidden-"] {
        assert!(!text.contains(hidden), "{hidden}: {text}");
    }
}

#[tokio::test]
async fn the_page_is_bounded() {
    let fake = Fake::new();
    {
        let mut store = fake.store.lock().unwrap();
        for number in 0..1000 {
            let id = ServiceId(100 + number);
            service(&mut store, id, &SPEC.replace("\"web\"", &format!("\"web-{number}\"")), 1);
            slot(&mut store, id, 1, Some(OTHER), Some(TaskState::Running));
            node(&mut store, NodeId(100 + number), &format!("m{number}"), "worker");
        }
    }
    let server = Server::start(fake);
    let (_, text) = page(&server, "/").await;
    for want in [
        "and 802 more: <code>shoal node ls",
        "and 801 more: <code>shoal service ls",
        "and 703 more: <code>shoal service ps",
    ] {
        assert!(text.contains(want), "{want}");
    }
    assert!(text.contains("<h2>Tasks<small>1003</small>") && text.contains(">1002</dd>"));
    assert!(text.len() < 1 << 20, "{} bytes", text.len());
}

#[tokio::test]
async fn a_node_in_no_cluster_says_so_and_what_is_new_appears() {
    let server = Server::start(Fake { in_cluster: false, ..Fake::new() });
    let (parts, text) = page(&server, "/").await;
    assert_eq!(parts.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(text.contains("&quot;docker swarm init&quot;") && text.contains("<title>n1</title>"), "{text}");
    let server = Server::start(Fake::new());
    assert!(!page(&server, "/shoal/page").await.1.contains("newcomer"));
    service(&mut server.fake.store.lock().unwrap(), ServiceId(12), &SPEC.replace("\"web\"", "\"newcomer\""), 1);
    let started = Instant::now();
    while !page(&server, "/shoal/page").await.1.contains("newcomer") {
        assert!(started.elapsed().as_secs() < 20, "the page stays as it was");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}
