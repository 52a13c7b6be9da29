//! Merges the text of stored events into a few large ones, for a client that wants the text and not
//! how it was written. It reads no log and does not know which events are stored.

use std::borrow::Cow;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::codec;
use super::event::{Channel, EventType};
use super::id::{JobId, Seq};
use super::stored::Stored;

/// Merges consecutive chunks of one attempt and one channel; every other event stays as it is.
///
/// ```text
///   queued  started  chunk  chunk  chunk  data  chunk  chunk  done
///     1        2       3      4      5     6      7      8     9
///     │        │       └──────┼──────┘     │      └──┬───┘     │
///     1        2         5, from_seq 3     6    8, from_seq 7  9
/// ```
///
/// Each event that it returns stands for the numbers after the previous one, up to its own, and has
/// the cursor of the event with its own number: a client resumes after it exactly. The text of
/// superseded attempts is left out: a chunk without text stands for it.
#[derive(Debug)]
pub struct Compactor {
    /// Chunks before this event are superseded.
    current_from: Seq,
    /// The longest merged text, in bytes.
    text_max: usize,
    run: Option<ChunkRun>,
}

/// Chunks that become one event.
#[derive(Debug)]
struct ChunkRun {
    first: Seq,
    last: Arc<Stored>,
    /// When the last one was written.
    ts: u64,
    channel: Channel,
    is_superseded: bool,
    text: String,
}

#[derive(Deserialize)]
struct ChunkFields<'a> {
    #[serde(borrow)]
    text: Cow<'a, str>,
    #[serde(default)]
    channel: Channel,
    ts: u64,
}

#[derive(Serialize)]
struct MergedChunk<'a> {
    #[serde(rename = "type")]
    event_type: Option<&'static str>,
    text: &'a str,
    channel: Channel,
    from_seq: Seq,
    job: &'a JobId,
    seq: Seq,
    attempt: u32,
    ts: u64,
}

impl Compactor {
    /// Merges text up to `text_max` bytes. Chunks before `current_from`, the start of the last
    /// attempt that does not continue an earlier one, are superseded.
    pub const fn new(current_from: Seq, text_max: usize) -> Self {
        Self {
            current_from,
            text_max,
            run: None,
        }
    }

    /// The first event that was added and not returned.
    pub fn first_held(&self) -> Option<Seq> {
        self.run.as_ref().map(|run| run.first)
    }

    /// How many bytes it holds of what was added and not returned.
    pub fn size(&self) -> usize {
        let size = |run: &ChunkRun| run.text.capacity() + run.last.size();
        self.run.as_ref().map_or(0, size)
    }

    /// Adds the next event; complete ones are appended to `out`.
    pub fn push(&mut self, event: Arc<Stored>, out: &mut Vec<Arc<Stored>>) {
        let chunk = (event.event_type == EventType::Chunk)
            .then(|| codec::borrowed::<ChunkFields<'_>>(event.payload()).ok())
            .flatten();
        let Some(ChunkFields { text, channel, ts }) = chunk else {
            self.flush(out);
            out.push(event);
            return;
        };
        let is_superseded = event.seq < self.current_from;
        let text = if is_superseded { "" } else { &*text };
        match &mut self.run {
            Some(run)
                if event.seq == run.last.seq.successor()
                    && event.attempt == run.last.attempt
                    && is_superseded == run.is_superseded
                    && (is_superseded || channel == run.channel)
                    && run.text.len() + text.len() <= self.text_max =>
            {
                run.text.push_str(text);
                run.ts = ts;
                run.last = Arc::clone(&event);
            }
            _ => {
                self.flush(out);
                self.run = Some(ChunkRun {
                    first: event.seq,
                    last: Arc::clone(&event),
                    ts,
                    channel,
                    is_superseded,
                    text: text.to_owned(),
                });
            }
        }
    }

    /// Appends what was added and not returned to `out`: the next event does not follow directly.
    pub fn flush(&mut self, out: &mut Vec<Arc<Stored>>) {
        out.extend(self.run.take().map(ChunkRun::into_event));
    }

    /// Forgets what was added and not returned.
    pub fn clear(&mut self) {
        self.run = None;
    }
}

impl ChunkRun {
    fn into_event(self) -> Arc<Stored> {
        let last = &self.last;
        if self.first == last.seq && !self.is_superseded {
            return self.last;
        }
        let payload = codec::to_msgpack(&MergedChunk {
            event_type: EventType::Chunk.as_str(),
            text: &self.text,
            channel: self.channel,
            from_seq: self.first,
            job: &last.job,
            seq: last.seq,
            attempt: last.attempt,
            ts: self.ts,
        })
        .unwrap_or_else(|_| unreachable!("text and numbers are always MessagePack"));
        Arc::new(last.merged(self.first, payload))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Body, Cursor, Event, JobState};
    use proptest::prelude::*;
    use serde_json::Value;

