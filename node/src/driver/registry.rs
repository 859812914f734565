//! A client of registries, by the OCI distribution specification 1.1 and Docker's ways where that is silent.
//!
//! A registry may say anything: every answer has a limit of size and time, what it hands out is believed only if its digest is
//! right, and what it knows its users by goes nowhere but to it and to the place where it has tokens made.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::stream::{self, BoxStream};
use http_body_util::Full;
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue, LOCATION, USER_AGENT, WWW_AUTHENTICATE};
use hyper::{Method, Request, StatusCode};
use rustls::ClientConfig;
use sha2::{Digest, Sha256};
use shoal_protocol::image::{HUB, Reference};
use shoal_protocol::registry_auth::RegistryAuth;
use tokio::sync::OnceCell;

use self::challenge::Challenge;
use self::connection::Answer;
pub use self::manifest::{Descriptor, Document, Manifest, PlatformName};
pub use self::place::Insecure;
use self::place::Place;
use self::silence::Silences;
use super::embedded::images::hex;

mod challenge;
mod connection;
mod manifest;
mod place;
mod silence;
mod tls;
mod token;

/// Bytes of a manifest, an index or a configuration; a larger one is refused.
pub const DOCUMENT_BYTES_MAX: u64 = 4 << 20;
/// Bytes of what a registry says beside a refusal; more is not read.
const REFUSAL_BYTES_MAX: u64 = 64 << 10;
/// How often an answer may send a question elsewhere.
const REDIRECTS_MAX: usize = 5;
/// What finding out an image's digest may take, from its first question to the last answer.
pub const RESOLVE_MAX: Duration = Duration::from_secs(30);
/// Where Docker Hub is.
const HUB_HOST: &str = "registry-1.docker.io";

/// Why a registry gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The name is none.
    #[error("invalid reference format: {0}")]
    Name(String),
    /// It does not let this user have it.
    #[error("{0}")]
    Denied(String),
    /// It has no such thing.
    #[error("{0}")]
    Missing(String),
    /// What it says makes no sense, or breaks a limit.
    #[error("{registry}: {reason}")]
    Invalid {
        /// Which registry.
        registry: String,
        /// What is wrong.
        reason: String,
    },
    /// It does not answer.
    #[error("failed to reach registry {registry}: {source}")]
    Unreachable {
        /// Which registry.
        registry: String,
        /// Why.
        source: io::Error,
    },
}

/// The way to all registries.
pub struct Registries {
    insecure: Vec<Insecure>,
    /// Certificates are read from disk once, when the first registry is asked.
    trusting: OnceCell<Arc<ClientConfig>>,
    silences: Silences,
}

/// What a registry says of a reference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// Where the reference leads.
    pub descriptor: Descriptor,
    /// For which platforms there are images.
    pub platforms: Vec<PlatformName>,
}

impl Registries {
    /// Returns the way to registries, of which these need not prove who they are.
    pub fn new(insecure: Vec<Insecure>) -> Self {
        Self { insecure, trusting: OnceCell::new(), silences: Silences::default() }
    }

    /// Opens the repository of a reference, for a user if there are credentials. Nothing is asked yet.
    pub fn repository(&self, reference: &Reference, auth: Option<&RegistryAuth>) -> Repository<'_> {
        let registry = reference.registry();
        let host = if registry == HUB { HUB_HOST } else { registry };
        Repository {
            registries: self,
            registry: registry.to_owned(),
            name: reference.repository(),
            place: Place::of_registry(host, &self.insecure),
            auth: auth.filter(|auth| !auth.is_empty() && auth.is_for(registry)).cloned(),
            authorization: None,
        }
    }

    /// Finds out where a reference leads, and for which platforms there are images.
    pub async fn resolve(&self, image: &str, auth: Option<&RegistryAuth>) -> Result<Resolved, RegistryError> {
        let reference = Reference::parse(image).ok_or_else(|| RegistryError::Name(image.to_owned()))?;
        let mut repository = self.repository(&reference, auth);
        let resolve = async {
            let (descriptor, document, _) = repository.manifest(reference.version()).await?;
            let platforms = match document {
                Document::Index(index) => index.manifests.into_iter().filter_map(|entry| entry.platform).collect(),
                Document::Manifest(manifest) => {
                    let config = repository.document(&manifest.config).await?;
                    serde_json::from_slice::<PlatformName>(&config).ok().into_iter().collect()
                }
            };
            let known = |platform: &PlatformName| platform.os != "unknown" && !platform.os.is_empty();
            Ok(Resolved { descriptor, platforms: Vec::into_iter(platforms).filter(known).collect() })
        };
        tokio::time::timeout(RESOLVE_MAX, resolve).await.unwrap_or_else(|_| {
            let (registry, source) = (reference.registry().to_owned(), io::ErrorKind::TimedOut.into());
            Err(RegistryError::Unreachable { registry, source })
        })
    }

    async fn trusting(&self) -> io::Result<Arc<ClientConfig>> {
        let read = || async { tokio::task::spawn_blocking(tls::trusting).await.map_err(io::Error::other)? };
        self.trusting.get_or_try_init(read).await.cloned()
    }
}

