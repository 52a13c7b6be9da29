use std::time::Duration;

use serde_json::{Value, json};
use tailwater::backend::demo::Demo;
use tailwater::backend::{Backend, Failure, Finish, Job, Output};
use tailwater::nats::CancelOutcome;
use tailwater::wire::limits::EVENT_MAX;
use tailwater::wire::{EventType, JobId, JobState, Seq, Status};
use tailwater::worker::WorkerSettings;
use tokio::process::Command;
use tokio::time::Instant;

use crate::support::broker::Broker;
use crate::support::client::{Encoding, follow};
use crate::support::http::{assert_problem, http, post, post_refused};
use crate::support::process::run_program_on;
use crate::support::scenarios::on_one_and_three;
use crate::support::socketio::Raw;
use crate::support::system::{System, text, words};
use crate::support::{assert_fields, assert_within};

on_one_and_three!(
    an_oversized_job_is_refused_on_every_transport,
    an_oversized_job_of_another_publisher_fails_alone,
    an_oversized_job_can_be_cancelled_and_can_time_out,
    oversized_output_is_split_or_fails_the_job,
);

/// 512 KiB of JSON, 1.15 MiB of MessagePack.
fn too_large() -> Value {
    json!(vec![0.5; 131_000])
}

async fn an_oversized_job_is_refused_on_every_transport(broker: &Broker) {
    let system = System::on(broker).await;
    system.demo().await;
    let edge = system.edge().await;
    let input = too_large();
    let submit = json!({"kind": "demo", "input": input});
    let begun = Instant::now();
    let problem = post_refused(&edge, &submit, 413, "too_large").await;
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains(&EVENT_MAX.to_string()), "{detail}");
    let mut frame = submit.clone();
    (frame["op"], frame["ref"]) = (json!("submit"), json!("r"));
    for encoding in Encoding::ALL {
        let mut client = edge.client_in(encoding).await;
        if encoding == Encoding::MsgPack {
            // Just below the frame limit.
            frame["input"] = json!(vec![0.5; 116_400]);
        }
        client.send(frame.clone()).await;
        let error = client.op().await;
        assert_fields!(error, {"op": "error", "code": "too_large", "ref": "r"});
    }
    let mut raw = Raw::join(&edge.addr).await;
    let mut emit = submit.clone();
    emit["ref"] = json!("r");
    let error = raw.ask(1, "submit", &emit).await;
    assert_fields!(error, {"code": "too_large", "ref": "r"});
    let mut command = Command::new(env!("CARGO_BIN_EXE_tailwater"));
    command.args(["submit", "--kind", "demo", "--input", "-"]);
    let ran = run_program_on(command.args(system.flags()), &input.to_string()).await;
    assert_eq!(ran.out, "", "{ran:?}");
    ran.fails(2, &EVENT_MAX.to_string());
    // Each was refused without a request to the broker.
    assert_within(begun, Duration::from_secs(20));
    assert_eq!(system.stored_messages().await, 0);
    // An input that just fits is accepted and stored unchanged, although the demo backend refuses
    // it.
    let job = "fits".parse().unwrap();
    let input = json!({"words": 1, "rate": 0, "pad": vec![0.5; 116_000]});
    assert_eq!(
        post(
            &edge,
            &json!({"kind": "demo", "id": "fits", "input": input})
        )
        .await
        .0,
        202
    );
    assert_eq!(code(&system.ended(&job).await), "bad_input");
    let seen = follow(&edge.addr, "fits").await;
    assert_eq!(seen.events[&1]["input"], input);
    system.end().await;
}

/// Puts a job into the queue past every check.
async fn put(system: &System, job: &str, more: &Value) -> JobId {
    let subject = format!("{}.jobs.demo.{job}", system.options.prefix);
    let mut queued = json!({"job": job, "kind": "demo", "input": too_large()});
    queued
        .as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    let context = system.jetstream().await;
    context
        .publish(subject, queued.to_string().into())
        .await
        .unwrap()
        .await
        .unwrap();
    job.parse().unwrap()
}

fn code(state: &JobState) -> &str {
    state.error.as_ref().map_or("", |error| &error.code)
}

