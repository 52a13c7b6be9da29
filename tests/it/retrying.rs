use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::{Either, select};
use serde_json::Value;
use tailwater::backend::demo::Demo;
use tailwater::config::DELIVERIES_MAX;
use tailwater::nats::{Claim, Delivery, Nats};
use tailwater::process_group::Signal;
use tailwater::wire::{Body, JobId, Status};
use tokio::time::{sleep, timeout};

use crate::support::broker::Broker;
use crate::support::client::{Seen, follow};
use crate::support::link::{Flow, Link};
use crate::support::scenarios::on_one_and_three;
use crate::support::system::{System, limited, text, words};
use crate::support::within;

on_one_and_three!(
    a_retry_delay_holds_although_the_queue_does_not_know_it,
    an_answer_to_an_old_delivery_does_not_affect_a_newer_one,
    a_worker_frozen_during_a_failure_retries_once,
);

const ACK_WAIT: Duration = Duration::from_secs(1);

/// Another worker of the kind `demo`, which claims jobs and does not run them.
async fn claim(system: &System) -> Claim {
    claim_of(system, "demo", ACK_WAIT).await
}

async fn claim_of(system: &System, kind: &str, ack_wait: Duration) -> Claim {
    let nats = Nats::connect(&system.options).await.unwrap();
    let kind = kind.parse().unwrap();
    within("a claim", Claim::open(&nats, &kind, ack_wait))
        .await
        .unwrap()
}

async fn next(claim: &mut Claim) -> Delivery {
    within("a delivery", claim.next(1)).await.unwrap()
}

/// Writes the failure of an attempt, as a worker would that dies right after it.
async fn fail_once(system: &System, job: &JobId, delay: Duration) {
    let mut writer = system.take_over(job, 1).await;
    let retrying = Body::Retrying {
        code: "exit_status".into(),
        message: "75".into(),
        delay_ms: u64::try_from(delay.as_millis()).unwrap(),
    };
    writer.append(retrying).await.unwrap();
}

/// How long the attempt after each `job:retrying` waited, in milliseconds.
fn waited(seen: &Seen) -> Vec<u64> {
    let retries = seen.retries().into_iter();
    retries.map(|(_, _, waited)| waited).collect()
}

async fn a_retry_delay_holds_although_the_queue_does_not_know_it(broker: &Broker) {
    let system = System::on(broker).await;
    let delay = Duration::from_millis(1500);
    let mut dies = claim(&system).await;
    let input = words(5, 0, 1);
    let job = system.submit("retry", input.clone()).await;
    let delivery = next(&mut dies).await;
    fail_once(&system, &job, delay).await;
    // Delivered again at once: the healthy worker must wait for the rest of the delay.
    delivery.hand_back(None).await;
    system.demo().await;
    let edge = system.edge().await;
    let seen = follow(&edge.addr, "retry").await;
    seen.assert_text(text(&input));
    let [waited] = waited(&seen)[..] else {
        panic!("{:?}", seen.events)
    };
    // The timestamp is a little older than the stored message.
    assert!((1490..10_000).contains(&waited), "{waited} ms");
    assert_eq!(system.ended(&job).await.attempt, 2);
    system.end().await;
}

#[tokio::test]
async fn a_delayed_job_can_be_cancelled_and_can_time_out() {
    let system = System::on(Broker::shared_one()).await;
    let _known = claim(&system).await;
    let submission = limited(words(5, 0, 1), Some(1500), None);
    let limited = system.submit_with("limited", submission).await;
    let cancelled = system.submit("cancelled", words(5, 0, 1)).await;
    for job in [&limited, &cancelled] {
        fail_once(&system, job, Duration::from_secs(600)).await;
    }
    system.demo().await;
    let state = system.ended(&limited).await;
    assert_eq!(state.error.unwrap().code, "timed_out");
    system.cancel(&cancelled).await;
    assert_eq!(system.ended(&cancelled).await.status, Status::Cancelled);
    system.end().await;
}

