//! Clients that request or send too much: they are limited, and other clients are still served.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::support::broker::Broker;
use crate::support::client::follow;
use crate::support::system::{System, words};
use crate::support::{assert_fields, within};

/// The answer to a client that accepts JSON.
async fn get(addr: &str, path: &str) -> String {
    let mut socket = TcpStream::connect(addr).await.unwrap();
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {addr}\r\nAccept: application/json\r\nConnection: close\r\n\r\n"
    );
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    within("an answer", socket.read_to_string(&mut answer))
        .await
        .unwrap();
    answer
}

#[tokio::test]
async fn a_flood_of_listings_is_partly_refused() {
    let system = System::on(Broker::shared_one()).await;
    let edge = system.edge().await;
    for n in 0..20 {
        system.submit(&format!("listed-{n}"), words(1, 0, 1)).await;
    }
    let answers = join_all((0..100).map(|_| get(&edge.addr, "/api/jobs"))).await;
    let made = answers
        .iter()
        .filter(|answer| answer.starts_with("HTTP/1.1 200"))
        .count();
    let refused: Vec<_> = answers
        .iter()
        .filter(|answer| answer.starts_with("HTTP/1.1 503"))
        .collect();
    assert!(
        made > 0 && made + refused.len() == 100,
        "{made} made, {} refused",
        refused.len()
    );
    for answer in refused {
        assert!(
            answer.contains("retry-after: ") && answer.contains(r#""code":"overloaded""#),
            "{answer}"
        );
    }
    assert!(
        get(&edge.addr, "/api/jobs")
            .await
            .starts_with("HTTP/1.1 200"),
        "afterwards it is as before"
    );
    system.end().await;
}

#[tokio::test]
async fn a_flood_of_large_frames_does_not_starve_other_clients() {
    let system = System::on(Broker::shared_one()).await;
    let edge = system.edge().await;
    system.wordy().await;
    let job = system.submit("beside-frames", words(50, 100, 1)).await;
    let mut greedy = edge.client().await;
    let flood = async {
        let input = "0,".repeat(500_000);
        let large = format!(r#"{{"op":"submit","ref":"large","kind":"demo","input":[{input}0]}}"#);
        let unknown = format!(r#"{{"op":"dance","ref":"unknown","input":[{input}0]}}"#);
        for _ in 0..4 {
            for (frame, code) in [(&large, "too_large"), (&unknown, "unknown_op")] {
                greedy.send_text(frame).await;
                let answer = greedy.op().await;
                assert_fields!(answer, {"op": "error", "code": code});
            }
        }
    };
    let (watched, flooded) = tokio::join!(
        timeout(Duration::from_secs(60), follow(&edge.addr, job.as_str())),
        timeout(Duration::from_secs(60), flood),
    );
    watched
        .expect("the watcher has the whole job")
        .assert_whole();
    flooded.expect("each frame is answered");
    system.end().await;
}

#[tokio::test]
async fn input_keys_have_no_special_meaning() {
    let system = System::on(Broker::shared_one()).await;
    let edge = system.edge().await;
    system.wordy().await;
    let input = r#"{"words":1,"note":{"$serde_json::private::RawValue":"[1,2]"}}"#;
    let mut client = edge.client().await;
    client
        .send_text(&format!(
            r#"{{"op":"submit","ref":"r","kind":"demo","input":{input},"id":"raw-key"}}"#
        ))
        .await;
    assert_eq!(client.op().await["op"], "submitted");
    let page = get(&edge.addr, "/api/jobs/raw-key/events?limit=1").await;
    assert!(
        page.contains(r#"{"$serde_json::private::RawValue":"[1,2]"}"#),
        "{page}"
    );
    system.end().await;
}
