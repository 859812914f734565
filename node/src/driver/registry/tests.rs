use std::collections::BTreeMap;
use std::sync::Mutex;

use futures::StreamExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

/// What a registry does when it is asked for a path.
#[derive(Clone)]
enum Reply {
    /// Status, further headers, body.
    Plain(u16, String, Vec<u8>),
    /// A body that never ends.
    Endless,
}

/// A registry on this machine, in the clear, that says what it is told to, and what it was asked.
struct Fake {
    host: String,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Fake {
    /// `replies` may name the registry's own address as `HOST`.
    async fn start(replies: impl IntoIterator<Item = (&str, Reply)>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let replies: BTreeMap<String, Reply> =
            replies.into_iter().map(|(path, reply)| (path.to_owned(), reply)).collect();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (own, heard) = (host.clone(), asked.clone());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (replies, own, heard) = (replies.clone(), own.clone(), heard.clone());
                tokio::spawn(async move {
                    let mut request = Vec::new();
                    // A handshake of TLS has no such end: the client gives it up when the connection is closed.
                    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
                        let mut bytes = [0; 1024];
                        let count = stream.read(&mut bytes).await.unwrap_or(0);
                        request.extend_from_slice(&bytes[..count]);
                        if count == 0 || request[0] == 0x16 {
                            return;
                        }
                    }
                    let text = String::from_utf8(request).unwrap();
                    let path = text.split(' ').nth(1).unwrap().to_owned();
                    heard.lock().unwrap().push(text);
                    let known = replies.get(path.split('?').next().unwrap());
                    let reply = known.cloned().unwrap_or(Reply::Plain(404, String::new(), Vec::new()));
                    let (status, headers, mut body, is_endless) = match reply {
                        Reply::Plain(status, headers, body) => (status, headers, body, false),
                        Reply::Endless => (200, String::new(), Vec::new(), true),
                    };
                    let length = if is_endless { u64::MAX / 2 } else { body.len() as u64 };
                    let headers = headers.replace("HOST", &own);
                    let head = format!("HTTP/1.1 {status} x\r\ncontent-length: {length}\r\n{headers}\r\n");
                    stream.write_all(head.as_bytes()).await.unwrap();
                    loop {
                        if stream.write_all(&body).await.is_err() || !is_endless {
                            return;
                        }
                        body = vec![b' '; 64 << 10];
                    }
                });
            }
        });
        Self { host, asked }
    }

    fn image(&self) -> String {
        format!("{}/a/b:1", self.host)
    }

    async fn resolve(&self, auth: Option<&RegistryAuth>) -> Result<Resolved, RegistryError> {
        Registries::new(Vec::new()).resolve(&self.image(), auth).await
    }

    fn authorizations(&self) -> Vec<String> {
        let asked = self.asked.lock().unwrap();
        let lines = asked.iter().flat_map(|request| request.lines());
        lines.filter_map(|line| line.strip_prefix("authorization: ")).map(str::to_owned).collect()
    }
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(bytes)))
}

fn ok(body: &[u8]) -> Reply {
    Reply::Plain(200, "content-type: application/vnd.oci.image.manifest.v1+json\r\n".to_owned(), body.to_vec())
}

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
async fn who_does_not_answer_is_named() {
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let error = Registries::new(Vec::new()).resolve(&format!("{gone}/a"), None).await.unwrap_err().to_string();
    assert!(error.starts_with(&format!("failed to reach registry {gone}: ")), "{error}");
    for name in ["", "A b", "a@sha256:1"] {
        assert!(matches!(Registries::new(Vec::new()).resolve(name, None).await, Err(RegistryError::Name(_))), "{name}");
    }
}
