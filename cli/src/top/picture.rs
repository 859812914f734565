//! Draws the state. Pure but for the buffer it draws into.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Clear, Paragraph, Wrap};

use crate::top::rows::{Cell, Column, Row, Tone, clean, columns, layout};
use crate::top::state::{Overlay, Pane, State};

/// Rows of a screen from which the last events have a place of their own.
const TALL: u16 = 24;
/// Of them, how many are shown.
const EVENTS_SHOWN: u16 = 5;

const HELP: [(&str, &str); 10] = [
    ("↑ ↓ k j", "move; PgUp PgDn, Home g, End G"),
    ("Tab, 1-6", "other pane; also ← →, h l"),
    ("Enter", "tasks of a service or node; all about a task or event"),
    ("Esc", "back, without filter"),
    ("/", "filter by any text of a row; Enter keeps, Esc drops it"),
    ("a", "show tasks that have ended, too"),
    ("?", "this help"),
    ("q, Ctrl-C", "quit"),
    ("*", "the node that is asked"),
    ("Ports", "traffic of the node that is asked; others have theirs"),
];

/// How tones look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Theme {
    /// Whether there are colours at all.
    pub(crate) colours: bool,
}

impl Theme {
    fn style(self, tone: Tone) -> Style {
        let coloured = |colour| if self.colours { Style::new().fg(colour) } else { Style::new() };
        match tone {
            Tone::Plain => Style::new(),
            Tone::Quiet => Style::new().add_modifier(Modifier::DIM),
            Tone::Well => coloured(Color::Green),
            Tone::Busy => coloured(Color::Yellow),
            // What is wrong stands out without colours, too.
            Tone::Bad => coloured(Color::Red).add_modifier(Modifier::BOLD),
        }
    }

    fn accent(self) -> Style {
        let style = Style::new().add_modifier(Modifier::BOLD);
        if self.colours { style.fg(Color::Cyan) } else { style }
    }
}

/// Where everything is.
struct Places {
    head: Rect,
    word: Rect,
    tabs: Rect,
    title: Rect,
    headings: Rect,
    list: Rect,
    events: Rect,
    foot: Rect,
}

impl Places {
    /// Shares the screen out. What has no room has no height; the list comes first.
    fn of(area: Rect, state: &State) -> Self {
        let one = |yes: bool| Constraint::Length(u16::from(yes));
        let has_word = state.silence().is_some() || !state.look().status.warnings.is_empty();
        let events = if area.height >= TALL && state.pane() != Pane::Events { EVENTS_SHOWN + 1 } else { 0 };
        let [head, word, tabs, title, headings, list, events, foot] = Layout::vertical([
            one(area.height >= 5),
            one(area.height >= 4 && has_word),
            one(area.height >= 6),
            one(area.height >= 8),
            one(area.height >= 3),
            Constraint::Min(1),
            Constraint::Length(events),
            one(area.height >= 2),
        ])
        .areas(area);
        Self { head, word, tabs, title, headings, list, events, foot }
    }
}

/// Returns how many rows of the list a screen has room for.
pub(crate) fn height_of_list(area: Rect, state: &State) -> usize {
    usize::from(Places::of(area, state).list.height)
}

/// Draws everything.
pub(crate) fn draw(frame: &mut Frame<'_>, state: &State, theme: Theme) {
    let area = frame.area();
    if area.is_empty() {
        return;
    }
    let places = Places::of(area, state);
    frame.render_widget(head(state, theme), places.head);
    frame.render_widget(word(state, theme), places.word);
    frame.render_widget(tabs(state, theme, places.tabs.width), places.tabs);
    frame.render_widget(Line::styled(format!(" {}", state.title()), theme.accent()), places.title);
    list(frame, state, theme, &places);
    events(frame, state, theme, places.events);
    frame.render_widget(foot(state, theme), places.foot);
    match state.overlay() {
        None => {}
        Some(Overlay::Help) => {
            let lines = HELP.map(|(key, what)| (key.to_owned(), what.to_owned()));
            overlay(frame, theme, " Keys ", &lines);
        }
        Some(Overlay::Details(lines)) => overlay(frame, theme, " Details ", lines),
    }
}

