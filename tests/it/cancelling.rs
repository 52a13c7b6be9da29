use std::time::Duration;

use tailwater::backend::demo::Demo;
use tailwater::nats::CancelOutcome;
use tailwater::wire::{EventType, Status, Stored};

use crate::support::broker::Broker;
use crate::support::scenarios::on_one_and_three;
use crate::support::system::{System, text, words};
use crate::support::{timed, within};

on_one_and_three!(
    a_queued_job_is_cancelled_and_never_starts,
    a_running_job_is_cancelled_within_a_second,
    the_next_worker_cancels_the_job_of_a_dead_worker,
    a_cancel_that_races_the_end_reports_the_true_outcome,
);

async fn a_queued_job_is_cancelled_and_never_starts(broker: &Broker) {
    let system = System::on(broker).await;
    let job = system.submit("waits", words(10, 0, 1)).await;
    let seq = system.cancel_running(&job).await;
    assert_eq!(seq.0, 2);
    let state = system.ended(&job).await;
    let found = (state.status, state.attempt, state.seq.0);
    assert_eq!(found, (Status::Cancelled, 0, 3));
    assert_eq!(system.cancel(&job).await, CancelOutcome::Ended);
    let found = system.cancel(&"unknown".parse().unwrap()).await;
    assert_eq!(found, CancelOutcome::Unknown);
    // The worker that claims it finds that it has ended.
    system.demo().await;
    system.leaves_queue(&job).await;
    assert_eq!(system.ended(&job).await.seq.0, 3);
    system.end().await;
}

async fn a_running_job_is_cancelled_within_a_second(broker: &Broker) {
    let system = System::on(broker).await;
    // Without the signal the worker would look at the log only after minutes.
    system
        .worker(Demo, |settings| {
            settings.ack_wait = Duration::from_secs(600)
        })
        .await;
    let edge = system.edge().await;
    let input = words(10_000, 50, 1);
    let job = system.submit("runs", input.clone()).await;
    let (mut client, mut seen) = edge.watch("runs").await;
    system
        .last_event("some text", &job, |last| last.seq.0 > 8)
        .await;
    let cancel = async {
        let outcome = system.queue.cancel(&job, Some("me".into())).await;
        within("the end", seen.follow(&mut client)).await;
        outcome.unwrap()
    };
    // The edge and the worker run in this process.
    let (outcome, took) = timed(cancel).await;
    let CancelOutcome::Requested(seq) = outcome else {
        panic!("not requested")
    };
    assert!(took < Duration::from_secs(1), "{took:?}");
    seen.assert_whole();
    // Only the end follows the request.
    assert_eq!(seen.last, seq.0 + 1);
    assert_eq!(seen.events[&seq.0]["by"], "me");
    assert!(text(&input).starts_with(&seen.text()));
    assert_eq!(system.ended(&job).await.status, Status::Cancelled);
    system.end().await;
}

async fn the_next_worker_cancels_the_job_of_a_dead_worker(broker: &Broker) {
    let system = System::on(broker).await;
    let mut first = system.worker_process(&[], &["demo"]);
    let job = system.submit("orphan", words(10_000, 50, 1)).await;
    system
        .last_event("some text", &job, |last| last.seq.0 > 4)
        .await;
    first.kill().await;
    let seq = system.cancel_running(&job).await;
    assert_eq!(system.cancel(&job).await, CancelOutcome::Already(seq));
    system.demo().await;
    let state = system.ended(&job).await;
    let found = (state.status, state.attempt, state.seq);
    assert_eq!(found, (Status::Cancelled, 1, seq.successor()));
    system.end().await;
}

async fn a_cancel_that_races_the_end_reports_the_true_outcome(broker: &Broker) {
    let system = System::on(broker).await;
    system.demo().await;
    let race = |n: u64| {
        let system = &system;
        async move {
            let job = system.submit(&format!("race-{n}"), words(4, 200, n)).await;
            // Some are cancelled at once, some after each event, and some after the end.
            let moment = n % 6;
            within("progress", async {
                let is_reached =
                    |last: Stored| last.event_type.is_end() || (moment < 5 && last.seq.0 >= moment);
                // Without a pause, or the moment would pass.
                loop {
                    let last = system.log.last(&job).await.ok().flatten();
                    if last.is_some_and(is_reached) {
                        return;
                    }
                }
            })
            .await;
            let outcome = system.cancel(&job).await;
            let last = system
                .last_event("the end", &job, |last| last.event_type.is_end())
                .await;
            match outcome {
                CancelOutcome::Requested(seq) => {
                    assert_eq!(
                        (last.event_type, last.seq),
                        (EventType::Cancelled, seq.successor())
                    )
                }
                CancelOutcome::Ended => assert_eq!(last.event_type, EventType::Done),
                other @ (CancelOutcome::Already(_)
                | CancelOutcome::Unknown
                | CancelOutcome::Undecodable) => {
                    panic!("{other:?}")
                }
            }
            last.event_type == EventType::Done
        }
    };
    let mut done = 0;
    for round in 0..20 {
        let ended = futures_util::future::join_all((0..25).map(|n| race(round * 25 + n))).await;
        done += ended.iter().filter(|done| **done).count();
    }
    assert!(
        (1..500).contains(&done),
        "{done} of 500 were faster than their cancel: no race"
    );
    system.end().await;
}
