//! Tables for the parts, then simulated clusters and a model for the whole.

mod cluster;
mod model;

use std::collections::BTreeSet;
use std::time::Duration;

use shoal_protocol::lease::Grant;

use super::*;
use cluster::{Cluster, Counts, chaos};
use rank::{favourite, rank};

fn id(number: u128) -> NodeId {
    NodeId(number)
}

fn start(node: u128, incarnation: u64) -> Holder {
    Holder { node: id(node), incarnation }
}

/// One seed, if `SHOAL_SEED` names it, to replay what failed.
fn seeds(count: u64) -> std::ops::Range<u64> {
    match std::env::var("SHOAL_SEED").ok().and_then(|seed| seed.parse().ok()) {
        Some(seed) => seed..seed + 1,
        None => 0..count,
    }
}

#[test]
fn a_voter_grants_renews_and_refuses() {
    let granted = |rose| (true, rose, 0);
    let refused = |remaining_ms| (false, false, remaining_ms);
    // Node 1 was granted epoch 5 at 1000 in its second start.
    for (name, asker, epoch, now, want) in [
        ("the holder renews", start(1, 2), 5, 2000, granted(false)),
        ("the holder renews late, nobody came between", start(1, 2), 5, 9000, granted(false)),
        ("another waits for the end", start(2, 1), 6, 2000, refused(2000)),
        ("another gets it at the end", start(2, 1), 6, 4000, granted(true)),
        ("but under no epoch that was used", start(2, 1), 5, 4000, refused(0)),
        ("the holder's next start need not wait", start(1, 3), 6, 2000, granted(true)),
        ("but takes a new epoch", start(1, 3), 5, 2000, refused(0)),
        ("the holder's last start is dead", start(1, 1), 6, 9000, refused(0)),
        ("the holder may begin anew", start(1, 2), 6, 2000, granted(true)),
    ] {
        let mut slot = Slot::default();
        assert_eq!(slot.ask(start(1, 2), 5, Time(1000)), Verdict::Granted { rose: true });
        let got = match slot.ask(asker, epoch, Time(now)) {
            Verdict::Granted { rose } => (true, rose, 0),
            Verdict::Refused { remaining, .. } => (false, false, as_millis(remaining)),
        };
        assert_eq!(got, want, "{name}");
    }
}

#[test]
fn a_voter_takes_grants_back() {
    for (name, asker, epoch, used, want_epoch, want_remaining_ms) in [
        ("used: free, but the epoch stays", start(2, 1), 6, true, 6, 0),
        ("never used: as if never granted", start(2, 1), 6, false, 5, 0),
        ("not the holder's", start(1, 2), 6, true, 6, 3000),
        ("not that grant", start(2, 1), 5, true, 6, 3000),
        ("not that start", start(2, 2), 6, false, 6, 3000),
    ] {
        let mut slot = Slot::default();
        slot.ask(start(1, 2), 5, Time(1000));
        slot.ask(start(2, 1), 6, Time(4000));
        slot.release(asker, epoch, used);
        assert_eq!(slot.epoch(), want_epoch, "{name}");
        assert_eq!(as_millis(slot.remaining(Time(4000))), want_remaining_ms, "{name}");
    }
    let mut restarted = Slot::restarted(Granted { epoch: 6, holder: start(2, 1) }, true, Time(0));
    restarted.release(start(2, 1), 6, false);
    assert_eq!(restarted.epoch(), 6, "what stood before was forgotten in the restart, so the epoch stays");
}

