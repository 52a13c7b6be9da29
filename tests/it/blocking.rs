use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;
use tailwater::backend::demo::Demo;
use tailwater::backend::{Backend, Failure, Finish, Job, Output};
use tailwater::nats::Nats;
use tailwater::runtime::{Tasks, panics};
use tailwater::wire::{EventType, Status};
use tailwater::worker::{Worker, WorkerSettings};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::support::broker::Broker;
use crate::support::client::follow;
use crate::support::system::{System, limited, text, words};
use crate::support::{assert_within, until, within};

/// Blocks its thread for `block` milliseconds, or until `released` is set; then it may panic.
/// Without `block` it runs the demo backend.
#[derive(Clone, Default)]
struct Blocking {
    released: Arc<AtomicBool>,
}

impl Backend for Blocking {
    async fn run(&self, job: Job, out: Output) -> Result<Finish, Failure> {
        let how = &job.input["block"];
        if how.is_null() {
            return Demo.run(job, out).await;
        }
        if let Some(millis) = how.as_u64() {
            block(Duration::from_millis(millis));
        } else {
            out.text("blocks").await?;
            while !self.released.load(Ordering::Relaxed) {
                block(Duration::from_millis(10));
            }
            assert_ne!(how, "then panic");
        }
        out.text("done").await?;
        Ok(Finish::default())
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the other jobs must not notice it"
)]
fn block(time: Duration) {
    std::thread::sleep(time);
}

fn short(settings: &mut WorkerSettings) {
    settings.ack_wait = Duration::from_secs(1);
}

#[tokio::test]
async fn jobs_keep_their_attempt_when_every_thread_is_blocked() {
    let system = System::on(Broker::shared_one()).await;
    system.worker(Blocking::default(), short).await;
    let talks = system.submit("talks", words(60, 20, 1)).await;
    system.reaches("talks", 3).await;
    let mut jobs = Vec::new();
    for n in 0..std::thread::available_parallelism().unwrap().get().max(2) + 2 {
        jobs.push(
            system
                .submit(&format!("blocks-{n}"), json!({"block": 2500}))
                .await,
        );
    }
    for job in &jobs {
        let state = system.ended(job).await;
        let found = (state.status, state.attempt, state.output.as_str());
        assert_eq!(found, (Status::Done, 1, "done"), "{job}");
    }
    let state = system.ended(&talks).await;
    assert_eq!((state.attempt, state.output), (1, text(&words(60, 20, 1))));
    system.end().await;
}

#[tokio::test]
async fn jobs_run_beside_a_blocked_backend() {
    let system = System::on(Broker::shared_one()).await;
    let backend = Blocking::default();
    system
        .worker(backend.clone(), |settings| {
            (settings.backend_threads, settings.concurrency) = (2, 64)
        })
        .await;
    system
        .submit("blocks", json!({"block": "until released"}))
        .await;
    system.reaches("blocks", 3).await;
    for n in 0..20 {
        let job = system.submit(&format!("talks-{n}"), words(20, 20, n)).await;
        let state = system.ended(&job).await;
        assert_eq!((state.attempt, state.output), (1, text(&words(20, 20, n))));
    }
    assert!(!backend.released.swap(true, Ordering::Relaxed));
    system.ended(&"blocks".parse().unwrap()).await;
    system.end().await;
}

#[tokio::test]
async fn a_job_can_end_while_its_backend_blocks() {
    let system = System::on(Broker::shared_one()).await;
    let backend = Blocking::default();
    let nats = Nats::connect(&system.options).await.unwrap();
    let settings = WorkerSettings {
        grace: Duration::ZERO,
        ..WorkerSettings::new("demo".parse().unwrap())
    };
    let worker = Worker::open(&nats, backend.clone(), settings)
        .await
        .unwrap();
    let stop = CancellationToken::new();
    let tasks = Tasks::new(CancellationToken::new());
    tasks.spawn(worker.run(stop.clone()));
    let submission = |timeout| limited(json!({"block": "until released"}), timeout, None);
    let late = system.submit_with("late", submission(Some(1000))).await;
    let state = system.ended(&late).await;
    let error = state.error.unwrap();
    let found = (state.status, &*error.code);
    assert_eq!(found, (Status::Failed, "timed_out"));
    let cancelled = system.submit_with("cancelled", submission(None)).await;
    system.reaches("cancelled", 3).await;
    system.cancel(&cancelled).await;
    assert_eq!(system.ended(&cancelled).await.status, Status::Cancelled);
    // Both backend threads are blocked, so this job never starts.
    let waits = system.submit_with("waits", submission(None)).await;
    system.reaches("waits", 2).await;
    let asked = Instant::now();
    stop.cancel();
    system
        .last_event("the hand-over", &waits, |last| {
            last.event_type == EventType::Retrying
        })
        .await;
    assert!(tasks.end(Duration::from_secs(20)).await);
    assert_within(asked, Duration::from_secs(15));
    backend.released.store(true, Ordering::Relaxed);
    system.demo().await;
    system.end().await;
}

