//! `GET /shoal/status`: is the cluster well, and if not, what is wrong.

use std::time::Duration;

use shoal_control::renewal::Validity;
use shoal_protocol::lease::{LeaseId, VoterSet};
use shoal_protocol::value::NodeStatus;
use shoal_protocol::{ClusterId, NodeId, WallTime};

use super::snapshot::{LeaseReport, NodeReport, NodeState, StatusReport};

/// What a node knows of its cluster's health.
#[derive(Debug, Clone)]
pub struct StatusFacts {
    /// The cluster, once known.
    pub cluster: Option<ClusterId>,
    /// This node.
    pub me: NodeId,
    /// Whether a majority of the voters answers.
    pub quorum: bool,
    /// The voters.
    pub voters: VoterSet,
    /// Every lease.
    pub leases: Vec<LeaseFacts>,
    /// Every node.
    pub nodes: Vec<NodeFacts>,
    /// Records that this node cannot read.
    pub quarantined: usize,
    /// What this node could not do and has not managed since, for people.
    pub troubles: Vec<String>,
    /// When this node's credential was made, and when it ends.
    pub credential: Validity,
    /// The present moment.
    pub now: WallTime,
}

/// A credential that ends within this time, or within a twelfth of its life, should have been renewed long ago.
const CREDENTIAL_WARNING: Duration = Duration::from_secs(7 * 86_400);

/// What is known of one lease.
#[derive(Debug, Clone, Copy)]
pub struct LeaseFacts {
    /// The lease.
    pub lease: LeaseId,
    /// Who holds it and under which epoch, if known.
    pub holder: Option<(NodeId, u64)>,
    /// How long it lasts, if this node holds it.
    pub expires_in: Option<Duration>,
}

/// What is known of one node.
#[derive(Debug, Clone)]
pub struct NodeFacts {
    /// The node.
    pub id: NodeId,
    /// Whether it is there.
    pub state: NodeState,
    /// What it says of itself.
    pub status: Option<NodeStatus>,
    /// The digest it said last.
    pub digest: Option<u128>,
}

impl StatusReport {
    /// Judges the facts.
    pub fn new(facts: &StatusFacts) -> Self {
        // Only who answers can agree; what the others have is unknown.
        let answering = || facts.nodes.iter().filter(|node| node.state == NodeState::Ready);
        let mut digests = answering().filter_map(|node| node.digest);
        let first = digests.next();
        let agree = digests.all(|digest| Some(digest) == first);
        Self {
            cluster: facts.cluster.map_or_else(String::new, |cluster| cluster.to_string()),
            node: facts.me,
            quorum: facts.quorum,
            voters: facts.voters.members.clone(),
            leases: facts.leases.iter().map(lease).collect(),
            nodes: facts.nodes.iter().map(node).collect(),
            agree,
            warnings: warnings(facts),
            quarantined: facts.quarantined as u64,
        }
    }
}

fn lease(facts: &LeaseFacts) -> LeaseReport {
    LeaseReport {
        lease: facts.lease.to_string(),
        holder: facts.holder.map_or_else(String::new, |(node, _)| node.to_string()),
        epoch: facts.holder.map_or(0, |(_, epoch)| epoch),
        expires_in_ms: facts.expires_in.map_or(0, |left| u64::try_from(left.as_millis()).unwrap_or(u64::MAX)),
    }
}

fn node(facts: &NodeFacts) -> NodeReport {
    NodeReport {
        id: facts.id,
        hostname: hostname(facts),
        state: facts.state,
        digest: facts.digest.map_or_else(String::new, |digest| format!("{digest:032x}")),
    }
}

fn hostname(facts: &NodeFacts) -> String {
    facts.status.as_ref().map_or_else(String::new, |status| status.hostname.clone())
}

/// Returns what people call a node.
fn name(facts: &NodeFacts) -> String {
    match hostname(facts) {
        name if name.is_empty() => facts.id.to_string(),
        name => name,
    }
}

/// Returns the voters that do not answer.
fn silent_voters(facts: &StatusFacts) -> Vec<String> {
    let silent = |voter: &&NodeId| !facts.nodes.iter().any(|node| node.id == **voter && node.state == NodeState::Ready);
    let name = |voter: &NodeId| {
        let node = facts.nodes.iter().find(|node| node.id == *voter);
        node.map_or_else(|| voter.to_string(), name)
    };
    facts.voters.members.iter().filter(silent).map(name).collect()
}

/// Returns the voters that answer and do not know yet what the previous ones knew.
fn new_voters(facts: &StatusFacts) -> Vec<String> {
    let is_new = |node: &&NodeFacts| {
        let votes = node.status.as_ref().is_some_and(|status| status.votes >= facts.voters.version);
        node.state == NodeState::Ready && facts.voters.contains(node.id) && !votes
    };
    facts.nodes.iter().filter(is_new).map(name).collect()
}

fn credential_warning(facts: &StatusFacts) -> Option<String> {
    let (Validity { made, expires: ends }, now) = (facts.credential, facts.now);
    let most = u64::try_from(CREDENTIAL_WARNING.as_nanos()).unwrap_or(u64::MAX);
    let soon = most.min(ends.0.saturating_sub(made.0) / 12);
    if ends <= now {
        Some(format!("this node's credential ended at {ends}: start it with shoald --join ADDRESS --token TOKEN"))
    } else if ends.0 - now.0 < soon {
        Some(format!("this node's credential ends at {ends} and no manager has renewed it"))
    } else {
        None
    }
}

