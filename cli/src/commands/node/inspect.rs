//! `shoal node inspect`.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::Value;

use crate::client::{Client, escape};
use crate::commands::for_each;
use crate::commands::node::{self, ls::availability};
use crate::error::CliError;
use crate::inspect;
use crate::model::Node;
use crate::output::{capital, print};
use crate::placement::generic;
use crate::time::go_time;
use crate::units::{bytes_size, cpus};

/// Flags of `node inspect`.
#[derive(Debug, clap::Args)]
pub(crate) struct InspectArgs {
    /// Print the information in a human friendly format
    #[arg(long, conflicts_with = "format")]
    pretty: bool,
    /// Format output: 'json' (one object a line), 'pretty', or a Go template
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
    /// Nodes, by name, ID or 'self'
    #[arg(required = true, value_name = "NODE")]
    nodes: Vec<String>,
}

/// Prints everything about nodes; those that are found are printed even if others are not.
pub(crate) async fn run(client: &Client, args: InspectArgs) -> Result<(), CliError> {
    let pretty_wanted = args.pretty || args.format.as_deref() == Some(inspect::PRETTY);
    let mut found: Vec<Value> = Vec::new();
    let outcome = for_each(&args.nodes, async |name| {
        let id = node::resolve(client, name).await?;
        found.push(client.get(&format!("/nodes/{}", escape(&id))).await?);
        Ok(())
    })
    .await;
    if pretty_wanted {
        for value in found {
            let node: Node = serde_json::from_value(value).map_err(|error| CliError::Failed(error.to_string()))?;
            print(&pretty(&node)?)?;
        }
    } else {
        print(&inspect::render(&found, args.format.as_deref())?)?;
    }
    outcome
}

fn pretty(node: &Node) -> Result<String, CliError> {
    let mut text = String::new();
    write_pretty(&mut text, node).map_err(|error| CliError::Failed(error.to_string()))?;
    Ok(text)
}

