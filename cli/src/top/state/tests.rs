use serde_json::{Value, json};

use super::*;
use crate::top::rows::Tone;
use crate::top::traffic::Traffic;

pub(crate) const NOW: i128 = 1_795_398_768_500_000_000;

/// A cluster of two nodes and two services; what users named tries to move the cursor.
pub(crate) fn look() -> Look {
    let node = |id: &str, hostname: &str, state: &str, leader: bool| {
        json!({"ID": id, "Spec": {"Role": "manager", "Availability": "active"}, "Description": {"Hostname": hostname,
            "Resources": {"NanoCPUs": 2_000_000_000u64, "MemoryBytes": 8_589_934_592u64},
            "Engine": {"EngineVersion": "embedded 0.1.0"}}, "Status": {"State": state, "Addr": "10.78.0.1"},
            "ManagerStatus": {"Leader": leader, "Reachability": "reachable"}})
    };
    let service = |id: &str, name: &str, running: u64, port: u64| {
        json!({"ID": id, "Spec": {"Name": name, "TaskTemplate": {"ContainerSpec": {"Image": "lab/web:1"}},
            "Mode": {"Replicated": {"Replicas": 2}}}, "ServiceStatus": {"RunningTasks": running, "DesiredTasks": 2},
            "Endpoint": {"Ports": [{"Protocol": "tcp", "TargetPort": 80, "PublishedPort": port, "PublishMode": "ingress"}]}})
    };
    let status = json!({"Cluster": "c", "Node": "node-1", "Quorum": true, "Agree": true, "Voters": ["node-1"],
        "Leases": [{"Lease": "registry", "Holder": "node-1", "Epoch": 3, "ExpiresInMs": 2500},
            {"Lease": "shard-0", "Holder": "node-2", "Epoch": 1}, {"Lease": "shard-1", "Holder": "", "Epoch": 0}],
        "Nodes": [{"ID": "node-1", "Hostname": "n1", "State": "ready"}, {"ID": "node-2", "Hostname": "n2", "State": "down"}],
        "Warnings": ["node n2 is down", "another"]});
    let tasks = json!([
        task("task-1", "web", 1, "node-1", "running", "running", ""),
        task("task-2", "web", 2, "", "pending", "running", "no suitable node (1 node not ready)"),
        task("task-3", "web", 2, "node-2", "failed", "shutdown", "task: non-zero exit (1)"),
        task("task-4", "db", 1, "node-1", "running", "running", ""),
        task("task-5", "db", 2, "node-2", "orphaned", "running", "the node is down"),
    ]);
    Look {
        at: NOW,
        status: serde_json::from_value(status).unwrap(),
        nodes: serde_json::from_value(json!([
            node("node-2", "n2", "down", false),
            node("node-1", "n1", "ready", true)
        ]))
        .unwrap(),
        services: serde_json::from_value(json!([
            service("web", "web", 1, 8080),
            service("db", "db\u{1b}[2J", 2, 5432)
        ]))
        .unwrap(),
        tasks: serde_json::from_value(tasks).unwrap(),
        traffic: traffic(100.0),
    }
    .sorted()
}

fn task(id: &str, service: &str, slot: u64, node: &str, state: &str, desired: &str, error: &str) -> Value {
    let created = format!("2026-11-23T01:52:3{}Z", 9 - slot.min(9));
    json!({"ID": id, "CreatedAt": created, "ServiceID": service, "Slot": slot, "NodeID": node, "DesiredState": desired,
        "Spec": {"ContainerSpec": {"Image": "lab/web:1"}},
        "Status": {"Timestamp": "2026-11-23T01:52:37.4Z", "State": state, "Err": error}})
}

fn traffic(accepted: f64) -> Traffic {
    let counters =
        crate::top::traffic::Counters { accepted, open: 3.0, received: accepted * 1000.0, ..Default::default() };
    Traffic([(("8080".to_owned(), "tcp".to_owned()), counters)].into())
}

