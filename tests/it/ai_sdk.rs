use std::path::Path;

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tailwater::backend::{Backend, Channel, Failure, Finish, Job, Output};
use tailwater::edge::EdgeSettings;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use crate::support::broker::Broker;
use crate::support::http::{exchange, get_json, header, http};
use crate::support::system::{Edge, System, text, words};
use crate::support::third_party::ThirdParty;
use crate::support::{assert_fields, until, within};

/// The packages, version 7 and version 6, and their transports.
const PAGES: [(&str, &str); 3] = [("ai", "http"), ("ai6", "http"), ("ai", "websocket")];

/// An edge whose chats are answered by jobs of the kind `demo`.
async fn edge(system: &System) -> Edge {
    system
        .edge_with(EdgeSettings {
            chat_kind: Some("demo".parse().unwrap()),
            ..EdgeSettings::default()
        })
        .await
}

/// A page with a chat, as a process.
fn page(edge: &Edge, (sdk, transport): (&str, &str), scenario: &str, body: &Value) -> ThirdParty {
    let given = json!({
        "url": format!("http://{}", edge.addr), "sdk": sdk, "transport": transport,
        "scenario": scenario, "chat": format!("{scenario}-{sdk}-{transport}"), "body": body,
    });
    ThirdParty::node(Path::new("ai_sdk.mjs"), &given)
}

/// Runs a scenario on each page; returns the last report of each.
async fn run(edge: &Edge, scenario: &str, body: &Value) -> Vec<Value> {
    let pages = PAGES.map(|kind| page(edge, kind, scenario, body).ends());
    let reports = futures_util::future::join_all(pages).await;
    reports
        .into_iter()
        .map(|mut all| all.pop().unwrap())
        .collect()
}

#[tokio::test]
async fn a_chat_of_the_ai_sdk_gets_the_whole_answer() {
    let system = System::on(Broker::shared_one()).await;
    system.demo().await;
    let edge = edge(&system).await;
    let input = words(40, 200, 3);
    for report in run(&edge, "whole", &input).await {
        assert_fields!(report, {"status": "ready", "error": null, "messages": 2, "text": text(&input)});
        let job = report["metadata"]["job"].as_str().unwrap();
        assert!(job.starts_with("demo:chat-whole-ai"), "{job}");
        let page = get_json(&edge, &format!("/api/jobs/{job}/events?limit=1")).await;
        assert_eq!(
            page["events"][0]["input"]["messages"],
            json!([{"role": "user", "content": "hi"}])
        );
    }
    system.end().await;
}

#[tokio::test]
async fn a_chat_resumes_after_its_network_broke_and_after_it_disconnected() {
    let system = System::on(Broker::shared_one()).await;
    system.wordy().await;
    let edge = edge(&system).await;
    let input = words(120, 60, 4);
    for scenario in ["cut", "left"] {
        for report in run(&edge, scenario, &input).await {
            let expected = text(&input);
            assert_fields!(report, {"status": "ready", "messages": 2, "text": expected, "wasCut": true}, "{scenario}");
        }
    }
    system.end().await;
}

#[tokio::test]
async fn stopping_a_chat_cancels_its_job() {
    let system = System::on(Broker::shared_one()).await;
    system.demo().await;
    let edge = edge(&system).await;
    let input = words(10_000, 50, 5);
    for kind in PAGES {
        let said = page(&edge, kind, "stopped", &input).ends().await;
        let [_, stopping, report, resumed] = said.as_slice() else {
            panic!("{said:?}")
        };
        assert_eq!(stopping["success"], true);
        assert_fields!(report, {"status": "ready", "error": null});
        let shown = report["text"].as_str().unwrap();
        assert!(text(&input).starts_with(shown) && shown.len() >= 40);
        assert_eq!(resumed["resumed"], false);
        let job = stopping["job"].as_str().unwrap().parse().unwrap();
        let state = system.ended(&job).await;
        assert_eq!(state.status.as_str(), "cancelled");
    }
    system.end().await;
}

