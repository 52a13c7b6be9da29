//! How an edge divides its memory: a budget for each kind of data that it holds for clients.
//! Handlers decide what happens to a request for which there is no room.

use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use serde_json::Value;

use super::counters::Transport;
use crate::budget::{Budget, LimitReached, Reservation, bind};
use crate::config::{
    ANSWERS_BYTES, BODIES_BYTES, MERGED_PART, READS_BYTES, READS_PART, SMALL_ANSWERS_BYTES,
    SMALL_BODIES_BYTES, SMALL_BYTES, SMALL_SUBMITS_BYTES, SOCKETS_PART, STREAMS_BYTES,
    SUBMITS_BYTES, WATCH_BYTES, WATCHES_PART, WRITE_BUFFERS_PART,
};
use crate::wire::map_memory;

/// The budget of a process, and those within it; `config::memory` has a picture. No kind of request
/// takes the memory of the others or of the feeds.
#[derive(Debug)]
pub(super) struct Memory {
    /// The whole budget.
    pub(super) whole: Budget,
    /// What was read of the log, and is not taken by its reader. No other kind can use this part.
    pub(super) reads: Budget,
    /// Everything but reads.
    clients: Budget,
    /// Feeds and their histories: half of it.
    pub(super) feeds: Budget,
    /// Request bodies while they arrive.
    pub(super) bodies: SplitBudget,
    /// Submissions that are waiting or in progress.
    pub(super) submits: SplitBudget,
    /// Responses that are being made or read by their client.
    pub(super) answers: SplitBudget,
    /// Events that event streams have read but not written yet.
    streams: Budget,
    /// Events that the Socket.IO library has copied but not written yet.
    sockets: Budget,
    /// Large write buffers that the Socket.IO library keeps for its clients: a part of `sockets`.
    pub(super) write_buffers: Budget,
    /// Text of compacted watches that waits to be merged with more.
    pub(super) merged: Budget,
    /// Watches beyond the first of each connection.
    watches: Budget,
}

/// The budget for data of one kind. Small data has its own, so that a flood of large data does not
/// block it.
#[derive(Clone, Debug)]
pub(super) struct SplitBudget {
    small: Budget,
    large: Budget,
}

/// Marks a response that takes scarce memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Large;

/// The memory reserved for one request or response.
#[derive(Debug)]
pub(super) struct SplitReservation {
    budget: SplitBudget,
    /// How many bytes to reserve once it is large.
    largest: usize,
    is_large: bool,
    reservation: Reservation,
}

impl Memory {
    pub(super) fn new(whole: Budget) -> Self {
        let limit = whole.limit();
        let reads = whole.within(READS_BYTES.min(limit / READS_PART));
        let clients = whole.within(limit - reads.limit());
        // A small budget is divided in the same way.
        let budget = |small: usize, large: usize| SplitBudget {
            small: clients.within(small.min(limit / 4)),
            large: clients.within(large.min(limit / 4)),
        };
        let bodies = budget(SMALL_BODIES_BYTES, BODIES_BYTES);
        let submits = budget(SMALL_SUBMITS_BYTES, SUBMITS_BYTES);
        let answers = budget(SMALL_ANSWERS_BYTES, ANSWERS_BYTES);
        let feeds = clients.within(limit / 2);
        let streams = clients.within(STREAMS_BYTES.min(limit / 4));
        let sockets = clients.within(limit / SOCKETS_PART);
        let write_buffers = sockets.within(sockets.limit() / WRITE_BUFFERS_PART);
        let merged = clients.within(limit / MERGED_PART);
        let watches = clients.within(limit / WATCHES_PART);
        Self {
            whole,
            reads,
            clients,
            feeds,
            bodies,
            submits,
            answers,
            streams,
            sockets,
            write_buffers,
            merged,
            watches,
        }
    }

    /// The room of one more watch of a connection that has this many: none for the first.
    pub(super) fn reserve_watch(
        &self,
        watches: usize,
    ) -> Result<Option<Reservation>, LimitReached> {
        match watches {
            0 => Ok(None),
            _ => self.watches.reserve(WATCH_BYTES).map(Some),
        }
    }

