//! Events: what happened, what happens, and what of it is asked for.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::BodyDataStream;
use axum::extract::RawQuery;
use axum::routing::get;
use tokio::net::UnixListener;
use tokio_util::task::AbortOnDropHandle;

use super::*;
use crate::api::events::{Event, Scope};

const WAIT: Duration = Duration::from_secs(10);
const SECOND: u64 = 1_000_000_000;

/// A moment some seconds from what the node takes for the present.
fn at(seconds: i64) -> WallTime {
    WallTime(NOW.0.strict_add_signed(seconds * SECOND as i64))
}

fn event(name: &str, time: WallTime) -> Event {
    Event {
        kind: "service",
        action: "update",
        id: format!("id-{name}"),
        attributes: [("name".to_owned(), name.to_owned())].into(),
        scope: Scope::Swarm,
        time,
    }
}

/// An answer that is read line by line.
struct Lines {
    body: BodyDataStream,
    buffer: Vec<u8>,
    _connection: AbortOnDropHandle<()>,
}

impl Lines {
    async fn open(server: &Server, path: &str) -> Self {
        let stream = UnixStream::connect(&server.path).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        let connection = AbortOnDropHandle::new(tokio::spawn(async move {
            let _ = connection.await;
        }));
        let request = Request::builder().uri(path).header("host", "x").body(Body::empty()).unwrap();
        let response = tokio::time::timeout(WAIT, sender.send_request(request)).await.unwrap().unwrap();
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        Self { body: Body::new(response.into_body()).into_data_stream(), buffer: Vec::new(), _connection: connection }
    }

    async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            match tokio::time::timeout(WAIT, self.body.next()).await.unwrap() {
                Some(bytes) => self.buffer.extend_from_slice(&bytes.unwrap()),
                None => return None,
            }
        }
    }

    async fn name(&mut self) -> Option<String> {
        self.next().await.map(|event| event["Actor"]["Attributes"]["name"].as_str().unwrap().to_owned())
    }

    async fn rest(mut self) -> Vec<String> {
        let mut names = Vec::new();
        while let Some(name) = self.name().await {
            names.push(name);
        }
        names
    }
}

fn seconds(moment: WallTime) -> String {
    format!("{}.{:09}", moment.0 / SECOND, moment.0 % SECOND)
}

#[tokio::test]
async fn what_happened_lately_is_told_to_whoever_asks() {
    let server = Server::start(Fake::new());
    for (name, time) in [("a", at(-30)), ("b", at(-20)), ("c", at(-10))] {
        server.fake.events.tell(event(name, time));
    }
    let path = |since, until| format!("/v1.41/events?since={}&until={}", seconds(since), seconds(until));
    assert_eq!(Lines::open(&server, &path(at(-25), at(-1))).await.rest().await, ["b", "c"]);
    assert_eq!(Lines::open(&server, &path(at(-30), at(-20))).await.rest().await, ["a", "b"]);
    assert_eq!(Lines::open(&server, &format!("/events?until={}", seconds(at(0)))).await.rest().await, ["a", "b", "c"]);
    let filtered = format!("{}&filters=%7B%22service%22:%5B%22c%22,%22id-a%22%5D%7D", path(at(-60), at(0)));
    assert_eq!(Lines::open(&server, &filtered).await.rest().await, ["a", "c"]);
    let mut lines = Lines::open(&server, &path(at(-10), at(0))).await;
    let want = json!({"Type": "service", "Action": "update", "scope": "swarm", "time": at(-10).0 / SECOND,
        "timeNano": at(-10).0, "Actor": {"ID": "id-c", "Attributes": {"name": "c"}}});
    assert_eq!(lines.next().await, Some(want));
}

#[tokio::test]
async fn what_happens_is_told_as_it_happens() {
    let server = Server::start(Fake::new());
    server.fake.events.tell(event("before", at(-30)));
    let mut all = Lines::open(&server, "/events").await;
    let mut past_too = Lines::open(&server, &format!("/events?since={}", seconds(at(-60)))).await;
    let mut services = Lines::open(&server, "/events?filters=%7B%22type%22:%7B%22node%22:true%7D%7D").await;
    let until = format!("/events?until={}", seconds(WallTime(NOW.0 + SECOND / 5)));
    let ends = Lines::open(&server, &until).await;
    assert_eq!(past_too.name().await.as_deref(), Some("before"));
    server.fake.events.tell(event("web", at(0)));
    server.fake.events.tell(Event { kind: "node", action: "create", ..event("n1", at(0)) });
    assert_eq!((all.name().await.as_deref(), past_too.name().await.as_deref()), (Some("web"), Some("web")));
    assert_eq!((all.name().await.as_deref(), services.name().await.as_deref()), (Some("n1"), Some("n1")));
    assert_eq!(ends.rest().await, ["before", "web", "n1"]);
}

