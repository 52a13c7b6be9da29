//! A job's state, computed from its log event by event. It does not read the log.

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use super::codec;
use super::cursor::Cursor;
use super::event::{Body, Channel, Event, EventType, JobFailure, Status};
use super::failure::FailureCode;
use super::id::{JobId, Kind, Seq};
use super::limits::OUTPUT_MAX;
use super::listing::First;
use super::stored::Stored;

/// A job's state, as `GET /api/jobs/{id}/state` returns it. Times are milliseconds since the Unix
/// epoch.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct JobState {
    /// The job.
    pub id: JobId,
    /// The same, under the name that events and frames use.
    pub job: JobId,
    /// Its kind; absent when the events that name it have expired.
    pub kind: Option<Kind>,
    /// What it is doing.
    pub status: Status,
    /// The current or last attempt; 0 before the first.
    pub attempt: u32,
    /// The sequence number of its last event; 0 while it has none.
    pub seq: Seq,
    /// The cursor of its last event: a watch from here gets the events after this state.
    #[schemars(with = "Option<Cursor>")]
    pub cursor: Option<String>,
    /// The output text of the last attempt and of those that it continues. At most [`OUTPUT_MAX`]
    /// bytes.
    pub output: String,
    /// Whether `output` is incomplete: its end is missing because it is too long, or its beginning
    /// has expired.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
    /// Why it failed.
    pub error: Option<JobFailure>,
    /// What it cost, as the backend reports it.
    pub usage: Option<Value>,
    /// When it was submitted.
    pub created_at: Option<u64>,
    /// When its current attempt started.
    pub started_at: Option<u64>,
    /// When it ended.
    pub ended_at: Option<u64>,
    /// How many attempts were handed back by workers that were stopped.
    #[serde(skip)]
    pub handed_back: u32,
}

impl JobState {
    /// A job without events: it waits in the queue.
    pub fn new(id: JobId) -> Self {
        Self {
            job: id.clone(),
            id,
            kind: None,
            status: Status::Queued,
            attempt: 0,
            seq: Seq(0),
            cursor: None,
            output: String::new(),
            truncated: false,
            error: None,
            usage: None,
            created_at: None,
            started_at: None,
            ended_at: None,
            handed_back: 0,
        }
    }

    /// The largest [`size`](Self::size).
    pub const SIZE_MAX: usize = OUTPUT_MAX + Self::SIZE_MIN;
    const SIZE_MIN: usize = 4096;

    /// About how many bytes it holds in memory: its output, and an allowance for the rest.
    pub fn size(&self) -> usize {
        Self::SIZE_MIN + self.output.capacity()
    }

    /// Applies the next event. Of an event with invalid fields, only the type counts.
    pub fn apply(&mut self, stored: &Stored) {
        if stored.first_seq() > self.seq.successor() {
            // The missing events may have been output, or an attempt that replaced the earlier
            // output.
            self.output.clear();
            self.truncated = true;
        }
        self.seq = stored.seq;
        self.attempt = stored.attempt;
        self.status = stored.status();
        self.cursor = Some(stored.cursor().to_string());
        if stored.event_type == EventType::Queued {
            self.apply_queued(stored.payload());
        } else if let Ok(event) = stored.event() {
            self.apply_event(event);
        }
    }

    fn apply_queued(&mut self, payload: &[u8]) {
        if let Ok(First {
            kind: Some(kind),
            ts,
            ..
        }) = codec::from_stored(payload)
        {
            self.kind = Some(kind);
            self.created_at = Some(ts);
        }
    }

    fn apply_event(&mut self, Event { body, ts, .. }: Event) {
        match body {
            Body::Started {
                kind, continues, ..
            } => {
                self.kind = Some(kind);
                self.started_at = Some(ts);
                if !continues {
                    self.output.clear();
                    self.truncated = false;
                }
            }
            Body::Chunk {
                text,
                channel: Channel::Output,
            } => self.append_output(&text),
            Body::Retrying { code, .. } if code == FailureCode::HandedBack => self.handed_back += 1,
            Body::Done { usage, .. } => {
                self.usage = usage;
                self.ended_at = Some(ts);
            }
            Body::Failed(failure) => {
                self.error = Some(failure);
                self.ended_at = Some(ts);
            }
            Body::Cancelled {} => self.ended_at = Some(ts),
            Body::Chunk {
                channel: Channel::Reasoning,
                ..
            }
            | Body::Queued { .. }
            | Body::Data { .. }
            | Body::Retrying { .. }
            | Body::CancelRequested { .. }
            | Body::Unknown => {}
        }
    }

