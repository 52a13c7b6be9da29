use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Stdio;

use serde_json::{Value, json};
use tailwater::process_group::Signal;
use tempfile::TempDir;
use tokio::process::Command;

use crate::support::broker::Broker;
use crate::support::http::{exchange, get};
use crate::support::http_server::{Exchange, Request, Server};
use crate::support::process::{Process, run_with};
use crate::support::sse::Sse;
use crate::support::tokens::{Sends, TokenClient, TokenSocket, issue_ticket};
use crate::support::{PATIENCE, until, within};

/// What nothing may print: keys, passwords, what jobs get, and what they produce.
const SECRETS: [&str; 13] = [
    "nats-p4ssword",
    "openai-k3y",
    "bWFkZS11cC1ieXRlcy1mb3ItdGhlLWhvb2stc2VjcmV0",
    "callback-t0ken",
    "1nput-text",
    "chunk-t3xt",
    "stderr-h1nt",
    "other-v4riable",
    "st4tic-token-of-a-client",
    "signing-s3cret-of-thirty-two-bytes",
    "endpoint-k3y-in-a-header",
    "endpoint-k3y-in-an-url",
    "bWFkZS11cC1ieXRlcy1mb3ItdGhlLWVuZHBvaW50LXNlY3JldA==",
];
/// Those that only the owners of a job may see.
const OF_JOBS: [&str; 2] = ["1nput-text", "chunk-t3xt"];

/// The environment of every process of this test.
fn environment(url: &str, endpoint: &str) -> Vec<(&'static str, String)> {
    let endpoint = format!("http://{endpoint}/run?key={}", SECRETS[11]);
    vec![
        ("TAILWATER_NATS", url.to_owned()),
        ("TAILWATER_URL", endpoint),
        ("TAILWATER_HEADER", format!("X-Api-Key: {}", SECRETS[10])),
        ("TAILWATER_SIGNING_SECRET", format!("whsec_{}", SECRETS[12])),
        ("OPENAI_API_KEY", "openai-k3y".to_owned()),
        ("TAILWATER_WEBHOOK_SECRET", format!("whsec_{}", SECRETS[2])),
        ("OTHER", "other-v4riable".to_owned()),
        ("TAILWATER_LOG", "trace".to_owned()),
    ]
}

/// Processes that log everything, each to a file of its own.
struct Talkative {
    dir: TempDir,
    env: Vec<(&'static str, String)>,
    processes: Vec<Process>,
}

impl Talkative {
    fn start(&mut self, line: &str) -> &mut Process {
        let log = self
            .dir
            .path()
            .join(format!("{}.log", self.processes.len()));
        let env: Vec<_> = self
            .env
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        let args = line.split(' ').map(|word| word.replace('\u{a0}', " "));
        let log = Stdio::from(File::create(log).unwrap());
        self.processes.push(Process::start_with(args, &env, log));
        self.processes.last_mut().unwrap()
    }

