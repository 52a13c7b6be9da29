use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tailwater::backend::{Backend, Failure, Finish, Job, Output, Retry};

use crate::support::assert_fields;
use crate::support::broker::Broker;
use crate::support::http::{exchange, get, header, http};
use crate::support::system::{Edge, System, text, words};
use crate::support::third_party::ThirdParty;

/// OpenAI's clients for Node.js and Python, each as a process that runs a scenario.
fn clients(edge: &Edge, scenario: &str, body: &Value) -> [ThirdParty; 2] {
    let url = format!("http://{}", edge.addr);
    let given = json!({"url": url, "scenario": scenario, "body": body});
    [
        ThirdParty::node(Path::new("openai.mjs"), &given),
        ThirdParty::python("openai_client.py", &given),
    ]
}

/// Runs a scenario with each client; returns what each prints at its end.
async fn run(edge: &Edge, scenario: &str, body: &Value) -> Vec<Value> {
    let clients = clients(edge, scenario, body).map(ThirdParty::ends);
    let said = futures_util::future::join_all(clients).await;
    said.into_iter().map(|mut all| all.pop().unwrap()).collect()
}

#[tokio::test]
async fn clients_of_openai_get_completions_from_any_worker() {
    let system = System::on(Broker::shared_one()).await;
    system.wordy().await;
    let edge = system.edge().await;
    let input = words(60, 100, 7);
    let expected = text(&input);
    for report in run(&edge, "complete", &input).await {
        assert_fields!(report, {
            "text": expected, "finish": "stop", "isSame": true, "isJob": true, "models": ["demo"],
        });
    }
    for report in run(&edge, "stream", &input).await {
        assert_eq!(report["text"], expected);
    }
    system.end().await;
}

#[tokio::test]
async fn a_completion_whose_stream_was_dropped_resumes_after_the_last_event() {
    let system = System::on(Broker::shared_one()).await;
    // Each is an event of its own, however slow the broker is. Only each second one is content.
    system.pieces(1000).await;
    let edge = system.edge().await;
    let expected: String = (0..1000).step_by(2).map(|n| format!("{n} ")).collect();
    for report in run(&edge, "resume", &json!({})).await {
        assert_fields!(report, {"text": expected, "isSame": true, "hasBoth": true});
    }
    system.end().await;
}

#[tokio::test]
async fn a_completion_survives_the_worker_that_is_killed() {
    let system = System::on(Broker::shared_one()).await;
    let edge = system.edge().await;
    let flags = ["--ack-wait", "2s"];
    let mut worker = system.worker_process(&flags, &["demo"]);
    system.kind_is_known().await;
    let input = words(150, 40, 8);
    let mut clients = clients(&edge, "superseded", &input);
    for client in &mut clients {
        client.says("begun").await;
    }
    worker.kill().await;
    let mut second = system.worker_process(&flags, &["demo"]);
    for client in clients {
        let said = client.ends().await;
        assert_eq!(said.last().unwrap()["text"], text(&input));
    }
    second.kill().await;
    system.end().await;
}

#[tokio::test]
async fn errors_have_the_form_that_clients_of_openai_expect() {
    let system = System::on(Broker::shared_one()).await;
    system.demo().await;
    let edge = system.edge().await;
    for report in run(&edge, "refused", &json!({})).await {
        // None is tried again, which would start another job.
        assert_eq!(
            report["errors"],
            json!([
                ["NotFoundError", 404, "model_not_found", 1],
                ["UnprocessableEntityError", 422, "bad_input", 1],
                ["APIError", null, "bad_input", 1],
                ["NotFoundError", 404, "job_not_found", 1],
                ["BadRequestError", 400, "bad_request", 1],
                ["NotFoundError", 404, "model_not_found", 1],
            ])
        );
    }
    let (status, content, error) = http(&edge, "GET", "/v1/nothing", "", b"").await;
    assert_eq!((status, content.as_str()), (404, "application/json"));
    assert_eq!(error["error"]["code"], "not_found");
    system.end().await;
}

