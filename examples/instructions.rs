//! The work that each event causes, without I/O, on a recorded job: `scripts/instructions.sh` counts the instructions of
//! `encode`, `decode`, `stitch` and `fan_out`.

use std::sync::Arc;

use anyhow::ensure;
use bytes::Bytes;
use tailwater::resume::{Action, History, Input, Slice, Stitcher};
use tailwater::wire::{Body, Channel, Event, JobId, Kind, Seq, Stored};

/// How many events the recorded job has.
const EVENTS: u64 = 500;
/// How many readers follow it.
const READERS: usize = 100;
/// How many bytes a session reads at a time.
const READ_BYTES: usize = 64 * 1024;
/// How many items wait after a gap.
const AHEAD_MAX: usize = 256;

fn main() -> anyhow::Result<()> {
    let job: JobId = "recorded".parse()?;
    let events = recorded(&job)?;
    let payloads = encode(&events)?;
    let stored = decode(&job, &payloads)?;
    let delivered = stitch(&stored);
    ensure!(delivered == stored.len(), "{delivered} delivered");
    let frames: usize = stored
        .iter()
        .map(|event| event.websocket_text().len())
        .sum();
    let sent = fan_out(&stored);
    ensure!(sent == READERS * frames, "{sent} bytes sent");
    Ok(())
}

/// The events of a job as a worker writes them: short pieces of text, some of them not ASCII.
fn recorded(job: &JobId) -> anyhow::Result<Vec<Event>> {
    let kind: Kind = "bench".parse()?;
    let body = |seq| match seq {
        1 => Body::Started {
            kind: kind.clone(),
            worker: "worker".to_owned(),
            continues: false,
        },
        EVENTS => Body::Done {
            usage: None,
            finish_reason: None,
        },
        _ => Body::Chunk {
            text: [
                "déjà vu, ",
                "\"quoted\"\n",
                "a word ",
                "four more words here ",
            ][seq as usize % 4]
                .to_owned(),
            channel: Channel::Output,
        },
    };
    let events = (1..=EVENTS).map(|seq| Event {
        body: body(seq),
        job: job.clone(),
        seq: Seq(seq),
        attempt: 1,
        ts: 1_700_000_000_000 + seq * 100,
    });
    Ok(events.collect())
}

/// What a worker does with each event.
#[inline(never)]
fn encode(events: &[Event]) -> anyhow::Result<Vec<Bytes>> {
    events.iter().map(|event| Ok(event.encode()?)).collect()
}

/// What an edge does with each event: decodes it, and makes the frame that its clients share.
#[inline(never)]
fn decode(job: &JobId, payloads: &[Bytes]) -> anyhow::Result<Vec<Arc<Stored>>> {
    let positions = payloads.iter().zip(1..);
    positions
        .map(|(payload, position)| {
            let stored = Stored::decode(job, position * 3, payload.clone())?;
            ensure!(!stored.websocket_text().is_empty(), "an empty frame");
            Ok(Arc::new(stored))
        })
        .collect()
}

/// Joins a replay of the first half with live copies, of which some are lost, repeated or late, and
/// returns how many events were delivered.
#[inline(never)]
fn stitch(events: &[Arc<Stored>]) -> usize {
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
/// they send.
#[inline(never)]
fn fan_out(events: &[Arc<Stored>]) -> usize {
    let mut history = History::new(Seq(1), usize::MAX);
    let mut sent = 0;
    let mut positions = [Seq(1); READERS];
    for event in events {
        history.push(Arc::clone(event));
        for position in &mut positions {
            if let Slice::Items(items) = history.read(*position, READ_BYTES) {
                *position = Seq(position.0 + items.len() as u64);
                let frames = items.iter().map(|event| event.websocket_text().len());
                sent += frames.sum::<usize>();
            }
        }
    }
    sent
}
