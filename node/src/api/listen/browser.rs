//! Keeps web pages out of the API's plain TCP port: a browser on this machine reaches it for any page that it shows.

use std::net::IpAddr;

use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::api::ApiError;

/// Lets a request through if no web page of somebody else can have sent it.
pub(super) async fn refuse(request: Request, next: Next) -> Response {
    match check(request.headers()) {
        Ok(()) => next.run(request).await,
        Err(reason) => ApiError::new(StatusCode::FORBIDDEN, reason).into_response(),
    }
}

/// A page may name this machine by a name of its own (DNS rebinding), or send requests to another place than it came from,
/// which browsers then say. Docker's clients do neither.
fn check(headers: &HeaderMap) -> Result<(), &'static str> {
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    let host = text(header::HOST).unwrap_or("localhost");
    if !is_this_machine(host) {
        return Err("without TLS the API answers to localhost and to IP addresses only, not to other names");
    }
    match text(header::ORIGIN) {
        Some(origin) if origin.strip_prefix("http://") != Some(host) => {
            Err("without TLS the API takes no requests of web pages")
        }
        _ => Ok(()),
    }
}

/// Whether the name in a Host header is no name that somebody could point at this machine.
fn is_this_machine(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name.is_empty() || name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn web_pages_are_kept_out_and_clients_are_not() {
        for (host, origin, want) in [
            (None, None, true),
            (Some("localhost:2375"), None, true),
            (Some("127.0.0.1:2375"), None, true),
            (Some("[::1]:2375"), None, true),
            (Some("127.0.0.1:2375"), Some("http://127.0.0.1:2375"), true),
            (Some("127.0.0.1:2375"), Some("http://127.0.0.1:80"), false),
            (Some("127.0.0.1:2375"), Some("https://evil.example"), false),
            (Some("127.0.0.1:2375"), Some("null"), false),
            (Some("evil.example:2375"), None, false),
            (Some("localhost.evil.example"), None, false),
        ] {
            let mut headers = HeaderMap::new();
            for (name, value) in [(header::HOST, host), (header::ORIGIN, origin)] {
                value.map(|value| headers.insert(name, value.parse().unwrap()));
            }
            assert_eq!(check(&headers).is_ok(), want, "{host:?} {origin:?}");
        }
    }
}
