//! What differs between two clusters, and which differences are known. An unknown one fails, and so does one that is listed
//! and does not occur.
//!
//! `tests/compat/differences.txt` lists them. An entry begins with `== ` and says in one line what differs; `docs: ` quotes the
//! words by which docs/compatibility.md explains it; `on: ` names the drivers where it occurs (both if absent); `by: chance`
//! says that it need not; `at: ` names the commands, and the lines that follow it, with `-` what Swarm prints and with `+` what shoal prints. In commands and lines `*`
//! stands for anything; blanks at the beginning of a line do not count.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Context, Result, bail};

use super::script::Record;

/// One line that one of the two prints and the other does not.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Difference {
    /// The command, as the script has it.
    pub at: String,
    /// `-` for Swarm's, `+` for shoal's.
    pub side: char,
    /// The line.
    pub line: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.side, self.line)
    }
}

/// Compares what the same scripts recorded on Swarm and on shoal.
pub fn differences(swarm: &[Record], shoal: &[Record]) -> Result<Vec<Difference>> {
    let mut found = Vec::new();
    for (place, theirs) in swarm.iter().enumerate() {
        let Some(ours) = shoal.get(place) else { bail!("shoal was not asked: {}", theirs.at) };
        if ours.at != theirs.at {
            bail!("the scripts went different ways: {} and {}", theirs.at, ours.at);
        }
        let lines = difference(&theirs.lines, &ours.lines);
        found.extend(lines.into_iter().map(|(side, line)| Difference { at: ours.at.clone(), side, line }));
    }
    if let Some(more) = shoal.get(swarm.len()) {
        bail!("Swarm was not asked: {}", more.at);
    }
    Ok(found)
}

/// Returns the lines of `a` and of `b` that are not in a longest common subsequence of both.
fn difference(a: &[String], b: &[String]) -> Vec<(char, String)> {
    // common[i][j]: how long it is for what remains from i and j on.
    let mut common = vec![vec![0_usize; b.len() + 1]; a.len() + 1];
    for i in (0..a.len()).rev() {
        for j in (0..b.len()).rev() {
            common[i][j] = if a[i] == b[j] { common[i + 1][j + 1] + 1 } else { common[i + 1][j].max(common[i][j + 1]) };
        }
    }
    let (mut i, mut j, mut found) = (0, 0, Vec::new());
    while i < a.len() || j < b.len() {
        if i < a.len() && j < b.len() && a[i] == b[j] {
            (i, j) = (i + 1, j + 1);
        } else if j >= b.len() || (i < a.len() && common[i + 1][j] >= common[i][j + 1]) {
            found.push(('-', a[i].clone()));
            i += 1;
        } else {
            found.push(('+', b[j].clone()));
            j += 1;
        }
    }
    found
}

/// A difference that is known, with the reason.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Entry {
    /// What differs.
    pub title: String,
    /// The words of docs/compatibility.md.
    pub docs: String,
    /// The drivers where it occurs; all if empty.
    pub on: Vec<String>,
    /// Whether it occurs by chance.
    pub by_chance: bool,
    /// The lines that differ.
    pub lines: Vec<Pattern>,
}

/// Lines that are known to differ: side and line, at a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    at: String,
    side: char,
    line: String,
}

/// Reads the list.
pub fn read(text: &str) -> Result<Vec<Entry>> {
    let mut entries: Vec<Entry> = Vec::new();
    let mut at: Option<&str> = None;
    for (number, line) in text.lines().enumerate() {
        let wrong = || format!("line {}: {line}", number + 1);
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(title) = line.strip_prefix("== ") {
            entries.push(Entry { title: title.to_owned(), ..Entry::default() });
            at = None;
            continue;
        }
        let entry = entries.last_mut().with_context(wrong)?;
        if let Some(words) = line.strip_prefix("docs: ") {
            entry.docs = words.to_owned();
        } else if let Some(drivers) = line.strip_prefix("on: ") {
            entry.on = drivers.split_whitespace().map(str::to_owned).collect();
        } else if line == "by: chance" {
            entry.by_chance = true;
        } else if let Some(command) = line.strip_prefix("at: ") {
            at = Some(command);
        } else if let Some(side @ ('-' | '+')) = line.chars().next() {
            let at = at.with_context(wrong)?.to_owned();
            entry.lines.push(Pattern { at, side, line: line[1..].trim_start().to_owned() });
        } else {
            bail!("{}: neither a field nor a line", wrong());
        }
    }
    Ok(entries)
}

