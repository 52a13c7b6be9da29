use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use tailwater::backend::demo::Demo;
use tailwater::config::PURGE_AGAIN;
use tailwater::nats::{AppendError, Claim, Nats, Role};
use tailwater::wire::limits::RESUBMIT_AFTER_S;
use tailwater::wire::{Body, Channel, JobId, Status};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::support::backends::TwoWords;
use crate::support::broker::Broker;
use crate::support::client::follow;
use crate::support::http::{exchange, get_json, header, http, post, refused};
use crate::support::link::{Flow, Link};
use crate::support::process::run;
use crate::support::scenarios::on_one_and_three;
use crate::support::system::{Edge, System, words};
use crate::support::{assert_within, eventually, until, within};

on_one_and_three!(
    a_purged_job_is_gone_from_every_edge,
    the_id_of_a_purged_job_is_refused_with_the_time_at_which_it_is_free,
    a_delivered_job_is_in_the_queue_until_it_is_removed,
);

/// How many messages the queue, the log and the segments hold about a job.
async fn stored(system: &System, job: &JobId) -> [usize; 3] {
    let names = system.names();
    let shard = job.shard(system.log.shards());
    let segments = names.segment(shard, job, 0);
    let segments = format!("{}.*", segments.strip_suffix(".0").unwrap());
    let client = system.client().await;
    let count = async |stream: String, subject: String| {
        let ask = json!({"subjects_filter": subject}).to_string();
        let request = format!("$JS.API.STREAM.INFO.{stream}");
        let answer = client.request(request, ask.into()).await.unwrap();
        let info: Value = serde_json::from_slice(&answer.payload).unwrap();
        let subjects = info["state"]["subjects"].as_object();
        let counts = subjects.into_iter().flat_map(|all| all.values());
        let all: u64 = counts.map(|count| count.as_u64().unwrap()).sum();
        usize::try_from(all).unwrap()
    };
    [
        count(names.jobs_stream(), names.queued_of_any_kind(job)).await,
        count(names.chunks_stream(shard), names.chunks(shard, job)).await,
        count(names.segments_stream(shard), segments).await,
    ]
}

/// Makes the queue lose a job, as one that was emptied, or restored from a backup.
async fn lose(system: &System, job: &JobId) {
    let names = system.names();
    let queued = names.queued_of_any_kind(job);
    system.remove(&names.jobs_stream(), &queued).await;
}

async fn delete(edge: &Edge, job: &str) -> u16 {
    let path = format!("/api/jobs/{job}");
    http(edge, "DELETE", &path, "", b"").await.0
}

/// Whether a new client of an edge is told that the job is unknown.
async fn is_unknown(edge: &Edge, job: &str) -> bool {
    let (mut client, _) = edge.watch(job).await;
    let frame = client.op().await;
    assert_eq!(frame["op"], "watching", "{frame}");
    frame.get("status").is_none()
}

