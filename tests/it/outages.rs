use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_nats::Request;
use futures_util::future::{join_all, ready};
use futures_util::{FutureExt as _, StreamExt as _};
use serde_json::{Value, json};
use tailwater::backend::demo::Demo;
use tailwater::backend::{Backend, Failure, Finish, Job, Output};
use tailwater::config::OUTPUT_BUFFER_MAX;
use tailwater::nats::{EventWriter, Log, Nats, Queue, Role};
use tailwater::process_group::Signal;
use tailwater::runtime::Tasks;
use tailwater::wire::{Body, JobId, Status};
use tailwater::worker::{Worker, WorkerSettings};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::support::broker::Broker;
use crate::support::client::follow;
use crate::support::system::{System, limited, started, text, words};
use crate::support::{assert_within, eventually, until, within};

/// Several ack waits of [`short`], which sets one second.
const LONG: Duration = Duration::from_secs(5);

fn short(settings: &mut WorkerSettings) {
    settings.ack_wait = Duration::from_secs(1);
}

/// Kills the only node for this long.
async fn outage(broker: &mut Broker, time: Duration) {
    broker.kill(0);
    sleep(time).await;
    broker.restart(0);
}

/// Submits jobs that outlast the outage, and waits until each has started.
async fn jobs(system: &System, count: u64, words_each: u32) -> Vec<(JobId, Value)> {
    let submit = |n| async move {
        let input = words(words_each, 25, n);
        (
            system.submit(&format!("job-{n}"), input.clone()).await,
            input,
        )
    };
    let jobs = join_all((0..count).map(submit)).await;
    for (job, _) in &jobs {
        system.reaches(job.as_str(), 4).await;
    }
    jobs
}

/// Each job had one attempt, and its whole text is in the log once.
async fn one_attempt_each(system: &System, jobs: &[(JobId, Value)]) {
    let edge = system.edge().await;
    for (job, input) in jobs {
        let seen = follow(&edge.addr, job.as_str()).await;
        seen.assert_whole();
        let starts = seen.of_type("job:started:v1").len();
        assert_eq!((starts, seen.text()), (1, text(input)), "{job}");
        assert_eq!(system.ended(job).await.status, Status::Done);
    }
}

/// Freezes the only node for this long: connections stay open, but get no answers.
async fn hang(broker: &mut Broker, time: Duration) {
    broker.signal(0, Signal::STOP);
    sleep(time).await;
    broker.signal(0, Signal::CONT);
}

async fn jobs_survive_an_outage(
    workers: usize,
    time: Duration,
    change: fn(&mut WorkerSettings),
    outage: impl AsyncFnOnce(&mut Broker, Duration),
) {
    let mut broker = Broker::one();
    let system = System::on(&broker).await;
    for _ in 0..workers {
        system
            .worker(Demo, |settings| {
                (settings.concurrency = 12, change(settings)).1
            })
            .await;
    }
    let words = 25 * u32::try_from(time.as_secs() + 3).unwrap();
    let jobs = jobs(&system, 12, words).await;
    outage(&mut broker, time).await;
    one_attempt_each(&system, &jobs).await;
    system.queue_is_empty().await;
    system.end().await;
}

#[tokio::test]
async fn one_worker_survives_an_outage_of_several_ack_waits() {
    jobs_survive_an_outage(1, LONG, short, outage).await;
}

#[tokio::test]
async fn two_workers_survive_an_outage_of_several_ack_waits() {
    jobs_survive_an_outage(2, LONG, short, outage).await;
}

#[tokio::test]
async fn workers_survive_an_outage_beyond_the_default_ack_wait() {
    jobs_survive_an_outage(2, Duration::from_secs(15), |_| {}, outage).await;
}

#[tokio::test]
async fn workers_survive_a_broker_that_hangs() {
    jobs_survive_an_outage(2, LONG, short, hang).await;
}

