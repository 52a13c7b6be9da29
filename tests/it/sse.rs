use futures_util::{FutureExt as _, StreamExt as _};
use serde_json::{Value, json};
use tailwater::process_group::Signal;
use tokio::time::Duration;

use crate::support::broker::Broker;
use crate::support::client::{Seen, follow};
use crate::support::http::{get_json, http, refused};
use crate::support::scenarios::on_one_and_three;
use crate::support::sse::{Item, Sse};
use crate::support::system::{Edge, System, text, words};
use crate::support::{eventually, table};

on_one_and_three!(
    a_stream_has_every_event_once_and_closes_after_the_end,
    last_event_id_resumes_a_stream,
    a_stream_can_start_before_its_job,
    streams_resume_on_another_edge_after_a_stop,
);

fn path(job: &str) -> String {
    format!("/api/jobs/{job}/events")
}

/// Opens the stream of a job, with nothing seen yet.
async fn open(edge: &Edge, job: &str) -> (Sse, Seen) {
    (Sse::open(&edge.addr, &path(job), "").await, Seen::of(job))
}

/// Reads at most `count` events. Returns whether the stream has ended.
async fn take(client: &mut Sse, seen: &mut Seen, count: usize) -> bool {
    for _ in 0..count {
        match client.event().await {
            Item::Event(event, id) => {
                assert_eq!(event["cursor"], *id);
                seen.record(&event);
                seen.ended = is_end(&event);
            }
            Item::Named(name, missing) => {
                assert_eq!(missing["op"], *name);
                seen.record(&missing);
            }
            Item::End => return true,
            said @ (Item::Comment | Item::Retry(_)) => panic!("{said:?}"),
        }
    }
    false
}

fn is_end(event: &Value) -> bool {
    ["job:done:v1", "job:failed:v1", "job:cancelled:v1"].contains(&event["type"].as_str().unwrap())
}

async fn a_stream_has_every_event_once_and_closes_after_the_end(broker: &Broker) {
    let system = System::on(broker).await;
    system.demo().await;
    let edge = system.edge().await;
    let input = words(60, 60, 3);
    system.submit("both", input.clone()).await;
    // Two transports at once, and a stream that is opened after the end.
    let stream = async {
        let (mut client, mut seen) = open(&edge, "both").await;
        assert_eq!(client.status, 200);
        assert_eq!(client.headers["content-type"], "text/event-stream");
        assert_eq!(client.headers["cache-control"], "no-cache, no-transform");
        assert_eq!(client.headers["x-accel-buffering"], "no");
        assert!(matches!(client.next().await, Item::Retry(500..1000)));
        assert_eq!(client.next().await, Item::Comment);
        assert!(take(&mut client, &mut seen, usize::MAX).await);
        seen
    };
    let (stream, socket) = tokio::join!(stream, follow(&edge.addr, "both"));
    stream.assert_whole();
    assert_eq!(stream.events, socket.events);
    assert_eq!(stream.text(), text(&input));
    let (mut late, mut seen) = open(&edge, "both").await;
    assert!(take(&mut late, &mut seen, usize::MAX).await);
    assert_eq!(seen.events, stream.events);
    system.end().await;
}

async fn last_event_id_resumes_a_stream(broker: &Broker) {
    let system = System::on(broker).await;
    system.parts::<0>().await;
    let edges = [system.edge().await, system.edge().await];
    let input = words(150, 75, 7);
    let mut seen = Seen::of("drops");
    system.submit("drops", input.clone()).await;
    let mut round = 0;
    loop {
        // Browsers repeat the URL; in every third round the id is a plain number.
        let after = format!("{}?after=0", path("drops"));
        let id = match &seen.cursor {
            Some(cursor) if round % 3 > 0 => format!("Last-Event-ID: {cursor}\r\n"),
            _ => format!("Last-Event-ID: {}\r\n", seen.last),
        };
        let mut client = Sse::open(&edges[round % 2].addr, &after, &id).await;
        if client.status == 204 {
            break;
        }
        assert_eq!(client.status, 200);
        take(&mut client, &mut seen, 1 + round * 7 % 23).await;
        round += 1;
    }
    seen.assert_text(text(&input));
    assert!(round > 10, "{round}");
    // Nothing follows the end, in whatever form the client names it.
    let cursor = seen.cursor.unwrap();
    for query in [
        format!("?after={}", seen.last),
        format!("?cursor={cursor}"),
        format!("?lastEventId={cursor}"),
        format!("?after=0&last-event-id={cursor}"),
        format!("?cursor=2&Last-Event-ID={}", seen.last),
    ] {
        let client = Sse::open(&edges[0].addr, &(path("drops") + &query), "").await;
        let found = (client.status, client.headers.get("content-type"));
        assert_eq!(found, (204, None));
    }
    system.end().await;
}

