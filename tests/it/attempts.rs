use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tailwater::backend::demo::Demo;
use tailwater::backend::{Backend, Failure, Finish, Job, Output, Retry};
use tailwater::nats::{CancelOutcome, Published};
use tailwater::process_group::Signal;
use tailwater::wire::{EventType, JobId, Seq, Status};
use tailwater::worker::WorkerSettings;
use tokio::sync::Notify;
use tokio::time::sleep;

use crate::support::backends::{Flaky, TwoWords};
use crate::support::broker::Broker;
use crate::support::client::{Seen, follow};
use crate::support::process::{Process, runs};
use crate::support::proxy::Proxy;
use crate::support::scenarios::on_one_and_three;
use crate::support::system::{System, limited, text, words};
use crate::support::{assert_fields, eventually, random, timed, until};

on_one_and_three!(
    a_retryable_failure_is_retried_after_a_delay,
    a_job_that_runs_out_of_attempts_reports_the_last_failure,
    a_fatal_failure_ends_the_job_at_once,
    an_attempt_that_was_handed_back_does_not_count,
    a_continuing_attempt_keeps_the_previous_output,
    a_job_that_takes_too_long_times_out,
    a_job_that_is_silent_for_too_long_times_out,
    a_job_waiting_for_a_retry_is_cancelled_at_once,
);

async fn a_retryable_failure_is_retried_after_a_delay(broker: &Broker) {
    let system = System::on(broker).await;
    system
        .worker(Flaky(Retry::Later), |settings| {
            settings.pause = Duration::from_millis(200)
        })
        .await;
    let edge = system.edge().await;
    system.submit("flaky", json!({"failures": 2})).await;
    let seen = follow(&edge.addr, "flaky").await;
    seen.assert_text("half a sentence");
    let retries = seen.retries();
    assert_eq!(retries.len(), 2);
    for (n, (retrying, started, passed)) in retries.into_iter().enumerate() {
        assert_eq!(retrying["code"], "flaky");
        assert_eq!(retrying["message"], format!("attempt {} failed", n + 1));
        assert_fields!(started, {"type": "job:started:v1", "attempt": n + 2});
        let delay = retrying["delay_ms"].as_u64().unwrap();
        // 200 ms ± 25 %, doubled for the second retry.
        let expected = 150 * (n as u64 + 1)..=250 * (n as u64 + 1);
        assert!(expected.contains(&delay), "{delay} is not in {expected:?}");
        assert!(passed + 1 >= delay, "{passed} ms have passed, not {delay}");
    }
    system.end().await;
}

async fn a_job_that_runs_out_of_attempts_reports_the_last_failure(broker: &Broker) {
    let system = System::on(broker).await;
    let backend = Flaky(Retry::After(Duration::from_millis(10)));
    system
        .worker(backend, |settings| settings.max_attempts = 3)
        .await;
    let job = system.submit("doomed", json!({"failures": 99})).await;
    let state = system.ended(&job).await;
    let error = state.error.unwrap();
    let found = (state.status, state.attempt, error.code.as_str());
    assert_eq!(found, (Status::Failed, 3, "attempts_exhausted"));
    let expected = "no attempt succeeded; the last one: attempt 3 failed (flaky)";
    assert_eq!(error.message, expected);
    system.end().await;
}

async fn a_fatal_failure_ends_the_job_at_once(broker: &Broker) {
    let system = System::on(broker).await;
    system.worker(Flaky(Retry::Never), |_| {}).await;
    let job = system.submit("final", json!({"failures": 1})).await;
    let state = system.ended(&job).await;
    let error = state.error.unwrap();
    let found = (state.attempt, error.code.as_str(), error.retryable);
    assert_eq!(found, (1, "flaky", false));
    assert_eq!(error.message, "attempt 1 failed");
    system.end().await;
}

async fn an_attempt_that_was_handed_back_does_not_count(broker: &Broker) {
    let system = System::on(broker).await;
    let input = words(60, 40, 3);
    let job = system.submit("deploys", input.clone()).await;
    for attempt in 1..=4 {
        let stop = system
            .worker(Demo, |settings| {
                (settings.grace, settings.max_attempts) = (Duration::ZERO, 2)
            })
            .await;
        if attempt < 4 {
            eventually("the attempt", || async {
                let last = system.log.last(&job).await.ok().flatten();
                last.filter(|last| (last.attempt, last.event_type) == (attempt, EventType::Chunk))
            })
            .await;
            stop.cancel();
            system
                .last_event("the hand-over", &job, |last| {
                    last.event_type == EventType::Retrying
                })
                .await;
        }
    }
    let state = system.ended(&job).await;
    let found = (state.status, state.attempt, state.handed_back);
    assert_eq!(found, (Status::Done, 4, 3));
    assert_eq!(state.output, text(&input));
    system.end().await;
}

