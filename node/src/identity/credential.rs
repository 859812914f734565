//! The root certificate and the credentials that it signs.
//!
//! Source: RFC 5280 for the format; the subject's parts are those of SwarmKit (CN node, OU role, O cluster), and the index of
//! the node's record as serialNumber.

use std::fmt;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ED25519, PublicKeyData, SerialNumber, SignatureAlgorithm,
};
use shoal_control::renewal::Validity;
use shoal_protocol::token::{Role, RoleGrant};
use shoal_protocol::{ClusterId, NodeId, WallTime};
use x509_parser::certificate::X509Certificate;
use x509_parser::oid_registry::{OID_SIG_ED25519, OID_X509_COMMON_NAME};
use x509_parser::oid_registry::{OID_X509_ORGANIZATION_NAME, OID_X509_ORGANIZATIONAL_UNIT, OID_X509_SERIALNUMBER, Oid};
use x509_parser::prelude::FromDer;

use super::{IdentityError, random};

/// Years that a root is valid.
const ROOT_YEARS: u64 = 20;

/// Clocks of two nodes may differ by this much: certificates begin that long before they are made.
const SKEW: Duration = Duration::from_secs(3600);

/// Bytes of a certificate at most; longer ones are refused unread.
pub(crate) const CERTIFICATE_BYTES_MAX: usize = 4096;

/// The type of the subject's part with the index of the node's record: `serialNumber`.
const SERIAL_NUMBER: [u64; 4] = [2, 5, 4, 5];

const MANAGER_UNIT: &str = "swarm-manager";
const WORKER_UNIT: &str = "swarm-worker";
const DAY: Duration = Duration::from_secs(86_400);

/// Why a credential does not make its bearer a member.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CredentialError {
    /// It is no certificate, or not one of the shape that this cluster issues.
    #[error("the credential is malformed: {0}")]
    Malformed(&'static str),
    /// It belongs to a node of another cluster.
    #[error("the credential is for another cluster")]
    WrongCluster,
    /// The cluster's root did not sign it.
    #[error("the credential was not issued by this cluster")]
    NotIssuedHere,
    /// It was issued to another node than the one that shows it.
    #[error("the credential belongs to another node")]
    WrongNode,
    /// Its time is over; the node needs a new one, by a join token if no manager renews it.
    #[error("the credential expired at {}; join again with a token", .0.expires)]
    Expired(Validity),
    /// Its time has not come: one of the two clocks is wrong.
    #[error("the credential is valid from {0} only: check the clocks")]
    NotYetValid(WallTime),
}

/// What a verified credential says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Credential {
    /// Its bearer.
    pub node: NodeId,
    /// Of which cluster.
    pub cluster: ClusterId,
    /// What the bearer may do.
    pub granted: RoleGrant,
    /// Since when and until when.
    pub valid: Validity,
}

/// A cluster's root certificate: what all its members trust. It is public.
#[derive(Clone, PartialEq, Eq)]
pub struct Root {
    der: Vec<u8>,
    pem: String,
    cluster: ClusterId,
    edition: u64,
}

impl Root {
    /// Makes the self-signed root of a new cluster, which it defines, and returns it with its key (PKCS #8, DER).
    pub(super) fn generate(now: WallTime) -> Result<(Self, Vec<u8>), IdentityError> {
        Self::make(None, now)
    }

    /// Makes a later root of a cluster and returns it with its key. Its subject names cluster (O) and edition (serialNumber).
    pub(super) fn next(cluster: ClusterId, edition: u64, now: WallTime) -> Result<(Self, Vec<u8>), IdentityError> {
        Self::make(Some((cluster, edition)), now)
    }

    fn make(of: Option<(ClusterId, u64)>, now: WallTime) -> Result<(Self, Vec<u8>), IdentityError> {
        let key = KeyPair::generate_for(&PKCS_ED25519).map_err(signing)?;
        let mut params = params(now, DAY * 365 * ROOT_YEARS as u32)?;
        params.distinguished_name.push(DnType::CommonName, "shoal root");
        if let Some((cluster, edition)) = of {
            params.distinguished_name.push(DnType::OrganizationName, cluster.to_string());
            params.distinguished_name.push(DnType::CustomDnType(SERIAL_NUMBER.to_vec()), edition.to_string());
        }
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let certificate = params.self_signed(&key).map_err(signing)?;
        let der = certificate.der().to_vec();
        let (cluster, edition) = of.unwrap_or_else(|| (ClusterId::from_root(&der), 1));
        Ok((Self { der, pem: certificate.pem(), cluster, edition }, key.serialize_der()))
    }