    /// The room of events that are being written to clients over this transport.
    pub(super) const fn events(&self, transport: Transport) -> &Budget {
        match transport {
            Transport::SocketIo => &self.sockets,
            Transport::WebSocket | Transport::Sse => &self.streams,
        }
    }

    /// How many reservations were refused. Reads are not: they wait. Nor is text to be merged: it is
    /// sent at once.
    pub(super) fn refused(&self) -> u64 {
        let parts = [&self.bodies, &self.submits, &self.answers];
        let parts = parts
            .into_iter()
            .flat_map(|budget| [&budget.small, &budget.large]);
        parts
            .chain([&self.clients, &self.feeds, &self.streams, &self.sockets])
            .chain([&self.write_buffers, &self.watches])
            .map(Budget::refused)
            .sum()
    }
}

impl SplitBudget {
    /// A reservation of 0 bytes that may grow to `largest` bytes; with 0, it grows to any size, but
    /// something else may take the room before.
    pub(super) fn empty(&self, largest: usize) -> SplitReservation {
        SplitReservation {
            budget: self.clone(),
            largest,
            is_large: false,
            reservation: self.small.empty(),
        }
    }

    /// Reserves this many bytes. More than the whole budget is admitted when the budget is unused,
    /// so that any valid request can be served.
    pub(super) fn reserve(&self, bytes: usize) -> Result<SplitReservation, LimitReached> {
        let mut reservation = self.empty(bytes);
        reservation.resize(bytes)?;
        Ok(reservation)
    }
}

impl SplitReservation {
    /// Sets the current size. Once it is large, reserves the maximum at once: otherwise data that
    /// grows at the same time could use up the budget, and none of it would ever be complete.
    pub(super) fn resize(&mut self, bytes: usize) -> Result<(), LimitReached> {
        let limit = self.budget.large.limit();
        if self.is_large {
            return self.reservation.resize(bytes.max(self.largest).min(limit));
        }
        if bytes <= SMALL_BYTES {
            return self.reservation.resize(bytes);
        }
        self.reservation = self
            .budget
            .large
            .reserve(bytes.max(self.largest).min(limit))?;
        self.is_large = true;
        Ok(())
    }

    /// Releases the memory, to start over.
    pub(super) fn clear(&mut self) {
        self.reservation = self.budget.small.empty();
        self.is_large = false;
    }

    /// Sets the final size.
    pub(super) fn settle(&mut self, bytes: usize) {
        self.largest = 0;
        // Shrinking cannot fail.
        let _ = self.reservation.resize(bytes.min(self.reservation.bytes()));
    }

    /// Reserves at least this many bytes.
    pub(super) fn at_least(&mut self, bytes: usize) -> Result<(), LimitReached> {
        if bytes > self.reservation.bytes() {
            self.resize(bytes)?;
        }
        Ok(())
    }

    /// Whether it takes scarce memory.
    pub(super) const fn is_large(&self) -> bool {
        self.is_large
    }

