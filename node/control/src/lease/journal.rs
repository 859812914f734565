//! What must be on disk before a promise leaves this node, and the promises that wait for it.
//!
//! One write is under way at a time; what changes meanwhile goes into the next one, so a slow disk batches by itself.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};
use shoal_protocol::NodeId;
use shoal_protocol::lease::{Ballot, LeaseId, LeaseMessage, VoterSet};

use super::voter::Granted;

/// Promises that wait for the disk at most; further ones are dropped, and whoever waits for them asks again.
const WAITING_MAX: usize = 1024;

/// What a node has to remember of leases and voters across restarts.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Durable {
    /// Starts of this node; what an earlier start was granted is not this one's.
    pub incarnation: u64,
    /// The highest grant of each lease.
    pub grants: BTreeMap<LeaseId, Granted>,
    /// The newest voters known to be decided; version 0 if none.
    pub voters: VoterSet,
    /// The newest version under which this node was ready to grant; 0 if never.
    pub ready: u64,
    /// The highest ballot promised for the successor of `voters`.
    pub promised: Ballot,
    /// The accepted successor of `voters`. Once there is one, nothing is granted under `voters`.
    pub accepted: Option<(Ballot, VoterSet)>,
}

/// The durable state with its way to the disk.
#[derive(Debug)]
pub(super) struct Journal {
    pub(super) state: Durable,
    /// The ready version that is on disk.
    ready: u64,
    changed: bool,
    has_failed: bool,
    /// The write under way, and the ready version in it.
    writing: Option<(u64, u64)>,
    next: u64,
    waiting: VecDeque<(u64, NodeId, LeaseMessage)>,
    /// Leases whose grant is not on disk yet, and the write that brings it there.
    unsaved: BTreeMap<LeaseId, u64>,
    /// Whether a write has succeeded since the start.
    pub(super) started: bool,
}

impl Journal {
    pub(super) fn new(state: Durable) -> Self {
        let ready = state.ready;
        let (waiting, unsaved) = (VecDeque::new(), BTreeMap::new());
        Self {
            state,
            ready,
            changed: true,
            has_failed: false,
            writing: None,
            next: 1,
            waiting,
            unsaved,
            started: false,
        }
    }

    /// Notes that the state was changed.
    pub(super) fn touch(&mut self) {
        self.changed = true;
    }

    /// Notes what is granted of a lease. A promise of it has to wait for the disk.
    pub(super) fn grant(&mut self, lease: LeaseId, granted: Option<Granted>) {
        match granted {
            Some(granted) => self.state.grants.insert(lease, granted),
            None => self.state.grants.remove(&lease),
        };
        self.changed = true;
        self.unsaved.insert(lease, self.next);
    }

    /// Returns whether what is granted of a lease would survive a crash.
    pub(super) fn is_saved(&self, lease: LeaseId) -> bool {
        !self.unsaved.contains_key(&lease)
    }

    /// Returns the ready version that no crash can take back.
    pub(super) fn ready(&self) -> u64 {
        self.ready
    }

    /// Returns the message if the present state is on disk, or keeps it until it is.
    pub(super) fn promise(&mut self, to: NodeId, message: LeaseMessage) -> Option<LeaseMessage> {
        let token = match self.writing {
            _ if self.changed => self.next,
            Some((token, _)) => token,
            None => return Some(message),
        };
        if self.waiting.len() < WAITING_MAX {
            self.waiting.push_back((token, to, message));
        }
        None
    }

    /// Returns the next write, if one is needed and none is under way. One that failed waits for the next round.
    pub(super) fn poll_write(&mut self, is_round: bool) -> Option<(u64, Durable)> {
        if !self.changed || self.writing.is_some() || (self.has_failed && !is_round) {
            return None;
        }
        let token = self.next;
        self.next += 1;
        (self.changed, self.has_failed) = (false, false);
        self.writing = Some((token, self.state.ready));
        Some((token, self.state.clone()))
    }

    /// Notes that a write is on disk; returns what waited for it.
    pub(super) fn written(&mut self, token: u64) -> Vec<(NodeId, LeaseMessage)> {
        let Some((_, ready)) = self.writing.take_if(|(writing, _)| *writing == token) else { return Vec::new() };
        self.ready = ready;
        self.started = true;
        self.unsaved.retain(|_, wanted| *wanted > token);
        let released = self.waiting.partition_point(|(wanted, _, _)| *wanted <= token);
        self.waiting.drain(..released).map(|(_, to, message)| (to, message)).collect()
    }

    /// Notes that a write failed: it is repeated with whatever has changed since.
    pub(super) fn failed(&mut self, token: u64) {
        if self.writing.take_if(|(writing, _)| *writing == token).is_some() {
            (self.changed, self.has_failed) = (true, true);
        }
    }
}
