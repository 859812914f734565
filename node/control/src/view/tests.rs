//! Tables for single views, then networks of them.

mod network;

use super::*;
use network::Network;

fn id(number: u128) -> NodeId {
    NodeId(number)
}

#[test]
fn loss_and_pauses_alone_never_lead_to_a_verdict() {
    let mut suspicions = 0;
    for seed in 0..20 {
        let mut network = Network::new(seed, 3 + u128::from(seed % 3));
        network.loss_percent = 5;
        for second in 2..602 {
            network.run_until(second * 1000);
            if second % 5 == 0 {
                let size = 3 + u128::from(seed % 3);
                // All at once, and one after another.
                for node in (1..=size).filter(|&node| seed % 2 == 0 || node == u128::from(second / 5) % size + 1) {
                    network.pause(id(node), 300);
                }
            }
        }
        assert_eq!(network.count(Health::Failed), 0, "seed {seed}: {:?}", network.log);
        suspicions += network.count(Health::Suspect);
    }
    println!("{suspicions} suspicions");
    assert!(suspicions > 0, "the network was never bad enough to test anything");
}

#[test]
fn a_killed_node_fails_within_half_a_second() {
    for seed in 0..50 {
        let mut network = Network::new(seed, 5);
        network.run_until(5000 + seed * 7);
        let killed_at = network.now;
        network.kill(id(3));
        network.run_until(killed_at + 3000);
        let verdicts = network.verdicts(id(3), killed_at);
        assert_eq!(verdicts.len(), 4, "seed {seed}: {:?}", network.log);
        assert!(verdicts.values().all(|&after| after <= 500), "seed {seed}: {verdicts:?}");
    }
}

#[test]
fn a_node_whose_cable_is_cut_fails_in_time_and_is_alive_when_it_is_heard_again() {
    let mut slowest = 0;
    for (seed, size) in (0..50).flat_map(|seed| [(seed, 3), (seed, 5), (seed, 8)]) {
        let mut network = Network::new(seed, size);
        network.run_until(5000 + seed * 13);
        let cut_at = network.now;
        network.cut(id(2), true);
        network.run_until(cut_at + 4000);
        let verdicts = network.verdicts(id(2), cut_at);
        assert_eq!(u128::try_from(verdicts.len()).unwrap(), size - 1, "seed {seed}: {:?}", network.log);
        slowest = slowest.max(verdicts.values().copied().max().unwrap());
        network.cut(id(2), false);
        network.run_until(cut_at + 8000);
        for other in (1..=size).filter(|&other| other != 2) {
            assert_eq!(network.health(id(other), id(2)), Health::Alive, "seed {seed}");
            assert_eq!(network.health(id(2), id(other)), Health::Alive, "seed {seed}");
        }
    }
    println!("slowest verdict {slowest} ms");
    assert!(slowest <= 1900, "{slowest} ms");
}

#[test]
fn the_one_that_is_cut_off_takes_longer_to_condemn_all_others() {
    let mut network = Network::new(1, 5);
    network.run_until(5000);
    let cut_at = network.now;
    network.cut(id(2), true);
    network.run_until(cut_at + 10_000);
    for other in [1, 3, 4, 5] {
        let after = network.verdicts(id(other), cut_at)[&id(2)];
        assert!((3000..6000).contains(&after), "{after}");
    }
}

#[test]
fn two_nodes_judge_each_other_by_their_own_probes() {
    let mut network = Network::new(3, 2);
    network.run_until(5000);
    network.kill(id(2));
    network.run_until(6000);
    assert_eq!(network.health(id(1), id(2)), Health::Failed);
}

/// A view of node 1 over 2, 3 and 4, all connected and heard.
fn view(now: u64) -> View {
    let mut view = View::new(id(1), Time(now));
    view.handle_event(Event::Members((1..=4).map(id).collect()), Time(now));
    for node in 2..=4 {
        view.handle_event(Event::Connected { node: id(node) }, Time(now));
    }
    drain(&mut view);
    view
}

fn drain(view: &mut View) -> Vec<Action> {
    std::iter::from_fn(|| view.poll_action()).collect()
}