    /// A response with this JSON, which keeps the room until it is written.
    pub(super) fn respond(mut self, mut json: Vec<u8>) -> Response {
        // What grew by doubling has up to twice as much.
        json.shrink_to_fit();
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
    use crate::config::MEMORY_MIN;
    use serde_json::json;

    #[test]
    fn all_parts_together_hold_no_more_than_the_whole_and_none_takes_that_of_reads() {
        for limit in [MEMORY_MIN, 100 * MEMORY_MIN] {
            let memory = Memory::new(Budget::new(limit));
            let parts = [
                &memory.feeds,
                &memory.streams,
                &memory.sockets,
                &memory.merged,
                &memory.watches,
                &memory.bodies.small,
                &memory.bodies.large,
                &memory.submits.small,
                &memory.submits.large,
                &memory.answers.small,
                &memory.answers.large,
            ];
            let mut held = Vec::new();
            for part in parts {
                held.extend(std::iter::from_fn(|| part.reserve(SMALL_BYTES).ok()));
            }
            let reads = memory.reads.limit();
            assert!(memory.whole.used() <= limit - reads);
            let _read = memory.reads.reserve(reads).unwrap();
            assert!(memory.reads.reserve(1).is_err());
            assert!(memory.whole.used() <= limit, "{limit}");
        }
        let smallest = Memory::new(Budget::new(MEMORY_MIN));
        assert_eq!(smallest.reads.limit(), MEMORY_MIN / READS_PART);
        let largest = Memory::new(Budget::unlimited());
        assert_eq!(largest.reads.limit(), READS_BYTES);
    }

    #[test]
    fn refusals_are_counted_and_reads_that_wait_are_not() {
        let memory = Memory::new(Budget::new(MEMORY_MIN));
        let _reads = memory.reads.reserve(memory.reads.limit()).unwrap();
        memory.reads.reserve(1).unwrap_err();
        assert_eq!(memory.refused(), 0);
        let _clients = memory.clients.reserve(memory.clients.limit()).unwrap();
        memory.streams.reserve(1).unwrap_err();
        assert_eq!(memory.refused(), 1);
    }

    #[test]
    fn write_buffers_leave_room_for_events_that_are_being_sent() {
        let memory = Memory::new(Budget::new(MEMORY_MIN));
        let sockets = memory.events(Transport::SocketIo);
        let buffers = &memory.write_buffers;
        let _held = buffers.reserve(buffers.limit()).unwrap();
        buffers.reserve(1).unwrap_err();
        assert_eq!(memory.refused(), 1);
        assert!(buffers.limit() > 0 && sockets.used() == buffers.limit());
        sockets.reserve(sockets.limit() / 2).unwrap();
    }

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

    fn budget() -> SplitBudget {
        let whole = Budget::unlimited();
        SplitBudget {
            small: whole.within(2 * SMALL_BYTES),
            large: whole.within(10 * SMALL_BYTES),
        }
    }

    #[test]
    fn a_flood_of_large_data_leaves_room_for_small_data() {
        let budget = budget();
        let large: Vec<_> = std::iter::from_fn(|| budget.reserve(2 * SMALL_BYTES).ok()).collect();
        assert_eq!(large.len(), 5);
        let _small = budget.reserve(SMALL_BYTES).unwrap();
        assert!(budget.reserve(SMALL_BYTES + 1).is_err());
        drop(large);
        budget.reserve(SMALL_BYTES + 1).unwrap();
    }

    #[test]
    fn data_that_grows_at_the_same_time_is_completed() {
        let budget = budget();
        let mut growing: Vec<_> = (0..20).map(|_| budget.empty(5 * SMALL_BYTES)).collect();
        growing.retain_mut(|reservation| reservation.resize(100).is_ok());
        growing.retain_mut(|reservation| reservation.resize(SMALL_BYTES + 1).is_ok());
        assert_eq!(growing.len(), 2);
        for reservation in &mut growing {
            reservation.resize(5 * SMALL_BYTES).unwrap();
        }
        growing[0].settle(SMALL_BYTES);
        assert_eq!(budget.large.used(), 6 * SMALL_BYTES);
        assert_eq!(
            budget.small.used(),
            0,
            "large data uses none of the small budget"
        );
    }

    #[test]
    fn what_reserves_only_its_size_leaves_the_rest_to_others() {
        let budget = budget();
        let mut growing: Vec<_> = (0..3).map(|_| budget.empty(0)).collect();
        for size in [100, SMALL_BYTES / 2, 3 * SMALL_BYTES] {
            for reservation in &mut growing {
                reservation.resize(size).unwrap();
            }
        }
        assert_eq!(budget.large.used(), 9 * SMALL_BYTES);
        assert!(growing[0].resize(5 * SMALL_BYTES).is_err());
        growing[0].at_least(100).unwrap();
        assert_eq!(budget.large.used(), 9 * SMALL_BYTES);
        growing[0].at_least(4 * SMALL_BYTES).unwrap();
        assert_eq!(budget.large.used(), 10 * SMALL_BYTES);
    }

    #[test]
    fn more_than_the_part_is_admitted_when_nothing_else_is_held() {
        let budget = budget();
        let all = budget.reserve(1000 * SMALL_BYTES).unwrap();
        assert!(budget.reserve(2 * SMALL_BYTES).is_err());
        drop(all);
        assert_eq!(budget.large.used(), 0);
    }
}
