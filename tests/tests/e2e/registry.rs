//! Images from a registry that lets nobody in without a password: pinned by digest, pulled by every node for itself.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use shoal_tests::http;
use shoal_tests::lab::{Lab, Node, repository};
use shoal_tests::shoal::{Output, run, text};
use shoal_tests::wait::wait_until;

use crate::secrets::nowhere_on_disk;
use crate::watch::{MARKER, check_wire, listen};
use crate::{PUBLISHED, START_WAIT, WAIT, check, cluster, wait_well};
use shoal_tests::lab::Driver;

const USER: &str = "user";
/// What the marker is as a password. Source: `htpasswd -nbBC 5 user MARKER`.
const HTPASSWD: &str = "user:$2y$05$abcdefghijklmnopqrstuu9ZEwID7aZgULQki0slaMW.iAfg4NEdC\n";
const REPOSITORY: &str = "lab/web";
/// How long a command may take.
const COMMAND_WAIT: Duration = Duration::from_secs(60);
/// What a test image's tasks are told apart by.
const VERSION: &str = "IMAGE_VERSION";

/// Nodes 1 and 2 pull the image before its tag moves, node 3 after that and after all keys were replaced.
#[test]
fn a_private_image_is_pinned_and_pulled_by_every_node() -> Result<()> {
    let cluster = cluster(3, Driver::Embedded, |_| {})?;
    cluster.form()?;
    check(&cluster, private_image(&cluster))
}

fn private_image(lab: &Lab) -> Result<()> {
    let registry = Registry::start(lab.node(1))?;
    for node in lab.nodes() {
        node.stop()?;
        node.start_with(&["--insecure-registry".to_owned(), registry.address.to_string()])?;
        node.wait_answers(START_WAIT)?;
        wait_until("all nodes are ready", WAIT, || lab.all_ready())?;
    }
    let capture = listen(lab)?;
    let first = registry.push("1", 1)?;
    refusals(lab, &registry)?;

    let image = registry.image("1");
    let ports = format!("{PUBLISHED}:80");
    let create = ["service", "create", "--with-registry-auth", "--name", "http", "--replicas", "2", "-p", &ports];
    let place = ["--constraint", "node.hostname!=n3", &image];
    let created = registry.shoal(lab.node(2), MARKER, &[&create[..], &place[..]].concat())?;
    ensure!(created.code == 0 && !created.stderr.contains("could not be accessed"), "{created:?}");
    wait_well(lab, 2, &[])?;
    ensure!(pinned(lab)? == format!("{image}@{first}"), "{}", pinned(lab)?);
    let shown = lab.node(3).shoal().json(&["service", "ls"])?;
    ensure!(text(&shown[0], "Image") == image, "{shown:?}");
    ensure!(versions(lab)? == BTreeMap::from([(1, "1".to_owned()), (2, "1".to_owned())]), "{:?}", versions(lab)?);
    nowhere(lab)?;

    // The tag leads elsewhere now, and what the credentials were sealed with is gone; the service knows both still.
    let second = registry.push("1", 2)?;
    let shoal = lab.node(3).shoal();
    shoal.ok(&["ca", "--rotate"])?;
    wait_until("the keys were replaced", WAIT, || {
        Ok(shoal.status()?["problems"].as_array().is_none_or(Vec::is_empty))
    })?;
    shoal.ok(&[
        "service",
        "update",
        "--constraint-rm",
        "node.hostname!=n3",
        "--constraint-add",
        "node.hostname==n3",
        "http",
    ])?;
    wait_well(lab, 2, &[])?;
    ensure!(versions(lab)? == BTreeMap::from([(3, "1".to_owned())]), "{:?}", versions(lab)?);

    // Whoever asks for the tag again gets what it leads to by now, and back again what was there before.
    let update = ["service", "update", "--with-registry-auth", "--image", &image, "http"];
    registry.shoal(lab.node(1), MARKER, &update)?.success()?;
    wait_well(lab, 2, &[])?;
    ensure!(pinned(lab)? == format!("{image}@{second}"), "{}", pinned(lab)?);
    ensure!(versions(lab)? == BTreeMap::from([(3, "2".to_owned())]), "{:?}", versions(lab)?);
    shoal.ok(&["service", "rollback", "http"])?;
    wait_well(lab, 2, &[])?;
    ensure!(versions(lab)? == BTreeMap::from([(3, "1".to_owned())]), "{:?}", versions(lab)?);
    nowhere(lab)?;
    check_wire(lab, capture, &[1, 2, 3])
}

