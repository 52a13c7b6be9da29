//! The mutants: what a programmer might have got wrong in `src/resume`, each as a text that stands there once and what
//! is put in its place. Mutants that change nothing anybody can see are not listed; they are named at the end.

/// One mistake.
pub(crate) struct Mutant {
    /// What was got wrong.
    pub(crate) mistake: &'static str,
    /// The file below `src/resume`.
    pub(crate) file: &'static str,
    /// What stands there, once.
    pub(crate) text: &'static str,
    /// What the mistaken programmer wrote.
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

/// All of them.
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
        "a live copy during a replay is thrown away",
        "} else if self.ahead.len() < self.ahead_max {",
        "} else if self.state == State::Live && self.ahead.len() < self.ahead_max {",
    ),
    stitcher(
        "what waits ahead has no bound",
        "} else if self.ahead.len() < self.ahead_max {",
        "} else if self.ahead_max > 0 {",
    ),
    stitcher(
        "the bound of what waits ahead is off by one",
        "self.ahead.len() < self.ahead_max",
        "self.ahead.len() <= self.ahead_max",
    ),
    stitcher(
        "a gap is noticed only by a reader that keeps items ahead",
        "if self.state == State::Live && self.next < self.known {",
        "if self.state == State::Live && !self.ahead.is_empty() {",
    ),
    stitcher(
        "a copy that does not fit ahead is forgotten as if it had never come",
        "self.known = self.known.max(seq.successor());\n        if seq == self.next {\n",
        "if self.ahead.len() < self.ahead_max {\n            self.known = self.known.max(seq.successor());\n        }\n        \
         if seq == self.next {\n",
    ),
    stitcher(
        "the number of a live copy itself is not taken for stored",
        "self.known = self.known.max(seq.successor());\n        if seq == self.next {\n",
        "self.known = self.known.max(seq);\n        if seq == self.next {\n",
    ),
    stitcher(
        "what waits ahead is not looked at when live itself fills the gap",
        "self.deliver_ahead();\n        } else if",
        "} else if",
    ),
    // ---- replays
    stitcher(
        "what waits ahead is not looked at when the replay comes to it",
        "self.deliver(item);\n            self.deliver_ahead();\n        }\n    }\n\n    /// Advances",
        "self.deliver(item);\n        }\n    }\n\n    /// Advances",
    ),
    stitcher(
        "the replay's copy of what live has brought is handed over again",
        "if seq == self.next && self.state != State::Ended {",
        "if self.state != State::Ended {",
    ),
    stitcher(
        "what the replay skips is waited for",
        "self.skip_to(seq);\n        if seq",
        "if seq",
    ),
    stitcher(
        "the reader jumps over what the replay skips and tells nobody",
        "self.out.push_back(Action::Gap {\n                from: self.next,\n                to: to.before(),\n            });\n",
        "",
    ),
    stitcher(
        "a second replay is asked for while one is under way",
        "self.state = State::Replaying { stale: false };\n",
        "",
    ),
    stitcher(
        "every replay begins stale, so that there is always another",
        "self.state = State::Replaying { stale: false };",
        "self.state = State::Replaying { stale: true };",
    ),
    stitcher(
        "a replay starts after the gap",
        "Action::Replay { from: self.next }",
        "Action::Replay { from: self.known }",
    ),
    stitcher(
        "a replay that is done is taken for all there is",
        "stale || self.next < self.known",
        "stale",
    ),
    stitcher(
        "what was lost while a replay was under way is forgotten when it is done",
        "stale || self.next < self.known",
        "self.next < self.known",
    ),
    stitcher(
        "a replay is never enough",
        "let behind = stale || self.next < self.known;",
        "let behind = stale || self.next <= self.known;",
    ),
    stitcher(
        "a replay that is done although none was under way makes a reader live",
        "            (State::Live | State::Behind, Input::ReplayDone)\n            |",
        "            (State::Behind, Input::ReplayDone) => self.state = State::Live,\n            \
         (State::Live, Input::ReplayDone)\n            |",
    ),
    stitcher(
        "who begins at the end of the log reads it nevertheless",
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
        "a lag during a replay asks for another one at once",
        "(State::Replaying { .. }, Input::LiveLagged) => {\n                self.state = State::Replaying { stale: true }\n            }",
        "(State::Replaying { .. }, Input::LiveLagged) => self.state = State::Behind,",
    ),
    stitcher(
        "a lag is ignored until the next copy shows the gap",
        "(State::Live, Input::LiveLagged) => self.state = State::Behind,",
        "(State::Live, Input::LiveLagged) => {}",
    ),
    // ---- what is gone
    stitcher(
        "what arrived live is told missing because the log has lost it",
        "let to = self.ahead().map_or(seq, |ahead| ahead.min(seq));",
        "let to = seq;",
    ),
    stitcher(
        "a gap is reported one item too long",
        "to: to.before(),",
        "to,",
    ),
    stitcher(
        "what may still come is taken for gone",
        "=> self.skip_to(before),",
        "=> self.skip_to(before.successor()),",
    ),
    stitcher(
        "what is gone is never told",
        "=> self.skip_to(before),",
        "=> drop(before),",
    ),
    stitcher(
        "a replay proves gone what was stored after it began",
        "(self.next < self.asked).then_some(self.asked)",
        "(self.next < self.known).then_some(self.known)",
    ),
    stitcher(
        "a gap is proven bit by bit, with a replay for each item",
        "(self.next < self.asked).then_some(self.asked)",
        "(self.next < self.asked).then(|| self.ahead().map_or(self.asked, |ahead| ahead.min(self.asked)))",
    ),
    stitcher(
        "after the first replay nothing is ever proven gone",
        "self.asked = self.known;\n",
        "",
    ),
    // ---- the end
    stitcher(
        "the end is told before the end item",
        "self.out.push_back(Action::Deliver(item));\n        if end {\n            self.out.push_back(Action::End);\n",
        "if end {\n            self.out.push_back(Action::End);\n        }\n        self.out.push_back(Action::Deliver(item));\n        \
         if end {\n",
    ),
    stitcher(
        "the end is not told",
        "self.out.push_back(Action::End);\n",
        "",
    ),
    stitcher(
        "who has ended asks the log again",
        "(State::Ended, _) => {}",
        "(State::Ended, Input::LiveLagged) => self.state = State::Behind,\n            \
         (State::Ended, Input::ReplayDone) => {}",
    ),
    stitcher(
        "who has ended keeps what was waiting",
        "self.ahead.clear();\n",
        "",
    ),
    stitcher(
        "gaps after the end are reported",
        "while self.next < seq && self.state != State::Ended {",
        "while self.next < seq {",
    ),
    stitcher(
        "an item behind the end is handed over",
        "if seq == self.next && self.state != State::Ended {",
        "if seq == self.next {",
    ),
    // ---- the history
    history(
        "an item that is too large for the history is not kept",
        "&& self.items.len() > 1",
        "&& !self.items.is_empty()",
    ),
    history(
        "what was evicted still counts",
        "self.bytes = self.bytes.saturating_sub(old.size());",
        "drop(old);",
    ),
    history(
        "one item too many is evicted",
        "while self.bytes > bytes_max",
        "while self.bytes >= bytes_max",
    ),
    history(
        "a reader of the item just evicted is served the next one",
        "\n        if from < first {",
        "\n        if from.successor() < first {",
    ),
    history(
        "every reader is served from the beginning",
        ".skip(skip)",
        ".skip(skip.min(0))",
    ),
    history(
        "a history that begins again keeps what was before the gap",
        "*self = Self::new(next, self.bytes_max);",
        "self.next = next;",
    ),
    history(
        "a history takes what is not its turn",
        "assert!(item.seq() == self.next, \"a history has no gap\");",
        "",
    ),
    history(
        "a reader with little room is told that there is nothing",
        "bytes_max.max(1)",
        "bytes_max",
    ),
    history(
        "an item is looked for one place too far",
        "checked_sub(self.first_seq().0)?",
        "checked_sub(self.first().before().0)?",
    ),
];

// Mutants that no test can catch, since nothing about the machine changes:
// - not raising `known` in `handle_replayed` or in `skip_to`: `next` is raised there, and `known` is only ever compared
//   with `next` or raised to what lies beyond it;
// - not looking for the end in `deliver_ahead`: `deliver` leaves nothing ahead when it has ended;
// - `seq >= self.next` in `handle_replayed`: `skip_to` has left `next` at or beyond `seq`.
