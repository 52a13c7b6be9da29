use std::time::Duration;

use serde_json::{Value, json};
use tailwater::backend::demo::Demo;
use tailwater::process_group::Signal;
use tailwater::wire::{Body, EventType, JobId, Status, Submission};
use tokio::process::Command;
use tokio::time::{Instant, sleep};

use crate::support::broker::Broker;
use crate::support::client::{Seen, follow};
use crate::support::http::{post, post_refused};
use crate::support::http_server::Server;
use crate::support::process::run_program;
use crate::support::proxy::Proxy;
use crate::support::scenarios::on_one_and_three;
use crate::support::system::{System, limited};
use crate::support::third_party::ThirdParty;
use crate::support::workers::{LIBRARY, PythonWorker};
use crate::support::{assert_fields, assert_within, eventually, python, timed, until};

on_one_and_three!(
    an_exception_fails_only_its_job,
    a_job_that_no_log_can_hold_fails_at_once,
    work_can_request_a_retry,
    concurrent_jobs_are_cancelled_one_by_one,
    time_limits_end_a_job,
    a_worker_that_is_stopped_hands_its_jobs_back,
    a_retry_delay_outlives_its_worker,
    a_killed_worker_is_replaced_and_its_output_continued,
);

/// The work of `examples/worker.py`.
const WORDS: &str = r#"
    for word in str(job.input).split():
        await asyncio.sleep(0.05)
        yield word.upper() + " "
"#;

/// Does what its input says.
const TASKS: &str = r#"
    task = job.input
    if task == "raise":
        yield "so far"
        raise ValueError("no such city")
    if task == "exit":
        sys.exit("enough")
    if task == "number":
        yield 7
    if task == "no-json":
        yield Data({1, 2})
    if task == "bad-usage":
        job.usage = {1, 2}
    if task == "same":
        state = {}
        for n in range(3):
            state["n"] = n
            yield Data(state)
    if task == "code":
        raise Failed("no such city", code="no_city")
    if task == "own-code":
        raise Failed("no such city", code="handed_back")
    if task == "own-code-later":
        failed = Failed("no such city")
        failed.code = "handed_back"
        raise failed
    if task == "parts":
        yield Reasoning("hm")
        yield Data({"city": "Bern"})
        job.usage = {"words": 1}
        job.finish_reason = "length"
    if task == "halves":
        yield "a\ud83d"
        yield "\ude00\udfff"
    if task == "retry" and job.attempt < 3 or task == "always":
        yield "half a "
        raise Retry("try again")
    if task == "hang":
        yield "begun"
        await asyncio.sleep(1000)
    yield "sentence"
"#;

async fn an_exception_fails_only_its_job(broker: &Broker) {
    let system = System::on(broker).await;
    let _worker = PythonWorker::start(&system, TASKS, 1).await;
    for (task, message) in [
        ("raise", "ValueError: no such city"),
        ("exit", "SystemExit: enough"),
        (
            "no-json",
            "TypeError: Object of type set is not JSON serializable",
        ),
        (
            "bad-usage",
            "TypeError: Object of type set is not JSON serializable",
        ),
        (
            "number",
            "TypeError: yield a str, Reasoning or Data, not int",
        ),
    ] {
        let job = system.submit(task, json!(task)).await;
        let state = system.ended(&job).await;
        let error = state.error.unwrap();
        let found = (state.status, state.attempt, error.retryable);
        assert_eq!(found, (Status::Failed, 1, false));
        let found = (error.code.as_str(), error.message.as_str());
        assert_eq!(found, ("exception", message));
    }
    let job = system.submit("halves", json!("halves")).await;
    assert_eq!(system.ended(&job).await.output, "a😀\u{FFFD}sentence");
    system.end().await;
}

