use std::fs;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tailwater::backend::endpoint::{Endpoint, EndpointSettings, RequestHeader};
use tailwater::wire::{JobId, JobState, Status};
use tailwater::worker::WorkerSettings;
use tempfile::TempDir;
use tokio::time::Instant;

use crate::support::broker::Broker;
use crate::support::client::follow;
use crate::support::http_server::{Exchange, Server};
use crate::support::process::{Process, run_with};
use crate::support::signatures::assert_signed;
use crate::support::system::{SECRET, System, limited};
use crate::support::{assert_fields, python, root, timed};

/// The example, with another function `run`.
struct PythonEndpoint {
    process: Process,
    url: String,
    _dir: TempDir,
}

/// Does what its input says.
const TASKS: &str = r#"
    if text == "raise":
        yield "so far"
        raise ValueError("no such city")
    while text == "hang":
        yield "tick "
        time.sleep(0.05)
    while text == "silence":
        time.sleep(0.05)
        yield ""
    yield "sentence"
"#;

impl PythonEndpoint {
    async fn start() -> Self {
        let example = root().join("examples/endpoint.py");
        let text = fs::read_to_string(example).unwrap();
        let (before, rest) = text.split_once("def run(text):\n").unwrap();
        let (_, after) = rest.split_once("\n\n\n").unwrap();
        let dir = TempDir::new().unwrap();
        let file = dir.path().join("endpoint.py");
        fs::write(
            &file,
            format!("{before}def run(text):\n{TASKS}\n\n\n{after}"),
        )
        .unwrap();
        let args = [file.display().to_string(), "0".to_owned()];
        let mut process = Process::start_program(&python("python"), args, &[], Stdio::inherit());
        let port = process.says("serves").await;
        Self {
            process,
            url: format!("http://127.0.0.1:{port}/run"),
            _dir: dir,
        }
    }
}

/// Starts a worker of the kind `demo` that asks an endpoint.
async fn worker(system: &System, settings: EndpointSettings) {
    let change = |settings: &mut WorkerSettings| settings.pause = Duration::from_millis(20);
    system
        .worker(Endpoint::new(settings).unwrap(), change)
        .await;
}

async fn served_by(server: &Server, change: impl FnOnce(&mut EndpointSettings)) -> System {
    let system = System::on(Broker::shared_one()).await;
    let mut settings = EndpointSettings::new(format!("http://{}/run", server.addr));
    change(&mut settings);
    worker(&system, settings).await;
    system
}

/// The code and the message of a failed job.
fn failure(state: JobState) -> (String, String) {
    assert_eq!(state.status, Status::Failed);
    let error = state.error.unwrap();
    (error.code, error.message)
}

#[tokio::test]
async fn an_exception_of_an_endpoint_fails_only_its_job_with_its_text() {
    let endpoint = PythonEndpoint::start().await;
    let system = System::on(Broker::shared_one()).await;
    worker(&system, EndpointSettings::new(&endpoint.url)).await;
    let jobs = system.three_hanging().await;
    let failed = system.submit("raise", json!("raise")).await;
    let state = system.ended(&failed).await;
    let found = (state.attempt, state.output.as_str());
    assert_eq!(found, (1, "so far"));
    let expected = ("endpoint_failed", "ValueError: no such city");
    assert_eq!(failure(state), (expected.0.into(), expected.1.into()));
    let done = system.submit("done", json!("sentence")).await;
    assert_eq!(system.ended(&done).await.output, "sentence");
    for job in &jobs {
        assert_eq!(system.state(job).await.unwrap().status, Status::Running);
    }
    system.end().await;
}

