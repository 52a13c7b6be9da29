//! The mutants: likely mistakes in `src/resume`. Each replaces a text that occurs there exactly
//! once. Mutants without a visible effect are named at the end instead.

/// One mistake.
pub(crate) struct Mutant {
    /// The mistake in words.
    pub(crate) mistake: &'static str,
    /// The file below `src/resume`.
    pub(crate) file: &'static str,
    /// The correct text, which occurs once.
    pub(crate) text: &'static str,
    /// The wrong text.
    pub(crate) instead: &'static str,
}

const fn stitcher(mistake: &'static str, text: &'static str, instead: &'static str) -> Mutant {
    Mutant {
        mistake,
        file: "stitcher.rs",
        text,
        instead,
    }
}

const fn history(mistake: &'static str, text: &'static str, instead: &'static str) -> Mutant {
    Mutant {
        mistake,
        file: "history.rs",
        text,
        instead,
    }
}

pub(crate) const MUTANTS: &[Mutant] = &[
    // ---- live copies
    stitcher(
        "a late copy is kept",
        "if seq < self.next {",
        "if seq.successor() < self.next {",
    ),
    stitcher(
        "a live copy after a gap is delivered as if there were none",
        "if seq == self.next {\n",
        "if seq >= self.next {\n",
    ),
    stitcher(
        "a live copy during a replay is dropped",
        "} else if self.ahead.len() < self.ahead_max {",
        "} else if self.state == State::Live && self.ahead.len() < self.ahead_max {",
    ),
    stitcher(
        "the number of items ahead has no limit",
        "} else if self.ahead.len() < self.ahead_max {",
        "} else if self.ahead_max > 0 {",
    ),
    stitcher(
        "the limit of items ahead is off by one",
        "self.ahead.len() < self.ahead_max",
        "self.ahead.len() <= self.ahead_max",
    ),
    stitcher(
        "a gap is noticed only by a reader that keeps items ahead",
        "if self.state == State::Live && self.next < self.stored_end {",
        "if self.state == State::Live && !self.ahead.is_empty() {",
    ),
    stitcher(
        "a copy that does not fit ahead is ignored",
        "self.stored_end = self.stored_end.max(seq.successor());\n        if seq == self.next {\n",
        "if self.ahead.len() < self.ahead_max {\n            self.stored_end = self.stored_end.max(seq.successor());\n        }\n        \
         if seq == self.next {\n",
    ),
    stitcher(
        "a live copy itself does not count as stored",
        "self.stored_end = self.stored_end.max(seq.successor());\n        if seq == self.next {\n",
        "self.stored_end = self.stored_end.max(seq);\n        if seq == self.next {\n",
    ),
    stitcher(
        "items ahead are not delivered when a live copy fills the gap",
        "self.deliver_ahead();\n        } else if",
        "} else if",
    ),
    // ---- replays
    stitcher(
        "items ahead are not delivered when a replay reaches them",
        "self.deliver(item);\n            self.deliver_ahead();\n        }\n    }\n\n    /// Advances",
        "self.deliver(item);\n        }\n    }\n\n    /// Advances",
    ),
    stitcher(
        "an item that arrived live is delivered again by the replay",
        "if seq == self.next && self.state != State::Ended {",
        "if self.state != State::Ended {",
    ),
    stitcher(
        "items that the replay skips are still expected",
        "self.skip_to(seq);\n        if seq",
        "if seq",
    ),
    stitcher(
        "items that the replay skips are not reported as a gap",
        "self.out.push_back(Action::Gap {\n                from: self.next,\n                to: to.before(),\n            });\n",
        "",
    ),
    stitcher(
        "a second replay is requested while one is running",
        "self.state = State::Replaying { stale: false };\n",
        "",
    ),
    stitcher(
        "every replay begins stale, so that another one always follows",
        "self.state = State::Replaying { stale: false };",
        "self.state = State::Replaying { stale: true };",
    ),
    stitcher(
        "a replay starts after the gap",
        "Action::Replay { from: self.next }",
        "Action::Replay { from: self.stored_end }",
    ),
    stitcher(
        "a replay that is done counts as complete",
        "stale || self.next < self.stored_end",
        "stale",
    ),
    stitcher(
        "a loss during a replay is ignored when the replay is done",
        "stale || self.next < self.stored_end",
        "self.next < self.stored_end",
    ),
    stitcher(
        "a replay is never enough",
        "let behind = stale || self.next < self.stored_end;",
        "let behind = stale || self.next <= self.stored_end;",
    ),
    stitcher(
        "the end of a replay that was not running makes a reader live",
        "            (State::Live | State::Behind, Input::ReplayDone)\n            |",
        "            (State::Behind, Input::ReplayDone) => self.state = State::Live,\n            \
         (State::Live, Input::ReplayDone)\n            |",
    ),
    stitcher(
        "a reader that starts at the end of the log reads it",
        "Self {\n            state: State::Live,\n            ..Self::new(next, ahead_max)\n        }",
        "Self::new(next, ahead_max)",
    ),
    // ---- lags
    stitcher(
        "a lag during a replay is ignored, since the log is being read already",
        "(State::Replaying { .. }, Input::LiveLagged) => {\n                self.state = State::Replaying { stale: true }\n            }",
        "(State::Replaying { .. }, Input::LiveLagged) => {}",
    ),
    stitcher(
        "a lag during a replay requests another one at once",
        "(State::Replaying { .. }, Input::LiveLagged) => {\n                self.state = State::Replaying { stale: true }\n            }",
        "(State::Replaying { .. }, Input::LiveLagged) => self.state = State::Behind,",
    ),
    stitcher(
        "a lag is ignored until the next copy shows the gap",
        "(State::Live, Input::LiveLagged) => self.state = State::Behind,",
        "(State::Live, Input::LiveLagged) => {}",
    ),
    // ---- gaps
    stitcher(
        "an item that arrived live is reported as a gap because it expired",
        "let to = self.first_ahead().map_or(seq, |ahead| ahead.min(seq));",
        "let to = seq;",
    ),
    stitcher(
        "a gap is reported one item too long",
        "to: to.before(),",
        "to,",
    ),
    stitcher(
        "an item that may still arrive is part of the gap",
        "=> self.skip_to(before),",
        "=> self.skip_to(before.successor()),",
    ),
    stitcher(
        "a proven gap is never reported",
        "=> self.skip_to(before),",
        "=> drop(before),",
    ),
    stitcher(
        "a replay proves a gap that contains later items",
        "(self.next < self.requested_end).then_some(self.requested_end)",
        "(self.next < self.stored_end).then_some(self.stored_end)",
    ),
    stitcher(
        "a gap is proven in parts, with a replay for each item",
        "(self.next < self.requested_end).then_some(self.requested_end)",
        "(self.next < self.requested_end).then(|| self.first_ahead().map_or(self.requested_end, |ahead| ahead.min(self.requested_end)))",
    ),
    stitcher(
        "no gap is proven after the first replay",
        "self.requested_end = self.stored_end;\n",
        "",
    ),
    // ---- the end
    stitcher(
        "the end is reported before the end item",
        "self.out.push_back(Action::Deliver(item));\n        if end {\n            self.out.push_back(Action::End);\n",
        "if end {\n            self.out.push_back(Action::End);\n        }\n        self.out.push_back(Action::Deliver(item));\n        \
         if end {\n",
    ),
    stitcher(
        "the end is not reported",
        "self.out.push_back(Action::End);\n",
        "",
    ),
    stitcher(
        "a reader that has ended reads the log again",
        "(State::Ended, _) => {}",
        "(State::Ended, Input::LiveLagged) => self.state = State::Behind,\n            \
         (State::Ended, Input::ReplayDone) => {}",
    ),
    stitcher(
        "a reader that has ended keeps items ahead",
        "self.ahead.clear();\n",
        "",
    ),
    stitcher(
        "gaps after the end are reported",
        "while self.next < seq && self.state != State::Ended {",
        "while self.next < seq {",
    ),
    stitcher(
        "an item after the end is delivered",
        "if seq == self.next && self.state != State::Ended {",
        "if seq == self.next {",
    ),
    // ---- the history
    history(
        "an item that is larger than the history is not kept",
        "&& self.items.len() > 1",
        "&& !self.items.is_empty()",
    ),
    history(
        "an evicted item still counts",
        "self.bytes = self.bytes.saturating_sub(old.size());",
        "drop(old);",
    ),
    history(
        "one item too many is evicted",
        "while self.bytes > bytes_max",
        "while self.bytes >= bytes_max",
    ),
    history(
        "a reader of the evicted item gets the next one",
        "\n        if from < first {",
        "\n        if from.successor() < first {",
    ),
    history(
        "every reader gets the first item",
        ".skip(skip)",
        ".skip(skip.min(0))",
    ),
    history(
        "a history that restarts keeps the items before the gap",
        "*self = Self::new(next, self.bytes_max);",
        "self.next = next;",
    ),
    history(
        "a history accepts any item",
        "assert!(item.seq() == self.next, \"a history has no gap\");",
        "",
    ),
    history(
        "a read with little room returns nothing",
        "bytes_max.max(1)",
        "bytes_max",
    ),
    history(
        "an item is found one index too far",
        "checked_sub(self.first_seq().0)?",
        "checked_sub(self.first_seq().before().0)?",
    ),
    history(
        "a history seems to start one item later",
        "Seq(self.next.0 - self.items.len() as u64)",
        "Seq(self.next.0 - self.items.len().saturating_sub(1) as u64)",
    ),
];

// Mutants that no test can catch, because the behaviour stays the same:
// - not raising `stored_end` in `handle_replayed` or in `skip_to`: `next` is raised there, and `stored_end` is
//   only ever compared with `next` or raised beyond it;
// - not checking for the end in `deliver_ahead`: `deliver` clears `ahead` at the end;
// - `seq >= self.next` in `handle_replayed`: `next` is at or beyond `seq` after `skip_to`.