async fn a_job_that_no_log_can_hold_fails_at_once(broker: &Broker) {
    let system = System::on(broker).await;
    // The queue takes it from another publisher; as an event of the log it has some more bytes.
    let input = "x".repeat((1 << 20) - 80);
    let queued = json!({"job": "large", "kind": "demo", "input": input}).to_string();
    let subject = format!("{}.jobs.demo.large", system.options.prefix);
    let context = system.jetstream().await;
    let publish = context.publish(subject, queued.into()).await;
    publish.unwrap().await.unwrap();
    let _worker = PythonWorker::start(&system, WORDS, 1).await;
    let state = system.ended(&"large".parse().unwrap()).await;
    let error = state.error.unwrap();
    let found = (state.status, error.code.as_str());
    assert_eq!(found, (Status::Failed, "bad_output"));
    assert!(
        error.message.contains("job:queued:v1 is too large"),
        "{}",
        error.message
    );
    system.queue_is_empty().await;
    system.end().await;
}

async fn work_can_request_a_retry(broker: &Broker) {
    let system = System::on(broker).await;
    let _worker = PythonWorker::start(&system, TASKS, 2).await;
    let always = system
        .submit_with(
            "always",
            Submission::new("demo".parse().unwrap(), json!("always")),
        )
        .await;
    let edge = system.edge().await;
    system.submit("same", json!("same")).await;
    let seen = follow(&edge.addr, "same").await;
    let data: Vec<_> = seen.of_type("job:data:v1");
    let numbers: Vec<_> = data.iter().map(|event| &event["data"]["n"]).collect();
    assert_eq!(numbers, [0, 1, 2], "each value is that of its `yield`");
    system.submit("retry", json!("retry")).await;
    let seen = follow(&edge.addr, "retry").await;
    seen.assert_text("sentence");
    let retries = seen.retries();
    assert_eq!(retries.len(), 2);
    for ((retrying, _, passed), delay) in retries.into_iter().zip([1000, 2000]) {
        assert_fields!(retrying, {"message": "try again", "delay_ms": delay});
        assert!(passed + 20 >= delay, "{passed} ms have passed, not {delay}");
    }
    let state = system.ended(&always).await;
    let error = state.error.unwrap();
    let found = (state.attempt, error.code.as_str());
    assert_eq!(found, (5, "attempts_exhausted"));
    assert!(error.message.ends_with("try again"), "{}", error.message);
    system.end().await;
}

async fn concurrent_jobs_are_cancelled_one_by_one(broker: &Broker) {
    let system = System::on(broker).await;
    // Without the signal it would look at the log only after minutes.
    let settings = "concurrency=3, ack_wait=600";
    let _worker = PythonWorker::start_with(&system, TASKS, settings).await;
    let jobs = system.three_hanging().await;
    let ended = async {
        system.cancel(&jobs[1]).await;
        system.ended(&jobs[1]).await
    };
    let (state, took) = Box::pin(timed(ended)).await;
    assert!(took < Duration::from_secs(1), "{took:?}");
    let found = (state.status, state.attempt, state.output.as_str());
    assert_eq!(found, (Status::Cancelled, 1, "begun"));
    // The slot is free, and the other jobs continue.
    let next = system.submit("next", json!("")).await;
    assert_eq!(system.ended(&next).await.output, "sentence");
    for job in [&jobs[0], &jobs[2]] {
        assert_eq!(system.state(job).await.unwrap().status, Status::Running);
    }
    system.end().await;
}

async fn time_limits_end_a_job(broker: &Broker) {
    let system = System::on(broker).await;
    let _worker = PythonWorker::start(&system, TASKS, 4).await;
    let late = "the job exceeded its time limit";
    let silent = "the job produced no output for too long";
    for (id, task, timeout, silence, message) in [
        ("late", "hang", Some(1200), None, late),
        ("silent", "hang", None, Some(700), silent),
        ("waits", "always", Some(1500), None, late),
    ] {
        let submission = limited(json!(task), timeout, silence);
        let job = system.submit_with(id, submission).await;
        let state = system.ended(&job).await;
        let error = state.error.unwrap();
        let found = (error.code.as_str(), error.message.as_str());
        assert_eq!(found, ("timed_out", message));
        let took = state.ended_at.unwrap() - state.created_at.unwrap();
        assert!((650..4000).contains(&took), "{id}: {took} ms");
    }
    system.end().await;
}

