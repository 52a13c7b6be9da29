use async_nats::HeaderMap;
use serde_json::{Value, json};
use tailwater::config::{KIND_JOBS_MAX, SMALL_INPUT};
use tailwater::edge::EdgeSettings;
use tailwater::nats::SubmitOutcome;
use tailwater::process_group::Signal;
use tailwater::wire::{JobId, Status, Submission};

use crate::support::broker::Broker;
use crate::support::eventually;
use crate::support::http::{assert_problem, get_json, http, post, post_refused};
use crate::support::scenarios::on_one_and_three;
use crate::support::system::{Edge, System, text, words};

on_one_and_three!(
    an_idempotency_key_returns_the_same_job,
    generated_ids_name_the_kind_and_no_other_kind_gets_them,
    a_half_finished_submit_can_be_repeated,
    a_full_kind_is_refused_and_other_kinds_are_not,
);

async fn post_with_key(edge: &Edge, key: &str, body: &Value) -> (u16, Value) {
    let headers = format!("Content-Type: application/json\r\nIdempotency-Key: {key}\r\n");
    let body = body.to_string();
    let (status, _, body) = http(edge, "POST", "/api/jobs", &headers, body.as_bytes()).await;
    (status, body)
}

/// Waits until the edge refuses a job because the queue is full.
async fn is_full(edge: &Edge, job: &Value) {
    let refused = async || Some(post(edge, job).await).filter(|(status, _)| *status != 202);
    let (status, problem) = eventually("the edge to learn of the full queue", refused).await;
    assert_problem(status, &problem, 503, "queue_full");
}

async fn an_idempotency_key_returns_the_same_job(broker: &Broker) {
    let system = System::on(broker).await;
    system.demo().await;
    let edges = [system.edge().await, system.edge().await];
    let body = json!({"kind": "demo", "input": words(5, 0, 1)});
    let (status, first) = post_with_key(&edges[0], "order 66", &body).await;
    let found = (status, &first["status"]);
    assert_eq!(found, (202, &json!("queued")), "{first}");
    let job = first["id"].as_str().unwrap().parse().unwrap();
    assert_eq!(system.ended(&job).await.output, text(&body["input"]));
    // On another edge, and after it has ended.
    let (status, again) = post_with_key(&edges[1], "order 66", &body).await;
    let found = (status, &again["id"], &again["status"]);
    assert_eq!(found, (200, &first["id"], &json!("done")));
    // Many submits at once create one job.
    let racers = futures_util::future::join_all(
        (0..20).map(|n| post_with_key(&edges[n % 2], "race", &body)),
    );
    let racers = racers.await;
    let found = racers.iter().filter(|(status, _)| *status == 202).count();
    assert_eq!(found, 1, "{racers:?}");
    assert!(
        racers
            .iter()
            .all(|(status, answer)| *status <= 202 && answer["id"] == racers[0].1["id"]),
        "{racers:?}"
    );
    let (status, other) = post_with_key(&edges[0], "order 67", &body).await;
    assert_eq!(status, 202);
    assert_ne!(other["id"], first["id"]);
    for other in [
        json!({"kind": "demo", "input": words(6, 0, 1)}),
        json!({"kind": "demo", "input": words(5, 0, 1), "timeout_ms": 5000}),
    ] {
        let (status, problem) = post_with_key(&edges[1], "order 66", &other).await;
        assert_problem(status, &problem, 422, "key_reused");
        // The error does not reveal the job that has the key.
        assert!(!problem.to_string().contains(job.as_str()), "{problem}");
    }
    for bad in ["", &"x".repeat(256), "é"] {
        let (status, problem) = post_with_key(&edges[0], bad, &body).await;
        let found = (status, &problem["code"]);
        assert_eq!(found, (400, &json!("bad_request")), "{bad}");
    }
    system.end().await;
}