#[tokio::test]
async fn a_cancel_and_a_time_limit_close_the_connection_to_an_endpoint() {
    let mut endpoint = PythonEndpoint::start().await;
    let system = System::on(Broker::shared_one()).await;
    let backend = Endpoint::new(EndpointSettings::new(&endpoint.url)).unwrap();
    // Without the signal it would look at the log only after minutes.
    let change = |settings: &mut WorkerSettings| settings.ack_wait = Duration::from_secs(600);
    system.worker(backend, change).await;
    let job = system.submit("cancelled", json!("hang")).await;
    system.reaches("cancelled", 3).await;
    let ended = async {
        system.cancel(&job).await;
        system.ended(&job).await
    };
    let (state, took) = Box::pin(timed(ended)).await;
    assert!(took < Duration::from_secs(2), "{took:?}");
    assert_eq!(state.status, Status::Cancelled);
    assert_eq!(endpoint.process.says("stopped").await, "cancelled");
    // Long enough for a busy machine to ask the endpoint: a time limit begins with the submission.
    let mut jobs = Vec::new();
    for (id, submission) in [
        ("late", limited(json!("hang"), Some(3000), None)),
        ("silent", limited(json!("silence"), None, Some(2000))),
    ] {
        jobs.push(system.submit_with(id, submission).await);
    }
    let mut stopped = Vec::new();
    for job in &jobs {
        let (code, _) = failure(system.ended(job).await);
        assert_eq!(code, "timed_out", "{job}");
        stopped.push(endpoint.process.says("stopped").await);
    }
    stopped.sort();
    assert_eq!(stopped, ["late", "silent"]);
    system.end().await;
}

#[tokio::test]
async fn a_job_of_an_endpoint_calls_back() {
    let endpoint = PythonEndpoint::start().await;
    let system = System::on(Broker::shared_one()).await;
    worker(&system, EndpointSettings::new(&endpoint.url)).await;
    let error = system.failure_called_back("raise").await;
    assert_eq!(error["message"], "ValueError: no such city");
    system.end().await;
}

#[tokio::test]
async fn a_busy_endpoint_is_asked_again_in_the_same_attempt() {
    let server = Server::start(async |mut exchange: Exchange| match exchange.number {
        1 => {
            exchange
                .answer("429 Too Many Requests", "Retry-After: 1\r\n", "")
                .await
        }
        2 => {
            exchange
                .answer("503 Service Unavailable", "retry-after-ms: 10\r\n", "")
                .await
        }
        _ => {
            exchange
                .answer("200 OK", "Content-Type: text/plain\r\n", "done")
                .await
        }
    })
    .await;
    let system = served_by(&server, |_| {}).await;
    let asked = Instant::now();
    let job = system.submit("busy", json!("x")).await;
    let state = system.ended(&job).await;
    let found = (state.status, state.attempt, state.output.as_str());
    assert_eq!(found, (Status::Done, 1, "done"));
    assert!(
        asked.elapsed() >= Duration::from_secs(1),
        "{:?}",
        asked.elapsed()
    );
    assert_eq!(server.requests().len(), 3);
    system.end().await;
}

#[tokio::test]
async fn an_endpoint_that_stays_busy_fails_the_job() {
    let server = Server::start(async |mut exchange: Exchange| {
        exchange
            .answer("503 Service Unavailable", "", "no room")
            .await;
    })
    .await;
    let system = served_by(&server, |settings| settings.busy = Duration::ZERO).await;
    let job = system.submit("busy", json!("x")).await;
    let message = "the endpoint answered 503 Service Unavailable: no room".to_owned();
    let state = system.ended(&job).await;
    assert_eq!(failure(state), ("endpoint_busy".into(), message));
    system.end().await;
}

#[tokio::test]
async fn a_server_error_is_followed_by_another_attempt_and_a_refusal_is_not() {
    let server = Server::start(async |mut exchange: Exchange| {
        let attempt = exchange.request.headers["tailwater-attempt"].clone();
        match (exchange.request.body.as_str(), attempt.as_str()) {
            (r#""passes""#, "3") => exchange.answer("200 OK", "", "done").await,
            (r#""refused""#, _) => {
                let detail = r#"{"detail": "no such city"}"#;
                exchange
                    .answer("422 Unprocessable Entity", "", detail)
                    .await;
            }
            (r#""moved""#, _) => {
                exchange
                    .answer("307 Temporary Redirect", "Location: /other?key=s\r\n", "")
                    .await;
            }
            _ => {
                exchange
                    .answer("500 Internal Server Error", "", "ValueError: no such city")
                    .await
            }
        }
    })
    .await;
    let system = served_by(&server, |_| {}).await;
    let state = |task: &'static str| {
        let system = &system;
        async move {
            let job = system.submit(task, json!(task)).await;
            system.ended(&job).await
        }
    };
    let passes = state("passes").await;
    let found = (passes.status, passes.attempt, passes.output.as_str());
    assert_eq!(found, (Status::Done, 3, "done"));
    let fails = state("fails").await;
    assert_eq!(fails.attempt, 5);
    let (code, message) = failure(fails);
    assert_eq!(code, "attempts_exhausted");
    assert!(
        message.contains("500 Internal Server Error: ValueError: no such city"),
        "{message}"
    );
    for (task, message) in [
        (
            "refused",
            "the endpoint answered 422 Unprocessable Entity: no such city",
        ),
        (
            "moved",
            &format!(
                "the endpoint answered 307 Temporary Redirect to http://{}/other; redirects are not followed, so give the final URL",
                server.addr
            ),
        ),
    ] {
        let state = state(task).await;
        assert_eq!(state.attempt, 1);
        assert_eq!(
            failure(state),
            ("endpoint_refused".into(), message.to_owned())
        );
    }
    system.end().await;
}

