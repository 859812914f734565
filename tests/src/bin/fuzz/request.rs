//! Requests: of the API's shapes with something changed, of paths that nobody expects, and of bytes that are hardly HTTP.

use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use serde_json::{Value, json};
use shoal_tests::http::encoded;
use shoal_tests::lab::IMAGE;

use super::mutate::{document, word};

/// Characters of a request that are shown.
const SHOWN_MAX: usize = 2000;

/// How a request is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// At once.
    Quick,
    /// Byte by byte, for a while.
    Slow,
    /// Up to some byte, and then the client is gone.
    Cut,
}

/// A request.
#[derive(Debug, Clone)]
pub struct Request {
    /// What kind of request it is.
    pub kind: &'static str,
    /// What is sent.
    pub bytes: Vec<u8>,
    /// How.
    pub pace: Pace,
    /// Whether the daemon can know where it ends.
    pub is_whole: bool,
}

impl Request {
    /// Returns it for people.
    pub fn shown(&self) -> String {
        let text = String::from_utf8_lossy(&self.bytes);
        text.chars().take(SHOWN_MAX).flat_map(char::escape_debug).collect()
    }
}

/// Draws a request.
pub fn any(random: &mut StdRng) -> Request {
    match random.random_range(0..100) {
        0..55 => shaped(random),
        55..75 => wandering(random),
        75..85 => malformed(random),
        85..90 => large(random),
        90..95 => Request { kind: "cut", pace: Pace::Cut, ..shaped(random) },
        _ => Request { kind: "slow", pace: Pace::Slow, ..wandering(random) },
    }
}

/// What the API is made for, with something changed.
fn shaped(random: &mut StdRng) -> Request {
    let (method, path, body) = shape(random);
    let body = body.map(|body| document(&body, random)).unwrap_or_default();
    let path = format!("{}{path}", version(random));
    write("shaped", method, &path, &body)
}

fn shape(random: &mut StdRng) -> (&'static str, String, Option<Value>) {
    let name =
        |random: &mut StdRng| ["a", "b", "web", "nosuch", "ingress", "self"].choose(random).copied().unwrap_or("a");
    let (one, other) = (name(random), name(random));
    let count = random.random_range(0..4_u32);
    match random.random_range(0..17) {
        0..4 => ("POST", "/services/create".into(), Some(service(one))),
        4..6 => ("POST", format!("/services/{one}/update?version={count}{}", query(random)), Some(service(other))),
        6 => ("POST", "/secrets/create".into(), Some(json!({"Name": one, "Labels": {"a": "b"}, "Data": "aGlkZGVu"}))),
        7 => ("POST", "/configs/create".into(), Some(json!({"Name": one, "Labels": {"a": "b"}, "Data": "Y29uZg=="}))),
        8 => (
            "POST",
            format!("/{}/{one}/update?version={count}", if random.random() { "secrets" } else { "configs" }),
            Some(json!({"Name": one, "Labels": {"c": "d"}, "Data": "aGlkZGVu"})),
        ),
        9 => (
            "POST",
            "/networks/create".into(),
            Some(json!({"Name": one, "Driver": "overlay", "Attachable": true, "Internal": false, "Labels": {"a": "b"},
                "IPAM": {"Driver": "default", "Config": [{"Subnet": "10.50.0.0/24", "Gateway": "10.50.0.1"}]}, "Options": {}})),
        ),
        10 => (
            "POST",
            format!("/nodes/{one}/update?version={count}"),
            Some(json!({"Role": "manager", "Availability": "active", "Labels": {"zone": "a"}})),
        ),
        11 => (
            "POST",
            format!("/swarm/update?version={count}{}", query(random)),
            Some(
                json!({"Name": "default", "Labels": {}, "Orchestration": {"TaskHistoryRetentionLimit": 5}, "Raft": {},
                "Dispatcher": {"HeartbeatPeriod": 5_000_000_000u64}, "CAConfig": {"NodeCertExpiry": 7_776_000_000_000_000u64},
                "EncryptionConfig": {"AutoLockManagers": false}}),
            ),
        ),
        12 => (
            "POST",
            ["/swarm/init", "/swarm/join", "/swarm/unlock"][random.random_range(0..3)].into(),
            Some(json!({"ListenAddr": "0.0.0.0:2377", "AdvertiseAddr": "10.78.0.1", "RemoteAddrs": ["10.78.0.9:2377"],
                "JoinToken": "SWMTKN-1-a-b", "Availability": "active", "Spec": {}, "UnlockKey": "SWMKEY-1-a"})),
        ),
        13 => (
            "DELETE",
            format!("/{}/{one}", ["services", "secrets", "configs", "networks", "nodes"][count as usize]),
            None,
        ),
        _ => {
            let lists = [
                "services",
                "tasks",
                "nodes",
                "secrets",
                "configs",
                "networks",
                "containers/json",
                "images/json",
                "volumes",
            ];
            let list = lists.choose(random).copied().unwrap_or("tasks");
            let filters =
                document(&json!({"name": {"web": true}, "label": ["a=b"], "id": ["x"], "role": ["manager"]}), random);
            ("GET", format!("/{list}?filters={}{}", encoded(&filters), query(random)), None)
        }
    }
}

