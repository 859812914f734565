//! Templates in specs: what a task's own node fills in when it prepares the container, and what it may read.
//!
//! Host name, values of the environment, and paths and volume labels of mounts may have them, and the content of secrets and
//! configs that say so. Source: SwarmKit, `template`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::validate::{SpecError, invalid};
use super::{ContainerSpec, Mount, ServiceSpec, file, mount};
use crate::template::{Dialect, Template, TemplateError};

/// Texts of one container that may be templates; a spec with more is refused.
pub const TEMPLATES_MAX: usize = 256;

/// Bytes that all templates of one container may become; more are refused, so that what is prepared stays as small as what
/// was asked for.
pub const EXPANDED_BYTES_MAX: usize = super::SPEC_BYTES_MAX;

/// What the templates of a task may read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TaskContext {
    /// `.Service.ID`
    pub service_id: String,
    /// `.Service.Name`
    pub service_name: String,
    /// `.Service.Labels`
    pub service_labels: BTreeMap<String, String>,
    /// `.Node.ID`
    pub node_id: String,
    /// `.Node.Hostname`
    pub hostname: String,
    /// `.Node.Platform.Architecture`
    pub architecture: String,
    /// `.Node.Platform.OS`
    pub os: String,
    /// `.Task.ID`
    pub task_id: String,
    /// `.Task.Name`
    pub task_name: String,
    /// `.Task.Slot`: a replica's number, or the node's identifier.
    pub slot: String,
}

impl TaskContext {
    /// Returns a context to try the templates of a service with: there is no task yet.
    fn trial(spec: &ServiceSpec) -> Self {
        Self {
            service_id: "serviceid".to_owned(),
            service_name: spec.name.clone(),
            service_labels: spec.labels.clone(),
            node_id: "nodeid".to_owned(),
            hostname: "nodeHostname".to_owned(),
            architecture: "architecture".to_owned(),
            os: "os".to_owned(),
            task_id: "taskid".to_owned(),
            task_name: "taskname".to_owned(),
            slot: "1".to_owned(),
        }
    }

    fn data(&self) -> Value {
        json!({
            "Service": {"ID": self.service_id, "Name": self.service_name, "Labels": self.service_labels},
            "Node": {
                "ID": self.node_id,
                "Hostname": self.hostname,
                "Platform": {"Architecture": self.architecture, "OS": self.os},
            },
            "Task": {"ID": self.task_id, "Name": self.task_name, "Slot": self.slot},
        })
    }
}

/// Fills in the templates of a container and checks what became of them.
pub fn expand(container: &ContainerSpec, context: &TaskContext) -> Result<ContainerSpec, SpecError> {
    let mut expanded = container.clone();
    let mut expander = Expander { data: None, context, texts: 0, bytes: 0 };
    for variable in &mut expanded.env {
        let Some((name, value)) = variable.split_once('=') else { continue };
        if let Some(value) = expander.expand(value, || format!("expanding env failed: expanding env {variable:?}"))? {
            *variable = format!("{name}={value}");
        }
    }
    for mount in &mut expanded.mounts {
        expander.mount(mount)?;
    }
    if let Some(hostname) = expander.expand(&container.hostname, || "expanding hostname failed".to_owned())? {
        expanded.hostname = hostname;
    }
    mount::validate(&expanded.mounts)?;
    file::validate(&expanded)?;
    Ok(expanded)
}

/// Checks the templates of a service by filling them in for a task that might be.
pub(super) fn validate(spec: &ServiceSpec) -> Result<(), SpecError> {
    expand(&spec.task_template.container_spec, &TaskContext::trial(spec)).map(drop)
}

/// The work on one container.
struct Expander<'a> {
    /// What the context is to templates, once one was met.
    data: Option<Value>,
    context: &'a TaskContext,
    texts: usize,
    bytes: usize,
}

impl Expander<'_> {
    /// Returns what a text becomes, or nothing if it is no template. `what` says in an error what was being done.
    fn expand(&mut self, text: &str, what: impl Fn() -> String) -> Result<Option<String>, SpecError> {
        if !text.contains("{{") {
            return Ok(None);
        }
        self.texts += 1;
        if self.texts > TEMPLATES_MAX {
            return invalid(format!("more than {TEMPLATES_MAX} templates in one container are not supported"));
        }
        let data = self.data.get_or_insert_with(|| self.context.data());
        let unknown = |name: &str, _: &str| Err(format!("function {name:?} not defined"));
        let expanded = Template::parse_as(Dialect::Spec, text)
            .and_then(|template| template.expand(data, &unknown))
            .map_err(|error| SpecError::Invalid(format!("{}: {error}", what())))?;
        self.bytes += expanded.len();
        if self.bytes > EXPANDED_BYTES_MAX {
            return invalid(format!("templates become more than {EXPANDED_BYTES_MAX} bytes"));
        }
        Ok(Some(expanded))
    }

    fn mount(&mut self, mount: &mut Mount) -> Result<(), SpecError> {
        for (name, path) in [("source", &mut mount.source), ("target", &mut mount.target)] {
            let what = || format!("expanding mounts failed: expanding mount {name} {path:?}");
            if let Some(expanded) = self.expand(path, what)? {
                *path = expanded;
            }
        }
        let labels = mount.volume_options.iter_mut().flat_map(|options| options.labels.iter_mut());
        for (name, value) in labels {
            let what =
                || format!("expanding mounts failed: expanding volume labels: expanding map entry {name:?}={value:?}");
            if let Some(expanded) = self.expand(value, what)? {
                *value = expanded;
            }
        }
        Ok(())
    }
}

