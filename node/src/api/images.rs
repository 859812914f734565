//! Images of this node, and loading them on all nodes at once.

use std::io;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, Query, Request, State};
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::StreamExt;
use futures::future::{join, join_all};
use futures::stream::{self, BoxStream};
use http_body_util::BodyExt;
use serde::Deserialize;
use serde_json::{Value, json};
use shoal_protocol::NodeId;
use tokio::sync::mpsc;
use tokio_util::io::StreamReader;
use tokio_util::sync::CancellationToken;

use super::filters::Filters;
use super::query::is_on;
use super::render;
use super::snapshot::{NodeState, NodeView, Pick, Want};
use super::{Api, ApiError};
use crate::driver::{DriverError, ImageInfo};

/// Pieces of an archive that wait for one node.
const PIECES_MAX: usize = 8;
/// A node that takes no piece for so long is given up, so that it does not hold up the others.
const PIECE_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes of another node's answer at most.
const ANSWER_BYTES_MAX: usize = 1 << 20;

#[derive(Debug, Deserialize)]
pub(super) struct ListQuery {
    filters: Option<String>,
}

/// `GET /images/json`.
pub(super) async fn list(State(api): State<Api>, Query(query): Query<ListQuery>) -> Result<Json<Vec<Value>>, ApiError> {
    let filters = Filters::parse(query.filters.as_deref(), &["reference"])?;
    let repository = |tag: &str| tag.rsplit_once(':').map_or(tag, |(repository, _)| repository).to_owned();
    let fits = |image: &ImageInfo| {
        filters.any("reference", |wanted| image.tags.iter().any(|tag| tag == wanted || repository(tag) == wanted))
    };
    let images = api.backend.images().await?;
    Ok(Json(images.iter().filter(|image| fits(image)).map(render::image_summary).collect()))
}

/// `GET /images/{name}/json`.
pub(super) async fn inspect(State(api): State<Api>, Path(path): Path<String>) -> Result<Json<Value>, ApiError> {
    let Some(name) = path.strip_suffix("/json") else {
        return Err(ApiError::unsupported(&format!("this operation on images (GET /images/{path})")));
    };
    let image = match api.backend.inventory().await?.image(name).await {
        Err(DriverError::NoSuchImage { .. }) => {
            let message = format!("no such image: {name}: No such image: {name}");
            return Err(ApiError::new(StatusCode::NOT_FOUND, message));
        }
        image => image?,
    };
    Ok(Json(render::image(&image)))
}

/// `DELETE /images/{name}`.
pub(super) async fn remove(State(api): State<Api>, Path(name): Path<String>) -> Result<Json<Value>, ApiError> {
    api.backend.remove_image(&name).await?;
    Ok(Json(json!([{"Untagged": name}])))
}

#[derive(Debug, Deserialize)]
pub(super) struct LoadQuery {
    all: Option<String>,
}

impl LoadQuery {
    /// Returns whether every ready node is to store the images.
    pub(super) fn on_all(&self) -> bool {
        is_on(self.all.as_deref())
    }
}

/// `POST /images/load`; `all=1` stores on every ready node.
pub(super) async fn load(
    State(api): State<Api>,
    Query(query): Query<LoadQuery>,
    body: Body,
) -> Result<Response, ApiError> {
    let pieces = body.into_data_stream().map(|piece| piece.map_err(io::Error::other)).boxed();
    if !query.on_all() {
        let (feed, pieces_of_one) = Feed::new();
        let load = unless(feed.given_up.clone(), api.load_here(pieces_of_one));
        let ((), references) = join(pump(pieces, vec![feed]), load).await;
        return Ok(answer(references?.iter().map(|reference| loaded(reference, None))));
    }
    let snapshot = api.backend.snapshot(Want { nodes: Pick::All, ..Want::default() }).await?;
    let ready: Vec<NodeView> =
        snapshot.nodes.into_iter().filter(|node| node.id == snapshot.me || node.state == NodeState::Ready).collect();
    let mut feeds = Vec::new();
    let mut loads = Vec::new();
    for node in &ready {
        let (feed, pieces_of_one) = Feed::new();
        loads.push(unless(feed.given_up.clone(), api.load_on(snapshot.me, node.id, pieces_of_one)));
        feeds.push(feed);
    }
    let ((), results) = join(pump(pieces, feeds), join_all(loads)).await;
    let lines = ready.iter().zip(results).flat_map(|(node, result)| match result {
        Ok(references) => references.iter().map(|reference| loaded(reference, Some(node.hostname()))).collect(),
        Err(error) => vec![json!({"error": format!("{}: {error}", node.hostname())})],
    });
    Ok(answer(lines))
}

