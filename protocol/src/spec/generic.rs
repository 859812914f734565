//! Generic resources: what a node offers beside CPU and memory, and what tasks ask of it.
//!
//! A node offers of each kind either a number (`gpu=2`) or names (`gpu=UUID1`, `gpu=UUID2`); tasks ask for numbers and, where
//! there are names, get some. Source: Docker Engine API v1.50, `GenericResources`; SwarmKit, `api/genericresource`.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::SpecError;
use super::validate::invalid;

/// Kinds of generic resources of one node or service at most.
pub const KINDS_MAX: usize = 64;

/// Names of generic resources that one node offers at most.
pub const NAMES_MAX: usize = 1024;

/// Bytes of a kind or name at most.
pub const WORD_BYTES_MAX: usize = 128;

/// One generic resource as Docker's API writes it: exactly one of the fields is there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct GenericResource {
    /// One of several of a kind that have names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub named_resource_spec: Option<NamedResource>,
    /// A number of one kind.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub discrete_resource_spec: Option<DiscreteResource>,
}

/// A resource that has a name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct NamedResource {
    /// Such as `gpu`.
    pub kind: String,
    /// Its name.
    pub value: String,
}

/// A number of resources.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct DiscreteResource {
    /// Such as `gpu`.
    pub kind: String,
    /// How many; 0 asks for nothing.
    pub value: i64,
}

/// What there is of one kind. Part of stored records: the variant's position is part of the wire format.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Amount {
    /// So many.
    Count(u64),
    /// These.
    Names(BTreeSet<String>),
}

impl Amount {
    /// Returns how many there are.
    pub fn count(&self) -> u64 {
        match self {
            Self::Count(count) => *count,
            Self::Names(names) => names.len() as u64,
        }
    }
}

/// What a node offers, or a task was given, by kind. Part of stored records.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GenericResources(pub BTreeMap<String, Amount>);

impl GenericResources {
    /// Reads what a node offers, as `KIND=NUMBER` or, once for each name, `KIND=NAME`. Source: SwarmKit, `genericresource.Parse`.
    pub fn parse<'a>(terms: impl IntoIterator<Item = &'a str>) -> Result<Self, SpecError> {
        let wrong = |reason: String| invalid(format!("could not parse GenericResource: {reason}"));
        let mut values: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for term in terms {
            match term.split_once('=').map(|(kind, value)| (kind.trim(), value.trim())) {
                Some((kind, value)) if !kind.is_empty() && !value.is_empty() && !value.contains('=') => {
                    values.entry(kind).or_default().push(value);
                }
                _ => return wrong(format!("incorrect term {term}, missing '=' or malformed expression")),
            }
        }
        let mut resources = BTreeMap::new();
        for (kind, values) in values {
            let numbers: Vec<i64> = values.iter().filter_map(|value| value.parse().ok()).collect();
            let amount = match (numbers.as_slice(), values.len()) {
                ([number], 1) => match u64::try_from(*number) {
                    Ok(number) => Amount::Count(number),
                    Err(_) => return wrong(format!("cannot ask for negative resource {kind}")),
                },
                ([], _) => Amount::Names(values.iter().map(|name| (*name).to_owned()).collect()),
                _ => {
                    let all = values.join(" ");
                    return wrong(format!("mixed discrete and named resources in expression '{kind}=[{all}]'"));
                }
            };
            resources.insert(kind.to_owned(), amount);
        }
        let resources = Self(resources);
        resources.check()?;
        Ok(resources)
    }

    /// Returns whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns them as Docker's API lists them: each name by itself.
    pub fn list(&self) -> Vec<GenericResource> {
        let mut list = Vec::new();
        for (kind, amount) in &self.0 {
            match amount {
                Amount::Count(count) => list.push(GenericResource::of(kind, i64::try_from(*count).unwrap_or(i64::MAX))),
                Amount::Names(names) => list.extend(names.iter().map(|name| GenericResource {
                    named_resource_spec: Some(NamedResource { kind: kind.clone(), value: name.clone() }),
                    discrete_resource_spec: None,
                })),
            }
        }
        list
    }

    /// Returns the variables by which a container learns what its task was given. Source: Docker, `DOCKER_RESOURCE_…`.
    pub fn variables(&self) -> Vec<String> {
        let value = |amount: &Amount| match amount {
            Amount::Count(count) => count.to_string(),
            Amount::Names(names) => names.iter().map(String::as_str).collect::<Vec<_>>().join(","),
        };
        self.0
            .iter()
            .map(|(kind, amount)| format!("DOCKER_RESOURCE_{}={}", kind.to_uppercase(), value(amount)))
            .collect()
    }

    fn check(&self) -> Result<(), SpecError> {
        let names = || {
            self.0.values().flat_map(|amount| match amount {
                Amount::Count(_) => None,
                Amount::Names(names) => Some(names),
            })
        };
        if self.0.len() > KINDS_MAX {
            return invalid(format!(
                "{} kinds of generic resources are more than the limit of {KINDS_MAX}",
                self.0.len()
            ));
        }
        let count = names().map(BTreeSet::len).sum::<usize>();
        if count > NAMES_MAX {
            return invalid(format!("{count} named generic resources are more than the limit of {NAMES_MAX}"));
        }
        self.0.keys().chain(names().flatten()).try_for_each(|word| check_word(word))
    }
}

impl GenericResource {
    /// Returns so many of a kind.
    pub fn of(kind: &str, value: i64) -> Self {
        let discrete_resource_spec = Some(DiscreteResource { kind: kind.to_owned(), value });
        Self { named_resource_spec: None, discrete_resource_spec }
    }
}

