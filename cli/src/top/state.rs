//! What `shoal top` shows and how keys change it. Pure: keys, looks and events in; what is shown out.

use std::collections::{BTreeMap, VecDeque};

use crate::model::Task;
use crate::time;
use crate::top::look::{Happened, Look};
use crate::top::rows::{Row, Source, clean, columns, layout, publisher};
use crate::top::traffic::{Port, Rate};

/// Events that are kept; older ones are forgotten.
const EVENTS_MAX: usize = 500;
/// Characters of a filter; further ones are not taken.
const FILTER_CHARS_MAX: usize = 60;

/// One of the lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Pane {
    Nodes,
    Services,
    Tasks,
    Leases,
    Ports,
    Events,
}

impl Pane {
    /// Every pane, in the order of their numbers.
    pub(crate) const ALL: [Self; 6] =
        [Self::Nodes, Self::Services, Self::Tasks, Self::Leases, Self::Ports, Self::Events];

    /// Returns its name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Nodes => "Nodes",
            Self::Services => "Services",
            Self::Tasks => "Tasks",
            Self::Leases => "Leases",
            Self::Ports => "Ports",
            Self::Events => "Events",
        }
    }

    fn index(self) -> usize {
        Self::ALL.iter().position(|pane| *pane == self).unwrap_or(0)
    }

    fn step(self, steps: usize) -> Self {
        Self::ALL[(self.index() + steps) % Self::ALL.len()]
    }
}

/// Whose tasks are shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Those of a service.
    Service(String),
    /// Those on a node.
    Node(String),
}

impl Scope {
    /// Returns whether a task belongs to it.
    pub(crate) fn holds(&self, task: &Task) -> bool {
        match self {
            Self::Service(id) => task.service_id == *id,
            Self::Node(id) => task.node_id == *id,
        }
    }
}

/// A key, as far as it means anything here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Key {
    Up,
    Down,
    Left,
    Right,
    PageUp,
    PageDown,
    Home,
    End,
    Enter,
    Escape,
    Tab,
    BackTab,
    Backspace,
    Help,
    /// Ctrl-C: ends it whatever is on the screen.
    Interrupt,
    Char(char),
}

/// What comes of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// The picture may have changed.
    Show,
    /// The user has seen enough.
    Quit,
}

/// What lies over the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Overlay {
    /// What the keys do.
    Help,
    /// Everything about one row, by name and text.
    Details(Vec<(String, String)>),
}

/// Where the user is in one pane.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Place {
    /// The chosen row, and where it was when it was last there.
    id: String,
    index: usize,
    /// The first row on the screen.
    offset: usize,
    filter: String,
}

/// Everything that is shown.
#[derive(Debug)]
pub(crate) struct State {
    pane: Pane,
    places: [Place; 6],
    typing: bool,
    scope: Option<Scope>,
    /// The pane that led to the tasks.
    back: Option<Pane>,
    ended: bool,
    overlay: Option<Overlay>,
    look: Look,
    rates: BTreeMap<Port, Rate>,
    /// Newest first.
    events: VecDeque<Happened>,
    /// How many there were.
    heard: u64,
    /// Since when the daemon does not answer, and what it was that failed last.
    silent: Option<(i128, String)>,
    now: i128,
    rows: Vec<Row>,
    /// Rows without regard to the filter.
    all: usize,
    /// Rows that fit on the screen.
    height: usize,
}

impl State {
    /// Begins with the services, as the first look shows them.
    pub(crate) fn new(look: Look, now: i128) -> Self {
        let mut state = Self {
            pane: Pane::Services,
            places: Default::default(),
            typing: false,
            scope: None,
            back: None,
            ended: false,
            overlay: None,
            look,
            rates: BTreeMap::new(),
            events: VecDeque::new(),
            heard: 0,
            silent: None,
            now,
            rows: Vec::new(),
            all: 0,
            height: 1,
        };
        state.refresh();
        state
    }

    /// Takes a new look. What was chosen stays chosen as long as it is there.
    pub(crate) fn take_look(&mut self, look: Look, now: i128) {
        self.rates = look.traffic.rates(&self.look.traffic, look.at - self.look.at);
        self.look = look;
        self.silent = None;
        self.tick(now);
    }

    /// Notes that the daemon did not answer.
    pub(crate) fn take_failure(&mut self, failure: &str, now: i128) {
        let since = self.silent.as_ref().map_or(self.look.at, |(since, _)| *since);
        self.silent = Some((since, clean(failure.lines().next().unwrap_or_default())));
        self.tick(now);
    }

    /// Takes something that happened.
    pub(crate) fn take_event(&mut self, mut event: Happened, now: i128) {
        self.heard += 1;
        event.number = self.heard;
        // They come in order but for those of different sources.
        let place = self.events.iter().position(|other| other.nanos <= event.nanos).unwrap_or(self.events.len());
        self.events.insert(place, event);
        self.events.truncate(EVENTS_MAX);
        self.tick(now);
    }

    /// Time has gone on.
    pub(crate) fn tick(&mut self, now: i128) {
        self.now = now;
        self.refresh();
    }

