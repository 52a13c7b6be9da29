//! Estimates what is in the library's queue of a socket: the library reports neither how full the
//! queue is nor when there is room again. Pure: the packets queued and the bytes sent are
//! arguments.

use std::collections::VecDeque;

use crate::config::FLIGHT_BYTES;

/// The packets that were queued but not sent yet, oldest first.
///
/// Everything that a socket sends is counted here, except pings. Once the connection has sent as
/// many bytes as the oldest packets have, those packets have left the queue. Each ping makes that
/// three bytes too early; this is corrected whenever the queue is empty.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    sizes: VecDeque<usize>,
    bytes: usize,
    /// How many bytes the connection had sent at the last check.
    seen: u64,
    /// How many of them belong to the oldest packet, which is partly sent.
    part: u64,
}

impl InFlight {
    /// Whether another packet may be queued when `packets` are allowed. If nothing is in flight, a
    /// packet of any size may be.
    pub(super) fn has_room(&self, packets: usize) -> bool {
        self.sizes.len() < packets && self.bytes < FLIGHT_BYTES
    }

    /// The size of the largest packet; 0 if nothing is in flight.
    pub(super) fn largest(&self) -> usize {
        self.sizes.iter().copied().max().unwrap_or_default()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.sizes.is_empty()
    }

    /// Adds a packet of this many bytes on the connection.
    pub(super) fn add(&mut self, size: usize) {
        self.sizes.push_back(size);
        self.bytes += size;
    }

    /// Removes the packets that were sent; `sent` is the total that the connection has sent.
    /// Returns whether it has grown.
    pub(super) fn advance(&mut self, sent: u64) -> bool {
        let more = sent.saturating_sub(self.seen);
        self.seen = sent;
        self.part += more;
        while let Some(&size) = self.sizes.front() {
            if self.part < size as u64 {
                return more > 0;
            }
            self.part -= size as u64;
            self.bytes -= size;
            self.sizes.pop_front();
        }
        // Other bytes, such as pings, are not part of the next packet.
        self.part = 0;
        more > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_is_in_flight_until_its_last_byte_is_sent() {
        let mut in_flight = InFlight::default();
        in_flight.add(10);
        in_flight.add(20);
        assert!(in_flight.advance(9) && !in_flight.advance(9));
        assert_eq!((in_flight.sizes.len(), in_flight.bytes), (2, 30));
        assert!(in_flight.advance(10));
        assert_eq!((in_flight.sizes.len(), in_flight.bytes), (1, 20));
        assert!(in_flight.advance(30));
        assert!(in_flight.is_empty());
    }

    #[test]
    fn bytes_sent_while_nothing_is_in_flight_do_not_count() {
        let mut in_flight = InFlight::default();
        in_flight.advance(1000);
        in_flight.add(10);
        in_flight.advance(1009);
        assert!(!in_flight.is_empty());
        in_flight.advance(1010 + 3);
        in_flight.add(10);
        in_flight.advance(1013 + 9);
        assert!(!in_flight.is_empty());
    }

    #[test]
    fn there_is_room_up_to_both_limits_and_always_for_one_packet() {
        let mut in_flight = InFlight::default();
        for _ in 0..7 {
            assert!(in_flight.has_room(7));
            in_flight.add(1);
        }
        assert!(!in_flight.has_room(7) && in_flight.has_room(8));
        in_flight.advance(1);
        assert!(in_flight.has_room(7));
        in_flight.advance(7);
        assert!(in_flight.is_empty() && in_flight.has_room(7));
        in_flight.add(10 * FLIGHT_BYTES);
        assert!(!in_flight.has_room(7));
    }
}
