//! Logs that lose events that were delivered, and leaders without a quorum: a session never mixes
//! two logs, and never reports a gap that the leader has not confirmed.

use super::*;
use crate::config::{OPEN_WAIT, PROBE_SPREAD};

/// Longer than a feed takes to check its log after a disturbance.
const CHECKED: Duration = Duration::from_secs(3);

/// A log of this job alone, so that sequence numbers and stream sequences are equal.
fn alone(count: u64) -> MemoryLog {
    let memory = MemoryLog::default();
    for n in 0..count {
        memory.append(&job(), chunk(format!("old {n} ")));
    }
    memory
}

/// The events that a session delivers before it reports that its log was rebuilt.
async fn until_rebuilt(session: &mut Session<MemoryLog>) -> Vec<Arc<Stored>> {
    let mut received = Vec::new();
    loop {
        match timeout(CHECKED, session.next())
            .await
            .expect("the log is checked")
        {
            Step::Events(events) => received.extend(events),
            Step::Live => {}
            Step::Rebuilt => return received,
            step @ (Step::Gap { .. } | Step::End) => panic!("{step:?}"),
        }
    }
}

/// A session that has delivered all of the log.
async fn caught_up(hub: &Arc<Hub<MemoryLog>>) -> Session<MemoryLog> {
    let mut session = Session::open(hub, &job(), FROM_START).await.unwrap();
    while !matches!(session.next().await, Step::Live) {}
    session
}

#[tokio::test(start_paused = true)]
async fn a_rebuilt_log_is_reported_to_its_watchers_and_new_ones_read_it() {
    let memory = alone(10);
    let hub = edge(&memory);
    let mut sessions = [caught_up(&hub).await, caught_up(&hub).await];
    let cursor = memory.events(&job())[9].cursor();
    memory.truncate(4);
    memory.disturb();
    for session in &mut sessions {
        assert!(until_rebuilt(session).await.is_empty());
        assert!(
            timeout(FOREVER, session.next()).await.is_err(),
            "nothing follows"
        );
    }
    let refused = Session::open(&hub, &job(), Start::Cursor(cursor))
        .await
        .unwrap_err();
    assert!(matches!(refused, SessionError::CursorNotInLog), "{refused}");
    memory.append(&job(), chunk("new"));
    memory.append(&job(), done());
    let mut client = Client::from_start(&hub).await;
    client.until_end().await;
    assert_eq!((client.received, hub.feeds()), (6, 1));
}

#[tokio::test(start_paused = true)]
async fn a_log_that_lost_its_end_and_grew_past_it_is_not_continued() {
    // The last event that remains, how many are added, and whether their copies arrive.
    for (back_to, added, arrive) in [
        (4, 6, false),
        (4, 7, false),
        (4, 20, false),
        (4, 7, true),
        (0, 11, true),
    ] {
        let memory = alone(10);
        let hub = edge(&memory);
        let mut session = caught_up(&hub).await;
        memory.truncate(back_to);
        if !arrive {
            memory.lose(usize::MAX);
        }
        for n in 0..added {
            memory.append(&job(), chunk(format!("new {n} ")));
        }
        memory.disturb();
        memory.lose(0);
        memory.append(&job(), chunk("new last "));
        assert!(
            until_rebuilt(&mut session).await.is_empty(),
            "{back_to} {added} {arrive}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_rebuilt_log_is_reported_to_a_session_that_reads_it() {
    let memory = alone(500);
    memory.page(10);
    let hub = edge(&memory);
    let _fast = caught_up(&hub).await;
    let mut slow = Session::open(&hub, &job(), FROM_START).await.unwrap();
    assert!(matches!(slow.next().await, Step::Events(_)));
    memory.truncate(300);
    memory.disturb();
    sleep(PROBE_SPREAD * 2).await;
    assert!(
        until_rebuilt(&mut slow)
            .await
            .iter()
            .all(|event| event.seq <= Seq(300))
    );
}

#[tokio::test(start_paused = true)]
async fn a_log_that_expired_as_a_whole_and_started_again_is_rebuilt() {
    let memory = alone(3);
    let hub = edge(&memory);
    let mut session = caught_up(&hub).await;
    memory.expire_whole(&job());
    for _ in 0..4 {
        memory.append(&job(), chunk("new"));
    }
    assert!(until_rebuilt(&mut session).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_disturbance_without_a_rebuild_loses_no_event() {
    for (stale, expired) in [(0, 0), (3, 0), (0, 10), (0, 12)] {
        let memory = alone(10);
        let mut client = Client::from_start(&edge(&memory)).await;
        client.until_live().await;
        memory.append(&job(), chunk("before"));
        settle().await;
        memory.stale(stale);
        memory.disturb();
        memory.lose(1);
        for _ in 0..5 {
            memory.append(&job(), chunk("after"));
        }
        memory.expire(&job(), Seq(expired.min(11)));
        settle().await;
        memory.stale(0);
        client.reach(16).await;
        assert!(client.gaps.is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn a_watch_survives_a_stale_replica_without_a_quorum() {
    let memory = alone(10);
    let mut client = Client::from_start(&edge(&memory)).await;
    client.until_live().await;
    // No server has the last events, and none can prove that it leads.
    memory.stale(5);
    memory.quorum(false);
    memory.disturb();
    client.expect_silence(FOREVER).await;
    memory.append(&job(), chunk("more"));
    client.expect_silence(FOREVER).await;
    memory.stale(0);
    memory.quorum(true);
    client.reach(11).await;
    assert!(client.gaps.is_empty());
}

#[tokio::test(start_paused = true)]
async fn without_a_quorum_a_start_is_unavailable_and_no_gap_is_reported() {
    let memory = log_of(10);
    let cursor = memory.events(&job())[9].cursor();
    memory.stale(8);
    memory.quorum(false);
    for start in [Start::After(Seq(10)), Start::Cursor(cursor)] {
        let refused = Session::open(&edge(&memory), &job(), start)
            .await
            .unwrap_err();
        assert!(matches!(refused, SessionError::Unavailable(_)), "{refused}");
    }
    let hub = edge(&memory);
    let mut client = Client::from_start(&hub).await;
    client.until_live().await;
    memory.append(&job(), chunk("live"));
    client.expect_silence(OPEN_WAIT * 3).await;
    memory.quorum(true);
    client.reach(11).await;
    assert!(client.gaps.is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_ended_job_whose_log_was_rebuilt_can_be_watched_again() {
    let memory = alone(10);
    memory.append(&job(), done());
    let hub = edge(&memory);
    let mut client = Client::from_start(&hub).await;
    client.until_end().await;
    settle().await;
    assert_eq!(memory.followers(), 0, "nothing is followed after the end");
    memory.disturb();
    sleep(CHECKED).await;
    assert_eq!(hub.feeds(), 1, "the log is the same");
    memory.truncate(5);
    memory.disturb();
    sleep(CHECKED).await;
    memory.append(&job(), chunk("new"));
    memory.append(&job(), done());
    let mut client = Client::from_start(&hub).await;
    client.until_end().await;
    assert_eq!(client.received, 7);
}
