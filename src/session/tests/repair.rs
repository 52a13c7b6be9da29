//! Faults that lose no stored event: lost, repeated and late copies, lagging replicas, outages. A
//! client notices none of them.

use tokio::time::Instant;

use super::*;
use crate::config::{PROBE_FIRST, PROBE_MAX, PROBE_SILENT, PROBE_SPREAD, REREAD_MAX};

/// A client that has everything of a log of `count` events.
async fn live(memory: &MemoryLog, count: u64) -> (Arc<Hub<MemoryLog>>, Client) {
    append(memory, count);
    let hub = edge(memory);
    let mut client = Client::from_start(&hub).await;
    client.until_live().await;
    (hub, client)
}

#[tokio::test(start_paused = true)]
async fn live_copies_lost_in_the_middle_cost_one_replay() {
    let memory = MemoryLog::default();
    let (_hub, mut client) = live(&memory, 3).await;
    let before = memory.calls();
    append(&memory, 2);
    memory.lose(3);
    append(&memory, 6);
    let begun = Instant::now();
    client.reach(11).await;
    assert!(begun.elapsed() < MOMENT, "a gap is visible at once");
    assert_eq!(memory.calls().replay, before.replay + 1);
    assert!(client.gaps.is_empty());
    assert!(memory.calls().last <= before.last + 1, "the feed's probe");
}

