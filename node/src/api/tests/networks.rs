//! Networks: Docker's shapes, statuses and words.

use super::*;
use shoal_protocol::object::network::{WARNING, ingress_id};

async fn create(server: &Server, body: &'static str) -> String {
    let (status, answer) = server.send(Method::POST, "/v1.50/networks/create", body).await;
    assert_eq!(status, StatusCode::CREATED, "{answer:?}");
    let answer: Value = serde_json::from_slice(&answer).unwrap();
    assert_eq!(answer["Warning"], WARNING);
    answer["Id"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn networks_are_shown_as_docker_shows_them() {
    let server = Server::start(Fake::new());
    let plain = create(&server, r#"{"Name":"ov","Driver":"overlay","IPAM":null,"CheckDuplicate":true}"#).await;
    create(
        &server,
        r#"{"Name":"ov2","Driver":"overlay","Attachable":true,"Internal":true,"Options":{"encrypted":""},"Labels":{"a":"b"},
        "IPAM":{"Driver":"default","Options":{},"Config":[{"Subnet":"10.50.0.0/24","Gateway":"10.50.0.9","IPRange":"10.50.0.128/25"}]}}"#,
    )
    .await;
    let common = json!({"Created": "1970-01-01T00:00:07.000000000Z", "Scope": "swarm", "Driver": "overlay",
        "EnableIPv4": true, "EnableIPv6": false, "Internal": false, "Attachable": false, "Ingress": false,
        "ConfigFrom": {"Network": ""}, "ConfigOnly": false, "Containers": null, "Options": {}, "Labels": {}});
    let with = |changes: Value| {
        let mut network = common.clone();
        network.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        network
    };
    let ipam = |config: Value| json!({"Driver": "default", "Options": null, "Config": [config]});
    let want =
        with(json!({"Name": "ov", "Id": plain, "IPAM": ipam(json!({"Subnet": "10.0.1.0/24", "Gateway": "10.0.1.1"}))}));
    for path in ["/networks/ov", "/networks/ov?verbose=true", "/networks/ov?scope=swarm"] {
        assert_eq!(server.get(path).await, want, "{path}");
    }
    let shown = server.get("/networks/ov2").await;
    let config = json!({"Subnet": "10.50.0.0/24", "Gateway": "10.50.0.9", "IPRange": "10.50.0.128/25"});
    assert_eq!(shown["IPAM"], ipam(config));
    assert_eq!((&shown["Attachable"], &shown["Internal"]), (&json!(true), &json!(true)));
    assert_eq!((&shown["Options"], &shown["Labels"]), (&json!({"encrypted": ""}), &json!({"a": "b"})));
    let ingress = server.get("/networks/ingress").await;
    assert_eq!(ingress["IPAM"], ipam(json!({"Subnet": "10.0.0.0/24", "Gateway": "10.0.0.1"})));
    assert_eq!((&ingress["Ingress"], &ingress["Id"]), (&json!(true), &json!(ingress_id(ClusterId(5)))));
}

#[tokio::test]
async fn networks_are_listed_by_filters() {
    let server = Server::start(Fake::new());
    create(&server, r#"{"Name":"front","Driver":"overlay","Labels":{"a":"b"}}"#).await;
    create(&server, r#"{"Name":"back","Driver":"overlay"}"#).await;
    for (filters, want) in [
        ("", &["back", "front", "ingress"][..]),
        (r#"{"driver":{"overlay":true}}"#, &["back", "front", "ingress"]),
        (r#"{"driver":{"bridge":true}}"#, &[]),
        (r#"{"scope":{"local":true}}"#, &[]),
        (r#"{"name":{"ron":true}}"#, &["front"]),
        (r#"{"label":{"a":true}}"#, &["front"]),
    ] {
        let escaped = filters.replace('{', "%7B").replace('}', "%7D").replace('"', "%22");
        let list = server.get(&format!("/networks?filters={escaped}")).await;
        let mut names: Vec<_> =
            list.as_array().unwrap().iter().map(|network| network["Name"].as_str().unwrap()).collect();
        names.sort_unstable();
        assert_eq!(names, want, "{filters}");
    }
}

#[tokio::test]
async fn refusals_have_dockers_words() {
    let server = Server::start(Fake::new());
    create(&server, r#"{"Name":"ov","Driver":"overlay"}"#).await;
    let invalid = |text: &str| format!("rpc error: code = InvalidArgument desc = {text}");
    for (method, path, body, status, message) in [
        (Method::POST, "/networks/create", r#"{"Name":"ov","Driver":"overlay"}"#, 409, "network with name ov already exists".to_owned()),
        (Method::POST, "/networks/create", r#"{"Name":"ingress","Driver":"overlay"}"#, 409, "network with name ingress already exists".to_owned()),
        (
            Method::POST,
            "/networks/create",
            r#"{"Name":"br","Driver":"bridge"}"#,
            400,
            invalid("networks of the driver 'bridge' (other than overlay) are not supported yet"),
        ),
        (
            Method::POST,
            "/networks/create",
            r#"{"Name":"o2","Driver":"overlay","IPAM":{"Config":[{"Subnet":"10.0.1.0/25"}]}}"#,
            400,
            "rpc error: code = FailedPrecondition desc = invalid pool request: Pool overlaps with other one on this address space: \
             10.0.1.0/25 and 10.0.1.0/24"
                .to_owned(),
        ),
        (Method::GET, "/networks/nosuch", "", 404, "network nosuch not found".to_owned()),
        (Method::GET, "/networks/ov?scope=local", "", 404, "network ov not found".to_owned()),
        (Method::DELETE, "/networks/nosuch", "", 404, "network nosuch not found".to_owned()),
        (Method::DELETE, "/networks/ingress", "", 501, "removing the ingress network is not supported yet".to_owned()),
        (Method::POST, "/networks/ov/connect", "{}", 501, "this operation on networks is not supported yet (POST /networks/ov/connect)".to_owned()),
    ] {
        assert_eq!(server.refused(method, path, body).await, (status, message), "{path} {body}");
    }
}

#[tokio::test]
async fn services_name_networks_and_keep_identifiers() {
    let server = Server::start(Fake::new());
    let id = create(&server, r#"{"Name":"ov","Driver":"overlay"}"#).await;
    let body =
        r#"{"Name":"api","TaskTemplate":{"ContainerSpec":{"Image":"a"},"Networks":[{"Target":"ov","Aliases":["x"]}]}}"#;
    assert_eq!(server.send(Method::POST, "/services/create", body).await.0, StatusCode::CREATED);
    let spec = &server.get("/services/api").await["Spec"];
    assert_eq!(spec["TaskTemplate"]["Networks"], json!([{"Target": id, "Aliases": ["x"]}]));
    let missing = r#"{"Name":"b","TaskTemplate":{"ContainerSpec":{"Image":"a"},"Networks":[{"Target":"nosuch"}]}}"#;
    let refused = server.refused(Method::POST, "/services/create", missing).await;
    assert_eq!(refused, (404, "network nosuch not found".to_owned()));
    for odd in [r#"{"Name":"c","TaskTemplate":"x"}"#, r#"{"Name":"d","TaskTemplate":{"Networks":["x",{"Target":1}]}}"#]
    {
        assert_eq!(
            server.send(Method::POST, "/services/create", odd).await.0,
            StatusCode::CREATED,
            "the holder judges"
        );
    }
}

#[tokio::test]
async fn what_no_service_uses_is_pruned() {
    let server = Server::start(Fake::new());
    let used = create(&server, r#"{"Name":"used","Driver":"overlay"}"#).await;
    create(&server, r#"{"Name":"unused","Driver":"overlay"}"#).await;
    let spec = format!(
        r#"{{"Name":"api","TaskTemplate":{{"ContainerSpec":{{"Image":"a"}},"Networks":[{{"Target":"{used}"}}]}}}}"#
    );
    assert_eq!(server.send(Method::POST, "/services/create", spec).await.0, StatusCode::CREATED);
    let (status, body) = server.send(Method::POST, "/networks/prune", "").await;
    assert_eq!((status, &body[..]), (StatusCode::OK, &br#"{"NetworksDeleted":["unused"]}"#[..]));
    let names: Vec<_> =
        server.get("/networks").await.as_array().unwrap().iter().map(|one| one["Name"].clone()).collect();
    assert!(names.contains(&json!("used")) && names.contains(&json!("ingress")) && names.len() == 2, "{names:?}");
}
