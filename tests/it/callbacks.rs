use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tailwater::backend::demo::Demo;
use tailwater::backend::{Backend, Failure, Finish, Job, Output};
use tailwater::config::{CALLBACK_WAIT, KIND_JOBS_MAX};
use tailwater::wire::limits::EVENT_MAX;
use tailwater::wire::{JobId, JobState, Status, Submission};
use tailwater::worker::WorkerSettings;
use tempfile::TempDir;
use tokio::time::Instant;

use crate::support::broker::{self, Broker};
use crate::support::client::follow;
use crate::support::http::{assert_problem, get, get_json, post, post_refused};
use crate::support::http_server::{Exchange, Server};
use crate::support::process::{Process, run_with};
use crate::support::signatures::assert_signed;
use crate::support::system::{Edge, SECRET, System, words};
use crate::support::{assert_fields, assert_within, until};

/// Workers for jobs and callbacks, and an edge that allows callbacks to `server`.
struct Calls {
    system: System,
    edge: Edge,
    to: String,
}

impl Calls {
    async fn to(server: &Server, change: impl FnOnce(&mut WorkerSettings)) -> Self {
        let system = System::on(Broker::shared_one()).await;
        // One job at a time, so a blocked callback would stop the worker.
        system
            .worker(Demo, |settings| settings.concurrency = 1)
            .await;
        let worker = |settings: &mut WorkerSettings| {
            settings.pause = Duration::from_millis(20);
            change(settings);
        };
        system.callbacks(server, worker).await;
        let edge = system.edge_calling(&[&server.addr]).await;
        Self {
            system,
            edge,
            to: format!("http://{}", server.addr),
        }
    }

    /// Submits a job that calls back to a path.
    async fn submit(&self, id: &str, path: &str, input: Value) -> JobId {
        let callback = format!("{}{path}", self.to);
        let (status, answer) = post(
            &self.edge,
            &json!({"kind": "demo", "id": id, "input": input, "callback": callback}),
        )
        .await;
        assert_eq!(status, 202, "{answer}");
        id.parse().unwrap()
    }

    /// Waits until the callback of a job has ended.
    async fn callback(&self, job: &JobId) -> JobState {
        self.system
            .ended(&format!("callback:{job}").parse().unwrap())
            .await
    }
}

/// Ends with usage that fills an event.
struct Costly;

impl Backend for Costly {
    async fn run(&self, _job: Job, _out: Output) -> Result<Finish, Failure> {
        let usage = Some(json!(vec![0.5; (EVENT_MAX - 200) / 9]));
        Ok(Finish {
            usage,
            finish_reason: Some("stop".into()),
        })
    }
}

#[tokio::test]
async fn a_callback_omits_details_that_do_not_fit() {
    let server = Server::accepting().await;
    let calls = Calls::to(&server, |_| {}).await;
    let system = &calls.system;
    let costly = |settings: &mut WorkerSettings| settings.kind = "costly".parse().unwrap();
    system.worker(Costly, costly).await;
    let callback = format!("{}/costly", calls.to);
    let body = json!({"kind": "costly", "id": "costly", "callback": callback});
    assert_eq!(post(&calls.edge, &body).await.0, 202);
    let job = "costly".parse().unwrap();
    let state = calls.system.ended(&job).await;
    assert_eq!(state.status, Status::Done, "{:?}", state.error);
    assert!(state.usage.is_some());
    assert_eq!(calls.callback(&job).await.status, Status::Done);
    let requests = server.at("/costly");
    let [request] = requests.as_slice() else {
        panic!("{} requests", requests.len())
    };
    let data = &request.json()["data"];
    assert_fields!(data, {"status": "done", "usage": null, "finish_reason": "stop"});
    calls.system.end().await;
}