#[tokio::test]
async fn a_cut_answer_is_continued_by_an_endpoint_that_can() {
    let server = Server::start(async |mut exchange: Exchange| {
        exchange.begin().await;
        match exchange.number {
            1 => exchange.send("data: one\n\ndata: two\n\n").await,
            _ => {
                exchange.send("data: three\n\n").await;
                exchange.finish().await;
            }
        }
    })
    .await;
    let system = served_by(&server, |settings| settings.continues = true).await;
    let edge = system.edge().await;
    system.submit("cut", json!({"n": 3})).await;
    let seen = follow(&edge.addr, "cut").await;
    seen.assert_whole();
    let retrying = &seen.of_type("job:retrying:v1")[0];
    assert_fields!(retrying, {"code": "stream_cut"});
    let started = seen.of_type("job:started:v1");
    assert_eq!(started[1]["continues"], true);
    let bodies: Vec<Value> = server
        .requests()
        .iter()
        .map(|request| request.json())
        .collect();
    assert_eq!(
        bodies,
        [
            json!({"input": {"n": 3}, "output": ""}),
            json!({"input": {"n": 3}, "output": "onetwo"})
        ]
    );
    let job: JobId = "cut".parse().unwrap();
    assert_eq!(system.ended(&job).await.output, "onetwothree");
    system.end().await;
}

/// Answers with the same text and reasoning in each format: its name, the headers, the body, and the
/// data that the body holds as well.
static FORMATS: [(&str, &str, &str, &str); 4] = [
    (
        "ndjson",
        "Content-Type: application/x-ndjson\r\n",
        r#"{"text": "hm", "channel": "reasoning"}
{"text": "sentence"}
{"n": 1}
"#,
        r#"{"n": 1}"#,
    ),
    (
        "events",
        "Content-Type: text/event-stream\r\n",
        r#"data: {"text": "hm", "channel": "reasoning"}

data: sentence

data: {"n": 1}

"#,
        r#"{"n": 1}"#,
    ),
    (
        // Its first event is not the usual one, so that only the header names the format.
        "ui-message",
        "Content-Type: text/event-stream\r\nx-vercel-ai-ui-message-stream: v1\r\n",
        r#"data: {"type": "reasoning-delta", "id": "r", "delta": "hm"}

data: {"type": "text-delta", "id": "t", "delta": "sentence"}

data: {"type": "data-n", "data": 1}

data: {"type": "finish"}

"#,
        r#"{"type": "data-n", "data": 1}"#,
    ),
    (
        "ag-ui",
        "Content-Type: text/event-stream\r\n",
        r#"data: {"type": "RUN_STARTED", "threadId": "t", "runId": "r"}

data: {"type": "REASONING_MESSAGE_CONTENT", "messageId": "m", "delta": "hm"}

data: {"type": "TEXT_MESSAGE_CONTENT", "messageId": "m", "delta": "sentence"}

data: {"type": "CUSTOM", "name": "n", "value": 1}

data: {"type": "RUN_FINISHED", "threadId": "t", "runId": "r"}

"#,
        r#"{"type": "CUSTOM", "name": "n", "value": 1}"#,
    ),
];

#[tokio::test]
async fn an_answer_in_each_format_becomes_text_reasoning_and_data() {
    let server = Server::start(async |mut exchange: Exchange| {
        let asked = exchange.request.json();
        let mut formats = FORMATS.iter();
        let (_, headers, body, _) = formats.find(|(name, ..)| asked == *name).unwrap();
        exchange.answer("200 OK", headers, body).await;
    })
    .await;
    let system = served_by(&server, |_| {}).await;
    let edge = system.edge().await;
    for (name, _, _, data) in &FORMATS {
        system.submit(name, json!(name)).await;
        let seen = follow(&edge.addr, name).await;
        seen.assert_text("sentence");
        let chunks = seen.of_type("model:chunk:v1").into_iter();
        let reasoning: String = chunks
            .filter(|chunk| chunk["channel"] == "reasoning")
            .filter_map(|chunk| chunk["text"].as_str())
            .collect();
        assert_eq!(reasoning, "hm", "{name}");
        let expected: Value = serde_json::from_str(data).unwrap();
        let found = seen.of_type("job:data:v1");
        let found: Vec<_> = found.iter().map(|event| &event["data"]).collect();
        assert_eq!(found, [&expected], "{name}");
    }
    system.end().await;
}

