//! Watches of unknown jobs: they cost little, and one that starts before its job gets the whole
//! job.

use futures_util::future::join_all;
use serde_json::json;

use crate::support::broker::Broker;
use crate::support::client::{Client, Seen};
use crate::support::http::stats;
use crate::support::scenarios::on_one_and_three;
use crate::support::system::{System, text, words};
use crate::support::{eventually, within};

/// Connections of the client that invents ids, and how many ids each may watch.
const CONNECTIONS: usize = 20;
const WATCHES: usize = 1024;
const BATCH: usize = 64;
/// The memory that one watch of an unknown id may cost, in KiB.
const WATCH_KIB: u64 = 8;

on_one_and_three!(watching_unknown_ids_is_cheap);

/// Watches as many unknown ids as one connection may.
async fn make_up(addr: &str, number: usize) -> Client {
    let mut client = Client::connect(addr).await;
    // In batches: unread answers would block the writes.
    for batch in 0..WATCHES / BATCH {
        for n in 0..BATCH {
            let frame = json!({"op": "watch", "job": format!("made-up-{number}-{batch}-{n}")});
            client.send(frame).await;
        }
        for _ in 0..2 * BATCH {
            let frame = client.op().await;
            assert!(
                frame["op"] == "watching" || frame["op"] == "live",
                "{frame}"
            );
            assert_eq!(frame.get("status"), None);
        }
    }
    client
}

async fn watching_unknown_ids_is_cheap(broker: &Broker) {
    let system = System::on(broker).await;
    system.demo().await;
    let (edge, addr) = system.edge_process(&[]).await;
    let input = words(20, 0, 1);
    let ended = system.submit("there", input.clone()).await;
    system.ended(&ended).await;
    let before = edge.memory();
    let attack = within(
        "the made-up ids",
        join_all((0..CONNECTIONS).map(|number| make_up(&addr, number))),
    )
    .await;
    let cost = edge.memory().saturating_sub(before);
    let count = (CONNECTIONS * WATCHES) as u64;
    assert!(cost < count * WATCH_KIB, "{cost} KiB for {count} watches");
    for job in ["there", "to-come-1", "to-come-2", "to-come-3"] {
        let mut client = Client::connect(&addr).await;
        let mut seen = Seen::of(job);
        client.watch(&seen).await;
        if job != "there" {
            assert_eq!(client.op().await, json!({"op": "watching", "job": job}));
            system.submit(job, input.clone()).await;
        }
        seen.follow(&mut client).await;
        seen.assert_text(text(&input));
    }
    drop(attack);
    eventually("the end of the watches", || async {
        let stats = stats(&addr, "/api/stats").await;
        (stats["watched_jobs"].as_u64()? < 10).then_some(())
    })
    .await;
    drop(edge);
    system.end().await;
}
