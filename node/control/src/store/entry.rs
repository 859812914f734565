//! What is kept for one key, and the one function that merges records into it.
//!
//! Deltas and repair both end in [`Registers::merge`]. It compares envelopes alone, so nodes of different versions agree on
//! the outcome even where one of them cannot read a body. `crdts::Map` is never used: its merge is not associative.

use std::sync::Arc;

use crdts::mvreg::Op;
use crdts::{CmRDT, CvRDT, Dot, LWWReg, MVReg, VClock};
use shoal_protocol::NodeId;
use shoal_protocol::object::{Object, ObjectHead};
use shoal_protocol::record::{Key, Layer, Record, Stamp};
use shoal_protocol::spec::{NodeSpec, ServiceSpec};
use shoal_protocol::value::{NodeObject, ServiceObject, Slot, Value, ValueError};

/// The total order of the writes to one key. Author and hash are in it so that two different records never tie: whatever
/// two holders do wrong, all nodes keep the same one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Marker {
    stamp: Stamp,
    author: NodeId,
    hash: u128,
}

impl Marker {
    fn of(record: &Record) -> Self {
        Self { stamp: record.stamp, author: record.author, hash: record.hash() }
    }
}

/// What a base record says beside its place in the order.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Payload {
    schema: u16,
    body: Option<Vec<u8>>,
}

/// A record of the overlay and its hash.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Soft {
    marker: Marker,
    record: Arc<Record>,
}

/// What a merge did to the registers of one key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// The base is another one now.
    Base,
    /// The base is the same, the overlay is not.
    Overlay,
    /// The record was there already.
    Known,
    /// What is there supersedes the record.
    Stale,
}

/// The base and the overlay of one key.
#[derive(Debug, Clone, Default)]
pub(super) struct Registers {
    base: Option<LWWReg<Payload, Marker>>,
    overlay: MVReg<Soft, u64>,
}

impl Registers {
    /// Merges one record that was checked before: commutative, associative and idempotent.
    pub(super) fn merge(&mut self, record: &Record) -> Change {
        let marker = Marker::of(record);
        match &record.layer {
            Layer::Base => self.merge_base(record, marker),
            Layer::Overlay { clock, .. } => {
                let clock = clock.iter().map(|(actor, counter)| Dot::new(*actor, *counter)).collect();
                self.merge_overlay(Soft { marker, record: Arc::new(record.clone()) }, clock)
            }
        }
    }

    fn merge_base(&mut self, record: &Record, marker: Marker) -> Change {
        let theirs = LWWReg { val: Payload { schema: record.schema, body: record.body.clone() }, marker };
        let Some(ours) = &mut self.base else {
            self.base = Some(theirs);
            return Change::Base;
        };
        let before = ours.marker;
        ours.merge(theirs);
        if ours.marker != before {
            Change::Base
        } else if before == marker {
            Change::Known
        } else {
            Change::Stale
        }
    }

    fn merge_overlay(&mut self, theirs: Soft, clock: VClock<u64>) -> Change {
        let siblings = self.overlay.read().val;
        if siblings.contains(&theirs) {
            return Change::Known;
        }
        // `MVReg` keeps whichever of two values with one clock it saw first. Honest actors never write two, a broken one
        // must not make replicas differ: the greater marker is kept everywhere.
        let twin = siblings.iter().position(|ours| clock_of(&ours.record) == clock_of(&theirs.record));
        if let Some(twin) = twin {
            if siblings[twin].marker > theirs.marker {
                return Change::Stale;
            }
            let mut rest = MVReg::new();
            for (_, sibling) in siblings.into_iter().enumerate().filter(|(index, _)| *index != twin) {
                let clock = clock_of(&sibling.record);
                rest.apply(Op::Put { clock, val: sibling });
            }
            self.overlay = rest;
        }
        let mut single = MVReg::new();
        single.apply(Op::Put { clock, val: theirs.clone() });
        self.overlay.merge(single);
        if self.overlay.read().val.contains(&theirs) { Change::Overlay } else { Change::Stale }
    }

    /// Returns the stamp of the base.
    pub(super) fn stamp(&self) -> Option<Stamp> {
        self.base.as_ref().map(|base| base.marker.stamp)
    }

    /// Returns the base as its author sent it.
    pub(super) fn base(&self, key: Key) -> Option<Record> {
        self.base.as_ref().map(|LWWReg { val, marker }| Record {
            key,
            stamp: marker.stamp,
            author: marker.author,
            schema: val.schema,
            layer: Layer::Base,
            body: val.body.clone(),
        })
    }