#[tokio::test]
async fn a_silent_endpoint_is_given_up_after_the_idle_timeout() {
    let server = Server::start(async |mut exchange: Exchange| match exchange.number {
        1 => exchange.hang().await,
        2 => {
            exchange.begin().await;
            exchange.send("data: half\n\n").await;
            exchange.hang().await;
        }
        _ => exchange.answer("200 OK", "", "done").await,
    })
    .await;
    let silence = Duration::from_millis(300);
    let system = served_by(&server, |settings| settings.silence = silence).await;
    let edge = system.edge().await;
    system.submit("silent", json!("x")).await;
    let seen = follow(&edge.addr, "silent").await;
    seen.assert_text("done");
    for retrying in seen.of_type("job:retrying:v1") {
        let expected = "the endpoint sent nothing for 300ms";
        assert_fields!(retrying, {"code": "endpoint_silent", "message": expected});
    }
    assert_eq!(server.requests().len(), 3);
    system.end().await;
}

#[tokio::test]
async fn a_request_has_its_headers_and_a_verifiable_signature() {
    let secret = "Bearer k-0123456789";
    let server = Server::start(async |mut exchange: Exchange| match exchange.number {
        1 => {
            let said = exchange.request.headers["authorization"].clone();
            exchange
                .answer("401 Unauthorized", "", &format!("bad: {said}"))
                .await;
        }
        _ => exchange.answer("200 OK", "", "").await,
    })
    .await;
    let header: RequestHeader = format!("Authorization: {secret}").parse().unwrap();
    let system = served_by(&server, |settings| {
        settings.headers = vec![header];
        settings.secret = Some(SECRET.into());
    })
    .await;
    let job = system.submit("refused", json!({"city": "Zürich"})).await;
    let (code, message) = failure(system.ended(&job).await);
    assert_eq!(code, "endpoint_refused");
    assert!(message.ends_with("401 Unauthorized: bad: ***"), "{message}");
    let job = system.submit("done", json!([1, null])).await;
    let state = system.ended(&job).await;
    assert_eq!((state.status, state.output.as_str()), (Status::Done, ""));
    let requests = server.requests();
    let of = |name: &str| requests[0].headers[name].as_str();
    let found = [
        "authorization",
        "content-type",
        "tailwater-job",
        "tailwater-kind",
        "webhook-id",
    ]
    .map(of);
    assert_eq!(
        found,
        [secret, "application/json", "refused", "demo", "refused-1"]
    );
    assert_signed(&requests).await;
    system.end().await;
}

#[tokio::test]
async fn invalid_settings_of_an_endpoint_are_refused_without_showing_secrets() {
    let system = System::on(Broker::shared_one()).await;
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("headers");
    fs::write(&file, "Authorization Bearer k-0123456789\n").unwrap();
    let file = file.display().to_string();
    for (flags, env, expected) in [
        (
            &["--url", "ftp://h/"][..],
            &[][..],
            "the URL must be an http or https address",
        ),
        (
            &["--url", "http://u:k-0123456789@h/"],
            &[],
            "the URL must be",
        ),
        (
            &["--url", "http://h/", "--headers-file", &file],
            &[],
            "cannot use the headers in",
        ),
        (
            &["--url", "http://h/"],
            &[("TAILWATER_HEADER", "Authorization Bearer k-0123456789")],
            "a header must be `Name: value`",
        ),
        (
            &["--url", "http://h/"],
            &[("TAILWATER_SIGNING_SECRET", "k-0123456789")],
            "the webhook secret must be whsec_",
        ),
    ] {
        let worker = system.command(&["worker", "--kind", "demo"], &["http"]);
        let flags = flags.iter().map(|&flag| flag.to_owned());
        let said = run_with(worker.into_iter().chain(flags), env)
            .await
            .refuses(expected);
        assert!(!said.contains("0123"), "{said}");
    }
    system.end().await;
}