async fn an_answer_to_an_old_delivery_does_not_affect_a_newer_one(broker: &Broker) {
    let system = System::on(broker).await;
    // Longer than a busy machine delays a progress report.
    let ack_wait = ACK_WAIT * 5;
    let mut first = claim_of(&system, "demo", ack_wait).await;
    let mut second = claim_of(&system, "demo", ack_wait).await;
    let mut third = claim_of(&system, "demo", ack_wait).await;
    system.submit("slow", words(5, 0, 1)).await;
    let old = next(&mut first).await;
    assert_eq!(old.deliveries, 1);
    // After the ack wait the queue delivers the job to another worker.
    let newer = next(&mut second).await;
    assert_eq!(newer.deliveries, 2);
    // A late keep-alive does not make the old delivery current again.
    old.report_progress().await;
    old.hand_back(None).await;
    let healthy = async {
        loop {
            newer.report_progress().await;
            sleep(ack_wait / 25).await;
        }
    };
    let handed_out = timeout(ack_wait * 2, third.next(1));
    match select(std::pin::pin!(handed_out), std::pin::pin!(healthy)).await {
        Either::Left((handed_out, _)) => assert!(handed_out.is_err(), "{handed_out:?}"),
        Either::Right(_) => unreachable!("it never returns"),
    }
    newer.hand_back(None).await;
    assert_eq!(next(&mut third).await.deliveries, 3);
    // The newest delivery is handed back at once: this ack wait is longer than the test waits.
    let mut patient = claim_of(&system, "patient", Duration::from_secs(600)).await;
    system.submit_to("patient", "back", words(5, 0, 1)).await;
    for deliveries in 1..=3 {
        let delivery = next(&mut patient).await;
        assert_eq!(delivery.deliveries, deliveries);
        delivery.hand_back(None).await;
    }
    system.end().await;
}

async fn a_worker_frozen_during_a_failure_retries_once(broker: &Broker) {
    let system = System::on(broker).await;
    // The second attempt takes longer than the delay, so that a late answer for the first one would
    // interrupt it.
    let program = "echo attempt $TAILWATER_ATTEMPT; \
        if [ $TAILWATER_ATTEMPT = 1 ]; then sleep 1; exit 75; else sleep 3; fi";
    let flags = ["--ack-wait", "1s", "--retry-delay", "1500ms"];
    let worker = system.worker_process(&flags, &["exec", "--", "sh", "-c", program]);
    system.kind_is_known().await;
    let job = system.submit("frozen", Value::Null).await;
    system.reaches("frozen", 3).await;
    worker.signal(Signal::STOP);
    // The program ends while the worker is frozen.
    sleep(ACK_WAIT * 2).await;
    worker.signal(Signal::CONT);
    let edge = system.edge().await;
    let seen = follow(&edge.addr, "frozen").await;
    seen.assert_whole();
    for waited in waited(&seen) {
        assert!(waited >= 1500 * 3 / 4, "{waited} ms");
    }
    let state = system.ended(&job).await;
    assert_eq!(
        (state.status, state.attempt),
        (Status::Done, 2),
        "{:?}",
        seen.events
    );
    assert_eq!(seen.text(), "attempt 2\n");
    system.end().await;
}

#[tokio::test]
async fn unsuccessful_deliveries_use_up_no_attempt() {
    let system = System::on(Broker::shared_one()).await;
    let mut dies = claim(&system).await;
    let input = words(5, 0, 1);
    let job = system.submit("unlucky", input.clone()).await;
    let mut deliveries = 0;
    while deliveries < DELIVERIES_MAX {
        let delivery = next(&mut dies).await;
        deliveries = delivery.deliveries;
        delivery.hand_back(None).await;
    }
    dies.close().await;
    // The deliveries above did not use up the job's only attempt.
    system
        .worker(Demo, |settings| settings.max_attempts = 1)
        .await;
    let state = system.ended(&job).await;
    let found = (state.status, state.attempt, state.output);
    assert_eq!(found, (Status::Done, 1, text(&input)));
    let edge = system.edge().await;
    let seen = follow(&edge.addr, "unlucky").await;
    assert_eq!(seen.events[&2]["code"], "not_begun");
    system.end().await;
}

/// The second worker asks before the first one creates the kind's consumer, and reads the answer
/// afterwards.
#[tokio::test]
async fn the_first_workers_of_a_kind_have_the_same_ack_wait() {
    let broker = Broker::shared_one();
    let system = System::on(broker).await;
    let link = Link::to(&broker.addr(0)).await;
    let late = system.reached_at(&format!("nats://{}", link.addr));
    let kind = "new".parse().unwrap();
    let early = Nats::connect(&system.options).await.unwrap();
    let late = Nats::connect(&late.options).await.unwrap();
    let client = system.client().await;
    let mut questions = client
        .subscribe(format!(
            "$JS.API.CONSUMER.INFO.{}.new",
            system.names().jobs_stream()
        ))
        .await
        .unwrap();
    client.flush().await.unwrap();
    link.set(Flow::Late(Duration::from_millis(500)));
    let second = Claim::open(&late, &kind, ACK_WAIT * 2);
    let first = async {
        questions.next().await;
        Claim::open(&early, &kind, ACK_WAIT).await
    };
    let (first, second) = within("both claims", futures_util::future::join(first, second)).await;
    assert_eq!(first.unwrap().ack_wait(), ACK_WAIT);
    assert_eq!(second.unwrap().ack_wait(), ACK_WAIT);
    system.end().await;
}
