//! Sessions of jobs that neither the log nor the queue knows yet.

use tokio::time::Instant;

use super::*;
use crate::config::{FEED_LINGER, FEEDS_WITHOUT_EVENTS_MAX, LOOK_EVERY, LOOK_TICK, PROBE_FIRST};

fn made_up(n: usize) -> JobId {
    format!("made-up-{n}").parse().unwrap()
}

async fn waiting(memory: &MemoryLog) -> (Arc<Hub<MemoryLog>>, Client) {
    let hub = edge(memory);
    let mut client = Client::from_start(&hub).await;
    client.until_live().await;
    assert_eq!((hub.waiting(), hub.feeds(), memory.followers()), (1, 0, 0));
    (hub, client)
}

#[tokio::test(start_paused = true)]
async fn unknown_ids_need_no_feed_and_share_one_subscription_and_one_task() {
    let memory = log_of(3);
    let tasks = Tasks::default();
    let hub = Hub::new(memory.clone(), tasks.clone());
    let mut sessions = Vec::new();
    for n in 0..3 * FEEDS_WITHOUT_EVENTS_MAX {
        let mut session = Session::open(&hub, &made_up(n), FROM_START).await.unwrap();
        assert!(matches!(session.next().await, Step::Live) && session.status().is_none());
        sessions.push(session);
    }
    assert_eq!(
        (
            hub.feeds(),
            memory.followers(),
            tasks.running(),
            memory.submit_subscriptions()
        ),
        (0, 0, 1, 1)
    );
    assert_eq!(hub.waiting(), sessions.len());
    let mut real = Client::from_start(&hub).await;
    real.reach(3).await;
    let begun = Instant::now();
    memory.append(&made_up(7), chunk("x"));
    assert!(matches!(sessions[7].next().await, Step::Events(events) if events.len() == 1));
    assert!(begun.elapsed() < PROBE_FIRST && hub.waiting() == sessions.len() - 1);
    sessions.clear();
    drop(real);
    sleep(FEED_LINGER * 2).await;
    assert_eq!(
        (
            hub.waiting(),
            hub.feeds(),
            tasks.running(),
            memory.submit_subscriptions()
        ),
        (0, 0, 0, 0)
    );
    // The next waiter starts the task again.
    let (_hub, mut client) = waiting(&MemoryLog::default()).await;
    client.expect_silence(FOREVER).await;
}

#[tokio::test(start_paused = true)]
async fn all_waiters_of_one_job_get_all_its_events() {
    let memory = MemoryLog::default();
    let (hub, mut first) = waiting(&memory).await;
    let mut second = Client::from_start(&hub).await;
    let third = Client::from_start(&hub).await;
    drop(third);
    assert_eq!(hub.waiting(), 1);
    append(&memory, 5);
    memory.append(&job(), done());
    first.until_end().await;
    second.until_end().await;
    assert_eq!(
        (first.received, second.received, hub.waiting(), hub.feeds()),
        (6, 6, 0, 1)
    );
}

