//! Tokens, names and passwords. Source: Docker, "Token authentication" and "OAuth2 token authentication". Pure.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request};
use serde::Deserialize;
use shoal_protocol::registry_auth::RegistryAuth;
use zeroize::Zeroizing;

/// Bytes of an answer that holds a token; a larger one is refused.
pub(super) const TOKEN_BYTES_MAX: u64 = 256 << 10;
/// Who asks, where OAuth2 wants to know.
const CLIENT: &str = "shoal";

/// Returns a name and a password as a header.
pub(super) fn basic(auth: &RegistryAuth) -> HeaderValue {
    let plain = Zeroizing::new(format!("{}:{}", auth.username, auth.password));
    let text = Zeroizing::new(format!("Basic {}", STANDARD.encode(plain.as_bytes())));
    secret(&text).unwrap_or_else(|| HeaderValue::from_static("Basic Og=="))
}

/// Returns a token as a header, if it is one.
pub(super) fn bearer(token: &str) -> Option<HeaderValue> {
    if token.is_empty() {
        return None;
    }
    secret(&format!("Bearer {token}"))
}

fn secret(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Makes the request for a token. The error says what is wrong with where it should go.
pub(super) fn request(
    realm: &str,
    service: Option<&str>,
    scope: &str,
    auth: Option<&RegistryAuth>,
) -> Result<Request<Full<Bytes>>, String> {
    let mut fields = vec![("scope", scope)];
    fields.extend(service.map(|service| ("service", service)));
    let malformed = |_| format!("it has tokens made at '{realm}', which makes no sense");
    let request = Request::builder().header(ACCEPT, "application/json");
    if let Some(auth) = auth.filter(|auth| !auth.identitytoken.is_empty()) {
        let form = [("grant_type", "refresh_token"), ("refresh_token", &*auth.identitytoken), ("client_id", CLIENT)];
        fields.extend(form);
        let request = request.method(Method::POST).uri(realm).header(CONTENT_TYPE, "application/x-www-form-urlencoded");
        return request.body(Full::new(form_encoded(&fields).into())).map_err(malformed);
    }
    let request = match auth.filter(|auth| !auth.username.is_empty()) {
        Some(auth) => {
            fields.extend([("account", &*auth.username), ("client_id", CLIENT)]);
            request.header(AUTHORIZATION, basic(auth))
        }
        None => request,
    };
    let mark = if realm.contains('?') { '&' } else { '?' };
    request.uri(format!("{realm}{mark}{}", form_encoded(&fields))).body(Full::default()).map_err(malformed)
}

fn form_encoded(fields: &[(&str, &str)]) -> String {
    let escaped = |text: &str| -> String {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
        let byte = |byte: u8| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
        text.bytes().map(byte).collect()
    };
    let fields: Vec<String> = fields.iter().map(|(name, value)| format!("{name}={}", escaped(value))).collect();
    fields.join("&")
}

/// Reads the token of an answer.
pub(super) fn read(bytes: &[u8]) -> Option<HeaderValue> {
    #[derive(Deserialize, Default)]
    #[serde(default)]
    struct Answer {
        token: Option<String>,
        access_token: Option<String>,
    }
    let answer: Answer = serde_json::from_slice(bytes).ok()?;
    let token = answer.token.filter(|token| !token.is_empty()).or(answer.access_token)?;
    bearer(&Zeroizing::new(token))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn auth(change: impl FnOnce(&mut RegistryAuth)) -> RegistryAuth {
        let mut auth = RegistryAuth::default();
        change(&mut auth);
        auth
    }

    #[test]
    fn tokens_are_asked_for_as_docker_does() {
        let scope = "repository:a/b:pull";
        let anonymous = request("https://auth/token", Some("s r"), scope, None).unwrap();
        assert_eq!(*anonymous.uri(), "https://auth/token?scope=repository%3Aa%2Fb%3Apull&service=s%20r");
        assert!(!anonymous.headers().contains_key(AUTHORIZATION));
        let user = auth(|auth| (auth.username, auth.password) = ("u".to_owned(), "p".to_owned()));
        let known = request("https://auth/token?x=y", None, "s", Some(&user)).unwrap();
        assert_eq!(*known.uri(), "https://auth/token?x=y&scope=s&account=u&client_id=shoal");
        assert_eq!(known.headers()[AUTHORIZATION], "Basic dTpw");
        assert!(known.headers()[AUTHORIZATION].is_sensitive());
        let holder = auth(|auth| auth.identitytoken = "t&".to_owned());
        let refreshed = request("https://auth/token", None, "s", Some(&holder)).unwrap();
        assert_eq!((refreshed.method(), refreshed.uri().query()), (&Method::POST, None));
        assert!(request("not a place", None, "s", None).is_err());
    }

    #[test]
    fn tokens_are_read() {
        for (answer, want) in [
            (r#"{"token":"a"}"#, Some("Bearer a")),
            (r#"{"access_token":"b","expires_in":60}"#, Some("Bearer b")),
            (r#"{"token":"","access_token":"b"}"#, Some("Bearer b")),
            (r#"{"token":"a\r\nx-evil: 1"}"#, None),
            (r#"{"token":1}"#, None),
            ("{}", None),
            ("", None),
        ] {
            let got = read(answer.as_bytes());
            assert_eq!(got.as_ref().and_then(|value| value.to_str().ok()), want, "{answer}");
        }
    }
}
