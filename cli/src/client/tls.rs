//! Connections over TLS, and what their failures mean.

use std::error::Error;
use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, InvalidMessage, RootCertStore,
    SignatureScheme,
};

use super::target::{Pair, TlsFiles};
use crate::error::CliError;

/// Bytes of a file of certificates or keys at most; a larger one is refused.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Reads certificates and keys.
pub(super) fn config(files: &TlsFiles) -> Result<ClientConfig, CliError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| CliError::Failed(error.to_string()))?;
    let builder = match &files.ca {
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates("CA certificate", path)? {
                roots.add(certificate).map_err(|error| unusable("CA certificate", path, &error))?;
            }
            builder.with_root_certificates(roots)
        }
        None => builder.dangerous().with_custom_certificate_verifier(Arc::new(Anyone(provider))),
    };
    let mut config = match pair(&files.pair)? {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => builder.with_client_auth_cert(chain, key).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => CliError::Failed(format!(
                "could not use TLS key {}: it is not the key of {}",
                files.pair.key.display(),
                files.pair.cert.display()
            )),
            error => unusable("TLS certificate", &files.pair.cert, &error),
        })?,
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// Reads this client's certificate and key; `None` if nobody named any and none are in the usual place.
fn pair(pair: &Pair) -> Result<Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>, CliError> {
    let is_there = |path: &Path| path.try_exists().unwrap_or(true);
    if !pair.named && !is_there(&pair.cert) && !is_there(&pair.key) {
        return Ok(None);
    }
    let chain = certificates("TLS certificate", &pair.cert)?;
    let bytes = read("TLS key", &pair.key)?;
    let key = PrivateKeyDer::from_pem_slice(&bytes).map_err(|error| {
        if bytes.windows(9).any(|window| window == b"ENCRYPTED") {
            return unusable("TLS key", &pair.key, &"it is encrypted, which is not supported");
        }
        unusable("TLS key", &pair.key, &error)
    })?;
    Ok(Some((chain, key)))
}

fn certificates(what: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, CliError> {
    let bytes = read(what, path)?;
    let found: Result<Vec<_>, pem::Error> = CertificateDer::pem_slice_iter(&bytes).collect();
    let found = found.map_err(|error| unusable(what, path, &error))?;
    if found.is_empty() { Err(unusable(what, path, &"it holds no certificate in PEM")) } else { Ok(found) }
}

fn read(what: &str, path: &Path) -> Result<Vec<u8>, CliError> {
    let bytes = std::fs::metadata(path).and_then(|metadata| {
        if metadata.len() > FILE_BYTES_MAX { Err(io::ErrorKind::FileTooLarge.into()) } else { std::fs::read(path) }
    });
    bytes.map_err(|error| CliError::Failed(format!("could not read {what} {}: {error}", path.display())))
}

fn unusable(what: &str, path: &Path, error: &dyn std::fmt::Display) -> CliError {
    CliError::Failed(format!("could not use {what} {}: {error}", path.display()))
}

/// Says what a failure of a connection means, if it is about TLS. `source` may have it among its causes.
pub(super) fn explain(source: &(dyn Error + 'static), files: &TlsFiles) -> Option<String> {
    let error = find(source)?;
    let ca = files.ca.as_deref().unwrap_or(Path::new("")).display();
    let cert = files.pair.cert.display();
    Some(match error {
        rustls::Error::InvalidCertificate(reason) => match reason {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "the daemon's certificate has expired".to_owned()
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "the daemon's certificate is not valid yet: do the clocks agree?".to_owned()
            }
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                format!("the daemon's certificate is signed by an unknown authority: {ca} did not sign it")
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                format!("the daemon's certificate is for other names: {reason}")
            }
            reason => format!("the daemon's certificate is refused: {reason}"),
        },
        rustls::Error::AlertReceived(alert) => match alert {
            AlertDescription::CertificateRequired => {
                "the daemon wants a certificate of this client: name it by --tlscert and --tlskey".to_owned()
            }
            AlertDescription::UnknownCA => {
                format!("the daemon does not know who signed this client's certificate {cert}")
            }
            AlertDescription::CertificateExpired => format!("this client's certificate {cert} has expired"),
            AlertDescription::BadCertificate
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::DecryptError => {
                format!("the daemon refuses this client's certificate {cert} ({alert:?})")
            }
            alert => format!("the daemon refuses the connection ({alert:?})"),
        },
        rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            "the daemon does not use TLS there: leave out --tlsverify and --tls".to_owned()
        }
        error => error.to_string(),
    })
}

/// Looks for an error of TLS among the causes of another.
fn find<'a>(mut error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    loop {
        if let Some(found) = error.downcast_ref::<rustls::Error>() {
            return Some(found);
        }
        // An I/O error passes over what it is made of when it is asked for its cause.
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        error = match inner {
            Some(inner) => inner,
            None => error.source()?,
        };
    }
}

/// Takes whatever certificate the daemon shows, for `--tls` without `--tlsverify`, as Docker's client does.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
