//! Objects that services use by reference: secrets, configs and networks.
//!
//! They are one kind of record. What differs is what [`Object::data`] holds and which specs are accepted.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::record::BODY_BYTES_MAX;
use crate::spec::SpecError;
use crate::time::WallTime;

pub mod network;

/// Bytes of a secret's or a config's data: it has fewer. Source: SwarmKit, `validation.MaxSecretSize`.
pub const DATA_BYTES_LIMIT: usize = 500 * 1024;

/// What sealing adds to a secret's bytes: a nonce and a tag.
pub const SEAL_BYTES: usize = 24 + 16;

/// Bytes of JSON in an object's spec at most, without the data.
pub const SPEC_BYTES_MAX: usize = 8 * 1024;

/// Characters of a secret's or config's name at most. Source: SwarmKit, `validateConfigOrSecretAnnotations`.
const NAME_CHARS_MAX: usize = 64;

// The largest object fits into a record.
const _: () = assert!(DATA_BYTES_LIMIT + SEAL_BYTES + SPEC_BYTES_MAX + 256 <= BODY_BYTES_MAX);

/// Kinds of objects. Appended to, never reordered: the variant's position is part of the wire format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// A file for tasks that only they and managers can read.
    Secret,
    /// A file for tasks.
    Config,
    /// A network that tasks are attached to.
    Network,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::Secret, Self::Config, Self::Network];

    /// Returns its name in messages and paths.
    pub fn name(self) -> &'static str {
        match self {
            Self::Secret => "secret",
            Self::Config => "config",
            Self::Network => "network",
        }
    }

    /// Returns its number in hashes and on disk.
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Secret => 0,
            Self::Config => 1,
            Self::Network => 2,
        }
    }
}

/// A secret, config or network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Object {
    /// Everything but the data.
    pub head: ObjectHead,
    /// A secret's bytes, sealed with the key that only managers have; a config's bytes as they are; a network's
    /// [`network::NetworkState`], encoded.
    #[serde(with = "serde_bytes")]
    pub data: Vec<u8>,
}

/// Bytes that only managers can open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sealed {
    /// The edition of the managers' key with which they are sealed.
    pub edition: u64,
    /// The bytes, sealed.
    #[serde(with = "serde_bytes")]
    pub data: Vec<u8>,
}

/// What is known of an object without its data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectHead {
    /// Count of writes to this object, from 1: what `?version=` compares.
    pub index: u64,
    /// When it was created.
    pub created: WallTime,
    /// When it was last written.
    pub updated: WallTime,
    /// The edition of the managers' key with which a secret's data are sealed; 0 for everything else.
    pub edition: u64,
    /// Unique among the objects of its kind.
    pub name: String,
    /// JSON as the user sent it, without the data.
    pub spec: String,
}

/// What users write about a secret or config. Source: Docker Engine API v1.50, `SecretSpec`, `ConfigSpec`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FileSpec {
    /// Unique among secrets, or among configs.
    pub name: String,
    /// For people and filters.
    pub labels: BTreeMap<String, String>,
    /// Whether the data are a template that the node of each task fills in.
    pub is_template: bool,
}

/// The one template driver. Source: SwarmKit, `template.TemplatedSecretGetter`.
pub const TEMPLATE_DRIVER: &str = "golang";

impl FileSpec {
    /// Reads what a user sent and refuses what is malformed, invalid or not supported. Texts follow SwarmKit's.
    pub fn parse(kind: Kind, json: &str) -> Result<Self, SpecError> {
        let invalid = |text: &str| Err(SpecError::Invalid(text.to_owned()));
        let Value::Object(members) = read(json)? else { return invalid("spec is not a JSON object") };
        let mut spec = Self::default();
        for (name, value) in members {
            match (name.as_str(), value) {
                (_, Value::Null) => {}
                ("Name", Value::String(name)) => spec.name = name,
                ("Labels", labels @ Value::Object(_)) => spec.labels = read_labels(labels)?,
                ("Name" | "Labels", _) => return Err(SpecError::Invalid(format!("spec is malformed: {name}"))),
                ("Driver", _) => return Err(SpecError::Unsupported(format!("drivers of {}s are", kind.name()))),
                ("Templating", driver) => spec.is_template = read_templating(&driver)?,
                (other, _) => return Err(SpecError::Unsupported(format!("{other} is"))),
            }
        }
        if spec.name.is_empty() {
            return invalid("name must be provided");
        }
        let is_inner = |char: char| char.is_ascii_alphanumeric() || "-_.".contains(char);
        let is_outer = |char: Option<char>| char.is_some_and(|char| char.is_ascii_alphanumeric());
        let mut chars = spec.name.chars();
        let ends_well = is_outer(chars.clone().next()) && is_outer(chars.next_back());
        if spec.name.len() > NAME_CHARS_MAX || !ends_well || !spec.name.chars().all(is_inner) {
            return invalid(
                "invalid name, only 64 [a-zA-Z0-9-_.] characters allowed, and the start and end character must be [a-zA-Z0-9]",
            );
        }
        Ok(spec)
    }
}

