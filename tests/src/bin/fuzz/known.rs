//! What there is on the node at the moment, so that requests are about something.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Result;
use serde_json::Value;
use shoal_tests::http;

/// How long a list may take.
const WAIT: Duration = Duration::from_secs(60);

/// Where identifiers come from: what stands for one, the list, and the field.
const LISTS: [(&str, &str, &str); 8] = [
    ("<service>", "services", "ID"),
    ("<task>", "tasks", "ID"),
    ("<node>", "nodes", "ID"),
    ("<secret>", "secrets", "ID"),
    ("<config>", "configs", "ID"),
    ("<network>", "networks", "Id"),
    ("<container>", "containers/json?all=1", "Id"),
    ("<image>", "images/json", "Id"),
];

/// Identifiers and versions.
#[derive(Debug, Default)]
pub struct Known {
    identifiers: BTreeMap<&'static str, Vec<String>>,
    /// By path, such as `/services/web`.
    versions: BTreeMap<String, u64>,
}

impl Known {
    /// Asks for everything. What cannot be listed now is not known now.
    pub fn ask(socket: &Path) -> Self {
        let mut known = Self::default();
        for (stands_for, list, field) in LISTS {
            let objects = get(socket, &format!("/{list}")).unwrap_or_default();
            let objects = objects.as_array().cloned().unwrap_or_default();
            let ids = objects.iter().filter_map(|object| Some(object[field].as_str()?.to_owned()));
            known.identifiers.insert(stands_for, ids.collect());
            for object in &objects {
                let (Some(name), Some(version)) =
                    (object["Spec"]["Name"].as_str(), object["Version"]["Index"].as_u64())
                else {
                    continue;
                };
                known.versions.insert(format!("/{list}/{name}"), version);
            }
            if let ("nodes", Some(version)) = (list, objects.first().and_then(|node| node["Version"]["Index"].as_u64()))
            {
                known.versions.insert("/nodes/self".to_owned(), version);
            }
        }
        let swarm = get(socket, "/swarm").unwrap_or_default();
        known.versions.extend(swarm["Version"]["Index"].as_u64().map(|version| ("/swarm".to_owned(), version)));
        known
    }

    /// Puts identifiers, and the version of the object at `path`, where something stands for them.
    pub fn fill(&self, text: &str, path: &str, choice: usize) -> String {
        let mut text = text.to_owned();
        for (stands_for, ..) in LISTS {
            if text.contains(stands_for) {
                let ids = self.identifiers.get(stands_for).filter(|ids| !ids.is_empty());
                text = text.replace(stands_for, ids.map_or("nosuch", |ids| ids[choice % ids.len()].as_str()));
            }
        }
        let object = path.strip_suffix("/update").unwrap_or(path);
        let version = self.versions.get(object).copied().unwrap_or_default();
        text.replace("<version>", &version.to_string()).replace("%3Cversion%3E", &version.to_string())
    }
}

/// What is known, as all clients of the run see it.
#[derive(Debug, Default)]
pub struct Shared(Mutex<Arc<Known>>);

impl Shared {
    /// Returns what is known now.
    pub fn get(&self) -> Arc<Known> {
        self.0.lock().map(|known| known.clone()).unwrap_or_default()
    }

    /// Replaces it.
    pub fn set(&self, known: Known) {
        if let Ok(mut place) = self.0.lock() {
            *place = Arc::new(known);
        }
    }
}

fn get(socket: &Path, path: &str) -> Result<Value> {
    let answer = http::unix(socket, "GET", path, "", WAIT)?;
    Ok(serde_json::from_slice(&answer.body)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_for_something_is_replaced() {
        let known = Known {
            identifiers: BTreeMap::from([("<task>", vec!["one".to_owned(), "two".to_owned()])]),
            versions: BTreeMap::from([("/services/a".to_owned(), 7)]),
        };
        for (text, path, want) in [
            ("/tasks/<task>/logs", "", "/tasks/two/logs"),
            ("/nodes/<node>", "", "/nodes/nosuch"),
            ("version=%3Cversion%3E", "/services/a/update", "version=7"),
            ("version=<version>", "/services/b/update", "version=0"),
            ("nothing", "/services/a", "nothing"),
        ] {
            assert_eq!(known.fill(text, path, 3), want);
        }
    }
}
