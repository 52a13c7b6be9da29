//! The buffer from which the Socket.IO library writes to a client's WebSocket. It grows with the largest
//! packet, perhaps to twice its size, and is kept until the connection ends. A large one counts in the
//! memory budget.

use crate::budget::{Budget, Reservation};
use crate::config::WRITE_BUFFER_FREE;

/// The memory of one client's buffer.
#[derive(Debug)]
pub(super) struct WriteBuffer {
    /// The size of the largest packet.
    largest: usize,
    reservation: Reservation,
    is_counted: bool,
}

impl WriteBuffer {
    /// A buffer that counts in this budget.
    pub(super) fn new(budget: &Budget) -> Self {
        Self {
            largest: 0,
            reservation: budget.empty(),
            is_counted: true,
        }
    }

    /// Counts a packet of this many bytes on the connection.
    pub(super) fn hold(&mut self, size: usize) {
        if size <= self.largest {
            return;
        }
        self.largest = size;
        let capacity = 2 * size;
        if capacity > WRITE_BUFFER_FREE {
            self.is_counted = self.reservation.resize(capacity).is_ok();
        }
    }

    /// Whether there was room for it. If not, the connection should end once the packet is sent.
    pub(super) const fn is_counted(&self) -> bool {
        self.is_counted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_buffer_counts_until_the_connection_ends() {
        let budget = Budget::new(100 * WRITE_BUFFER_FREE);
        let mut buffer = WriteBuffer::new(&budget);
        buffer.hold(WRITE_BUFFER_FREE / 2);
        assert_eq!(budget.used(), 0, "small");
        for (size, counted) in [(10, 20), (5, 20), (20, 40)] {
            buffer.hold(size * WRITE_BUFFER_FREE);
            assert_eq!(budget.used(), counted * WRITE_BUFFER_FREE);
            assert!(buffer.is_counted());
        }
        drop(buffer);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn a_buffer_without_room_is_not_counted() {
        let budget = Budget::new(5 * WRITE_BUFFER_FREE);
        let mut first = WriteBuffer::new(&budget);
        let mut second = WriteBuffer::new(&budget);
        first.hold(2 * WRITE_BUFFER_FREE);
        second.hold(WRITE_BUFFER_FREE);
        assert!(first.is_counted() && !second.is_counted());
        second.hold(WRITE_BUFFER_FREE / 4);
        assert!(!second.is_counted(), "it does not shrink");
        assert_eq!(budget.used(), 4 * WRITE_BUFFER_FREE);
    }
}
