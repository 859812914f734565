//! The document of a cluster that was just made.

use shoal_protocol::codec::CodecError;
use shoal_protocol::lease::VoterSet;
use shoal_protocol::record::{Layer, Record};
use shoal_protocol::spec::{Availability, NodeSpec};
use shoal_protocol::token::Role;
use shoal_protocol::value::{ClusterObject, NodeObject, SCHEMA, Value};
use shoal_protocol::{Key, NodeId, Stamp, WallTime};

use crate::lease::{Durable, Leases};

/// Returns the first records and the first voter set of a cluster whose only member is `me`, who takes tasks or not.
///
/// The records have epoch 0: the first holder of the registry lease writes under epoch 1 or higher.
pub fn first_document(
    me: NodeId,
    availability: Availability,
    cluster: ClusterObject,
    now: WallTime,
) -> Result<(Vec<Record>, Durable), CodecError> {
    let spec = NodeSpec { role: Role::Manager, availability, ..NodeSpec::default() };
    let spec = serde_json::to_string(&spec).map_err(|error| CodecError::Malformed { reason: error.to_string() })?;
    let node = NodeObject { index: 1, created: now, updated: now, spec };
    let leases = Leases::bootstrap(me);
    let first = Stamp { lineage: 0, epoch: 0, seq: 1 };
    let values = [
        (Key::Cluster, first, Value::Cluster(cluster)),
        (Key::Node(me), first, Value::Node(node)),
        // Nobody who joins learns of voters otherwise, until they change.
        (Key::Voters, voters_stamp(&leases.voters), Value::Voters(leases.voters.clone())),
    ];
    let records = values.into_iter().map(|(key, stamp, value)| {
        Ok(Record { key, stamp, author: me, schema: SCHEMA, layer: Layer::Base, body: Some(value.seal()?) })
    });
    Ok((records.collect::<Result<_, CodecError>>()?, leases))
}

/// Returns the stamp of a voter set's record, which is the same whoever writes it.
pub(super) fn voters_stamp(voters: &VoterSet) -> Stamp {
    Stamp { lineage: 0, epoch: voters.version, seq: 0 }
}