/// A service with as much as fits into one. Its image is there half of the time.
fn service(name: &str) -> Value {
    json!({"Name": name, "Labels": {"l": "1"}, "Mode": {"Replicated": {"Replicas": 1}},
        "TaskTemplate": {
            "ContainerSpec": {"Image": if name < "c" { IMAGE } else { "nosuch:1" }, "Args": ["x"], "Env": ["A=1"],
                "Hostname": "h", "Dir": "/tmp", "User": "0", "Labels": {"c": "1"}, "Init": false, "ReadOnly": true,
                "Mounts": [{"Type": "tmpfs", "Target": "/t"}, {"Type": "volume", "Source": "v", "Target": "/v"}],
                "StopGracePeriod": 100_000_000, "StopSignal": "SIGTERM",
                "Healthcheck": {"Test": ["CMD", "/whoami", "check"], "Interval": 1_000_000_000u64, "Retries": 3},
                "Secrets": [], "Configs": [], "Hosts": ["10.0.0.1 h"], "DNSConfig": {"Nameservers": ["10.0.0.1"]},
                "CapabilityAdd": ["CAP_NET_ADMIN"], "Ulimits": [{"Name": "nofile", "Soft": 10, "Hard": 20}],
                "Sysctls": {"net.core.somaxconn": "512"}, "Isolation": "default"},
            "Resources": {"Limits": {"NanoCPUs": 100_000_000, "MemoryBytes": 16_777_216, "Pids": 50},
                "Reservations": {"NanoCPUs": 1_000_000, "MemoryBytes": 4_194_304}},
            "RestartPolicy": {"Condition": "any", "Delay": 1_000_000_000u64, "MaxAttempts": 2, "Window": 0},
            "Placement": {"Constraints": ["node.role==manager"], "MaxReplicas": 3, "Platforms": []},
            "Networks": [], "ForceUpdate": 0, "Runtime": "container", "LogDriver": {"Name": "json-file", "Options": {}}},
        "UpdateConfig": {"Parallelism": 1, "Delay": 0, "FailureAction": "rollback", "Monitor": 1_000_000_000u64,
            "MaxFailureRatio": 0.1, "Order": "start-first"},
        "RollbackConfig": {"Parallelism": 0, "Order": "stop-first"},
        "EndpointSpec": {"Mode": "vip", "Ports": [{"Protocol": "tcp", "TargetPort": 80, "PublishedPort": 8099,
            "PublishMode": "ingress"}]}})
}

/// Paths and methods that may or may not exist.
fn wandering(random: &mut StdRng) -> Request {
    const METHODS: [&str; 8] = ["GET", "POST", "DELETE", "HEAD", "PUT", "OPTIONS", "PATCH", "BREW"];
    const PARTS: [&str; 30] = [
        "services",
        "tasks",
        "nodes",
        "secrets",
        "configs",
        "networks",
        "swarm",
        "info",
        "version",
        "_ping",
        "events",
        "metrics",
        "shoal",
        "status",
        "images",
        "containers",
        "volumes",
        "json",
        "logs",
        "update",
        "create",
        "web",
        "..",
        "%2e%2e",
        "%00",
        "",
        "%zz",
        "ä",
        "system",
        "df",
    ];
    let method = METHODS.choose(random).copied().unwrap_or("GET");
    let mut path = version(random).to_owned();
    for _ in 0..random.random_range(1..4) {
        path.push('/');
        path.push_str(PARTS.choose(random).copied().unwrap_or("info"));
    }
    // A node that leaves its cluster has nothing more to be tried.
    if path.contains("leave") {
        path.clear();
    }
    let path = format!("{path}?stdout=1{}", query(random));
    write("wandering", method, &path, "")
}

