//! The document of a cluster that was just made.

use shoal_protocol::codec::CodecError;
use shoal_protocol::record::{Layer, Record};
use shoal_protocol::spec::NodeSpec;
use shoal_protocol::token::Role;
use shoal_protocol::value::{ClusterObject, NodeObject, SCHEMA, Value};
use shoal_protocol::{Key, NodeId, Stamp, WallTime};

use crate::lease::{Durable, Leases};

/// Returns the first records and the first voter set of a cluster whose only member is `me`.
///
/// The records have epoch 0: the first holder of the registry lease writes under epoch 1 or higher.
pub fn first_document(me: NodeId, cluster: ClusterObject, now: WallTime) -> Result<(Vec<Record>, Durable), CodecError> {
    let spec = NodeSpec { role: Role::Manager, ..NodeSpec::default() };
    let spec = serde_json::to_string(&spec).map_err(|error| CodecError::Malformed { reason: error.to_string() })?;
    let node = NodeObject { index: 1, created: now, updated: now, spec };
    let values = [(Key::Cluster, Value::Cluster(cluster)), (Key::Node(me), Value::Node(node))];
    let records = values.into_iter().map(|(key, value)| {
        let stamp = Stamp { lineage: 0, epoch: 0, seq: 1 };
        Ok(Record { key, stamp, author: me, schema: SCHEMA, layer: Layer::Base, body: Some(value.seal()?) })
    });
    Ok((records.collect::<Result<_, CodecError>>()?, Leases::bootstrap(me)))
}
