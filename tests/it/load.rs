use std::time::Duration;

use futures_util::future::join_all;
use futures_util::{FutureExt as _, StreamExt as _};
use serde_json::{Value, json};
use tailwater::nats::Reader;
use tailwater::source::{EventSource as _, Replay as _, Replica, Span};
use tailwater::wire::{JobId, Seq};
use tokio::task::yield_now;
use tokio::time::Instant;

use crate::support::broker::Broker;
use crate::support::client::Seen;
use crate::support::http::stats;
use crate::support::process::Process;
use crate::support::scenarios::on_one_and_three;
use crate::support::system::{System, text, words};
use crate::support::{assert_within, until, within};

on_one_and_three!(
    five_hundred_clients_reconnect_to_a_new_edge_at_once,
    readers_of_one_shard_share_a_scan,
    any_replica_gives_a_replay_every_event_also_between_those_of_other_jobs,
);

async fn five_hundred_clients_reconnect_to_a_new_edge_at_once(broker: &Broker) {
    let system = System::with(broker, |settings| settings.shards = 1).await;
    system.demo().await;
    let edge = system.edge().await;
    let mut all: Vec<Seen> = (0..500).map(|n| Seen::of(&format!("storm-{n}"))).collect();
    join_all(
        all.iter()
            .enumerate()
            .map(|(n, seen)| system.submit(&seen.job, words(60, 15, n as u64))),
    )
    .await;
    let mut clients = join_all(all.iter_mut().map(|seen| async {
        let mut client = edge.client().await;
        client.watch(seen).await;
        // Some events each, so that each reconnects with its own cursor.
        for _ in 0..6 {
            seen.step(&mut client).await;
        }
        client
    }))
    .await;
    edge.stop();
    let cold = system.edge().await;
    join_all(
        all.iter_mut()
            .zip(&mut clients)
            .map(|(seen, client)| async {
                seen.follow(client).await;
                if !seen.ended {
                    let mut client = cold.client().await;
                    client.watch(seen).await;
                    seen.follow(&mut client).await;
                }
            }),
    )
    .await;
    for (n, seen) in all.iter().enumerate() {
        seen.assert_text(text(&words(60, 15, n as u64)));
    }
    system.end().await;
}

/// The rest of a job's log.
fn span(from: Seq, replica: Replica) -> Span {
    Span {
        from,
        stream_seq: None,
        until: None,
        replica,
    }
}

/// Reads a job's events up to `last`; returns how many replays that took. A lagging replica ends a
/// replay early, and the next one continues.
async fn read_all(reader: &Reader, job: &JobId, last: u64) -> u32 {
    let mut seqs = Vec::new();
    let mut replays = 0;
    while (seqs.len() as u64) < last {
        let from = Seq(seqs.len() as u64 + 1);
        let mut replay = reader.replay(job, span(from, Replica::Any));
        while let Some(items) = replay.next().await {
            seqs.extend(items.unwrap().iter().map(|item| item.seq.0));
        }
        replays += 1;
    }
    assert_eq!(seqs, (1..=seqs.len() as u64).collect::<Vec<_>>());
    replays
}

async fn readers_of_one_shard_share_a_scan(broker: &Broker) {
    let system = System::with(broker, |settings| settings.shards = 1).await;
    system.demo().await;
    let jobs: Vec<_> = join_all((0..200).map(|n| {
        let system = &system;
        async move {
            let job = system.submit(&format!("scan-{n}"), words(40, 100, n)).await;
            system
                .last_event("the end", &job, |last| last.event_type.is_end())
                .await;
            job
        }
    }))
    .await;
    let reader = Reader::open(system.log.clone(), &system.tasks)
        .await
        .unwrap();
    // A direct get needs no consumer, so consumers are scans.
    let mut most_consumers = 0;
    let count_consumers = async {
        loop {
            let info = system.stream_info(&system.shard()).await;
            let consumers = info["state"]["consumer_count"].as_u64().unwrap();
            most_consumers = most_consumers.max(consumers);
        }
    };
    let readings = join_all(jobs.iter().map(|job| async {
        let last = system.last(job).await.seq.0;
        read_all(&reader, job, last).await
    }));
    let readings = Box::pin(within("all readings", async {
        tokio::select! {
            readings = readings => readings,
            () = count_consumers => unreachable!(),
        }
    }))
    .await;
    assert!(
        (1..=2).contains(&most_consumers),
        "{most_consumers} consumers"
    );
    assert!(readings.iter().sum::<u32>() < 400, "{readings:?}");
    system.end().await;
}

