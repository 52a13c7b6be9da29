use async_nats::{Client, Message};
use bytes::Bytes;
use futures_util::future::join_all;
use serde_json::{Value, json};
use tailwater::config::SCAN_FROM;
use tailwater::nats::{EventWriter, Log, Nats, Reader, ReplaySource, Role};
use tailwater::runtime;
use tailwater::source::{EventSource as _, Replay as _, Replica, Span};
use tailwater::wire::{Body, Channel, JobId, Kind, Seq, Status};
use tokio::time::Instant;

use crate::support::broker::Broker;
use crate::support::client::{Seen, follow};
use crate::support::http::metric;
use crate::support::scenarios::on_one_and_three;
use crate::support::system::System;
use crate::support::workers::PythonWorker;
use crate::support::{eventually, until, within};

on_one_and_three!(a_wrong_segment_is_never_delivered,);

/// A system with one shard.
async fn system(broker: &Broker) -> System {
    System::with(broker, |settings| settings.shards = 1).await
}

/// Writes a job of `count` events, the last of which is its end, with `writers` owners one after
/// the other.
async fn write(system: &System, job: &JobId, count: u64, writers: u64) {
    write_first(system, job, count, count, writers).await;
}

/// Writes only the first `written` events of such a job.
async fn write_first(system: &System, job: &JobId, written: u64, count: u64, writers: u64) {
    let kind: Kind = "demo".parse().unwrap();
    let mut last = None;
    for n in 0..writers {
        let attempt = u32::try_from(n + 1).unwrap();
        let mut writer = EventWriter::new(system.log.clone(), job.clone(), attempt, last.as_ref())
            .with_segments(last.as_ref());
        while writer.seq().0 < written * (n + 1) / writers {
            let body = match writer.seq().0 + 1 {
                1 => Body::queued(kind.clone(), Value::Null),
                2 => Body::Started {
                    kind: kind.clone(),
                    worker: "w".into(),
                    continues: false,
                },
                end if end == count => Body::Cancelled {},
                seq => Body::Chunk {
                    text: format!("{seq} "),
                    channel: Channel::Output,
                },
            };
            writer.append(body).await.unwrap();
        }
        last = Some(system.last(job).await);
    }
}

/// The text of such a job.
fn text(count: u64) -> String {
    (3..count).map(|seq| format!("{seq} ")).collect()
}

/// Waits until the job has this many segments.
async fn until_segments(system: &System, count: u64) {
    let stream = system.names().segments_stream(0);
    eventually("segments", || async {
        let info = system.stream_info(&stream).await;
        (info["state"]["messages"] == count).then_some(())
    })
    .await;
}

/// Sends a request to JetStream that must succeed.
async fn request(system: &System, request: &str, body: Value) {
    let answer = system.ask_jetstream(request, &body).await;
    assert!(answer.get("error").is_none(), "{request}: {answer}");
}

/// Removes one event of a job from the log, which a segment still has.
async fn remove_event(system: &System, job: &JobId, seq: u64) {
    let last = system.last(job).await;
    // All events of the shard are of this job.
    let stream_seq = last.stream_seq - (last.seq.0 - seq);
    let delete = format!("STREAM.MSG.DELETE.{}", system.shard());
    request(system, &delete, json!({"seq": stream_seq})).await;
}

/// Leaves readers only the log.
async fn remove_segments(system: &System) {
    let purge = format!("STREAM.PURGE.{}", system.names().segments_stream(0));
    request(system, &purge, json!({})).await;
}

/// What a client of a new edge sees of a job.
async fn seen(system: &System, job: &str) -> Seen {
    let edge = system.edge().await;
    follow(&edge.addr, job).await
}

#[tokio::test]
async fn a_late_watcher_reads_segments_instead_of_the_log() {
    let system = system(Broker::shared_one()).await;
    let job: JobId = "late".parse().unwrap();
    write(&system, &job, 300, 1).await;
    until_segments(&system, 5).await;
    // A reader of the log would report it as missing.
    remove_event(&system, &job, 130).await;
    seen(&system, "late").await.assert_text(text(300));
    let state = system.state(&job).await.unwrap();
    assert_eq!((state.output, state.truncated), (text(300), false));
    // Without segments, the log alone is read.
    remove_segments(&system).await;
    let seen = seen(&system, "late").await;
    assert_eq!(seen.missing, [(130, 130)]);
    system.end().await;
}