/// Ticks on time until `until`, hearing all nodes but `silent`.
fn tick(view: &mut View, from: u64, until: u64, silent: u128) {
    for now in (from..=until).step_by(100) {
        for node in (2..=4).filter(|&node| node != silent) {
            view.handle_event(Event::Heard { node: id(node) }, Time(now));
        }
        view.handle_event(Event::Tick, Time(now));
    }
}

#[test]
fn a_broken_connection_is_probed_at_once_through_two_others() {
    let mut view = view(1000);
    view.handle_event(Event::Disconnected { node: id(3) }, Time(1050));
    assert_eq!(
        drain(&mut view),
        [
            Action::Health { node: id(3), health: Health::Suspect },
            Action::Probe { node: id(3), request: 1 },
            Action::AskProbe { via: id(2), node: id(3), request: 1 },
            Action::AskProbe { via: id(4), node: id(3), request: 1 },
        ]
    );
}

#[test]
fn verdicts_need_every_answer_to_be_no() {
    use Health::{Alive, Failed, Suspect};
    for (name, own, two, four, want) in [
        ("nobody reaches it", Some(false), Some(false), Some(false), Failed),
        ("one helper says nothing", Some(false), Some(false), None, Failed),
        ("both helpers say nothing", Some(false), None, None, Suspect),
        ("a helper reaches it", Some(false), Some(false), Some(true), Suspect),
        ("this node reaches it", Some(true), Some(false), Some(false), Alive),
        ("this node's own probe takes too long", None, Some(false), Some(false), Failed),
    ] {
        let mut view = view(1000);
        view.handle_event(Event::Disconnected { node: id(3) }, Time(1050));
        for (by, alive) in [(2, two), (4, four)] {
            if let Some(alive) = alive {
                view.handle_event(Event::Probed { by: id(by), node: id(3), request: 1, alive }, Time(1060));
            }
        }
        if let Some(alive) = own {
            view.handle_event(Event::Probe { node: id(3), request: 1, alive }, Time(1060));
        }
        tick(&mut view, 1100, 1800, 3);
        assert_eq!(view.health(id(3)), want, "{name}");
    }
}

#[test]
fn a_late_judge_does_not_judge() {
    let mut view = view(1000);
    tick(&mut view, 1100, 2000, 0);
    assert!(view.judges(Time(2000)));
    view.handle_event(Event::Disconnected { node: id(3) }, Time(2050));
    view.handle_event(Event::Tick, Time(2900));
    assert!(!view.judges(Time(2900)));
    for by in [2, 4] {
        view.handle_event(Event::Probed { by: id(by), node: id(3), request: 1, alive: false }, Time(2900));
    }
    view.handle_event(Event::Probe { node: id(3), request: 1, alive: false }, Time(2900));
    tick(&mut view, 3000, 3900, 3);
    assert_eq!(view.health(id(3)), Health::Suspect, "old answers do not count");
    tick(&mut view, 4000, 4000, 3);
    assert!(view.judges(Time(4000)));
    assert!(drain(&mut view).iter().any(|action| matches!(action, Action::Probe { request: 2, .. })));
}

#[test]
fn time_in_which_a_node_did_not_listen_is_not_silence() {
    let mut view = view(1000);
    view.handle_event(Event::Tick, Time(5000));
    assert_eq!(view.alive().len(), 4);
    for now in (5100..=5900).step_by(100) {
        view.handle_event(Event::Tick, Time(now));
    }
    assert_eq!(view.alive().len(), 4, "it was heard 100 ms before the pause, and 900 ms are not too long");
    view.handle_event(Event::Tick, Time(6000));
    view.handle_event(Event::Tick, Time(6100));
    assert_eq!(view.alive().len(), 1);
}

#[test]
fn an_announced_restart_is_waited_for() {
    let mut view = view(1000);
    view.handle_event(Event::Farewell { node: id(3), restarting: true }, Time(1100));
    view.handle_event(Event::Heard { node: id(3) }, Time(1110));
    view.handle_event(Event::Disconnected { node: id(3) }, Time(1150));
    tick(&mut view, 1200, 31_000, 3);
    assert_eq!(view.health(id(3)), Health::Restarting { until: Time(31_100) });
    let mut back = View { peers: view.peers.clone(), ..View::new(id(1), Time(31_000)) };
    back.handle_event(Event::Connected { node: id(3) }, Time(31_050));
    assert_eq!(back.health(id(3)), Health::Alive);
    tick(&mut view, 31_100, 31_100, 3);
    assert_eq!(view.health(id(3)), Health::Suspect);
}

