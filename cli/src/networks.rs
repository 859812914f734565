//! Networks of a service: `--network`. Source: docker/cli, `opts.NetworkOpt` and `service.updateNetworks`.

use std::collections::BTreeSet;
use std::str::FromStr;

use serde_json::{Value, json};

use crate::client::{Client, escape};
use crate::error::CliError;
use crate::model::Network;
use crate::mounts;
use crate::spec::slot;

/// A network that a service is to be attached to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NetworkFlag {
    target: String,
    aliases: Vec<String>,
}

impl FromStr for NetworkFlag {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if !text.contains('=') {
            return Ok(Self { target: text.to_owned(), aliases: Vec::new() });
        }
        let mut flag = Self { target: String::new(), aliases: Vec::new() };
        for field in mounts::fields(text)? {
            let (key, value) = field
                .split_once('=')
                .filter(|(key, _)| !key.is_empty())
                .ok_or_else(|| format!("invalid field {field}"))?;
            match key.to_lowercase().as_str() {
                "name" => flag.target = value.to_owned(),
                "alias" => flag.aliases.push(value.to_owned()),
                "driver-opt" => return Err("driver options of network attachments are not supported yet".to_owned()),
                _ => return Err(format!("invalid field key {key}")),
            }
        }
        if flag.target.is_empty() { Err("network name/id is not specified".to_owned()) } else { Ok(flag) }
    }
}

/// Finds a network by name or identifier.
pub(crate) async fn find(client: &Client, name: &str) -> Result<Network, CliError> {
    client.get(&format!("/networks/{}?scope=swarm", escape(name))).await
}

/// Looks up what flags name, and returns the attachments that a spec has of them.
pub(crate) async fn resolve(client: &Client, flags: &[NetworkFlag]) -> Result<Vec<Value>, CliError> {
    let mut attachments = Vec::new();
    for flag in flags {
        let id = find(client, &flag.target).await?.id;
        let mut attachment = json!({"Target": id});
        if !flag.aliases.is_empty() {
            attachment["Aliases"] = json!(flag.aliases);
        }
        attachments.push(attachment);
    }
    Ok(attachments)
}

/// Removes attachments by the networks' identifiers, and adds others.
pub(crate) fn change(spec: &mut Value, remove: &[String], add: Vec<Value>) -> Result<(), CliError> {
    if remove.is_empty() && add.is_empty() {
        return Ok(());
    }
    let place = slot(spec, &["TaskTemplate", "Networks"]);
    let target = |attachment: &Value| attachment["Target"].as_str().unwrap_or_default().to_owned();
    let mut attachments: Vec<Value> = place.as_array().cloned().unwrap_or_default();
    attachments.retain(|attachment| !remove.contains(&target(attachment)));
    let mut known: BTreeSet<String> = attachments.iter().map(target).collect();
    for attachment in add {
        if !known.insert(target(&attachment)) {
            let text = format!("service is already attached to network {}", target(&attachment));
            return Err(CliError::Misused(text));
        }
        attachments.push(attachment);
    }
    attachments.sort_by_key(target);
    *place = json!(attachments);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_read_as_docker_reads_them() {
        let flag = |target: &str, aliases: &[&str]| NetworkFlag {
            target: target.to_owned(),
            aliases: aliases.iter().map(|alias| (*alias).to_owned()).collect(),
        };
        for (text, want) in [
            ("ov", Ok(flag("ov", &[]))),
            ("name=ov,alias=a,alias=b", Ok(flag("ov", &["a", "b"]))),
            ("alias=a", Err("network name/id is not specified")),
            ("name=ov,colour=red", Err("invalid field key colour")),
            ("name=ov,x", Err("invalid field x")),
            ("name=ov,driver-opt=a=b", Err("driver options of network attachments are not supported yet")),
        ] {
            assert_eq!(text.parse::<NetworkFlag>(), want.map_err(str::to_owned), "{text}");
        }
    }

    #[test]
    fn attachments_change_by_identifier() {
        let mut spec = json!({"TaskTemplate": {"Networks": [{"Target": "c", "Novelty": 1}, {"Target": "b"}]}});
        change(&mut spec, &["b".to_owned()], vec![json!({"Target": "a", "Aliases": ["x"]})]).unwrap();
        let want = json!([{"Target": "a", "Aliases": ["x"]}, {"Target": "c", "Novelty": 1}]);
        assert_eq!(spec["TaskTemplate"]["Networks"], want);
        let twice = change(&mut spec, &[], vec![json!({"Target": "c"})]).unwrap_err();
        assert_eq!(twice.to_string(), "service is already attached to network c");
    }
}
