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
pub(super) struct Flight {
    sizes: VecDeque<usize>,
    bytes: usize,
    /// How many bytes had left the connection when it was asked last.
    seen: u64,
    /// How many of them belong to the oldest packet that has not left whole.
    part: u64,
}

impl Flight {
    /// Whether another packet may be queued, when `packets` are allowed. One always may when nothing is in flight,
    /// however large.
    pub(super) fn has_room(&self, packets: usize) -> bool {
        self.sizes.len() < packets && self.bytes < FLIGHT_BYTES
    }

    pub(super) fn is_empty(&self) -> bool {
        self.sizes.is_empty()
    }

    /// A packet of so many bytes, as they leave the connection, was queued.
    pub(super) fn queued(&mut self, size: usize) {
        self.sizes.push_back(size);
        self.bytes += size;
    }

    /// So many bytes have left the connection since it began. Says whether that is more than before.
    pub(super) fn left(&mut self, sent: u64) -> bool {
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
        let mut flight = Flight::default();
        flight.queued(10);
        flight.queued(20);
        assert!(flight.left(9) && !flight.left(9));
        assert_eq!((flight.sizes.len(), flight.bytes), (2, 30));
        assert!(flight.left(10));
        assert_eq!((flight.sizes.len(), flight.bytes), (1, 20));
        assert!(flight.left(30));
        assert!(flight.is_empty());
    }

    #[test]
    fn what_leaves_while_nothing_is_in_flight_counts_for_nothing() {
        let mut flight = Flight::default();
        flight.left(1000);
        flight.queued(10);
        flight.left(1009);
        assert!(!flight.is_empty());
        flight.left(1010 + 3);
        flight.queued(10);
        flight.left(1013 + 9);
        assert!(!flight.is_empty());
    }

    #[test]
    fn there_is_room_up_to_so_many_packets_and_so_many_bytes_and_always_for_one() {
        let mut flight = Flight::default();
        for _ in 0..7 {
            assert!(flight.has_room(7));
            flight.queued(1);
        }
        assert!(!flight.has_room(7) && flight.has_room(8));
        flight.left(1);
        assert!(flight.has_room(7));
        flight.left(7);
        assert!(flight.is_empty() && flight.has_room(7));
        flight.queued(10 * FLIGHT_BYTES);
        assert!(!flight.has_room(7));
    }
}
