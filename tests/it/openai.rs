use std::collections::HashSet;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tailwater::backend::openai::{OpenAi, OpenAiSettings};
use tailwater::process_group::Signal;
use tailwater::wire::Status;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::support::broker::Broker;
use crate::support::client::{Seen, follow};
use crate::support::http::{exchange, http};
use crate::support::http_server::{Exchange, Server};
use crate::support::process::{Process, run_with};
use crate::support::system::{Edge, System};
use crate::support::{PATIENCE, assert_fields, timed, until, within};

const KEY: &str = "sk-test-0123456789abcdef";

/// A worker that uses a model server, and an edge to watch its jobs.
struct Model {
    system: System,
    edge: Edge,
}

impl Model {
    async fn of(server: &Server) -> Self {
        Self::with(&server.addr, PATIENCE, |_| {}).await
    }

    async fn with(
        addr: &str,
        silence: Duration,
        change: impl FnOnce(&mut tailwater::worker::WorkerSettings),
    ) -> Self {
        let system = System::on(Broker::shared_one()).await;
        let base_url = format!("http://{addr}/v1");
        let key = Some(KEY.into());
        let backend = OpenAi::new(OpenAiSettings {
            key,
            silence,
            ..OpenAiSettings::new(base_url, "m1")
        })
        .unwrap();
        let worker = |settings: &mut tailwater::worker::WorkerSettings| {
            settings.pause = Duration::from_millis(20);
            change(settings);
        };
        system.worker(backend, worker).await;
        let edge = system.edge().await;
        Self { system, edge }
    }

    /// Runs a job with this input; returns all of its events.
    async fn answers(&self, id: &str, input: Value) -> Seen {
        self.system.submit(id, input).await;
        let seen = follow(&self.edge.addr, id).await;
        seen.assert_whole();
        seen
    }
}

fn choice(choice: &Value) -> String {
    format!(
        "data: {}\n\n",
        json!({"object": "chat.completion.chunk", "choices": [choice]})
    )
}

fn delta(delta: &Value) -> String {
    choice(&json!({"index": 0, "delta": delta, "finish_reason": null}))
}

fn reason(reason: &str) -> String {
    choice(&json!({"index": 0, "delta": {}, "finish_reason": reason}))
}

fn text(text: &str) -> String {
    delta(&json!({"content": text}))
}

/// The body of a refusal.
fn error(message: &str) -> String {
    json!({"error": {"message": message}}).to_string()
}

/// Begins a stream with some output.
async fn begin_with(exchange: &mut Exchange, said: &str) {
    exchange.begin().await;
    exchange.send(text(said)).await;
}

/// A complete answer.
async fn answer_well(exchange: &mut Exchange, said: &str) {
    begin_with(exchange, said).await;
    exchange.send(reason("stop")).await;
    exchange.send("data: [DONE]\n\n").await;
    exchange.finish().await;
}

/// What the user said last.
fn said(exchange: &Exchange) -> String {
    let messages = exchange.request.json()["messages"].take();
    messages.as_array().unwrap().last().unwrap()["content"]
        .as_str()
        .unwrap()
        .to_owned()
}

