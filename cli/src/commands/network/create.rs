//! `shoal network create`.

use std::net::Ipv4Addr;

use serde::Deserialize;
use serde_json::{Value, json};
use shoal_protocol::subnet::Subnet;

use crate::client::Client;
use crate::error::CliError;
use crate::output::print;
use crate::spec::change_labels;

/// Flags of `network create`.
#[derive(Debug, clap::Args)]
pub(crate) struct CreateArgs {
    /// Enable manual container attachment
    #[arg(long)]
    attachable: bool,
    /// Driver to manage the Network
    #[arg(short, long, default_value = "bridge", value_name = "DRIVER")]
    driver: String,
    /// IPv4 gateway for the subnet
    #[arg(long, value_name = "ADDRESS")]
    gateway: Vec<Ipv4Addr>,
    /// Restrict external access to the network
    #[arg(long)]
    internal: bool,
    /// Allocate container ip from a sub-range
    #[arg(long, value_name = "SUBNET")]
    ip_range: Vec<Subnet>,
    /// Set metadata on a network
    #[arg(long, value_name = "NAME=VALUE")]
    label: Vec<String>,
    /// Set driver specific options
    #[arg(short, long, value_name = "NAME=VALUE")]
    opt: Vec<String>,
    /// Subnet in CIDR format that represents a network segment
    #[arg(long, value_name = "SUBNET")]
    subnet: Vec<Subnet>,
    /// Its name
    network: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Created {
    id: String,
    warning: String,
}

/// Creates a network and prints its identifier.
pub(crate) async fn run(client: &Client, args: CreateArgs) -> Result<(), CliError> {
    let created: Created = client.post("/networks/create", &build(args)?).await?;
    if !created.warning.is_empty() {
        eprintln!("{}", created.warning);
    }
    print(&format!("{}\n", created.id))
}

fn build(args: CreateArgs) -> Result<Value, CliError> {
    let config = ipam(&args.subnet, &args.ip_range, &args.gateway).map_err(CliError::Misused)?;
    let mut spec = json!({
        "Name": args.network,
        "Driver": args.driver,
        "IPAM": {"Driver": "default", "Options": {}, "Config": config},
        "Internal": args.internal,
        "Attachable": args.attachable,
        "Options": {},
        "Labels": {},
    });
    change_labels(&mut spec, &["Options"], &[], &args.opt);
    change_labels(&mut spec, &["Labels"], &[], &args.label);
    Ok(spec)
}

/// Joins subnets with what belongs to them. Source: docker/cli, `createIPAMConfig`.
fn ipam(subnets: &[Subnet], ranges: &[Subnet], gateways: &[Ipv4Addr]) -> Result<Vec<Value>, String> {
    if subnets.len() < ranges.len() || subnets.len() < gateways.len() {
        return Err("every ip-range or gateway must have a corresponding subnet".to_owned());
    }
    let mut config: Vec<Value> = subnets.iter().map(|subnet| json!({"Subnet": subnet})).collect();
    for range in ranges {
        let place = subnets.iter().position(|subnet| range.is_within(*subnet));
        let place = place.ok_or_else(|| format!("no matching subnet for range {range}"))?;
        if let Some(other) = config[place].get("IPRange") {
            return Err(format!(
                "cannot configure multiple ranges ({range}, {}) on the same subnet ({})",
                other.as_str().unwrap_or_default(),
                subnets[place]
            ));
        }
        config[place]["IPRange"] = json!(range);
    }
    for gateway in gateways {
        let place = subnets.iter().position(|subnet| subnet.holds(*gateway));
        let place = place.ok_or_else(|| format!("no matching subnet for gateway {gateway}"))?;
        if let Some(other) = config[place].get("Gateway") {
            return Err(format!(
                "cannot configure multiple gateways ({gateway}, {}) for the same subnet ({})",
                other.as_str().unwrap_or_default(),
                subnets[place]
            ));
        }
        config[place]["Gateway"] = json!(gateway);
    }
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Probe {
        #[command(flatten)]
        args: CreateArgs,
    }

    fn spec(line: &[&str]) -> Result<Value, String> {
        let args = Probe::try_parse_from([&["create"], line].concat()).unwrap().args;
        build(args).map_err(|error| error.to_string())
    }

    #[test]
    fn the_spec_is_what_dockers_client_sends() {
        let line = [
            "-d",
            "overlay",
            "--attachable",
            "--subnet",
            "10.50.0.0/24",
            "--subnet",
            "10.51.0.0/24",
            "--gateway",
            "10.51.0.1",
            "--ip-range",
            "10.50.0.128/25",
            "--opt",
            "encrypted",
            "--label",
            "a=b",
            "ov2",
        ];
        let want = json!({"Name": "ov2", "Driver": "overlay", "IPAM": {"Driver": "default", "Options": {}, "Config": [
            {"Subnet": "10.50.0.0/24", "IPRange": "10.50.0.128/25"}, {"Subnet": "10.51.0.0/24", "Gateway": "10.51.0.1"}]},
            "Internal": false, "Attachable": true, "Options": {"encrypted": ""}, "Labels": {"a": "b"}});
        assert_eq!(spec(&line), Ok(want));
    }

    #[test]
    fn addresses_that_do_not_fit_are_refused() {
        for (line, want) in [
            (&["--gateway", "10.0.0.1", "x"][..], "every ip-range or gateway must have a corresponding subnet"),
            (&["--subnet", "10.5.0.0/24", "--gateway", "10.6.0.1", "x"], "no matching subnet for gateway 10.6.0.1"),
            (
                &["--subnet", "10.5.0.0/24", "--ip-range", "10.6.0.0/25", "x"],
                "no matching subnet for range 10.6.0.0/25",
            ),
        ] {
            assert_eq!(spec(line).unwrap_err(), want);
        }
    }
}
