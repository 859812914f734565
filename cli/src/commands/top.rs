//! `shoal top`.

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::{self, Receiver};
use tokio::time::{MissedTickBehavior, interval};

use crate::client::Client;
use crate::error::CliError;
use crate::time::now_nanos;
use crate::top::screen::{Input, Screen, check_terminal, inputs};
use crate::top::state::{Next, State};
use crate::top::watch::{self, News};
use crate::units::Nanos;

/// How often the daemon can be asked at most, and at least.
const INTERVALS: std::ops::RangeInclusive<Duration> = Duration::from_millis(200)..=Duration::from_secs(3600);
/// Pieces of news that wait for the next picture; while there are as many, the daemon waits.
const NEWS_MAX: usize = 256;
/// Between two pictures in which nothing but time goes on.
const TICK: Duration = Duration::from_secs(1);

/// Flags of `top`.
#[derive(Debug, clap::Args)]
pub(crate) struct TopArgs {
    /// Time between two looks at the cluster (200ms to 1h)
    #[arg(short = 'n', long, default_value = "1s", value_parser = read_interval, value_name = "DURATION")]
    interval: Duration,
}

/// Reads a duration as all commands do, or seconds alone as `watch` does.
fn read_interval(text: &str) -> Result<Duration, String> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let nanos: Nanos = if is_number { format!("{text}s").parse()? } else { text.parse()? };
    let interval = Duration::from_nanos(nanos.0);
    if INTERVALS.contains(&interval) { Ok(interval) } else { Err("expected 200ms to 1h".to_owned()) }
}

/// Shows the cluster until the user has seen enough.
pub(crate) async fn run(client: &Client, args: TopArgs) -> Result<(), CliError> {
    check_terminal()?;
    // The first answer is waited for here, so that what is wrong is said as by any other command.
    let look = watch::look(client).await?;
    let (sender, news) = mpsc::channel(NEWS_MAX);
    let state = State::new(look, now_nanos());
    tokio::select! {
        result = show(state, news) => result,
        () = watch::looks(client, args.interval, &sender) => Ok(()),
        () = watch::events(client, &sender) => Ok(()),
    }
}

/// Draws the state whenever it has changed.
async fn show(mut state: State, mut news: Receiver<News>) -> Result<(), CliError> {
    let failed = |error| CliError::Failed(format!("failed to listen to signals: {error}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut screen = Screen::open()?;
    let mut inputs = inputs();
    loop {
        screen.show(&mut state)?;
        tokio::select! {
            input = inputs.recv() => match input {
                Some(Input::Key(key)) => {
                    if state.press(key) == Next::Quit {
                        return Ok(());
                    }
                }
                Some(Input::Other) => {}
                Some(Input::Lost(error)) => return Err(CliError::Failed(format!("the terminal cannot be read: {error}"))),
                None => return Err(CliError::Failed("the terminal cannot be read".to_owned())),
            },
            Some(told) = news.recv() => {
                take(&mut state, told);
                // Events come in bursts: one picture shows them all.
                while let Ok(told) = news.try_recv() {
                    take(&mut state, told);
                }
            }
            _ = tick.tick() => state.tick(now_nanos()),
            _ = interrupt.recv() => return Ok(()),
            _ = terminate.recv() => return Err(CliError::Failed("ended by a signal".to_owned())),
            _ = hangup.recv() => return Err(CliError::Failed(String::new())),
        }
    }
}

fn take(state: &mut State, told: News) {
    match told {
        News::Look(look) => state.take_look(*look, now_nanos()),
        News::Failed(failure) => state.take_failure(&failure, now_nanos()),
        News::Happened(event) => state.take_event(event, now_nanos()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_read_within_bounds() {
        for (text, want) in [
            ("1s", Some(1000)),
            ("2", Some(2000)),
            ("0.5", Some(500)),
            ("200ms", Some(200)),
            ("1h", Some(3_600_000)),
            ("100ms", None),
            ("0", None),
            ("2h", None),
            ("", None),
            ("soon", None),
            ("-1", None),
        ] {
            assert_eq!(read_interval(text).ok(), want.map(Duration::from_millis), "{text}");
        }
    }
}
