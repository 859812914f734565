//! What every listing has in common: its flags, and the choice between table, identifiers and JSON.

use std::io::{self, Write};
use std::str::FromStr;

use serde::Serialize;

use crate::error::CliError;
use crate::filter::Filter;

/// Characters of a shortened identifier.
pub(crate) const SHORT_ID_CHARS: usize = 12;

/// Flags of a listing.
#[derive(Debug, clap::Args)]
pub(crate) struct ListArgs {
    /// Only print IDs
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Do not cut off IDs and texts
    #[arg(long)]
    pub(crate) no_trunc: bool,
    /// Only print what fits this condition (repeatable)
    #[arg(short, long, value_name = "KEY=VALUE")]
    pub(crate) filter: Vec<Filter>,
    /// Print as 'table' or 'json' (one object a line)
    #[arg(long, default_value = "table", value_name = "FORMAT")]
    pub(crate) format: Format,
}

/// How a listing is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// For people.
    Table,
    /// One JSON object a line.
    Json,
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "table" => Ok(Self::Table),
            "json" | "{{json .}}" => Ok(Self::Json),
            _ => Err("Go templates are not supported yet: use 'table' or 'json'".to_owned()),
        }
    }
}

/// Prints data. A reader that has gone away ends the process quietly.
pub(crate) fn print(text: &str) -> Result<(), CliError> {
    let mut stdout = io::stdout().lock();
    written(stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()))
}

/// Judges a write to standard output or error.
pub(crate) fn written(result: io::Result<()>) -> Result<(), CliError> {
    match result {
        Ok(()) => Ok(()),
        // Status of a program that SIGPIPE ended, as the reader's shell expects it.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(141),
        Err(error) => Err(CliError::Failed(format!("failed to write: {error}"))),
    }
}

/// Renders objects as JSON, one a line.
pub(crate) fn json_lines<T: Serialize>(rows: &[T]) -> Result<String, CliError> {
    let mut text = String::new();
    for row in rows {
        text.push_str(&serde_json::to_string(row).map_err(|error| CliError::Failed(error.to_string()))?);
        text.push('\n');
    }
    Ok(text)
}

/// Renders a JSON array indented by four, as Docker's `inspect` does.
pub(crate) fn json_pretty(values: &[serde_json::Value]) -> Result<String, CliError> {
    let mut bytes = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, formatter);
    values.serialize(&mut serializer).map_err(|error| CliError::Failed(error.to_string()))?;
    bytes.push(b'\n');
    String::from_utf8(bytes).map_err(|error| CliError::Failed(error.to_string()))
}

/// Shortens an identifier.
pub(crate) fn short_id(id: &str) -> &str {
    let id = id.strip_prefix("sha256:").unwrap_or(id);
    id.get(..SHORT_ID_CHARS).unwrap_or(id)
}

/// Cuts a text to `chars`, the last of which becomes an ellipsis.
pub(crate) fn ellipsis(text: &str, chars: usize) -> String {
    if text.chars().count() <= chars {
        return text.to_owned();
    }
    text.chars().take(chars.saturating_sub(1)).chain(['…']).collect()
}

/// Writes a state with a capital letter.
pub(crate) fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_as_docker_cuts_them() {
        assert_eq!(ellipsis("no suitable node (scheduling constraints", 30), "no suitable node (scheduling …");
        assert_eq!(ellipsis("short", 30), "short");
        assert_eq!(short_id("sha256:6ded1c4b78b0807eeafc"), "6ded1c4b78b0");
        assert_eq!(capital("running"), "Running");
    }

    #[test]
    fn templates_are_refused_by_name() {
        assert!("{{.ID}}".parse::<Format>().unwrap_err().contains("not supported yet"));
        assert_eq!("json".parse::<Format>(), Ok(Format::Json));
    }
}