/// What the content of a secret or config may read beside the context.
#[derive(Debug, Clone, Copy)]
pub struct PayloadContext<'a> {
    /// The task.
    pub task: &'a TaskContext,
    /// The environment of its container, `NAME=VALUE` each.
    pub env: &'a [String],
    /// Its secrets: as which file, and what is in it before templates are filled in.
    pub secrets: &'a [(&'a str, &'a [u8])],
    /// Its configs, likewise.
    pub configs: &'a [(&'a str, &'a [u8])],
}

/// Fills in the content of a secret or config that is a template.
pub fn expand_payload(content: &[u8], context: PayloadContext<'_>) -> Result<String, SpecError> {
    let template = payload(content)?;
    let read = |name: &str, argument: &str| {
        let files = match name {
            "env" => {
                let mut variables = context.env.iter().filter_map(|variable| variable.split_once('='));
                let value = variables.find(|(name, _)| *name == argument).map(|(_, value)| value);
                return Ok(value.unwrap_or_default().to_owned());
            }
            "secret" => context.secrets,
            _ => context.configs,
        };
        let found = files.iter().find(|(target, _)| *target == argument).map(|(_, content)| *content);
        let found = found.ok_or_else(|| format!("{name} target {argument} not found"))?;
        std::str::from_utf8(found).map(str::to_owned).map_err(|_| format!("{name} target {argument} is not a text"))
    };
    template.expand(&context.task.data(), &read).map_err(refused)
}

/// Checks that the content of a secret or config is a template.
pub fn check_payload(content: &[u8]) -> Result<(), SpecError> {
    payload(content).map(drop)
}

fn payload(content: &[u8]) -> Result<Template, SpecError> {
    let Ok(text) = std::str::from_utf8(content) else { return invalid("a template must be a text in UTF-8") };
    Template::parse_as(Dialect::Payload, text).map_err(refused)
}

