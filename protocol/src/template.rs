//! Templates in Go's notation (`text/template`), as `--format` and specs have them: text, tokens, tree, output.
//!
//! Pure: data is JSON, output is a text. Known are paths, pipelines, variables, `if`, `with`, `range`, comments, trimming and
//! the functions of a [`Dialect`]; what Go has beyond that is refused by name. A template of any text ends in output or
//! in an error, after a bounded number of steps.
//!
//! Source: Go 1.24, `text/template`; docker/cli 28, `templates`; SwarmKit, `template`.

mod evaluate;
mod format;
mod functions;
mod lexer;
mod parser;
mod tree;

use serde_json::Value;

use crate::object::DATA_BYTES_LIMIT;
use crate::template::evaluate::Evaluator;
use crate::template::tree::Node;

/// How deep blocks and parentheses may be nested; deeper ones are refused.
const DEPTH_MAX: usize = 64;

/// What a template may cost at most; one that costs more is refused, or fails when it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Limits {
    /// Bytes of the template.
    source: usize,
    /// Steps. Bounds what nested ranges cost.
    steps: usize,
    /// Bytes of output, and of a text on the way to it.
    bytes: usize,
}

/// Which functions a template may call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// Those of Docker's client, for `--format`.
    Client,
    /// Those of specs, for what a task's own node fills in.
    Spec,
    /// Those of specs, and those that read the task's secrets, configs and environment.
    Payload,
}

impl Dialect {
    /// Returns the template's name in messages.
    fn name(self) -> &'static str {
        match self {
            Self::Client => "",
            Self::Spec | Self::Payload => "expansion",
        }
    }

    /// A user waits for a client's; a node carries out those of specs, and has other things to do.
    fn limits(self) -> Limits {
        match self {
            Self::Client => Limits { source: 64 << 10, steps: 1_000_000, bytes: 16 << 20 },
            Self::Spec => Limits { source: 64 << 10, steps: 500, bytes: 64 << 10 },
            Self::Payload => Limits { source: DATA_BYTES_LIMIT, steps: 100_000, bytes: 1 << 20 },
        }
    }
}

/// Why a template cannot be read or carried out, in Go's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("template: {text}")]
pub struct TemplateError {
    text: String,
    is_no_field: bool,
}

impl TemplateError {
    fn parse(source: &str, at: usize, reason: impl std::fmt::Display) -> Self {
        Self { text: format!(":{}: {reason}", line_of(source, at).0), is_no_field: false }
    }

    /// Says of which template it is.
    fn of(self, dialect: Dialect) -> Self {
        Self { text: format!("{}{}", dialect.name(), self.text), ..self }
    }

    /// Returns whether the template names a field that does not exist.
    pub fn is_no_field(&self) -> bool {
        self.is_no_field
    }
}

/// Decides what a field is that an object does not have: a value, or nothing if there is no such field.
///
/// The arguments are the name of the object, empty at the top, and that of the field.
pub type Absent = fn(&str, &str) -> Option<Value>;

/// Calls a function that reads something of a task: its name and argument to what is there, or why it cannot be had.
pub type Read<'a> = &'a dyn Fn(&str, &str) -> Result<String, String>;

/// What the functions of a template do.
#[derive(Clone, Copy)]
enum Mode<'a> {
    /// What their names say.
    Values,
    /// Those that change texts leave them as they are: the data is the headings of a table.
    Headings,
    /// What they do in specs.
    Expansion(Read<'a>),
}

/// A template that was read.
#[derive(Debug, Clone, PartialEq)]
pub struct Template {
    dialect: Dialect,
    source: String,
    nodes: Vec<Node>,
}

impl Template {
    /// Reads a template of a client.
    pub fn parse(source: &str) -> Result<Self, TemplateError> {
        Self::parse_as(Dialect::Client, source)
    }

    /// Reads a template.
    pub fn parse_as(dialect: Dialect, source: &str) -> Result<Self, TemplateError> {
        let bytes_max = dialect.limits().source;
        if source.len() > bytes_max {
            let reason = format!("a template of more than {bytes_max} bytes is not supported");
            return Err(TemplateError::parse(source, 0, reason).of(dialect));
        }
        let nodes = lexer::lex(source).and_then(|tokens| parser::parse(dialect, source, tokens));
        Ok(Self { dialect, source: source.to_owned(), nodes: nodes.map_err(|error| error.of(dialect))? })
    }

    /// Returns what the template makes of `data`.
    pub fn execute(&self, data: &Value, absent: Absent) -> Result<String, TemplateError> {
        Evaluator::new(self, data, Mode::Values, absent).run()
    }

    /// Returns what the template makes of the headings of a table.
    pub fn execute_headings(&self, headings: &Value) -> Result<String, TemplateError> {
        Evaluator::new(self, headings, Mode::Headings, |_, _| Some(Value::Null)).run()
    }

    /// Returns what the template of a spec makes of `data`, which has all fields that there are.
    pub fn expand(&self, data: &Value, read: Read<'_>) -> Result<String, TemplateError> {
        Evaluator::new(self, data, Mode::Expansion(read), |_, _| None).run()
    }
}

/// Returns the line of an offset, from 1, and the offset in that line.
fn line_of(source: &str, at: usize) -> (usize, usize) {
    let before = source.as_bytes().get(..at).unwrap_or(source.as_bytes());
    let line = 1 + before.iter().filter(|&&byte| byte == b'\n').count();
    let start = before.iter().rposition(|&byte| byte == b'\n').map_or(0, |newline| newline + 1);
    (line, before.len() - start)
}

#[cfg(test)]
mod tests;