    fn job() -> JobId {
        "j".parse().unwrap()
    }

    /// What a client shows: per attempt and channel, as PROTOCOL.md says.
    #[derive(Debug, Default, PartialEq)]
    struct Shown {
        texts: Vec<(String, String)>,
        others: Vec<Value>,
    }

    impl Shown {
        /// Shows a frame, and checks that it stands for exactly the numbers after `last`.
        fn apply(&mut self, frame: &[u8], last: &mut u64) {
            let mut frame: Value = serde_json::from_slice(frame).unwrap();
            let seq = frame["seq"].as_u64().unwrap();
            let from = frame["from_seq"].as_u64().unwrap_or(seq);
            assert_eq!((from, from <= seq), (*last + 1, true), "{frame}");
            *last = seq;
            if frame["type"] != "model:chunk:v1" {
                if frame["type"] == "job:started:v1" && frame["continues"] != true {
                    self.texts.clear();
                }
                self.others.push(frame.take());
                return;
            }
            let text = frame["text"].as_str().unwrap();
            let channel = frame["channel"].as_str().unwrap();
            if text.is_empty() {
                return;
            }
            match self.texts.last_mut() {
                Some((last, shown)) if last == channel => shown.push_str(text),
                _ => self.texts.push((channel.to_owned(), text.to_owned())),
            }
        }
    }

    fn bodies() -> impl Strategy<Value = Vec<Body>> {
        let chunk = |channel| "[a-zé\"]{1,12}".prop_map(move |text| Body::Chunk { text, channel });
        let body = prop_oneof![
            8 => chunk(Channel::Output),
            3 => chunk(Channel::Reasoning),
            1 => any::<bool>().prop_map(|continues| Body::Started {
                kind: "k".parse().unwrap(), worker: "w".into(), continues,
            }),
            1 => Just(Body::Data { data: Value::from(7) }),
            1 => Just(Body::Retrying { code: "handed_back".into(), message: String::new(), delay_ms: 0 }),
        ];
        prop::collection::vec(body, 1..60)
    }

    fn log_of(bodies: Vec<Body>, as_json: bool) -> Vec<Arc<Stored>> {
        let mut attempt = 0;
        let events = bodies.into_iter().enumerate().map(|(n, body)| {
            attempt += u32::from(matches!(body, Body::Started { .. }));
            let seq = Seq(n as u64 + 1);
            let event = Event {
                body,
                job: job(),
                seq,
                attempt,
                ts: 1000 + seq.0,
            };
            let payload = if as_json {
                serde_json::to_vec(&event).unwrap().into()
            } else {
                event.encode().unwrap()
            };
            Arc::new(Stored::decode(&job(), seq.0 * 3, payload).unwrap())
        });
        events.collect()
    }

    /// The start of the last attempt that does not continue an earlier one.
    fn current_from(log: &[Arc<Stored>]) -> Seq {
        let is_fresh = |event: &&Arc<Stored>| {
            matches!(
                event.event().unwrap().body,
                Body::Started {
                    continues: false,
                    ..
                }
            )
        };
        log.iter()
            .rev()
            .find(is_fresh)
            .map_or(Seq(0), |event| event.seq)
    }

