//! From text to tokens. Comments and trimmed blanks are gone afterwards.

use serde_json::Value;

use crate::template::TemplateError;

/// A token, and where it stands in the source.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Token {
    pub(super) kind: TokenKind,
    pub(super) start: usize,
    pub(super) end: usize,
}

/// What a token is.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum TokenKind {
    /// Text outside of actions.
    Text(String),
    /// `{{`
    Open,
    /// `}}`
    Close,
    /// `.A.B`, or `.` where it is empty.
    Field(Vec<String>),
    /// `$name.A.B`
    Variable(String, Vec<String>),
    /// A keyword or the name of a function.
    Word(String),
    /// A string, number, `true`, `false` or `nil`.
    Literal(Value),
    /// `(`
    Left,
    /// `)`
    Right,
    /// `|`
    Pipe,
    /// `,`
    Comma,
    /// `:=`
    Declare,
    /// `=`
    Assign,
}

/// Splits a template into tokens.
pub(super) fn lex(source: &str) -> Result<Vec<Token>, TemplateError> {
    let mut lexer = Lexer { source, at: 0, tokens: Vec::new() };
    let mut trims = false;
    while let Some(found) = lexer.rest().find("{{") {
        let open = lexer.at + found;
        let marker = trim_marker(&source[open + 2..]);
        lexer.text(open, trims, marker > 0);
        lexer.at = open + 2 + marker;
        trims = if lexer.rest().starts_with("/*") { lexer.comment()? } else { lexer.action(open)? };
    }
    lexer.text(source.len(), trims, false);
    Ok(lexer.tokens)
}

/// Returns the length of a `- ` that trims the text before an action.
fn trim_marker(inner: &str) -> usize {
    let mut chars = inner.chars();
    match (chars.next(), chars.next()) {
        (Some('-'), Some(blank)) if blank.is_ascii_whitespace() => 1 + blank.len_utf8(),
        _ => 0,
    }
}

struct Lexer<'a> {
    source: &'a str,
    at: usize,
    tokens: Vec<Token>,
}

