//! One job's log in memory, and how much of it has expired.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::source::{Chain, MessageClass};
use crate::wire::{Seq, Stored, StreamSeq};

/// One job's log.
#[derive(Debug, Default)]
pub(super) struct Log {
    /// How many events it has had, including expired ones.
    pub(super) count: u64,
    pub(super) attempt: u32,
    /// The messages that have not expired, including those with a wrong sequence number.
    pub(super) events: VecDeque<Arc<Stored>>,
    /// The last stream sequence that has expired.
    pub(super) expired: StreamSeq,
}

impl Log {
    /// The events that have not expired.
    pub(super) fn events(&self) -> Vec<Arc<Stored>> {
        self.next_events(&mut Chain::new(Seq::FIRST, 0), &self.events)
    }

    /// The events among the next messages of the log.
    pub(super) fn next_events<'a>(
        &self,
        chain: &mut Chain,
        messages: impl IntoIterator<Item = &'a Arc<Stored>>,
    ) -> Vec<Arc<Stored>> {
        let mut events = Vec::new();
        for message in messages {
            let is_event = match chain.classify(message) {
                MessageClass::Next => true,
                MessageClass::Undecodable => false,
                MessageClass::IfExpired(either) => {
                    either.iter().any(|stream_seq| *stream_seq <= self.expired)
                }
                MessageClass::IfStored(stream_seq) => stream_seq > self.expired,
            };
            if is_event {
                chain.accept(message);
                events.push(Arc::clone(message));
            } else {
                chain.skip(message.stream_seq);
            }
        }
        events
    }

    /// Removes everything; the next event is the first one.
    pub(super) fn start_again(&mut self) {
        let expired = self
            .events
            .back()
            .map_or(self.expired, |last| last.stream_seq);
        *self = Self {
            expired,
            ..Self::default()
        };
    }

    /// Removes everything up to this event.
    pub(super) fn expire(&mut self, up_to: Seq) {
        if let Some(last) = self.events().iter().rfind(|event| event.seq <= up_to) {
            self.expired = last.stream_seq;
            self.events
                .retain(|event| event.stream_seq > last.stream_seq);
        }
    }
}
