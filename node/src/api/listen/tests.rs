//! Sockets, ports and who is let in.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use axum::routing::get;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::tls::may_serve;
use super::*;

/// How long anything here may take.
const WAIT: Duration = Duration::from_secs(20);

type Issuer = CertifiedIssuer<'static, KeyPair>;

fn authority(name: &str) -> Issuer {
    let mut params = CertificateParams::new([]).unwrap();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    Issuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// Makes a certificate and its key, in PEM.
fn issued(issuer: &Issuer, usage: ExtendedKeyUsagePurpose) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
    params.extended_key_usages = vec![usage];
    params.not_after = rcgen::date_time_ymd(2099, 12, 31);
    (params.signed_by(&key, issuer).unwrap().pem(), key.serialize_pem())
}

/// A port that answers `/` after a check of certificates.
struct Guarded {
    authority: Issuer,
    address: std::net::SocketAddr,
    _directory: tempfile::TempDir,
}

async fn guarded() -> Guarded {
    let (authority, directory) = (authority("ours"), tempfile::tempdir().unwrap());
    let (cert, key) = issued(&authority, ExtendedKeyUsagePurpose::ServerAuth);
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        fs::write(&path, text).unwrap();
        path
    };
    let files =
        TlsFiles { cert: file("cert", &cert), key: file("key", &key), client_ca: Some(file("ca", &authority.pem())) };
    let tls = Tls::read(&files).unwrap();
    let endpoint = TcpEndpoint { host: "127.0.0.1".to_owned(), port: Some(0) };
    let socket = TcpSocket::bind(&endpoint, Some(&tls)).await.unwrap();
    let address = socket.local_addr().unwrap();
    let router = Router::new().route("/", get(|| async { "well" }));
    tokio::spawn(socket.serve(router, std::future::pending()));
    Guarded { authority, address, _directory: directory }
}

impl Guarded {
    /// Sends a request with a certificate of `issuer`, or without one, and returns the answer.
    async fn ask(&self, issuer: Option<&Issuer>) -> io::Result<String> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.authority.pem().as_bytes()).unwrap()).unwrap();
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let config = match issuer.map(|issuer| issued(issuer, ExtendedKeyUsagePurpose::ClientAuth)) {
            None => config.with_no_client_auth(),
            Some((cert, key)) => {
                let chain = vec![CertificateDer::from_pem_slice(cert.as_bytes()).unwrap()];
                config.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap()).unwrap()
            }
        };
        let stream = TcpStream::connect(self.address).await?;
        let name = ServerName::try_from("localhost").unwrap();
        talk(TlsConnector::from(Arc::new(config)).connect(name, stream).await?).await
    }
}

