//! Which messages of a job's log are its events: those that have the number after the event before them. It reads
//! nothing itself; what must be looked up, it says.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::wire::{Seq, Stored, StreamSeq};

/// Follows a log forwards, message by message, from an event that is known to be one, or from the log's beginning.
///
/// What counts is a function of the log alone, so that every reader comes to the same events: the event that follows
/// number `n` is the first one after it, by stream sequence, with the number `n + 1`. Nothing follows a job's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chain {
    /// The number that comes next.
    next: Seq,
    /// Where the event before it stands; the last place before the log's part that is read.
    known: StreamSeq,
    /// Up to where the log was read.
    read: StreamSeq,
    /// Whether nothing was accepted yet: what follows `known` may have expired.
    fresh: bool,
    /// Whether the event before was the job's end.
    ended: bool,
}

/// What a message that has the form of an event is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The next event.
    Next,
    /// Not an event of this log: undecodable.
    Undecodable,
    /// The next event if nothing stands at one of these places any more: then what lay between has expired. Otherwise
    /// undecodable.
    IfExpired([StreamSeq; 2]),
    /// The next event if something stands at this place still. Otherwise what comes before it may have expired, and nothing
    /// says what it follows: undecodable.
    IfStored(StreamSeq),
}

impl Chain {
    /// Awaits the event `next`, of a log that was read up to `read`.
    pub const fn new(next: Seq, read: StreamSeq) -> Self {
        Self {
            next,
            known: read,
            read,
            fresh: true,
            ended: false,
        }
    }

    /// Judges the next message of the log. What it said is told by [`accept`](Self::accept) or [`skip`](Self::skip).
    pub fn judge(&self, event: &Stored) -> Verdict {
        if event.stream_seq <= self.read || event.seq < self.next || self.ended {
            return Verdict::Undecodable;
        }
        let known = self.known.max(1);
        if event.seq == self.next {
            return match event.prev {
                None if self.fresh => Verdict::IfStored(known),
                Some(prev) if prev > 0 && prev < self.known => Verdict::Undecodable,
                Some(_) | None => Verdict::Next,
            };
        }
        match event.prev {
            // The log was empty when this was written: everything before had expired.
            Some(0) => Verdict::IfExpired([known, known]),
            // A log expires from its beginning on: while the event before the gap is there, there is no gap. The other
            // place is for a log of which a part was purged.
            Some(prev) if prev > self.known => Verdict::IfExpired([known, prev]),
            Some(_) | None => Verdict::Undecodable,
        }
    }

    /// The message is the next event.
    pub fn accept(&mut self, event: &Stored) {
        *self = Self::after(event);
    }

    /// Goes on from an event that was read just now.
    pub fn after(event: &Stored) -> Self {
        let ended = event.event_type.is_end();
        Self {
            fresh: false,
            ended,
            ..Self::new(event.seq.successor(), event.stream_seq)
        }
    }

    /// The message at `stream_seq` is undecodable.
    pub fn skip(&mut self, stream_seq: StreamSeq) {
        self.read = self.read.max(stream_seq);
    }

    /// Whether the broker has confirmed that nothing lies between what was read and `event`, and that has the next number.
    pub fn is_followed_by(&self, event: &Stored) -> bool {
        event.prev == Some(self.read) && event.seq == self.next && !self.ended
    }

    /// The number that comes next.
    pub const fn next_seq(&self) -> Seq {
        self.next
    }

    /// Up to where the log was read.
    pub const fn read(&self) -> StreamSeq {
        self.read
    }
}

/// The same for live copies, of which some may be lost: a copy counts once everything before it is known.
#[derive(Debug)]
pub struct LiveChain {
    chain: Chain,
    /// Copies that came before what they follow, by their places.
    waiting: BTreeMap<StreamSeq, Arc<Stored>>,
    waiting_max: usize,
    /// The last copy that came.
    seen: StreamSeq,
    /// Whether each message between the last event and `chain.read` came, and was judged by the one before it. If not, an
    /// event may be missing there that has expired since, and only the log tells.
    whole: bool,
}

/// What a live copy is.
#[derive(Debug)]
pub enum Copy {
    /// The next event.
    Next(Arc<Stored>),
    /// Not an event of this log.
    Undecodable(Arc<Stored>),
    /// What stands before it did not come: the log must be read.
    Waits,
    /// It stands in what is known already.
    Old,
}