/// Whether each attempt continued from the output of earlier ones.
fn continues(seen: &Seen) -> Vec<bool> {
    let starts = seen.of_type("job:started:v1");
    starts
        .iter()
        .map(|start| start["continues"] == true)
        .collect()
}

/// Everything that the program of [`counting`] prints.
fn counted() -> String {
    (0..40).map(|n| format!("{n} ")).collect()
}

/// A worker process whose program counts to 40 and continues from the previous output. The first
/// attempt counts slowly once there is some output, so that it is killed before its end.
fn counting(system: &System) -> Process {
    // One write for a number and its space, so that a kill cannot separate them.
    let program = "import json, os, sys, time\n\
        begun = json.load(sys.stdin)['output'].count(' ')\n\
        is_first = os.environ['TAILWATER_ATTEMPT'] == '1'\n\
        for n in range(begun, 40): os.write(1, b'%d ' % n); time.sleep(1 if is_first and n > 11 else 0.05)";
    system.worker_process(
        &["--ack-wait", "1s"],
        &["exec", "--continues", "--", "python3", "-c", program],
    )
}

async fn a_continuing_attempt_keeps_the_previous_output(broker: &Broker) {
    let system = System::on(broker).await;
    let mut first = counting(&system);
    system.kind_is_known().await;
    system.submit("counts", Value::Null).await;
    system.reaches("counts", 8).await;
    first.kill().await;
    let _second = counting(&system);
    let edge = system.edge().await;
    let seen = follow(&edge.addr, "counts").await;
    seen.assert_whole();
    assert_eq!(continues(&seen), [false, true]);
    // The output of both attempts together has every number once.
    let chunks = seen
        .events
        .values()
        .filter_map(|event| event["text"].as_str());
    assert_eq!(chunks.collect::<String>(), counted());
    system.end().await;
}

#[tokio::test]
async fn an_attempt_starts_over_when_early_output_has_expired() {
    let system = System::with(Broker::shared_one(), |settings| {
        settings.shards = 1;
        settings.max_bytes = Some(64 << 10);
    })
    .await;
    let edge = system.edge().await;
    let mut first = counting(&system);
    system.kind_is_known().await;
    let (mut client, mut seen) = edge.watch("counts").await;
    let job = system.submit("counts", Value::Null).await;
    system.reaches("counts", 8).await;
    first.kill().await;
    // Another job fills the shard slowly, so that only the first events expire.
    let neighbour = "neighbour".parse().unwrap();
    let mut stream_seq = 0;
    while system.log.first(&job).await.unwrap().unwrap().seq.0 < 4 {
        let payload = vec![b'x'; 256].into();
        let outcome = system.log.append(&neighbour, stream_seq, payload).await;
        let Published::Stored(stored) = outcome else {
            panic!("{outcome:?}")
        };
        stream_seq = stored;
    }
    let state = system.state(&job).await.unwrap();
    assert!(
        state.truncated && !state.output.starts_with("0 "),
        "{}",
        state.output
    );
    let _second = counting(&system);
    seen.follow(&mut client).await;
    seen.assert_whole();
    assert_eq!(continues(&seen), [false, false]);
    seen.assert_text(counted());
    let state = system.ended(&job).await;
    assert_eq!((state.output, state.truncated), (counted(), false));
    system.end().await;
}

async fn timed_out(system: &System, job: &JobId, message: &str) -> Seen {
    let state = system.ended(job).await;
    let error = state.error.unwrap();
    let found = (error.code.as_str(), error.message.as_str());
    assert_eq!(found, ("timed_out", message));
    let edge = system.edge().await;
    let seen = follow(&edge.addr, job.as_str()).await;
    seen.assert_whole();
    seen
}