#[tokio::test]
async fn a_complete_answer_keeps_every_part() {
    let server = Server::start(async |mut exchange: Exchange| {
        let call = |id: Value, arguments: &str| {
            let piece = json!({"index": 0, "id": id, "type": "function", "function": {"name": "f", "arguments": arguments}});
            delta(&json!({"tool_calls": [piece]}))
        };
        let usage = json!({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}});
        let stream = [
            "\u{FEFF}: OPENROUTER PROCESSING\r\n\r\n".to_owned(),
            delta(&json!({"role": "assistant", "content": ""})).replace('\n', "\r\n"),
            delta(&json!({"reasoning_content": "Grübeln… "})).replace('\n', "\r"),
            delta(&json!({"reasoning": "🤔"})),
            text("Größe 🙂 ").replace("data: ", "data:"),
            text("日本").replace(",\"", ",\ndata: \""),
            call(json!("c1"), "{\"x\":"),
            call(Value::Null, "\"é\"}"),
            reason("tool_calls"),
            format!("data: {usage}\n\n"),
            "data: [DONE]\n\n".to_owned(),
        ];
        exchange.begin().await;
        // Byte by byte, so that every possible split occurs.
        for byte in stream.concat().as_bytes() {
            exchange.send([*byte]).await;
        }
        exchange.finish().await;
    })
    .await;
    let model = Model::of(&server).await;
    let input = json!({"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}],
        "temperature": 0.2, "tools": [{"type": "function", "function": {"name": "f"}}]});
    let seen = model.answers("whole", input.clone()).await;
    assert_eq!(seen.text(), "Größe 🙂 日本");
    let reasoning = seen
        .of_type("model:chunk:v1")
        .into_iter()
        .filter(|chunk| chunk["channel"] == "reasoning");
    assert_eq!(
        reasoning
            .map(|chunk| chunk["text"].as_str().unwrap())
            .collect::<String>(),
        "Grübeln… 🤔"
    );
    let data: Vec<_> = seen
        .of_type("job:data:v1")
        .into_iter()
        .map(|event| event["data"].clone())
        .collect();
    let call = json!({"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{\"x\":\"é\"}"}});
    assert_eq!(data, [json!({"tool_calls": [call]})]);
    let done = seen.end();
    assert_fields!(done, {"type": "job:done:v1", "finish_reason": "tool_calls"});
    assert_eq!(done["usage"]["total_tokens"], 12);
    let requests = server.requests();
    let [request] = requests.as_slice() else {
        panic!("{requests:?}")
    };
    assert_eq!(request.line, "POST /v1/chat/completions");
    assert_eq!(request.headers["authorization"], format!("Bearer {KEY}"));
    assert_eq!(request.headers["content-type"], "application/json");
    let mut expected = input;
    expected["model"] = "m1".into();
    expected["stream"] = true.into();
    expected["stream_options"] = json!({"include_usage": true});
    assert_eq!(request.json(), expected);
    model.system.end().await;
}

/// A stream with text, a tool call in two pieces, and usage, as model servers send it.
fn stream_with_a_call() -> String {
    let call = |id: Value, arguments: &str| {
        let function = json!({"name": "f", "arguments": arguments});
        let piece = json!({"index": 0, "id": id, "type": "function", "function": function});
        delta(&json!({"tool_calls": [piece]}))
    };
    let usage = json!({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}});
    [
        delta(&json!({"role": "assistant", "content": ""})),
        text("It is "),
        text("cold."),
        call(json!("c1"), "{\"x\":"),
        call(Value::Null, "1}"),
        reason("tool_calls"),
        format!("data: {usage}\n\n"),
        "data: [DONE]\n\n".to_owned(),
    ]
    .concat()
}

/// What a client makes of a stream of chunks.
fn joined(stream: &str) -> Value {
    let mut content = String::new();
    let mut arguments = String::new();
    let mut joined = json!({});
    for data in stream
        .lines()
        .filter_map(|line| line.strip_prefix("data: "))
    {
        if data == "[DONE]" {
            joined["is_done"] = true.into();
            continue;
        }
        let chunk: Value = serde_json::from_str(data).unwrap();
        assert_eq!(joined["is_done"], Value::Null, "{stream}");
        let choice = &chunk["choices"][0];
        content += choice["delta"]["content"].as_str().unwrap_or_default();
        let call = &choice["delta"]["tool_calls"][0];
        arguments += call["function"]["arguments"].as_str().unwrap_or_default();
        let role = &choice["delta"]["role"];
        let reason = &choice["finish_reason"];
        for (name, value) in [
            ("role", role),
            ("call", &call["id"]),
            ("function", &call["function"]["name"]),
            ("index", &call["index"]),
            ("reason", reason),
            ("usage", &chunk["usage"]),
        ] {
            if !value.is_null() {
                joined[name] = value.clone();
            }
        }
    }
    joined["content"] = content.into();
    joined["arguments"] = arguments.into();
    joined
}

