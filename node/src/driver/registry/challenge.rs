//! What a registry answers to whom it does not know. Source: RFC 9110, section 11; Docker, "Token authentication". Pure.

/// Characters of a challenge that are looked at; a longer one is refused.
const CHALLENGE_CHARS_MAX: usize = 8 * 1024;

/// How a registry wants to be told who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    /// By name and password.
    Basic,
    /// By a token.
    Bearer {
        /// Where tokens are made.
        realm: String,
        /// For whom.
        service: Option<String>,
        /// For what.
        scope: Option<String>,
    },
}

/// Chooses among the challenges of an answer: a token before a password. The error says why there is none.
pub(super) fn choose(headers: &[String]) -> Result<Challenge, String> {
    let challenges: Vec<Challenge> = headers.iter().filter_map(|header| parse(header)).collect();
    let bearer = challenges.iter().find(|challenge| matches!(challenge, Challenge::Bearer { .. }));
    bearer
        .or(challenges.first())
        .cloned()
        .ok_or_else(|| "it wants to know who asks in a way that is not supported: neither Bearer nor Basic".to_owned())
}

/// Reads one header: a scheme, and parameters `NAME=VALUE` or `NAME="VALUE"` with commas between.
fn parse(header: &str) -> Option<Challenge> {
    if header.len() > CHALLENGE_CHARS_MAX {
        return None;
    }
    let (scheme, rest) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
    if scheme.eq_ignore_ascii_case("basic") {
        return Some(Challenge::Basic);
    }
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let (mut realm, mut service, mut scope) = (None, None, None);
    let mut rest = rest.trim_start();
    while !rest.is_empty() {
        let (name, after) = rest.split_once('=')?;
        let (value, after) = value(after.trim_start())?;
        match name.trim().to_ascii_lowercase().as_str() {
            "realm" => realm = Some(value),
            "service" => service = Some(value),
            "scope" => scope = Some(value),
            _ => {}
        }
        rest = after.trim_start().trim_start_matches(',').trim_start();
    }
    Some(Challenge::Bearer { realm: realm?, service, scope })
}

/// Reads a value and returns what follows it.
fn value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ']).unwrap_or(text.len());
        return Some((text[..end].to_owned(), &text[end..]));
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, char)) = chars.next() {
        match char {
            '"' => return Some((value, &quoted[at + 1..])),
            '\\' => value.push(chars.next()?.1),
            char => value.push(char),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read_and_nonsense_is_refused() {
        let bearer = |realm: &str, service: Option<&str>, scope: Option<&str>| {
            let owned = |text: Option<&str>| text.map(str::to_owned);
            Some(Challenge::Bearer { realm: realm.to_owned(), service: owned(service), scope: owned(scope) })
        };
        let long = format!("Bearer realm=\"{}\"", "a".repeat(CHALLENGE_CHARS_MAX));
        for (headers, want) in [
            (&["Basic realm=\"x\""][..], Some(Challenge::Basic)),
            (&["basic"], Some(Challenge::Basic)),
            (
                &[
                    r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#,
                ],
                bearer("https://auth.docker.io/token", Some("registry.docker.io"), Some("repository:a/b:pull,push")),
            ),
            (&["Basic realm=x", "Bearer realm=y, error=z"], bearer("y", None, None)),
            (&[r#"bearer  realm="a\"b" , scope=c"#], bearer("a\"b", None, Some("c"))),
            (&["Bearer service=\"x\""], None),
            (&["Bearer realm=\"unended"], None),
            (&["Bearer realm"], None),
            (&["Negotiate"], None),
            (&[&long], None),
            (&[""], None),
            (&[], None),
        ] {
            let headers: Vec<String> = headers.iter().map(|header| (*header).to_owned()).collect();
            assert_eq!(choose(&headers).ok(), want, "{headers:?}");
        }
    }
}
