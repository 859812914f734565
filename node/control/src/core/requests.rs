//! Writes that users of this node wait for: where each was sent, and when to send it again or give up.

use std::collections::BTreeMap;
use std::time::Duration;

use shoal_protocol::write::{Write, WriteError};
use shoal_protocol::{NodeId, Time};

use super::event::RequestId;

/// Writes that may wait at once; more are answered with [`WriteError::Busy`].
pub(super) const WAITING_MAX: usize = 1024;

/// Bytes of writes that may wait at once; more are answered likewise.
const WAITING_BYTES_MAX: usize = 32 << 20;

/// A write that was not answered for this long is sent again; carrying one out twice is harmless.
const RESEND_AFTER: Duration = Duration::from_secs(2);

/// A write waits this long for a holder to be found and to answer.
const GIVE_UP_AFTER: Duration = Duration::from_secs(10);

/// Without a quorum for this long a write is refused instead of waiting.
pub(super) const NO_QUORUM_AFTER: Duration = Duration::from_secs(5);

/// From here on identifiers are of writes that the node itself asks for; the shells count theirs up from 1.
const OWN_FIRST: RequestId = 1 << 63;

/// Writes of this node's users, and of the node itself.
#[derive(Debug, Default)]
pub(super) struct Requests {
    waiting: BTreeMap<RequestId, Waiting>,
    own: u64,
}

#[derive(Debug)]
struct Waiting {
    write: Write,
    since: Time,
    sent: Option<(NodeId, Time)>,
}

impl Requests {
    /// Takes a write in.
    pub(super) fn add(&mut self, request: RequestId, write: Write, now: Time) -> Result<(), WriteError> {
        let bytes: usize = self.waiting.values().map(|waiting| waiting.write.bytes()).sum();
        if self.waiting.len() >= WAITING_MAX || bytes + write.bytes() > WAITING_BYTES_MAX {
            return Err(WriteError::Busy);
        }
        self.waiting.insert(request, Waiting { write, since: now, sent: None });
        Ok(())
    }

    /// Takes in a write that the node itself asks for, unless the same is under way. Whoever wants it asks again until it
    /// sees it done, so nobody waits for its answer.
    pub(super) fn add_own(&mut self, write: Write, now: Time) {
        let is_under_way = self.waiting.range(OWN_FIRST..).any(|(_, waiting)| waiting.write == write);
        if !is_under_way && self.waiting.len() < WAITING_MAX {
            self.own += 1;
            self.waiting.insert(OWN_FIRST + self.own, Waiting { write, since: now, sent: None });
        }
    }

    /// Returns the writes to send to the present holder now, and notes that they were.
    pub(super) fn take_due(&mut self, holder: NodeId, now: Time) -> Vec<(RequestId, Write)> {
        let mut due = Vec::new();
        for (&request, waiting) in &mut self.waiting {
            let again = match waiting.sent {
                None => true,
                Some((to, when)) => to != holder || now.since(when) >= RESEND_AFTER,
            };
            if again {
                waiting.sent = Some((holder, now));
                due.push((request, waiting.write.clone()));
            }
        }
        due
    }

    /// Removes a write that was answered. Returns whether somebody still waits for the answer.
    pub(super) fn answered(&mut self, request: RequestId) -> bool {
        self.waiting.remove(&request).is_some() && request < OWN_FIRST
    }

    /// Notes that the node a write was sent to could not carry it out: it will be sent again.
    pub(super) fn returned(&mut self, request: RequestId) {
        if let Some(waiting) = self.waiting.get_mut(&request) {
            waiting.sent = None;
        }
    }

    /// Removes the writes that waited too long and returns those that somebody waits for. `quorum_lost` is how long there has been no quorum.
    pub(super) fn expired(&mut self, quorum_lost: Option<Duration>, now: Time) -> Vec<(RequestId, WriteError)> {
        let hopeless = quorum_lost.is_some_and(|lost| lost >= NO_QUORUM_AFTER);
        let reason = if quorum_lost.is_some() {
            "a majority of the voters cannot be reached; running tasks go on, writes are refused until it is back"
        } else {
            "no holder of the registry lease answered in time; the write may still take effect"
        };
        let expired: Vec<RequestId> = self
            .waiting
            .iter()
            .filter(|(_, waiting)| {
                let waited = now.since(waiting.since);
                waited >= GIVE_UP_AFTER || (hopeless && waiting.sent.is_none())
            })
            .map(|(&request, _)| request)
            .collect();
        expired
            .into_iter()
            .filter(|request| self.answered(*request))
            .map(|request| (request, WriteError::NoQuorum(reason.to_owned())))
            .collect()
    }

    /// Returns whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shoal_protocol::ServiceId;

    fn write() -> Write {
        Write::RemoveService { id: ServiceId(1) }
    }

    #[test]
    fn a_write_follows_the_holder() {
        let mut requests = Requests::default();
        requests.add(1, write(), Time(0)).unwrap();
        assert_eq!(requests.take_due(NodeId(1), Time(0)).len(), 1);
        assert!(requests.take_due(NodeId(1), Time(100)).is_empty(), "it is under way");
        assert_eq!(requests.take_due(NodeId(2), Time(200)).len(), 1, "the holder changed");
        assert_eq!(requests.take_due(NodeId(2), Time(2_300)).len(), 1, "no answer came");
        requests.returned(1);
        assert_eq!(requests.take_due(NodeId(2), Time(2_400)).len(), 1, "it was returned");
        assert!(requests.answered(1));
        assert!(!requests.answered(1));
    }

    #[test]
    fn waiting_ends_with_a_reason() {
        for (name, lost, now, refused) in [
            ("a holder is being replaced", None, 4_000, false),
            ("nobody answers", None, 10_000, true),
            ("the quorum is just gone", Some(1), 1_000, false),
            ("the quorum is gone for good", Some(6), 6_000, true),
        ] {
            let mut requests = Requests::default();
            requests.add(1, write(), Time(0)).unwrap();
            let expired = requests.expired(lost.map(Duration::from_secs), Time(now));
            assert_eq!(!expired.is_empty(), refused, "{name}");
        }
    }
}
