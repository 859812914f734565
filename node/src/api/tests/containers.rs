//! Containers, images and volumes where no engine shows them.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine as _;
use shoal_control::task::ContainerPlan;
use shoal_control::task::health::HealthStatus;
use shoal_protocol::registry_auth::RegistryAuth;
use shoal_protocol::spec::mount::MountKind;
use shoal_protocol::spec::templates::TaskContext;
use shoal_protocol::spec::{Limits, Mount, PublishMode, Settings};

use super::*;
use crate::driver::inventory::{
    CheckInfo, ContainerHealth, ContainerInfo, ContainerSizes, ContainerState, ImageDetails, VolumeInfo,
};
use crate::driver::registry::{Descriptor, PlatformName, RegistryError, Resolved};

/// What a node without an engine has: a container that runs, one that has ended and one that was never started.
struct Shelf;

fn at(seconds: u64) -> WallTime {
    WallTime(NOW.0 - seconds * 1_000_000_000)
}

fn container(number: u32, state: ContainerState, created: WallTime, sizes: bool) -> ContainerInfo {
    let task = TaskId(u128::from(number) + WEB.0 * 1_000_000);
    let name = format!("web.{number}.{task}");
    let port =
        PortConfig { target_port: 80, published_port: 8080, publish_mode: PublishMode::Host, ..PortConfig::default() };
    let data =
        Mount { kind: MountKind::Volume, source: "data".to_owned(), target: "/d".to_owned(), ..Mount::default() };
    ContainerInfo {
        id: number.to_string().repeat(64),
        plan: ContainerPlan {
            task,
            service: WEB,
            service_name: "web".to_owned(),
            slot: SlotName::Replica(number),
            node: ME,
            name,
            image: "lab/web:1".to_owned(),
            command: vec!["sh".to_owned()],
            args: vec!["-c".to_owned(), "sleep 1".to_owned()],
            env: Vec::new(),
            labels: [("com.docker.swarm.service.name".to_owned(), "web".to_owned())].into(),
            dir: String::new(),
            user: String::new(),
            hostname: String::new(),
            stop_signal: String::new(),
            stop_grace: Duration::from_secs(10),
            read_only: false,
            mounts: vec![data],
            files: Vec::new(),
            healthcheck: None,
            settings: Settings::default(),
            log_driver: None,
            limits: Limits { memory_bytes: 33_554_432, ..Limits::default() },
            host_ports: vec![port],
            context: TaskContext::default(),
        },
        image_id: "sha256:6d".to_owned(),
        args: ["sh", "-c", "sleep 1"].map(str::to_owned).to_vec(),
        env: vec!["A=1".to_owned()],
        dir: "/".to_owned(),
        user: String::new(),
        hostname: "web".to_owned(),
        address: [10, 212, 1, 2].into(),
        gateway: [10, 212, 1, 1].into(),
        prefix: 24,
        volumes: BTreeMap::from([("/d".to_owned(), "/data/volumes/data/_data".into())]),
        created,
        health: matches!(state, ContainerState::Running { .. }).then(|| ContainerHealth {
            status: HealthStatus::Healthy,
            failures: 0,
            checks: vec![CheckInfo { began: at(4), ended: at(3), code: 0, output: "fine".to_owned() }],
        }),
        exposed: vec!["80/tcp".to_owned(), "90".to_owned()],
        state,
        sizes: sizes.then_some(ContainerSizes { written_bytes: 4096, image_bytes: 100 }),
    }
}

#[async_trait]
impl Inventory for Shelf {
    async fn containers(&self, sizes: bool) -> Result<Vec<ContainerInfo>, DriverError> {
        let ended = ContainerState::Exited {
            code: 137,
            error: "out of memory".to_owned(),
            started: Some(at(90)),
            ended: at(70),
        };
        Ok(vec![
            container(1, ended, at(100), sizes),
            container(2, ContainerState::Running { pid: 7, started: at(5) }, at(6), sizes),
            container(3, ContainerState::Created, at(1), sizes),
        ])
    }

    async fn image(&self, image: &str) -> Result<ImageDetails, DriverError> {
        let found =
            self.image_details().await?.into_iter().find(|found| found.info.tags.iter().any(|tag| tag == image));
        found.ok_or_else(|| DriverError::NoSuchImage { image: image.to_owned(), node: "n1".to_owned() })
    }

