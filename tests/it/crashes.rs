use std::time::{Duration, SystemTime};

use futures_util::future::join_all;
use serde_json::{Value, json};
use tailwater::backend::demo::Demo;
use tailwater::nats::{AppendError, EventWriter, Log, Nats, Queue};
use tailwater::process_group::Signal;
use tailwater::wire::{Body, EventType, JobId, Submission};
use tailwater::worker::{Worker, WorkerSettings};
use tokio::time::{Instant, sleep};

use crate::support::broker::Broker;
use crate::support::client::follow_through;
use crate::support::client::{Seen, follow};
use crate::support::scenarios::on_one_and_three;
use crate::support::system::{System, text, words};
use crate::support::{assert_within, eventually, within};

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
    let died = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap();
    let _second = system.worker_process(&[], &["demo"]);
    seen.follow(&mut client).await;
    seen.assert_whole();
    let starts: Vec<_> = starts(&seen);
    assert_eq!(
        starts.iter().map(|start| start.1).collect::<Vec<_>>(),
        [1, 2]
    );
    assert_eq!(seen.text(), text(&input));
    let state = system.ended(&job).await;
    assert_eq!((state.attempt, state.output), (2, text(&input)));
    let taken_over =
        Duration::from_millis(seen.events[&starts[1].0]["ts"].as_u64().unwrap()) - died;
    assert!(taken_over < Duration::from_secs(10), "{taken_over:?}");
    system.end().await;
}

/// The start of each attempt: sequence number and attempt.
fn starts(seen: &Seen) -> Vec<(u64, u64)> {
    seen.events
        .iter()
        .filter(|(_, event)| event["type"] == "job:started:v1")
        .map(|(seq, event)| (*seq, event["attempt"].as_u64().unwrap()))
        .collect()
}

async fn the_broker_fences_a_worker_that_was_frozen(broker: &Broker) {
    let system = System::on(broker).await;
    let mut frozen = system.worker_process(&[], &["demo"]);
    system.kind_is_known().await;
    let input = words(400, 25, 12);
    let job = system.submit("freeze", input.clone()).await;
    system.reaches("freeze", 6).await;
    // A writer at the same position as the frozen worker, to test the broker's fence itself.
    let before = system.log.last(&job).await.unwrap().unwrap();
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
    seen.assert_whole();
    let (second, _) = starts(&seen)[1];
    let attempts_after: Vec<_> = seen
        .events
        .range(second..)
        .map(|(_, event)| &event["attempt"])
        .collect();
    assert!(
        attempts_after.iter().all(|attempt| **attempt == 2),
        "{attempts_after:?}"
    );
    assert_eq!(seen.text(), text(&input));
    // The worker that was frozen has dropped the job, so it stops at once.
    frozen.signal(Signal::TERM);
    assert!(frozen.ends_within(Duration::from_secs(20)).await.success());
    system.end().await;
}

async fn a_stopping_worker_hands_its_jobs_over_within_a_second(broker: &Broker) {
    let system = System::on(broker).await;
    let first = system
        .worker(Demo, |settings| settings.grace = Duration::ZERO)
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
    let stopped = Instant::now();
    for (n, job) in jobs.iter().enumerate() {
        let second = system.last_event("a second attempt", job, |last| last.attempt == 2);
        second.await;
        assert!(
            stopped.elapsed() < Duration::from_secs(1),
            "job {n}: {:?}",
            stopped.elapsed()
        );
    }
    for (n, job) in jobs.iter().enumerate() {
        let state = system.ended(job).await;
        assert_eq!(
            (state.attempt, state.output),
            (2, text(&words(100, 25, n as u64)))
        );
    }
    system.end().await;
}

#[tokio::test]
async fn a_broker_restart_loses_and_repeats_nothing() {
    let mut broker = Broker::one();
    let system = System::on(&broker).await;
    system.demo().await;
    let edge = system.edge().await;
    let mut jobs: Vec<_> = (0..20).map(|n| Seen::of(&format!("kill-{n}"))).collect();
    for (n, seen) in jobs.iter().enumerate() {
        system.submit(&seen.job, words(200, 40, n as u64)).await;
    }
    let chaos = async {
        for round in 1..=3 {
            system.reaches("kill-0", 8 * round).await;
            broker.kill(0);
            sleep(Duration::from_millis(300)).await;
            broker.restart(0);
        }
    };
    let addr = edge.addr.clone();
    let clients = join_all(jobs.iter_mut().map(|seen| follow_through(&addr, seen)));
    within("all jobs", futures_util::future::join(chaos, clients)).await;
    for (n, seen) in jobs.iter().enumerate() {
        seen.assert_whole();
        assert_eq!(seen.text(), text(&words(200, 40, n as u64)));
        assert_eq!(starts(seen).len(), 1, "{} was taken over", seen.job);
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
        let submitted = Instant::now();
        eventually("the end", || async {
            log.last(&job)
                .await
                .ok()
                .flatten()
                .filter(|last| last.event_type.is_end())
        })
        .await;
        assert_within(submitted, Duration::from_secs(2));
    }
    system.end().await;
}

#[tokio::test]
async fn killing_the_leader_under_load_loses_and_repeats_nothing() {
    let mut broker = Broker::three();
    let system = System::with(&broker, |settings| settings.shards = 1).await;
    system.demo().await;
    let edge = system.edge().await;
    let mut jobs: Vec<_> = (0..50).map(|n| Seen::of(&format!("leader-{n}"))).collect();
    for (n, seen) in jobs.iter().enumerate() {
        system.submit(&seen.job, words(300, 30, n as u64)).await;
    }
    let chaos = async {
        system.reaches("leader-0", 15).await;
        let leader = system.leader(&broker).await;
        broker.kill(leader);
        sleep(Duration::from_secs(3)).await;
        broker.restart(leader);
    };
    let addr = edge.addr.clone();
    let clients = join_all(jobs.iter_mut().map(|seen| follow_through(&addr, seen)));
    within("all jobs", futures_util::future::join(chaos, clients)).await;
    for (n, seen) in jobs.iter().enumerate() {
        seen.assert_whole();
        assert_eq!(seen.text(), text(&words(300, 30, n as u64)));
    }
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
    let last = system.log.last(&job).await.unwrap().unwrap();
    let mut writer = EventWriter::new(system.log.clone(), job.clone(), 1, Some(&last));
    writer
        .append(Body::Done {
            usage: None,
            finish_reason: None,
        })
        .await
        .unwrap();
    let stop = system.demo().await;
    system.leaves_queue(&job).await;
    let last = system.log.last(&job).await.unwrap().unwrap();
    assert_eq!((last.event_type, last.seq.0), (EventType::Done, 2));
    stop.cancel();
    system.end().await;
}
