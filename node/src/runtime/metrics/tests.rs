use std::collections::BTreeSet;

use shoal_control::lease::Renewals;
use shoal_protocol::spec::PublishedPort;

use super::*;
use crate::api::Metrics;
use crate::driver::Capacity;
use crate::driver::fake::FakeDriver;
use crate::driver::measured::Measured;
use crate::runtime::ShellMetrics;

const PEER: NodeId = NodeId(2);

/// Everything that a daemon counts.
struct Everything {
    shells: ShellMetrics,
    api: Metrics,
    _dir: tempfile::TempDir,
}

fn everything() -> Everything {
    let dir = tempfile::tempdir().unwrap();
    let (disk, loaded) = crate::disk::open(dir.path()).unwrap();
    let mut registry = Registry::default();
    let shells = ShellMetrics::register(&mut registry, &disk, loaded.incarnation);
    Everything { shells, api: Metrics::new(registry), _dir: dir }
}

impl Everything {
    fn text(&self) -> String {
        self.api.encode().unwrap()
    }

    fn expect(&self, lines: &[&str]) {
        let text = self.text();
        for line in lines {
            assert!(text.lines().any(|have| have == *line), "{line}: {text}");
        }
    }
}

#[test]
fn pings_are_counted_until_they_are_answered() {
    let all = everything();
    let mut notes = all.shells.notes();
    let (ping, pong) = (PeerMessage::Ping { digest: 1 }, PeerMessage::Pong { digest: 1 });
    notes.sending(PEER, &ping);
    notes.sending(PEER, &pong);
    notes.heard(PEER, &ping);
    notes.heard(PEER, &pong);
    notes.heard(PEER, &pong);
    all.expect(&["shoal_pings_total 1", "shoal_pings_unanswered_total 0", "shoal_ping_seconds_count 1"]);
    notes.sending(PEER, &ping);
    notes.sending(PEER, &ping);
    notes.sending(NodeId(3), &ping);
    notes.parted(PEER);
    notes.parted(PEER);
    all.expect(&["shoal_pings_total 4", "shoal_pings_unanswered_total 2", "shoal_ping_seconds_count 1"]);
}

#[test]
fn what_the_decisions_did_is_added_up() {
    let all = everything();
    let notes = all.shells.notes();
    let counts = Counts {
        suspicions_refuted: 1,
        digests_equal: 2,
        digests_different: 3,
        repairs_begun: 4,
        repair_records_sent: 5,
        repair_records_received: 6,
        repair_records_new: 7,
        renewals: Renewals { asked: 8, missed: 9 },
        services_planned: 10,
        plan_writes: 11,
    };
    notes.decided(Counts::default(), Duration::from_millis(1));
    notes.decided(counts, Duration::from_millis(1));
    notes.decided(counts, Duration::from_millis(1));
    all.expect(&[
        "shoal_suspicions_refuted_total 2",
        "shoal_digests_compared_total{outcome=\"equal\"} 4",
        "shoal_digests_compared_total{outcome=\"different\"} 6",
        "shoal_repairs_total 8",
        "shoal_repair_records_total{direction=\"sent\"} 10",
        "shoal_repair_records_total{direction=\"received\"} 12",
        "shoal_repair_records_new_total 14",
        "shoal_lease_renewals_total 16",
        "shoal_lease_renewals_missed_total 18",
        "shoal_reconcile_services_total 20",
        "shoal_reconcile_writes_total 22",
        "shoal_reconcile_seconds_count 2",
        "shoal_decision_seconds_count 3",
    ]);
}

#[test]
fn leases_and_probes_are_counted_by_what_became_of_them() {
    let all = everything();
    let notes = all.shells.notes();
    notes.lease_acquired(LeaseId::REGISTRY, 4);
    notes.lease_lost(LeaseId::REGISTRY, 4, true);
    notes.lease_lost(LeaseId::REGISTRY, 5, false);
    notes.lease_lost(LeaseId::REGISTRY, 6, false);
    let probed = notes.probes();
    probed(PEER, true);
    probed(PEER, false);
    probed(PEER, false);
    all.expect(&[
        "shoal_leases_acquired_total 1",
        "shoal_leases_lost_total{reason=\"expired\"} 1",
        "shoal_leases_lost_total{reason=\"given_back\"} 2",
        "shoal_probes_total{outcome=\"answered\"} 1",
        "shoal_probes_total{outcome=\"silent\"} 2",
        "shoal_incarnation 1",
    ]);
}

/// A family as monitors see it, and as the documentation names it.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Shown {
    name: String,
    kind: String,
    labels: BTreeSet<String>,
}

