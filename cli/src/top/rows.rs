//! The rows of each pane: from a look at the cluster to texts with a tone.

use std::collections::{BTreeMap, VecDeque};

use shoal_protocol::spec::{PublishMode, Transport};

use crate::commands::tasks::{image_name, slot_name};
use crate::model::{Node, Service, Task};
use crate::output::{capital, short_id};
use crate::top::look::{Happened, Look};
use crate::top::state::{Pane, Scope};
use crate::top::traffic::{Port, Rate};
use crate::{ports, time, units};

/// Characters of one cell at most; what is beyond is never seen.
const CELL_CHARS_MAX: usize = 200;

/// How a text is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tone {
    /// As it is.
    Plain,
    /// Not so important.
    Quiet,
    /// All is well.
    Well,
    /// On its way.
    Busy,
    /// Something is wrong.
    Bad,
}

/// One text of a row, without control characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cell {
    /// What it says.
    pub(crate) text: String,
    /// How it is meant.
    pub(crate) tone: Tone,
}

/// One row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    /// By which it is known again after the next look.
    pub(crate) id: String,
    /// One for each column.
    pub(crate) cells: Vec<Cell>,
}

/// One column.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Column {
    /// What stands above it.
    pub(crate) heading: &'static str,
    /// Characters that it takes at most.
    pub(crate) most: usize,
    /// Where room is short, columns with a higher number go first; 0 stays.
    pub(crate) spare: u8,
    /// Whether it holds numbers.
    pub(crate) number: bool,
}

const fn column(heading: &'static str, most: usize, spare: u8) -> Column {
    Column { heading, most, spare, number: false }
}

const fn number(heading: &'static str, most: usize, spare: u8) -> Column {
    Column { heading, most, spare, number: true }
}

/// Returns the columns of a pane.
pub(crate) fn columns(pane: Pane) -> &'static [Column] {
    match pane {
        Pane::Nodes => &NODES,
        Pane::Services => &SERVICES,
        Pane::Tasks => &TASKS,
        Pane::Leases => &LEASES,
        Pane::Ports => &PORTS,
        Pane::Events => &EVENTS,
    }
}

const NODES: [Column; 10] = [
    column("HOSTNAME", 24, 0),
    column("STATUS", 8, 0),
    column("AVAILABILITY", 12, 4),
    column("MANAGER STATUS", 14, 3),
    number("TASKS", 6, 1),
    column("LEASES", 20, 2),
    number("CPUS", 5, 6),
    number("MEMORY", 9, 6),
    column("ENGINE VERSION", 18, 5),
    column("ADDRESS", 40, 7),
];

const SERVICES: [Column; 6] = [
    column("NAME", 30, 0),
    column("REPLICAS", 9, 0),
    column("MODE", 14, 4),
    column("UPDATE", 18, 2),
    column("IMAGE", 40, 3),
    column("PORTS", 60, 1),
];

const TASKS: [Column; 7] = [
    column("NAME", 34, 0),
    column("NODE", 20, 1),
    column("STATE", 10, 0),
    column("SINCE", 22, 3),
    column("ERROR", 120, 2),
    column("IMAGE", 40, 4),
    column("ID", 12, 5),
];

const LEASES: [Column; 4] =
    [column("LEASE", 10, 0), column("HOLDER", 24, 0), number("EPOCH", 8, 1), column("RENEWAL DUE", 12, 2)];

const PORTS: [Column; 9] = [
    column("PORT", 10, 0),
    column("SERVICE", 30, 1),
    number("OPEN", 6, 2),
    number("CONN/S", 8, 0),
    number("IN/S", 9, 3),
    number("OUT/S", 9, 3),
    number("CONNECTIONS", 12, 4),
    number("FAILED TRIES", 12, 6),
    number("GIVEN UP", 8, 5),
];

const EVENTS: [Column; 5] = [
    column("WHEN", 22, 2),
    column("TYPE", 9, 0),
    column("ACTION", 16, 0),
    column("NAME", 40, 1),
    column("CHANGE", 120, 3),
];

/// What the rows are made of.
pub(crate) struct Source<'a> {
    /// The last look.
    pub(crate) look: &'a Look,
    /// What goes through each port.
    pub(crate) rates: &'a BTreeMap<Port, Rate>,
    /// What happened, newest first.
    pub(crate) events: &'a VecDeque<Happened>,
    /// Whose tasks are shown.
    pub(crate) scope: Option<&'a Scope>,
    /// Whether tasks are shown that have ended and are not wanted any more.
    pub(crate) ended: bool,
    /// The present, in nanoseconds since 1970.
    pub(crate) now: i128,
}