/// Returns the differences that are not listed for a driver, and the listed ones that did not occur.
pub fn unexpected(found: &[Difference], listed: &[Entry], driver: &str) -> (Vec<Difference>, Vec<String>) {
    let of_driver = |entry: &&Entry| entry.on.is_empty() || entry.on.iter().any(|on| on == driver);
    let patterns: Vec<(&Entry, &Pattern)> =
        listed.iter().filter(of_driver).flat_map(|entry| entry.lines.iter().map(move |line| (entry, line))).collect();
    let mut used = vec![false; patterns.len()];
    let mut unlisted = Vec::new();
    for difference in found {
        let mut is_listed = false;
        for (place, (_, pattern)) in patterns.iter().enumerate() {
            let fits = pattern.side == difference.side
                && is_like(&difference.at, &pattern.at)
                && is_like(difference.line.trim_start(), &pattern.line);
            used[place] |= fits;
            is_listed |= fits;
        }
        if !is_listed {
            unlisted.push(difference.clone());
        }
    }
    let stale = patterns.iter().zip(used).filter(|((entry, _), used)| !used && !entry.by_chance);
    let stale = stale.map(|((entry, line), _)| format!("{}: at {}: {} {}", entry.title, line.at, line.side, line.line));
    (unlisted, stale.collect())
}

/// Whether a text is like a pattern in which `*` stands for anything.
fn is_like(text: &str, pattern: &str) -> bool {
    let Some((head, mut rest)) = pattern.split_once('*') else { return text == pattern };
    let Some(mut text) = text.strip_prefix(head) else { return false };
    while let Some((part, after)) = rest.split_once('*') {
        let Some(found) = text.find(part) else { return false };
        text = &text[found + part.len()..];
        rest = after;
    }
    text.ends_with(rest)
}

/// Prints differences by command.
pub fn print(differences: &[Difference]) {
    let mut by_command: BTreeMap<&str, Vec<&Difference>> = BTreeMap::new();
    for difference in differences {
        by_command.entry(&difference.at).or_default().push(difference);
    }
    for (at, lines) in by_command {
        println!("  at: {at}");
        lines.iter().for_each(|line| println!("  {line}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn lines_differ() {
        for (a, b, want) in [
            ("a b c", "a b c", ""),
            ("a b c", "a c", "-b"),
            ("a c", "a b c", "+b"),
            ("a x c", "a y c", "-x +y"),
            ("", "a", "+a"),
        ] {
            let got: Vec<String> =
                difference(&lines(a), &lines(b)).into_iter().map(|(side, line)| format!("{side}{line}")).collect();
            assert_eq!(got.join(" "), want, "{a} and {b}");
        }
    }

    #[test]
    fn patterns_fit() {
        for (text, pattern, want) in [
            ("n1 node ls", "n1 node ls", true),
            ("n1 node ls", "n1 node *", true),
            ("n1 node ls", "*ls", true),
            ("n1 node ls", "n* n*e ls", true),
            ("n1 node ls", "n1 node", false),
            ("ls", "ls*s", false),
            ("a.b.c = 1", "*.c = *", true),
        ] {
            assert_eq!(is_like(text, pattern), want, "{text} {pattern}");
        }
    }

    #[test]
    fn what_is_unlisted_or_stale_is_told() {
        let list = "# why\n== no roots\n docs: words\n on: embedded\n at: n1 *\n - a*\n + b\n at: n2 x\n - c\n== more\n at: *\n + d\n";
        let listed = read(list).unwrap();
        assert_eq!((listed.len(), listed[0].docs.as_str(), listed[0].lines.len()), (2, "words", 3));
        let found = |at: &str, side, line: &str| Difference { at: at.into(), side, line: line.into() };
        let all =
            [found("n1 ls", '-', "abc"), found("n1 ls", '+', "b"), found("n2 x", '-', "c"), found("n2", '+', "d")];
        assert_eq!(unexpected(&all, &listed, "embedded"), (vec![], vec![]));
        let (unlisted, stale) = unexpected(&all[1..], &listed, "embedded");
        assert_eq!((unlisted, stale), (vec![], vec!["no roots: at n1 *: - a*".to_owned()]));
        let (unlisted, stale) = unexpected(&all, &listed, "docker");
        assert_eq!((unlisted.len(), stale.len()), (3, 0));
        let chance = read(&list.replace(" on:", " by: chance\n on:")).unwrap();
        assert_eq!(unexpected(&all[3..], &chance, "embedded"), (vec![], vec![]));
    }
}
