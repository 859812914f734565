//! Reads: the fields that Docker's clients were seen to read are there, with the values they expect.

use std::collections::BTreeMap;

use shoal_protocol::Time;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::ingress::metrics::IngressMetrics;
use crate::ingress::{Ingress, IngressConfig, TunnelStream, Tunnels};
use crate::logged::Logged;

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

#[tokio::test]
async fn the_daemon_introduces_itself() {
    let server = Server::start(Fake::new());
    for method in [Method::GET, Method::HEAD] {
        let (parts, body) = server.send_whole(method.clone(), "/_ping", "").await;
        assert_eq!(parts.status, StatusCode::OK);
        for (name, want) in [
            ("api-version", "1.50"),
            ("ostype", "linux"),
            ("docker-experimental", "false"),
            ("swarm", "active/manager"),
        ] {
            assert_eq!(parts.headers[name], want);
        }
        assert_eq!(body.is_empty(), method == Method::HEAD);
    }
    let version = server.get("/v1.41/version").await;
    assert_eq!(version["Components"][0]["Details"]["ApiVersion"], "1.50");
    assert_eq!(version["Arch"], "amd64");
    let swarm = &server.get("/v1.50/info").await["Swarm"];
    assert_eq!(swarm["NodeID"], json!(ME));
    assert_eq!(swarm["LocalNodeState"], "active");
    assert_eq!(swarm["ControlAvailable"], true);
    assert_eq!((&swarm["Nodes"], &swarm["Managers"]), (&json!(2), &json!(1)));
    assert_eq!(swarm["RemoteManagers"][0]["Addr"], "10.77.0.1:2377");
    let status = server.get("/shoal/status").await;
    assert_eq!(keys(&status), ["Agree", "Cluster", "Leases", "Node", "Nodes", "Quorum", "Voters", "Warnings"]);
}

#[tokio::test]
async fn a_service_has_everything_its_user_wrote() {
    let server = Server::start(Fake::new());
    let list = server.get("/services?status=true").await;
    assert_eq!(list[0]["ServiceStatus"], json!({"RunningTasks": 2, "DesiredTasks": 3, "CompletedTasks": 0}));
    for name in ["web".to_owned(), WEB.to_string(), WEB.to_string()[..25].to_owned()] {
        let service = server.get(&format!("/services/{name}")).await;
        assert_eq!(keys(&service), ["CreatedAt", "Endpoint", "ID", "Spec", "UpdatedAt", "Version"]);
        // What Swarm adds when it stores a spec.
        let mut want: Value = serde_json::from_str(SPEC).unwrap();
        want["TaskTemplate"]["Runtime"] = json!("container");
        want["TaskTemplate"]["ForceUpdate"] = json!(0);
        want["TaskTemplate"]["ContainerSpec"]["Isolation"] = json!("default");
        assert_eq!(service["Spec"], want);
        assert_eq!(service["Endpoint"]["Ports"][0]["PublishedPort"], 8080);
        assert_eq!(service["Endpoint"]["Spec"]["Mode"], "vip");
        assert_eq!(service["Endpoint"].get("VirtualIPs"), None);
        assert_eq!(service["Version"]["Index"], 1);
        assert_eq!(service["CreatedAt"], "2026-11-23T01:51:42.500000000Z");
    }
    let filled = &server.get("/services/web?insertDefaults=true").await["Spec"];
    assert_eq!(filled["UpdateConfig"]["Monitor"], 5_000_000_000u64);
    assert_eq!(filled["UpdateConfig"]["MaxFailureRatio"].to_string(), "0", "Go's clients write no fraction either");
    assert_eq!(filled["UpdateConfig"].get("Delay"), None);
    assert_eq!(filled["TaskTemplate"]["RestartPolicy"]["Delay"], 5_000_000_000u64);
    assert_eq!(filled["TaskTemplate"]["ContainerSpec"]["StopGracePeriod"], 10_000_000_000u64);
    assert_eq!(filled["TaskTemplate"]["Unknown"], 7);
}

