//! When a WebSocket client is pinged, and when it must have sent something. It has no clock.

use crate::config::{PING_EVERY, PONG_WAIT};
use crate::edge::alarm::AlarmTime;

/// Whether a client is still there.
#[derive(Debug)]
pub(super) struct Liveness {
    ping_at: AlarmTime,
    /// When the client must have sent something, after a ping.
    pong_by: Option<AlarmTime>,
}

/// What is due.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// To ping the client.
    Ping,
    /// To disconnect: the client has not answered.
    Disconnect,
}

impl Liveness {
    /// A client that connects at `now`.
    pub(super) fn new(now: AlarmTime) -> Self {
        Self {
            ping_at: now + PING_EVERY,
            pong_by: None,
        }
    }

    /// The client has sent something, or accepted data after a while.
    pub(super) fn heard(&mut self) {
        self.pong_by = None;
    }

    /// What is due at `now`.
    pub(super) fn check(&mut self, now: AlarmTime) -> Option<Due> {
        if self.pong_by.is_some_and(|by| by <= now) {
            return Some(Due::Disconnect);
        }
        if self.ping_at > now {
            return None;
        }
        self.ping_at = now + PING_EVERY;
        self.pong_by.get_or_insert(now + PONG_WAIT);
        Some(Due::Ping)
    }

    /// When to check next.
    pub(super) fn due(&self) -> AlarmTime {
        self.pong_by.map_or(self.ping_at, |by| by.min(self.ping_at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_client_is_pinged_and_disconnected_when_it_does_not_answer() {
        let begin = AlarmTime::BEGIN;
        let mut liveness = Liveness::new(begin);
        assert_eq!(liveness.check(begin + PING_EVERY / 2), None);
        assert_eq!(liveness.due(), begin + PING_EVERY);
        assert_eq!(liveness.check(begin + PING_EVERY), Some(Due::Ping));
        assert_eq!(liveness.due(), begin + PING_EVERY + PONG_WAIT);
        liveness.heard();
        assert_eq!(liveness.due(), begin + PING_EVERY * 2);
        assert_eq!(liveness.check(begin + PING_EVERY * 2), Some(Due::Ping));
        let late = begin + PING_EVERY * 2 + PONG_WAIT;
        assert_eq!(liveness.check(late), Some(Due::Disconnect));
    }
}
