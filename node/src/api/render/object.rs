//! Secrets and configs.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use shoal_protocol::object::{FileSpec, Kind, TEMPLATE_DRIVER};

use super::Version;
use crate::api::snapshot::ObjectView;

/// A secret or config as Docker's clients read it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct File {
    #[serde(rename = "ID")]
    id: String,
    version: Version,
    created_at: String,
    updated_at: String,
    spec: Spec,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Spec {
    name: String,
    labels: BTreeMap<String, String>,
    /// Of a config alone, base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    templating: Option<Driver>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Driver {
    name: &'static str,
}

/// Renders a secret or config.
pub fn file(kind: Kind, view: &ObjectView) -> File {
    // What is stored was read when it was accepted; a newer version may have accepted more.
    let FileSpec { labels, is_template, .. } = FileSpec::parse(kind, &view.head.spec).unwrap_or_default();
    File {
        id: view.id.to_string(),
        version: Version { index: view.head.index },
        created_at: view.head.created.to_string(),
        updated_at: view.head.updated.to_string(),
        spec: Spec {
            name: view.head.name.clone(),
            labels,
            templating: is_template.then_some(Driver { name: TEMPLATE_DRIVER }),
            data: (kind == Kind::Config).then(|| STANDARD.encode(&view.data)),
        },
    }
}
