//! Mounts in the notation of `--mount`: `type=volume,source=…,target=…` and so on. Source: docker/cli, `opts.MountOpt`.

use std::collections::BTreeSet;
use std::str::FromStr;

use serde_json::{Map, Value, json};

use crate::error::CliError;
use crate::spec::slot;
use crate::units::Bytes;

/// One mount, as JSON of the API.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct MountFlag(Value);

impl FromStr for MountFlag {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut mount = json!({"Type": "volume"});
        for field in fields(text)? {
            let (key, value) = field.split_once('=').map_or((&*field, None), |(key, value)| (key, Some(value)));
            let key = key.to_lowercase();
            read_field(&mut mount, &field, &key, value)?;
        }
        let kind = mount["Type"].as_str().unwrap_or_default().to_owned();
        if kind.is_empty() {
            return Err("type is required".to_owned());
        }
        if mount["Target"].as_str().unwrap_or_default().is_empty() {
            return Err("target is required".to_owned());
        }
        for owner in ["bind", "volume", "tmpfs"] {
            if kind != owner && mount.get(options_of(owner)).is_some() {
                return Err(format!("cannot mix '{owner}-*' options with mount type '{kind}'"));
            }
        }
        Ok(Self(mount))
    }
}

fn options_of(kind: &str) -> &'static str {
    match kind {
        "bind" => "BindOptions",
        "volume" => "VolumeOptions",
        _ => "TmpfsOptions",
    }
}

fn read_field(mount: &mut Value, field: &str, key: &str, value: Option<&str>) -> Result<(), String> {
    let invalid = || format!("invalid value for {key}: {}", value.unwrap_or_default());
    let flag = || value.map_or(Some(true), bool_value).ok_or_else(invalid);
    let text = || value.ok_or_else(|| format!("invalid field '{field}' must be a key=value pair"));
    match key {
        "readonly" | "ro" => set_flag(mount, &["ReadOnly"], flag()?),
        "volume-nocopy" => set_flag(mount, &["VolumeOptions", "NoCopy"], flag()?),
        "bind-nonrecursive" => set_flag(mount, &["BindOptions", "NonRecursive"], flag()?),
        "type" => mount["Type"] = json!(text()?.to_lowercase()),
        "source" | "src" => mount["Source"] = json!(source(text()?)),
        "target" | "dst" | "destination" => mount["Target"] = json!(text()?),
        "consistency" => mount["Consistency"] = json!(text()?.to_lowercase()),
        "bind-propagation" => *slot(mount, &["BindOptions", "Propagation"]) = json!(text()?.to_lowercase()),
        "bind-recursive" => match text()? {
            "enabled" => set_flag(mount, &["BindOptions", "NonRecursive"], false),
            "disabled" => set_flag(mount, &["BindOptions", "NonRecursive"], true),
            "writable" => set_flag(mount, &["BindOptions", "ReadOnlyNonRecursive"], true),
            "readonly" => set_flag(mount, &["BindOptions", "ReadOnlyForceRecursive"], true),
            _ => {
                return Err(format!(
                    "{} (must be \"enabled\", \"disabled\", \"writable\", or \"readonly\")",
                    invalid()
                ));
            }
        },
        "volume-subpath" => *slot(mount, &["VolumeOptions", "Subpath"]) = json!(text()?),
        "volume-label" => set_pair(mount, &["VolumeOptions", "Labels"], text()?),
        "volume-driver" => *slot(mount, &["VolumeOptions", "DriverConfig", "Name"]) = json!(text()?),
        "volume-opt" => set_pair(mount, &["VolumeOptions", "DriverConfig", "Options"], text()?),
        "image-subpath" => *slot(mount, &["ImageOptions", "Subpath"]) = json!(text()?),
        "tmpfs-size" => {
            let size: Bytes = text()?.parse().map_err(|_| invalid())?;
            *slot(mount, &["TmpfsOptions", "SizeBytes"]) = json!(size.0);
        }
        "tmpfs-mode" => {
            let mode = u32::from_str_radix(text()?, 8).map_err(|_| invalid())?;
            *slot(mount, &["TmpfsOptions", "Mode"]) = json!(mode);
        }
        _ if value.is_none() => return Err(format!("invalid field '{field}' must be a key=value pair")),
        _ => return Err(format!("unexpected key '{key}' in '{field}'")),
    }
    Ok(())
}

