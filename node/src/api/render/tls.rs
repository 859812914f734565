//! The certificate authority of a cluster.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Whose certificates a cluster trusts, as Docker's clients read it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct TlsInfo {
    /// The root certificate in PEM.
    trust_root: String,
    /// The root's subject in DER, in base64.
    #[serde(skip_serializing_if = "String::is_empty")]
    cert_issuer_subject: String,
    /// The root's public key in DER, in base64.
    #[serde(skip_serializing_if = "String::is_empty")]
    cert_issuer_public_key: String,
}

impl TlsInfo {
    /// Reads a root certificate. One that cannot be read is shown as it is, without more.
    pub fn of(root_pem: &str) -> Self {
        let mut info = Self { trust_root: root_pem.to_owned(), ..Self::default() };
        if let Ok((_, pem)) = x509_parser::pem::parse_x509_pem(root_pem.as_bytes())
            && let Ok((_, certificate)) = X509Certificate::from_der(&pem.contents)
        {
            info.cert_issuer_subject = STANDARD.encode(certificate.subject().as_raw());
            info.cert_issuer_public_key = STANDARD.encode(certificate.public_key().raw);
        }
        info
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::{NodeKey, create_cluster};
    use shoal_protocol::WallTime;

    #[test]
    fn the_issuer_is_read_from_the_root() {
        let (_, cluster) =
            create_cluster(&NodeKey::generate(), &Default::default(), WallTime(1_700_000_000_000_000_000)).unwrap();
        let info = TlsInfo::of(&cluster.root_pem);
        assert_eq!(info.trust_root, cluster.root_pem);
        let der = |text: &str| STANDARD.decode(text).unwrap();
        // A sequence, and Ed25519's identifier in it. Source: RFC 8410.
        assert_eq!(der(&info.cert_issuer_subject)[0], 0x30);
        assert_eq!(der(&info.cert_issuer_public_key)[..9], [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70]);
        assert_eq!(TlsInfo::of("nonsense"), TlsInfo { trust_root: "nonsense".into(), ..TlsInfo::default() });
    }
}
