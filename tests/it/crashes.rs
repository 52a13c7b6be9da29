use std::time::{Duration, SystemTime};

use futures_util::future::join_all;
use serde_json::{Value, json};
use tailwater::backend::demo::Demo;
use tailwater::nats::{AppendError, EventWriter, Log, Nats, Queue};
use tailwater::process_group::Signal;
use tailwater::wire::{Body, EventType, JobId, Submission};
use tailwater::worker::{Worker, WorkerSettings};
use tokio::time::sleep;

use crate::support::broker::Broker;
use crate::support::client::follow_through;
use crate::support::client::{Seen, follow};
use crate::support::scenarios::on_one_and_three;
use crate::support::system::{System, text, words};
use crate::support::{eventually, timed, until, within};

on_one_and_three!(
    the_next_worker_supersedes_a_killed_one,
    the_broker_fences_a_worker_that_was_frozen,
    a_stopping_worker_hands_its_jobs_over_within_a_second,
);

async fn the_next_worker_supersedes_a_killed_one(broker: &Broker) {
    let system = System::on(broker).await;
    let mut first = system.worker_process(&[], &["demo"]);
    system.kind_is_known().await;
    let input = words(300, 60, 11);
    let job = system.submit("kill", input.clone()).await;
    let edge = system.edge().await;
    let (mut client, mut seen) = edge.watch("kill").await;
    system.reaches("kill", 8).await;
    first.kill().await;
    let died = SystemTime::UNIX_EPOCH.elapsed().unwrap();
    let _second = system.worker_process(&[], &["demo"]);
    seen.follow(&mut client).await;
    seen.assert_text(text(&input));
    let [_, second] = seen.of_type("job:started:v1")[..] else {
        panic!("{:?}", seen.events)
    };
    let state = system.ended(&job).await;
    assert_eq!((state.attempt, state.output), (2, text(&input)));
    let taken_over = Duration::from_millis(second["ts"].as_u64().unwrap()) - died;
    assert!(taken_over < Duration::from_secs(10), "{taken_over:?}");
    system.end().await;
}

async fn the_broker_fences_a_worker_that_was_frozen(broker: &Broker) {
    let system = System::on(broker).await;
    let mut frozen = system.worker_process(&[], &["demo"]);
    system.kind_is_known().await;
    let input = words(400, 25, 12);
    let job = system.submit("freeze", input.clone()).await;
    system.reaches("freeze", 6).await;
    // A writer at the same position as the frozen worker, to test the broker's fence itself.
    let before = system.last(&job).await;
    frozen.signal(Signal::STOP);
    let _second = system.worker_process(&[], &["demo"]);
    system
        .last_event("a second attempt", &job, |last| last.attempt == 2)
        .await;
    let mut zombie = EventWriter::new(system.log.clone(), job.clone(), 1, Some(&before));
    let chunk = Body::Chunk {
        text: "zombie".into(),
        channel: Default::default(),
    };
    assert!(matches!(
        zombie.append(chunk).await,
        Err(AppendError::Superseded)
    ));
    frozen.signal(Signal::CONT);
    let edge = system.edge().await;
    let seen = follow(&edge.addr, "freeze").await;
    seen.assert_text(text(&input));
    seen.assert_fenced(2);
    // The worker that was frozen has dropped the job, so it stops at once.
    frozen.signal(Signal::TERM);
    assert!(frozen.ends_within(Duration::from_secs(20)).await.success());
    system.end().await;
}

async fn a_stopping_worker_hands_its_jobs_over_within_a_second(broker: &Broker) {
    let system = System::on(broker).await;
    // After the ack wait the other worker would get them in any case.
    let first = system
        .worker(Demo, |settings| {
            settings.grace = Duration::ZERO;
            settings.ack_wait = Duration::from_secs(600);
        })
        .await;
    let jobs = join_all((0..20).map(|n| {
        let system = &system;
        async move { system.submit(&format!("hand-{n}"), words(100, 25, n)).await }
    }))
    .await;
    for job in &jobs {
        system.reaches(job.as_str(), 4).await;
    }
    system.demo().await;
    first.cancel();
    let second = async {
        for job in &jobs {
            let second = system.last_event("a second attempt", job, |last| last.attempt == 2);
            second.await;
        }
    };
    let ((), took) = Box::pin(timed(second)).await;
    assert!(took < Duration::from_secs(1), "{took:?}");
    for (n, job) in jobs.iter().enumerate() {
        let state = system.ended(job).await;
        let found = (state.attempt, state.output);
        assert_eq!(found, (2, text(&words(100, 25, n as u64))));
    }
    system.end().await;
}