/// What goes wrong says why.
fn refusals(lab: &Lab, registry: &Registry) -> Result<()> {
    let image = registry.image("1");
    for (name, password, flags, warned, want) in [
        ("anonymous", MARKER, &[][..], true, "no basic auth credentials"),
        ("wrong", "another password", &["--with-registry-auth"], true, "unauthorized: authentication required"),
        ("unresolved", "another password", &["--with-registry-auth", "--no-resolve-image"], false, "unauthorized"),
    ] {
        let create = ["service", "create", "--detach", "--restart-condition", "none", "--name", name];
        let created = registry.shoal(lab.node(3), password, &[&create[..], flags, &[&image]].concat())?;
        let warning = format!("image {image} could not be accessed on a registry to record\nits digest.");
        ensure!(created.code == 0 && created.stderr.contains(&warning) == warned, "{created:?}");
        let shoal = lab.node(2).shoal();
        let says_why = || {
            let tasks = shoal.json(&["service", "ps", "--no-trunc", name])?;
            let is_right = |task: &Value| {
                let (state, error) = (text(task, "CurrentState"), text(task, "Error"));
                state.starts_with("Rejected")
                    && error.contains(&format!("No such image: {image}"))
                    && error.contains(want)
            };
            if tasks.iter().any(is_right) { Ok(true) } else { bail!("{tasks:?}") }
        };
        wait_until(&format!("{name}: the task says what is wrong"), WAIT, says_why)?;
        shoal.ok(&["service", "rm", name])?;
    }
    let missing = registry.image("nosuch");
    let create = ["service", "create", "--detach", "--with-registry-auth", "--name", "missing", &missing];
    registry.shoal(lab.node(1), MARKER, &create)?.success()?;
    let shoal = lab.node(1).shoal();
    wait_until("the missing image is told", WAIT, || {
        let tasks = shoal.json(&["service", "ps", "--no-trunc", "missing"])?;
        Ok(tasks.iter().any(|task| text(task, "Error").contains("manifest unknown")))
    })?;
    shoal.ok(&["service", "rm", "missing"]).map(drop)
}

/// Returns the image of the service's spec.
fn pinned(lab: &Lab) -> Result<String> {
    let shown: Value = serde_json::from_str(&lab.node(1).shoal().ok(&["service", "inspect", "http"])?)?;
    let image = shown[0]["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"].as_str();
    Ok(image.context("the service has no image")?.to_owned())
}

/// Returns which version of the image runs on which node.
fn versions(lab: &Lab) -> Result<BTreeMap<usize, String>> {
    let mut versions = BTreeMap::new();
    for node in lab.nodes() {
        for pid in node.tasks().into_values().flatten() {
            // A supervisor has no such variable, and what ended meanwhile none at all.
            let environment = fs::read_to_string(format!("/proc/{pid}/environ")).unwrap_or_default();
            let mut values = environment.split('\0').filter_map(|pair| pair.strip_prefix(VERSION)?.strip_prefix('='));
            versions.extend(values.next().map(|version| (node.index, version.to_owned())));
        }
    }
    Ok(versions)
}

/// The password is shown by no node and lies on no disk.
fn nowhere(lab: &Lab) -> Result<()> {
    let encoded = STANDARD.encode(format!("{USER}:{MARKER}"));
    for node in lab.nodes() {
        for path in ["/services", "/services/http", "/tasks", "/info", "/swarm", "/shoal/status"] {
            let shown = http::unix(&node.socket(), "GET", path, "", COMMAND_WAIT)?;
            let shown = String::from_utf8_lossy(&shown.body);
            ensure!(!shown.contains(MARKER) && !shown.contains(&encoded), "{path} of node {} shows it", node.index);
        }
        nowhere_on_disk(node)?;
    }
    Ok(())
}

/// A registry on a node's address, in the clear.
struct Registry {
    address: SocketAddr,
    namespace: std::path::PathBuf,
    child: Child,
    directory: tempfile::TempDir,
}

impl Registry {
    fn start(node: Node<'_>) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let address = SocketAddr::new(node.address(), 5000);
        let file = |name: &str| directory.path().join(name);
        fs::write(file("htpasswd"), HTPASSWD)?;
        let config = json!({
            "version": "0.1",
            "log": {"level": "warn"},
            "storage": {"filesystem": {"rootdirectory": file("data")}},
            "http": {"addr": address.to_string()},
            "auth": {"htpasswd": {"realm": "lab", "path": file("htpasswd")}},
        });
        fs::write(file("config.yml"), config.to_string())?; // all JSON is YAML
        let namespace = node.namespace().context("the node has no namespace of its own")?;
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", namespace.display())).args(["--", "docker-registry", "serve"]);
        command.arg(file("config.yml")).stdin(Stdio::null()).stdout(Stdio::null());
        let child = command.spawn().context("run docker-registry (Debian's package docker-registry)")?;
        let registry = Self { address, namespace, child, directory };
        wait_until("the registry answers", WAIT, || Ok(registry.send("GET", "/v2/", "", &[])?.0 == 200))?;
        Ok(registry)
    }

