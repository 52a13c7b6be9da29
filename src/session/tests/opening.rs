//! Where a session may start, and why a start is refused.

use tokio::time::Instant;

use super::*;
use crate::config::OPEN_WAIT;

/// The cursor of this event of the job.
fn cursor(memory: &MemoryLog, seq: u64) -> Cursor {
    memory
        .events(&job())
        .iter()
        .find(|event| event.seq == Seq(seq))
        .unwrap()
        .cursor()
}

async fn refusal(memory: &MemoryLog, start: Start) -> SessionError {
    Client::open(&edge(memory), start).await.unwrap_err()
}

#[tokio::test(start_paused = true)]
async fn a_watcher_gets_every_event_after_its_start_once_and_in_order() {
    let memory = log_of(10);
    let starts = [
        FROM_START,
        Start::After(Seq(4)),
        Start::Cursor(cursor(&memory, 7)),
        Start::After(Seq(10)),
    ];
    let mut clients = Vec::new();
    for start in starts {
        // Each has its own edge, so that all are served from the log.
        let mut client = Client::open(&edge(&memory), start).await.unwrap();
        client.until_live().await;
        assert_eq!(client.next, Seq(11), "everything before is delivered");
        clients.push(client);
    }
    append(&memory, 5);
    memory.append(&job(), done());
    for (client, received) in clients.iter_mut().zip([16, 12, 9, 6]) {
        client.until_end().await;
        assert_eq!((client.received, client.gaps.len()), (received, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_job_may_be_watched_before_it_is_submitted() {
    let memory = MemoryLog::default();
    let mut client = Client::from_start(&edge(&memory)).await;
    assert!(client.session.status().is_none());
    client.until_live().await;
    client.expect_silence(FOREVER).await;
    append(&memory, 3);
    memory.append(&job(), done());
    client.until_end().await;
    assert_eq!((client.received, memory.calls().replay), (4, 1));
}

#[tokio::test(start_paused = true)]
async fn a_watch_of_an_ended_job_gets_its_events_and_the_end() {
    let memory = log_of(3);
    memory.append(&job(), done());
    let mut client = Client::from_start(&edge(&memory)).await;
    client.until_end().await;
    assert_eq!((client.received, client.live), (4, false));
    client.expect_silence(FOREVER).await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_has_the_end_gets_only_the_end() {
    let memory = log_of(3);
    let end = memory.append(&job(), done()).cursor();
    let hub = edge(&memory);
    for start in [Start::Cursor(end), Start::After(Seq(4)), Start::Cursor(end)] {
        let mut client = Client::open(&hub, start).await.unwrap();
        let begun = Instant::now();
        client.step().await;
        assert!(client.ended && client.received == 0 && begun.elapsed() < MOMENT);
        client.expect_silence(FOREVER).await;
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_follows_the_end_whatever_is_stored_after_it() {
    let memory = log_of(1);
    let end = memory.append(&job(), done()).cursor();
    append(&memory, 2);
    for start in [FROM_START, Start::Cursor(end)] {
        let mut client = Client::open(&edge(&memory), start).await.unwrap();
        client.until_end().await;
        assert_eq!(client.next, Seq(3));
        client.expect_silence(FOREVER).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_cursor_of_another_job_is_refused() {
    let memory = log_of(3);
    let other = memory.append(&other_job(), chunk("x")).cursor();
    assert!(matches!(
        refusal(&memory, Start::Cursor(other)).await,
        SessionError::CursorOfOtherJob
    ));
    assert_eq!(memory.calls().follow, 0, "the broker is not asked");
}

#[tokio::test(start_paused = true)]
async fn a_cursor_without_an_event_in_the_log_is_refused() {
    let memory = log_of(3);
    let event = memory.events(&job())[1].clone();
    for (seq, stream_seq) in [
        (2, 3),
        (2, 2),
        (2, 6),
        (2, 99),
        (2, u64::MAX),
        (u64::MAX, 4),
        (9, 4),
    ] {
        let made_up = Cursor::of(&job(), Seq(seq), stream_seq, event.payload());
        let refused = refusal(&memory, Start::Cursor(made_up)).await;
        assert!(
            matches!(refused, SessionError::CursorNotInLog),
            "{seq}@{stream_seq}: {refused}"
        );
    }
    let other_text = Cursor::of(&job(), event.seq, event.stream_seq, b"another");
    assert!(matches!(
        refusal(&memory, Start::Cursor(other_text)).await,
        SessionError::CursorNotInLog
    ));
}

#[tokio::test(start_paused = true)]
async fn a_cursor_of_a_stream_that_was_rebuilt_is_refused() {
    let memory = log_of(3);
    let early = cursor(&memory, 1);
    let late = cursor(&memory, 3);
    memory.rebuild();
    for events in [0, 2] {
        for _ in 0..events {
            memory.append(&job(), chunk("new"));
        }
        for start in [early, late] {
            assert!(matches!(
                refusal(&memory, Start::Cursor(start)).await,
                SessionError::CursorNotInLog
            ));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_start_after_the_end_of_the_log_is_refused_with_its_last_number() {
    let memory = log_of(3);
    for beyond in [4, u64::MAX] {
        let refused = refusal(&memory, Start::After(Seq(beyond))).await;
        assert!(
            matches!(refused, SessionError::AfterTheEnd { last: Seq(3) }),
            "{refused}"
        );
    }
    let refused = refusal(&MemoryLog::default(), Start::After(Seq(1))).await;
    assert!(matches!(
        refused,
        SessionError::AfterTheEnd { last: Seq(0) }
    ));
}

#[tokio::test(start_paused = true)]
async fn a_stale_replica_does_not_cause_a_refusal() {
    let memory = log_of(10);
    memory.stale(9);
    for start in [
        Start::After(Seq(10)),
        Start::Cursor(cursor(&memory, 10)),
        Start::After(Seq(8)),
    ] {
        let mut client = Client::open(&edge(&memory), start).await.unwrap();
        client.until_live().await;
        memory.append(&job(), chunk("next"));
        let last = memory.events(&job()).len() as u64;
        client.reach(last).await;
        assert!(client.gaps.is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn a_watch_of_an_unavailable_source_is_refused_in_time() {
    for (reachable, latency) in [(false, Duration::ZERO), (true, OPEN_WAIT * 3)] {
        let memory = log_of(3);
        memory.reachable(reachable);
        memory.latency(latency);
        let begun = Instant::now();
        let refused = refusal(&memory, FROM_START).await;
        assert!(matches!(refused, SessionError::Unavailable(_)), "{refused}");
        assert!(begun.elapsed() <= OPEN_WAIT + MOMENT);
    }
}

#[tokio::test(start_paused = true)]
async fn a_watch_starts_when_the_source_becomes_available_in_time() {
    let memory = log_of(3);
    memory.reachable(false);
    let hub = edge(&memory);
    let back = async {
        sleep(OPEN_WAIT / 2).await;
        memory.reachable(true);
    };
    let (opened, ()) = tokio::join!(Client::open(&hub, FROM_START), back);
    opened.unwrap().reach(3).await;
}
