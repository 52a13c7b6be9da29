//! Tests of the hub with paused time: what watchers share, and when a feed ends.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use super::{FeedWatch, Hub, Siblings, Waiter};
use crate::budget::Budget;
use crate::config::{
    FEED_BYTES, FEED_LINGER, FEED_STEP, PROBE_FIRST, PROBE_MAX, PROBE_SPREAD, REREAD_MAX,
    WAITING_MAX,
};
use crate::resume::Slice;
use crate::runtime::Tasks;
use crate::source::memory::{MemoryLog, chunk, job};
use crate::wire::{Body, JobId, Seq};

const MOMENT: Duration = Duration::from_millis(1);

const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// A log of three events.
fn three_events() -> MemoryLog {
    let memory = MemoryLog::default();
    for _ in 0..3 {
        memory.append(&job(), chunk("x"));
    }
    memory
}

/// A hub over a log of three events.
fn hub() -> (MemoryLog, Tasks, Arc<Hub<MemoryLog>>) {
    let memory = three_events();
    let tasks = Tasks::default();
    let hub = Hub::new(memory.clone(), tasks.clone());
    (memory, tasks, hub)
}

async fn watch(hub: &Arc<Hub<MemoryLog>>) -> FeedWatch {
    let watch = hub.watch(&job(), HERE).unwrap();
    sleep(MOMENT).await;
    watch
}

fn next(watch: &FeedWatch) -> Option<Seq> {
    let last = watch.feed().last();
    last.map(|last| last.cursor.seq.successor())
}

/// Whether this event is the first one that a feed has.
fn starts_at(watch: &FeedWatch, first: Seq) -> bool {
    let read = |from| watch.feed().read(from, 1);
    matches!(read(Seq(1)), Some(Slice::TooOld { first: oldest }) if oldest == first)
        && matches!(read(first), Some(Slice::Items(events)) if events[0].seq == first)
}

#[tokio::test(start_paused = true)]
async fn watchers_of_one_job_share_one_feed_and_one_subscription() {
    let (memory, tasks, hub) = hub();
    let watches = [watch(&hub).await, watch(&hub).await, watch(&hub).await];
    memory.append(&job(), chunk("x"));
    sleep(MOMENT).await;
    assert!(watches.iter().all(|watch| next(watch) == Some(Seq(5))));
    assert_eq!(
        (
            hub.feeds(),
            memory.calls().follow,
            memory.followers(),
            tasks.running()
        ),
        (1, 1, 1, 1)
    );
}

#[tokio::test(start_paused = true)]
async fn a_feed_starts_with_the_last_event_without_a_replay() {
    let (memory, _tasks, hub) = hub();
    let watch = watch(&hub).await;
    assert!(starts_at(&watch, Seq(3)));
    assert_eq!(memory.calls().replay, 0);
}

/// Two hubs of one process over a log of three events, of which the first is watched.
async fn siblings() -> (MemoryLog, [Arc<Hub<MemoryLog>>; 2], FeedWatch) {
    siblings_within([Budget::unlimited(), Budget::unlimited()]).await
}

async fn siblings_within(budgets: [Budget; 2]) -> (MemoryLog, [Arc<Hub<MemoryLog>>; 2], FeedWatch) {
    let memory = three_events();
    let siblings = Siblings::default();
    let hubs =
        budgets.map(|budget| Hub::within(memory.clone(), Tasks::default(), budget, &siblings));
    let watched = watch(&hubs[0]).await;
    (memory, hubs, watched)
}

#[tokio::test(start_paused = true)]
async fn a_feed_starts_with_the_history_that_another_thread_has() {
    let (memory, hubs, first) = siblings().await;
    for _ in 0..100 {
        memory.append(&job(), chunk("x"));
        sleep(MOMENT).await;
    }
    let second = watch(&hubs[1]).await;
    drop(first);
    sleep(FEED_LINGER * 2).await;
    memory.append(&job(), chunk("x"));
    sleep(MOMENT).await;
    let mut events = Vec::new();
    while let Some(Slice::Items(read)) = second.feed().read(Seq(3 + events.len() as u64), 100) {
        events.extend(read.iter().map(|event| event.seq.0));
    }
    assert_eq!(events, (3..=104).collect::<Vec<_>>());
    assert_eq!(memory.calls().replay, 0);
}

