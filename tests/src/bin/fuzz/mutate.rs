//! JSON that is nearly right.

use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use serde_json::{Map, Value, json};

/// How deep what is put in may be nested; the daemon's own limit is lower.
const NESTED: usize = 300;

/// How long a text that is put in may be.
const LONG: usize = 20_000;

/// Changes a few places of a document. Every second one stays as it is.
pub fn document(value: &Value, random: &mut StdRng) -> String {
    let mut value = value.clone();
    for _ in 0..random.random_range(0..8_u32).saturating_sub(3) {
        let places = count(&value);
        let place = random.random_range(0..places);
        change(&mut value, &mut { place }, random);
    }
    let mut text = value.to_string();
    if random.random_ratio(1, 20) {
        let cut = random.random_range(0..=text.len());
        text = text.chars().take(cut).collect();
    }
    text
}

fn count(value: &Value) -> usize {
    1 + match value {
        Value::Object(fields) => fields.values().map(count).sum(),
        Value::Array(items) => items.iter().map(count).sum(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => 0,
    }
}

/// Changes the place that is reached after `left` others.
fn change(value: &mut Value, left: &mut usize, random: &mut StdRng) -> bool {
    if *left == 0 {
        spoil(value, random);
        return true;
    }
    *left -= 1;
    match value {
        Value::Object(fields) => fields.values_mut().any(|value| change(value, left, random)),
        Value::Array(items) => items.iter_mut().any(|value| change(value, left, random)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

fn spoil(value: &mut Value, random: &mut StdRng) {
    match (random.random_range(0..6), &mut *value) {
        (0, Value::Object(fields)) => {
            let names: Vec<String> = fields.keys().cloned().collect();
            if let Some(name) = names.choose(random) {
                fields.remove(name);
            }
        }
        (1, Value::Object(fields)) => {
            fields.insert(word(random), scalar(random));
        }
        (0 | 1, Value::Array(items)) => {
            let again = items.clone();
            items.extend(again);
        }
        (2, Value::Number(_)) => *value = number(random),
        (2, Value::String(text)) => text.push_str(&word(random)),
        (3, _) => {
            let mut nested = scalar(random);
            for _ in 0..random.random_range(1..NESTED) {
                nested = if random.random() { json!([nested]) } else { json!({"a": nested}) };
            }
            *value = nested;
        }
        _ => *value = scalar(random),
    }
}

/// Some value that a field was not made for.
fn scalar(random: &mut StdRng) -> Value {
    match random.random_range(0..8) {
        0 => Value::Null,
        1 => json!(random.random::<bool>()),
        2 | 3 => number(random),
        4 => json!("x".repeat(random.random_range(0..LONG))),
        5 => json!([]),
        6 => Value::Object(Map::new()),
        _ => json!(word(random)),
    }
}

fn number(random: &mut StdRng) -> Value {
    match random.random_range(0..7) {
        0 => json!(0),
        1 => json!(-1),
        2 => json!(u64::MAX),
        3 => json!(i64::MIN),
        4 => json!(1e300),
        5 => json!(0.5),
        _ => json!(random.random::<u32>()),
    }
}

/// Words that are known to be hard.
pub fn word(random: &mut StdRng) -> String {
    const WORDS: [&str; 20] = [
        "",
        " ",
        "a",
        "..",
        "../../etc/passwd",
        "/",
        "\u{0}",
        "ä€😀",
        "{{.Node.ID}}",
        "{{",
        "%s%n",
        "-1",
        "1e9",
        "null",
        "true",
        "replicated",
        "web",
        "\r\nX: y",
        "a=b",
        "node.role==manager",
    ];
    WORDS.choose(random).map_or_else(String::new, |word| (*word).to_owned())
}