fn refused(error: TemplateError) -> SpecError {
    SpecError::Invalid(format!("failed to expand templated data: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::mount::{MountKind, VolumeOptions};

    fn context() -> TaskContext {
        TaskContext {
            service_id: "s1".to_owned(),
            service_name: "web".to_owned(),
            service_labels: BTreeMap::from([("zone".to_owned(), "a".to_owned())]),
            node_id: "n1".to_owned(),
            hostname: "host".to_owned(),
            architecture: "x86_64".to_owned(),
            os: "linux".to_owned(),
            task_id: "t1".to_owned(),
            task_name: "web.1.t1".to_owned(),
            slot: "1".to_owned(),
        }
    }

    fn hostname(text: &str) -> Result<String, String> {
        let container = ContainerSpec { hostname: text.to_owned(), ..ContainerSpec::default() };
        expand(&container, &context()).map(|expanded| expanded.hostname).map_err(|error| error.to_string())
    }

    #[test]
    fn fields_are_those_of_swarm() {
        for (text, want) in [
            ("plain }} {", "plain }} {"),
            ("{{.Node.Hostname}}-{{.Node.ID}}-{{.Service.Name}}", "host-n1-web"),
            ("{{.Service.ID}}/{{.Task.ID}}/{{.Task.Name}}/{{.Task.Slot}}", "s1/t1/web.1.t1/1"),
            ("{{.Node.Platform.OS}}/{{.Node.Platform.Architecture}}", "linux/x86_64"),
            (r#"{{.Service.Labels.zone}}{{index .Service.Labels "zone"}}{{index .Service.Labels "none"}}"#, "aa"),
            (r#"{{join "," .Task.ID .Node.ID}}"#, "t1,n1"),
            (r#"{{if eq .Task.Slot "1"}}first{{else}}other{{end}}"#, "first"),
        ] {
            assert_eq!(hostname(text).as_deref(), Ok(want), "{text}");
        }
    }

    #[test]
    fn mistakes_are_named() {
        for (text, want) in [
            ("{{", "expanding hostname failed: template: expansion:1: unclosed action"),
            (
                "{{.Nope}}",
                "expanding hostname failed: template: expansion:1:2: executing \"expansion\" at <.Nope>: can't evaluate \
                 field Nope: there is no such field",
            ),
            (
                "{{.Service.Labels.none}}",
                "expanding hostname failed: template: expansion:1:17: executing \"expansion\" at <.Service.Labels.none>: \
                 can't evaluate field none: there is no such field",
            ),
            ("{{upper .Task.ID}}", "expanding hostname failed: template: expansion:1: function \"upper\" not defined"),
            ("{{env \"A\"}}", "expanding hostname failed: template: expansion:1: function \"env\" not defined"),
        ] {
            assert_eq!(hostname(text), Err(want.to_owned()), "{text}");
        }
        let container = ContainerSpec { env: vec!["A={{".to_owned()], ..ContainerSpec::default() };
        let want = r#"expanding env failed: expanding env "A={{": template: expansion:1: unclosed action"#;
        assert_eq!(expand(&container, &context()).unwrap_err().to_string(), want);
    }

    #[test]
    fn environment_and_mounts_are_filled_in_and_checked_anew() {
        let volume = |source: &str, target: &str| Mount {
            kind: MountKind::Volume,
            source: source.to_owned(),
            target: target.to_owned(),
            volume_options: Some(VolumeOptions {
                labels: BTreeMap::from([("for".to_owned(), "{{.Service.Name}}".to_owned())]),
                ..VolumeOptions::default()
            }),
            ..Mount::default()
        };
        let container = |mounts: &[Mount]| ContainerSpec {
            env: ["{{.Node.ID}}=a", "B={{.Node.ID}}=x", "{{C"].map(str::to_owned).to_vec(),
            mounts: mounts.to_vec(),
            ..ContainerSpec::default()
        };
        let good = expand(&container(&[volume("data-{{.Task.Slot}}", "/{{.Node.ID}}")]), &context()).unwrap();
        assert_eq!(good.env, ["{{.Node.ID}}=a", "B=n1=x", "{{C"], "values alone are templates");
        assert_eq!((good.mounts[0].source.as_str(), good.mounts[0].target.as_str()), ("data-1", "/n1"));
        assert_eq!(good.mounts[0].volume_options.as_ref().unwrap().labels["for"], "web");
        // A node's name may be anything.
        let hostile = TaskContext { hostname: "../up".to_owned(), ..context() };
        for mount in [volume("{{.Node.Hostname}}", "/a"), volume("{{.Task.ID}}", "{{.Node.Hostname}}")] {
            assert!(expand(&container(&[mount]), &hostile).is_err());
        }
        let twice = [volume("ab", "/{{.Node.ID}}"), volume("cd", "/n1")];
        assert!(expand(&container(&twice), &context()).unwrap_err().to_string().contains("duplicate mount point: /n1"));
    }

    #[test]
    fn what_is_filled_in_is_bounded() {
        let env = |count: usize, value: &str| ContainerSpec {
            env: vec![format!("A={value}"); count],
            ..ContainerSpec::default()
        };
        let failed = |container: &ContainerSpec| expand(container, &context()).unwrap_err().to_string();
        assert!(expand(&env(TEMPLATES_MAX, "{{.Task.ID}}"), &context()).is_ok());
        assert!(failed(&env(TEMPLATES_MAX + 1, "{{.Task.ID}}")).contains("more than 256 templates"));
        assert!(failed(&env(200, "{{range 400}}xxxxx{{end}}")).contains("become more than 262144 bytes"));
        assert!(failed(&env(1, "{{range 400}}{{range 400}}{{end}}{{end}}")).contains("steps are not supported"));
    }

    #[test]
    fn content_reads_what_the_task_has() {
        let (task, env) = (context(), ["A=1=2".to_owned()]);
        let context = PayloadContext {
            task: &task,
            env: &env,
            secrets: &[("key", b"hidden"), ("/bin", &[0xff])],
            configs: &[("/etc/a", b"shown {{")],
        };
        let expand = |text: &str| expand_payload(text.as_bytes(), context).map_err(|error| error.to_string());
        for (text, want) in [
            ("{{.Node.Hostname}} {{env \"A\"}}{{env \"none\"}}", "host 1=2"),
            (r#"p={{secret "key"}} {{config "/etc/a"}}"#, "p=hidden shown {{"),
        ] {
            assert_eq!(expand(text).as_deref(), Ok(want));
        }
        for (text, want) in [
            (r#"{{secret "no"}}"#, "error calling secret: secret target no not found"),
            (r#"{{config "no"}}"#, "error calling config: config target no not found"),
            (r#"{{secret "/bin"}}"#, "secret target /bin is not a text"),
            ("{{secret}}", "wrong number of args: want 1 got 0"),
            ("{{json .}}", "function \"json\" not defined"),
        ] {
            let got = expand(text).unwrap_err();
            assert!(
                got.contains(want) && got.starts_with("failed to expand templated data: template: expansion:"),
                "{got}"
            );
        }
        assert!(expand_payload(&[0xff], context).is_err());
        assert_eq!(check_payload(b"{{secret \"later\"}}"), Ok(()), "who may have it is seen when it is read");
    }
}
