//! Containers of this node's own tasks, where no engine answers for them: read only.

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::response::Response;
use serde::Deserialize;
use serde_json::Value;

use super::filters::Filters;
use super::logs::{self, LogsQuery};
use super::query::is_on;
use super::render;
use super::{Api, ApiError};
use crate::driver::inventory::{ContainerInfo, ContainerState, Inventory};

/// Keys that listings of containers can be filtered by.
const FILTERS: [&str; 7] = ["ancestor", "exited", "id", "is-task", "label", "name", "status"];
/// States that Docker's containers can be in; those of tasks are in three of them.
const STATES: [&str; 7] = ["created", "dead", "exited", "paused", "removing", "restarting", "running"];

#[derive(Debug, Deserialize)]
pub(super) struct ListQuery {
    all: Option<String>,
    limit: Option<i64>,
    size: Option<String>,
    filters: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct InspectQuery {
    size: Option<String>,
}

/// `GET /containers/json`.
pub(super) async fn list(State(api): State<Api>, Query(query): Query<ListQuery>) -> Result<Json<Vec<Value>>, ApiError> {
    let filters = Filters::parse(query.filters.as_deref(), &FILTERS)?;
    check(&filters)?;
    let inventory = api.backend.inventory().await?;
    let limit = query.limit.and_then(|limit| usize::try_from(limit).ok()).filter(|limit| *limit > 0);
    // As with Docker, asking for the last few or for a state means all of them.
    let all = is_on(query.all.as_deref()) || limit.is_some() || !filters.values("status").is_empty();
    let ancestors = ancestors(inventory.as_ref(), &filters).await?;
    let mut found = inventory.containers(is_on(query.size.as_deref())).await?;
    found.retain(|container| {
        (all || matches!(container.state, ContainerState::Running { .. }))
            && fits(container, &filters)
            && ancestors.as_ref().is_none_or(|images| images.contains(&container.image_id))
    });
    newest_first(&mut found);
    found.truncate(limit.unwrap_or(usize::MAX));
    let now = api.backend.now();
    Ok(Json(found.iter().map(|container| render::container_summary(container, now)).collect()))
}

/// Orders containers as Docker lists them.
pub(super) fn newest_first(containers: &mut [ContainerInfo]) {
    containers.sort_by(|one, other| other.created.cmp(&one.created).then_with(|| one.id.cmp(&other.id)));
}

/// Refuses values that no container can fit.
fn check(filters: &Filters) -> Result<(), ApiError> {
    let invalid = |key: &str, value: &str| ApiError::invalid(format!("invalid filter '{key}={value}'"));
    let states = filters.values("status");
    if let Some(state) = states.iter().find(|state| !STATES.contains(&state.as_str())) {
        return Err(invalid("status", state));
    }
    if let Some(code) = filters.values("exited").iter().find(|code| code.parse::<i32>().is_err()) {
        return Err(invalid("exited", code));
    }
    // Docker takes regular expressions; what is not understood must not silently find nothing.
    match filters
        .values("name")
        .iter()
        .find(|name| name.contains(['*', '+', '?', '[', ']', '(', ')', '{', '}', '|', '\\']))
    {
        Some(name) => Err(ApiError::unsupported(&format!("a filter 'name={name}' (but for ^ and $)"))),
        None => Ok(()),
    }
}

/// Returns the identifiers of the images that containers may be made from; `None` if any.
async fn ancestors(inventory: &dyn Inventory, filters: &Filters) -> Result<Option<Vec<String>>, ApiError> {
    let wanted = filters.values("ancestor");
    if wanted.is_empty() {
        return Ok(None);
    }
    let mut images = Vec::new();
    for image in wanted {
        match inventory.image(&image).await {
            Ok(image) => images.push(image.info.id),
            // Containers go on without the image's name, but nobody can tell any more that it was theirs.
            Err(crate::driver::DriverError::NoSuchImage { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Some(images))
}

fn fits(container: &ContainerInfo, filters: &Filters) -> bool {
    let code = match container.state {
        ContainerState::Exited { code, .. } => Some(code.to_string()),
        ContainerState::Created | ContainerState::Running { .. } => None,
    };
    filters.any("id", |id| container.id.starts_with(id))
        && filters.any("name", |pattern| name_fits(&container.plan.name, pattern))
        && filters.any("status", |state| state == render::container_state(&container.state))
        && filters.any("exited", |wanted| code.as_deref() == Some(wanted))
        && filters.any("is-task", |wanted| is_on(Some(wanted)))
        && filters.labels("label", &container.plan.labels)
}

/// Matches a name with or without the slash before it, as a part, or anchored by `^` and `$`.
fn name_fits(name: &str, pattern: &str) -> bool {
    let slashed = format!("/{name}");
    [name, &slashed].into_iter().any(|name| {
        let (at_start, rest) = pattern.strip_prefix('^').map_or((false, pattern), |rest| (true, rest));
        match (at_start, rest.strip_suffix('$')) {
            (true, Some(rest)) => name == rest,
            (true, None) => name.starts_with(rest),
            (false, Some(rest)) => name.ends_with(rest),
            (false, None) => name.contains(rest),
        }
    })
}

/// `GET /containers/{id}/json`.
pub(super) async fn inspect(
    State(api): State<Api>,
    Path(name): Path<String>,
    Query(query): Query<InspectQuery>,
) -> Result<Json<Value>, ApiError> {
    let inventory = api.backend.inventory().await?;
    let container = find(inventory.containers(is_on(query.size.as_deref())).await?, &name)?;
    Ok(Json(render::container(&container)))
}

/// `GET /containers/{id}/logs`.
pub(super) async fn logs(
    State(api): State<Api>,
    Path(name): Path<String>,
    Query(query): Query<LogsQuery>,
) -> Result<Response, ApiError> {
    let inventory = api.backend.inventory().await?;
    let container = find(inventory.containers(false).await?, &name)?;
    logs::of_container(&api, container.plan.task, &query).await
}

/// Finds the container that a name means: a whole identifier, a whole name, else the beginning of an identifier.
fn find(containers: Vec<ContainerInfo>, wanted: &str) -> Result<ContainerInfo, ApiError> {
    let name = wanted.strip_prefix('/').unwrap_or(wanted);
    let exact = containers.iter().position(|container| container.id == wanted);
    let named = exact.or_else(|| containers.iter().position(|container| container.plan.name == name));
    let mut begun =
        containers.iter().enumerate().filter(|(_, found)| !wanted.is_empty() && found.id.starts_with(wanted));
    let place = match (named, begun.next(), begun.next()) {
        (Some(place), ..) | (None, Some((place, _)), None) => place,
        (None, Some(_), Some(_)) => {
            return Err(ApiError::invalid(format!("Multiple IDs found with provided prefix: {wanted}")));
        }
        (None, None, _) => {
            return Err(ApiError::new(axum::http::StatusCode::NOT_FOUND, format!("No such container: {wanted}")));
        }
    };
    let mut containers = containers;
    Ok(containers.swap_remove(place))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_as_a_part_or_as_a_whole() {
        for (pattern, want) in [
            ("web", true),
            ("1.x", true),
            ("^web", true),
            ("^/web", true),
            ("^/web.1.x$", true),
            ("^web.1.x$", true),
            ("x$", true),
            ("^eb", false),
            ("web$", false),
            ("^web$", false),
            ("", true),
            ("other", false),
        ] {
            assert_eq!(name_fits("web.1.x", pattern), want, "{pattern}");
        }
    }
}
