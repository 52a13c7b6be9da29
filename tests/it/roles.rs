use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::process::Stdio;

use async_nats::{Client, ConnectOptions, Event, HeaderMap, Request};
use futures_util::StreamExt as _;
use futures_util::future::join_all;
use serde_json::{Value, json};
use tailwater::process_group::Signal;
use tempfile::TempDir;
use tokio::sync::mpsc;

use crate::support::broker::Broker;
use crate::support::client::follow;
use crate::support::http::{assert_problem, get, get_json, http, post, refused};
use crate::support::http_server::{Exchange, Server};
use crate::support::process::{Process, Ran, run};
use crate::support::roles::refusals;
use crate::support::sse::Sse;
use crate::support::system::{Edge, SECRET};
use crate::support::tokens::{SIGNING, bearer, issue_ticket, token};
use crate::support::workers::PythonWorker;
use crate::support::{PATIENCE, table, until, within};

/// A broker as `tailwater accounts` configures it, with workers of the kinds `demo`, `other` and
/// `callback`.
struct Accounts {
    broker: Broker,
    dir: TempDir,
}

impl Accounts {
    async fn start() -> Self {
        let dir = TempDir::new().unwrap();
        let path = dir.path().display().to_string();
        let line = format!("accounts --dir {path} --kind demo --kind other --kind callback");
        run(line.split(' ')).await.prints();
        let broker = Broker::with_config(&config(&dir));
        Self { broker, dir }
    }

    /// With the streams, which `setup` creates with these further flags.
    async fn set_up(flags: &str) -> Self {
        let accounts = Self::start().await;
        let setup = format!("setup --max-bytes 1048576 {flags}");
        accounts.run("setup", &setup).await.prints();
        accounts
    }

    fn key(&self, role: &str) -> PathBuf {
        self.dir.path().join(role).join("nats.nk")
    }

    /// A command line with the access of a role.
    fn command(&self, role: &str, line: &str) -> Vec<String> {
        let key = self.key(role).display().to_string();
        let url = self.broker.url();
        // The backend of a worker comes last.
        let backend = line.strip_suffix(" demo").map(str::len);
        let backend = backend.or_else(|| line.find(" webhook "));
        let backend = backend.filter(|_| line.starts_with("worker"));
        let (line, backend) = line.split_at(backend.unwrap_or(line.len()));
        let words = line.split_whitespace();
        let access = ["--nats", &url, "--nats-nkey", &key];
        words
            .chain(access)
            .chain(backend.split_whitespace())
            .map(str::to_owned)
            .collect()
    }

    /// A process with the key of a role, that runs once it has said `ready`; the rest of this line.
    async fn running(&self, role: &str, line: &str) -> (Process, String) {
        let mut process = Process::start(self.command(role, line));
        let address = process.says("ready").await;
        (process, address)
    }

    /// An edge, and its address.
    async fn edge(&self) -> (Process, String) {
        let line = "edge --recorder --listen 127.0.0.1:0";
        let (process, url) = self.running("edge", line).await;
        (process, url.strip_prefix("http://").unwrap().to_owned())
    }

    async fn run(&self, role: &str, line: &str) -> Ran {
        run(self.command(role, line)).await
    }

    fn refusals(&self) -> Vec<String> {
        refusals(&self.broker.logs(), None)
    }
}

fn config(dir: &TempDir) -> String {
    fs::read_to_string(dir.path().join("nats/accounts.conf")).unwrap()
}

