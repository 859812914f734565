//! The event loop: the only place that knows all shells, and the only reader of the clock.
//!
//! Everything that happens becomes a command, a swarm event or an event of the decisions; everything the decisions ask for is
//! handed to a shell. Nothing here waits for the network: what takes time runs beside the loop and reports back.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::Context;
use prometheus_client::registry::Registry;
use shoal_control::departure::End;
use shoal_protocol::Time;
use shoal_protocol::settings::ClusterSettings;
use shoal_protocol::spec::Availability;
use shoal_protocol::value::NodeStatus;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::api::listen::{Listening, Tls};
use crate::api::{self, Engine, Hub, Metrics};
use crate::config::Config;
use crate::disk::{self, Disk, Loaded};
use crate::driver::choice;
use crate::driver::measured::DriverMetrics;
use crate::ingress::Lanes;
use crate::ingress::metrics::IngressMetrics;

pub mod backend;
pub mod clock;
pub mod command;
mod departing;
mod files;
mod finding;
mod health;
mod issuing;
mod joining;
mod locking;
pub mod machine;
mod member;
mod membership;
mod metrics;
mod persist;
mod renewing;
mod reporting;
mod shells;

use command::{Asked, Command, Loop};
use health::HealthMetrics;
use joining::{Joined, Joining};
use locking::Locked;
use member::{Happening, Member, ShellEnded};
use membership::Stored;
use metrics::{MemberMetrics, Notes};

/// How long the daemon goes on after SIGTERM so that what it said last leaves the machine.
const FAREWELL: Duration = Duration::from_millis(300);

/// How long it may take to end once nothing is waited for, as the service manager is told.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// The daemon between its start and its end.
struct Daemon {
    config: Config,
    advertised: SocketAddr,
    disk: Disk,
    /// Counts the starts of this daemon.
    incarnation: u64,
    settings: BTreeMap<String, String>,
    /// Filled once it is decided that an engine runs the containers.
    engine: Arc<OnceLock<Arc<Engine>>>,
    events: Arc<Hub>,
    router: axum::Router,
    metrics: ShellMetrics,
    /// Outlives every cluster, so that connections of tasks that still run do.
    lanes: Lanes,
    member: Option<Member>,
    joining: Option<Joining>,
    locked: Locked,
    /// Whether the daemon was told to end and drains the node before it does.
    leaving: bool,
}

/// What the shells count, over all clusters that this daemon is in one after another.
struct ShellMetrics {
    ingress: Arc<IngressMetrics>,
    health: HealthMetrics,
    driver: DriverMetrics,
    member: MemberMetrics,
}

impl ShellMetrics {
    /// Makes the counters known to monitors.
    fn register(registry: &mut Registry, disk: &Disk, incarnation: u64) -> Self {
        let ingress = Arc::new(IngressMetrics::default());
        registry.register_collector(Box::new(ingress.clone()));
        disk.metrics().register(registry);
        Self {
            ingress,
            health: HealthMetrics::register(registry),
            driver: DriverMetrics::register(registry),
            member: MemberMetrics::register(registry, incarnation),
        }
    }

    /// Returns what takes note of what a member does.
    fn notes(&self) -> Notes {
        Notes::new(self.member.clone(), self.health.clone())
    }
}

/// What the loop waits for.
enum Input {
    Command(Asked),
    Member(Happening),
    Joined(Box<Joined>),
    Timer,
    Terminate,
}

