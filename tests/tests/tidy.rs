//! The house rules that a script can check: who may import what, how long files are, and what must not be written.

#![expect(clippy::unwrap_used, reason = "what helps tests may fail as tests do")]

use std::fs;
use std::path::{Path, PathBuf};

/// Lines of a file at most, tests not counted.
const LINES_MAX: usize = 500;

/// The shells of the daemon: each is known to the runtime alone.
const SHELLS: [&str; 9] = ["agent", "api", "discovery", "disk", "driver", "gossip", "ingress", "overlay", "swarm"];

/// Who may import a shell nevertheless: the agent is the driver's other half, the API speaks of its images and output.
const SHELL_IMPORTS: [(&str, &str); 2] = [("agent", "driver"), ("api", "driver")];

/// What a decision must not touch.
const IMPURE: [&str; 17] = [
    "tokio",
    "async fn",
    ".await",
    "std::fs",
    "std::env",
    "std::thread",
    "std::process",
    "std::os",
    "std::net::Tcp",
    "std::net::Udp",
    "Instant",
    "SystemTime",
    "HashMap",
    "HashSet",
    "rand::rng(",
    "println!",
    "static mut",
];

/// A source file of ours.
struct Source {
    /// Below the repository's root.
    path: PathBuf,
    text: String,
}

impl Source {
    fn name(&self) -> String {
        self.path.display().to_string()
    }

    fn is_below(&self, directory: &str) -> bool {
        self.path.starts_with(directory)
    }

    /// Whether the whole file is a test.
    fn is_test(&self) -> bool {
        let is_tests = |part: &str| part == "tests" || part == "tests.rs";
        let outer = self.path.strip_prefix("tests").unwrap_or(&self.path);
        outer.components().any(|part| part.as_os_str().to_str().is_some_and(is_tests))
    }

    /// The lines up to the tests, without comments.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines = self.text.lines().enumerate().map(|(number, line)| (number + 1, line));
        let code = lines.take_while(|(_, line)| !line.starts_with("#[cfg(test)]"));
        code.map(|(number, line)| (number, line.split("//").next().unwrap_or_default()))
    }
}

/// Every Rust file of the repository but what is built.
fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let (mut sources, mut left) = (Vec::new(), ["protocol", "node", "cli", "tests"].map(|dir| root.join(dir)).to_vec());
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.ends_with("target") {
                left.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                sources.push(Source { path: path.strip_prefix(root).unwrap().to_path_buf(), text });
            }
        }
    }
    assert!(sources.len() > 40, "the sources were not found");
    sources
}

/// Fails with all findings at once.
fn expect_none(findings: Vec<String>) {
    assert!(findings.is_empty(), "\n{}", findings.join("\n"));
}

/// Finds lines of code that hold one of some texts.
fn find(sources: &[Source], chosen: impl Fn(&Source) -> bool, texts: &[&str]) -> Vec<String> {
    let mut findings = Vec::new();
    for source in sources.iter().filter(|source| chosen(source) && !source.is_test()) {
        for (number, line) in source.code() {
            for text in texts.iter().filter(|text| holds(line, text)) {
                findings.push(format!("{}:{number}: '{text}' in: {}", source.name(), line.trim()));
            }
        }
    }
    findings
}

/// Whether `line` holds `text` as a word of its own where it begins or ends with a letter.
fn holds(line: &str, text: &str) -> bool {
    let is_word = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    line.match_indices(text).any(|(at, _)| {
        let (before, after) = (line[..at].chars().next_back(), line[at + text.len()..].chars().next());
        let opens = text.starts_with(char::is_alphabetic) && is_word(before);
        let goes_on = matches!(text, "Instant" | "tokio" | "HashMap" | "HashSet") && is_word(after);
        !opens && !goes_on
    })
}

#[test]
fn decisions_are_pure() {
    expect_none(find(&sources(), |source| source.is_below("node/control/src"), &IMPURE));
}