    /// Reads a root as a peer or a disk gave it.
    pub fn from_pem(text: &str) -> Result<Self, IdentityError> {
        let bad = |reason: &str| IdentityError::BadRoot(reason.to_owned());
        if text.len() > 2 * CERTIFICATE_BYTES_MAX {
            return Err(bad("too long"));
        }
        let (_, pem) = x509_parser::pem::parse_x509_pem(text.as_bytes()).map_err(|error| bad(&error.to_string()))?;
        let certificate = parse(&pem.contents).ok_or_else(|| bad("not an X.509 certificate"))?;
        if !certificate.is_ca() {
            return Err(bad("not a CA"));
        }
        certificate.verify_signature(None).map_err(|_| bad("not signed by itself"))?;
        let (cluster, edition) = match certificate.subject().iter_organization().next() {
            None => (ClusterId::from_root(&pem.contents), 1),
            Some(_) => named(&certificate).ok_or_else(|| bad("its subject names no cluster and edition"))?,
        };
        Ok(Self { der: pem.contents, pem: text.to_owned(), cluster, edition })
    }

    /// Returns the certificate in DER.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// Returns the certificate in PEM.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// Returns the cluster. A root that is no cluster's first one only claims to belong to it: it has to come from somebody who
    /// is believed, or fit a join token.
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// Returns which of the cluster's roots this is, from 1.
    pub fn edition(&self) -> u64 {
        self.edition
    }

    /// Issues a credential for a node's key, signed with the root's key (PKCS #8, DER).
    pub(super) fn issue(
        &self,
        root_key: &[u8],
        public_key: &[u8; 32],
        granted: RoleGrant,
        (now, lifetime): (WallTime, Duration),
    ) -> Result<Vec<u8>, IdentityError> {
        let key = KeyPair::try_from(root_key).map_err(signing)?;
        let issuer = Issuer::from_ca_cert_der(&self.der.as_slice().into(), key).map_err(signing)?;
        let mut params = params(now, lifetime)?;
        let unit = match granted.role {
            Role::Manager => MANAGER_UNIT,
            Role::Worker => WORKER_UNIT,
        };
        params.distinguished_name.push(DnType::CommonName, NodeId::from_public_key(public_key).to_string());
        params.distinguished_name.push(DnType::OrganizationalUnitName, unit);
        params.distinguished_name.push(DnType::OrganizationName, self.cluster().to_string());
        params.distinguished_name.push(DnType::CustomDnType(SERIAL_NUMBER.to_vec()), granted.index.to_string());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let certificate = params.signed_by(&RawKey(*public_key), &issuer).map_err(signing)?;
        Ok(certificate.der().to_vec())
    }

    /// Verifies that `credential` makes the owner of `public_key` a member of this cluster at the time `now`.
    pub fn verify(
        &self,
        credential: &[u8],
        public_key: &[u8; 32],
        now: WallTime,
    ) -> Result<Credential, CredentialError> {
        let root = parse(&self.der).ok_or(CredentialError::Malformed("the root is no certificate"))?;
        self.read(credential, public_key, Some(&root), now)
    }

    /// Reads what a credential of this cluster says that a root signed which is not known. Its edition is 0.
    pub(super) fn read_unverified(
        &self,
        credential: &[u8],
        public_key: &[u8; 32],
        now: WallTime,
    ) -> Result<Credential, CredentialError> {
        self.read(credential, public_key, None, now)
    }

