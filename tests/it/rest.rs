use std::time::UNIX_EPOCH;

use serde_json::{Value, json};
use tokio::time::{Duration, Instant};

use crate::support::broker::Broker;
use crate::support::client::Seen;
use crate::support::http::{exchange, get_json, header, http, refused, stats};
use crate::support::scenarios::on_one_and_three;
use crate::support::system::{Edge, System, text, words};
use crate::support::{assert_fields, assert_within, table, until};

on_one_and_three!(
    pages_of_history_have_every_event_once,
    long_polling_follows_a_job_to_its_end,
    a_waiting_request_returns_when_the_job_ends,
);

/// Reads page after page; returns how many there were.
async fn read(edge: &Edge, seen: &mut Seen, query: &str) -> usize {
    let mut next = "0".to_owned();
    let mut pages = 0;
    loop {
        let path = format!("/api/jobs/{}/events?cursor={next}&{query}", seen.job);
        let page = get_json(edge, &path).await;
        pages += 1;
        for event in page["events"].as_array().unwrap() {
            seen.record(event);
        }
        match page["next"].as_str() {
            Some(cursor) => next = cursor.to_owned(),
            None => {
                seen.ended = true;
                return pages;
            }
        }
    }
}

/// Waits until the edge serves this many jobs.
async fn watched_jobs(edge: &Edge, count: u64) {
    until("requests that wait", async || {
        stats(&edge.addr, "/api/stats").await["watched_jobs"] == count
    })
    .await;
}

async fn pages_of_history_have_every_event_once(broker: &Broker) {
    let system = System::on(broker).await;
    system.wordy().await;
    let input = words(300, 500, 3);
    let job = system.submit("pages", input.clone()).await;
    let state = system.ended(&job).await;
    let edge = system.edge().await;
    for (query, limit) in [("", 100), ("limit=7", 7), ("limit=1000", 1000)] {
        let mut seen = Seen::of("pages");
        let pages = read(&edge, &mut seen, query).await;
        seen.assert_whole();
        assert_eq!((seen.text(), seen.last), (text(&input), state.seq.0));
        assert_eq!(pages, usize::try_from(state.seq.0).unwrap().div_ceil(limit));
    }
    system.end().await;
}

async fn long_polling_follows_a_job_to_its_end(broker: &Broker) {
    let system = System::on(broker).await;
    let edge = system.edge().await;
    // The job does not exist yet.
    let mut seen = Seen::of("polled");
    let nothing = json!({"events": [], "live": true, "next": "0"});
    assert_eq!(get_json(&edge, "/api/jobs/polled/events").await, nothing);
    let begun = Instant::now();
    let path = "/api/jobs/polled/events?wait=1s";
    assert_eq!(get_json(&edge, path).await, nothing);
    assert!(begun.elapsed() >= Duration::from_secs(1));
    system.demo().await;
    let input = words(60, 40, 3);
    let submit = async {
        watched_jobs(&edge, 1).await;
        system.submit("polled", input.clone()).await;
    };
    tokio::join!(read(&edge, &mut seen, "wait=30"), submit);
    seen.assert_text(text(&input));
    system.end().await;
}

async fn a_waiting_request_returns_when_the_job_ends(broker: &Broker) {
    let system = System::on(broker).await;
    let worker = system.demo().await;
    let edge = system.edge().await;
    let path = "GET /api/jobs/result?wait=30s";
    refused(&edge, path, "", 404, "job_not_found").await;
    let input = words(40, 40, 3);
    system.submit("result", input.clone()).await;
    let state = get_json(&edge, "/api/jobs/result?wait=60").await;
    let ended = Duration::from_millis(state["ended_at"].as_u64().unwrap());
    let late = UNIX_EPOCH.elapsed().unwrap() - ended;
    assert!(late < Duration::from_secs(1), "{late:?} after the end");
    assert_fields!(state, {"id": "result", "status": "done"});
    assert_eq!(state["output"], text(&input));
    for path in [
        "/api/jobs/result",
        "/api/jobs/result/state",
        "/api/job/result/state",
        "/api/jobs/result?wait=9",
    ] {
        assert_eq!(get_json(&edge, path).await, state);
    }
    // When the wait is over, the answer shows the queued job.
    worker.cancel();
    system.submit("queued", input).await;
    let begun = Instant::now();
    let state = get_json(&edge, "/api/jobs/queued?wait=1s").await;
    assert_eq!(state["status"], "queued");
    assert!(begun.elapsed() >= Duration::from_secs(1));
    system.demo().await;
    let state = get_json(&edge, "/api/jobs/queued?wait=30s").await;
    assert_eq!(state["status"], "done");
    system.end().await;
}

