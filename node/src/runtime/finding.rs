//! Finds members whose addresses have changed: performs what [`shoal_control::discovery`] decides.

use std::net::SocketAddr;
use std::sync::Arc;

use shoal_control::discovery::{Action, Discovery, Event};
use shoal_protocol::discovery::Announcement;
use shoal_protocol::{ClusterId, NodeId, Time};
use tokio::sync::{Semaphore, mpsc};

use crate::config::Config;
use crate::discovery::{self, Beacon, BeaconConfig};
use crate::swarm::SwarmHandle;

/// The decisions about missing members, and the ways to find them.
pub(super) struct Finder {
    decisions: Discovery,
    beacon: Option<Beacon>,
    heard: mpsc::Receiver<(NodeId, SocketAddr)>,
    /// Keeps `heard` open without a beacon.
    _heard: mpsc::Sender<(NodeId, SocketAddr)>,
    swarm: SwarmHandle,
    /// The names that this node joined by.
    seeds: Arc<[String]>,
    /// Names are asked once at a time.
    asking: Arc<Semaphore>,
}

impl Finder {
    pub(super) fn start(
        config: &Config,
        (me, cluster): (NodeId, ClusterId),
        swarm: SwarmHandle,
        seeds: Vec<String>,
        (seed, now): (u64, Time),
    ) -> Self {
        let (sender, heard) = mpsc::channel(discovery::HEARD_MAX);
        let advertised = swarm.advertise_address();
        // The beacon speaks IPv4, so it must lead to a node that listens there.
        let speaks = config.multicast && swarm.listen_address().is_ipv4();
        let beacon = speaks.then(|| {
            let config = BeaconConfig {
                cluster,
                announcement: Announcement { node: me, port: swarm.listen_address().port() },
                links: vec![swarm.listen_address().ip(), advertised.ip()],
                port: discovery::PORT,
            };
            Beacon::spawn(config, sender.clone())
        });
        Self {
            decisions: Discovery::new(me, seed, now),
            beacon,
            heard,
            _heard: sender,
            swarm,
            seeds: seeds.into(),
            asking: Arc::new(Semaphore::new(1)),
        }
    }

    pub(super) fn timeout(&self) -> Time {
        self.decisions.poll_timeout()
    }

    /// Waits until somebody calls out on the local link. Cancelling it loses nothing.
    pub(super) async fn next(&mut self) -> (NodeId, SocketAddr) {
        match self.heard.recv().await {
            Some(heard) => heard,
            None => std::future::pending().await,
        }
    }

    /// Takes in what happened and performs what follows.
    pub(super) fn handle(&mut self, event: Event, now: Time) {
        self.decisions.handle_event(event, now);
        while let Some(action) = self.decisions.poll_action() {
            match action {
                Action::Announce => self.beacon.iter().for_each(Beacon::announce),
                Action::AskNames => self.ask_names(),
                Action::Dial(address) => {
                    tracing::debug!(%address, "a member calls on the local link");
                    self.swarm.dial(address);
                }
            }
        }
    }

    fn ask_names(&self) {
        let Ok(permit) = self.asking.clone().try_acquire_owned() else { return };
        let (swarm, seeds) = (self.swarm.clone(), self.seeds.clone());
        tokio::spawn(async move {
            swarm.dial_seeds(&seeds).await;
            drop(permit);
        });
    }
}