/// Reads the families of a text in the OpenMetrics format.
fn families(text: &str) -> BTreeSet<Shown> {
    let mut families = BTreeSet::new();
    for line in text.lines() {
        let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|line| line.split_once(' ')) else { continue };
        let is_sample = |line: &&str| {
            let rest = line.strip_prefix(name);
            rest.is_some_and(|rest| ["{", " ", "_total", "_bucket", "_sum"].iter().any(|next| rest.starts_with(next)))
        };
        let sample = text.lines().find(is_sample).unwrap_or_else(|| panic!("nothing is shown of {name}"));
        let labels = sample.split_once('{').map_or("", |(_, rest)| rest.split_once("} ").unwrap().0);
        let labels = labels.split(',').filter_map(|label| Some(label.split_once('=')?.0.to_owned()));
        let name = if kind == "counter" { format!("{name}_total") } else { name.to_owned() };
        families.insert(Shown { name, kind: kind.to_owned(), labels: labels.filter(|label| label != "le").collect() });
    }
    families
}

/// Reads the table of the documentation.
fn documented() -> BTreeSet<Shown> {
    let page = include_str!("../../../../docs/operations.md");
    let rows = page.lines().filter(|line| line.starts_with("| `shoal_"));
    let plain = |text: &str| text.trim().trim_matches('`').to_owned();
    let row = |line: &str| {
        let cells: Vec<&str> = line.trim_matches('|').split('|').collect();
        assert_eq!(cells.len(), 4, "{line}");
        let labels = cells[2].split(',').map(plain).filter(|label| !label.is_empty()).collect();
        Shown { name: plain(cells[0]), kind: plain(cells[1]), labels }
    };
    rows.map(row).collect()
}

/// Lets one of everything happen whose labels are not known before.
async fn one_of_each(all: &Everything) {
    let driver = std::sync::Arc::new(FakeDriver::new("n1", Capacity { nano_cpus: 1, memory_bytes: 1 }));
    Measured::wrap(driver, all.shells.driver.clone()).list().await.unwrap();
    all.shells.health.note(PEER, shoal_control::view::Health::Suspect);
    crate::ingress::metrics::touch(&all.shells.ingress, PublishedPort::tcp(80));
    all.api.count_request(&axum::http::Method::GET, axum::http::StatusCode::OK, Duration::ZERO);
}

#[tokio::test]
async fn the_documentation_lists_what_is_shown() {
    let all = everything();
    one_of_each(&all).await;
    let (shown, documented) = (families(&all.text()), documented());
    let missing: Vec<_> = shown.difference(&documented).collect();
    let untrue: Vec<_> = documented.difference(&shown).collect();
    assert!(missing.is_empty() && untrue.is_empty(), "docs/operations.md lacks {missing:#?} and has {untrue:#?}");
}

/// What `promtool check metrics` finds fault with. Source: prometheus.io/docs/practices/naming.
#[tokio::test]
async fn names_follow_the_conventions() {
    let all = everything();
    one_of_each(&all).await;
    let text = all.text();
    for Shown { name, kind, labels } in families(&text) {
        let base = name.strip_suffix("_total").unwrap_or(&name);
        let help = text.lines().find_map(|line| line.strip_prefix(&format!("# HELP {base} ")));
        assert!(help.is_some_and(|help| !help.trim_matches(['.', ' ']).is_empty()), "{name} has no help");
        assert!(name.starts_with("shoal_"), "{name}");
        assert!(name.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{name}");
        assert_eq!(name.ends_with("_total"), kind == "counter", "{name} is a {kind}");
        assert!(["_count", "_sum", "_bucket", "_info"].iter().all(|end| !base.ends_with(end)), "{name}");
        for kind in ["counter", "gauge", "histogram"] {
            assert!(!name.contains(kind), "{name}: the type is no part of a name");
        }
        for unit in ["milliseconds", "_ms", "_micros", "minutes", "_kb", "percent"] {
            assert!(!name.contains(unit), "{name}: seconds and bytes are the units");
        }
        for unit in ["seconds", "bytes"] {
            assert!(!base.contains(unit) || base.ends_with(unit), "{name}: the unit comes last");
        }
        assert!(kind != "histogram" || base.ends_with("_seconds") || base.ends_with("_bytes"), "{name} has no unit");
        assert!(labels.iter().all(|label| !["job", "instance", "le", "quantile"].contains(&label.as_str())), "{name}");
    }
    assert!(text.ends_with("# EOF\n"));
    let types = text.lines().filter(|line| line.starts_with("# TYPE "));
    let names: Vec<&str> = types.map(|line| line.split(' ').nth(2).unwrap()).collect();
    assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len(), "a family is shown twice");
}