#[test]
fn the_next_voters_leave_a_lease_to_whoever_may_still_hold_it() {
    let grant = |epoch, holder, remaining_ms| Grant {
        lease: LeaseId(3),
        epoch,
        holder: id(holder),
        incarnation: 1,
        remaining_ms,
    };
    let nobody = (false, false);
    for (name, reports, want_epoch, want_renewed, want_others_wait) in [
        ("nothing was granted", vec![], 0, nobody, false),
        ("one holder", vec![grant(5, 1, 900), grant(5, 1, 100)], 5, (true, false), true),
        ("one holder, one voter behind", vec![grant(5, 1, 900), grant(4, 2, 0)], 5, (true, false), true),
        ("all have ended", vec![grant(5, 1, 0), grant(4, 2, 0)], 5, (true, false), false),
        ("two may hold it, so nobody may go on", vec![grant(5, 1, 900), grant(4, 2, 900)], 5, nobody, true),
        ("the holder's epoch was passed by an attempt", vec![grant(5, 1, 0), grant(4, 2, 900)], 5, nobody, true),
        ("two attempts under one epoch", vec![grant(5, 1, 900), grant(5, 2, 900)], 5, nobody, true),
        ("an attempt outlasts another's lease of its epoch", vec![grant(5, 1, 900), grant(5, 2, 0)], 5, nobody, true),
        ("one of two that ended may have held it", vec![grant(5, 2, 0), grant(5, 1, 0)], 5, nobody, false),
    ] {
        let adopted = || {
            let mut slot = Slot::default();
            slot.adopt(&reports, Time(1000));
            slot
        };
        let renews =
            |holder, epoch| adopted().ask(start(holder, 1), epoch, Time(1000)) == Verdict::Granted { rose: false };
        assert_eq!(adopted().epoch(), want_epoch, "{name}");
        assert_eq!((renews(1, 5), renews(2, 4)), want_renewed, "{name}");
        let granted = matches!(adopted().ask(start(3, 1), 6, Time(1000)), Verdict::Granted { .. });
        assert_eq!(!granted, want_others_wait, "{name}");
        assert!(matches!(adopted().ask(start(3, 1), 6, Time(4000)), Verdict::Granted { .. }), "{name}");
    }
}

#[test]
fn a_holder_counts_from_the_oldest_of_its_newest_majority() {
    for (name, asked, majority, want) in [
        ("alone", vec![1000], 1, Some(3940)),
        ("no majority", vec![1000], 2, None),
        ("the slowest of two", vec![1000, 2000], 2, Some(3940)),
        ("one old grant of three does not matter", vec![1000, 2000, 2000], 2, Some(4940)),
        ("five", vec![5, 4, 3, 2, 1], 3, Some(2943)),
    ] {
        let asked = asked.into_iter().enumerate().map(|(voter, at)| (id(voter as u128), Time(at))).collect();
        assert_eq!(voter::valid_until(&asked, majority), want.map(Time), "{name}");
    }
}

#[test]
fn enough_managers_vote() {
    let ids = |numbers: &[u128]| -> Vec<NodeId> { numbers.iter().copied().map(id).collect() };
    for (name, current, alive, listed, want) in [
        ("one", &[1][..], &[1][..], &[1][..], &[1][..]),
        ("two have one voter", &[1], &[1, 2], &[1, 2], &[1]),
        ("three", &[2], &[1, 2, 3], &[1, 2, 3], &[1, 2, 3]),
        ("a third that is not there yet", &[1], &[1, 2], &[1, 2, 3], &[1]),
        ("four", &[1, 2, 4], &[1, 2, 3, 4], &[1, 2, 3, 4], &[1, 2, 4]),
        ("five", &[1, 2, 4], &[1, 2, 3, 4, 5], &[1, 2, 3, 4, 5], &[1, 2, 3, 4, 5]),
        ("six with one dead", &[1, 2, 4], &[1, 2, 3, 4, 6], &[1, 2, 3, 4, 5, 6], &[1, 2, 3, 4, 6]),
        ("nine", &[9], &[1, 2, 3, 4, 5, 6, 7, 8, 9], &[1, 2, 3, 4, 5, 6, 7, 8, 9], &[1, 2, 3, 4, 5, 6, 9]),
        ("dead voters stay", &[1, 2, 3], &[3, 4], &[1, 2, 3, 4], &[1, 2, 3]),
        ("a removed one is replaced", &[1, 2, 3], &[1, 2, 4], &[1, 2, 4], &[1, 2, 4]),
        ("a removed one is replaced by a dead one rather than by none", &[1, 2, 3], &[1, 2], &[1, 2, 4], &[1, 2, 4]),
        ("two are left", &[1, 2, 3], &[2], &[1, 2], &[2]),
        ("five become four, the living stay", &[1, 2, 3, 4, 5], &[2, 3, 4], &[1, 2, 3, 4], &[2, 3, 4]),
        ("everyone else is gone", &[1], &[], &[2, 3], &[1]),
        ("nobody is listed", &[1], &[1], &[], &[1]),
    ] {
        let current = VoterSet::first(id(0)).successor(ids(current));
        let [alive, listed] = [alive, listed].map(|list| ids(list).into_iter().collect::<BTreeSet<_>>());
        assert_eq!(desired_voters(&current, &alive, &listed), ids(want), "{name}");
    }
}

