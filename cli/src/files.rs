//! Secrets and configs of a service: `--secret` and `--config`. Source: docker/cli, `opts.SecretOpt`, `opts.ConfigOpt` and
//! `service.ParseSecrets`.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use shoal_protocol::Kind;
use shoal_protocol::spec::file::MODE_DEFAULT;

use crate::client::Client;
use crate::error::CliError;
use crate::filter::{Filter, query};
use crate::model::FileObject;
use crate::mounts;
use crate::spec::slot;

/// A secret or config that a service is to have as a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FileFlag {
    source: String,
    target: String,
    uid: String,
    gid: String,
    mode: u32,
}

/// Reads a flag that names a secret.
pub(crate) fn secret(text: &str) -> Result<FileFlag, String> {
    read(Kind::Secret, text)
}

/// Reads a flag that names a config.
pub(crate) fn config(text: &str) -> Result<FileFlag, String> {
    read(Kind::Config, text)
}

fn read(kind: Kind, text: &str) -> Result<FileFlag, String> {
    let fields = mounts::fields(text)?;
    let zero = || "0".to_owned();
    let mut flag =
        FileFlag { source: String::new(), target: String::new(), uid: zero(), gid: zero(), mode: MODE_DEFAULT };
    if let [name] = &fields[..]
        && !name.contains('=')
    {
        flag.source.clone_from(name);
    } else {
        for field in &fields {
            let (key, value) = field
                .split_once('=')
                .filter(|(key, _)| !key.is_empty())
                .ok_or_else(|| format!("invalid field '{field}' must be a key=value pair"))?;
            match key.to_lowercase().as_str() {
                "source" | "src" => flag.source = value.to_owned(),
                "target" => flag.target = value.to_owned(),
                "uid" => flag.uid = value.to_owned(),
                "gid" => flag.gid = value.to_owned(),
                "mode" => flag.mode = number(value).ok_or_else(|| format!("invalid mode specified: {value}"))?,
                _ => return Err(format!("invalid field in {} request: {key}", kind.name())),
            }
        }
    }
    if flag.source.is_empty() {
        return Err("source is required".to_owned());
    }
    if flag.target.is_empty() {
        flag.target.clone_from(&flag.source);
    }
    Ok(flag)
}

/// Source: Go, `strconv.ParseUint` with base 0: octal with a leading zero.
fn number(text: &str) -> Option<u32> {
    let lower = text.to_lowercase();
    let (digits, base) = match lower.as_bytes() {
        [b'0', b'x', ..] => (&lower[2..], 16),
        [b'0', b'o', ..] => (&lower[2..], 8),
        [b'0', b'b', ..] => (&lower[2..], 2),
        [b'0', _, ..] => (&lower[1..], 8),
        _ => (&lower[..], 10),
    };
    u32::from_str_radix(digits, base).ok().filter(|_| !digits.starts_with('+'))
}

/// Looks up what flags name, and returns the references that a spec has of them.
pub(crate) async fn resolve(client: &Client, kind: Kind, flags: &[FileFlag]) -> Result<Vec<Value>, CliError> {
    if flags.is_empty() {
        return Ok(Vec::new());
    }
    let name = kind.name();
    let mut targets = BTreeSet::new();
    for flag in flags {
        if !targets.insert(&flag.target) {
            return Err(CliError::Misused(format!("duplicate {name} target for {} not allowed", flag.source)));
        }
    }
    let filters: Vec<Filter> = flags.iter().map(|flag| Filter::new("name", &flag.source)).collect();
    let known: Vec<FileObject> = client.get(&format!("/{name}s?{}", query(&filters))).await?;
    flags.iter().map(|flag| reference(kind, flag, &known)).collect()
}