async fn a_stream_can_start_before_its_job(broker: &Broker) {
    let system = System::on(broker).await;
    let edge = system.edge().await;
    let (mut client, mut seen) = open(&edge, "early").await;
    // The head and the first bytes arrive before there is an event.
    assert!(matches!(client.next().await, Item::Retry(_)));
    assert_eq!(client.next().await, Item::Comment);
    system.demo().await;
    let input = words(20, 0, 1);
    system.submit("early", input.clone()).await;
    assert!(take(&mut client, &mut seen, usize::MAX).await);
    seen.assert_text(text(&input));
    system.end().await;
}

async fn streams_resume_on_another_edge_after_a_stop(broker: &Broker) {
    let system = System::on(broker).await;
    let [rest] = system.parts().await;
    let (mut first, addr) = system.edge_process(&[]).await;
    let input = words(100, 50, 4);
    system.submit("stop", input.clone()).await;
    let mut client = Sse::open(&addr, &path("stop"), "").await;
    let mut seen = Seen::of("stop");
    take(&mut client, &mut seen, 6).await;
    first.signal(Signal::TERM);
    assert!(take(&mut client, &mut seen, usize::MAX).await);
    assert!(!seen.ended);
    assert!(first.ends_within(Duration::from_secs(5)).await.success());
    let second = system.edge().await;
    rest.cancel();
    let id = format!("Last-Event-ID: {}\r\n", seen.cursor.as_ref().unwrap());
    let mut client = Sse::open(&second.addr, &path("stop"), &id).await;
    assert!(take(&mut client, &mut seen, usize::MAX).await);
    seen.assert_text(text(&input));
    system.end().await;
}

#[tokio::test]
async fn the_query_resumes_a_stream() {
    let system = System::on(Broker::shared_one()).await;
    system.demo().await;
    let edge = system.edge().await;
    let job = system.submit("query", words(30, 0, 1)).await;
    let last = system.ended(&job).await.seq.0;
    let (mut first, mut whole) = open(&edge, "query").await;
    assert!(take(&mut first, &mut whole, usize::MAX).await);
    let cursor = whole.events[&2]["cursor"].as_str().unwrap().to_owned();
    for (query, headers, from) in [
        (format!("lastEventId={cursor}"), "", 3),
        (
            format!("after=0&LASTEVENTID={cursor}&cursor={cursor}"),
            "",
            3,
        ),
        ("last_event_id=2&after=0".to_owned(), "", 3),
        ("lastEventId=&after=1".to_owned(), "", 2),
        ("lastEventId=1".to_owned(), "Last-Event-ID: 2\r\n", 3),
    ] {
        let mut client =
            Sse::open(&edge.addr, &format!("{}?{query}", path("query")), headers).await;
        let mut seen = Seen::of("query");
        assert!(take(&mut client, &mut seen, usize::MAX).await);
        let found = seen.events.keys().copied().collect::<Vec<_>>();
        assert_eq!(found, (from..=last).collect::<Vec<_>>(), "{query}");
        // A page starts at the same event.
        let page = format!("{}?{query}", path("query"));
        let headers = format!("Accept: application/json\r\n{headers}");
        let (_, _, page) = http(&edge, "GET", &page, &headers, b"").await;
        assert_eq!(page["events"][0]["seq"], from, "{query}");
    }
    system.end().await;
}

#[tokio::test]
async fn accept_weights_choose_between_a_stream_and_a_page() {
    let system = System::on(Broker::shared_one()).await;
    system.demo().await;
    let edge = system.edge().await;
    let job = system.submit("weights", words(3, 0, 1)).await;
    system.ended(&job).await;
    let stream = ("text/event-stream", "no-cache, no-transform");
    let page = ("application/json", "no-cache");
    for (accept, (form, cache)) in [
        ("*/*", stream),
        ("text/event-stream;q=0.5, application/json", page),
        ("application/json;q=0, */*;q=0.1", stream),
        ("\"", stream),
    ] {
        let headers = format!("Accept: {accept}\r\n");
        let client = Sse::open(&edge.addr, &path("weights"), &headers).await;
        assert_eq!(client.status, 200, "{accept}");
        assert_eq!(client.headers["content-type"], form, "{accept}");
        assert_eq!(client.headers["cache-control"], cache, "{accept}");
    }
    system.end().await;
}

#[tokio::test]
async fn reconnect_times_are_spread() {
    let system = System::on(Broker::shared_one()).await;
    let edge = system.edge().await;
    let mut times = std::collections::HashSet::new();
    for _ in 0..20 {
        let (mut client, _) = open(&edge, "spread").await;
        let Item::Retry(ms) = client.next().await else {
            panic!("no reconnect time")
        };
        assert!((500..1000).contains(&ms), "{ms}");
        times.insert(ms);
    }
    assert!(times.len() > 10, "{times:?}");
    system.end().await;
}

