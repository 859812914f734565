//! Images and registries as Docker's client treats them: an image is pinned by what its registry says, and a service may take the
//! user's credentials along.

use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use shoal_protocol::image::{HUB, Reference};
use shoal_protocol::registry_auth::{RegistryAuth, host_of};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::client::Client;
use crate::error::CliError;
use crate::spec::slot;

/// What Docker's files call Docker Hub.
const HUB_KEY: &str = "https://index.docker.io/v1/";
/// Bytes of the file of credentials at most.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// How long a helper may take; it may ask a person.
const HELPER_TIMEOUT: Duration = Duration::from_secs(60);
/// What helpers call a user that has a token.
const TOKEN_USER: &str = "<token>";
/// What a helper says of a registry that it does not know. Source: docker-credential-helpers.
const HELPER_NOT_FOUND: &str = "credentials not found";

/// Flags of `service create` and `service update` that are about registries.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub(crate) struct RegistryArgs {
    /// Send registry authentication details to swarm agents
    #[arg(long)]
    pub(crate) with_registry_auth: bool,
    /// Do not query the registry to resolve image digest and supported platforms
    #[arg(long)]
    pub(crate) no_resolve_image: bool,
}

/// Gives a spec's image a tag if it has none, and pins it by digest and platforms unless that is not wanted. Returns what to warn
/// of.
pub(crate) async fn pin(
    client: &Client,
    spec: &mut Value,
    args: RegistryArgs,
    auth: Option<&str>,
) -> Result<Option<String>, CliError> {
    let image = slot(spec, &["TaskTemplate", "ContainerSpec", "Image"]);
    // What is no name is refused by the daemon.
    let Some(reference) = image.as_str().and_then(Reference::parse) else { return Ok(None) };
    let reference = reference.with_default_tag();
    *image = json!(reference.to_string());
    if args.no_resolve_image || (auth.is_none() && is_loaded(client, &reference).await) {
        return Ok(None);
    }
    match client.distribution(&reference.to_string(), auth).await {
        Ok(answer) => {
            write(spec, reference, &answer);
            Ok(None)
        }
        // Without a daemon nothing else will work either.
        Err(error @ CliError::Unreachable { .. }) => Err(error),
        Err(_) => Ok(Some(warning(&reference.to_string()))),
    }
}

/// Returns whether the node that is asked has the image from a file: then no registry knows it by the digest that it has, and
/// looking for one takes as long as a name server that is out of reach.
async fn is_loaded(client: &Client, reference: &Reference) -> bool {
    if reference.digest.is_some() {
        return false;
    }
    // Slashes and colons mean themselves in this path.
    let image: Result<Value, CliError> = client.get(&format!("/images/{reference}/json")).await;
    image.is_ok_and(|image| image["RepoDigests"].as_array().is_none_or(Vec::is_empty))
}

fn write(spec: &mut Value, mut reference: Reference, answer: &Value) {
    let digest = answer["Descriptor"]["digest"].as_str().filter(|digest| shoal_protocol::image::is_digest(digest));
    if let (None, Some(digest)) = (&reference.digest, digest) {
        reference.digest = Some(digest.to_owned());
        *slot(spec, &["TaskTemplate", "ContainerSpec", "Image"]) = json!(reference.to_string());
    }
    let platforms: Vec<Value> = answer["Platforms"].as_array().into_iter().flatten().map(platform).collect();
    if !platforms.is_empty() {
        *slot(spec, &["TaskTemplate", "Placement", "Platforms"]) = json!(platforms);
    }
}

/// Docker's client leaves `arm` out: machines call themselves by more than that.
fn platform(named: &Value) -> Value {
    let mut platform = Map::new();
    let architecture = named["architecture"].as_str().filter(|name| !name.eq_ignore_ascii_case("arm"));
    for (name, value) in [("Architecture", architecture), ("OS", named["os"].as_str())] {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            platform.insert(name.to_owned(), json!(value));
        }
    }
    Value::Object(platform)
}

fn warning(image: &str) -> String {
    format!(
        "image {image} could not be accessed on a registry to record\nits digest. Each node will access {image} \
         independently,\npossibly leading to different nodes running different\nversions of the image.\n"
    )
}