fn reference(kind: Kind, flag: &FileFlag, known: &[FileObject]) -> Result<Value, CliError> {
    let object = known.iter().find(|object| object.spec.name == flag.source);
    let object = object.ok_or_else(|| CliError::Failed(format!("{} not found: {}", kind.name(), flag.source)))?;
    let FileFlag { source, target, uid, gid, mode } = flag;
    let file = json!({"Name": target, "UID": uid, "GID": gid, "Mode": mode});
    Ok(match kind {
        Kind::Secret => json!({"File": file, "SecretID": object.id, "SecretName": source}),
        Kind::Config | Kind::Network => json!({"File": file, "ConfigID": object.id, "ConfigName": source}),
    })
}

/// Removes references by the names of what they are to, and adds others.
pub(crate) fn change(spec: &mut Value, kind: Kind, remove: &[String], add: Vec<Value>) {
    if remove.is_empty() && add.is_empty() {
        return;
    }
    let (list, name) = if kind == Kind::Secret { ("Secrets", "SecretName") } else { ("Configs", "ConfigName") };
    let place = slot(spec, &["TaskTemplate", "ContainerSpec", list]);
    let mut references: Vec<Value> = place.as_array().cloned().unwrap_or_default();
    references.retain(|reference| !remove.iter().any(|gone| reference[name] == gone.as_str()));
    references.extend(add);
    *place = json!(references);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flag(source: &str, target: &str, uid: &str, gid: &str, mode: u32) -> FileFlag {
        let [source, target, uid, gid] = [source, target, uid, gid].map(str::to_owned);
        FileFlag { source, target, uid, gid, mode }
    }

    #[test]
    fn flags_are_read_as_docker_reads_them() {
        for (text, want) in [
            ("sec1", Ok(flag("sec1", "sec1", "0", "0", 0o444))),
            ("source=sec1,target=/run/s,uid=1,gid=2,mode=0400", Ok(flag("sec1", "/run/s", "1", "2", 0o400))),
            ("src=sec1,MODE=256", Ok(flag("sec1", "sec1", "0", "0", 0o400))),
            ("source=sec1,mode=0o640", Ok(flag("sec1", "sec1", "0", "0", 0o640))),
            ("source=\"a,b\"", Err("bare \" in non-quoted field")),
            ("target=x", Err("source is required")),
            ("source=sec1,mode=rw", Err("invalid mode specified: rw")),
            ("source=sec1,colour=red", Err("invalid field in secret request: colour")),
            ("sec1,target=x", Err("invalid field 'sec1' must be a key=value pair")),
        ] {
            assert_eq!(secret(text), want.map_err(str::to_owned), "{text}");
        }
        assert_eq!(config("source=c,x=y"), Err("invalid field in config request: x".to_owned()));
    }

    #[test]
    fn references_are_what_dockers_client_sends() {
        let known: Vec<FileObject> = serde_json::from_value(json!([{"ID": "b2", "Spec": {"Name": "sec12"}},
            {"ID": "a1", "Spec": {"Name": "sec1"}}]))
        .unwrap();
        let got = reference(Kind::Secret, &secret("sec1").unwrap(), &known).unwrap();
        let file = json!({"Name": "sec1", "UID": "0", "GID": "0", "Mode": 292});
        assert_eq!(got, json!({"File": file, "SecretID": "a1", "SecretName": "sec1"}));
        let missing = reference(Kind::Config, &config("con1").unwrap(), &known).unwrap_err();
        assert_eq!(missing.to_string(), "config not found: con1");
    }

    #[test]
    fn references_change_by_name() {
        let mut spec = json!({"TaskTemplate": {"ContainerSpec": {"Secrets": [
            {"SecretID": "a", "SecretName": "one", "Novelty": 1}, {"SecretID": "b", "SecretName": "two"}]}}});
        change(&mut spec, Kind::Secret, &["two".to_owned()], vec![json!({"SecretID": "c", "SecretName": "three"})]);
        change(&mut spec, Kind::Config, &[], Vec::new());
        let want = json!({"TaskTemplate": {"ContainerSpec": {"Secrets": [
            {"SecretID": "a", "SecretName": "one", "Novelty": 1}, {"SecretID": "c", "SecretName": "three"}]}}});
        assert_eq!(spec, want);
    }
}
