//! Requests: of the API's shapes with something changed, of paths that nobody expects, and of bytes that are hardly HTTP.

use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use serde_json::Value;
use shoal_tests::http::encoded;

use super::endpoints::{Body, ENDPOINTS, Endpoint};
use super::known::Known;
use super::mutate::{document, word};
use super::wire;

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
    /// Which of [`ENDPOINTS`] will see it, if it is certain that one does.
    pub endpoint: Option<usize>,
    /// How many answers have to come, if more than one.
    pub answers: usize,
}

impl Request {
    /// Returns it for people.
    pub fn shown(&self) -> String {
        let text = String::from_utf8_lossy(&self.bytes);
        text.chars().take(SHOWN_MAX).flat_map(char::escape_debug).collect()
    }
}

/// Draws a request.
pub fn any(random: &mut StdRng, known: &Known) -> Request {
    match random.random_range(0..100) {
        0..60 => shaped(random, known),
        60..70 => wandering(random),
        70..84 => wire::any(random),
        84..86 => wire::pipelined(random),
        86..90 => large(random),
        90..95 => Request { kind: "cut", pace: Pace::Cut, endpoint: None, ..shaped(random, known) },
        _ => Request { kind: "slow", pace: Pace::Slow, ..wandering(random) },
    }
}

/// What the API is made for, with something changed.
fn shaped(random: &mut StdRng, known: &Known) -> Request {
    // Services have the most that can be wrong.
    let chosen = if random.random_ratio(1, 4) {
        let makes = |endpoint: &Endpoint| endpoint.method == "POST" && endpoint.path.starts_with("/services/");
        let making: Vec<usize> = (0..ENDPOINTS.len()).filter(|place| makes(&ENDPOINTS[*place])).collect();
        making.choose(random).copied().unwrap_or_default()
    } else {
        random.random_range(0..ENDPOINTS.len())
    };
    to(chosen, random, known)
}

/// Draws a request to one endpoint, of those that [`ENDPOINTS`] lists.
pub fn to(chosen: usize, random: &mut StdRng, known: &Known) -> Request {
    let endpoint = &ENDPOINTS[chosen];
    let content = (endpoint.draw)(random);
    let choice = random.random_range(0..1000);
    let (version, is_spoken) = version(random);
    let path = path(endpoint, content.names, random);
    let query = query_of(endpoint, &content.query, random);
    let target = known.fill(&format!("{version}{path}{query}"), &path, choice);
    let mut head = format!("{} {target} HTTP/1.1\r\nHost: x\r\n", endpoint.method);
    let is_upgrade = content.headers.iter().any(|(name, _)| *name == "Upgrade");
    for (name, value) in &content.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if !is_upgrade {
        head.push_str("Connection: close\r\n");
    }
    let body = match content.body {
        Body::Nothing => Vec::new(),
        Body::Json(value) => {
            head.push_str("Content-Type: application/json\r\n");
            known.fill(&document(&value, random), &path, choice).into_bytes()
        }
        Body::Bytes(bytes) => bytes,
    };
    let bytes = [head.into_bytes(), framed(&body, random)].concat();
    let endpoint = (is_spoken && !path.contains("..")).then_some(chosen);
    Request { kind: "shaped", bytes, pace: Pace::Quick, is_whole: true, endpoint, answers: 0 }
}

/// Puts something in the place of a path's name.
fn path(endpoint: &Endpoint, names: &[&str], random: &mut StdRng) -> String {
    let Some((before, rest)) = endpoint.path.split_once('{') else { return endpoint.path.to_owned() };
    let after = rest.split_once('}').map_or("", |(_, after)| after);
    // What has slashes in it ends in what is asked of it.
    let after = if rest.starts_with('*') && endpoint.method == "GET" { "/json" } else { after };
    let name = match random.random_range(0..12) {
        0 => encoded(&word(random)),
        1 => encoded(names.choose(random).copied().unwrap_or("a")),
        2 => "x".repeat(random.random_range(1..3000)),
        _ => names.choose(random).copied().unwrap_or("a").to_owned(),
    };
    // An empty name would make another path of it.
    let name = if name.is_empty() { "a".to_owned() } else { name };
    format!("{before}{name}{after}")
}