#[tokio::test]
async fn a_worker_that_gets_its_own_job_again_continues_it() {
    let system = System::on(Broker::shared_one()).await;
    system.worker(Demo, short).await;
    let client = system.client().await;
    let stream = system.names().jobs_stream();
    let mut acks = client
        .subscribe(format!("$JS.ACK.{stream}.>"))
        .await
        .unwrap();
    client.flush().await.unwrap();
    let input = words(100, 25, 1);
    let job = system.submit("again", input.clone()).await;
    let mut questions = client
        .subscribe(system.names().control(&job))
        .await
        .unwrap();
    // The delivery count in the subject of each ack.
    let delivered = |ack: &async_nats::Message| ack.subject.split('.').nth(4).unwrap().to_owned();
    let first = within("the worker's answers", acks.next()).await.unwrap();
    assert_eq!(delivered(&first), "1");
    assert_eq!(first.payload, "+WPI");
    // After this nak the queue delivers the job again at once.
    client.publish(first.subject, "-NAK".into()).await.unwrap();
    let mut newer = acks.filter(|ack| ready(delivered(ack) == "2"));
    assert_eq!(
        within("an answer to the newer one", newer.next())
            .await
            .unwrap()
            .payload,
        "+WPI"
    );
    let state = system.ended(&job).await;
    assert_eq!((state.attempt, state.output), (1, text(&input)));
    let mut end = newer.filter(|ack| ready(ack.payload == "+ACK"));
    within("the ack", end.next()).await.unwrap();
    let question = questions.next().now_or_never();
    assert!(
        question.is_none(),
        "the worker knows by itself what it runs: {question:?}"
    );
    system.end().await;
}

#[tokio::test]
async fn programs_survive_an_outage() {
    let mut broker = Broker::one();
    let system = System::on(&broker).await;
    // One program writes all the time, the other finishes during the outage.
    let program = "import os, sys, time, json\n\
        for n in range(json.load(sys.stdin)): os.write(1, b'%d ' % n); time.sleep(0.05)";
    let worker = || {
        system.worker_process(
            &["--ack-wait", "1s"],
            &["exec", "--", "python3", "-c", program],
        )
    };
    let _workers = [worker(), worker()];
    system.kind_is_known().await;
    let counts = [("long", 160), ("short", 60)];
    for (job, count) in counts {
        system.submit(job, json!(count)).await;
        system.reaches(job, 4).await;
    }
    outage(&mut broker, LONG).await;
    for (job, count) in counts {
        let state = system.ended(&job.parse().unwrap()).await;
        let whole: String = (0..count).map(|n| format!("{n} ")).collect();
        let found = (state.status, state.attempt, state.output);
        assert_eq!(found, (Status::Done, 1, whole), "{job}");
    }
    system.queue_is_empty().await;
    system.end().await;
}

#[tokio::test]
async fn workers_survive_a_long_election() {
    let mut broker = Broker::three();
    let system = System::with(&broker, |settings| settings.shards = 1).await;
    for _ in 0..2 {
        system
            .worker(Demo, |settings| {
                (settings.concurrency = 12, short(settings)).1
            })
            .await;
    }
    let jobs = jobs(&system, 12, 300).await;
    let client = system.client().await;
    let stream = system.names().jobs_stream();
    let answer = client
        .request(format!("$JS.API.CONSUMER.INFO.{stream}.demo"), "".into())
        .await
        .unwrap();
    let info: Value = serde_json::from_slice(&answer.payload).unwrap();
    let leader = broker.index_of(info["cluster"]["leader"].as_str().unwrap());
    broker.kill(leader);
    sleep(LONG).await;
    broker.restart(leader);
    one_attempt_each(&system, &jobs).await;
    system.end().await;
}

/// Produces output as fast as back-pressure allows, and counts it.
#[derive(Clone, Default)]
struct Flood {
    produced: Arc<AtomicUsize>,
    stopped: Arc<AtomicBool>,
}

impl Backend for Flood {
    async fn run(&self, job: Job, out: Output) -> Result<Finish, Failure> {
        let flood = async {
            while out.text(&"x".repeat(1000)).await.is_ok() {
                self.produced.fetch_add(1000, Ordering::Relaxed);
            }
        };
        job.stop.run_until_cancelled(flood).await;
        self.stopped.store(true, Ordering::Relaxed);
        Ok(Finish::default())
    }
}

