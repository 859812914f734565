//! How long a service lacks replicas when a node is lost, on shoal and, in the same run, on Docker Swarm.
//!
//! The clock starts before the first signal or the pulled cable, and stops when every replacement has answered an HTTP
//! request.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use shoal_tests::evidence::{self, Seen};
use shoal_tests::http;
use shoal_tests::lab::{IMAGE, Lab, Node};
use shoal_tests::wait::wait_until;

use super::swarm::Swarm;
use super::{LabArgs, Printer, five_nodes, load_average};

/// The port that the service publishes.
pub(crate) const PORT: u16 = 8080;

/// Tasks of the service.
pub(crate) const REPLICAS: usize = 10;

/// A round that takes longer has failed.
const ROUND_WAIT: Duration = Duration::from_secs(30);

/// How long everything may take to be as before between rounds.
const RECOVER_WAIT: Duration = Duration::from_secs(90);

/// How a node is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Loss {
    /// Daemon and tasks are killed; the kernel closes their connections.
    Crash,
    /// The cable is cut, then everything is killed: nothing says goodbye.
    CutThenKill,
    /// The cable is cut; everything runs on.
    Cut,
}

impl Loss {
    fn name(self) -> &'static str {
        match self {
            Self::Crash => "crash",
            Self::CutThenKill => "cut-kill",
            Self::Cut => "cut",
        }
    }

    /// Loses a node. Returns when it began.
    pub(crate) fn inflict(self, node: Node<'_>) -> Result<Instant> {
        match self {
            Self::Crash => node.crash(),
            Self::Cut | Self::CutThenKill => {
                let start = Instant::now();
                node.lab.cut(&[node.index])?;
                if self == Self::CutThenKill {
                    node.crash()?;
                }
                Ok(start)
            }
        }
    }

    /// Gives the node back.
    pub(crate) fn undo(self, node: Node<'_>) -> Result<()> {
        if self != Self::Crash {
            node.lab.heal(&[node.index])?;
        }
        if self != Self::Cut {
            node.start_and_wait(Duration::from_secs(30))?;
        }
        Ok(())
    }
}

/// A cluster that can lose nodes, with a service of ten.
pub(crate) trait Cluster {
    /// Returns the nodes that never decide anything.
    fn workers(&self) -> Vec<usize>;
    /// Returns the node whose loss hurts most: the holder of most leases, or the leader.
    fn holder(&self) -> Result<usize>;
    /// Loses a node and returns the seconds until every slot it had has another task that answers.
    fn lose(&self, loss: Loss, victim: usize) -> Result<f64>;
    /// Gives the node back and spreads the service evenly again.
    fn recover(&self, loss: Loss, victim: usize) -> Result<()>;
}

/// Seconds of all rounds, and of those of each kind of victim.
pub(crate) type Took = BTreeMap<&'static str, Vec<f64>>;

/// Measures a loss on Swarm, if that is wanted, and on shoal.
pub(crate) fn compare(printer: &Printer, args: &LabArgs, loss: Loss, ours: usize, swarms: usize) -> Result<()> {
    let mut peer = Took::new();
    if swarms > 0 {
        let swarm = Swarm::create(&args.swarm_dir())?;
        peer = rounds("swarm", &swarm, loss, swarms)?;
    }
    for (kind, values) in &peer {
        printer.spread(&format!("swarm-failover-{}{kind}", loss.name()), values, "s", &[]);
    }
    if ours > 0 {
        let lab = five_nodes(args)?;
        serve(&lab)?;
        for (kind, values) in rounds("shoal", &*lab, loss, ours)? {
            let beside = peer.get(kind).map(Vec::as_slice).unwrap_or_default();
            printer.spread(&format!("failover-{}{kind}", loss.name()), &values, "s", beside);
        }
    }
    Ok(())
}

