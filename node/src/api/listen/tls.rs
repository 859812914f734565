//! What the daemon shows to clients over TLS, and what it wants to see of them.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use shoal_protocol::WallTime;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Bytes of a file of certificates or keys at most; a larger one is refused.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Where certificates and keys are, in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The daemon's certificate, and those between it and a root.
    pub cert: PathBuf,
    /// The private key of the first one.
    pub key: PathBuf,
    /// Who signs the certificates of clients; `None` takes clients without one.
    pub client_ca: Option<PathBuf>,
}

/// Why TLS cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file could not be read.
    #[error("{what} {path}")]
    Unreadable {
        /// Which flag names the file.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file does not hold what it should.
    #[error("{what} {path}: {reason}")]
    Unusable {
        /// Which flag names the file.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

/// What TLS is served with.
#[derive(Clone)]
pub struct Tls {
    pub(super) config: Arc<ServerConfig>,
    /// Whether clients have to show a certificate.
    pub(super) verifies: bool,
    /// Until when the daemon's own certificate is good, if it says so.
    pub expires: Option<WallTime>,
}

impl Tls {
    /// Reads certificates and keys. Nothing of it is read again later.
    pub fn read(files: &TlsFiles) -> Result<Self, TlsError> {
        let chain = certificates("--tlscert", &files.cert)?;
        let expires = chain.first().and_then(|certificate| expires(certificate));
        let key = key(&files.key)?;
        let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| unusable("--tlscert", &files.cert, error.to_string()))?;
        let config = match &files.client_ca {
            None => config.with_no_client_auth(),
            Some(path) => {
                let unusable = |reason: String| unusable("--tlscacert", path, reason);
                let mut roots = RootCertStore::empty();
                for certificate in certificates("--tlscacert", path)? {
                    roots.add(certificate).map_err(|error| unusable(error.to_string()))?;
                }
                let provider = Arc::new(rustls::crypto::ring::default_provider());
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                config.with_client_cert_verifier(
                    verifier.build().map_err(|error: VerifierBuilderError| unusable(error.to_string()))?,
                )
            }
        };
        let mut config = config.with_single_cert(chain, key).map_err(|error| {
            let reason = match error {
                rustls::Error::InconsistentKeys(_) => format!("is not the key of {}", files.cert.display()),
                error => error.to_string(),
            };
            unusable("--tlskey", &files.key, reason)
        })?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { config: Arc::new(config), verifies: files.client_ca.is_some(), expires })
    }
}

/// Whether a TCP address may be served: without a check of who calls, only to this machine.
pub(super) fn may_serve(address: IpAddr, tls: Option<&Tls>) -> bool {
    address.to_canonical().is_loopback() || tls.is_some_and(|tls| tls.verifies)
}

fn unusable(what: &'static str, path: &Path, reason: String) -> TlsError {
    TlsError::Unusable { what, path: path.to_owned(), reason }
}

fn read(what: &'static str, path: &Path) -> Result<Vec<u8>, TlsError> {
    let unreadable = |source| TlsError::Unreadable { what, path: path.to_owned(), source };
    let length = std::fs::metadata(path).map_err(unreadable)?.len();
    if length > FILE_BYTES_MAX {
        return Err(unusable(what, path, format!("has {length} bytes, more than {FILE_BYTES_MAX}")));
    }
    std::fs::read(path).map_err(unreadable)
}

fn certificates(what: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let bytes = read(what, path)?;
    let found: Result<Vec<_>, pem::Error> = CertificateDer::pem_slice_iter(&bytes).collect();
    let found = found.map_err(|error| unusable(what, path, format!("is no PEM: {error}")))?;
    if found.is_empty() { Err(unusable(what, path, "holds no certificate in PEM".to_owned())) } else { Ok(found) }
}

fn key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let bytes = zeroize::Zeroizing::new(read("--tlskey", path)?);
    PrivateKeyDer::from_pem_slice(&bytes).map_err(|error| {
        let encrypted = bytes.windows(9).any(|window| window == b"ENCRYPTED");
        let reason = match error {
            _ if encrypted => "is encrypted, and there is nobody to ask for the passphrase".to_owned(),
            pem::Error::NoItemsFound => "holds no private key in PEM".to_owned(),
            error => format!("is no PEM: {error}"),
        };
        unusable("--tlskey", path, reason)
    })
}

/// Returns until when a certificate is good; `None` for what cannot be read, which rustls refuses anyway.
fn expires(certificate: &CertificateDer<'_>) -> Option<WallTime> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let seconds = u64::try_from(certificate.validity().not_after.timestamp()).ok()?;
    seconds.checked_mul(1_000_000_000).map(WallTime)
}
