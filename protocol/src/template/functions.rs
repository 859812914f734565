//! The functions of templates: Go's own and those of Docker's client.

use std::borrow::Cow;
use std::cmp::Ordering;

use serde_json::Value;

use crate::template::{Dialect, Mode, format};

/// What may be called everywhere.
const COMMON: [&str; 15] =
    ["and", "eq", "ge", "gt", "index", "join", "le", "len", "lt", "ne", "not", "or", "print", "printf", "println"];
/// What Docker's client adds.
const OF_CLIENT: [&str; 7] = ["json", "lower", "pad", "split", "title", "truncate", "upper"];
/// What the content of secrets and configs may call beyond what specs may.
const OF_PAYLOAD: [&str; 3] = ["config", "env", "secret"];
/// What Go has and this has not.
pub(super) const UNSUPPORTED: [&str; 5] = ["call", "html", "js", "slice", "urlquery"];

/// Blanks that `pad` may add at most on each side; more are refused.
const PAD_MAX: usize = 1024;

/// Returns whether a function may be called.
pub(super) fn has_function(dialect: Dialect, name: &str) -> bool {
    let further: &[&str] = match dialect {
        Dialect::Client => &OF_CLIENT,
        Dialect::Spec => &[],
        Dialect::Payload => &OF_PAYLOAD,
    };
    COMMON.contains(&name) || further.contains(&name)
}

/// Returns whether a value counts as true: neither zero nor empty.
pub(super) fn is_true(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(truth) => *truth,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
    }
}

/// Names the type of a value as Go does.
pub(super) fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "nil",
        Value::Bool(_) => "bool",
        Value::Number(number) if number.is_f64() => "float64",
        Value::Number(_) => "int",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}

/// Calls a function that there is.
pub(super) fn call<'v>(name: &str, arguments: Vec<Cow<'v, Value>>, mode: Mode<'_>) -> Result<Cow<'v, Value>, String> {
    let count = arguments.len();
    let wanted = match name {
        "not" | "len" | "json" | "lower" | "upper" | "title" | "secret" | "config" | "env" => 1..=1,
        "join" if matches!(mode, Mode::Expansion(_)) => 1..=usize::MAX,
        "ne" | "lt" | "le" | "gt" | "ge" | "join" | "split" | "truncate" => 2..=2,
        "pad" => 3..=3,
        "eq" => 2..=usize::MAX,
        "and" | "or" | "index" | "printf" => 1..=usize::MAX,
        _ => 0..=usize::MAX,
    };
    if !wanted.contains(&count) {
        let least = if wanted.end() == wanted.start() { "" } else { "at least " };
        return Err(format!("wrong number of args: want {least}{} got {count}", wanted.start()));
    }
    let is_of_text = matches!(name, "json" | "lower" | "upper" | "title" | "join" | "split" | "truncate" | "pad");
    let mut arguments = arguments.into_iter();
    let Some(first) = arguments.next() else {
        // Only `print` and `println` take nothing at all.
        return Ok(Cow::Owned(Value::from(if name == "println" { "\n" } else { "" })));
    };
    let rest: Vec<Cow<'v, Value>> = arguments.collect();
    match mode {
        Mode::Headings if is_of_text => return Ok(first),
        // Swarm's takes the separator first, and then texts.
        Mode::Expansion(_) if name == "join" => {
            let texts: Vec<&str> = rest.iter().map(|value| text(value)).collect::<Result<_, _>>()?;
            return Ok(Cow::Owned(Value::from(texts.join(text(&first)?))));
        }
        Mode::Expansion(read) if OF_PAYLOAD.contains(&name) => {
            return read(name, text(&first)?).map(|read| Cow::Owned(Value::from(read)));
        }
        Mode::Values | Mode::Headings | Mode::Expansion(_) => {}
    }
    match name {
        "and" | "or" => Ok(rest.into_iter().next_back().unwrap_or(first)),
        "index" => index(first, &rest, mode),
        _ => made(name, &first, &rest).map(Cow::Owned),
    }
}