    /// Says how many rows fit on the screen.
    pub(crate) fn fit(&mut self, height: usize) {
        self.height = height.max(1);
        self.settle();
    }

    /// Acts on a key.
    pub(crate) fn press(&mut self, key: Key) -> Next {
        if key == Key::Interrupt {
            return Next::Quit;
        }
        if self.typing {
            self.type_filter(key);
        } else if self.overlay.is_some() {
            match key {
                Key::Char('q') => return Next::Quit,
                Key::Escape | Key::Enter | Key::Backspace | Key::Help | Key::Char('?') => self.overlay = None,
                _ => {}
            }
        } else {
            match key {
                Key::Char('q') => return Next::Quit,
                Key::Char('?') | Key::Help => self.overlay = Some(Overlay::Help),
                Key::Char('/') => self.typing = true,
                Key::Char('a') => self.ended = !self.ended,
                Key::Char(digit @ '1'..='6') => {
                    self.go(Pane::ALL[(digit as usize - '1' as usize) % Pane::ALL.len()], None);
                }
                Key::Tab | Key::Right | Key::Char('l') => self.go(self.pane.step(1), None),
                Key::BackTab | Key::Left | Key::Char('h') => self.go(self.pane.step(Pane::ALL.len() - 1), None),
                Key::Enter => self.enter(),
                Key::Escape | Key::Backspace => self.leave(),
                _ => self.step(key),
            }
        }
        self.refresh();
        Next::Show
    }

    fn type_filter(&mut self, key: Key) {
        let filter = &mut self.places[self.pane.index()].filter;
        match key {
            Key::Char(char) if filter.chars().count() < FILTER_CHARS_MAX && !char.is_control() => filter.push(char),
            Key::Backspace => drop(filter.pop()),
            Key::Escape => {
                filter.clear();
                self.typing = false;
            }
            Key::Enter => self.typing = false,
            _ => self.step(key),
        }
    }

    /// Moves within the list.
    fn step(&mut self, key: Key) {
        let last = self.rows.len().saturating_sub(1);
        let now = self.place().index;
        let then = match key {
            Key::Up | Key::Char('k') => now.saturating_sub(1),
            Key::Down | Key::Char('j') => now + 1,
            Key::PageUp => now.saturating_sub(self.height),
            Key::PageDown => now + self.height,
            Key::Home | Key::Char('g') => 0,
            Key::End | Key::Char('G') => last,
            _ => return,
        };
        self.choose(then.min(last));
    }

    fn choose(&mut self, index: usize) {
        let id = self.rows.get(index).map_or_else(String::new, |row| row.id.clone());
        let place = &mut self.places[self.pane.index()];
        (place.id, place.index) = (id, index);
    }

    fn go(&mut self, pane: Pane, scope: Option<Scope>) {
        self.back = scope.as_ref().map(|_| self.pane);
        if pane == Pane::Tasks && scope != self.scope {
            self.places[pane.index()] = Place::default();
        }
        self.scope = scope;
        self.pane = pane;
    }

    fn enter(&mut self) {
        let Some(id) = self.chosen().map(|row| row.id.clone()) else { return };
        let to = match self.pane {
            Pane::Nodes => Some(Scope::Node(id)),
            Pane::Services => Some(Scope::Service(id)),
            Pane::Leases => {
                let lease = self.look.status.leases.iter().find(|lease| lease.lease == id);
                lease.filter(|lease| !lease.holder.is_empty()).map(|lease| Scope::Node(lease.holder.clone()))
            }
            Pane::Ports => {
                let port = id.split_once('/').map(|(number, protocol)| (number.to_owned(), protocol.to_owned()));
                let service = port.and_then(|port| publisher(&self.look, &port));
                service.map(|service| Scope::Service(service.id.clone()))
            }
            Pane::Tasks | Pane::Events => {
                self.overlay = self.details(&id).map(Overlay::Details);
                None
            }
        };
        if let Some(scope) = to {
            self.go(Pane::Tasks, Some(scope));
        }
    }

    /// Takes back the last thing: the filter, else the way into the tasks of one service or node.
    fn leave(&mut self) {
        let filter = &mut self.places[self.pane.index()].filter;
        if !filter.is_empty() {
            filter.clear();
        } else if let Some(pane) = self.back {
            self.go(pane, None);
        }
    }

    fn details(&self, id: &str) -> Option<Vec<(String, String)>> {
        let named = |pairs: Vec<(&str, String)>| {
            let kept = pairs.into_iter().filter(|(_, text)| !text.is_empty());
            kept.map(|(name, text)| (clean(name), clean(&text))).collect()
        };
        if self.pane == Pane::Events {
            let event = self.events.iter().find(|event| event.number.to_string() == id)?;
            let mut pairs = vec![
                ("When", shoal_protocol::WallTime(event.nanos).to_string()),
                ("Type", event.kind.clone()),
                ("Action", event.action.clone()),
                ("ID", event.id.clone()),
            ];
            pairs.extend(event.attributes.iter().map(|(key, value)| (key.as_str(), value.clone())));
            return Some(named(pairs));
        }
        let task = self.look.tasks.iter().find(|task| task.id == id)?;
        Some(named(vec![
            ("Task", task.id.clone()),
            ("Service", self.look.service_name(&task.service_id).to_owned()),
            ("Node", self.look.hostname(&task.node_id).to_owned()),
            ("Image", task.spec.container_spec.image.clone()),
            ("State", task.status.state.clone()),
            ("Desired", task.desired_state.clone()),
            ("Since", task.status.timestamp.clone()),
            ("Created", task.created_at.clone()),
            ("Message", task.status.message.clone()),
            ("Error", task.status.err.clone()),
        ]))
    }