#[tokio::test]
async fn replayed_events_are_counted_by_where_they_were_read() {
    let system = system(Broker::shared_one()).await;
    let job: JobId = "late".parse().unwrap();
    write(&system, &job, 300, 1).await;
    until_segments(&system, 5).await;
    for (source, other) in [("segments", "pages"), ("pages", "segments")] {
        let edge = system.edge().await;
        let begun = Instant::now();
        let seen = follow(&edge.addr, "late").await;
        seen.assert_text(text(300));
        let value = async |name: &str, source: &str| {
            let name = format!("tailwater_edge_replay_{name}{{source=\"{source}\"}}");
            metric(&edge.addr, "", &name).await
        };
        // They are counted when the replay is over. The last event may be known without one.
        until("the replay to be counted", async || {
            value("events_total", source).await >= 299.0
        })
        .await;
        assert!(value("events_total", source).await <= 300.0);
        assert!(value("seconds_count", source).await >= 1.0);
        let took = value("seconds_sum", source).await;
        assert!(
            (0.0..begun.elapsed().as_secs_f64()).contains(&took),
            "{took}"
        );
        for unused in [other, "scan"] {
            assert_eq!(value("events_total", unused).await, 0.0, "{unused}");
        }
        // The next edge has only the log.
        remove_segments(&system).await;
    }
    system.end().await;
}

/// A page costs the broker as much as hundreds of events of a scan.
#[tokio::test]
async fn many_replays_of_segments_share_a_scan_of_the_events_after_them() {
    let system = system(Broker::shared_one()).await;
    // More than read segments at a time, so that the first to finish is not the last.
    let jobs: Vec<JobId> = (0..80)
        .map(|n| format!("many-{n}").parse().unwrap())
        .collect();
    join_all(jobs.iter().map(|job| write_first(&system, job, 66, 100, 1))).await;
    until_segments(&system, 80).await;
    let reader = Reader::open(system.log.clone(), &system.tasks)
        .await
        .unwrap();
    let span = Span {
        from: Seq::FIRST,
        stream_seq: None,
        until: Some(Seq(66)),
        replica: Replica::Any,
    };
    let readings = join_all(jobs.iter().map(|job| async {
        let mut replay = reader.replay(job, span);
        let mut seqs = Vec::new();
        while let Some(events) = replay.next().await {
            seqs.extend(events.unwrap().iter().map(|event| event.seq.0));
        }
        seqs
    }));
    for seqs in within("all readings", readings).await {
        assert_eq!(seqs, (1..=66).collect::<Vec<u64>>());
    }
    let events = |source| reader.replay_counts().events(source);
    let scanned = events(ReplaySource::Scan);
    let paged = events(ReplaySource::Pages);
    let found = [events(ReplaySource::Segments), scanned + paged];
    assert_eq!(found, [80 * 64, 80 * 2]);
    // If a scan has ended before a busy machine has read all segments, it is too late for the last
    // few, which rightly read pages.
    assert!(paged <= 2 * SCAN_FROM as u64, "{paged} events of pages");
    system.end().await;
}

