//! Writes: what users send arrives as they sent it, and refusals come back in Docker's words.

use base64::Engine as _;
use shoal_protocol::write::CredentialsChange;

use super::*;

#[tokio::test]
async fn a_spec_is_passed_on_as_it_was_sent() {
    let server = Server::start(Fake::new());
    let body = r#"{"Name": "api",  "TaskTemplate": {"ContainerSpec": {"Image": "a"}, "Unknown": [1]}}"#;
    let (status, answer) = server.send(Method::POST, "/v1.50/services/create", body).await;
    assert_eq!(status, StatusCode::CREATED);
    let answer: Value = serde_json::from_slice(&answer).unwrap();
    let writes = server.fake.writes.lock().unwrap();
    let Write::CreateService { id, spec, credentials: None } = &writes[0] else { panic!("{writes:?}") };
    assert_eq!((spec.as_str(), &answer), (body, &json!({"ID": id})));
}

#[tokio::test]
async fn a_service_without_a_name_gets_one() {
    let server = Server::start(Fake::new());
    let body = r#"{"TaskTemplate": {"ContainerSpec": {"Image": "a"}}}"#;
    assert_eq!(server.send(Method::POST, "/services/create", body).await.0, StatusCode::CREATED);
    let list = server.get("/services").await;
    let made_up = list.as_array().unwrap().iter().map(|service| service["Spec"]["Name"].as_str().unwrap());
    let name = made_up.filter(|name| *name != "web").collect::<String>();
    assert!(
        name.len() <= 63 && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
    );
}

#[tokio::test]
async fn an_update_names_the_version_it_read() {
    let server = Server::start(Fake::new());
    let (status, body) = server.send(Method::POST, "/services/web/update?version=1", SPEC).await;
    assert_eq!((status, &body[..]), (StatusCode::OK, &b"{\"Warnings\":null}"[..]));
    let path = "/services/web/update?version=2&rollback=previous";
    assert_eq!(server.send(Method::POST, path, SPEC).await.0, StatusCode::OK);
    {
        let writes = server.fake.writes.lock().unwrap();
        let update = |version, rollback| {
            let credentials = CredentialsChange::Keep;
            Write::UpdateService { id: WEB, version, spec: SPEC.to_owned(), rollback, credentials }
        };
        assert_eq!(*writes, [update(1, false), update(2, true)]);
    }
    for (path, message) in [
        ("/services/web/update", "invalid service version '': strconv.ParseUint: parsing \"\": invalid syntax"),
        ("/services/web/update?version=1&rollback=x", "unrecognized rollback option x"),
        ("/services/web/update?version=3&registryAuthFrom=x", "unsupported registryAuthFrom value"),
    ] {
        assert_eq!(server.refused(Method::POST, path, SPEC).await, (400, message.to_owned()));
    }
}

