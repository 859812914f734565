//! Making one write durable at a majority of the voters, under the registry lease.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use shoal_protocol::lease::VoterSet;
use shoal_protocol::message::{Append, AppendError};
use shoal_protocol::record::Record;
use shoal_protocol::write::{Write, Written};
use shoal_protocol::{NodeId, Time};

use super::event::RequestId;

/// Writes that may wait for the holder at once; more are returned to the manager that forwarded them.
const QUEUE_MAX: usize = 1024;

/// Bytes of writes that wait for the holder at most; more are returned likewise.
const QUEUE_BYTES_MAX: usize = 32 << 20;

/// A voter that did not answer for this long is asked again.
const RESEND_AFTER: Duration = Duration::from_millis(500);

/// Who waits for a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// A user of this node.
    Here(RequestId),
    /// A manager that forwarded it, with its own number.
    Peer(NodeId, u64),
    /// Nobody: the holder repairs something.
    Nobody,
}

/// A write on its way to the voters' disks.
#[derive(Debug)]
pub(super) struct InFlight {
    /// Who waits.
    pub(super) origin: Origin,
    /// What they will be told.
    pub(super) written: Written,
    /// What is being stored.
    pub(super) append: Append,
    /// A write that relies on this one, to be carried out after it.
    pub(super) then: Option<(Origin, Write)>,
    voters: VoterSet,
    stored: BTreeSet<NodeId>,
    failed: BTreeSet<NodeId>,
    error: Option<AppendError>,
    asked: Time,
}

impl InFlight {
    /// Returns who waits for it, or for what follows it.
    pub(super) fn origins(self) -> impl Iterator<Item = Origin> {
        std::iter::once(self.origin).chain(self.then.map(|(origin, _)| origin))
    }
}

/// What became of a write in flight.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Not decided yet.
    Waiting,
    /// On a majority of the disks.
    Durable,
    /// A majority can no longer be had.
    Failed(AppendError),
}

/// Writes that wait for this node as the holder, and the one being made durable.
#[derive(Debug, Default)]
pub(super) struct Commit {
    queue: VecDeque<(Origin, Write)>,
    in_flight: Option<InFlight>,
    last: u64,
}

impl Commit {
    /// Takes a write in; gives it back when too many wait.
    pub(super) fn enqueue(&mut self, origin: Origin, write: Write) -> Result<(), Origin> {
        let waiting: usize = self.queue.iter().map(|(_, write)| write.bytes()).sum();
        if self.queue.len() >= QUEUE_MAX || waiting + write.bytes() > QUEUE_BYTES_MAX {
            return Err(origin);
        }
        // Sent again while the first copy still waits: one is enough.
        let waits = self.queue.iter().any(|(other, _)| *other == origin)
            || self.in_flight.as_ref().is_some_and(|in_flight| {
                in_flight.origin == origin || in_flight.then.as_ref().is_some_and(|(other, _)| *other == origin)
            });
        if !waits {
            self.queue.push_back((origin, write));
        }
        Ok(())
    }

    /// Returns the next write to carry out, if none is in flight.
    pub(super) fn next(&mut self) -> Option<(Origin, Write)> {
        if self.in_flight.is_some() { None } else { self.queue.pop_front() }
    }

    /// Lets a write wait for the one in flight, on which it relies.
    pub(super) fn follow(&mut self, origin: Origin, write: Write) {
        if let Some(in_flight) = &mut self.in_flight {
            in_flight.then = Some((origin, write));
        }
    }

    /// Makes a write the next one.
    pub(super) fn put_first(&mut self, origin: Origin, write: Write) {
        self.queue.push_front((origin, write));
    }

    /// Returns whether a write is in flight.
    pub(super) fn is_busy(&self) -> bool {
        self.in_flight.is_some()
    }

    /// Begins to make records durable. Returns the request for the voters.
    pub(super) fn begin(
        &mut self,
        origin: Origin,
        written: Written,
        records: Vec<Record>,
        (lease, epoch): (shoal_protocol::lease::LeaseId, u64),
        voters: VoterSet,
        now: Time,
    ) -> Append {
        self.last += 1;
        let append = Append { request: self.last, voters: voters.version, lease, epoch, records };
        self.in_flight = Some(InFlight {
            origin,
            written,
            append: append.clone(),
            then: None,
            voters,
            stored: BTreeSet::new(),
            failed: BTreeSet::new(),
            error: None,
            asked: now,
        });
        append
    }

