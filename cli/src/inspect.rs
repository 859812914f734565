//! What the `inspect` commands print: JSON, or what a template makes of each object.
//!
//! The API leaves out what is empty, where Docker's client, which knows the types, reads an empty value. So do templates here,
//! for the names that the API knows; any other name is an error.

use serde_json::{Map, Value};

use crate::error::CliError;
use crate::output::{json_lines, json_pretty};
use shoal_protocol::template::Template;

/// The format that stands for `--pretty`.
pub(crate) const PRETTY: &str = "pretty";

/// Objects that the API may leave out: nothing has fields there. Source: Docker Engine API v1.50.
const OBJECTS_MAYBE: [&str; 32] = [
    "Cluster",
    "ContainerStatus",
    "CredentialSpec",
    "DNSConfig",
    "EndpointSpec",
    "Global",
    "GlobalJob",
    "Healthcheck",
    "Init",
    "JobStatus",
    "Limits",
    "LogDriver",
    "ManagerStatus",
    "MaxAttempts",
    "NetworkAttachmentSpec",
    "Placement",
    "PluginSpec",
    "PortStatus",
    "PreviousSpec",
    "Privileges",
    "Replicas",
    "Replicated",
    "ReplicatedJob",
    "Reservations",
    "Resources",
    "RestartPolicy",
    "RollbackConfig",
    "ServiceStatus",
    "StopGracePeriod",
    "TLSInfo",
    "UpdateConfig",
    "UpdateStatus",
];

/// Texts that the API may leave out. Source: Docker Engine API v1.50.
const TEXTS_MAYBE: [&str; 36] = [
    "Addr",
    "Availability",
    "CertIssuerPublicKey",
    "CertIssuerSubject",
    "CompletedAt",
    "Condition",
    "CreatedAt",
    "Delay",
    "Dir",
    "Driver",
    "Err",
    "FailureAction",
    "Hostname",
    "Image",
    "Isolation",
    "Message",
    "Mode",
    "Monitor",
    "Name",
    "NodeID",
    "Order",
    "Protocol",
    "PublishMode",
    "Reachability",
    "Role",
    "Runtime",
    "Spec",
    "StartedAt",
    "State",
    "StopSignal",
    "Timestamp",
    "TrustRoot",
    "UpdatedAt",
    "User",
    "Version",
    "Window",
];

/// Lists that the API may leave out. Source: Docker Engine API v1.50.
const LISTS_MAYBE: [&str; 23] = [
    "Args",
    "Aliases",
    "CapabilityAdd",
    "CapabilityDrop",
    "Command",
    "Configs",
    "Constraints",
    "Env",
    "GenericResources",
    "Groups",
    "Hosts",
    "Mounts",
    "Nameservers",
    "Networks",
    "Platforms",
    "Plugins",
    "Ports",
    "Preferences",
    "Search",
    "Secrets",
    "Ulimits",
    "VirtualIPs",
    "Warnings",
];

/// Maps that the API may leave out, whose keys are the user's.
const MAPS_MAYBE: [&str; 3] = ["Labels", "Sysctls", "Options"];

/// Numbers that the API may leave out.
const NUMBERS_MAYBE: [&str; 16] = [
    "CompletedTasks",
    "DesiredTasks",
    "ExitCode",
    "ForceUpdate",
    "MaxFailureRatio",
    "MaxReplicas",
    "MemoryBytes",
    "NanoCPUs",
    "OomScoreAdj",
    "Parallelism",
    "PID",
    "Pids",
    "PublishedPort",
    "RunningTasks",
    "Slot",
    "TargetPort",
];

/// Truths that the API may leave out.
const TRUTHS_MAYBE: [&str; 4] = ["Leader", "OpenStdin", "ReadOnly", "TTY"];

/// Renders objects: as one JSON array without a format, else one after the other.
pub(crate) fn render(found: &[Value], format: Option<&str>) -> Result<String, CliError> {
    match format {
        None | Some("") => json_pretty(found),
        Some("json" | "{{json .}}") => json_lines(found),
        Some(template) => {
            let template = Template::parse(template)?;
            let mut text = String::new();
            for object in found {
                text.push_str(&template.execute(object, absent)?);
                text.push('\n');
            }
            Ok(text)
        }
    }
}

fn absent(parent: &str, name: &str) -> Option<Value> {
    match name {
        _ if MAPS_MAYBE.contains(&parent) || OBJECTS_MAYBE.contains(&name) => Some(Value::Null),
        _ if TEXTS_MAYBE.contains(&name) => Some(Value::from("")),
        _ if LISTS_MAYBE.contains(&name) => Some(Value::Array(Vec::new())),
        _ if MAPS_MAYBE.contains(&name) => Some(Value::Object(Map::new())),
        _ if NUMBERS_MAYBE.contains(&name) => Some(Value::from(0)),
        _ if TRUTHS_MAYBE.contains(&name) => Some(Value::Bool(false)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn run(format: &str) -> Result<String, String> {
        let service = |name: &str| {
            json!({"ID": name, "Spec": {"Name": name, "Labels": {"a": "1"}, "Mode": {"Replicated": {"Replicas": 2}},
                "TaskTemplate": {"ContainerSpec": {"Image": "lab/web:1"}}}})
        };
        render(&[service("web"), service("db")], Some(format)).map_err(|error| error.to_string())
    }

    #[test]
    fn templates_reach_into_objects() {
        for (format, want) in [
            ("{{.Spec.Name}}", "web\ndb\n"),
            (r#"{{index .Spec.Labels "a"}}{{index .Spec.Labels "b"}}"#, "1\n1\n"),
            ("{{.Spec.Labels.b}}", "<no value>\n<no value>\n"),
            ("{{json .Spec.Labels}}", "{\"a\":\"1\"}\n{\"a\":\"1\"}\n"),
            (
                "{{with .Spec.TaskTemplate.ContainerSpec}}{{.Image}}{{.Hostname}}{{range .Env}}x{{end}}{{end}}",
                "lab/web:1\nlab/web:1\n",
            ),
            ("{{if .UpdateStatus}}{{.UpdateStatus.State}}{{else}}-{{end}}", "-\n-\n"),
            ("{{.Spec.Mode.Replicated.Replicas}} {{.Spec.TaskTemplate.ForceUpdate}}", "2 0\n2 0\n"),
            (
                "{{with .Spec.TaskTemplate.ContainerSpec}}{{.Env}}{{.Labels}}{{.TTY}}{{len .Args}}{{end}}",
                "[]map[]false0\n[]map[]false0\n",
            ),
            (r"{{.ID}}\n", "web\\n\ndb\\n\n"),
        ] {
            assert_eq!(run(format).as_deref(), Ok(want), "{format}");
        }
        assert!(run("{{json .}}").unwrap().starts_with(r#"{"ID":"web","Spec":"#));
        assert_eq!(render(&[], None).unwrap(), "[]\n");
    }

    #[test]
    fn what_is_no_field_is_an_error() {
        for (format, reason) in [
            (
                "{{.Spec.Nmae}}",
                ":1:7: executing \"\" at <.Spec.Nmae>: can't evaluate field Nmae: there is no such field",
            ),
            (
                "{{.UpdateStatus.State}}",
                ":1:15: executing \"\" at <.UpdateStatus.State>: nil pointer evaluating UpdateStatus.State",
            ),
            ("{{", "template parsing error: template: :1: unclosed action"),
        ] {
            let error = run(format).unwrap_err();
            assert!(error.contains(reason), "{format}: {error}");
        }
    }
}