fn warnings(facts: &StatusFacts) -> Vec<String> {
    let mut warnings = Vec::new();
    if !facts.quorum {
        let silent = silent_voters(facts);
        let who = if silent.is_empty() { String::new() } else { format!(" ({})", silent.join(", ")) };
        warnings.push(format!(
            "no quorum: a majority of the {} voters does not answer{who}; reads work and tasks go on, writes are refused",
            facts.voters.members.len()
        ));
    }
    let new = new_voters(facts);
    if !new.is_empty() {
        warnings
            .push(format!("not in place yet as voters: {}; until then no other voter should be lost", new.join(", ")));
    }
    let free: Vec<String> =
        facts.leases.iter().filter(|lease| lease.holder.is_none()).map(|lease| lease.lease.to_string()).collect();
    if !free.is_empty() && facts.quorum {
        warnings.push(format!("without a holder: {}", free.join(", ")));
    }
    for node in &facts.nodes {
        let name = name(node);
        if node.state != NodeState::Ready {
            warnings.push(format!("node {name} is {}", node.state.name()));
        }
        for (port, error) in node.status.iter().flat_map(|status| &status.port_errors) {
            warnings.push(format!("node {name} cannot publish port {port}: {error}"));
        }
    }
    if facts.quarantined > 0 {
        warnings.push(format!("{} records cannot be read by this version", facts.quarantined));
    }
    warnings.extend(facts.troubles.iter().cloned());
    warnings.extend(credential_warning(facts));
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 86_400 * 1_000_000_000;

    fn facts() -> StatusFacts {
        let node = |id: u128, state, digest| NodeFacts {
            id: NodeId(id),
            state,
            status: Some(NodeStatus { hostname: format!("n{id}"), votes: 1, ..NodeStatus::default() }),
            digest,
        };
        StatusFacts {
            cluster: Some(ClusterId(9)),
            me: NodeId(1),
            quorum: true,
            voters: VoterSet::first(NodeId(1)),
            leases: vec![LeaseFacts {
                lease: LeaseId::REGISTRY,
                holder: Some((NodeId(1), 4)),
                expires_in: Some(Duration::from_millis(2500)),
            }],
            nodes: vec![node(1, NodeState::Ready, Some(5)), node(2, NodeState::Ready, Some(5))],
            quarantined: 0,
            troubles: Vec::new(),
            credential: Validity { made: WallTime(0), expires: WallTime(90 * DAY) },
            now: WallTime(0),
        }
    }

    #[test]
    fn a_cluster_that_is_well_has_no_warnings() {
        let report = StatusReport::new(&facts());
        assert!(report.agree && report.quorum && report.warnings.is_empty(), "{report:?}");
        let json = serde_json::to_value(&report).unwrap();
        let keys: Vec<&String> = json.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["Agree", "Cluster", "Leases", "Node", "Nodes", "Quorum", "Voters", "Warnings"]);
        assert_eq!(json["Leases"][0]["ExpiresInMs"], 2500);
        assert_eq!(json["Leases"][0]["Lease"], "registry");
        assert_eq!(json["Nodes"][0]["State"], "ready");
    }

    #[test]
    fn what_is_wrong_is_said() {
        let mut facts = facts();
        facts.nodes[1].digest = Some(6);
        assert!(!StatusReport::new(&facts).agree);
        facts.nodes[1].state = NodeState::Down;
        facts.leases[0].holder = None;
        facts.quarantined = 1;
        let report = StatusReport::new(&facts);
        assert!(report.agree, "a node that is gone is not asked");
        let want = ["without a holder: registry", "node n2 is down", "1 records cannot be read by this version"];
        assert_eq!(report.warnings, want);
        facts.quorum = false;
        facts.voters.members = vec![NodeId(1), NodeId(2)];
        let report = StatusReport::new(&facts);
        assert!(report.warnings[0].starts_with("no quorum: a majority of the 2 voters does not answer (n2); "));
    }

    #[test]
    fn voters_that_are_not_in_place_are_named() {
        let mut facts = facts();
        facts.voters = facts.voters.successor([NodeId(1), NodeId(2), NodeId(3)]);
        facts.nodes[0].status.as_mut().unwrap().votes = 2;
        let want = ["not in place yet as voters: n2; until then no other voter should be lost"];
        assert_eq!(StatusReport::new(&facts).warnings, want);
        facts.nodes[1].status.as_mut().unwrap().votes = 2;
        assert!(StatusReport::new(&facts).warnings.is_empty());
    }

    #[test]
    fn what_is_wrong_with_this_node_is_said() {
        let mut facts = facts();
        facts.troubles = vec!["this node's disk refuses writes: full".to_owned()];
        facts.nodes[1].status.as_mut().unwrap().port_errors.insert(80, "address in use".to_owned());
        facts.nodes[1].state = NodeState::Suspect;
        let want = ["node n2 is suspect", "node n2 cannot publish port 80: address in use", &facts.troubles[0]];
        assert_eq!(StatusReport::new(&facts).warnings, want);
        for (days, want) in [(82, None), (84, Some("no manager has renewed it")), (90, Some("--join ADDRESS --token"))]
        {
            facts.now = WallTime(days * DAY);
            let warnings = StatusReport::new(&facts).warnings;
            let said = warnings.iter().find(|warning| warning.contains("credential"));
            assert_eq!(said.is_some(), want.is_some(), "{days}: {warnings:?}");
            assert!(said.is_none_or(|said| said.contains(want.unwrap())), "{days}: {said:?}");
        }
        // Those that last an hour are renewed in the last third of it.
        facts.credential.made = WallTime(90 * DAY - 3_600_000_000_000);
        for (minutes, want) in [(10, false), (4, true)] {
            facts.now = WallTime(90 * DAY - minutes * 60_000_000_000);
            let warnings = StatusReport::new(&facts).warnings;
            assert_eq!(
                warnings.iter().any(|warning| warning.contains("no manager has renewed it")),
                want,
                "{warnings:?}"
            );
        }
    }
}
