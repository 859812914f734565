//! What is on the page, from what the node knows to HTML. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use shoal_protocol::spec::{Availability, PortConfig, PublishMode};
use shoal_protocol::time::human_duration;
use shoal_protocol::token::Role;
use shoal_protocol::{NodeId, ServiceId, TaskState, WallTime};

use super::counted;
use super::html::Html;
use crate::api::events::Event;
use crate::api::render;
use crate::api::snapshot::{NodeState, NodeView, ServiceView, Snapshot, StatusReport, TaskView};

/// Nodes that are shown.
const NODES_MAX: usize = 200;
/// Services that are shown.
const SERVICES_MAX: usize = 200;
/// Tasks that are shown.
pub(super) const TASKS_MAX: usize = 300;
/// Events that are shown.
const EVENTS_MAX: usize = 12;
/// Labels of one node or service that are shown.
const LABELS_MAX: usize = 6;
/// Warnings that are shown.
const WARNINGS_MAX: usize = 20;

/// What there is to show.
#[derive(Debug)]
pub(super) struct Contents {
    /// Nodes, services, the foremost tasks and their sums.
    pub(super) snapshot: Snapshot,
    /// How the cluster is.
    pub(super) status: StatusReport,
    /// What happened lately, oldest first.
    pub(super) events: Vec<Arc<Event>>,
    /// The present moment.
    pub(super) now: WallTime,
}

impl Contents {
    /// Writes what stands between the page's head and foot.
    pub(super) fn render(&self) -> Html {
        let mut html = Html::default();
        self.warnings(&mut html);
        self.sums(&mut html);
        html.markup("<div class=\"pair\">").part(&self.leases());
        html.part(&self.nodes()).markup("</div>");
        html.part(&self.services()).part(&self.tasks()).part(&self.happened());
        html
    }

    fn warnings(&self, html: &mut Html) {
        let warnings = &self.status.warnings;
        if warnings.is_empty() {
            return;
        }
        html.markup("<ul class=\"warnings\">");
        for warning in warnings.iter().take(WARNINGS_MAX) {
            html.markup("<li>").text(warning).markup("</li>");
        }
        if let Some(left) = warnings.len().checked_sub(WARNINGS_MAX).filter(|left| *left > 0) {
            html.markup("<li>and ").text(left).markup(" more: shoal status</li>");
        }
        html.markup("</ul>");
    }

    fn sums(&self, html: &mut Html) {
        let states = &self.snapshot.states;
        let of = |state: TaskState| states.get(&state).copied().unwrap_or(0);
        let waiting: u64 =
            states.iter().filter(|(state, _)| **state < TaskState::Running).map(|(_, count)| count).sum();
        let ready = self.snapshot.nodes.iter().filter(|node| node.state == NodeState::Ready).count();
        let all = self.snapshot.nodes.len();
        let yes = |yes| if yes { ("yes", "well") } else { ("no", "bad") };
        let (quorum, agree) = (yes(self.status.quorum), yes(self.status.agree));
        let waiting_is = if waiting == 0 { "" } else { "busy" };
        html.markup("<dl class=\"sums\">");
        for (name, value, class) in [
            ("Nodes ready", format!("{ready} of {all}"), if ready == all { "well" } else { "bad" }),
            ("Services", self.snapshot.services.len().to_string(), ""),
            ("Tasks running", of(TaskState::Running).to_string(), ""),
            ("Tasks on their way", waiting.to_string(), waiting_is),
            ("Quorum", quorum.0.to_owned(), quorum.1),
            ("All agree", agree.0.to_owned(), agree.1),
        ] {
            html.markup("<div><dt>").text(name).markup("</dt><dd class=\"").text(class).markup("\">");
            html.text(value).markup("</dd></div>");
        }
        html.markup("</dl>");
    }

    /// Leases by their holder: who orders writes, and who schedules how many of the sixteenths of the services.
    fn leases(&self) -> Html {
        let mut held: BTreeMap<&str, (bool, usize, u64)> = BTreeMap::new();
        for lease in &self.status.leases {
            let of = held.entry(&lease.holder).or_default();
            if lease.lease == "registry" {
                of.0 = true
            } else {
                of.1 += 1
            }
            of.2 = of.2.max(lease.epoch);
        }
        let mut html = Html::default();
        html.markup("<section><h2>Leases<small>").text(counted(self.status.voters.len(), "voter", "voters"));
        html.markup("</small></h2><table><thead><tr><th>Holder</th><th>Holds</th>");
        html.markup("<th class=\"number\">Epoch</th></tr></thead><tbody>");
        for (holder, (registry, shards, epoch)) in held {
            html.markup("<tr><td>");
            match holder {
                "" => html.markup("<span class=\"bad\">nobody</span>"),
                holder => html.text(self.name_of(holder.parse().ok(), holder)),
            };
            html.markup("</td><td>");
            if registry {
                html.markup("registry").markup(if shards > 0 { ", " } else { "" });
            }
            if shards > 0 {
                html.text(counted(shards, "shard", "shards"));
            }
            html.markup("</td><td class=\"number\">").text(epoch).markup("</td></tr>");
        }
        html.markup("</tbody></table></section>");
        html
    }

