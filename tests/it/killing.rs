use std::time::{Duration, SystemTime};

use futures_util::future::join_all;
use serde_json::{Value, json};
use tailwater::backend::demo::Demo;
use tailwater::nats::{AppendError, Log, LogWriter, Names, Nats, Queue};
use tailwater::process_group::Signal;
use tailwater::wire::{Body, EventType, JobId, Status, Submission};
use tailwater::worker::{Worker, WorkerSettings};
use tokio::time::{Instant, sleep};

use crate::support::broker::Broker;
use crate::support::client::follow_through;
use crate::support::client::{Client, Encoding, Frame, Seen, follow};
use crate::support::scenarios::{in_both_encodings, on_one_and_three};
use crate::support::system::{System, text, words};
use crate::support::{eventually, within};

on_one_and_three!(
    a_worker_that_is_killed_is_replaced_and_its_text_superseded,
    a_worker_that_was_frozen_is_refused_by_the_broker,
    an_edge_that_is_stopped_tells_its_clients_to_come_back,
    a_worker_that_is_stopped_hands_its_jobs_over_within_a_second,
    a_job_whose_attempts_are_used_up_fails_and_says_so,
);

in_both_encodings!(clients_of_an_edge_that_is_killed_resume_on_another);

async fn a_worker_that_is_killed_is_replaced_and_its_text_superseded(broker: &Broker) {
    let system = System::on(broker).await;
    let mut first = system.worker_process(&[], &["demo"]);
    system.kind_is_known().await;
    let input = words(300, 60, 11);
    let job = system.submit("kill", input.clone()).await;
    let edge = system.edge().await;
    let (mut client, mut seen) = (edge.client().await, Seen::of("kill"));
    client.watch(&seen).await;
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

/// Where attempts begin: number and attempt.
fn starts(seen: &Seen) -> Vec<(u64, u64)> {
    seen.events
        .iter()
        .filter(|(_, event)| event["type"] == "job:started:v1")
        .map(|(seq, event)| (*seq, event["attempt"].as_u64().unwrap()))
        .collect()
}

async fn a_worker_that_was_frozen_is_refused_by_the_broker(broker: &Broker) {
    let system = System::on(broker).await;
    let mut frozen = system.worker_process(&[], &["demo"]);
    system.kind_is_known().await;
    let input = words(400, 25, 12);
    let job = system.submit("freeze", input.clone()).await;
    system.reaches("freeze", 6).await;
    // A writer that stands where the frozen one stands, to ask the broker itself.
    let before = system.log.last(&job).await.unwrap().unwrap();
    frozen.signal(Signal::STOP);
    let _second = system.worker_process(&[], &["demo"]);
    system
        .last_event("a second attempt", &job, |last| last.attempt == 2)
        .await;
    let mut zombie = LogWriter::new(system.log.clone(), job.clone(), 1, Some(&before));
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
    // The frozen worker lives and has let go: it takes the next job.
    frozen.signal(Signal::TERM);
    assert!(frozen.ends_within(Duration::from_secs(20)).await.success());
    system.end().await;
}

async fn clients_of_an_edge_that_is_killed_resume_on_another(broker: &Broker, encoding: Encoding) {
    let system = System::on(broker).await;
    system.demo().await;
    let (mut first, first_addr) = system.edge_process(&[]).await;
    let (_second, second_addr) = system.edge_process(&[]).await;
    let mut jobs = Vec::new();
    for n in 0..10 {
        let job = format!("edge-{n}");
        system.submit(&job, words(200, 50, n)).await;
        let (mut client, seen) = (
            Client::connect_in(&first_addr, encoding).await,
            Seen::of(&job),
        );
        client.watch(&seen).await;
        jobs.push((n, client, seen));
    }
    for (_, client, seen) in &mut jobs {
        for _ in 0..10 {
            let Frame::Json(frame) = client.next().await else {
                panic!("cut off early")
            };
            seen.take(&frame);
        }
    }
    first.kill().await;
    for (n, mut client, mut seen) in jobs {
        assert_eq!(seen.follow(&mut client).await, Frame::Cut);
        let mut client = Client::connect_in(&second_addr, encoding).await;
        client.watch(&seen).await;
        seen.follow(&mut client).await;
        seen.assert_whole();
        assert_eq!(seen.text(), text(&words(200, 50, n)));
    }
    system.end().await;
}

async fn an_edge_that_is_stopped_tells_its_clients_to_come_back(broker: &Broker) {
    let system = System::on(broker).await;
    system.demo().await;
    let (mut first, addr) = system.edge_process(&[]).await;
    system.submit("stop", words(100, 50, 4)).await;
    let (mut client, mut seen) = (Client::connect(&addr).await, Seen::of("stop"));
    client.watch(&seen).await;
    system.reaches("stop", 5).await;
    first.signal(Signal::TERM);
    assert_eq!(seen.follow(&mut client).await, Frame::Closed(1012));
    assert!(first.ends_within(Duration::from_secs(5)).await.success());
    let second = system.edge().await;
    let mut client = second.client().await;
    client.watch(&seen).await;
    seen.follow(&mut client).await;
    seen.assert_whole();
    system.end().await;
}

async fn a_worker_that_is_stopped_hands_its_jobs_over_within_a_second(broker: &Broker) {
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

async fn a_job_whose_attempts_are_used_up_fails_and_says_so(broker: &Broker) {
    let system = System::on(broker).await;
    let mut first = system.worker_process(&[], &["demo"]);
    system.kind_is_known().await;
    let job = system.submit("poison", words(10_000, 50, 1)).await;
    system.reaches("poison", 4).await;
    first.kill().await;
    system
        .worker(Demo, |settings| settings.max_attempts = 1)
        .await;
    let state = system.ended(&job).await;
    let error = state.error.unwrap();
    assert_eq!(
        (state.status, error.code.as_str(), error.retryable),
        (Status::Failed, "attempts_exhausted", false)
    );
    system.end().await;
}

#[tokio::test]
async fn a_broker_that_is_killed_and_started_again_loses_and_doubles_nothing() {
    let mut broker = Broker::one();
    let system = System::on(&broker).await;
    system.demo().await;
    let edge = system.edge().await;
    let mut jobs: Vec<_> = (0..20).map(|n| Seen::of(&format!("kill-{n}"))).collect();
    for (n, seen) in jobs.iter().enumerate() {
        system.submit(&seen.job, words(200, 40, n as u64)).await;
    }
    let chaos = async {
        for _ in 0..3 {
            sleep(Duration::from_millis(700)).await;
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
        assert_eq!(starts(seen).len(), 1, "nobody took {} over", seen.job);
    }
    system.end().await;
}

/// Waits until a worker of the kind `demo` has asked the broker for jobs.
async fn a_worker_waits(system: &System) {
    let client = async_nats::connect(system.url()).await.unwrap();
    let subject = format!(
        "$JS.API.CONSUMER.INFO.{}.demo",
        Names::new(&system.options.prefix).jobs_stream()
    );
    eventually("a request for jobs", || async {
        let answer = client.request(subject.clone(), "".into()).await.ok()?;
        let info: Value = serde_json::from_slice(&answer.payload).unwrap();
        (info["num_waiting"] == 1).then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_idle_worker_takes_the_next_job_at_once_when_the_broker_is_back() {
    let mut broker = Broker::one();
    let system = System::on(&broker).await;
    let nats = Nats::connect(&system.options).await.unwrap();
    let worker = Worker::open(&nats, Demo, WorkerSettings::new("demo".parse().unwrap()))
        .await
        .unwrap();
    system
        .tasks
        .spawn(worker.run(system.tasks.stop().child_token()));
    // Over the worker's connections, so that the submit does not wait for those of others.
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
        assert!(
            submitted.elapsed() < Duration::from_secs(2),
            "{:?}",
            submitted.elapsed()
        );
    }
    system.end().await;
}

#[tokio::test]
async fn a_leader_that_is_killed_under_load_loses_and_doubles_nothing() {
    let mut broker = Broker::three();
    let system = System::with(&broker, |settings| settings.shards = 1).await;
    system.demo().await;
    let edge = system.edge().await;
    let mut jobs: Vec<_> = (0..50).map(|n| Seen::of(&format!("leader-{n}"))).collect();
    for (n, seen) in jobs.iter().enumerate() {
        system.submit(&seen.job, words(300, 30, n as u64)).await;
    }
    let chaos = async {
        sleep(Duration::from_secs(2)).await;
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
async fn a_job_whose_end_was_stored_but_not_acked_is_not_run_again() {
    let system = System::on(Broker::shared_one()).await;
    let mut first = system.worker_process(&[], &["demo"]);
    system.kind_is_known().await;
    first.kill().await;
    // What a worker leaves that dies between the end event and the ack.
    let job = system.submit("acked", json!(null)).await;
    let last = system.log.last(&job).await.unwrap().unwrap();
    let mut writer = LogWriter::new(system.log.clone(), job.clone(), 1, Some(&last));
    writer
        .append(Body::Done {
            usage: None,
            finish_reason: None,
        })
        .await
        .unwrap();
    let stop = system.demo().await;
    eventually("an empty queue", || async {
        system
            .queue
            .queued_kind(&job)
            .await
            .ok()
            .filter(Option::is_none)
            .map(|_| ())
    })
    .await;
    let last = system.log.last(&job).await.unwrap().unwrap();
    assert_eq!((last.event_type, last.seq.0), (EventType::Done, 2));
    stop.cancel();
    system.end().await;
}