    async fn image_details(&self) -> Result<Vec<ImageDetails>, DriverError> {
        let image = |id: &str, tag: &str, layers: &[(&str, u64)]| ImageDetails {
            info: ImageInfo {
                id: id.to_owned(),
                tags: vec![tag.to_owned()],
                size: layers.iter().map(|(_, bytes)| bytes).sum(),
                created: WallTime(7_000_000_000),
            },
            config:
                r#"{"created":"1970-01-01T00:00:07Z","architecture":"amd64","os":"linux","config":{"Cmd":["/web"]}}"#
                    .to_owned(),
            layers: layers.iter().map(|(layer, bytes)| ((*layer).to_owned(), *bytes)).collect(),
        };
        let base = ("sha256:aa", 100);
        Ok(vec![image("sha256:6d", "lab/web:1", &[base]), image("sha256:7e", "lab/web:2", &[base, ("sha256:bb", 50)])])
    }

    async fn resolve(&self, image: &str, auth: Option<&RegistryAuth>) -> Result<Resolved, RegistryError> {
        match (image, auth) {
            ("reg:5000/web:1", Some(auth)) if auth.username == "u" => Ok(Resolved {
                descriptor: Descriptor {
                    media_type: "m".to_owned(),
                    digest: "sha256:aa".to_owned(),
                    size: 7,
                    platform: None,
                },
                platforms: vec![PlatformName {
                    architecture: "amd64".to_owned(),
                    os: "linux".to_owned(),
                    variant: None,
                }],
            }),
            ("reg:5000/web:1", _) => Err(RegistryError::Denied("unauthorized: authentication required".to_owned())),
            _ => Err(RegistryError::Missing("manifest unknown: manifest unknown".to_owned())),
        }
    }

    async fn volumes(&self, sizes: bool) -> Result<Vec<VolumeInfo>, DriverError> {
        let volume = |name: &str| VolumeInfo {
            name: name.to_owned(),
            labels: BTreeMap::new(),
            created: at(100),
            path: format!("/data/volumes/{name}/_data").into(),
            bytes: sizes.then_some(8192),
        };
        Ok(vec![volume("data"), volume("idle")])
    }
}

fn server() -> Server {
    Server::start(Fake { inventory: Some(Arc::new(Shelf)), ..Fake::new() })
}

