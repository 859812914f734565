//! docs/compatibility.md says of every command and flag of Docker's client whether shoal has it, and says so truly.
//!
//! `tests/compat/commands.txt` has Docker's commands and flags, the client's snapshots those of shoal.

#![expect(clippy::unwrap_used, reason = "what helps tests may fail as tests do")]

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use regex::Regex;

/// What a row of a table says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// `yes` or `differs`.
    There,
    /// `not yet`, or `refused` for good.
    NotYet,
    /// Anything else.
    Other,
}

/// A row of a table.
#[derive(Debug, Clone)]
struct Row {
    /// Groups of commands, such as `secret` and `config`.
    groups: Vec<String>,
    commands: Vec<String>,
    /// The flags it is about; none if it is about the commands as such.
    flags: BTreeSet<String>,
    /// What the second column says.
    about: String,
    verdict: Verdict,
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn quoted(text: &str) -> Vec<String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

fn rows(document: &str) -> Vec<Row> {
    let flag = Regex::new("--[a-z0-9]+(-[a-z0-9]+)*").unwrap();
    let (mut rows, mut groups, mut commands) = (Vec::new(), Vec::new(), Vec::new());
    for line in document.lines() {
        if let Some(title) = line.strip_prefix("## ") {
            groups = title.split(", ").filter_map(|part| part.strip_prefix("docker ")).map(str::to_owned).collect();
        }
        let Some(line) = line.strip_prefix('|').filter(|_| !groups.is_empty()) else { continue };
        let line = line.replace("\\|", "/");
        let columns: Vec<&str> = line.split('|').map(str::trim).collect();
        let [first, about, says, ..] = columns[..] else { continue };
        if first == "command" || first.starts_with("--") {
            continue;
        }
        if !first.is_empty() {
            commands = quoted(first);
        }
        let mut flags: BTreeSet<String> = flag.find_iter(about).map(|found| found.as_str().to_owned()).collect();
        if about.contains("the same with `--rollback-…`") {
            let update = flags.iter().filter_map(|flag| flag.strip_prefix("--update-"));
            let same: Vec<String> = update.map(|rest| format!("--rollback-{rest}")).collect();
            flags.extend(same);
        }
        let verdict = if says.starts_with("yes") || says.starts_with("differs") {
            Verdict::There
        } else if says.starts_with("not yet") || says.starts_with("refused") {
            Verdict::NotYet
        } else {
            Verdict::Other
        };
        let (groups, commands, about) = (groups.clone(), commands.clone(), about.to_owned());
        rows.push(Row { groups, commands, flags, about, verdict });
    }
    rows
}

/// Returns what the document says of a flag of a command, or of the command itself.
fn verdict(rows: &[Row], group: &str, command: &str, flag: Option<&str>) -> Option<Verdict> {
    let has = |list: &[String], wanted: &str| list.iter().any(|item| item == wanted);
    let own: Vec<&Row> = rows.iter().filter(|row| has(&row.groups, group) && has(&row.commands, command)).collect();
    let command_itself = own.iter().find(|row| row.about.is_empty()).map(|row| row.verdict);
    let Some(flag) = flag else {
        return command_itself.or((!own.is_empty()).then_some(Verdict::There));
    };
    if command_itself == Some(Verdict::NotYet) {
        return command_itself;
    }
    let of_flag: Vec<Verdict> = own.iter().filter(|row| row.flags.contains(flag)).map(|row| row.verdict).collect();
    if of_flag.contains(&Verdict::There) {
        return Some(Verdict::There);
    }
    if let Some(verdict) = of_flag.first() {
        return Some(*verdict);
    }
    let says = |words: &str| own.iter().find(|row| row.about.contains(words));
    let as_create = says("those of `create`").and_then(|_| verdict(rows, group, "create", Some(flag)));
    as_create.or(says("all others of Docker's").map(|row| row.verdict))
}

/// Returns the help of one of shoal's commands.
fn help(group: &str, command: &str) -> Option<String> {
    fs::read_to_string(root().join(format!("cli/tests/snapshots/help/shoal-{group}-{command}.txt"))).ok()
}

fn has_flag(help: &str, flag: &str) -> bool {
    help.lines().any(|line| line.split([' ', ',', '[']).any(|word| word == flag))
}

#[test]
fn every_command_and_flag_of_docker_is_told_of_truly() {
    let rows = rows(&read("docs/compatibility.md"));
    let mut findings = Vec::new();
    let mut count = 0;
    for line in read("tests/compat/commands.txt").lines().filter(|line| !line.starts_with('#')) {
        let mut words = line.split(' ');
        let (group, command) = (words.next().unwrap(), words.next().unwrap());
        let help = help(group, command);
        let mut check = |what: String, verdict: Option<Verdict>, is_there: bool| {
            count += 1;
            findings.extend(match (verdict, is_there) {
                (Some(Verdict::There), true) | (Some(Verdict::NotYet), false) => None,
                (Some(Verdict::There), false) => Some(format!("{what}: said to be there, and is not")),
                (Some(Verdict::NotYet), true) => Some(format!("{what}: said to be not yet there, and is")),
                (Some(Verdict::Other), _) => Some(format!("{what}: neither yes, differs, not yet nor refused")),
                (None, _) => Some(format!("{what}: not mentioned")),
            });
        };
        check(format!("{group} {command}"), verdict(&rows, group, command, None), help.is_some());
        for flag in words {
            let is_there = help.as_ref().is_some_and(|help| has_flag(help, flag));
            check(format!("{group} {command} {flag}"), verdict(&rows, group, command, Some(flag)), is_there);
        }
    }
    assert!(count > 300, "only {count} commands and flags were looked at");
    assert!(findings.is_empty(), "docs/compatibility.md:\n{}", findings.join("\n"));
}

/// The differences that are known when clients are compared are explained.
#[test]
fn differences_that_are_listed_are_explained() {
    let document = read("docs/compatibility.md").split_whitespace().collect::<Vec<_>>().join(" ");
    let list = read("tests/compat/differences.txt");
    let mut findings = Vec::new();
    let (mut entries, mut quotes) = (0, 0);
    for line in list.lines().map(str::trim) {
        entries += usize::from(line.starts_with("== "));
        if let Some(words) = line.strip_prefix("docs: ") {
            quotes += 1;
            let words = words.split_whitespace().collect::<Vec<_>>().join(" ");
            if !document.contains(&words) {
                findings.push(format!("'{words}' is not in docs/compatibility.md"));
            }
        }
    }
    assert!(findings.is_empty(), "tests/compat/differences.txt:\n{}", findings.join("\n"));
    assert_eq!(entries, quotes, "every entry says where it is explained");
}
