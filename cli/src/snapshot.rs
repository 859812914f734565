//! Comparison of output with files, so that a change of it is seen in review. For tests only.
//!
//! `SHOAL_SNAPSHOTS=write cargo test -p shoal-cli` writes the files anew.

use std::fs;
use std::path::{Path, PathBuf};

use clap::{Command, CommandFactory};

/// Says that files are to be written.
const VARIABLE: &str = "SHOAL_SNAPSHOTS";
/// Columns of the terminal that help is wrapped for.
const HELP_COLUMNS: usize = 100;

/// Compares `text` with the file of that name.
#[track_caller]
pub(crate) fn check(name: &str, text: &str) {
    let path = directory().join(name);
    if std::env::var(VARIABLE).is_ok_and(|value| value == "write") {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
    }
    let want = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, want, "{name} differs: if that is meant, run the test with {VARIABLE}=write");
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/snapshots")
}

/// The help of every command that is shown, by the name of its file.
fn helps() -> Vec<(String, String)> {
    let mut root = crate::Cli::command();
    root.build();
    let (mut helps, mut left) = (Vec::new(), vec![("shoal".to_owned(), root)]);
    while let Some((name, command)) = left.pop() {
        let is_shown = |command: &&Command| !command.is_hide_set();
        left.extend(
            command.get_subcommands().filter(is_shown).map(|one| (format!("{name}-{}", one.get_name()), one.clone())),
        );
        helps.push((format!("help/{name}.txt"), command.term_width(HELP_COLUMNS).render_help().to_string()));
    }
    helps
}

#[test]
fn every_help_is_known() {
    let helps = helps();
    for (name, text) in &helps {
        check(name, text);
    }
    for file in fs::read_dir(directory().join("help")).unwrap() {
        let name = format!("help/{}", file.unwrap().file_name().display());
        assert!(helps.iter().any(|(known, _)| *known == name), "no command has {name}");
    }
}

#[test]
fn help_is_imperative_and_without_a_full_stop() {
    for (name, text) in helps() {
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            assert!(!line.ends_with('.') || line.ends_with("..."), "{name}: {line}");
            assert!(!line.to_lowercase().contains("not supported"), "{name}: {line}");
        }
    }
}
