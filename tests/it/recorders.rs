use futures_util::{FutureExt as _, StreamExt as _};
use serde_json::{Value, json};
use tailwater::config::RECORDER_WAIT;
use tailwater::nats::{Log, Nats, Queue, Recorder, SubmitOutcome};
use tailwater::wire::{JobId, Submission};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::support::broker::Broker;
use crate::support::link::{Flow, Link};
use crate::support::system::System;
use crate::support::{assert_within, until, within};

/// A system without a recorder.
async fn unrecorded() -> (Broker, System) {
    let broker = Broker::with_config("");
    let system = System::with(&broker, |settings| settings.shards = 1).await;
    (broker, system)
}

/// Runs a recorder until the token is cancelled.
async fn recording(system: &System) -> CancellationToken {
    let stop = CancellationToken::new();
    let nats = Nats::connect(&system.options).await.unwrap();
    let recorder = Recorder::open(&nats).await.unwrap();
    system.tasks.spawn(recorder.run(stop.clone()));
    stop
}

#[tokio::test]
async fn a_recorder_that_stops_serves_what_it_has_received_at_the_same_time() {
    // Each purge takes a second.
    const PURGES: usize = 20;
    let (_broker, system) = unrecorded().await;
    let prefix = &system.options.prefix;
    for number in 0..PURGES {
        let job = system.submit(&format!("demo:{number}"), json!(1)).await;
        system.cancel(&job).await;
    }
    let nats = Nats::connect(&system.options).await.unwrap();
    let recorder = Recorder::open(&nats).await.unwrap();
    let client = system.client().await;
    let answers = client.subscribe(format!("{prefix}.recorded.*"));
    let answers = answers.await.unwrap();
    for number in 0..PURGES {
        let reply = format!("{prefix}.recorded.{number}");
        let purge = json!({"job": format!("demo:{number}")}).to_string();
        let sent = client.publish_with_reply(format!("{prefix}.record.purge"), reply, purge.into());
        sent.await.unwrap();
    }
    // The broker answers in order: it has the requests, then the recorder has them.
    let ready = client.request(format!("{prefix}.ready"), "".into());
    assert!(within("no responders", ready).await.is_err());
    assert!(nats.is_answering().await);
    let stop = CancellationToken::new();
    stop.cancel();
    within("the end", recorder.run(stop)).await;
    nats.close().await;
    let answers = within("answers", answers.take(PURGES).collect::<Vec<_>>()).await;
    for answer in answers {
        assert_eq!(answer.payload, r#"{"outcome":"purged"}"#);
    }
    system.end().await;
}

#[tokio::test]
async fn a_recorder_tries_no_longer_than_an_edge_waits() {
    let (_broker, system) = unrecorded().await;
    let prefix = &system.options.prefix;
    let stop = recording(&system).await;
    // The log accepts no event, which a writer expects to pass within a minute.
    system.submit("demo:first", json!(1)).await;
    let context = system.jetstream().await;
    let stream = context.get_stream(system.shard()).await.unwrap();
    let mut config = stream.cached_info().config.clone();
    config.discard = async_nats::jetstream::stream::DiscardPolicy::New;
    config.max_messages = 1;
    context.update_stream(config).await.unwrap();
    let asked = Instant::now();
    let job = json!({"job": "demo:second", "kind": "demo", "input": 1}).to_string();
    let request = async_nats::Request::new()
        .timeout(None)
        .inbox(format!("{prefix}.recorded.x"))
        .payload(job.into());
    let client = system.client().await;
    let answer = client.send_request(format!("{prefix}.record.submit"), request);
    let answer = within("an answer", answer).await.unwrap();
    assert_within(asked, RECORDER_WAIT * 2);
    let answer: Value = serde_json::from_slice(&answer.payload).unwrap();
    assert_eq!(answer, json!({"unavailable": "the broker took too long"}));
    stop.cancel();
    system.end().await;
}

/// Otherwise the client library would send it as soon as the broker is back.
#[tokio::test]
async fn a_request_that_was_abandoned_during_an_outage_is_not_made_after_it() {
    let (broker, system) = unrecorded().await;
    let prefix = &system.options.prefix;
    let link = Link::to(&broker.addr(0)).await;
    let far = system.reached_at(&format!("nats://{}", link.addr));
    let nats = Nats::connect(&far.options).await.unwrap();
    let queue = Queue::through_recorders(Log::open(&nats).await.unwrap());
    let client = system.client().await;
    let mut requests = client
        .subscribe(format!("{prefix}.record.*"))
        .await
        .unwrap();
    link.set(Flow::Silent);
    until("lost connections", async || nats.connections().up == 0).await;
    let submission = Submission::new("demo".parse().unwrap(), json!(1));
    let submit = async |id: &str| {
        let job: JobId = id.parse().unwrap();
        queue.submit(&job, &submission).await
    };
    assert!(submit("demo:during").now_or_never().is_none());
    link.set(Flow::Open);
    until("connections", async || nats.is_connected()).await;
    let answered = async {
        let request = within("a request", requests.next()).await.unwrap();
        let asked: Value = serde_json::from_slice(&request.payload).unwrap();
        assert_eq!(asked["job"], "demo:after");
        let answer = json!({"outcome": "new"}).to_string();
        let sent = client.publish(request.reply.unwrap(), answer.into());
        sent.await.unwrap();
    };
    let (outcome, ()) = tokio::join!(submit("demo:after"), answered);
    assert_eq!(outcome.unwrap(), SubmitOutcome::New);
    nats.close().await;
    system.end().await;
}

/// A recorder that was killed has received the request, and does not answer.
#[tokio::test]
async fn a_request_without_an_answer_is_made_again_and_any_answer_counts() {
    let (_broker, system) = unrecorded().await;
    let prefix = &system.options.prefix;
    let nats = Nats::connect(&system.options).await.unwrap();
    let queue = Queue::through_recorders(Log::open(&nats).await.unwrap());
    let client = system.client().await;
    let subject = format!("{prefix}.record.*");
    let mut requests = client.subscribe(subject).await.unwrap();
    let job: JobId = "demo:job".parse().unwrap();
    let submission = Submission::new("demo".parse().unwrap(), json!(1));
    let answered = async {
        let first = within("a request", requests.next()).await.unwrap();
        let second = within("the same request", requests.next()).await.unwrap();
        assert_eq!(first.payload, second.payload);
        // The first recorder was slow.
        for (request, outcome) in [(first, "new"), (second, "same")] {
            let answer = json!({"outcome": outcome}).to_string();
            let sent = client.publish(request.reply.unwrap(), answer.into());
            sent.await.unwrap();
        }
    };
    let submitted = within("an outcome", queue.submit(&job, &submission));
    let (outcome, ()) = tokio::join!(submitted, answered);
    assert_eq!(outcome.unwrap(), SubmitOutcome::New);
    nats.close().await;
    system.end().await;
}

/// Only a stolen key of an edge sends such a request: an edge has checked its inputs.
#[tokio::test]
async fn a_recorder_refuses_an_input_that_is_too_large_in_memory_and_serves_on() {
    let (_broker, system) = unrecorded().await;
    let prefix = &system.options.prefix;
    let stop = recording(&system).await;
    let client = system.client().await;
    let submit = async |name: &str, input: &str| {
        let job = format!(r#"{{"job":"demo:{name}","kind":"demo","input":{input}}}"#);
        let request = async_nats::Request::new()
            .timeout(None)
            .inbox(format!("{prefix}.recorded.{name}"))
            .payload(job.into());
        let answer = client.send_request(format!("{prefix}.record.submit"), request);
        let answer = within("an answer", answer).await.unwrap();
        serde_json::from_slice::<Value>(&answer.payload).unwrap()
    };
    // 240 KB of text, and 20 MB once parsed.
    let heavy = format!("[{}0]", r#"{"":0},"#.repeat(30_000));
    let refused = submit("heavy", &heavy).await;
    let reason = refused["unavailable"].as_str().unwrap();
    assert!(reason.contains("too many small parts"), "{reason}");
    assert_eq!(submit("light", "[1]").await, json!({"outcome": "new"}));
    let heavy: JobId = "demo:heavy".parse().unwrap();
    assert!(system.queue.find(&heavy).await.unwrap().is_none());
    stop.cancel();
    system.end().await;
}
