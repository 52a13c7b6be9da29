//! Logs that went back under their watchers, and leaders without a quorum: nothing is glued to what it does not continue,
//! and nothing final is said on the word of whoever cannot know.

use super::*;
use crate::config::{OPEN_WAIT, PROBE_SPREAD};

/// Longer than a feed takes to find out what a disturbance did to its log.
const FOUND_OUT: Duration = Duration::from_secs(3);

/// A log of this job alone, so that numbers and places are the same.
fn alone(count: u64) -> MemoryLog {
    let memory = MemoryLog::default();
    for n in 0..count {
        memory.append(&job(), chunk(format!("old {n} ")));
    }
    memory
}

/// What a session hands over until its log turns out to be another one.
async fn until_rebuilt(session: &mut Session<MemoryLog>) -> Vec<Arc<Stored>> {
    let mut given = Vec::new();
    loop {
        match timeout(FOUND_OUT, session.next())
            .await
            .expect("it is found out")
        {
            Step::Events(events) => given.extend(events),
            Step::Live => {}
            Step::Rebuilt => return given,
            step @ (Step::Gap { .. } | Step::End) => panic!("{step:?}"),
        }
    }
}

/// A watcher who has seen all of the log.
async fn caught_up(hub: &Arc<Hub<MemoryLog>>) -> Session<MemoryLog> {
    let mut session = Session::open(hub, &job(), FROM_START).await.unwrap();
    while !matches!(session.next().await, Step::Live) {}
    session
}

#[tokio::test(start_paused = true)]
async fn watchers_of_a_log_that_went_back_are_told_and_those_who_begin_anew_get_what_it_holds_now()
{
    let memory = alone(10);
    let hub = edge(&memory);
    let mut sessions = [caught_up(&hub).await, caught_up(&hub).await];
    let cursor = memory.events(&job())[9].cursor();
    memory.go_back(4);
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
    assert_eq!((client.given, hub.feeds()), (6, 1));
}

#[tokio::test(start_paused = true)]
async fn a_log_that_went_back_and_grew_past_its_old_end_is_not_glued_to_it() {
    // What is lost, written anew, and when the feed hears of it.
    for (back_to, anew, heard) in [
        (4, 6, false),
        (4, 7, false),
        (4, 20, false),
        (4, 7, true),
        (0, 11, true),
    ] {
        let memory = alone(10);
        let hub = edge(&memory);
        let mut session = caught_up(&hub).await;
        memory.go_back(back_to);
        if !heard {
            memory.lose(usize::MAX);
        }
        for n in 0..anew {
            memory.append(&job(), chunk(format!("new {n} ")));
        }
        memory.disturb();
        memory.lose(0);
        memory.append(&job(), chunk("new last "));
        assert!(
            until_rebuilt(&mut session).await.is_empty(),
            "{back_to} {anew} {heard}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_watcher_is_told_while_it_reads_the_log() {
    let memory = alone(500);
    memory.page(10);
    let hub = edge(&memory);
    let _fast = caught_up(&hub).await;
    let mut slow = Session::open(&hub, &job(), FROM_START).await.unwrap();
    assert!(matches!(slow.next().await, Step::Events(_)));
    memory.go_back(300);
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
async fn a_log_that_expired_as_a_whole_and_began_anew_is_another_one() {
    let memory = alone(3);
    let hub = edge(&memory);
    let mut session = caught_up(&hub).await;
    memory.expire_whole(&job());
    for _ in 0..4 {
        memory.append(&job(), chunk("anew"));
    }
    assert!(until_rebuilt(&mut session).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_disturbance_of_a_log_that_stays_the_same_costs_no_event() {
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
async fn without_a_quorum_a_stale_replica_ends_no_watch_and_once_there_is_one_it_goes_on() {
    let memory = alone(10);
    let mut client = Client::from_start(&edge(&memory)).await;
    client.until_live().await;
    // Whoever is asked lacks the end and cannot prove that it leads.
    memory.stale(5);
    memory.quorum(false);
    memory.disturb();
    client.rests(FOREVER).await;
    memory.append(&job(), chunk("more"));
    client.rests(FOREVER).await;
    memory.stale(0);
    memory.quorum(true);
    client.reach(11).await;
    assert!(client.gaps.is_empty());
}

#[tokio::test(start_paused = true)]
async fn without_a_quorum_a_start_is_refused_as_unavailable_and_nothing_is_told_to_be_missing() {
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
    client.rests(OPEN_WAIT * 3).await;
    memory.quorum(true);
    client.reach(11).await;
    assert!(client.gaps.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_job_that_had_ended_before_its_log_went_back_is_watched_anew() {
    let memory = alone(10);
    memory.append(&job(), done());
    let hub = edge(&memory);
    let mut client = Client::from_start(&hub).await;
    client.until_end().await;
    settle().await;
    assert_eq!(memory.followers(), 0, "nothing is followed after the end");
    memory.disturb();
    sleep(FOUND_OUT).await;
    assert_eq!(hub.feeds(), 1, "the log is the same");
    memory.go_back(5);
    memory.disturb();
    sleep(FOUND_OUT).await;
    memory.append(&job(), chunk("new"));
    memory.append(&job(), done());
    let mut client = Client::from_start(&hub).await;
    client.until_end().await;
    assert_eq!(client.given, 7);
}