#[tokio::test(start_paused = true)]
async fn a_feed_does_not_start_with_the_history_of_a_log_that_is_gone() {
    let (memory, hubs, first) = siblings().await;
    memory.append(&job(), chunk("x"));
    memory.append(&job(), chunk("x"));
    sleep(MOMENT).await;
    // The first thread does not notice it.
    memory.rebuild();
    memory.lose(5);
    for _ in 0..5 {
        memory.append(&job(), chunk("y"));
    }
    let second = watch(&hubs[1]).await;
    assert!(starts_at(&first, Seq(3)));
    assert!(starts_at(&second, Seq(5)));
}

#[tokio::test(start_paused = true)]
async fn a_feed_starts_with_no_history_that_must_be_checked_after_a_disturbance() {
    let (memory, hubs, first) = siblings().await;
    memory.append(&job(), chunk("x"));
    sleep(MOMENT).await;
    memory.truncate(3);
    memory.disturb();
    let second = watch(&hubs[1]).await;
    assert_eq!(next(&second), Some(Seq(4)));
    sleep(PROBE_SPREAD + MOMENT).await;
    assert!(first.feed().is_rebuilt() && !second.feed().is_rebuilt());
}

#[tokio::test(start_paused = true)]
async fn a_history_that_was_checked_after_a_disturbance_is_shared_again() {
    let (memory, hubs, _first) = siblings().await;
    memory.append(&job(), chunk("x"));
    sleep(MOMENT).await;
    memory.disturb();
    sleep(PROBE_SPREAD + MOMENT).await;
    let second = watch(&hubs[1]).await;
    assert!(starts_at(&second, Seq(3)));
}

#[tokio::test(start_paused = true)]
async fn a_copied_history_holds_no_more_than_the_memory_budget() {
    let budget = Budget::new(FEED_BYTES + FEED_STEP);
    let (memory, hubs, first) = siblings_within([Budget::unlimited(), budget.clone()]).await;
    for _ in 0..100 {
        memory.append(&job(), chunk("x"));
        sleep(MOMENT).await;
    }
    let second = watch(&hubs[1]).await;
    assert!(starts_at(&first, Seq(3)));
    assert!(starts_at(&second, Seq(103)));
    assert_eq!(budget.used(), FEED_BYTES + FEED_STEP);
}

#[tokio::test(start_paused = true)]
async fn a_feed_outlives_its_last_watcher_for_a_while() {
    let (memory, tasks, hub) = hub();
    let first = watch(&hub).await;
    let second = watch(&hub).await;
    drop(first);
    sleep(FEED_LINGER * 2).await;
    assert_eq!(hub.feeds(), 1, "it is watched");
    drop(second);
    sleep(FEED_LINGER - MOMENT).await;
    assert_eq!(hub.feeds(), 1, "it lingers");
    sleep(MOMENT * 3).await;
    assert_eq!(
        (hub.feeds(), memory.followers(), tasks.running()),
        (0, 0, 0)
    );
}