#[tokio::test]
async fn questions_that_make_no_sense_are_refused() {
    let server = Server::start(Fake::new());
    for (query, message) in [
        ("filters=%7B%22colour%22:%5B%22red%22%5D%7D", "invalid filter 'colour'"),
        ("since=x", "invalid value for since: x"),
        (
            "since=2&until=1",
            "`since` time (1970-01-01T00:00:02.000000000Z) cannot be after `until` time (1970-01-01T00:00:01.000000000Z)",
        ),
    ] {
        assert_eq!(server.refused(Method::GET, &format!("/events?{query}"), "").await, (400, message.to_owned()));
    }
}

#[tokio::test]
async fn a_reader_that_is_too_slow_is_told_so_and_dropped() {
    let server = Server::start(Fake::new());
    let mut slow = Lines::open(&server, "/events").await;
    server.fake.events.tell(event("first", at(0)));
    assert_eq!(slow.name().await.as_deref(), Some("first"));
    for number in 0..5000 {
        server.fake.events.tell(event(&number.to_string(), at(0)));
    }
    let mut last = None;
    while let Some(event) = slow.next().await {
        last = Some(event);
    }
    let last = last.unwrap();
    assert_eq!((&last["Type"], &last["Action"]), (&json!("daemon"), &json!("overflow")));
    let error = last["Actor"]["Attributes"]["error"].as_str().unwrap();
    assert!(error.contains("events are missing, and no more come"), "{error}");
}

fn container_line(name: &str, time: WallTime) -> String {
    json!({"Type": "container", "Action": "start", "Actor": {"ID": name, "Attributes": {"name": name}},
        "scope": "local", "time": time.0 / SECOND, "timeNano": time.0})
    .to_string()
        + "\n"
}

/// Serves events as an engine does: what it remembers if an end is named, else one and no more. The second time it breaks
/// off after it.
async fn engine(asked: Arc<AtomicUsize>, path: &std::path::Path) {
    let events = move |RawQuery(query): RawQuery| {
        let asked = asked.clone();
        async move {
            let query = query.unwrap_or_default();
            let number = asked.fetch_add(1, Ordering::SeqCst);
            if query.contains("until=") {
                return Body::from(container_line("x", at(-25)) + &container_line("y", at(-15)));
            }
            let line = container_line(&format!("live-{number}"), at(1 + number as i64));
            let first = stream::iter([Ok::<_, std::io::Error>(Bytes::from(line))]);
            if number == 1 { Body::from_stream(first) } else { Body::from_stream(first.chain(stream::pending())) }
        }
    };
    let listener = UnixListener::bind(path).unwrap();
    tokio::spawn(async move { axum::serve(listener, Router::new().route("/events", get(events))).await });
}

#[tokio::test]
async fn an_engines_own_events_are_among_them() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("docker.sock");
    let asked = Arc::new(AtomicUsize::new(0));
    engine(asked.clone(), &path).await;
    let engine = Engine::new(format!("unix://{}", path.display()).parse().unwrap());
    let server = Server::start(Fake { engine: Some(Arc::new(engine)), ..Fake::new() });
    for (name, time) in [("a", at(-30)), ("b", at(-20)), ("c", at(-10))] {
        server.fake.events.tell(event(name, time));
    }
    let swarm_only = format!("/events?until={}&filters=%7B%22scope%22:%5B%22swarm%22%5D%7D", seconds(at(0)));
    assert_eq!(Lines::open(&server, &swarm_only).await.rest().await, ["a", "b", "c"]);
    assert_eq!(asked.load(Ordering::SeqCst), 0);
    let mut all = Lines::open(&server, &format!("/events?since={}", seconds(at(-60)))).await;
    for name in ["a", "x", "b", "y", "c", "live-1", "live-2"] {
        // The engine broke off between the last two.
        assert_eq!(all.name().await.as_deref(), Some(name));
    }
    server.fake.events.tell(event("web", at(2)));
    assert_eq!(all.name().await.as_deref(), Some("web"));
}

#[tokio::test]
async fn events_of_an_engine_that_is_away_are_not_passed_over_in_silence() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::new(format!("unix://{}/nosuch.sock", dir.path().display()).parse().unwrap());
    let server = Server::start(Fake { engine: Some(Arc::new(engine)), ..Fake::new() });
    let (status, message) = server.refused(Method::GET, "/events?since=1", "").await;
    assert!(status == 503 && message.contains("does not answer"), "{status} {message}");
    let swarm_only = format!("/events?until={}&filters=%7B%22scope%22:%5B%22swarm%22%5D%7D", seconds(at(0)));
    assert_eq!(Lines::open(&server, &swarm_only).await.rest().await, [""; 0]);
}
