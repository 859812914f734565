use shoal_protocol::{NodeId, Stamp, WallTime};

use super::*;
use crate::core::registry::decide;
use shoal_protocol::write::Write;

const WEB: ServiceId = ServiceId(1);

fn sealed(fill: u8, edition: u64) -> Option<Sealed> {
    Some(Sealed { edition, data: vec![fill; SEAL_BYTES + 1] })
}

fn spec(image: &str) -> String {
    format!(r#"{{"Name":"web","TaskTemplate":{{"ContainerSpec":{{"Image":"{image}"}}}}}}"#)
}

fn carry_out(store: &mut Store, write: &Write) -> Result<u64, String> {
    let decision = decide(write, store, |_| false, WallTime(7)).map_err(|error| error.to_string())?;
    for (key, value) in decision.changes {
        let seq = store.stamp(&key).map_or(1, |stamp| stamp.seq + 1);
        store.put(key, Stamp { lineage: 0, epoch: 1, seq }, NodeId(1), value.as_ref()).unwrap();
    }
    Ok(decision.written.index)
}

fn update(version: u64, image: &str, rollback: bool, credentials: CredentialsChange) -> Write {
    Write::UpdateService { id: WEB, version, spec: spec(image), rollback, credentials }
}

/// Who may pull: for the present spec, and for the one before.
fn fills(store: &Store) -> (Option<u8>, Option<u8>) {
    let service = store.service(WEB).unwrap();
    let fill = |sealed: &Option<Sealed>| sealed.as_ref().map(|sealed| sealed.data[0]);
    (fill(&service.credentials), fill(&service.previous_credentials))
}

fn created(credentials: Option<Sealed>) -> Store {
    let mut store = Store::new();
    carry_out(&mut store, &Write::CreateService { id: WEB, spec: spec("a"), credentials }).unwrap();
    store
}

#[test]
fn credentials_go_with_their_spec() {
    use CredentialsChange::{Keep, Previous, Set};
    let mut store = created(sealed(1, 1));
    let none = carry_out(&mut store, &update(1, "b", false, Previous)).unwrap_err();
    assert!(none.contains("does not have a previous spec"), "{none}");
    for (change, rollback, want) in [
        (Keep, false, (Some(1), Some(1))),
        (Set(sealed(2, 1)), false, (Some(2), Some(1))),
        (Keep, true, (Some(1), Some(2))),
        (Keep, true, (Some(2), Some(1))),
        (Previous, false, (Some(1), Some(2))),
        (Set(None), false, (None, Some(1))),
        (Keep, false, (None, None)),
    ] {
        let version = store.service(WEB).unwrap().index;
        carry_out(&mut store, &update(version, "b", rollback, change.clone())).unwrap();
        assert_eq!(fills(&store), want, "{change:?} {rollback}");
    }
    carry_out(&mut store, &Write::RemoveService { id: WEB }).unwrap();
    assert!(store.service(WEB).is_none(), "they are part of it");
}

#[test]
fn too_large_ones_are_refused() {
    let large = Some(Sealed { edition: 1, data: vec![0; HEADER_CHARS_MAX + SEAL_BYTES + 1] });
    let create = Write::CreateService { id: WEB, spec: spec("a"), credentials: large.clone() };
    assert!(carry_out(&mut Store::new(), &create).unwrap_err().contains("larger than the limit of 16384"));
    let set = update(1, "a", false, CredentialsChange::Set(large));
    assert!(carry_out(&mut created(None), &set).unwrap_err().contains("larger than the limit of 16384"));
}

#[test]
fn another_update_with_the_same_spec_and_other_credentials_is_no_copy() {
    let mut store = created(None);
    let first = update(1, "b", false, CredentialsChange::Set(sealed(2, 1)));
    assert_eq!(carry_out(&mut store, &first), Ok(2));
    assert_eq!(carry_out(&mut store, &first), Ok(2), "the same one, forwarded twice");
    let other = update(1, "b", false, CredentialsChange::Set(sealed(3, 1)));
    assert!(carry_out(&mut store, &other).unwrap_err().contains("out of sequence"));
}

#[test]
fn a_task_gets_those_of_the_spec_that_it_was_made_from() {
    let mut store = created(sealed(1, 1));
    carry_out(&mut store, &update(1, "b", false, CredentialsChange::Set(sealed(2, 1)))).unwrap();
    let service = store.service(WEB).unwrap();
    let at = |index| service.credentials_at(index).map(|sealed| sealed.data[0]);
    assert_eq!((at(2), at(1)), (Some(2), Some(1)));
}

#[test]
fn they_are_sealed_anew_without_a_change_that_users_see() {
    let mut store = created(sealed(1, 1));
    carry_out(&mut store, &update(1, "b", false, CredentialsChange::Set(sealed(2, 2)))).unwrap();
    let before = store.service(WEB).unwrap().clone();
    assert_eq!(before.oldest_edition(), Some(1));
    let reseal = |version, credentials, previous| Write::ResealCredentials { id: WEB, version, credentials, previous };
    for (name, write) in [
        ("read too early", reseal(1, sealed(3, 3), sealed(4, 3))),
        ("one is lost", reseal(2, sealed(3, 3), None)),
        ("others", reseal(2, sealed(3, 3), Some(Sealed { edition: 3, data: vec![9; 7] }))),
    ] {
        assert!(carry_out(&mut store, &write).is_err(), "{name}");
    }
    assert_eq!(store.service(WEB), Some(&before));
    assert_eq!(carry_out(&mut store, &reseal(2, sealed(3, 3), sealed(4, 3))), Ok(2));
    assert_eq!(fills(&store), (Some(3), Some(4)));
    let after = store.service(WEB).unwrap();
    assert_eq!((after.index, after.updated, after.oldest_edition()), (2, before.updated, Some(3)));
    assert_eq!(carry_out(&mut store, &reseal(2, sealed(5, 3), sealed(5, 3))), Ok(2), "a second copy");
    assert_eq!(fills(&store), (Some(3), Some(4)));
}