async fn a_wrong_segment_is_never_delivered(broker: &Broker) {
    let system = system(broker).await;
    for name in ["true", "false"] {
        write(&system, &name.parse().unwrap(), 200, 1).await;
    }
    until_segments(&system, 8).await;
    let client = system.client().await;
    let names = system.names();
    let job: JobId = "true".parse().unwrap();
    let subject = |number| names.segment(0, &job, number);
    let stored = |number| {
        let request = format!(
            "$JS.API.DIRECT.GET.{}.{}",
            names.segments_stream(0),
            subject(number)
        );
        let client = client.clone();
        async move { client.request(request, "".into()).await.unwrap().payload }
    };
    let genuine = stored(1).await;
    let mut altered = genuine.to_vec();
    let at = genuine.windows(4).position(|four| four == b"100 ").unwrap();
    altered[at] = b'9';
    let other = names.segment(0, &"false".parse().unwrap(), 1);
    let other = format!("$JS.API.DIRECT.GET.{}.{other}", names.segments_stream(0));
    let other = client.request(other, "".into()).await.unwrap().payload;
    for forged in [
        altered.into(),
        other,
        stored(0).await,
        genuine.slice(..genuine.len() - 1),
        "garbage".into(),
    ] {
        let context = system.jetstream().await;
        let ack = context.publish(subject(1), forged).await.unwrap();
        ack.await.unwrap();
        seen(&system, "true").await.assert_text(text(200));
    }
    system.end().await;
}

#[tokio::test]
async fn segments_continue_when_another_worker_owns_the_job() {
    let system = system(Broker::shared_one()).await;
    let job: JobId = "moved".parse().unwrap();
    write(&system, &job, 400, 7).await;
    until_segments(&system, 7).await;
    for seq in [20, 100, 250, 390] {
        remove_event(&system, &job, seq).await;
    }
    let seen = seen(&system, "moved").await;
    seen.assert_whole();
    system.end().await;
}

#[tokio::test]
async fn segments_of_a_purged_log_are_not_read() {
    let system = system(Broker::shared_one()).await;
    let job: JobId = "again".parse().unwrap();
    write(&system, &job, 200, 1).await;
    until_segments(&system, 4).await;
    let purge = format!("STREAM.PURGE.{}", system.shard());
    request(&system, &purge, json!({})).await;
    write(&system, &job, 150, 1).await;
    seen(&system, "again").await.assert_text(text(150));
    system.end().await;
}

#[tokio::test]
async fn expired_events_are_missing_although_a_segment_has_them() {
    let system = system(Broker::shared_one()).await;
    let job: JobId = "expired".parse().unwrap();
    write(&system, &job, 300, 1).await;
    until_segments(&system, 5).await;
    let purge = format!("STREAM.PURGE.{}", system.shard());
    let first = system.last(&job).await.stream_seq - 300 + 1;
    request(&system, &purge, json!({"seq": first + 99})).await;
    let seen = seen(&system, "expired").await;
    assert_eq!((seen.missing, seen.last), (vec![(1, 99)], 300));
    assert_eq!((seen.repeated, seen.gaps), (0, vec![]));
    system.end().await;
}

#[tokio::test]
async fn a_system_without_segment_streams_works_and_setup_adds_them() {
    let system = system(Broker::shared_one()).await;
    let delete = format!("STREAM.DELETE.{}", system.names().segments_stream(0));
    request(&system, &delete, json!({})).await;
    let job: JobId = "old".parse().unwrap();
    write(&system, &job, 200, 1).await;
    seen(&system, "old").await.assert_text(text(200));
    let nats = Nats::connect(&system.options).await.unwrap();
    let settings = tailwater::nats::StreamSettings {
        shards: 1,
        replicas: 1,
        max_age: None,
        max_bytes: None,
    };
    assert!(nats.set_up(&settings).await.unwrap().is_empty());
    write(&system, &"new".parse().unwrap(), 200, 1).await;
    until_segments(&system, 4).await;
    seen(&system, "new").await.assert_text(text(200));
    nats.close().await;
    system.end().await;
}

/// The work of a Python worker: this many numbers, each an event of its own. The first attempt then
/// waits, if the job says so.
const NUMBERS: &str = r#"
    count, waits = job.input
    for number in range(count):
        yield Data(number)
    if waits and job.attempt == 1:
        await asyncio.sleep(1000)
"#;

