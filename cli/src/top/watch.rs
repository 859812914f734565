//! Asks the daemon again and again, and follows its events. A daemon that goes away is waited for.

use std::time::{Duration, Instant};

use tokio::sync::mpsc::Sender;
use tokio::time::{sleep, timeout};

use crate::client::Client;
use crate::error::CliError;
use crate::lines::Lines;
use crate::time::{SECOND_NANOS, now_nanos};
use crate::top::look::{Happened, Look};
use crate::top::traffic::Traffic;

/// How long a look may take.
const LOOK_TIMEOUT: Duration = Duration::from_secs(10);
/// After a look that took long follows a pause so many times as long, so that a large cluster is not kept busy with it.
const PAUSE_TIMES: u32 = 4;
/// Between two attempts to follow the events.
const EVENTS_PAUSE: Duration = Duration::from_secs(1);
/// Events of so many seconds before the first picture are shown.
const PAST_SECONDS: i128 = 15 * 60;

/// What there is to tell.
pub(crate) enum News {
    /// How the cluster is now.
    Look(Box<Look>),
    /// Why the daemon did not say.
    Failed(String),
    /// Something happened.
    Happened(Happened),
}

/// Looks at the cluster once.
pub(crate) async fn look(client: &Client) -> Result<Look, CliError> {
    let look = async {
        let look = Look {
            status: client.get("/shoal/status").await?,
            nodes: client.get("/nodes").await?,
            services: client.get("/services?status=true").await?,
            tasks: client.get("/tasks").await?,
            traffic: Traffic::parse(&client.get_text("/metrics").await?),
            at: now_nanos(),
        };
        Ok(look.sorted())
    };
    let late = || CliError::Failed(format!("the daemon did not answer within {} s", LOOK_TIMEOUT.as_secs()));
    timeout(LOOK_TIMEOUT, look).await.map_err(|_| late())?
}

/// Looks at the cluster each `interval` for as long as anybody wants to know.
pub(crate) async fn looks(client: &Client, interval: Duration, news: &Sender<News>) {
    let mut pause = interval;
    loop {
        sleep(pause).await;
        let started = Instant::now();
        let told = match look(client).await {
            Ok(look) => News::Look(Box::new(look)),
            Err(error) => News::Failed(error.to_string()),
        };
        pause = interval.max(started.elapsed() * PAUSE_TIMES);
        if news.send(told).await.is_err() {
            return;
        }
    }
}

/// Tells what happens for as long as anybody wants to know, and what happened lately before that.
pub(crate) async fn events(client: &Client, news: &Sender<News>) {
    let mut since = now_nanos() - PAST_SECONDS * SECOND_NANOS;
    while !news.is_closed() {
        // That they broke off needs no word: either the looks fail as well, or they go on at once where they ended.
        let _ = follow(client, &mut since, news).await;
        sleep(EVENTS_PAUSE).await;
    }
}

/// Follows events from `since` on, which is moved behind each.
async fn follow(client: &Client, since: &mut i128, news: &Sender<News>) -> Result<(), CliError> {
    let path = format!("/events?since={}.{:09}", *since / SECOND_NANOS, *since % SECOND_NANOS);
    let mut lines = Lines::new(client.stream(&path).await?);
    while let Some(line) = lines.next().await? {
        let Some(event) = Happened::parse(&line) else { continue };
        if event.is_overflow() {
            return Ok(());
        }
        *since = (*since).max(i128::from(event.nanos) + 1);
        if news.send(News::Happened(event)).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}