async fn a_purged_job_is_gone_from_every_edge(broker: &Broker) {
    let system = System::on(broker).await;
    system.pieces(200).await;
    let edges = [system.edge().await, system.edge().await];
    let job = system.submit("secret", json!(null)).await;
    let kept = system.submit("kept", json!(null)).await;
    for job in [&job, &kept] {
        system.ended(job).await;
        system.leaves_queue(job).await;
    }
    until("segments", async || stored(&system, &job).await[2] > 2).await;
    for edge in &edges {
        // It stays in memory for a while.
        let seen = follow(&edge.addr, "secret").await;
        seen.assert_whole();
        assert!(seen.text().contains("198 "), "{}", seen.text());
    }
    assert_eq!(delete(&edges[0], "secret").await, 204);
    for edge in &edges {
        until("the edge to forget", async || {
            Box::pin(is_unknown(edge, "secret")).await
        })
        .await;
        for path in ["", "/state", "/events?must_exist=true"] {
            let request = format!("GET /api/jobs/secret{path}");
            refused(edge, &request, "", 404, "job_not_found").await;
        }
        let jobs = get_json(edge, "/api/jobs").await.to_string();
        assert!(
            jobs.contains(r#""kept""#) && !jobs.contains(r#""secret""#),
            "{jobs}"
        );
        follow(&edge.addr, "kept").await.assert_whole();
    }
    assert_eq!(stored(&system, &job).await, [0; 3]);
    refused(
        &edges[1],
        "DELETE /api/jobs/secret",
        "",
        404,
        "job_not_found",
    )
    .await;
    system.end().await;
}

async fn the_id_of_a_purged_job_is_refused_with_the_time_at_which_it_is_free(broker: &Broker) {
    let system = System::on(broker).await;
    system.demo().await;
    let edge = system.edge().await;
    let body = json!({"kind": "demo", "id": "again", "input": words(3, 0, 1)});
    assert_eq!(post(&edge, &body).await.0, 202);
    let job = "again".parse().unwrap();
    system.ended(&job).await;
    system.leaves_queue(&job).await;
    assert_eq!(post(&edge, &body).await.0, 200);
    assert_eq!(delete(&edge, "again").await, 204);
    // With any content.
    let other = json!({"kind": "demo", "id": "again", "input": "other"});
    for body in [&body, &other] {
        let headers = "Content-Type: application/json\r\n";
        let text = body.to_string();
        let path = "/api/jobs";
        let (head, body) = exchange(&edge.addr, "POST", path, headers, text.as_bytes()).await;
        assert!(head.starts_with("HTTP/1.1 409 "), "{head}");
        let after = header(&head, "retry-after").map(str::parse::<u64>);
        assert_eq!(after, Some(Ok(RESUBMIT_AFTER_S)), "{head}");
        assert!(body.contains(r#""code":"job_removed""#), "{body}");
    }
    assert_eq!(stored(&system, &job).await, [0; 3]);
    let ran = system.run("submit --kind demo --id again").await;
    let says_when = "a job with the id again was removed";
    assert!(ran.code != 0 && ran.err.contains(says_when), "{}", ran.err);
    system.end().await;
}

#[tokio::test]
async fn only_a_job_that_has_ended_is_purged() {
    let system = System::on(Broker::shared_one()).await;
    let edge = system.edge().await;
    let not_ended = async |job: &str| {
        let request = format!("DELETE /api/jobs/{job}");
        refused(&edge, &request, "", 409, "job_not_ended").await;
    };
    let waits = system.submit("waits", words(3, 0, 1)).await;
    not_ended("waits").await;
    system.demo().await;
    system.ended(&waits).await;
    let runs = system.submit("runs", words(100_000, 20, 1)).await;
    system.reaches("runs", 4).await;
    not_ended("runs").await;
    // Nothing of it was removed.
    assert_eq!(system.log.first(&runs).await.unwrap().unwrap().seq.0, 1);
    system.cancel_running(&runs).await;
    system.ended(&runs).await;
    let mut line = vec!["purge".to_owned()];
    line.extend(system.flags_of(Role::Recorder));
    line.extend(["runs", "unknown", "waits"].map(str::to_owned));
    let ran = run(line).await;
    assert_eq!((ran.code, ran.out.as_str()), (2, "runs\nwaits\n"));
    assert!(ran.err.contains("there is no job unknown"), "{}", ran.err);
    for job in [&runs, &waits] {
        assert_eq!(stored(&system, job).await, [0; 3]);
    }
    system.end().await;
}

#[tokio::test]
async fn a_command_line_purges_many_jobs_at_a_time_in_its_order() {
    let system = System::on(Broker::shared_one()).await;
    let names: Vec<String> = (0..40).map(|n| format!("many-{n}")).collect();
    let jobs = join_all(names.iter().map(async |name| {
        let job = system.submit(name, json!(null)).await;
        system.cancel_running(&job).await;
        job
    }));
    let jobs = jobs.await;
    let started = Instant::now();
    let ran = system.run(&format!("purge {}", names.join(" "))).await;
    assert_within(started, PURGE_AGAIN * 10);
    assert_eq!(ran.prints().lines().collect::<Vec<_>>(), names);
    for job in &jobs {
        assert_eq!(stored(&system, job).await, [0; 3]);
    }
    system.end().await;
}

/// The queue has lost the job, so no worker will write its final event.
#[tokio::test]
async fn an_abandoned_job_is_purged() {
    let system = System::on(Broker::shared_one()).await;
    let edge = system.edge().await;
    let job = system.submit("abandoned", words(3, 0, 1)).await;
    let request = "DELETE /api/jobs/abandoned";
    refused(&edge, request, "", 409, "job_not_ended").await;
    lose(&system, &job).await;
    assert_eq!(stored(&system, &job).await, [0, 1, 0]);
    assert_eq!(delete(&edge, "abandoned").await, 204);
    assert_eq!(stored(&system, &job).await, [0; 3]);
    assert!(Box::pin(is_unknown(&edge, "abandoned")).await);
    refused(&edge, request, "", 404, "job_not_found").await;
    system.end().await;
}

#[tokio::test]
async fn a_running_job_that_the_queue_lost_is_not_purged() {
    let system = System::on(Broker::shared_one()).await;
    let edge = system.edge().await;
    let go = Arc::new(Notify::new());
    system.worker(TwoWords(Arc::clone(&go)), |_| {}).await;
    let job = system.submit("runs", json!(null)).await;
    system.reaches("runs", 3).await;
    lose(&system, &job).await;
    refused(&edge, "DELETE /api/jobs/runs", "", 409, "job_not_ended").await;
    go.notify_one();
    let state = system.ended(&job).await;
    let found = (state.status, state.attempt, state.output.as_str());
    assert_eq!(found, (Status::Done, 1, "one two"));
    assert_eq!(delete(&edge, "runs").await, 204);
    assert_eq!(stored(&system, &job).await, [0; 3]);
    system.end().await;
}

#[tokio::test]
async fn a_job_that_the_queue_lost_is_purged_once_its_worker_is_dead() {
    let system = System::on(Broker::shared_one()).await;
    let edge = system.edge().await;
    let mut worker = system.worker_process(&[], &["demo"]);
    system.kind_is_known().await;
    let job = system.submit("lost", words(100_000, 20, 1)).await;
    system.reaches("lost", 4).await;
    lose(&system, &job).await;
    refused(&edge, "DELETE /api/jobs/lost", "", 409, "job_not_ended").await;
    worker.kill().await;
    // The broker notices the death within moments.
    until("a purge", async || delete(&edge, "lost").await == 204).await;
    assert_eq!(stored(&system, &job).await, [0; 3]);
    system.end().await;
}

/// The writer is that of a worker that was frozen before another one ended the job.
#[tokio::test]
async fn a_late_writer_adds_nothing_to_a_purged_job() {
    let system = System::on(Broker::shared_one()).await;
    let edge = system.edge().await;
    let text = |text: &str| Body::Chunk {
        text: text.into(),
        channel: Channel::Output,
    };
    let job = system.submit("purged", words(3, 0, 1)).await;
    let mut frozen = system.writer(&job, 1).await;
    frozen.append(text("in time")).await.unwrap();
    system.demo().await;
    assert_eq!(system.ended(&job).await.attempt, 2);
    system.leaves_queue(&job).await;
    assert_eq!(delete(&edge, "purged").await, 204);
    // Each time again: a refusal must not move the writer to the start of the empty log.
    for _ in 0..2 {
        let refused = within("an append", frozen.append(text("late"))).await;
        assert!(
            matches!(refused, Err(AppendError::Superseded)),
            "{refused:?}"
        );
        let refused = within("a check", frozen.check()).await;
        assert!(
            matches!(refused, Err(AppendError::Superseded)),
            "{refused:?}"
        );
    }
    assert_eq!(stored(&system, &job).await, [0; 3]);
    system.end().await;
}

async fn a_delivered_job_is_in_the_queue_until_it_is_removed(broker: &Broker) {
    let system = System::on(broker).await;
    let nats = Nats::connect(&system.options).await.unwrap();
    let kind = "demo".parse().unwrap();
    let claim = Claim::open(&nats, &kind, Duration::from_secs(60));
    let mut claim = within("a claim", claim).await.unwrap();
    let job = system.submit("delivered", json!(null)).await;
    let other = system.submit("other", json!(null)).await;
    let delivery = within("a delivery", claim.next(1)).await.unwrap();
    assert_eq!(delivery.job, job);
    let has_removed = || async { system.queue.has_removed(&delivery).await.ok() };
    assert!(!eventually("an answer", has_removed).await);
    lose(&system, &other).await;
    assert!(!eventually("an answer", has_removed).await);
    lose(&system, &job).await;
    assert!(eventually("an answer", has_removed).await);
    system.end().await;
}

/// The first delivery is on its way to the worker while the job is cancelled, which ends it, and
/// purged.
#[tokio::test]
async fn a_purged_job_is_not_started_by_its_first_delivery() {
    let broker = Broker::shared_one();
    let system = System::on(broker).await;
    let edge = system.edge().await;
    let link = Link::to(&broker.addr(0)).await;
    let far = system.reached_at(&format!("nats://{}", link.addr));
    far.worker(Demo, |settings| settings.concurrency = 1).await;
    link.set(Flow::Late(Duration::from_secs(2)));
    let job = system.submit("purged", words(3, 0, 1)).await;
    let consumer = format!("CONSUMER.INFO.{}.demo", system.names().jobs_stream());
    until("the delivery", async || {
        let info = system.ask_jetstream(&consumer, &json!({})).await;
        info["delivered"]["consumer_seq"] == 1
    })
    .await;
    system.cancel_running(&job).await;
    assert_eq!(delete(&edge, "purged").await, 204);
    link.set(Flow::Open);
    // The worker runs one job at a time.
    let next = system.submit("next", words(3, 0, 1)).await;
    system.ended(&next).await;
    assert_eq!(stored(&system, &job).await, [0; 3]);
    system.end().await;
}

/// A later delivery is on its way to the worker while the job is cancelled and purged.
#[tokio::test]
async fn a_purged_job_is_not_started_by_a_late_delivery() {
    let broker = Broker::shared_one();
    let system = System::on(broker).await;
    let names = system.names();
    let nats = Nats::connect(&system.options).await.unwrap();
    let kind = "demo".parse().unwrap();
    // Longer than opening the worker below takes on a busy machine.
    let first = Claim::open(&nats, &kind, Duration::from_secs(8));
    let mut first = within("a claim", first).await.unwrap();
    let job = system.submit("purged", words(3, 0, 1)).await;
    let delivery = within("a delivery", first.next(1)).await.unwrap();
    assert_eq!(delivery.deliveries, 1);
    let link = Link::to(&broker.addr(0)).await;
    let far = system.reached_at(&format!("nats://{}", link.addr));
    far.worker(Demo, |settings| settings.concurrency = 1).await;
    link.set(Flow::Late(Duration::from_secs(2)));
    // After the ack wait, the queue delivers the job to the worker.
    let consumer = format!("CONSUMER.INFO.{}.demo", names.jobs_stream());
    until("the second delivery", async || {
        let info = system.ask_jetstream(&consumer, &json!({})).await;
        info["delivered"]["consumer_seq"].as_u64() >= Some(2)
    })
    .await;
    system.cancel_running(&job).await;
    let shard = job.shard(system.log.shards());
    let queued = names.queued_of_any_kind(&job);
    system.remove(&names.jobs_stream(), &queued).await;
    let log = names.chunks(shard, &job);
    system.remove(&names.chunks_stream(shard), &log).await;
    link.set(Flow::Open);
    // The worker runs one job at a time.
    let next = system.submit("next", words(3, 0, 1)).await;
    system.ended(&next).await;
    assert_eq!(stored(&system, &job).await, [0; 3]);
    system.end().await;
}
