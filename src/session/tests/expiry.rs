//! Expired events: a session reports them as a gap, unless the feed's history still has them.

use super::*;
use crate::config::{FEED_BYTES, FEED_LINGER, FEED_STEP};
use crate::hub::Siblings;
use crate::wire::Event;

#[tokio::test(start_paused = true)]
async fn an_expired_prefix_is_reported_as_a_gap() {
    for (after, expired, gaps) in [
        (0, 4, vec![(1, 4)]),
        (2, 4, vec![(3, 4)]),
        (4, 4, vec![]),
        (6, 4, vec![]),
    ] {
        let memory = log_of(10);
        memory.expire(&job(), Seq(expired));
        let mut client = Client::open(&edge(&memory), Start::After(Seq(after)))
            .await
            .unwrap();
        client.until_live().await;
        memory.append(&job(), done());
        client.until_end().await;
        assert_eq!((client.next, client.gaps), (Seq(12), gaps), "after {after}");
    }
}

#[tokio::test(start_paused = true)]
async fn events_that_expire_during_a_replay_are_reported_as_a_gap() {
    let memory = log_of(30);
    memory.page(4);
    let mut client = Client::from_start(&edge(&memory)).await;
    client.reach(4).await;
    memory.expire(&job(), Seq(17));
    client.until_live().await;
    assert_eq!(
        (client.next, client.received, client.gaps),
        (Seq(31), 17, vec![(5, 17)])
    );
}

#[tokio::test(start_paused = true)]
async fn events_that_expired_from_the_log_are_read_from_the_history() {
    let memory = log_of(30);
    memory.page(4);
    let hub = edge(&memory);
    let mut client = Client::from_start(&hub).await;
    client.reach(4).await;
    append(&memory, 2);
    settle().await;
    memory.expire(&job(), Seq(32));
    client.until_live().await;
    assert_eq!((client.next, &client.gaps), (Seq(33), &vec![(5, 29)]));
    append(&memory, 1);
    client.reach(33).await;
}

#[tokio::test(start_paused = true)]
async fn lost_copies_whose_events_expire_are_reported_as_a_gap() {
    let memory = log_of(3);
    let hub = edge(&memory);
    let mut client = Client::from_start(&hub).await;
    client.until_live().await;
    memory.reachable(false);
    memory.lose(4);
    append(&memory, 4);
    client.expect_silence(FOREVER).await;
    memory.expire(&job(), Seq(5));
    memory.reachable(true);
    append(&memory, 1);
    client.reach(8).await;
    assert_eq!((client.received, client.gaps.clone()), (6, vec![(4, 5)]));
    // Later clients get the same gap, from this feed and from a new one.
    let mut same = Client::open(&hub, Start::After(Seq(3))).await.unwrap();
    same.reach(8).await;
    assert_eq!(same.gaps, client.gaps);
    drop((client, same));
    sleep(FEED_LINGER * 2).await;
    let mut new = Client::open(&hub, Start::After(Seq(3))).await.unwrap();
    new.reach(8).await;
    assert_eq!(new.gaps, vec![(4, 5)]);
}

#[tokio::test(start_paused = true)]
async fn a_cursor_whose_event_expired_continues_after_it() {
    let memory = log_of(10);
    let at_3 = memory.events(&job())[2].cursor();
    for (expired, gaps) in [(3, vec![]), (6, vec![(4, 6)])] {
        memory.expire(&job(), Seq(expired));
        let mut client = Client::open(&edge(&memory), Start::Cursor(at_3))
            .await
            .unwrap();
        client.until_live().await;
        assert_eq!((client.next, client.gaps), (Seq(11), gaps));
    }
}

#[tokio::test(start_paused = true)]
async fn a_cursor_of_a_log_that_expired_as_a_whole_is_refused() {
    let memory = log_of(10);
    let cursors: Vec<_> = memory
        .events(&job())
        .iter()
        .map(|event| event.cursor())
        .collect();
    memory.expire(&job(), Seq(10));
    for begun in 0..12 {
        for cursor in &cursors {
            let refused = Client::open(&edge(&memory), Start::Cursor(*cursor))
                .await
                .unwrap_err();
            assert!(
                matches!(refused, SessionError::CursorNotInLog),
                "{begun}, {}: {refused}",
                cursor.seq
            );
        }
        let job = job();
        let seq = Seq(begun + 1);
        let event = Event {
            body: chunk("new"),
            job: job.clone(),
            seq,
            attempt: 1,
            ts: 1,
        };
        memory.append_raw(&job, event.encode().unwrap()).unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn an_edge_that_lags_accepts_a_cursor_whose_event_expired() {
    let memory = log_of(5);
    let hub = edge(&memory);
    let mut client = Client::from_start(&hub).await;
    client.until_live().await;
    // Another edge delivered these; this one has not received them.
    memory.lose(2);
    append(&memory, 2);
    let at_6 = memory.events(&job())[5].cursor();
    memory.expire(&job(), Seq(6));
    let mut back = Client::open(&hub, Start::Cursor(at_6)).await.unwrap();
    back.reach(7).await;
    assert!(back.gaps.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_log_that_was_empty_when_it_was_read_causes_no_gap_in_later_events() {
    let memory = log_of(10);
    let hub = edge(&memory);
    let mut client = Client::from_start(&hub).await;
    memory.expire(&job(), Seq(10));
    memory.latency(MOMENT * 20);
    // While the leader answers that the log is empty, more is stored than a history holds.
    let flood = async {
        for _ in 0..2000 {
            memory.append(&job(), chunk("x".repeat(1000)));
            if memory.events(&job()).len().is_multiple_of(500) {
                settle().await;
            }
        }
    };
    let read = async {
        while client.next <= Seq(2010) {
            client.step().await;
        }
    };
    tokio::join!(read, async {
        // The first replay takes 20 ms, as does the pause after it; then the leader is asked.
        sleep(MOMENT * 53).await;
        flood.await;
    });
    assert!(
        client.gaps.iter().all(|(_, to)| *to <= 10),
        "{:?}",
        client.gaps
    );
}

#[tokio::test(start_paused = true)]
async fn a_stream_ends_although_the_end_has_expired_and_is_not_in_memory() {
    let memory = log_of(1);
    let budget = Budget::new(FEED_BYTES + FEED_STEP);
    let siblings = Siblings::default();
    let hub = Hub::within(memory.clone(), Tasks::default(), budget, &siblings);
    // It keeps the feed.
    let mut first = Client::from_start(&hub).await;
    first.until_live().await;
    let end = Body::Done {
        usage: None,
        finish_reason: Some("x".repeat(100_000)),
    };
    let end = memory.append(&job(), end).cursor();
    first.until_end().await;
    memory.expire(&job(), Seq(2));
    for (start, gaps) in [
        (FROM_START, vec![(1, 2)]),
        (Start::After(Seq(1)), vec![(2, 2)]),
        (Start::After(Seq(2)), vec![]),
        (Start::Cursor(end), vec![]),
    ] {
        let mut late = Client::open(&hub, start).await.unwrap();
        late.until_end().await;
        assert_eq!((late.received, late.gaps), (0, gaps));
    }
}