#[tokio::test]
async fn every_role_does_its_work_with_a_key_of_its_own() {
    let accounts = Accounts::set_up("--kind other").await;
    let ran = accounts.run("observer", "doctor").await;
    assert_eq!(ran.code, 0, "{ran:?}");
    accounts.run("observer", "kinds").await.prints();
    // A new kind is declared by its first worker.
    for kind in ["worker", "worker-demo"] {
        let mut worker = Process::start(accounts.command(kind, "worker --kind demo demo"));
        let (mut edge, addr) = accounts.edge().await;
        assert!(get(&addr, "/readyz", "").await.0.contains(" 200 "));
        let plain = (format!("by-{kind}"), format!("waits-{kind}"));
        let qualified = (format!("demo:by-{kind}"), format!("other:waits-{kind}"));
        for (job, waits) in [plain, qualified] {
            let submit =
                format!(r#"submit --kind demo --input {{"words":3,"rate":0}} --id {job} --watch"#);
            // The worker declares its kind first.
            until("a job", async || {
                accounts.run("recorder", &submit).await.code == 0
            })
            .await;
            follow(&addr, &job).await.assert_whole();
            let listed = format!("\"{job}\"");
            assert!(get(&addr, "/api/jobs", "").await.1.contains(&listed));
            // Nobody runs this kind, so that it can be cancelled.
            let submit = format!("submit --kind other --input 1 --id {waits}");
            accounts.run("recorder", &submit).await.prints();
            for (role, line, code) in [
                ("observer", format!("tail {job}"), 0),
                ("observer", format!("state {waits}"), 0),
                ("observer", "jobs".to_owned(), 0),
                ("recorder", format!("cancel {waits}"), 0),
                ("recorder", format!("purge {waits}"), 0),
            ] {
                let ran = accounts.run(role, &line).await;
                assert_eq!(ran.code, code, "{line}: {ran:?}");
            }
        }
        for process in [&mut worker, &mut edge] {
            process.signal(Signal::TERM);
            process.ends_within(PATIENCE).await;
        }
    }
    assert!(accounts.refusals().is_empty(), "{:#?}", accounts.refusals());
    let url = accounts.broker.url();
    run(["jobs", "--nats", &url])
        .await
        .refuses("wrong or missing credentials");
}

/// A submission of a job that waits, since its kind has no workers.
async fn submit_to(edge: &Edge, id: &str) -> (u16, Value) {
    post(edge, &json!({"kind": "other", "id": id, "input": 1})).await
}

#[tokio::test]
async fn an_edge_submits_cancels_and_purges_jobs_through_any_recorder() {
    let accounts = Accounts::set_up("--kind other").await;
    let (_process, addr) = accounts.edge().await;
    let edge = Edge::at(&addr);
    // Without a recorder, jobs are watched and listed, but not submitted.
    let (status, problem) = submit_to(&edge, "other:none").await;
    assert_problem(status, &problem, 503, "unavailable");
    assert_eq!(get_json(&edge, "/api/jobs").await["jobs"], json!([]));
    let (mut first, _) = accounts.running("recorder", "recorder").await;
    for id in ["plain", "other:qualified"] {
        assert_eq!(submit_to(&edge, id).await.0, 202);
        assert_eq!(submit_to(&edge, id).await.0, 200, "the same job");
        let other = json!({"kind": "other", "id": id, "input": 2});
        let (status, problem) = post(&edge, &other).await;
        assert_problem(status, &problem, 409, "job_exists");
        let path = format!("/api/jobs/{id}");
        let delete = format!("DELETE {path}");
        refused(&edge, &delete, "", 409, "job_not_ended").await;
        let cancel = format!("POST {path}/cancel");
        let status = http(&edge, "POST", &format!("{path}/cancel"), "", b"")
            .await
            .0;
        assert_eq!(status, 202);
        refused(&edge, &cancel, "", 409, "job_ended").await;
        assert_eq!(http(&edge, "DELETE", &path, "", b"").await.0, 204);
        refused(&edge, &delete, "", 404, "job_not_found").await;
        refused(&edge, &cancel, "", 404, "job_not_found").await;
    }
    // Recorders share the requests; one that is stopped answers what it has received.
    let (mut second, _) = accounts.running("recorder", "recorder").await;
    let submits = (0..50).map(|number| {
        let edge = Edge::at(&addr);
        async move { submit_to(&edge, &format!("other:{number}")).await.0 }
    });
    let stopped = async {
        first.signal(Signal::TERM);
        assert!(first.ends_within(PATIENCE).await.success());
    };
    let submits = within("the submissions", join_all(submits));
    let (statuses, ()) = tokio::join!(submits, stopped);
    assert_eq!(statuses, [202; 50]);
    // The next one starts while a request waits.
    second.kill().await;
    let (status, (third, _)) = tokio::join!(
        submit_to(&edge, "other:last"),
        accounts.running("recorder", "recorder")
    );
    assert_eq!(status.0, 202);
    drop(third);
    assert!(accounts.refusals().is_empty(), "{:#?}", accounts.refusals());
}

/// A recorder answers with its own permissions, and the sender of a request chooses the reply subject.
#[tokio::test]
async fn a_request_makes_a_recorder_write_nothing_but_submissions_cancellations_and_purges() {
    let accounts = Accounts::set_up("--shards 1 --kind other").await;
    let (_recorder, _) = accounts.running("recorder", "recorder").await;
    let edge = RawUser::connect(&accounts, "edge").await;
    let asks = async |what: &str, payload: Value| {
        let asks = Request::new()
            .inbox("tw.recorded.test".to_owned())
            .payload(payload.to_string().into());
        let subject = format!("tw.record.{what}");
        let answer = within("an answer", edge.client.send_request(subject, asks)).await;
        serde_json::from_slice::<Value>(&answer.unwrap().payload).unwrap()
    };
    let job = json!({"job": "other:job", "kind": "other", "input": 1});
    assert_eq!(asks("submit", job.clone()).await, json!({"outcome": "new"}));
    for reply in [
        "tw.chunks.0.other.job",
        "tw.recorded.x.y",
        "tw.live.0.other.job",
        "tw.jobs.other.x",
        "_INBOX.tw.edge.x",
    ] {
        let sent =
            edge.client
                .publish_with_reply("tw.record.cancel", reply, job.to_string().into());
        sent.await.unwrap();
    }
    for (what, payload) in [
        ("submit", json!({})),
        ("submit", json!({"job": "a.b", "kind": "other", "input": 1})),
        ("cancel", json!({"job": "*"})),
        ("purge", json!("other:job")),
    ] {
        let answer = asks(what, payload).await;
        assert!(answer["unavailable"].is_string(), "{what}: {answer}");
    }
    let of_another = json!({"job": "demo:job", "kind": "other", "input": 1});
    let answer = asks("submit", of_another).await;
    assert_eq!(answer, json!({"outcome": "other_kind"}));
    // None of these requests was a cancellation, and none of the answers is in the log.
    let exported = accounts.run("observer", "export other:job").await.prints();
    assert_eq!(exported.lines().count(), 1, "{exported}");
    let purge = asks("purge", json!({"job": "other:job"})).await;
    assert_eq!(purge, json!({"outcome": "not_ended"}));
}

/// Reads the log, asks for another attempt, and can be cancelled.
const WORK: &str = r#"
    if job.attempt == 1:
        yield "one "
        raise Retry(after=0)
    yield f"{job.previous_output}two"
    if job.input == "hang":
        await asyncio.sleep(600)
"#;

#[tokio::test]
async fn a_python_worker_does_its_work_with_the_key_of_its_role() {
    let accounts = Accounts::set_up("").await;
    let url = accounts.broker.url();
    for role in ["worker", "worker-demo"] {
        let key = accounts.key(role).display().to_string();
        let env = [("TAILWATER_NATS", &*url), ("TAILWATER_NATS_NKEY", &*key)];
        let settings = "concurrency=2, continues=True";
        let mut worker = PythonWorker::start_as(&env, WORK, settings).await;
        for of in ["", "demo:"] {
            let submit = format!("submit --kind demo --input 1 --id {of}by-{role} --watch");
            let printed = accounts.run("recorder", &submit).await.prints();
            assert_eq!(printed, "one one two", "{of}{role}");
            let hangs = format!("{of}hangs-{role}");
            let submit = format!(r#"submit --kind demo --input "hang" --id {hangs}"#);
            accounts.run("recorder", &submit).await.prints();
            until("output of the second attempt", async || {
                let state = format!("state {hangs}");
                accounts
                    .run("observer", &state)
                    .await
                    .out
                    .contains("one two")
            })
            .await;
            accounts
                .run("recorder", &format!("cancel {hangs}"))
                .await
                .prints();
            let ended = accounts.run("observer", &format!("tail {hangs}")).await;
            assert_eq!(ended.code, 3, "{ended:?}");
        }
        worker.process.signal(Signal::TERM);
        assert!(worker.process.ends_within(PATIENCE).await.success());
    }
    assert!(accounts.refusals().is_empty(), "{:#?}", accounts.refusals());
}

/// The worker that ran a job submits its callback, and writes the first event of this callback.
#[tokio::test]
async fn a_worker_calls_back_with_the_key_of_its_role() {
    let accounts = Accounts::set_up("").await;
    let server = Server::start(async |mut exchange: Exchange| {
        exchange.answer("200 OK", "", "").await;
    })
    .await;
    let addr = &server.addr;
    let line = format!("worker --kind callback webhook --callback-hosts {addr}");
    let line = accounts.command("worker-callback", &line);
    let secret = [("TAILWATER_WEBHOOK_SECRET", SECRET)];
    let _callbacks = Process::start_with(line, &secret, Stdio::inherit());
    let url = accounts.broker.url();
    let key = accounts.key("worker-demo").display().to_string();
    let env = [("TAILWATER_NATS", &*url), ("TAILWATER_NATS_NKEY", &*key)];
    for language in ["rust", "python"] {
        let callback = format!("callback:plain-{language}");
        let line = accounts.command("worker-demo", "worker --kind demo demo");
        let _rust = (language == "rust").then(|| Process::start(line));
        let _python = match language {
            "python" => Some(PythonWorker::start_as(&env, "    yield \"one\"", "").await),
            _ => None,
        };
        for of in ["", "demo:"] {
            let path = format!("/{}{language}", of.trim_end_matches(':'));
            let input = r#"{"words":3,"rate":0}"#;
            let submit = format!(
                "submit --kind demo --input {input} --id {of}plain-{language} --callback http://{addr}{path} --wait"
            );
            // The workers declare their kinds first.
            until("a job", async || {
                accounts.run("recorder", &submit).await.code == 0
            })
            .await;
            until("the callback", async || !server.at(&path).is_empty()).await;
            let body = server.at(&path)[0].json();
            assert_eq!(body["data"]["id"], format!("{of}plain-{language}"));
        }
        until("the end of the callback", async || {
            let state = accounts.run("observer", &format!("state {callback}")).await;
            state.out.contains("done")
        })
        .await;
        let purge = format!("purge {callback} demo:plain-{language}");
        accounts.run("recorder", &purge).await.prints();
    }
    assert!(accounts.refusals().is_empty(), "{:#?}", accounts.refusals());
}

#[tokio::test]
async fn a_worker_of_another_kind_cannot_forge_events_of_a_qualified_id() {
    let accounts = Accounts::set_up("--shards 1 --kind demo").await;
    let submit = "submit --kind demo --input 1 --id demo:job";
    accounts.run("recorder", submit).await.prints();
    let mut other = RawUser::connect(&accounts, "worker-other").await;
    assert!(other.is_refused("pub", "tw.chunks.0.demo.job").await);
    // The broker takes this for the log of a plain id, and stores it.
    let forged =
        json!({"type": "job:cancelled:v1", "job": "demo:job", "seq": 2, "attempt": 0, "ts": 1});
    let stored = other
        .client
        .request("tw.chunks.0.demo:job", forged.to_string().into());
    let ack = within("an ack", stored).await.unwrap();
    let ack = String::from_utf8_lossy(&ack.payload).into_owned();
    assert!(ack.contains("\"seq\":"), "{ack}");
    for line in ["state demo:job", "jobs"] {
        let shown = accounts.run("observer", line).await.prints();
        let is_queued = shown.contains("queued") && !shown.contains("cancelled");
        assert!(is_queued, "{line}: {shown}");
    }
}

/// A worker answers a question with its own permissions, and the sender of the question chooses
/// the reply subject.
#[tokio::test]
async fn a_question_of_another_kind_makes_a_worker_store_nothing() {
    let accounts = Accounts::set_up("--shards 1").await;
    let _worker = Process::start(accounts.command("worker-demo", "worker --kind demo demo"));
    let submit = r#"submit --kind demo --input {"words":10000,"rate":20} --id demo:job"#;
    // The worker declares its kind first.
    until("a job", async || {
        accounts.run("recorder", submit).await.code == 0
    })
    .await;
    let other = RawUser::connect(&accounts, "worker-other").await;
    let control = "tw.control.demo:job";
    let is_answered = async || {
        let asks = Request::new().inbox("tw.alive.demo:job".to_owned());
        other.client.send_request(control, asks).await.is_ok()
    };
    until("an answer", async || is_answered().await).await;
    for _ in 0..3 {
        let log = "tw.chunks.0.demo.job";
        let asks = other.client.publish_with_reply(control, log, "".into());
        asks.await.unwrap();
        // The worker receives this question after the other one.
        assert!(is_answered().await);
    }
    accounts.run("recorder", "cancel demo:job").await.prints();
    let ended = accounts.run("observer", "tail demo:job").await;
    assert_eq!(ended.code, 3, "{ended:?}");
    let exported = accounts.run("observer", "export demo:job").await.prints();
    let edge = RawUser::connect(&accounts, "edge").await;
    let info = edge.client.request(
        "$JS.API.STREAM.INFO.TW_CHUNKS_0",
        r#"{"subjects_filter":">"}"#.into(),
    );
    let info = within("the state of the shard", info).await.unwrap();
    let info: Value = serde_json::from_slice(&info.payload).unwrap();
    let events = exported.lines().count();
    assert_eq!(
        info["state"]["subjects"],
        json!({"tw.chunks.0.demo.job": events})
    );
}

#[tokio::test]
async fn an_edge_checks_tokens_with_the_key_of_its_role() {
    let mut accounts = Accounts::start().await;
    let setup = "setup --max-bytes 1048576 --kind demo";
    accounts.run("setup", setup).await.prints();
    let submit = "submit --kind demo --input 1 --id job";
    accounts.run("recorder", submit).await.prints();
    let secret = accounts.dir.path().join("secret");
    fs::write(&secret, SIGNING).unwrap();
    let secret = secret.display();
    let line = format!("edge --listen 127.0.0.1:0 --auth jwt --auth-secret {secret}");
    let mut edge = Process::start(accounts.command("edge", &line));
    let addr = edge.says("ready http://").await;
    let own = token("a", &json!({"watch": ["*"]}), 600);
    let ticket = issue_ticket(&addr, &own, "job").await;
    let stream = format!("/api/jobs/job/events?ticket={ticket}");
    for expected in [200, 401] {
        assert_eq!(Sse::open(&addr, &stream, "").await.status, expected);
    }
    let header = bearer(&own);
    let answers = async |status: &str| {
        get(&addr, "/api/jobs/job", &header)
            .await
            .0
            .contains(status)
    };
    assert!(answers(" 200 ").await);
    let revoke = async |accounts: &Accounts, flags: &str| {
        let line = format!("revoke --sub a {flags}");
        // The broker may have just started.
        until("a revocation", async || {
            accounts.run("setup", &line).await.code == 0
        })
        .await;
    };
    revoke(&accounts, "").await;
    until("a revoked token", async || answers(" 401 ").await).await;
    assert!(accounts.refusals().is_empty(), "{:#?}", accounts.refusals());
    // The edge watches with a consumer of another name once its connection was lost.
    accounts.broker.restart(0);
    revoke(&accounts, "--undo").await;
    until("a valid token", async || answers(" 200 ").await).await;
    assert!(accounts.refusals().is_empty(), "{:#?}", accounts.refusals());
}

#[tokio::test]
async fn the_key_of_an_edge_cannot_empty_the_bucket_of_revocations() {
    let accounts = Accounts::set_up("--shards 1").await;
    accounts.run("setup", "revoke --sub a").await.prints();
    let mut edge = RawUser::connect(&accounts, "edge").await;
    let revocation = "$KV.TW_AUTH.revoked.sub.YQ";
    for subject in [revocation, "$KV.TW_AUTH.ticket.YQ", "$KV.TW_AUTH.YQ"] {
        assert!(edge.is_refused_a_rollup(subject).await, "{subject}");
    }
    // Neither the bucket of tickets nor a log accepts it, so that no message with this header is stored that the broker
    // could be made to send to another stream.
    let recorder = RawUser::connect(&accounts, "recorder").await;
    for (user, subject) in [(&edge, "$KV.TW_TICKETS.YQ"), (&recorder, "tw.chunks.0.job")] {
        let asked = user
            .client
            .request_with_headers(subject, rollup(), "".into());
        let refused = within("a refusal", asked).await.unwrap();
        let refused = String::from_utf8_lossy(&refused.payload).into_owned();
        assert!(refused.contains("rollup not permitted"), "{refused}");
    }
    let info = edge.client.request(
        "$JS.API.STREAM.INFO.KV_TW_AUTH",
        r#"{"subjects_filter":">"}"#.into(),
    );
    let info = within("the state of the bucket", info).await.unwrap();
    let info: Value = serde_json::from_slice(&info.payload).unwrap();
    assert_eq!(info["state"]["subjects"], json!({revocation: 1}));
}

#[tokio::test]
async fn accounts_keeps_keys_and_adds_kinds() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().display().to_string();
    let first = run(["accounts", "--dir", &path]).await.prints();
    assert_eq!(first.lines().count(), 5, "{first}");
    let edge = dir.path().join("edge/nats.nk");
    let seed = fs::read_to_string(&edge).unwrap();
    assert_eq!(fs::metadata(&edge).unwrap().mode() & 0o777, 0o600);
    let before = config(&dir);
    assert!(
        !before.contains(seed.trim()),
        "the server has public keys only"
    );
    let second = run(["accounts", "--dir", &path, "--kind", "chat"])
        .await
        .prints();
    assert!(second.contains("worker-chat "), "{second}");
    assert_eq!(fs::read_to_string(&edge).unwrap(), seed);
    assert!(config(&dir).contains("# worker-chat"));
    fs::write(&edge, "no seed").unwrap();
    run(["accounts", "--dir", &path])
        .await
        .refuses("is not the seed of an nkey");
}

/// A client of a role, beside this library, and what it was refused.
struct RawUser {
    client: Client,
    errors: mpsc::Receiver<String>,
}

impl RawUser {
    async fn connect(accounts: &Accounts, role: &str) -> Self {
        let (sender, errors) = mpsc::channel(64);
        let seed = fs::read_to_string(accounts.key(role)).unwrap();
        let inbox = match role.strip_prefix("worker-") {
            Some(kind) => format!("_INBOX.tw.worker.{kind}"),
            None => format!("_INBOX.tw.{role}"),
        };
        let options = ConnectOptions::with_nkey(seed.trim().to_owned())
            .custom_inbox_prefix(inbox)
            .event_callback(move |event| {
                let sender = sender.clone();
                async move {
                    if let Event::ServerError(error) = event {
                        let _ = sender.send(error.to_string().to_lowercase()).await;
                    }
                }
            });
        let client = options.connect(accounts.broker.url()).await.unwrap();
        Self { client, errors }
    }

    /// Whether the broker refuses this.
    async fn is_refused(&mut self, verb: &str, subject: &str) -> bool {
        match verb {
            "pub" => self
                .client
                .publish(subject.to_owned(), "".into())
                .await
                .unwrap(),
            "sub" => drop(self.client.subscribe(subject.to_owned()).await.unwrap()),
            other => panic!("{other}"),
        }
        self.was_refused(subject).await
    }

    /// Whether the broker refuses a request to roll up a whole stream.
    async fn is_refused_a_rollup(&mut self, subject: &str) -> bool {
        let published = self
            .client
            .publish_with_headers(subject.to_owned(), rollup(), "".into());
        published.await.unwrap();
        self.was_refused(subject).await
    }

    /// Whether the broker refused what was just sent. After it comes something that every role is refused: the broker
    /// reports in order.
    async fn was_refused(&mut self, subject: &str) -> bool {
        let last = "nobody.may.publish.here";
        self.client.publish(last, "".into()).await.unwrap();
        let mut refused = false;
        loop {
            let error = within("a refusal", self.errors.recv()).await.unwrap();
            assert!(error.contains("permissions violation"), "{error}");
            if error.contains(last) {
                return refused;
            }
            assert!(
                error.contains(&subject.to_lowercase()),
                "{subject}: {error}"
            );
            refused = true;
        }
    }
}

/// Removes every other message of a stream that allows it.
fn rollup() -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Rollup", "all");
    headers
}