impl Api {
    async fn load_here(&self, pieces: Pieces) -> Result<Vec<String>, ApiError> {
        Ok(self.backend.load_image(Box::new(StreamReader::new(pieces))).await?)
    }

    async fn load_on(&self, me: NodeId, node: NodeId, pieces: Pieces) -> Result<Vec<String>, ApiError> {
        if node == me {
            return self.load_here(pieces).await;
        }
        let request = Request::builder()
            .method(Method::POST)
            .uri("/images/load")
            .header(header::HOST, "shoal")
            .body(Body::from_stream(pieces))
            .map_err(|error| ApiError::internal(error.to_string()))?;
        let response = self.backend.forward(node, request).await?;
        let status = response.status();
        let body = http_body_util::Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(|error| ApiError::internal(format!("its answer broke off: {error}")))?.to_bytes();
        if !status.is_success() {
            let message = serde_json::from_slice::<Value>(&body).ok();
            let message = message.as_ref().and_then(|message| message["message"].as_str()).unwrap_or_default();
            return Err(ApiError::new(status, message));
        }
        let lines = serde_json::Deserializer::from_slice(&body).into_iter::<Value>();
        let texts = lines.filter_map(|line| line.ok()?["stream"].as_str().map(str::to_owned));
        Ok(texts.filter_map(|text| Some(text.strip_prefix("Loaded image: ")?.trim().to_owned())).collect())
    }
}

type Pieces = BoxStream<'static, io::Result<Bytes>>;

/// One node's end of an upload.
struct Feed {
    pieces: mpsc::Sender<io::Result<Bytes>>,
    given_up: CancellationToken,
}

impl Feed {
    fn new() -> (Self, Pieces) {
        let (sender, waiting) = mpsc::channel(PIECES_MAX);
        let next = |mut waiting: mpsc::Receiver<_>| async move { waiting.recv().await.map(|piece| (piece, waiting)) };
        (Self { pieces: sender, given_up: CancellationToken::new() }, stream::unfold(waiting, next).boxed())
    }

    /// Hands on a piece; returns whether the node wants more.
    async fn send(&self, piece: io::Result<Bytes>) -> bool {
        match tokio::time::timeout(PIECE_TIMEOUT, self.pieces.send(piece)).await {
            Ok(sent) => sent.is_ok(),
            Err(_) => {
                self.given_up.cancel();
                false
            }
        }
    }
}

/// Waits for what a node makes of its pieces, unless it is given up.
async fn unless<T>(
    given_up: CancellationToken,
    load: impl Future<Output = Result<T, ApiError>>,
) -> Result<T, ApiError> {
    tokio::select! {
        result = load => result,
        () = given_up.cancelled() => {
            Err(ApiError::unavailable(format!("took nothing for {} s", PIECE_TIMEOUT.as_secs())))
        }
    }
}

/// Hands each piece to every node. A broken upload is an error for all: nobody may take a part for the whole. What no node
/// wants any more is read nevertheless: a client that cannot send does not listen to why.
async fn pump(mut pieces: Pieces, mut feeds: Vec<Feed>) {
    while let Some(piece) = pieces.next().await {
        let copy = || match &piece {
            Ok(bytes) => Ok(bytes.clone()),
            Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
        };
        let wants_more = join_all(feeds.iter().map(|feed| feed.send(copy()))).await;
        let mut wants_more = wants_more.into_iter();
        feeds.retain(|_| wants_more.next().unwrap_or(false));
        if piece.is_err() {
            return;
        }
    }
}

fn loaded(reference: &str, hostname: Option<&str>) -> Value {
    let place = hostname.map_or_else(String::new, |hostname| format!(" on {hostname}"));
    json!({"stream": format!("Loaded image: {reference}{place}\n")})
}

fn answer(lines: impl Iterator<Item = Value>) -> Response {
    let text: String = lines.map(|line| format!("{line}\n")).collect();
    ([(header::CONTENT_TYPE, "application/json")], text).into_response()
}
