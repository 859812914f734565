//! The shoal daemon: shells around the decisions of `shoal-control`, and the event loop that joins them.

pub mod agent;
pub mod api;
pub mod config;
pub mod discovery;
pub mod disk;
pub mod driver;
pub mod gossip;
pub mod identity;
pub mod ingress;
#[cfg(test)]
mod logged;
pub mod runtime;
pub mod serving;
pub mod supervisor;
pub mod swarm;
