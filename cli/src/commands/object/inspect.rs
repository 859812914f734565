//! `shoal secret inspect` and `shoal config inspect`.

use std::fmt::Write;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use shoal_protocol::Kind;

use super::path;
use crate::client::{Client, escape};
use crate::commands::for_each;
use crate::error::CliError;
use crate::inspect;
use crate::model::FileObject;
use crate::output::print;
use crate::time::go_time;

/// Flags of `secret inspect` and `config inspect`.
#[derive(Debug, clap::Args)]
pub(crate) struct InspectArgs {
    /// Print the information in a human friendly format
    #[arg(long, conflicts_with = "format")]
    pretty: bool,
    /// Format output: 'json' (one object a line), 'pretty', or a Go template
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
    /// Which, by name or ID
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

/// Prints everything about secrets or configs; those that are found are printed even if others are not.
pub(crate) async fn run(client: &Client, kind: Kind, args: InspectArgs) -> Result<(), CliError> {
    let pretty_wanted = args.pretty || args.format.as_deref() == Some(inspect::PRETTY);
    let mut found: Vec<Value> = Vec::new();
    let outcome = for_each(&args.names, async |name| {
        found.push(client.get(&path(kind, &format!("/{}", escape(name)))).await?);
        Ok(())
    })
    .await;
    if pretty_wanted {
        for value in found {
            let object: FileObject =
                serde_json::from_value(value).map_err(|error| CliError::Failed(error.to_string()))?;
            let mut text = String::new();
            pretty(&mut text, kind, &object).map_err(|error| CliError::Failed(error.to_string()))?;
            print(&text)?;
        }
    } else {
        print(&inspect::render(&found, args.format.as_deref())?)?;
    }
    outcome
}

/// Source: docker/cli, the templates of `secret inspect` and `config inspect`, which pad in two ways.
fn pretty(text: &mut String, kind: Kind, object: &FileObject) -> std::fmt::Result {
    let is_secret = kind == Kind::Secret;
    let (id_gap, gap) = if is_secret { ("              ", "        ") } else { ("\t\t\t", "            \t") };
    writeln!(text, "ID:{id_gap}{}\nName:{id_gap}{}", object.id, object.spec.name)?;
    if !object.spec.labels.is_empty() {
        writeln!(text, "Labels:")?;
    }
    for (name, value) in &object.spec.labels {
        let equals = if value.is_empty() { "" } else { "=" };
        writeln!(text, " - {name}{equals}{value}")?;
    }
    if is_secret {
        writeln!(text, "Driver:            ")?;
    }
    writeln!(text, "Created at:{gap}{}", go_time(&object.created_at))?;
    writeln!(text, "Updated at:{gap}{}", go_time(&object.updated_at))?;
    if !is_secret {
        let data = STANDARD.decode(&object.spec.data).unwrap_or_default();
        writeln!(text, "Data:\n{}", String::from_utf8_lossy(&data))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn objects_are_printed_for_people_as_docker_does() {
        let object: FileObject = serde_json::from_value(json!({"ID": "hlug4mefg0u3ax933k7n90xwv",
            "CreatedAt": "2026-11-23T01:52:31.81773924Z", "UpdatedAt": "2026-11-23T01:52:31.81773924Z",
            "Spec": {"Name": "one", "Labels": {"a": "b"}, "Data": "Y29uZj0xCg=="}}))
        .unwrap();
        let moment = "2026-11-23 01:52:31.81773924 +0000 utc";
        let secret = format!(
            "ID:              hlug4mefg0u3ax933k7n90xwv\nName:              one\nLabels:\n - a=b\n\
             Driver:            \nCreated at:        {moment}\nUpdated at:        {moment}\n"
        );
        let config = format!(
            "ID:\t\t\thlug4mefg0u3ax933k7n90xwv\nName:\t\t\tone\nLabels:\n - a=b\n\
             Created at:            \t{moment}\nUpdated at:            \t{moment}\nData:\nconf=1\n\n"
        );
        for (kind, want) in [(Kind::Secret, secret), (Kind::Config, config)] {
            let mut text = String::new();
            pretty(&mut text, kind, &object).unwrap();
            assert_eq!(text, want);
        }
    }
}
