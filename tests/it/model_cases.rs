use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tailwater::backend::openai::{OpenAi, OpenAiSettings};

use crate::support::broker::Broker;
use crate::support::client::{Seen, follow};
use crate::support::http_server::{Exchange, Server};
use crate::support::system::System;
use crate::support::{PATIENCE, root};

/// The cases by name: what a server answers, and the expected outcome.
fn cases() -> BTreeMap<String, Value> {
    let folder = root().join("tests/cases/openai");
    let files = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    files
        .map(|file| {
            let name = file.file_stem().unwrap().to_str().unwrap().to_owned();
            (
                name,
                serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap(),
            )
        })
        .collect()
}

/// Answers as the case says: each text is one chunk, each number a pause in seconds.
async fn replay(exchange: &mut Exchange, case: &Value) {
    let refused = case["refuses_field"].as_str();
    let is_refused = refused.is_none_or(|field| !exchange.request.json()[field].is_null());
    let answer = if is_refused { case } else { &case["else"] };
    let status = &answer["status"];
    let kind = answer["content_type"].as_str().unwrap();
    exchange
        .raw(format!("HTTP/1.1 {status} Case\r\nContent-Type: {kind}\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"))
        .await;
    for piece in answer["pieces"].as_array().unwrap() {
        match piece.as_str() {
            Some(text) => exchange.send(text).await,
            None => tokio::time::sleep(Duration::from_secs_f64(piece.as_f64().unwrap())).await,
        }
    }
    exchange.finish().await;
}

/// The output of the last attempt and the end of the job, limited to the fields that a case names.
fn outcome(seen: &Seen, expected: &Value) -> Value {
    let events: Vec<_> = seen.events.values().collect();
    let end = events.last().unwrap();
    let last_attempt = || {
        events
            .iter()
            .filter(|event| event["attempt"] == end["attempt"])
    };
    let reasoning = last_attempt().filter(|event| event["channel"] == "reasoning");
    let data = last_attempt().filter(|event| event["type"] == "job:data:v1");
    let status = end["type"].as_str().unwrap().split(':').nth(1).unwrap();
    let retries: Vec<_> = events
        .iter()
        .filter(|event| event["type"] == "job:retrying:v1")
        .collect();
    let failure = retries.first().copied().unwrap_or(end);
    let all = json!({
        "status": status,
        "output": seen.text(),
        "reasoning": reasoning.map(|event| event["text"].as_str().unwrap()).collect::<String>(),
        "data": data.map(|event| event["data"].clone()).collect::<Vec<_>>(),
        "usage": end["usage"],
        "finish_reason": end["finish_reason"],
        "retried": !retries.is_empty(),
        "code": failure["code"],
        "message": failure["message"],
    });
    let names = expected.as_object().unwrap().keys().cloned();
    names
        .map(|name| (name.clone(), all[&name].clone()))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

#[tokio::test]
async fn every_recorded_model_answer_has_the_expected_outcome() {
    let cases = Arc::new(cases());
    assert!(
        cases.len() > 30,
        "{} cases: they are elsewhere now",
        cases.len()
    );
    let answers = Arc::clone(&cases);
    let server = Server::start(move |mut exchange: Exchange| {
        let answers = Arc::clone(&answers);
        async move {
            let messages = exchange.request.json()["messages"].take();
            let name = messages[0]["content"].as_str().unwrap().to_owned();
            replay(&mut exchange, &answers[&name]).await;
        }
    })
    .await;
    let system = System::on(Broker::shared_one()).await;
    let backend = OpenAi::new(OpenAiSettings {
        silence: PATIENCE,
        ..OpenAiSettings::new(format!("http://{}/v1/chat/completions", server.addr), "m1")
    });
    let few = |settings: &mut tailwater::worker::WorkerSettings| {
        settings.pause = Duration::from_millis(20);
        settings.max_attempts = 2;
    };
    system.worker(backend.unwrap(), few).await;
    let edge = system.edge().await;
    for (name, case) in cases.iter() {
        system.submit(name, json!(name)).await;
        let seen = follow(&edge.addr, name).await;
        seen.assert_whole();
        let why = &case["why"];
        let mut expected = case["expect"].clone();
        // Fields that a case does not name must be absent.
        let defaults = [
            ("retried", json!(false)),
            ("reasoning", json!("")),
            ("data", json!([])),
        ];
        for (field, default) in defaults {
            if (expected["status"] == "done" || field == "retried") && expected[field].is_null() {
                expected[field] = default;
            }
        }
        let mut outcome = outcome(&seen, &expected);
        if let Some(words) = expected["message"].as_str() {
            let message = outcome["message"].as_str().unwrap_or_default().to_owned();
            assert!(message.contains(words), "{name}: {message}");
            // The message ends with the request's address.
            let address = format!("(POST http://{}/v1/chat/completions)", server.addr);
            assert!(message.ends_with(&address), "{name}: {message}");
            outcome["message"] = words.into();
        }
        assert_eq!(outcome, expected, "{name}: {why}\n{:?}", seen.events);
    }
    system.end().await;
}