#[tokio::test]
async fn responses_run_in_the_background_and_their_streams_continue_after_any_number() {
    let system = System::on(Broker::shared_one()).await;
    system.wordy().await;
    let edge = system.edge().await;
    let input = words(40, 60, 9);
    let expected = text(&input);
    for report in run(&edge, "background", &input).await {
        assert_fields!(report, {"first": true, "status": "completed", "text": expected, "isSame": true});
    }
    for report in run(&edge, "starting_after", &input).await {
        assert_fields!(report, {
            "text": expected, "isDense": true, "last": "response.completed", "isSame": true,
        });
    }
    for report in run(&edge, "cancel", &words(10_000, 50, 9)).await {
        assert_eq!(report, json!({"status": "cancelled", "again": "cancelled"}));
    }
    system.end().await;
}

/// Writes another text in each attempt.
struct Fickle;

impl Backend for Fickle {
    async fn run(&self, job: Job, out: Output) -> Result<Finish, Failure> {
        out.text(&format!("attempt {} ", job.attempt)).await?;
        if job.attempt == 1 {
            return Err(Failure {
                code: "fickle".into(),
                message: "it fails once".into(),
                retry: Retry::After(Duration::from_millis(100)),
            });
        }
        out.text("ends").await?;
        Ok(Finish::default())
    }
}

#[tokio::test]
async fn an_attempt_that_answers_differently_ends_a_stream_with_an_error_and_can_be_read_again() {
    let system = System::on(Broker::shared_one()).await;
    system
        .worker(Fickle, |settings| {
            settings.flush.interval = Duration::ZERO;
        })
        .await;
    let edge = system.edge().await;
    let json = "Content-Type: application/json\r\n";
    let body =
        json!({"model": "demo", "messages": [{"role": "user", "content": "hi"}], "stream": true});
    let (head, stream) = exchange(
        &edge.addr,
        "POST",
        "/v1/chat/completions",
        json,
        body.to_string().as_bytes(),
    )
    .await;
    assert!(
        stream.contains("attempt 1") && stream.contains("attempt_superseded"),
        "{stream}"
    );
    assert!(
        !stream.contains("attempt 2") && !stream.contains("[DONE]"),
        "{stream}"
    );
    let job = header(&head, "x-tailwater-job").unwrap();
    let path = format!("/v1/chat/completions/{job}");
    let (_, again) = get(&edge.addr, &path, "Accept: text/event-stream\r\n").await;
    assert!(
        again.contains("attempt 2") && !again.contains("attempt 1"),
        "{again}"
    );
    assert!(again.contains("[DONE]"), "{again}");
    let (_, whole) = get(&edge.addr, &path, "").await;
    let whole: Value = serde_json::from_str(&whole).unwrap();
    assert_eq!(whole["choices"][0]["message"]["content"], "attempt 2 ends");
    // A response begins new items instead.
    let (_, response) = get(&edge.addr, &format!("/v1/responses/{job}"), "").await;
    let response: Value = serde_json::from_str(&response).unwrap();
    assert_eq!(
        response["output"][0]["content"][0]["text"],
        "attempt 2 ends"
    );
    system.end().await;
}

#[tokio::test]
async fn a_resumed_completion_has_a_cursor_and_ends_once() {
    let system = System::on(Broker::shared_one()).await;
    system.demo().await;
    let edge = system.edge().await;
    let job = system.submit("done", words(5, 0, 1)).await;
    system.ended(&job).await;
    let (_, stream) = get(&edge.addr, "/v1/chat/completions/done?stream=true", "").await;
    let last = stream
        .lines()
        .filter_map(|line| line.strip_prefix("id: "))
        .next_back();
    let header = format!("Last-Event-ID: {}\r\n", last.unwrap());
    let (head, _) = get(&edge.addr, "/v1/chat/completions/done", &header).await;
    assert!(head.starts_with("HTTP/1.1 204"), "{head}");
    let (status, _, error) = http(
        &edge,
        "GET",
        "/v1/chat/completions/done",
        "Last-Event-ID: nonsense\r\n",
        b"",
    )
    .await;
    assert_eq!(
        (status, &error["error"]["code"]),
        (400, &json!("bad_cursor"))
    );
    system.end().await;
}
