//! Which nodes may run a task, and over which of them tasks are spread.
//!
//! What a node's labels are is the scheduler's to say. Source: Docker Engine API v1.50, `TaskSpec.Placement`.

use serde::{Deserialize, Serialize};

use super::constraint::{ConstraintKey, parse_key};
use super::validate::invalid;
use super::{Constraint, SpecError, null_as_default};

/// Placement preferences of one service at most, each nested in the one before.
pub const PREFERENCES_MAX: usize = 8;

/// Which nodes may run a task.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Placement {
    /// Expressions such as `node.labels.zone==a`, all of which must hold.
    #[serde(deserialize_with = "null_as_default")]
    pub constraints: Vec<String>,
    /// Tasks of the service on one node at most; 0 is no limit.
    pub max_replicas: u64,
    /// Platforms the image is for; empty fits any.
    #[serde(deserialize_with = "null_as_default")]
    pub platforms: Vec<Platform>,
    /// Over what replicas are spread, the outermost first.
    #[serde(deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    pub preferences: Vec<Preference>,
}

/// An operating system and processor architecture; an empty field fits any.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Platform {
    /// Such as `x86_64` or `amd64`, which mean the same.
    #[serde(rename = "Architecture")]
    pub architecture: String,
    /// Such as `linux`.
    #[serde(rename = "OS")]
    pub os: String,
}

/// One placement preference. Spreading is the only kind that there is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Preference {
    /// Spread evenly over the values of a label; `None` asks for nothing.
    pub spread: Option<Spread>,
}

/// A label over whose values tasks are spread.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Spread {
    /// Such as `node.labels.zone` or `engine.labels.rack`.
    pub spread_descriptor: String,
}

/// The label that a preference looks at. Nodes that do not have it are a group of their own, as if its value were empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SpreadKey {
    /// `node.labels.NAME`
    NodeLabel(String),
    /// `engine.labels.NAME`
    EngineLabel(String),
}

impl Spread {
    /// Reads the descriptor, as the key of a constraint is read.
    pub fn key(&self) -> Result<SpreadKey, SpecError> {
        match parse_key(&self.spread_descriptor) {
            Ok(ConstraintKey::NodeLabel(name)) => Ok(SpreadKey::NodeLabel(name)),
            Ok(ConstraintKey::EngineLabel(name)) => Ok(SpreadKey::EngineLabel(name)),
            Ok(
                ConstraintKey::NodeId
                | ConstraintKey::Hostname
                | ConstraintKey::Role
                | ConstraintKey::Os
                | ConstraintKey::Architecture,
            )
            | Err(_) => invalid(format!(
                "placement preference: cannot spread over '{}': expected node.labels.NAME or engine.labels.NAME",
                self.spread_descriptor
            )),
        }
    }
}

impl Placement {
    /// Returns the labels over which tasks are spread, the outermost first. What cannot be read, which only a newer version
    /// writes, is left out: a preference forbids nothing.
    pub fn spread(&self) -> Vec<SpreadKey> {
        let keys = self.preferences.iter().filter_map(|preference| preference.spread.as_ref()?.key().ok());
        keys.take(PREFERENCES_MAX).collect()
    }

    pub(super) fn validate(&self) -> Result<(), SpecError> {
        for text in &self.constraints {
            text.parse::<Constraint>().map_err(|error| SpecError::Invalid(error.to_string()))?;
        }
        let count = self.preferences.len();
        if count > PREFERENCES_MAX {
            return invalid(format!("{count} placement preferences are more than the limit of {PREFERENCES_MAX}"));
        }
        self.preferences
            .iter()
            .filter_map(|preference| preference.spread.as_ref())
            .try_for_each(|spread| spread.key().map(drop))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_are_spread_over_labels_and_nothing_else() {
        for (descriptor, want) in [
            ("node.labels.zone", Some(SpreadKey::NodeLabel("zone".to_owned()))),
            ("Node.Labels.Zone", Some(SpreadKey::NodeLabel("Zone".to_owned()))),
            ("node.labels.com.example/rack", Some(SpreadKey::NodeLabel("com.example/rack".to_owned()))),
            ("engine.labels.rack", Some(SpreadKey::EngineLabel("rack".to_owned()))),
            ("node.labels.", None),
            ("node.hostname", None),
            ("zone", None),
            ("", None),
        ] {
            let spread = Spread { spread_descriptor: descriptor.to_owned() };
            assert_eq!(spread.key().ok(), want, "{descriptor}");
        }
    }

    #[test]
    fn preferences_are_written_as_they_were_read() {
        let json = r#"[{"Spread":{"SpreadDescriptor":"node.labels.zone"}}]"#;
        let read: Vec<Preference> = serde_json::from_str(json).unwrap();
        assert_eq!(serde_json::to_string(&read).unwrap(), json);
    }
}
