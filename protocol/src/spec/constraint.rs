//! Placement constraints: `node.labels.zone==a` and the like.
//!
//! Only the syntax lives here; whether a node satisfies a constraint is the scheduler's to say. Source: SwarmKit,
//! `manager/constraint`.

use std::str::FromStr;

/// One condition on a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Constraint {
    /// What is compared.
    pub key: ConstraintKey,
    /// Whether the values must be equal (`==`) or must not be (`!=`).
    pub equal: bool,
    /// Compared without regard to the case of ASCII letters.
    pub value: String,
}

/// What a constraint looks at. The fixed part of a key is read without regard to case, a label's name with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConstraintKey {
    /// `node.id`
    NodeId,
    /// `node.hostname`
    Hostname,
    /// `node.role`
    Role,
    /// `node.platform.os`
    Os,
    /// `node.platform.arch`
    Architecture,
    /// `node.labels.NAME`
    NodeLabel(String),
    /// `engine.labels.NAME`
    EngineLabel(String),
}

/// Why a text is not a constraint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidConstraint {
    /// Neither `==` nor `!=` is in it.
    #[error("constraint expected one operator from ==, !=")]
    Operator,
    /// The part before the operator has characters that no key has.
    #[error("key '{0}' is invalid")]
    Key(String),
    /// The part after the operator has characters that no value has.
    #[error("value '{0}' is invalid")]
    Value(String),
    /// The key is well formed but nothing that a node has.
    #[error("constraints on '{0}' are not supported yet")]
    UnknownKey(String),
}

impl FromStr for Constraint {
    type Err = InvalidConstraint;

    fn from_str(text: &str) -> Result<Self, InvalidConstraint> {
        let (key, equal, value) = match (text.split_once("=="), text.split_once("!=")) {
            // `==` is looked for first, wherever it stands, as SwarmKit does.
            (Some((key, value)), _) => (key, true, value),
            (None, Some((key, value))) => (key, false, value),
            (None, None) => return Err(InvalidConstraint::Operator),
        };
        let (key, value) = (key.trim(), value.trim());
        if !is_key(key) {
            return Err(InvalidConstraint::Key(key.to_owned()));
        }
        if value.is_empty() || !value.chars().all(is_value_char) {
            return Err(InvalidConstraint::Value(value.to_owned()));
        }
        Ok(Self { key: parse_key(key)?, equal, value: value.to_owned() })
    }
}

/// Reads what is compared.
pub(super) fn parse_key(key: &str) -> Result<ConstraintKey, InvalidConstraint> {
    let label = |prefix: &str| {
        let (head, name) = key.split_at_checked(prefix.len())?;
        (head.eq_ignore_ascii_case(prefix) && !name.is_empty()).then(|| name.to_owned())
    };
    if let Some(name) = label("node.labels.") {
        return Ok(ConstraintKey::NodeLabel(name));
    }
    if let Some(name) = label("engine.labels.") {
        return Ok(ConstraintKey::EngineLabel(name));
    }
    Ok(match key.to_ascii_lowercase().as_str() {
        "node.id" => ConstraintKey::NodeId,
        "node.hostname" => ConstraintKey::Hostname,
        "node.role" => ConstraintKey::Role,
        "node.platform.os" => ConstraintKey::Os,
        "node.platform.arch" => ConstraintKey::Architecture,
        _ => return Err(InvalidConstraint::UnknownKey(key.to_owned())),
    })
}

fn is_key(key: &str) -> bool {
    let mut chars = key.chars();
    let first = chars.next().is_some_and(|char| char.is_ascii_alphabetic() || char == '_');
    let rest = chars.as_str();
    first && !rest.is_empty() && rest.chars().all(|char| char.is_ascii_alphanumeric() || "-_.".contains(char))
}

fn is_value_char(char: char) -> bool {
    char.is_ascii_alphanumeric() || char.is_ascii_whitespace() || ":-_.*()?+[]\\^$|/".contains(char)
}

impl Constraint {
    /// Returns whether the constraint holds where its key has the value `actual`; what a node lacks counts as empty.
    pub fn holds_for(&self, actual: &str) -> bool {
        self.value.eq_ignore_ascii_case(actual) == self.equal
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_docker_reads_is_read() {
        let parsed = |key, equal, value: &str| Ok(Constraint { key, equal, value: value.to_owned() });
        for (text, want) in [
            ("node.hostname==n1", parsed(ConstraintKey::Hostname, true, "n1")),
            ("node.platform.os == linux", parsed(ConstraintKey::Os, true, "linux")),
            ("NODE.ROLE!=Manager", parsed(ConstraintKey::Role, false, "Manager")),
            ("Node.Labels.Zone==a b", parsed(ConstraintKey::NodeLabel("Zone".into()), true, "a b")),
            ("engine.labels.com.x/y==1", Err(InvalidConstraint::Key("engine.labels.com.x/y".into()))),
            ("engine.labels.disk==ssd", parsed(ConstraintKey::EngineLabel("disk".into()), true, "ssd")),
            ("node.id==abc", parsed(ConstraintKey::NodeId, true, "abc")),
            ("node.platform.arch==x86_64", parsed(ConstraintKey::Architecture, true, "x86_64")),
            ("node.role", Err(InvalidConstraint::Operator)),
            ("node.role=manager", Err(InvalidConstraint::Operator)),
            ("==a", Err(InvalidConstraint::Key(String::new()))),
            ("node.role==", Err(InvalidConstraint::Value(String::new()))),
            ("node.role==a;b", Err(InvalidConstraint::Value("a;b".into()))),
            ("node.role===a", Err(InvalidConstraint::Value("=a".into()))),
            ("node.ip==10.0.0.1", Err(InvalidConstraint::UnknownKey("node.ip".into()))),
            ("node.labels.==a", Err(InvalidConstraint::UnknownKey("node.labels.".into()))),
        ] {
            assert_eq!(text.parse::<Constraint>(), want, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text: String) {
            let _ = text.parse::<Constraint>();
        }
    }
}