    /// Makes the rows anew and finds the chosen one among them.
    fn refresh(&mut self) {
        let source = Source {
            look: &self.look,
            rates: &self.rates,
            events: &self.events,
            scope: self.scope.as_ref(),
            ended: self.ended,
            now: self.now,
        };
        let mut rows = source.rows(self.pane);
        self.all = rows.len();
        let filter = self.place().filter.to_lowercase();
        if !filter.is_empty() {
            rows.retain(|row| row.cells.iter().any(|cell| cell.text.to_lowercase().contains(&filter)));
        }
        self.rows = rows;
        let place = self.place();
        // Who looks at the newest event goes on to do so.
        let is_newest = self.pane == Pane::Events && place.index == 0;
        let found = self.rows.iter().position(|row| row.id == place.id).filter(|_| !is_newest);
        // What is gone leaves its place to what follows.
        self.choose(found.unwrap_or(place.index).min(self.rows.len().saturating_sub(1)));
        self.settle();
    }

    /// Keeps the chosen row on the screen and the screen full.
    fn settle(&mut self) {
        let (height, count) = (self.height, self.rows.len());
        let place = &mut self.places[self.pane.index()];
        let lowest = (place.index + 1).saturating_sub(height);
        place.offset = place.offset.clamp(lowest, place.index.max(lowest)).min(count.saturating_sub(height));
    }

    fn place(&self) -> &Place {
        &self.places[self.pane.index()]
    }

    /// Returns the pane that is shown.
    pub(crate) fn pane(&self) -> Pane {
        self.pane
    }

    /// Returns the rows that pass the filter.
    pub(crate) fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Returns the rows that fit on the screen, and which of them is chosen.
    pub(crate) fn visible(&self) -> (&[Row], usize) {
        let place = self.place();
        let end = (place.offset + self.height).min(self.rows.len());
        (&self.rows[place.offset.min(end)..end], place.index.saturating_sub(place.offset))
    }

    /// Returns the chosen row.
    pub(crate) fn chosen(&self) -> Option<&Row> {
        self.rows.get(self.place().index)
    }

    /// Says what the list shows.
    pub(crate) fn title(&self) -> String {
        let of = match (self.pane, &self.scope) {
            (Pane::Tasks, Some(Scope::Service(id))) => format!("Tasks of service {}", self.look.service_name(id)),
            (Pane::Tasks, Some(Scope::Node(id))) => format!("Tasks on node {}", self.look.hostname(id)),
            (Pane::Ports, _) => {
                format!("Published ports, as node {} serves them", self.look.hostname(&self.look.status.node))
            }
            (pane, _) => pane.name().to_owned(),
        };
        let filter = &self.place().filter;
        let count = match filter.is_empty() {
            true => self.all.to_string(),
            false => format!("{} of {} have '{filter}'", self.rows.len(), self.all),
        };
        let ended = if self.pane == Pane::Tasks && self.ended { ", ended ones too" } else { "" };
        clean(&format!("{of} ({count}{ended})"))
    }

    /// Returns the filter that is being typed.
    pub(crate) fn typed(&self) -> Option<&str> {
        self.typing.then_some(&self.place().filter)
    }

    /// Returns what lies over the list.
    pub(crate) fn overlay(&self) -> Option<&Overlay> {
        self.overlay.as_ref()
    }

    /// Returns the last look.
    pub(crate) fn look(&self) -> &Look {
        &self.look
    }

    /// Returns what happened, newest first, in the columns of its pane.
    pub(crate) fn latest_events(&self, most: usize) -> Vec<Row> {
        let events = self.events.iter().take(most).cloned().collect();
        let (look, rates) = (&self.look, &self.rates);
        let source = Source { look, rates, events: &events, scope: None, ended: false, now: self.now };
        source.rows(Pane::Events)
    }

    /// Says that the daemon does not answer, and for how long.
    pub(crate) fn silence(&self) -> Option<String> {
        let (since, failure) = self.silent.as_ref()?;
        let long = time::human_duration(self.now.saturating_sub(*since)).to_lowercase();
        Some(format!("No answer for {long}, trying again: {failure}"))
    }

    /// Returns the columns that are shown and how wide they are, in a list of `width` characters.
    pub(crate) fn layout(&self, width: usize) -> Vec<(usize, usize)> {
        layout(columns(self.pane), &self.rows, width)
    }
}

#[cfg(test)]
pub(crate) mod tests;
