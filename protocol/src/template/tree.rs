//! What a template says, as a tree.

use serde_json::Value;

/// A part of a template.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Node {
    /// Text that is written as it is.
    Text(String),
    /// An action whose value is written, unless it sets variables.
    Output(Pipeline),
    /// `if`, `with` or `range`.
    Branch { kind: BranchKind, pipeline: Pipeline, body: Vec<Node>, otherwise: Vec<Node> },
}

/// What a pipeline's value decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BranchKind {
    If,
    With,
    Range,
}

impl BranchKind {
    /// Returns the kind that a keyword begins.
    pub(super) fn of(keyword: &str) -> Option<Self> {
        match keyword {
            "if" => Some(Self::If),
            "with" => Some(Self::With),
            "range" => Some(Self::Range),
            _ => None,
        }
    }
}

/// Commands, each of which gets the value of the one before as its last argument.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Pipeline {
    /// Variables that take the value, without the dollar sign.
    pub(super) variables: Vec<String>,
    /// Whether the variables exist already.
    pub(super) assigns: bool,
    /// At least one.
    pub(super) commands: Vec<Command>,
}

/// A function with its arguments, or a single operand.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Command {
    pub(super) first: Operand,
    pub(super) arguments: Vec<Operand>,
}

/// A value, and where it stands in the source.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Operand {
    pub(super) kind: OperandKind,
    pub(super) start: usize,
    pub(super) end: usize,
}

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum OperandKind {
    /// A path from the dot, which is the dot itself if it is empty.
    Field(Vec<String>),
    /// A path from a variable; the name of `$` is empty.
    Variable(String, Vec<String>),
    Function(String),
    Literal(Value),
    /// A path from the value of a pipeline in parentheses.
    Nested(Box<Pipeline>, Vec<String>),
}