async fn a_job_that_takes_too_long_times_out(broker: &Broker) {
    let system = System::on(broker).await;
    let late = "the job exceeded its time limit";
    // No worker claims it in time, so it never starts.
    let submission = limited(words(1, 0, 1), Some(1), None);
    let waits = system.submit_with("waits", submission).await;
    system.demo().await;
    assert_eq!(timed_out(&system, &waits, late).await.last, 2);
    // It runs for too long. A busy machine starts it in time.
    let submission = limited(words(10_000, 50, 1), Some(6000), None);
    let runs = system.submit_with("runs", submission).await;
    let seen = timed_out(&system, &runs, late).await;
    let first = &seen.events[&1]["ts"];
    let last = &seen.events[&seen.last]["ts"];
    let took = last.as_u64().unwrap() - first.as_u64().unwrap();
    assert!((5900..7500).contains(&took), "{took} ms");
    assert!(text(&words(10_000, 50, 1)).starts_with(&seen.text()) && !seen.text().is_empty());
    // The worker's own limit is stricter than the job's.
    let strict = |settings: &mut WorkerSettings| {
        settings.kind = "strict".parse().unwrap();
        settings.limits.timeout_ms = Some(400);
    };
    system.worker(Flaky(Retry::Later), strict).await;
    let mut submission = limited(json!({"failures": 99}), Some(60_000), None);
    submission.kind = "strict".parse().unwrap();
    let fails = system.submit_with("fails", submission).await;
    timed_out(&system, &fails, late).await;
    system.end().await;
}

async fn a_job_that_is_silent_for_too_long_times_out(broker: &Broker) {
    let system = System::on(broker).await;
    system.demo().await;
    let silent = "the job produced no output for too long";
    // A word every 200 ms is not silent for 800; one every 10 s is.
    let submission = limited(words(8, 5, 1), None, Some(800));
    let talks = system.submit_with("talks", submission).await;
    let slow = limited(json!({"words": 9, "rate": 0.1}), None, Some(800));
    let stalls = system.submit_with("stalls", slow).await;
    let seen = timed_out(&system, &stalls, silent).await;
    assert!(!seen.text().is_empty());
    assert_eq!(system.ended(&talks).await.status, Status::Done);
    system.end().await;
}

async fn a_job_waiting_for_a_retry_is_cancelled_at_once(broker: &Broker) {
    let system = System::on(broker).await;
    system
        .worker(Flaky(Retry::After(Duration::from_secs(600))), |_| {})
        .await;
    let job = system.submit("later", json!({"failures": 1})).await;
    system
        .last_event("the pause", &job, |last| {
            last.event_type == EventType::Retrying
        })
        .await;
    assert_eq!(system.state(&job).await.unwrap().status, Status::Queued);
    let seq = system.cancel_running(&job).await;
    let last = system.last(&job).await;
    let found = (last.event_type, last.seq);
    assert_eq!(found, (EventType::Cancelled, seq.successor()));
    system.end().await;
}

#[tokio::test]
async fn output_that_waits_for_its_flush_is_not_silence() {
    let system = System::on(Broker::shared_one()).await;
    system
        .worker(Demo, |settings| {
            settings.flush.interval = Duration::from_secs(2)
        })
        .await;
    let input = words(40, 10, 1);
    let submission = limited(input.clone(), None, Some(1000));
    let job = system.submit_with("talks", submission).await;
    let state = system.ended(&job).await;
    assert_eq!((state.status, state.output), (Status::Done, text(&input)));
    system.end().await;
}

#[tokio::test]
async fn a_program_that_ignores_sigterm_is_killed_within_a_second() {
    let system = System::on(Broker::shared_one()).await;
    let stubborn = "trap '' TERM; echo $$; while :; do sleep 0.1; done";
    let _worker = system.worker_process(&[], &["exec", "--", "sh", "-c", stubborn]);
    system.kind_is_known().await;
    let job = system.submit("stubborn", Value::Null).await;
    system.reaches("stubborn", 3).await;
    let output = system.state(&job).await.unwrap().output;
    let pid = output.trim().parse().unwrap();
    assert!(runs(pid));
    let killed = async {
        system.cancel(&job).await;
        until("the end of the program", async || !runs(pid)).await;
    };
    let ((), took) = timed(killed).await;
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert_eq!(system.ended(&job).await.status, Status::Cancelled);
    system.end().await;
}

#[tokio::test]
async fn a_worker_logs_why_its_jobs_failed() {
    let system = System::on(Broker::shared_one()).await;
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let stderr = std::fs::File::create(&log).unwrap();
    let fails = "echo 'no\ndisk' >&2; test $TAILWATER_ATTEMPT = 2 || exit 75; exit 3";
    let flags = ["worker", "--kind", "demo", "--retry-delay", "10ms"];
    let worker = system.command(&flags, &["exec", "--", "sh", "-c", fails]);
    let _worker = Process::start_with(worker, &[], stderr);
    system.kind_is_known().await;
    let job = system.submit("fails", Value::Null).await;
    assert_eq!(system.ended(&job).await.attempt, 2);
    let submission = limited(Value::Null, Some(1), None);
    let late = system.submit_with("late", submission).await;
    system.ended(&late).await;
    for (outcome, reason) in [
        (
            "to be retried job=fails kind=demo attempt=1 ",
            r#"code="exit_status" reason="exit status 75: no\ndisk""#,
        ),
        (
            "failed job=fails kind=demo attempt=2 ",
            r#"code="exit_status" reason="exit status 3: no\ndisk""#,
        ),
        (
            "failed job=late kind=demo ",
            r#"code="timed_out" reason="the job exceeded its time limit""#,
        ),
    ] {
        let line = eventually("the line of the log", || async {
            let log = std::fs::read_to_string(&log).unwrap();
            log.lines()
                .find(|line| line.contains(outcome))
                .map(str::to_owned)
        });
        let line = line.await;
        assert!(line.contains(reason), "{line}");
        assert!(line.contains(" WARN tailwater::worker"), "{line}");
    }
    system.end().await;
}

