//! The live copies of one job's events that have arrived, until the reader of the job takes them. It
//! does not read the connection.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;

use super::live_protocol::{RawMessage, decimal};
use super::names;
use crate::config::{LIVE_CAPACITY, LIVE_DELAY_EVERY};
use crate::short_list::ShortList;
use crate::wire::StreamSeq;

/// A copy of a message of the log.
pub(super) struct ReceivedCopy {
    pub(super) stream_seq: StreamSeq,
    /// The stream sequence of the message before it in the log.
    pub(super) prev: Option<StreamSeq>,
    /// When the broker stored it, as text; only for some of them.
    pub(super) stored_at: Option<Box<str>>,
    pub(super) payload: Bytes,
}

/// Copies of one job's events that arrived.
pub(super) struct LiveQueue {
    /// The subject of a copy, and after it that of the message that it is a copy of: together, since
    /// both are compared with each copy.
    subjects: Box<str>,
    subject_len: usize,
    state: Mutex<LiveQueueState>,
}

#[derive(Default)]
struct LiveQueueState {
    /// Usually one, because the reader of the queue takes them at once.
    copies: ShortList<ReceivedCopy>,
    waker: Option<Waker>,
}

impl LiveQueue {
    /// An empty queue of copies with one subject, of messages with the other.
    pub(super) fn new(subject: &str, stored: &str) -> Self {
        Self {
            subjects: [subject, stored].concat().into(),
            subject_len: subject.len(),
            state: Mutex::default(),
        }
    }

    /// The subject of the copies.
    pub(super) fn subject(&self) -> &str {
        &self.subjects[..self.subject_len]
    }

    /// The subject of the messages that they are copies of.
    fn stored(&self) -> &str {
        &self.subjects[self.subject_len..]
    }

    /// Adds a message, if it is a copy of a message of the log.
    pub(super) fn deliver(&self, message: &RawMessage<'_>) {
        let Some(copy) = self.copy(message) else {
            return;
        };
        let mut state = self.lock();
        // The reader of the queue sees the gap.
        if state.copies.len() < LIVE_CAPACITY {
            state.copies.push_back(copy);
        }
        if let Some(waker) = &state.waker {
            waker.wake_by_ref();
        }
    }

    /// The copy that a message is; `None` unless the broker made it from a message of the log. A
    /// client that may not publish on the subject of the copies can still make the broker send a
    /// message to it: as the answer to a request, or as the delivery of a consumer.
    fn copy(&self, message: &RawMessage<'_>) -> Option<ReceivedCopy> {
        let names = [
            names::SUBJECT,
            names::SEQUENCE,
            names::LAST_SEQUENCE,
            names::TIME,
        ];
        let [stored, stream_seq, prev, time] = message.last_of(names);
        if message.subject != self.subject().as_bytes() || stored != Some(self.stored().as_bytes())
        {
            return None;
        }
        let stream_seq = decimal(stream_seq?)?;
        let is_measured = stream_seq % LIVE_DELAY_EVERY == 0;
        Some(ReceivedCopy {
            stream_seq,
            prev: prev.and_then(decimal),
            stored_at: time.filter(|_| is_measured).and_then(text),
            payload: Bytes::copy_from_slice(message.payload),
        })
    }

    /// The next copy that has arrived.
    pub(super) fn poll_next(&self, cx: &Context<'_>) -> Poll<ReceivedCopy> {
        let mut state = self.lock();
        if let Some(copy) = state.copies.pop_front() {
            return Poll::Ready(copy);
        }
        match &mut state.waker {
            Some(known) => known.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    fn lock(&self) -> MutexGuard<'_, LiveQueueState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn text(bytes: &[u8]) -> Option<Box<str>> {
    str::from_utf8(bytes).ok().map(Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_copy_of_a_message_of_the_log_counts_as_live() {
        let queue = LiveQueue::new("tw.live.0.j", "tw.chunks.0.j");
        let cases: [(&str, &[&str], bool); 6] = [
            ("tw.live.0.j", &["tw.chunks.0.j"], true),
            // The answer to a request whose reply subject is that of the copies.
            ("tw.live.0.j", &["tw.chunks.0.other"], false),
            ("tw.live.0.j", &[], false),
            // The broker's header comes after the publisher's.
            (
                "tw.live.0.j",
                &["tw.chunks.0.j", "tw.chunks.0.other"],
                false,
            ),
            ("tw.live.0.j", &["tw.chunks.0.other", "tw.chunks.0.j"], true),
            // A consumer that delivers to the subject of the copies: its messages keep their own.
            ("tw.chunks.0.other", &["tw.chunks.0.j"], false),
        ];
        for (subject, stored, is_live) in cases {
            let mut headers = format!("NATS/1.0\r\n{}: 7\r\n", names::SEQUENCE);
            for stored in stored {
                headers += &format!("{}: {stored}\r\n", names::SUBJECT);
            }
            let message = RawMessage {
                subscription: 0,
                subject: subject.as_bytes(),
                headers: headers.as_bytes(),
                payload: b"x",
            };
            assert_eq!(queue.copy(&message).is_some(), is_live, "{message:?}");
        }
    }
}