/// Returns whether there are templates. Empty members ask for nothing: clients send them.
fn read_templating(driver: &Value) -> Result<bool, SpecError> {
    let Value::Object(members) = driver else {
        return Err(SpecError::Invalid("spec is malformed: Templating".to_owned()));
    };
    let is_empty = |value: &Value| value.is_null() || value.as_object().is_some_and(serde_json::Map::is_empty);
    for (name, value) in members {
        match (name.as_str(), value) {
            ("Name", Value::String(name)) if name == TEMPLATE_DRIVER || name.is_empty() => {}
            ("Name", Value::String(name)) => {
                return Err(SpecError::Unsupported(format!("the template driver '{name}' is")));
            }
            (_, value) if is_empty(value) => {}
            ("Name", _) => return Err(SpecError::Invalid("spec is malformed: Templating".to_owned())),
            (other, _) => return Err(SpecError::Unsupported(format!("Templating.{other} is"))),
        }
    }
    Ok(members.get("Name").and_then(Value::as_str) == Some(TEMPLATE_DRIVER))
}

/// Reads the JSON of a spec within its limit.
pub(crate) fn read(json: &str) -> Result<Value, SpecError> {
    if json.len() > SPEC_BYTES_MAX {
        let text = format!("spec of {} bytes is larger than the limit of {SPEC_BYTES_MAX}", json.len());
        return Err(SpecError::Invalid(text));
    }
    serde_json::from_str(json).map_err(|error| SpecError::Invalid(format!("spec is not JSON: {error}")))
}

pub(crate) fn read_labels(labels: Value) -> Result<BTreeMap<String, String>, SpecError> {
    serde_json::from_value(labels).map_err(|error| SpecError::Invalid(format!("labels are malformed: {error}")))
}

/// Checks how much data a secret or config has.
pub fn check_data(kind: Kind, bytes: usize) -> Result<(), SpecError> {
    if bytes == 0 || bytes >= DATA_BYTES_LIMIT {
        let kind = kind.name();
        let text = format!("{kind} data must be larger than 0 and less than {DATA_BYTES_LIMIT} bytes");
        return Err(SpecError::Invalid(text));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec;

    #[test]
    fn golden_bytes() {
        let head = ObjectHead {
            index: 1,
            created: WallTime(2),
            updated: WallTime(3),
            edition: 4,
            name: "ab".to_owned(),
            spec: "{}".to_owned(),
        };
        let object = Object { head, data: vec![7, 8] };
        let want = [codec::VERSION, 1, 2, 3, 4, 2, b'a', b'b', 2, b'{', b'}', 2, 7, 8];
        assert_eq!(codec::encode(&object).unwrap(), want);
        assert_eq!(codec::decode::<Object>(&want).unwrap(), object);
        for (number, kind) in Kind::ALL.into_iter().enumerate() {
            assert_eq!(codec::encode(&kind).unwrap(), [codec::VERSION, number as u8]);
            assert_eq!(usize::from(kind.number()), number);
        }
    }

    #[test]
    fn specs_are_read_as_swarm_reads_them() {
        let long = format!(r#"{{"Name":"{}"}}"#, "a".repeat(65));
        let large = format!(r#"{{"Name":"a","Labels":{{"a":"{}"}}}}"#, "b".repeat(SPEC_BYTES_MAX));
        for (json, want) in [
            (r#"{"Name":"sec1","Labels":{"a":"b"}}"#, None),
            (r#"{"Name":"a.b-c_d","Labels":null,"Templating":null,"Driver":null}"#, None),
            ("{}", Some("name must be provided")),
            (r#"{"Name":"-a"}"#, Some("invalid name, only 64")),
            (r#"{"Name":"a."}"#, Some("invalid name, only 64")),
            (r#"{"Name":"a b"}"#, Some("invalid name, only 64")),
            (&long, Some("invalid name, only 64")),
            (&large, Some("is larger than the limit of 8192")),
            (r#"{"Name":1}"#, Some("spec is malformed: Name")),
            (r#"{"Name":"a","Labels":{"a":1}}"#, Some("labels are malformed")),
            (r#"{"Name":"a","Templating":{"Name":"golang","Options":{}}}"#, None),
            (r#"{"Name":"a","Templating":{"Name":"x"}}"#, Some("the template driver 'x' is not supported yet")),
            (
                r#"{"Name":"a","Templating":{"Name":"golang","Options":{"a":"b"}}}"#,
                Some("Templating.Options is not supported yet"),
            ),
            (r#"{"Name":"a","Templating":"golang"}"#, Some("spec is malformed: Templating")),
            (r#"{"Name":"a","Driver":{"Name":"x"}}"#, Some("drivers of secrets are not supported yet")),
            (r#"{"Name":"a","Novelty":{}}"#, Some("Novelty is not supported yet")),
            ("[]", Some("not a JSON object")),
            ("{", Some("spec is not JSON")),
        ] {
            let got = FileSpec::parse(Kind::Secret, json).err().map(|error| error.to_string());
            match want {
                None => assert_eq!(got, None, "{json}"),
                Some(want) => assert!(got.as_ref().is_some_and(|got| got.contains(want)), "{json}: {got:?}"),
            }
        }
    }

    #[test]
    fn data_is_limited() {
        for (bytes, fits) in [(0, false), (1, true), (DATA_BYTES_LIMIT - 1, true), (DATA_BYTES_LIMIT, false)] {
            assert_eq!(check_data(Kind::Config, bytes).is_ok(), fits, "{bytes}");
        }
        let want = "secret data must be larger than 0 and less than 512000 bytes";
        assert_eq!(check_data(Kind::Secret, 0).unwrap_err().to_string(), want);
    }
}