    /// Returns the overlay's records in the order of their markers, whatever order they came in.
    pub(super) fn overlay(&self) -> Vec<Arc<Record>> {
        let mut siblings = self.overlay.read().val;
        siblings.sort_by_key(|soft| soft.marker);
        siblings.into_iter().map(|soft| soft.record).collect()
    }

    /// Returns whether there are overlay records.
    pub(super) fn has_overlay(&self) -> bool {
        !self.overlay.read_ctx().add_clock.is_empty()
    }

    /// Returns the number that stands for base and overlay in digests: equal registers, equal number.
    pub(super) fn hash(&self) -> u128 {
        let base = self.base.as_ref().map_or(0, |base| base.marker.hash);
        if !self.has_overlay() {
            return base;
        }
        self.overlay.read().val.iter().fold(base, |sum, soft| sum.wrapping_add(soft.marker.hash))
    }

    /// Returns whether the base is a tombstone, and if so whether it is marked as collected.
    pub(super) fn removed(&self) -> Option<Removed> {
        let LWWReg { val, .. } = self.base.as_ref()?;
        match val {
            Payload { body: Some(_), .. } => None,
            Payload { schema: shoal_protocol::record::SCHEMA_COLLECTED, body: None } => Some(Removed::Collected),
            Payload { body: None, .. } => Some(Removed::Tombstone),
        }
    }

    /// Opens the base.
    pub(super) fn open(&self, key: &Key) -> Opened {
        match &self.base {
            None => Opened::Absent,
            Some(LWWReg { val: Payload { body: None, .. }, .. }) => Opened::Absent,
            Some(LWWReg { val: Payload { schema, body: Some(body) }, .. }) => match Content::read(key, *schema, body) {
                Ok(content) => Opened::Content(content),
                Err(error) => Opened::Sealed(error),
            },
        }
    }
}

fn clock_of(record: &Record) -> VClock<u64> {
    match &record.layer {
        Layer::Base => VClock::new(),
        Layer::Overlay { clock, .. } => clock.iter().map(|(actor, counter)| Dot::new(*actor, *counter)).collect(),
    }
}

/// How far a removal is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Removed {
    /// Kept so that older records stay superseded.
    Tombstone,
    /// Every listed node has the tombstone on disk.
    Collected,
}

/// What could be read of a base, kept so that nothing is decoded twice.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) enum Opened {
    /// There is no base, or it is a tombstone.
    #[default]
    Absent,
    /// This version cannot read it: it is kept, digested and passed on all the same.
    Sealed(ValueError),
    /// What it says.
    Content(Content),
}

/// A value with the JSON in it read as well. Small where there are many: slots.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Content {
    /// A node and its spec.
    Node(Box<(NodeObject, NodeSpec)>),
    /// A service and its spec.
    Service(Box<(ServiceObject, ServiceSpec)>),
    /// A slot.
    Slot(Slot),
    /// A secret, config or network without its data, which are read when they are needed, and how many bytes they are.
    Object(Box<ObjectHead>, usize),
    /// Anything else.
    Plain(Box<Value>),
}

impl Content {
    fn read(key: &Key, schema: u16, body: &[u8]) -> Result<Self, ValueError> {
        let invalid = |_| ValueError::Invalid("spec is not valid JSON of its type");
        Ok(match Value::read(key, schema, body)? {
            Value::Node(node) => {
                let spec = serde_json::from_str(&node.spec).map_err(invalid)?;
                Self::Node(Box::new((node, spec)))
            }
            Value::Service(service) => {
                let spec = serde_json::from_str(&service.spec).map_err(invalid)?;
                Self::Service(Box::new((service, spec)))
            }
            Value::Slot(slot) => Self::Slot(slot),
            Value::Object(Object { head, data }) => Self::Object(Box::new(head), data.len()),
            value @ (Value::Cluster(_)
            | Value::Voters(_)
            | Value::Claim(_)
            | Value::Progress(_)
            | Value::NodeStatus(_)
            | Value::TaskReport(_)) => Self::Plain(Box::new(value)),
        })
    }
}

/// One key of the document.
#[derive(Debug, Clone, Default)]
pub(super) struct Entry {
    pub(super) registers: Registers,
    pub(super) opened: Opened,
    /// What is in the digests for it at present; 0 when it does not count.
    pub(super) digested: u128,
}