pub(crate) fn happened(nanos: i128, name: &str) -> Happened {
    Happened {
        number: 0,
        nanos: u64::try_from(nanos).unwrap(),
        kind: "service".to_owned(),
        action: "update".to_owned(),
        id: format!("id-{name}"),
        attributes: [("name", name), ("replicas.new", "3"), ("replicas.old", "2")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into(),
    }
}

pub(crate) fn state() -> State {
    let mut state = State::new(look(), NOW);
    state.fit(10);
    state
}

fn press(state: &mut State, keys: &str) {
    for key in keys.chars() {
        let key = match key {
            '\n' => Key::Enter,
            '\u{1b}' => Key::Escape,
            '\t' => Key::Tab,
            '\u{8}' => Key::Backspace,
            other => Key::Char(other),
        };
        assert_eq!(state.press(key), Next::Show);
    }
}

fn first_cells(state: &State) -> Vec<&str> {
    state.rows().iter().map(|row| row.cells[0].text.as_str()).collect()
}

fn chosen(state: &State) -> &str {
    state.chosen().map_or("", |row| &row.id)
}

#[test]
fn panes_are_reached_by_number_and_by_tab() {
    let mut state = state();
    assert_eq!(state.pane(), Pane::Services);
    for (keys, want) in [
        ("1", Pane::Nodes),
        ("6", Pane::Events),
        ("\t", Pane::Nodes),
        ("\t\t", Pane::Tasks),
        ("l", Pane::Leases),
        ("hh", Pane::Services),
        ("5", Pane::Ports),
    ] {
        press(&mut state, keys);
        assert_eq!(state.pane(), want, "{keys}");
    }
    assert_eq!(state.press(Key::BackTab), Next::Show);
    assert_eq!(state.pane(), Pane::Leases);
}

#[test]
fn quitting_takes_one_key_wherever_one_is() {
    for keys in ["", "?", "1\n", "3\n"] {
        let mut state = state();
        press(&mut state, keys);
        assert_eq!(state.press(Key::Char('q')), Next::Quit, "{keys:?}");
    }
    let mut state = state();
    press(&mut state, "/q");
    assert_eq!(state.typed(), Some("q"), "a letter of a filter");
    assert_eq!(state.press(Key::Interrupt), Next::Quit);
}

#[test]
fn a_service_and_a_node_lead_to_their_tasks_and_escape_back() {
    let mut state = state();
    press(&mut state, "G\n");
    assert_eq!((state.pane(), state.title().as_str()), (Pane::Tasks, "Tasks of service web (2)"));
    assert_eq!(first_cells(&state), ["web.1", "web.2"]);
    press(&mut state, "j\u{1b}");
    assert_eq!((state.pane(), chosen(&state)), (Pane::Services, "web"));
    press(&mut state, "1\n");
    assert_eq!((state.title().as_str(), state.rows().len()), ("Tasks on node n1 (2)", 2));
    assert_eq!(chosen(&state), "task-4", "another list begins at its top");
    press(&mut state, "\u{1b}\u{1b}");
    assert_eq!(state.pane(), Pane::Nodes);
    press(&mut state, "4j\n");
    assert_eq!(state.title(), "Tasks on node n2 (1)");
    press(&mut state, "4G\n");
    assert_eq!(state.pane(), Pane::Leases, "nobody holds it");
    press(&mut state, "5\n");
    assert_eq!(state.title(), "Tasks of service web (2)");
    press(&mut state, "3");
    assert_eq!(state.title(), "Tasks (4)");
}

#[test]
fn ended_tasks_are_shown_on_demand() {
    let mut state = state();
    press(&mut state, "3");
    assert_eq!(state.rows().len(), 4);
    press(&mut state, "a");
    assert_eq!((state.rows().len(), state.title().as_str()), (5, "Tasks (5, ended ones too)"));
    assert!(state.rows().iter().any(|row| row.cells[4].text == "task: non-zero exit (1)"));
    press(&mut state, "a");
    assert_eq!(state.rows().len(), 4);
}

#[test]
fn a_filter_is_typed_kept_and_dropped() {
    let mut state = state();
    press(&mut state, "3/PEND");
    assert_eq!((first_cells(&state), state.typed()), (vec!["web.2"], Some("PEND")));
    assert_eq!(state.title(), "Tasks (1 of 4 have 'PEND')");
    press(&mut state, "\u{8}\u{8}\u{8}\u{8}web\n");
    assert_eq!((first_cells(&state), state.typed()), (vec!["db [2J.1", "db [2J.2", "web.1", "web.2"], None));
    press(&mut state, "/.2\n1");
    assert_eq!(state.rows().len(), 2, "each pane has its own");
    press(&mut state, "3\u{1b}");
    assert_eq!(state.rows().len(), 4);
    press(&mut state, "/nothing has this");
    assert_eq!((state.rows().len(), state.chosen()), (0, None));
    press(&mut state, "\n\n\u{1b}");
    assert_eq!(state.rows().len(), 4);
    press(&mut state, &format!("/{}", "x".repeat(500)));
    assert_eq!(state.typed().map(str::len), Some(FILTER_CHARS_MAX));
    press(&mut state, "\u{1b}");
    assert_eq!((state.typed(), state.rows().len()), (None, 4));
}

#[test]
fn what_is_chosen_stays_so_when_the_list_changes() {
    let mut state = state();
    press(&mut state, "3jjj");
    assert_eq!(chosen(&state), "task-2");
    let mut fewer = look();
    fewer.tasks.retain(|task| task.id != "task-4");
    state.take_look(fewer, NOW);
    assert_eq!(chosen(&state), "task-2");
    let mut gone = look();
    gone.tasks.retain(|task| task.id != "task-2");
    state.take_look(gone, NOW);
    assert_eq!(chosen(&state), "task-1", "the last one now");
    state.take_look(Look::default(), NOW);
    assert_eq!(state.chosen(), None);
    for key in [Key::Up, Key::Down, Key::PageDown, Key::End, Key::Enter, Key::Home, Key::Escape] {
        state.press(key);
    }
    state.take_look(look(), NOW);
    assert_eq!(chosen(&state), "task-4");
}

#[test]
fn the_chosen_row_is_on_the_screen() {
    let mut look = look();
    let tasks = (0..100).map(|slot| task(&format!("t{slot:03}"), "web", slot + 1, "node-1", "running", "running", ""));
    look.tasks = serde_json::from_value(tasks.collect()).unwrap();
    let mut state = State::new(look, NOW);
    state.fit(10);
    press(&mut state, "3");
    for (key, index, first) in [
        (Key::Down, 1, 0),
        (Key::PageDown, 11, 2),
        (Key::End, 99, 90),
        (Key::Up, 98, 90),
        (Key::PageUp, 88, 88),
        (Key::Home, 0, 0),
        (Key::Up, 0, 0),
    ] {
        state.press(key);
        let (rows, place) = state.visible();
        assert_eq!(
            (rows[place].id.clone(), rows[0].id.clone()),
            (format!("t{index:03}"), format!("t{first:03}")),
            "{key:?}"
        );
        assert_eq!(rows.len(), 10);
    }
    state.press(Key::End);
    state.fit(3);
    assert_eq!((state.visible().0.len(), state.visible().1), (3, 2));
    state.fit(200);
    assert_eq!((state.visible().0.len(), state.visible().1), (100, 99));
    state.fit(0);
    assert_eq!(state.visible().0.len(), 1);
}

#[test]
fn rates_are_between_two_looks() {
    let mut state = state();
    press(&mut state, "5");
    let cells = |state: &State| state.rows()[0].cells.iter().map(|cell| cell.text.clone()).collect::<Vec<_>>();
    assert_eq!(cells(&state)[..6], ["8080/tcp", "web", "3", "", "", ""]);
    let later = Look { at: NOW + 2_000_000_000, traffic: traffic(150.0), ..look() };
    state.take_look(later, NOW + 2_000_000_000);
    assert_eq!(cells(&state)[2..7], ["3", "25.0", "25kB", "0B", "150"]);
}

#[test]
fn a_daemon_that_is_silent_is_said_to_be_until_it_answers() {
    let mut state = state();
    assert_eq!(state.silence(), None);
    state.take_failure("cannot connect\nmore", NOW + 3_000_000_000);
    state.take_failure("still not", NOW + 12_000_000_000);
    let said = state.silence().unwrap();
    assert_eq!(said, "No answer for 12 seconds, trying again: still not");
    assert_eq!(state.rows().len(), 2, "what was known stays");
    state.take_look(look(), NOW + 13_000_000_000);
    assert_eq!(state.silence(), None);
}

#[test]
fn events_are_kept_in_order_and_bounded() {
    let mut state = state();
    press(&mut state, "6");
    for number in [1, 3, 2] {
        state.take_event(happened(NOW + number, &number.to_string()), NOW);
    }
    let names = |state: &State| state.rows().iter().map(|row| row.cells[3].text.clone()).collect::<Vec<_>>();
    assert_eq!(names(&state), ["3", "2", "1"]);
    assert_eq!(state.chosen().unwrap().cells[3].text, "3");
    state.take_event(happened(NOW + 9, "9"), NOW);
    assert_eq!(state.chosen().unwrap().cells[3].text, "9", "the newest is followed");
    state.press(Key::Down);
    state.take_event(happened(NOW + 10, "10"), NOW);
    assert_eq!(state.chosen().unwrap().cells[3].text, "3", "any other one is kept");
    press(&mut state, "\n");
    let Some(Overlay::Details(lines)) = state.overlay() else { panic!("no details") };
    assert!(lines.contains(&("replicas.new".to_owned(), "3".to_owned())), "{lines:?}");
    for number in 0..2000 {
        state.take_event(happened(NOW + 100 + number, "x"), NOW);
    }
    assert_eq!(state.rows().len(), EVENTS_MAX);
}

#[test]
fn two_events_that_look_alike_can_both_be_chosen() {
    let mut state = state();
    press(&mut state, "6");
    state.take_event(happened(NOW, "x"), NOW);
    state.take_event(happened(NOW, "x"), NOW);
    state.take_event(happened(NOW, "x"), NOW);
    press(&mut state, "jj");
    assert_eq!(state.visible().1, 2);
}

#[test]
fn details_are_whole_and_closed_by_escape() {
    let mut state = state();
    press(&mut state, "3G\n");
    let Some(Overlay::Details(lines)) = state.overlay() else { panic!("no details") };
    assert!(lines.contains(&("Error".to_owned(), "no suitable node (1 node not ready)".to_owned())), "{lines:?}");
    press(&mut state, "jk1");
    assert_eq!(state.pane(), Pane::Tasks, "keys of the list do nothing");
    press(&mut state, "\u{1b}");
    assert_eq!((state.overlay(), state.pane()), (None, Pane::Tasks));
}

#[test]
fn nothing_that_users_name_reaches_the_terminal_as_a_command() {
    let mut state = state();
    for pane in "123456".chars() {
        press(&mut state, &pane.to_string());
        let texts = state.rows().iter().flat_map(|row| &row.cells);
        assert!(texts.into_iter().all(|cell| !cell.text.contains(char::is_control)), "{pane}");
    }
    press(&mut state, "2\n");
    assert_eq!(state.title(), "Tasks of service db [2J (2)");
}

#[test]
fn columns_give_way_where_room_is_short() {
    let cells = |texts: [&str; 7]| Row {
        id: String::new(),
        cells: texts.map(|text| crate::top::rows::Cell { text: text.to_owned(), tone: Tone::Plain }).into(),
    };
    let error = "e".repeat(80);
    let rows = [cells(["web.1", "n1", "Running", "5 seconds ago", &error, "lab/web:1", "abcdefghijkl"])];
    let columns = columns(Pane::Tasks);
    let shown = |width| layout(columns, &rows, width);
    let total = |shown: &[(usize, usize)]| shown.iter().map(|(_, width)| width + 2).sum::<usize>() - 2;
    assert_eq!(shown(300).len(), 7);
    for width in [300, 120, 100, 80, 60, 40, 30, 20] {
        assert!(total(&shown(width)) <= width, "{width}: {:?}", shown(width));
    }
    assert_eq!(shown(100)[4], (4, 38), "a long text is cut before a column goes");
    let kept = |width| shown(width).into_iter().map(|(index, _)| index).collect::<Vec<_>>();
    assert_eq!(kept(20), [0, 1, 2]);
    assert_eq!(kept(15), [0, 2]);
    assert_eq!(kept(1), [0, 2], "these stay");
}