fn version(random: &mut StdRng) -> &'static str {
    const VERSIONS: [&str; 9] =
        ["", "", "/v1.41", "/v1.50", "/v1.24", "/v1.99", "/v0.1", "/v1.", "/v99999999999999999999.1"];
    VERSIONS.choose(random).copied().unwrap_or("")
}

/// More parameters of a query, each beginning with `&`. Streams are given an end.
fn query(random: &mut StdRng) -> String {
    const NAMES: [&str; 18] = [
        "version",
        "status",
        "insertDefaults",
        "rollback",
        "since",
        "tail",
        "stdout",
        "stderr",
        "timestamps",
        "details",
        "all",
        "limit",
        "force",
        "rotateWorkerToken",
        "rotateManagerToken",
        "verbose",
        "scope",
        "filters",
    ];
    let mut query = String::from("&until=1");
    for _ in 0..random.random_range(0..4) {
        let name = NAMES.choose(random).copied().unwrap_or("status");
        query.push_str(&format!("&{name}={}", encoded(&word(random))));
    }
    query
}

/// What is hardly HTTP.
fn malformed(random: &mut StdRng) -> Request {
    let kind = "malformed";
    let noise = |random: &mut StdRng, length: usize| (0..length).map(|_| random.random::<u8>()).collect::<Vec<u8>>();
    let bytes = match random.random_range(0..8) {
        0 => {
            let length = random.random_range(1..4096);
            noise(random, length)
        }
        1 => b"GET /info\r\n\r\n".to_vec(),
        2 => b"GET /info HTTP/9.9\r\nHost: x\r\n\r\n".to_vec(),
        3 => b"POST /services/create HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{}".to_vec(),
        4 => b"POST /services/create HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n"
            .to_vec(),
        5 => b"POST /services/create HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\nContent-Length: 7\r\n\r\n{}".to_vec(),
        6 => b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec(),
        _ => {
            let mut bytes = write(kind, "POST", "/services/create", "{}").bytes;
            for _ in 0..random.random_range(1..8) {
                let place = random.random_range(0..bytes.len());
                bytes[place] = random.random();
            }
            bytes
        }
    };
    Request { kind, bytes, pace: Pace::Quick, is_whole: false }
}

/// Heads and bodies beyond what is accepted.
fn large(random: &mut StdRng) -> Request {
    let mut head = String::from("GET /info HTTP/1.1\r\nHost: x\r\n");
    match random.random_range(0..4) {
        0 => head.push_str(&format!("X: {}\r\n", "y".repeat(random.random_range(1_000..2_000_000)))),
        1 => (0..random.random_range(50..5_000)).for_each(|number| head.push_str(&format!("X-{number}: y\r\n"))),
        2 => head = format!("GET /{} HTTP/1.1\r\nHost: x\r\n", "a".repeat(random.random_range(1_000..500_000))),
        _ => {
            let body = format!("{{\"Name\":\"{}\"}}", "a".repeat(random.random_range(10_000..3_000_000)));
            return Request { is_whole: false, ..write("large", "POST", "/configs/create", &body) };
        }
    }
    head.push_str("\r\n");
    Request { kind: "large", bytes: head.into_bytes(), pace: Pace::Quick, is_whole: false }
}

fn write(kind: &'static str, method: &str, path: &str, body: &str) -> Request {
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    Request { kind, bytes: [head.as_bytes(), body.as_bytes()].concat(), pace: Pace::Quick, is_whole: true }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn requests_follow_from_the_seed() {
        let draw = |seed| {
            let mut random = StdRng::seed_from_u64(seed);
            (0..200).map(|_| any(&mut random).bytes).collect::<Vec<_>>()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        let mut random = StdRng::seed_from_u64(1);
        let kinds: std::collections::BTreeSet<_> = (0..500).map(|_| any(&mut random).kind).collect();
        assert_eq!(kinds.into_iter().collect::<Vec<_>>(), ["cut", "large", "malformed", "shaped", "slow", "wandering"]);
    }
}
