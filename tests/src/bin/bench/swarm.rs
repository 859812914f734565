//! A real Docker Swarm on this machine, to be measured beside shoal: three managers and two workers, default settings.
//!
//! Published ports need ip_vs, which not every kernel has; so each task is asked at its own address, from inside its host's
//! network namespace.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::{Value, json};
use shoal_tests::http;
use shoal_tests::lab::hosts::Hosts;
use shoal_tests::lab::network::{SWARM, Side};
use shoal_tests::lab::{IMAGE, engine, process};
use shoal_tests::shoal::text;
use shoal_tests::wait::{wait_for, wait_until};

use super::failover::{Cluster, Loss, REPLICAS};
use api::{API_WAIT, call};

pub(crate) mod api;

const HOSTS: usize = 5;
const MANAGERS: usize = 3;
/// The service of ten.
pub(crate) const SERVICE: &str = "http";

/// A round that takes longer has failed. A lost leader's tasks take about 50 s.
const ROUND_WAIT: Duration = Duration::from_secs(300);

/// How long everything may take to be as before: after a cut the managers elect again and again for up to two minutes.
const RECOVER_WAIT: Duration = Duration::from_secs(300);

/// How long joining may take.
const JOIN_WAIT: Duration = Duration::from_secs(60);

/// Between two looks at the tasks.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// The hosts and their names in the swarm; everything of them is removed when this is dropped.
pub(crate) struct Swarm {
    hosts: Hosts,
    /// Swarm's name of each host, in order.
    ids: Vec<String>,
}

/// One task, as a manager describes it.
struct Task {
    id: String,
    slot: u64,
    node: String,
    container: String,
}

impl Swarm {
    /// Starts the hosts, makes them one swarm and starts the service. Removes what an earlier run left in `dir`.
    pub(crate) fn create(dir: &Path) -> Result<Self> {
        let mut swarm = Self { hosts: Hosts::create(dir, HOSTS)?, ids: Vec::new() };
        swarm.form()?;
        swarm.serve()?;
        Ok(swarm)
    }

    fn form(&mut self) -> Result<()> {
        let own =
            |index: usize| json!({"ListenAddr": "0.0.0.0:2377", "AdvertiseAddr": SWARM.address(index).to_string()});
        call(&self.socket(1), "POST", "/swarm/init", &own(1), JOIN_WAIT)?;
        let tokens = call(&self.socket(1), "GET", "/swarm", &Value::Null, API_WAIT)?;
        for index in 2..=HOSTS {
            let role = if index <= MANAGERS { "Manager" } else { "Worker" };
            let mut join = own(index);
            join["RemoteAddrs"] = json!([format!("{}:2377", SWARM.address(1))]);
            join["JoinToken"] = tokens["JoinTokens"][role].clone();
            call(&self.socket(index), "POST", "/swarm/join", &join, JOIN_WAIT)?;
        }
        for index in 1..=HOSTS {
            let info = call(&self.socket(index), "GET", "/info", &Value::Null, API_WAIT)?;
            self.ids.push(text(&info["Swarm"], "NodeID").to_owned());
        }
        self.settle()
    }

    /// Starts the service and waits until all of it runs.
    fn serve(&self) -> Result<()> {
        let spec = json!({
            "Name": SERVICE,
            "TaskTemplate": {"ContainerSpec": {"Image": IMAGE}},
            "Mode": {"Replicated": {"Replicas": REPLICAS}},
        });
        self.ask(0, "POST", "/services/create", &spec)?;
        wait_until("ten replicas run", RECOVER_WAIT, || Ok(self.running_tasks(0)?.len() == REPLICAS)).map(|_| ())
    }

    /// Waits until every host is ready and every manager reachable.
    fn settle(&self) -> Result<()> {
        let is_well = |node: &Value| {
            let reachability = node["ManagerStatus"]["Reachability"].as_str().unwrap_or("reachable");
            text(&node["Status"], "State") == "ready" && reachability == "reachable"
        };
        wait_until("all hosts are ready", RECOVER_WAIT, || {
            let nodes = self.ask(0, "GET", "/nodes", &Value::Null)?;
            Ok(nodes.as_array().is_some_and(|nodes| nodes.len() == HOSTS && nodes.iter().all(is_well)))
        })
        .map(|_| ())
    }

    /// Sends a request to the first manager other than `lost` that answers it.
    fn ask(&self, lost: usize, method: &str, path: &str, body: &Value) -> Result<Value> {
        let managers = (1..=MANAGERS).filter(|index| *index != lost);
        let mut error = None;
        for index in managers {
            match call(&self.socket(index), method, path, body, API_WAIT) {
                Ok(answer) => return Ok(answer),
                Err(reason) => error = Some(reason.context(format!("manager {index}"))),
            }
        }
        Err(error.context("there are no other managers")?)
    }