    fn name_of(&self, node: Option<NodeId>, otherwise: &str) -> String {
        let hostname = self.snapshot.nodes.iter().find(|view| Some(view.id) == node).map(NodeView::hostname);
        hostname.filter(|name| !name.is_empty()).unwrap_or(otherwise).to_owned()
    }

    fn nodes(&self) -> Html {
        let mut nodes: Vec<&NodeView> = self.snapshot.nodes.iter().collect();
        nodes.sort_by(|a, b| (a.hostname(), a.id).cmp(&(b.hostname(), b.id)));
        let mut html = Html::default();
        html.markup("<section><h2>Nodes<small>").text(nodes.len()).markup("</small></h2><table><thead><tr>");
        html.markup("<th>Name</th><th>State</th><th>Role</th><th class=\"wide\">Address</th>");
        html.markup("<th class=\"wide\">Has</th><th class=\"wide\">Runs on</th><th class=\"number\">Tasks</th>");
        html.markup("</tr></thead><tbody>");
        for node in nodes.iter().take(NODES_MAX) {
            self.node(&mut html, node);
        }
        html.markup("</tbody></table>");
        more(&mut html, nodes.len().saturating_sub(NODES_MAX), "shoal node ls");
        html.markup("</section>");
        html
    }

    fn node(&self, html: &mut Html, node: &NodeView) {
        let class = match node.state {
            NodeState::Ready => "dot well",
            NodeState::Suspect | NodeState::Unknown => "dot busy",
            NodeState::Down => "dot bad",
        };
        html.markup("<tr><td title=\"")
            .text(node.id)
            .markup("\">")
            .text(self.name_of(Some(node.id), &node.id.to_string()));
        labels(html, &node.spec.labels);
        html.markup("</td><td class=\"short\"><span class=\"").text(class).markup("\">").text(node.state.name());
        html.markup("</span>");
        match node.spec.availability {
            Availability::Active => {}
            Availability::Pause => drop(html.markup("<small>paused</small>")),
            Availability::Drain => drop(html.markup("<small>drained</small>")),
        }
        let role = match (node.spec.role, node.leader) {
            (Role::Manager, true) => "manager, leader",
            (Role::Manager, false) => "manager",
            (Role::Worker, _) => "worker",
        };
        html.markup("</td><td>").text(role).markup("</td><td class=\"wide short\">");
        if let Some(address) = node.status.as_ref().and_then(|status| status.address) {
            html.text(address);
        }
        html.markup("</td><td class=\"wide short\">");
        if let Some(status) = &node.status {
            let (cores, gib) = (status.nano_cpus / 1_000_000_000, status.memory_bytes as f64 / f64::from(1 << 30));
            html.text(format_args!("{}, {gib:.1} GiB", counted(cores as usize, "core", "cores")));
        }
        html.markup("</td><td class=\"wide\">").text(node.status.as_ref().map_or("", |status| &status.engine));
        let running = self.snapshot.running.get(&node.id).copied().unwrap_or(0);
        html.markup("</td><td class=\"number\">").text(running).markup("</td></tr>");
    }

    fn services(&self) -> Html {
        let mut services: Vec<&ServiceView> = self.snapshot.services.iter().collect();
        services.sort_by(|a, b| a.spec.name.cmp(&b.spec.name));
        let mut html = Html::default();
        html.markup("<section><h2>Services<small>").text(services.len()).markup("</small></h2>");
        if services.is_empty() {
            html.markup("<p class=\"quiet\">None yet: shoal service create</p></section>");
            return html;
        }
        html.markup("<table><thead><tr><th>Name</th><th>Running</th><th class=\"wide\">Mode</th>");
        html.markup("<th>Image</th><th>Ports</th></tr></thead><tbody>");
        for service in services.iter().take(SERVICES_MAX) {
            self.service(&mut html, service);
        }
        html.markup("</tbody></table>");
        more(&mut html, services.len().saturating_sub(SERVICES_MAX), "shoal service ls");
        html.markup("</section>");
        html
    }

    fn service(&self, html: &mut Html, service: &ServiceView) {
        let spec = &service.spec;
        html.markup("<tr><td title=\"").text(service.id).markup("\">").text(&spec.name);
        labels(html, &spec.labels);
        let counts = service.counts;
        let class = if counts.running >= counts.desired { "dot well" } else { "dot busy" };
        html.markup("</td><td class=\"short\"><span class=\"").text(class).markup("\">");
        html.text(format_args!("{} of {}", counts.running, counts.desired)).markup("</span>");
        let update = service.progress.as_ref().filter(|progress| progress.index == service.object.index);
        if let Some(update) = update.filter(|update| update.completed.is_none()) {
            html.markup("<small>").text(render::update_state(update.state)).markup("</small>");
        }
        let mode = spec.mode.kind().name();
        html.markup("</td><td class=\"wide\">").text(mode).markup("</td><td>");
        let image = spec.task_template.container_spec.image.as_str();
        html.text(image.split('@').next().unwrap_or(image)).markup("</td><td>");
        ports(html, &service.object.ports);
        html.markup("</td></tr>");
    }

