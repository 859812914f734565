//! Decides how the output of one task is read: whether to begin, to wait, to begin again after a break, or to end; and which
//! lines were passed on already.
//!
//! Lines have no numbers, only times, which the task's node gave them and alone compares. So after a break lines are asked for
//! from a little before the last one, and as many as were passed on are left out, for each stream alone: how the lines of two
//! streams lie between each other may differ from one reading to the next.

use std::time::Duration;

use shoal_protocol::WallTime;

use crate::driver::{LogLine, LogQuery, LogStream};

/// How long a task that has no container yet is left alone.
const NO_CONTAINER_WAIT: Duration = Duration::from_millis(500);
/// How long a node that is down is left alone.
const DOWN_WAIT: Duration = Duration::from_secs(1);
/// How long is waited after a first break; after a second one it is a second, and twice as long after each further one.
const BREAK_WAIT_MIN: Duration = Duration::from_millis(250);
/// How long is waited after a break at most. What was read for longer than this was no failure.
const BREAK_WAIT_MAX: Duration = Duration::from_secs(5);
/// So many breaks in a row end the reading, with the reason in the output: five minutes of a node that seems to be well.
const BREAKS_MAX: u32 = 60;
/// How much before the last line is asked for: lines of the other stream may have been written, and not read, before it.
const OVERLAP_NANOS: u64 = 2_000_000_000;

/// How the last attempt to read ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Last {
    /// There was none, or it was waited since.
    Nothing,
    /// All was read, and the container has ended if it was to be followed.
    End,
    /// There is no container.
    NoContainer,
    /// It broke off, or did not begin.
    Break {
        /// Why, for people.
        reason: String,
        /// How long lines could be read until then.
        lasted: Duration,
    },
}

/// A task whose output is not being read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Standing {
    /// Whether its node is gone.
    pub(super) node_down: bool,
    /// Whether it will never run again.
    pub(super) has_ended: bool,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Ask for the lines of [`Progress::query`].
    Read,
    /// Look at the task again after a while.
    Wait {
        /// After how long.
        pause: Duration,
        /// Why its output is missing for now, if that is to be said.
        tell: Option<String>,
    },
    /// Nothing more will come.
    End {
        /// Why its output is missing, if it is.
        tell: Option<String>,
    },
}

/// How far one stream was passed on.
#[derive(Debug, Clone, Copy)]
struct Mark {
    /// The time of its last line.
    time: WallTime,
    /// How many lines with this time there were.
    lines: usize,
    /// How many of them the present reading still has to leave out; nothing once it has passed a line on.
    leave_out: Option<usize>,
}

/// How far the output of one task was passed on.
#[derive(Debug)]
pub(super) struct Progress {
    /// What the user asked for.
    asked: LogQuery,
    /// When the first reading began, on this node's clock.
    begun: Option<WallTime>,
    /// The time of the first line.
    first: Option<WallTime>,
    marks: [Option<Mark>; 2],
    breaks: u32,
    has_told: bool,
}

impl Progress {
    /// Returns the beginning.
    pub(super) fn new(asked: LogQuery) -> Self {
        Self { asked, begun: None, first: None, marks: [None; 2], breaks: 0, has_told: false }
    }

    /// Returns which lines to ask for.
    pub(super) fn query(&self) -> LogQuery {
        let from = match (self.first, self.begun, self.asked.tail) {
            (Some(first), ..) => {
                let last = self.marks.iter().flatten().map(|mark| mark.time.0).max().unwrap_or_default();
                Some(WallTime(last.saturating_sub(OVERLAP_NANOS)).max(first))
            }
            // What there was is not wanted. The clock is another one, but the only one there is.
            (None, Some(begun), Some(0)) => Some(begun),
            (None, ..) => return self.asked,
        };
        LogQuery { tail: None, since: from.max(self.asked.since), follow: self.asked.follow }
    }

    /// Notes that what was asked for is being answered.
    pub(super) fn begin(&mut self, now: WallTime) {
        self.begun.get_or_insert(now);
        self.has_told = false;
        for mark in self.marks.iter_mut().flatten() {
            // Lines before the first one of the last so many may have had its time, too.
            let is_cut = self.asked.tail.is_some() && Some(mark.time) == self.first;
            mark.leave_out = Some(if is_cut { usize::MAX } else { mark.lines });
        }
    }

    /// Returns whether a line is to be passed on, and notes that it is.
    pub(super) fn take(&mut self, line: &LogLine) -> bool {
        let mark = match line.stream {
            LogStream::Stdout => &mut self.marks[0],
            LogStream::Stderr => &mut self.marks[1],
        };
        if let Some(Mark { time, leave_out: Some(left), .. }) = mark
            && (line.time < *time || line.time == *time && *left > 0)
        {
            *left -= usize::from(line.time == *time);
            return false;
        }
        let lines = mark.filter(|mark| mark.time == line.time).map_or(0, |mark| mark.lines) + 1;
        *mark = Some(Mark { time: line.time, lines, leave_out: None });
        self.first.get_or_insert(line.time);
        true
    }