    fn compact(log: &[Arc<Stored>], current_from: Seq, text_max: usize) -> Vec<Arc<Stored>> {
        let mut compactor = Compactor::new(current_from, text_max);
        let mut out = Vec::new();
        for event in log {
            compactor.push(Arc::clone(event), &mut out);
        }
        compactor.flush(&mut out);
        out
    }

    fn folded(events: &[Arc<Stored>]) -> (Value, u32) {
        let mut state = JobState::new(job());
        events.iter().for_each(|event| state.apply(event));
        (serde_json::to_value(&state).unwrap(), state.handed_back)
    }

    fn shown<'a>(frames: impl IntoIterator<Item = &'a Arc<Stored>>) -> Shown {
        let mut shown = Shown::default();
        let mut last = 0;
        for frame in frames {
            shown.apply(frame.json(), &mut last);
        }
        shown
    }

    proptest! {
        #[test]
        fn compacted_events_have_the_text_and_the_state_of_all_events(
            bodies in bodies(), text_max in prop_oneof![Just(1_usize), 1..40_usize, Just(1 << 16)], as_json: bool,
        ) {
            let log = log_of(bodies, as_json);
            let compacted = compact(&log, current_from(&log), text_max);
            prop_assert_eq!(folded(&compacted), folded(&log));
            prop_assert_eq!(shown(&compacted), shown(&log));
            let msgpack = compacted.iter().map(|event| {
                let (cursor, event): (String, Value) = rmp_serde::from_slice(event.msgpack()).unwrap();
                (cursor.parse::<Cursor>().unwrap().seq.0, event["seq"].as_u64().unwrap())
            });
            prop_assert!(msgpack.into_iter().all(|(cursor, seq)| cursor == seq));
        }

        #[test]
        fn a_client_resumes_exactly_after_any_compacted_event(
            bodies in bodies(), text_max in 1..40_usize, cut in any::<prop::sample::Index>(),
        ) {
            let log = log_of(bodies, false);
            let compacted = compact(&log, current_from(&log), text_max);
            let cut = cut.index(compacted.len());
            let last = &compacted[cut];
            let resumed = &log[last.seq.0 as usize - 1];
            prop_assert_eq!(last.cursor(), resumed.cursor());
            let rest = &log[last.seq.0 as usize..];
            prop_assert_eq!(shown(compacted[..=cut].iter().chain(rest)), shown(&log));
        }

        #[test]
        fn no_merged_text_exceeds_the_limit(bodies in bodies(), text_max in 1..40_usize) {
            let log = log_of(bodies, false);
            let compacted = compact(&log, Seq(0), text_max);
            for pair in compacted.windows(2) {
                prop_assert!(pair[0].seq < pair[1].first_seq());
            }
            for event in compacted.iter().filter(|event| event.first_seq() < event.seq) {
                let Body::Chunk { text, .. } = event.event().unwrap().body else { unreachable!() };
                prop_assert!(text.len() <= text_max);
            }
        }
    }

    #[test]
    fn the_text_of_a_superseded_attempt_is_left_out() {
        let chunk = |text: &str, channel| Body::Chunk {
            text: text.into(),
            channel,
        };
        let started = |continues| Body::Started {
            kind: "k".parse().unwrap(),
            worker: "w".into(),
            continues,
        };
        let log = log_of(
            vec![
                started(false),
                chunk("old ", Channel::Reasoning),
                chunk("text", Channel::Output),
                started(false),
                chunk("new ", Channel::Output),
                started(true),
                chunk("text", Channel::Output),
            ],
            false,
        );
        let text = |event: &Arc<Stored>| {
            if let Body::Chunk { text, .. } = event.event().unwrap().body {
                text
            } else {
                "-".into()
            }
        };
        let compacted = compact(&log, current_from(&log), 100);
        let frames: Vec<_> = compacted
            .iter()
            .map(|event| (event.first_seq().0, event.seq.0, text(event)))
            .collect();
        let frame = |from, seq, text: &str| (from, seq, text.to_owned());
        assert_eq!(
            frames,
            [
                frame(1, 1, "-"),
                frame(2, 3, ""),
                frame(4, 4, "-"),
                frame(5, 5, "new "),
                frame(6, 6, "-"),
                frame(7, 7, "text")
            ]
        );
    }
}