async fn a_worker_that_is_stopped_hands_its_jobs_back(broker: &Broker) {
    let system = System::on(broker).await;
    let settings = "concurrency=3, grace=1";
    let mut worker = PythonWorker::start_with(&system, TASKS, settings).await;
    let job = system.submit("back", json!("hang")).await;
    system.reaches("back", 3).await;
    let stopped = Instant::now();
    worker.process.signal(Signal::TERM);
    assert!(
        worker
            .process
            .ends_within(Duration::from_secs(20))
            .await
            .success()
    );
    let last = system.last(&job).await;
    assert_eq!((last.event_type, last.attempt), (EventType::Retrying, 1));
    // Another worker gets the job long before the ack wait is over.
    let _second = PythonWorker::start(&system, WORDS, 1).await;
    let state = system.ended(&job).await;
    assert_within(stopped, Duration::from_secs(7));
    let found = (state.status, state.attempt, state.output.as_str());
    assert_eq!(found, (Status::Done, 2, "HANG "));
    system.end().await;
}

async fn a_retry_delay_outlives_its_worker(broker: &Broker) {
    let system = System::on(broker).await;
    let job = system.submit("delayed", json!("words")).await;
    let mut writer = system.writer(&job, 1).await;
    let retrying = Body::Retrying {
        code: "c".into(),
        message: "m".into(),
        delay_ms: 4000,
    };
    writer.append(retrying).await.unwrap();
    let _worker = PythonWorker::start(&system, WORDS, 1).await;
    let edge = system.edge().await;
    let seen = follow(&edge.addr, "delayed").await;
    let passed = seen.events[&3]["ts"].as_u64().unwrap() - seen.events[&2]["ts"].as_u64().unwrap();
    assert!((3950..12_000).contains(&passed), "{passed} ms");
    assert_eq!((seen.text().as_str(), seen.last), ("WORDS ", 5));
    system.end().await;
}

/// Counts to ten, and continues where an earlier attempt stopped. The first attempt stops at three.
const COUNT: &str = r#"
    for number in range(len((job.previous_output or "").split()), 10):
        yield f"{number} "
        await asyncio.sleep(1000 if job.attempt == 1 and number == 2 else 0.1)
"#;

async fn a_killed_worker_is_replaced_and_its_output_continued(broker: &Broker) {
    let system = System::on(broker).await;
    let settings = "continues=True, flush_interval=0, ack_wait=2";
    let mut first = PythonWorker::start_with(&system, COUNT, settings).await;
    let job = system.submit("count", json!(null)).await;
    until("some output", async || {
        let state = system.state(&job).await;
        state.is_some_and(|state| state.output == "0 1 2 ")
    })
    .await;
    first.process.kill().await;
    let killed = Instant::now();
    let _second = PythonWorker::start_with(&system, COUNT, settings).await;
    let state = system.ended(&job).await;
    assert_within(killed, Duration::from_secs(20));
    let found = (state.status, state.attempt, state.output.as_str());
    assert_eq!(found, (Status::Done, 2, "0 1 2 3 4 5 6 7 8 9 "));
    system.end().await;
}

#[tokio::test]
async fn python_writes_a_log_whatever_else_is_in_it_and_whoever_answers() {
    let given = json!({"library": LIBRARY});
    let passed = ThirdParty::python("python_log.py", &given).ends().await;
    assert_eq!(passed.len(), 19, "{passed:?}");
}