#[tokio::test]
async fn a_failed_job_is_an_error_of_the_chat() {
    let system = System::on(Broker::shared_one()).await;
    system.demo().await;
    let edge = edge(&system).await;
    for report in run(&edge, "whole", &json!({"words": -1})).await {
        assert_eq!(report["status"], "error");
        let error = report["error"].as_str().unwrap();
        assert!(error.starts_with("bad_input: "), "{error}");
    }
    system.end().await;
}

/// A program that prints forty words. Its first attempt stops after twelve of them.
const WORDS: &str = r#"
    test "$TAILWATER_ATTEMPT" = 1 && count=12 || count=40
    for number in $(seq $count); do printf 'wörd-%d ' $number; sleep 0.03; done
    test "$TAILWATER_ATTEMPT" != 1 || sleep 1000
"#;

#[tokio::test]
async fn a_chat_shows_only_the_attempt_that_counts_after_a_worker_was_killed() {
    let system = System::on(Broker::shared_one()).await;
    let edge = edge(&system).await;
    let text: String = (1..=40).map(|n| format!("wörd-{n} ")).collect();
    for kind in PAGES {
        let start = || {
            let program = ["exec", "--", "sh", "-c", WORDS];
            system.worker_process(&["--ack-wait", "2s"], &program)
        };
        let mut worker = start();
        system.kind_is_known().await;
        let mut page = page(&edge, kind, "superseded", &json!({}));
        page.says("begun").await;
        worker.kill().await;
        let mut second = start();
        let said = page.ends().await;
        let [was_error, report] = said.as_slice() else {
            panic!("{said:?}")
        };
        // Version 6 has no part that withdraws text: its stream breaks, and resuming repairs that.
        assert_eq!(was_error["wasError"], kind.0 == "ai6");
        assert_fields!(report, {"status": "ready", "error": null, "messages": 2, "text": text}, "{kind:?}");
        let job = report["metadata"]["job"].as_str().unwrap().parse().unwrap();
        assert_eq!(system.ended(&job).await.attempt, 2);
        second.kill().await;
    }
    system.end().await;
}

/// Produces each kind of output.
struct Varied;

impl Backend for Varied {
    async fn run(&self, _job: Job, out: Output) -> Result<Finish, Failure> {
        out.text_on(Channel::Reasoning, "Let me see.").await?;
        out.text("It is ").await?;
        out.text("cold.").await?;
        out.data(json!({"type": "weather", "celsius": 3})).await?;
        let function = json!({"name": "warm", "arguments": "{\"by\":2}"});
        let call = json!({"id": "c1", "type": "function", "function": function});
        out.data(json!({"tool_calls": [call]})).await?;
        Ok(Finish {
            usage: Some(json!({"total_tokens": 7})),
            finish_reason: Some("tool_calls".into()),
        })
    }
}

#[tokio::test]
async fn reasoning_data_tool_calls_and_usage_are_parts_of_the_message() {
    let system = System::on(Broker::shared_one()).await;
    system.worker(Varied, |_| {}).await;
    let edge = edge(&system).await;
    for report in run(&edge, "whole", &json!({})).await {
        assert_fields!(report, {"status": "ready", "text": "It is cold."});
        assert_eq!(report["metadata"]["usage"], json!({"total_tokens": 7}));
        let parts = report["parts"].as_array().unwrap();
        let types: Vec<_> = parts
            .iter()
            .map(|part| part["type"].as_str().unwrap())
            .collect();
        assert_eq!(
            types,
            [
                "step-start",
                "reasoning",
                "text",
                "data-weather",
                "tool-warm"
            ]
        );
        assert_eq!(parts[1]["text"], "Let me see.");
        assert_eq!(parts[3]["data"]["celsius"], 3);
        assert_fields!(parts[4], {"toolCallId": "c1", "state": "input-available", "input": {"by": 2}});
    }
    system.end().await;
}