#[tokio::test]
async fn time_limits_hold_during_an_outage() {
    let mut broker = Broker::one();
    let system = System::on(&broker).await;
    let flood = Flood::default();
    system.worker(flood.clone(), short).await;
    let submission = limited(Value::Null, Some(6000), Some(1000));
    let job = system.submit_with("floods", submission).await;
    system.reaches("floods", 4).await;
    broker.kill(0);
    // Once the buffer is full, output stalls for longer than the silence limit.
    let full = eventually("back-pressure", || async {
        let before = flood.produced.load(Ordering::Relaxed);
        sleep(Duration::from_millis(1500)).await;
        (flood.produced.load(Ordering::Relaxed) == before).then_some(before)
    })
    .await;
    until("the time limit", async || {
        flood.stopped.load(Ordering::Relaxed)
    })
    .await;
    broker.restart(0);
    let state = system.ended(&job).await;
    let error = state.error.unwrap();
    let found = (state.attempt, error.code.as_str(), error.message.as_str());
    assert_eq!(found, (1, "timed_out", "the job exceeded its time limit"));
    assert!(
        full < state.output.len() + 2 * OUTPUT_BUFFER_MAX,
        "{full} of {}",
        state.output.len()
    );
    system.end().await;
}

#[tokio::test]
async fn a_worker_stops_in_time_during_an_outage() {
    let mut broker = Broker::one();
    let system = System::on(&broker).await;
    let nats = Nats::connect(&system.options).await.unwrap();
    let settings = WorkerSettings {
        grace: Duration::ZERO,
        ..WorkerSettings::new("demo".parse().unwrap())
    };
    let worker = Worker::open(&nats, Demo, settings).await.unwrap();
    let stop = CancellationToken::new();
    let tasks = Tasks::new(CancellationToken::new());
    tasks.spawn(worker.run(stop.clone()));
    let jobs = jobs(&system, 3, 500).await;
    broker.kill(0);
    // Some jobs wait for the broker, another one for its backend.
    sleep(Duration::from_secs(1)).await;
    let asked = Instant::now();
    stop.cancel();
    assert!(tasks.end(Duration::from_secs(20)).await);
    nats.close().await;
    assert_within(asked, Duration::from_secs(16));
    broker.restart(0);
    system.demo().await;
    for (job, input) in &jobs {
        let state = system.ended(job).await;
        assert_eq!((state.attempt, state.output), (2, text(input)));
    }
    system.end().await;
}

#[tokio::test]
async fn a_worker_answers_only_for_jobs_it_owns() {
    let system = System::on(Broker::shared_one()).await;
    system.demo().await;
    let job = system.submit("asked", words(10_000, 20, 1)).await;
    system.reaches("asked", 4).await;
    let client = system.client().await;
    // A worker may answer nowhere else.
    let answer_to = format!("{}.alive.{job}", system.names().prefix());
    let asks = Request::new().inbox(answer_to);
    let answer = client.send_request(system.names().control(&job), asks);
    assert_eq!(answer.await.unwrap().payload, r#"{"attempt":1}"#);
    let nats = Nats::connect(&system.as_role(Role::Worker(None))).await;
    let queue = Queue::new(Log::open(&nats.unwrap()).await.unwrap());
    assert!(queue.is_owner_alive(&job, 1).await);
    assert!(
        !queue.is_owner_alive(&job, 2).await,
        "another attempt than that which is asked for"
    );
    // No worker answers for an attempt that ended or was superseded.
    let retrying = Body::Retrying {
        code: "c".into(),
        message: "m".into(),
        delay_ms: 60_000,
    };
    let parted = system.submit("parted", words(10_000, 20, 1)).await;
    for (job, attempt, body) in [(job, 2, started("another")), (parted, 1, retrying)] {
        system.reaches(job.as_str(), 4).await;
        loop {
            let last = system.last(&job).await;
            let mut writer =
                EventWriter::new(system.log.clone(), job.clone(), attempt, Some(&last));
            if writer.append(body.clone()).await.is_ok() {
                break;
            }
        }
        assert!(!queue.is_owner_alive(&job, 1).await, "{body:?}");
    }
    system.end().await;
}
