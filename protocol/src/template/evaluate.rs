//! From tree and data to output.

use std::borrow::Cow;

use serde_json::Value;

use crate::template::functions::{self, is_true};
use crate::template::tree::{BranchKind, Command, Node, Operand, OperandKind, Pipeline};
use crate::template::{Absent, Limits, Mode, Template, TemplateError, format, line_of};

/// A value that is part of the data or was made on the way.
type Item<'v> = Cow<'v, Value>;

/// One execution of a template.
pub(super) struct Evaluator<'v> {
    template: &'v Template,
    limits: Limits,
    root: &'v Value,
    mode: Mode<'v>,
    absent: Absent,
    /// Innermost last.
    variables: Vec<(&'v str, Item<'v>)>,
    output: String,
    steps: usize,
}

impl<'v> Evaluator<'v> {
    pub(super) fn new(template: &'v Template, root: &'v Value, mode: Mode<'v>, absent: Absent) -> Self {
        let limits = template.dialect.limits();
        Self { template, limits, root, mode, absent, variables: Vec::new(), output: String::new(), steps: 0 }
    }

    /// Carries the template out.
    pub(super) fn run(mut self) -> Result<String, TemplateError> {
        let dot = Cow::Borrowed(self.root);
        match self.list(&self.template.nodes, &dot) {
            Ok(()) => Ok(self.output),
            Err(error) => Err(error.of(self.template.dialect)),
        }
    }

    fn list(&mut self, nodes: &'v [Node], dot: &Item<'v>) -> Result<(), TemplateError> {
        for node in nodes {
            match node {
                Node::Text(text) => self.output.push_str(text),
                Node::Output(pipeline) => {
                    let value = self.pipeline(pipeline, dot)?;
                    if pipeline.variables.is_empty() {
                        self.output.push_str(&format::top(&value));
                    }
                }
                Node::Branch { kind, pipeline, body, otherwise } => {
                    let outer = self.variables.len();
                    self.branch((*kind, pipeline), body, otherwise, dot)?;
                    self.variables.truncate(outer);
                }
            }
            if self.output.len() > self.limits.bytes {
                let text = format!(": an output of more than {} bytes is not supported", self.limits.bytes);
                return Err(TemplateError { text, is_no_field: false });
            }
        }
        Ok(())
    }

    fn branch(
        &mut self,
        (kind, pipeline): (BranchKind, &'v Pipeline),
        body: &'v [Node],
        otherwise: &'v [Node],
        dot: &Item<'v>,
    ) -> Result<(), TemplateError> {
        let value = self.pipeline(pipeline, dot)?;
        match kind {
            BranchKind::If if is_true(&value) => self.list(body, dot),
            BranchKind::With if is_true(&value) => self.list(body, &value),
            BranchKind::If | BranchKind::With => self.list(otherwise, dot),
            BranchKind::Range => {
                let items = items(value, self.limits.steps)
                    .map_err(|reason| self.failed(&pipeline.commands[0].first, reason))?;
                if items.is_empty() {
                    return self.list(otherwise, dot);
                }
                let inner = self.variables.len();
                for (key, item) in items {
                    let values = [Cow::Owned(key), item.clone()];
                    let skipped = values.len() - pipeline.variables.len().min(values.len());
                    for (name, value) in pipeline.variables.iter().zip(values.into_iter().skip(skipped)) {
                        self.bind(name, value, pipeline.assigns);
                    }
                    self.list(body, &item)?;
                    self.variables.truncate(inner);
                    self.step(&pipeline.commands[0].first)?;
                }
                Ok(())
            }
        }
    }

    fn bind(&mut self, name: &'v str, value: Item<'v>, assigns: bool) {
        match self.variables.iter_mut().rev().find(|(known, _)| assigns && *known == name) {
            Some((_, known)) => *known = value,
            None => self.variables.push((name, value)),
        }
    }

    fn pipeline(&mut self, pipeline: &'v Pipeline, dot: &Item<'v>) -> Result<Item<'v>, TemplateError> {
        let mut value = None;
        for command in &pipeline.commands {
            value = Some(self.command(command, dot, value)?);
        }
        let value = value.unwrap_or(Cow::Owned(Value::Null));
        // A range sets its variables at each turn.
        if let [name] = pipeline.variables.as_slice() {
            self.bind(name, value.clone(), pipeline.assigns);
        }
        Ok(value)
    }

