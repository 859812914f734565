//! From tokens to the tree. What is not supported or not defined is refused here, before anything is written.

use crate::template::functions::{UNSUPPORTED, has_function};
use crate::template::lexer::{Token, TokenKind};
use crate::template::tree::{BranchKind, Command, Node, Operand, OperandKind, Pipeline};
use crate::template::{DEPTH_MAX, Dialect, TemplateError};

/// Keywords of Go's that are not supported.
const KEYWORDS_UNSUPPORTED: [&str; 5] = ["block", "break", "continue", "define", "template"];

/// Reads the tokens of a whole template.
pub(super) fn parse(dialect: Dialect, source: &str, tokens: Vec<Token>) -> Result<Vec<Node>, TemplateError> {
    let mut parser = Parser { dialect, source, tokens, index: 0, at: 0, depth: 0, variables: Vec::new() };
    let (nodes, stop) = parser.list()?;
    match stop {
        Stop::End => Err(parser.error("unexpected {{end}}")),
        Stop::Else | Stop::ElseBranch(_) => Err(parser.error("unexpected {{else}}")),
        Stop::Eof => Ok(nodes),
    }
}

/// What ended a list of nodes; it has been taken.
enum Stop {
    Eof,
    End,
    Else,
    /// `{{else if`, of which the pipeline is left.
    ElseBranch(BranchKind),
}

struct Parser<'a> {
    dialect: Dialect,
    source: &'a str,
    tokens: Vec<Token>,
    /// Of the next token.
    index: usize,
    /// Where the last token ended.
    at: usize,
    depth: usize,
    /// Those that are declared here, innermost last.
    variables: Vec<String>,
}

