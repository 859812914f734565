use shoal_protocol::Stamp;
use shoal_protocol::object::DATA_BYTES_LIMIT;
use shoal_protocol::write::CredentialsChange;

use super::*;
use crate::core::registry::{clashes, decide, relies_on_older};

const ID: ObjectId = ObjectId(5);
const NOW: WallTime = WallTime(7);

/// Carries a write out in a document, under an epoch.
fn carry_out(store: &mut Store, epoch: u64, write: &Write) -> Result<u64, String> {
    let decision = decide(write, store, |_| false, NOW).map_err(|error| error.to_string())?;
    for (key, value) in decision.changes {
        let seq = store.stamp(&key).map_or(1, |stamp| stamp.seq + 1);
        store.put(key, Stamp { lineage: 0, epoch, seq }, shoal_protocol::NodeId(1), value.as_ref()).unwrap();
    }
    Ok(decision.written.index)
}

fn create_write(kind: Kind, id: ObjectId, name: &str) -> Write {
    let spec = format!(r#"{{"Name":"{name}"}}"#);
    Write::CreateObject { kind, id, spec, data: vec![1; SEAL_BYTES + 1], edition: 1 }
}

fn service_write(id: u128, secret: ObjectId, name: &str) -> Write {
    let spec = format!(
        r#"{{"Name":"web{id}","TaskTemplate":{{"ContainerSpec":{{"Image":"x","Secrets":[
        {{"File":{{"Name":"f"}},"SecretID":"{secret}","SecretName":"{name}"}}]}}}}}}"#
    );
    Write::CreateService { id: ServiceId(id), spec, credentials: None }
}

#[test]
fn names_are_unique_among_the_objects_of_a_kind() {
    let mut store = Store::new();
    let write = create_write(Kind::Secret, ID, "sec1");
    assert_eq!(carry_out(&mut store, 1, &write), Ok(1));
    assert_eq!(carry_out(&mut store, 1, &write), Ok(1), "forwarded twice");
    let taken = carry_out(&mut store, 1, &create_write(Kind::Secret, ObjectId(6), "sec1"));
    assert_eq!(taken, Err("secret sec1 already exists".to_owned()));
    assert_eq!(carry_out(&mut store, 1, &create_write(Kind::Config, ID, "sec1")), Ok(1), "another kind");
    assert_eq!(carry_out(&mut store, 1, &Write::RemoveObject { kind: Kind::Secret, id: ID }), Ok(0));
    assert_eq!(carry_out(&mut store, 1, &create_write(Kind::Secret, ObjectId(6), "sec1")), Ok(1), "it is free again");
}