/// Messages of another publisher, before, during and after a job.
#[tokio::test]
async fn python_jobs_end_whatever_another_publisher_stores() {
    let system = System::with(Broker::shared_one(), |settings| settings.shards = 1).await;
    let client = system.jetstream().await;
    let subject = |job: &str| system.names().chunks(0, &job.parse().unwrap());
    let spoil = async |job: &str| {
        for payload in ["bare text", r#"{"type":"x"}"#] {
            let stored = client.publish(subject(job), payload.into()).await;
            stored.unwrap().await.unwrap();
        }
    };
    spoil("before").await;
    system.submit("after", json!("waits")).await;
    spoil("after").await;
    let words = "w ".repeat(60);
    let _worker = PythonWorker::start(&system, WORDS, 4).await;
    let job = system.submit("before", json!(words)).await;
    system.reaches("before", 5).await;
    spoil("before").await;
    let after = "after".parse().unwrap();
    for (job, output) in [(&job, words.to_uppercase()), (&after, "WAITS ".to_owned())] {
        let state = system.ended(job).await;
        let found = (state.status, state.attempt, state.output);
        assert_eq!(found, (Status::Done, 1, output));
    }
    system.end().await;
}

#[tokio::test]
async fn python_finds_its_login_in_a_file() {
    let system = System::on(Broker::shared_one()).await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "worker:worker\n").unwrap();
    let env = [
        ("TAILWATER_NATS", system.url()),
        ("TAILWATER_PREFIX", system.options.prefix.as_str()),
        ("TAILWATER_NATS_LOGIN", file.path().to_str().unwrap()),
    ];
    let _worker = PythonWorker::start_as(&env, WORDS, "concurrency=1").await;
    let job = system.submit("login", json!("in")).await;
    assert_eq!(system.ended(&job).await.output, "IN ");
    // It is used: a wrong one is refused.
    std::fs::write(file.path(), "worker:wrong").unwrap();
    let mut connects = Command::new(python("python"));
    connects
        .args(["-c", "import asyncio, nats; from tailwater import Nats; asyncio.run(nats.connect(**Nats.from_env().options(), max_reconnect_attempts=0, allow_reconnect=False))"])
        .env("PYTHONPATH", LIBRARY)
        .envs(env);
    let said = run_program(&mut connects).await.err.to_lowercase();
    assert!(said.contains("authorization violation"), "{said}");
    system.end().await;
}

#[tokio::test]
async fn python_yields_reasoning_and_data_and_fails_with_its_own_code() {
    let system = System::on(Broker::shared_one()).await;
    let _worker = PythonWorker::start(&system, TASKS, 1).await;
    let edge = system.edge().await;
    system.submit("parts", json!("parts")).await;
    let seen = follow(&edge.addr, "parts").await;
    seen.assert_text("sentence");
    let data = seen.of_type("job:data:v1");
    assert_eq!(data[0]["data"], json!({"city": "Bern"}));
    assert_fields!(seen.of_type("model:chunk:v1")[0], {"channel": "reasoning", "text": "hm"});
    assert_fields!(seen.end(), {"usage": {"words": 1}, "finish_reason": "length"});
    let job = system.submit("code", json!("code")).await;
    let error = system.ended(&job).await.error.unwrap();
    let found = (error.code.as_str(), error.message.as_str());
    assert_eq!(found, ("no_city", "no such city"));
    system.end().await;
}