#[tokio::test]
async fn a_job_tells_its_run_and_what_is_done() {
    let fake = Fake::new();
    {
        let mut store = fake.store.lock().unwrap();
        let spec = SPEC.replace(r#""Replicated":{"Replicas":3}"#, r#""ReplicatedJob":{"TotalCompletions":5}"#);
        service(&mut store, WEB, &spec, 2);
        let task = |id, index, desired, last_seen| SlotTask {
            id: TaskId(id),
            node: Some(ME),
            desired,
            created: WallTime(1),
            index,
            template: r#"{"ContainerSpec":{"Image":"lab/web:1"}}"#.to_owned(),
            last_seen,
            ..SlotTask::default()
        };
        let done = Some(TaskState::Complete);
        let slots = [
            vec![task(20, 2, TaskState::Shutdown, done), task(10, 1, TaskState::Shutdown, done)],
            vec![task(21, 2, TaskState::Running, None), task(11, 1, TaskState::Shutdown, done)],
        ];
        for (number, tasks) in (0u32..).zip(slots) {
            put(&mut store, Key::Slot(WEB, SlotName::Replica(number)), &value::Value::Slot(Slot { tasks }));
        }
    }
    let server = Server::start(fake);
    let found = &server.get("/services?status=true").await[0];
    assert_eq!(found["JobStatus"]["JobIteration"]["Index"], 1);
    assert_eq!(found["JobStatus"]["LastExecution"], found["UpdatedAt"]);
    assert_eq!(found["Spec"]["Mode"]["ReplicatedJob"], json!({"MaxConcurrent": 1, "TotalCompletions": 5}));
    assert_eq!(found["ServiceStatus"]["CompletedTasks"], 1, "of this run");
    assert_eq!(found["ServiceStatus"]["DesiredTasks"], 1);
    let tasks =
        server.get("/tasks?filters=%7B%22service%22:%7B%22web%22:true%7D,%22_up-to-date%22:%7B%22true%22:true%7D%7D");
    let tasks = tasks.await;
    let told: Vec<_> = tasks.as_array().unwrap().iter().filter(|task| task["Slot"].as_u64() < Some(2)).collect();
    assert_eq!(told.iter().map(|task| &task["Slot"]).collect::<Vec<_>>(), [&json!(0), &json!(1)]);
    assert!(told.iter().all(|task| task["DesiredState"] == "complete" && task["JobIteration"]["Index"] == 1));
    for (mode, count) in [("replicated-job", 1), ("replicated", 0), ("global-job", 0)] {
        let found = server.get(&format!("/services?filters=%7B%22mode%22:%7B%22{mode}%22:true%7D%7D")).await;
        assert_eq!(found.as_array().unwrap().len(), count, "{mode}");
    }
}

#[tokio::test]
async fn the_status_of_an_update_is_that_of_the_present_spec() {
    let fake = Fake::new();
    {
        let mut store = fake.store.lock().unwrap();
        service(&mut store, WEB, SPEC, 2);
        let progress = |index| {
            value::Value::Progress(Progress {
                index,
                state: UpdateState::Paused,
                started: WallTime(5),
                completed: None,
                message: "task failed".to_owned(),
            })
        };
        put(&mut store, Key::Progress(WEB), &progress(2));
    }
    let server = Server::start(fake);
    let found = server.get("/services/web").await;
    assert_eq!(found["UpdateStatus"]["State"], "paused");
    assert_eq!(found["UpdateStatus"]["Message"], "task failed");
    assert_eq!(found["PreviousSpec"]["Name"], "web");
    service(&mut server.fake.store.lock().unwrap(), WEB, SPEC, 3);
    assert_eq!(server.get("/services/web").await["UpdateStatus"], Value::Null);
}

#[tokio::test]
async fn tasks_say_where_they_are_and_why_not() {
    let server = Server::start(Fake::new());
    let tasks = server.get("/tasks?filters=%7B%22service%22:%7B%22web%22:true%7D%7D").await;
    let task = &tasks[0];
    assert_eq!((&task["Slot"], &task["NodeID"]), (&json!(1), &json!(ME)));
    assert_eq!(task["Spec"]["ContainerSpec"]["Image"], "lab/web:1");
    assert_eq!(task["Status"]["State"], "running");
    assert_eq!(task["Status"]["ContainerStatus"]["PID"], 7);
    assert_eq!(task["Status"]["Timestamp"], "2026-11-23T01:51:44.000000000Z");
    assert_eq!(task["DesiredState"], "running");
    assert_eq!(tasks[2]["Status"]["State"], "pending");
    assert_eq!(tasks[2]["Status"]["Err"], "no suitable node (1 node not ready)");
    let id = task["ID"].as_str().unwrap();
    assert_eq!(server.get(&format!("/tasks/{id}")).await["ID"], *id);
    let of_node = server.get("/tasks?filters=%7B%22node%22:%7B%22n2%22:true%7D%7D").await;
    assert_eq!((of_node.as_array().unwrap().len(), &of_node[0]["Slot"]), (1, &json!(2)));
    let none = server.get("/tasks?filters=%7B%22service%22:%7B%22nosuch%22:true%7D%7D").await;
    assert_eq!(none, json!([]));
}

#[tokio::test]
async fn tasks_of_an_older_spec_are_not_up_to_date_unless_only_the_number_changed() {
    let server = Server::start(Fake::new());
    let path = "/tasks?filters=%7B%22_up-to-date%22:%7B%22true%22:true%7D%7D";
    assert_eq!(server.get(path).await.as_array().unwrap().len(), 3);
    let scaled = SPEC.replace("\"Replicas\":3", "\"Replicas\":5");
    service(&mut server.fake.store.lock().unwrap(), WEB, &scaled, 2);
    assert_eq!(server.get(path).await.as_array().unwrap().len(), 3);
    let updated = SPEC.replace("lab/web:1", "lab/web:2");
    service(&mut server.fake.store.lock().unwrap(), WEB, &updated, 3);
    assert_eq!(server.get(path).await, json!([]));
}

#[tokio::test]
async fn the_tasks_of_a_lost_node_are_orphaned() {
    let server = Server::start(Fake { other_is: NodeState::Down, ..Fake::new() });
    let tasks = server.get("/tasks").await;
    assert_eq!(tasks[1]["Status"]["State"], "orphaned");
    let list = server.get("/services?status=true").await;
    assert_eq!(list[0]["ServiceStatus"]["RunningTasks"], 1);
    let nodes = server.get("/nodes").await;
    assert_eq!(nodes[1]["Status"]["State"], "down");
}

#[tokio::test]
async fn nodes_are_shown_as_docker_shows_them() {
    let server = Server::start(Fake::new());
    let nodes = server.get("/nodes").await;
    assert_eq!(
        nodes[0]["ManagerStatus"],
        json!({"Leader": true, "Reachability": "reachable", "Addr": "10.77.0.1:2377"})
    );
    assert_eq!(keys(&nodes[1]), ["CreatedAt", "Description", "ID", "Spec", "Status", "UpdatedAt", "Version"]);
    assert_eq!(nodes[1]["Description"]["Hostname"], "n2");
    assert_eq!(nodes[1]["Description"]["Resources"]["NanoCPUs"], 2_000_000_000u64);
    assert_eq!(nodes[1]["Status"], json!({"State": "ready", "Addr": "10.77.0.1"}));
    assert_eq!(nodes[1]["Spec"]["Role"], "worker");
    for (filter, count) in
        [("role%22:%7B%22worker", 1), ("name%22:%7B%22n1", 1), ("node.label%22:%7B%22zone=a", 2), ("id%22:%7B%22x", 0)]
    {
        let found = server.get(&format!("/nodes?filters=%7B%22{filter}%22:true%7D%7D")).await;
        assert_eq!(found.as_array().unwrap().len(), count, "{filter}");
    }
}

#[tokio::test]
async fn workers_read_but_do_not_see_tokens() {
    let server = Server::start(Fake { role: Role::Worker, ..Fake::new() });
    assert_eq!(server.get("/services").await[0]["Spec"]["Name"], "web");
    let (status, message) = server.refused(Method::GET, "/swarm", "").await;
    assert_eq!(status, 503);
    assert!(message.starts_with("This node is not a swarm manager. Worker nodes can't be used"), "{message}");
    assert_eq!(server.get("/info").await["Swarm"]["ControlAvailable"], false);
}

#[tokio::test]
async fn a_node_outside_any_cluster_says_so() {
    let server = Server::start(Fake { in_cluster: false, ..Fake::new() });
    for path in ["/nodes", "/services", "/tasks", "/swarm"] {
        let (status, message) = server.refused(Method::GET, path, "").await;
        assert_eq!(status, 503);
        assert!(message.starts_with("This node is not a swarm manager. Use \"docker swarm init\""), "{message}");
    }
    assert_eq!(server.get("/info").await["Swarm"]["LocalNodeState"], "inactive");
}

#[tokio::test]
async fn what_is_not_there_is_refused_in_dockers_words() {
    let server = Server::start(Fake::new());
    for (method, path, status, message) in [
        (Method::GET, "/services/nosuch", 404, "service nosuch not found"),
        (Method::GET, "/services/we", 404, "service we not found"),
        (Method::GET, "/nodes/nosuch", 404, "node nosuch not found"),
        (Method::GET, "/nodes/000", 400, "node 000 is ambiguous (2 matches found)"),
        (Method::GET, "/nosuch", 404, "page not found"),
        (Method::GET, "/v1.99/info", 400, "client version 1.99 is too new. Maximum supported API version is 1.50"),
        (Method::PUT, "/networks", 501, "this operation on networks is not supported yet (PUT /networks)"),
        (Method::PUT, "/v1.41/secrets/x", 501, "this operation on secrets is not supported yet (PUT /secrets/x)"),
        (
            Method::GET,
            "/distribution/lab/web:1",
            501,
            "this question to a registry (GET /distribution/lab/web:1) is not supported yet",
        ),
        (Method::GET, "/services?filters=%7B%22colour%22:%7B%22red%22:true%7D%7D", 400, "invalid filter 'colour'"),
        (Method::DELETE, "/images/lab/web:1", 404, "No such image: lab/web:1 on n1"),
    ] {
        assert_eq!(server.refused(method, path, "").await, (status, message.to_owned()), "{path}");
    }
}

#[tokio::test]
async fn metrics_count_what_there_is() {
    let server = Server::start(Fake::new());
    server.get("/nodes").await;
    let (_, body) = server.send(Method::GET, "/metrics", "").await;
    let text = String::from_utf8(body.to_vec()).unwrap();
    for line in [
        "shoal_nodes{state=\"ready\"} 2",
        "shoal_tasks{state=\"running\"} 2",
        "shoal_tasks{state=\"pending\"} 1",
        "shoal_leases_held 1",
        "shoal_quorum 1",
        "shoal_api_requests_total{method=\"GET\",status=\"200\"} 1",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
}

#[tokio::test]
async fn a_request_is_found_in_the_log_by_its_number() {
    let logged = Logged::capture();
    let server = Server::start(Fake::new());
    server.get("/v1.41/services?filters=%7B%7D").await;
    server.refused(Method::GET, "/nodes/nosuch", "").await;
    let lines = logged.lines();
    let answers: Vec<_> = lines.iter().filter(|line| line["fields"]["message"] == "request answered").collect();
    for (answer, id, path, status) in [(answers[0], 1, "/v1.41/services", 200), (answers[1], 2, "/nodes/nosuch", 404)] {
        let span = &answer["span"];
        assert_eq!((&span["name"], &span["id"], &span["method"]), (&"request".into(), &id.into(), &"GET".into()));
        assert_eq!((&span["path"], &answer["fields"]["status"]), (&path.into(), &status.into()), "{answer}");
    }
}

/// The target is 5 ms on the machine of the benchmarks; ten times that catches quadratic work on any.
#[tokio::test]
async fn listing_a_thousand_tasks_is_quick() {
    let fake = Fake::new();
    for number in 4..=1003 {
        slot(&mut fake.store.lock().unwrap(), WEB, number, Some(ME), Some(TaskState::Running));
    }
    let server = Server::start(fake);
    let started = Instant::now();
    server.get("/services?status=true").await;
    let list_ms = started.elapsed().as_millis();
    let started = Instant::now();
    assert_eq!(server.get("/tasks").await.as_array().unwrap().len(), 1003);
    let tasks_ms = started.elapsed().as_millis();
    println!("services: {list_ms} ms, tasks: {tasks_ms} ms");
    assert!(list_ms < 50 && tasks_ms < 200, "services: {list_ms} ms, tasks: {tasks_ms} ms");
}

struct NoTunnels;

#[async_trait]
impl Tunnels for NoTunnels {
    async fn open(&self, _: NodeId) -> std::io::Result<Box<dyn TunnelStream>> {
        Err(std::io::ErrorKind::NotConnected.into())
    }

    async fn open_datagrams(&self, _: NodeId) -> std::io::Result<Box<dyn TunnelStream>> {
        Err(std::io::ErrorKind::NotConnected.into())
    }
}

#[tokio::test]
async fn metrics_count_what_published_ports_carry() {
    let counted = Arc::new(IngressMetrics::default());
    let mut registry = Registry::default();
    registry.register_collector(Box::new(counted.clone()));
    let server = Server::start_with(Fake::new(), registry);
    let task = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = task.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut client, _) = task.accept().await.unwrap();
        let mut request = [0; 4];
        client.read_exact(&mut request).await.unwrap();
        client.write_all(b"hello").await.unwrap();
    });
    // Free a moment ago; published on a loopback address of its own.
    let port = TcpListener::bind(("127.0.0.7", 0)).await.unwrap().local_addr().unwrap().port();
    let config = IngressConfig {
        node: ME,
        publish_addr: Some([127, 0, 0, 7].into()),
        connections_max: 10,
        flows_max: 10,
        seed: 1,
        clock: Arc::new(|| Time(0)),
        serving: Arc::default(),
        metrics: counted,
        lanes: crate::ingress::Lanes::here(),
    };
    let ingress = Ingress::spawn(config, Arc::new(NoTunnels));
    ingress.apply(BTreeMap::new(), BTreeMap::from([(shoal_protocol::spec::PublishedPort::tcp(port), address)]));
    let mut client = loop {
        match TcpStream::connect(("127.0.0.7", port)).await {
            Ok(client) => break client,
            Err(_) => tokio::task::yield_now().await,
        }
    };
    client.write_all(b"ping").await.unwrap();
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).await.unwrap();
    drop(client);
    assert_eq!(answer, b"hello");
    let wanted = [
        format!("shoal_ingress_connections_total{{port=\"{port}\",protocol=\"tcp\"}} 1"),
        format!("shoal_ingress_connected_total{{port=\"{port}\",protocol=\"tcp\",node=\"this\"}} 1"),
        format!("shoal_ingress_received_bytes_total{{port=\"{port}\",protocol=\"tcp\"}} 4"),
        format!("shoal_ingress_sent_bytes_total{{port=\"{port}\",protocol=\"tcp\"}} 5"),
        format!("shoal_ingress_given_up_total{{port=\"{port}\",protocol=\"tcp\"}} 0"),
        format!("shoal_ingress_open{{port=\"{port}\",protocol=\"tcp\"}} 0"),
    ];
    let started = Instant::now();
    loop {
        let (_, body) = server.send(Method::GET, "/metrics", "").await;
        let text = String::from_utf8(body.to_vec()).unwrap();
        // The connection's end is noticed a moment after its last byte.
        match wanted.iter().find(|line| !text.contains(*line)) {
            None => break,
            Some(line) => assert!(started.elapsed().as_secs() < 20, "{line}: {text}"),
        }
    }
}

#[tokio::test]
async fn the_one_replica_that_a_spec_leaves_out_is_shown() {
    let server = Server::start(Fake::new());
    for (mode, want) in [
        (r#"{"Replicated":{}}"#, json!({"Replicated": {"Replicas": 1}})),
        ("{}", json!({"Replicated": {"Replicas": 1}})),
        (r#"{"Replicated":{"Replicas":0}}"#, json!({"Replicated": {"Replicas": 0}})),
        (r#"{"Global":{}}"#, json!({"Global": {}})),
    ] {
        let spec =
            format!(r#"{{"Name":"one","TaskTemplate":{{"ContainerSpec":{{"Image":"x"}},"Unknown":7}},"Mode":{mode}}}"#);
        service(&mut server.fake.store.lock().unwrap(), ServiceId(77), &spec, 1);
        let shown = server.get("/services/one").await;
        assert_eq!((&shown["Spec"]["Mode"], &shown["Spec"]["TaskTemplate"]["Unknown"]), (&want, &json!(7)), "{mode}");
    }
}
