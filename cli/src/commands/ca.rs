//! `shoal ca` and `shoal swarm ca`.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::swarm_update::set_expiry;
use crate::client::Client;
use crate::error::CliError;
use crate::model::{Node, Swarm};
use crate::output::print;
use crate::units::Nanos;

/// Between two looks at the cluster.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Flags of `ca`.
#[derive(Debug, clap::Args)]
pub(crate) struct CaArgs {
    /// Exit immediately instead of waiting for the root rotation to converge
    #[arg(short, long, requires = "rotate")]
    detach: bool,
    /// Suppress progress output
    #[arg(short, long)]
    quiet: bool,
    /// Rotate the swarm CA, and with it join tokens and the key that secrets are sealed with
    #[arg(long)]
    rotate: bool,
    /// Validity period for node certificates (ns|us|ms|s|m|h) [default: as it is]
    #[arg(long, value_name = "DURATION", requires = "rotate")]
    cert_expiry: Option<Nanos>,
}

/// Prints the root certificate, after having another one made if asked to.
pub(crate) async fn run(client: &Client, args: CaArgs) -> Result<(), CliError> {
    if args.rotate {
        let current: Value = client.get("/swarm").await?;
        let mut spec = current["Spec"].clone();
        let wanted = spec["CAConfig"]["ForceRotate"].as_u64().unwrap_or(0) + 1;
        spec["CAConfig"]["ForceRotate"] = json!(wanted);
        set_expiry(&mut spec, args.cert_expiry);
        let path = format!("/swarm/update?version={}", current["Version"]["Index"]);
        client.post::<_, Value>(&path, &spec).await?;
        if args.detach {
            return Ok(());
        }
        let display = match args.quiet || !std::io::stderr().is_terminal() {
            true => ProgressBar::hidden(),
            false => ProgressBar::new(0).with_style(style()),
        };
        let interrupted = tokio::select! {
            result = converge(client, wanted, &display) => { result?; false }
            _ = tokio::signal::ctrl_c() => true,
        };
        display.finish_and_clear();
        if interrupted {
            eprintln!(
                "Operation continuing in background.\nUse `shoal node ls --format '{{{{.Hostname}}}} {{{{.TLSStatus}}}}'` to check progress."
            );
            return Ok(());
        }
    }
    let swarm: Swarm = client.get("/swarm").await?;
    print(&swarm.tls_info.trust_root)
}

/// Waits until every node that is not down has a certificate of the new root.
async fn converge(client: &Client, wanted: u64, display: &ProgressBar) -> Result<(), CliError> {
    loop {
        let swarm: Value = client.get("/swarm").await?;
        let is_made = swarm["Spec"]["CAConfig"]["ForceRotate"].as_u64() >= Some(wanted);
        if is_made && swarm["RootRotationInProgress"] == false {
            return Ok(());
        }
        let nodes: Vec<Node> = client.get("/nodes").await?;
        let root = swarm["TLSInfo"]["TrustRoot"].as_str().unwrap_or_default();
        let has_it = |node: &&Node| is_made && node.description.tls_info.trust_root == root;
        display.set_length(nodes.len() as u64);
        display.set_position(nodes.iter().filter(has_it).count() as u64);
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

fn style() -> ProgressStyle {
    let template = "  rotated TLS certificates:  {pos}/{len} nodes [{bar:40}]";
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> ")
}