impl Parser<'_> {
    fn error(&self, reason: impl std::fmt::Display) -> TemplateError {
        TemplateError::parse(self.source, self.at, reason)
    }

    /// Returns what the token is that stands so many behind the next one.
    fn peek(&self, ahead: usize) -> Option<&TokenKind> {
        self.tokens.get(self.index + ahead).map(|token| &token.kind)
    }

    fn next(&mut self) -> Option<Token> {
        let token = self.tokens.get(self.index).cloned();
        self.index += 1;
        self.at = token.as_ref().map_or(self.source.len(), |token| token.end);
        token
    }

    fn next_if(&mut self, wanted: &TokenKind) -> bool {
        let found = self.peek(0) == Some(wanted);
        if found {
            self.next();
        }
        found
    }

    fn next_word(&self) -> Option<String> {
        match self.peek(0) {
            Some(TokenKind::Word(word)) => Some(word.clone()),
            _ => None,
        }
    }

    fn deeper(&mut self) -> Result<(), TemplateError> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(self.error(format!("nesting deeper than {DEPTH_MAX} is not supported")));
        }
        Ok(())
    }

    fn list(&mut self) -> Result<(Vec<Node>, Stop), TemplateError> {
        let mut nodes = Vec::new();
        while let Some(token) = self.next() {
            // Outside of actions there is nothing but text and their begins.
            if let TokenKind::Text(text) = token.kind {
                nodes.push(Node::Text(text));
                continue;
            }
            let word = self.next_word().unwrap_or_default();
            if KEYWORDS_UNSUPPORTED.contains(&word.as_str()) {
                return Err(self.error(format!("{{{{{word}}}}} is not supported")));
            }
            if let Some(kind) = BranchKind::of(&word) {
                self.next();
                nodes.push(self.branch(kind)?);
            } else if word == "end" {
                self.next();
                self.close("end")?;
                return Ok((nodes, Stop::End));
            } else if word == "else" {
                self.next();
                let Some(kind) = self.next_word().and_then(|word| BranchKind::of(&word)) else {
                    self.close("else")?;
                    return Ok((nodes, Stop::Else));
                };
                self.next();
                return Ok((nodes, Stop::ElseBranch(kind)));
            } else {
                let pipeline = self.pipeline("command")?;
                self.close("command")?;
                nodes.push(Node::Output(pipeline));
            }
        }
        Ok((nodes, Stop::Eof))
    }

    fn close(&mut self, context: &str) -> Result<(), TemplateError> {
        match self.next() {
            Some(token) if token.kind == TokenKind::Close => Ok(()),
            Some(token) => Err(self.error(format!("unexpected {:?} in {context}", self.text_of(&token)))),
            None => Err(self.error("unclosed action")),
        }
    }

    fn text_of(&self, token: &Token) -> &str {
        &self.source[token.start..token.end]
    }

    /// Reads a block behind its keyword, to its end.
    fn branch(&mut self, kind: BranchKind) -> Result<Node, TemplateError> {
        self.deeper()?;
        let outer = self.variables.len();
        let context = match kind {
            BranchKind::If => "if",
            BranchKind::With => "with",
            BranchKind::Range => "range",
        };
        let pipeline = self.pipeline(context)?;
        self.close(context)?;
        if pipeline.variables.len() > 1 && kind != BranchKind::Range {
            return Err(self.error(format!("too many declarations in {context}")));
        }
        let (body, stop) = self.list()?;
        let otherwise = match stop {
            Stop::End => Vec::new(),
            Stop::ElseBranch(BranchKind::Range) => return Err(self.error("unexpected \"range\" in else")),
            Stop::ElseBranch(kind) => vec![self.branch(kind)?],
            Stop::Else => match self.list()? {
                (nodes, Stop::End) => nodes,
                (_, Stop::Else | Stop::ElseBranch(_)) => return Err(self.error("expected end; found {{else}}")),
                (_, Stop::Eof) => return Err(self.error("unexpected EOF")),
            },
            Stop::Eof => return Err(self.error("unexpected EOF")),
        };
        self.variables.truncate(outer);
        self.depth -= 1;
        Ok(Node::Branch { kind, pipeline, body, otherwise })
    }

    fn pipeline(&mut self, context: &str) -> Result<Pipeline, TemplateError> {
        let (variables, assigns) = self.declaration(context)?;
        let mut commands = Vec::new();
        loop {
            let Some(first) = self.operand()? else {
                return Err(self.error(format!("missing value for {context}")));
            };
            if !commands.is_empty() && !matches!(first.kind, OperandKind::Function(_)) {
                let text = &self.source[first.start..first.end];
                return Err(self.error(format!("non executable command in pipeline: {text}")));
            }
            let mut command = Command { first, arguments: Vec::new() };
            while let Some(argument) = self.operand()? {
                command.arguments.push(argument);
            }
            commands.push(command);
            if !self.next_if(&TokenKind::Pipe) {
                break;
            }
        }
        if !assigns {
            self.variables.extend(variables.iter().cloned());
        }
        Ok(Pipeline { variables, assigns, commands })
    }

    /// Reads `$a :=`, `$a, $b :=` or `$a =`, if there is one.
    fn declaration(&mut self, context: &str) -> Result<(Vec<String>, bool), TemplateError> {
        let variable = |ahead| match self.peek(ahead) {
            Some(TokenKind::Variable(name, path)) if path.is_empty() && !name.is_empty() => Some(name.clone()),
            _ => None,
        };
        let Some(first) = variable(0) else { return Ok((Vec::new(), false)) };
        let mut names = vec![first];
        if self.peek(1) == Some(&TokenKind::Comma) {
            let Some(second) = variable(2).filter(|_| context == "range") else {
                return Err(self.error(format!("unexpected \",\" in {context}")));
            };
            names.push(second);
        }
        let assigns = match self.peek(names.len() * 2 - 1) {
            Some(TokenKind::Declare) => false,
            Some(TokenKind::Assign) => true,
            _ => return Ok((Vec::new(), false)),
        };
        for _ in 0..names.len() * 2 {
            self.next();
        }
        if let Some(name) = names.iter().find(|name| assigns && !self.variables.contains(name)) {
            return Err(self.error(format!("undefined variable \"${name}\"")));
        }
        Ok((names, assigns))
    }

    fn operand(&mut self) -> Result<Option<Operand>, TemplateError> {
        use TokenKind::{Field, Left, Literal, Variable, Word};
        if !matches!(self.peek(0), Some(Field(_) | Variable(..) | Word(_) | Literal(_) | Left)) {
            return Ok(None);
        }
        let Some(token) = self.next() else { return Ok(None) };
        let start = token.start;
        let kind = match token.kind {
            TokenKind::Field(path) => OperandKind::Field(path),
            TokenKind::Literal(value) => OperandKind::Literal(value),
            TokenKind::Variable(name, path) => {
                if !name.is_empty() && !self.variables.contains(&name) {
                    return Err(self.error(format!("undefined variable \"${name}\"")));
                }
                OperandKind::Variable(name, path)
            }
            TokenKind::Word(name) if UNSUPPORTED.contains(&name.as_str()) => {
                return Err(self.error(format!("function {name:?} is not supported")));
            }
            TokenKind::Word(name) if has_function(self.dialect, &name) => OperandKind::Function(name),
            TokenKind::Word(name) => return Err(self.error(format!("function {name:?} not defined"))),
            _ => self.nested()?,
        };
        Ok(Some(Operand { kind, start, end: self.at }))
    }

    /// Reads what stands in parentheses, behind the opening one, and the path that follows.
    fn nested(&mut self) -> Result<OperandKind, TemplateError> {
        self.deeper()?;
        let pipeline = self.pipeline("parenthesized pipeline")?;
        if !self.next_if(&TokenKind::Right) {
            return Err(self.error("unclosed left paren"));
        }
        self.depth -= 1;
        let mut path = Vec::new();
        if let Some(Token { kind: TokenKind::Field(names), start, .. }) = self.tokens.get(self.index)
            && *start == self.at
        {
            path.clone_from(names);
            self.next();
        }
        Ok(OperandKind::Nested(Box::new(pipeline), path))
    }
}