#[tokio::test]
async fn each_ended_job_sends_one_verifiable_callback() {
    let server = Server::accepting().await;
    let calls = Calls::to(&server, |_| {}).await;
    let done = calls.submit("done", "/done?x=1", words(5, 0, 1)).await;
    let failed = calls
        .submit("failed", "/failed", json!({"words": -1}))
        .await;
    let cancelled = calls
        .submit("cancelled", "/cancelled", words(10_000, 10, 1))
        .await;
    calls
        .system
        .last_event("the last job to run", &cancelled, |last| last.seq.0 > 2)
        .await;
    calls.system.cancel(&cancelled).await;
    let mut requests = Vec::new();
    for (job, path, kind) in [
        (&done, "/done?x=1", "job.done"),
        (&failed, "/failed", "job.failed"),
        (&cancelled, "/cancelled", "job.cancelled"),
    ] {
        let state = calls.callback(job).await;
        let found = (state.status, state.attempt);
        assert_eq!(found, (Status::Done, 1), "{state:?}");
        let id = state.id;
        calls.system.leaves_queue(&id).await;
        let of_job = server.at(path);
        let [request] = of_job.as_slice() else {
            panic!("{of_job:?}")
        };
        let body = request.json();
        let ended = calls.system.ended(job).await;
        let found = (&body["type"], &body["data"]["id"]);
        assert_eq!(found, (&json!(kind), &json!(job)));
        assert_eq!(body["data"]["ended_at"].as_u64(), ended.ended_at);
        let time = std::time::UNIX_EPOCH + Duration::from_millis(ended.ended_at.unwrap());
        assert_eq!(
            body["timestamp"],
            humantime::format_rfc3339_millis(time).to_string()
        );
        assert_eq!(
            (
                request.headers["webhook-id"].as_str(),
                request.headers["content-type"].as_str()
            ),
            (id.as_str(), "application/json")
        );
        requests.extend(of_job);
    }
    assert_eq!(requests[1].json()["data"]["error"]["code"], "bad_input");
    assert_eq!(server.requests().len(), 3);
    assert_signed(&requests).await;
    calls.system.end().await;
}

#[tokio::test]
async fn callbacks_are_retried_after_errors_and_not_after_refusals() {
    let server = Server::start(async |mut exchange: Exchange| {
        let first = exchange.number == 1;
        let secret = "secret of the receiver";
        let later = "Retry-After: 1\r\n";
        match exchange.request.line.as_str() {
            "POST /fails" if first => exchange.answer("500 Oops", "", secret).await,
            "POST /gone" => exchange.answer("410 Gone", "", secret).await,
            "POST /busy" => exchange.answer("429 Too Many", later, "").await,
            _ => exchange.answer("200 OK", "", "thanks").await,
        }
    })
    .await;
    let calls = Calls::to(&server, |settings| settings.max_attempts = 2).await;
    let job = calls.submit("fails", "/fails", words(2, 0, 1)).await;
    assert_eq!(calls.callback(&job).await.status, Status::Done);
    let requests = server.at("/fails");
    let [first, again] = requests.as_slice() else {
        panic!("{requests:?}")
    };
    let found = (&first.headers["webhook-id"], &first.body);
    assert_eq!(found, (&again.headers["webhook-id"], &again.body));
    assert_signed(&requests).await;
    let seen = follow(&calls.edge.addr, "callback:fails").await;
    let retry = seen.of_type("job:retrying:v1")[0];
    let message = "the receiver answered 500 Internal Server Error";
    assert_fields!(retry, {"code": "callback_failed", "message": message});
    let job = calls.submit("gone", "/gone", words(2, 0, 1)).await;
    let state = calls.callback(&job).await;
    let error = state.error.unwrap();
    let found = (state.status, state.attempt, error.code.as_str());
    assert_eq!(found, (Status::Failed, 1, "callback_refused"));
    assert!(!error.message.contains("secret"), "{}", error.message);
    assert_eq!(server.at("/gone").len(), 1);
    let job = calls.submit("busy", "/busy", words(2, 0, 1)).await;
    let found = calls.callback(&job).await.error.unwrap().code;
    assert_eq!(found, "attempts_exhausted");
    let seen = follow(&calls.edge.addr, "callback:busy").await;
    let retry = seen.of_type("job:retrying:v1")[0];
    assert_eq!(retry["delay_ms"], 1000);
    assert_eq!(server.at("/busy").len(), 2);
    calls.system.end().await;
}

#[tokio::test]
async fn an_unresponsive_receiver_delays_no_other_callback() {
    let server =
        Server::start(
            async |mut exchange: Exchange| match exchange.request.line.as_str() {
                "POST /slow" => exchange.hang().await,
                _ => exchange.answer("200 OK", "", "").await,
            },
        )
        .await;
    let calls = Calls::to(&server, |_| {}).await;
    let began = Instant::now();
    for number in 0..30 {
        calls
            .submit(&format!("slow-{number}"), "/slow", words(1, 0, 1))
            .await;
    }
    until("the slow callbacks", async || {
        server.at("/slow").len() == 30
    })
    .await;
    let job = calls.submit("fast", "/fast", words(1, 0, 1)).await;
    assert_eq!(calls.callback(&job).await.status, Status::Done);
    assert_within(began, CALLBACK_WAIT);
    // The slow callbacks do not wait forever either.
    let slow: JobId = "callback:slow-0".parse().unwrap();
    calls
        .system
        .last_event("the slow callback to fail", &slow, |last| {
            last.event_type == tailwater::wire::EventType::Retrying
        })
        .await;
    calls.system.end().await;
}

