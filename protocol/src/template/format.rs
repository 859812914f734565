//! How values are written. Source: Go's package `fmt`.

use std::borrow::Cow;
use std::fmt::Write;

use serde_json::Value;

/// Columns that a verb of `printf` may ask for at most; more are refused.
const WIDTH_MAX: usize = 1024;

/// Writes the value of an action.
pub(super) fn top(value: &Value) -> String {
    if value.is_null() { "<no value>".to_owned() } else { show(value) }
}

/// Writes a value inside another one.
fn show(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".to_owned(),
        Value::String(text) => text.clone(),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
        Value::Array(list) => format!("[{}]", list.iter().map(show).collect::<Vec<_>>().join(" ")),
        Value::Object(fields) => {
            let fields: Vec<String> = fields.iter().map(|(key, value)| format!("{key}:{}", show(value))).collect();
            format!("map[{}]", fields.join(" "))
        }
    }
}

/// Writes values with a blank between two of which neither is a text.
pub(super) fn print(first: &Value, rest: &[Cow<'_, Value>]) -> String {
    let mut text = show(first);
    let mut previous = first;
    for value in rest {
        if !previous.is_string() && !value.is_string() {
            text.push(' ');
        }
        text.push_str(&show(value));
        previous = value;
    }
    text
}

/// Writes values with blanks between them and a newline behind.
pub(super) fn println(first: &Value, rest: &[Cow<'_, Value>]) -> String {
    let mut text = show(first);
    for value in rest {
        text.push(' ');
        text.push_str(&show(value));
    }
    text + "\n"
}

/// Flags, width and precision of a verb.
#[derive(Default)]
struct Layout {
    left: bool,
    zeros: bool,
    width: usize,
    precision: Option<usize>,
}

/// Writes values as a format says; arguments that are missing or left over are an error.
pub(super) fn printf(format: &str, arguments: &[Cow<'_, Value>]) -> Result<String, String> {
    let mut arguments = arguments.iter();
    let (mut text, mut rest) = (String::new(), format);
    while let Some((before, behind)) = rest.split_once('%') {
        text.push_str(before);
        let (layout, behind) = layout(behind)?;
        let mut chars = behind.chars();
        let verb = chars.next().ok_or("the format ends with %")?;
        rest = chars.as_str();
        if verb == '%' {
            text.push('%');
            continue;
        }
        let argument = arguments.next().ok_or_else(|| format!("no argument is left for %{verb}"))?;
        push(&mut text, &written(verb, argument, layout.precision)?, &layout, argument.is_number());
    }
    text.push_str(rest);
    match arguments.next() {
        Some(argument) => Err(format!("no verb is left for {}", show(argument))),
        None => Ok(text),
    }
}

fn layout(mut text: &str) -> Result<(Layout, &str), String> {
    let mut layout = Layout::default();
    loop {
        text = match text.as_bytes().first() {
            Some(b'-') => {
                layout.left = true;
                &text[1..]
            }
            Some(b'0') => {
                layout.zeros = true;
                &text[1..]
            }
            _ => break,
        };
    }
    (layout.width, text) = digits(text)?;
    if let Some(behind) = text.strip_prefix('.') {
        let (precision, behind) = digits(behind)?;
        (layout.precision, text) = (Some(precision), behind);
    }
    Ok((layout, text))
}

fn digits(text: &str) -> Result<(usize, &str), String> {
    let end = text.find(|char: char| !char.is_ascii_digit()).unwrap_or(text.len());
    let number = if end == 0 { Some(0) } else { text[..end].parse().ok() };
    match number.filter(|number| *number <= WIDTH_MAX) {
        Some(number) => Ok((number, &text[end..])),
        None => Err(format!("a width of more than {WIDTH_MAX} is not supported")),
    }
}

fn written(verb: char, value: &Value, precision: Option<usize>) -> Result<String, String> {
    let wrong = || format!("%{verb} does not fit {}", show(value));
    let cut = |text: String| match precision {
        Some(chars) => text.chars().take(chars).collect(),
        None => text,
    };
    match verb {
        'v' => Ok(show(value)),
        's' => Ok(cut(show(value))),
        'q' => value.as_str().map(|text| format!("\"{}\"", text.escape_debug())).ok_or_else(wrong),
        't' => value.as_bool().map(|truth| truth.to_string()).ok_or_else(wrong),
        'd' => value
            .as_i64()
            .map(|number| number.to_string())
            .or(value.as_u64().map(|number| number.to_string()))
            .ok_or_else(wrong),
        'x' => match value {
            Value::String(text) => Ok(text.bytes().fold(String::new(), |mut hex, byte| {
                let _ = write!(hex, "{byte:02x}"); // Writing to a String cannot fail.
                hex
            })),
            _ => value.as_u64().map(|number| format!("{number:x}")).ok_or_else(wrong),
        },
        'f' => value.as_f64().map(|number| format!("{number:.0$}", precision.unwrap_or(6))).ok_or_else(wrong),
        _ => Err(format!("the verb %{verb} is not supported")),
    }
}

fn push(text: &mut String, written: &str, layout: &Layout, is_number: bool) {
    let missing = layout.width.saturating_sub(written.chars().count());
    let zeros = layout.zeros && is_number && !layout.left;
    if layout.left {
        text.push_str(written);
        text.push_str(&" ".repeat(missing));
    } else if zeros {
        let (sign, digits) = written.split_at(usize::from(written.starts_with('-')));
        text.push_str(sign);
        text.push_str(&"0".repeat(missing));
        text.push_str(digits);
    } else {
        text.push_str(&" ".repeat(missing));
        text.push_str(written);
    }
}
