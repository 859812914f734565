//! `shoal node update`.

use serde_json::{Value, json};

use crate::client::{Client, escape};
use crate::commands::node;
use crate::error::CliError;
use crate::output::print;
use crate::spec::{change_labels, set};

/// Flags of `node update`.
#[derive(Debug, clap::Args)]
pub(crate) struct UpdateArgs {
    /// Availability of the node
    #[arg(long, value_parser = ["active", "pause", "drain"])]
    availability: Option<String>,
    /// Role of the node
    #[arg(long, value_parser = ["worker", "manager"])]
    role: Option<String>,
    /// Add or update a node label
    #[arg(long, value_name = "NAME=VALUE")]
    label_add: Vec<String>,
    /// Remove a node label if exists
    #[arg(long, value_name = "NAME")]
    label_rm: Vec<String>,
    /// The node, by name, ID or 'self'
    node: String,
}

/// Changes a node's spec.
pub(crate) async fn run(client: &Client, args: UpdateArgs) -> Result<(), CliError> {
    let id = node::resolve(client, &args.node).await?;
    let mut object: Value = client.get(&format!("/nodes/{}", escape(&id))).await?;
    let mut spec = object["Spec"].take();
    for label in &args.label_rm {
        if spec["Labels"].get(label).is_none() {
            return Err(CliError::Failed(format!("key {label} doesn't exist in node's labels")));
        }
    }
    set(&mut spec, &["Availability"], args.availability);
    set(&mut spec, &["Role"], args.role);
    change_labels(&mut spec, &["Labels"], &args.label_rm, &args.label_add);
    let id = object["ID"].as_str().unwrap_or(&id);
    let path = format!("/nodes/{}/update?version={}", escape(id), object["Version"]["Index"]);
    client.post::<_, Value>(&path, &json!(spec)).await?;
    print(&format!("{}\n", args.node))
}
