use serde_json::json;

use crate::support::broker::Broker;
use crate::support::http::{exchange, get, get_json, header};
use crate::support::system::{System, words};
use crate::support::{eventually, within};

#[tokio::test]
async fn kinds_are_listed_with_the_depth_of_their_queues() {
    let system = System::on(Broker::shared_one()).await;
    system.demo().await;
    let edge = system.edge().await;
    let demo = async || {
        let answer = get_json(&edge, "/api/kinds").await;
        let kinds = answer["kinds"].as_array().unwrap().clone();
        assert_eq!(kinds.len(), 1, "{kinds:?}");
        kinds[0].clone()
    };
    let idle = async || {
        let kind = demo().await;
        (kind == json!({"kind": "demo", "waiting": 0, "running": 0, "idle_workers": 1}))
            .then_some(())
    };
    eventually("an idle worker", idle).await;
    system.submit("long", words(10_000, 20, 1)).await;
    eventually("a running job", async || {
        (demo().await["running"] == 1).then_some(())
    })
    .await;
    let job = "long".parse().unwrap();
    within("cancel", system.queue.cancel(&job, None))
        .await
        .unwrap();
    eventually("no running job", idle).await;
    system.end().await;
}

#[tokio::test]
async fn the_client_is_the_file_of_the_package_for_pages_of_any_origin() {
    let system = System::on(Broker::shared_one()).await;
    let edge = system.edge().await;
    let (head, body) = get(
        &edge.addr,
        "/client.js",
        "Origin: https://other.example\r\n",
    )
    .await;
    assert_eq!(
        body,
        include_str!("../../clients/typescript/dist/client.js")
    );
    for line in [
        "content-type: text/javascript; charset=utf-8",
        "access-control-allow-origin: https://other.example",
    ] {
        assert!(head.contains(&format!("\r\n{line}\r\n")), "{head}");
    }
    // A browser that has it gets it again only when it has changed.
    let tag = header(&head, "etag").unwrap();
    let known = format!("If-None-Match: {tag}\r\n");
    let (head, body) = get(&edge.addr, "/client.js", &known).await;
    assert!(
        head.starts_with("HTTP/1.1 304 ") && body.is_empty(),
        "{head}"
    );
    system.end().await;
}

#[tokio::test]
async fn an_edge_serves_the_console_unless_it_is_off() {
    let system = System::on(Broker::shared_one()).await;
    let edge = system.edge().await;
    let files = ["/", "/console.js", "/console.css"];
    for path in files {
        let (head, _) = exchange(&edge.addr, "GET", path, "", b"").await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{path}: {head}");
    }
    let (head, page) = get(&edge.addr, "/", "").await;
    assert!(
        head.contains("\r\ncontent-security-policy: default-src 'none';"),
        "{head}"
    );
    // The policy forbids scripts and styles in the page itself.
    assert!(!page.contains("<style") && !page.contains("style=") && !page.contains("onclick="));
    let (_edge, addr) = system.edge_process(&["--console", "off"]).await;
    for path in files {
        let (head, body) = get(&addr, path, "").await;
        assert!(
            head.starts_with("HTTP/1.1 404 ") && body.contains("\"not_found\""),
            "{path}: {head}"
        );
    }
    let (head, _) = get(&addr, "/client.js", "").await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    system.end().await;
}
