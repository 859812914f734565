use shoal_protocol::Stamp;

use super::*;

const ONE: NodeId = NodeId(1);
const TWO: NodeId = NodeId(2);

fn carry_out(store: &mut Store, write: &Write, down: &[NodeId]) -> Result<(), String> {
    let decision = decide(write, store, |node| down.contains(&node), WallTime(7)).map_err(|error| error.to_string())?;
    for (key, value) in decision.changes {
        let seq = store.stamp(&key).map_or(1, |stamp| stamp.seq + 1);
        store.put(key, Stamp { lineage: 0, epoch: 1, seq }, ONE, value.as_ref()).unwrap();
    }
    Ok(())
}

fn admit(store: &mut Store, id: NodeId, role: Role) {
    carry_out(store, &Write::AdmitNode { id, role, availability: Availability::Active }, &[]).unwrap();
}

#[test]
fn the_last_manager_is_not_removed_even_by_force() {
    let remove = |id, force| Write::RemoveNode { id, force };
    let mut store = Store::new();
    admit(&mut store, ONE, Role::Manager);
    admit(&mut store, TWO, Role::Worker);
    let refused = carry_out(&mut store, &remove(ONE, true), &[]).unwrap_err();
    assert!(refused.contains("attempting to remove the last manager of the swarm"), "{refused}");
    let refused = carry_out(&mut store, &remove(TWO, false), &[]).unwrap_err();
    assert!(refused.contains("is not down and can't be removed"), "{refused}");
    carry_out(&mut store, &remove(TWO, true), &[]).unwrap();

    let mut store = Store::new();
    admit(&mut store, ONE, Role::Manager);
    admit(&mut store, TWO, Role::Manager);
    let refused = carry_out(&mut store, &remove(ONE, true), &[TWO]).unwrap_err();
    assert!(refused.contains("is the last manager that is not down"), "{refused}");
    carry_out(&mut store, &remove(TWO, false), &[TWO]).unwrap();
    assert!(store.node(TWO).is_none() && store.node(ONE).is_some());
}