impl LiveChain {
    /// For a log of which nothing is known. It keeps as many copies that wait.
    pub fn new(waiting_max: usize) -> Self {
        Self {
            chain: Chain::new(Seq::FIRST, 0),
            waiting: BTreeMap::new(),
            waiting_max,
            seen: 0,
            whole: true,
        }
    }

    /// Takes in a live copy.
    pub fn live(&mut self, event: Arc<Stored>) -> Copy {
        if event.stream_seq <= self.chain.read {
            return Copy::Old;
        }
        self.seen = self.seen.max(event.stream_seq);
        if self.is_judged(&event) {
            return self.follow(event);
        }
        if self.waiting.len() < self.waiting_max {
            self.waiting.insert(event.stream_seq, event);
        }
        Copy::Waits
    }

    /// Takes in that the live copy of the message at `stream_seq` is undecodable.
    pub fn undecodable(&mut self, stream_seq: StreamSeq, prev: Option<StreamSeq>) {
        if prev == Some(self.chain.read) {
            self.chain.skip(stream_seq);
        }
    }

    /// An event of the log was handed over.
    pub fn delivered(&mut self, event: &Stored) {
        if event.stream_seq > self.chain.read {
            self.chain.accept(event);
            self.whole = true;
        }
    }

    /// The log has nothing before `next` any more.
    pub fn restart(&mut self, next: Seq) {
        self.chain.next = self.chain.next.max(next);
    }

    /// The copy that waited for what is known now. Never [`Copy::Waits`] or [`Copy::Old`].
    pub fn next_waiting(&mut self) -> Option<Copy> {
        while let Some((&stream_seq, first)) = self.waiting.first_key_value() {
            let old = stream_seq <= self.chain.read;
            if !old && !self.is_judged(first) {
                break;
            }
            let first = self.waiting.remove(&stream_seq)?;
            if !old {
                return Some(self.follow(first));
            }
        }
        None
    }

    /// Up to where the log is known.
    pub const fn read(&self) -> StreamSeq {
        self.chain.read
    }

    /// The last copy that came, when not everything before it is known.
    pub fn behind(&self) -> Option<StreamSeq> {
        (self.seen > self.chain.read).then_some(self.seen)
    }

    /// The leader has nothing that follows in what was stored up to `stream_seq`: the copies from there are undecodable. Gives
    /// those that waited.
    pub fn abandon(&mut self, stream_seq: StreamSeq) -> Vec<Arc<Stored>> {
        let later = self.waiting.split_off(&stream_seq.saturating_add(1));
        self.chain.skip(stream_seq);
        self.whole = false;
        std::mem::replace(&mut self.waiting, later)
            .into_values()
            .collect()
    }

    /// Whether what is known tells what this copy is.
    fn is_judged(&self, event: &Stored) -> bool {
        event.prev == Some(self.chain.read) && (self.whole || event.seq < self.chain.next)
    }

