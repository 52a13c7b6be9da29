//! How an edge divides its memory budget: one part for each kind of data that it holds for clients.
//! Handlers decide what happens to a request for which there is no room.

use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use bytes::Bytes;
use serde_json::Value;

use crate::budget::{Budget, NoRoom, Reservation};
use crate::config::{
    ANSWERS_BYTES, BODIES_BYTES, SMALL_ANSWERS_BYTES, SMALL_BODIES_BYTES, SMALL_BYTES,
    SMALL_SUBMITS_BYTES, STREAMS_BYTES, SUBMITS_BYTES,
};
use crate::wire::map_memory;

/// The budget of a process and its parts. Each is far smaller than the whole, so that no kind of
/// request takes the room of the others or of the feeds.
#[derive(Debug)]
pub(super) struct Memory {
    /// The whole budget.
    pub(super) whole: Budget,
    /// Feeds and their histories: half of it.
    pub(super) feeds: Budget,
    /// Request bodies while they arrive.
    pub(super) bodies: Part,
    /// Submissions that are waiting or in progress.
    pub(super) submits: Part,
    /// Responses that are being made or read by their client.
    pub(super) answers: Part,
    /// Events that event streams have read but not written yet.
    pub(super) streams: Budget,
}

/// Room for data of one kind. Small data has its own room, so that a flood of large data does not
/// block it.
#[derive(Clone, Debug)]
pub(super) struct Part {
    small: Budget,
    large: Budget,
}

/// Marks a response that takes scarce memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Large;

/// The room of one request or response.
#[derive(Debug)]
pub(super) struct Held {
    part: Part,
    /// How many bytes to reserve once it is large.
    largest: usize,
    is_large: bool,
    room: Reservation,
}

impl Memory {
    pub(super) fn new(whole: Budget) -> Self {
        // A small budget is divided in the same way.
        let part = |small: usize, large: usize| Part {
            small: whole.share(small.min(whole.limit() / 4)),
            large: whole.share(large.min(whole.limit() / 4)),
        };
        let bodies = part(SMALL_BODIES_BYTES, BODIES_BYTES);
        let submits = part(SMALL_SUBMITS_BYTES, SUBMITS_BYTES);
        let answers = part(SMALL_ANSWERS_BYTES, ANSWERS_BYTES);
        let feeds = whole.share(whole.limit() / 2);
        let streams = whole.share(STREAMS_BYTES.min(whole.limit() / 4));
        Self {
            whole,
            feeds,
            bodies,
            submits,
            answers,
            streams,
        }
    }

    /// How many reservations were refused.
    pub(super) fn refused(&self) -> u64 {
        let parts = [&self.bodies, &self.submits, &self.answers];
        let parts = parts
            .into_iter()
            .flat_map(|part| [&part.small, &part.large]);
        parts
            .chain([&self.whole, &self.feeds, &self.streams])
            .map(Budget::refused)
            .sum()
    }
}

impl Part {
    /// Empty room that may grow to `largest` bytes.
    pub(super) fn empty(&self, largest: usize) -> Held {
        Held {
            part: self.clone(),
            largest,
            is_large: false,
            room: self.small.empty(),
        }
    }

    /// Room for this many bytes. More than the whole part is admitted when the part is empty, so
    /// that any valid request can be served.
    pub(super) fn hold(&self, bytes: usize) -> Result<Held, NoRoom> {
        let mut held = self.empty(bytes);
        held.resize(bytes)?;
        Ok(held)
    }
}

impl Held {
    /// Sets the current size. Once it is large, reserves the maximum at once: otherwise data that
    /// grows at the same time could use up the room, and none of it would ever be complete.
    pub(super) fn resize(&mut self, bytes: usize) -> Result<(), NoRoom> {
        let limit = self.part.large.limit();
        if self.is_large {
            return self.room.resize(bytes.max(self.largest).min(limit));
        }
        if bytes <= SMALL_BYTES {
            return self.room.resize(bytes);
        }
        self.room = self
            .part
            .large
            .reserve(bytes.max(self.largest).min(limit))?;
        self.is_large = true;
        Ok(())
    }

    /// Releases the room, to start over.
    pub(super) fn clear(&mut self) {
        self.room = self.part.small.empty();
        self.is_large = false;
    }

    /// Sets the final size.
    pub(super) fn settle(&mut self, bytes: usize) {
        self.largest = 0;
        // Shrinking cannot fail.
        let _ = self.room.resize(bytes.min(self.room.bytes()));
    }