async fn any_replica_gives_a_replay_every_event_also_between_those_of_other_jobs(broker: &Broker) {
    let system = System::with(broker, |settings| settings.shards = 1).await;
    system.demo().await;
    let jobs = ["one", "two", "three"].map(|id| (id, words(90, 40, 1)));
    let jobs = join_all(jobs.map(|(id, input)| system.submit(id, input))).await;
    let reader = Reader::open(system.log.clone(), &system.tasks)
        .await
        .unwrap();
    for job in &jobs {
        let last = system.ended(job).await.seq;
        let mut stream_seqs = Vec::new();
        for replica in [Replica::Any, Replica::Leader] {
            for from in [1, 2, last.0 / 2, last.0 - 1, last.0] {
                // After the event before it, as a client that resumes knows.
                let before = usize::try_from(from).unwrap().checked_sub(2);
                let after = before.and_then(|before| stream_seqs.get(before));
                let after = after.map(|stream_seq| stream_seq + 1);
                for stream_seq in [None, after] {
                    let mut replay = reader.replay(
                        job,
                        Span {
                            stream_seq,
                            ..span(Seq(from), replica)
                        },
                    );
                    let mut events = Vec::new();
                    while let Some(read) = within("a page", replay.next()).await {
                        events.extend(read.unwrap());
                    }
                    let seqs: Vec<_> = events.iter().map(|event| event.seq.0).collect();
                    assert_eq!(seqs, (from..=last.0).collect::<Vec<_>>(), "{replica:?}");
                    if stream_seqs.is_empty() {
                        stream_seqs = events.iter().map(|event| event.stream_seq).collect();
                    }
                }
            }
        }
    }
    system.end().await;
}

#[tokio::test]
async fn a_replay_survives_dropped_waits() {
    let system = System::on(Broker::shared_one()).await;
    system.pieces(300).await;
    let job = system.submit("dropped", Value::Null).await;
    let last = system.ended(&job).await.seq;
    let reader = Reader::open(system.log.clone(), &system.tasks)
        .await
        .unwrap();
    for replica in [Replica::Any, Replica::Leader] {
        let mut replay = reader.replay(&job, span(Seq::FIRST, replica));
        let mut seqs = Vec::new();
        within("the end of a reading", async {
            loop {
                match replay.next().now_or_never() {
                    Some(Some(items)) => seqs.extend(items.unwrap().iter().map(|item| item.seq.0)),
                    Some(None) => return,
                    None => yield_now().await,
                }
            }
        })
        .await;
        assert_eq!(seqs, (1..=last.0).collect::<Vec<_>>(), "{replica:?}");
    }
    system.end().await;
}

