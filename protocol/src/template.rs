//! Templates in Go's notation (`text/template`), as `--format` takes them: text, the text's tokens, the tree, the output.
//!
//! Pure: data is JSON, output is a text. Known are paths, pipelines, variables, `if`, `with`, `range`, comments, trimming and
//! the functions of Docker's client; what Go has beyond that is refused by name. A template of any text ends in output or
//! in an error, after a bounded number of steps.
//!
//! Source: Go 1.24, `text/template`; docker/cli 28, `templates`.

mod evaluate;
mod format;
mod functions;
mod lexer;
mod parser;
mod tree;

use serde_json::Value;

use crate::template::evaluate::Evaluator;
use crate::template::tree::Node;

/// Bytes of a template at most; a longer one is refused.
const SOURCE_BYTES_MAX: usize = 64 << 10;
/// How deep blocks and parentheses may be nested; deeper ones are refused.
const DEPTH_MAX: usize = 64;
/// Steps of one execution at most; then it fails. Bounds what nested ranges cost.
const STEPS_MAX: usize = 1_000_000;
/// Bytes that one execution may write at most; then it fails.
const OUTPUT_BYTES_MAX: usize = 16 << 20;

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

    /// Returns whether the template names a field that does not exist.
    pub fn is_no_field(&self) -> bool {
        self.is_no_field
    }
}

/// Decides what a field is that an object does not have: a value, or nothing if there is no such field.
///
/// The arguments are the name of the object, empty at the top, and that of the field.
pub type Absent = fn(&str, &str) -> Option<Value>;

/// What the functions of a template do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// What their names say.
    Values,
    /// Those that change texts leave them as they are: the data is the headings of a table.
    Headings,
}

/// A template that was read.
#[derive(Debug, Clone, PartialEq)]
pub struct Template {
    source: String,
    nodes: Vec<Node>,
}

impl Template {
    /// Reads a template.
    pub fn parse(source: &str) -> Result<Self, TemplateError> {
        if source.len() > SOURCE_BYTES_MAX {
            let reason = format!("a template of more than {SOURCE_BYTES_MAX} bytes is not supported");
            return Err(TemplateError::parse(source, 0, reason));
        }
        let tokens = lexer::lex(source)?;
        Ok(Self { source: source.to_owned(), nodes: parser::parse(source, tokens)? })
    }

    /// Returns what the template makes of `data`.
    pub fn execute(&self, data: &Value, absent: Absent) -> Result<String, TemplateError> {
        Evaluator::new(&self.source, data, Mode::Values, absent).run(&self.nodes)
    }

    /// Returns what the template makes of the headings of a table.
    pub fn execute_headings(&self, headings: &Value) -> Result<String, TemplateError> {
        Evaluator::new(&self.source, headings, Mode::Headings, |_, _| Some(Value::Null)).run(&self.nodes)
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
