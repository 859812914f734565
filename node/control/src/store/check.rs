//! Which records are let in at all: form, and who may say what.
//!
//! Only envelopes are judged here, so that all versions refuse the same. What is wrong inside a body is quarantined
//! instead: such a record is kept and passed on, and not read.

use shoal_protocol::NodeId;
use shoal_protocol::lease::LeaseId;
use shoal_protocol::record::{BODY_BYTES_MAX, CLOCK_MAX, Key, Layer, Record, SCHEMA_COLLECTED};
use shoal_protocol::token::Role;

/// Why a record was refused. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The body is larger than [`BODY_BYTES_MAX`].
    #[error("record body of {bytes} bytes is larger than the limit of {BODY_BYTES_MAX}")]
    BodyTooLarge {
        /// Its size.
        bytes: usize,
    },
    /// The key names a lease that does not exist.
    #[error("there is no lease number {}", lease.0)]
    NoSuchLease {
        /// What was named.
        lease: LeaseId,
    },
    /// The clock of an overlay is empty, too long, unsorted or names an actor twice or with count 0.
    #[error("overlay has a malformed clock: {0}")]
    Clock(&'static str),
    /// Overlays exist for objects and slots only.
    #[error("{0} cannot have an overlay")]
    Overlay(&'static str),
    /// A status was authored by another node than it is about.
    #[error("status of node {subject} was written by node {author}")]
    ForeignStatus {
        /// Whom it is about.
        subject: NodeId,
        /// Who wrote it.
        author: NodeId,
    },
    /// A tombstone that must stay was marked as collected.
    #[error("the removal of this kind of object is never collected")]
    NotCollectable,
    /// The peer may not author or pass on such a record.
    #[error("worker {from} is not believed about anything but its own status")]
    Unauthorized {
        /// Who sent it.
        from: NodeId,
    },
    /// The node has reported more tasks than [`super::REPORTS_AHEAD_MAX`] that no known slot names.
    #[error("node {node} reports too many tasks that no slot names")]
    TooManyReports {
        /// Whose reports they are.
        node: NodeId,
    },
}

/// Checks the form of a record's envelope.
pub fn check(record: &Record) -> Result<(), RecordError> {
    let bytes = record.body.as_ref().map_or(0, Vec::len);
    if bytes > BODY_BYTES_MAX {
        return Err(RecordError::BodyTooLarge { bytes });
    }
    if let Key::Claim(lease) = record.key
        && !lease.is_valid()
    {
        return Err(RecordError::NoSuchLease { lease });
    }
    if let Some(subject) = record.key.status_of()
        && subject != record.author
    {
        return Err(RecordError::ForeignStatus { subject, author: record.author });
    }
    if record.schema == SCHEMA_COLLECTED && record.body.is_none() && !record.key.is_collectable() {
        return Err(RecordError::NotCollectable);
    }
    match &record.layer {
        Layer::Base => Ok(()),
        Layer::Overlay { clock, .. } => {
            check_overlaid(&record.key)?;
            check_clock(clock)
        }
    }
}

fn check_overlaid(key: &Key) -> Result<(), RecordError> {
    match key {
        Key::Cluster | Key::Node(_) | Key::Service(_) | Key::Progress(_) | Key::Slot(..) | Key::Object(..) => Ok(()),
        Key::Voters => Err(RecordError::Overlay("the voter set")),
        Key::Claim(_) => Err(RecordError::Overlay("a claim")),
        Key::NodeStatus(_) | Key::TaskStatus(..) => Err(RecordError::Overlay("a status")),
    }
}

fn check_clock(clock: &[(u64, u64)]) -> Result<(), RecordError> {
    let rule = |holds: bool, broken| if holds { Ok(()) } else { Err(RecordError::Clock(broken)) };
    rule(!clock.is_empty(), "it is empty")?;
    rule(clock.len() <= CLOCK_MAX, "it has too many actors")?;
    rule(clock.windows(2).all(|pair| pair[0].0 < pair[1].0), "its actors are not in ascending order")?;
    rule(clock.iter().all(|(_, counter)| *counter > 0), "it counts an actor that did nothing")
}

/// Checks whether `from` may send this record: managers pass on anything, workers only what they say of themselves.
pub fn authority(record: &Record, from: NodeId, from_role: Role) -> Result<(), RecordError> {
    if believes(&record.key, from, from_role) { Ok(()) } else { Err(RecordError::Unauthorized { from }) }
}

/// Returns whether `from` is believed about this key at all.
pub(super) fn believes(key: &Key, from: NodeId, from_role: Role) -> bool {
    match from_role {
        Role::Manager => true,
        Role::Worker => key.status_of() == Some(from),
    }
}