    /// A response with this JSON, which keeps the room until it is written.
    pub(super) fn respond(mut self, json: Vec<u8>) -> Response {
        self.settle(json.len());
        let mut response = Response::new(Body::empty());
        self.mark(&mut response);
        response.headers_mut().insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
        *response.body_mut() = Body::from(bind(json, self));
        response
    }

    /// Marks a large response: a client that stops reading it is cut off sooner.
    pub(super) fn mark(&self, response: &mut Response) {
        if self.is_large {
            response.extensions_mut().insert(Large);
        }
    }
}

/// Bytes that keep `owned` until their last slice is dropped: until the socket has accepted them.
pub(super) fn bind<T: Send + 'static>(bytes: Vec<u8>, owned: T) -> Bytes {
    struct Owner<T> {
        bytes: Vec<u8>,
        _owned: T,
    }
    impl<T> AsRef<[u8]> for Owner<T> {
        fn as_ref(&self) -> &[u8] {
            &self.bytes
        }
    }
    Bytes::from_owner(Owner {
        bytes,
        _owned: owned,
    })
}

/// About how many bytes a JSON value holds in memory besides the [`Value`] itself. Its JSON text
/// may be a hundred times smaller.
pub(super) fn weight(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
        Value::String(text) => text.capacity(),
        Value::Array(items) => {
            items.capacity() * size_of::<Value>() + items.iter().map(weight).sum::<usize>()
        }
        Value::Object(fields) => {
            map_memory(fields.len())
                + fields
                    .iter()
                    .map(|(name, value)| name.capacity() + weight(value))
                    .sum::<usize>()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_weight_of_a_value_is_its_size_in_memory() {
        assert_eq!(weight(&json!(1)), 0);
        assert_eq!(weight(&json!("x".repeat(1000))), 1000);
        // A zero: 2 bytes of text, 32 of memory. An object: 7, and more than 600.
        let zeros: Value = serde_json::from_str(&format!("[{}0]", "0,".repeat(9999))).unwrap();
        assert!(
            (320_000..700_000).contains(&weight(&zeros)),
            "{}",
            weight(&zeros)
        );
        let objects: Value =
            serde_json::from_str(&format!("[{}0]", "{\"\":0},".repeat(1000))).unwrap();
        assert!(
            (600_000..800_000).contains(&weight(&objects)),
            "{}",
            weight(&objects)
        );
    }

    fn part() -> Part {
        let whole = Budget::unlimited();
        Part {
            small: whole.share(2 * SMALL_BYTES),
            large: whole.share(10 * SMALL_BYTES),
        }
    }

    #[test]
    fn a_flood_of_large_data_leaves_room_for_small_data() {
        let part = part();
        let large: Vec<_> = std::iter::from_fn(|| part.hold(2 * SMALL_BYTES).ok()).collect();
        assert_eq!(large.len(), 5);
        let _small = part.hold(SMALL_BYTES).unwrap();
        assert!(part.hold(SMALL_BYTES + 1).is_err());
        drop(large);
        part.hold(SMALL_BYTES + 1).unwrap();
    }

    #[test]
    fn data_that_grows_at_the_same_time_is_completed() {
        let part = part();
        let mut growing: Vec<_> = (0..20).map(|_| part.empty(5 * SMALL_BYTES)).collect();
        growing.retain_mut(|held| held.resize(100).is_ok());
        growing.retain_mut(|held| held.resize(SMALL_BYTES + 1).is_ok());
        assert_eq!(growing.len(), 2);
        for held in &mut growing {
            held.resize(5 * SMALL_BYTES).unwrap();
        }
        growing[0].settle(SMALL_BYTES);
        assert_eq!(part.large.used(), 6 * SMALL_BYTES);
        assert_eq!(part.small.used(), 0, "large data holds no small room");
    }

    #[test]
    fn more_than_the_part_is_admitted_when_nothing_else_is_held() {
        let part = part();
        let all = part.hold(1000 * SMALL_BYTES).unwrap();
        assert!(part.hold(2 * SMALL_BYTES).is_err());
        drop(all);
        assert_eq!(part.large.used(), 0);
    }

    #[test]
    fn bytes_keep_their_room_until_their_last_slice_is_dropped() {
        let part = part();
        let bytes = bind(vec![7; 10], part.hold(10).unwrap());
        let tail = bytes.slice(8..);
        drop(bytes);
        assert_eq!((&tail[..], part.small.used()), (&[7, 7][..], 10));
        drop(tail);
        assert_eq!(part.small.used(), 0);
    }
}