#[tokio::test]
async fn each_python_attempt_that_does_not_succeed_is_one_line_that_says_why() {
    let system = System::on(Broker::shared_one()).await;
    let log = tempfile::NamedTempFile::new().unwrap();
    let stderr = std::fs::File::create(log.path()).unwrap();
    let settings = "concurrency=4, ack_wait=2, grace=0, retry_delay=0.05";
    let mut first = PythonWorker::start_logging(&system, TASKS, settings, stderr).await;
    for task in ["raise", "own-code", "own-code-later", "retry"] {
        let job = system.submit(task, json!(task)).await;
        system.ended(&job).await;
    }
    let stops = system.submit("stops", json!("hang")).await;
    system.reaches("stops", 3).await;
    system.cancel(&stops).await;
    system.ended(&stops).await;
    system.submit("frozen", json!("hang")).await;
    system.reaches("frozen", 3).await;
    first.process.signal(Signal::STOP);
    let mut second = PythonWorker::start(&system, TASKS, 4).await;
    system.reaches("frozen", 5).await;
    first.process.signal(Signal::CONT);
    let text = || std::fs::read_to_string(log.path()).unwrap();
    until("the first worker to notice", async || {
        text().contains("superseded job=frozen")
    })
    .await;
    // The first worker gets the job again, and hands it back.
    second.process.kill().await;
    system.reaches("frozen", 7).await;
    first.process.signal(Signal::TERM);
    let ended = first.process.ends_within(Duration::from_secs(20)).await;
    assert!(ended.success());
    let text = text();
    for line in [
        "WARNING failed job=raise kind=demo attempt=1 code=exception reason='ValueError: no such city' duration=",
        "WARNING failed job=own-code kind=demo attempt=1 code=exception reason=\"ValueError: the code handed_back is the worker's own: such an attempt would not count\" duration=",
        "WARNING failed job=own-code-later kind=demo attempt=1 code=handed_back reason='no such city' duration=",
        "WARNING to be retried job=retry kind=demo attempt=1 code=retry reason='try again' duration=",
        "WARNING to be retried job=retry kind=demo attempt=2 code=retry reason='try again' duration=",
        "INFO done job=retry kind=demo attempt=3 ",
        "INFO cancelled job=stops kind=demo attempt=1 code=cancelled reason='the job was cancelled' duration=",
        "WARNING superseded job=frozen kind=demo attempt=1 code=superseded reason='another worker has the job, or it was purged' duration=",
        "INFO handed back job=frozen kind=demo attempt=3 code=handed_back reason='the worker was stopped' duration=",
    ] {
        assert_eq!(text.matches(line).count(), 1, "{line:?} in\n{text}");
    }
    // Output of jobs is never logged.
    assert!(
        !text.contains("so far") && !text.contains("half a"),
        "{text}"
    );
    system.end().await;
}

#[tokio::test]
async fn python_functions_that_block_or_return_the_whole_output_are_workers() {
    let system = System::on(Broker::shared_one()).await;
    // The decorated function is replaced by one that blocks its thread.
    let blocking = r#"
    yield ""

import threading
released = threading.Event()

def block(job):
    if job.input == "whole":
        return "whole"
    if job.input == "waits":
        return "released" if released.wait(20) else "the other job did not run"
    if job.input == "releases":
        released.set()
        return None
    return count(job)

def count(job):
    try:
        while not job.cancelled:
            time.sleep(0.02)
            yield "tick "
    finally:
        print("stopped", job.id, flush=True)

run = Worker(block, "demo", concurrency=2)
"#;
    let mut worker = PythonWorker::start(&system, blocking, 2).await;
    let ticks = system.submit("ticks", json!(null)).await;
    system.reaches("ticks", 4).await;
    let whole = system.submit("whole", json!("whole")).await;
    assert_eq!(system.ended(&whole).await.output, "whole");
    system.cancel(&ticks).await;
    assert_eq!(system.ended(&ticks).await.status, Status::Cancelled);
    assert_eq!(worker.process.says("stopped").await, "ticks");
    let waits = system.submit("waits", json!("waits")).await;
    system.submit("releases", json!("releases")).await;
    assert_eq!(system.ended(&waits).await.output, "released");
    system.end().await;
}

/// Runs `tests/clients/library.py` against an edge; returns what it printed.
async fn client(url: &str, given: Value) -> Vec<Value> {
    let mut given = given;
    given["url"] = url.into();
    given["library"] = LIBRARY.into();
    ThirdParty::python("library.py", &given).ends().await
}