/// What is false is left out, but for the options that were named with it.
fn set_flag(mount: &mut Value, path: &[&str], value: bool) {
    if value {
        *slot(mount, path) = json!(true);
    } else if let [options, _] = path {
        let place = slot(mount, &[options]);
        if !place.is_object() {
            *place = Value::Object(Map::new());
        }
    }
}

fn set_pair(mount: &mut Value, path: &[&str], pair: &str) {
    let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
    if !key.is_empty() {
        let place = slot(mount, path);
        if !place.is_object() {
            *place = Value::Object(Map::new());
        }
        place[key] = json!(value);
    }
}

/// Source: Go, `strconv.ParseBool`.
fn bool_value(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

/// Makes a source that is relative to the working directory absolute.
fn source(text: &str) -> String {
    if text == "." || text.starts_with("./") {
        return std::path::absolute(text).map_or_else(|_| text.to_owned(), |path| path.to_string_lossy().into_owned());
    }
    text.to_owned()
}

/// Splits one line of CSV. Source: RFC 4180; Go, `encoding/csv`.
pub(crate) fn fields(text: &str) -> Result<Vec<String>, String> {
    let mut fields = Vec::new();
    let mut rest = text;
    loop {
        let (field, tail) = if let Some(quoted) = rest.strip_prefix('"') {
            quoted_field(quoted)?
        } else {
            let end = rest.find(',').unwrap_or(rest.len());
            if rest[..end].contains('"') {
                return Err("bare \" in non-quoted field".to_owned());
            }
            (rest[..end].to_owned(), &rest[end..])
        };
        fields.push(field);
        match tail.strip_prefix(',') {
            Some(more) => rest = more,
            None => return Ok(fields),
        }
    }
}

/// Reads up to the closing quote, in which a doubled quote stands for one.
fn quoted_field(text: &str) -> Result<(String, &str), String> {
    let unbalanced = || "extraneous or missing \" in quoted-field".to_owned();
    let (mut field, mut rest) = (String::new(), text);
    loop {
        let (part, tail) = rest.split_once('"').ok_or_else(unbalanced)?;
        field.push_str(part);
        match tail.strip_prefix('"') {
            Some(more) => {
                field.push('"');
                rest = more;
            }
            None if tail.is_empty() || tail.starts_with(',') => return Ok((field, tail)),
            None => return Err(unbalanced()),
        }
    }
}

/// Removes mounts by target, and adds others, which replace those at their targets. Source: docker/cli, `updateMounts`.
pub(crate) fn change(spec: &mut Value, remove: &[String], add: &[MountFlag]) -> Result<(), CliError> {
    if remove.is_empty() && add.is_empty() {
        return Ok(());
    }
    let target = |mount: &Value| mount["Target"].as_str().unwrap_or_default().to_owned();
    let added: BTreeSet<String> = add.iter().map(|mount| target(&mount.0)).collect();
    if added.len() < add.len() {
        return Err(CliError::Misused("duplicate mount target".to_owned()));
    }
    let place = slot(spec, &["TaskTemplate", "ContainerSpec", "Mounts"]);
    let mut mounts: Vec<Value> = place.as_array().cloned().unwrap_or_default();
    mounts.retain(|mount| !added.contains(&target(mount)));
    mounts.extend(add.iter().map(|mount| mount.0.clone()));
    mounts.retain(|mount| !remove.contains(&target(mount)));
    *place = json!(mounts);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Value, String> {
        text.parse::<MountFlag>().map(|mount| mount.0)
    }

    #[test]
    fn mounts_are_read_as_dockers_client_reads_them() {
        for (text, want) in [
            (
                "type=bind,src=/a,dst=/b,ro,bind-propagation=rslave",
                json!({"Type": "bind", "Source": "/a", "Target": "/b", "ReadOnly": true,
                    "BindOptions": {"Propagation": "rslave"}}),
            ),
            (
                "type=volume,source=vv,destination=/v,volume-label=a=b,volume-nocopy,volume-driver=local",
                json!({"Type": "volume", "Source": "vv", "Target": "/v", "VolumeOptions": {"NoCopy": true,
                    "Labels": {"a": "b"}, "DriverConfig": {"Name": "local"}}}),
            ),
            (
                "type=tmpfs,target=/t,tmpfs-size=1m,tmpfs-mode=1770,readonly=false",
                json!({"Type": "tmpfs", "Target": "/t", "TmpfsOptions": {"SizeBytes": 1_048_576, "Mode": 0o1770}}),
            ),
            ("dst=/anonymous", json!({"Type": "volume", "Target": "/anonymous"})),
            (
                "TYPE=Bind,\"src=/a,b\",dst=/b,bind-recursive=disabled",
                json!({"Type": "bind", "Source": "/a,b", "Target": "/b", "BindOptions": {"NonRecursive": true}}),
            ),
            (
                "dst=/b,\"volume-opt=o=addr=1.2.3.4,\"\"rw\"\"\"",
                json!({"Type": "volume", "Target": "/b",
                    "VolumeOptions": {"DriverConfig": {"Options": {"o": "addr=1.2.3.4,\"rw\""}}}}),
            ),
        ] {
            assert_eq!(read(text), Ok(want), "{text}");
        }
        let here = std::env::current_dir().unwrap().to_string_lossy().into_owned();
        assert_eq!(read("type=bind,src=.,dst=/b").unwrap()["Source"], json!(here));
    }

    #[test]
    fn what_dockers_client_refuses_is_refused() {
        for (text, want) in [
            ("src=q", "target is required"),
            ("type=,dst=/a", "type is required"),
            ("dst=/a,foo", "invalid field 'foo' must be a key=value pair"),
            ("dst=/a,foo=b", "unexpected key 'foo' in 'foo=b'"),
            ("dst=/a,ro=maybe", "invalid value for ro: maybe"),
            ("type=tmpfs,dst=/a,tmpfs-mode=9", "invalid value for tmpfs-mode: 9"),
            ("type=tmpfs,dst=/a,tmpfs-size=x", "invalid value for tmpfs-size: x"),
            ("type=tmpfs,dst=/a,bind-propagation=shared", "cannot mix 'bind-*' options with mount type 'tmpfs'"),
            ("type=bind,src=/a,dst=/a,volume-nocopy=false", "cannot mix 'volume-*' options with mount type 'bind'"),
            ("dst=/a,tmpfs-size=1m", "cannot mix 'tmpfs-*' options with mount type 'volume'"),
            (
                "type=bind,src=/a,dst=/a,bind-recursive=x",
                "invalid value for bind-recursive: x (must be \"enabled\", \"disabled\", \"writable\", or \"readonly\")",
            ),
            ("\"dst=/a", "extraneous or missing \" in quoted-field"),
            ("dst=\"/a\"", "bare \" in non-quoted field"),
        ] {
            assert_eq!(read(text), Err(want.to_owned()), "{text}");
        }
    }

    #[test]
    fn mounts_change_by_target() {
        let mut spec = json!({"TaskTemplate": {"ContainerSpec": {"Mounts": [
            {"Type": "volume", "Source": "aa", "Target": "/a", "Novelty": 1}, {"Type": "volume", "Source": "bb", "Target": "/b"}]}}});
        let flag = |text: &str| text.parse::<MountFlag>().unwrap();
        change(&mut spec, &["/c".to_owned()], &[flag("src=b2,dst=/b"), flag("src=cc,dst=/c")]).unwrap();
        assert_eq!(
            spec["TaskTemplate"]["ContainerSpec"]["Mounts"],
            json!([{"Type": "volume", "Source": "aa", "Target": "/a", "Novelty": 1},
                {"Type": "volume", "Source": "b2", "Target": "/b"}])
        );
        let twice = change(&mut spec, &[], &[flag("src=b2,dst=/b"), flag("dst=/b")]);
        assert!(twice.unwrap_err().to_string().contains("duplicate mount target"));
    }
}