#[tokio::test(start_paused = true)]
async fn a_watcher_that_returns_in_time_gets_the_same_feed() {
    let (memory, _tasks, hub) = hub();
    let mut last = watch(&hub).await;
    for _ in 0..10 {
        drop(last);
        sleep(FEED_LINGER - MOMENT * 3).await;
        last = watch(&hub).await;
    }
    sleep(FEED_LINGER * 3).await;
    assert_eq!((hub.feeds(), memory.calls().follow), (1, 1));
    memory.append(&job(), chunk("x"));
    sleep(MOMENT).await;
    assert_eq!(next(&last), Some(Seq(5)));
    // The time starts again with each disconnect.
    drop(last);
    sleep(FEED_LINGER - MOMENT).await;
    assert_eq!(hub.feeds(), 1);
    sleep(MOMENT * 3).await;
    assert_eq!(hub.feeds(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_watcher_that_disconnects_at_once_leaves_nothing() {
    let (memory, tasks, hub) = hub();
    for _ in 0..3 {
        drop(hub.watch(&job(), HERE).unwrap());
        drop(hub.watch(&job(), HERE).unwrap());
        sleep(FEED_LINGER + MOMENT * 3).await;
        assert_eq!(
            (hub.feeds(), memory.followers(), tasks.running()),
            (0, 0, 0)
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_feed_of_an_ended_job_needs_no_subscription_and_is_removed() {
    let (memory, _tasks, hub) = hub();
    memory.append(&job(), Body::Cancelled {});
    let last = watch(&hub).await;
    assert_eq!((memory.followers(), hub.feeds()), (0, 1));
    let asked = memory.calls();
    sleep(FEED_LINGER * 20).await;
    assert_eq!(memory.calls(), asked, "an ended job is not probed");
    drop(last);
    sleep(FEED_LINGER + MOMENT * 3).await;
    assert_eq!(hub.feeds(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_feed_that_never_opened_is_removed_once_it_is_unwatched() {
    let (memory, tasks, hub) = hub();
    memory.reachable(false);
    let last = watch(&hub).await;
    sleep(FEED_LINGER * 10).await;
    assert_eq!((hub.feeds(), last.feed().is_open()), (1, false));
    drop(last);
    sleep(FEED_LINGER * 2).await;
    assert_eq!(
        (hub.feeds(), memory.followers(), tasks.running()),
        (0, 0, 0)
    );
}

#[tokio::test(start_paused = true)]
async fn an_outage_does_not_shorten_the_linger_time_of_a_feed() {
    let (memory, _tasks, hub) = hub();
    memory.reachable(false);
    drop(watch(&hub).await);
    sleep(FEED_LINGER / 3).await;
    let back = watch(&hub).await;
    sleep(FEED_LINGER * 3).await;
    drop(back);
    sleep(FEED_LINGER / 3).await;
    assert_eq!(hub.feeds(), 1, "the earlier disconnect does not count");
    memory.reachable(true);
    sleep(FEED_LINGER / 3).await;
    assert_eq!(hub.feeds(), 1);
    sleep(FEED_LINGER * 2).await;
    assert_eq!(hub.feeds(), 0);
}

#[tokio::test(start_paused = true)]
async fn feeds_end_with_the_tasks_of_their_owner() {
    let (memory, tasks, hub) = hub();
    let _watch = watch(&hub).await;
    assert!(tasks.end(MOMENT).await);
    assert_eq!(memory.followers(), 0);
}

#[tokio::test(start_paused = true)]
async fn without_memory_feeds_keep_their_newest_event_and_no_feed_is_added() {
    let memory = MemoryLog::default();
    let budget = Budget::new(FEED_BYTES + 4096);
    let hub = Hub::within(
        memory.clone(),
        Tasks::default(),
        budget.clone(),
        &Siblings::default(),
    );
    let watched = watch(&hub).await;
    assert!(
        hub.watch(&"other".parse().unwrap(), HERE).is_err(),
        "there is no memory for another one"
    );
    let mut last = Seq(0);
    for _ in 0..100 {
        last = memory.append(&job(), chunk("x")).seq;
        sleep(MOMENT).await;
        assert!(budget.used() <= budget.limit());
    }
    assert_eq!(next(&watched), Some(last.successor()));
    assert!(matches!(
        watched.feed().read(last, 100),
        Some(Slice::Items(_))
    ));
    assert!(matches!(
        watched.feed().read(Seq(1), 100),
        Some(Slice::TooOld { .. })
    ));
    drop(watched);
    sleep(FEED_LINGER + MOMENT).await;
    assert_eq!(budget.used(), 0);
    hub.watch(&"other".parse().unwrap(), HERE).unwrap();
}

#[tokio::test(start_paused = true)]
async fn without_memory_feeds_hold_no_large_event_but_know_the_newest_one() {
    const FEEDS: usize = 20;
    let memory = MemoryLog::default();
    let budget = Budget::new(FEEDS * (FEED_BYTES + FEED_STEP));
    let hub = Hub::within(
        memory.clone(),
        Tasks::default(),
        budget.clone(),
        &Siblings::default(),
    );
    let jobs: Vec<JobId> = (0..FEEDS)
        .map(|n| format!("j{n}").parse().unwrap())
        .collect();
    let watches: Vec<_> = jobs
        .iter()
        .map(|job| hub.watch(job, HERE).unwrap())
        .collect();
    sleep(MOMENT).await;
    for (job, watched) in jobs.iter().zip(&watches) {
        memory.append(job, chunk("x"));
        let event = memory.append(job, chunk("x".repeat(100_000)));
        sleep(MOMENT).await;
        let feed = watched.feed();
        assert_eq!(feed.last(), Some(event.meta()));
        assert!(matches!(
            feed.read(Seq(2), 100),
            Some(Slice::TooOld { first: Seq(3) })
        ));
        assert!(matches!(feed.read(Seq(3), 100), Some(Slice::CaughtUp)));
    }
    // Nor do the tasks that drive them, also while they check the log.
    sleep(PROBE_MAX).await;
    assert_eq!((memory.held(), budget.used()), (0, budget.limit()));
    // A small one is always held.
    memory.append(&jobs[0], chunk("x"));
    sleep(MOMENT).await;
    assert!(matches!(
        watches[0].feed().read(Seq(3), 100),
        Some(Slice::Items(events)) if events.len() == 1
    ));
}

#[tokio::test(start_paused = true)]
async fn a_replaced_log_is_noticed_by_a_feed_that_does_not_hold_its_newest_event() {
    let memory = three_events();
    let budget = Budget::new(FEED_BYTES + FEED_STEP);
    let hub = Hub::within(
        memory.clone(),
        Tasks::default(),
        budget,
        &Siblings::default(),
    );
    let watched = watch(&hub).await;
    memory.append(&job(), chunk("x".repeat(100_000)));
    sleep(MOMENT).await;
    memory.disturb();
    sleep(PROBE_MAX).await;
    assert!(!watched.feed().is_rebuilt(), "it is the same log");
    memory.truncate(3);
    memory.append(&job(), chunk("y".repeat(100_000)));
    sleep(PROBE_MAX).await;
    assert!(watched.feed().is_rebuilt());
}

#[tokio::test(start_paused = true)]
async fn the_memory_of_a_history_is_reserved_in_steps_that_are_never_less_than_it() {
    let memory = MemoryLog::default();
    let budget = Budget::unlimited();
    let hub = Hub::within(
        memory.clone(),
        Tasks::default(),
        budget.clone(),
        &Siblings::default(),
    );
    let watched = watch(&hub).await;
    assert_eq!(budget.used(), FEED_BYTES + FEED_STEP);
    let mut payloads = 0;
    let mut changes = 0;
    for _ in 0..300 {
        let before = budget.used();
        payloads += memory
            .append(&job(), chunk("x".repeat(100)))
            .payload()
            .len();
        sleep(MOMENT).await;
        let history = budget.used() - FEED_BYTES;
        assert!(history >= payloads && history.is_multiple_of(FEED_STEP));
        changes += usize::from(budget.used() != before);
    }
    assert!((1..150).contains(&changes), "{changes}");
    drop(watched);
    sleep(FEED_LINGER + MOMENT).await;
    assert_eq!(budget.used(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_feed_of_a_purged_job_serves_nothing_more_and_ends() {
    let (memory, tasks, hub) = hub();
    let open = watch(&hub).await;
    hub.forget(&job());
    assert!(open.feed().is_rebuilt() && open.feed().read(Seq(4), 100).is_none());
    // Also one that is not open yet.
    memory.latency(Duration::from_secs(1));
    let opening = watch(&hub).await;
    hub.forget(&job());
    sleep(Duration::from_secs(5)).await;
    assert!(opening.feed().is_rebuilt() && opening.feed().read(Seq(4), 100).is_none());
    assert_eq!((hub.feeds(), tasks.running()), (0, 0));
    // A watcher that comes later starts another feed.
    memory.append(&job(), chunk("x"));
    let later = watch(&hub).await;
    sleep(Duration::from_secs(5)).await;
    assert_eq!(next(&later), Some(Seq(5)));
}

#[tokio::test(start_paused = true)]
async fn an_edge_that_missed_a_purge_notices_it_after_a_disturbance() {
    let (memory, _tasks, hub) = hub();
    memory.append(&job(), Body::Cancelled {});
    let watched = watch(&hub).await;
    memory.expire(&job(), Seq(4));
    sleep(PROBE_MAX).await;
    assert_eq!(next(&watched), Some(Seq(5)));
    memory.disturb();
    sleep(PROBE_MAX).await;
    assert!(watched.feed().is_rebuilt() && watched.feed().last().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_slow_probe_does_not_delay_a_live_event() {
    let (memory, _tasks, hub) = hub();
    let watch = watch(&hub).await;
    memory.latency(Duration::from_secs(7));
    sleep(PROBE_FIRST * 2).await;
    memory.append(&job(), chunk("x"));
    let asked = memory.calls().last;
    sleep(MOMENT).await;
    assert_eq!(next(&watch), Some(Seq(5)), "while probe {asked} is running");
}

#[tokio::test(start_paused = true)]
async fn after_a_panic_of_its_task_a_feed_serves_its_watchers_again() {
    let (memory, _tasks, hub) = hub();
    let last = watch(&hub).await;
    // Makes the history panic on the next event.
    last.feed().update(|history| history.restart(Seq(77)));
    memory.append(&job(), chunk("x"));
    sleep(MOMENT).await;
    assert_eq!((hub.panics(), last.feed().is_open()), (1, false));
    sleep(REREAD_MAX * 2).await;
    assert_eq!(next(&last), Some(Seq(5)));
    memory.append(&job(), chunk("x"));
    sleep(MOMENT).await;
    assert_eq!(
        (next(&last), hub.panics(), memory.followers()),
        (Some(Seq(6)), 1, 1)
    );
    let feed = hub.watch(&job(), HERE).unwrap();
    drop((last, feed));
    sleep(MOMENT).await;
    hub.lock()[&job()].update(|history| history.restart(Seq(77)));
    memory.append(&job(), chunk("x"));
    sleep(FEED_LINGER * 2).await;
    assert_eq!(
        (hub.feeds(), hub.panics()),
        (0, 2),
        "a feed that panicked without watchers also ends"
    );
}

#[tokio::test(start_paused = true)]
async fn the_table_of_unknown_jobs_has_a_limit_and_frees_its_entries() {
    let (_memory, _tasks, hub) = hub();
    let id = |n: usize| -> JobId { format!("made-up-{n}").parse().unwrap() };
    // The most that one address may hold.
    let share = WAITING_MAX / 4 * 3;
    let mut all: Vec<_> = (0..share)
        .map(|n| Waiter::join(&hub, &id(n), HERE).unwrap())
        .collect();
    assert!(hub.wait(&id(share), HERE).await.is_err());
    assert!(
        hub.wait(&id(share), "192.0.2.1".parse().unwrap())
            .await
            .unwrap()
            .is_some()
    );
    assert!(hub.wait(&job(), HERE).await.unwrap().is_none() && hub.watch(&job(), HERE).is_ok());
    all.truncate(share - 9);
    assert!(hub.wait(&id(share), HERE).await.unwrap().is_some());
    drop(all);
    assert_eq!(hub.waiting(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_feed_survives_a_disturbance_at_any_moment_of_a_replay() {
    for moment in (10..35).map(Duration::from_millis) {
        // Signals that are ready together are handled in random order; one order in ten failed.
        for _ in 0..60 {
            let (memory, _tasks, hub) = hub();
            let watch = watch(&hub).await;
            memory.latency(Duration::from_millis(5));
            memory.page(1);
            memory.lose(3);
            for _ in 0..4 {
                memory.append(&job(), chunk("x"));
            }
            // The last page of the replay has no event of the job.
            memory.append(&"other".parse().unwrap(), chunk("x"));
            sleep(moment).await;
            memory.disturb();
            sleep(PROBE_MAX).await;
            // A gap after the disturbance must be filled as well.
            memory.lose(1);
            memory.append(&job(), chunk("x"));
            memory.append(&job(), chunk("x"));
            sleep(PROBE_MAX).await;
            assert_eq!(next(&watch), Some(Seq(10)), "disturbed after {moment:?}");
        }
    }
}