    fn follow(&mut self, event: Arc<Stored>) -> Copy {
        if event.seq == self.chain.next && !self.chain.ended {
            self.chain.accept(&event);
            self.whole = true;
            Copy::Next(event)
        } else {
            self.chain.skip(event.stream_seq);
            Copy::Undecodable(event)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The event `seq` at `stream_seq`, stored after what stood at `prev`.
    fn event(seq: u64, stream_seq: StreamSeq, prev: Option<StreamSeq>) -> Arc<Stored> {
        let payload = format!(r#"{{"type":"x","job":"j","seq":{seq}}}"#);
        Arc::new(
            Stored::decode(&"j".parse().unwrap(), stream_seq, payload.into())
                .unwrap()
                .after(prev),
        )
    }

    #[test]
    fn only_the_number_after_the_one_before_is_the_next_event() {
        let mut chain = Chain::new(Seq(5), 100);
        let judged = |chain: &Chain, seq, prev| chain.judge(&event(seq, 120, prev));
        for wrong in [1, 4, 6, 7, 120] {
            for prev in [None, Some(50), Some(100)] {
                assert_eq!(
                    judged(&chain, wrong, prev),
                    Verdict::Undecodable,
                    "{wrong} {prev:?}"
                );
            }
        }
        for prev in [Some(0), Some(100), Some(110)] {
            assert_eq!(judged(&chain, 5, prev), Verdict::Next);
        }
        assert_eq!(judged(&chain, 5, Some(99)), Verdict::Undecodable);
        assert_eq!(
            judged(&chain, 5, None),
            Verdict::IfStored(100),
            "it may stand after what has expired"
        );
        chain.accept(&event(5, 120, None));
        assert_eq!(chain.judge(&event(5, 130, Some(120))), Verdict::Undecodable);
        assert_eq!(
            chain.judge(&event(6, 130, None)),
            Verdict::Next,
            "it was read right after the one before"
        );
        chain.skip(130);
        assert_eq!(
            chain.judge(&event(6, 130, Some(120))),
            Verdict::Undecodable,
            "it was read"
        );
        assert_eq!(chain.judge(&event(6, 140, Some(130))), Verdict::Next);
    }

    #[test]
    fn nothing_follows_the_end() {
        let payload = r#"{"type":"job:cancelled:v1","job":"j","seq":4,"attempt":1,"ts":1}"#;
        let end = Stored::decode(&"j".parse().unwrap(), 50, payload.into()).unwrap();
        let mut chain = Chain::new(Seq(4), 40);
        chain.accept(&end);
        assert_eq!(chain.judge(&event(5, 60, Some(50))), Verdict::Undecodable);
        assert!(!chain.is_followed_by(&event(5, 60, Some(50))));
    }

    #[test]
    fn a_jump_counts_only_over_what_has_expired() {
        let chain = Chain::new(Seq(5), 100);
        assert_eq!(
            chain.judge(&event(9, 200, Some(180))),
            Verdict::IfExpired([100, 180])
        );
        assert_eq!(
            chain.judge(&event(9, 200, Some(0))),
            Verdict::IfExpired([100, 100])
        );
        assert_eq!(
            chain.judge(&event(3, 200, Some(180))),
            Verdict::Undecodable,
            "never back"
        );
        assert_eq!(
            chain.judge(&event(9, 200, None)),
            Verdict::Undecodable,
            "nothing says what came before"
        );
        let mut chain = Chain::new(Seq::FIRST, 0);
        assert_eq!(
            chain.judge(&event(9, 200, Some(0))),
            Verdict::IfExpired([1, 1])
        );
        // What is undecodable may stand first after what has expired.
        chain.skip(150);
        assert_eq!(
            chain.judge(&event(9, 200, Some(150))),
            Verdict::IfExpired([1, 150])
        );
    }

    /// What came of a copy, in one letter.
    fn letter(copy: &Copy) -> char {
        match copy {
            Copy::Next(_) => 'n',
            Copy::Undecodable(_) => 'u',
            Copy::Waits => 'w',
            Copy::Old => 'o',
        }
    }

    #[test]
    fn a_live_copy_counts_once_all_before_it_is_known() {
        let mut live = LiveChain::new(8);
        let mut copies = String::new();
        for (seq, stream_seq, prev) in [
            (1, 10, 0),
            (2, 11, 10),
            (2, 11, 10),
            (9, 12, 11),
            (2, 13, 12),
            (3, 14, 13),
            (5, 16, 15),
            (9, 17, 16),
        ] {
            copies.push(letter(&live.live(event(seq, stream_seq, Some(prev)))));
        }
        assert_eq!(copies, "nnouunww");
        assert_eq!(live.behind(), Some(17));
        live.delivered(&event(4, 15, None));
        let waited: String = std::iter::from_fn(|| live.next_waiting())
            .map(|copy| letter(&copy))
            .collect();
        assert_eq!(waited, "nu");
        assert_eq!(live.behind(), None);
        live.undecodable(18, Some(17));
        assert_eq!(letter(&live.live(event(6, 19, Some(18)))), 'n');
    }

    #[test]
    fn what_the_leader_does_not_confirm_is_abandoned_and_the_next_event_still_counts() {
        let mut live = LiveChain::new(2);
        for stream_seq in [20, 21, 22, 23] {
            assert_eq!(
                letter(&live.live(event(7, stream_seq, Some(stream_seq - 1)))),
                'w'
            );
        }
        let asked = live.behind().unwrap();
        assert_eq!(letter(&live.live(event(1, 24, Some(23)))), 'w');
        assert_eq!(live.abandon(asked).len(), 2);
        assert_eq!(live.behind(), Some(24));
        // What was abandoned may have been events that expired: only the log tells whether a jump is one.
        assert_eq!(letter(&live.live(event(9, 25, Some(24)))), 'w');
        live.delivered(&event(1, 24, Some(23)));
        assert_eq!(letter(&live.next_waiting().unwrap()), 'u');
        assert_eq!((live.behind(), live.next_waiting().is_none()), (None, true));
    }
}