    /// A file of the processes.
    fn file(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    /// What `ps` shows of the processes.
    fn command_lines(&self) -> Vec<String> {
        let of_process = |process: &Process| {
            let line = fs::read(format!("/proc/{}/cmdline", process.program())).unwrap();
            String::from_utf8_lossy(&line).into_owned()
        };
        self.processes.iter().map(of_process).collect()
    }

    fn logs(&self) -> Vec<PathBuf> {
        let logs = 0..self.processes.len();
        logs.map(|number| self.dir.path().join(format!("{number}.log")))
            .collect()
    }
}

fn assert_silent(what: &str, text: &str, secrets: &[&str]) {
    for secret in secrets {
        if let Some(at) = text.find(secret) {
            let start = text[..at].rfind('\n').map_or(0, |at| at + 1);
            panic!("{what} shows {secret}: {}", &text[start..at + secret.len()]);
        }
    }
}

/// Runs a command that cannot print, so that it panics with everything in memory that it would have printed. Returns what
/// its crash shows.
async fn crashed(line: &str, env: &[(&str, &str)]) -> String {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_tailwater"));
    command
        .args(line.split(' '))
        .envs(env.iter().copied())
        .env("RUST_BACKTRACE", "full")
        .stdin(Stdio::null())
        .stdout(full)
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let child = command.spawn().unwrap();
    let out = within("a crash", child.wait_with_output()).await.unwrap();
    let shown = String::from_utf8(out.stderr).unwrap();
    assert!(shown.contains("panicked at"), "{line}: {shown}");
    shown
}

/// A model server that returns the same answer to every question.
async fn model() -> Server {
    Server::start(async |mut exchange: Exchange| {
        let piece = json!({"choices": [{"index": 0, "delta": {"content": "chunk-t3xt"}}]});
        let end = json!({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]});
        exchange.begin().await;
        for data in [piece.to_string(), end.to_string(), "[DONE]".to_owned()] {
            exchange.send(format!("data: {data}\n\n")).await;
        }
        exchange.finish().await;
    })
    .await
}

/// An endpoint that returns the same answer to every job, and requires its secrets.
async fn endpoint() -> Server {
    Server::start(async |mut exchange: Exchange| {
        let Request { line, headers, .. } = &exchange.request;
        let is_known = line.contains(SECRETS[11])
            && headers.get("x-api-key").map(String::as_str) == Some(SECRETS[10])
            && headers.contains_key("webhook-signature");
        let (status, text) = match is_known {
            true => ("200 OK", "chunk-t3xt"),
            false => ("401 Unauthorized", "who are you?"),
        };
        let plain = "Content-Type: text/plain\r\n";
        exchange.answer(status, plain, text).await;
    })
    .await
}

/// Starts an edge that checks tokens, and a worker of each kind. Returns the addresses of the edge,
/// and of a worker's metrics.
async fn start(talkative: &mut Talkative, receiver: &str, model: &str) -> [String; 2] {
    let hosts = format!("--callback-hosts {receiver}");
    let write = |name: &str, text: String| {
        let path = talkative.file(name);
        fs::write(&path, text).unwrap();
        path
    };
    let token = json!({"token": SECRETS[8], "sub": "a", "role": "admin"});
    let tokens = write("tokens.json", json!({"tokens": [token]}).to_string());
    let secret = write("secret", SECRETS[9].to_owned());
    let auth = format!("--auth token --auth-tokens {tokens} --auth-secret {secret}");
    let edge = talkative.start(&format!("edge --listen 127.0.0.1:0 {hosts} {auth}"));
    let addr = edge.says("ready http://").await;
    talkative.start(&format!("worker --kind callback webhook {hosts}"));
    talkative.start(&format!(
        "worker --kind chat openai --base-url http://{model}/v1 --model m"
    ));
    // The program prints its environment, and that of its guard.
    let program = "tr '\\0' '\\n' </proc/$PPID/environ; env; cat >/dev/null; echo chunk-t3xt; echo stderr-h1nt >&2; exit 3";
    talkative.start(&format!(
        "worker --kind exec --max-attempts 1 exec -- sh -c {}",
        program.replace(' ', "\u{a0}")
    ));
    let asking = talkative.start("worker --kind ask --metrics 127.0.0.1:0 http");
    let metrics = asking.says("metrics http://").await;
    [addr, metrics.trim_end_matches("/metrics").to_owned()]
}

/// Sends the token in every way that there is, and a wrong one. Returns a ticket that was used.
async fn send_tokens(addr: &str) -> String {
    let own = SECRETS[8];
    for sends in [Sends::Header, Sends::Subprotocol, Sends::Frame] {
        let mut client = TokenClient::connect(addr, sends, own).await.unwrap();
        let wrong = json!({"op": "auth", "token": "openai-k3y"});
        client.send(&wrong).await;
        let refused = client.frame().await.unwrap();
        assert_eq!(refused["code"], "unauthorized", "{refused}");
        assert_silent("a frame", &refused.to_string(), &SECRETS);
    }
    for sends in [Sends::Header, Sends::Frame] {
        assert!(TokenSocket::join(addr, sends, own).await.is_ok());
        let refused = TokenSocket::join(addr, sends, "openai-k3y").await;
        assert_eq!(refused.err().as_deref(), Some("unauthorized"));
    }
    let ticket = issue_ticket(addr, own, "chat").await;
    let events = "/api/jobs/chat/events";
    let path = format!("{events}?ticket={ticket}");
    assert_eq!(Sse::open(addr, &path, "").await.status, 200);
    let cookie = format!("Cookie: tailwater_token={own}\r\n");
    assert_eq!(Sse::open(addr, events, &cookie).await.status, 200);
    ticket
}

/// Asks the edge for everything, with a valid token and with others. Returns the token that it
/// signed for a job.
async fn ask(addr: &str) -> String {
    let own = format!("Authorization: Bearer {}\r\n", SECRETS[8]);
    let json = format!("{own}Content-Type: application/json\r\n");
    let (_, accepted) = exchange(addr, "POST", "/api/jobs", &json, br#"{"kind":"chat"}"#).await;
    let accepted: Value = serde_json::from_str(&accepted).unwrap();
    let watch_token = accepted["watch_token"].as_str().unwrap().to_owned();
    for path in [
        "/api/stats",
        "/api/socketio/stats",
        "/api/jobs",
        "/metrics",
        "/readyz",
        "/openapi.json",
        "/",
        "/nowhere",
        "/api/jobs/chat/state?token=callback-t0ken&nats-p4ssword",
        "/api/jobs/chat/state?nats-p4ssword",
        "/api/jobs/none/state",
    ] {
        for token in [SECRETS[8], &watch_token, "openai-k3y", ""] {
            let header = format!("Authorization: Bearer {token}\r\n");
            let (head, body) = get(addr, path, &header).await;
            // It is the job itself.
            let is_own = path.contains("chat");
            let mut shown = SECRETS.to_vec();
            shown.push(&watch_token);
            shown.retain(|secret| !(is_own && OF_JOBS.contains(secret)));
            assert_silent(path, &format!("{head}\n{body}"), &shown);
        }
    }
    watch_token
}

#[tokio::test]
async fn nothing_that_a_process_prints_or_answers_has_a_secret_or_a_jobs_text() {
    let broker =
        Broker::with_config(r#"authorization { user: "worker", password: "nats-p4ssword" }"#);
    let url = broker
        .url()
        .replace("nats://", "nats://worker:nats-p4ssword@");
    let receiver = model().await;
    let model = model().await;
    let endpoint = endpoint().await;
    let env = environment(&url, &endpoint.addr);
    let mut talkative = Talkative {
        dir: TempDir::new().unwrap(),
        env: env.clone(),
        processes: Vec::new(),
    };
    let env: Vec<_> = env
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .collect();
    // Without the level: these commands log to the same place as they print.
    let run = async |line: &str| run_with(line.split(' '), &env).await;
    run("setup --max-bytes 1048576").await.prints();
    let [addr, worker] = start(&mut talkative, &receiver.addr, &model.addr).await;
    let callback = format!("http://{}/hook?token=callback-t0ken", receiver.addr);
    for (kind, code) in [("chat", 0), ("exec", 1), ("ask", 0)] {
        let submit = format!(
            r#"submit --kind {kind} --id {kind} --input "1nput-text" --callback {callback}"#
        );
        // The workers declare their kinds first.
        until("a job", async || run(&submit).await.code == 0).await;
        let ran = run(&format!("tail {kind}")).await;
        assert_eq!(ran.code, code, "{ran:?}");
        assert!(ran.out.contains("chunk-t3xt"), "{ran:?}");
        assert_silent("tail", &ran.out, &SECRETS[..4]);
        assert_silent("tail", &ran.out, &SECRETS[7..]);
    }
    until("the callbacks", async || receiver.requests().len() >= 3).await;
    for line in ["edge", "worker", "up", "setup", "submit", "tail", "jobs"] {
        let help = run(&format!("{line} --help")).await.prints();
        assert_silent("the help", &help, &SECRETS);
    }
    assert_silent("the list", &run("jobs").await.prints(), &SECRETS);
    let tokens = talkative.file("tokens.json");
    let secret = talkative.file("secret");
    let auth = format!("--auth token --auth-tokens {tokens} --auth-secret {secret}");
    for line in ["state chat", &format!("edge --listen 127.0.0.1:0 {auth}")] {
        assert_silent("a crash", &crashed(line, &env).await, &SECRETS);
    }
    let of_worker = get(&worker, "/metrics", "").await.1;
    assert_silent("the metrics of a worker", &of_worker, &SECRETS);
    let issued = [ask(&addr).await, Box::pin(send_tokens(&addr)).await];
    for line in talkative.command_lines() {
        assert_silent("a command line", &line, &SECRETS[..3]);
        assert_silent("a command line", &line, &SECRETS[8..]);
    }
    let logs = talkative.logs();
    for process in &mut talkative.processes {
        process.signal(Signal::TERM);
        process.ends_within(PATIENCE).await;
    }
    let mut lines = 0;
    for log in logs {
        let text = fs::read_to_string(&log).unwrap();
        lines += text.lines().count();
        let mut secrets = SECRETS.to_vec();
        // The operator's own program writes its errors to the log.
        secrets.retain(|secret| *secret != "stderr-h1nt");
        secrets.extend(issued.iter().map(String::as_str));
        assert_silent("a log", &text, &secrets);
    }
    assert!(lines > 200, "only {lines} lines were logged");
}