#[tokio::test]
async fn output_that_a_stalled_worker_has_not_received_is_not_silence() {
    let system = System::on(Broker::shared_one()).await;
    system.demo().await;
    let mut jobs = Vec::new();
    for seed in 0..12 {
        let input = words(20, 5, seed);
        let submission = limited(input.clone(), None, Some(1000));
        let job = system
            .submit_with(&format!("talks-{seed}"), submission)
            .await;
        jobs.push((job, input));
    }
    for (job, _) in &jobs {
        system.reaches(job.as_str(), 3).await;
    }
    // The worker runs on the thread of this test.
    block(Duration::from_millis(1500));
    for (job, input) in &jobs {
        let state = system.ended(job).await;
        let found = (state.status, state.output);
        assert_eq!(found, (Status::Done, text(input)), "{job}");
    }
    system.end().await;
}

/// Panics in as many attempts as its input says.
struct Panics;

impl Backend for Panics {
    fn continues(&self) -> bool {
        CONTINUES_PANICS.swap(false, Ordering::Relaxed) && panic!("cannot say whether it continues")
    }

    async fn run(&self, job: Job, out: Output) -> Result<Finish, Failure> {
        out.text("half a ").await?;
        if u64::from(job.attempt) <= job.input["panics"].as_u64().unwrap_or(0) {
            panic!("no case for {}", "é".repeat(100_000));
        }
        out.text("sentence").await?;
        Ok(Finish::default())
    }
}

static CONTINUES_PANICS: AtomicBool = AtomicBool::new(false);

#[tokio::test]
async fn a_panicking_backend_fails_only_its_attempt() {
    let system = System::on(Broker::shared_one()).await;
    let before = panics();
    system
        .worker(Panics, |settings| {
            settings.pause = Duration::from_millis(10)
        })
        .await;
    let edge = system.edge().await;
    system.submit("panics", json!({"panics": 1})).await;
    let seen = follow(&edge.addr, "panics").await;
    seen.assert_text("half a sentence");
    let retrying = seen.of_type("job:retrying:v1")[0];
    assert_eq!(retrying["code"], "backend_panicked");
    let message = retrying["message"].as_str().unwrap();
    assert!(
        message.contains("no case for é") && message.len() < 400,
        "{message}"
    );
    let doomed = system.submit("doomed", json!({"panics": 99})).await;
    let state = system.ended(&doomed).await;
    let error = state.error.unwrap();
    let found = (state.attempt, &*error.code);
    assert_eq!(found, (5, "attempts_exhausted"));
    CONTINUES_PANICS.store(true, Ordering::Relaxed);
    let job = system.submit("continues", json!({})).await;
    let state = system.ended(&job).await;
    assert_eq!((state.status, state.attempt), (Status::Done, 2));
    let panicked = panics() - before;
    assert!(panicked >= 7, "{panicked}");
    system.end().await;
}

/// Returns while another task, or none, still holds its output.
struct Keeps {
    stopped: Arc<Notify>,
}

impl Backend for Keeps {
    #[expect(clippy::disallowed_methods, reason = "a backend may do this")]
    async fn run(&self, job: Job, out: Output) -> Result<Finish, Failure> {
        for n in 0..1000 {
            out.text(&format!("{n} ")).await?;
        }
        if job.input == "leak" {
            std::mem::forget(out);
        } else {
            let stopped = Arc::clone(&self.stopped);
            tokio::spawn(async move {
                while out.text("more ").await.is_ok() {}
                stopped.notify_one();
            });
        }
        Ok(Finish::default())
    }
}

#[tokio::test]
async fn a_job_ends_although_its_output_handle_is_kept() {
    let system = System::on(Broker::shared_one()).await;
    let stopped = Arc::new(Notify::new());
    system
        .worker(
            Keeps {
                stopped: Arc::clone(&stopped),
            },
            |_| {},
        )
        .await;
    let whole: String = (0..1000).map(|n| format!("{n} ")).collect();
    let leaks = system.submit("leaks", json!("leak")).await;
    let state = system.ended(&leaks).await;
    let found = (state.status, state.output.as_str());
    assert_eq!(found, (Status::Done, whole.as_str()));
    let moves = system.submit("moves", json!("move")).await;
    let state = system.ended(&moves).await;
    assert_eq!(state.status, Status::Done);
    let rest = state
        .output
        .strip_prefix(&whole)
        .expect("the output from before it returned");
    assert!(
        rest.split_terminator(' ').all(|word| word == "more"),
        "{rest}"
    );
    within("the end of the other task", stopped.notified()).await;
    system.end().await;
}

#[tokio::test]
async fn a_panic_after_a_cancel_is_counted() {
    let system = System::on(Broker::shared_one()).await;
    let backend = Blocking::default();
    system.worker(backend.clone(), short).await;
    let job = system
        .submit("abandoned", json!({"block": "then panic"}))
        .await;
    system.reaches("abandoned", 3).await;
    system.cancel(&job).await;
    // The worker has abandoned the backend by then.
    assert_eq!(system.ended(&job).await.status, Status::Cancelled);
    system.queue_is_empty().await;
    let before = panics();
    backend.released.store(true, Ordering::Relaxed);
    until("the panic to be counted", async || panics() > before).await;
    system.end().await;
}