    fn append_output(&mut self, text: &str) {
        let room = OUTPUT_MAX - self.output.len();
        // With less room than the longest character needs, the output may have been cut before:
        // append nothing after a cut.
        let fits = if room < char::MAX_LEN_UTF8 {
            0
        } else {
            text.floor_char_boundary(room)
        };
        let needed = self.output.len() + fits;
        if needed > self.output.capacity() {
            // Automatic growth would double it beyond the limit.
            let capacity = needed.max(self.output.capacity() * 2).min(OUTPUT_MAX);
            self.output.reserve_exact(capacity - self.output.len());
        }
        self.output.push_str(&text[..fits]);
        self.truncated |= fits < text.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fold(bodies: Vec<(u32, Body)>) -> JobState {
        fold_but(&[], bodies)
    }

    /// Folds a log whose events with these numbers have expired.
    fn fold_but(expired: &[u64], bodies: Vec<(u32, Body)>) -> JobState {
        let job: JobId = "j".parse().unwrap();
        let mut state = JobState::new(job.clone());
        for (i, (attempt, body)) in bodies.into_iter().enumerate() {
            let seq = Seq(i as u64 + 1);
            if expired.contains(&seq.0) {
                continue;
            }
            let event = Event {
                body,
                job: job.clone(),
                seq,
                attempt,
                ts: seq.0 * 10,
            };
            state.apply(&Stored::decode(&job, seq.0 * 3, event.encode().unwrap()).unwrap());
        }
        state
    }

    fn started(continues: bool) -> Body {
        Body::Started {
            kind: "demo".parse().unwrap(),
            worker: "w".into(),
            continues,
        }
    }

    fn chunk(text: &str) -> Body {
        Body::Chunk {
            text: text.into(),
            channel: Channel::Output,
        }
    }

    #[test]
    fn a_later_attempt_replaces_the_output_of_an_earlier_one() {
        let state = fold(vec![
            (1, started(false)),
            (1, chunk("old")),
            (2, started(false)),
            (2, chunk("new")),
        ]);
        assert_eq!((state.output.as_str(), state.attempt), ("new", 2));
    }

    #[test]
    fn a_very_long_output_is_cut_between_characters_and_marked_truncated() {
        let half = "é".repeat(OUTPUT_MAX / 4 + 1);
        let state = fold(vec![
            (1, started(false)),
            (1, chunk(&half)),
            (1, chunk(&half)),
            (1, chunk("x")),
        ]);
        assert!(state.truncated && state.output.len() == OUTPUT_MAX && state.output.ends_with('é'));
        let state = fold(vec![
            (1, started(false)),
            (1, chunk(&half)),
            (1, chunk(&half)),
            (2, started(false)),
        ]);
        assert_eq!((state.truncated, state.output.as_str()), (false, ""));
    }

    #[test]
    fn an_output_whose_beginning_has_expired_is_marked_truncated() {
        let attempt = || {
            vec![
                (1, started(false)),
                (1, chunk("one ")),
                (1, chunk("two ")),
                (1, chunk("three")),
            ]
        };
        for (expired, output) in [
            (&[1][..], "one two three"),
            (&[1, 2], "two three"),
            (&[3], "three"),
        ] {
            let state = fold_but(expired, attempt());
            assert_eq!(
                (state.output.as_str(), state.truncated),
                (output, true),
                "without {expired:?}"
            );
        }
        // An attempt that continues does not restore the beginning.
        let continued = vec![(2, started(true)), (2, chunk(" four"))];
        let state = fold_but(&[1, 2], [attempt(), continued].concat());
        assert_eq!(
            (state.output.as_str(), state.truncated),
            ("two three four", true)
        );
    }

    #[test]
    fn a_new_attempt_is_complete_whatever_has_expired_before_it() {
        let bodies = vec![
            (1, started(false)),
            (1, chunk("one ")),
            (1, chunk("two ")),
            (2, started(false)),
            (2, chunk("new")),
        ];
        for expired in [&[1][..], &[1, 2], &[1, 2, 3], &[2, 3]] {
            let state = fold_but(expired, bodies.clone());
            assert_eq!(
                (state.output.as_str(), state.truncated),
                ("new", false),
                "without {expired:?}"
            );
        }
        let state = fold_but(&[1, 2, 3, 4], bodies);
        assert_eq!(
            (state.output.as_str(), state.truncated),
            ("new", true),
            "the start of the attempt is unknown"
        );
    }

    #[test]
    fn an_attempt_that_was_handed_back_is_counted() {
        let back = |code: &str| Body::Retrying {
            code: code.into(),
            message: String::new(),
            delay_ms: 0,
        };
        let state = fold(vec![
            (1, started(false)),
            (1, back(FailureCode::HandedBack.as_str())),
            (2, started(false)),
            (2, back("other")),
        ]);
        assert_eq!(
            (state.handed_back, state.status, state.attempt),
            (1, Status::Queued, 2)
        );
    }

    #[test]
    fn an_attempt_that_continues_adds_to_the_output() {
        let state = fold(vec![
            (1, started(false)),
            (1, chunk("one ")),
            (2, started(true)),
            (2, chunk("two")),
        ]);
        assert_eq!(state.output, "one two");
    }

    #[test]
    fn reasoning_is_not_output_and_events_set_the_times() {
        let queued = Body::queued("demo".parse().unwrap(), Value::Null);
        let thought = Body::Chunk {
            text: "hm".into(),
            channel: Channel::Reasoning,
        };
        let done = Body::Done {
            usage: None,
            finish_reason: None,
        };
        let state = fold(vec![
            (0, queued),
            (1, started(false)),
            (1, thought),
            (1, chunk("x")),
            (1, done),
        ]);
        assert_eq!((state.output.as_str(), state.status), ("x", Status::Done));
        assert_eq!(
            (state.created_at, state.started_at, state.ended_at),
            (Some(10), Some(20), Some(50))
        );
    }

    #[test]
    fn the_input_of_a_job_is_not_read() {
        // Building a value that is nested this deep fails.
        let deep = "[".repeat(100_000) + &"]".repeat(100_000);
        let job: JobId = "j".parse().unwrap();
        let queued = format!(
            r#"{{"type":"job:queued:v1","kind":"k","input":{deep},"job":"j","seq":1,"ts":7}}"#
        );
        let stored = Stored::decode(&job, 1, queued.into()).unwrap();
        assert!(stored.event().is_err());
        let mut state = JobState::new(job);
        state.apply(&stored);
        let kind = state.kind.as_ref().map(Kind::as_str);
        assert_eq!((kind, state.created_at), (Some("k"), Some(7)));
    }

    /// A job's state after the items of a case. Its events have no `job` and no `ts`.
    fn fold_items(items: &[Value]) -> JobState {
        let job: JobId = "j".parse().unwrap();
        let mut state = JobState::new(job.clone());
        for event in items.iter().filter(|item| item.get("op").is_none()) {
            let mut event = event.clone();
            event["job"] = "j".into();
            event["ts"] = 1.into();
            // Its shard has no other job.
            let stream_seq = event["seq"].as_u64().unwrap();
            let stored = rmp_serde::to_vec_named(&event).unwrap();
            state.apply(&Stored::decode(&job, stream_seq, stored.into()).unwrap());
        }
        state
    }

    /// The items with the channels `output` and `reasoning` exchanged.
    fn with_channels_exchanged(mut items: Vec<Value>) -> Vec<Value> {
        for item in &mut items {
            if item["type"] == "model:chunk:v1" {
                let is_reasoning = item["channel"] == "reasoning";
                item["channel"] = if is_reasoning { "output" } else { "reasoning" }.into();
            }
        }
        items
    }

    #[test]
    fn the_fold_agrees_with_the_cases_that_clients_run_too() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/conformance");
        let mut found = 0;
        for file in std::fs::read_dir(folder).unwrap() {
            let text = std::fs::read(file.unwrap().path()).unwrap();
            let cases: Vec<Value> = serde_json::from_slice(&text).unwrap();
            for case in cases {
                let items = case["items"].as_array().unwrap();
                let state = fold_items(items);
                // Reasoning follows the rules of the output.
                let reasoning = fold_items(&with_channels_exchanged(items.clone())).output;
                let gaps = items.iter().filter(|item| item["op"] == "missing");
                let missing =
                    |gap: &Value| gap["to"].as_u64().unwrap() - gap["from"].as_u64().unwrap() + 1;
                let view = serde_json::json!({
                    "text": state.output, "reasoning": reasoning, "status": state.status,
                    "attempt": state.attempt, "seq": state.seq, "truncated": state.truncated,
                    "missing": gaps.map(missing).sum::<u64>(), "usage": state.usage,
                    "error": state.error,
                });
                assert_eq!(view, case["view"], "{}", case["name"]);
                found += 1;
            }
        }
        assert!(found >= 16, "{found} cases");
    }
}
