//! Every package that shoal is built from may be used under its licence, and our own choices are made once.

#![expect(clippy::unwrap_used, reason = "what helps tests may fail as tests do")]

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

/// Licences that an Apache-2.0 program may include.
const ALLOWED: [&str; 13] = [
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Packages that are used nevertheless, and why that is right.
const EXCEPTIONS: [(&str, &str); 3] = [
    ("attohttpc", "not built: resolved for a feature of libp2p that is not enabled"),
    ("pathrs", "MPL-2.0: linked unmodified, its files stay under their licence"),
    ("rust-criu", "MIT, in its LICENSE file instead of its manifest"),
];

/// Names of which more than one major version is built, through the packages we use. It may only shrink.
const DUPLICATES_MAX: usize = 40;

fn metadata() -> Value {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--locked"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}

fn list<'a>(value: &'a Value, field: &str) -> &'a [Value] {
    value[field].as_array().map(Vec::as_slice).unwrap_or_default()
}

/// Packages that are resolved for our targets, not only named in the lock file.
fn resolved(metadata: &Value) -> Vec<&Value> {
    let nodes: BTreeSet<&str> = list(&metadata["resolve"], "nodes").iter().map(|node| text(node, "id")).collect();
    list(metadata, "packages").iter().filter(|package| nodes.contains(text(package, "id"))).collect()
}

/// Whether an SPDX expression of `OR`, `AND` and parentheses can be met by allowed licences alone.
fn is_allowed(expression: &str) -> bool {
    let expression = expression.replace('/', " OR ");
    let expression = expression.trim();
    let mut depth = 0usize;
    for operator in [" OR ", " AND "] {
        for (at, character) in expression.char_indices() {
            match character {
                '(' => depth += 1,
                ')' => depth = depth.saturating_sub(1),
                ' ' if depth == 0 && expression[at..].starts_with(operator) => {
                    let (left, right) = (&expression[..at], &expression[at + operator.len()..]);
                    return match operator {
                        " OR " => is_allowed(left) || is_allowed(right),
                        _ => is_allowed(left) && is_allowed(right),
                    };
                }
                _ => {}
            }
        }
    }
    match expression.strip_prefix('(').and_then(|inner| inner.strip_suffix(')')) {
        Some(inner) => is_allowed(inner),
        None => ALLOWED.contains(&expression),
    }
}

#[test]
fn every_licence_is_allowed() {
    let metadata = metadata();
    let refused: Vec<String> = resolved(&metadata)
        .iter()
        .filter(|package| !is_allowed(text(package, "license")))
        .filter(|package| !EXCEPTIONS.iter().any(|(name, _)| *name == text(package, "name")))
        .map(|package| {
            format!("{} {}: '{}'", text(package, "name"), text(package, "version"), text(package, "license"))
        })
        .collect();
    assert!(refused.is_empty(), "\n{}", refused.join("\n"));
}

/// Where the list is that the daemon prints.
const INSIDE: &str = "../node/licences.txt";

/// Lists what the binaries are made of, a line for each package: what is linked, not what only helps to build.
fn inside() -> String {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["tree", "--locked", "--prefix", "none", "--edges", "normal,no-proc-macro", "--format", "{p}|{l}"])
        .args(["--package", "shoal-node", "--package", "shoal-cli", "--target", "x86_64-unknown-linux-gnu"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: BTreeSet<String> = text
        .lines()
        .filter_map(|line| line.split_once('|'))
        .filter(|(package, _)| !package.starts_with("shoal-"))
        .map(|(package, licence)| {
            let licence = match licence.trim_end_matches(" (*)") {
                "" => "see its LICENSE file",
                licence => licence,
            };
            format!("{} {licence}\n", package.replacen(" v", " ", 1))
        })
        .collect();
    lines.into_iter().collect()
}

#[test]
fn the_daemon_says_what_is_inside() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(INSIDE);
    let inside = inside();
    assert!(inside.lines().count() > 100, "{inside}");
    if std::env::var("SHOAL_SNAPSHOTS").is_ok_and(|value| value == "write") {
        std::fs::write(&path, &inside).unwrap();
    }
    let known = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        known == inside,
        "node/licences.txt is out of date: SHOAL_SNAPSHOTS=write cargo test -p shoal-tests --test licences"
    );
}

#[test]
fn our_packages_share_one_version_of_each_dependency() {
    let metadata = metadata();
    let ours: BTreeSet<&str> = list(&metadata, "workspace_members").iter().filter_map(Value::as_str).collect();
    let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for node in list(&metadata["resolve"], "nodes").iter().filter(|node| ours.contains(text(node, "id"))) {
        for dependency in list(node, "deps") {
            versions.entry(text(dependency, "name")).or_default().insert(text(dependency, "pkg"));
        }
    }
    let several: Vec<_> = versions.iter().filter(|(_, packages)| packages.len() > 1).collect();
    assert!(several.is_empty(), "{several:?}");
}

#[test]
fn duplicates_do_not_grow() {
    let metadata = metadata();
    let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for package in resolved(&metadata) {
        versions.entry(text(package, "name")).or_default().insert(text(package, "version"));
    }
    let several: Vec<String> =
        versions.iter().filter(|(_, v)| v.len() > 1).map(|(name, v)| format!("{name}: {v:?}")).collect();
    println!("{} packages are built in more than one version:\n{}", several.len(), several.join("\n"));
    assert!(several.len() <= DUPLICATES_MAX, "{} duplicates, at most {DUPLICATES_MAX}", several.len());
}

#[test]
fn expressions_are_understood() {
    for (expression, want) in [
        ("MIT", true),
        ("MIT OR GPL-3.0", true),
        ("MIT/Apache-2.0", true),
        ("MIT AND GPL-3.0", false),
        ("(MIT OR GPL-3.0) AND Unicode-3.0", true),
        ("(GPL-2.0 OR GPL-3.0) AND Unicode-3.0", false),
        ("Apache-2.0 WITH LLVM-exception OR GPL-3.0", true),
        ("GPL-3.0", false),
        ("", false),
    ] {
        assert_eq!(is_allowed(expression), want, "{expression}");
    }
}