#[tokio::test]
async fn waiting_requests_are_answered_when_the_edge_stops() {
    let system = System::on(Broker::shared_one()).await;
    system.demo().await;
    let edge = system.edge().await;
    system.submit("waits", words(10_000, 50, 1)).await;
    // The edge knows then that there is no such job, and a request for it waits at once.
    get_json(&edge, "/api/jobs/unknown/events?wait=1s").await;
    let begun = Instant::now();
    let stop = async {
        watched_jobs(&edge, 2).await;
        edge.stop();
    };
    let (state, page, ()) = tokio::join!(
        get_json(&edge, "/api/jobs/waits?wait=60s"),
        get_json(&edge, "/api/jobs/unknown/events?wait=60s"),
        stop
    );
    assert_eq!(state["status"], "running");
    assert_eq!(page["next"], "0");
    assert_within(begun, Duration::from_secs(5));
    system.end().await;
}

#[tokio::test]
async fn malformed_addresses_get_a_problem_with_a_code() {
    let system = System::on(Broker::shared_one()).await;
    let edge = system.edge().await;
    for [method, path, status, code] in table(
        "GET /api/jobs/%ff 400 bad_job_id
        GET /api/jobs/%00 400 bad_job_id
        GET /api/jobs/a%2Fb/state 400 bad_job_id
        POST /api/jobs/%C3%28/cancel 400 bad_job_id
        GET /api/jobs/j?wait= 400 bad_request
        GET /api/jobs/j?wait=1&wait=2 400 bad_request
        GET /api/jobs/j?wait=%ff 400 bad_request
        GET /api/jobs/LONG 400 bad_job_id
        GET /api/jobs/j/events?cursor=LONG 400 bad_cursor
        GET /api/jobs/ 404 not_found
        GET /api/jobs//state 400 bad_job_id
        GET /%ff 404 not_found
        GET /api/jobs/%zz 400 bad_job_id
        GET /api/jobs/% 400 bad_job_id
        GET /api/jobs/a%20b/state 400 bad_job_id
        GET /api/jobs/%2e%2e/state 400 bad_job_id
        GET /api/jobs/j/events?lastEventId=% 400 bad_cursor
        GET /api/jobs/j/events?cursor=%zz 400 bad_cursor
        GET /api/jobs/j/events?cursor=1&cursor=2 400 bad_request
        GET /api/jobs/j/events?limit=1&limit=2 400 bad_request
        GET /api/jobs?limit=1&limit=1 400 bad_request
        GET /api/jobs/j/state?wait=%zz 400 bad_request
        GET /healthz/ 404 not_found
        GET /ws/ 404 not_found",
    ) {
        let path = path.replace("LONG", &"x".repeat(20_000));
        let request = format!("{method} {path}");
        refused(&edge, &request, "", status.parse().unwrap(), code).await;
    }
    system.end().await;
}

#[tokio::test]
async fn each_path_answers_head_and_lists_its_methods() {
    let system = System::on(Broker::shared_one()).await;
    let edge = system.edge().await;
    for path in ["/healthz", "/readyz", "/api/jobs/early/events"] {
        let (status, _, body) = http(&edge, "HEAD", path, "", b"").await;
        assert_eq!((status, body), (200, Value::Null), "{path}");
    }
    for (method, path, allow) in [
        ("PUT", "/api/jobs/j", "DELETE,GET,HEAD"),
        ("POST", "/api/jobs/j/events", "GET,HEAD"),
        ("GET", "/api/jobs/j/cancel", "POST"),
        ("TRACE", "/healthz", "GET,HEAD"),
        ("BREW", "/api/jobs", "GET,HEAD,POST"),
        ("POST", "/ws", "GET,HEAD"),
    ] {
        let (head, body) = exchange(&edge.addr, method, path, "", b"").await;
        assert!(head.starts_with("HTTP/1.1 405 "), "{method} {path}: {head}");
        let content = "\r\ncontent-type: application/problem+json\r\n";
        assert!(head.contains(content), "{head}");
        assert!(body.contains("\"method_not_allowed\""), "{body}");
        let mut allowed: Vec<_> = header(&head, "allow").unwrap().split(',').collect();
        allowed.sort_unstable();
        assert_eq!(allowed.join(","), allow, "{method} {path}");
    }
    let (asked, _) = exchange(&edge.addr, "OPTIONS", "/api/jobs/j/cancel", "", b"").await;
    assert!(
        asked.starts_with("HTTP/1.1 200") && asked.contains("\r\nallow: POST\r\n"),
        "{asked}"
    );
    system.end().await;
}

