use futures_util::StreamExt as _;
use serde_json::{Value, json};
use tailwater::nats::{EventWriter, Reader};
use tailwater::source::{At, EventSource as _, Replica};
use tailwater::wire::{Body, Channel, JobId};
use tokio::time::{Duration, timeout};

use crate::support::broker::Broker;
use crate::support::client::{Client, Seen};
use crate::support::system::System;
use crate::support::within;

/// Writes `count` chunks of a job, each after one of another job of the same shard. The text of
/// every chunk is its number.
async fn write(system: &System, job: &JobId, count: u64) {
    let chunk = |seq: u64| Body::Chunk {
        text: format!("{seq} "),
        channel: Channel::Output,
    };
    let other = format!("{job}-other").parse().unwrap();
    let mut other = EventWriter::new(system.log.clone(), other, 1, None);
    let mut writer = EventWriter::new(system.log.clone(), job.clone(), 1, None);
    for seq in 1..=count {
        other.append(chunk(seq)).await.unwrap();
        writer.append(chunk(seq)).await.unwrap();
    }
    writer.append(Body::Cancelled {}).await.unwrap();
}

/// What a client of a new edge sees after this event.
async fn after(system: &System, job: &str, seq: u64) -> Seen {
    let edge = system.edge().await;
    let mut client = Client::connect(&edge.addr).await;
    let mut seen = Seen {
        last: seq,
        ..Seen::of(job)
    };
    client.watch(&seen).await;
    seen.follow(&mut client).await;
    seen
}

/// Requires exactly the events after `seq`.
#[track_caller]
fn assert_rest(seen: &Seen, seq: u64, end: u64) {
    assert_eq!(
        (seen.repeated, &seen.gaps, &seen.missing),
        (0, &vec![], &vec![])
    );
    let found: Vec<_> = seen.events.keys().copied().collect();
    assert_eq!(found, (seq + 1..=end).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_watch_after_a_number_searches_the_log_with_few_reads() {
    let system = System::with(Broker::shared_one(), |settings| settings.shards = 1).await;
    let job = "long".parse().unwrap();
    write(&system, &job, 3000).await;
    let gets = format!("$JS.API.DIRECT.GET.{}", system.shard());
    let mut gets = system.client().await.subscribe(gets).await.unwrap();
    assert_rest(&after(&system, "long", 2900).await, 2900, 3001);
    let mut pages = 0;
    let mut singles = 0;
    while let Ok(Some(get)) = timeout(Duration::from_millis(200), gets.next()).await {
        let get: Value = serde_json::from_slice(&get.payload).unwrap();
        if get.get("batch").is_some() {
            pages += 1;
        } else {
            singles += 1;
        }
    }
    // From the first event on, it would be 47 pages.
    assert!((1..6).contains(&pages), "{pages} pages");
    assert!((4..40).contains(&singles), "{singles} single reads");
    system.end().await;
}

#[tokio::test]
async fn a_watch_after_a_number_finds_it_among_gaps_and_undecodable_messages() {
    let system = System::with(Broker::shared_one(), |settings| settings.shards = 1).await;
    let job: JobId = "odd".parse().unwrap();
    write(&system, &job, 300).await;
    let log = system.names().chunks(0, &job);
    let context = system.jetstream().await;
    // They follow the end, and are not events.
    for payload in [
        "garbage".to_owned(),
        json!({"type": "x", "job": "odd", "seq": 7}).to_string(),
    ] {
        for _ in 0..100 {
            let stored = context.publish(log.clone(), payload.clone().into()).await;
            stored.unwrap().await.unwrap();
        }
    }
    let purge = format!("$JS.API.STREAM.PURGE.{}", system.shard());
    let purged = json!({"seq": 201}).to_string();
    system
        .client()
        .await
        .request(purge, purged.into())
        .await
        .unwrap();
    // The first 100 events are gone.
    for seq in [100, 101, 164, 165, 250, 299, 300] {
        assert_rest(&after(&system, "odd", seq).await, seq, 301);
    }
    let seen = after(&system, "odd", 70).await;
    assert_eq!((&seen.missing, seen.last), (&vec![(71, 100)], 301));
    system.end().await;
}

/// The reader looks at each stream sequence while its message is on its way to the stream.
#[tokio::test]
async fn a_message_that_is_being_stored_is_never_reported_as_removed() {
    let system = System::with(Broker::shared_one(), |settings| settings.shards = 1).await;
    let reader = Reader::open(system.log.clone(), &system.tasks)
        .await
        .unwrap();
    let job: JobId = "races".parse().unwrap();
    let subject = system.names().chunks(0, &job);
    let context = system.jetstream().await;
    for stream_seq in 1..=300 {
        let store = async {
            let stored = context.publish(subject.clone(), "x".into()).await.unwrap();
            stored.await.unwrap();
        };
        let look = async {
            loop {
                match reader.at(&job, stream_seq, Replica::Leader).await.unwrap() {
                    At::NotYet => {}
                    At::Other => return,
                    found @ (At::Event(_) | At::Removed) => panic!("{stream_seq}: {found:?}"),
                }
            }
        };
        within("a message", async { tokio::join!(store, look) }).await;
    }
    let removed = system.names().chunks_stream(0);
    system.remove(&removed, &subject).await;
    let found = reader.at(&job, 7, Replica::Leader).await.unwrap();
    assert!(matches!(found, At::Removed), "{found:?}");
    system.end().await;
}
