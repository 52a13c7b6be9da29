use std::ffi::OsString;
use std::fs;
use std::process::Stdio;
use std::time::Duration;

use tempfile::TempDir;
use tokio::process::Command;
use tokio::time::timeout;

use crate::support::broker;
use crate::support::process::{Process, Ran};
use crate::support::{example, python, root};

/// Longer than the slowest worker takes on a busy machine.
const LIMIT: Duration = Duration::from_secs(240);

/// What is checked, in the order of the report.
const CHECKS: [&str; 11] = [
    "several jobs",
    "heartbeat",
    "cancel",
    "kill",
    "freeze",
    "queue",
    "numbers",
    "fence",
    "fields",
    "attempts",
    "end",
];

/// Tests the worker that `command` starts. Its jobs take about 5 s.
async fn conformance(kind: &str, input: &str, command: &[OsString]) -> Ran {
    let mut tests = Command::new(env!("CARGO_BIN_EXE_tailwater"));
    tests
        .args(["conformance", "--kind", kind, "--input", input])
        .args(["--ack-wait", "2s", "--jobs", "3", "--"])
        .args(command)
        .env("NATS_SERVER", broker::program())
        .env("PYTHONPATH", root().join("clients/python/src"))
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let out = timeout(LIMIT, tests.output()).await.expect("in time");
    out.unwrap().into()
}

/// The command line of a worker of this program.
fn tailwater(line: &str) -> Vec<OsString> {
    let words = line.split_whitespace().map(OsString::from);
    std::iter::once(OsString::from(env!("CARGO_BIN_EXE_tailwater")))
        .chain(words)
        .collect()
}

/// The checks of a report, and whether each passed.
fn report(ran: &Ran) -> Vec<(String, bool)> {
    let rows = ran.out.lines().skip(1).map(|line| {
        let (result, rest) = line.split_at(8);
        let check = rest.split("  ").next().unwrap().trim();
        (check.to_owned(), result.trim() == "pass")
    });
    rows.collect()
}

#[track_caller]
fn assert_conforms(ran: &Ran) {
    let expected: Vec<_> = CHECKS
        .iter()
        .map(|check| ((*check).to_owned(), true))
        .collect();
    assert_eq!((report(ran), ran.code), (expected, 0), "{ran:?}");
}

/// 5 s of the examples, which take 50 ms for a word.
fn words() -> String {
    format!("\"{}\"", "word ".repeat(100))
}

#[tokio::test]
async fn the_example_in_python_conforms() {
    let worker = [
        python("python").into_os_string(),
        root().join("examples/worker.py").into_os_string(),
    ];
    assert_conforms(&conformance("shout", &words(), &worker).await);
}

#[tokio::test]
async fn a_python_worker_that_blocks_and_continues_conforms() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("worker.py");
    let worker = "import time\nfrom tailwater import *\n\n@worker(kind='count', continues=True)\ndef count(job):\n\
        \x20   for n in range(len((job.previous_output or '').split()), job.input):\n\
        \x20       time.sleep(0.05)\n        yield f'{n} '\n\nserve(count)\n";
    fs::write(&file, worker).unwrap();
    let worker = [python("python").into_os_string(), file.into_os_string()];
    assert_conforms(&conformance("count", "100", &worker).await);
}

#[tokio::test]
async fn the_example_in_rust_conforms() {
    // It expects the address as an argument.
    let start = format!("exec {} \"$TAILWATER_NATS\"", example("backend").display());
    let worker = ["sh", "-c", &start].map(OsString::from);
    assert_conforms(&conformance("countdown", "60", &worker).await);
}

#[tokio::test]
async fn a_worker_that_runs_a_program_conforms() {
    let mut worker = tailwater("worker --kind sh exec --format lines -- sh -c");
    worker.push("for n in $(seq 50); do echo $n; sleep 0.1; done".into());
    assert_conforms(&conformance("sh", "null", &worker).await);
}

#[tokio::test]
async fn a_worker_that_asks_an_endpoint_conforms() {
    let example = root().join("examples/endpoint.py").display().to_string();
    let args = [example, "0".to_owned()];
    let mut endpoint = Process::start_program(&python("python"), args, &[], Stdio::inherit());
    let port = endpoint.says("serves").await;
    let line = format!("worker --kind capitals http --url http://127.0.0.1:{port}/run");
    assert_conforms(&conformance("capitals", &words(), &tailwater(&line)).await);
}

/// A worker with one thing wrong fails the check of this thing.
#[tokio::test]
async fn a_worker_without_a_fence_or_without_a_program_fails() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("worker.py");
    let example = fs::read_to_string(root().join("examples/worker.py")).unwrap();
    let without_fence = "\nfrom nats.js.client import JetStreamContext\n\npublish = JetStreamContext.publish\n\n\
        async def unfenced(self, subject, payload=b'', headers=None, **rest):\n\
        \x20   return await publish(self, subject, payload, **rest)\n\nJetStreamContext.publish = unfenced\n\n\nif __name__";
    let worker = example.replace("\nif __name__", without_fence);
    fs::write(&file, worker).unwrap();
    let worker = [python("python").into_os_string(), file.into_os_string()];
    let ran = conformance("shout", &words(), &worker).await;
    let found = report(&ran);
    let failed = found.iter().filter(|(_, passed)| !passed);
    let failed: Vec<_> = failed.map(|(check, _)| check.as_str()).collect();
    assert!(failed.contains(&"fence") && ran.code == 1, "{ran:?}");
    assert!(
        ran.err.contains("the last lines of worker 1"),
        "{}",
        ran.err
    );
    let ran = conformance("shout", "1", &["false".into()]).await;
    assert_eq!(report(&ran), [("several jobs".to_owned(), false)]);
    assert!(
        ran.out.contains("the worker's program ended") && ran.code == 1,
        "{ran:?}"
    );
}