#[test]
fn leases_are_spread_over_all_nodes() {
    let nodes: Vec<NodeId> = (1..=3).map(id).collect();
    for &node in &nodes {
        let first = LeaseId::all().filter(|&lease| favourite(lease, nodes.iter().copied()) == Some(node)).count();
        assert!((2..=10).contains(&first), "{node} would hold {first}");
    }
    for lease in LeaseId::all() {
        let ranks: BTreeSet<usize> = nodes.iter().map(|&node| rank(lease, node, &nodes)).collect();
        assert_eq!(ranks, BTreeSet::from([0, 1, 2]));
    }
}

#[test]
fn no_lease_has_two_holders_whatever_goes_wrong() {
    let mut total = Counts::default();
    for seed in seeds(60) {
        let counts =
            chaos(seed, Faults::default()).unwrap_or_else(|violation| panic!("SHOAL_SEED={seed}: {violation}"));
        total.add(&counts);
    }
    println!("{total:?}");
    assert!(total.is_complete() || seeds(60).count() == 1, "something never happened: {total:?}");
}

/// Runs until a rule that is switched off is missed.
fn violation(faults: Faults) -> Option<String> {
    seeds(60).find_map(|seed| chaos(seed, faults).err())
}

#[test]
fn without_a_restarted_voters_wait_the_checks_fail() {
    let found = violation(Faults { no_restart_wait: true, ..Faults::default() });
    assert!(found.as_ref().is_some_and(|found| found.contains("two holders")), "{found:?}");
}

#[test]
fn without_memory_of_grants_the_checks_fail() {
    let found = violation(Faults { forget_grants_on_restart: true, ..Faults::default() });
    assert!(found.is_some());
}

#[test]
fn without_the_fence_the_checks_fail() {
    let found = violation(Faults { no_epoch_fence: true, ..Faults::default() });
    assert!(found.as_ref().is_some_and(|found| found.contains("accepts writes")), "{found:?}");
}

/// A cluster at peace, with everything in its place.
fn settled(seed: u64, size: u128) -> Cluster {
    let mut cluster = Cluster::new(seed, size, Faults::default());
    cluster.expect_within(Duration::from_secs(10), "start", Cluster::is_well);
    cluster.settled = cluster.listed.iter().copied().collect();
    cluster.expect_within(Duration::from_secs(40), "rebalancing", |cluster| cluster.is_well() && cluster.is_balanced());
    cluster
}

#[test]
fn the_first_node_holds_everything_at_once() {
    let mut cluster = Cluster::new(1, 1, Faults::default());
    let took = cluster.expect_within(Duration::from_secs(1), "acquisition", Cluster::is_well);
    assert!(took <= Duration::from_millis(400), "{took:?}");
}

#[test]
fn leases_move_to_settled_nodes_and_stay_there() {
    for seed in seeds(10) {
        let mut cluster = settled(seed, 3 + u128::from(seed % 3));
        let before = cluster.counts.clone();
        cluster.run(20_000).unwrap();
        assert_eq!(cluster.counts, before, "SHOAL_SEED={seed}: peace is eventless");
    }
}

#[test]
fn when_a_node_dies_others_hold_its_leases_right_after_they_end() {
    let mut slowest = Duration::ZERO;
    for seed in seeds(20) {
        let mut cluster = settled(seed, 3 + u128::from(seed % 3));
        let victim = cluster.busiest();
        cluster.run(seed * 37 % 1000).unwrap();
        cluster.crash(victim, 60_000);
        let took = cluster.expect_within(Duration::from_secs(5), "take-over", |cluster| {
            LeaseId::all().all(|lease| cluster.holders(lease).len() == 1)
        });
        slowest = slowest.max(took);
    }
    println!("slowest take-over {slowest:?}");
    assert!(slowest <= Duration::from_millis(3400), "{slowest:?}");
}

#[test]
fn one_that_leaves_hands_everything_over_at_once() {
    for seed in seeds(10) {
        let mut cluster = settled(seed, 3);
        let leaver = cluster.busiest();
        cluster.handle(leaver, Event::Leave).unwrap();
        let leaver = cluster.nodes[leaver].id;
        let took = cluster.expect_within(Duration::from_secs(5), "hand-over", |cluster| {
            LeaseId::all().all(|lease| matches!(cluster.holders(lease)[..], [(holder, _)] if holder != leaver))
        });
        assert!(took <= Duration::from_millis(1500), "SHOAL_SEED={seed}: {took:?}");
    }
}