#[tokio::test]
async fn a_registry_is_asked_as_the_user_that_asks() {
    let server = server();
    let auth = base64::engine::general_purpose::URL_SAFE.encode(r#"{"username":"u","password":"p"}"#);
    let path = "/v1.50/distribution/reg:5000/web:1/json";
    let (status, body) = server.send_as(&auth, Method::GET, path, "").await;
    assert_eq!(status, StatusCode::OK);
    let want = json!({"Descriptor": {"mediaType": "m", "digest": "sha256:aa", "size": 7},
        "Platforms": [{"architecture": "amd64", "os": "linux"}]});
    assert_eq!(serde_json::from_slice::<Value>(&body).unwrap(), want);
    for (image, status, message) in [
        ("reg:5000/web:1", 401, "unauthorized: authentication required"),
        ("nosuch", 404, "manifest unknown: manifest unknown"),
    ] {
        let path = format!("/distribution/{image}/json");
        assert_eq!(server.refused(Method::GET, &path, "").await, (status, message.to_owned()));
    }
}

#[tokio::test]
async fn containers_are_listed_as_docker_lists_them() {
    let server = server();
    let running = server.get("/v1.41/containers/json").await;
    assert_eq!(running.as_array().unwrap().len(), 1);
    let one = &running[0];
    let name = format!("/web.2.{}", TaskId(10_000_002));
    assert_eq!((&one["Id"], &one["Names"][0]), (&json!("2".repeat(64)), &json!(name)));
    assert_eq!((&one["State"], &one["Status"]), (&json!("running"), &json!("Up 5 seconds (healthy)")));
    assert_eq!((&one["Command"], &one["Created"]), (&json!("sh -c 'sleep 1'"), &json!(1_795_398_714)));
    assert_eq!(
        one["Ports"],
        json!([
            {"IP": "0.0.0.0", "PrivatePort": 80, "PublicPort": 8080, "Type": "tcp"},
            {"PrivatePort": 90, "Type": "tcp"},
        ])
    );
    assert_eq!(one["NetworkSettings"]["Networks"]["bridge"]["IPAddress"], "10.212.1.2");
    assert_eq!((&one["SizeRw"], &one["Mounts"][0]["Name"]), (&Value::Null, &json!("data")));
    let all = server.get("/containers/json?all=1&size=1").await;
    let status: Vec<_> = all.as_array().unwrap().iter().map(|one| one["Status"].as_str().unwrap()).collect();
    assert_eq!(status, ["Created", "Up 5 seconds (healthy)", "Exited (137) About a minute ago"]);
    assert_eq!((&all[0]["SizeRw"], &all[0]["SizeRootFs"]), (&json!(4096), &json!(4196)));
}

#[tokio::test]
async fn listings_are_restricted_as_asked() {
    let server = server();
    for (query, want) in [
        ("limit=2", &["3", "2"][..]),
        ("limit=-1", &["2"]),
        ("filters={%22status%22:[%22exited%22]}", &["1"]),
        ("filters={%22status%22:[%22exited%22,%22created%22]}", &["3", "1"]),
        ("all=1&filters={%22exited%22:[%22137%22]}", &["1"]),
        ("all=1&filters={%22exited%22:[%220%22]}", &[]),
        ("all=1&filters={%22name%22:[%22web.3%22]}", &["3"]),
        ("all=1&filters={%22name%22:[%22^/web.3%22]}", &["3"]),
        ("all=1&filters={%22id%22:[%2233%22]}", &["3"]),
        ("filters={%22label%22:[%22com.docker.swarm.service.name=web%22]}", &["2"]),
        ("filters={%22label%22:[%22com.docker.swarm.service.name=other%22]}", &[]),
        ("filters={%22ancestor%22:[%22lab/web:1%22]}", &["2"]),
        ("filters={%22ancestor%22:[%22lab/web:2%22]}", &[]),
        ("filters={%22ancestor%22:[%22nosuch%22]}", &[]),
        ("filters={%22is-task%22:[%22true%22]}", &["2"]),
        ("filters={%22is-task%22:[%22false%22]}", &[]),
    ] {
        let query =
            query.replace('{', "%7B").replace('}', "%7D").replace('[', "%5B").replace(']', "%5D").replace('^', "%5E");
        let found = server.get(&format!("/containers/json?{query}")).await;
        let ids: Vec<_> = found.as_array().unwrap().iter().map(|one| &one["Id"].as_str().unwrap()[..1]).collect();
        assert_eq!(ids, want, "{query}");
    }
    for (filter, status, message) in [
        ("%22status%22:%5B%22idle%22%5D", 400, "invalid filter 'status=idle'"),
        ("%22network%22:%5B%22x%22%5D", 400, "invalid filter 'network'"),
        ("%22name%22:%5B%22a.*%22%5D", 501, "a filter 'name=a.*' (but for ^ and $) is not supported yet"),
    ] {
        let path = format!("/containers/json?filters=%7B{filter}%7D");
        assert_eq!(server.refused(Method::GET, &path, "").await, (status, message.to_owned()));
    }
}

#[tokio::test]
async fn a_container_is_found_by_name_and_by_identifier() {
    let server = server();
    let name = format!("web.1.{}", TaskId(10_000_001));
    for wanted in [&name, &format!("%2F{name}"), "111", &"1".repeat(64)] {
        let found = server.get(&format!("/containers/{wanted}/json")).await;
        assert_eq!(found["Id"], "1".repeat(64), "{wanted}");
        assert_eq!((&found["Path"], &found["Args"]), (&json!("sh"), &json!(["-c", "sleep 1"])));
        let state = &found["State"];
        assert_eq!(
            (&state["Status"], &state["ExitCode"], &state["OOMKilled"]),
            (&json!("exited"), &json!(137), &json!(true))
        );
        assert_eq!(
            (&state["StartedAt"], &state["FinishedAt"]),
            (&json!(at(90).to_string()), &json!(at(70).to_string()))
        );
        assert_eq!((&found["Config"]["Tty"], &found["Config"]["Env"]), (&json!(false), &json!(["A=1"])));
        assert_eq!(
            (&found["HostConfig"]["Memory"], &found["Mounts"][0]["Source"]),
            (&json!(33_554_432), &json!("/data/volumes/data/_data"))
        );
    }
    let running = server.get("/containers/222/json").await;
    let check = json!({"Start": at(4).to_string(), "End": at(3).to_string(), "ExitCode": 0, "Output": "fine"});
    assert_eq!(running["State"]["Health"], json!({"Status": "healthy", "FailingStreak": 0, "Log": [check]}));
    assert_eq!(running["Config"]["ExposedPorts"], json!({"80/tcp": {}, "90/tcp": {}}));
    assert_eq!(running["NetworkSettings"]["Ports"]["90/tcp"], Value::Null);
    assert_eq!(running["NetworkSettings"]["Ports"]["80/tcp"][0]["HostPort"], "8080");
    let never = server.get("/containers/333/json").await;
    assert_eq!(
        (&never["State"]["Status"], &never["State"]["StartedAt"]),
        (&json!("created"), &json!("0001-01-01T00:00:00Z"))
    );
    for path in ["/containers/nosuch/json", "/containers/nosuch/logs?stdout=1", "/containers/web/json"] {
        let (status, message) = server.refused(Method::GET, path, "").await;
        assert!(status == 404 && message.starts_with("No such container: "), "{path}: {message}");
    }
    for (method, path) in [
        (Method::POST, "/containers/create"),
        (Method::POST, "/containers/111/exec"),
        (Method::GET, "/containers/111/stats"),
        (Method::GET, "/containers/111/top"),
        (Method::DELETE, "/containers/111"),
    ] {
        let (status, message) = server.refused(method, path, "").await;
        assert!(
            status == 501 && message.starts_with("this operation on containers is not supported yet ("),
            "{path}: {message}"
        );
    }
}

#[tokio::test]
async fn output_of_a_container_ends_when_asked() {
    let server = server();
    let (status, body) = server.send(Method::GET, "/containers/222/logs?stdout=1&stderr=1", "").await;
    assert_eq!((status, &body[..]), (StatusCode::OK, &b"\x01\0\0\0\0\0\0\x06hello\n\x02\0\0\0\0\0\0\x05oops\n"[..]));
    let (_, body) = server.send(Method::GET, "/containers/222/logs?stderr=1&details=1&timestamps=1", "").await;
    assert_eq!(&body[8..], b"1970-01-01T00:00:00.000000000Z  oops\n");
    let (status, message) = server.refused(Method::GET, "/containers/222/logs", "").await;
    assert_eq!((status, message.as_str()), (400, "Bad parameters: you must choose at least one stream"));
    let (status, message) = server.refused(Method::GET, "/containers/222/logs?stdout=1&until=x", "").await;
    assert_eq!((status, message.as_str()), (400, "invalid value for until: x"));
}

#[tokio::test]
async fn images_volumes_and_what_they_take_are_shown() {
    let server = server();
    let image = server.get("/images/lab/web:2/json").await;
    assert_eq!((&image["Id"], &image["Os"], &image["Size"]), (&json!("sha256:7e"), &json!("linux"), &json!(150)));
    assert_eq!(
        (&image["RootFS"]["Layers"], &image["Config"]["Cmd"]),
        (&json!(["sha256:aa", "sha256:bb"]), &json!(["/web"]))
    );
    let (status, message) = server.refused(Method::GET, "/images/nosuch/json", "").await;
    assert_eq!((status, message.as_str()), (404, "no such image: nosuch: No such image: nosuch"));
    let (status, _) = server.refused(Method::GET, "/images/lab/web:2/history", "").await;
    assert_eq!(status, 501);

    let volumes = server.get("/volumes?filters=%7B%22name%22:%5B%22da%22%5D%7D").await;
    assert_eq!((volumes["Volumes"].as_array().unwrap().len(), &volumes["Volumes"][0]["Name"]), (1, &json!("data")));
    assert_eq!(server.get("/volumes/idle").await["Mountpoint"], "/data/volumes/idle/_data");
    assert_eq!(server.refused(Method::GET, "/volumes/x", "").await, (404, "get x: no such volume".to_owned()));
    assert_eq!(server.refused(Method::GET, "/networks/x", "").await, (404, "network x not found".to_owned()));

    let usage = server.get("/system/df").await;
    assert_eq!(usage["LayersSize"], 150);
    let sizes = |image: &Value| ["Size", "SharedSize", "Containers"].map(|name| image[name].as_u64().unwrap());
    assert_eq!([sizes(&usage["Images"][0]), sizes(&usage["Images"][1])], [[100, 100, 3], [150, 100, 0]]);
    assert_eq!((usage["Containers"].as_array().unwrap().len(), &usage["Containers"][0]["SizeRw"]), (3, &json!(4096)));
    let used: Vec<_> = usage["Volumes"].as_array().unwrap().iter().map(|volume| &volume["UsageData"]).collect();
    assert_eq!(used, [&json!({"RefCount": 3, "Size": 8192}), &json!({"RefCount": 0, "Size": 8192})]);
    let images = server.get("/system/df?type=image&type=build-cache").await;
    assert_eq!(
        (&images["Volumes"], &images["Containers"], &images["LayersSize"]),
        (&json!([]), &json!([]), &json!(150))
    );
    assert_eq!(server.refused(Method::GET, "/system/df?type=x", "").await, (400, "unknown object type: x".to_owned()));
}

#[tokio::test]
async fn a_driver_that_tells_nothing_is_refused_by_name() {
    let server = Server::start(Fake::new());
    let (status, message) = server.refused(Method::GET, "/containers/json", "").await;
    assert_eq!((status, message.as_str()), (501, "looking at containers is not supported yet"));
}
