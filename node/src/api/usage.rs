//! `GET /system/df`, where no engine answers it: what images, containers and volumes take of this node's disk.

use std::collections::{BTreeMap, BTreeSet};

use axum::Json;
use axum::extract::{Query, State};
use serde_json::{Value, json};
use shoal_protocol::spec::mount::MountKind;

use super::containers::newest_first;
use super::{Api, ApiError, render};
use crate::driver::inventory::{ContainerInfo, ImageDetails, VolumeInfo};

/// What can be asked for alone with `type=`, which may be repeated.
const TYPES: [&str; 4] = ["build-cache", "container", "image", "volume"];

/// `GET /system/df`.
pub(super) async fn show(
    State(api): State<Api>,
    Query(query): Query<Vec<(String, String)>>,
) -> Result<Json<Value>, ApiError> {
    let types: BTreeSet<String> =
        query.into_iter().filter(|(name, _)| name == "type").map(|(_, value)| value).collect();
    if let Some(unknown) = types.iter().find(|kind| !TYPES.contains(&kind.as_str())) {
        return Err(ApiError::invalid(format!("unknown object type: {unknown}")));
    }
    let is_wanted = |kind: &str| types.is_empty() || types.contains(kind);
    let inventory = api.backend.inventory().await?;
    let mut containers = inventory.containers(is_wanted("container")).await?;
    newest_first(&mut containers);
    let images = if is_wanted("image") { inventory.image_details().await? } else { Vec::new() };
    let volumes = if is_wanted("volume") { inventory.volumes(true).await? } else { Vec::new() };
    let shown = if is_wanted("container") { &containers[..] } else { &[] };
    let now = api.backend.now();
    Ok(Json(json!({
        "LayersSize": layer_sizes(&images).values().sum::<u64>(),
        "Images": render_images(&images, &containers),
        "Containers": shown.iter().map(|container| render::container_summary(container, now)).collect::<Vec<_>>(),
        "Volumes": volumes.iter().map(|volume| render::volume(volume, Some(users(volume, &containers)))).collect::<Vec<_>>(),
        "BuildCache": [],
    })))
}

/// Returns the bytes of each layer, which several images may share.
fn layer_sizes(images: &[ImageDetails]) -> BTreeMap<&str, u64> {
    images.iter().flat_map(|image| &image.layers).map(|(layer, bytes)| (layer.as_str(), *bytes)).collect()
}

fn render_images(images: &[ImageDetails], containers: &[ContainerInfo]) -> Vec<Value> {
    let mut sharers: BTreeMap<&str, usize> = BTreeMap::new();
    for (layer, _) in images.iter().flat_map(|image| &image.layers) {
        *sharers.entry(layer).or_default() += 1;
    }
    let render = |image: &ImageDetails| {
        let shared = image.layers.iter().filter(|(layer, _)| sharers[layer.as_str()] > 1);
        let mut shown = render::image_summary(&image.info);
        shown["SharedSize"] = json!(shared.map(|(_, bytes)| bytes).sum::<u64>());
        shown["Containers"] = json!(containers.iter().filter(|container| container.image_id == image.info.id).count());
        shown
    };
    images.iter().map(render).collect()
}

fn users(volume: &VolumeInfo, containers: &[ContainerInfo]) -> usize {
    let mounts = |container: &&ContainerInfo| {
        container.plan.mounts.iter().any(|mount| mount.kind == MountKind::Volume && mount.source == volume.name)
    };
    containers.iter().filter(mounts).count()
}