#[tokio::test]
async fn an_edge_answers_a_completion_as_the_model_server_does() {
    let server = Server::start(async |mut exchange: Exchange| {
        exchange.begin().await;
        exchange.send(stream_with_a_call()).await;
        exchange.finish().await;
    })
    .await;
    let model = Model::of(&server).await;
    let mut request = json!({
        "model": "demo", "messages": [{"role": "user", "content": "hi"}], "temperature": 0.2,
        "stream": true, "stream_options": {"include_usage": true},
    });
    let header = "Content-Type: application/json\r\n";
    let path = "/v1/chat/completions";
    let sent = request.to_string();
    let (_, stream) = exchange(&model.edge.addr, "POST", path, header, sent.as_bytes()).await;
    let expected = joined(&stream_with_a_call());
    assert_eq!(expected["arguments"], "{\"x\":1}");
    assert_eq!(joined(&stream), expected, "{stream}");
    let received = server.requests()[0].json();
    request["model"] = "m1".into();
    assert_eq!(received, request);

    request["model"] = "demo".into();
    request["stream"] = false.into();
    let sent = request.to_string();
    let (status, _, whole) = http(&model.edge, "POST", path, header, sent.as_bytes()).await;
    assert_eq!(status, 200, "{whole}");
    let choice = &whole["choices"][0];
    let function = json!({"name": "f", "arguments": "{\"x\":1}"});
    let call = json!({"id": "c1", "type": "function", "function": function});
    assert_eq!(choice["message"]["content"], "It is cold.");
    assert_eq!(choice["message"]["tool_calls"], json!([call]));
    assert_eq!(choice["finish_reason"], "tool_calls");
    assert_eq!(whole["usage"], expected["usage"]);
    model.system.end().await;
}

/// Answers with the fault of this name.
async fn go_wrong(exchange: &mut Exchange, fault: &str) {
    match fault {
        "cut" => {
            begin_with(exchange, "lost").await;
        }
        "ended" | "done" => {
            begin_with(exchange, "lost").await;
            if fault == "done" {
                exchange.send("data: [DONE]\n\n").await;
            }
            exchange.finish().await;
        }
        "closed" => {
            let head =
                "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n";
            exchange.raw(format!("{head}{}", text("lost"))).await;
        }
        "garbage" | "error" | "event" => {
            begin_with(exchange, "lost").await;
            let last: &[u8] = match fault {
                "garbage" => b"data: {nonsense}\n\n",
                "error" => {
                    b"data: {\"error\": {\"message\": \"out of memory\"}}\n\ndata: [DONE]\n\n"
                }
                _ => b"event: error\ndata: {\"message\": \"out of memory\"}\n\n",
            };
            exchange.send(last).await;
            exchange.closed().await;
        }
        "endless" => {
            exchange.begin().await;
            exchange.send("data: ").await;
            let piece = "x".repeat(64 * 1024);
            for _ in 0..64 {
                exchange.send(&piece).await;
            }
            exchange.closed().await;
        }
        "stalls" => {
            begin_with(exchange, "lost").await;
            exchange.hang().await;
        }
        "never" => exchange.hang().await,
        "dropped" => {}
        "later" => {
            exchange
                .answer("502 Bad Gateway", "Retry-After: 1\r\n", "")
                .await
        }
        status => exchange.answer(status, "", &error("no luck")).await,
    }
}