#[tokio::test]
async fn a_late_watcher_reads_segments_that_a_python_worker_wrote() {
    let system = system(Broker::shared_one()).await;
    let _worker = PythonWorker::start(&system, NUMBERS, 1).await;
    let job = system.submit("late", json!([197, false])).await;
    assert_eq!(system.ended(&job).await.status, Status::Done);
    until_segments(&system, 4).await;
    // A reader of the log would report it as missing.
    remove_event(&system, &job, 130).await;
    let from_segments = seen(&system, "late").await;
    from_segments.assert_whole();
    assert_eq!(from_segments.last, 200);
    remove_segments(&system).await;
    let from_log = seen(&system, "late").await;
    assert_eq!(from_log.missing, [(130, 130)]);
    system.end().await;
}

/// The message of a stream that a direct get returns.
async fn message(client: &Client, stream: &str, get: &Value) -> Message {
    let subject = format!("$JS.API.DIRECT.GET.{stream}");
    let request = client.request(subject, get.to_string().into());
    let message = within("a message", request).await.unwrap();
    assert_eq!(message.status, None, "{stream}: {get}");
    message
}

/// The segments of the only job of a system, and the digests of them in its log.
async fn stored_segments(system: &System, job: &JobId, count: u64) -> Vec<(Bytes, String)> {
    let client = system.client().await;
    let names = system.names();
    let mut found = Vec::new();
    for number in 0..count.div_ceil(64) {
        let get = json!({"last_by_subj": names.segment(0, job, number)});
        let segment = message(&client, &names.segments_stream(0), &get).await;
        // All events of the shard are of this job.
        let last = json!({"seq": count.min(64 * (number + 1))});
        let headers = message(&client, &system.shard(), &last).await.headers;
        let digest = headers
            .unwrap()
            .get("Tailwater-Segment")
            .unwrap()
            .to_string();
        found.push((segment.payload, digest));
    }
    found
}

#[tokio::test]
async fn segments_are_the_same_bytes_whoever_writes_them() {
    let of_python = system(Broker::shared_one()).await;
    let mut first = PythonWorker::start_with(&of_python, NUMBERS, "ack_wait=2").await;
    let job = of_python.submit("same", json!([100, true])).await;
    of_python.reaches("same", 102).await;
    until_segments(&of_python, 1).await;
    first.process.kill().await;
    let _second = PythonWorker::start(&of_python, NUMBERS, 1).await;
    let state = of_python.ended(&job).await;
    let found = (state.status, state.attempt, state.seq);
    assert_eq!(found, (Status::Done, 2, Seq(204)));
    until_segments(&of_python, 4).await;
    // This library writes the same events, with the same stream sequences.
    let of_rust = system(Broker::shared_one()).await;
    let client = of_python.client().await;
    let mut writer =
        EventWriter::new(of_rust.log.clone(), job.clone(), 1, None).with_segments(None);
    for seq in 1..=204 {
        let event = message(&client, &of_python.shard(), &json!({"seq": seq})).await;
        let appended = writer.append_stored(event.payload, seq == 204);
        within("an append", appended).await.unwrap();
    }
    until_segments(&of_rust, 4).await;
    assert_eq!(
        stored_segments(&of_python, &job, 204).await,
        stored_segments(&of_rust, &job, 204).await
    );
    of_rust.end().await;
    of_python.end().await;
}

/// A process that ends as soon as it has closed its connections: its runtime, and with it the tasks
/// of the connections, is dropped.
#[tokio::test]
async fn a_process_that_ends_loses_no_segment() {
    let system = system(Broker::shared_one()).await;
    let options = system.as_role(Role::Worker(None));
    let job: JobId = "last".parse().unwrap();
    let process = tokio::task::spawn_blocking(move || {
        runtime::single_threaded().unwrap().block_on(async {
            let nats = Nats::connect(&options).await.unwrap();
            let log = Log::open(&nats).await.unwrap();
            let mut writer = EventWriter::new(log, job, 1, None).with_segments(None);
            let queued = Body::queued("demo".parse().unwrap(), Value::Null);
            for body in [queued, Body::Cancelled {}] {
                writer.append(body).await.unwrap();
            }
            nats.close().await;
        });
    });
    within("the end of the process", process).await.unwrap();
    until_segments(&system, 1).await;
    system.end().await;
}
