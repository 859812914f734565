//! `--filter key=value` and the JSON that the API takes for it.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;

use serde_json::{Value, json};

use crate::client::escape;

/// One `--filter`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Filter {
    key: String,
    value: String,
}

impl Filter {
    /// Makes a filter.
    pub(crate) fn new(key: &str, value: &str) -> Self {
        Self { key: key.to_owned(), value: value.to_owned() }
    }
}

impl FromStr for Filter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok(Self::new(key.trim(), value.trim())),
            _ => Err("expected KEY=VALUE".to_owned()),
        }
    }
}

/// Returns the `filters=` part of a query, or nothing when there is no filter.
pub(crate) fn query(filters: &[Filter]) -> String {
    if filters.is_empty() {
        return String::new();
    }
    let mut grouped: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for filter in filters {
        grouped.entry(&filter.key).or_default().insert(&filter.value);
    }
    let object: BTreeMap<&str, Value> = grouped
        .into_iter()
        .map(|(key, values)| (key, values.into_iter().map(|value| (value.to_owned(), json!(true))).collect()))
        .collect();
    format!("filters={}", escape(&json!(object).to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_of_one_key_are_alternatives() {
        let filters: Vec<Filter> = ["name=a", "name=b", "label=k=v"].iter().map(|text| text.parse().unwrap()).collect();
        assert_eq!(
            query(&filters),
            format!("filters={}", escape(r#"{"label":{"k=v":true},"name":{"a":true,"b":true}}"#))
        );
        assert_eq!(query(&[]), "");
        assert!("name".parse::<Filter>().is_err());
    }
}