#[tokio::test]
async fn a_new_message_replaces_the_answer_that_still_runs() {
    let system = System::on(Broker::shared_one()).await;
    system.demo().await;
    let edge = edge(&system).await;
    let json = "Content-Type: application/json\r\n";
    let ask = async |text: &str, words: u32| {
        let message = json!({"role": "user", "parts": [{"type": "text", "text": text}]});
        let body = json!({"id": "busy", "messages": [message], "words": words, "rate": 100});
        let (head, body) = exchange(
            &edge.addr,
            "POST",
            "/api/chat",
            json,
            body.to_string().as_bytes(),
        )
        .await;
        // Pages with a transport of their own look at it.
        assert_eq!(header(&head, "x-vercel-ai-ui-message-stream"), Some("v1"));
        let job = header(&head, "x-tailwater-job");
        (job.unwrap().to_owned(), body)
    };
    let first = async {
        // The same message again joins the same job.
        let (one, two) = futures_util::future::join(ask("a", 100_000), ask("a", 100_000)).await;
        assert_eq!(one.0, two.0);
        assert!(
            one.1.contains(r#""type":"abort""#) && one.1.ends_with("data: [DONE]\n\n\r\n0\r\n\r\n")
        );
        one.0
    };
    let second = async {
        until("the first answer", async || {
            let (head, _) = exchange(&edge.addr, "HEAD", "/api/chat/busy/stream", "", b"").await;
            head.starts_with("HTTP/1.1 200")
        })
        .await;
        ask("b", 5).await
    };
    let (first, (second, body)) = futures_util::future::join(first, second).await;
    assert_ne!(first, second);
    assert!(body.contains(r#""type":"finish""#), "{body}");
    let (status, ..) = http(&edge, "GET", "/api/chat/busy/stream", "", b"").await;
    assert_eq!(status, 204);
    system.end().await;
}

#[tokio::test]
async fn requests_that_are_not_a_chat_are_refused() {
    let system = System::on(Broker::shared_one()).await;
    system.demo().await;
    let edges = [edge(&system).await, system.edge().await];
    let json = "Content-Type: application/json\r\n";
    let chat = json!({"id": "c", "messages": [{"role": "user", "parts": [{"type": "text", "text": "a"}]}]});
    for (edge, body, status, code) in [
        (&edges[0], "{", 400, "bad_json"),
        (&edges[0], "{}", 400, "bad_request"),
        (&edges[0], r#"{"id":"c","messages":[]}"#, 400, "bad_request"),
        (&edges[1], &chat.to_string(), 404, "not_found"),
    ] {
        let (found, _, problem) = http(edge, "POST", "/api/chat", json, body.as_bytes()).await;
        assert_eq!(
            (found, problem["code"].as_str()),
            (status, Some(code)),
            "{body}"
        );
    }
    for (body, code) in [
        ("{", "bad_json"),
        (r#"{"activeStreamId":7}"#, "bad_request"),
        (r#"["chat-none_t1-1"]"#, "bad_request"),
    ] {
        let path = "/api/chat/none/stop";
        let (found, _, problem) = http(&edges[0], "POST", path, "", body.as_bytes()).await;
        assert_eq!(
            (found, problem["code"].as_str()),
            (400, Some(code)),
            "{body}"
        );
    }
    let (status, _, stopping) = http(&edges[0], "POST", "/api/chat/none/stop", "", b"").await;
    assert_eq!(
        (status, stopping),
        (200, json!({"success": true, "job": null}))
    );
    let (status, ..) = http(&edges[0], "GET", "/api/chat/none/stream", "", b"").await;
    assert_eq!(status, 204);
    system.end().await;
}

/// A connection that speaks the protocol of the AI SDK.
async fn chat_socket(edge: &Edge) -> WebSocketStream<MaybeTlsStream<TcpStream>> {
    let mut request = format!("ws://{}/ws", edge.addr)
        .into_client_request()
        .unwrap();
    let headers = request.headers_mut();
    headers.insert("Sec-WebSocket-Protocol", "ai-sdk.chat.v1".parse().unwrap());
    let connected = within("a connection", connect_async(request)).await;
    connected.unwrap().0
}

#[tokio::test]
async fn a_request_id_that_is_in_use_closes_the_connection_and_the_job_goes_on() {
    let system = System::on(Broker::shared_one()).await;
    system.demo().await;
    let edge = edge(&system).await;
    let mut socket = chat_socket(&edge).await;
    let message = json!({"role": "user", "parts": [{"type": "text", "text": "hi"}]});
    let body = json!({"words": 100_000, "rate": 50});
    let request = json!({
        "type": "send", "requestId": "r", "id": "twice", "messages": [message], "body": body,
    });
    let request = Message::text(request.to_string());
    within("a send", socket.send(request)).await.unwrap();
    let close = within("a close", async {
        let mut is_sent_again = false;
        loop {
            let message = socket.next().await.unwrap().unwrap();
            if let Message::Close(close) = message {
                break close.unwrap();
            }
            let Message::Text(text) = message else {
                continue;
            };
            let frame: Value = serde_json::from_str(&text).unwrap();
            assert_eq!(frame["requestId"], "r");
            let answer = frame["type"].as_str().unwrap();
            assert!(matches!(answer, "start" | "chunk"), "{frame}");
            if answer == "chunk" && !is_sent_again {
                is_sent_again = true;
                let again = json!({"type": "resume", "requestId": "r", "id": "twice"});
                let again = Message::text(again.to_string());
                socket.send(again).await.unwrap();
            }
        }
    })
    .await;
    assert_eq!(u16::from(close.code), 1002);
    let (status, _, stopping) = http(&edge, "POST", "/api/chat/twice/stop", "", b"").await;
    assert_eq!(status, 200);
    assert!(stopping["job"].is_string(), "{stopping}");
    system.end().await;
}

#[tokio::test]
async fn a_bad_frame_ends_only_its_own_request_if_it_names_one() {
    let system = System::on(Broker::shared_one()).await;
    let edge = edge(&system).await;
    let mut socket = chat_socket(&edge).await;
    let longest = "x".repeat(80);
    let deep = "[".repeat(100) + &"]".repeat(100);
    for (frame, code) in [
        (r#""type":"send""#, "bad_request"),
        (r#""type":"send","id":"c","messages":[]"#, "bad_request"),
        (r#""type":"send","id":"c","more":1e999"#, "bad_json"),
        (r#""type":"resume","id":[]"#, "bad_request"),
        (r#""type":{},"id":"c""#, "bad_request"),
        (r#""type":"dance","id":"c""#, "bad_request"),
        (
            &format!(r#""type":"send","id":"c","more":{deep}"#),
            "bad_request",
        ),
    ] {
        let frame = format!(r#"{{"requestId":"{longest}",{frame}}}"#);
        socket.send(Message::text(frame.clone())).await.unwrap();
        let answer = within("an answer", socket.next()).await.unwrap().unwrap();
        let answer: Value = serde_json::from_str(answer.to_text().unwrap()).unwrap();
        assert_eq!(answer["requestId"], *longest, "{frame}");
        assert!(answer.to_string().contains(code), "{frame}: {answer}");
    }
    for request in [
        "null".into(),
        format!("\"{longest}x\""),
        format!("\"{}\"", "é".repeat(41)),
    ] {
        let mut socket = chat_socket(&edge).await;
        let frame = format!(r#"{{"requestId":{request},"type":"resume","id":"c"}}"#);
        socket.send(Message::text(frame.clone())).await.unwrap();
        let answer = within("a close", socket.next()).await.unwrap().unwrap();
        let Message::Close(Some(close)) = answer else {
            panic!("{frame}: {answer}");
        };
        assert_eq!(u16::from(close.code), 1002);
    }
    system.end().await;
}
