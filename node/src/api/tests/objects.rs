//! Secrets and configs: Docker's shapes, statuses and words, and no way back for a secret's data.

use super::*;

async fn create(server: &Server, kind: &str, body: &'static str) -> String {
    let (status, answer) = server.send(Method::POST, &format!("/v1.50/{kind}/create"), body).await;
    assert_eq!(status, StatusCode::CREATED, "{answer:?}");
    serde_json::from_slice::<Value>(&answer).unwrap()["ID"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_config_comes_back_and_a_secret_does_not() {
    let server = Server::start(Fake::new());
    let config = create(&server, "configs", r#"{"Name":"con1","Labels":{"a":"b"},"Data":"Y29uZj0xCg=="}"#).await;
    let secret = create(&server, "secrets", r#"{"Name":"sec1","Labels":{},"Data":"aGlkZGVuCg=="}"#).await;
    let moment = "1970-01-01T00:00:07.000000000Z";
    let want = |id: &str, spec: Value| json!({"ID": id, "Version": {"Index": 1}, "CreatedAt": moment, "UpdatedAt": moment, "Spec": spec});
    let config_shown = want(&config, json!({"Name": "con1", "Labels": {"a": "b"}, "Data": "Y29uZj0xCg=="}));
    let secret_shown = want(&secret, json!({"Name": "sec1", "Labels": {}}));
    for name in ["con1", &config, &config[..10]] {
        assert_eq!(server.get(&format!("/configs/{name}")).await, config_shown);
    }
    assert_eq!(server.get("/secrets/sec1").await, secret_shown);
    assert_eq!(server.get("/configs").await, json!([config_shown]));
    assert_eq!(server.get("/secrets").await, json!([secret_shown]));
    let writes = server.fake.writes.lock().unwrap();
    let Write::CreateObject { spec, data, .. } = &writes[1] else { panic!("{writes:?}") };
    assert_eq!(spec, r#"{"Labels":{},"Name":"sec1"}"#);
    assert!(!data.windows(6).any(|window| window == b"hidden"), "a secret enters the write path sealed");
}

#[tokio::test]
async fn listings_are_filtered() {
    let server = Server::start(Fake::new());
    create(&server, "secrets", r#"{"Name":"sec1","Labels":{"a":"b"},"Data":"eA=="}"#).await;
    create(&server, "secrets", r#"{"Name":"sec12","Data":"eA=="}"#).await;
    for (filters, want) in [
        (r#"{"name":{"sec1":true}}"#, &["sec1", "sec12"][..]),
        (r#"{"names":{"sec1":true}}"#, &["sec1"]),
        (r#"{"label":{"a=b":true}}"#, &["sec1"]),
        (r#"{"id":{"zzzzz":true}}"#, &[]),
    ] {
        let escaped = filters.replace('{', "%7B").replace('}', "%7D").replace('"', "%22");
        let list = server.get(&format!("/secrets?filters={escaped}")).await;
        let mut names: Vec<_> =
            list.as_array().unwrap().iter().map(|secret| secret["Spec"]["Name"].as_str().unwrap()).collect();
        names.sort_unstable();
        assert_eq!(names, want, "{filters}");
    }
}

#[tokio::test]
async fn refusals_have_dockers_words() {
    let server = Server::start(Fake::new());
    create(&server, "secrets", r#"{"Name":"sec1","Data":"aGlkZGVuCg=="}"#).await;
    let invalid = |text: &str| format!("rpc error: code = InvalidArgument desc = {text}");
    for (method, path, body, status, message) in [
        (
            Method::POST,
            "/secrets/create",
            r#"{"Name":"sec1","Data":"eA=="}"#,
            409,
            "rpc error: code = AlreadyExists desc = secret sec1 already exists".to_owned(),
        ),
        (
            Method::POST,
            "/secrets/create",
            r#"{"Name":"s","Data":""}"#,
            400,
            invalid("secret data must be larger than 0 and less than 512000 bytes"),
        ),
        (Method::POST, "/configs/create", r#"{"Data":"eA=="}"#, 400, invalid("name must be provided")),
        (
            Method::POST,
            "/configs/create",
            r#"{"Name":"c","Data":"e3s=","Templating":{"Name":"golang"}}"#,
            400,
            invalid("failed to expand templated data: template: expansion:1: unclosed action"),
        ),
        (
            Method::POST,
            "/secrets/create",
            r#"{"Name":"s","Data":"aGlkZGVu!"}"#,
            400,
            "invalid JSON: illegal base64 data".to_owned(),
        ),
        (
            Method::POST,
            "/secrets/create",
            r#"{"Name":"s","Data":["aGlkZGVu"]}"#,
            400,
            "invalid JSON: Data is not a text in base64".to_owned(),
        ),
        (Method::GET, "/secrets/nosuch", "", 404, "secret nosuch not found".to_owned()),
        (Method::DELETE, "/configs/nosuch", "", 404, "config nosuch not found".to_owned()),
        (
            Method::POST,
            "/secrets/sec1/update",
            r#"{"Name":"sec1"}"#,
            400,
            "invalid secret version '': strconv.ParseUint: parsing \"\": invalid syntax".to_owned(),
        ),
        (
            Method::POST,
            "/secrets/sec1/update?version=1",
            r#"{"Name":"sec1","Data":"bmV3"}"#,
            400,
            invalid("only updates to Labels are allowed"),
        ),
        (
            Method::POST,
            "/secrets/sec1/update?version=9",
            r#"{"Name":"sec1"}"#,
            500,
            "rpc error: code = Unknown desc = update out of sequence".to_owned(),
        ),
    ] {
        assert_eq!(server.refused(method, path, body).await, (status, message), "{path} {body}");
    }
}

#[tokio::test]
async fn labels_are_updated_and_objects_removed() {
    let server = Server::start(Fake::new());
    for (kind, body) in [
        ("secrets", r#"{"Name":"one","Labels":{"a":"b"},"Data":"aGlkZGVuCg=="}"#),
        ("configs", r#"{"Name":"one","Labels":{"a":"b"},"Data":"aGlkZGVuCg=="}"#),
    ] {
        create(&server, kind, r#"{"Name":"one","Data":"aGlkZGVuCg=="}"#).await;
        // With the same data, as a stack's deployment sends it, and without.
        let path = format!("/{kind}/one/update");
        assert_eq!(server.send(Method::POST, &format!("{path}?version=1"), body).await.0, StatusCode::OK);
        let shown = server.get(&format!("/{kind}/one")).await;
        assert_eq!((&shown["Version"]["Index"], &shown["Spec"]["Labels"]), (&json!(2), &json!({"a": "b"})));
        assert_eq!(
            server.send(Method::POST, &format!("{path}?version=2"), r#"{"Name":"one"}"#).await.0,
            StatusCode::OK
        );
        let (status, body) = server.send(Method::DELETE, &format!("/{kind}/one"), "").await;
        assert_eq!((status, body), (StatusCode::NO_CONTENT, Bytes::new()));
        assert_eq!(server.get(&format!("/{kind}")).await, json!([]));
    }
}