/// Calls a function whose value is new.
fn made(name: &str, first: &Value, rest: &[Cow<'_, Value>]) -> Result<Value, String> {
    let compared = |wanted: fn(Ordering) -> bool| compare(first, &rest[0]).map(|order| Value::from(wanted(order)));
    Ok(match name {
        "not" => Value::from(!is_true(first)),
        "eq" => {
            let mut equal = false;
            for other in rest {
                equal |= equals(first, other)?;
            }
            Value::from(equal)
        }
        "ne" => Value::from(!equals(first, &rest[0])?),
        "lt" => compared(Ordering::is_lt)?,
        "le" => compared(Ordering::is_le)?,
        "gt" => compared(Ordering::is_gt)?,
        "ge" => compared(Ordering::is_ge)?,
        "len" => Value::from(length(first)?),
        "json" => Value::from(first.to_string()),
        "lower" => Value::from(text(first)?.to_lowercase()),
        "upper" => Value::from(text(first)?.to_uppercase()),
        "title" => Value::from(title(text(first)?)),
        "truncate" => truncate(text(first)?, number(&rest[0])?),
        "pad" => pad(text(first)?, number(&rest[0])?, number(&rest[1])?)?,
        "split" => split(text(first)?, text(&rest[0])?),
        "join" => join(first, text(&rest[0])?)?,
        "printf" => Value::from(format::printf(text(first)?, rest)?),
        "println" => Value::from(format::println(first, rest)),
        _ => Value::from(format::print(first, rest)),
    })
}

fn text(value: &Value) -> Result<&str, String> {
    value.as_str().ok_or_else(|| format!("expected string; found {}", format::top(value)))
}

fn number(value: &Value) -> Result<usize, String> {
    let number = value.as_u64().and_then(|number| usize::try_from(number).ok());
    number.ok_or_else(|| format!("expected a number that is not negative; found {}", format::top(value)))
}

fn length(value: &Value) -> Result<usize, String> {
    match value {
        Value::String(text) => Ok(text.len()),
        Value::Array(list) => Ok(list.len()),
        Value::Object(fields) => Ok(fields.len()),
        Value::Null => Err("len of nil pointer".to_owned()),
        Value::Bool(_) | Value::Number(_) => Err(format!("len of type {}", type_name(value))),
    }
}

fn index<'v>(mut value: Cow<'v, Value>, keys: &[Cow<'v, Value>], mode: Mode<'_>) -> Result<Cow<'v, Value>, String> {
    for key in keys {
        value = match (value, key.as_ref()) {
            // Part of a heading is the heading.
            (value @ (Cow::Borrowed(Value::String(_)) | Cow::Owned(Value::String(_))), _)
                if matches!(mode, Mode::Headings) =>
            {
                value
            }
            (Cow::Borrowed(Value::Object(fields)), Value::String(key)) => {
                fields.get(key).map_or_else(|| Cow::Owned(Value::from("")), Cow::Borrowed)
            }
            (Cow::Owned(Value::Object(mut fields)), Value::String(key)) => {
                Cow::Owned(fields.remove(key).unwrap_or_else(|| Value::from("")))
            }
            (Cow::Borrowed(Value::Array(list)), key) => Cow::Borrowed(&list[element(list, key)?]),
            (Cow::Owned(Value::Array(mut list)), key) => {
                let at = element(&list, key)?;
                Cow::Owned(list.swap_remove(at))
            }
            // What is absent has no labels either.
            (value, Value::String(_)) if value.as_str() == Some("") => value,
            (value, _) if value.is_null() => return Err("index of untyped nil".to_owned()),
            (value, key) => return Err(format!("cannot index {} with {}", type_name(&value), type_name(key))),
        };
    }
    Ok(value)
}

fn element(list: &[Value], key: &Value) -> Result<usize, String> {
    let at = key.as_i64().ok_or_else(|| format!("cannot index slice/array with type {}", type_name(key)))?;
    usize::try_from(at).ok().filter(|at| *at < list.len()).ok_or_else(|| format!("index out of range: {at}"))
}

fn equals(one: &Value, other: &Value) -> Result<bool, String> {
    match (one, other) {
        (Value::Number(_), Value::Number(_)) => Ok(compare(one, other)? == Ordering::Equal),
        (Value::Array(_) | Value::Object(_), _) | (_, Value::Array(_) | Value::Object(_)) => {
            Err("non-comparable type".to_owned())
        }
        _ if type_name(one) == type_name(other) || one.is_null() || other.is_null() => Ok(one == other),
        _ => Err("incompatible types for comparison".to_owned()),
    }
}

fn compare(one: &Value, other: &Value) -> Result<Ordering, String> {
    let order = match (one, other) {
        (Value::String(one), Value::String(other)) => Some(one.cmp(other)),
        (Value::Number(one), Value::Number(other)) => match (one.as_i64(), other.as_i64()) {
            (Some(one), Some(other)) => Some(one.cmp(&other)),
            _ => one.as_f64().partial_cmp(&other.as_f64()),
        },
        _ => None,
    };
    order.ok_or_else(|| "incompatible types for comparison".to_owned())
}

fn title(text: &str) -> String {
    let mut follows = false;
    text.chars()
        .flat_map(|char| {
            let begins = char.is_alphanumeric() && !follows;
            follows = char.is_alphanumeric() || char == '_';
            if begins { char.to_uppercase().collect::<Vec<_>>() } else { vec![char] }
        })
        .collect()
}

/// Cuts a text; unlike Docker's client by characters, so that none is cut in two.
fn truncate(text: &str, chars: usize) -> Value {
    Value::from(text.chars().take(chars).collect::<String>())
}

fn pad(text: &str, before: usize, behind: usize) -> Result<Value, String> {
    if before.max(behind) > PAD_MAX {
        return Err(format!("more than {PAD_MAX} blanks are not supported"));
    }
    Ok(if text.is_empty() { Value::from("") } else { Value::from(" ".repeat(before) + text + &" ".repeat(behind)) })
}

fn split(text: &str, separator: &str) -> Value {
    if separator.is_empty() {
        return text.chars().map(String::from).collect();
    }
    text.split(separator).collect()
}

fn join(list: &Value, separator: &str) -> Result<Value, String> {
    match list {
        Value::Array(list) => {
            let texts: Vec<&str> = list.iter().map(text).collect::<Result<_, _>>()?;
            Ok(Value::from(texts.join(separator)))
        }
        Value::Null => Ok(Value::from("")),
        Value::String(text) if text.is_empty() => Ok(Value::from("")),
        _ => Err(format!("expected a list of strings; found {}", format::top(list))),
    }
}