    fn tasks(&self) -> Html {
        let names: BTreeMap<ServiceId, &str> =
            self.snapshot.services.iter().map(|service| (service.id, service.spec.name.as_str())).collect();
        let tasks = &self.snapshot.tasks;
        let all = tasks.len() + self.snapshot.tasks_left_out;
        let mut html = Html::default();
        html.markup("<section><h2>Tasks<small>").text(all).markup("</small></h2>");
        if tasks.is_empty() {
            html.markup("<p class=\"quiet\">None.</p></section>");
            return html;
        }
        html.markup("<table><thead><tr><th>Name</th><th>State</th><th class=\"wide\">Since</th><th>Node</th>");
        html.markup("<th class=\"wide\">Identifier</th></tr></thead><tbody>");
        for task in tasks {
            self.task(&mut html, task, names.get(&task.service).copied().unwrap_or_default());
        }
        html.markup("</tbody></table>");
        more(&mut html, self.snapshot.tasks_left_out, "shoal service ps SERVICE");
        html.markup("</section>");
        html
    }

    fn task(&self, html: &mut Html, view: &TaskView, service: &str) {
        let state = view.state();
        let class = match state {
            TaskState::Running | TaskState::Complete => "dot well",
            TaskState::Failed | TaskState::Rejected | TaskState::Orphaned => "dot bad",
            TaskState::Shutdown | TaskState::Remove => "dot quiet",
            TaskState::New
            | TaskState::Pending
            | TaskState::Assigned
            | TaskState::Accepted
            | TaskState::Preparing
            | TaskState::Ready
            | TaskState::Starting => "dot busy",
        };
        html.markup("<tr><td>").text(service).markup(".").text(view.slot);
        let (_, error) = render::words(view, state);
        if !error.is_empty() {
            html.markup("<small class=\"bad\">").text(error).markup("</small>");
        }
        html.markup("</td><td class=\"short\"><span class=\"").text(class).markup("\">").text(state).markup("</span>");
        if view.task.desired > TaskState::Running && !state.is_terminal() {
            html.markup("<small>to be stopped</small>");
        }
        html.markup("</td><td class=\"wide short\">");
        // Since when a task is lost is known to nobody.
        if state != TaskState::Orphaned {
            html.text(self.ago(view.since().max(view.task.created)));
        }
        html.markup("</td><td>");
        if let Some(node) = view.task.node {
            html.text(self.name_of(Some(node), &node.to_string()));
        }
        html.markup("</td><td class=\"wide short quiet\">").text(view.task.id).markup("</td></tr>");
    }

    fn happened(&self) -> Html {
        let mut html = Html::default();
        html.markup("<section><h2>What happened lately</h2>");
        if self.events.is_empty() {
            html.markup("<p class=\"quiet\">Nothing since this daemon started.</p></section>");
            return html;
        }
        html.markup("<table><tbody>");
        for event in self.events.iter().rev().take(EVENTS_MAX) {
            let name = event.attributes.get("name").filter(|name| !name.is_empty()).unwrap_or(&event.id);
            html.markup("<tr><td class=\"short quiet\">").text(self.ago(event.time)).markup("</td><td>");
            html.text(event.kind).markup(" ").text(event.action).markup("</td><td>").text(name).markup("<small>");
            for (key, value) in event.attributes.iter().filter(|(key, _)| key.ends_with(".new")) {
                html.text(key.trim_end_matches(".new")).markup(": ").text(value).markup(" ");
            }
            html.markup("</small></td></tr>");
        }
        html.markup("</tbody></table></section>");
        html
    }

    fn ago(&self, then: WallTime) -> String {
        format!("{} ago", human_duration(i128::from(self.now.0) - i128::from(then.0)).to_lowercase())
    }
}

fn labels(html: &mut Html, labels: &BTreeMap<String, String>) {
    if labels.is_empty() {
        return;
    }
    html.markup("<small>");
    for (key, value) in labels.iter().take(LABELS_MAX) {
        html.markup("<span class=\"label\">").text(key);
        if !value.is_empty() {
            html.markup("=").text(value);
        }
        html.markup("</span>");
    }
    if let Some(left) = labels.len().checked_sub(LABELS_MAX).filter(|left| *left > 0) {
        html.text(format_args!("and {left} more"));
    }
    html.markup("</small>");
}

fn ports(html: &mut Html, ports: &[PortConfig]) {
    for port in ports {
        let protocol = if port.protocol.is_empty() { "tcp" } else { &port.protocol };
        html.text(format_args!("{} → {}/{protocol}", port.published_port, port.target_port));
        html.markup(if port.publish_mode == PublishMode::Host { " on its node<br>" } else { "<br>" });
    }
}

fn more(html: &mut Html, left: usize, command: &'static str) {
    if left > 0 {
        html.markup("<p class=\"quiet\">and ").text(left).markup(" more: <code>").text(command).markup("</code></p>");
    }
}