/// Writes the parameters, some of them changed, left out, doubled, or others. To leave the cluster nobody is ever forced.
fn query_of(endpoint: &Endpoint, parameters: &[(&str, Value)], random: &mut StdRng) -> String {
    let leaves = endpoint.path == "/swarm/leave";
    let mut query = String::new();
    for (name, value) in parameters {
        let value = match random.random_range(0..16) {
            0 if !leaves => word(random),
            1 if !leaves => continue,
            _ => match value {
                Value::String(text) => text.clone(),
                Value::Object(_) => document(value, random),
                other => other.to_string(),
            },
        };
        let times = if random.random_ratio(1, 30) { 2 } else { 1 };
        query.push_str(&format!("&{name}={}", encoded(&value)).repeat(times));
    }
    if !leaves && random.random_ratio(1, 8) {
        query.push_str(&further(random));
    }
    query.replacen('&', "?", 1)
}

/// Puts a length or chunks to a body, and the end of the head before it.
fn framed(body: &[u8], random: &mut StdRng) -> Vec<u8> {
    if body.is_empty() || random.random_ratio(3, 4) {
        return [format!("Content-Length: {}\r\n\r\n", body.len()).as_bytes(), body].concat();
    }
    let mut bytes = b"Transfer-Encoding: chunked\r\n\r\n".to_vec();
    for chunk in body.chunks(random.random_range(1..20_000)) {
        bytes.extend(format!("{:x}\r\n", chunk.len()).bytes());
        bytes.extend(chunk);
        bytes.extend(b"\r\n");
    }
    bytes.extend(b"0\r\n\r\n");
    bytes
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
    let mut path = version(random).0.to_owned();
    for _ in 0..random.random_range(1..4) {
        path.push('/');
        path.push_str(PARTS.choose(random).copied().unwrap_or("info"));
    }
    let path = format!("{path}?stdout=1&until=1{}", further(random));
    write("wandering", method, &path, "")
}

/// Returns a prefix of a path, and whether the daemon speaks that version.
fn version(random: &mut StdRng) -> (&'static str, bool) {
    const SPOKEN: [&str; 5] = ["", "", "/v1.41", "/v1.50", "/v1.24"];
    const OTHERS: [&str; 4] = ["/v1.99", "/v0.1", "/v1.", "/v99999999999999999999.1"];
    if random.random_ratio(1, 12) {
        (OTHERS.choose(random).copied().unwrap_or(""), false)
    } else {
        (SPOKEN.choose(random).copied().unwrap_or(""), true)
    }
}

/// More parameters of a query, each beginning with `&`.
fn further(random: &mut StdRng) -> String {
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
    let mut query = String::new();
    for _ in 0..random.random_range(0..4) {
        let name = NAMES.choose(random).copied().unwrap_or("status");
        query.push_str(&format!("&{name}={}", encoded(&word(random))));
    }
    query
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
    Request { is_whole: false, bytes: head.into_bytes(), ..write("large", "GET", "/", "") }
}

/// Writes a request as it should be.
pub fn write(kind: &'static str, method: &str, path: &str, body: &str) -> Request {
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    let bytes = [head.as_bytes(), body.as_bytes()].concat();
    Request { kind, bytes, pace: Pace::Quick, is_whole: true, endpoint: None, answers: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use std::collections::BTreeSet;

    fn draw(seed: u64, count: usize) -> Vec<Request> {
        let mut random = StdRng::seed_from_u64(seed);
        (0..count).map(|_| any(&mut random, &Known::default())).collect()
    }

    #[test]
    fn requests_follow_from_the_seed() {
        let bytes = |seed| draw(seed, 200).into_iter().map(|request| request.bytes).collect::<Vec<_>>();
        assert_eq!(bytes(7), bytes(7));
        assert_ne!(bytes(7), bytes(8));
        let kinds: BTreeSet<_> = draw(1, 500).into_iter().map(|request| request.kind).collect();
        let want = ["cut", "large", "malformed", "pipelined", "shaped", "slow", "wandering"];
        assert_eq!(kinds.into_iter().collect::<Vec<_>>(), want);
    }

    #[test]
    fn every_endpoint_is_drawn() {
        let drawn: BTreeSet<usize> = draw(1, 3000).into_iter().filter_map(|request| request.endpoint).collect();
        let missing: Vec<_> = (0..ENDPOINTS.len()).filter(|place| !drawn.contains(place)).collect();
        assert!(missing.is_empty(), "{missing:?}");
    }

    #[test]
    fn the_node_is_never_made_to_leave() {
        let mut asked = 0;
        for request in draw(3, 5000) {
            let text = String::from_utf8_lossy(&request.bytes);
            let line = text.lines().next().unwrap_or_default();
            if line.contains("/swarm/leave") {
                asked += 1;
                let forced = ["force=true", "force=1", "force=%", "force=a"].iter().any(|forced| line.contains(forced));
                assert!(!forced, "{line}");
            }
        }
        assert!(asked > 10, "{asked}");
    }
}