/// One repository of a registry, as one user sees it.
pub struct Repository<'a> {
    registries: &'a Registries,
    /// As names of images have it.
    registry: String,
    name: String,
    place: Place,
    auth: Option<RegistryAuth>,
    /// What the registry asked for last.
    authorization: Option<HeaderValue>,
}

/// A blob that is being received.
pub type Pieces<'a> = BoxStream<'a, Result<Bytes, RegistryError>>;

impl Repository<'_> {
    /// Fetches what a tag or digest names. Returns its bytes, too.
    pub async fn manifest(&mut self, version: &str) -> Result<(Descriptor, Document, Bytes), RegistryError> {
        let path = format!("/v2/{}/manifests/{version}", self.name);
        let answer = self.ask(&path, manifest::ACCEPTED).await?;
        let media_type = answer.header(CONTENT_TYPE).unwrap_or_default();
        let bytes = answer.whole(DOCUMENT_BYTES_MAX).await.map_err(|error| self.broken(error))?;
        let digest = format!("sha256:{}", hex(&Sha256::digest(&bytes)));
        if version.contains(':') && !version.eq_ignore_ascii_case(&digest) {
            return Err(self.invalid(format!("what it has as {version} does not match that digest")));
        }
        let (document, media_type) =
            manifest::read(&bytes, &media_type).map_err(|reason| self.invalid(format!("{version}: {reason}")))?;
        let descriptor = Descriptor { media_type, digest, size: bytes.len() as u64, platform: None };
        Ok((descriptor, document, bytes))
    }

    /// Fetches a small blob whole.
    pub async fn document(&mut self, descriptor: &Descriptor) -> Result<Bytes, RegistryError> {
        if descriptor.size > DOCUMENT_BYTES_MAX {
            let (digest, bytes) = (&descriptor.digest, descriptor.size);
            return Err(self.invalid(format!("{digest} of {bytes} bytes exceeds {DOCUMENT_BYTES_MAX} bytes")));
        }
        let mut bytes = Vec::new();
        let mut pieces = self.blob(descriptor).await?;
        while let Some(piece) = futures::StreamExt::next(&mut pieces).await {
            bytes.extend_from_slice(&piece?);
        }
        Ok(bytes.into())
    }

    /// Fetches a blob piece by piece. It ends in an error if it is not of the size and digest that it should be of; it never
    /// yields more bytes than that.
    pub async fn blob<'b>(&'b mut self, descriptor: &'b Descriptor) -> Result<Pieces<'b>, RegistryError> {
        let path = format!("/v2/{}/blobs/{}", self.name, descriptor.digest);
        let answer = self.ask(&path, "*/*").await?;
        let this = &*self;
        let start = (answer, Sha256::new(), 0u64, false);
        let pieces = stream::unfold(start, move |(mut answer, mut digest, mut received, ended)| async move {
            if ended {
                return None;
            }
            let piece = match answer.piece().await {
                Ok(Some(piece)) => piece,
                Ok(None) => {
                    let got = format!("sha256:{}", hex(&std::mem::take(&mut digest).finalize()));
                    let is_right = received == descriptor.size && got.eq_ignore_ascii_case(&descriptor.digest);
                    let text = format!("blob {} does not match its digest or size", descriptor.digest);
                    return (!is_right).then(|| (Err(this.invalid(text)), (answer, digest, received, true)));
                }
                Err(error) => return Some((Err(this.broken(error)), (answer, digest, received, true))),
            };
            received = received.saturating_add(piece.len() as u64);
            if received > descriptor.size {
                let text = format!("blob {} is larger than its {} bytes", descriptor.digest, descriptor.size);
                return Some((Err(this.invalid(text)), (answer, digest, received, true)));
            }
            digest.update(&piece);
            Some((Ok(piece), (answer, digest, received, false)))
        });
        Ok(Box::pin(pieces))
    }

    /// Asks for something until the registry is content with who asks.
    async fn ask(&mut self, path: &str, accept: &str) -> Result<Answer, RegistryError> {
        let (mut answer, place) = self.follow(path, accept).await?;
        // Another host that it sent the question to has no say in where the user's credentials go.
        if answer.status == StatusCode::UNAUTHORIZED && place.is_same(&self.place) {
            let challenges: Vec<String> = answer.headers(WWW_AUTHENTICATE);
            let reason = refusal(answer).await;
            self.authorization = Some(self.authorize(&challenges, &reason).await?);
            (answer, _) = self.follow(path, accept).await?;
        }
        let status = answer.status;
        if status == StatusCode::OK {
            return Ok(answer);
        }
        let reason = refusal(answer).await;
        Err(match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => self.denied(&reason),
            StatusCode::NOT_FOUND => {
                let said = if reason.is_empty() { "manifest unknown" } else { &reason };
                RegistryError::Missing(said.to_owned())
            }
            status => self.invalid(format!("unexpected status {status} for {path}: {reason}")),
        })
    }

    /// Finds out what to say to a registry that wants to know who asks.
    async fn authorize(&self, challenges: &[String], reason: &str) -> Result<HeaderValue, RegistryError> {
        let auth = self.auth.as_ref();
        match challenge::choose(challenges).map_err(|reason| self.invalid(reason))? {
            Challenge::Basic => match auth.filter(|auth| !auth.username.is_empty()) {
                Some(auth) => Ok(token::basic(auth)),
                None => Err(RegistryError::Denied(format!("{}: no basic auth credentials", self.registry))),
            },
            Challenge::Bearer { .. } if auth.is_some_and(|auth| !auth.registrytoken.is_empty()) => {
                let token = auth.map(|auth| auth.registrytoken.as_str()).unwrap_or_default();
                token::bearer(token).ok_or_else(|| self.denied("the token is malformed"))
            }
            Challenge::Bearer { realm, service, scope } => {
                let scope = scope.unwrap_or_else(|| format!("repository:{}:pull", self.name));
                let request = token::request(&realm, service.as_deref(), &scope, auth);
                let request = request.map_err(|reason| self.invalid(reason))?;
                let place = self.place.beside(request.uri()).map_err(|reason| self.invalid(reason))?;
                let answer = self.send(&place, request).await?;
                match answer.status {
                    StatusCode::OK => {}
                    StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST => {
                        let said = refusal(answer).await;
                        return Err(self.denied(if said.is_empty() { reason } else { &said }));
                    }
                    status => return Err(self.invalid(format!("{realm} answers {status}"))),
                }
                let bytes = answer.whole(token::TOKEN_BYTES_MAX).await.map_err(|error| self.broken(error))?;
                token::read(&bytes).ok_or_else(|| self.invalid(format!("{realm} gives no token that can be read")))
            }
        }
    }

    /// Asks for something where it is, and where that place sends the question. Returns who answered, too.
    async fn follow(&mut self, path: &str, accept: &str) -> Result<(Answer, Place), RegistryError> {
        let mut place = self.place.clone();
        let mut path = path.to_owned();
        for _ in 0..=REDIRECTS_MAX {
            let request = Request::builder().method(Method::GET).uri(&path).header(ACCEPT, accept);
            // Another host gets the question alone, not who asks.
            let known = self.authorization.clone().filter(|_| place.is_same(&self.place));
            let request = known.into_iter().fold(request, |request, value| request.header(AUTHORIZATION, value));
            let request = request.body(Full::default()).map_err(|error| self.invalid(error.to_string()))?;
            let answer = self.send(&place, request).await?;
            if !answer.status.is_redirection() {
                return Ok((answer, place));
            }
            let location = answer.header(LOCATION).unwrap_or_default();
            (place, path) = place.resolve(&location).map_err(|reason| self.invalid(reason))?;
        }
        Err(self.invalid(format!("it sends a question elsewhere more than {REDIRECTS_MAX} times")))
    }

    async fn send(&self, place: &Place, mut request: Request<Full<Bytes>>) -> Result<Answer, RegistryError> {
        let unreachable = |source| RegistryError::Unreachable { registry: place.to_string(), source };
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
        *request.uri_mut() = path.parse().map_err(|_| self.invalid(format!("the path {path} makes no sense")))?;
        let host = HeaderValue::try_from(place.authority()).map_err(|error| self.invalid(error.to_string()))?;
        request.headers_mut().insert(HOST, host);
        request
            .headers_mut()
            .insert(USER_AGENT, HeaderValue::from_static(concat!("shoal/", env!("CARGO_PKG_VERSION"))));
        let tls = match place {
            Place { is_trusted: true, .. } => None,
            Place { is_trusted: false, .. } => Some(self.registries.trusting().await.map_err(unreachable)?),
        };
        let (authority, began) = (place.authority(), Instant::now());
        self.registries.silences.check(&authority, began).map_err(unreachable)?;
        let stream = connection::connect(place, tls).await.map_err(|error| {
            self.registries.silences.note(&authority, &error, began, Instant::now());
            unreachable(error)
        })?;
        connection::exchange(stream, request).await.map_err(unreachable)
    }

    fn invalid(&self, reason: String) -> RegistryError {
        RegistryError::Invalid { registry: self.registry.clone(), reason }
    }

    fn broken(&self, source: io::Error) -> RegistryError {
        match source.kind() {
            io::ErrorKind::InvalidData => self.invalid(source.to_string()),
            _ => RegistryError::Unreachable { registry: self.registry.clone(), source },
        }
    }

    fn denied(&self, reason: &str) -> RegistryError {
        let said = if reason.is_empty() { "authentication required" } else { reason };
        let hint = match &self.auth {
            None => ": it may require credentials ('--with-registry-auth' sends those of 'docker login')",
            Some(_) => "",
        };
        RegistryError::Denied(format!("pull access denied for {}/{}: {said}{hint}", self.registry, self.name))
    }
}

/// Reads why a registry said no, as far as that can be read.
async fn refusal(answer: Answer) -> String {
    let bytes = answer.whole(REFUSAL_BYTES_MAX).await.unwrap_or_default();
    manifest::read_refusal(&bytes)
}

#[cfg(test)]
pub(super) mod testing;
#[cfg(test)]
mod tests;