#[tokio::test]
async fn the_python_client_submits_cancels_and_waits() {
    let system = System::on(Broker::shared_one()).await;
    let _worker = PythonWorker::start(&system, TASKS, 4).await;
    let edge = system.edge().await;
    let url = format!("http://{}", edge.addr);
    let printed = client(&url, json!({"do": "requests"})).await;
    let expected = json!([
        {"status": "done", "output": "sentence", "reasoning": "hm", "data": [{"city": "Bern"}]},
        {"status": "failed", "output": "so far", "code": "exception", "message": "ValueError: no such city"},
        {"status": "cancelled", "output": "begun"},
        {"status": "failed", "output": "begun", "code": "timed_out"},
        {"error": "job_ended", "is_temporary": false},
        {"error": "unknown_kind", "is_temporary": false},
        {"same": true},
    ]);
    for (found, expected) in printed.iter().zip(expected.as_array().unwrap()) {
        for (field, value) in expected.as_object().unwrap() {
            assert_eq!(&found[field], value, "{field} of {found}");
        }
    }
    assert_eq!(printed.len(), 7, "{printed:?}");
    system.end().await;
}

#[tokio::test]
async fn the_python_client_resumes_after_every_cut_and_loses_nothing() {
    let system = System::on(Broker::shared_one()).await;
    // Each is an event of its own, so the log is longer than what passes before the last cut.
    system.pieces(2000).await;
    let edge = system.edge().await;
    system.submit("cut", Value::Null).await;
    let proxy = Proxy::cutting_at_bytes(&edge.addr, 12).await;
    let url = format!("http://{}", proxy.addr);
    let printed = client(&url, json!({"do": "watch", "job": "cut"})).await;
    let seqs: Vec<_> = printed
        .iter()
        .map(|event| event["seq"].as_u64().unwrap())
        .collect();
    assert_eq!(seqs, (1..=seqs.len() as u64).collect::<Vec<_>>());
    let output: String = printed
        .iter()
        .map(|event| event["text"].as_str().unwrap())
        .collect();
    let expected: String = (0..2000).map(|n| format!("{n} ")).collect();
    assert_eq!(output, expected);
    assert!(proxy.cuts() >= 10, "{} cuts", proxy.cuts());
    system.end().await;
}

#[tokio::test]
async fn the_python_client_gives_up_on_an_edge_that_it_cannot_reach() {
    let given = json!({"do": "unreachable"});
    let printed = client("http://127.0.0.1:1", given).await;
    assert_eq!(printed.len(), 1, "{printed:?}");
    assert_eq!(printed[0]["error"], "ConnectionRefusedError");
}

#[tokio::test]
async fn a_job_run_by_python_calls_back() {
    let server = Server::accepting().await;
    let system = System::on(Broker::shared_one()).await;
    system.callbacks(&server, |_| {}).await;
    let edge = system.edge_calling(&[&server.addr]).await;
    let worker = PythonWorker::start(&system, TASKS, 2).await;
    for (task, status) in [("done", "done"), ("raise", "failed")] {
        let callback = format!("http://{}/{task}", server.addr);
        let job = json!({"kind": "demo", "id": task, "input": task, "callback": callback});
        let (code, answer) = post(&edge, &job).await;
        assert_eq!(code, 202, "{answer}");
        let id: JobId = format!("callback:{task}").parse().unwrap();
        assert_eq!(system.ended(&id).await.status, Status::Done);
        let requests = server.at(&format!("/{task}"));
        let [request] = requests.as_slice() else {
            panic!("{requests:?}")
        };
        let body = request.json();
        let state = system.ended(&task.parse().unwrap()).await;
        assert_eq!(body["type"], format!("job.{status}"));
        let data = json!({"id": task, "kind": "demo", "status": status, "attempt": 1, "seq": state.seq,
            "error": state.error, "usage": null, "finish_reason": state.error.is_none().then_some("stop"),
            "ended_at": state.ended_at});
        assert_eq!(body["data"], data);
        // Submitting the job again returns the same job.
        assert_eq!(post(&edge, &job).await.0, 200);
    }
    drop(worker);
    system.end().await;
}

