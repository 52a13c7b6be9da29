use std::collections::BTreeSet;
use std::process::Stdio;

use serde_json::{Value, json};
use tailwater::config::{PAGE_EVENTS, PAGE_EVENTS_MAX, WAIT_MAX_S};
use tailwater::wire::Code;
use tempfile::TempDir;
use tokio::process::Command;
use tokio::time::{Duration, timeout};

use crate::support::broker::Broker;
use crate::support::http::http;
use crate::support::python;
use crate::support::system::{Edge, System};

async fn document(edge: &Edge) -> Value {
    let (status, content, document) = http(edge, "GET", "/openapi.json", "", b"").await;
    assert_eq!((status, content.as_str()), (200, "application/json"));
    document
}

/// Every value below a key of this name.
fn all<'a>(value: &'a Value, name: &str, found: &mut Vec<&'a Value>) {
    match value {
        Value::Object(fields) => {
            found.extend(fields.get(name));
            fields.values().for_each(|value| all(value, name, found));
        }
        Value::Array(items) => items.iter().for_each(|value| all(value, name, found)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[tokio::test]
async fn the_openapi_document_matches_the_code() {
    let system = System::on(Broker::shared_one()).await;
    let edge = system.edge().await;
    let document = document(&edge).await;
    let events = &document["paths"]["/api/jobs/{id}/events"]["get"];
    let parameter = |name: &str| {
        let all = events["parameters"].as_array().unwrap();
        all.iter()
            .find(|parameter| parameter["name"] == name)
            .unwrap()["schema"]
            .clone()
    };
    assert_eq!(parameter("limit")["maximum"], PAGE_EVENTS_MAX);
    assert_eq!(parameter("limit")["default"], PAGE_EVENTS);
    let waits = |wait: &str| {
        let path = format!("/api/jobs/unknown?wait={wait}");
        let edge = &edge;
        async move { http(edge, "GET", &path, "", b"").await.0 != 400 }
    };
    let found = parameter("wait");
    assert_eq!(
        found["pattern"],
        format!("^([0-9]|[1-5][0-9]|{WAIT_MAX_S})s?$")
    );
    assert!(
        waits(&format!("{WAIT_MAX_S}s")).await && !waits(&format!("{}s", WAIT_MAX_S + 1)).await
    );
    let mut enums = Vec::new();
    all(&document["paths"], "code", &mut enums);
    let named: BTreeSet<_> = enums
        .iter()
        .flat_map(|code| code["enum"].as_array().unwrap())
        .map(|code| code.as_str().unwrap())
        .collect();
    let known: BTreeSet<_> = Code::ALL.iter().map(|code| code.as_str()).collect();
    assert!(named.is_subset(&known) && named.len() > 10, "{named:?}");
    for (method, path) in [
        ("post", "/api/jobs"),
        ("get", "/api/jobs/{id}/events"),
        ("get", "/ws"),
        ("post", "/api/chat"),
        ("get", "/api/chat/{id}/stream"),
    ] {
        let refused = &document["paths"][path][method]["responses"]["429"];
        let mut codes = Vec::new();
        all(refused, "enum", &mut codes);
        assert_eq!(codes, [&json!(["rate_limited"])], "{method} {path}");
    }
    let mut references = Vec::new();
    all(&document, "$ref", &mut references);
    for reference in references {
        let pointer = reference.as_str().unwrap().strip_prefix('#').unwrap();
        assert_ne!(document.pointer(pointer), None, "{pointer}");
    }
    assert_eq!(document["openapi"], json!("3.1.0"));
    system.end().await;
}

/// For a longer run with other seeds: `schemathesis … run -n 250 --seed N`.
#[tokio::test]
async fn an_edge_conforms_to_its_openapi_document() {
    let system = System::on(Broker::shared_one()).await;
    system.demo().await;
    let edge = system.edge().await;
    let root = env!("CARGO_MANIFEST_DIR");
    let dir = TempDir::new().unwrap();
    let mut command = Command::new(python("schemathesis"));
    command.args([
        "--config-file",
        &format!("{root}/tests/clients/schemathesis.toml"),
        "run",
    ]);
    command.arg(format!("http://{}/openapi.json", edge.addr));
    command.args(["-c", "all", "-n", "30", "--seed", "1", "--no-shrink"]);
    command
        .current_dir(dir.path())
        .env("PYTHONPATH", root)
        .env("PYTHONDONTWRITEBYTECODE", "1");
    command.stdin(Stdio::null()).kill_on_drop(true);
    let out = timeout(Duration::from_secs(600), command.output())
        .await
        .expect("in time")
        .unwrap();
    let said = String::from_utf8_lossy(&out.stdout);
    assert!(
        out.status.success(),
        "{said}{}",
        String::from_utf8_lossy(&out.stderr)
    );
    // It made requests, also for jobs that exist.
    let number = |before: &str, after: &str| {
        let found = said
            .split_once(after)
            .unwrap()
            .0
            .rsplit_once(before)
            .unwrap()
            .1;
        found.trim().parse::<u32>().unwrap()
    };
    assert!(number("Test cases:\n", " generated") > 200, "{said}");
    assert!(number("API Links:", " covered") >= 3, "{said}");
    system.end().await;
}