impl<'a> Lexer<'a> {
    fn rest(&self) -> &'a str {
        &self.source[self.at..]
    }

    fn error(&self, reason: impl std::fmt::Display) -> TemplateError {
        TemplateError::parse(self.source, self.at, reason)
    }

    fn push(&mut self, kind: TokenKind, bytes: usize) {
        self.tokens.push(Token { kind, start: self.at, end: self.at + bytes });
        self.at += bytes;
    }

    /// Takes the text up to an offset.
    fn text(&mut self, end: usize, trims_start: bool, trims_end: bool) {
        let mut text = &self.source[self.at..end];
        if trims_start {
            text = text.trim_ascii_start();
        }
        if trims_end {
            text = text.trim_ascii_end();
        }
        if !text.is_empty() {
            self.tokens.push(Token { kind: TokenKind::Text(text.to_owned()), start: self.at, end });
        }
        self.at = end;
    }

    /// Passes over a comment; returns whether the text behind it is to be trimmed.
    fn comment(&mut self) -> Result<bool, TemplateError> {
        let end = self.rest().find("*/").ok_or_else(|| self.error("unclosed comment"))?;
        self.at += end + 2;
        let behind = self.rest().trim_ascii_start();
        let has_blank = behind.len() < self.rest().len();
        let trims = has_blank && behind.starts_with("-}}");
        if !trims && (has_blank || !behind.starts_with("}}")) {
            return Err(self.error("comment ends before closing delimiter"));
        }
        self.at = self.source.len() - behind.len() + if trims { 3 } else { 2 };
        Ok(trims)
    }

    /// Takes the tokens of an action; returns whether the text behind it is to be trimmed.
    fn action(&mut self, open: usize) -> Result<bool, TemplateError> {
        self.tokens.push(Token { kind: TokenKind::Open, start: open, end: self.at });
        loop {
            let trimmed = self.rest().trim_ascii_start();
            let has_blank = trimmed.len() < self.rest().len();
            self.at = self.source.len() - trimmed.len();
            if trimmed.starts_with("}}") {
                self.push(TokenKind::Close, 2);
                return Ok(false);
            }
            if has_blank && trimmed.starts_with("-}}") {
                self.push(TokenKind::Close, 3);
                return Ok(true);
            }
            self.token()?;
        }
    }

    fn token(&mut self) -> Result<(), TemplateError> {
        let rest = self.rest();
        let Some(first) = rest.chars().next() else {
            return Err(self.error("unclosed action"));
        };
        match first {
            '(' => self.push(TokenKind::Left, 1),
            ')' => self.push(TokenKind::Right, 1),
            '|' => self.push(TokenKind::Pipe, 1),
            ',' => self.push(TokenKind::Comma, 1),
            '=' => self.push(TokenKind::Assign, 1),
            ':' if rest.starts_with(":=") => self.push(TokenKind::Declare, 2),
            '"' => return self.quoted(),
            '`' => {
                let end = rest[1..].find('`').ok_or_else(|| self.error("unterminated raw quoted string"))?;
                self.push(TokenKind::Literal(Value::from(&rest[1..=end])), end + 2);
            }
            '\'' => return Err(self.error("character constants are not supported")),
            '.' => {
                let (path, bytes) = self.path(rest)?;
                self.push(TokenKind::Field(path), bytes.max(1));
            }
            '$' => {
                let name = word(&rest[1..]);
                let (path, bytes) = self.path(&rest[1 + name.len()..])?;
                self.push(TokenKind::Variable(name.to_owned(), path), 1 + name.len() + bytes);
            }
            '0'..='9' | '+' | '-' => return self.number(),
            _ if is_word(first) => {
                let name = word(rest);
                let kind = match name {
                    "true" => TokenKind::Literal(Value::Bool(true)),
                    "false" => TokenKind::Literal(Value::Bool(false)),
                    "nil" => TokenKind::Literal(Value::Null),
                    _ => TokenKind::Word(name.to_owned()),
                };
                self.push(kind, name.len());
            }
            _ => return Err(self.error(format!("unexpected {first:?} in action"))),
        }
        Ok(())
    }

    /// Reads `.A.B` at the begin of `text`, and returns how long it is.
    fn path(&self, text: &str) -> Result<(Vec<String>, usize), TemplateError> {
        let (mut path, mut bytes) = (Vec::new(), 0);
        while let Some(behind) = text[bytes..].strip_prefix('.') {
            let name = word(behind);
            if name.starts_with(|first: char| first.is_ascii_digit()) || (name.is_empty() && bytes > 0) {
                return Err(self.error(format!("bad field name in {:?}", &text[..bytes + 1 + name.len()])));
            }
            if name.is_empty() {
                break;
            }
            path.push(name.to_owned());
            bytes += 1 + name.len();
        }
        Ok((path, bytes))
    }

    fn quoted(&mut self) -> Result<(), TemplateError> {
        let (mut text, mut chars) = (String::new(), self.rest().char_indices().skip(1));
        while let Some((offset, char)) = chars.next() {
            match char {
                '"' => {
                    self.push(TokenKind::Literal(Value::String(text)), offset + 1);
                    return Ok(());
                }
                '\n' => break,
                '\\' => match chars.next().map(|(_, escaped)| escaped) {
                    Some('n') => text.push('\n'),
                    Some('t') => text.push('\t'),
                    Some('r') => text.push('\r'),
                    Some(same @ ('"' | '\\')) => text.push(same),
                    Some(other) => return Err(self.error(format!("escape \\{other} is not supported"))),
                    None => break,
                },
                _ => text.push(char),
            }
        }
        Err(self.error("unterminated quoted string"))
    }

    fn number(&mut self) -> Result<(), TemplateError> {
        let rest = self.rest();
        let is_part = |char: char| char.is_ascii_alphanumeric() || matches!(char, '.' | '_' | '+' | '-');
        let text = &rest[..rest.find(|char| !is_part(char)).unwrap_or(rest.len())];
        // The sign before a closing delimiter trims; it is not the number's.
        let text = text.strip_suffix('-').filter(|number| !number.is_empty()).unwrap_or(text);
        let value = match (text.parse::<i64>(), text.parse::<f64>()) {
            (Ok(integer), _) => Value::from(integer),
            (_, Ok(float)) if float.is_finite() => Value::from(float),
            _ => return Err(self.error(format!("bad number syntax: {text:?}"))),
        };
        self.push(TokenKind::Literal(value), text.len());
        Ok(())
    }
}

fn is_word(char: char) -> bool {
    char.is_alphanumeric() || char == '_'
}

/// Returns the word at the begin of a text, which may be empty.
fn word(text: &str) -> &str {
    &text[..text.find(|char| !is_word(char)).unwrap_or(text.len())]
}
