//! The listing of tasks that `service ps` and `node ps` share.

use std::collections::BTreeMap;

use serde::Serialize;
use shoal_protocol::spec::PublishMode;

use crate::client::Client;
use crate::error::CliError;
use crate::filter::{Filter, query};
use crate::model::{Node, Service, Task};
use crate::output::{ListArgs, Listing, TABLE, capital, ellipsis, print, short_id};
use crate::{ports, time};

/// Characters of an error that are shown.
const ERROR_CHARS: usize = 30;

/// One line, under Docker's names.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Row {
    current_state: String,
    desired_state: String,
    error: String,
    #[serde(rename = "ID")]
    id: String,
    image: String,
    name: String,
    node: String,
    ports: String,
}

const LISTING: Listing = Listing {
    table: r"{{.ID}}\t{{.Name}}\t{{.Image}}\t{{.Node}}\t{{.DesiredState}}\t{{.CurrentState}}\t{{.Error}}\t{{.Ports}}",
    headings: &[
        ("ID", "ID"),
        ("Name", "NAME"),
        ("Image", "IMAGE"),
        ("Node", "NODE"),
        ("DesiredState", "DESIRED STATE"),
        ("CurrentState", "CURRENT STATE"),
        ("Error", "ERROR"),
        ("Ports", "PORTS"),
    ],
};

/// Gets the tasks that fit `filters` and prints them.
pub(crate) async fn list(client: &Client, args: &ListArgs, no_resolve: bool, extra: &[Filter]) -> Result<(), CliError> {
    let filters: Vec<Filter> = args.filter.iter().chain(extra).cloned().collect();
    let mut tasks: Vec<Task> = client.get(&format!("/tasks?{}", query(&filters))).await?;
    let (services, nodes) = if no_resolve {
        (BTreeMap::new(), BTreeMap::new())
    } else {
        let services: Vec<Service> = client.get("/services").await?;
        let nodes: Vec<Node> = client.get("/nodes").await?;
        (
            services.into_iter().map(|service| (service.id, service.spec.name)).collect(),
            nodes.into_iter().map(|node| (node.id, node.description.hostname)).collect(),
        )
    };
    print(&render(&mut tasks, &services, &nodes, args, time::now_nanos())?)
}

fn render(
    tasks: &mut [Task],
    services: &BTreeMap<String, String>,
    nodes: &BTreeMap<String, String>,
    args: &ListArgs,
    now: i128,
) -> Result<String, CliError> {
    let service_of = |task: &Task| services.get(&task.service_id).unwrap_or(&task.service_id).clone();
    tasks.sort_by(|a, b| {
        let slot = |task: &Task| {
            (service_of(task), task.slot, if task.slot.is_none() { task.node_id.clone() } else { String::new() })
        };
        slot(a).cmp(&slot(b)).then_with(|| b.created_at.cmp(&a.created_at))
    });
    let id_of = |task: &Task| if args.no_trunc { task.id.clone() } else { short_id(&task.id).to_owned() };
    if args.is_quiet() {
        // Docker's client cuts them off in the table alone.
        return Ok(tasks.iter().map(|task| format!("{}\n", task.id)).collect());
    }
    let mut rows: Vec<Row> = tasks
        .iter()
        .map(|task| Row {
            id: id_of(task),
            name: format!("{}.{}", service_of(task), slot_name(task)),
            image: image_name(&task.spec.container_spec.image, args.no_trunc),
            node: nodes.get(&task.node_id).unwrap_or(&task.node_id).clone(),
            desired_state: capital(&task.desired_state),
            current_state: current_state(task, now),
            error: error_text(task, args.no_trunc),
            ports: ports::show(&task.status.port_status.ports, PublishMode::Host),
        })
        .collect();
    if args.format.starts_with(TABLE) {
        indent_history(&mut rows);
    }
    LISTING.render(&rows, &args.format)
}

/// Says what a task's state is and since when, which is not known of one whose node is gone: its last report is older.
fn current_state(task: &Task, now: i128) -> String {
    let state = capital(&task.status.state);
    if task.status.state == "orphaned" { state } else { format!("{state} {}", time::ago(&task.status.timestamp, now)) }
}