fn head(state: &State, theme: Theme) -> Line<'static> {
    let look = state.look();
    let status = &look.status;
    let ready = status.nodes.iter().filter(|node| node.state == "ready").count();
    let (running, wanted) = look
        .services
        .iter()
        .filter_map(|service| service.service_status.as_ref())
        .fold((0, 0), |(running, wanted), counts| (running + counts.running_tasks, wanted + counts.desired_tasks));
    let good = |yes: bool| if yes { Tone::Well } else { Tone::Bad };
    let yes = |yes: bool| if yes { "yes" } else { "no" };
    let mut spans = vec![Span::styled(format!(" shoal {}", clean(look.hostname(&status.node))), theme.accent())];
    for (name, value, tone) in [
        ("nodes", format!("{ready}/{}", status.nodes.len()), good(ready == status.nodes.len())),
        ("tasks", format!("{running}/{wanted}"), if running >= wanted { Tone::Well } else { Tone::Busy }),
        ("quorum", yes(status.quorum).to_owned(), good(status.quorum)),
        ("agree", yes(status.agree).to_owned(), if status.agree { Tone::Well } else { Tone::Busy }),
        ("services", look.services.len().to_string(), Tone::Plain),
    ] {
        spans.push(Span::raw(format!("  {name} ")));
        spans.push(Span::styled(value, theme.style(tone)));
    }
    Line::from(spans)
}

/// The one thing that is wrong which matters most.
fn word(state: &State, theme: Theme) -> Line<'static> {
    let warnings = &state.look().status.warnings;
    let text = match (state.silence(), warnings.as_slice()) {
        (Some(silence), _) => silence,
        (None, []) => return Line::default(),
        (None, [only]) => only.clone(),
        (None, [first, rest @ ..]) => format!("{first} (and {} more: shoal status)", rest.len()),
    };
    Line::styled(format!(" ! {}", clean(&text)), theme.style(Tone::Bad))
}

fn tabs(state: &State, theme: Theme, width: u16) -> Line<'static> {
    let names = |all: bool| {
        let tab = |(index, pane): (usize, &Pane)| {
            let is_shown = *pane == state.pane();
            let name = if all || is_shown { format!(" {}", pane.name()) } else { String::new() };
            let style = if is_shown { theme.accent().add_modifier(Modifier::REVERSED) } else { Style::new() };
            [Span::styled(format!(" {}{name} ", index + 1), style), Span::raw(" ")]
        };
        Line::from_iter(Pane::ALL.iter().enumerate().flat_map(tab))
    };
    let whole = names(true);
    if whole.width() <= usize::from(width) { whole } else { names(false) }
}

fn list(frame: &mut Frame<'_>, state: &State, theme: Theme, places: &Places) {
    let shown = state.layout(usize::from(places.list.width.saturating_sub(2)));
    let columns = columns(state.pane());
    let headings = shown.iter().map(|(index, width)| {
        let column = &columns[*index];
        Span::styled(padded(column.heading, *width, column.number) + "  ", theme.style(Tone::Quiet))
    });
    frame.render_widget(Line::from_iter([Span::raw(" ")].into_iter().chain(headings)), places.headings);
    let (rows, chosen) = state.visible();
    if rows.is_empty() {
        let text = if state.rows().is_empty() { "  Nothing here." } else { "" };
        frame.render_widget(Line::styled(text, theme.style(Tone::Quiet)), places.list);
    }
    for (place, (row, y)) in rows.iter().zip(places.list.top()..places.list.bottom()).enumerate() {
        let area = Rect { y, height: 1, ..places.list };
        frame.render_widget(line(row, &shown, columns, theme), area);
        if place == chosen {
            frame.buffer_mut().set_style(area, Style::new().add_modifier(Modifier::REVERSED));
        }
    }
}

