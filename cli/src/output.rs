//! What every listing has in common: its flags, and the choice between table, JSON and a template.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::Value;

use crate::error::CliError;
use crate::filter::Filter;
use crate::table;
use shoal_protocol::template::{Template, TemplateError};

/// Characters of a shortened identifier.
pub(crate) const SHORT_ID_CHARS: usize = 12;

/// Flags of a listing.
#[derive(Debug, clap::Args)]
pub(crate) struct ListArgs {
    /// Only display IDs
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Do not truncate output
    #[arg(long)]
    pub(crate) no_trunc: bool,
    /// Filter output based on conditions provided
    #[arg(short, long, value_name = "KEY=VALUE")]
    pub(crate) filter: Vec<Filter>,
    /// Format output: 'table', 'table TEMPLATE', 'json', or a Go template
    #[arg(long, default_value = TABLE, value_name = "FORMAT")]
    pub(crate) format: String,
}

impl ListArgs {
    /// Returns whether identifiers alone are wanted: as with Docker, a format is stronger than `--quiet`.
    pub(crate) fn is_quiet(&self) -> bool {
        self.quiet && self.format == TABLE
    }
}

/// The format of a listing where no other is asked for.
pub(crate) const TABLE: &str = "table";

/// How the rows of one kind are printed.
pub(crate) struct Listing {
    /// The template of the table.
    pub(crate) table: &'static str,
    /// The fields of a row and what stands above them.
    pub(crate) headings: &'static [(&'static str, &'static str)],
}

impl Listing {
    /// Renders rows as `format` says.
    pub(crate) fn render<R: Serialize>(&self, rows: &[R], format: &str) -> Result<String, CliError> {
        let (template, is_table) = match format.strip_prefix(TABLE) {
            Some("") => (self.table, true),
            Some(template) if template.starts_with(char::is_whitespace) => (template.trim_matches(' '), true),
            _ if matches!(format, "json" | "{{json .}}") => return json_lines(rows),
            _ => (format.trim_matches(' '), false),
        };
        let template = Template::parse(&template.replace("\\t", "\t").replace("\\n", "\n"))?;
        let mut text = String::new();
        if is_table {
            let headings: Value =
                self.headings.iter().map(|(field, heading)| (*field, Value::from(*heading))).collect();
            text.push_str(&template.execute_headings(&headings)?);
            text.push('\n');
        }
        for row in rows {
            let row = serde_json::to_value(row).map_err(|error| CliError::Failed(error.to_string()))?;
            let line = template.execute(&row, |_, _| None).map_err(|error| self.explain(error))?;
            text.push_str(&line);
            text.push('\n');
        }
        Ok(if is_table { table::align(&text) } else { text })
    }

    /// Names the fields that there are where a template wants another one.
    fn explain(&self, error: TemplateError) -> CliError {
        if !error.is_no_field() {
            return error.into();
        }
        let fields: Vec<String> = self.headings.iter().map(|(field, _)| format!(".{field}")).collect();
        CliError::Failed(format!("{}; the fields are {}", CliError::from(error), fields.join(" ")))
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

    const LISTING: Listing = Listing {
        table: r"{{.ID}} {{if .Self}}*{{else}} {{end}}\t{{.Name}}",
        headings: &[("ID", "ID"), ("Self", ""), ("Name", "NAME")],
    };

    fn render(format: &str) -> Result<String, CliError> {
        let row = |id, name, is_self| serde_json::json!({"ID": id, "Name": name, "Self": is_self});
        LISTING.render(&[row("a1", "one", true), row("b2", "two", false)], format)
    }

    #[test]
    fn listings_take_dockers_formats() {
        for (format, want) in [
            ("table", "ID        NAME\na1 *      one\nb2        two\n"),
            (r"table {{.Name}}\t{{upper .ID}}", "NAME      ID\none       A1\ntwo       B2\n"),
            (r"{{.Name}}\t{{.ID}}\n", "one\ta1\n\ntwo\tb2\n\n"),
            ("  {{json .Self}} ", "true\nfalse\n"),
            (
                "json",
                "{\"ID\":\"a1\",\"Name\":\"one\",\"Self\":true}\n{\"ID\":\"b2\",\"Name\":\"two\",\"Self\":false}\n",
            ),
            ("tables", "tables\ntables\n"),
        ] {
            assert_eq!(render(format).unwrap(), want, "{format}");
        }
    }

    #[test]
    fn a_field_that_is_not_there_is_answered_with_those_that_are() {
        let error = render("{{.Nope}}").unwrap_err();
        assert_eq!(error.exit_status(), 1);
        assert!(error.to_string().ends_with("there is no such field; the fields are .ID .Self .Name"), "{error}");
        let error = render("{{.ID").unwrap_err();
        assert_eq!(error.to_string(), "template parsing error: template: :1: unclosed action");
        assert_eq!(error.exit_status(), 1);
    }
}
