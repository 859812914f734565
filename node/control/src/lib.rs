//! The decisions of a shoal node, pure: no sockets, files, clock, threads or global randomness.
//!
//! Every part takes what happened and what time it is, and returns what to do. [`core::Control`] owns the parts and wires
//! them together; the daemon's shells perform what it asks for and report back.

pub mod allocator;
pub mod balance;
pub mod core;
pub mod departure;
pub mod discovery;
pub mod flows;
pub mod lease;
pub mod orchestrator;
pub mod proxy;
pub mod renewal;
pub mod routes;
pub mod scheduler;
pub mod store;
pub mod task;
pub mod updater;
pub mod view;
