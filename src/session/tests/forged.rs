//! Messages that decode as an event but have a wrong sequence number are never delivered.

use super::*;
use crate::source::fold;

/// A log of five events, and 200 of another job: a number above its stream sequence is not decoded.
fn log() -> MemoryLog {
    let memory = MemoryLog::default();
    for _ in 0..200 {
        memory.append(&other_job(), chunk("else"));
    }
    append(&memory, 5);
    memory
}

/// Wrong numbers after five events.
const WRONG: [u64; 8] = [1, 2, 4, 5, 7, 8, 100, 200];

#[tokio::test(start_paused = true)]
async fn a_wrong_number_in_a_watched_log_is_skipped_without_a_replay() {
    for wrong in WRONG {
        let memory = log();
        let hub = edge(&memory);
        let mut early = Client::from_start(&hub).await;
        early.until_live().await;
        let before = memory.calls();
        for _ in 0..3 {
            assert!(forge(&memory, wrong, 6));
        }
        early.expect_silence(MOMENT * 100).await;
        append(&memory, 2);
        memory.append(&job(), done());
        early.until_end().await;
        assert_eq!((early.received, early.gaps), (8, vec![]), "{wrong}");
        let calls = memory.calls();
        assert_eq!(
            (calls.replay, calls.undecodable),
            (before.replay, 3),
            "{wrong}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn an_impossible_number_is_not_decoded() {
    let memory = log();
    for impossible in [0, 10_000, u64::from(u32::MAX), u64::MAX - 1, u64::MAX] {
        assert!(!forge(&memory, impossible, 6), "{impossible}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_late_watcher_skips_a_wrong_number() {
    for wrong in WRONG {
        for at_the_end in [false, true] {
            let memory = log();
            assert!(forge(&memory, wrong, 6));
            let hub = edge(&memory);
            let mut late = Client::from_start(&hub).await;
            late.reach(5).await;
            append(&memory, 1);
            memory.append(&job(), done());
            if at_the_end {
                forge(&memory, wrong, 8);
            }
            late.until_end().await;
            assert_eq!((late.received, late.gaps), (7, vec![]), "{wrong}");
            let cursor = late.cursor.unwrap();
            let mut last = Client::from_start(&edge(&memory)).await;
            last.until_end().await;
            assert_eq!((last.received, last.gaps), (7, vec![]), "{wrong}");
            for start in [Start::Cursor(cursor), Start::After(Seq(7))] {
                assert!(
                    Client::open(&edge(&memory), start)
                        .await
                        .unwrap()
                        .session
                        .had_end(),
                    "{wrong}"
                );
            }
            let state = fold(&memory, &job()).await.unwrap().unwrap();
            assert_eq!((state.seq, state.truncated), (Seq(7), false), "{wrong}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_wrong_number_among_lost_copies_is_detected_with_the_log() {
    for wrong in WRONG {
        let memory = log();
        let hub = edge(&memory);
        let mut client = Client::from_start(&hub).await;
        client.until_live().await;
        memory.lose(1);
        append(&memory, 1);
        forge(&memory, wrong, 7);
        client.reach(6).await;
        client.expect_silence(MOMENT * 100).await;
        memory.lose(1);
        forge(&memory, wrong, 7);
        forge(&memory, wrong + 1, 7);
        append(&memory, 1);
        client.reach(7).await;
        // Only copies of undecodable messages arrive, and the log holds no event after them.
        memory.lose(1);
        forge(&memory, wrong, 8);
        forge(&memory, wrong, 8);
        client.expect_silence(Duration::from_secs(4)).await;
        memory.append(&job(), done());
        client.until_end().await;
        assert_eq!((client.received, client.gaps), (8, vec![]), "{wrong}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_wrong_number_after_expired_events_is_skipped() {
    let memory = log();
    let hub = edge(&memory);
    let mut client = Client::from_start(&hub).await;
    client.until_live().await;
    memory.lose(4);
    append(&memory, 4);
    forge(&memory, 100, 10);
    memory.expire(&job(), Seq(7));
    client.reach(9).await;
    assert_eq!(client.gaps, vec![(6, 7)]);
    memory.append(&job(), done());
    client.until_end().await;
    let mut late = Client::from_start(&edge(&memory)).await;
    late.until_end().await;
    assert_eq!((late.gaps, late.received), (vec![(1, 7)], 3));
}
