//! Watches of unknown jobs: they cost little, and one that starts before its job gets the whole
//! job. A job that starts and ends while it is looked up is not unknown.

use futures_util::StreamExt as _;
use futures_util::future::join_all;
use serde_json::json;
use tailwater::nats::{CancelOutcome, Features, Log, Nats, Queue, QueueUsage, SubmitOutcome};
use tailwater::source::KnownJob;
use tailwater::wire::{JobId, Submission};
use tokio::time::Duration;

use crate::support::broker::Broker;
use crate::support::client::{Client, Seen};
use crate::support::http::stats;
use crate::support::link::{Flow, Link};
use crate::support::scenarios::on_one_and_three;
use crate::support::system::{System, text, words};
use crate::support::{eventually, within};

/// Connections of the client that invents ids, and how many ids each may watch.
const CONNECTIONS: usize = 20;
const WATCHES: usize = 1024;
const BATCH: usize = 64;
/// The memory that one watch of an unknown id may cost, in KiB.
const WATCH_KIB: u64 = 8;

on_one_and_three!(watching_unknown_ids_is_cheap);

/// Watches as many unknown ids as one connection may.
async fn make_up(addr: &str, number: usize) -> Client {
    let mut client = Client::connect(addr).await;
    // In batches: unread answers would block the writes.
    for batch in 0..WATCHES / BATCH {
        for n in 0..BATCH {
            let frame = json!({"op": "watch", "job": format!("made-up-{number}-{batch}-{n}")});
            client.send(frame).await;
        }
        for _ in 0..2 * BATCH {
            let frame = client.op().await;
            assert!(
                frame["op"] == "watching" || frame["op"] == "live",
                "{frame}"
            );
            assert_eq!(frame.get("status"), None);
        }
    }
    client
}

async fn watching_unknown_ids_is_cheap(broker: &Broker) {
    let system = System::on(broker).await;
    system.demo().await;
    let (edge, addr) = system.edge_process(&[]).await;
    let input = words(20, 0, 1);
    let ended = system.submit("there", input.clone()).await;
    system.ended(&ended).await;
    let before = edge.memory();
    let attack = within(
        "the made-up ids",
        join_all((0..CONNECTIONS).map(|number| make_up(&addr, number))),
    )
    .await;
    let cost = edge.memory().saturating_sub(before);
    let count = (CONNECTIONS * WATCHES) as u64;
    assert!(cost < count * WATCH_KIB, "{cost} KiB for {count} watches");
    for job in ["there", "to-come-1", "to-come-2", "to-come-3"] {
        let mut client = Client::connect(&addr).await;
        let mut seen = Seen::of(job);
        client.watch(&seen).await;
        if job != "there" {
            assert_eq!(client.op().await, json!({"op": "watching", "job": job}));
            system.submit(job, input.clone()).await;
        }
        seen.follow(&mut client).await;
        seen.assert_text(text(&input));
    }
    drop(attack);
    eventually("the end of the watches", || async {
        let stats = stats(&addr, "/api/stats").await;
        (stats["watched_jobs"].as_u64()? < 10).then_some(())
    })
    .await;
    drop(edge);
    system.end().await;
}

/// What `look` finds about a job that is submitted, ends and leaves the queue after `look` has asked
/// for its empty log this many times, and before it asks the queue.
async fn found_while_it_runs<T>(
    job: &JobId,
    input: &Submission,
    times: usize,
    look: impl AsyncFnOnce(&Queue) -> T,
) -> T {
    let broker = Broker::shared_one();
    let system = System::on(broker).await;
    system.demo().await;
    let link = Link::to(&broker.addr(0)).await;
    let far = system.reached_at(&format!("nats://{}", link.addr));
    let nats = within("a connection", Nats::connect(&far.options)).await;
    let nats = nats.unwrap();
    let queue = Queue::new(Log::open(&nats).await.unwrap());
    let shard = job.shard(system.log.shards());
    let stream = system.names().chunks_stream(shard);
    let client = system.client().await;
    let gets = format!("$JS.API.STREAM.MSG.GET.{stream}");
    let mut gets = client.subscribe(gets).await.unwrap();
    // Once a request is answered, the subscription is active.
    let info = format!("$JS.API.STREAM.INFO.{stream}");
    client.request(info, "".into()).await.unwrap();
    // The answer to the last request is on its way while the job runs.
    link.set(Flow::Late(Duration::from_secs(1)));
    let run = async {
        for _ in 0..times {
            within("a read of the log", gets.next()).await.unwrap();
        }
        link.set(Flow::Silent);
        system.submit_with(job.as_str(), input.clone()).await;
        system.leaves_queue(job).await;
        link.set(Flow::Open);
    };
    let (found, ()) = tokio::join!(look(&queue), run);
    nats.close().await;
    system.end().await;
    found
}

#[tokio::test]
async fn a_job_that_ends_while_a_cancel_looks_it_up_is_not_unknown() {
    let job = "short".parse().unwrap();
    let input = Submission::new("demo".parse().unwrap(), words(1, 0, 1));
    let cancel = async |queue: &Queue| queue.cancel(&job, None).await.unwrap();
    let found = Box::pin(found_while_it_runs(&job, &input, 2, cancel)).await;
    assert_eq!(found, CancelOutcome::Ended);
}

#[tokio::test]
async fn a_job_that_ends_while_it_is_submitted_to_a_full_queue_is_found() {
    let job = "short".parse().unwrap();
    let input = Submission::new("demo".parse().unwrap(), words(1, 0, 1));
    let full = QueueUsage {
        jobs: u64::MAX,
        bytes: 0,
        bytes_max: 0,
        features: Features::ALL,
    };
    let submit = async |queue: &Queue| queue.submit_if_room(&job, &input, &full).await.unwrap();
    let found = Box::pin(found_while_it_runs(&job, &input, 1, submit)).await;
    assert_eq!(found, SubmitOutcome::Same);
}

#[tokio::test]
async fn a_job_that_ends_while_it_is_looked_up_is_found_in_the_log() {
    let job = "short".parse().unwrap();
    let input = Submission::new("demo".parse().unwrap(), words(1, 0, 1));
    let find = async |queue: &Queue| queue.find(&job).await.unwrap();
    let found = Box::pin(found_while_it_runs(&job, &input, 1, find)).await;
    let is_ended = matches!(&found, Some(KnownJob::Logged(last)) if last.event_type.is_end());
    assert!(is_ended, "{found:?}");
}