#[test]
fn no_lease_is_lost_while_voters_are_added() {
    for seed in seeds(20) {
        let mut cluster = Cluster::new(seed, 5, Faults::default());
        let all = std::mem::take(&mut cluster.listed);
        cluster.listed = all.iter().take(1).copied().collect();
        cluster.expect_within(Duration::from_secs(2), "start", |cluster| {
            LeaseId::all().all(|lease| cluster.holders(lease).len() == 1)
        });
        for count in [3, 5] {
            cluster.listed = all.iter().take(count).copied().collect();
            cluster.expect_within(Duration::from_secs(10), "change of voters", |cluster| {
                let mut ready = cluster.nodes.iter().filter_map(|node| node.leases.as_ref());
                ready.by_ref().filter(|leases| leases.is_ready() && leases.voters().members.len() == count).count()
                    == count
            });
            cluster.run(5000).unwrap();
        }
        assert_eq!(cluster.counts.lost, 0, "SHOAL_SEED={seed}");
        assert_eq!(cluster.counts.acquired, 17, "SHOAL_SEED={seed}");
    }
}

#[test]
fn a_voter_that_restarts_interrupts_nobody_elses_lease() {
    for seed in seeds(10) {
        let mut cluster = settled(seed, 3);
        let victim = cluster.busiest();
        let id = cluster.nodes[victim].id;
        let others = |cluster: &Cluster| -> Vec<_> {
            LeaseId::all().map(|lease| cluster.holders(lease)).filter(|holders| holders[0].0 != id).collect()
        };
        let before = others(&cluster);
        cluster.crash(victim, 50);
        cluster.run(100).unwrap();
        for _ in 0..20 {
            cluster.run(200).unwrap();
            let is_held = |held: &[(NodeId, u64)]| LeaseId::all().any(|lease| cluster.holders(lease) == held);
            assert!(before.iter().all(|held| is_held(held)), "SHOAL_SEED={seed}");
        }
    }
}

#[test]
fn one_voter_in_place_brings_the_others_in() {
    for seed in seeds(20) {
        let mut cluster = Cluster::new(seed, 4, Faults::default());
        let (removed, spare) = (cluster.nodes[2].id, cluster.nodes[3].id);
        let is_ready = |cluster: &Cluster, index: usize, voter: NodeId| {
            let leases = cluster.nodes[index].leases.as_ref();
            leases.is_some_and(|leases| leases.voters().contains(voter) && leases.is_ready())
        };
        cluster.listed.remove(&spare);
        cluster.expect_within(Duration::from_secs(10), "start", |cluster| {
            (0..3).all(|index| is_ready(cluster, index, removed))
        });
        // One of the three is lost and replaced. While its replacement stands still, the next one is lost.
        let for_ever = u64::MAX / 2;
        cluster.crash(2, for_ever);
        cluster.stall(3, for_ever);
        cluster.listed.remove(&removed);
        cluster.listed.insert(spare);
        cluster.expect_within(Duration::from_secs(20), "change of voters", |cluster| is_ready(cluster, 0, spare));
        cluster.crash(1, for_ever);
        cluster.stall(3, 0);
        cluster.expect_within(Duration::from_secs(10), "take-over", |cluster| {
            is_ready(cluster, 3, spare) && LeaseId::all().all(|lease| cluster.holders(lease).len() == 1)
        });
    }
}