    /// Decides what to do about a task, nothing if it is not known any more, whose last reading ended so.
    pub(super) fn step(&mut self, task: Option<Standing>, last: Last) -> Step {
        let Some(task) = task else { return Step::End { tell: None } };
        match last {
            Last::End => Step::End { tell: None },
            Last::Nothing | Last::Break { .. } | Last::NoContainer if task.node_down => {
                let reason = "its node is down".to_owned();
                if self.asked.follow {
                    Step::Wait { pause: DOWN_WAIT, tell: self.tell_once(reason) }
                } else {
                    Step::End { tell: Some(reason) }
                }
            }
            Last::Nothing => Step::Read,
            Last::NoContainer if task.has_ended || !self.asked.follow => Step::End { tell: None },
            Last::NoContainer => {
                // There was nothing yet, so all that comes is new.
                self.asked.tail = None;
                Step::Wait { pause: NO_CONTAINER_WAIT, tell: None }
            }
            Last::Break { reason, .. } if !self.asked.follow => Step::End { tell: Some(reason) },
            Last::Break { reason, lasted } => {
                self.breaks = if lasted > BREAK_WAIT_MAX { 1 } else { self.breaks + 1 };
                match self.breaks {
                    BREAKS_MAX.. => Step::End { tell: Some(reason) },
                    // Nothing is said of what is over at once.
                    0 | 1 => Step::Wait { pause: BREAK_WAIT_MIN, tell: None },
                    breaks => {
                        let pause = BREAK_WAIT_MIN.saturating_mul(1 << breaks.min(16)).min(BREAK_WAIT_MAX);
                        Step::Wait { pause, tell: self.tell_once(reason) }
                    }
                }
            }
        }
    }