#[tokio::test]
async fn python_jobs_survive_the_loss_of_each_node() {
    let mut broker = Broker::three();
    let system = System::with(&broker, |settings| settings.shards = 1).await;
    let _worker = PythonWorker::start(&system, WORDS, 100).await;
    let edge = system.edge().await;
    let words = |n: usize| {
        (0..700)
            .map(|word| format!("w{n}-{word} "))
            .collect::<String>()
    };
    let mut jobs = Vec::new();
    for n in 0..40 {
        jobs.push(system.submit(&format!("node-{n}"), json!(words(n))).await);
    }
    for job in &jobs {
        system.reaches(job.as_str(), 5).await;
    }
    let first = system.leader(&broker).await;
    for index in [first, (first + 1) % 3, (first + 2) % 3] {
        broker.kill(index);
        sleep(Duration::from_secs(3)).await;
        broker.restart(index);
        // The next node dies once the log is written again: two dead nodes would be an outage, not
        // an election.
        let last = eventually("an answer", || async {
            system.log.last(&jobs[0]).await.ok().flatten()
        })
        .await;
        // On a slow machine the job may have ended by now.
        eventually("events, or the end", || async {
            let now = system.log.last(&jobs[0]).await.ok().flatten()?;
            (now.seq.0 >= last.seq.0 + 10 || now.event_type.is_end()).then_some(())
        })
        .await;
    }
    for (n, job) in jobs.iter().enumerate() {
        let state = system.ended(job).await;
        let found = (state.status, state.attempt);
        assert_eq!(found, (Status::Done, 1), "{state:?}");
        let seen: Seen = follow(&edge.addr, job.as_str()).await;
        seen.assert_text(words(n).to_uppercase());
    }
    system.end().await;
}

#[tokio::test]
async fn features_that_a_kind_lacks_are_refused() {
    let system = System::on(Broker::shared_one()).await;
    let edge = system.edge_calling(&["h.example"]).await;
    system
        .worker(Demo, |settings| settings.kind = "callback".parse().unwrap())
        .await;
    // A worker in another language that does not announce its features.
    let prefix = system.options.prefix.as_str();
    let config = json!({"name": "demo", "durable_name": "demo", "ack_policy": "explicit",
        "filter_subject": format!("{prefix}.jobs.demo.*"), "max_deliver": -1});
    let stream = format!("{}_JOBS", prefix.to_uppercase());
    let client = system.client().await;
    let subject = format!("$JS.API.CONSUMER.CREATE.{stream}.demo.{prefix}.jobs.demo.*");
    let made = json!({"stream_name": stream, "config": config}).to_string();
    let answer = client.request(subject, made.into()).await.unwrap();
    assert!(
        !String::from_utf8_lossy(&answer.payload).contains("\"error\""),
        "{answer:?}"
    );
    let called = json!({"kind": "demo", "id": "called", "callback": "https://h.example/"});
    let limited = json!({"kind": "demo", "id": "limited", "timeout_ms": 60_000});
    for (job, word) in [(&called, "callbacks"), (&limited, "time limits")] {
        let problem = post_refused(&edge, job, 422, "not_supported_by_kind").await;
        assert!(
            problem["detail"].as_str().unwrap().contains(word),
            "{problem}"
        );
        let id = job["id"].as_str().unwrap().parse().unwrap();
        assert!(system.log.last(&id).await.unwrap().is_none());
    }
    let ran = system.run("submit --kind demo --timeout 1m").await;
    ran.fails(2, "do not support time limits");
    assert_eq!(
        post(&edge, &json!({"kind": "demo", "id": "plain", "input": "x"}))
            .await
            .0,
        202
    );
    // Workers of this crate and the example announce their features; the edge asks once a second.
    let _worker = PythonWorker::start(&system, WORDS, 1).await;
    for job in [&called, &limited] {
        until("the kind to do more", async || {
            post(&edge, job).await.0 == 202
        })
        .await;
    }
    system.demo().await;
    let info = client
        .request(format!("$JS.API.CONSUMER.INFO.{stream}.demo"), "".into())
        .await
        .unwrap();
    let info: Value = serde_json::from_slice(&info.payload).unwrap();
    let found = &info["config"]["metadata"];
    assert_eq!(found["tailwater.features"], "callbacks,limits");
    system.end().await;
}