/// Returns the user's credentials for the registry of a spec's image as the API wants them; those of nobody if the user has
/// none.
pub(crate) async fn header(spec: &Value, args: RegistryArgs) -> Result<Option<String>, CliError> {
    if !args.with_registry_auth {
        return Ok(None);
    }
    let image = spec["TaskTemplate"]["ContainerSpec"]["Image"].as_str().unwrap_or_default();
    let reference =
        Reference::parse(image).ok_or_else(|| CliError::Misused(format!("invalid reference format: '{image}'")))?;
    let auth = credentials(&Files::read()?, reference.registry()).await?;
    let json = serde_json::to_vec(&auth).map_err(|error| CliError::Failed(error.to_string()))?;
    Ok(Some(URL_SAFE.encode(json)))
}

/// What `docker login` keeps. Source: Docker CLI, `config.json`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Files {
    auths: std::collections::BTreeMap<String, Kept>,
    creds_store: String,
    cred_helpers: std::collections::BTreeMap<String, String>,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default)]
struct Kept {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
    registrytoken: String,
}

impl Files {
    fn read() -> Result<Self, CliError> {
        let Some(path) = path() else { return Ok(Self::default()) };
        let failed =
            |error: &dyn std::fmt::Display| CliError::Failed(format!("failed to read {}: {error}", path.display()));
        match std::fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(failed(&error)),
            Ok(metadata) if metadata.len() > FILE_BYTES_MAX => {
                return Err(failed(&format!("it is larger than {FILE_BYTES_MAX} bytes")));
            }
            Ok(_) => {}
        }
        let text = std::fs::read(&path).map_err(|error| failed(&error))?;
        serde_json::from_slice(&text).map_err(|error| failed(&error))
    }

    /// Finds what is kept for a registry, by its name or by an address of it.
    fn find(&self, key: &str) -> Result<RegistryAuth, CliError> {
        let by_host = || self.auths.iter().find(|(kept, _)| host_of(kept) == host_of(key)).map(|(_, kept)| kept);
        let Some(kept) = self.auths.get(key).or_else(by_host) else { return Ok(RegistryAuth::default()) };
        let mut auth = RegistryAuth::default();
        (auth.username, auth.password) = (kept.username.clone(), kept.password.clone());
        if !kept.auth.is_empty() {
            let malformed =
                || CliError::Failed(format!("the credentials for {key} in Docker's config.json are malformed"));
            let plain = STANDARD.decode(kept.auth.trim()).ok().and_then(|plain| String::from_utf8(plain).ok());
            let plain = plain.ok_or_else(malformed)?;
            let (username, password) = plain.split_once(':').ok_or_else(malformed)?;
            (auth.username, auth.password) = (username.to_owned(), password.trim_matches('\0').to_owned());
        }
        (auth.identitytoken, auth.registrytoken) = (kept.identitytoken.clone(), kept.registrytoken.clone());
        Ok(auth)
    }
}

fn path() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let directory = set("DOCKER_CONFIG").map(PathBuf::from);
    Some(directory.or_else(|| Some(PathBuf::from(set("HOME")?).join(".docker")))?.join("config.json"))
}

async fn credentials(files: &Files, registry: &str) -> Result<RegistryAuth, CliError> {
    let key = if registry == HUB { HUB_KEY } else { registry };
    let helper = files.cred_helpers.get(key).unwrap_or(&files.creds_store);
    let mut auth = if helper.is_empty() { files.find(key)? } else { ask(helper, key).await? };
    if !auth.is_empty() {
        auth.serveraddress = key.to_owned();
    }
    Ok(auth)
}

