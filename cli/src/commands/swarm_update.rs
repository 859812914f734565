//! `shoal swarm update`, and the settings that `init` takes, too.

use serde_json::{Value, json};

use super::unlock_key;
use crate::client::Client;
use crate::error::CliError;
use crate::output::print;
use crate::units::Nanos;

/// Settings of a cluster.
#[derive(Debug, clap::Args)]
pub(crate) struct SettingsArgs {
    /// Validity period for node certificates (ns|us|ms|s|m|h), at first 2160h0m0s
    #[arg(long, value_name = "DURATION")]
    cert_expiry: Option<Nanos>,
    /// Task history retention limit, 0 to 20, at first 5
    #[arg(long, value_name = "NUMBER")]
    task_history_limit: Option<u64>,
}

impl SettingsArgs {
    /// Puts what was given into a spec.
    pub(crate) fn apply(&self, spec: &mut Value) {
        set_expiry(spec, self.cert_expiry);
        if let Some(limit) = self.task_history_limit {
            spec["Orchestration"]["TaskHistoryRetentionLimit"] = json!(limit);
        }
    }
}

/// Puts how long certificates last into a spec, if it was given.
pub(crate) fn set_expiry(spec: &mut Value, expiry: Option<Nanos>) {
    if let Some(Nanos(nanos)) = expiry {
        spec["CAConfig"]["NodeCertExpiry"] = json!(nanos);
    }
}

/// Flags of `update`.
#[derive(Debug, clap::Args)]
#[command(arg_required_else_help = true)]
pub(crate) struct UpdateArgs {
    /// Change manager autolocking setting (true|false)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true",
        value_parser = clap::builder::BoolishValueParser::new())]
    autolock: Option<bool>,
    #[command(flatten)]
    settings: SettingsArgs,
}

/// Changes settings of the cluster.
pub(crate) async fn run(client: &Client, args: UpdateArgs) -> Result<(), CliError> {
    let current: Value = client.get("/swarm").await?;
    let mut spec = current["Spec"].clone();
    args.settings.apply(&mut spec);
    if let Some(autolock) = args.autolock {
        spec["EncryptionConfig"]["AutoLockManagers"] = json!(autolock);
    }
    let path = format!("/swarm/update?version={}", current["Version"]["Index"]);
    client.post::<_, Value>(&path, &spec).await?;
    print("Swarm updated.\n")?;
    if args.autolock == Some(true) && current["Spec"]["EncryptionConfig"]["AutoLockManagers"] != true {
        unlock_key::tell(client).await?;
    }
    Ok(())
}