#[test]
fn one_that_left_is_not_judged() {
    let mut view = view(1000);
    view.handle_event(Event::Farewell { node: id(3), restarting: false }, Time(1100));
    view.handle_event(Event::Disconnected { node: id(3) }, Time(1150));
    tick(&mut view, 1200, 60_000, 3);
    assert_eq!(view.health(id(3)), Health::Left);
}

#[test]
fn a_listed_node_that_is_never_heard_is_suspected_in_the_end() {
    let mut view = View::new(id(1), Time(1000));
    view.handle_event(Event::Members([1, 2].map(id).into()), Time(1000));
    tick(&mut view, 1100, 6000, 2);
    assert_eq!(view.health(id(2)), Health::Unknown);
    tick(&mut view, 6100, 6100, 2);
    assert_eq!(view.health(id(2)), Health::Suspect);
}

#[test]
fn chitchat_is_believed_only_as_far_as_to_probe() {
    let mut view = view(1000);
    tick(&mut view, 1100, 2000, 0);
    view.handle_event(Event::Phi { node: id(3), alive: false }, Time(2050));
    assert_eq!(view.health(id(3)), Health::Alive, "it was just heard");
    tick(&mut view, 2100, 2600, 3);
    view.handle_event(Event::Phi { node: id(3), alive: false }, Time(2650));
    assert_eq!(view.health(id(3)), Health::Suspect);
    view.handle_event(Event::Phi { node: id(3), alive: true }, Time(2660));
    assert_eq!(view.health(id(3)), Health::Suspect);
    view.handle_event(Event::Heard { node: id(3) }, Time(2670));
    assert_eq!(view.health(id(3)), Health::Alive);
}

#[test]
fn an_idle_connection_is_pinged_from_one_end() {
    let mut network = Network::new(1, 2);
    network.run_until(11_000);
    let per_second = network.frames / 10;
    assert!((6..=9).contains(&per_second), "{per_second} frames a second");
}

#[test]
fn in_a_large_cluster_three_are_watched_closely() {
    let mut view = View::new(id(100), Time(0));
    view.handle_event(Event::Members((90..120).map(id).collect()), Time(0));
    for node in (90..120).filter(|&node| node != 100) {
        view.handle_event(Event::Connected { node: id(node) }, Time(0));
    }
    for now in (100..=1200).step_by(100) {
        view.handle_event(Event::Tick, Time(now));
    }
    let suspects = view.peers.iter().filter(|(_, peer)| peer.health == Health::Suspect);
    assert_eq!(suspects.map(|(&node, _)| node).collect::<Vec<_>>(), [101, 102, 103].map(id));
}

#[test]
fn a_peer_that_is_never_silent_is_pinged_all_the_same() {
    let mut view = View::new(id(1), Time(0));
    view.handle_event(Event::Members((1..30).map(id).collect()), Time(0));
    view.handle_event(Event::Connected { node: id(20) }, Time(0));
    let mut pings = 0;
    for now in (100..=10_000).step_by(100) {
        view.handle_event(Event::Heard { node: id(20) }, Time(now));
        view.handle_event(Event::Tick, Time(now));
        while let Some(action) = view.poll_action() {
            pings += usize::from(matches!(action, Action::Ping { node } if node == id(20)));
        }
    }
    assert!((3..=5).contains(&pings), "{pings} pings in ten seconds");
}

#[test]
fn only_suspicions_that_prove_wrong_count_as_refuted() {
    let mut view = view(1000);
    assert_eq!(view.take_refuted(), 0, "nobody was suspected");
    view.handle_event(Event::Disconnected { node: id(3) }, Time(1050));
    assert_eq!(view.take_refuted(), 0);
    view.handle_event(Event::Probe { node: id(3), request: 1, alive: true }, Time(1100));
    assert_eq!((view.take_refuted(), view.take_refuted()), (1, 0));
    view.handle_event(Event::Farewell { node: id(2), restarting: true }, Time(1200));
    view.handle_event(Event::Connected { node: id(2) }, Time(5000));
    assert_eq!(view.take_refuted(), 0, "it said that it would be back");
}