/// What each role tries. Those in `ALLOWED` show that a refusal is seen only where there is one.
const ATTEMPTS: &str = "
    edge        pub  tw.chunks.0.job
    edge        pub  tw.chunks.0.demo.job
    edge        pub  tw.segments.0.job.0
    edge        pub  tw.jobs.demo.job
    edge        pub  tw.jobs.demo.demo:job
    edge        pub  tw.control.job
    edge        pub  tw.purged.job
    edge        pub  tw.recorded.x
    edge        pub  $JS.API.STREAM.PURGE.TW_JOBS
    edge        pub  $JS.API.STREAM.PURGE.TW_CHUNKS_0
    edge        pub  $JS.API.STREAM.PURGE.TW_SEGMENTS_0
    edge        sub  tw.record.*
    edge        sub  tw.alive.*
    edge        pub  tw.live.0.job
    edge        pub  tw.live.0.demo.job
    edge        pub  tw.segments.0.demo.job.0
    edge        pub  $JS.API.STREAM.DELETE.TW_JOBS
    edge        pub  $JS.API.STREAM.DELETE.TW_CHUNKS_0
    edge        pub  $JS.API.STREAM.UPDATE.TW_CHUNKS_0
    edge        pub  $JS.API.STREAM.CREATE.OTHER
    edge        pub  $JS.API.STREAM.SNAPSHOT.TW_CHUNKS_0
    edge        pub  $JS.API.STREAM.MSG.DELETE.TW_CHUNKS_0
    edge        pub  $JS.API.STREAM.INFO.OTHER
    edge        pub  $JS.API.CONSUMER.CREATE.TW_JOBS.demo.tw.jobs.demo.*
    edge        pub  $JS.API.CONSUMER.DELETE.TW_JOBS.demo
    edge        pub  $JS.API.CONSUMER.MSG.NEXT.TW_JOBS.demo
    edge        pub  $JS.ACK.TW_JOBS.demo.1.1.1.1.1
    edge        pub  $SYS.REQ.SERVER.PING
    edge        pub  $KV.TW_AUTH.revoked.sub.YQ
    edge        pub  $KV.TW_AUTH.ticket.YQ
    edge        pub  $JS.API.STREAM.PURGE.KV_TW_AUTH
    edge        pub  $JS.API.STREAM.PURGE.KV_TW_TICKETS
    edge        pub  $JS.API.STREAM.UPDATE.KV_TW_TICKETS
    edge        pub  $JS.API.DIRECT.GET.KV_TW_TICKETS
    edge        pub  $JS.API.CONSUMER.CREATE.KV_TW_TICKETS
    edge        sub  _INBOX.tw.worker.>
    edge        sub  _INBOX.>
    edge        sub  tw.control.*
    edge        pub  tw.alive.job
    edge        sub  $JS.API.>
    edge        sub  >
    recorder    pub  tw.live.0.job
    recorder    pub  tw.live.0.demo.job
    recorder    pub  tw.segments.0.demo.job.0
    recorder    pub  tw.alive.job
    recorder    pub  _INBOX.tw.edge.x
    recorder    pub  $KV.TW_AUTH.revoked.x
    recorder    pub  $KV.TW_TICKETS.x
    recorder    pub  $JS.API.STREAM.DELETE.TW_CHUNKS_0
    recorder    pub  $JS.API.STREAM.UPDATE.TW_CHUNKS_0
    recorder    pub  $JS.API.CONSUMER.CREATE.TW_JOBS.demo.tw.jobs.demo.*
    recorder    pub  $JS.API.CONSUMER.MSG.NEXT.TW_JOBS.demo
    recorder    pub  $JS.ACK.TW_JOBS.demo.1.1.1.1.1
    recorder    sub  _INBOX.tw.edge.>
    recorder    sub  tw.control.*
    recorder    sub  >
    worker-demo pub  tw.record.submit
    worker-demo pub  tw.recorded.x
    worker-demo sub  tw.record.*
    worker-demo sub  tw.recorded.*
    observer    pub  tw.record.purge
    observer    sub  tw.recorded.*
    setup       pub  tw.record.cancel
    worker-demo pub  tw.live.0.job
    worker-demo pub  tw.live.0.demo.job
    worker-demo pub  tw.chunks.0.other.job
    worker-demo pub  tw.chunks.0.other.demo.job
    worker-demo pub  tw.chunks.0.demo.job.0
    worker-demo pub  tw.segments.0.other.job.0
    worker-demo pub  tw.segments.0.callback.job.0
    worker-demo sub  tw.live.0.demo.job
    worker-other pub tw.chunks.0.demo.job
    worker-other pub tw.segments.0.demo.job.0
    worker-other pub tw.live.0.demo.job
    worker-other pub tw.jobs.demo.demo:job
    worker-demo pub  tw.jobs.demo.job
    worker-demo pub  tw.jobs.other.job
    worker-demo pub  $JS.API.CONSUMER.MSG.NEXT.TW_JOBS.other
    worker-demo pub  $JS.API.CONSUMER.INFO.TW_JOBS.other
    worker-demo pub  $JS.API.CONSUMER.CREATE.TW_JOBS.other.tw.jobs.other.*
    worker-demo pub  $JS.API.CONSUMER.CREATE.TW_JOBS.demo.tw.jobs.other.*
    worker-demo pub  $JS.API.CONSUMER.CREATE.TW_JOBS.demo
    worker-demo pub  $JS.API.CONSUMER.CREATE.TW_JOBS
    worker-demo pub  $JS.API.CONSUMER.DURABLE.CREATE.TW_JOBS.demo
    worker-demo pub  $JS.API.CONSUMER.DELETE.TW_JOBS.demo
    worker-demo pub  $JS.ACK.TW_JOBS.other.1.1.1.1.1
    worker-demo pub  $JS.API.STREAM.DELETE.TW_JOBS
    worker-demo pub  $JS.API.STREAM.UPDATE.TW_JOBS
    worker-demo pub  $JS.API.STREAM.PURGE.TW_CHUNKS_0
    worker-demo pub  tw.purged.job
    worker-demo pub  $KV.TW_AUTH.revoked.sub.YQ
    worker-demo pub  $KV.TW_TICKETS.YQ
    worker-demo sub  _INBOX.tw.edge.>
    worker-demo sub  _INBOX.tw.worker.other.>
    worker-demo sub  tw.jobs.*.*
    worker-demo sub  tw.live.*.*
    worker-demo sub  >
    worker      pub  tw.live.0.job
    worker      pub  tw.jobs.demo.job
    worker      pub  $JS.API.STREAM.DELETE.TW_JOBS
    worker      sub  _INBOX.tw.edge.>
    worker-demo pub  _INBOX.tw.edge.x
    worker-demo pub  _INBOX.tw.worker.other.x
    observer    pub  tw.live.0.job
    observer    pub  tw.jobs.demo.job
    observer    pub  tw.chunks.0.job
    observer    pub  tw.chunks.0.demo.job
    observer    pub  tw.segments.0.demo.job.0
    observer    pub  tw.control.job
    observer    pub  tw.alive.job
    observer    pub  $JS.API.STREAM.DELETE.TW_JOBS
    observer    pub  $JS.API.STREAM.PURGE.TW_CHUNKS_0
    observer    pub  tw.purged.job
    observer    pub  $KV.TW_AUTH.revoked.sub.YQ
    observer    pub  $KV.TW_TICKETS.YQ
    observer    pub  $JS.API.CONSUMER.MSG.NEXT.TW_JOBS.demo
    observer    sub  _INBOX.tw.worker.>
    setup       pub  tw.live.0.job
    setup       pub  tw.jobs.demo.job
    setup       pub  tw.chunks.0.job
    setup       pub  tw.chunks.0.demo.job
    setup       pub  $JS.API.STREAM.DELETE.TW_JOBS
    setup       pub  $JS.API.STREAM.PURGE.TW_CHUNKS_0
    setup       pub  $JS.API.STREAM.CREATE.OTHER
    setup       pub  $JS.API.DIRECT.GET.TW_CHUNKS_0
    setup       pub  $KV.TW_TICKETS.YQ
    setup       sub  tw.live.*.*