/// Follows `count` jobs of this many words at this rate through `chaos`, which gets the first one's
/// id.
async fn jobs_survive(
    system: &System,
    count: u64,
    (length, rate): (u32, u32),
    chaos: impl AsyncFnOnce(&str),
) -> Vec<Seen> {
    system.demo().await;
    let edge = system.edge().await;
    let mut jobs: Vec<_> = (0..count).map(|n| Seen::of(&format!("job-{n}"))).collect();
    for (n, seen) in (0..).zip(&jobs) {
        system.submit(&seen.job, words(length, rate, n)).await;
    }
    let clients = join_all(jobs.iter_mut().map(|seen| follow_through(&edge.addr, seen)));
    within(
        "all jobs",
        futures_util::future::join(chaos("job-0"), clients),
    )
    .await;
    for (n, seen) in (0..).zip(&jobs) {
        seen.assert_text(text(&words(length, rate, n)));
    }
    jobs
}

#[tokio::test]
async fn a_broker_restart_loses_and_repeats_nothing() {
    let mut broker = Broker::one();
    let system = System::on(&broker).await;
    let chaos = async |job: &str| {
        for round in 1..=3 {
            system.reaches(job, 8 * round).await;
            broker.kill(0);
            sleep(Duration::from_millis(300)).await;
            broker.restart(0);
        }
    };
    for seen in Box::pin(jobs_survive(&system, 20, (200, 40), chaos)).await {
        let attempts = seen.of_type("job:started:v1").len();
        assert_eq!(attempts, 1, "{} was taken over", seen.job);
    }
    system.end().await;
}

/// Waits until a worker of the kind `demo` has asked the broker for jobs.
async fn a_worker_waits(system: &System) {
    let client = system.client().await;
    let subject = format!(
        "$JS.API.CONSUMER.INFO.{}.demo",
        system.names().jobs_stream()
    );
    eventually("a request for jobs", || async {
        let answer = client.request(subject.clone(), "".into()).await.ok()?;
        let info: Value = serde_json::from_slice(&answer.payload).unwrap();
        (info["num_waiting"] == 1).then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_idle_worker_claims_jobs_as_soon_as_the_broker_is_back() {
    let mut broker = Broker::one();
    let system = System::on(&broker).await;
    let nats = Nats::connect(&system.options).await.unwrap();
    let worker = Worker::open(&nats, Demo, WorkerSettings::new("demo".parse().unwrap()))
        .await
        .unwrap();
    system
        .tasks
        .spawn(worker.run(system.tasks.stop().child_token()));
    // On the worker's own connections, so that the submit waits for no other ones.
    let log = Log::open(&nats).await.unwrap();
    let queue = Queue::new(log.clone());
    for n in 0..3 {
        a_worker_waits(&system).await;
        broker.kill(0);
        let connected = |wanted| {
            let nats = &nats;
            eventually("the connections", move || async move {
                (nats.is_connected() == wanted).then_some(())
            })
        };
        connected(false).await;
        broker.restart(0);
        connected(true).await;
        let job: JobId = format!("next-{n}").parse().unwrap();
        let submission = Submission::new("demo".parse().unwrap(), words(1, 0, 1));
        eventually("a submit", || async {
            queue.submit(&job, &submission).await.ok()
        })
        .await;
        let last = async || log.last(&job).await.ok().flatten();
        let end = Box::pin(until("the end", async || {
            last().await.is_some_and(|last| last.event_type.is_end())
        }));
        // A request for jobs that was lost costs most of `CLAIM_WAIT`. The worker runs in this process.
        let ((), took) = timed(end).await;
        assert!(took < Duration::from_secs(2), "{took:?}");
    }
    system.end().await;
}

#[tokio::test]
async fn killing_the_leader_under_load_loses_and_repeats_nothing() {
    let mut broker = Broker::three();
    let system = System::with(&broker, |settings| settings.shards = 1).await;
    let chaos = async |job: &str| {
        system.reaches(job, 15).await;
        let leader = system.leader(&broker).await;
        broker.kill(leader);
        sleep(Duration::from_secs(3)).await;
        broker.restart(leader);
    };
    Box::pin(jobs_survive(&system, 50, (300, 30), chaos)).await;
    system.end().await;
}

#[tokio::test]
async fn an_ended_job_without_an_ack_is_not_run_again() {
    let system = System::on(Broker::shared_one()).await;
    let mut first = system.worker_process(&[], &["demo"]);
    system.kind_is_known().await;
    first.kill().await;
    // The state that a worker leaves when it dies between the end event and the ack.
    let job = system.submit("acked", json!(null)).await;
    let done = Body::Done {
        usage: None,
        finish_reason: None,
    };
    system.writer(&job, 1).await.append(done).await.unwrap();
    let stop = system.demo().await;
    system.leaves_queue(&job).await;
    let last = system.last(&job).await;
    assert_eq!((last.event_type, last.seq.0), (EventType::Done, 2));
    stop.cancel();
    system.end().await;
}