#[tokio::test(start_paused = true)]
async fn a_gap_is_filled_even_if_copies_arrive_faster_than_the_log_answers() {
    let memory = MemoryLog::default();
    let (_hub, mut client) = live(&memory, 3).await;
    memory.latency(MOMENT * 20);
    memory.lose(1);
    let begun = Instant::now();
    let writer = async {
        for _ in 0..500 {
            append(&memory, 1);
            sleep(MOMENT * 5).await;
        }
    };
    tokio::select! {
        () = writer => panic!("the gap was not filled while the job was active"),
        () = client.step() => assert!(client.received > 4)
    }
    assert!(begun.elapsed() < MOMENT * 50, "after {:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_lost_last_copy_is_found_when_the_job_is_silent() {
    for silence_before in [PROBE_FIRST * 2, PROBE_MAX * 20] {
        let memory = MemoryLog::default();
        let (_hub, mut client) = live(&memory, 3).await;
        client.expect_silence(silence_before).await;
        append(&memory, 1);
        client.reach(4).await;
        memory.lose(1);
        memory.append(&job(), done());
        let begun = Instant::now();
        client.until_end().await;
        let elapsed = begun.elapsed();
        assert!(elapsed <= PROBE_SILENT * 5 / 4 + MOMENT, "{elapsed:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_copy_lost_right_after_the_subscription_is_found_by_the_first_probe() {
    let memory = log_of(2);
    let mut client = Client::from_start(&edge(&memory)).await;
    client.until_live().await;
    memory.lose(1);
    memory.append(&job(), done());
    let begun = Instant::now();
    client.until_end().await;
    assert!(begun.elapsed() <= PROBE_FIRST * 5 / 4 + MOMENT);
}

#[tokio::test(start_paused = true)]
async fn a_silent_job_is_probed_less_and_less_often() {
    let memory = MemoryLog::default();
    let (_hub, mut client) = live(&memory, 3).await;
    client.expect_silence(PROBE_MAX * 9).await;
    let before = memory.calls();
    client.expect_silence(PROBE_MAX * 9).await;
    let asked = memory.calls().last - before.last;
    assert!(
        (7..=9).contains(&asked),
        "{asked} probes in nine times the longest pause"
    );
    assert_eq!(memory.calls().replay, before.replay);
}

#[tokio::test(start_paused = true)]
async fn a_disturbance_causes_a_probe_within_a_second() {
    for late_copy in [false, true] {
        let memory = MemoryLog::default();
        let (_hub, mut client) = live(&memory, 3).await;
        client.expect_silence(PROBE_MAX * 5).await;
        memory.hold(1);
        append(&memory, 1);
        memory.lose(1);
        memory.append(&job(), done());
        memory.disturb();
        let begun = Instant::now();
        settle().await;
        if late_copy {
            // A late copy proves nothing about the one after it.
            memory.release();
        }
        client.until_end().await;
        assert!(
            begun.elapsed() <= PROBE_SPREAD + MOMENT,
            "after {:?}",
            begun.elapsed()
        );
        assert!(client.gaps.is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn repeated_and_reordered_copies_are_delivered_once_and_in_order() {
    let memory = MemoryLog::default();
    let (_hub, mut client) = live(&memory, 3).await;
    memory.double(4);
    append(&memory, 4);
    memory.hold(5);
    append(&memory, 5);
    memory.release();
    client.reach(12).await;
    memory.hold(1);
    append(&memory, 2);
    client.reach(14).await;
    memory.release();
    memory.append(&job(), done());
    client.until_end().await;
    assert_eq!((client.received, client.gaps.len()), (15, 0));
}

#[tokio::test(start_paused = true)]
async fn a_stale_replica_never_causes_a_gap() {
    for stale in [1, 5, 12, 100] {
        let memory = log_of(10);
        memory.stale(stale);
        let hub = edge(&memory);
        let mut client = Client::from_start(&hub).await;
        client.until_live().await;
        for _ in 0..5 {
            memory.lose(2);
            append(&memory, 4);
            sleep(PROBE_SILENT).await;
        }
        memory.lose(0);
        client.reach(30).await;
        assert!(client.gaps.is_empty(), "lag {stale}");
        // Another edge starts while the replicas lag.
        let mut late = Client::from_start(&edge(&memory)).await;
        memory.append(&job(), done());
        late.until_end().await;
        client.until_end().await;
        assert!(late.gaps.is_empty() && late.received == 31, "lag {stale}");
    }
}

#[tokio::test(start_paused = true)]
async fn replays_that_end_early_are_continued() {
    let memory = log_of(40);
    memory.page(3);
    memory.cut(5);
    let mut client = Client::from_start(&edge(&memory)).await;
    client.until_live().await;
    assert_eq!((client.received, client.gaps.len()), (40, 0));
    assert_eq!(memory.calls().replay, 6, "no event is read twice");
}

#[tokio::test(start_paused = true)]
async fn a_session_waits_while_the_source_is_unavailable() {
    let memory = MemoryLog::default();
    let (hub, mut client) = live(&memory, 3).await;
    memory.reachable(false);
    memory.lose(3);
    append(&memory, 4);
    client.expect_silence(FOREVER).await;
    let asked = memory.calls().replay;
    client.expect_silence(FOREVER).await;
    let asked = memory.calls().replay - asked;
    assert!(
        asked <= 1 + (FOREVER.as_secs() / REREAD_MAX.as_secs()) as usize,
        "asked {asked} times"
    );
    memory.reachable(true);
    let begun = Instant::now();
    client.reach(7).await;
    assert!(begun.elapsed() <= REREAD_MAX && client.gaps.is_empty());
    // The same for a session that is reading the log.
    memory.page(2);
    memory.latency(MOMENT * 10);
    let mut late = Client::from_start(&hub).await;
    memory.append(&job(), done());
    late.reach(2).await;
    memory.reachable(false);
    client.until_end().await;
    sleep(FOREVER / 2).await;
    memory.reachable(true);
    late.until_end().await;
    assert_eq!((late.received, late.gaps.len()), (8, 0));
}

#[tokio::test(start_paused = true)]
async fn a_subscription_that_ended_is_replaced_without_loss() {
    let memory = MemoryLog::default();
    let (_hub, mut client) = live(&memory, 3).await;
    memory.close();
    append(&memory, 3);
    client.reach(6).await;
    memory.close();
    memory.reachable(false);
    append(&memory, 3);
    client.expect_silence(FOREVER).await;
    memory.reachable(true);
    client.reach(9).await;
    append(&memory, 1);
    client.reach(10).await;
    assert!(client.gaps.is_empty());
    assert_eq!(memory.followers(), 1);
}