#[tokio::test]
async fn temporary_faults_are_reported_and_retried() {
    let begun = Arc::new(Mutex::new(HashSet::new()));
    let server = Server::start(move |mut exchange| {
        let fault = said(&exchange);
        let first = begun.lock().unwrap().insert(fault.clone());
        async move {
            if first {
                go_wrong(&mut exchange, &fault).await;
            } else {
                answer_well(&mut exchange, &format!("whole after {fault}")).await;
            }
        }
    })
    .await;
    let model = Model::with(&server.addr, Duration::from_secs(3), |_| {}).await;
    let ask = async |number: usize, fault: &str, code: &str, words: &str| {
        let seen = model
            .answers(&format!("fault-{number}"), json!(fault))
            .await;
        let retries = seen.of_type("job:retrying:v1");
        let [retry] = retries.as_slice() else {
            panic!("{fault}: {:?}", seen.events)
        };
        assert_eq!(retry["code"], code, "{fault}: {retry}");
        assert!(
            retry["message"].as_str().unwrap().contains(words),
            "{fault}: {retry}"
        );
        let delay = retry["delay_ms"].as_u64().unwrap();
        assert!(
            if fault == "later" {
                delay == 1000
            } else {
                (1..1000).contains(&delay)
            },
            "{fault}: {retry}"
        );
        // Earlier output no longer counts.
        let found = (seen.text(), seen.end()["attempt"].as_u64());
        assert_eq!(found, (format!("whole after {fault}"), Some(2)));
        assert_eq!(seen.end()["type"], "job:done:v1", "{fault}");
    };
    let faults = [
        ("cut", "stream_cut", "cut"),
        ("ended", "stream_cut", "without a finish_reason"),
        ("done", "stream_cut", "end mark"),
        ("closed", "stream_cut", "without a finish_reason"),
        ("garbage", "bad_stream", "not valid JSON"),
        ("endless", "bad_stream", "longer than"),
        ("error", "model_failed", "out of memory"),
        ("event", "model_failed", "out of memory"),
        ("stalls", "model_silent", "nothing for 3s"),
        ("never", "model_silent", "nothing for 3s"),
        ("dropped", "model_unreachable", "cannot be asked"),
        ("500 Internal Server Error", "model_failed", "no luck"),
        ("later", "model_failed", "502"),
    ];
    let all = faults
        .iter()
        .enumerate()
        .map(|(number, (fault, code, words))| ask(number, fault, code, words));
    futures_util::future::join_all(all).await;
    assert_eq!(server.requests().len(), 2 * faults.len());
    model.system.end().await;
}

#[tokio::test]
async fn a_busy_server_is_retried_within_the_attempt() {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let times = Arc::clone(&asked);
    let server = Server::start(move |mut exchange: Exchange| {
        times.lock().unwrap().push(Instant::now());
        async move {
            match exchange.number {
                1 => {
                    exchange
                        .answer("429 Busy", "Retry-After: 2\r\n", "slow down")
                        .await
                }
                2 => {
                    exchange
                        .answer("503 Busy", "retry-after-ms: 50\r\n", "")
                        .await
                }
                3 => {
                    exchange.begin().await;
                    let error = json!({"error": {"type": "overloaded_error", "message": "full"}});
                    exchange.send(format!("data: {error}\n\n")).await;
                    exchange.finish().await;
                }
                _ => answer_well(&mut exchange, "ok").await,
            }
        }
    })
    .await;
    let model = Model::of(&server).await;
    let seen = model.answers("busy", json!("hi")).await;
    let found = (seen.text(), seen.end()["attempt"].as_u64());
    assert_eq!(found, ("ok".into(), Some(1)));
    let asked = asked.lock().unwrap().clone();
    assert_eq!(asked.len(), 4);
    assert!(
        asked[1] - asked[0] >= Duration::from_secs(2),
        "{:?}",
        asked[1] - asked[0]
    );
    model.system.end().await;
}