#[tokio::test(start_paused = true)]
async fn a_session_that_is_dropped_leaves_no_entry() {
    let memory = MemoryLog::default();
    let (hub, client) = waiting(&memory).await;
    drop(client);
    assert_eq!(hub.waiting(), 0);
    memory.append(&job(), chunk("x"));
    settle().await;
    assert_eq!(hub.feeds(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_event_stored_at_any_moment_of_the_opening_is_delivered() {
    // Opening a watch takes up to four requests.
    for ms in 0..50 {
        let memory = MemoryLog::default();
        memory.latency(Duration::from_millis(10));
        let hub = edge(&memory);
        let store = async {
            sleep(Duration::from_millis(ms)).await;
            memory.append(&job(), chunk("x"));
        };
        let begun = Instant::now();
        let (mut client, ()) = tokio::join!(Client::from_start(&hub), store);
        client.reach(1).await;
        assert!(
            begun.elapsed() < Duration::from_millis(ms) + PROBE_FIRST,
            "after {ms} ms"
        );
        memory.append(&job(), done());
        client.until_end().await;
        assert_eq!(client.received, 2);
    }
}

#[tokio::test(start_paused = true)]
async fn a_job_whose_signal_was_lost_is_found_in_the_log() {
    for (before, within) in [
        (Duration::ZERO, PROBE_FIRST * 2),
        (LOOK_EVERY * 10, LOOK_EVERY * 2),
    ] {
        let memory = MemoryLog::default();
        let (_hub, mut client) = waiting(&memory).await;
        sleep(before).await;
        memory.lose_signals(true);
        append(&memory, 3);
        let begun = Instant::now();
        client.reach(3).await;
        assert!(begun.elapsed() <= within, "{:?}", begun.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn after_a_disturbance_every_job_is_looked_up_soon() {
    let memory = MemoryLog::default();
    let (_hub, mut client) = waiting(&memory).await;
    sleep(LOOK_EVERY * 3).await;
    memory.lose_signals(true);
    append(&memory, 3);
    memory.disturb();
    let begun = Instant::now();
    client.reach(3).await;
    assert!(
        begun.elapsed() <= PROBE_FIRST + LOOK_TICK * 2,
        "{:?}",
        begun.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn a_submit_subscription_that_ends_is_replaced() {
    let memory = MemoryLog::default();
    let (_hub, mut client) = waiting(&memory).await;
    memory.close();
    sleep(PROBE_FIRST).await;
    assert_eq!(memory.submit_subscriptions(), 1);
    append(&memory, 3);
    let begun = Instant::now();
    client.reach(3).await;
    assert!(begun.elapsed() < LOOK_TICK);
}

#[tokio::test(start_paused = true)]
async fn a_job_that_is_queued_is_known_before_its_first_event() {
    for queued_first in [true, false] {
        let memory = MemoryLog::default();
        let hub = edge(&memory);
        if queued_first {
            memory.enqueue(&job());
        }
        let mut client = Client::from_start(&hub).await;
        client.until_live().await;
        if queued_first {
            client.expect_silence(PROBE_FIRST * 2).await;
        } else {
            memory.enqueue(&job());
            client.expect_silence(LOOK_EVERY * 5).await;
        }
        assert_eq!((hub.waiting(), hub.feeds()), (0, 1));
        memory.lose_signals(true);
        let begun = Instant::now();
        memory.append(&job(), chunk("x"));
        client.reach(1).await;
        assert!(begun.elapsed() <= MOMENT);
    }
}

#[tokio::test(start_paused = true)]
async fn feeds_of_jobs_without_events_have_their_own_limit() {
    let memory = log_of(3);
    let hub = edge(&memory);
    let mut sessions = Vec::new();
    // The most that one address may hold.
    let share = FEEDS_WITHOUT_EVENTS_MAX / 4 * 3;
    for n in 0..share {
        let mut session = Session::open(&hub, &made_up(n), FROM_START).await.unwrap();
        assert!(matches!(session.next().await, Step::Live));
        memory.enqueue(&made_up(n));
        assert!(timeout(MOMENT, session.next()).await.is_err());
        sessions.push(session);
    }
    assert_eq!((hub.waiting(), hub.feeds()), (0, share));
    Client::from_start(&hub).await.reach(3).await;
    // Later clients wait for room or for the first event.
    let mut waits = Session::open(&hub, &made_up(9999), FROM_START)
        .await
        .unwrap();
    assert!(matches!(waits.next().await, Step::Live));
    memory.enqueue(&made_up(9999));
    assert!(timeout(FEED_LINGER, waits.next()).await.is_err());
    memory.append(&made_up(9999), chunk("x"));
    assert!(matches!(
        timeout(PROBE_FIRST, waits.next()).await,
        Ok(Step::Events(_))
    ));
}

#[tokio::test(start_paused = true)]
async fn a_job_is_found_despite_a_stale_replica_and_a_missing_quorum() {
    let memory = log_of(3);
    memory.stale(6);
    memory.quorum(false);
    let (hub, mut client) = waiting(&memory).await;
    client.expect_silence(LOOK_EVERY).await;
    memory.quorum(true);
    client.reach(3).await;
    assert_eq!((hub.waiting(), hub.feeds()), (0, 1));
}
