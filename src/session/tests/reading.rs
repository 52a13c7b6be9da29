//! How a session reads from a source without faults.

use std::ops::Range;

use futures_util::future::join_all;
use tokio::time::Instant;

use super::*;
use crate::budget::Budget;
use crate::config::{FEED_BYTES, FEED_STEP, HISTORY_BYTES, LIVE_CAPACITY, STEP_BYTES};
use crate::hub::Siblings;
use crate::wire::Status;

#[tokio::test(start_paused = true)]
async fn a_late_watcher_is_served_from_the_history_without_reading_the_log() {
    let memory = log_of(3);
    let hub = edge(&memory);
    let mut early = Client::open(&hub, Start::After(Seq(3))).await.unwrap();
    early.until_live().await;
    append(&memory, 20);
    early.reach(23).await;
    let before = memory.calls();
    let at_10 = memory.events(&job())[9].cursor();
    for (start, received) in [
        (Start::After(Seq(2)), 21),
        (Start::Cursor(at_10), 13),
        (Start::After(Seq(23)), 0),
    ] {
        let mut late = Client::open(&hub, start).await.unwrap();
        late.until_live().await;
        assert_eq!((late.received, late.next), (received, Seq(24)));
    }
    assert_eq!(memory.calls(), before);
}

#[tokio::test(start_paused = true)]
async fn a_thousand_watchers_of_one_job_cost_the_source_one_subscription() {
    let memory = log_of(1);
    let hub = edge(&memory);
    let watchers = (0..1000_u64).map(|i| {
        let hub = &hub;
        async move {
            let mut client = Client::from_start(hub).await;
            // Some reconnect, at different times.
            if i % 3 == 0 {
                client.reach(1 + i % 50).await;
                client = Client::open(hub, Start::Cursor(client.cursor.unwrap()))
                    .await
                    .unwrap();
            }
            client.until_end().await;
            assert!(client.gaps.is_empty() && client.next == Seq(102));
        }
    });
    let writer = async {
        settle().await;
        for i in 0..100 {
            memory.append(&job(), if i == 99 { done() } else { chunk("x") });
            settle().await;
        }
    };
    tokio::join!(join_all(watchers), writer);
    assert_eq!(
        (memory.calls().follow, memory.followers(), hub.feeds()),
        (1, 0, 1)
    );
}

/// Appends large events, one every millisecond.
async fn flood(memory: &MemoryLog, seqs: Range<u64>) {
    for _ in seqs {
        memory.append(&job(), chunk("x".repeat(1000)));
        settle().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_pauses_for_long_loses_nothing_and_needs_no_buffer() {
    let memory = log_of(1);
    let hub = edge(&memory);
    let mut slow = Client::from_start(&hub).await;
    let mut fast = Client::from_start(&hub).await;
    slow.until_live().await;
    let watch = async {
        while fast.next <= Seq(2001) {
            fast.step().await;
            let held = memory.held();
            assert!(
                held <= HISTORY_BYTES + STEP_BYTES + 4096,
                "{held} bytes are held"
            );
        }
    };
    tokio::join!(flood(&memory, 0..2000), watch);
    assert_eq!(memory.calls().replay, 0, "the fast reader needs no log");
    while slow.next <= Seq(2001) {
        slow.step().await;
        let held = memory.held();
        assert!(held <= HISTORY_BYTES + 64 * 4096, "{held} bytes are held");
    }
    assert_eq!((slow.received, slow.gaps.len()), (2001, 0));
    assert_eq!(memory.calls().replay, 1, "one replay catches up");
}

#[tokio::test(start_paused = true)]
async fn live_events_without_room_in_memory_reach_all_readers_from_the_log() {
    const EVENTS: u64 = 40;
    const READERS: usize = 5;
    // Also if the nearest replica lags.
    for lag in [0, 2] {
        let memory = log_of(1);
        let budget = Budget::new(FEED_BYTES + FEED_STEP);
        let siblings = Siblings::default();
        let hub = Hub::within(memory.clone(), Tasks::default(), budget, &siblings);
        let mut readers = Vec::new();
        for _ in 0..READERS {
            let mut reader = Client::from_start(&hub).await;
            reader.until_live().await;
            readers.push(reader);
        }
        memory.stale(lag);
        let before = memory.calls().replay;
        let write = async {
            for seq in 2..EVENTS {
                let size = if seq % 3 == 0 { 10 } else { 100_000 };
                memory.append(&job(), chunk("x".repeat(size)));
                settle().await;
            }
            // The end is large, too.
            let reason = Some("x".repeat(100_000));
            let end = Body::Done {
                usage: None,
                finish_reason: reason,
            };
            memory.append(&job(), end).cursor()
        };
        let read = join_all(readers.iter_mut().map(Client::until_end));
        let (end, _) = tokio::join!(write, read);
        for reader in &readers {
            assert_eq!((reader.received, reader.gaps.len()), (EVENTS, 0));
            assert_eq!(reader.session.status(), Some(Status::Done));
        }
        let replays = memory.calls().replay - before;
        let most = READERS * 3 * EVENTS as usize;
        assert!(replays <= most, "{replays} replays");
        memory.stale(0);
        for (start, received) in [
            (FROM_START, EVENTS),
            (Start::After(Seq(EVENTS)), 0),
            (Start::Cursor(end), 0),
        ] {
            let mut late = Client::open(&hub, start).await.unwrap();
            late.until_end().await;
            assert_eq!((late.received, late.gaps.len()), (received, 0));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_is_always_slower_than_the_job_gets_everything() {
    let memory = log_of(1);
    let hub = edge(&memory);
    let mut slow = Client::from_start(&hub).await;
    memory.page(8);
    let crawl = async {
        while slow.next <= Seq(1501) {
            slow.step().await;
            sleep(MOMENT * 20).await;
        }
    };
    tokio::join!(flood(&memory, 0..1500), crawl);
    assert_eq!((slow.received, slow.gaps.len()), (1501, 0));
}

#[tokio::test(start_paused = true)]
async fn copies_lost_by_an_overflowing_queue_are_read_from_the_log() {
    let memory = log_of(1);
    let mut client = Client::from_start(&edge(&memory)).await;
    client.until_live().await;
    append(&memory, 2 * LIVE_CAPACITY as u64 + 10);
    memory.append(&job(), done());
    client.until_end().await;
    assert_eq!(
        (client.received, client.gaps.len()),
        (2 * LIVE_CAPACITY as u64 + 12, 0)
    );
}

#[tokio::test(start_paused = true)]
async fn dropping_a_wait_at_any_point_loses_nothing() {
    for seed in 0..40 {
        let mut rng = Rng::new(seed);
        let memory = log_of(30);
        memory.page(4);
        memory.latency(MOMENT * 3);
        let hub = edge(&memory);
        let mut client = Client::from_start(&hub).await;
        let writer = async {
            for i in 0..60 {
                memory.lose(usize::from(i % 7 == 0));
                memory.append(&job(), if i == 59 { done() } else { chunk("x") });
                sleep(MOMENT * 2).await;
            }
        };
        let reader = async {
            let deadline = Instant::now() + FOREVER;
            while !client.ended {
                assert!(
                    Instant::now() < deadline,
                    "seed {seed}: stuck before {}",
                    client.next
                );
                let wait = rng.millis(8);
                if let Ok(step) = timeout(wait, client.session.next()).await {
                    client.apply(step);
                }
            }
        };
        tokio::join!(writer, reader);
        assert_eq!((client.received, client.gaps.len()), (90, 0), "seed {seed}");
    }
}
