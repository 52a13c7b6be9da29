use std::sync::Arc;
use std::time::Duration;

use futures_util::future::try_join_all;
use serde_json::json;
use tailwater::backend::demo::Demo;
use tailwater::config::{PAGE, UNDECODABLE_MAX};
use tailwater::nats::CancelOutcome;
use tailwater::wire::{JobId, Status};
use tailwater::worker::WorkerSettings;
use tokio::sync::Notify;

use crate::support::backends::TwoWords;
use crate::support::broker::Broker;
use crate::support::client::follow;
use crate::support::http::{http, refused};
use crate::support::scenarios::on_one_and_three;
use crate::support::system::{System, text, words};
use crate::support::until;

on_one_and_three!(
    a_running_job_continues_after_undecodable_messages,
    orphaned_jobs_are_recovered_after_undecodable_messages,
    a_log_may_start_with_undecodable_messages,
);

/// Stores undecodable messages in a job's log, as a worker with a bug might.
async fn spoil(system: &System, job: &JobId, count: usize) {
    let context = system.jetstream().await;
    let log = system.names().chunks(job.shard(system.log.shards()), job);
    let without_seq = format!(r#"{{"type":"model:chunk:v1","job":"{job}","text":"no seq"}}"#);
    let mut acks = Vec::new();
    for n in 0..count {
        let payload = if n % 2 == 0 {
            without_seq.clone()
        } else {
            "bare text".into()
        };
        acks.push(context.publish(log.clone(), payload.into()).await.unwrap());
    }
    try_join_all(acks.into_iter().map(IntoFuture::into_future))
        .await
        .unwrap();
}

async fn a_running_job_continues_after_undecodable_messages(broker: &Broker) {
    let system = System::on(broker).await;
    system.wordy().await;
    let edge = system.edge().await;
    let (mut client, mut seen) = edge.watch("runs").await;
    let input = words(200, 40, 1);
    let job = system.submit("runs", input.clone()).await;
    for count in [1, 2, PAGE + 6] {
        let last = system.last(&job).await;
        system.reaches("runs", last.seq.0 + 8).await;
        spoil(&system, &job, count).await;
    }
    seen.follow(&mut client).await;
    spoil(&system, &job, 1).await;
    for seen in [seen, follow(&system.edge().await.addr, "runs").await] {
        seen.assert_text(text(&input));
    }
    let state = system.ended(&job).await;
    let found = (state.status, state.attempt, state.output);
    assert_eq!(found, (Status::Done, 1, text(&input)));
    assert_eq!(system.cancel(&job).await, CancelOutcome::Ended);
    system.end().await;
}

async fn orphaned_jobs_are_recovered_after_undecodable_messages(broker: &Broker) {
    let system = System::on(broker).await;
    let mut first = system.worker_process(&[], &["demo"]);
    system.kind_is_known().await;
    let input = words(150, 30, 2);
    let again = system.submit("again", input.clone()).await;
    let job = system.submit("orphan", words(10_000, 50, 1)).await;
    system.reaches("orphan", 6).await;
    system.reaches("again", 6).await;
    first.kill().await;
    spoil(&system, &again, 1).await;
    spoil(&system, &job, PAGE + 6).await;
    let state = system.state(&job).await.unwrap();
    assert_eq!((state.status, state.truncated), (Status::Running, false));
    // A feed that starts here finds only undecodable messages at the end.
    let edge = system.edge().await;
    let (mut client, mut seen) = edge.watch("orphan").await;
    let requested = system.cancel(&job).await;
    assert_eq!(requested, CancelOutcome::Requested(state.seq.successor()));
    spoil(&system, &job, 1).await;
    let found = system.cancel(&job).await;
    assert_eq!(found, CancelOutcome::Already(state.seq.successor()));
    system.demo().await;
    seen.follow(&mut client).await;
    seen.assert_whole();
    assert_eq!(seen.last, state.seq.successor().successor().0);
    assert_eq!(system.ended(&job).await.status, Status::Cancelled);
    let seen = follow(&edge.addr, "again").await;
    seen.assert_text(text(&input));
    let state = system.ended(&again).await;
    assert_eq!((state.status, state.attempt), (Status::Done, 2));
    system.end().await;
}

async fn a_log_may_start_with_undecodable_messages(broker: &Broker) {
    let system = System::on(broker).await;
    let edge = system.edge().await;
    let job = "early".parse().unwrap();
    let input = words(10, 0, 1);
    spoil(&system, &job, PAGE + 6).await;
    let state = async || system.state(&job).await;
    assert!(state().await.is_none());
    system.submit("early", input.clone()).await;
    assert_eq!(state().await.unwrap().status, Status::Queued);
    system.demo().await;
    let seen = follow(&edge.addr, "early").await;
    seen.assert_text(text(&input));
    system.end().await;
}

#[tokio::test]
async fn a_job_under_too_many_undecodable_messages_is_reported_and_leaves_the_queue() {
    let system = System::on(Broker::shared_one()).await;
    let job = system.submit("buried", words(10, 0, 1)).await;
    spoil(&system, &job, UNDECODABLE_MAX).await;
    assert_eq!(system.state(&job).await.unwrap().seq.0, 1);
    spoil(&system, &job, 1).await;
    assert_eq!(system.cancel(&job).await, CancelOutcome::Undecodable);
    // No reader would find its end, so it leaves the queue after its last attempt.
    let few = |settings: &mut WorkerSettings| {
        (settings.max_attempts, settings.pause) = (3, Duration::from_millis(50));
    };
    system.worker(Demo, few).await;
    system.queue_is_empty().await;
    system.end().await;
}

/// The queue has lost the job, and its log does not show which attempt is the last one.
#[tokio::test]
async fn a_running_job_under_too_many_undecodable_messages_is_not_purged() {
    let system = System::on(Broker::shared_one()).await;
    let edge = system.edge().await;
    let slow = |settings: &mut WorkerSettings| settings.ack_wait = Duration::from_secs(600);
    system.worker(TwoWords(Arc::new(Notify::new())), slow).await;
    let job = system.submit("buried", json!(null)).await;
    system.reaches("buried", 3).await;
    let names = system.names();
    let queued = names.queued_of_any_kind(&job);
    system.remove(&names.jobs_stream(), &queued).await;
    spoil(&system, &job, UNDECODABLE_MAX + 1).await;
    let purge = "DELETE /api/jobs/buried";
    // The question makes the worker look at the log, and give the job up.
    refused(&edge, purge, "", 409, "job_not_ended").await;
    until("a purge", async || {
        let (status, _, _) = http(&edge, "DELETE", "/api/jobs/buried", "", b"").await;
        status == 204
    })
    .await;
    refused(&edge, purge, "", 404, "job_not_found").await;
    system.end().await;
}