/// Loses nodes in turn: a worker in one round, if there are such, the holder in the next.
pub(crate) fn rounds(name: &str, cluster: &dyn Cluster, loss: Loss, rounds: usize) -> Result<Took> {
    let mut took = Took::new();
    let workers = cluster.workers();
    for round in 0..rounds {
        let (kind, victim) = match workers.get(round / 2 % workers.len().max(1)) {
            Some(worker) if round % 2 == 0 => ("-worker", *worker),
            Some(_) | None => ("-holder", cluster.holder()?),
        };
        let what = format!("{name}, round {}: {} of {} {victim}", round + 1, loss.name(), &kind[1..]);
        let load = load_average();
        let seconds = cluster.lose(loss, victim).with_context(|| what.clone())?;
        eprintln!("{what}: {seconds:.2} s (load {load})");
        took.entry(kind).or_default().push(seconds);
        took.entry("").or_default().push(seconds);
        if round + 1 < rounds {
            cluster.recover(loss, victim).with_context(|| format!("{what}: afterwards"))?;
        }
    }
    Ok(took)
}

impl Cluster for Lab {
    fn workers(&self) -> Vec<usize> {
        self.nodes().filter(|node| !node.is_manager()).map(|node| node.index).collect()
    }

    fn holder(&self) -> Result<usize> {
        evidence::holder_of_most(self, self.config.nodes)?.context("no holder is known")
    }

    fn lose(&self, loss: Loss, victim: usize) -> Result<f64> {
        let lost: BTreeSet<String> = self.node(victim).tasks().into_keys().collect();
        ensure!(!lost.is_empty(), "the victim runs nothing");
        let through = self.running().map(|node| node.index).find(|index| *index != victim).context("no survivor")?;
        let mut missing: BTreeSet<String> = evidence::ask_all(self, through, PORT, REPLICAS)?
            .into_iter()
            .filter(|seen| lost.contains(&seen.task))
            .map(|seen| seen.slot)
            .collect();
        ensure!(missing.len() == lost.len(), "not all tasks of the victim answered before");
        let start = loss.inflict(self.node(victim))?;
        let address = SocketAddr::new(self.node(through).address(), PORT);
        http::in_namespace(self.client_namespace().as_deref(), || {
            while !missing.is_empty() {
                ensure!(start.elapsed() < ROUND_WAIT, "slots {missing:?} were not replaced within {ROUND_WAIT:?}");
                let answer = http::get(address, "/", evidence::REQUEST_WAIT);
                if let Ok(seen) = answer.and_then(|answer| Seen::read(&answer))
                    && !lost.contains(&seen.task)
                {
                    missing.remove(&seen.slot);
                }
            }
            Ok(start.elapsed().as_secs_f64())
        })
    }

    fn recover(&self, loss: Loss, victim: usize) -> Result<()> {
        loss.undo(self.node(victim))?;
        wait_until("all nodes are ready", RECOVER_WAIT, || self.all_ready())?;
        wait_well(self)?;
        // A node that returned empty is given new tasks only.
        let shoal = self.node(1).shoal();
        shoal.ok(&["service", "scale", "http=0"])?;
        shoal.ok(&["service", "scale", &format!("http={REPLICAS}")])?;
        wait_well(self)
    }
}

/// Starts the service of ten and waits until all of it answers.
pub(crate) fn serve(lab: &Lab) -> Result<()> {
    let (replicas, ports) = (REPLICAS.to_string(), format!("{PORT}:80"));
    lab.node(1).shoal().ok(&["service", "create", "--name", "http", "--replicas", &replicas, "-p", &ports, IMAGE])?;
    wait_well(lab)
}

fn wait_well(lab: &Lab) -> Result<()> {
    wait_until("ten replicas run and answer", RECOVER_WAIT, || {
        let faults = evidence::faults_of(lab, PORT, REPLICAS, &BTreeSet::new());
        if faults.is_empty() { Ok(true) } else { bail!(faults.join("; ")) }
    })
    .map(|_| ())
}