#[tokio::test]
async fn a_server_that_stays_busy_fails_the_job() {
    let server = Server::start(async |mut exchange: Exchange| {
        let later = if said(&exchange) == "for long" {
            "Retry-After: 20\r\n"
        } else {
            "Retry-After: 3600\r\n"
        };
        exchange
            .answer("429 Too Many Requests", later, "slow down")
            .await;
    })
    .await;
    let system = System::on(Broker::shared_one()).await;
    let base_url = format!("http://{}/v1", server.addr);
    let busy = Duration::from_secs(30);
    let backend = OpenAi::new(OpenAiSettings {
        busy,
        ..OpenAiSettings::new(base_url, "m1")
    })
    .unwrap();
    system.worker(backend, |_| {}).await;
    let edge = system.edge().await;
    let model = Model { system, edge };
    // The server asks for more time than is left.
    let seen = model.answers("too-busy", json!("for too long")).await;
    let failed = seen.end();
    assert_fields!(failed, {"code": "model_busy", "attempt": 1});
    assert!(
        failed["message"].as_str().unwrap().contains("slow down"),
        "{failed}"
    );
    let job = model.system.submit("waits", json!("for long")).await;
    until("the request", async || server.requests().len() > 1).await;
    model.system.cancel(&job).await;
    assert_eq!(model.system.ended(&job).await.status, Status::Cancelled);
    assert_eq!(server.requests().len(), 2);
    model.system.end().await;
}

#[tokio::test]
async fn refused_stream_options_are_not_sent_again() {
    let server = Server::start(async |mut exchange: Exchange| {
        if exchange.request.json().get("stream_options").is_some() {
            let error = error("Extra inputs are not permitted");
            exchange.answer("400 Bad Request", "", &error).await;
        } else {
            answer_well(&mut exchange, "ok").await;
        }
    })
    .await;
    let model = Model::of(&server).await;
    let input = |options: Value| json!({"messages": [{"role": "user", "content": "hi"}], "stream_options": options});
    for (id, input, requests) in [
        ("left-out", input(Value::Null), 1),
        ("tried", json!("hi"), 3),
        ("learned", json!("hi"), 4),
        ("false", input(json!(false)), 5),
    ] {
        assert_eq!(model.answers(id, input).await.text(), "ok", "{id}");
        assert_eq!(server.requests().len(), requests, "{id}");
    }
    // Options of the input are never left out.
    let seen = model
        .answers("own", input(json!({"include_usage": false})))
        .await;
    let found = (&seen.end()["code"], server.requests().len());
    assert_eq!(found, (&json!("model_refused"), 6));
    let found = server.requests()[5].json();
    assert_eq!(found["stream_options"], json!({"include_usage": false}));
    model.system.end().await;
}

#[tokio::test]
async fn refusals_and_bad_input_are_not_retried() {
    let elsewhere =
        Server::start(async |mut exchange| answer_well(&mut exchange, "stolen").await).await;
    let location = format!(
        "Location: http://{}/v1/chat/completions\r\n",
        elsewhere.addr
    );
    let server = Server::start(move |mut exchange: Exchange| {
        let status = said(&exchange);
        let location = location.clone();
        let long = "no such model: ".to_owned() + &"x".repeat(100_000);
        async move {
            match status.as_str() {
                "307 Temporary Redirect" => exchange.answer(&status, &location, "").await,
                _ => exchange.answer(&status, "", &error(&long)).await,
            }
        }
    })
    .await;
    let model = Model::of(&server).await;
    let statuses = [
        "400 Bad Request",
        "401 Unauthorized",
        "404 Not Found",
        "422 Unprocessable Entity",
    ];
    for (number, status) in statuses
        .into_iter()
        .chain(["307 Temporary Redirect"])
        .enumerate()
    {
        let seen = model
            .answers(&format!("refused-{number}"), json!(status))
            .await;
        let failed = seen.end();
        assert_fields!(failed, {"type": "job:failed:v1", "code": "model_refused"});
        assert_fields!(failed, {"retryable": false, "attempt": 1});
        let message = failed["message"].as_str().unwrap();
        assert!(
            message.contains(status) && message.len() < 1200,
            "{message}"
        );
        let found = message.contains("no such model");
        assert_eq!(found, !status.starts_with('3'), "{message}");
        let found = message.contains(&elsewhere.addr);
        assert_eq!(found, status.starts_with('3'), "{message}");
    }
    // The key was sent to no other server.
    assert!(elsewhere.requests().is_empty());
    let asked = server.requests().len();
    for (number, input) in [
        json!(7),
        Value::Null,
        json!({"messages": []}),
        json!({"prompt": "x"}),
    ]
    .into_iter()
    .enumerate()
    {
        let seen = model.answers(&format!("bad-{number}"), input).await;
        assert_fields!(seen.end(), {"code": "bad_input", "attempt": 1});
    }
    assert_eq!(server.requests().len(), asked);
    model.system.end().await;
}

