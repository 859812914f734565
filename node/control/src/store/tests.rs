//! What the store promises, checked on the stored record types through the one merge function.

use proptest::prelude::*;
use shoal_protocol::lease::{LeaseId, VoterSet};
use shoal_protocol::object::{Kind, Object, ObjectHead};
use shoal_protocol::value::{
    Claim, NodeObject, NodeStatus, Progress, ServiceObject, Slot, SlotTask, TaskReport, UpdateState,
};
use shoal_protocol::{ObjectId, TaskState, WallTime, codec};

use super::*;

mod laws;
mod repair;
mod rules;

pub(super) const NODES: u128 = 3;

pub(super) fn stamp(epoch: u64, seq: u64) -> Stamp {
    Stamp { lineage: 0, epoch, seq }
}

pub(super) fn slot_key(service: u128, replica: u32) -> Key {
    Key::Slot(ServiceId(service), SlotName::Replica(replica))
}

pub(super) fn slot_of(tasks: &[(u128, u128)]) -> Value {
    let task = |(id, node): &(u128, u128)| SlotTask {
        id: TaskId(*id),
        node: Some(NodeId(*node)),
        template: "{}".to_owned(),
        ..SlotTask::default()
    };
    Value::Slot(Slot { tasks: tasks.iter().map(task).collect() })
}

pub(super) fn node_object(spec: &str) -> Value {
    let (created, updated) = (WallTime(1), WallTime(2));
    Value::Node(NodeObject { index: 1, created, updated, spec: spec.to_owned() })
}

pub(super) fn service_object(spec: &str) -> Value {
    let (created, updated) = (WallTime(1), WallTime(2));
    let (previous_spec, rolled_back, ports) = (None, false, Vec::new());
    Value::Service(ServiceObject {
        index: 1,
        created,
        updated,
        spec: spec.to_owned(),
        previous_spec,
        rolled_back,
        credentials: None,
        previous_credentials: None,
        ports,
    })
}

pub(super) fn object(name: &str, data: &[u8]) -> Value {
    let (created, updated) = (WallTime(1), WallTime(2));
    let head = ObjectHead { index: 1, created, updated, edition: 0, name: name.to_owned(), spec: "{}".to_owned() };
    Value::Object(Object { head, data: data.to_vec() })
}

pub(super) fn report(message: &str) -> Value {
    Value::TaskReport(TaskReport {
        service: ServiceId(1),
        slot: SlotName::Replica(1),
        state: TaskState::Running,
        since: WallTime(3),
        message: message.to_owned(),
        error: String::new(),
        container_id: String::new(),
        pid: 0,
        exit_code: None,
        address: None,
    })
}

/// Returns the base record of a write by `author`.
pub(super) fn base(key: Key, stamp: Stamp, author: u128, value: Option<&Value>) -> Record {
    Store::seal(key, stamp, NodeId(author), value).unwrap()
}

pub(super) fn overlay(key: Key, clock: &[(u64, u64)], author: u128, body: &[u8]) -> Record {
    let layer = Layer::Overlay { clock: clock.to_vec(), base: Stamp::default() };
    let (author, body) = (NodeId(author), Some(body.to_vec()));
    Record { key, stamp: stamp(9, 9), author, schema: SCHEMA, layer, body }
}

/// Returns every record that the store holds, as bytes and in order: what must be equal between replicas.
pub(super) fn bytes(store: &Store) -> Vec<Vec<u8>> {
    store.keys().flat_map(|key| store.records(key)).map(|record| codec::encode(&record).unwrap()).collect()
}

/// Returns the same for what belongs to the document.
pub(super) fn counted(store: &Store) -> Vec<Vec<u8>> {
    let keys = store.keys().filter(|key| store.counts(key));
    keys.flat_map(|key| store.records(key)).map(|record| codec::encode(&record).unwrap()).collect()
}

/// Returns a store with the same content whose digests were made from nothing.
pub(super) fn rebuilt(store: &Store) -> Store {
    let mut fresh = Store::new();
    for record in store.keys().flat_map(|key| store.records(key)) {
        fresh.merge(&record);
    }
    fresh
}

