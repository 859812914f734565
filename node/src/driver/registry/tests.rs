use futures::StreamExt;
use tokio::net::TcpListener;

use super::testing::{Fake, Reply, digest, ok};
use super::*;

const CONFIG: &[u8] = br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#;
const MANIFEST_PATH: &str = "/v2/a/b/manifests/1";

fn manifest(config: &[u8], size: usize) -> Vec<u8> {
    let digest = digest(config);
    format!(r#"{{"schemaVersion":2,"config":{{"digest":"{digest}","size":{size}}},"layers":[]}}"#).into_bytes()
}

fn config_path() -> String {
    format!("/v2/a/b/blobs/{}", digest(CONFIG))
}

fn user() -> RegistryAuth {
    serde_json::from_str(r#"{"username":"u","password":"p"}"#).unwrap()
}

#[tokio::test]
async fn a_reference_is_resolved() {
    let (manifest, path) = (manifest(CONFIG, CONFIG.len()), config_path());
    let fake = Fake::start([(MANIFEST_PATH, ok(&manifest)), (&*path, ok(CONFIG))]).await;
    let resolved = fake.resolve(None).await.unwrap();
    assert_eq!((resolved.descriptor.digest, resolved.descriptor.size), (digest(&manifest), manifest.len() as u64));
    assert_eq!(resolved.descriptor.media_type, "application/vnd.oci.image.manifest.v1+json");
    assert_eq!(resolved.platforms.iter().map(|platform| &*platform.architecture).collect::<Vec<_>>(), ["amd64"]);
    assert_eq!(fake.authorizations(), [""; 0]);
}

#[tokio::test]
async fn what_makes_no_sense_is_refused() {
    let good = manifest(CONFIG, CONFIG.len());
    let large = manifest(CONFIG, DOCUMENT_BYTES_MAX as usize + 1);
    let (short, long) = (manifest(CONFIG, CONFIG.len() - 1), manifest(CONFIG, CONFIG.len() + 1));
    let to = |place: &str| Reply::Plain(307, format!("location: {place}\r\n"), Vec::new());
    let refused = |status, body: &str| Reply::Plain(status, String::new(), body.as_bytes().to_vec());
    for (name, first, blob, want) in [
        ("no JSON", ok(b"<html>"), ok(CONFIG), "cannot read the manifest"),
        ("an endless manifest", Reply::Endless, ok(CONFIG), "larger than 4194304 bytes"),
        ("an endless configuration", ok(&good), Reply::Endless, "is larger than its"),
        ("a size beyond the limit", ok(&large), ok(CONFIG), "exceeds 4194304 bytes"),
        ("a size too small", ok(&short), ok(CONFIG), "is larger than its"),
        ("a size too large", ok(&long), ok(CONFIG), "does not match its digest or size"),
        ("other bytes", ok(&good), ok(&vec![b'x'; CONFIG.len()]), "does not match its digest or size"),
        ("a circle", to("/v2/a/b/manifests/1"), ok(CONFIG), "more than 5 times"),
        ("no place", to(""), ok(CONFIG), "makes no sense"),
        ("another scheme", to("ftp://x/y"), ok(CONFIG), "neither HTTPS nor HTTP"),
        (
            "not there",
            refused(404, r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#),
            ok(b""),
            "manifest unknown: manifest unknown",
        ),
        ("another status", refused(500, "x"), ok(b""), "unexpected status 500"),
        ("no challenge", refused(401, ""), ok(b""), "neither Bearer nor Basic"),
    ] {
        let path = config_path();
        let fake = Fake::start([(MANIFEST_PATH, first), (&*path, blob)]).await;
        let error = fake.resolve(None).await.unwrap_err().to_string();
        assert!(error.contains(want), "{name}: {error}");
    }
}

#[tokio::test]
async fn a_digest_binds_the_registry() {
    let good = manifest(CONFIG, CONFIG.len());
    let path = format!("/v2/a/b/manifests/{}", digest(&good));
    let fake = Fake::start([(&*path, ok(&[&good[..], b" "].concat()))]).await;
    let image = format!("{}/a/b@{}", fake.host, digest(&good));
    let error = Registries::new(Vec::new()).resolve(&image, None).await.unwrap_err().to_string();
    assert!(error.contains("does not match that digest"), "{error}");
}

#[tokio::test]
async fn a_blob_yields_no_more_than_it_should() {
    let fake = Fake::start([("/v2/a/b/blobs/x", Reply::Endless)]).await;
    let registries = Registries::new(Vec::new());
    let mut repository = registries.repository(&Reference::parse(&fake.image()).unwrap(), None);
    let descriptor = Descriptor { media_type: String::new(), digest: "x".to_owned(), size: 100_000, platform: None };
    let pieces: Vec<_> = repository.blob(&descriptor).await.unwrap().collect().await;
    let bytes: usize = pieces.iter().flatten().map(Bytes::len).sum();
    assert!(bytes <= 100_000 && pieces.last().unwrap().is_err(), "{bytes}");
}

#[tokio::test]
async fn a_password_is_given_to_who_asks_for_it_and_is_told_wrong() {
    let challenge = "www-authenticate: Basic realm=\"x\"\r\n";
    let said = br#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#;
    let fake = Fake::start([(MANIFEST_PATH, Reply::Plain(401, challenge.to_owned(), said.to_vec()))]).await;
    let error = fake.resolve(None).await.unwrap_err().to_string();
    assert!(error.contains("no basic auth credentials"), "{error}");
    assert_eq!(fake.authorizations(), [""; 0]);
    let error = fake.resolve(Some(&user())).await.unwrap_err().to_string();
    let want = format!("pull access denied for {}/a/b: unauthorized: authentication required", fake.host);
    assert_eq!(error, want);
    assert_eq!(fake.authorizations(), ["Basic dTpw"]);
}

#[tokio::test]
async fn a_token_is_fetched_where_the_registry_says() {
    let challenge = "www-authenticate: Bearer realm=\"http://HOST/token\",service=\"s\"\r\n";
    let denied = Reply::Plain(401, challenge.to_owned(), Vec::new());
    // It never is content: what matters is what it is asked.
    let fake = Fake::start([(MANIFEST_PATH, denied.clone()), ("/token", ok(br#"{"token":"t1"}"#))]).await;
    assert!(matches!(fake.resolve(Some(&user())).await, Err(RegistryError::Denied(_))));
    assert_eq!(fake.authorizations(), ["Basic dTpw", "Bearer t1"]);
    let asked = fake.asked.lock().unwrap()[1].clone();
    assert!(asked.starts_with("GET /token?scope=repository%3Aa%2Fb%3Apull&service=s&account=u"), "{asked}");
    for (answer, want) in [
        (ok(b"{}"), "no token that can be read"),
        (Reply::Endless, "larger than 262144 bytes"),
        (Reply::Plain(403, String::new(), br#"{"details":"go away"}"#.to_vec()), "go away"),
        (Reply::Plain(302, "location: http://HOST/token\r\n".to_owned(), Vec::new()), "answers 302"),
    ] {
        let fake = Fake::start([(MANIFEST_PATH, denied.clone()), ("/token", answer)]).await;
        let error = fake.resolve(None).await.unwrap_err().to_string();
        assert!(error.contains(want), "{error}");
    }
}

#[tokio::test]
async fn another_host_is_not_told_who_asks() {
    let (manifest, path) = (manifest(CONFIG, CONFIG.len()), config_path());
    let elsewhere = Fake::start([("/blob", ok(CONFIG))]).await;
    let to = Reply::Plain(307, format!("location: http://{}/blob\r\n", elsewhere.host), Vec::new());
    let fake = Fake::start([(MANIFEST_PATH, ok(&manifest)), (&*path, to)]).await;
    let registries = Registries::new(Vec::new());
    let reference = Reference::parse(&fake.image()).unwrap();
    let mut repository = registries.repository(&reference, Some(&user()));
    repository.authorization = Some(token::basic(&user()));
    let (_, document, _) = repository.manifest("1").await.unwrap();
    let Document::Manifest(manifest) = document else { panic!("{document:?}") };
    assert_eq!(repository.document(&manifest.config).await.unwrap(), CONFIG);
    assert_eq!(fake.authorizations(), ["Basic dTpw"; 2]);
    assert_eq!((elsewhere.authorizations(), elsewhere.asked.lock().unwrap().len()), (Vec::new(), 1));
}

#[tokio::test]
async fn another_host_does_not_learn_who_asks_by_asking() {
    let thief = Fake::start([("/token", ok(br#"{"token":"t"}"#))]).await;
    let challenge = format!("www-authenticate: Bearer realm=\"http://{}/token\"\r\n", thief.host);
    let elsewhere = Fake::start([("/m", Reply::Plain(401, challenge, Vec::new()))]).await;
    let to = Reply::Plain(307, format!("location: http://{}/m\r\n", elsewhere.host), Vec::new());
    let fake = Fake::start([(MANIFEST_PATH, to)]).await;
    let error = fake.resolve(Some(&user())).await.unwrap_err();
    assert!(matches!(error, RegistryError::Denied(_)), "{error}");
    assert_eq!(elsewhere.asked.lock().unwrap().len(), 1);
    assert!(thief.asked.lock().unwrap().is_empty(), "{:?}", thief.asked);
}

#[tokio::test]
async fn another_registry_does_not_learn_what_one_knows() {
    let challenge = Reply::Plain(401, "www-authenticate: Basic realm=\"x\"\r\n".to_owned(), Vec::new());
    let fake = Fake::start([(MANIFEST_PATH, challenge)]).await;
    let mut theirs = user();
    "registry.example".clone_into(&mut theirs.serveraddress);
    assert!(matches!(fake.resolve(Some(&theirs)).await, Err(RegistryError::Denied(_))));
    assert!(fake.authorizations().is_empty(), "{:?}", fake.authorizations());
}

#[tokio::test]
async fn who_does_not_answer_is_named() {
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let error = Registries::new(Vec::new()).resolve(&format!("{gone}/a"), None).await.unwrap_err().to_string();
    assert!(error.starts_with(&format!("failed to reach registry {gone}: ")), "{error}");
    for name in ["", "A b", "a@sha256:1"] {
        assert!(matches!(Registries::new(Vec::new()).resolve(name, None).await, Err(RegistryError::Name(_))), "{name}");
    }
}