impl Source<'_> {
    /// Returns the rows of a pane in the order of the screen.
    pub(crate) fn rows(&self, pane: Pane) -> Vec<Row> {
        match pane {
            Pane::Nodes => self.nodes(),
            Pane::Services => self.look.services.iter().map(|service| self.service(service)).collect(),
            Pane::Tasks => self.tasks(),
            Pane::Leases => self.leases(),
            Pane::Ports => self.ports(),
            Pane::Events => self.events.iter().map(|event| self.event(event)).collect(),
        }
    }

    fn nodes(&self) -> Vec<Row> {
        let mut running: BTreeMap<&str, usize> = BTreeMap::new();
        for task in self.look.tasks.iter().filter(|task| task.status.state == "running") {
            *running.entry(&task.node_id).or_default() += 1;
        }
        let tasks = |node: &Node| running.get(node.id.as_str()).copied().unwrap_or(0);
        self.look.nodes.iter().map(|node| self.node(node, tasks(node))).collect()
    }

    fn node(&self, node: &Node, running: usize) -> Row {
        let seen = self.look.status.nodes.iter().find(|seen| seen.id == node.id);
        let state = seen.map_or(node.status.state.as_str(), |seen| &seen.state);
        let manager = node.manager_status.as_ref().map_or_else(String::new, |manager| {
            if manager.leader { "Leader".to_owned() } else { capital(&manager.reachability) }
        });
        let availability = crate::commands::node::ls::availability(node);
        let own = if node.id == self.look.status.node { " *" } else { "" };
        let resources = &node.description.resources;
        row(
            &node.id,
            [
                plain(format!("{}{own}", self.look.hostname(&node.id))),
                toned(capital(state), node_tone(state)),
                toned(capital(availability), if availability == "active" { Tone::Plain } else { Tone::Busy }),
                plain(manager),
                plain(running),
                plain(self.look.status.held_by(&node.id)),
                plain(units::cpus(resources.nano_cpus)),
                plain(units::bytes_size(resources.memory_bytes)),
                quiet(&node.description.engine.engine_version),
                quiet(&node.status.addr),
            ],
        )
    }

    fn service(&self, service: &Service) -> Row {
        let counts =
            service.service_status.as_ref().map_or((0, 0), |counts| (counts.running_tasks, counts.desired_tasks));
        let tone = if counts.0 >= counts.1 { Tone::Well } else { Tone::Busy };
        let update = service.update_status.as_ref().map_or("", |update| &update.state);
        let update_tone = match update {
            "completed" | "rollback_completed" => Tone::Quiet,
            "paused" | "rollback_paused" => Tone::Bad,
            _ => Tone::Busy,
        };
        row(
            &service.id,
            [
                plain(&service.spec.name),
                toned(format!("{}/{}", counts.0, counts.1), tone),
                quiet(service.spec.mode.kind().name()),
                toned(update, update_tone),
                plain(image_name(&service.spec.task_template.container_spec.image, false)),
                plain(ports::show(&service.endpoint.ports, PublishMode::Ingress)),
            ],
        )
    }

    fn tasks(&self) -> Vec<Row> {
        let names: BTreeMap<&str, &str> =
            self.look.services.iter().map(|service| (service.id.as_str(), service.spec.name.as_str())).collect();
        let nodes: BTreeMap<&str, &str> =
            self.look.nodes.iter().map(|node| (node.id.as_str(), node.description.hostname.as_str())).collect();
        let shown = self
            .look
            .tasks
            .iter()
            .filter(|task| (self.ended || !has_ended(task)) && self.scope.is_none_or(|scope| scope.holds(task)));
        shown
            .map(|task| {
                let service = names.get(task.service_id.as_str()).copied().unwrap_or(&task.service_id);
                let node = nodes.get(task.node_id.as_str()).copied().unwrap_or(&task.node_id);
                self.task(task, service, node)
            })
            .collect()
    }

    fn task(&self, task: &Task, service: &str, node: &str) -> Row {
        let state = task.status.state.as_str();
        // Since when a task is lost is known to nobody.
        let since = if state == "orphaned" { String::new() } else { time::ago(&task.status.timestamp, self.now) };
        row(
            &task.id,
            [
                plain(format!("{service}.{}", slot_name(task))),
                plain(node),
                toned(capital(state), task_tone(state)),
                quiet(since),
                toned(&task.status.err, Tone::Bad),
                quiet(image_name(&task.spec.container_spec.image, false)),
                quiet(short_id(&task.id)),
            ],
        )
    }

    fn leases(&self) -> Vec<Row> {
        let lease = |lease: &crate::status::Lease| {
            let holder = match lease.holder.as_str() {
                "" => toned("nobody", Tone::Bad),
                holder => plain(self.look.hostname(holder)),
            };
            let due = if lease.expires_in_ms > 0 { format!("{} ms", lease.expires_in_ms) } else { String::new() };
            row(&lease.lease, [plain(&lease.lease), holder, plain(lease.epoch), quiet(due)])
        };
        self.look.status.leases.iter().map(lease).collect()
    }

    fn ports(&self) -> Vec<Row> {
        let mut all: Vec<_> = self.look.traffic.0.iter().collect();
        all.sort_by_key(|((number, protocol), _)| (number.parse::<u32>().unwrap_or(u32::MAX), protocol.clone()));
        let rows = all.into_iter().map(|(port, counters)| {
            let rate = self.rates.get(port);
            let bytes = |bytes: Option<f64>| bytes.map_or_else(String::new, |bytes| units::human_size(bytes as u64));
            let bad = |count: f64| toned(count, if count > 0.0 { Tone::Bad } else { Tone::Quiet });
            row(
                &format!("{}/{}", port.0, port.1),
                [
                    plain(format!("{}/{}", port.0, port.1)),
                    plain(publisher(self.look, port).map_or("", |service| service.spec.name.as_str())),
                    plain(counters.open),
                    plain(rate.map_or_else(String::new, |rate| format!("{:.1}", rate.accepted))),
                    plain(bytes(rate.map(|rate| rate.received))),
                    plain(bytes(rate.map(|rate| rate.sent))),
                    plain(counters.accepted),
                    quiet(counters.failed),
                    bad(counters.given_up),
                ],
            )
        });
        rows.collect()
    }

    fn event(&self, event: &Happened) -> Row {
        let ago = time::human_duration(self.now.saturating_sub(i128::from(event.nanos))).to_lowercase() + " ago";
        row(
            &event.number.to_string(),
            [quiet(ago), plain(&event.kind), plain(&event.action), plain(event.name()), quiet(event.change())],
        )
    }
}

