//! The way out of an error: the name that was probably meant.

use crate::client::Client;
use crate::error::CliError;
use crate::model::{Node, Service};

/// Letters by which a name may differ from the one that was meant.
const DISTANCE_MAX: usize = 2;
/// Letters of a name that is compared at most; longer ones are nobody's slip of the finger.
const NAME_CHARS_MAX: usize = 64;

/// What a name was taken for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Service,
    Node,
}

/// Returns a line that names what was probably meant, if an error says that something does not exist.
///
/// Asks the daemon for names; whatever goes wrong, there is just no hint.
pub(crate) async fn find(client: &Client, error: &CliError) -> Option<String> {
    let text = error.to_string();
    let (kind, name) = missing(&text)?;
    let names: Vec<String> = match kind {
        Kind::Service => {
            let services: Vec<Service> = client.get("/services").await.ok()?;
            services.into_iter().map(|service| service.spec.name).collect()
        }
        Kind::Node => {
            let nodes: Vec<Node> = client.get("/nodes").await.ok()?;
            nodes.into_iter().map(|node| node.description.hostname).collect()
        }
    };
    closest(name, &names).map(|meant| format!("Did you mean '{meant}'?"))
}

/// Reads what does not exist out of the words of the daemon and of the commands.
fn missing(text: &str) -> Option<(Kind, &str)> {
    if let Some((_, name)) =
        text.rsplit_once("no such service: ").or_else(|| text.rsplit_once("no such task or service: "))
    {
        return Some((Kind::Service, name));
    }
    let text = text.strip_suffix(" not found")?;
    let behind = |word: &str| text.rsplit_once(word).map(|(_, name)| name).filter(|name| !name.contains(' '));
    behind(": service ").map(|name| (Kind::Service, name)).or_else(|| behind(": node ").map(|name| (Kind::Node, name)))
}

/// Returns the name that is most like `name`, if one is like it at all.
fn closest<'a>(name: &str, names: &'a [String]) -> Option<&'a str> {
    let near = |other: &&String| distance(name, other) <= DISTANCE_MAX.min(other.chars().count() / 2);
    names.iter().filter(near).min_by_key(|other| (distance(name, other), *other)).map(String::as_str)
}

/// Counts the letters to insert, remove, replace or swap with their neighbour.
///
/// Source: the optimal string alignment distance.
fn distance(one: &str, other: &str) -> usize {
    let one: Vec<char> = one.chars().take(NAME_CHARS_MAX).collect();
    let other: Vec<char> = other.chars().take(NAME_CHARS_MAX).collect();
    let (mut before, mut row) = (Vec::new(), (0..=other.len()).collect::<Vec<usize>>());
    for (i, left) in one.iter().enumerate() {
        let mut next = vec![i + 1];
        for (j, right) in other.iter().enumerate() {
            let mut least = (row[j] + usize::from(left != right)).min(row[j + 1] + 1).min(next[j] + 1);
            if i > 0 && j > 0 && *left == other[j - 1] && one[i - 1] == *right {
                least = least.min(before[j - 1] + 1);
            }
            next.push(least);
        }
        before = std::mem::replace(&mut row, next);
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_read_from_the_error() {
        for (text, want) in [
            ("Error response from daemon: service wbe not found", Some((Kind::Service, "wbe"))),
            ("db: Error response from daemon: service wbe not found", Some((Kind::Service, "wbe"))),
            ("Error response from daemon: node n-1 not found", Some((Kind::Node, "n-1"))),
            ("no such service: wbe", Some((Kind::Service, "wbe"))),
            ("no such task or service: wbe", Some((Kind::Service, "wbe"))),
            ("Error response from daemon: no suitable node was not found", None),
            ("Error response from daemon: invalid filter 'foo'", None),
        ] {
            assert_eq!(missing(text), want, "{text}");
        }
    }

    #[test]
    fn the_name_that_is_nearest_is_meant() {
        let names = ["web", "webs", "database", "n"].map(str::to_owned);
        for (name, want) in [
            ("wbe", Some("web")),
            ("databse", Some("database")),
            ("wens", Some("webs")),
            ("x", None),
            ("cache", None),
            ("", None),
        ] {
            assert_eq!(closest(name, &names), want, "{name}");
        }
        assert_eq!([distance("", "abc"), distance("abc", "abc"), distance("kitten", "sitting")], [3, 0, 3]);
    }
}
