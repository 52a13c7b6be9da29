use async_nats::HeaderMap;
use serde_json::json;
use tailwater::nats::CancelOutcome;
use tailwater::wire::{JobId, Status};
use tokio::time::Duration;

use crate::support::broker::Broker;
use crate::support::client::follow;
use crate::support::http::http;
use crate::support::scenarios::on_one_and_three;
use crate::support::system::{System, text, words};

on_one_and_three!(
    forged_numbers_do_not_disturb_a_running_job,
    a_late_watcher_gets_the_true_end_after_forged_numbers,
    a_job_runs_although_its_log_starts_with_forged_numbers,
);

/// Wrong sequence numbers for a log of at most 300 events whose last one was `at`.
fn wrong(at: u64) -> Vec<u64> {
    vec![
        u64::MAX,
        u64::MAX - 1,
        1 << 53,
        1_000_000,
        400,
        401,
        at,
        at - 2,
        1,
        0,
    ]
}

/// Stores chunks with these sequence numbers in a job's log.
async fn forge(system: &System, job: &JobId, numbers: &[u64], expected: Option<u64>) {
    let context = system.jetstream().await;
    let log = system.names().chunks(job.shard(system.log.shards()), job);
    for seq in numbers {
        let event = json!({"type": "model:chunk:v1", "job": job, "seq": seq, "attempt": 1, "ts": 1, "text": "forged"});
        let mut headers = HeaderMap::new();
        if let Some(expected) = expected {
            headers.insert(
                "Nats-Expected-Last-Subject-Sequence",
                expected.to_string().as_str(),
            );
        }
        let stored = context
            .publish_with_headers(log.clone(), headers, event.to_string().into())
            .await
            .unwrap();
        stored.await.unwrap();
    }
}

async fn forged_numbers_do_not_disturb_a_running_job(broker: &Broker) {
    let system = System::on(broker).await;
    system.wordy().await;
    let edge = system.edge().await;
    let (mut client, mut seen) = edge.watch("runs").await;
    let input = words(200, 30, 1);
    let job = system.submit("runs", input.clone()).await;
    for count in [10, 40, 80] {
        system.reaches("runs", count).await;
        forge(&system, &job, &wrong(count), None).await;
    }
    seen.follow(&mut client).await;
    let end = system.ended(&job).await;
    forge(&system, &job, &wrong(end.seq.0 + 1), None).await;
    for seen in [
        seen,
        follow(&edge.addr, "runs").await,
        follow(&system.edge().await.addr, "runs").await,
    ] {
        seen.assert_text(text(&input));
    }
    let state = system.state(&job).await.unwrap();
    let found = (state.status, state.attempt, state.output);
    assert_eq!(found, (Status::Done, 1, text(&input)));
    assert_eq!(system.cancel(&job).await, CancelOutcome::Ended);
    assert!(system.log.undecodable() > 0);
    system.end().await;
}

async fn a_late_watcher_gets_the_true_end_after_forged_numbers(broker: &Broker) {
    let system = System::on(broker).await;
    system.wordy().await;
    let input = words(100, 40, 1);
    let job = system.submit("late", input.clone()).await;
    system.reaches("late", 20).await;
    let last = system.last(&job).await;
    forge(
        &system,
        &job,
        &[last.seq.0 + 400, last.seq.0 + 401, u64::MAX],
        None,
    )
    .await;
    // The fence rejects the worker's next event; the worker retries after the forged ones.
    let edge = system.edge().await;
    let (mut client, mut seen) = edge.watch("late").await;
    seen.follow(&mut client).await;
    seen.assert_text(text(&input));
    let state = system.ended(&job).await;
    let found = (state.status, state.attempt, state.seq.0);
    assert_eq!(found, (Status::Done, 1, seen.last));
    // Words that fall due during an append are one event, so the length of the log varies.
    let after = seen.last - 10;
    let (status, _, page) = http(
        &edge,
        "GET",
        &format!("/api/jobs/late/events?after={after}"),
        "Accept: application/json\r\n",
        b"",
    )
    .await;
    let numbers = page["events"]
        .as_array()
        .unwrap()
        .iter()
        .map(|event| event["seq"].as_u64().unwrap());
    let found = (status, numbers.collect::<Vec<_>>());
    assert_eq!(found, (200, (after + 1..=seen.last).collect()), "{page}");
    system.end().await;
}

async fn a_job_runs_although_its_log_starts_with_forged_numbers(broker: &Broker) {
    let system = System::on(broker).await;
    let job = "begins".parse().unwrap();
    let input = words(20, 0, 1);
    // Other jobs have used the shard, so that the number is below the stream sequence.
    let other = (0..)
        .map(|n| format!("o{n}"))
        .map(|id| id.parse::<JobId>().unwrap());
    let other = other
        .into_iter()
        .find(|other| other.shard(2) == JobId::shard(&job, 2))
        .unwrap();
    forge(&system, &other, &[9; 10], None).await;
    forge(&system, &job, &[3], Some(0)).await;
    forge(&system, &job, &[7, 8, 1 << 40], None).await;
    assert!(system.state(&job).await.is_none());
    let edge = system.edge().await;
    let (mut client, mut seen) = edge.watch("begins").await;
    system.submit("begins", input.clone()).await;
    system.wordy().await;
    seen.follow(&mut client).await;
    seen.assert_text(text(&input));
    assert_eq!(system.ended(&job).await.attempt, 1);
    tokio::time::timeout(Duration::from_secs(10), system.end())
        .await
        .unwrap();
}

#[tokio::test]
async fn skipped_events_are_counted_in_the_stats() {
    let system = System::on(Broker::shared_one()).await;
    let job = system.submit("counted", words(10, 0, 1)).await;
    forge(&system, &job, &[7, u64::MAX], None).await;
    let edge = system.edge().await;
    system.wordy().await;
    follow(&edge.addr, "counted").await.assert_whole();
    let (_, _, stats) = http(&edge, "GET", "/api/stats", "", b"").await;
    assert!(stats["undecodable"].as_u64().unwrap() >= 2, "{stats}");
    assert_eq!(stats["feed_panics"], 0);
    system.end().await;
}
