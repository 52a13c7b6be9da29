use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Stdio;

use serde_json::json;
use tailwater::process_group::Signal;
use tempfile::TempDir;

use crate::support::broker::Broker;
use crate::support::http::get;
use crate::support::http_server::{Exchange, Server};
use crate::support::process::{Process, run_with};
use crate::support::{PATIENCE, until};

/// What nothing may print: keys, passwords, what jobs get, and what they produce.
const SECRETS: [&str; 8] = [
    "nats-p4ssword",
    "openai-k3y",
    "bWFkZS11cC1ieXRlcy1mb3ItdGhlLWhvb2stc2VjcmV0",
    "callback-t0ken",
    "1nput-text",
    "chunk-t3xt",
    "stderr-h1nt",
    "other-v4riable",
];
/// Those that only the owners of a job may see.
const OF_JOBS: [&str; 2] = ["1nput-text", "chunk-t3xt"];

/// The environment of every process of this test.
fn environment(url: &str) -> Vec<(&'static str, String)> {
    vec![
        ("TAILWATER_NATS", url.to_owned()),
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

#[tokio::test]
async fn nothing_that_a_process_prints_or_answers_has_a_secret_or_a_jobs_text() {
    let broker =
        Broker::with_config(r#"authorization { user: "worker", password: "nats-p4ssword" }"#);
    let url = broker
        .url()
        .replace("nats://", "nats://worker:nats-p4ssword@");
    let receiver = model().await;
    let model = model().await;
    let mut talkative = Talkative {
        dir: TempDir::new().unwrap(),
        env: environment(&url),
        processes: Vec::new(),
    };
    let env = environment(&url);
    let env: Vec<_> = env
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .collect();
    // Without the level: these commands log to the same place as they print.
    let run = async |line: &str| run_with(line.split(' '), &env).await;
    run("setup --max-bytes 1048576").await.prints();
    let hosts = format!("--callback-hosts {}", receiver.addr);
    let edge = talkative.start(&format!("edge --listen 127.0.0.1:0 {hosts}"));
    let addr = edge.says("ready http://").await;
    talkative.start(&format!("worker --kind callback webhook {hosts}"));
    talkative.start(&format!(
        "worker --kind chat openai --base-url http://{}/v1 --model m",
        model.addr
    ));
    // The program prints its environment, and that of its guard.
    let program = "tr '\\0' '\\n' </proc/$PPID/environ; env; cat >/dev/null; echo chunk-t3xt; echo stderr-h1nt >&2; exit 3";
    talkative.start(&format!(
        "worker --kind exec --max-attempts 1 exec -- sh -c {}",
        program.replace(' ', "\u{a0}")
    ));
    let callback = format!("http://{}/hook?token=callback-t0ken", receiver.addr);
    let mut answers = Vec::new();
    for (kind, code) in [("chat", 0), ("exec", 1)] {
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
    until("the callbacks", async || receiver.requests().len() >= 2).await;
    for line in ["edge", "worker", "up", "setup", "submit", "tail", "jobs"] {
        answers.push(run(&format!("{line} --help")).await.prints());
    }
    answers.push(run("jobs").await.prints());
    for path in [
        "/api/stats",
        "/api/socketio/stats",
        "/api/jobs",
        "/readyz",
        "/openapi.json",
        "/",
        "/api/jobs/chat/state?token=callback-t0ken&nats-p4ssword",
        "/api/jobs/none/state",
    ] {
        let (head, body) = get(&addr, path, "Authorization: Bearer openai-k3y\r\n").await;
        let shown: Vec<_> = match path.contains("chat") {
            // It is the job itself.
            true => SECRETS
                .into_iter()
                .filter(|secret| !OF_JOBS.contains(secret))
                .collect(),
            false => SECRETS.to_vec(),
        };
        assert_silent(path, &format!("{head}\n{body}"), &shown);
    }
    for process in &talkative.processes {
        let pid = process.guard();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        let line = fs::read(format!("/proc/{}/cmdline", children.trim())).unwrap();
        assert_silent(
            "a command line",
            &String::from_utf8_lossy(&line),
            &SECRETS[..3],
        );
    }
    for text in answers {
        assert_silent("an answer", &text, &SECRETS);
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
        // The operator's own program writes its errors to the log.
        let secrets: Vec<_> = SECRETS
            .into_iter()
            .filter(|secret| *secret != "stderr-h1nt")
            .collect();
        assert_silent("a log", &text, &secrets);
    }
    assert!(lines > 200, "only {lines} lines were logged");
}
