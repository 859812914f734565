//! `shoal service scale`.

use std::str::FromStr;

use serde_json::Value;

use crate::client::{Client, escape};
use crate::commands::service::{WaitArgs, warn};
use crate::error::CliError;
use crate::model::Updated;
use crate::output::print;
use crate::progress::{self, Asked};
use crate::spec::{replicas_path, set};

/// Flags of `service scale`.
#[derive(Debug, clap::Args)]
pub(crate) struct ScaleArgs {
    #[command(flatten)]
    wait: WaitArgs,
    /// Services and their numbers of tasks
    #[arg(required = true, value_name = "SERVICE=REPLICAS")]
    scales: Vec<Scale>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Scale {
    service: String,
    replicas: u64,
}

impl FromStr for Scale {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (service, replicas) = text.split_once('=').ok_or("expected SERVICE=REPLICAS")?;
        let replicas = replicas.parse().map_err(|_| format!("'{replicas}' is not a number of tasks"))?;
        Ok(Self { service: service.to_owned(), replicas })
    }
}

/// Changes the number of tasks of services, and waits for each.
pub(crate) async fn run(client: &Client, args: ScaleArgs) -> Result<(), CliError> {
    let mut failures = Vec::new();
    let mut scaled = Vec::new();
    for scale in &args.scales {
        match scale_one(client, scale).await {
            Ok(id) => {
                print(&format!("{} scaled to {}\n", scale.service, scale.replicas))?;
                scaled.push((id, &scale.service));
            }
            Err(error @ CliError::Unreachable { .. }) => return Err(error),
            Err(error) => failures.push(format!("{}: {error}", scale.service)),
        }
    }
    if !args.wait.detach {
        for (id, name) in scaled {
            if let Err(error) = progress::wait(client, &id, name, Asked::Forward, args.wait.quiet).await {
                failures.push(format!("{name}: {error}"));
            }
        }
    }
    if failures.is_empty() { Ok(()) } else { Err(CliError::Failed(failures.join("\n"))) }
}

async fn scale_one(client: &Client, scale: &Scale) -> Result<String, CliError> {
    let mut object: Value = client.get(&format!("/services/{}", escape(&scale.service))).await?;
    let mut spec = object["Spec"].take();
    let Some(path) = replicas_path(&spec) else {
        return Err(CliError::Failed("scale can only be used with replicated or replicated-job mode".to_owned()));
    };
    set(&mut spec, &path, Some(scale.replicas));
    let id = object["ID"].as_str().unwrap_or(&scale.service).to_owned();
    let path = format!("/services/{}/update?version={}", escape(&id), object["Version"]["Index"]);
    let updated: Option<Updated> = client.post(&path, &spec).await?;
    warn(&updated.unwrap_or_default().warnings);
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_are_read() {
        assert_eq!("web=3".parse(), Ok(Scale { service: "web".to_owned(), replicas: 3 }));
        for text in ["web", "web=", "web=x", "web=-1"] {
            assert!(text.parse::<Scale>().is_err(), "{text}");
        }
    }
}