/// Returns the service that publishes a port, on every node or on its tasks'.
pub(crate) fn publisher<'a>(look: &'a Look, (number, protocol): &Port) -> Option<&'a Service> {
    let fits = |service: &&Service| {
        service.endpoint.ports.iter().any(|port| {
            let spoken = if port.protocol.is_empty() { Transport::Tcp.name() } else { &port.protocol };
            port.published_port.to_string() == *number && spoken == protocol
        })
    };
    look.services.iter().find(fits)
}

/// Returns whether a task is history: it has ended and is not wanted any more.
fn has_ended(task: &Task) -> bool {
    let wanted = !matches!(task.desired_state.as_str(), "shutdown" | "remove" | "complete");
    !wanted
        && matches!(task.status.state.as_str(), "complete" | "shutdown" | "failed" | "rejected" | "remove" | "orphaned")
}

fn node_tone(state: &str) -> Tone {
    match state {
        "ready" => Tone::Well,
        "down" => Tone::Bad,
        _ => Tone::Busy,
    }
}

fn task_tone(state: &str) -> Tone {
    match state {
        "running" => Tone::Well,
        "complete" | "shutdown" | "remove" => Tone::Quiet,
        "failed" | "rejected" | "orphaned" => Tone::Bad,
        _ => Tone::Busy,
    }
}

fn row<const N: usize>(id: &str, cells: [Cell; N]) -> Row {
    Row { id: id.to_owned(), cells: cells.into() }
}

fn plain(text: impl ToString) -> Cell {
    toned(text, Tone::Plain)
}

fn quiet(text: impl ToString) -> Cell {
    toned(text, Tone::Quiet)
}

fn toned(text: impl ToString, tone: Tone) -> Cell {
    Cell { text: clean(&text.to_string()), tone }
}

/// Makes a text harmless to a terminal: nothing in it moves the cursor, and it ends.
pub(crate) fn clean(text: &str) -> String {
    text.chars().take(CELL_CHARS_MAX).map(|char| if char.is_control() { ' ' } else { char }).collect()
}

/// Chooses columns and their widths: those that can be spared go first where room is short, and the last takes what is left.
pub(crate) fn layout(columns: &[Column], rows: &[Row], width: usize) -> Vec<(usize, usize)> {
    let wanted = |index: usize| {
        let column = &columns[index];
        let longest = rows.iter().map(|row| row.cells[index].text.chars().count()).max().unwrap_or(0);
        longest.clamp(column.heading.len(), column.most.max(column.heading.len()))
    };
    let mut shown: Vec<(usize, usize)> = (0..columns.len()).map(|index| (index, wanted(index))).collect();
    let total = |shown: &[(usize, usize)]| shown.iter().map(|(_, width)| width + 2).sum::<usize>().saturating_sub(2);
    while total(&shown) > width {
        // One that could be wide may be narrow, as long as something of it is seen.
        let over = total(&shown) - width;
        let widest = shown.iter_mut().max_by_key(|(_, width)| *width);
        if let Some((index, wide)) = widest
            && *wide > over
            && *wide - over >= columns[*index].heading.len().max(NARROW)
        {
            *wide -= over;
            break;
        }
        let spare = shown.iter().enumerate().max_by_key(|(_, (index, _))| columns[*index].spare);
        match spare.map(|(place, (index, _))| (place, columns[*index].spare)) {
            Some((place, spare)) if spare > 0 => drop(shown.remove(place)),
            _ => break,
        }
    }
    shown
}

/// Characters that a column keeps when it has to give some away.
const NARROW: usize = 12;