async fn talk(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<String> {
    stream.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await?;
    let mut answer = String::new();
    tokio::time::timeout(WAIT, stream.read_to_string(&mut answer)).await??;
    Ok(answer)
}

#[tokio::test]
async fn nobody_is_let_in_without_a_certificate_of_the_right_authority() {
    let guarded = guarded().await;
    let answer = guarded.ask(Some(&guarded.authority)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("well"), "{answer}");
    let none = guarded.ask(None).await.unwrap_err().to_string();
    assert!(none.contains("CertificateRequired"), "{none}");
    let other = guarded.ask(Some(&authority("theirs"))).await.unwrap_err().to_string();
    assert!(other.contains("UnknownCA"), "{other}");
    let plain = talk(TcpStream::connect(guarded.address).await.unwrap()).await.unwrap();
    assert!(plain.starts_with("HTTP/1.0 400 ") && plain.contains("to an HTTPS server"), "{plain}");
}

#[tokio::test]
async fn silent_callers_keep_nobody_out() {
    let guarded = guarded().await;
    let (mut silent, deadline) = (Vec::new(), Instant::now() + WAIT);
    // More than may shake hands at once from one place: those that are too many are closed.
    let mut closed = 0;
    while closed == 0 {
        assert!(Instant::now() < deadline, "nobody is turned away");
        let mut stream = TcpStream::connect(guarded.address).await.unwrap();
        let ended = tokio::time::timeout(Duration::from_millis(50), stream.read(&mut [0])).await;
        closed += usize::from(ended.is_ok());
        silent.push(stream);
    }
    assert!(silent.len() > 16, "{} silent callers are too many already", silent.len());
    // Room comes back when they go, and not only when their time is over.
    let begun = Instant::now();
    drop(silent);
    let mut answer = guarded.ask(Some(&guarded.authority)).await;
    while answer.is_err() {
        assert!(Instant::now() < deadline, "{answer:?}");
        answer = guarded.ask(Some(&guarded.authority)).await;
    }
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_port_without_a_check_is_for_this_machine_alone() {
    let endpoint = |host: &str| TcpEndpoint { host: host.to_owned(), port: Some(0) };
    for host in ["127.0.0.1", "localhost", "127.9.9.9"] {
        TcpSocket::bind(&endpoint(host), None).await.unwrap();
    }
    for host in ["0.0.0.0", "192.0.2.1", "::"] {
        let error = TcpSocket::bind(&endpoint(host), None).await.err().unwrap();
        assert!(matches!(error, ListenError::Open { .. }), "{host}: {error}");
        assert!(error.to_string().contains("use --tlsverify with --tlscacert, --tlscert and --tlskey"), "{error}");
    }
    let (authority, directory) = (authority("ours"), tempfile::tempdir().unwrap());
    let (cert, key) = issued(&authority, ExtendedKeyUsagePurpose::ServerAuth);
    let files = ["cert", "key"].map(|name| directory.path().join(name));
    fs::write(&files[0], cert).unwrap();
    fs::write(&files[1], key).unwrap();
    let [cert, key] = files;
    let tls = Tls::read(&TlsFiles { cert, key, client_ca: None }).unwrap();
    let error = TcpSocket::bind(&endpoint("0.0.0.0"), Some(&tls)).await.err().unwrap();
    assert!(error.to_string().contains("asks nobody who he is"), "{error}");
    assert!(may_serve(Ipv4Addr::LOCALHOST.into(), Some(&tls)));
    assert!(may_serve("::ffff:127.0.0.1".parse().unwrap(), None));
}

#[tokio::test]
async fn web_pages_reach_nothing() {
    let socket = TcpSocket::bind(&TcpEndpoint { host: "127.0.0.1".to_owned(), port: Some(0) }, None).await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(socket.serve(Router::new().route("/", get(|| async { "well" })), std::future::pending()));
    assert!(talk(TcpStream::connect(address).await.unwrap()).await.unwrap().ends_with("well"));
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = b"GET / HTTP/1.1\r\nhost: evil.example\r\nconnection: close\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(WAIT, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 403 ") && answer.contains("not to other names"), "{answer}");
}

#[test]
fn files_that_are_no_use_are_named() {
    let (authority, directory) = (authority("ours"), tempfile::tempdir().unwrap());
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        fs::write(&path, text).unwrap();
        path
    };
    let (cert, key) = issued(&authority, ExtendedKeyUsagePurpose::ServerAuth);
    let (_, other_key) = issued(&authority, ExtendedKeyUsagePurpose::ServerAuth);
    let good =
        TlsFiles { cert: file("cert", &cert), key: file("key", &key), client_ca: Some(file("ca", &authority.pem())) };
    assert!(Tls::read(&good).unwrap().expires.is_some());
    let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    for (files, want) in [
        (TlsFiles { cert: "/nowhere/cert".into(), ..good.clone() }, "--tlscert /nowhere/cert"),
        (TlsFiles { key: file("other", &other_key), ..good.clone() }, "is not the key of"),
        (TlsFiles { key: file("encrypted", encrypted), ..good.clone() }, "is encrypted"),
        (TlsFiles { cert: file("empty", ""), ..good.clone() }, "holds no certificate in PEM"),
        (TlsFiles { client_ca: Some(file("junk", &key)), ..good.clone() }, "holds no certificate in PEM"),
    ] {
        let error = Tls::read(&files).err().unwrap().to_string();
        assert!(error.contains(want), "{error}");
    }
}

#[tokio::test]
async fn a_socket_is_replaced_only_when_nobody_answers() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run/shoal.sock");
    let socket = Socket::bind(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, MODE);
    assert!(matches!(Socket::bind(&path), Err(ListenError::InUse(_))));
    // A daemon that was killed leaves the file behind.
    let Socket { listener, file, .. } = socket;
    std::mem::forget(file);
    drop(listener);
    let socket = Socket::bind(&path).unwrap();
    assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    drop(socket);
    assert!(!path.exists());
    fs::write(&path, "").unwrap();
    assert!(matches!(Socket::bind(&path), Err(ListenError::NotASocket(_))));
    assert!(path.exists());
}