async fn an_oversized_job_of_another_publisher_fails_alone(broker: &Broker) {
    let system = System::on(broker).await;
    let mut jobs = Vec::new();
    for n in 0..8 {
        jobs.push(put(&system, &format!("other-{n}"), &json!({})).await);
    }
    // Nested too deeply for any reader to decode.
    let deep = (0..120).fold(json!(1), |value, _| json!([value]));
    jobs.push(put(&system, "other-deep", &json!({"input": deep})).await);
    let small = |settings: &mut WorkerSettings| {
        (settings.concurrency, settings.max_attempts) = (2, 3);
        settings.pause = Duration::from_millis(100);
    };
    system.worker(Demo, small).await;
    let input = words(5, 0, 1);
    let other = system.submit("other", input.clone()).await;
    assert_eq!(system.ended(&other).await.output, text(&input));
    for job in jobs {
        let state = system.ended(&job).await;
        let found = (state.status, code(&state), state.seq);
        assert_eq!(found, (Status::Failed, "attempts_exhausted", Seq(2)));
        let message = &state.error.unwrap().message;
        assert!(
            message.starts_with("no attempt could start") && message.contains("input"),
            "{message}"
        );
        let first = system.log.first(&job).await.unwrap().unwrap();
        assert_eq!(first.event_type, EventType::Queued);
    }
    system.queue_is_empty().await;
    system.end().await;
}

async fn an_oversized_job_can_be_cancelled_and_can_time_out(broker: &Broker) {
    let system = System::on(broker).await;
    // Without a worker, and while a worker waits for its next try.
    let waits = put(&system, "waits", &json!({})).await;
    let limited = put(&system, "limited", &json!({"timeout_ms": 1500})).await;
    let found = system.cancel(&waits).await;
    assert_eq!(found, CancelOutcome::Requested(Seq(2)));
    let found = system.state(&waits).await.unwrap().status;
    assert_eq!(found, Status::Cancelled);
    let patient = |settings: &mut WorkerSettings| settings.pause = Duration::from_secs(600);
    system.worker(Demo, patient).await;
    let tried = put(&system, "tried", &json!({})).await;
    assert_eq!(code(&system.ended(&limited).await), "timed_out");
    let found = system.cancel(&tried).await;
    assert_eq!(found, CancelOutcome::Requested(Seq(2)));
    assert_eq!(system.ended(&tried).await.status, Status::Cancelled);
    system.end().await;
}

#[tokio::test]
async fn a_job_with_a_sealed_log_leaves_the_queue() {
    let system = System::with(Broker::shared_one(), |settings| settings.shards = 1).await;
    let job = system.submit("sealed", words(1, 0, 1)).await;
    let context = system.jetstream().await;
    let names = system.names();
    let mut config = context
        .get_stream(names.chunks_stream(0))
        .await
        .unwrap()
        .cached_info()
        .config
        .clone();
    config.sealed = true;
    context.update_stream(config).await.unwrap();
    let small = |settings: &mut WorkerSettings| {
        (settings.max_attempts, settings.pause) = (3, Duration::from_millis(50));
    };
    system.worker(Demo, small).await;
    system.queue_is_empty().await;
    assert_eq!(system.last(&job).await.seq, Seq(1));
    system.end().await;
}

/// Produces oversized output of the kind that its input names.
struct Large;

impl Backend for Large {
    async fn run(&self, job: Job, out: Output) -> Result<Finish, Failure> {
        let large = || "é".repeat(700_000);
        let mut finish = Finish::default();
        match job.input.as_str().unwrap_or_default() {
            "text" => out.text(&large()).await?,
            "data" => out.data(json!(vec![0.5; 131_000])).await?,
            "deep" => {
                out.data((0..130).fold(json!(1), |value, _| json!([value])))
                    .await?
            }
            "usage" => finish.usage = Some(json!(large())),
            "finish_reason" => finish.finish_reason = Some(large()),
            "failure" => return Err(Failure::fatal("c".repeat(2000), large())),
            "retry" if job.attempt == 1 => return Err(Failure::retryable("flaky", large())),
            _ => {}
        }
        out.text("end").await?;
        Ok(finish)
    }
}

