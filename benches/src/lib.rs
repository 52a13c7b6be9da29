//! The pure modules of `../../src`, and a recorded job to measure them with.

#[path = "../../src/resume/mod.rs"]
pub mod resume;
#[path = "../../src/wire/mod.rs"]
pub mod wire;

use std::sync::Arc;

use bytes::Bytes;

use resume::{Action, History, Input, Slice, Stitcher};
use wire::{Body, Channel, Event, JobId, Kind, Seq, Stored};

/// How many events the recorded job has.
const EVENTS: u64 = 500;
/// How many readers follow it in [`fan_out`].
const READERS: u64 = 100;
/// How many bytes a session reads at a time.
const READ_BYTES: usize = 64 * 1024;
/// How many items wait after a gap.
const AHEAD_MAX: usize = 256;

fn job() -> JobId {
    "recorded-job".parse().expect("a valid id")
}

/// The events of a job as a worker writes them: short pieces of text, some of them not ASCII.
pub fn recorded() -> Vec<Event> {
    let text = |seq: u64| match seq % 7 {
        0 => "déjà vu, ".to_owned(),
        1 => "\"quoted\"\n".to_owned(),
        other => "word ".repeat(other as usize),
    };
    let body = |seq| match seq {
        1 => Body::Queued {
            kind: kind(),
            input: serde_json::json!({"prompt": "Why is the sky blue?"}),
            timeout_ms: None,
            silence_timeout_ms: None,
            callback_digest: None,
        },
        2 => Body::Started {
            kind: kind(),
            worker: "worker".to_owned(),
            continues: false,
        },
        EVENTS => Body::Done {
            usage: None,
            finish_reason: None,
        },
        _ => Body::Chunk {
            text: text(seq),
            channel: Channel::Output,
        },
    };
    (1..=EVENTS)
        .map(|seq| Event {
            body: body(seq),
            job: job(),
            seq: Seq(seq),
            attempt: 1,
            ts: 1_700_000_000_000 + seq * 100,
        })
        .collect()
}

fn kind() -> Kind {
    "bench".parse().expect("a valid kind")
}

/// What a worker does with each event: encodes it.
#[inline(never)]
pub fn encode(events: &[Event]) -> Vec<Bytes> {
    let payloads = events.iter().map(|event| event.encode());
    payloads.map(|payload| payload.expect("it fits")).collect()
}

/// What an edge does with each event: decodes it, and encodes the frame that its clients share.
#[inline(never)]
pub fn decode(payloads: &[Bytes]) -> Vec<Arc<Stored>> {
    let job = job();
    let decoded = payloads.iter().zip(1..).map(|(payload, stream_seq)| {
        let stored = Stored::decode(&job, stream_seq * 3, payload.clone());
        Arc::new(stored.expect("an event of the job"))
    });
    decoded
        .inspect(|stored| assert!(!stored.websocket_text().is_empty()))
        .collect()
}

/// Joins a replay of the first half with live copies, of which some are lost, repeated or late, and
/// returns how many events were delivered.
#[inline(never)]
pub fn stitch(events: &[Arc<Stored>]) -> usize {
    let mut stitcher = Stitcher::new(Seq(1), AHEAD_MAX);
    let half = events.len() / 2;
    let mut delivered = deliver(&mut stitcher, &events[..half]);
    let mut live = events[half..].to_vec();
    for index in (1..live.len()).step_by(50) {
        live.swap(index, index - 1);
    }
    for (index, event) in live.iter().enumerate() {
        let copies = match index % 40 {
            7 => 0,
            3 => 2,
            _ => 1,
        };
        for _ in 0..copies {
            stitcher.handle(Input::Live(Arc::clone(event)));
            delivered += deliver(&mut stitcher, &events[..=half + index]);
        }
    }
    delivered
}

/// Performs the stitcher's actions, with `log` as everything that is stored.
fn deliver(stitcher: &mut Stitcher<Arc<Stored>>, log: &[Arc<Stored>]) -> usize {
    let mut delivered = 0;
    while let Some(action) = stitcher.poll() {
        match action {
            Action::Deliver(_) => delivered += 1,
            Action::Replay { from } => {
                for event in &log[from.0 as usize - 1..] {
                    stitcher.handle(Input::Replayed(Arc::clone(event)));
                }
                stitcher.handle(Input::ReplayDone);
            }
            Action::Gap { .. } | Action::End => {}
        }
    }
    delivered
}

/// Adds each event to a history from which all readers read it at once, and returns how many bytes
/// they got.
#[inline(never)]
pub fn fan_out(events: &[Arc<Stored>]) -> usize {
    let mut history = History::new(Seq(1), usize::MAX);
    let mut bytes = 0;
    let mut positions = vec![Seq(1); READERS as usize];
    for event in events {
        history.push(Arc::clone(event));
        for position in &mut positions {
            if let Slice::Items(items) = history.read(*position, READ_BYTES) {
                *position = Seq(position.0 + items.len() as u64);
                bytes += items.iter().map(|item| item.websocket_text().len()).sum::<usize>();
            }
        }
    }
    bytes
}
