//! `GET /`: the cluster on a page for people, as this node sees it. It shows, and changes nothing.
//!
//! The page is complete as it is sent. Where scripts run, a few lines fetch `/shoal/page`, the same contents without the frame
//! around them, every other second; where none do, the browser loads the page again. Nothing is loaded from anywhere else.

use std::fmt::Display;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};
use tokio::sync::Mutex;

use super::snapshot::{Pick, PickTasks, Want};
use super::{Api, ApiError};

mod contents;
mod html;

use contents::{Contents, TASKS_MAX};
use html::Html;

/// How old what is shown may be: however many look at the page, the node looks at its document this often.
const FRESH: Duration = Duration::from_secs(1);

const STYLE: &str = include_str!("page/page.css");
const SCRIPT: &str = include_str!("page/page.js");

/// Lets the browser do what the page does and nothing more.
static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
    let hash = |text: &str| format!("'sha256-{}'", STANDARD.encode(Sha256::digest(text)));
    let policy = format!(
        "default-src 'none'; style-src {}; script-src {}; connect-src 'self'; img-src data:; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'",
        hash(STYLE),
        hash(SCRIPT)
    );
    HeaderValue::from_str(&policy).expect("hashes in base64 can stand in a header")
});

/// The contents that were shown last, which everybody is shown who asks for them within [`FRESH`].
#[derive(Debug, Default)]
pub(super) struct Latest(Mutex<Option<(Instant, Shown)>>);

/// What is shown, and the status that goes with it.
#[derive(Debug, Clone)]
struct Shown {
    status: StatusCode,
    title: String,
    contents: String,
}

/// `GET /`.
pub(super) async fn show(State(api): State<Api>) -> Response {
    let shown = latest(&api).await;
    let mut page = Html::default();
    page.markup("<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">")
        .markup("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">")
        .markup("<noscript><meta http-equiv=\"refresh\" content=\"5\"></noscript>")
        .markup("<link rel=\"icon\" href=\"data:,\"><title>")
        .text(&shown.title)
        .markup("</title><style>")
        .markup(STYLE)
        .markup("</style></head><body><header><h1>shoal</h1><span class=\"quiet\">as ")
        .text(&shown.title)
        .markup(" sees it</span><span id=\"lost\" class=\"bad\" role=\"status\"></span></header><main>");
    let page = page.into_text()
        + &shown.contents
        + "</main><footer>Read only; changes are made with <code>shoal</code>.</footer><script>"
        + SCRIPT
        + "</script></body></html>\n";
    answer(shown.status, page)
}

/// `GET /shoal/page`.
pub(super) async fn show_contents(State(api): State<Api>) -> Response {
    let shown = latest(&api).await;
    answer(shown.status, shown.contents)
}

fn answer(status: StatusCode, html: String) -> Response {
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    headers.insert(header::CONTENT_SECURITY_POLICY, POLICY.clone());
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    (status, headers, html).into_response()
}

/// Whoever comes while the contents are being made waits for them instead of making them once more.
async fn latest(api: &Api) -> Shown {
    let mut latest = api.page.0.lock().await;
    if let Some((made, shown)) = &*latest
        && made.elapsed() < FRESH
    {
        return shown.clone();
    }
    let title = api.backend.node().hostname;
    let shown = match look(api).await {
        Ok(contents) => Shown { status: StatusCode::OK, title, contents: contents.render().into_text() },
        Err(error) => {
            let mut html = Html::default();
            html.markup("<section><h2>There is nothing to show</h2><p>").text(&error.message).markup("</p></section>");
            Shown { status: error.status, title, contents: html.into_text() }
        }
    };
    *latest = Some((Instant::now(), shown.clone()));
    shown
}

async fn look(api: &Api) -> Result<Contents, ApiError> {
    let want = Want {
        nodes: Pick::All,
        services: Pick::All,
        counts: true,
        tasks: PickTasks::Foremost(TASKS_MAX),
        states: true,
        ..Want::default()
    };
    Ok(Contents {
        snapshot: api.backend.snapshot(want).await?,
        status: api.backend.status().await?,
        events: api.backend.events().listen().before,
        now: api.backend.now(),
    })
}

/// Writes a number of things: `1 node`, `2 nodes`.
fn counted(count: impl Display + PartialEq<usize>, one: &'static str, many: &'static str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}
