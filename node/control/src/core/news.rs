//! What changed since somebody last asked, for whoever tells users of it. Nothing is decided from it.

use std::collections::BTreeSet;

use shoal_protocol::Key;

use super::Control;

/// Keys that wait to be asked for; when there are more, everything has to be looked at.
pub const NEWS_MAX: usize = 4096;

/// What changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct News {
    /// About what: keys of the document that changed, and nodes that are thought of differently. Slots and other nodes' tasks
    /// are left out.
    pub keys: BTreeSet<Key>,
    /// Whether there was more than could be kept: then anything may have changed.
    pub missed: bool,
}

impl News {
    /// Returns whether there is nothing new.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty() && !self.missed
    }

    pub(super) fn note(&mut self, key: Key) {
        if self.keys.len() < NEWS_MAX {
            self.keys.insert(key);
        } else {
            self.missed = true;
        }
    }
}

impl Control {
    /// Returns what changed since this was last asked.
    pub fn take_news(&mut self) -> News {
        std::mem::take(&mut self.news)
    }

    pub(super) fn note_change(&mut self, key: Key) {
        match key {
            Key::Slot(..) => {}
            Key::TaskStatus(node, _) if node != self.me => {}
            Key::Cluster
            | Key::Voters
            | Key::Claim(_)
            | Key::Node(_)
            | Key::Service(_)
            | Key::Object(..)
            | Key::Progress(_)
            | Key::NodeStatus(_)
            | Key::TaskStatus(..) => self.news.note(key),
        }
    }
}

#[cfg(test)]
mod tests {
    use shoal_protocol::NodeId;

    use super::*;

    #[test]
    fn too_much_news_is_known_to_be_incomplete() {
        let mut news = News::default();
        assert!(news.is_empty());
        for node in 0..=NEWS_MAX as u128 {
            news.note(Key::Node(NodeId(node)));
        }
        assert_eq!((news.keys.len(), news.missed), (NEWS_MAX, true));
    }
}