#[test]
fn a_change_that_its_proposer_left_half_done_is_completed() {
    let (me, other) = (id(1), id(2));
    let durable = Durable { voters: VoterSet::first(me).successor([me, other]), ready: 2, ..Leases::bootstrap(me) };
    let mut leases = Leases::new(me, durable.clone(), false, Time(0));
    leases.handle_event(Event::Persisted(1), Time(0));
    let next = durable.voters.successor([me]);
    let ballot = shoal_protocol::lease::Ballot { round: 1, node: other };
    let accept = LeaseMessage::Accept { version: 2, ballot, next };
    leases.handle_event(Event::Message { from: other, message: accept }, Time(0));
    assert!(!leases.may_append(2, LeaseId::REGISTRY, 1), "sealed");
    let mut prepared = false;
    for now in (0..10_000).step_by(100) {
        leases.handle_event(Event::Tick, Time(now));
        while let Some(action) = leases.poll_action() {
            if let Action::Persist { token, .. } = action {
                leases.handle_event(Event::Persisted(token), Time(now));
            } else if let Action::Send { to, message: LeaseMessage::Prepare { version, ballot } } = action {
                prepared = true;
                let message = LeaseMessage::Promise { version, ballot, accepted: None };
                leases.handle_event(Event::Message { from: to, message }, Time(now));
            } else if let Action::Send { to, message: LeaseMessage::Accept { version, ballot, .. } } = action {
                let message = LeaseMessage::Accepted { version, ballot };
                leases.handle_event(Event::Message { from: to, message }, Time(now));
            }
        }
    }
    assert!(prepared);
    assert_eq!(leases.voters().version, 3);
    assert_eq!(leases.voters().members, [me]);
}

#[test]
fn a_disk_that_fails_delays_promises_but_not_renewals() {
    let me = id(1);
    let mut leases = Leases::new(me, Leases::bootstrap(me), false, Time(0));
    let candidates = Event::Candidates { eligible: vec![me], settled: vec![] };
    leases.handle_event(candidates, Time(0));
    let mut is_full = false;
    let mut epochs = BTreeSet::new();
    for now in (0..20_000).step_by(50) {
        is_full = (5000..10_000).contains(&now) || is_full && now < 10_000;
        leases.handle_event(Event::Tick, Time(now));
        while let Some(action) = leases.poll_action() {
            match action {
                Action::Persist { token, .. } if is_full => leases.handle_event(Event::PersistFailed(token), Time(now)),
                Action::Persist { token, .. } => leases.handle_event(Event::Persisted(token), Time(now)),
                Action::Acquired { epoch, .. } => drop(epochs.insert(epoch)),
                Action::Lost { lease, .. } => panic!("lost {lease} at {now}"),
                Action::Send { .. } | Action::VotersChanged(_) | Action::CatchUp { .. } => {}
            }
        }
        // Another node asks for what it may not have; then for something that has to be written down.
        if now == 6000 {
            let ask = |lease| Ask { lease, epoch: 9 };
            let asks = vec![ask(LeaseId(1)), ask(LeaseId(200))];
            let message = LeaseMessage::Ask { voters: 1, round: 1, incarnation: 1, asks, releases: Vec::new() };
            leases.handle_event(Event::Message { from: id(2), message }, Time(now));
        }
    }
    assert_eq!(epochs, BTreeSet::from([1]));
    assert!(LeaseId::all().all(|lease| leases.held(lease, Time(20_000)).is_some()));
}

#[test]
fn a_promise_is_not_repeated_before_it_is_on_disk() {
    let (me, other) = (id(1), id(2));
    let mut leases = Leases::new(me, Leases::bootstrap(me), false, Time(0));
    leases.handle_event(Event::Persisted(1), Time(0));
    let granted = |leases: &mut Leases| {
        let actions: Vec<Action> = std::iter::from_fn(|| leases.poll_action()).collect();
        actions.iter().any(|action| {
            matches!(action, Action::Send { message: LeaseMessage::Answers { answers, .. }, .. } if !answers.is_empty())
        })
    };
    for round in 1..=2 {
        let asks = vec![Ask { lease: LeaseId(4), epoch: 1 }];
        let message = LeaseMessage::Ask { voters: 1, round, incarnation: 1, asks, releases: Vec::new() };
        leases.handle_event(Event::Message { from: other, message }, Time(10 * round));
        assert!(!granted(&mut leases), "round {round}");
    }
    leases.handle_event(Event::Persisted(2), Time(30));
    assert!(granted(&mut leases));
}

