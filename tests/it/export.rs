use serde_json::{Value, json};
use tailwater::nats::{EventWriter, PurgeOutcome};
use tailwater::wire::{Body, Channel, JobId};
use tempfile::TempDir;

use crate::support::broker::Broker;
use crate::support::client::follow;
use crate::support::scenarios::on_one_and_three;
use crate::support::system::{System, words};
use crate::support::until;

on_one_and_three!(an_exported_log_is_restored_exactly,);

/// Writes a job of two attempts, 200 events long.
async fn write(system: &System, job: &JobId) {
    let started = |continues| Body::Started {
        kind: "demo".parse().unwrap(),
        worker: "w".into(),
        continues,
    };
    let chunk = |text: String, channel| Body::Chunk { text, channel };
    let mut first = vec![
        Body::queued("demo".parse().unwrap(), json!({"a": [1, 2.5, null, "é\n"]})),
        started(false),
        chunk("lost".into(), Channel::Output),
        Body::Retrying {
            code: "crashed".into(),
            message: "it crashed".into(),
            delay_ms: 5,
        },
    ];
    let mut second = vec![
        started(true),
        chunk("thinks".into(), Channel::Reasoning),
        Body::Data {
            data: json!({"u": u64::MAX, "i": -1}),
        },
    ];
    second.extend((0..192).map(|n| chunk(format!("{n} "), Channel::Output)));
    second.push(Body::Done {
        usage: Some(json!({"words": 192})),
        finish_reason: Some("stop".into()),
    });
    let mut last = None;
    for (attempt, bodies) in [(0, first.drain(..1).collect()), (1, first), (2, second)] {
        let mut writer = EventWriter::new(system.log.clone(), job.clone(), attempt, last.as_ref());
        for body in bodies {
            writer.append(body).await.unwrap();
        }
        last = Some(system.last(job).await);
    }
}

/// What `export` prints of a job, and the events in it.
async fn exported(system: &System, job: &str) -> (String, Vec<Value>) {
    let lines = system.run(&format!("export {job}")).await.prints();
    let events = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap());
    let events = events.collect();
    (lines, events)
}

async fn an_exported_log_is_restored_exactly(broker: &Broker) {
    let system = System::on(broker).await;
    let job: JobId = "exact".parse().unwrap();
    write(&system, &job).await;
    let (lines, events) = exported(&system, "exact").await;
    assert_eq!(events.len(), 200);
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("exact.ndjson");
    std::fs::write(&file, lines).unwrap();
    let import = format!("import {}", file.display());
    let exists = "the job exact exists: purge it first";
    system.run(&import).await.refuses(exists);
    let purged = system.queue.purge(&job).await.unwrap();
    assert_eq!(purged, PurgeOutcome::Purged);
    assert_eq!(system.run(&import).await.prints(), "exact\n");
    assert_eq!(exported(&system, "exact").await.1, events);
    system.run(&import).await.refuses(exists);
    // Late watchers get segments, as before.
    let segments = system.names().segments_stream(job.shard(2));
    until("segments", async || {
        system.stream_info(&segments).await["state"]["messages"] == 4
    })
    .await;
    let edge = system.edge().await;
    let seen = follow(&edge.addr, "exact").await;
    seen.assert_whole();
    let mut received: Vec<Value> = seen.events.into_values().collect();
    for event in &mut received {
        event.as_object_mut().unwrap().remove("cursor");
    }
    assert_eq!(received, events);
    system.end().await;
}

#[tokio::test]
async fn only_a_whole_log_of_an_unknown_job_is_imported() {
    let system = System::on(Broker::shared_one()).await;
    let dir = TempDir::new().unwrap();
    let import = async |content: &str| {
        let file = dir.path().join("log.ndjson");
        std::fs::write(&file, content).unwrap();
        system.run(&format!("import {}", file.display())).await
    };
    let queued = r#"{"type":"job:queued:v1","kind":"k","job":"waits","seq":1,"attempt":0,"ts":1}"#;
    let end = r#"{"type":"job:cancelled:v1","job":"waits","seq":2,"attempt":0,"ts":1}"#;
    import(queued).await.refuses("the job has not ended");
    import(end)
        .await
        .refuses("line 1: it is event 2, not event 1");
    system.run("import -").await.refuses("it has no events");
    let waits = system.submit("waits", words(3, 0, 1)).await;
    let whole = format!("{queued}\n{end}\n");
    import(&whole).await.refuses("the job waits exists");
    // Nothing was written.
    assert_eq!(system.last(&waits).await.seq.0, 1);
    system
        .run("export unknown")
        .await
        .refuses("there is no job unknown");
    let ran = system.run("export waits").await;
    assert!(ran.err.contains("has not ended"), "{ran:?}");
    assert_eq!(ran.prints().lines().count(), 1);
    system.end().await;
}
