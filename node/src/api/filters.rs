//! The `filters` of a query: `{"key": {"value": true}}`, or the older `{"key": ["value"]}`.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::error::ApiError;

/// Bytes of `filters` at most.
const FILTERS_BYTES_MAX: usize = 64 * 1024;

/// What a listing is restricted to: alternatives within one key, conditions between keys.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filters(BTreeMap<String, BTreeSet<String>>);

impl Filters {
    /// Reads filters and refuses those that are not `known`.
    pub fn parse(text: Option<&str>, known: &[&str]) -> Result<Self, ApiError> {
        let text = text.unwrap_or_default();
        if text.is_empty() {
            return Ok(Self::default());
        }
        if text.len() > FILTERS_BYTES_MAX {
            return Err(ApiError::invalid(format!("filters are larger than the limit of {FILTERS_BYTES_MAX} bytes")));
        }
        let invalid = || ApiError::invalid("invalid filter");
        let object: BTreeMap<String, Value> = serde_json::from_str(text).map_err(|_| invalid())?;
        let mut filters = BTreeMap::new();
        for (key, values) in object {
            if !known.contains(&key.as_str()) {
                return Err(ApiError::invalid(format!("invalid filter '{key}'")));
            }
            let values: BTreeSet<String> = match values {
                Value::Object(values) => values
                    .into_iter()
                    .filter(|(_, wanted)| wanted == &Value::Bool(true))
                    .map(|(value, _)| value)
                    .collect(),
                Value::Array(values) => {
                    let texts = values.into_iter().map(|value| value.as_str().map(str::to_owned).ok_or_else(invalid));
                    texts.collect::<Result<_, _>>()?
                }
                Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => return Err(invalid()),
            };
            if !values.is_empty() {
                filters.insert(key, values);
            }
        }
        Ok(Self(filters))
    }

    /// Returns the values of a key.
    pub fn values(&self, key: &str) -> Vec<String> {
        self.0.get(key).map_or_else(Vec::new, |values| values.iter().cloned().collect())
    }

    /// Returns whether one of the key's values fits, or there is none.
    pub fn any(&self, key: &str, fits: impl Fn(&str) -> bool) -> bool {
        self.0.get(key).is_none_or(|values| values.iter().any(|value| fits(value)))
    }

    /// Returns whether every `name` or `name=value` of the key is among the labels.
    pub fn labels(&self, key: &str, labels: &BTreeMap<String, String>) -> bool {
        self.0.get(key).is_none_or(|wanted| {
            wanted.iter().all(|wanted| match wanted.split_once('=') {
                Some((name, value)) => labels.get(name).is_some_and(|have| have == value),
                None => labels.contains_key(wanted),
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_notations_are_read() {
        for text in [r#"{"name":{"a":true,"b":false}}"#, r#"{"name":["a"]}"#] {
            let filters = Filters::parse(Some(text), &["name"]).unwrap();
            assert_eq!(filters.values("name"), ["a"]);
            assert!(filters.any("name", |value| value == "a"));
            assert!(!filters.any("name", |value| value == "b"));
            assert!(filters.any("id", |_| false));
        }
    }

    #[test]
    fn what_is_no_filter_is_refused() {
        for text in ["x", "[]", r#"{"name":"a"}"#, r#"{"name":[1]}"#, r#"{"colour":{"red":true}}"#] {
            assert_eq!(Filters::parse(Some(text), &["name"]).unwrap_err().status.as_u16(), 400, "{text}");
        }
    }

    #[test]
    fn labels_must_all_fit() {
        let labels = BTreeMap::from([("a".to_owned(), "1".to_owned()), ("b".to_owned(), String::new())]);
        let fits = |text| Filters::parse(Some(text), &["label"]).unwrap().labels("label", &labels);
        assert!(fits(r#"{"label":{"a=1":true,"b":true}}"#));
        assert!(!fits(r#"{"label":{"a=2":true}}"#));
        assert!(!fits(r#"{"label":{"c":true}}"#));
    }
}
