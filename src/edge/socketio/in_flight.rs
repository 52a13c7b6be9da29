//! What lies in the library's queue of a socket, as far as can be told from outside: it says neither how full it is nor
//! when there is room again. Pure: what was queued and how many bytes have left are arguments.

use std::collections::VecDeque;

use crate::config::FLIGHT_BYTES;

/// The packets that were queued and have not left, oldest first.
///
/// All that a socket is sent goes through here, pings aside; so once as many bytes have left the connection as the
/// oldest packets have, those packets are out of the queue. A ping makes that three bytes early, which is made up for
/// whenever the queue runs empty.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    sizes: VecDeque<usize>,
    bytes: usize,
    /// How many bytes had left the connection when it was asked last.
    seen: u64,
    /// How many of them belong to the oldest packet that has not left whole.
    part: u64,
}

impl InFlight {
    /// Whether another packet may be queued, when `packets` are allowed. One always may when nothing is in flight,
    /// however large.
    pub(super) fn has_room(&self, packets: usize) -> bool {
        self.sizes.len() < packets && self.bytes < FLIGHT_BYTES
    }

    pub(super) fn is_empty(&self) -> bool {
        self.sizes.is_empty()
    }

    /// A packet of so many bytes, as they leave the connection, was queued.
    pub(super) fn add(&mut self, size: usize) {
        self.sizes.push_back(size);
        self.bytes += size;
    }

    /// So many bytes have left the connection since it began. Says whether that is more than before.
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
        // What left beside our packets is not part of the next one.
        self.part = 0;
        more > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_is_in_flight_until_its_last_byte_has_left() {
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
    fn what_leaves_while_nothing_is_in_flight_counts_for_nothing() {
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
    fn there_is_room_up_to_so_many_packets_and_so_many_bytes_and_always_for_one() {
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
