//! `shoal events`.

use std::fmt::Write;

use serde_json::{Value, json};

use crate::client::Client;
use crate::error::CliError;
use crate::filter::{Filter, query};
use crate::lines::Lines;
use crate::output::print;
use crate::time;
use shoal_protocol::template::Template;

/// Flags of `events`.
#[derive(Debug, clap::Args)]
pub(crate) struct EventsArgs {
    /// Filter output based on conditions provided
    #[arg(short, long, value_name = "KEY=VALUE")]
    filter: Vec<Filter>,
    /// Format output: 'json' (one object a line), or a Go template
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// Show all events created since timestamp
    #[arg(long, value_parser = time::api_moment, value_name = "TIME")]
    since: Option<String>,
    /// Stream events until this timestamp
    #[arg(long, value_parser = time::api_moment, value_name = "TIME")]
    until: Option<String>,
}

/// How events are written.
enum Format {
    Text,
    Json,
    Template(Template),
}

impl Format {
    fn parse(format: Option<&str>) -> Result<Self, CliError> {
        match format {
            None | Some("") => Ok(Self::Text),
            Some("json" | "{{json .}}") => Ok(Self::Json),
            Some(template) => Ok(Self::Template(Template::parse(template)?)),
        }
    }

    fn write(&self, line: &[u8]) -> Result<String, CliError> {
        let event: Value = serde_json::from_slice(line)
            .map_err(|error| CliError::Failed(format!("the daemon's answer makes no sense: {error}")))?;
        match self {
            Self::Text => Ok(text(&event)),
            Self::Json => Ok(format!("{event}\n")),
            Self::Template(template) => Ok(template.execute(&fields(&event), absent)? + "\n"),
        }
    }
}

/// Prints what happens, as it happens.
pub(crate) async fn run(client: &Client, args: EventsArgs) -> Result<(), CliError> {
    let format = Format::parse(args.format.as_deref())?;
    let moment = |name: &str, moment: &Option<String>| {
        moment.as_ref().map_or_else(String::new, |moment| format!("{name}={moment}&"))
    };
    let path =
        format!("/events?{}{}{}", moment("since", &args.since), moment("until", &args.until), query(&args.filter));
    let mut lines = Lines::new(client.stream(&path).await?);
    while let Some(line) = lines.next().await? {
        print(&format.write(&line)?)?;
        if let Some(error) = overflow(&line) {
            return Err(CliError::Failed(error));
        }
    }
    Ok(())
}

/// Returns what the daemon says to a reader that it drops.
fn overflow(line: &[u8]) -> Option<String> {
    let event: Value = serde_json::from_slice(line).ok()?;
    let is_overflow = event["Type"] == "daemon" && event["Action"] == "overflow";
    is_overflow.then(|| event["Actor"]["Attributes"]["error"].as_str().unwrap_or_default().to_owned())
}

/// Writes an event as Docker's client does, in UTC.
fn text(event: &Value) -> String {
    let or_empty = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let actor = &event["Actor"];
    let nanos = event["timeNano"].as_u64().unwrap_or_default();
    let mut line = format!(
        "{} {} {} {}",
        shoal_protocol::WallTime(nanos),
        or_empty(&event["Type"]),
        or_empty(&event["Action"]),
        or_empty(&actor["ID"])
    );
    let attributes = actor["Attributes"].as_object().into_iter().flatten();
    let attributes: Vec<String> = attributes.map(|(name, value)| format!("{name}={}", or_empty(value))).collect();
    if !attributes.is_empty() {
        // Writing to a text cannot fail.
        let _ = write!(line, " ({})", attributes.join(", "));
    }
    line.push('\n');
    line
}

/// Returns an event under the names that templates of Docker's client use.
fn fields(event: &Value) -> Value {
    json!({
        "Type": event["Type"],
        "Action": event["Action"],
        "Actor": event["Actor"],
        "Scope": event["scope"],
        "Time": event["time"],
        "TimeNano": event["timeNano"],
        "Status": event["Action"],
        "ID": event["Actor"]["ID"],
        "From": event["Actor"]["Attributes"].get("image").cloned().unwrap_or_else(|| json!("")),
    })
}

fn absent(parent: &str, _: &str) -> Option<Value> {
    (parent == "Attributes").then_some(Value::Null)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVENT: &[u8] = br#"{"Type":"service","Action":"update","Actor":{"ID":"abc","Attributes":{"name":"web","replicas.new":"3"}},"scope":"swarm","time":1795398718,"timeNano":1795398718057867389}"#;

    fn written(format: Option<&str>) -> Result<String, String> {
        Format::parse(format).and_then(|format| format.write(EVENT)).map_err(|error| error.to_string())
    }

    #[test]
    fn events_are_written_as_docker_writes_them() {
        let line = "2026-11-23T01:51:58.057867389Z service update abc (name=web, replicas.new=3)\n";
        assert_eq!(written(None).unwrap(), line);
        assert_eq!(written(Some("{{.Scope}} {{.Type}} {{.Actor.Attributes.name}}")).unwrap(), "swarm service web\n");
        assert_eq!(
            written(Some("{{.TimeNano}}{{.From}}{{.Actor.Attributes.image}}")).unwrap(),
            "1795398718057867389<no value>\n"
        );
        assert!(written(Some("json")).unwrap().contains(r#""scope":"swarm""#));
        assert!(written(Some("{{.Nosuch}}")).is_err());
        assert!(Format::parse(Some("{{")).is_err());
    }

    #[test]
    fn a_reader_that_was_dropped_hears_why() {
        assert_eq!(overflow(EVENT), None);
        let last = br#"{"Type":"daemon","Action":"overflow","Actor":{"Attributes":{"error":"too slow"}}}"#;
        assert_eq!(overflow(last).as_deref(), Some("too slow"));
    }
}
