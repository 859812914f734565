//! Needs root, as unpacking layers does.

use std::fs;
use std::path::Path;

use super::*;
use crate::driver::embedded::images::platform_architecture;
use crate::driver::registry::testing::{Fake, Reply, digest, ok};

struct Fixture {
    directory: tempfile::TempDir,
    images: Arc<ImageStore>,
    puller: Arc<Puller>,
}

impl Fixture {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let images = Arc::new(ImageStore::open(directory.path(), &BTreeSet::new()).unwrap());
        let puller = Puller::new(images.clone(), Vec::new());
        Self { directory, images, puller }
    }

    /// Whether there is nothing but the directories.
    fn is_empty(&self) -> bool {
        fn files(directory: &Path) -> usize {
            let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
            entries.map(|path| if path.is_dir() { files(&path) } else { 1 }).sum()
        }
        files(self.directory.path()) == 0 && fs::read_dir(self.directory.path().join("layers")).unwrap().count() == 0
    }
}

fn layer(content: &str) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    builder.append_data(&mut header, "file", content.as_bytes()).unwrap();
    builder.into_inner().unwrap()
}

/// An image of some layers: its configuration, its manifest, and what a registry serves of it.
struct Image {
    manifest: Vec<u8>,
    replies: Vec<(String, Reply)>,
}

fn descriptor(bytes: &[u8]) -> Value {
    json!({"mediaType": "", "digest": digest(bytes), "size": bytes.len()})
}

fn image(layers: &[&[u8]], env: &str) -> Image {
    let diff_ids: Vec<String> = layers.iter().map(|layer| digest(layer)).collect();
    with_diff_ids(layers, env, &diff_ids)
}

fn with_diff_ids(layers: &[&[u8]], env: &str, diff_ids: &[String]) -> Image {
    let config = json!({"architecture": platform_architecture(), "os": "linux", "config": {"Env": [env]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids}});
    let config = config.to_string().into_bytes();
    let named: Vec<Value> = layers.iter().map(|layer| descriptor(layer)).collect();
    let manifest = json!({"schemaVersion": 2, "config": descriptor(&config), "layers": named}).to_string().into_bytes();
    let blobs = layers.iter().copied().chain([&*config]);
    let replies = blobs.map(|blob| (format!("/v2/a/b/blobs/{}", digest(blob)), ok(blob))).collect();
    Image { manifest, replies }
}

async fn serve(images: &[(&str, &Image)], more: Vec<(String, Reply)>) -> Fake {
    let manifests = images.iter().flat_map(|(tag, image)| {
        let names = [(*tag).to_owned(), digest(&image.manifest)];
        let named = names.map(|name| (format!("/v2/a/b/manifests/{name}"), ok(&image.manifest)));
        named.into_iter().chain(image.replies.clone())
    });
    let all: Vec<(String, Reply)> = manifests.chain(more).collect();
    Fake::start(all.iter().map(|(path, reply)| (path.as_str(), reply.clone()))).await
}

fn count(fake: &Fake, what: &str) -> usize {
    fake.asked.lock().unwrap().iter().filter(|request| request.contains(what)).count()
}

#[tokio::test]
async fn pulls_of_one_image_are_one_pull() {
    let layer = layer("one");
    let (first, second) = (image(&[&layer], "V=1"), image(&[&layer], "V=2"));
    let fake = serve(&[("1", &first), ("2", &second)], Vec::new()).await;
    let fixture = Fixture::new();
    let name = fake.image();
    let pulls = (0..5).map(|_| fixture.puller.pull(&name, None));
    for pulled in futures::future::join_all(pulls).await {
        pulled.unwrap();
    }
    assert_eq!(count(&fake, "GET /v2/a/b/manifests/1 "), 1);
    assert_eq!(fixture.images.find(&name).unwrap().config.config.unwrap().env.unwrap(), ["V=1"]);
    assert!(fixture.images.has(&format!("{}/a/b@{}", fake.host, digest(&first.manifest))));

    // By digest it gets no name, and what is there is not received again.
    let pinned = format!("{}/a/b:2@{}", fake.host, digest(&second.manifest));
    fixture.puller.pull(&pinned, None).await.unwrap();
    assert!(fixture.images.has(&pinned) && !fixture.images.has(&format!("{}/a/b:2", fake.host)));
    assert_eq!(count(&fake, &format!("GET /v2/a/b/blobs/{}", digest(&layer))), 1);
}

#[tokio::test]
async fn an_index_leads_to_the_image_for_this_machine_and_names_it() {
    let image = image(&[&layer("one")], "V=1");
    let platform = |architecture: &str, manifest: &[u8]| {
        let mut entry = descriptor(manifest);
        entry["platform"] = json!({"os": "linux", "architecture": architecture});
        entry
    };
    let entries = [platform("s390x", b"elsewhere"), platform(platform_architecture(), &image.manifest)];
    let index = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": entries})
    .to_string()
    .into_bytes();
    let pinned_path = format!("/v2/a/b/manifests/{}", digest(&index));
    let fake = serve(&[("own", &image)], vec![(pinned_path, ok(&index))]).await;
    let fixture = Fixture::new();
    let pinned = format!("{}/a/b@{}", fake.host, digest(&index));
    fixture.puller.pull(&pinned, None).await.unwrap();
    assert_eq!(fixture.images.find(&pinned).unwrap().config.config.unwrap().env.unwrap(), ["V=1"]);

    let other = json!({"schemaVersion": 2, "manifests": [platform("s390x", b"x")]}).to_string().into_bytes();
    let fake = Fake::start([("/v2/a/b/manifests/1", ok(&other))]).await;
    let error = Fixture::new().puller.pull(&fake.image(), None).await.unwrap_err().to_string();
    assert!(error.starts_with("no matching manifest for linux/"), "{error}");
}

#[tokio::test]
async fn what_fails_leaves_nothing() {
    let (one, two) = (layer("one"), layer("two"));
    let good = image(&[&one, &two], "V=1");
    let lying = with_diff_ids(&[&one, &two], "V=1", &[digest(&one), digest(b"x")]);
    let fewer = with_diff_ids(&[&one, &two], "V=1", &[digest(&one)]);
    let path = format!("/v2/a/b/blobs/{}", digest(&two));
    for (name, image, more, want) in [
        ("a layer that is not there", &good, Some(Reply::Plain(404, String::new(), Vec::new())), "manifest unknown"),
        ("a layer without end", &good, Some(Reply::Endless), "is larger than its"),
        ("another layer", &good, Some(ok(&layer("2wo"))), "does not match its digest or size"),
        ("other content than named", &lying, None, "does not match its digest"),
        ("fewer layers than named", &fewer, None, "the image names 1 layers, its manifest 2"),
    ] {
        let more = more.map(|reply| (path.clone(), reply)).into_iter().collect();
        let fake = serve(&[("1", image)], more).await;
        let fixture = Fixture::new();
        let error = fixture.puller.pull(&fake.image(), None).await.unwrap_err().to_string();
        assert!(error.contains(want), "{name}: {error}");
        assert!(fixture.is_empty(), "{name}");
        // What failed is not remembered.
        assert!(fixture.puller.running.lock().unwrap().is_empty(), "{name}");
    }
}
