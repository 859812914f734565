//! Registries: what they say of an image, and what they know a user by. Source: Docker Engine API v1.50, `DistributionInspect`,
//! "Authentication".

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use base64::Engine;
use base64::alphabet::URL_SAFE;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use serde_json::{Value, json};
use shoal_protocol::ServiceId;
use shoal_protocol::object::Sealed;
use shoal_protocol::registry_auth::{HEADER_CHARS_MAX, RegistryAuth};
use zeroize::Zeroizing;

use super::{Api, ApiError};
use crate::driver::registry::RegistryError;
use crate::identity::Purpose;

/// The header that credentials come in.
const HEADER: &str = "x-registry-auth";

/// Clients differ in whether they fill the last group up.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Reads the credentials of a request; `None` if it came with none.
pub(super) fn credentials(headers: &HeaderMap) -> Result<Option<RegistryAuth>, ApiError> {
    let Some(value) = headers.get(HEADER).filter(|value| !value.is_empty()) else { return Ok(None) };
    if value.len() > HEADER_CHARS_MAX {
        let chars = value.len();
        let text = format!("X-Registry-Auth of {chars} characters is larger than the limit of {HEADER_CHARS_MAX}");
        return Err(ApiError::invalid(text));
    }
    // What is in it is not repeated: it may be shown somewhere.
    let malformed = || ApiError::invalid("invalid X-Registry-Auth header: expected JSON in base64 for URLs");
    let text: Vec<u8> = value
        .as_bytes()
        .iter()
        .map(|byte| match byte {
            b'+' => b'-',
            b'/' => b'_',
            other => *other,
        })
        .collect();
    let json = Zeroizing::new(BASE64.decode(Zeroizing::new(text).as_slice()).map_err(|_| malformed())?);
    serde_json::from_slice(&json).map(Some).map_err(|_| malformed())
}

impl Api {
    /// Seals the credentials of a service; `None` if there is nothing in them.
    pub(super) async fn seal(&self, id: ServiceId, auth: &RegistryAuth) -> Result<Option<Sealed>, ApiError> {
        if auth.is_empty() {
            return Ok(None);
        }
        let json = serde_json::to_vec(auth).map_err(|error| ApiError::internal(error.to_string()))?;
        Ok(Some(self.backend.seal(Purpose::Credentials(id), Zeroizing::new(json)).await?))
    }
}

/// `GET /distribution/{name}/json`.
pub(super) async fn distribution(
    State(api): State<Api>,
    Path(path): Path<String>,
    headers: HeaderMap,
) -> Result<Json<Value>, ApiError> {
    let Some(name) = path.strip_suffix("/json") else {
        return Err(ApiError::unsupported(&format!("this question to a registry (GET /distribution/{path})")));
    };
    let auth = credentials(&headers)?;
    let resolved = api.backend.inventory().await?.resolve(name, auth.as_ref()).await?;
    let descriptor = resolved.descriptor;
    Ok(Json(json!({
        "Descriptor": {"mediaType": descriptor.media_type, "digest": descriptor.digest, "size": descriptor.size},
        "Platforms": resolved.platforms,
    })))
}

impl From<RegistryError> for ApiError {
    fn from(error: RegistryError) -> Self {
        let status = match &error {
            RegistryError::Name(_) => StatusCode::BAD_REQUEST,
            RegistryError::Denied(_) => StatusCode::UNAUTHORIZED,
            RegistryError::Missing(_) => StatusCode::NOT_FOUND,
            RegistryError::Invalid { .. } | RegistryError::Unreachable { .. } => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_read_and_never_repeated() {
        let read = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(HEADER, value.parse().unwrap());
            credentials(&headers)
        };
        assert_eq!(credentials(&HeaderMap::new()), Ok(None));
        assert_eq!(read(""), Ok(None));
        assert!(read("e30=").unwrap().unwrap().is_empty());
        let json = r#"{"username":"u??>","password":"hidden"}"#;
        for engine in [
            &base64::engine::general_purpose::URL_SAFE,
            &base64::engine::general_purpose::URL_SAFE_NO_PAD,
            &base64::engine::general_purpose::STANDARD,
        ] {
            assert_eq!(&*read(&engine.encode(json)).unwrap().unwrap().username, "u??>");
        }
        let long = "a".repeat(HEADER_CHARS_MAX + 1);
        for value in ["hidden", "####", "MQ==", &long] {
            let refused = read(value).unwrap_err();
            assert!(refused.status == 400 && !refused.message.contains("hidden"), "{}", refused.message);
        }
    }
}