#[tokio::test]
async fn a_stream_that_cannot_start_is_refused_with_a_code() {
    let system = System::on(Broker::shared_one()).await;
    system.demo().await;
    let edge = system.edge().await;
    let job = system.submit("refused", words(3, 0, 1)).await;
    let cursor = system.ended(&job).await.cursor.unwrap();
    let forged = tailwater::wire::Cursor::of(&job, tailwater::wire::Seq(3), 9999, b"no such event");
    let mut refusals: Vec<(String, &str, u16, &str)> = Vec::new();
    for [path, code] in table(
        "a.b/events bad_job_id
        %ff/events bad_job_id
        a%2fb/events bad_job_id
        refused/events?after=x bad_request
        refused/events?after=1&after=2 bad_request
        refused/events?limit=0 bad_request
        refused/events?limit=1001 bad_request
        refused/events?wait=61s bad_request
        refused/events?cursor=nonsense bad_cursor
        refused/events?lastEventId=nonsense bad_cursor",
    ) {
        refusals.push((path.to_owned(), "", 400, code));
    }
    let nonsense = "Last-Event-ID: nonsense\r\n";
    let of_other_job = format!("other/events?cursor={cursor}");
    let not_in_log = format!("refused/events?cursor={forged}");
    refusals.push(("refused/events".into(), nonsense, 400, "bad_cursor"));
    refusals.push(("refused/events?after=99".into(), "", 409, "after_the_end"));
    refusals.push((of_other_job, "", 400, "cursor_of_other_job"));
    refusals.push((not_in_log, "", 410, "cursor_not_in_log"));
    for (path, headers, status, code) in refusals {
        for accept in ["", "Accept: application/json\r\n"] {
            let request = format!("GET /api/jobs/{path}");
            refused(&edge, &request, &format!("{accept}{headers}"), status, code).await;
        }
    }
    system.end().await;
}

#[tokio::test]
async fn a_replay_reads_each_page_once() {
    let system = System::with(Broker::shared_one(), |settings| settings.shards = 1).await;
    system.pieces(1500).await;
    let job = system.submit("pages", Value::Null).await;
    let events = system.ended(&job).await.seq.0;
    let edge = system.edge().await;
    let client = system.client().await;
    let stream = system.shard();
    // Without segments, so that the log is read. The last one is written after the job's end.
    let segments = system.names().segments_stream(0);
    eventually("segments", || async {
        let info = system.stream_info(&segments).await;
        (info["state"]["messages"] == events.div_ceil(64)).then_some(())
    })
    .await;
    let purge = format!("$JS.API.STREAM.PURGE.{segments}");
    client.request(purge, "".into()).await.unwrap();
    let mut questions = client
        .subscribe(format!("$JS.API.DIRECT.GET.{stream}"))
        .await
        .unwrap();
    // Once a request on the same connection is answered, the subscription is active and up to date.
    let info = format!("$JS.API.STREAM.INFO.{stream}");
    let settled = async || client.request(info.clone(), "".into()).await.unwrap();
    settled().await;
    let (mut late, mut seen) = open(&edge, "pages").await;
    assert!(take(&mut late, &mut seen, usize::MAX).await);
    seen.assert_whole();
    settled().await;
    let asked = std::iter::from_fn(|| questions.next().now_or_never().flatten());
    let asked = asked.map(|question| serde_json::from_slice::<Value>(&question.payload).unwrap());
    let asked = asked.filter(|ask| ask["batch"] == 64).count() as u64;
    let pages = events.div_ceil(64);
    assert!(
        (pages..pages + 2).contains(&asked),
        "{asked} questions for {pages} pages"
    );
    system.end().await;
}

#[tokio::test]
async fn a_page_names_events_that_expired() {
    let system = System::with(Broker::shared_one(), |settings| {
        settings.shards = 1;
        settings.max_bytes = Some(64 << 10);
    })
    .await;
    system.pieces(1500).await;
    // The log holds a few hundred events.
    let job = system.submit("old", Value::Null).await;
    system.ended(&job).await;
    let edge = system.edge().await;
    let page = get_json(&edge, &path("old")).await;
    let first = page["events"][0]["seq"].as_u64().unwrap();
    assert!(first > 1, "{page}");
    let missing = json!({"from": 1, "to": first - 1, "reason": "expired"});
    assert_eq!(page["missing"], missing);
    system.end().await;
}

#[tokio::test]
async fn must_exist_refuses_an_unknown_job() {
    let system = System::on(Broker::shared_one()).await;
    system.demo().await;
    let edge = system.edge().await;
    let path = format!("{}?must_exist=true", path("mistyped"));
    refused(&edge, &format!("GET {path}"), "", 404, "job_not_found").await;
    let job = system.submit("mistyped", words(2, 0, 1)).await;
    system.ended(&job).await;
    let mut client = Sse::open(&edge.addr, &path, "").await;
    let mut seen = Seen::of("mistyped");
    assert!(take(&mut client, &mut seen, 100).await);
    seen.assert_whole();
    system.end().await;
}
