//! Query parameters in Docker's notation.

use serde_json::Value;

use super::ApiError;

/// Reads a switch as Docker does: empty, `0`, `no`, `false` and `none` are off, everything else is on.
pub(super) fn is_on(value: Option<&str>) -> bool {
    let value = value.unwrap_or_default().trim().to_ascii_lowercase();
    !matches!(value.as_str(), "" | "0" | "no" | "false" | "none")
}

/// Reads `version=` of an update.
pub(super) fn version(kind: &str, value: Option<&str>) -> Result<u64, ApiError> {
    let value = value.unwrap_or_default();
    value.parse().map_err(|_| {
        ApiError::invalid(format!(
            "invalid {kind} version '{value}': strconv.ParseUint: parsing \"{value}\": invalid syntax"
        ))
    })
}

/// Reads a body that must be a JSON object, and gives it back as it was sent.
pub(super) fn object(body: &str) -> Result<(&str, Value), ApiError> {
    let value: Value =
        serde_json::from_str(body).map_err(|error| ApiError::invalid(format!("invalid JSON: {error}")))?;
    if value.is_object() { Ok((body, value)) } else { Err(ApiError::invalid("invalid JSON: expected an object")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_read_as_docker_reads_them() {
        for (value, on) in [
            (None, false),
            (Some(""), false),
            (Some("0"), false),
            (Some("False"), false),
            (Some("1"), true),
            (Some("true"), true),
        ] {
            assert_eq!(is_on(value), on, "{value:?}");
        }
        assert_eq!(version("service", Some("12")), Ok(12));
        assert_eq!(
            version("service", None).unwrap_err().message,
            "invalid service version '': strconv.ParseUint: parsing \"\": invalid syntax"
        );
        assert!(object("[]").is_err() && object("").is_err() && object("{}").is_ok());
    }
}