fn line(row: &Row, shown: &[(usize, usize)], columns: &[Column], theme: Theme) -> Line<'static> {
    let cell = |(index, width): &(usize, usize)| {
        let Cell { text, tone } = &row.cells[*index];
        Span::styled(padded(text, *width, columns[*index].number) + "  ", theme.style(*tone))
    };
    Line::from_iter([Span::raw(" ")].into_iter().chain(shown.iter().map(cell)))
}

/// Makes a text exactly so wide, in columns of the terminal.
fn padded(text: &str, width: usize, is_number: bool) -> String {
    let mut kept = String::new();
    let wide = |text: &str| Span::raw(text).width();
    if wide(text) <= width {
        kept.push_str(text);
    } else {
        for char in text.chars() {
            if wide(&kept) + wide(char.encode_utf8(&mut [0; 4])) + 1 > width {
                break;
            }
            kept.push(char);
        }
        if width > 0 {
            kept.push('…');
        }
    }
    let blanks = " ".repeat(width.saturating_sub(wide(&kept)));
    if is_number { blanks + &kept } else { kept + &blanks }
}

fn events(frame: &mut Frame<'_>, state: &State, theme: Theme, area: Rect) {
    if area.height == 0 {
        return;
    }
    let heading = Rect { height: 1, ..area };
    frame.render_widget(Line::styled(" Events", theme.accent()), heading);
    let rows = state.latest_events(usize::from(EVENTS_SHOWN));
    let columns = columns(Pane::Events);
    let shown = layout(columns, &rows, usize::from(area.width.saturating_sub(2)));
    for (row, y) in rows.iter().zip(area.top() + 1..area.bottom()) {
        frame.render_widget(line(row, &shown, columns, theme), Rect { y, height: 1, ..area });
    }
}

fn foot(state: &State, theme: Theme) -> Line<'static> {
    if let Some(filter) = state.typed() {
        return Line::from_iter([
            Span::styled(format!(" /{}", clean(filter)), theme.accent()),
            Span::styled(" ", Style::new().add_modifier(Modifier::REVERSED)),
        ]);
    }
    let enter = match state.pane() {
        Pane::Nodes | Pane::Services | Pane::Leases | Pane::Ports => "tasks",
        Pane::Tasks | Pane::Events => "details",
    };
    let keys = [("q", "quit"), ("?", "help"), ("Enter", enter), ("/", "filter"), ("Tab", "pane"), ("Esc", "back")];
    let key = |(key, what): (&'static str, &'static str)| {
        [Span::styled(format!(" {key} "), theme.accent()), Span::styled(format!("{what} "), theme.style(Tone::Quiet))]
    };
    Line::from_iter(keys.into_iter().flat_map(key))
}

fn overlay(frame: &mut Frame<'_>, theme: Theme, title: &'static str, lines: &[(String, String)]) {
    let area = frame.area();
    let names = lines.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let texts = lines.iter().map(|(_, text)| text.chars().count()).max().unwrap_or(0);
    let width = u16::try_from(names + texts + 6).unwrap_or(u16::MAX).min(area.width);
    let text: Vec<Line<'_>> = lines
        .iter()
        .map(|(name, text)| {
            Line::from_iter([Span::styled(format!("{name:<names$}  "), theme.accent()), Span::raw(text.as_str())])
        })
        .collect();
    let inside = usize::from(width.saturating_sub(4)).max(1);
    let rows: usize = text.iter().map(|line| line.width().div_ceil(inside).max(1)).sum();
    // One row more than divided: words are not broken where they need not be.
    let height = u16::try_from(rows + 3).unwrap_or(u16::MAX).min(area.height);
    let place = Rect { x: area.x + (area.width - width) / 2, y: area.y + (area.height - height) / 2, width, height };
    let block = Block::bordered().title(title).padding(ratatui::widgets::Padding::horizontal(1));
    frame.render_widget(Clear, place);
    frame.render_widget(Paragraph::new(text).wrap(Wrap { trim: true }).block(block), place);
}

#[cfg(test)]
mod tests;