#[tokio::test]
async fn only_allowed_hosts_are_called() {
    let elsewhere = Server::accepting().await;
    let location = format!("Location: http://{}/\r\n", elsewhere.addr);
    let server = Server::start(move |mut exchange: Exchange| {
        let location = location.clone();
        async move {
            exchange
                .answer("307 Temporary Redirect", &location, "")
                .await
        }
    })
    .await;
    let calls = Calls::to(&server, |settings| settings.max_attempts = 2).await;
    let forbidden = format!("http://{}/", elsewhere.addr);
    let (status, problem) = post(
        &calls.edge,
        &json!({"kind": "demo", "id": "f", "callback": forbidden}),
    )
    .await;
    assert_problem(status, &problem, 422, "callback_not_allowed");
    let last = calls.system.log.last(&"f".parse().unwrap()).await;
    assert!(last.unwrap().is_none());
    // Another name of the allowed address, in each form of an address that is not allowed.
    let port = server.addr.rsplit(':').next().unwrap();
    for host in [
        "localhost",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "2130706434",
        "0x7f.2",
        "0",
    ] {
        let callback = format!("http://{host}:{port}/");
        let body = json!({"kind": "demo", "id": "f", "callback": callback});
        let (status, problem) = post(&calls.edge, &body).await;
        assert_problem(status, &problem, 422, "callback_not_allowed");
    }
    // Submitted past the edge: the worker has its own list.
    let submission = Submission {
        callback: Some(forbidden),
        ..Submission::new("demo".parse().unwrap(), words(1, 0, 1))
    };
    let job = calls.system.submit_with("around", submission).await;
    let state = calls.callback(&job).await;
    let error = state.error.unwrap();
    let found = (state.attempt, &*error.code);
    assert_eq!(found, (1, "callback_not_allowed"));
    let job = calls.submit("redirected", "/", words(1, 0, 1)).await;
    let found = calls.callback(&job).await.error.unwrap().code;
    assert_eq!(found, "attempts_exhausted");
    let found = (server.requests().len(), elsewhere.requests().len());
    assert_eq!(found, (2, 0));
    calls.system.end().await;
}

#[tokio::test]
async fn callback_addresses_are_never_published() {
    let server =
        Server::start(
            async |mut exchange: Exchange| match exchange.request.line.as_str() {
                "POST /ok?token=hunter2" => exchange.answer("200 OK", "", "").await,
                _ => exchange.answer("410 Gone", "", "").await,
            },
        )
        .await;
    let calls = Calls::to(&server, |_| {}).await;
    for (id, path, status) in [
        ("delivered", "/ok?token=hunter2", Status::Done),
        ("refused", "/gone?token=hunter2", Status::Failed),
    ] {
        let job = calls.submit(id, path, words(1, 0, 1)).await;
        assert_eq!(calls.callback(&job).await.status, status);
        assert_eq!(server.at(path).len(), 1);
        for job in [job.to_string(), format!("callback:{job}")] {
            let mut shown = format!("{:?}", follow(&calls.edge.addr, &job).await.events);
            assert!(shown.contains("job:queued:v1"), "{shown}");
            for (path, headers) in [
                ("", ""),
                ("/events", "Accept: application/json\r\n"),
                ("/events", "Accept: text/event-stream\r\n"),
            ] {
                let path = format!("/api/jobs/{job}{path}");
                let (head, body) = get(&calls.edge.addr, &path, headers).await;
                assert!(
                    head.starts_with("HTTP/1.1 200") && !body.is_empty(),
                    "{head}"
                );
                shown += &body;
            }
            // Every other reader reads these bytes.
            let first = calls.system.log.first(&job.parse().unwrap()).await.unwrap();
            shown += &String::from_utf8_lossy(first.unwrap().payload());
            assert!(
                !shown.contains("hunter2") && !shown.contains(&server.addr),
                "{shown}"
            );
        }
    }
    for query in ["", "?kind=callback", "?kind=callback&status=failed"] {
        let page = get_json(&calls.edge, &format!("/api/jobs{query}")).await;
        let jobs = page["jobs"].as_array().unwrap();
        let ids: Vec<_> = jobs.iter().map(|job| job["id"].as_str().unwrap()).collect();
        let all = ["refused", "delivered"];
        let expected = if query.is_empty() { &all[..] } else { &[] };
        assert_eq!(ids, expected, "{page}");
    }
    calls.system.end().await;
}

