//! Every endpoint of the API, each with what its clients send.

use std::fmt;

use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use serde_json::{Value, json};
use shoal_tests::lab::IMAGE;

use super::archive;
use super::service::{leave_out, service};

/// Who answers an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// This node.
    Node,
    /// This node, to other nodes alone.
    Peers,
    /// The Docker Engine behind the node, if there is one.
    Engine,
}

/// A method and a path. `{…}` stands for something with a name.
#[derive(Debug, Clone, Copy)]
pub struct Endpoint {
    /// The method.
    pub method: &'static str,
    /// The path, without version.
    pub path: &'static str,
    /// Who answers.
    pub whose: Whose,
    /// What is sent.
    pub draw: fn(&mut StdRng) -> Content,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, self.path)
    }
}

/// What is sent to an endpoint, before anything is changed.
#[derive(Debug, Clone, Default)]
pub struct Content {
    /// Names that may stand in the path.
    pub names: &'static [&'static str],
    /// Parameters.
    pub query: Vec<(&'static str, Value)>,
    /// Headers beside those of every request.
    pub headers: Vec<(&'static str, String)>,
    /// The body.
    pub body: Body,
}

/// A request's body.
#[derive(Debug, Clone, Default)]
pub enum Body {
    /// None.
    #[default]
    Nothing,
    /// A document.
    Json(Value),
    /// Anything else.
    Bytes(Vec<u8>),
}

const SERVICES: &[&str] = &["a", "b", "nosuch", "steady", "steady", "<service>"];
const TASKS: &[&str] = &["<task>", "<task>", "<task>", "nosuch", "steady.1"];
const NODES: &[&str] = &["<node>", "<node>", "self", "nosuch"];
const OBJECTS: &[&str] = &["a", "b", "steady", "steady", "nosuch"];
const NETWORKS: &[&str] = &["a", "b", "<network>", "ingress", "nosuch"];
const CONTAINERS: &[&str] = &["<container>", "<container>", "nosuch", "a", "/steady"];
const IMAGES: &[&str] = &["fuzz:1", "fuzz", "nosuch:1", "<image>", "a/b/c@sha256:00", "sha256:0", "127.0.0.1:1/a/b:c"];
const SHOWN_IMAGES: &[&str] =
    &["shoal/whoami:latest", "shoal/whoami", "fuzz:1", "nosuch:1", "<image>", "a/b/c@sha256:00"];
const VOLUMES: &[&str] = &["vol", "vol", "nosuch"];
const NO_NAMES: &[&str] = &[];

const fn node(method: &'static str, path: &'static str, draw: fn(&mut StdRng) -> Content) -> Endpoint {
    Endpoint { method, path, whose: Whose::Node, draw }
}

const fn engine(method: &'static str, path: &'static str, draw: fn(&mut StdRng) -> Content) -> Endpoint {
    Endpoint { method, path, whose: Whose::Engine, draw }
}

/// All of them. A test compares this with the routes of the daemon.
pub const ENDPOINTS: [Endpoint; 65] = [
    node("GET", "/", |_| plain(NO_NAMES)),
    node("GET", "/shoal/page", |_| plain(NO_NAMES)),
    node("GET", "/_ping", |_| plain(NO_NAMES)),
    node("GET", "/version", |_| plain(NO_NAMES)),
    node("GET", "/info", |_| plain(NO_NAMES)),
    node("GET", "/events", events),
    node("GET", "/metrics", |_| plain(NO_NAMES)),
    node("GET", "/shoal/status", |_| plain(NO_NAMES)),
    Endpoint {
        method: "POST",
        path: "/shoal/self/{what}",
        whose: Whose::Peers,
        draw: |_| plain(&["drain", "resume", "x"]),
    },
    node("GET", "/distribution/{*image}", |random| Content {
        names: SHOWN_IMAGES,
        headers: credentials(random),
        ..Content::default()
    }),
    node("GET", "/swarm", |_| plain(NO_NAMES)),
    node("POST", "/swarm/init", |_| membership()),
    node("POST", "/swarm/join", |_| membership()),
    node("POST", "/swarm/leave", leave),
    node("POST", "/swarm/update", swarm_update),
    node("POST", "/swarm/unlock", |_| body(NO_NAMES, json!({"UnlockKey": "SWMKEY-1-abc"}))),
    node("GET", "/swarm/unlockkey", |_| plain(NO_NAMES)),
    node("GET", "/nodes", |_| {
        list(
            json!({"id": ["x"], "label": ["a=b"], "membership": ["accepted"], "name": ["a"], "role": ["manager"], "node.label": ["a"]}),
        )
    }),
    node("GET", "/nodes/{id}", |_| plain(NODES)),
    node("DELETE", "/nodes/{id}", |random| {
        query(&["nosuch", "a", "self", "<node>"], vec![("force", json!(random.random::<bool>()))])
    }),
    node("POST", "/nodes/{id}/update", |random| Content {
        query: vec![("version", version(random))],
        ..body(NODES, json!({"Role": "manager", "Availability": "active", "Labels": {"zone": "a"}}))
    }),
    node("GET", "/services", |_| {
        with(
            list(
                json!({"id": ["x"], "label": ["a=b"], "mode": ["replicated-job"], "name": {"web": true}, "runtime": ["container"]}),
            ),
            ("status", json!(true)),
        )
    }),
    node("POST", "/services/create", |random| {
        let name = pick(random, &["a", "b", "web"]);
        Content { headers: credentials(random), ..body(NO_NAMES, service(name, random)) }
    }),
    node("GET", "/services/{id}", |_| query(SERVICES, vec![("insertDefaults", json!(true)), ("status", json!(true))])),
    node("DELETE", "/services/{id}", |_| plain(&["a", "b", "web", "nosuch", "<service>"])),
    node("POST", "/services/{id}/update", |random| {
        let query = vec![
            ("version", version(random)),
            ("rollback", json!(pick(random, &["", "", "", "previous", "x"]))),
            ("registryAuthFrom", json!(pick(random, &["spec", "previous-spec", "x"]))),
        ];
        let (names, name): (&[&str], _) = if random.random() {
            (&["moving"], "moving")
        } else {
            (&["a", "b", "web", "nosuch"], pick(random, &["a", "b", "web"]))
        };
        Content { query, headers: credentials(random), ..body(names, service(name, random)) }
    }),
    node("GET", "/services/{id}/logs", |random| query(SERVICES, logs(random))),
    node("GET", "/secrets", |_| list(json!({"id": ["x"], "label": ["a"], "name": ["a"], "names": ["a"]}))),
    node("POST", "/secrets/create", |random| file(random, "aGlkZGVu")),
    node("GET", "/secrets/{id}", |_| plain(OBJECTS)),
    node("DELETE", "/secrets/{id}", |_| plain(OBJECTS)),
    node("POST", "/secrets/{id}/update", |random| Content {
        names: OBJECTS,
        query: vec![("version", version(random))],
        ..file(random, "")
    }),
    node("GET", "/configs", |_| list(json!({"id": ["x"], "label": ["a"], "name": ["a"], "names": ["a"]}))),
    node("POST", "/configs/create", |random| file(random, "Y29uZg==")),
    node("GET", "/configs/{id}", |_| plain(OBJECTS)),
    node("DELETE", "/configs/{id}", |_| plain(OBJECTS)),
    node("POST", "/configs/{id}/update", |random| Content {
        names: OBJECTS,
        query: vec![("version", version(random))],
        ..file(random, "Y29uZg==")
    }),
    node("GET", "/networks", |_| {
        list(
            json!({"driver": ["overlay"], "id": ["x"], "label": ["a"], "name": ["a"], "scope": ["swarm"], "type": ["custom"]}),
        )
    }),
    node("POST", "/networks/create", |random| body(NO_NAMES, network(random))),
    node("POST", "/networks/prune", |_| list(json!({"label": ["a=b"]}))),
    engine("POST", "/networks/{id}/connect", |_| body(NETWORKS, json!({"Container": "nosuch", "EndpointConfig": {}}))),
    engine("POST", "/networks/{id}/disconnect", |_| body(NETWORKS, json!({"Container": "nosuch", "Force": true}))),
    node("GET", "/networks/{id}", |_| query(NETWORKS, vec![("verbose", json!(true)), ("scope", json!("swarm"))])),
    node("DELETE", "/networks/{id}", |_| plain(&["a", "b", "web", "nosuch", "ingress"])),
    node("GET", "/tasks", |_| {
        list(
            json!({"_up-to-date": ["true"], "desired-state": ["running"], "id": ["x"], "label": ["a"], "name": ["a"], "node": ["self"], "runtime": ["container"], "service": ["steady"]}),
        )
    }),
    node("GET", "/tasks/{id}", |_| plain(TASKS)),
    node("GET", "/tasks/{id}/logs", |random| query(TASKS, logs(random))),
    node("GET", "/images/json", |_| with(list(json!({"reference": [IMAGE]})), ("all", json!(1)))),
    node("POST", "/images/load", |random| {
        let query = if random.random_ratio(1, 3) { vec![("all", json!(1)), ("quiet", json!(1))] } else { Vec::new() };
        Content { query, body: Body::Bytes(archive::any(random)), ..Content::default() }
    }),
    node("GET", "/images/{*name}", |_| plain(SHOWN_IMAGES)),
    node("DELETE", "/images/{*name}", |_| query(IMAGES, vec![("force", json!(true)), ("noprune", json!(false))])),
    node("GET", "/containers/json", |_| Content {
        query: vec![
            ("all", json!(true)),
            ("limit", json!(3)),
            ("size", json!(true)),
            (
                "filters",
                json!({"ancestor": [IMAGE], "exited": ["0"], "is-task": ["true"], "label": ["a"], "name": ["^steady"], "status": ["running"]}),
            ),
        ],
        ..Content::default()
    }),
    node("GET", "/containers/{id}/json", |_| query(CONTAINERS, vec![("size", json!(true))])),
    node("GET", "/containers/{id}/logs", |random| query(CONTAINERS, logs(random))),
    node("GET", "/volumes", |_| list(json!({"driver": ["local"], "label": ["a"], "name": ["vol"]}))),
    node("GET", "/volumes/{name}", |_| plain(VOLUMES)),
    node("GET", "/system/df", |_| query(NO_NAMES, vec![("type", json!("container"))])),
    engine("POST", "/auth", |_| {
        body(
            NO_NAMES,
            json!({"username": "u", "password": "p", "serveraddress": "http://127.0.0.1:1", "identitytoken": ""}),
        )
    }),
    engine("POST", "/images/create", |random| Content {
        query: vec![("fromImage", json!("127.0.0.1:1/nosuch")), ("tag", json!("1"))],
        headers: credentials(random),
        ..Content::default()
    }),
    engine("POST", "/containers/create", |_| {
        with(
            body(
                NO_NAMES,
                json!({"Image": "nosuch:1", "Cmd": ["x"], "HostConfig": {"NetworkMode": "none", "Memory": 8_000_000}}),
            ),
            ("name", json!("a")),
        )
    }),
    engine("POST", "/containers/{id}/attach", |_| {
        hijacked(CONTAINERS, vec![("stream", json!(1)), ("stdout", json!(1)), ("stdin", json!(1))])
    }),
    engine("POST", "/containers/{id}/exec", |_| {
        body(CONTAINERS, json!({"AttachStdout": true, "Tty": false, "Cmd": ["/whoami", "x"], "Env": ["A=1"]}))
    }),
    engine("POST", "/exec/{id}/start", |_| Content {
        body: Body::Json(json!({"Detach": false, "Tty": false})),
        ..hijacked(&["nosuch", "a"], Vec::new())
    }),
    engine("POST", "/session", |_| hijacked(NO_NAMES, Vec::new())),
    engine("POST", "/build", |random| Content {
        query: vec![("t", json!("fuzz:1")), ("networkmode", json!("none"))],
        body: Body::Bytes(archive::any(random)),
        ..Content::default()
    }),
];

fn pick(random: &mut StdRng, names: &[&'static str]) -> &'static str {
    names.choose(random).copied().unwrap_or("a")
}

fn plain(names: &'static [&'static str]) -> Content {
    Content { names, ..Content::default() }
}

fn query(names: &'static [&'static str], query: Vec<(&'static str, Value)>) -> Content {
    Content { names, query, ..Content::default() }
}

fn body(names: &'static [&'static str], body: Value) -> Content {
    Content { names, body: Body::Json(body), ..Content::default() }
}

fn list(filters: Value) -> Content {
    query(NO_NAMES, vec![("filters", filters)])
}

fn with(mut content: Content, parameter: (&'static str, Value)) -> Content {
    content.query.push(parameter);
    content
}

/// As `docker exec` and `docker attach` ask.
fn hijacked(names: &'static [&'static str], parameters: Vec<(&'static str, Value)>) -> Content {
    let headers = vec![("Upgrade", "tcp".to_owned()), ("Connection", "Upgrade".to_owned())];
    Content { headers, ..query(names, parameters) }
}

/// A version: those that objects have, and that which the object has at the moment.
fn version(random: &mut StdRng) -> Value {
    if random.random_ratio(1, 2) { json!("<version>") } else { json!(random.random_range(0..4)) }
}

/// Never forced: a node that leaves its cluster has nothing more to be tried.
fn leave(random: &mut StdRng) -> Content {
    const UNFORCED: [&str; 5] = ["0", "false", "", "no", "none"];
    let query = if random.random() { Vec::new() } else { vec![("force", json!(pick(random, &UNFORCED)))] };
    Content { query, ..Content::default() }
}

fn membership() -> Content {
    body(
        NO_NAMES,
        json!({"ListenAddr": "0.0.0.0:2377", "AdvertiseAddr": "10.78.0.1", "RemoteAddrs": ["10.78.0.9:2377"],
            "JoinToken": "SWMTKN-1-a-b", "Availability": "active", "DataPathAddr": "", "DataPathPort": 4789,
            "ForceNewCluster": false, "DefaultAddrPool": ["10.0.0.0/8"], "SubnetSize": 24, "Spec": {}}),
    )
}

fn swarm_update(random: &mut StdRng) -> Content {
    let query = vec![
        ("version", version(random)),
        ("rotateWorkerToken", json!(random.random_ratio(1, 4))),
        ("rotateManagerToken", json!(random.random_ratio(1, 4))),
        ("rotateManagerUnlockKey", json!(random.random_ratio(1, 4))),
    ];
    let spec = json!({"Name": "default", "Labels": {}, "Orchestration": {"TaskHistoryRetentionLimit": 5}, "Raft": {},
        "Dispatcher": {"HeartbeatPeriod": 5_000_000_000u64},
        "CAConfig": {"NodeCertExpiry": 7_776_000_000_000_000u64, "ForceRotate": 0, "ExternalCAs": []},
        "TaskDefaults": {}, "EncryptionConfig": {"AutoLockManagers": random.random_ratio(1, 4)}});
    Content { query, ..body(NO_NAMES, spec) }
}

fn network(random: &mut StdRng) -> Value {
    let mut network = json!({"Name": pick(random, &["a", "b", "web"]), "Driver": "overlay", "Attachable": true, "Internal": false,
        "EnableIPv6": true, "Scope": "swarm", "Labels": {"a": "b"}, "Options": {"encrypted": ""}, "CheckDuplicate": true,
        "ConfigOnly": true, "IPAM": {"Driver": "default", "Options": {}, "Config": [{"Subnet": "10.50.0.0/24",
            "Gateway": "10.50.0.1", "IPRange": "10.50.0.128/25", "AuxiliaryAddresses": {"h": "10.50.0.2"}}]}});
    leave_out(&mut network, &["Options", "EnableIPv6", "ConfigOnly", "Scope", "IPAM", "Attachable"], random);
    if network["IPAM"].is_object() {
        leave_out(&mut network["IPAM"]["Config"][0], &["Gateway", "IPRange", "AuxiliaryAddresses"], random);
    }
    network
}

fn file(random: &mut StdRng, data: &str) -> Content {
    let name = pick(random, &["a", "b", "web"]);
    body(
        NO_NAMES,
        json!({"Name": name, "Labels": {"a": "b"}, "Data": data, "Templating": {"Name": "golang", "Options": {}}}),
    )
}

fn events(random: &mut StdRng) -> Content {
    let filters = json!({"type": ["service"], "event": ["create"], "scope": ["swarm"], "service": ["a"], "container": ["x"],
        "node": ["self"], "label": ["a=b"], "image": ["x"], "daemon": ["x"], "network": ["a"]});
    let mut query = vec![("filters", if random.random() { filters } else { json!({}) })];
    query.extend(moments(random));
    Content { query, ..Content::default() }
}

/// None of them, the past, or the future: a stream that has no end then.
fn moments(random: &mut StdRng) -> Vec<(&'static str, Value)> {
    const MOMENTS: [&str; 6] = ["0", "1", "1.000000001", "99999999999", "18446744073", "-1"];
    let mut moments = Vec::new();
    for name in ["since", "until"] {
        if random.random() {
            moments.push((name, json!(pick(random, &MOMENTS))));
        }
    }
    moments
}

fn logs(random: &mut StdRng) -> Vec<(&'static str, Value)> {
    let mut query = vec![
        ("stdout", json!(1)),
        ("stderr", json!(u8::from(random.random::<bool>()))),
        ("follow", json!(u8::from(random.random::<bool>()))),
        ("timestamps", json!(u8::from(random.random::<bool>()))),
        ("details", json!(u8::from(random.random::<bool>()))),
        ("tail", json!(pick(random, &["all", "0", "1", "10", "18446744073709551615", "-1"]))),
    ];
    if random.random() {
        query.extend(moments(random));
    }
    query
}

/// What a registry's user sends: nothing, something good, or something that is not.
fn credentials(random: &mut StdRng) -> Vec<(&'static str, String)> {
    let text = match random.random_range(0..12) {
        0 => "e30=".to_owned(),
        // {"username":"u","password":"p","serveraddress":"127.0.0.1:1"}
        1 | 2 => "eyJ1c2VybmFtZSI6InUiLCJwYXNzd29yZCI6InAiLCJzZXJ2ZXJhZGRyZXNzIjoiMTI3LjAuMC4xOjEifQ==".to_owned(),
        3 => "####".to_owned(),
        4 => "bm8ganNvbg==".to_owned(),
        // {"username":1}
        5 => "eyJ1c2VybmFtZSI6MX0".to_owned(),
        6 => "A".repeat(random.random_range(1..60_000)),
        7 => "\u{fc}\u{ff}".to_owned(),
        _ => return Vec::new(),
    };
    vec![("X-Registry-Auth", text)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use regex::Regex;

    /// Routes as the daemon's sources name them.
    fn routes() -> Vec<(String, String)> {
        const API: &str = include_str!("../../../../node/src/api.rs");
        const OBJECTS: &str = include_str!("../../../../node/src/api/objects.rs");
        let route = Regex::new(r#"(?s)\.route\(\s*(?:&path\()?"([^"]*)"\)?,(.*?)\)\s*(?:\n\s*(?:\.|\}))"#).unwrap();
        let method = Regex::new(r"\b(get|post|put|delete)\(").unwrap();
        let mut found = Vec::new();
        for (source, prefixes) in [(API, &[""][..]), (OBJECTS, &["/secrets", "/configs"])] {
            // Two routes may follow each other on neighbouring lines, so each is looked for from the end of the one before.
            let mut rest = source;
            while let Some(captures) = route.captures(rest) {
                for method in method.captures_iter(&captures[2]) {
                    for prefix in prefixes {
                        found.push((method[1].to_uppercase(), format!("{prefix}{}", &captures[1])));
                    }
                }
                rest = &rest[captures.get(2).unwrap().end()..];
            }
        }
        found
    }

    #[test]
    fn every_route_of_the_daemon_is_tried() {
        let routes = routes();
        assert!(routes.len() > 50, "the routes were not found: {routes:?}");
        let is_tried = |(method, path): &&(String, String)| {
            ENDPOINTS.iter().any(|endpoint| endpoint.method == method && endpoint.path == path)
        };
        let missing: Vec<_> = routes.iter().filter(|route| !is_tried(route)).collect();
        assert!(missing.is_empty(), "no shape for {missing:?}");
        let is_there = |endpoint: &&Endpoint| {
            endpoint.whose == Whose::Engine
                || routes.iter().any(|(method, path)| endpoint.method == method && endpoint.path == path)
        };
        let gone: Vec<_> =
            ENDPOINTS.iter().filter(|endpoint| !is_there(endpoint)).map(|endpoint| endpoint.path).collect();
        assert!(gone.is_empty(), "no such route: {gone:?}");
    }
}