#[test]
fn the_protocol_does_no_io() {
    let forbidden = ["tokio", "libp2p", "async fn", "std::fs", "std::env", "std::thread", "std::net::Tcp", "Instant"];
    expect_none(find(&sources(), |source| source.is_below("protocol/src"), &forbidden));
}

#[test]
fn shells_do_not_know_each_other() {
    let sources = sources();
    let mut findings = Vec::new();
    for shell in SHELLS {
        let of_shell = |source: &Source| {
            source.is_below(&format!("node/src/{shell}")) || source.path.ends_with(format!("node/src/{shell}.rs"))
        };
        for other in SHELLS.iter().filter(|other| **other != shell && !SHELL_IMPORTS.contains(&(shell, **other))) {
            findings.extend(find(&sources, of_shell, &[&format!("crate::{other}")]));
        }
        findings.extend(find(&sources, of_shell, &["crate::runtime"]));
    }
    expect_none(findings);
}

#[test]
fn only_the_codec_names_bincode() {
    let elsewhere =
        |source: &Source| !source.path.ends_with("protocol/src/codec.rs") && !source.is_below("tests/tests");
    expect_none(find(&sources(), elsewhere, &["bincode::"]));
}

#[test]
fn the_client_and_the_daemon_do_not_know_each_other() {
    let sources = sources();
    let mut findings = find(&sources, |source| source.is_below("cli/src"), &["shoal_node", "shoal_control"]);
    findings.extend(find(&sources, |source| source.is_below("node"), &["shoal_cli"]));
    expect_none(findings);
}

#[test]
fn files_are_short() {
    let long = sources().into_iter().filter(|source| !source.is_test()).filter_map(|source| {
        let lines = source.code().count();
        (lines >= LINES_MAX).then(|| format!("{} has {lines} lines", source.name()))
    });
    expect_none(long.collect());
}

#[test]
fn modules_say_what_they_are() {
    let silent = sources().into_iter().filter(|source| !source.is_test() && !source.text.starts_with("//!"));
    expect_none(silent.map(|source| format!("{} does not open with //!", source.name())).collect());
}

#[test]
fn modules_are_named_files() {
    let sources = sources();
    let unnamed = sources.iter().filter(|source| source.path.ends_with("mod.rs"));
    expect_none(unnamed.map(|source| format!("{} should be named after its module", source.name())).collect());
}

#[test]
fn nothing_is_left_undone_or_silenced() {
    let not_here = |source: &Source| !source.path.ends_with("tests/tests/tidy.rs");
    let forbidden = ["todo!", "unimplemented!", "dbg!", "#[allow(", "#![allow(", "FIXME", "XXX"];
    expect_none(find(&sources(), not_here, &forbidden));
}

#[test]
fn unsafe_code_says_why_it_is_sound() {
    let mut findings = Vec::new();
    for source in sources() {
        let lines: Vec<&str> = source.text.lines().collect();
        for (number, line) in lines.iter().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            if !code.contains("unsafe {") && !code.contains("unsafe impl") || source.path.ends_with("tidy.rs") {
                continue;
            }
            let reasons = lines[number.saturating_sub(6)..number].iter().any(|line| line.contains("// SAFETY:"));
            if !reasons {
                findings.push(format!("{}:{}: unsafe without // SAFETY:", source.name(), number + 1));
            }
        }
    }
    expect_none(findings);
}

#[test]
fn the_rules_find_what_they_forbid() {
    for (line, text, want) in [
        ("use tokio::time;", "tokio", true),
        ("let tokio_like = 1;", "tokio", false),
        ("let start = Instant::now();", "Instant", true),
        ("fn instantly() {}", "Instant", false),
        ("use std::collections::HashMap;", "HashMap", true),
        ("use crate::swarm::Swarm;", "crate::swarm", true),
        ("stream.await?", ".await", true),
    ] {
        assert_eq!(holds(line, text), want, "{line}");
    }
}