";

const ALLOWED: &str = "
    edge        pub  tw.ready
    edge        pub  tw.record.submit
    edge        pub  $JS.API.STREAM.INFO.TW_JOBS
    edge        pub  $JS.API.DIRECT.GET.TW_CHUNKS_3
    edge        sub  tw.recorded.x
    edge        sub  tw.live.3.job
    edge        sub  tw.live.3.demo.job
    edge        sub  _INBOX.tw.edge.x.y
    recorder    pub  tw.jobs.demo.job
    recorder    pub  $JS.API.STREAM.PURGE.TW_CHUNKS_3
    recorder    pub  tw.purged.job
    recorder    pub  tw.chunks.3.job
    recorder    pub  tw.chunks.3.demo.job
    recorder    pub  tw.control.job
    recorder    pub  tw.recorded.x
    recorder    sub  tw.alive.job
    recorder    sub  tw.record.submit
    recorder    sub  _INBOX.tw.recorder.x
    edge        pub  $KV.TW_TICKETS.YQ
    edge        pub  $JS.API.STREAM.MSG.GET.KV_TW_TICKETS
    worker-demo pub  tw.jobs.callback.job
    worker-demo pub  tw.jobs.callback.callback:job
    worker-demo pub  tw.chunks.3.job
    worker-demo pub  tw.chunks.3.demo.job
    worker-demo pub  tw.chunks.3.callback.job
    worker-demo pub  tw.segments.3.job.0
    worker-demo pub  tw.segments.3.demo.job.0
    worker      pub  tw.chunks.3.other.job
    worker      pub  tw.segments.3.other.job.0
    worker-demo pub  tw.control.job
    worker-demo pub  $JS.API.CONSUMER.MSG.NEXT.TW_JOBS.demo
    worker-demo pub  $JS.ACK.TW_JOBS.demo.1.1.1.1.1
    worker-demo sub  tw.control.job
    worker-demo pub  tw.alive.job
    worker-demo sub  tw.alive.job
    worker      pub  $JS.API.CONSUMER.MSG.NEXT.TW_JOBS.other
    worker      sub  _INBOX.tw.worker.demo.x
    observer    pub  $JS.API.STREAM.MSG.GET.TW_CHUNKS_0
    observer    pub  $JS.API.INFO
    observer    sub  tw.live.3.job
    observer    sub  tw.live.3.demo.job
    setup       pub  $JS.API.STREAM.INFO.TW_CHUNKS_3
    setup       pub  $KV.TW_AUTH.revoked.sub.YQ
