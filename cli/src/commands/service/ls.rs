//! `shoal service ls`.

use serde::Serialize;
use shoal_protocol::spec::{ModeKind, PublishMode};

use crate::client::Client;
use crate::commands::tasks::image_name;
use crate::error::CliError;
use crate::filter::query;
use crate::model::Service;
use crate::output::{ListArgs, Listing, print, short_id};
use crate::ports;

/// Flags of `service ls`.
#[derive(Debug, clap::Args)]
pub(crate) struct LsArgs {
    #[command(flatten)]
    list: ListArgs,
}

/// One line, under Docker's names.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Row {
    #[serde(rename = "ID")]
    id: String,
    image: String,
    mode: String,
    name: String,
    ports: String,
    replicas: String,
}

const LISTING: Listing = Listing {
    table: r"{{.ID}}\t{{.Name}}\t{{.Mode}}\t{{.Replicas}}\t{{.Image}}\t{{.Ports}}",
    headings: &[
        ("ID", "ID"),
        ("Name", "NAME"),
        ("Mode", "MODE"),
        ("Replicas", "REPLICAS"),
        ("Image", "IMAGE"),
        ("Ports", "PORTS"),
    ],
};

/// Lists services.
pub(crate) async fn run(client: &Client, args: LsArgs) -> Result<(), CliError> {
    let status = if args.list.is_quiet() { "" } else { "status=true&" };
    let services: Vec<Service> = client.get(&format!("/services?{status}{}", query(&args.list.filter))).await?;
    print(&render(services, &args.list)?)
}

fn render(mut services: Vec<Service>, args: &ListArgs) -> Result<String, CliError> {
    services.sort_by(|a, b| a.spec.name.cmp(&b.spec.name));
    let id_of = |service: &Service| if args.no_trunc { service.id.clone() } else { short_id(&service.id).to_owned() };
    if args.is_quiet() {
        return Ok(services.iter().map(|service| id_of(service) + "\n").collect());
    }
    let rows: Vec<Row> = services
        .iter()
        .map(|service| Row {
            id: id_of(service),
            image: image_name(&service.spec.task_template.container_spec.image, args.no_trunc),
            mode: service.spec.mode.kind().name().replace('-', " "),
            name: service.spec.name.clone(),
            ports: ports::show(&service.endpoint.ports, PublishMode::Ingress),
            replicas: replicas(service),
        })
        .collect();
    LISTING.render(&rows, &args.format)
}

fn replicas(service: &Service) -> String {
    let (running, desired, completed) = service
        .service_status
        .as_ref()
        .map_or((0, 0, 0), |status| (status.running_tasks, status.desired_tasks, status.completed_tasks));
    let total = match service.spec.mode.kind() {
        ModeKind::Replicated { .. } | ModeKind::Global => None,
        ModeKind::ReplicatedJob { completions, .. } => Some(completions),
        ModeKind::GlobalJob => Some(desired + completed),
    };
    match (total, service.spec.task_template.placement.max_replicas) {
        (Some(total), _) => format!("{running}/{desired} ({completed}/{total} completed)"),
        (None, 0) => format!("{running}/{desired}"),
        (None, most) => format!("{running}/{desired} (max {most} per node)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot;
    use serde_json::json;

    #[test]
    fn services_are_listed_as_docker_lists_them() {
        let service = |id: &str, name: &str, placement, mode| {
            json!({"ID": id, "Spec": {"Name": name, "Labels": {}, "TaskTemplate": {"ContainerSpec": {"Image": "lab/web:1"},
                "Placement": placement}, "Mode": mode, "EndpointSpec": {"Mode": "vip"}},
                "Endpoint": {"Spec": {}, "Ports": [{"Protocol": "tcp", "TargetPort": 80, "PublishedPort": 8080, "PublishMode": "ingress"}]},
                "ServiceStatus": {"RunningTasks": 1, "DesiredTasks": 2, "CompletedTasks": 5}})
        };
        let services: Vec<Service> = serde_json::from_value(json!([
            service("zw28l6ocpszcx94qkcx0wpr9u", "web", json!({}), json!({"Global": {}})),
            service(
                "s6ie7pwawbi5ah8u12durn6ov",
                "full",
                json!({"MaxReplicas": 2}),
                json!({"Replicated": {"Replicas": 2}})
            ),
            service(
                "xo9eyv44b66jv9p8h45sp8g29",
                "job",
                json!({"MaxReplicas": 2}),
                json!({"ReplicatedJob": {"MaxConcurrent": 2, "TotalCompletions": 10}})
            ),
            service("52px016czg6ul1jx3x556twec", "gjob", json!({}), json!({"GlobalJob": {}})),
        ]))
        .unwrap();
        let args = ListArgs { quiet: false, no_trunc: false, filter: Vec::new(), format: "table".to_owned() };
        let text = render(services, &args).unwrap();
        snapshot::check("output/service-ls.txt", &text);
        let want = [
            "ID             NAME      MODE             REPLICAS               IMAGE       PORTS",
            "s6ie7pwawbi5   full      replicated       1/2 (max 2 per node)   lab/web:1   *:8080->80/tcp",
            "52px016czg6u   gjob      global job       1/2 (5/7 completed)    lab/web:1   *:8080->80/tcp",
            "xo9eyv44b66j   job       replicated job   1/2 (5/10 completed)   lab/web:1   *:8080->80/tcp",
            "zw28l6ocpszc   web       global           1/2                    lab/web:1   *:8080->80/tcp",
        ];
        assert_eq!(text.lines().collect::<Vec<_>>(), want);
    }
}