#[tokio::test]
async fn a_server_that_never_recovers_fails_the_job() {
    let server = Server::start(async |mut exchange: Exchange| {
        exchange.answer("500 Oops", "", "burnt").await
    })
    .await;
    let model = Model::with(&server.addr, PATIENCE, |settings| settings.max_attempts = 3).await;
    let seen = model.answers("burnt", json!("hi")).await;
    assert_eq!(seen.end()["code"], "attempts_exhausted");
    let message = seen.end()["message"].as_str().unwrap();
    assert!(
        message.contains("burnt") && message.contains("model_failed"),
        "{message}"
    );
    assert_eq!(
        (
            server.requests().len(),
            seen.of_type("job:retrying:v1").len()
        ),
        (3, 2)
    );
    model.system.end().await;
    let model = Model::with("127.0.0.1:1", PATIENCE, |settings| {
        settings.max_attempts = 2
    })
    .await;
    let seen = model.answers("gone", json!("hi")).await;
    let found = seen.of_type("job:retrying:v1")[0];
    assert_eq!(found["code"], "model_unreachable");
    assert_eq!(seen.end()["code"], "attempts_exhausted");
    model.system.end().await;
}

#[tokio::test]
async fn a_complete_answer_needs_no_end_mark() {
    let server = Server::start(async |mut exchange: Exchange| {
        let cut = said(&exchange) == "cut";
        begin_with(&mut exchange, "all").await;
        exchange.send(reason("length")).await;
        if cut {
            return;
        }
        loop {
            // A server that is alive and has nothing more to send.
            tokio::time::sleep(Duration::from_millis(100)).await;
            exchange.send(": ping\n\n").await;
        }
    })
    .await;
    // Heartbeats do not mean that the answer continues.
    let model = Model::with(&server.addr, Duration::from_secs(2), |_| {}).await;
    let (cut, endless) = tokio::join!(
        model.answers("cut", json!("cut")),
        model.answers("endless", json!("endless"))
    );
    for seen in [cut, endless] {
        let found = (seen.text(), &seen.end()["finish_reason"]);
        assert_eq!(found, ("all".into(), &json!("length")));
    }
    model.system.end().await;
}

#[tokio::test]
async fn a_cancel_closes_the_model_connection_within_a_second() {
    let (closed, mut closes) = mpsc::channel(4);
    let server = Server::start(move |mut exchange: Exchange| {
        let closed = closed.clone();
        async move {
            if said(&exchange) == "streams" {
                begin_with(&mut exchange, "some").await;
            }
            exchange.closed().await;
            closed.send(()).await.unwrap();
        }
    })
    .await;
    // Without the signal neither the worker nor the backend would end it within minutes.
    let minutes = Duration::from_secs(600);
    let model = Model::with(&server.addr, minutes, |settings| {
        settings.ack_wait = minutes
    })
    .await;
    for (number, way) in ["streams", "waits"].into_iter().enumerate() {
        let job = model.system.submit(way, json!(way)).await;
        until("the request", async || server.requests().len() > number).await;
        let events = if way == "streams" { 3 } else { 2 };
        model
            .system
            .last_event("the events before", &job, |last| last.seq.0 >= events)
            .await;
        let close = async {
            let _ = model.system.cancel_running(&job).await;
            within("the connection to close", closes.recv()).await
        };
        let (closed, took) = timed(close).await;
        assert!(
            closed.is_some() && took < Duration::from_secs(1),
            "{way}: {took:?}"
        );
        assert_eq!(model.system.ended(&job).await.status, Status::Cancelled);
    }
    model.system.end().await;
}

