//! What tasks have written, from wherever they ran.

use super::*;

#[tokio::test]
async fn output_is_collected_from_every_node() {
    let server = Server::start(Fake { other_is: NodeState::Ready, ..Fake::new() });
    let (status, body) = server.send(Method::GET, "/services/web/logs?stdout=1&stderr=1&details=1", "").await;
    assert_eq!(status, StatusCode::OK);
    let text = String::from_utf8_lossy(&body);
    let details = format!("com.docker.swarm.node.id={ME},com.docker.swarm.service.id={WEB},com.docker.swarm.task.id=");
    for part in [&details, " hello\n", " oops\n", "far \n"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let task = TaskId(10_000_001);
    let path = format!("/tasks/{task}/logs?stdout=1&timestamps=1");
    let (_, body) = server.send(Method::GET, &path, "").await;
    assert_eq!(&body[8..], b"1970-01-01T00:00:00.000000000Z hello\n");
    let server = Server::start(Fake { other_is: NodeState::Down, ..Fake::new() });
    let (_, body) = server.send(Method::GET, "/services/web/logs?stdout=1", "").await;
    assert!(String::from_utf8_lossy(&body).contains("is missing: its node is down"));
}

#[tokio::test]
async fn following_goes_on_with_new_tasks_until_the_service_is_gone() {
    let server = Server::start(Fake { other_is: NodeState::Ready, ..Fake::new() });
    let was_read = async |task: TaskId| {
        while !server.fake.read.lock().unwrap().contains(&task) {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    let changes = async {
        was_read(TaskId(10_000_001)).await;
        slot(&mut server.fake.store.lock().unwrap(), WEB, 4, Some(ME), Some(TaskState::Running));
        was_read(TaskId(10_000_004)).await;
        let stamp = Stamp { lineage: 0, epoch: 9, seq: 1 };
        server.fake.store.lock().unwrap().put(Key::Service(WEB), stamp, ME, None).unwrap();
    };
    let request = server.send(Method::GET, "/services/web/logs?stdout=1&details=1&follow=1", "");
    let ((status, body), ()) = tokio::join!(request, changes);
    assert_eq!(status, StatusCode::OK);
    let text = String::from_utf8_lossy(&body);
    assert_eq!(text.matches(" hello\n").count(), 2, "{text}");
    for part in [TaskId(10_000_001).to_string(), TaskId(10_000_004).to_string(), "far \n".to_owned()] {
        assert_eq!(text.matches(&part).count(), 1, "{part}: {text}");
    }
}

/// Returns an answer of pieces of output, which then breaks off or ends.
fn answer(pieces: &[&str], breaks: bool) -> Result<Body, ApiError> {
    let frames = pieces.iter().map(|piece| Ok(frames::frame(LogStream::Stdout, &[piece.as_bytes()])));
    let end = breaks.then(|| Err(io::Error::from(io::ErrorKind::ConnectionReset)));
    Ok(Body::from_stream(stream::iter(frames.chain(end).collect::<Vec<_>>())))
}

const ONE: &str = "1970-01-01T00:00:04.000000000Z one\n";
const TWO: &str = "1970-01-01T00:00:05.000000000Z two\n";
const THREE: &str = "1970-01-01T00:00:05.000000000Z three\n";
const FOUR: &str = "1970-01-01T00:00:06.000000000Z four\n";

#[tokio::test]
async fn following_goes_on_where_the_link_broke() {
    let server = Server::start(Fake::new());
    let away = ApiError::unavailable("away");
    let answers = [answer(&[ONE, TWO], true), Err(away), answer(&[ONE, TWO, THREE, FOUR], false)];
    server.fake.answers.lock().unwrap().extend(answers);
    let path = format!("/tasks/{}/logs?stdout=1&follow=1&tail=9", TaskId(10_000_002));
    let (status, body) = server.send(Method::GET, &path, "").await;
    assert_eq!(status, StatusCode::OK);
    let text = String::from_utf8_lossy(&body);
    let at: Vec<_> = ["one", "two", "is missing: away", "three", "four"].iter().map(|part| text.find(part)).collect();
    assert!(at.iter().all(Option::is_some) && at.is_sorted(), "{at:?} {text}");
    assert_eq!((text.matches("one").count(), text.matches("two").count()), (1, 1), "{text}");
    let asked = server.fake.asked.lock().unwrap().clone();
    let from = |query: &String| query.split('&').skip(5).collect::<Vec<_>>().join("&");
    let asked: Vec<String> = asked.iter().map(from).collect();
    assert_eq!(asked, ["since=0.000000000&tail=9", "since=4.000000000&tail=all", "since=4.000000000&tail=all"]);
}

#[tokio::test]
async fn what_is_not_followed_is_not_waited_for() {
    let server = Server::start(Fake::new());
    server.fake.answers.lock().unwrap().extend([answer(&[ONE], true)]);
    let path = "/services/web/logs?stdout=1&details=1&timestamps=1";
    let (status, body) = server.send(Method::GET, path, "").await;
    let text = String::from_utf8_lossy(&body);
    assert_eq!(status, StatusCode::OK);
    assert!(text.contains("one\n") && text.contains(" hello\n"), "{text}");
    // Docker's client gives up when it finds no details in a line.
    let note = text.split("shoal: ").next().unwrap().lines().last().unwrap();
    let task = TaskId(10_000_002);
    let details =
        format!("com.docker.swarm.node.id={OTHER},com.docker.swarm.service.id={WEB},com.docker.swarm.task.id={task} ");
    assert!(note.ends_with(&details), "{note}");
    assert!(
        text.contains(&format!("shoal: output of task {task} on node {OTHER} is missing: its node broke off")),
        "{text}"
    );
    assert_eq!(server.fake.asked.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn what_another_node_asks_for_is_not_passed_on() {
    let server = Server::start(Fake::new());
    let path = format!("/tasks/{}/logs?stdout=1", TaskId(10_000_002));
    let request = Request::builder().uri(path).header("host", "x").header("x-shoal-forwarded", "1");
    let (parts, _) = server.exchange(request.body(Body::empty()).unwrap()).await;
    assert_eq!(parts.status, StatusCode::NOT_FOUND, "it is not this node's own");
    assert!(server.fake.asked.lock().unwrap().is_empty(), "passed on twice");
}