async fn generated_ids_name_the_kind_and_no_other_kind_gets_them(broker: &Broker) {
    let system = System::on(broker).await;
    system.demo().await;
    let edge = system.edge().await;
    let body = json!({"kind": "demo", "input": words(3, 0, 1)});
    let (status, answer) = post_with_key(&edge, "order 68", &body).await;
    assert_eq!(status, 202, "{answer}");
    let by_key = answer["id"].as_str().unwrap().to_owned();
    assert!(by_key.starts_with("demo:key-"), "{by_key}");
    let (status, answer) = post(&edge, &body).await;
    assert_eq!(status, 202, "{answer}");
    let by_edge = answer["id"].as_str().unwrap().to_owned();
    let input = body["input"].to_string();
    let line = format!("submit --kind demo --input {input}");
    let by_cli = system.run(&line).await.prints().trim().to_owned();
    for id in [by_key, by_edge, by_cli] {
        let job: JobId = id.parse().unwrap();
        assert_eq!(job.kind(), Some("demo"), "{id}");
        assert_eq!(system.ended(&job).await.output, text(&body["input"]));
        // A URL may have the colon as it is, or percent-encoded.
        for id in [id.clone(), id.replace(':', "%3A")] {
            let state = get_json(&edge, &format!("/api/jobs/{id}")).await;
            assert_eq!(
                (&state["id"], &state["status"]),
                (&json!(job), &json!("done"))
            );
        }
    }
    // Whatever submits it, an id that names another kind is refused before anything is stored.
    let line = "submit --kind demo --id other:a";
    system
        .run(line)
        .await
        .fails(2, "names another kind than demo");
    let other = "other:a".parse().unwrap();
    let submission = Submission::new("demo".parse().unwrap(), body["input"].clone());
    let outcome = system.queue.submit(&other, &submission).await.unwrap();
    assert_eq!(outcome, SubmitOutcome::OtherKind);
    assert_eq!(system.queue.queued_kind(&other).await.unwrap(), None);
    // A worker removes such a message from the queue, and runs the job after it.
    let context = system.jetstream().await;
    let prefix = &system.options.prefix;
    for (id, kind) in [("other:a", "demo"), ("plain", "other")] {
        let subject = format!("{prefix}.jobs.demo.{id}");
        let queued = json!({"job": id, "kind": kind, "input": body["input"]}).to_string();
        let stored = context.publish(subject, queued.into()).await.unwrap();
        stored.await.unwrap();
    }
    let next = system.submit("demo:next", body["input"].clone()).await;
    assert_eq!(system.ended(&next).await.output, text(&body["input"]));
    system.queue_is_empty().await;
    for id in ["other:a", "plain"] {
        let last = system.log.last(&id.parse().unwrap()).await.unwrap();
        assert!(last.is_none(), "{id}");
    }
    system.end().await;
}

async fn a_half_finished_submit_can_be_repeated(broker: &Broker) {
    let system = System::on(broker).await;
    // Registers the kind and then does not serve it.
    system.demo().await.cancel();
    let edge = system.edge().await;
    let context = system.jetstream().await;
    let body = |id: &str| json!({"kind": "demo", "id": id, "input": words(20, 20, 1)});
    // The broker has no message id or another one, as after its duplicate window.
    let ids = ["left-1", "left-2"];
    for (id, message_id) in [(ids[0], None), (ids[1], Some("another"))] {
        let mut headers = HeaderMap::new();
        if let Some(message_id) = message_id {
            headers.insert("Nats-Msg-Id", message_id);
        }
        let payload = json!({"job": id, "kind": "demo", "input": body(id)["input"]}).to_string();
        let subject = format!("{}.jobs.demo.{id}", system.options.prefix);
        context
            .publish_with_headers(subject, headers, payload.into())
            .await
            .unwrap()
            .await
            .unwrap();
    }
    let jobs = system.names().jobs_stream();
    let mut queue = context.get_stream(&jobs).await.unwrap();
    // With room in the queue, and when the broker reports that it is full.
    for room in [true, false] {
        let mut config = queue.cached_info().config.clone();
        config.max_messages = if room { 3 } else { 2 };
        context.update_stream(config).await.unwrap();
        for id in ids {
            let (status, same) = post(&edge, &body(id)).await;
            let found = (status, &same["id"], &same["status"]);
            assert_eq!(found, (200, &json!(id), &json!("queued")), "{same}");
            post_refused(
                &edge,
                &json!({"kind": "demo", "id": id, "input": "other"}),
                409,
                "job_exists",
            )
            .await;
        }
    }
    post_refused(&edge, &body("new"), 503, "queue_full").await;
    assert_eq!(queue.info().await.unwrap().state.messages, 2);
    // Two workers: if the queue held a job twice, they would supersede each other.
    system.demo().await;
    system.demo().await;
    for id in ids {
        let state = system.ended(&id.parse().unwrap()).await;
        let found = (state.status, state.attempt, state.output);
        assert_eq!(found, (Status::Done, 1, text(&body(id)["input"])));
    }
    system.end().await;
}

#[tokio::test]
async fn an_id_is_refused_as_removed_only_once_the_queue_does_not_hold_its_submission() {
    let system = System::on(Broker::shared_one()).await;
    // Registers the kind and then does not serve it.
    system.demo().await.cancel();
    let edge = system.edge().await;
    let names = system.names();
    let job: JobId = "held".parse().unwrap();
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Msg-Id", "held");
    let subject = names.queued(&"demo".parse().unwrap(), &job);
    let context = system.jetstream().await;
    // No look-up finds the job.
    context
        .publish_with_headers(subject, headers, "undecodable".into())
        .await
        .unwrap()
        .await
        .unwrap();
    let body = json!({"kind": "demo", "id": "held"});
    post_refused(&edge, &body, 503, "unavailable").await;
    let queued = names.queued_of_any_kind(&job);
    system.remove(&names.jobs_stream(), &queued).await;
    post_refused(&edge, &body, 409, "job_removed").await;
    system.end().await;
}