#[tokio::test]
async fn an_event_near_the_end_is_found_in_a_few_reads() {
    let system = System::with(Broker::shared_one(), |settings| settings.shards = 1).await;
    system.pieces(3000).await;
    let job = system.submit("long", Value::Null).await;
    let last = system.ended(&job).await.seq;
    let client = system.client().await;
    let stream = system.shard();
    for replica in [Replica::Any, Replica::Leader] {
        let mut reads = Vec::new();
        for of_subject in ["*.GET.{}.>", "DIRECT.GET.{}", "STREAM.MSG.GET.{}"] {
            let subject = format!("$JS.API.{}", of_subject.replace("{}", &stream));
            reads.push(client.subscribe(subject).await.unwrap());
        }
        // Once a request is answered, the subscriptions are active.
        let _ = client
            .request(format!("$JS.API.STREAM.INFO.{stream}"), "".into())
            .await
            .unwrap();
        let reader = Reader::open(system.log.clone(), &system.tasks)
            .await
            .unwrap();
        let from = Seq(last.0 - 5);
        let mut replay = reader.replay(&job, span(from, replica));
        let mut seqs = Vec::new();
        while let Some(items) = within("a page", replay.next()).await {
            seqs.extend(items.unwrap().iter().map(|item| item.seq.0));
        }
        assert_eq!(seqs, (from.0..=last.0).collect::<Vec<_>>(), "{replica:?}");
        let count = |asked: &mut async_nats::Subscriber| {
            std::iter::from_fn(|| asked.next().now_or_never().flatten()).count()
        };
        let reads: usize = reads.iter_mut().map(count).sum();
        assert!(
            (5..40).contains(&reads),
            "{reads} reads from {replica:?} in a log of {last}"
        );
    }
    system.end().await;
}

#[tokio::test]
async fn a_scan_over_large_events_is_never_cut_off() {
    let system = System::with(Broker::shared_one(), |settings| settings.shards = 1).await;
    let context = system.jetstream().await;
    let names = system.names();
    let jobs: Vec<JobId> = (0..40)
        .map(|n| format!("large-{n}").parse().unwrap())
        .collect();
    // 150 MiB: more than twice what the broker buffers for a client before it disconnects it.
    for seq in 1..=15 {
        join_all(jobs.iter().map(async |job| {
            let event = json!({"type": "x", "job": job, "seq": seq, "attempt": 1, "ts": 1, "pad": "x".repeat(256 << 10)});
            context.publish(names.chunks(0, job), event.to_string().into()).await.unwrap().await.unwrap();
        }))
        .await;
    }
    let reader = Reader::open(system.log.clone(), &system.tasks)
        .await
        .unwrap();
    let readings = join_all(jobs.iter().map(|job| read_all(&reader, job, 15)));
    let readings = within("all readings", readings).await;
    assert!(readings.iter().all(|refills| *refills == 1), "{readings:?}");
    system.end().await;
}

/// What the feeds of a load hold at least, in KiB.
const LOADED: u64 = 32 * 1024;

#[tokio::test]
async fn an_edge_keeps_no_memory_of_clients_that_have_gone() {
    let system = System::on(Broker::shared_one()).await;
    let edge = system.command(&["edge"], &["--listen", "127.0.0.1:0"]);
    let mut edge = Process::start(edge);
    let addr = edge.says("ready http://").await;
    // Clients watch this many jobs, each with 12 events of 8 kB, and disconnect. Returns the memory
    // that the edge then holds for their feeds, in KiB.
    let load = async |jobs: u64| {
        let plan = format!("--jobs {jobs} --rate 4 --seconds 3 --text 8000");
        let pid = edge.program();
        let ran = system
            .run(&format!(
                "bench --json --edge {addr} --edge-pid {pid} {plan}"
            ))
            .await;
        let report: Value = serde_json::from_str(&ran.prints()).unwrap();
        assert_eq!(report["deliveries"], 12 * jobs, "{report}");
        (report["cost"]["edge_end_mib"].as_f64().unwrap() * 1024.0) as u64
    };
    // Allocates what an edge keeps once it has had clients.
    load(10).await;
    let before = edge.memory();
    let loaded = load(500).await;
    assert!(loaded > before + LOADED, "{before} to {loaded} KiB");
    until("the end of all feeds", async || {
        stats(&addr, "/api/stats").await["watched_jobs"] == 0
    })
    .await;
    // From here on nothing asks the edge for anything: it is idle.
    let gone = Instant::now();
    let most = before + (loaded - before) / 4;
    until("the return of the memory", async || edge.memory() <= most).await;
    // The limit is 10 s; a busy machine may need longer.
    assert_within(gone, Duration::from_secs(20));
    system.end().await;
}
