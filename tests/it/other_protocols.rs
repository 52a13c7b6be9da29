use serde_json::{Value, json};
use tailwater::edge::EdgeSettings;
use tokio_tungstenite::connect_async;
use tokio_tungstenite::tungstenite::Error;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;

use crate::support::broker::Broker;
use crate::support::http::http;
use crate::support::system::{Edge, System, words};
use crate::support::tokens::{bearer, gate, keys, token};
use crate::support::{table, until};

/// What each token may do, as the code of the answer; `-`: the answer is like that to a chat or a list without anything;
/// `*`: depends on the column before.
///
/// The tokens: none at all; a valid one without grants; for submitting the kind; for watching the jobs; for cancelling
/// them only; for watching and cancelling them; for everything.
const MATRIX: &str = "
    chat       unauthorized forbidden       ok            forbidden       forbidden       forbidden       ok
    resume     unauthorized -               -             ok              -               ok              ok
    stop       unauthorized -               -             forbidden       -               ok              *
    socket     unauthorized ok              ok            ok              ok              ok              ok
    complete   unauthorized forbidden       ok            forbidden       forbidden       forbidden       ok
    completion unauthorized job_not_found   job_not_found ok              job_not_found   ok              ok
    respond    unauthorized forbidden       ok            forbidden       forbidden       forbidden       ok
    response   unauthorized job_not_found   job_not_found ok              job_not_found   ok              ok
    events     unauthorized job_not_found   job_not_found ok              job_not_found   ok              ok
    cancel     unauthorized job_not_found   job_not_found forbidden       job_not_found   ok              ok
    models     unauthorized -               ok            -               -               -               ok
    model      unauthorized model_not_found ok            model_not_found model_not_found model_not_found ok
";

/// The body of a request that answers a chat.
fn chat(id: &str, words: u32) -> Value {
    let message = json!({"role": "user", "parts": [{"type": "text", "text": "hi"}]});
    json!({"id": id, "messages": [message], "words": words, "rate": 50})
}

/// Opens a WebSocket that speaks the protocol of the AI SDK.
async fn open_socket(edge: &Edge, token: Option<&str>) -> String {
    let mut request = format!("ws://{}/ws", edge.addr)
        .into_client_request()
        .unwrap();
    let protocols = match token {
        Some(token) => format!("bearer.{token}, ai-sdk.chat.v1"),
        None => "ai-sdk.chat.v1".to_owned(),
    };
    let headers = request.headers_mut();
    headers.insert("Sec-WebSocket-Protocol", protocols.parse().unwrap());
    match connect_async(request).await {
        Ok((_, answer)) => {
            assert_eq!(answer.headers()["Sec-WebSocket-Protocol"], "ai-sdk.chat.v1");
            "ok".to_owned()
        }
        Err(Error::Http(answer)) => {
            let problem: Value = serde_json::from_slice(answer.body().as_ref().unwrap()).unwrap();
            problem["code"].as_str().unwrap().to_owned()
        }
        Err(error) => panic!("{error}"),
    }
}

async fn answer(edge: &Edge, operation: &str, column: usize, token: Option<&str>) -> String {
    if operation == "socket" {
        return open_socket(edge, token).await;
    }
    let own = token.map(bearer).unwrap_or_default();
    let completion =
        json!({"model": "demo", "messages": [{"role": "user", "content": "hi"}], "words": 1});
    let response = json!({"model": "demo", "input": "hi", "words": 1, "background": true});
    let (method, path, body) = match operation {
        "chat" => ("POST", "/api/chat", chat(&format!("own{column}"), 1)),
        "resume" => ("HEAD", "/api/chat/busy/stream", Value::Null),
        "stop" => ("POST", "/api/chat/busy/stop", json!({})),
        "complete" => ("POST", "/v1/chat/completions", completion),
        "completion" => ("GET", "/v1/chat/completions/done", Value::Null),
        "respond" => ("POST", "/v1/responses", response),
        "response" => ("GET", "/v1/responses/done", Value::Null),
        "events" => ("GET", "/v1/responses/done?stream=true", Value::Null),
        "cancel" => ("POST", "/v1/responses/done/cancel", json!({})),
        "models" => ("GET", "/v1/models", Value::Null),
        "model" => ("GET", "/v1/models/demo", Value::Null),
        other => panic!("{other}"),
    };
    let headers = format!("{own}Content-Type: application/json\r\n");
    let body = if body.is_null() {
        String::new()
    } else {
        body.to_string()
    };
    let (status, content, body) = http(edge, method, path, &headers, body.as_bytes()).await;
    let is_openai = path.starts_with("/v1/");
    let code = if is_openai {
        &body["error"]["code"]
    } else {
        &body["code"]
    };
    let has_nothing = match operation {
        "stop" => body["job"].is_null(),
        "models" => body["data"] == json!([]),
        _ => status == 204,
    };
    match (status, code.as_str()) {
        (401, None) if method == "HEAD" => "unauthorized".to_owned(),
        (400.., Some(code)) => {
            let expected = if is_openai {
                "application/json"
            } else {
                "application/problem+json"
            };
            assert_eq!(content, expected, "{operation}");
            code.to_owned()
        }
        (200..300, None) if has_nothing => "-".to_owned(),
        (200..300, None) => "ok".to_owned(),
        other => panic!("{operation}: {other:?} {body}"),
    }
}

#[tokio::test]
async fn each_token_may_do_what_it_grants_over_the_protocols_of_others() {
    let system = System::on(Broker::shared_one()).await;
    system.demo().await;
    let edge = system
        .edge_with(EdgeSettings {
            chat_kind: Some("demo".parse().unwrap()),
            gate: gate(keys()),
            ..EdgeSettings::default()
        })
        .await;
    let done = system.submit("done", words(3, 0, 1)).await;
    system.ended(&done).await;
    let watch = json!(["demo:chat-busy_t*", "done"]);
    let grants = [
        json!({}),
        json!({"submit": ["demo"]}),
        json!({"watch": watch}),
        json!({"cancel": watch}),
        json!({"watch": watch, "cancel": watch}),
        json!({"admin": true}),
    ];
    let tokens = grants.map(|grants| Some(token("a", &grants, 600)));
    let admin = tokens[5].as_deref().map(bearer).unwrap();
    let tokens: Vec<_> = std::iter::once(None).chain(tokens).collect();
    let busy = async {
        let headers = format!("{admin}Content-Type: application/json\r\n");
        let body = chat("busy", 100_000).to_string();
        http(&edge, "POST", "/api/chat", &headers, body.as_bytes())
            .await
            .0
    };
    let check = async {
        until("the chat", async || {
            let (status, ..) = http(&edge, "HEAD", "/api/chat/busy/stream", &admin, b"").await;
            status == 200
        })
        .await;
        for [operation, expected @ ..] in table::<8>(MATRIX) {
            for (column, (token, expected)) in tokens.iter().zip(expected).enumerate() {
                let found = answer(&edge, operation, column, token.as_deref()).await;
                if expected != "*" {
                    assert_eq!(found, expected, "{operation}, token {column}");
                }
            }
        }
    };
    let (status, ()) = futures_util::future::join(busy, check).await;
    assert_eq!(status, 200);
    system.end().await;
}