    /// Returns the tasks that run and shall, as a manager other than `lost` says.
    fn running_tasks(&self, lost: usize) -> Result<Vec<Task>> {
        let filters = http::encoded(&json!({"service": [SERVICE], "desired-state": ["running"]}).to_string());
        let tasks = self.ask(lost, "GET", &format!("/tasks?filters={filters}"), &Value::Null)?;
        let task = |task: &Value| Task {
            id: text(task, "ID").to_owned(),
            slot: task["Slot"].as_u64().unwrap_or_default(),
            node: text(task, "NodeID").to_owned(),
            container: text(&task["Status"]["ContainerStatus"], "ContainerID").to_owned(),
        };
        let runs = |task: &&Value| text(&task["Status"], "State") == "running";
        Ok(tasks.as_array().context("tasks are not a list")?.iter().filter(runs).map(task).collect())
    }

    /// Returns whether a task's container answers HTTP at its own address.
    fn answers(&self, task: &Task) -> Result<bool> {
        let index = 1 + self.ids.iter().position(|id| *id == task.node).context("a task of an unknown host")?;
        let path = format!("/containers/{}/json", task.container);
        let container = call(&self.socket(index), "GET", &path, &Value::Null, API_WAIT)?;
        let networks = container["NetworkSettings"]["Networks"].as_object().context("a container without networks")?;
        let address: IpAddr = networks
            .values()
            .find_map(|network| text(network, "IPAddress").parse().ok())
            .context("a container without an address")?;
        let answer = http::in_namespace(SWARM.path(index).as_deref(), || {
            http::get(SocketAddr::new(address, 80), "/", Duration::from_secs(3))
        })?;
        Ok(answer.status == 200)
    }

    fn inflict(&self, loss: Loss, victim: usize) -> Result<Instant> {
        let processes = process::hold(engine::processes_of(&self.hosts.directory(victim)));
        ensure!(!processes.is_empty(), "host {victim} does not run");
        let start = Instant::now();
        if loss != Loss::Crash {
            SWARM.unplug(victim)?;
        }
        if loss != Loss::Cut {
            process::signal(&processes, Signal::KILL);
        }
        Ok(start)
    }

    /// Removes the service, so that the next one is spread evenly again.
    fn clear(&self) -> Result<()> {
        wait_until("the service is removed", RECOVER_WAIT, || {
            self.ask(0, "DELETE", &format!("/services/{SERVICE}"), &Value::Null).map(|_| true)
        })?;
        wait_until("its containers are gone", RECOVER_WAIT, || {
            for index in 1..=HOSTS {
                let all = call(&self.socket(index), "GET", "/containers/json?all=1", &Value::Null, API_WAIT)?;
                if all.as_array().is_none_or(|containers| !containers.is_empty()) {
                    return Ok(false);
                }
            }
            Ok(true)
        })
        .map(|_| ())
    }

    /// Returns where a host's engine answers.
    pub(crate) fn socket(&self, index: usize) -> PathBuf {
        self.hosts.socket(index)
    }
}

impl Cluster for Swarm {
    fn workers(&self) -> Vec<usize> {
        (MANAGERS + 1..=HOSTS).collect()
    }

    fn holder(&self) -> Result<usize> {
        let (leader, _) = wait_for("there is a leader", RECOVER_WAIT, || {
            let nodes = self.ask(0, "GET", "/nodes", &Value::Null)?;
            let leads = |node: &&Value| node["ManagerStatus"]["Leader"].as_bool() == Some(true);
            let leader = nodes.as_array().and_then(|nodes| nodes.iter().find(leads)).map(|node| text(node, "ID"));
            Ok(leader.and_then(|leader| self.ids.iter().position(|id| id == leader)))
        })?;
        Ok(leader + 1)
    }

    fn lose(&self, loss: Loss, victim: usize) -> Result<f64> {
        let lost: BTreeMap<String, u64> = self
            .running_tasks(0)?
            .into_iter()
            .filter(|task| task.node == self.ids[victim - 1])
            .map(|task| (task.id, task.slot))
            .collect();
        ensure!(!lost.is_empty(), "the victim runs nothing");
        let mut missing: BTreeSet<u64> = lost.values().copied().collect();
        let start = self.inflict(loss, victim)?;
        while !missing.is_empty() {
            ensure!(start.elapsed() < ROUND_WAIT, "slots {missing:?} were not replaced within {ROUND_WAIT:?}");
            // Managers that elect a leader do not answer.
            for task in self.running_tasks(victim).unwrap_or_default() {
                let is_new = task.node != self.ids[victim - 1] && !lost.contains_key(&task.id);
                if is_new && missing.contains(&task.slot) && self.answers(&task).unwrap_or(false) {
                    missing.remove(&task.slot);
                }
            }
            if !missing.is_empty() {
                std::thread::sleep(LOOK_EVERY);
            }
        }
        Ok(start.elapsed().as_secs_f64())
    }

    fn recover(&self, loss: Loss, victim: usize) -> Result<()> {
        match loss {
            Loss::Cut => SWARM.plug(victim, Side::First)?,
            Loss::Crash | Loss::CutThenKill => {
                engine::remove(&self.hosts.directory(victim), true)?;
                SWARM.renew(victim)?;
                self.hosts.power_on(victim)?;
            }
        }
        self.settle()?;
        self.clear()?;
        self.serve()
    }
}