    fn image(&self, tag: &str) -> String {
        format!("{}/{REPOSITORY}:{tag}", self.address)
    }

    /// Runs the client on a node as a user that has logged in with a password.
    fn shoal(&self, node: Node<'_>, password: &str, args: &[&str]) -> Result<Output> {
        let auth = STANDARD.encode(format!("{USER}:{password}"));
        let config = json!({"auths": {self.address.to_string(): {"auth": auth}}});
        fs::write(self.directory.path().join("config.json"), config.to_string())?;
        let shoal = node.shoal();
        let mut command = Command::new(&shoal.binary);
        command.arg("-H").arg(format!("unix://{}", shoal.socket.display())).args(args);
        run(
            {
                command.env("DOCKER_CONFIG", self.directory.path());
                command
            },
            COMMAND_WAIT,
        )
    }

    /// Makes a tag lead to the demo image with a variable that tells its version. Returns its digest.
    fn push(&self, tag: &str, version: u8) -> Result<String> {
        let archive = fs::read(repository().join("target/demo/whoami.tar"))?;
        let mut blobs = BTreeMap::new();
        for entry in tar::Archive::new(archive.as_slice()).entries()? {
            let mut entry = entry?;
            let path = entry.path()?.to_string_lossy().into_owned();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes)?;
            blobs.insert(path, bytes);
        }
        let blob = |path: &str| blobs.get(path).with_context(|| format!("the demo image has no {path}"));
        let of_digest = |digest: &Value| {
            blob(&format!("blobs/sha256/{}", digest.as_str().unwrap_or_default().trim_start_matches("sha256:")))
        };
        let index: Value = serde_json::from_slice(blob("index.json")?)?;
        let mut manifest: Value = serde_json::from_slice(of_digest(&index["manifests"][0]["digest"])?)?;
        let mut config: Value = serde_json::from_slice(of_digest(&manifest["config"]["digest"])?)?;
        let layer = of_digest(&manifest["layers"][0]["digest"])?.clone();
        config["config"]["Env"] = json!([format!("{VERSION}={version}")]);
        let config = config.to_string().into_bytes();
        manifest["config"]["digest"] = json!(digest(&config));
        manifest["config"]["size"] = json!(config.len());
        self.upload(&layer)?;
        self.upload(&config)?;
        let manifest = manifest.to_string().into_bytes();
        let path = format!("/v2/{REPOSITORY}/manifests/{tag}");
        let (status, _) = self.send("PUT", &path, "application/vnd.oci.image.manifest.v1+json", &manifest)?;
        ensure!(status == 201, "status {status} for {path}");
        Ok(digest(&manifest))
    }

    fn upload(&self, bytes: &[u8]) -> Result<()> {
        let (status, place) = self.send("POST", &format!("/v2/{REPOSITORY}/blobs/uploads/"), "", &[])?;
        ensure!(status == 202, "status {status} for an upload");
        let path = place.split_once(&self.address.to_string()).map_or(&*place, |(_, path)| path);
        let mark = if path.contains('?') { '&' } else { '?' };
        let path = format!("{path}{mark}digest={}", digest(bytes));
        let (status, _) = self.send("PUT", &path, "application/octet-stream", bytes)?;
        ensure!(status == 201, "status {status} for a blob");
        Ok(())
    }

    /// Sends a request as the user; returns the status, and where the answer says that something is.
    fn send(&self, method: &str, path: &str, kind: &str, body: &[u8]) -> Result<(u16, String)> {
        http::in_namespace(Some(&self.namespace), || {
            let mut stream = TcpStream::connect_timeout(&self.address, COMMAND_WAIT)?;
            stream.set_read_timeout(Some(COMMAND_WAIT))?;
            stream.set_write_timeout(Some(COMMAND_WAIT))?;
            let auth = STANDARD.encode(format!("{USER}:{MARKER}"));
            let (address, length) = (self.address, body.len());
            write!(
                stream,
                "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nAuthorization: Basic {auth}\r\n\
                 Content-Type: {kind}\r\nContent-Length: {length}\r\n\r\n"
            )?;
            stream.write_all(body)?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer)?;
            let answer = String::from_utf8_lossy(&answer);
            let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
            let places = answer.lines().filter_map(|line| line.split_once(": "));
            let place = places.filter(|(name, _)| name.eq_ignore_ascii_case("location")).map(|(_, place)| place).next();
            Ok((status.context("no status")?, place.unwrap_or_default().to_owned()))
        })
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}
