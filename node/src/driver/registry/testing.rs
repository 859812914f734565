//! A registry for tests: on this machine, in the clear, saying what it is told to.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use sha2::{Digest, Sha256};
use shoal_protocol::registry_auth::RegistryAuth;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::{Registries, RegistryError, Resolved};
use crate::driver::embedded::images::hex;

/// What a registry does when it is asked for a path.
#[derive(Clone)]
pub(crate) enum Reply {
    /// Status, further headers, body.
    Plain(u16, String, Vec<u8>),
    /// A body that never ends.
    Endless,
}

/// A registry on this machine, in the clear, that says what it is told to, and what it was asked.
pub(crate) struct Fake {
    pub(crate) host: String,
    pub(crate) asked: Arc<Mutex<Vec<String>>>,
}

impl Fake {
    /// `replies` may name the registry's own address as `HOST`.
    pub(crate) async fn start(replies: impl IntoIterator<Item = (&str, Reply)>) -> Self {
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

    pub(crate) fn image(&self) -> String {
        format!("{}/a/b:1", self.host)
    }

    pub(crate) async fn resolve(&self, auth: Option<&RegistryAuth>) -> Result<Resolved, RegistryError> {
        Registries::new(Vec::new()).resolve(&self.image(), auth).await
    }

    pub(crate) fn authorizations(&self) -> Vec<String> {
        let asked = self.asked.lock().unwrap();
        let lines = asked.iter().flat_map(|request| request.lines());
        lines.filter_map(|line| line.strip_prefix("authorization: ")).map(str::to_owned).collect()
    }
}

pub(crate) fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(bytes)))
}

pub(crate) fn ok(body: &[u8]) -> Reply {
    Reply::Plain(200, "content-type: application/vnd.oci.image.manifest.v1+json\r\n".to_owned(), body.to_vec())
}