/// Returns how many of each kind are asked for. What is asked for by name was refused when it was written.
pub fn wanted(resources: &[GenericResource]) -> BTreeMap<String, u64> {
    let mut wanted: BTreeMap<String, u64> = BTreeMap::new();
    for resource in resources.iter().filter_map(|resource| resource.discrete_resource_spec.as_ref()) {
        let count = wanted.entry(resource.kind.clone()).or_default();
        *count = count.saturating_add(u64::try_from(resource.value).unwrap_or(0));
    }
    wanted.retain(|_, count| *count > 0);
    wanted
}

/// Checks what a service asks for. Source: SwarmKit, `genericresource.ValidateTask`.
pub(super) fn validate(resources: &[GenericResource]) -> Result<(), SpecError> {
    if resources.len() > KINDS_MAX {
        return invalid(format!("{} generic resources are more than the limit of {KINDS_MAX}", resources.len()));
    }
    for resource in resources {
        let GenericResource { named_resource_spec, discrete_resource_spec } = resource;
        let discrete = match (named_resource_spec, discrete_resource_spec) {
            (None, Some(discrete)) => discrete,
            (Some(named), _) => return invalid(format!("invalid argument for resource {}", named.kind)),
            (None, None) => return invalid("a generic resource without a kind: expected DiscreteResourceSpec"),
        };
        check_word(&discrete.kind)?;
        if discrete.value < 0 {
            return invalid(format!("cannot ask for negative resource {}", discrete.kind));
        }
    }
    Ok(())
}

/// A kind becomes the name of a variable, a name a part of its value.
fn check_word(word: &str) -> Result<(), SpecError> {
    let is_fit = |char: char| !char.is_whitespace() && !char.is_control() && char != ',' && char != '=';
    if word.is_empty() || word.len() > WORD_BYTES_MAX || !word.chars().all(is_fit) {
        return invalid(format!(
            "'{word}' is no kind or name of a generic resource: expected 1 to {WORD_BYTES_MAX} bytes without spaces, commas and '='"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec;

    fn parse(terms: &[&str]) -> Result<GenericResources, String> {
        GenericResources::parse(terms.iter().copied()).map_err(|error| error.to_string())
    }

    #[test]
    fn what_a_node_offers_is_a_number_or_names() {
        let offered = parse(&["gpu=UUID2", "ssd=3", " gpu = UUID1 "]).unwrap();
        let names = BTreeSet::from(["UUID1".to_owned(), "UUID2".to_owned()]);
        let want = BTreeMap::from([("gpu".to_owned(), Amount::Names(names)), ("ssd".to_owned(), Amount::Count(3))]);
        assert_eq!(offered.0, want);
        assert_eq!(offered.variables(), ["DOCKER_RESOURCE_GPU=UUID1,UUID2", "DOCKER_RESOURCE_SSD=3"]);
        assert_eq!(
            serde_json::to_string(&offered.list()).unwrap(),
            r#"[{"NamedResourceSpec":{"Kind":"gpu","Value":"UUID1"}},{"NamedResourceSpec":{"Kind":"gpu","Value":"UUID2"}},{"DiscreteResourceSpec":{"Kind":"ssd","Value":3}}]"#
        );
        for (terms, reason) in [
            (&["gpu"][..], "incorrect term gpu, missing '='"),
            (&["gpu=1=2"], "malformed expression"),
            (&["=1"], "malformed expression"),
            (&["gpu="], "malformed expression"),
            (&["gpu=-1"], "cannot ask for negative resource gpu"),
            (&["gpu=1", "gpu=2"], "mixed discrete and named resources in expression 'gpu=[1 2]'"),
            (&["gpu=1", "gpu=UUID"], "mixed discrete and named resources"),
            (&["g pu=1"], "is no kind or name"),
        ] {
            let error = parse(terms).unwrap_err();
            assert!(error.contains(reason), "{terms:?}: {error}");
        }
        let many: Vec<String> = (0..=NAMES_MAX).map(|n| format!("gpu=n{n}")).collect();
        assert!(GenericResources::parse(many.iter().map(String::as_str)).is_err());
    }

    #[test]
    fn services_ask_for_numbers() {
        let read = |json: &str| serde_json::from_str::<Vec<GenericResource>>(json).unwrap();
        let asked = read(
            r#"[{"DiscreteResourceSpec":{"Kind":"gpu","Value":2}},{"DiscreteResourceSpec":{"Kind":"ssd","Value":0}}]"#,
        );
        assert_eq!(validate(&asked), Ok(()));
        assert_eq!(wanted(&asked), BTreeMap::from([("gpu".to_owned(), 2)]));
        for (json, reason) in [
            (r#"[{"NamedResourceSpec":{"Kind":"gpu","Value":"a"}}]"#, "invalid argument for resource gpu"),
            (r#"[{"DiscreteResourceSpec":{"Kind":"gpu","Value":-2}}]"#, "cannot ask for negative resource gpu"),
            (r#"[{"DiscreteResourceSpec":{"Kind":"","Value":2}}]"#, "is no kind or name"),
            ("[{}]", "without a kind"),
        ] {
            let error = validate(&read(json)).unwrap_err().to_string();
            assert!(error.contains(reason), "{json}: {error}");
        }
    }

    #[test]
    fn golden_bytes() {
        let resources = parse(&["gpu=u1", "ssd=300"]).unwrap();
        let mut want = vec![codec::VERSION, 2, 3];
        want.extend(b"gpu");
        want.extend([1, 1, 2]);
        want.extend(b"u1");
        want.push(3);
        want.extend(b"ssd");
        want.extend([0, 251, 44, 1]);
        assert_eq!(codec::encode(&resources).unwrap(), want);
        assert_eq!(codec::decode::<GenericResources>(&want), Ok(resources));
    }
}