#[tokio::test]
async fn a_job_that_kills_its_workers_fails_after_its_last_attempt() {
    let system = System::on(Broker::shared_three()).await;
    // The program's parent is its guard, whose parent is the worker.
    let poison = "echo drink; kill -9 $(cut -d ' ' -f 4 /proc/$PPID/stat); sleep 100";
    let flags = ["--ack-wait", "1s", "--max-attempts", "3"];
    let start = || system.worker_process(&flags, &["exec", "--", "sh", "-c", poison]);
    let mut worker = start();
    system.kind_is_known().await;
    let job = system.submit("poison", Value::Null).await;
    for _ in 0..3 {
        assert!(!worker.ends_within(Duration::from_secs(20)).await.success());
        worker = start();
    }
    let state = system.ended(&job).await;
    let error = state.error.unwrap();
    let found = (state.status, state.attempt, error.code.as_str());
    assert_eq!(found, (Status::Failed, 3, "attempts_exhausted"));
    // The worker that ended the job is still running.
    worker.signal(Signal::TERM);
    assert!(worker.ends_within(Duration::from_secs(20)).await.success());
    system.end().await;
}

#[tokio::test]
async fn a_second_signal_stops_a_worker_without_waiting_for_its_jobs() {
    let system = System::on(Broker::shared_one()).await;
    let mut worker = system.worker_process(&["--grace", "1h"], &["demo"]);
    system.kind_is_known().await;
    system.submit("long", words(10_000, 10, 1)).await;
    system.reaches("long", 3).await;
    worker.signal(Signal::TERM);
    let claims = format!("CONSUMER.INFO.{}.demo", system.names().jobs_stream());
    until("the worker claims no more", async || {
        system.ask_jetstream(&claims, &json!({})).await["num_waiting"] == 0
    })
    .await;
    // It continues its job.
    let next = system.submit("next", words(1, 0, 1)).await;
    let running = system.last(&"long".parse().unwrap()).await.seq.0;
    system.reaches("long", running + 5).await;
    assert_eq!(system.state(&next).await.unwrap().status, Status::Queued);
    worker.signal(Signal::TERM);
    worker.ends_within(Duration::from_secs(2)).await;
    system.end().await;
}

/// Host and port of a system's only node.
fn broker_addr(system: &System) -> &str {
    system.url().strip_prefix("nats://").unwrap()
}

/// A proxy to the broker of a system.
async fn proxy(system: &System) -> Proxy {
    Proxy::to(broker_addr(system)).await
}

/// Disconnects the clients of a proxy, until the proxy leads to the broker again.
fn disconnect(proxy: &Proxy) {
    // No process listens on this port.
    proxy.lead_to("127.0.0.1:1");
    proxy.cut();
}

#[tokio::test]
async fn a_worker_that_lost_the_network_is_superseded_and_fenced() {
    let system = System::on(Broker::shared_one()).await;
    let proxy = proxy(&system).await;
    let start = |system: &System| system.worker_process(&["--ack-wait", "2s"], &["demo"]);
    let mut first = start(&system.reached_at(&format!("nats://{}", proxy.addr)));
    system.kind_is_known().await;
    let input = words(200, 25, 12);
    let job = system.submit("island", input.clone()).await;
    system.reaches("island", 6).await;
    disconnect(&proxy);
    let _second = start(&system);
    system
        .last_event("a second attempt", &job, |last| last.attempt == 2)
        .await;
    // The first worker now publishes what it has buffered, and the broker refuses it.
    proxy.lead_to(broker_addr(&system));
    let edge = system.edge().await;
    let seen = follow(&edge.addr, "island").await;
    seen.assert_text(text(&input));
    seen.assert_fenced(2);
    // It has dropped the job, so it stops at once.
    first.signal(Signal::TERM);
    assert!(first.ends_within(Duration::from_secs(20)).await.success());
    system.end().await;
}

