//! Makes what two clusters print comparable: replaces ids, times, addresses, ports and versions, and nothing else.
//!
//! The rules, in the order in which they are applied:
//!
//! 1. ids: join tokens, certificates and public keys, names of 64 hexadecimal digits (with or without `sha256:`), of 25 and of
//!    12 letters and digits (of 12 letters alone at the beginning of a line), numbers of processes;
//! 2. times: moments in RFC 3339 or as Go prints them, and ages (`5 seconds ago`, `Up 5 seconds`);
//! 3. addresses: IPv4 with or without a port, MAC;
//! 4. ports of 30000 and above, which are given out;
//! 5. versions: those of the programs, told apart by asking each; counts of an object's writes (`Version.Index`).
//!
//! What follows from that: columns are as wide as what stands in them, so several blanks count as two, and none count at the
//! end of a line. How often a client prints that it waits is a matter of time, so of its lines about progress those stay that
//! tell the end. JSON is compared by its fields, whose order has no meaning.

use std::sync::LazyLock;

use regex::Regex;
use serde_json::{Deserializer, Value};

/// What is replaced by what, in this order.
static RULES: LazyLock<Vec<(Regex, &str)>> = LazyLock::new(|| {
    [
        (r"-----BEGIN CERTIFICATE-----[^-]*-----END CERTIFICATE-----\n?", "<certificate>"),
        (r"\b(MFkwEwYHKoZI|MCowBQYDK2Vw)[0-9A-Za-z+/]+=*", "<id>"),
        (r"\b([0-9A-Z]{4}:){11}[0-9A-Z]{4}\b", "<id>"),
        (r"SWMTKN-1-[0-9a-z]{50}-[0-9a-z]{25}", "<token>"),
        (r"SWMKEY-1-[0-9A-Za-z+/]{43}", "<token>"),
        (r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z| [+-]\d{4} (UTC|utc)|[+-]\d\d:\d\d)?", "<time>"),
        (
            r"([Ll]ess than a second|[Aa]bout an? (minute|hour)|\d+ (second|minute|hour|day|week|month|year)s?) ago",
            "<time> ago",
        ),
        (r"Up ([Ll]ess than a second|[Aa]bout an? (minute|hour)|\d+ (second|minute|hour)s?)", "Up <time>"),
        (r"\b(sha256:)?[0-9a-f]{64}\b", "<id>"),
        (r"\b[0-9a-z]{25}\b", "<id>"),
        (r"(?m)^[0-9a-z]{12}\b", "<id>"),
        (r"\.[0-9a-z]{12}@", ".<id>@"),
        (r"\b[0-9a-z]*[0-9][0-9a-z]*\b", "<short>"),
        (r"\b\d{1,3}(\.\d{1,3}){3}(:\d+)?\b", "<address>"),
        (r"\b([0-9a-f]{2}:){5}[0-9a-f]{2}\b", "<address>"),
        (r"\b(3\d{4}|[4-6]\d{4})\b", "<port>"),
    ]
    .map(|(pattern, with)| (Regex::new(pattern).expect("the pattern is a constant"), with))
    .into()
});

/// Lines of a client that waits. How many there are depends on how long it does.
static WAITING: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"^(overall progress: |\d+/\d+:|verify: Waiting |<id>:)").expect("a constant"));

/// Characters of an id that was cut.
const SHORT: usize = 12;

/// Replaces what may differ.
#[derive(Debug, Clone, Default)]
pub struct Normaliser {
    /// Versions of the programs that this cluster consists of, longest first.
    versions: Vec<String>,
}

impl Normaliser {
    /// Makes one for a cluster whose programs have these versions.
    pub fn new(mut versions: Vec<String>) -> Self {
        versions.retain(|version| !version.is_empty());
        versions.sort_by_key(|version| std::cmp::Reverse(version.len()));
        Self { versions }
    }

    /// Returns the lines to compare of what a command printed.
    pub fn lines(&self, text: &str) -> Vec<String> {
        match documents(text) {
            Some(documents) => {
                let mut lines = Vec::new();
                for document in &documents {
                    self.flatten("", document, &mut lines);
                }
                lines.sort();
                lines
            }
            None => self.plain(text),
        }
    }

    fn plain(&self, text: &str) -> Vec<String> {
        let text = self.text(text);
        let blanks = Regex::new("[ \t]{2,}|\t").expect("a constant");
        let lines = text.lines().map(|line| blanks.replace_all(line.trim_end(), "  ").into_owned());
        let lines: Vec<String> = lines.filter(|line| !line.is_empty()).collect();
        let last_progress = lines.iter().rposition(|line| line.starts_with("overall progress: "));
        let kept = |(place, line): (usize, String)| {
            let tells_the_end = Some(place) == last_progress;
            (tells_the_end || !WAITING.is_match(&line)).then_some(line)
        };
        lines.into_iter().enumerate().filter_map(kept).collect()
    }

