//! Writes a job's events in another protocol of server-sent events. Like the stream itself, it holds
//! no event that the client does not accept.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::config::{LARGE_EVENT, PIECE_BYTES};
use crate::edge::watches::Released;
use crate::session::Position;
use crate::wire::{Seq, Stored};

/// Turns the events of one job into the frames of another protocol: a fold without I/O. What it
/// writes depends only on the events.
pub(in crate::edge) trait Translation: Send {
    /// Appends the frames of the next event, or the beginning of them.
    fn apply(&mut self, event: &Stored, out: &mut Vec<u8>);

    /// Whether frames of the last event are left. Only [`Self::more`] may follow then.
    fn has_more(&self) -> bool {
        false
    }

    /// Appends some of what is left, if anything is: about [`PIECE_BYTES`].
    fn more(&mut self, _out: &mut Vec<u8>) {}

    /// Whether what it holds takes scarce memory.
    fn is_large(&self) -> bool {
        false
    }

    /// Appends a report that these events have expired.
    fn missing(&mut self, from: Seq, to: Seq, out: &mut Vec<u8>);

    /// Appends an error and the end: no more events can be read. Appends nothing after the job's
    /// final event.
    fn close(&mut self, out: &mut Vec<u8>);

    /// Whether nothing follows: the job has ended, or an error was written before its end, and no
    /// frames are left.
    fn is_over(&self) -> bool;
}

/// A translation, and the events of the last delivery that it has not translated yet.
pub(in crate::edge) struct Translator {
    translation: Box<dyn Translation>,
    waiting: VecDeque<Arc<Stored>>,
    /// What of the delivery is translated.
    translated: Released,
}

impl Translator {
    pub(in crate::edge) fn new(translation: Box<dyn Translation>) -> Self {
        Self {
            translation,
            waiting: VecDeque::new(),
            translated: Released::default(),
        }
    }

    /// Adds the events of the next delivery. Those of the last one must be translated.
    pub(in crate::edge) fn begin(&mut self, events: Vec<Arc<Stored>>) {
        self.waiting = events.into();
        self.translated = Released::default();
    }

    /// The frames of the next events, up to about [`PIECE_BYTES`]; `None` when none wait.
    pub(in crate::edge) fn next(&mut self) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        self.translation.more(&mut out);
        while out.len() < PIECE_BYTES
            && !self.translation.has_more()
            && let Some(event) = self.waiting.pop_front()
        {
            self.translation.apply(&event, &mut out);
            self.translated.events += 1;
            self.translated.position = Some(Position::after(&event));
        }
        self.translated.holds_large = out.len() > LARGE_EVENT || self.translation.has_more();
        if out.is_empty() {
            self.waiting = VecDeque::new();
        }
        (!out.is_empty()).then_some(out)
    }

    /// Whether the last frame is not complete: nothing else may be written before it is.
    pub(in crate::edge) fn has_more(&self) -> bool {
        self.translation.has_more()
    }

    /// See [`Translation::is_large`].
    pub(in crate::edge) fn is_large(&self) -> bool {
        self.translation.is_large()
    }

    /// Whether [`Self::release`] would drop something.
    pub(in crate::edge) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Drops the events that wait. Returns what of the delivery is translated.
    pub(in crate::edge) fn release(&mut self) -> Released {
        self.waiting = VecDeque::new();
        std::mem::take(&mut self.translated)
    }

    pub(in crate::edge) fn missing(&mut self, from: Seq, to: Seq) -> Vec<u8> {
        let mut out = Vec::new();
        self.translation.missing(from, to, &mut out);
        out
    }

    pub(in crate::edge) fn close(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        self.translation.close(&mut out);
        out
    }

    /// See [`Translation::is_over`].
    pub(in crate::edge) fn is_over(&self) -> bool {
        self.translation.is_over()
    }
}

/// Appends one server-sent event.
pub(in crate::edge) fn put_block(out: &mut Vec<u8>, fields: &[(&str, &str)]) {
    for (name, value) in fields {
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value.as_bytes());
        out.push(b'\n');
    }
    out.push(b'\n');
}