/// Marks the predecessors of a task, which follow it in the order of the list.
fn indent_history(rows: &mut [Row]) {
    let mut previous = String::new();
    for row in rows {
        if row.name == previous {
            row.name = format!(" \\_ {}", row.name);
        } else {
            previous.clone_from(&row.name);
        }
    }
}

/// Returns the number of a task's slot, or its node where it is a global service's.
pub(crate) fn slot_name(task: &Task) -> String {
    task.slot.map_or_else(|| task.node_id.clone(), |slot| slot.to_string())
}

/// Returns an image's reference without the digest behind its tag.
pub(crate) fn image_name(image: &str, no_trunc: bool) -> String {
    match image.split_once('@') {
        Some((tagged, _)) if !no_trunc && tagged.contains(':') => tagged.to_owned(),
        _ => image.to_owned(),
    }
}

fn error_text(task: &Task, no_trunc: bool) -> String {
    match (&task.status.err, no_trunc) {
        (error, _) if error.is_empty() => String::new(),
        (error, true) => format!("\"{error}\""),
        (error, false) => format!("\"{}\"", ellipsis(error, ERROR_CHARS)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot;
    use serde_json::json;

    fn args() -> ListArgs {
        ListArgs { quiet: false, no_trunc: false, filter: Vec::new(), format: TABLE.to_owned() }
    }

    fn task(id: &str, slot: u64, state: &str, created: &str, error: &str) -> Task {
        serde_json::from_value(json!({"ID": id, "CreatedAt": created, "ServiceID": "svc", "Slot": slot, "NodeID": "n",
            "Spec": {"ContainerSpec": {"Image": "lab/web:1@sha256:00", "Init": false, "DNSConfig": {}}, "Resources":
            {"Limits": {}, "Reservations": {}}, "Placement": {}, "ForceUpdate": 0}, "DesiredState": "running",
            "Status": {"Timestamp": "2026-11-23T01:52:37.4Z", "State": state, "Err": error, "PortStatus": {}}}))
        .unwrap()
    }

    #[test]
    fn tasks_are_listed_as_docker_lists_them() {
        let mut tasks = [
            task("lost1psr0tts8rho76677b555", 3, "orphaned", "2026-11-23T01:52:33.3Z", "the node is down"),
            task("ax71cpsr0tts8rho76677b555", 2, "running", "2026-11-23T01:52:35.3Z", ""),
            task("old1cpsr0tts8rho76677b555", 1, "failed", "2026-11-23T01:52:34.3Z", "task: non-zero exit (1)"),
            task("new1cpsr0tts8rho76677b555", 1, "running", "2026-11-23T01:52:36.3Z", ""),
        ];
        let services = BTreeMap::from([("svc".to_owned(), "web".to_owned())]);
        let nodes = BTreeMap::from([("n".to_owned(), "n1".to_owned())]);
        let now = time::parse_rfc3339("2026-11-23T01:52:48.5Z").unwrap();
        let text = render(&mut tasks, &services, &nodes, &args(), now).unwrap();
        snapshot::check("output/service-ps.txt", &text);
        let quiet = render(&mut tasks, &services, &nodes, &ListArgs { quiet: true, ..args() }, now).unwrap();
        assert_eq!(quiet.lines().next(), Some("new1cpsr0tts8rho76677b555"));
        let want = [
            "ID             NAME        IMAGE       NODE      DESIRED STATE   CURRENT STATE            ERROR                       PORTS",
            "new1cpsr0tts   web.1       lab/web:1   n1        Running         Running 11 seconds ago                               ",
            "old1cpsr0tts    \\_ web.1   lab/web:1   n1        Running         Failed 11 seconds ago    \"task: non-zero exit (1)\"   ",
            "ax71cpsr0tts   web.2       lab/web:1   n1        Running         Running 11 seconds ago                               ",
            "lost1psr0tts   web.3       lab/web:1   n1        Running         Orphaned                 \"the node is down\"          ",
        ];
        assert_eq!(text.lines().collect::<Vec<_>>(), want);
        let json =
            render(&mut tasks, &services, &nodes, &ListArgs { format: "json".to_owned(), ..args() }, now).unwrap();
        snapshot::check("output/service-ps.json", &json);
        let first: serde_json::Value = serde_json::from_str(json.lines().next().unwrap()).unwrap();
        assert_eq!(first["CurrentState"], "Running 11 seconds ago");
        assert_eq!(first["Name"], "web.1");
    }
}