async fn oversized_output_is_split_or_fails_the_job(broker: &Broker) {
    let system = System::on(broker).await;
    system
        .worker(Large, |settings| settings.pause = Duration::from_millis(10))
        .await;
    let submit = async |what: &str| system.submit(what, json!(what)).await;
    for what in ["data", "deep", "usage", "finish_reason"] {
        let state = system.ended(&submit(what).await).await;
        assert_eq!((state.attempt, code(&state)), (1, "bad_output"), "{what}");
        let error = state.error.unwrap();
        let named = if what == "deep" {
            "data nests deeper"
        } else {
            what
        };
        assert!(
            !error.retryable && error.message.contains(named),
            "{}",
            error.message
        );
    }
    let state = system.ended(&submit("text").await).await;
    assert_eq!((state.status, state.truncated), (Status::Done, false));
    let edge = system.edge().await;
    let found = follow(&edge.addr, "text").await.text();
    assert_eq!(found, format!("{}end", "é".repeat(700_000)));
    let state = system.ended(&submit("failure").await).await;
    let error = state.error.unwrap();
    assert!(
        error.code.starts_with("cc") && error.code.ends_with("[cut]"),
        "{}",
        error.code
    );
    assert!(
        error.message.starts_with("éé") && error.message.ends_with("[cut]"),
        "{}",
        error.message.len()
    );
    let state = system.ended(&submit("retry").await).await;
    assert_eq!((state.status, state.attempt), (Status::Done, 2));
    system.end().await;
}

#[tokio::test]
async fn a_smaller_max_payload_lowers_the_limit() {
    let broker = Broker::with_max_payload("64KB");
    let system = System::on(&broker).await;
    system.worker(Large, |_| {}).await;
    let edge = system.edge().await;
    let (status, problem) = post(
        &edge,
        &json!({"kind": "demo", "input": "x".repeat(64 << 10)}),
    )
    .await;
    let limit = (63 << 10).to_string();
    assert_problem(status, &problem, 413, "too_large");
    assert!(
        problem["detail"].as_str().unwrap().contains(&limit),
        "{problem}"
    );
    assert_eq!(system.stored_messages().await, 0);
    let job = system.submit("text", json!("text")).await;
    assert_eq!(system.ended(&job).await.status, Status::Done);
    let seen = follow(&edge.addr, "text").await;
    seen.assert_whole();
    assert_eq!(seen.text(), format!("{}end", "é".repeat(700_000)));
    let state = system
        .ended(&system.submit("data", json!("data")).await)
        .await;
    assert!(code(&state) == "bad_output" && state.error.unwrap().message.contains(&limit));
    system.end().await;
}

#[tokio::test]
async fn extreme_numbers_are_refused_or_preserved() {
    let system = System::on(Broker::shared_one()).await;
    system.demo().await;
    let edge = system.edge().await;
    let json = "Content-Type: application/json\r\n";
    for bad in ["1e400", "-1e400", r#""\ud800""#, "NaN", "[1,]"] {
        let body = format!(r#"{{"kind":"demo","input":{bad}}}"#);
        let (status, _, problem) = http(&edge, "POST", "/api/jobs", json, body.as_bytes()).await;
        let found = (status, &problem["code"]);
        assert_eq!(found, (400, &json!("bad_json")), "{bad}: {problem}");
    }
    let good = r#"[18446744073709551615,-9223372036854775808,1e308,5e-324,-0.0,0.1,1.0,123456789012345678901234567890,"\u0000"]"#;
    let body =
        format!(r#"{{"kind":"demo","id":"numbers","input":{{"words":1,"rate":0,"pad":{good}}}}}"#);
    // Submitting it again returns the same job: storing it changed nothing.
    for expected in [202, 200] {
        let (status, _, answer) = http(&edge, "POST", "/api/jobs", json, body.as_bytes()).await;
        assert_eq!(status, expected, "{answer}");
        system.ended(&"numbers".parse().unwrap()).await;
    }
    let seen = follow(&edge.addr, "numbers").await;
    let pad: Value = serde_json::from_str(good).unwrap();
    assert_eq!(seen.events[&1]["input"]["pad"].to_string(), pad.to_string());
    system.end().await;
}