    /// Notes a voter's answer.
    pub(super) fn answer(&mut self, from: NodeId, request: u64, result: Result<(), AppendError>) {
        let Some(in_flight) = self.in_flight.as_mut().filter(|in_flight| in_flight.append.request == request) else {
            return;
        };
        if !in_flight.voters.contains(from) {
            return;
        }
        match result {
            Ok(()) => {
                in_flight.stored.insert(from);
            }
            Err(error) => {
                in_flight.failed.insert(from);
                in_flight.error = Some(error);
            }
        }
    }

    /// Returns what became of the write in flight.
    pub(super) fn outcome(&self) -> Outcome {
        let Some(in_flight) = &self.in_flight else { return Outcome::Waiting };
        let majority = in_flight.voters.majority();
        if in_flight.stored.len() >= majority {
            return Outcome::Durable;
        }
        let possible = in_flight.voters.members.len() - in_flight.failed.len();
        match &in_flight.error {
            Some(error) if possible < majority => Outcome::Failed(error.clone()),
            _ => Outcome::Waiting,
        }
    }

    /// Ends the write in flight.
    pub(super) fn take(&mut self) -> Option<InFlight> {
        self.in_flight.take()
    }

    /// Returns the voters to ask again, with what to ask.
    pub(super) fn resend(&mut self, now: Time) -> Option<(Vec<NodeId>, Append)> {
        let in_flight = self.in_flight.as_mut()?;
        if now.since(in_flight.asked) < RESEND_AFTER {
            return None;
        }
        in_flight.asked = now;
        let silent = in_flight
            .voters
            .members
            .iter()
            .filter(|voter| !in_flight.stored.contains(voter) && !in_flight.failed.contains(voter))
            .copied()
            .collect();
        Some((silent, in_flight.append.clone()))
    }

    /// Gives back everything that waits: the lease was lost.
    pub(super) fn abandon(&mut self) -> Vec<Origin> {
        let in_flight = self.in_flight.take().map(InFlight::origins);
        in_flight.into_iter().flatten().chain(self.queue.drain(..).map(|(origin, _)| origin)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shoal_protocol::lease::LeaseId;

    fn begun() -> Commit {
        let mut commit = Commit::default();
        let voters = VoterSet { version: 1, members: vec![NodeId(1), NodeId(2), NodeId(3)], previous: Vec::new() };
        let written = Written { index: 1, warnings: Vec::new() };
        commit.begin(Origin::Nobody, written, Vec::new(), (LeaseId::REGISTRY, 1), voters, Time(0));
        commit
    }

    #[test]
    fn a_majority_decides() {
        let full = || Err(AppendError::Storage("disk is full".to_owned()));
        let done = Outcome::Durable;
        for (name, answers, want) in [
            ("nobody", vec![], Outcome::Waiting),
            ("one of three", vec![(1, Ok(()))], Outcome::Waiting),
            ("the same twice", vec![(1, Ok(())), (1, Ok(()))], Outcome::Waiting),
            ("a stranger", vec![(1, Ok(())), (9, Ok(()))], Outcome::Waiting),
            ("two of three", vec![(1, Ok(())), (3, Ok(()))], done),
            ("one refusal", vec![(1, full())], Outcome::Waiting),
            ("two refusals", vec![(1, full()), (2, full())], Outcome::Failed(full().unwrap_err())),
        ] {
            let mut commit = begun();
            for (node, result) in answers {
                commit.answer(NodeId(node), 1, result);
            }
            assert_eq!(commit.outcome(), want, "{name}");
        }
    }

    #[test]
    fn an_answer_to_an_older_write_is_ignored() {
        let mut commit = begun();
        commit.answer(NodeId(1), 0, Ok(()));
        commit.answer(NodeId(2), 0, Ok(()));
        assert_eq!(commit.outcome(), Outcome::Waiting);
        assert_eq!(commit.resend(Time(500)).unwrap().0.len(), 3);
    }

    #[test]
    fn everything_is_given_back_when_the_lease_is_lost() {
        let mut commit = begun();
        let write = Write::RemoveService { id: shoal_protocol::ServiceId(1) };
        for _ in 0..2 {
            commit.enqueue(Origin::Here(5), write.clone()).unwrap();
        }
        assert!(commit.next().is_none(), "one write at a time");
        assert_eq!(commit.abandon(), [Origin::Nobody, Origin::Here(5)]);
    }

    #[test]
    fn a_write_that_follows_another_is_not_lost_with_it() {
        let mut commit = begun();
        let write = Write::RemoveService { id: shoal_protocol::ServiceId(1) };
        commit.follow(Origin::Here(5), write.clone());
        commit.enqueue(Origin::Here(5), write).unwrap();
        assert_eq!(commit.abandon(), [Origin::Nobody, Origin::Here(5)], "sent again, it is still one");
    }
}