#[test]
fn what_is_too_large_or_too_much_is_refused() {
    let mut store = Store::new();
    let with = |id: u128, bytes: usize| Write::CreateObject {
        kind: Kind::Config,
        id: ObjectId(id),
        spec: format!(r#"{{"Name":"c{id}"}}"#),
        data: vec![0; bytes],
        edition: 0,
    };
    let limit = "config data must be larger than 0 and less than 512000 bytes";
    assert_eq!(carry_out(&mut store, 1, &with(1, 0)), Err(limit.to_owned()));
    assert_eq!(carry_out(&mut store, 1, &with(1, DATA_BYTES_LIMIT)), Err(limit.to_owned()));
    let empty = Write::CreateObject {
        kind: Kind::Secret,
        id: ID,
        spec: r#"{"Name":"s"}"#.to_owned(),
        data: vec![0; SEAL_BYTES],
        edition: 1,
    };
    assert!(carry_out(&mut store, 1, &empty).unwrap_err().starts_with("secret data must be larger than 0"));
    let fit = DATA_BYTES_TOTAL_MAX / (DATA_BYTES_LIMIT - 1);
    for id in 0..fit as u128 {
        assert_eq!(carry_out(&mut store, 1, &with(id, DATA_BYTES_LIMIT - 1)), Ok(1));
    }
    let error = carry_out(&mut store, 1, &with(999, DATA_BYTES_LIMIT - 1)).unwrap_err();
    assert!(error.contains("exceed the limit of 67108864: remove some"), "{error}");
}

#[test]
fn only_labels_are_updated() {
    let mut store = Store::new();
    carry_out(&mut store, 1, &create_write(Kind::Config, ID, "con1")).unwrap();
    let update =
        |version, spec: &str| Write::UpdateObject { kind: Kind::Config, id: ID, version, spec: spec.to_owned() };
    let labelled = r#"{"Name":"con1","Labels":{"a":"b"}}"#;
    assert_eq!(carry_out(&mut store, 1, &update(1, labelled)), Ok(2));
    assert_eq!(carry_out(&mut store, 1, &update(1, labelled)), Ok(2), "forwarded twice");
    assert_eq!(carry_out(&mut store, 1, &update(1, "{}")), Err("update out of sequence".to_owned()));
    let renamed = carry_out(&mut store, 1, &update(2, r#"{"Name":"con2"}"#));
    assert_eq!(renamed, Err("only updates to Labels are allowed".to_owned()));
    let template = carry_out(&mut store, 1, &update(2, r#"{"Name":"con1","Templating":{"Name":"golang"}}"#));
    assert_eq!(template, Err("only updates to Labels are allowed".to_owned()));
    let object = store.object_with_data(Kind::Config, ID).unwrap();
    assert_eq!((object.head.index, object.head.spec.as_str()), (2, labelled));
    assert_eq!(object.data.len(), SEAL_BYTES + 1, "the data stay");
}

#[test]
fn what_a_service_uses_is_there_and_stays() {
    let mut store = Store::new();
    let missing = carry_out(&mut store, 1, &service_write(1, ID, "sec1"));
    assert_eq!(missing, Err("secret not found: sec1".to_owned()));
    carry_out(&mut store, 1, &create_write(Kind::Secret, ID, "sec1")).unwrap();
    let renamed = carry_out(&mut store, 1, &service_write(1, ID, "sec2"));
    assert_eq!(renamed, Err("secret not found: sec2".to_owned()), "the name belongs to the identifier");
    let remove = Write::RemoveObject { kind: Kind::Secret, id: ID };
    for (id, want) in [
        (1, "secret 'sec1' is in use by the following service: web1"),
        (2, "secret 'sec1' is in use by the following services: web1, web2"),
    ] {
        assert_eq!(carry_out(&mut store, 1, &service_write(id, ID, "sec1")), Ok(1));
        assert_eq!(carry_out(&mut store, 1, &remove), Err(want.to_owned()));
    }
    for id in [1, 2] {
        carry_out(&mut store, 1, &Write::RemoveService { id: ServiceId(id) }).unwrap();
    }
    assert_eq!(carry_out(&mut store, 1, &remove), Ok(0));
    assert_eq!(carry_out(&mut store, 1, &remove), Ok(0), "forwarded twice");
    let unknown = carry_out(&mut store, 1, &Write::RemoveObject { kind: Kind::Secret, id: ObjectId(99) });
    assert_eq!(unknown, Err(format!("secret {} not found", ObjectId(99))));
}

#[test]
fn an_update_to_what_is_gone_is_refused() {
    let mut store = Store::new();
    for (id, name) in [(5, "sec1"), (6, "sec2")] {
        carry_out(&mut store, 1, &create_write(Kind::Secret, ObjectId(id), name)).unwrap();
    }
    carry_out(&mut store, 1, &service_write(1, ObjectId(5), "sec1")).unwrap();
    let Write::CreateService { spec, .. } = service_write(1, ObjectId(6), "sec2") else { unreachable!() };
    let update = |version, spec: &str, rollback| Write::UpdateService {
        id: ServiceId(1),
        version,
        spec: spec.to_owned(),
        rollback,
        credentials: CredentialsChange::Keep,
    };
    assert_eq!(carry_out(&mut store, 1, &update(1, &spec, false)), Ok(2));
    carry_out(&mut store, 1, &Write::RemoveObject { kind: Kind::Secret, id: ObjectId(5) }).unwrap();
    let back = carry_out(&mut store, 1, &update(2, "", true));
    assert_eq!(back, Err("secret not found: sec1".to_owned()), "the previous spec used it");
}

#[test]
fn of_two_with_one_name_the_late_one_goes() {
    let mut store = Store::new();
    carry_out(&mut store, 2, &create_write(Kind::Secret, ID, "sec1")).unwrap();
    let late = ObjectId(6);
    for kind in [Kind::Secret, Kind::Config] {
        let (created, updated) = (NOW, NOW);
        let head =
            ObjectHead { index: 1, created, updated, edition: 1, name: "sec1".to_owned(), spec: "{}".to_owned() };
        let value = Value::Object(Object { head, data: vec![1] });
        let stamp = Stamp { lineage: 0, epoch: 1, seq: 9 };
        store.put(Key::Object(kind, late), stamp, shoal_protocol::NodeId(2), Some(&value)).unwrap();
    }
    assert!(clashes(&Key::Object(Kind::Secret, late), &store));
    assert!(!clashes(&Key::Object(Kind::Config, late), &store));
}

#[test]
fn a_late_new_service_goes_with_what_it_used() {
    let mut store = Store::new();
    carry_out(&mut store, 1, &create_write(Kind::Secret, ID, "sec1")).unwrap();
    carry_out(&mut store, 1, &service_write(1, ID, "sec1")).unwrap();
    let service = Key::Service(ServiceId(1));
    assert!(!clashes(&service, &store));
    store
        .put(Key::Object(Kind::Secret, ID), Stamp { lineage: 0, epoch: 2, seq: 1 }, shoal_protocol::NodeId(1), None)
        .unwrap();
    assert!(clashes(&service, &store));
}

#[test]
fn what_a_service_relies_on_is_of_the_present_epoch() {
    let mut store = Store::new();
    carry_out(&mut store, 1, &create_write(Kind::Secret, ID, "sec1")).unwrap();
    let (write, key) = (service_write(1, ID, "sec1"), Key::Object(Kind::Secret, ID));
    assert_eq!(relies_on_older(&write, 1, &store), None);
    assert_eq!(relies_on_older(&write, 2, &store), Some(key));
    assert_eq!(relies_on_older(&Write::RemoveService { id: ServiceId(1) }, 2, &store), None);
    carry_out(&mut store, 1, &write).unwrap();
    let rollback = Write::UpdateService {
        id: ServiceId(1),
        version: 1,
        spec: String::new(),
        rollback: true,
        credentials: CredentialsChange::Keep,
    };
    assert_eq!(relies_on_older(&rollback, 2, &store), None, "there is no previous spec");
    // Written again under the present epoch, it outlives a removal that an earlier holder had begun.
    let mut record = store.record(&key).unwrap();
    record.stamp = Stamp { lineage: 0, epoch: 2, seq: 1 };
    store.merge(&record);
    assert_eq!(relies_on_older(&write, 2, &store), None);
    let removal = Store::seal(key, Stamp { lineage: 0, epoch: 1, seq: 99 }, shoal_protocol::NodeId(3), None).unwrap();
    store.merge(&removal);
    assert!(store.object(Kind::Secret, ID).is_some());
}

fn network_write(id: u128, name: &str, subnet: &str) -> Write {
    let config = if subnet.is_empty() { String::new() } else { format!(r#"{{"Subnet":"{subnet}"}}"#) };
    let spec = format!(r#"{{"Name":"{name}","Driver":"overlay","IPAM":{{"Config":[{config}]}}}}"#);
    Write::CreateObject { kind: Kind::Network, id: ObjectId(id), spec, data: Vec::new(), edition: 0 }
}

#[test]
fn networks_get_addresses_of_their_own() {
    let mut store = Store::new();
    for (id, name, subnet, want) in [
        (1, "one", "", Ok("10.0.1.0/24")),
        (2, "two", "10.0.2.0/23", Ok("10.0.2.0/23")),
        (3, "three", "", Ok("10.0.4.0/24")),
        (4, "one", "", Err("network with name one already exists")),
        (5, "ingress", "", Err("network with name ingress already exists")),
        (6, "six", "10.0.0.128/25", Err("10.0.0.128/25 and 10.0.0.0/24")),
        (7, "seven", "10.0.3.0/24", Err("10.0.3.0/24 and 10.0.2.0/23")),
    ] {
        match (carry_out(&mut store, 1, &network_write(id, name, subnet)), want) {
            (Ok(_), Ok(want)) => {
                let block = &store.network(ObjectId(id)).unwrap().blocks[0];
                assert_eq!((block.subnet.to_string().as_str(), block.gateway), (want, block.subnet.host(1)), "{name}");
            }
            (Err(got), Err(want)) => assert!(got.ends_with(want), "{name}: {got}"),
            (got, want) => panic!("{name}: {got:?} and not {want:?}"),
        }
    }
    assert_eq!(carry_out(&mut store, 1, &network_write(1, "one", "")), Ok(1), "forwarded twice");
    carry_out(&mut store, 1, &Write::RemoveObject { kind: Kind::Network, id: ObjectId(1) }).unwrap();
    carry_out(&mut store, 1, &network_write(8, "eight", "")).unwrap();
    assert_eq!(store.network(ObjectId(8)).unwrap().blocks[0].subnet.to_string(), "10.0.1.0/24", "it is free again");
}

#[test]
fn a_network_that_a_service_uses_stays_and_its_use_is_warned_of() {
    let mut store = Store::new();
    let spec = format!(
        r#"{{"Name":"web","TaskTemplate":{{"ContainerSpec":{{"Image":"x"}},"Networks":[{{"Target":"{ID}"}}]}}}}"#
    );
    let service = Write::CreateService { id: ServiceId(1), spec, credentials: None };
    assert_eq!(carry_out(&mut store, 1, &service), Err(format!("network {ID} not found")));
    carry_out(&mut store, 1, &network_write(ID.0, "ov", "")).unwrap();
    let decision = decide(&service, &store, |_| false, NOW).unwrap();
    assert_eq!(decision.written.warnings, [network::WARNING]);
    assert_eq!(relies_on_older(&service, 2, &store), Some(Key::Object(Kind::Network, ID)));
    carry_out(&mut store, 1, &service).unwrap();
    let remove = Write::RemoveObject { kind: Kind::Network, id: ID };
    let used = format!("network {ID} is in use by service {}", ServiceId(1));
    assert_eq!(carry_out(&mut store, 1, &remove), Err(used));
    carry_out(&mut store, 1, &Write::RemoveService { id: ServiceId(1) }).unwrap();
    assert_eq!(carry_out(&mut store, 1, &remove), Ok(0));
}

#[test]
fn of_two_networks_with_the_same_addresses_the_late_one_goes() {
    let (mut store, mut other) = (Store::new(), Store::new());
    carry_out(&mut store, 2, &network_write(1, "one", "")).unwrap();
    carry_out(&mut other, 1, &network_write(2, "two", "")).unwrap();
    carry_out(&mut other, 1, &network_write(3, "three", "")).unwrap();
    for id in [2, 3] {
        store.merge(&other.record(&Key::Object(Kind::Network, ObjectId(id))).unwrap());
    }
    assert!(clashes(&Key::Object(Kind::Network, ObjectId(2)), &store));
    assert!(!clashes(&Key::Object(Kind::Network, ObjectId(3)), &store));
}