/// Produces no output until it is stopped.
struct Silent;

impl Backend for Silent {
    async fn run(&self, job: Job, _out: Output) -> Result<Finish, Failure> {
        job.stop.cancelled().await;
        Ok(Finish::default())
    }
}

/// A silent worker that reaches the broker through a proxy, and its job.
async fn silent(system: &System, id: &str, ack_wait: Duration) -> (Proxy, JobId) {
    let proxy = proxy(system).await;
    let far = system.reached_at(&format!("nats://{}", proxy.addr));
    far.worker(Silent, |settings| settings.ack_wait = ack_wait)
        .await;
    let job = system.submit(id, words(5, 0, 1)).await;
    system.reaches(id, 2).await;
    (proxy, job)
}

#[tokio::test]
async fn a_silent_worker_learns_of_a_cancel_it_missed() {
    let system = System::on(Broker::shared_one()).await;
    let (proxy, job) = silent(&system, "deaf", Duration::from_secs(6)).await;
    disconnect(&proxy);
    assert_eq!(system.cancel(&job).await, CancelOutcome::Requested(Seq(3)));
    proxy.lead_to(broker_addr(&system));
    let state = system.ended(&job).await;
    let found = (state.status, state.attempt, state.seq);
    assert_eq!(found, (Status::Cancelled, 1, Seq(4)));
    system.end().await;
}

#[tokio::test]
async fn a_superseded_silent_worker_does_not_block_the_job() {
    let system = System::on(Broker::shared_one()).await;
    let (proxy, job) = silent(&system, "zombie", Duration::from_secs(2)).await;
    disconnect(&proxy);
    let mut second = system.worker_process(&[], &["exec", "--", "sleep", "100"]);
    let attempt = async |attempt: u32| {
        system
            .last_event("an attempt", &job, |last| last.attempt == attempt)
            .await
    };
    attempt(2).await;
    proxy.lead_to(broker_addr(&system));
    second.kill().await;
    system.demo().await;
    attempt(3).await;
    assert_eq!(system.ended(&job).await.output, text(&words(5, 0, 1)));
    system.end().await;
}

#[tokio::test]
async fn a_job_continues_after_all_its_events_expired() {
    let system = System::with(Broker::shared_one(), |settings| settings.shards = 1).await;
    let go = Arc::new(Notify::new());
    system.worker(TwoWords(Arc::clone(&go)), |_| {}).await;
    let job = system.submit("quiet", Value::Null).await;
    system.reaches("quiet", 3).await;
    // Removes the events as the stream's limits would.
    let log = system.names().chunks(0, &job);
    system.remove(&system.shard(), &log).await;
    go.notify_one();
    let state = system.ended(&job).await;
    let found = (state.status, state.attempt, state.seq);
    assert_eq!(found, (Status::Done, 1, Seq(5)));
    let edge = system.edge().await;
    let seen = follow(&edge.addr, "quiet").await;
    let found = (seen.missing.as_slice(), seen.last);
    assert_eq!(found, ([(1, 3)].as_slice(), 5));
    system.end().await;
}

#[tokio::test]
async fn jobs_survive_fifty_workers_killed_at_random() {
    let system = System::on(Broker::shared_three()).await;
    let flags = ["--ack-wait", "1s", "--max-attempts", "1000"];
    let start = || system.worker_process(&flags, &["demo"]);
    let mut workers = [start(), start(), start()];
    system.kind_is_known().await;
    let mut random = random();
    let mut jobs = Vec::new();
    for kill in 0..50 {
        // Some kills fall between the end of a short job and its ack; long jobs are always
        // interrupted.
        for (words_, rate) in [(3, 100), (40, 80)] {
            let input = words(words_, rate, kill);
            let job = system
                .submit(&format!("mortal-{kill}-{words_}"), input.clone())
                .await;
            jobs.push((job, input));
        }
        sleep(Duration::from_millis(random.u64(20..150))).await;
        let victim = &mut workers[random.usize(..3)];
        victim.kill().await;
        *victim = start();
    }
    let edge = system.edge().await;
    let mut again = 0;
    for (job, input) in &jobs {
        let seen = follow(&edge.addr, job.as_str()).await;
        seen.assert_text(text(input));
        assert_eq!(seen.of_type("job:done:v1").len(), 1, "{job}");
        again += seen.of_type("job:started:v1").len() - 1;
    }
    assert!(again > 10, "the kills interrupted only {again} attempts");
    system.end().await;
}
