//! Has this node drained before its daemon ends, and made active again after: performs what
//! [`shoal_control::departure`] decides.

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::Method;
use axum::response::Response;
use hyper::service::Service as _;
use hyper_util::service::TowerToHyperService;
use shoal_control::core::Control;
use shoal_control::departure::{Ask, Departure, End, Sight};
use shoal_protocol::token::Role;
use shoal_protocol::{NodeId, Time};
use tokio::sync::mpsc;

use super::backend;
use crate::api::{ApiError, FromPeer, read_refusal};
use crate::swarm::SwarmHandle;

/// How long a manager may take to have the record written.
const ASK_TIMEOUT: Duration = Duration::from_secs(10);

/// This node's wish to go or to stay.
pub(super) struct Departing {
    me: NodeId,
    decisions: Departure,
    /// Counts the questions: each goes to another manager.
    asked: usize,
    answers: mpsc::Receiver<Result<Ask, String>>,
    sender: mpsc::Sender<Result<Ask, String>>,
}

impl Departing {
    pub(super) fn new(me: NodeId, now: Time) -> Self {
        // One question is under way at a time.
        let (sender, answers) = mpsc::channel(1);
        Self { me, decisions: Departure::new(now), asked: 0, answers, sender }
    }

    /// Begins to leave.
    pub(super) fn leave(&mut self, wait: Duration, now: Time) {
        self.decisions.leave(wait, now);
    }

    /// Returns why the daemon may end, if it may.
    pub(super) fn end(&self, control: &Control, now: Time) -> Option<End> {
        self.decisions.end(self.sight(control), now)
    }

    pub(super) fn timeout(&self, control: &Control) -> Option<Time> {
        self.decisions.poll_timeout(self.sight(control))
    }

    fn sight(&self, control: &Control) -> Sight {
        control.departure_sight(self.decisions.is_leaving())
    }

    /// Waits for an answer. Cancelling it loses nothing.
    pub(super) async fn next(&mut self) -> Result<Ask, String> {
        match self.answers.recv().await {
            Some(answer) => answer,
            None => std::future::pending().await,
        }
    }

    /// Notes an answer.
    pub(super) fn answered(&mut self, answer: Result<Ask, String>, now: Time) {
        match answer {
            Ok(Ask::Drain) => tracing::info!("this node is drained until its daemon is back: its tasks move to others"),
            Ok(Ask::Resume) => tracing::info!("this node takes tasks again: its daemon had drained it to end"),
            Err(error) => tracing::warn!(%error, "no manager changed this node's availability; trying again"),
        }
        self.decisions.answered(now);
    }

    /// Asks a manager if it is time to: this node itself if it is one.
    pub(super) fn ask_if_due(&mut self, control: &Control, own: &Router, swarm: &SwarmHandle, now: Time) {
        let sight = self.sight(control);
        let Some(ask) = self.decisions.poll(sight, now) else { return };
        let own = (control.role() == Role::Manager).then(|| own.clone());
        let managers = swarm.peers().into_iter().filter(|peer| peer.granted.role == Role::Manager);
        let managers: Vec<NodeId> = managers.map(|peer| peer.node).collect();
        let manager = managers.get(self.asked % managers.len().max(1)).copied();
        self.asked += 1;
        let (sender, me, swarm) = (self.sender.clone(), self.me, swarm.clone());
        tokio::spawn(async move {
            let call = async {
                let request = request(ask, me)?;
                match (own, manager) {
                    (Some(router), _) => Ok(answer_of(router, request).await),
                    (None, Some(manager)) => backend::call_peer(&swarm, manager, request).await,
                    (None, None) => Err(ApiError::unavailable("no manager is linked")),
                }
            };
            let answer = match tokio::time::timeout(ASK_TIMEOUT, call).await {
                Ok(Ok(response)) if response.status().is_success() => Ok(ask),
                Ok(Ok(response)) => Err(read_refusal(response).await),
                Ok(Err(error)) => Err(error.to_string()),
                Err(_) => Err(format!("no answer within {} s", ASK_TIMEOUT.as_secs())),
            };
            // The membership may have ended meanwhile.
            let _ = sender.send(answer).await;
        });
    }
}

fn request(ask: Ask, me: NodeId) -> Result<Request, ApiError> {
    let path = match ask {
        Ask::Drain => "/shoal/self/drain",
        Ask::Resume => "/shoal/self/resume",
    };
    let request = Request::builder().method(Method::POST).uri(path).header("host", "shoal");
    // For this node's own API; on its way to another node the connection says who asks.
    request.extension(FromPeer(me)).body(Body::empty()).map_err(|error| ApiError::internal(error.to_string()))
}

async fn answer_of(router: Router, request: Request) -> Response {
    match TowerToHyperService::new(router).call(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}
