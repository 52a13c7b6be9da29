//! How the memory budget of an edge is divided: one part for each kind of thing that clients can
//! make it hold. Handlers decide what happens to a request for which there is no room.

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

/// The budget of a process and its parts. Each is far smaller than the whole, so that no kind of
/// request takes the room of the others or of the feeds.
#[derive(Debug)]
pub(super) struct Memory {
    /// All of it.
    pub(super) whole: Budget,
    /// Feeds and their histories: half of it.
    pub(super) feeds: Budget,
    /// Bodies of requests, as they arrive.
    pub(super) bodies: Part,
    /// Submissions that wait or are under way.
    pub(super) submits: Part,
    /// Answers that are being made, or wait for their client to take them.
    pub(super) answers: Part,
    /// Events that event streams have read and not written yet.
    pub(super) streams: Budget,
}

/// Room for things of one kind. Small ones have room of their own: a flood of large ones must not
/// keep out the many that cost little.
#[derive(Clone, Debug)]
pub(super) struct Part {
    small: Budget,
    large: Budget,
}

/// Marks an answer that takes scarce room.
#[derive(Clone, Copy, Debug)]
pub(super) struct Large;

/// The room of one thing.
#[derive(Debug)]
pub(super) struct Held {
    part: Part,
    /// What a large thing reserves before its size is known.
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
            .chain([&self.whole, &self.feeds])
            .map(Budget::refused)
            .sum()
    }
}

impl Part {
    /// Room for a thing that grows to at most `largest` bytes.
    pub(super) fn begin(&self, largest: usize) -> Held {
        Held {
            part: self.clone(),
            largest,
            is_large: false,
            room: self.small.empty(),
        }
    }

    /// Room for a thing of this size. A thing that is larger than the whole part is admitted when
    /// the part is empty: whatever is within the limits of a request must be possible.
    pub(super) fn hold(&self, bytes: usize) -> Result<Held, NoRoom> {
        let mut held = self.begin(bytes);
        held.resize(bytes)?;
        Ok(held)
    }
}

impl Held {
    /// The thing has `bytes` now. When it is no longer small, it reserves at once the most that it
    /// may need: things that grow side by side would otherwise take the room from each other, and
    /// none would become whole.
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

    /// The thing is gone, and another one starts.
    pub(super) fn clear(&mut self) {
        self.room = self.part.small.empty();
        self.is_large = false;
    }

    /// The thing has `bytes` and does not grow any more.
    pub(super) fn settle(&mut self, bytes: usize) {
        self.largest = 0;
        // Giving back always fits.
        let _ = self.room.resize(bytes.min(self.room.bytes()));
    }

    /// The answer with this JSON, which holds its room until it is written.
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

    /// Marks an answer whose client is cut off sooner when it takes nothing.
    pub(super) fn mark(&self, response: &mut Response) {
        if self.is_large {
            response.extensions_mut().insert(Large);
        }
    }
}

/// Bytes that keep `owned` until the last part of them is dropped: until the socket has taken them.
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

/// About how many bytes a JSON value holds in memory besides the [`Value`] itself. Its text may
/// have a hundredth of that.
pub(super) fn weight(value: &Value) -> usize {
    /// A node of a map, which has room for 11 entries and holds at least 6 in a large map.
    const NODE: usize = 640;
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
        Value::String(text) => text.capacity(),
        Value::Array(items) => {
            items.capacity() * size_of::<Value>() + items.iter().map(weight).sum::<usize>()
        }
        Value::Object(fields) => {
            let nodes = fields.len().div_ceil(6) * NODE;
            nodes
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
    fn a_value_is_weighed_as_it_lies_in_memory() {
        assert_eq!(weight(&json!(1)), 0);
        assert_eq!(weight(&json!("x".repeat(1000))), 1000);
        // Two bytes of text and thirty-two of memory each; seven and more than six hundred.
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
    fn a_flood_of_large_things_leaves_room_for_small_ones() {
        let part = part();
        let large: Vec<_> = std::iter::from_fn(|| part.hold(2 * SMALL_BYTES).ok()).collect();
        assert_eq!(large.len(), 5);
        let _small = part.hold(SMALL_BYTES).unwrap();
        assert!(part.hold(SMALL_BYTES + 1).is_err());
        drop(large);
        part.hold(SMALL_BYTES + 1).unwrap();
    }

    #[test]
    fn things_that_grow_side_by_side_do_not_keep_each_other_from_becoming_whole() {
        let part = part();
        let mut growing: Vec<_> = (0..20).map(|_| part.begin(5 * SMALL_BYTES)).collect();
        growing.retain_mut(|held| held.resize(100).is_ok());
        growing.retain_mut(|held| held.resize(SMALL_BYTES + 1).is_ok());
        assert_eq!(growing.len(), 2);
        for held in &mut growing {
            held.resize(5 * SMALL_BYTES).unwrap();
        }
        growing[0].settle(SMALL_BYTES);
        assert_eq!(part.large.used(), 6 * SMALL_BYTES);
        assert_eq!(
            part.small.used(),
            0,
            "what became large holds no small room"
        );
    }

    #[test]
    fn the_largest_thing_is_possible_when_nothing_else_is_held() {
        let part = part();
        let all = part.hold(1000 * SMALL_BYTES).unwrap();
        assert!(part.hold(2 * SMALL_BYTES).is_err());
        drop(all);
        assert_eq!(part.large.used(), 0);
    }

    #[test]
    fn bytes_hold_their_room_until_their_last_part_is_dropped() {
        let part = part();
        let bytes = bind(vec![7; 10], part.hold(10).unwrap());
        let tail = bytes.slice(8..);
        drop(bytes);
        assert_eq!((&tail[..], part.small.used()), (&[7, 7][..], 10));
        drop(tail);
        assert_eq!(part.small.used(), 0);
    }
}