    fn tell_once(&mut self, reason: String) -> Option<String> {
        (!std::mem::replace(&mut self.has_told, true)).then_some(reason)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn query(tail: Option<usize>, since: Option<u64>) -> LogQuery {
        LogQuery { tail, since: since.map(WallTime), follow: true }
    }

    /// Reads what a log holds, as a driver would, and returns what is passed on.
    fn read(progress: &mut Progress, log: &[(LogStream, u64, &str)], most: usize) -> String {
        let query = progress.query();
        progress.begin(WallTime(50 * SECOND));
        let since = |(_, time, _): &&(LogStream, u64, &str)| query.since.is_none_or(|since| *time >= since.0);
        let fitting: Vec<_> = log.iter().filter(since).collect();
        let tail = query.tail.unwrap_or(fitting.len()).min(fitting.len());
        let lines = fitting[fitting.len() - tail..].iter().map(|(stream, time, text)| LogLine {
            stream: *stream,
            time: WallTime(*time),
            bytes: Bytes::copy_from_slice(text.as_bytes()),
        });
        let passed = lines.filter(|line| progress.take(line)).take(most);
        passed.map(|line| String::from_utf8_lossy(&line.bytes).into_owned()).collect()
    }

    #[test]
    fn a_break_anywhere_costs_and_repeats_no_line() {
        use LogStream::{Stderr, Stdout};
        let log = [
            (Stdout, 60 * SECOND, "a"),
            (Stdout, 60 * SECOND, "b"),
            (Stderr, 60 * SECOND, "c"),
            (Stdout, 61 * SECOND, "d"),
            (Stderr, 61 * SECOND, "e"),
            (Stdout, 61 * SECOND, "f"),
            (Stdout, 90 * SECOND, "g"),
            (Stderr, 91 * SECOND, "h"),
        ];
        for first in 0..=log.len() {
            for second in 0..=log.len() {
                let mut progress = Progress::new(query(None, None));
                let mut all = read(&mut progress, &log[..log.len() - 1], first);
                all += &read(&mut progress, &log[..log.len() - 1], second);
                all += &read(&mut progress, &log, usize::MAX);
                let mut letters: Vec<char> = all.chars().collect();
                letters.sort_unstable();
                assert_eq!(letters, ['a', 'b', 'c', 'd', 'e', 'f', 'g', 'h'], "{first} {second}: {all}");
            }
        }
    }

    #[test]
    fn what_the_user_did_not_want_does_not_come_after_a_break() {
        use LogStream::{Stderr, Stdout};
        let log = [
            (Stdout, 60 * SECOND, "a"),
            (Stderr, 60 * SECOND, "b"),
            (Stdout, 61 * SECOND, "c"),
            (Stdout, 61 * SECOND, "d"),
            (Stdout, 62 * SECOND, "e"),
        ];
        for (tail, since, first, second) in [
            (Some(1), None, "d", "e"),
            (Some(3), None, "bcd", "e"),
            (Some(0), None, "", "abcde"), // all of them later than when reading began
            (None, Some(61 * SECOND), "cd", "e"),
            (None, Some(62 * SECOND), "", "e"),
        ] {
            let mut progress = Progress::new(query(tail, since));
            assert_eq!(read(&mut progress, &log[..4], usize::MAX), first, "{tail:?} {since:?}");
            assert_eq!(read(&mut progress, &log, usize::MAX), second, "{tail:?} {since:?}");
            assert_eq!(read(&mut progress, &log, usize::MAX), "", "{tail:?} {since:?}");
        }
    }

    #[test]
    fn little_is_asked_for_again() {
        let mut progress = Progress::new(query(Some(7), Some(3)));
        assert_eq!(progress.query(), query(Some(7), Some(3)), "nothing was answered");
        progress.begin(WallTime(9));
        assert_eq!(progress.query(), query(Some(7), Some(3)), "none of the last lines came");
        let mut from_now = Progress::new(query(Some(0), None));
        from_now.begin(WallTime(9));
        assert_eq!(from_now.query(), query(None, Some(9)), "what there was was not wanted");
        let line = |time| LogLine { stream: LogStream::Stdout, time: WallTime(time), bytes: Bytes::new() };
        assert!(progress.take(&line(SECOND)));
        assert_eq!(progress.query(), query(None, Some(SECOND)), "nothing before the first line");
        assert!(progress.take(&line(9 * SECOND)));
        assert_eq!(progress.query(), query(None, Some(7 * SECOND)));
    }

    #[test]
    fn readings_begin_wait_and_end() {
        use Last::{Break, End, NoContainer, Nothing};
        let well = Standing { node_down: false, has_ended: false };
        let down = Standing { node_down: true, ..well };
        let ended = Standing { has_ended: true, ..well };
        let broke = || Break { reason: "why".to_owned(), lasted: Duration::ZERO };
        let end = |tell: Option<&str>| Step::End { tell: tell.map(str::to_owned) };
        let wait = |pause, tell: Option<&str>| Step::Wait { pause, tell: tell.map(str::to_owned) };
        let away = "its node is down";
        for (name, follow, task, last, want) in [
            ("a task is read", true, Some(well), Nothing, Step::Read),
            ("and so is one that has ended", true, Some(ended), Nothing, Step::Read),
            ("its end is the end", true, Some(well), End, end(None)),
            ("whatever became of its node", true, Some(down), End, end(None)),
            ("a task that is gone is not waited for", true, None, broke(), end(None)),
            ("its container may come", true, Some(well), NoContainer, wait(NO_CONTAINER_WAIT, None)),
            ("but not after its end", true, Some(ended), NoContainer, end(None)),
            ("its node may come back", true, Some(down), broke(), wait(DOWN_WAIT, Some(away))),
            ("a first break is not told", true, Some(well), broke(), wait(BREAK_WAIT_MIN, None)),
            ("once is once", false, Some(well), Nothing, Step::Read),
            ("and waits for no node", false, Some(down), Nothing, end(Some(away))),
            ("for no container", false, Some(well), NoContainer, end(None)),
            ("and after no break", false, Some(well), broke(), end(Some("why"))),
        ] {
            let mut progress = Progress::new(LogQuery { follow, ..LogQuery::default() });
            assert_eq!(progress.step(task, last), want, "{name}");
        }
    }

    #[test]
    fn breaks_are_told_once_and_not_for_ever() {
        let well = Some(Standing { node_down: false, has_ended: false });
        let broke = |lasted| Last::Break { reason: "why".to_owned(), lasted };
        let mut progress = Progress::new(query(None, None));
        let (mut told, mut waited) = (0, Duration::ZERO);
        let steps = loop {
            match progress.step(well, broke(Duration::ZERO)) {
                Step::Wait { pause, tell } => {
                    assert!(pause <= BREAK_WAIT_MAX);
                    waited += pause;
                    told += usize::from(tell.is_some());
                }
                Step::End { tell } => break tell,
                Step::Read => panic!("nothing was waited for"),
            }
        };
        assert_eq!((steps.as_deref(), told), (Some("why"), 1));
        assert!(waited > Duration::from_secs(240), "{waited:?}");

        let mut progress = Progress::new(query(None, None));
        for _ in 0..2 * BREAKS_MAX {
            let step = progress.step(well, broke(BREAK_WAIT_MAX * 2));
            assert_eq!(step, Step::Wait { pause: BREAK_WAIT_MIN, tell: None }, "it was read for long enough");
        }
    }
}