";

#[tokio::test]
async fn the_broker_refuses_a_role_what_it_does_not_need() {
    let accounts = Accounts::start().await;
    for (attempts, refused) in [(ATTEMPTS, true), (ALLOWED, false)] {
        for [role, verb, subject] in table(attempts) {
            let mut user = RawUser::connect(&accounts, role).await;
            let found = user.is_refused(verb, subject).await;
            assert_eq!(found, refused, "{role} {verb} {subject}");
        }
    }
    // What is allowed arrives: the broker does not merely report no refusal.
    let mut receives = RawUser::connect(&accounts, "edge").await;
    let mut received = receives.client.subscribe("tw.purged.*").await.unwrap();
    assert!(!receives.is_refused("pub", "tw.ready").await);
    let mut sends = RawUser::connect(&accounts, "recorder").await;
    assert!(!sends.is_refused("pub", "tw.purged.job").await);
    let message = within("an allowed message", received.next()).await.unwrap();
    assert_eq!(message.subject.as_str(), "tw.purged.job");
}

#[tokio::test]
async fn a_message_to_itself_lets_a_worker_publish_nothing_more() {
    let accounts = Accounts::start().await;
    let mut user = RawUser::connect(&accounts, "worker-demo").await;
    for subject in [
        "tw.live.0.job",
        "tw.jobs.other.job",
        "$JS.API.STREAM.DELETE.TW_JOBS",
        "$KV.TW_AUTH.revoked.jti",
    ] {
        let mut received = user.client.subscribe("tw.control.job").await.unwrap();
        let asks = user
            .client
            .publish_with_reply("tw.control.job", subject, "".into());
        asks.await.unwrap();
        let message = within("its own message", received.next()).await.unwrap();
        assert_eq!(message.reply.unwrap().as_str(), subject);
        assert!(user.is_refused("pub", subject).await, "{subject}");
    }
}