#[tokio::test]
async fn a_callback_is_refused_when_no_worker_delivers_it() {
    let system = System::on(Broker::shared_one()).await;
    system.demo().await;
    let edge = system.edge_calling(&["h.example"]).await;
    let job = json!({"kind": "demo", "id": "j", "callback": "https://h.example/"});
    let problem = post_refused(&edge, &job, 422, "unknown_kind").await;
    assert!(
        problem.to_string().contains("the kind callback"),
        "{problem}"
    );
    let ran = system
        .run("submit --kind demo --callback https://h.example/")
        .await;
    ran.refuses("tailwater: no worker has ever served the kind callback\n");
    system
        .worker(Demo, |settings| settings.kind = "callback".parse().unwrap())
        .await;
    assert_eq!(post(&edge, &job).await.0, 202);
    system.end().await;
}

#[tokio::test]
async fn a_callback_without_room_does_not_block_its_job() {
    let system = System::on(Broker::shared_one()).await;
    system.demo().await;
    let mut queue = {
        let jobs = system.names().jobs_stream();
        system.jetstream().await.get_stream(jobs).await.unwrap()
    };
    // Submitted past the edge, which would refuse the first one.
    for (id, callbacks) in [("unserved", 0), ("crowded", KIND_JOBS_MAX)] {
        if callbacks > 0 {
            let worker =
                system.worker(Demo, |settings| settings.kind = "callback".parse().unwrap());
            worker.await.cancel();
            system.fill_queue("callback", callbacks, 0).await;
        }
        let callback = Some("http://127.0.0.1:9/".to_owned());
        let submission = Submission {
            callback,
            ..Submission::new("demo".parse().unwrap(), words(1, 0, 1))
        };
        let job = system.submit_with(id, submission).await;
        assert_eq!(system.ended(&job).await.status, Status::Done);
        system.leaves_queue(&job).await;
        assert_eq!(queue.info().await.unwrap().state.messages, callbacks);
    }
    system.end().await;
}

#[tokio::test]
async fn up_delivers_callbacks() {
    let server = Server::accepting().await;
    let dir = TempDir::new().unwrap();
    let program = broker::program().display();
    let data = dir.path().display();
    let with_host = |host: &str| {
        format!(
            "up --listen 127.0.0.1:0 --data-dir {data} --nats-server {program} --callback-hosts {host}"
        )
    };
    for (host, secret, words) in [
        (server.addr.as_str(), "", "set TAILWATER_WEBHOOK_SECRET"),
        (&server.addr, "whsec_c2hvcnQ=", "24 to 64 random bytes"),
        (
            "http://h",
            SECRET,
            "the callback host \"http://h\" must be `name`",
        ),
    ] {
        let env = [("TAILWATER_WEBHOOK_SECRET", secret)];
        let err = run_with(with_host(host).split(' '), &env)
            .await
            .refuses(words);
        assert!(secret.is_empty() || !err.contains(secret), "{err}");
    }
    let log = dir.path().join("log");
    let env = [
        ("TAILWATER_WEBHOOK_SECRET", SECRET),
        ("TAILWATER_LOG", "trace"),
    ];
    let stderr = Stdio::from(std::fs::File::create(&log).unwrap());
    // The program must not see the secret.
    let command = format!("{} --env MODE=fast -- sh -c env", with_host(&server.addr));
    let mut up = Process::start_with(command.split(' '), &env, stderr);
    let addr = up.says("ready http://").await;
    let edge = Edge::at(&addr);
    let callback = format!("http://{}/up?token=hunter2", server.addr);
    let (status, answer) = post(
        &edge,
        &json!({"kind": "exec", "id": "up", "callback": callback}),
    )
    .await;
    assert_eq!(status, 202, "{answer}");
    until("the callback", async || !server.requests().is_empty()).await;
    assert_signed(&server.requests()).await;
    let seen = follow(&addr, "up").await;
    assert!(
        seen.text().contains("TAILWATER_JOB=up") && seen.text().contains("MODE=fast"),
        "{}",
        seen.text()
    );
    assert!(!seen.text().contains("TAILWATER_LOG"), "{}", seen.text());
    let log = std::fs::read_to_string(log).unwrap();
    assert!(log.contains("TRACE") && log.contains("starting new connection"));
    for shown in [
        log,
        seen.text(),
        format!("{:?}", follow(&addr, "callback:up").await.events),
    ] {
        assert!(
            !shown.contains(SECRET) && !shown.contains("hunter2"),
            "{shown}"
        );
    }
    let out = run_with(["up", "--help"], &env[..1]).await.prints();
    assert!(
        out.contains("TAILWATER_WEBHOOK_SECRET") && !out.contains(SECRET),
        "{out}"
    );
}

#[tokio::test]
async fn the_webhook_backend_serves_callbacks_only() {
    let line = "worker --kind mail webhook --callback-hosts h.example";
    let env = [("TAILWATER_WEBHOOK_SECRET", SECRET)];
    let ran = run_with(line.split(' '), &env).await;
    ran.fails(2, "serves only the kind callback");
}