#[test]
fn no_message_makes_a_node_panic() {
    use shoal_protocol::lease::Ballot;
    let (me, other) = (id(1), id(2));
    let (max, lease) = (u64::MAX, LeaseId(255));
    let ballot = Ballot { round: max, node: other };
    for version in [0, 1, 2, max] {
        let set = VoterSet { version, members: vec![other, me, other], previous: vec![me; 9] };
        let next = VoterSet { version, ..VoterSet::first(me).successor([me, other]) };
        let grant = Grant { lease, epoch: max, holder: other, incarnation: max, remaining_ms: max };
        let ask = Ask { lease: LeaseId(0), epoch: max };
        let refused = Answer::Refused { ask, epoch: max, holder: other, remaining_ms: max };
        let ending = Ending { lease: LeaseId(1), epoch: max, remaining_ms: max };
        let release = Release { lease, epoch: max, used: false };
        let mut leases = Leases::new(me, Leases::bootstrap(me), false, Time(0));
        leases.handle_event(Event::Candidates { eligible: vec![me, other], settled: vec![other] }, Time(0));
        for (count, message) in [
            LeaseMessage::Ask {
                voters: version,
                round: max,
                incarnation: max,
                asks: vec![ask; 99],
                releases: vec![release; 99],
            },
            LeaseMessage::Answers {
                voters: version,
                round: 1,
                ready: true,
                answers: vec![refused; 99],
                ending: vec![ending; 99],
            },
            LeaseMessage::Handover { lease, epoch: max },
            LeaseMessage::Handover { lease: LeaseId(2), epoch: max },
            LeaseMessage::StaleVoters { current: set.clone() },
            LeaseMessage::Prepare { version, ballot },
            LeaseMessage::Promise { version, ballot, accepted: Some((ballot, set.clone())) },
            LeaseMessage::Accept { version, ballot, next: set.clone() },
            LeaseMessage::Accepted { version, ballot },
            LeaseMessage::Outbid { version, ballot },
            LeaseMessage::GrantsWanted { version },
            LeaseMessage::Grants { version, is_complete: false, grants: vec![grant; 99] },
            LeaseMessage::Decided(set),
            LeaseMessage::Decided(next),
            LeaseMessage::Grants { version, is_complete: true, grants: vec![grant; 99] },
            LeaseMessage::Grants { version: 1, is_complete: true, grants: vec![grant; 99] },
        ]
        .into_iter()
        .enumerate()
        {
            let now = Time(count as u64 * 500);
            leases.handle_event(Event::Message { from: other, message }, now);
            leases.handle_event(Event::ProposeVoters(vec![me; 20]), now);
            leases.handle_event(Event::Persisted(count as u64), now);
            leases.handle_event(Event::Tick, now);
            while leases.poll_action().is_some() {}
        }
    }
}

#[test]
fn a_holder_counts_the_renewals_that_no_majority_granted() {
    let members: Vec<NodeId> = vec![id(1), id(2)];
    let durable = Durable { voters: VoterSet { version: 1, ..VoterSet::first(id(1)) }, ready: 1, ..Durable::default() };
    let durable = Durable { voters: VoterSet { members, ..durable.voters.clone() }, ..durable };
    let mut nodes = [1, 2].map(|node| Leases::new(id(node), durable.clone(), false, Time(0)));
    nodes[0].handle_event(Event::Candidates { eligible: vec![id(1)], settled: vec![] }, Time(0));
    let mut lost = BTreeSet::new();
    for now in (0..12_000).step_by(50) {
        let is_cut_off = now >= 8_000;
        for at in 0..2 {
            nodes[at].handle_event(Event::Tick, Time(now));
            while let Some(action) = nodes[at].poll_action() {
                match action {
                    Action::Persist { token, .. } => nodes[at].handle_event(Event::Persisted(token), Time(now)),
                    Action::Send { message, .. } if !is_cut_off => {
                        let from = id(at as u128 + 1);
                        nodes[1 - at].handle_event(Event::Message { from, message }, Time(now));
                    }
                    Action::Lost { lease, epoch: 1, expired: true } => drop(lost.insert(lease)),
                    Action::Lost { .. } => panic!("{action:?}"),
                    Action::Send { .. }
                    | Action::Acquired { .. }
                    | Action::VotersChanged(_)
                    | Action::CatchUp { .. } => {}
                }
            }
        }
        if now == 7_950 {
            let renewals = nodes[0].take_renewals();
            assert!(renewals.asked >= 17 * 5 && renewals.missed == 0, "{renewals:?}");
        }
    }
    let renewals = nodes[0].take_renewals();
    assert!((17..=34).contains(&renewals.missed), "{renewals:?}");
    assert_eq!(lost.len(), 17);
    assert_eq!(nodes[1].take_renewals(), Renewals::default());
}