#[tokio::test]
async fn answers_that_can_change_are_not_cached() {
    let system = System::on(Broker::shared_one()).await;
    system.demo().await;
    let edge = system.edge().await;
    let json = "Content-Type: application/json\r\n";
    for [method, path, status, kept] in table(
        "GET /api/jobs/kept 404 no-store
        POST /api/jobs 202 no-store
        GET /api/jobs/kept 200 no-store
        GET /api/jobs/kept/state 200 no-store
        GET /api/jobs 200 no-store
        GET /api/jobs/kept/events 200 no-cache,no-transform
        GET /api/jobs/kept/events?after=x 400 no-store
        POST /api/jobs/kept/cancel 409 no-store
        DELETE /api/jobs/kept 204 no-store
        GET /api/stats 200 no-store
        GET /api/kinds 200 no-store
        GET /client.js 200 no-cache
        GET / 200 no-cache
        GET /readyz 200 no-store
        GET /ws 400 no-store
        GET /nowhere 404 no-store
        GET /socket.io/?EIO=4&transport=polling 200 no-store",
    ) {
        let submission =
            json!({"kind": "demo", "id": "kept", "input": words(5, 100, 1)}).to_string();
        let body = if status == "202" { &submission } else { "" };
        let (head, _) = exchange(&edge.addr, method, path, json, body.as_bytes()).await;
        assert!(
            head.starts_with(&format!("HTTP/1.1 {status} ")),
            "{method} {path}: {head}"
        );
        let named: Vec<_> = head
            .lines()
            .filter_map(|line| line.strip_prefix("cache-control: "))
            .collect();
        assert_eq!(named, [kept.replace(',', ", ")], "{method} {path}");
    }
    system.end().await;
}

#[tokio::test]
async fn an_allowed_page_of_another_origin_can_submit_and_follow_a_job() {
    let system = System::on(Broker::shared_one()).await;
    system.demo().await;
    let edge = system.edge_for_all_pages().await;
    let ask = async |method, path, headers, body: &str| {
        let headers = format!("Origin: https://elsewhere.example\r\n{headers}");
        let (head, body) = exchange(&edge.addr, method, path, &headers, body.as_bytes()).await;
        assert!(
            head.contains("\r\naccess-control-allow-origin: https://elsewhere.example\r\n"),
            "{path}: {head}"
        );
        // It would allow browsers to send cookies of a proxy in front of the edge.
        assert!(
            !head.contains("access-control-allow-credentials"),
            "{path}: {head}"
        );
        (head, body)
    };
    let wanted = "Access-Control-Request-Method: POST\r\n\
        Access-Control-Request-Headers: authorization,content-type,idempotency-key\r\n";
    let (leave, _) = ask("OPTIONS", "/api/jobs", wanted, "").await;
    assert!(leave.starts_with("HTTP/1.1 200"), "{leave}");
    for header in ["methods: GET,HEAD,POST,DELETE", "headers: *,authorization"] {
        assert!(
            leave.contains(&format!("\r\naccess-control-allow-{header}\r\n")),
            "{header}: {leave}"
        );
    }
    assert!(leave.contains("\r\naccess-control-max-age: "), "{leave}");
    let submission = json!({"kind": "demo", "id": "page", "input": words(5, 100, 1)});
    let content = "Content-Type: application/json\r\n";
    let (head, _) = ask("POST", "/api/jobs", content, &submission.to_string()).await;
    assert!(
        head.starts_with("HTTP/1.1 202") && head.contains("\r\nlocation: /api/jobs/page\r\n"),
        "{head}"
    );
    assert!(
        head.contains("\r\naccess-control-expose-headers: *\r\n"),
        "{head}"
    );
    let accept = "Accept: text/event-stream\r\n";
    let (_, stream) = ask("GET", "/api/jobs/page/events", accept, "").await;
    assert!(stream.contains("job:done:v1"), "{stream}");
    // It can read refusals, too.
    let (refused, _) = ask("GET", "/api/jobs/unknown", "", "").await;
    assert!(refused.starts_with("HTTP/1.1 404"), "{refused}");
    ask("GET", "/nowhere", "", "").await;
    system.end().await;
}