/// Runs the daemon until it is told to end.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let advertised = config
        .advertised(machine::routed_address())
        .context("this machine has no route to other machines: name an address with --advertise-addr")?;
    let (disk, loaded) = disk::open(&config.data_dir)?;
    let mut signals = Signals::new()?;
    let (api_loop, mut commands) = Loop::new();
    let tls = open_tls(&config)?;
    let mut sockets = Vec::new();
    for host in &config.hosts {
        sockets.push(Listening::open(host, tls.as_ref()).await?);
    }
    let mut registry = Registry::default();
    let counters = ShellMetrics::register(&mut registry, &disk, loaded.incarnation);
    let metrics = Arc::new(Metrics::new(registry));
    let (engine, events) = (Arc::new(OnceLock::new()), Arc::new(Hub::default()));
    note_engine(&engine, &config, &loaded.settings);
    let locked = Locked::default();
    let own =
        backend::Own { status: own_status(&config, advertised), listen: config.listen_addr, is_locked: locked.flag() };
    let backend = backend::NodeBackend::new(api_loop, own, engine.clone(), events.clone());
    let router = api::router(Arc::new(backend), metrics);
    let ended = CancellationToken::new();
    let serving: Vec<_> = sockets
        .into_iter()
        .map(|socket| tokio::spawn(socket.serve(router.clone(), ended.clone().cancelled_owned())))
        .collect();
    std::fs::write(config.data_dir.join("shoald.pid"), format!("{}\n", std::process::id()))
        .context("failed to write shoald.pid")?;

    let lanes = Lanes::start().context("failed to start the threads that forward connections")?;
    let mut daemon =
        Daemon::new((config, advertised, locked), (disk, &loaded), (router, engine, events), counters, lanes);
    daemon.start(loaded).await?;
    tracing::info!(advertised = %daemon.advertised, data_dir = %daemon.config.data_dir.display(), "ready");
    if let Err(error) = machine::notify("READY=1") {
        tracing::warn!(%error, "failed to tell the service manager that this daemon is ready");
    }
    let mut outcome = Ok(true);
    while matches!(outcome, Ok(true)) {
        outcome = daemon.turn(&mut commands, &mut signals).await;
    }
    let _ = machine::notify("STOPPING=1");
    daemon.farewell().await;
    ended.cancel();
    for serving in serving {
        // Requests that still wait for something are not waited for.
        let _ = tokio::time::timeout(FAREWELL, serving).await;
    }
    daemon.disk.close().await;
    // Absent after an orderly end, so that whoever finds it knows that this daemon did not end so.
    let _ = std::fs::remove_file(daemon.config.data_dir.join("shoald.pid"));
    outcome?;
    tracing::info!("ended; tasks keep running and are adopted at the next start");
    Ok(())
}

/// Reads what the API over TCP is secured with; says so where its certificate has ended.
fn open_tls(config: &Config) -> anyhow::Result<Option<Tls>> {
    let Some(files) = config.tls_files() else { return Ok(None) };
    let tls = Tls::read(&files)?;
    if let Some(expires) = tls.expires.filter(|expires| *expires <= clock::now().wall) {
        tracing::error!(%expires, file = %files.cert.display(), "the certificate of --tlscert has ended: clients refuse it");
    }
    Ok(Some(tls))
}