#[tokio::test]
async fn the_api_key_is_never_published_or_logged() {
    let server = Server::start(async |mut exchange: Exchange| {
        // A server that echoes the key.
        let echo = exchange.request.headers["authorization"].clone();
        match said(&exchange).as_str() {
            "refuse" => exchange.answer("401 Unauthorized", "", &error(&echo)).await,
            "break" => {
                exchange.begin().await;
                let error = format!("data: {}\n\n", error(&echo));
                exchange.send(error).await;
                exchange.finish().await;
            }
            _ => answer_well(&mut exchange, "fine").await,
        }
    })
    .await;
    let system = System::on(Broker::shared_one()).await;
    let edge = system.edge().await;
    let dir = tempfile::TempDir::new().unwrap();
    let log = dir.path().join("log");
    let base_url = format!("http://{}/v1/", server.addr);
    let flags: Vec<_> = "worker --kind chat --max-attempts 2 --retry-delay 10ms"
        .split(' ')
        .collect();
    let backend = ["openai", "--base-url", &base_url, "--model", "m1"];
    let worker = system.command(&flags, &backend);
    let env = [("OPENAI_API_KEY", KEY), ("TAILWATER_LOG", "trace")];
    let stderr = Stdio::from(std::fs::File::create(&log).unwrap());
    let mut worker = Process::start_with(worker, &env, stderr);
    let mut events = String::new();
    for (said, status) in [
        ("hi", "job:done:v1"),
        ("refuse", "job:failed:v1"),
        ("break", "job:failed:v1"),
    ] {
        system.submit_to("chat", said, json!(said)).await;
        let seen = follow(&edge.addr, said).await;
        assert_eq!(seen.end()["type"], status, "{said}: {:?}", seen.events);
        events += &format!("{:?}", seen.events);
    }
    assert_eq!(server.requests().len(), 4);
    assert!(
        server
            .requests()
            .iter()
            .all(|request| request.headers["authorization"].ends_with(KEY))
    );
    worker.signal(Signal::TERM);
    assert!(worker.ends_within(Duration::from_secs(10)).await.success());
    let log = std::fs::read_to_string(log).unwrap();
    // The log includes the HTTP client.
    assert!(
        log.contains("TRACE") && log.contains("starting new connection"),
        "{log}"
    );
    assert!(!log.contains(KEY) && !events.contains(KEY));
    assert!(events.contains("Bearer ***"), "{events}");
    system.end().await;
}

#[tokio::test]
async fn startup_errors_do_not_show_the_api_key() {
    let start = async |base_url: &str, key: &str| {
        let line = "worker --kind chat openai --model m1 --base-url";
        let args = line.split(' ').chain([base_url]);
        run_with(args, &[("OPENAI_API_KEY", key)]).await
    };
    let ran = start("localhost:11434/v1", KEY).await;
    ran.refuses("must be an http or https address");
    let ran = start("http://127.0.0.1:1/v1", &format!("{KEY}\n")).await;
    let err = ran.refuses("the API key has characters");
    assert!(!err.contains(KEY), "{err}");
    let help = ["worker", "openai", "--help"];
    let out = run_with(help, &[("OPENAI_API_KEY", KEY)]).await.prints();
    assert!(
        out.contains("OPENAI_API_KEY") && !out.contains(KEY),
        "{out}"
    );
}

#[tokio::test]
async fn no_key_is_sent_when_none_is_set() {
    let server = Server::start(async |mut exchange| answer_well(&mut exchange, "hi").await).await;
    let system = System::on(Broker::shared_one()).await;
    let base_url = format!("http://{}/v1", server.addr);
    let backend = ["openai", "--base-url", &base_url, "--model", "m1"];
    let worker = system.command(&["worker", "--kind", "chat"], &backend);
    // An empty variable is not a key.
    let env = [("OPENAI_API_KEY", "")];
    let _worker = Process::start_with(worker, &env, Stdio::inherit());
    let job = system.submit_to("chat", "keyless", json!("hi")).await;
    assert_eq!(system.ended(&job).await.output, "hi");
    assert!(!server.requests()[0].headers.contains_key("authorization"));
    system.end().await;
}
