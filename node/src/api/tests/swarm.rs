//! What makes a cluster, its settings, and nodes whose keys are locked.

use super::*;

#[tokio::test]
async fn a_cluster_is_made_as_its_user_wants_it() {
    let server = Server::start(Fake::new());
    // As Docker's client sends it without flags.
    let plain = r#"{"ListenAddr":"0.0.0.0:2377","AdvertiseAddr":"","DataPathAddr":"","DataPathPort":0,"ForceNewCluster":false,
        "Spec":{"Labels":null,"Orchestration":{},"Raft":{"ElectionTick":0,"HeartbeatTick":0},"Dispatcher":{},"CAConfig":{},
        "TaskDefaults":{},"EncryptionConfig":{"AutoLockManagers":false}},"AutoLockManagers":false,"Availability":"",
        "DefaultAddrPool":[],"SubnetSize":24}"#;
    let full = r#"{"ListenAddr":"0.0.0.0:7000","DataPathAddr":"10.77.0.1","DataPathPort":4789,"Spec":{"Orchestration":
        {"TaskHistoryRetentionLimit":3},"Raft":{"SnapshotInterval":10000},"Dispatcher":{"HeartbeatPeriod":5000000000},
        "CAConfig":{"NodeCertExpiry":3600000000000},"EncryptionConfig":{"AutoLockManagers":true}},"AutoLockManagers":true,
        "Availability":"drain","DefaultAddrPool":["10.20.0.0/16","10.30.0.0/16"],"SubnetSize":26}"#;
    for body in [plain, full, r#"{"AutoLockManagers":true,"Availability":"pause"}"#] {
        assert_eq!(server.send(Method::POST, "/swarm/init", body).await.0, StatusCode::OK, "{body}");
    }
    let wanted = ClusterSettings {
        task_history: 3,
        credential_ns: 3_600_000_000_000,
        auto_lock: true,
        pools: vec!["10.20.0.0/16".parse().unwrap(), "10.30.0.0/16".parse().unwrap()],
        pool_prefix: 26,
    };
    let locked = ClusterSettings { auto_lock: true, ..Default::default() };
    let made = [
        (ClusterSettings::default(), Availability::Active),
        (wanted, Availability::Drain),
        (locked, Availability::Pause),
    ];
    assert_eq!(*server.fake.made.lock().unwrap(), made);
    for (body, status, text) in [
        (r#"{"ListenAddr":"10.0.0.1:2377"}"#, 400, "start shoald with --listen-addr 10.0.0.1:2377"),
        (r#"{"DataPathAddr":"10.0.0.9"}"#, 501, "--data-path-addr"),
        (r#"{"DataPathPort":7777}"#, 501, "--data-path-port"),
        (r#"{"Availability":"away"}"#, 400, "only active, pause and drain"),
        (r#"{"DefaultAddrPool":["10.20.0.0/28"]}"#, 400, "smaller than one network"),
        (r#"{"DefaultAddrPool":["fd00::/64"]}"#, 400, "not a block of IPv4 addresses"),
        (r#"{"SubnetSize":31}"#, 400, "out of range"),
        (r#"{"Spec":{"CAConfig":{"NodeCertExpiry":60000000000}}}"#, 400, "minimum certificate expiry time is: 1h0m0s"),
        (r#"{"Spec":{"Dispatcher":{"HeartbeatPeriod":1000000000}}}"#, 501, "--dispatcher-heartbeat"),
        (r#"{"Spec":{"Raft":{"KeepOldSnapshots":3}}}"#, 501, "--max-snapshots"),
        (r#"{"Spec":{"CAConfig":{"ExternalCAs":[{"Protocol":"cfssl","URL":"https://ca"}]}}}"#, 501, "--external-ca"),
    ] {
        let (got, message) = server.refused(Method::POST, "/swarm/init", body).await;
        assert!(got == status && message.contains(text), "{body}: {got} {message}");
    }
    let join = r#"{"RemoteAddrs":["a:1"],"JoinToken":"x","Availability":"away"}"#;
    assert!(server.refused(Method::POST, "/swarm/join", join).await.1.contains("only active, pause and drain"));
}

#[tokio::test]
async fn settings_are_changed_and_shown() {
    let server = Server::start(Fake::new());
    let swarm = server.get("/swarm").await;
    let path = "/swarm/update?version=3";
    assert_eq!(server.send(Method::POST, path, swarm["Spec"].to_string()).await.0, StatusCode::OK);
    assert!(server.fake.rotations.lock().unwrap().is_empty(), "what was read changes nothing");
    let mut spec = swarm["Spec"].clone();
    spec["Orchestration"]["TaskHistoryRetentionLimit"] = 3.into();
    spec["EncryptionConfig"]["AutoLockManagers"] = true.into();
    assert_eq!(server.send(Method::POST, path, spec.to_string()).await.0, StatusCode::OK);
    let unlock = "/swarm/update?version=3&rotateManagerUnlockKey=true";
    assert_eq!(server.send(Method::POST, unlock, swarm["Spec"].to_string()).await.0, StatusCode::OK);
    let settings = ClusterSettings { task_history: 3, auto_lock: true, ..Default::default() };
    let changed = Rotation { settings: Some(settings.clone()), ..Rotation::default() };
    let rotated = Rotation { unlock_key: true, ..Rotation::default() };
    assert_eq!(*server.fake.rotations.lock().unwrap(), [changed, rotated]);

    assert_eq!(server.get("/swarm/unlockkey").await, json!({"UnlockKey": ""}));
    let settings = ClusterSettings { pools: vec!["10.20.0.0/16".parse().unwrap()], pool_prefix: 26, ..settings };
    let cluster = server.fake.store.lock().unwrap().cluster().unwrap().clone();
    let cluster = ClusterObject { settings, lock: 1, ..cluster };
    put(&mut server.fake.store.lock().unwrap(), Key::Cluster, &value::Value::Cluster(cluster));
    assert_eq!(server.get("/swarm/unlockkey").await, json!({"UnlockKey": "SWMKEY-1-x"}));
    for swarm in [server.get("/swarm").await, server.get("/info").await["Swarm"]["Cluster"].clone()] {
        assert_eq!(swarm["Spec"]["EncryptionConfig"], json!({"AutoLockManagers": true}));
        assert_eq!(swarm["Spec"]["Orchestration"], json!({"TaskHistoryRetentionLimit": 3}));
        assert_eq!((&swarm["DefaultAddrPool"], &swarm["SubnetSize"]), (&json!(["10.20.0.0/16"]), &json!(26)));
    }
    let block = server.get("/networks/ingress").await["IPAM"]["Config"][0]["Subnet"].clone();
    assert_eq!(block, "10.20.0.0/26");
}

#[tokio::test]
async fn a_locked_node_says_that_it_is_locked() {
    let key = "SWMKEY-1-pJZtYLo2J/LAV5EZNKEnzUwcX83r9k7IdvBbVuAPXGU";
    let lock = Some(UnlockKey::from_text(key).unwrap());
    let server = Server::start(Fake { lock, in_cluster: false, ..Fake::new() });
    let locked = "Swarm is encrypted and needs to be unlocked before it can be used. Please use \"docker swarm unlock\" to unlock it.";
    let swarm = server.get("/info").await["Swarm"].clone();
    assert_eq!((&swarm["LocalNodeState"], &swarm["Error"]), (&json!("locked"), &json!(locked)));
    assert_eq!(swarm["ControlAvailable"], false);
    let (parts, _) = server.send_whole(Method::GET, "/_ping", "").await;
    assert_eq!(parts.headers["swarm"], "locked");
    assert_eq!(server.send(Method::GET, "/version", "").await.0, StatusCode::OK);
    for (method, path) in [
        (Method::GET, "/swarm"),
        (Method::GET, "/swarm/unlockkey"),
        (Method::GET, "/v1.41/nodes"),
        (Method::GET, "/services"),
        (Method::POST, "/services/create"),
        (Method::GET, "/events"),
        (Method::GET, "/shoal/status"),
        (Method::GET, "/"),
        (Method::POST, "/swarm/update?version=1"),
    ] {
        assert_eq!(server.refused(method, path, "{}").await, (503, locked.to_owned()), "{path}");
    }
    for (body, status, text) in [
        ("{", 400, "invalid JSON"),
        ("{}", 400, "invalid key string"),
        (r#"{"UnlockKey":"nonsense"}"#, 400, "invalid key string"),
        (
            r#"{"UnlockKey":"SWMKEY-1-AAAAYLo2J/LAV5EZNKEnzUwcX83r9k7IdvBbVuAPXGU"}"#,
            401,
            "swarm could not be unlocked: invalid key provided",
        ),
    ] {
        assert_eq!(server.refused(Method::POST, "/swarm/unlock", body).await, (status, text.to_owned()));
    }
    let large = format!(r#"{{"UnlockKey":"{}"}}"#, "x".repeat(5000));
    assert_eq!(server.send(Method::POST, "/swarm/unlock", large).await.0, StatusCode::PAYLOAD_TOO_LARGE);
    let right = format!(r#"{{"UnlockKey":"{key}"}}"#);
    assert_eq!(server.send(Method::POST, "/swarm/unlock", right).await.0, StatusCode::OK);
}

#[tokio::test]
async fn what_is_not_locked_is_not_unlocked() {
    for (fake, status, text) in [
        (Fake::new(), 409, "swarm is not locked"),
        (Fake { role: Role::Worker, ..Fake::new() }, 503, "Worker nodes can't be used"),
        (Fake { in_cluster: false, ..Fake::new() }, 503, "Use \"docker swarm init\""),
    ] {
        let server = Server::start(fake);
        let (got, message) = server.refused(Method::POST, "/swarm/unlock", r#"{"UnlockKey":"x"}"#).await;
        assert!(got == status && message.contains(text), "{got} {message}");
    }
}
