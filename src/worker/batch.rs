//! Collects a backend's output into events. Pure: time is an argument. It publishes nothing.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use crate::backend::{Content, Piece};
use crate::config::{CHUNK_MAX, FLUSH_BYTES, FLUSH_INTERVAL};
use crate::wire::Body;

/// When to publish collected output.
#[derive(Clone, Copy, Debug)]
pub struct Flush {
    /// The shortest time between two events of a job.
    pub interval: Duration,
    /// How many bytes are published without waiting for the interval.
    pub bytes: usize,
}

impl Default for Flush {
    fn default() -> Self {
        Self {
            interval: FLUSH_INTERVAL,
            bytes: FLUSH_BYTES,
        }
    }
}

/// Output that is not published yet. It holds the permits of its pieces, so that the backend waits
/// when the log is slow.
#[derive(Debug)]
pub(super) struct OutputBatch {
    flush: Flush,
    waiting: VecDeque<(Content, OwnedSemaphorePermit)>,
    bytes: usize,
    /// When the last event was returned.
    last_event: Option<Instant>,
    /// Whether output follows each event before the interval has passed.
    is_fast: bool,
}

impl OutputBatch {
    pub(super) fn new(flush: Flush) -> Self {
        Self {
            flush,
            waiting: VecDeque::new(),
            bytes: 0,
            last_event: None,
            is_fast: false,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Drops all output.
    pub(super) fn clear(&mut self) {
        self.waiting.clear();
        self.bytes = 0;
    }

    /// Adds output that was waited for.
    pub(super) fn push_awaited(&mut self, piece: Piece, now: Instant) {
        self.is_fast = self
            .last_event
            .is_some_and(|last_event| now < last_event + self.flush.interval);
        self.push(piece);
    }

    /// Until when a fast backend's output need not be received, unless there is enough of it: it
    /// would only wait here for the interval.
    pub(super) fn rest_end(&self, now: Instant) -> Option<Instant> {
        let end = self.last_event? + self.flush.interval;
        let rests = self.is_fast && self.waiting.is_empty() && self.flush.bytes > 0;
        (rests && end > now).then_some(end)
    }

    /// Adds output of the backend. Text is appended to previous text of the same channel.
    pub(super) fn push(&mut self, Piece { content, permit }: Piece) {
        self.bytes += permit.num_permits();
        if let (
            Content::Text { channel, text },
            Some((
                Content::Text {
                    channel: before,
                    text: gathered,
                },
                held,
            )),
        ) = (&content, self.waiting.back_mut())
            && channel == before
            && gathered.len() + text.len() <= CHUNK_MAX
        {
            gathered.push_str(text);
            held.merge(permit);
            return;
        }
        self.waiting.push_back((content, permit));
    }

    /// How many more bytes are published without waiting for the interval.
    pub(super) fn missing_bytes(&self) -> usize {
        if self.bytes < self.flush.bytes {
            self.flush.bytes - self.bytes
        } else {
            // It is enough already; more is received only if there is very much.
            usize::MAX
        }
    }

    /// When to publish the next event: the first one at once, later ones after the interval, or
    /// when there is enough output. `None` without output.
    pub(super) fn due(&self, now: Instant) -> Option<Instant> {
        if self.waiting.is_empty() {
            return None;
        }
        // With more than one piece, the first is complete.
        let full = self.bytes >= self.flush.bytes || self.waiting.len() > 1;
        Some(match self.last_event {
            Some(last_event) if !full => now.max(last_event + self.flush.interval),
            _ => now,
        })
    }

    /// Returns the next event. Dropping the permit frees its room.
    pub(super) fn next_event(&mut self, now: Instant) -> Option<(Body, OwnedSemaphorePermit)> {
        let Some((content, permit)) = self.waiting.pop_front() else {
            self.is_fast = false;
            return None;
        };
        self.last_event = Some(now);
        self.bytes = self.bytes.saturating_sub(permit.num_permits());
        let body = match content {
            Content::Text { channel, text } => Body::Chunk { text, channel },
            Content::Data(data) => Body::Data { data },
        };
        Some((body, permit))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Channel;
    use serde_json::json;
    use std::sync::Arc;
    use tokio::sync::Semaphore;

    const FLUSH: Flush = Flush {
        interval: Duration::from_millis(100),
        bytes: 10,
    };

    fn piece(content: Content, size: u32) -> Piece {
        let permit = Arc::new(Semaphore::new(1 << 20))
            .try_acquire_many_owned(size)
            .unwrap();
        Piece { content, permit }
    }

    fn text_piece(channel: Channel, text: &str) -> Piece {
        let content = Content::Text {
            channel,
            text: text.into(),
        };
        piece(content, text.len() as u32)
    }

    fn batch_with(permits: &Arc<Semaphore>, texts: &[&str]) -> OutputBatch {
        let mut batch = OutputBatch::new(FLUSH);
        for text in texts {
            batch.push(Piece {
                permit: Arc::clone(permits)
                    .try_acquire_many_owned(text.len() as u32)
                    .unwrap(),
                ..text_piece(Channel::Output, text)
            });
        }
        batch
    }

    fn text_of(body: Body) -> String {
        let Body::Chunk { text, .. } = body else {
            panic!("{body:?}")
        };
        text
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_text_is_published_at_once_and_later_text_after_the_interval() {
        let permits = Arc::new(Semaphore::new(100));
        let now = Instant::now();
        let mut batch = batch_with(&permits, &["a"]);
        assert_eq!(batch.due(now), Some(now));
        drop(batch.next_event(now).unwrap());
        assert_eq!(batch.due(now), None);
        let later = now + Duration::from_millis(30);
        batch.push(text_piece(Channel::Output, "b"));
        assert_eq!(batch.due(later), Some(now + FLUSH.interval));
        let quiet = now + Duration::from_secs(5);
        assert_eq!(batch.due(quiet), Some(quiet));
    }

    #[tokio::test(start_paused = true)]
    async fn enough_text_is_published_at_once() {
        let permits = Arc::new(Semaphore::new(100));
        let now = Instant::now();
        let mut batch = batch_with(&permits, &["a"]);
        drop(batch.next_event(now).unwrap());
        batch.push(text_piece(Channel::Output, "0123456789"));
        assert_eq!(batch.due(now), Some(now));
    }

    #[tokio::test(start_paused = true)]
    async fn collected_text_becomes_one_event_and_frees_its_room_once_published() {
        let permits = Arc::new(Semaphore::new(100));
        let mut batch = batch_with(&permits, &["one ", "two ", "three"]);
        let (body, held) = batch.next_event(Instant::now()).unwrap();
        assert_eq!(text_of(body), "one two three");
        assert_eq!(permits.available_permits(), 100 - 13);
        drop(held);
        assert_eq!(permits.available_permits(), 100);
    }

    #[tokio::test(start_paused = true)]
    async fn output_of_a_fast_backend_is_received_when_the_interval_has_passed() {
        let start = Instant::now();
        let after = |ms| start + Duration::from_millis(ms);
        let mut batch = OutputBatch::new(FLUSH);
        batch.push_awaited(text_piece(Channel::Output, "a"), start);
        drop(batch.next_event(start).unwrap());
        assert_eq!(batch.rest_end(after(10)), None);
        batch.push_awaited(text_piece(Channel::Output, "b"), after(30));
        assert_eq!(batch.rest_end(after(30)), None, "there is output");
        drop(batch.next_event(after(100)).unwrap());
        assert_eq!(batch.rest_end(after(120)), Some(after(200)));
        assert_eq!(batch.rest_end(after(200)), None);
        batch.push(text_piece(Channel::Output, "c"));
        drop(batch.next_event(after(200)).unwrap());
        assert_eq!(batch.rest_end(after(210)), Some(after(300)));
        assert!(batch.next_event(after(300)).is_none(), "it was slow");
        assert_eq!(batch.rest_end(after(300)), None);
        batch.push_awaited(text_piece(Channel::Output, "d"), after(350));
        drop(batch.next_event(after(350)).unwrap());
        assert_eq!(batch.rest_end(after(360)), None);
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_size_to_wait_for_all_output_is_received_at_once() {
        let now = Instant::now();
        let mut batch = OutputBatch::new(Flush { bytes: 0, ..FLUSH });
        for _ in 0..3 {
            batch.push_awaited(text_piece(Channel::Output, "a"), now);
            assert_eq!(batch.due(now), Some(now));
            drop(batch.next_event(now).unwrap());
            assert_eq!(batch.rest_end(now), None);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn channels_and_data_keep_their_order() {
        let mut batch = OutputBatch::new(FLUSH);
        batch.push(text_piece(Channel::Reasoning, "hm"));
        batch.push(text_piece(Channel::Output, "yes"));
        batch.push(piece(Content::Data(json!(1)), 1));
        batch.push(text_piece(Channel::Output, "!"));
        let now = Instant::now();
        let bodies: Vec<Body> = std::iter::from_fn(|| batch.next_event(now))
            .map(|(body, _)| body)
            .collect();
        let chunk = |channel, text: &str| Body::Chunk {
            text: text.into(),
            channel,
        };
        assert_eq!(
            bodies,
            [
                chunk(Channel::Reasoning, "hm"),
                chunk(Channel::Output, "yes"),
                Body::Data { data: json!(1) },
                chunk(Channel::Output, "!"),
            ]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_log_makes_events_larger_up_to_the_limit() {
        let mut batch = OutputBatch::new(FLUSH);
        let half = "x".repeat(CHUNK_MAX / 2 + 1);
        for _ in 0..3 {
            batch.push(text_piece(Channel::Output, &half));
        }
        let now = Instant::now();
        let sizes: Vec<usize> = std::iter::from_fn(|| batch.next_event(now))
            .map(|(body, _)| text_of(body).len())
            .collect();
        assert_eq!(sizes, [half.len(); 3]);
        assert!(batch.is_empty());
    }
}