#[tokio::test]
async fn credentials_are_sealed_and_never_shown() {
    let server = Server::start(Fake::new());
    let auth = base64::engine::general_purpose::URL_SAFE.encode(r#"{"username":"u","password":"hidden"}"#);
    let send = async |path: &str, auth: &str| server.send_as(auth, Method::POST, path, SPEC).await;
    assert_eq!(send("/services/web/update?version=1", &auth).await.0, StatusCode::OK);
    assert_eq!(send("/services/web/update?version=2", "e30=").await.0, StatusCode::OK, "nobody");
    assert_eq!(send("/services/web/update?version=3&registryAuthFrom=previous-spec", "").await.0, StatusCode::OK);
    assert_eq!(send("/services/web/update?version=4", "hidden").await.0, StatusCode::BAD_REQUEST);
    {
        let writes = server.fake.writes.lock().unwrap();
        let changes = writes.iter().map(|write| match write {
            Write::UpdateService { credentials, .. } => credentials,
            other => panic!("{other:?}"),
        });
        let changes: Vec<_> = changes.collect();
        let CredentialsChange::Set(Some(sealed)) = changes[0] else { panic!("{changes:?}") };
        assert!(!sealed.data.windows(6).any(|window| window == b"hidden"), "they were not sealed");
        assert_eq!(changes[1..], [&CredentialsChange::Set(None), &CredentialsChange::Previous]);
    }
    for path in ["/services", "/services/web", "/tasks"] {
        let shown = server.get(path).await.to_string();
        assert!(!shown.contains("hidden") && !shown.to_lowercase().contains("credential"), "{shown}");
    }
}

#[tokio::test]
async fn refusals_of_the_holder_reach_the_user() {
    let server = Server::start(Fake::new());
    for (error, status, message) in [
        (WriteError::OutOfSequence, 500, "rpc error: code = Unknown desc = update out of sequence"),
        (
            WriteError::NotManager { managers: vec!["10.77.0.1:2377".to_owned()] },
            503,
            "this node is a worker; send writes to a manager: 10.77.0.1:2377",
        ),
        (WriteError::Storage("/data: no space left".to_owned()), 507, "/data: no space left"),
    ] {
        *server.fake.refusal.lock().unwrap() = Some(error);
        let got = server.refused(Method::POST, "/services/web/update?version=1", SPEC).await;
        assert_eq!(got, (status, message.to_owned()));
    }
}

#[tokio::test]
async fn bodies_that_make_no_sense_are_refused() {
    let server = Server::start(Fake::new());
    for body in ["", "null", "[]", "{", "\"x\""] {
        let (status, message) = server.refused(Method::POST, "/services/create", body).await;
        assert_eq!(status, 400);
        assert!(message.starts_with("invalid JSON"), "{message}");
    }
    let (status, body) =
        server.send(Method::POST, "/services/create", vec![b' '; super::super::BODY_BYTES_MAX + 1]).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    assert!(serde_json::from_slice::<Value>(&body).unwrap()["message"].is_string());
    assert!(server.fake.writes.lock().unwrap().is_empty());
}

#[tokio::test]
async fn membership_requests_say_what_is_not_heeded() {
    let server = Server::start(Fake::new());
    let (status, body) = server.send(Method::POST, "/swarm/init", r#"{"AdvertiseAddr":"10.77.0.1"}"#).await;
    assert_eq!((status, body), (StatusCode::OK, Bytes::from(format!("\"{ME}\""))));
    for (body, text) in [
        (
            r#"{"AdvertiseAddr":"10.9.9.9"}"#,
            "the advertised address is 10.77.0.1:2377: start shoald with --advertise-addr",
        ),
        (r#"{"ForceNewCluster":true}"#, "forcing a new cluster (--force-new-cluster) is not supported"),
    ] {
        let (_, message) = server.refused(Method::POST, "/swarm/init", body).await;
        assert!(message.starts_with(text), "{message}");
    }
    let (status, message) =
        server.refused(Method::POST, "/swarm/join", r#"{"RemoteAddrs":["a:1"],"JoinToken":"SWMTKN-1-x"}"#).await;
    assert_eq!(status, 400);
    assert!(message.contains("A valid join token is necessary"), "{message}");
}

#[tokio::test]
async fn tokens_are_shown_to_managers_and_rotated() {
    let server = Server::start(Fake::new());
    let swarm = server.get("/swarm").await;
    assert_eq!(swarm["JoinTokens"], json!({"Worker": "SWMTKN-1-w", "Manager": "SWMTKN-1-m"}));
    assert_eq!(swarm["Version"]["Index"], 3);
    let spec = swarm["Spec"].to_string();
    let path = "/swarm/update?version=3&rotateWorkerToken=true&rotateManagerToken=false";
    assert_eq!(server.send(Method::POST, path, spec).await.0, StatusCode::OK);
    let mut wanted = swarm["Spec"].clone();
    wanted["CAConfig"]["ForceRotate"] = 1.into();
    assert_eq!(server.send(Method::POST, "/swarm/update?version=3", wanted.to_string()).await.0, StatusCode::OK);
    let tokens = Rotation { tokens: vec![Role::Worker], ..Rotation::default() };
    let keys = Rotation { keys: true, ..Rotation::default() };
    assert_eq!(*server.fake.rotations.lock().unwrap(), [tokens, keys]);
}

#[tokio::test]
async fn an_image_without_room_is_refused_once_it_was_sent() {
    let server = Server::start(Fake::new());
    let archive = [b"full".as_slice(), &vec![0; 8 << 20]].concat();
    let (status, body) = server.send(Method::POST, "/images/load", archive).await;
    let message = serde_json::from_slice::<Value>(&body).unwrap()["message"].clone();
    assert_eq!((status.as_u16(), message), (507, "no space left on device: /data (make room there)".into()));
}

#[tokio::test]
async fn an_image_is_streamed_to_one_node_or_to_all() {
    let server = Server::start(Fake::new());
    let archive = vec![7u8; 3 << 20];
    let (status, body) = server.send(Method::POST, "/images/load", archive.clone()).await;
    assert_eq!((status, &body[..]), (StatusCode::OK, &b"{\"stream\":\"Loaded image: lab/web:1\\n\"}\n"[..]));
    assert!(*server.fake.loaded.lock().unwrap()[0] == archive);
    let (_, body) = server.send(Method::POST, "/images/load?all=1", archive.clone()).await;
    let text = String::from_utf8(body.to_vec()).unwrap();
    assert!(text.contains("lab/web:1 on n1") && text.contains("lab/web:1 on n2"), "{text}");
    assert_eq!(server.fake.loaded.lock().unwrap().len(), 3);
    assert!(server.fake.loaded.lock().unwrap().iter().all(|loaded| *loaded == archive));
    assert_eq!(server.get("/images/json").await[0]["Created"], 7);
    assert_eq!(server.send(Method::DELETE, "/images/shoal/whoami:latest", "").await.0, StatusCode::OK);
    assert_eq!(server.send(Method::DELETE, "/images/shoal%2Fwhoami:latest", "").await.0, StatusCode::OK);
}
