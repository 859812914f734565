//! Networks.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Value, json};
use shoal_protocol::codec;
use shoal_protocol::object::network::{Block, NetworkSpec, NetworkState};

use crate::api::snapshot::ObjectView;

/// A network as Docker's clients read it. Source: Docker Engine 20.10, as captured.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Network {
    name: String,
    id: String,
    created: String,
    scope: &'static str,
    driver: &'static str,
    #[serde(rename = "EnableIPv4")]
    enable_ipv4: bool,
    #[serde(rename = "EnableIPv6")]
    enable_ipv6: bool,
    #[serde(rename = "IPAM")]
    ipam: Value,
    internal: bool,
    attachable: bool,
    ingress: bool,
    config_from: Value,
    config_only: bool,
    containers: Value,
    options: BTreeMap<String, String>,
    labels: BTreeMap<String, String>,
}

/// Renders a network.
pub fn network(view: &ObjectView) -> Network {
    // What is stored was read when it was accepted; a newer version may have accepted more.
    let spec = NetworkSpec::parse(&view.head.spec).unwrap_or_default();
    let state: NetworkState = codec::decode(&view.data).unwrap_or_default();
    Network {
        name: view.head.name.clone(),
        id: view.id.to_string(),
        created: view.head.created.to_string(),
        scope: "swarm",
        driver: "overlay",
        enable_ipv4: true,
        enable_ipv6: false,
        ipam: json!({"Driver": "default", "Options": null, "Config": state.blocks.iter().map(block).collect::<Vec<_>>()}),
        internal: spec.internal,
        attachable: spec.attachable,
        ingress: view.is_ingress(),
        config_from: json!({"Network": ""}),
        config_only: false,
        containers: Value::Null,
        options: spec.options,
        labels: spec.labels,
    }
}

fn block(block: &Block) -> Value {
    let mut config = json!({"Subnet": block.subnet, "Gateway": block.gateway});
    if let Some(range) = block.range {
        config["IPRange"] = json!(range);
    }
    config
}
