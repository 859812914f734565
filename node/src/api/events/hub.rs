//! Hands events to whoever listens, and remembers the last ones for those who ask what happened before.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::broadcast;

use super::event::Event;

/// Events that are remembered; the oldest ones are forgotten. Docker remembers 256.
pub const REMEMBERED_MAX: usize = 1024;
/// Bytes of them together; if there are more, fewer are remembered.
const REMEMBERED_BYTES_MAX: usize = 4 << 20;
/// Events that may wait for one listener; one that is further behind is told so and dropped.
const BEHIND_MAX: usize = 1024;

/// The events of this node. Telling never waits for a listener.
pub struct Hub {
    remembered: Mutex<Remembered>,
    listeners: broadcast::Sender<Arc<Event>>,
}

#[derive(Default)]
struct Remembered {
    events: VecDeque<Arc<Event>>,
    bytes: usize,
}

/// What happened, and what happens from then on, without a gap or an overlap.
pub struct Listening {
    /// Remembered events, oldest first.
    pub before: Vec<Arc<Event>>,
    /// Events to come.
    pub from_now_on: broadcast::Receiver<Arc<Event>>,
}

impl Default for Hub {
    fn default() -> Self {
        Self { remembered: Mutex::default(), listeners: broadcast::Sender::new(BEHIND_MAX) }
    }
}

impl Hub {
    /// Tells of an event.
    pub fn tell(&self, event: Event) {
        let event = Arc::new(event);
        let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        remembered.bytes += event.bytes();
        remembered.events.push_back(event.clone());
        while remembered.events.len() > REMEMBERED_MAX || remembered.bytes > REMEMBERED_BYTES_MAX {
            let Some(oldest) = remembered.events.pop_front() else { break };
            remembered.bytes -= oldest.bytes();
        }
        // Under the lock, so that no listener misses it or gets it twice. That nobody listens is no failure.
        let _ = self.listeners.send(event);
    }

    /// Begins to listen.
    pub fn listen(&self) -> Listening {
        let remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        Listening { before: remembered.events.iter().cloned().collect(), from_now_on: self.listeners.subscribe() }
    }
}

#[cfg(test)]
mod tests {
    use shoal_protocol::WallTime;

    use super::super::event::Scope;
    use super::*;

    fn event(number: u64, padding: usize) -> Event {
        Event {
            kind: "service",
            action: "update",
            id: number.to_string(),
            attributes: [("name".to_owned(), "x".repeat(padding))].into(),
            scope: Scope::Swarm,
            time: WallTime(number),
        }
    }

    #[test]
    fn what_is_remembered_is_bounded_in_number_and_bytes() {
        let hub = Hub::default();
        for number in 0..2000 {
            hub.tell(event(number, 0));
        }
        let before = hub.listen().before;
        assert_eq!((before.len(), before[0].time.0, before[REMEMBERED_MAX - 1].time.0), (REMEMBERED_MAX, 976, 1999));
        for number in 2000..2100 {
            hub.tell(event(number, 1 << 20));
        }
        assert_eq!(hub.listen().before.len(), 3);
        hub.tell(event(3000, 8 << 20));
        assert_eq!(hub.listen().before.len(), 0);
    }

    #[tokio::test]
    async fn what_happens_is_either_remembered_or_still_to_come() {
        let hub = Hub::default();
        hub.tell(event(1, 0));
        let mut listening = hub.listen();
        hub.tell(event(2, 0));
        assert_eq!(listening.before.iter().map(|event| event.time.0).collect::<Vec<_>>(), [1]);
        assert_eq!(listening.from_now_on.recv().await.unwrap().time.0, 2);
    }
}