    fn command(
        &mut self,
        command: &'v Command,
        dot: &Item<'v>,
        last: Option<Item<'v>>,
    ) -> Result<Item<'v>, TemplateError> {
        self.step(&command.first)?;
        let OperandKind::Function(name) = &command.first.kind else {
            if !command.arguments.is_empty() || last.is_some() {
                let reason = format!("can't give argument to non-function {}", self.text_of(&command.first));
                return Err(self.failed(&command.first, reason));
            }
            return self.operand(&command.first, dot);
        };
        let mut arguments = Vec::new();
        for operand in &command.arguments {
            let argument = self.operand(operand, dot)?;
            // `and` and `or` do not look at what comes behind the argument that decides.
            let decides = match name.as_str() {
                "and" => !is_true(&argument),
                "or" => is_true(&argument),
                _ => false,
            };
            if decides {
                return Ok(argument);
            }
            arguments.push(argument);
        }
        arguments.extend(last);
        let value = functions::call(name, arguments, self.mode)
            .map_err(|reason| self.failed(&command.first, format!("error calling {name}: {reason}")))?;
        match value.as_str() {
            Some(text) if text.len() > self.limits.bytes => {
                let reason = format!("a text of more than {} bytes is not supported", self.limits.bytes);
                Err(self.failed(&command.first, reason))
            }
            _ => Ok(value),
        }
    }

    fn operand(&mut self, operand: &'v Operand, dot: &Item<'v>) -> Result<Item<'v>, TemplateError> {
        match &operand.kind {
            OperandKind::Field(path) => self.path(dot.clone(), path, operand),
            OperandKind::Variable(name, path) => {
                let known = self.variables.iter().rev().find(|(known, _)| known == name);
                let value = known.map_or(Cow::Borrowed(self.root), |(_, value)| value.clone());
                self.path(value, path, operand)
            }
            OperandKind::Function(name) => functions::call(name, Vec::new(), self.mode)
                .map_err(|reason| self.failed(operand, format!("error calling {name}: {reason}"))),
            OperandKind::Literal(value) => Ok(Cow::Borrowed(value)),
            OperandKind::Nested(pipeline, path) => {
                let outer = self.variables.len();
                let value = self.pipeline(pipeline, dot)?;
                self.variables.truncate(outer);
                self.path(value, path, operand)
            }
        }
    }

    fn path(&self, mut value: Item<'v>, path: &'v [String], operand: &Operand) -> Result<Item<'v>, TemplateError> {
        let mut parent = "";
        // Go names the place of the field, not that of the path.
        let mut at = operand.start;
        for name in path {
            let found = match &value {
                Cow::Borrowed(Value::Object(fields)) => fields.get(name).map(Cow::Borrowed),
                Cow::Owned(Value::Object(fields)) => fields.get(name).map(|value| Cow::Owned(value.clone())),
                Cow::Borrowed(Value::Null) | Cow::Owned(Value::Null) => {
                    return Err(self.failed_at(operand, at, format!("nil pointer evaluating {parent}.{name}")));
                }
                other => {
                    let reason = format!("can't evaluate field {name} in type {}", functions::type_name(other));
                    return Err(self.failed_at(operand, at, reason));
                }
            };
            value = match found.or_else(|| (self.absent)(parent, name).map(Cow::Owned)) {
                Some(value) => value,
                None => {
                    let reason = format!("can't evaluate field {name}: there is no such field");
                    return Err(TemplateError { is_no_field: true, ..self.failed_at(operand, at, reason) });
                }
            };
            parent = name;
            if matches!(operand.kind, OperandKind::Field(_)) {
                at += 1 + name.len();
            }
        }
        Ok(value)
    }

    fn step(&mut self, operand: &Operand) -> Result<(), TemplateError> {
        self.steps += 1;
        if self.steps > self.limits.steps {
            return Err(self.failed(operand, format!("more than {} steps are not supported", self.limits.steps)));
        }
        Ok(())
    }

    fn text_of(&self, operand: &Operand) -> &'v str {
        &self.template.source[operand.start..operand.end]
    }

    fn failed(&self, operand: &Operand, reason: impl std::fmt::Display) -> TemplateError {
        self.failed_at(operand, operand.start, reason)
    }

    fn failed_at(&self, operand: &Operand, at: usize, reason: impl std::fmt::Display) -> TemplateError {
        let (line, column) = line_of(&self.template.source, at);
        let name = self.template.dialect.name();
        let text = format!(":{line}:{column}: executing {name:?} at <{}>: {reason}", self.text_of(operand));
        TemplateError { text, is_no_field: false }
    }
}

/// Returns what a range goes through, with keys: the elements of a list or an object, or so many numbers.
fn items(value: Item<'_>, count_max: usize) -> Result<Vec<(Value, Item<'_>)>, String> {
    match value {
        Cow::Borrowed(Value::Array(list)) => {
            Ok(list.iter().enumerate().map(|(index, item)| (Value::from(index), Cow::Borrowed(item))).collect())
        }
        Cow::Borrowed(Value::Object(fields)) => {
            Ok(fields.iter().map(|(key, item)| (Value::from(key.as_str()), Cow::Borrowed(item))).collect())
        }
        Cow::Owned(Value::Array(list)) => {
            Ok(list.into_iter().enumerate().map(|(index, item)| (Value::from(index), Cow::Owned(item))).collect())
        }
        Cow::Owned(Value::Object(fields)) => {
            Ok(fields.into_iter().map(|(key, item)| (Value::from(key), Cow::Owned(item))).collect())
        }
        Cow::Borrowed(Value::Null) | Cow::Owned(Value::Null) => Ok(Vec::new()),
        // What is absent reads as an empty text, whatever its type.
        other if other.as_str() == Some("") => Ok(Vec::new()),
        other => match other.as_i64().map(|count| usize::try_from(count).unwrap_or(0)) {
            Some(count) if count > count_max => Err(format!("range over more than {count_max} is not supported")),
            Some(count) => Ok((0..count).map(|index| (Value::from(index), Cow::Owned(Value::from(index)))).collect()),
            None => Err(format!("range can't iterate over {}", format::top(&other))),
        },
    }
}