/// Records of every kind over few keys, stamps and authors, so that they meet each other; damaged ones, unknown schemas,
/// tombstones, collected ones and overlays with equal clocks included.
pub(super) fn records() -> impl Strategy<Value = Record> {
    let stamps = (0..2u32, 0..2u64, 0..3u64).prop_map(|(lineage, epoch, seq)| Stamp { lineage, epoch, seq });
    let bodies = prop_oneof![
        6 => (0..3u8).prop_map(Body::Good),
        1 => Just(Body::Removed),
        1 => Just(Body::Collected),
        1 => Just(Body::Damaged),
        1 => Just(Body::Newer),
    ];
    let clocks = proptest::collection::btree_map(0..3u64, 1..3u64, 1..3);
    let layers = prop_oneof![3 => Just(None), 1 => clocks.prop_map(Some)];
    (keys(), stamps, 1..=NODES, bodies, layers).prop_map(|(key, stamp, author, body, clock)| {
        let author = key.status_of().unwrap_or(NodeId(author));
        let (schema, body) = body.of(&key);
        let layer = match clock {
            Some(clock) if matches!(key, Key::Service(_) | Key::Slot(..) | Key::Object(..)) => {
                Layer::Overlay { clock: clock.into_iter().collect(), base: Stamp::default() }
            }
            _ => Layer::Base,
        };
        Record { key, stamp, author, schema, layer, body }
    })
}

fn keys() -> impl Strategy<Value = Key> {
    let node = || (1..=NODES).prop_map(NodeId);
    let service = || (1..3u128).prop_map(ServiceId);
    prop_oneof![
        1 => Just(Key::Cluster),
        1 => Just(Key::Voters),
        1 => (0..3u8).prop_map(|lease| Key::Claim(LeaseId(lease))),
        2 => node().prop_map(Key::Node),
        3 => service().prop_map(Key::Service),
        1 => service().prop_map(Key::Progress),
        4 => (1..3u128, 1..3u32).prop_map(|(service, replica)| slot_key(service, replica)),
        2 => node().prop_map(Key::NodeStatus),
        4 => (node(), 1..4u128).prop_map(|(node, task)| Key::TaskStatus(node, TaskId(task))),
        3 => (0..3usize, 1..3u128).prop_map(|(kind, id)| Key::Object(Kind::ALL[kind], ObjectId(id))),
    ]
}

#[derive(Debug, Clone)]
enum Body {
    Good(u8),
    Removed,
    Collected,
    Damaged,
    Newer,
}

impl Body {
    fn of(&self, key: &Key) -> (u16, Option<Vec<u8>>) {
        match self {
            Self::Good(variant) => (SCHEMA, Some(value_for(key, *variant).seal().unwrap())),
            Self::Removed => (SCHEMA, None),
            Self::Collected if key.is_collectable() => (SCHEMA_COLLECTED, None),
            Self::Collected => (SCHEMA, None),
            Self::Damaged => (SCHEMA, Some(vec![codec::VERSION, 0xff])),
            Self::Newer => (SCHEMA + 1, Some(b"from the future".to_vec())),
        }
    }
}

/// Returns a readable value for `key`; different variants differ.
fn value_for(key: &Key, variant: u8) -> Value {
    let text = format!(r#"{{"Name":"v{variant}"}}"#);
    match *key {
        Key::Cluster => Value::Cluster(shoal_protocol::value::ClusterObject::first(
            shoal_protocol::ClusterId(1),
            NodeId(1),
            String::new(),
            vec![variant],
            WallTime(0),
        )),
        Key::Voters => {
            let members = (1..=2 + u128::from(variant)).map(NodeId).collect();
            Value::Voters(VoterSet { version: 1, members, previous: Vec::new() })
        }
        Key::Claim(lease) => Value::Claim(Claim { lease, holder: NodeId(u128::from(variant)) }),
        Key::Node(_) => node_object(&text),
        Key::Service(_) => service_object(&text),
        Key::Progress(_) => Value::Progress(Progress {
            index: u64::from(variant),
            state: UpdateState::Updating,
            started: WallTime(0),
            completed: None,
            message: String::new(),
        }),
        // The variants name different tasks, so that reports become part of the document and leave it again.
        Key::Slot(..) => slot_of(&[(u128::from(variant) + 1, 1), (u128::from(variant) + 2, 2)]),
        Key::NodeStatus(_) => Value::NodeStatus(NodeStatus { hostname: text, ..NodeStatus::default() }),
        Key::TaskStatus(..) => report(&text),
        Key::Object(..) => object(&text, &[variant]),
    }
}