    /// Replaces what may differ in a text.
    pub fn text(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (rule, with) in RULES.iter() {
            text = match *with {
                "<short>" => {
                    rule.replace_all(&text, |found: &regex::Captures<'_>| {
                        if found[0].len() == SHORT { "<id>".to_owned() } else { found[0].to_owned() }
                    })
                    .into_owned()
                }
                with => rule.replace_all(&text, with).into_owned(),
            };
        }
        self.versions.iter().fold(text, |text, version| text.replace(version, "<version>"))
    }

    fn flatten(&self, path: &str, value: &Value, lines: &mut Vec<String>) {
        match value {
            Value::Object(fields) if !fields.is_empty() => {
                for (name, value) in fields {
                    self.flatten(&format!("{path}.{}", self.text(name)), value, lines);
                }
            }
            Value::Array(items) if !items.is_empty() => {
                for (place, value) in items.iter().enumerate() {
                    self.flatten(&format!("{path}[{place}]"), value, lines);
                }
            }
            other => lines.push(format!("{path} = {}", self.leaf(path, other))),
        }
    }

    fn leaf(&self, path: &str, value: &Value) -> String {
        let name = path.rsplit('.').next().unwrap_or_default();
        let stands_for = match (name, value) {
            ("Index", Value::Number(_)) if path.ends_with("Version.Index") => "<version>",
            ("PID" | "Pid", Value::Number(number)) if number.as_u64() != Some(0) => "<id>",
            ("time" | "timeNano", Value::Number(_)) => "<time>",
            (_, Value::String(text)) => return format!("\"{}\"", self.text(text)),
            (_, other) => return self.text(&other.to_string()),
        };
        stands_for.to_owned()
    }
}

/// Reads a text that is nothing but JSON objects and arrays.
fn documents(text: &str) -> Option<Vec<Value>> {
    if !text.trim_start().starts_with(['{', '[']) {
        return None;
    }
    let documents: Result<Vec<Value>, _> = Deserializer::from_str(text).into_iter().collect();
    documents.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_may_differ_is_replaced() {
        let normaliser = Normaliser::new(vec!["20.10.24+dfsg1".into(), String::new()]);
        for (text, want) in [
            (
                "dikudt41jnh24m67n37plsnsp *   n1   Ready  Leader  20.10.24+dfsg1",
                "<id> *  n1  Ready  Leader  <version>",
            ),
            (
                "ax71cpsr0tts   web.1     lab/web:1   n1   Running   Running 11 seconds ago   ",
                "<id>  web.1  lab/web:1  n1  Running  Running <time> ago",
            ),
            ("less than a second ago, About a minute ago, 2 hours ago", "<time> ago, <time> ago, <time> ago"),
            ("Joined at:             \t2026-11-23 01:52:10.345749459 +0000 utc", "Joined at:  <time>"),
            ("2026-11-23T01:52:37.331476108Z listening", "<time> listening"),
            (
                "docker swarm join --token SWMTKN-1-3u8f6v2rqpntv67eqm4oijkewd9iihknxlso2mt2n947fl3d0h-06fluu2cr03dmzmelj576bzh1 10.77.0.1:2377",
                "docker swarm join --token <token> <address>",
            ),
            ("Subnet 10.0.1.0/24, at 10.0.0.7:2377", "Subnet <address>/24, at <address>"),
            ("-----BEGIN CERTIFICATE-----\nMIIB/+=\nabc\n-----END CERTIFICATE-----\n", "<certificate>"),
            ("*:30000->80/tcp *:8080->80/tcp", "*:<port>->80/tcp *:8080->80/tcp"),
            (
                "replicated 3/3 100% memory 67108864, 5s, 250000000",
                "replicated 3/3 100% memory 67108864, 5s, 250000000",
            ),
            ("[x", "[x"),
            ("Public Key: MCowBQYDK2VwAyEAAAAA+/8=", "Public Key: <id>"),
            ("JEBW:T4AN:EI77:CQCL:DZPQ:POFP:SNEH:UAP2:O3LT:FAN7:2RCG:4HQ3", "<id>"),
        ] {
            assert_eq!(normaliser.lines(text).join("\n"), want, "{text}");
        }
    }

    #[test]
    fn json_is_compared_by_its_fields() {
        let text = r#"[{"Version": {"Index": 41}, "Spec": {"Labels": {}, "Name": "web", "N": 3}, "PID": 7, "E": null, "L": ["a"]}]"#;
        let want = [
            "[0].E = null",
            "[0].L[0] = \"a\"",
            "[0].PID = <id>",
            "[0].Spec.Labels = {}",
            "[0].Spec.N = 3",
            "[0].Spec.Name = \"web\"",
            "[0].Version.Index = <version>",
        ];
        assert_eq!(Normaliser::default().lines(text), want);
    }

    #[test]
    fn of_progress_the_end_stays() {
        let text = "id\noverall progress: 0 out of 2 tasks\n1/2:  \noverall progress: 1 out of 2 tasks\n1/2: running   \n\
                    overall progress: 2 out of 2 tasks\nverify: Waiting 5 seconds to verify that tasks are stable...\n\
                    verify: Service converged\n";
        let want = ["id", "overall progress: 2 out of 2 tasks", "verify: Service converged"];
        assert_eq!(Normaliser::default().lines(text), want);
    }
}
