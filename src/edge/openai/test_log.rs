//! Logs of one job, for tests of what is made of them.

use serde_json::json;

use crate::wire::{Body, Event, JobId, Seq, Stored};

pub(super) fn job() -> JobId {
    "j".parse().unwrap()
}

/// The stored events of the first attempt, from the first event on.
pub(super) fn log(bodies: Vec<Body>) -> Vec<Stored> {
    let events = (1..).zip(bodies).map(|(seq, body)| Event {
        body,
        job: job(),
        seq: Seq(seq),
        attempt: 1,
        ts: 5000,
    });
    events
        .map(|event| Stored::decode(&job(), event.seq.0, event.encode().unwrap()).unwrap())
        .collect()
}

/// A log whose event `seq` has this type, but none of its fields.
pub(super) fn damaged(bodies: Vec<Body>, seq: usize, event_type: &str) -> Vec<Stored> {
    let mut log = log(bodies);
    let event = json!({"type": event_type, "job": "j", "seq": seq, "attempt": 1, "ts": 1});
    let payload = event.to_string().into_bytes().into();
    log[seq - 1] = Stored::decode(&job(), seq as u64, payload).unwrap();
    log
}
