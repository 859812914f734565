//! Placement preferences: over which groups of nodes the tasks of a service are spread.
//!
//! The nodes are a tree: each preference divides the nodes of a branch by their values of a label, and those without the label
//! are a branch of their own. A task goes to the branch with the fewest tasks of the service, from the outermost preference
//! inwards, among those in which a node may have it; branches that are full or not wanted at all take no part. Only tasks that
//! stay are counted, which is for the orchestrator to say. Source of the model: SwarmKit, `scheduler/decision_tree.go`.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use shoal_protocol::spec::{PREFERENCES_MAX, SpreadKey};

use super::rank::Rank;
use super::{Cluster, Node, Request};

/// Where a node, or the best node of a branch, stands among all; the lowest is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Standing {
    /// Whether it is taken only if no other fits, which counts more than the spread.
    last_resort: (bool, bool),
    /// Tasks of the service in its branch, for each preference.
    tasks: [u64; PREFERENCES_MAX],
    pub(super) rank: Rank,
}

/// How many tasks of a service stay in each branch.
pub(super) struct Branches<'a> {
    tasks: BTreeMap<Vec<&'a str>, u64>,
}

impl<'a> Branches<'a> {
    pub(super) fn new(request: &Request<'_>, cluster: &'a Cluster) -> Self {
        let mut tasks = BTreeMap::new();
        if request.spread.is_empty() {
            return Self { tasks };
        }
        for (id, count) in &request.staying {
            let Some(node) = cluster.nodes.get(id) else { continue };
            let path = path(&request.spread, node);
            for depth in 1..=path.len() {
                *tasks.entry(path[..depth].to_vec()).or_default() += count;
            }
        }
        Self { tasks }
    }

    /// Returns where a node stands that may have the task.
    pub(super) fn standing(&self, request: &Request<'_>, node: &Node, rank: Rank) -> Standing {
        let mut standing = Standing::of(rank);
        let path = path(&request.spread, node);
        for depth in 1..=path.len().min(PREFERENCES_MAX) {
            standing.tasks[depth - 1] = self.of(&path[..depth]);
        }
        standing
    }

    fn of(&self, path: &[&str]) -> u64 {
        self.tasks.get(path).copied().unwrap_or(0)
    }
}

impl Standing {
    fn of(rank: Rank) -> Self {
        Self { last_resort: (rank.suspect, rank.avoided), tasks: [0; PREFERENCES_MAX], rank }
    }
}

/// Returns the values of a node's labels, the outermost preference first.
pub(super) fn path<'a>(spread: &[SpreadKey], node: &'a Node) -> Vec<&'a str> {
    let value = |key: &SpreadKey| match key {
        SpreadKey::NodeLabel(name) => node.labels.get(name),
        SpreadKey::EngineLabel(name) => node.engine_labels.get(name),
    };
    spread.iter().map(|key| value(key).map_or("", String::as_str)).collect()
}

/// The nodes that may have a task, as a tree in which every branch knows its best node. Placing a task changes one path.
#[derive(Debug, Clone)]
pub(super) enum Tree {
    Nodes(BinaryHeap<Reverse<Rank>>),
    Branches { best: BinaryHeap<Reverse<(Standing, usize)>>, branches: Vec<Branch> },
}

#[derive(Debug, Clone)]
pub(super) struct Branch {
    /// Tasks of the service that stay in it, on nodes that may have more and on others.
    tasks: u64,
    tree: Tree,
}

impl Tree {
    pub(super) fn new(request: &Request<'_>, cluster: &Cluster, fitting: Vec<Rank>) -> Self {
        if request.spread.is_empty() {
            return Self::of_nodes(fitting);
        }
        let branches = Branches::new(request, cluster);
        let member = |rank: Rank| Some((path(&request.spread, cluster.nodes.get(&rank.id)?), rank));
        Self::build(&branches, 0, fitting.into_iter().filter_map(member).collect())
    }

    fn of_nodes(fitting: Vec<Rank>) -> Self {
        Self::Nodes(fitting.into_iter().map(Reverse).collect::<Vec<_>>().into())
    }

    /// Divides nodes whose first `level` labels are equal.
    fn build(counts: &Branches<'_>, level: usize, members: Vec<(Vec<&str>, Rank)>) -> Self {
        let mut by_value: BTreeMap<&str, Vec<(Vec<&str>, Rank)>> = BTreeMap::new();
        let mut fitting = Vec::new();
        for (path, rank) in members {
            match path.get(level) {
                Some(&value) => by_value.entry(value).or_default().push((path, rank)),
                None => fitting.push(rank),
            }
        }
        if by_value.is_empty() {
            return Self::of_nodes(fitting);
        }
        let branch = |members: Vec<(Vec<&str>, Rank)>| Branch {
            tasks: members.first().map_or(0, |(path, _)| counts.of(&path[..=level])),
            tree: Self::build(counts, level + 1, members),
        };
        let branches: Vec<Branch> = by_value.into_values().map(branch).collect();
        let standings = branches.iter().enumerate();
        let best = standings.filter_map(|(index, branch)| Some(Reverse((branch.standing(level)?, index)))).collect();
        Self::Branches { best, branches }
    }

    /// Gives a task to the best node: `settle` counts it there and returns how the node ranks now, if it may have another one.
    pub(super) fn place(&mut self, level: usize, settle: &mut dyn FnMut(Rank) -> Option<Rank>) -> Option<()> {
        match self {
            Self::Nodes(heap) => {
                let Reverse(rank) = heap.pop()?;
                heap.extend(settle(rank).map(Reverse));
            }
            Self::Branches { best, branches } => {
                let Reverse((_, index)) = best.pop()?;
                let branch = branches.get_mut(index)?;
                branch.tree.place(level + 1, settle)?;
                branch.tasks += 1;
                best.extend(branch.standing(level).map(|standing| Reverse((standing, index))));
            }
        }
        Some(())
    }

    fn best(&self) -> Option<Standing> {
        match self {
            Self::Nodes(heap) => heap.peek().map(|Reverse(rank)| Standing::of(*rank)),
            Self::Branches { best, .. } => best.peek().map(|Reverse((standing, _))| *standing),
        }
    }
}

impl Branch {
    /// Returns where its best node stands, seen from the tree at `level` that it is a branch of.
    fn standing(&self, level: usize) -> Option<Standing> {
        let mut standing = self.tree.best()?;
        standing.tasks[level] = self.tasks;
        Some(standing)
    }
}