/// What this node says of itself before it is a member.
fn own_status(config: &Config, advertised: SocketAddr) -> NodeStatus {
    NodeStatus {
        hostname: config.hostname.clone().unwrap_or_else(machine::hostname),
        address: Some(advertised),
        publish_address: config.publishes(advertised),
        os: "linux".to_owned(),
        architecture: machine::architecture(),
        engine_labels: config.engine_labels(),
        // What cannot be read was refused when the daemon started.
        generic: config.generic_resources().unwrap_or_default(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..NodeStatus::default()
    }
}

impl Daemon {
    fn new(
        (config, advertised, locked): (Config, SocketAddr, Locked),
        (disk, loaded): (Disk, &Loaded),
        (router, engine, events): (axum::Router, Arc<OnceLock<Arc<Engine>>>, Arc<Hub>),
        metrics: ShellMetrics,
        lanes: Lanes,
    ) -> Self {
        let incarnation = loaded.incarnation;
        let settings = loaded.settings.clone();
        let (member, joining, leaving) = (None, None, false);
        Self {
            config,
            advertised,
            disk,
            incarnation,
            settings,
            engine,
            events,
            router,
            metrics,
            lanes,
            member,
            joining,
            locked,
            leaving,
        }
    }

    async fn start(&mut self, loaded: Loaded) -> anyhow::Result<()> {
        let asked_for_cluster = self.config.init || !self.config.join.is_empty();
        if loaded.cluster.is_some() {
            if asked_for_cluster {
                tracing::info!(
                    "this node is in a cluster already: --init changes nothing, --join names where to look for it"
                );
            }
            match self.locked.take_in(loaded) {
                None => tracing::warn!("this node's keys are locked: it waits for 'shoal swarm unlock'"),
                Some(loaded) => self.come_back(Stored::read(loaded, None)?).await?,
            }
        } else if self.config.init {
            self.init(ClusterSettings::default(), Availability::Active)
                .await
                .map_err(|error| anyhow::anyhow!("{error}"))?;
        } else if !self.config.join.is_empty() {
            let token = self.token()?;
            self.join(&token, None)?;
        } else {
            tracing::info!("this node is in no cluster: it waits for 'shoal init' or 'shoal join'");
        }
        Ok(())
    }

    /// Comes back as the member that this node was.
    async fn come_back(&mut self, stored: Stored) -> anyhow::Result<()> {
        let has_token = self.config.token.is_some() || self.config.token_file.is_some();
        if !has_token || !stored.needs_token()? {
            return self.resume(stored).await;
        }
        tracing::warn!("this node's credential has ended: joining again as the member that it was");
        let token = self.token()?;
        Ok(self.join(&token, Some(stored))?)
    }

    fn token(&self) -> anyhow::Result<String> {
        match (&self.config.token, &self.config.token_file) {
            (Some(token), _) => Ok(token.clone()),
            (None, Some(file)) => {
                let text =
                    std::fs::read_to_string(file).with_context(|| format!("failed to read {}", file.display()))?;
                Ok(text.trim().to_owned())
            }
            (None, None) => anyhow::bail!("--join needs --token or --token-file"),
        }
    }

    /// Takes in one thing that happened. Returns whether the daemon goes on.
    async fn turn(&mut self, commands: &mut mpsc::Receiver<Asked>, signals: &mut Signals) -> Result<bool, ShellEnded> {
        match self.next(commands, signals).await {
            Input::Command((asker, command)) => self.command(command).instrument(asker).await,
            Input::Member(happening) => {
                if let Some(member) = &mut self.member {
                    member.take_in(happening)?;
                }
            }
            Input::Joined(joined) => self.joined(*joined).await,
            Input::Timer => {
                if let Some(member) = &mut self.member {
                    member.tick();
                }
            }
            Input::Terminate if self.leaving || !self.begins_to_leave() => return Ok(false),
            Input::Terminate => {}
        }
        let removed = match &mut self.member {
            Some(member) => member.perform().await,
            None => false,
        };
        if removed {
            tracing::warn!("this node was removed from the cluster: its tasks are stopped and its membership ends");
            self.end_membership().await;
        }
        Ok(!self.leaving || !self.has_left())
    }

    /// Begins to give the node's tasks to others, if that is wanted. Returns whether there is something to wait for.
    fn begins_to_leave(&mut self) -> bool {
        let wait = Duration::from_secs(self.config.drain_timeout);
        match &mut self.member {
            Some(member) if self.config.drain_on_exit => member.depart(wait),
            Some(_) | None => return false,
        }
        tracing::info!(?wait, "told to end: draining this node first; a second signal ends the daemon at once");
        // What the service manager grants by itself may be less.
        let limit = (wait + STOP_LIMIT).as_micros();
        let _ = machine::notify(&format!("STOPPING=1\nEXTEND_TIMEOUT_USEC={limit}"));
        self.leaving = true;
        true
    }

    /// Returns whether nothing is waited for any more, and says what came of it.
    fn has_left(&self) -> bool {
        let Some(member) = &self.member else { return true };
        match member.may_end() {
            None => return false,
            Some(End::Empty) => tracing::info!("no task is left on this node"),
            Some(End::Alone) => tracing::warn!("no other node takes tasks: those of this node go on without a daemon"),
            Some(End::Late(tasks)) => {
                tracing::warn!(tasks, "tasks are left on this node though it was drained for --drain-timeout");
            }
        }
        true
    }

    async fn next(&mut self, commands: &mut mpsc::Receiver<Asked>, signals: &mut Signals) -> Input {
        let deadline = self.member.as_ref().map(Member::timeout);
        tokio::select! {
            biased;
            () = signals.terminate() => Input::Terminate,
            happening = next_happening(&mut self.member) => Input::Member(happening),
            joined = joining::next_joined(&mut self.joining) => Input::Joined(Box::new(joined)),
            Some(asked) = commands.recv() => Input::Command(asked),
            () = sleep_until(deadline) => Input::Timer,
        }
    }

    async fn command(&mut self, command: Command) {
        match command {
            Command::Look(look) => look(self.member.as_ref().map(Member::control), clock::now()),
            Command::Write { write, reply } => match &mut self.member {
                Some(member) => member.write(write, reply),
                None => {
                    let _ = reply.send(Err(membership::no_cluster()));
                }
            },
            Command::Init { settings, availability, reply } => {
                let result = self.init(settings, availability).await;
                let _ = reply.send(result);
            }
            Command::Join { seeds, token, availability, reply } => {
                if let Err((reply, error)) = self.join_for((seeds, &token, availability), reply) {
                    let _ = reply.send(Err(error));
                }
            }
            Command::Unlock { key, reply } => {
                let result = self.unlock(&key).await;
                let _ = reply.send(result);
            }
            Command::UnlockKey { reply } => {
                let _ = reply.send(self.member.as_ref().map_or(Err(membership::no_cluster()), Member::unlock_key));
            }
            Command::Leave { force, reply } => {
                let result = self.leave(force).await;
                let _ = reply.send(result);
            }
            Command::Tokens { reply } => {
                let _ = reply.send(self.member.as_ref().map_or(Err(membership::no_cluster()), Member::tokens));
            }
            Command::Seal { purpose, data, reply } => {
                let sealed =
                    self.member.as_ref().map_or(Err(membership::no_cluster()), |member| member.seal(purpose, &data));
                let _ = reply.send(sealed);
            }
            Command::Holds { id, data, reply } => {
                let holds =
                    self.member.as_ref().map_or(Err(membership::no_cluster()), |member| member.holds(id, &data));
                let _ = reply.send(holds);
            }
            Command::Rotate { what, version, reply } => match &mut self.member {
                Some(member) => member.rotate(&what, version, reply),
                None => {
                    let _ = reply.send(Err(membership::no_cluster()));
                }
            },
            Command::Shells { reply } => {
                let _ = reply.send(self.member.as_ref().map(Member::shells));
            }
        }
    }

    /// Says that this node goes away for a moment, and gives that a moment to be heard.
    async fn farewell(&mut self) {
        if let Some(member) = &mut self.member {
            member.leave(true);
            member.perform().await;
            let _ = tokio::time::timeout(FAREWELL, member.settle()).await;
            member.close().await;
        }
    }
}

/// Opens the way to the engine once it is decided that one runs the containers.
fn note_engine(engine: &OnceLock<Arc<Engine>>, config: &Config, settings: &BTreeMap<String, String>) {
    if !choice::is_docker(config, settings) {
        return;
    }
    match config.docker_host.parse() {
        Ok(address) => {
            engine.get_or_init(|| Arc::new(Engine::new(address)));
        }
        Err(error) => tracing::error!(error, "requests cannot be passed on to the Docker Engine"),
    }
}

async fn next_happening(member: &mut Option<Member>) -> Happening {
    match member {
        Some(member) => member.next().await,
        None => std::future::pending().await,
    }
}

async fn sleep_until(deadline: Option<Time>) {
    match deadline {
        Some(deadline) => tokio::time::sleep(deadline.since(clock::now().time)).await,
        None => std::future::pending().await,
    }
}

/// What ends the daemon.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("failed to listen for signals");
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    async fn terminate(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