/// Asks a helper. Source: docker-credential-helpers, "Usage".
async fn ask(helper: &str, key: &str) -> Result<RegistryAuth, CliError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Answer {
        username: String,
        secret: String,
    }
    let program = format!("docker-credential-{helper}");
    let failed =
        |error: &dyn std::fmt::Display| CliError::Failed(format!("{program} gave no credentials for {key}: {error}"));
    let run = async {
        let mut child = Command::new(&program)
            .arg("get")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        if let Some(mut input) = child.stdin.take() {
            input.write_all(key.as_bytes()).await?;
        }
        child.wait_with_output().await
    };
    let output = tokio::time::timeout(HELPER_TIMEOUT, run).await;
    let output = output.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(|error| failed(&error))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(if output.stdout.is_empty() { &output.stderr } else { &output.stdout });
        if said.contains(HELPER_NOT_FOUND) {
            return Ok(RegistryAuth::default());
        }
        return Err(failed(&said.trim()));
    }
    let answer: Answer = serde_json::from_slice(&output.stdout).map_err(|error| failed(&error))?;
    let mut auth = RegistryAuth::default();
    if answer.username == TOKEN_USER {
        auth.identitytoken = answer.secret;
    } else {
        (auth.username, auth.password) = (answer.username, answer.secret);
    }
    Ok(auth)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(json: Value) -> Files {
        serde_json::from_value(json).unwrap()
    }

    #[tokio::test]
    async fn credentials_are_found_as_docker_finds_them() {
        let auth = STANDARD.encode("u:p:q");
        let kept = files(json!({"auths": {
            HUB_KEY: {"auth": STANDARD.encode("hub:1")},
            "reg:5000": {"auth": auth, "email": "a@b"},
            "https://old.example/v1/": {"username": "o", "password": "2"},
            "tok.example": {"auth": STANDARD.encode("t:"), "identitytoken": "abc"},
            "bad.example": {"auth": "????"},
        }, "HttpHeaders": {}}));
        for (registry, username, secret, address) in [
            (HUB, "hub", "1", HUB_KEY),
            ("reg:5000", "u", "p:q", "reg:5000"),
            ("old.example", "o", "2", "old.example"),
            ("tok.example", "t", "", "tok.example"),
            ("other.example", "", "", ""),
        ] {
            let found = credentials(&kept, registry).await.unwrap();
            assert_eq!((&*found.username, &*found.password, &*found.serveraddress), (username, secret, address));
        }
        assert_eq!(credentials(&kept, "tok.example").await.unwrap().identitytoken, "abc");
        assert!(credentials(&kept, "bad.example").await.unwrap_err().to_string().contains("malformed"));
    }

    #[tokio::test]
    async fn a_helper_that_is_not_there_is_named() {
        let kept = files(json!({"credsStore": "nosuch-helper", "credHelpers": {"a.example": "other-helper"}}));
        for (registry, want) in
            [("a.example", "docker-credential-other-helper"), ("b.example", "docker-credential-nosuch-helper")]
        {
            let error = credentials(&kept, registry).await.unwrap_err().to_string();
            assert!(error.starts_with(want), "{error}");
        }
    }

    #[test]
    fn a_spec_is_pinned_as_docker_pins_it() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        let other = format!("sha256:{}", "cd".repeat(32));
        let answer = json!({"Descriptor": {"digest": digest},
            "Platforms": [{"architecture": "amd64", "os": "linux"}, {"architecture": "arm", "os": "linux", "variant": "v7"}]});
        for (image, want) in [
            ("nginx".to_owned(), format!("nginx:latest@{digest}")),
            ("docker.io/library/nginx:1".to_owned(), format!("nginx:1@{digest}")),
            (format!("reg:5000/a@{other}"), format!("reg:5000/a@{other}")),
        ] {
            let mut spec = json!({});
            write(&mut spec, Reference::parse(&image).unwrap().with_default_tag(), &answer);
            let got = &spec["TaskTemplate"]["ContainerSpec"]["Image"];
            assert_eq!(got.as_str().unwrap_or(&image), want);
            let platforms = json!([{"Architecture": "amd64", "OS": "linux"}, {"OS": "linux"}]);
            assert_eq!(spec["TaskTemplate"]["Placement"]["Platforms"], platforms);
        }
        let mut spec = json!({});
        write(&mut spec, Reference::parse("a").unwrap(), &json!({"Descriptor": {"digest": "sha256:1"}}));
        assert_eq!(spec, json!({}), "nonsense changes nothing");
    }
}