fn write_pretty(text: &mut String, node: &Node) -> std::fmt::Result {
    writeln!(text, "ID:\t\t\t{}", node.id)?;
    if !node.spec.labels.is_empty() {
        writeln!(text, "Labels:")?;
        for (name, value) in &node.spec.labels {
            writeln!(text, " - {name}={value}")?;
        }
    }
    writeln!(text, "Hostname:              \t{}", node.description.hostname)?;
    writeln!(text, "Joined at:             \t{}", go_time(&node.created_at))?;
    writeln!(text, "Status:\n State:\t\t\t{}", capital(&node.status.state))?;
    if !node.status.message.is_empty() {
        writeln!(text, " Message:\t\t{}", node.status.message)?;
    }
    writeln!(text, " Availability:         \t{}", capital(availability(node)))?;
    if !node.status.addr.is_empty() {
        writeln!(text, " Address:\t\t{}", node.status.addr)?;
    }
    if let Some(manager) = &node.manager_status {
        writeln!(text, "Manager Status:\n Address:\t\t{}", manager.addr)?;
        writeln!(text, " Raft Status:\t\t{}", capital(&manager.reachability))?;
        writeln!(text, " Leader:\t\t{}", if manager.leader { "Yes" } else { "No" })?;
    }
    let platform = &node.description.platform;
    writeln!(text, "Platform:\n Operating System:\t{}\n Architecture:\t\t{}", platform.os, platform.architecture)?;
    let resources = &node.description.resources;
    writeln!(text, "Resources:\n CPUs:\t\t\t{}", cpus(resources.nano_cpus))?;
    writeln!(text, " Memory:\t\t{}", bytes_size(resources.memory_bytes))?;
    if !resources.generic_resources.is_empty() {
        // Docker's client leaves them out.
        writeln!(text, " Generic:\t\t{}", generic(&resources.generic_resources))?;
    }
    let mut plugins: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for plugin in &node.description.engine.plugins {
        plugins.entry(&plugin.r#type).or_default().push(&plugin.name);
    }
    if !plugins.is_empty() {
        writeln!(text, "Plugins:")?;
    }
    for (kind, names) in plugins {
        writeln!(text, " {kind}:\t\t{}", names.join(", "))?;
    }
    writeln!(text, "Engine Version:\t\t{}", node.description.engine.engine_version)?;
    if !node.description.engine.labels.is_empty() {
        writeln!(text, "Engine Labels:")?;
        for (name, value) in &node.description.engine.labels {
            writeln!(text, " - {name}={value}")?;
        }
    }
    let tls = &node.description.tls_info;
    if !tls.trust_root.is_empty() {
        writeln!(text, "TLS Info:\n TrustRoot:\n{}", tls.trust_root)?;
        writeln!(text, " Issuer Subject:\t{}", tls.cert_issuer_subject)?;
        writeln!(text, " Issuer Public Key:\t{}", tls.cert_issuer_public_key)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot;
    use serde_json::json;

    #[test]
    fn a_node_is_printed_for_people_as_docker_does() {
        let node: Node = serde_json::from_value(json!({"ID": "ltmmwmn7dcd1lu9w64lxg7b9y",
            "CreatedAt": "2026-11-23T01:52:10.345749459Z",
            "Spec": {"Labels": {}, "Role": "worker", "Availability": "active"},
            "Description": {"Hostname": "n2", "Platform": {"Architecture": "x86_64", "OS": "linux"},
                "Resources": {"NanoCPUs": 2_000_000_000u64, "MemoryBytes": 25_276_502_016u64},
                "Engine": {"EngineVersion": "20.10.24+dfsg1"}},
            "Status": {"State": "ready", "Addr": "10.77.0.2"}}))
        .unwrap();
        let want = "ID:\t\t\tltmmwmn7dcd1lu9w64lxg7b9y\nHostname:              \tn2\n\
            Joined at:             \t2026-11-23 01:52:10.345749459 +0000 utc\nStatus:\n State:\t\t\tReady\n \
            Availability:         \tActive\n Address:\t\t10.77.0.2\nPlatform:\n Operating System:\tlinux\n \
            Architecture:\t\tx86_64\nResources:\n CPUs:\t\t\t2\n Memory:\t\t23.54GiB\nEngine Version:\t\t20.10.24+dfsg1\n";
        assert_eq!(pretty(&node).unwrap(), want);
    }

    #[test]
    fn everything_that_a_node_can_have_is_printed() {
        let node: Node = serde_json::from_value(json!({"ID": "dikudt41jnh24m67n37plsnsp",
            "CreatedAt": "2026-11-23T01:51:42.5Z",
            "Spec": {"Labels": {"zone": "a", "disk": "ssd"}, "Role": "manager", "Availability": "pause"},
            "Description": {"Hostname": "n1", "Platform": {"Architecture": "x86_64", "OS": "linux"},
                "Resources": {"NanoCPUs": 2_000_000_000u64, "MemoryBytes": 25_276_502_016u64,
                    "GenericResources": [{"NamedResourceSpec": {"Kind": "gpu", "Value": "UUID1"}}, {"NamedResourceSpec":
                    {"Kind": "gpu", "Value": "UUID2"}}, {"DiscreteResourceSpec": {"Kind": "ssd", "Value": 3}}]},
                "Engine": {"EngineVersion": "0.1.0", "Labels": {"gpu": "no"}, "Plugins": [{"Type": "Log", "Name": "local"},
                    {"Type": "Driver", "Name": "embedded 0.1.0"}, {"Type": "Log", "Name": "syslog"}]},
                "TLSInfo": {"TrustRoot": "-----BEGIN CERTIFICATE-----\n…\n-----END CERTIFICATE-----\n",
                    "CertIssuerSubject": "MBMx", "CertIssuerPublicKey": "MFkw"}},
            "Status": {"State": "ready", "Message": "suspect", "Addr": "10.77.0.1"},
            "ManagerStatus": {"Leader": true, "Reachability": "reachable", "Addr": "10.77.0.1:2377"}}))
        .unwrap();
        snapshot::check("output/node-inspect-pretty.txt", &pretty(&node).unwrap());
    }
}