    fn read(
        &self,
        credential: &[u8],
        public_key: &[u8; 32],
        root: Option<&X509Certificate<'_>>,
        now: WallTime,
    ) -> Result<Credential, CredentialError> {
        use CredentialError::Malformed;
        if credential.len() > CERTIFICATE_BYTES_MAX {
            return Err(Malformed("too long"));
        }
        let certificate = parse(credential).ok_or(Malformed("not an X.509 certificate"))?;
        if subject(&certificate, &OID_X509_ORGANIZATION_NAME)? != self.cluster().to_string() {
            return Err(CredentialError::WrongCluster);
        }
        let is_signed_by = |root: &X509Certificate<'_>| {
            certificate.signature_algorithm.algorithm == OID_SIG_ED25519
                && certificate.signature_value.unused_bits == 0
                && certificate.issuer() == root.subject()
                && certificate.verify_signature(Some(root.public_key())).is_ok()
        };
        if root.is_some_and(|root| !is_signed_by(root)) {
            return Err(CredentialError::NotIssuedHere);
        }
        if certificate.is_ca() {
            return Err(Malformed("a CA is no node"));
        }
        let node = NodeId::from_public_key(public_key);
        if certificate.public_key().subject_public_key.data.as_ref() != public_key
            || subject(&certificate, &OID_X509_COMMON_NAME)? != node.to_string()
        {
            return Err(CredentialError::WrongNode);
        }
        let role = match subject(&certificate, &OID_X509_ORGANIZATIONAL_UNIT)? {
            MANAGER_UNIT => Role::Manager,
            WORKER_UNIT => Role::Worker,
            _ => return Err(Malformed("unknown role")),
        };
        let index = subject(&certificate, &OID_X509_SERIALNUMBER)?;
        let index = index.parse().map_err(|_| Malformed("its record's index is no number"))?;
        let granted = RoleGrant { role, index, edition: if root.is_some() { self.edition } else { 0 } };
        let starts = wall(certificate.validity().not_before.timestamp());
        let expires = wall(certificate.validity().not_after.timestamp());
        let skew = u64::try_from(SKEW.as_nanos()).unwrap_or(u64::MAX);
        let valid = Validity { made: WallTime(starts.0.saturating_add(skew)), expires };
        match now {
            _ if now < starts => Err(CredentialError::NotYetValid(starts)),
            _ if now >= valid.expires => Err(CredentialError::Expired(valid)),
            _ => Ok(Credential { node, cluster: self.cluster(), granted, valid }),
        }
    }
}

impl fmt::Debug for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Root({})", self.cluster())
    }
}

/// A node's public key as rcgen wants it.
struct RawKey([u8; 32]);

impl PublicKeyData for RawKey {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ED25519
    }
}

fn params(now: WallTime, lifetime: Duration) -> Result<CertificateParams, IdentityError> {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let now = Duration::from_secs(now.0 / 1_000_000_000);
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.not_before = epoch + now.saturating_sub(SKEW);
    params.not_after = epoch + now + lifetime;
    // The highest bit is cleared, so that the number is positive in DER.
    let mut serial = random::<16>()?;
    serial[0] &= 0x7f;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    Ok(params)
}

/// Parses one whole certificate; bytes after its end are refused.
fn parse(der: &[u8]) -> Option<X509Certificate<'_>> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Some(certificate),
        _ => None,
    }
}

/// Returns what the subject of a later root names: its cluster and its edition.
fn named(root: &X509Certificate<'_>) -> Option<(ClusterId, u64)> {
    let cluster = subject(root, &OID_X509_ORGANIZATION_NAME).ok()?.parse().ok()?;
    let edition = subject(root, &OID_X509_SERIALNUMBER).ok()?.parse().ok()?;
    (edition > 1).then_some((cluster, edition))
}

/// Returns the one subject attribute of a kind; more or less than one is malformed.
fn subject<'a>(certificate: &'a X509Certificate<'_>, kind: &Oid<'a>) -> Result<&'a str, CredentialError> {
    let mut values = certificate.subject().iter_by_oid(kind);
    match (values.next().and_then(|value| value.as_str().ok()), values.next()) {
        (Some(value), None) => Ok(value),
        _ => Err(CredentialError::Malformed("its subject lacks a part")),
    }
}

fn wall(secs: i64) -> WallTime {
    WallTime(u64::try_from(secs).unwrap_or(0).saturating_mul(1_000_000_000))
}

fn signing(source: rcgen::Error) -> IdentityError {
    IdentityError::Signing { source }
}