#[tokio::test]
async fn a_submission_without_an_id_that_fails_can_be_repeated_with_the_id_in_the_error() {
    let broker = Broker::one();
    let system = System::on(&broker).await;
    system.demo().await;
    let edge = system.edge().await;
    let input = words(5, 0, 1);
    let body = json!({"kind": "demo", "input": input});
    let failed = async || {
        // The edge then knows for a second that the queue has room, and asks the broker no more before it submits.
        let (status, _) = post(&edge, &body).await;
        if status != 202 {
            return None;
        }
        broker.signal(0, Signal::STOP);
        let (status, problem) = post(&edge, &body).await;
        broker.signal(0, Signal::CONT);
        assert_problem(status, &problem, 503, "unavailable");
        problem["job"].as_str().map(str::to_owned)
    };
    let job = eventually("a submission that fails after it was checked", failed).await;
    let body = json!({"kind": "demo", "input": input, "id": job});
    let repeated = async || {
        let (status, answer) = post(&edge, &body).await;
        (status != 503).then_some((status, answer))
    };
    let (status, answer) = eventually("the repetition", repeated).await;
    assert!(status == 200 || status == 202, "{status}: {answer}");
    assert_eq!(answer["id"], job.as_str());
    let state = system.ended(&job.parse().unwrap()).await;
    assert_eq!((state.status, state.output), (Status::Done, text(&input)));
    let (status, again) = post(&edge, &body).await;
    assert_eq!((status, &again["id"]), (200, &json!(job)));
    system.end().await;
}

async fn a_full_kind_is_refused_and_other_kinds_are_not(broker: &Broker) {
    let system = System::on(broker).await;
    // Registers both kinds and then serves neither.
    for kind in ["demo", "other"] {
        let worker = system.worker(tailwater::backend::demo::Demo, |settings| {
            settings.kind = kind.parse().unwrap();
        });
        worker.await.cancel();
    }
    let edge = system.edge().await;
    let kept = json!({"kind": "demo", "id": "kept", "input": words(5, 0, 1)});
    assert_eq!(post(&edge, &kept).await.0, 202);
    system.fill_queue("demo", KIND_JOBS_MAX, 0).await;
    is_full(&edge, &json!({"kind": "demo"})).await;
    // Jobs that are queued already are still accepted; other kinds have room, and the CLI
    // reports the same error.
    assert_eq!(post(&edge, &kept).await.0, 200);
    assert_eq!(
        post(&edge, &json!({"kind": "demo", "id": "fill-7", "input": ""}))
            .await
            .0,
        200
    );
    assert_eq!(post(&edge, &json!({"kind": "other"})).await.0, 202);
    let ran = system.run("submit --kind demo").await;
    ran.refuses("tailwater: the queue is full; try again later\n");
    system.end().await;
}

#[tokio::test]
async fn large_inputs_take_no_more_than_half_of_the_queue() {
    let system = System::on(Broker::shared_one()).await;
    system.demo().await.cancel();
    let edge = system.edge().await;
    // A little more than 128 MiB of the 256 that the queue may have.
    system.fill_queue("another", 270, 500 * 1024).await;
    let large = json!({"kind": "demo", "input": "x".repeat(SMALL_INPUT)});
    is_full(&edge, &large).await;
    assert_eq!(
        post(&edge, &json!({"kind": "demo", "input": "small"}))
            .await
            .0,
        202
    );
    system.end().await;
}

#[tokio::test]
async fn submit_wait_exits_with_the_outcome_of_the_job() {
    let system = System::on(Broker::shared_one()).await;
    system.demo().await;
    let submit = async |flags: &str| {
        system
            .run(&format!("submit --kind demo --wait {flags}"))
            .await
    };
    let input = words(5, 0, 1);
    let ran = submit(&format!("--input {input}")).await;
    assert_eq!(ran.prints(), text(&input));
    let ran = submit(r#"--input {"words":-1}"#).await;
    ran.fails(1, "(bad_input)");
    let slow = words(10_000, 20, 1);
    let ran = submit(&format!("--input {slow} --timeout 500ms --json")).await;
    let state: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(state["error"]["code"], "timed_out");
    ran.fails(1, "(timed_out)");
    let cancel = async {
        system.reaches("stop-me", 3).await;
        system.cancel(&"stop-me".parse().unwrap()).await;
    };
    let waits = format!("--input {slow} --id stop-me");
    let (ran, ()) = futures_util::future::join(submit(&waits), cancel).await;
    let found = (ran.code, &*ran.err);
    assert_eq!(found, (3, "tailwater: the job was cancelled\n"));
    system.end().await;
}

#[tokio::test]
async fn an_edge_can_refuse_ids_that_name_no_kind() {
    let system = System::on(Broker::shared_one()).await;
    system.demo().await;
    let settings = EdgeSettings {
        plain_ids: false,
        ..EdgeSettings::default()
    };
    let edge = system.edge_with(settings).await;
    let input = words(1, 0, 1);
    let plain = json!({"kind": "demo", "id": "plain", "input": input});
    let (status, problem) = post(&edge, &plain).await;
    assert_problem(status, &problem, 400, "bad_job_id");
    let qualified = json!({"kind": "demo", "id": "demo:named", "input": input});
    let (status, answer) = post(&edge, &qualified).await;
    assert_eq!(
        (status, &answer["id"]),
        (202, &json!("demo:named")),
        "{answer}"
    );
    let (status, answer) = post(&edge, &json!({"kind": "demo", "input": input})).await;
    assert_eq!(status, 202, "{answer}");
    system.end().await;
}
