use std::fs::{self, File};
use std::time::Duration;

use serde_json::{Value, json};
use tailwater::process_group::Signal;
use tempfile::NamedTempFile;

use crate::support::broker::{self, Broker};
use crate::support::process::Process;
use crate::support::system::System;
use crate::support::until;
use crate::support::workers::LoggingWorker;

/// Does what the job's input says.
const SCRIPT: &str = r#"read -r task
case $task in
  '"fail"') echo output-secret; echo why-it-failed >&2; exit 3;;
  '"retry"') if [ "$TAILWATER_ATTEMPT" = 1 ]; then echo busy >&2; exit 75; fi;;
  '"hang"') echo begun; sleep 600;;
esac"#;

#[track_caller]
fn assert_line(line: &Value, level: &str, fields: &Value) {
    assert_eq!(line["level"], level, "{line}");
    for (name, expected) in fields.as_object().unwrap() {
        assert_eq!(&line["fields"][name], expected, "{name} of {line}");
    }
    for name in ["job", "kind", "attempt", "duration"] {
        assert!(!line["fields"][name].is_null(), "{name} of {line}");
    }
}

#[tokio::test]
async fn each_attempt_that_does_not_succeed_is_one_line_that_says_why() {
    let system = System::on(Broker::shared_one()).await;
    let mut worker = LoggingWorker::start(&system, SCRIPT, &["--grace", "0s"]);
    system.kind_is_known().await;
    for task in ["fail", "retry", "hang"] {
        system.submit(task, json!(task)).await;
    }
    let cancelled = system.submit("cancelled", json!("hang")).await;
    let line = worker.line("fail", "failed").await;
    let reason = "exit status 3: why-it-failed";
    assert_line(
        &line,
        "WARN",
        &json!({"kind": "demo", "attempt": 1, "code": "exit_status", "reason": reason}),
    );
    let line = worker.line("retry", "to be retried").await;
    assert_line(
        &line,
        "WARN",
        &json!({"attempt": 1, "code": "exit_status", "reason": "exit status 75: busy"}),
    );
    let line = worker.line("retry", "done").await;
    assert_line(&line, "INFO", &json!({"attempt": 2}));
    for job in ["hang", "cancelled"] {
        system.reaches(job, 3).await;
    }
    system.cancel(&cancelled).await;
    assert_line(
        &worker.line("cancelled", "cancelled").await,
        "INFO",
        &json!({"attempt": 1, "code": "cancelled", "reason": "the job was cancelled"}),
    );
    worker.process.signal(Signal::TERM);
    assert!(
        worker
            .process
            .ends_within(Duration::from_secs(20))
            .await
            .success()
    );
    assert_line(
        &worker.line("hang", "handed back").await,
        "INFO",
        &json!({"attempt": 1, "code": "handed_back", "reason": "the worker was stopped"}),
    );
    // Output and input of jobs are never logged.
    let text = worker.text();
    assert!(
        !text.contains("output-secret") && !text.contains("begun"),
        "{text}"
    );
    system.end().await;
}

#[tokio::test]
async fn a_line_of_output_that_is_not_json_is_in_the_failure_and_not_in_the_log() {
    let system = System::on(Broker::shared_one()).await;
    let of_exec = ["--format", "ndjson"];
    let worker = LoggingWorker::start_with(&system, "echo output-secret", &[], &of_exec);
    system.kind_is_known().await;
    let job = system.submit("bad", json!(null)).await;
    let line = worker.line("bad", "failed").await;
    let reason = "line 1 of the output is not JSON: expected value at column 1";
    assert_line(
        &line,
        "WARN",
        &json!({"attempt": 1, "code": "bad_output", "reason": reason}),
    );
    let failure = system.ended(&job).await.error.unwrap();
    assert_eq!(failure.message, format!("{reason}\noutput-secret"));
    let text = worker.text();
    assert!(!text.contains("output-secret"), "{text}");
    system.end().await;
}

#[tokio::test]
async fn a_worker_that_lost_its_job_logs_that_it_was_superseded() {
    let system = System::on(Broker::shared_one()).await;
    let first = LoggingWorker::start(&system, SCRIPT, &["--ack-wait", "2s"]);
    system.kind_is_known().await;
    system.submit("frozen", json!("hang")).await;
    system.reaches("frozen", 3).await;
    first.process.signal(Signal::STOP);
    let second = LoggingWorker::start(&system, SCRIPT, &[]);
    system.reaches("frozen", 5).await;
    first.process.signal(Signal::CONT);
    let line = first.line("frozen", "superseded").await;
    let reason = "another worker has the job, or it was purged";
    assert_line(
        &line,
        "WARN",
        &json!({"attempt": 1, "code": "superseded", "reason": reason}),
    );
    drop(second);
    system.end().await;
}

#[tokio::test]
async fn up_logs_what_its_parts_do_and_json_on_request() {
    for json in [false, true] {
        let dir = tempfile::TempDir::new().unwrap();
        let log = NamedTempFile::new().unwrap();
        let data = dir.path().display().to_string();
        let program = broker::program().display().to_string();
        let mut args = vec!["up", "--listen", "127.0.0.1:0", "--data-dir", &data];
        args.extend(["--nats-server", &program]);
        if json {
            args.push("--log-json");
        }
        args.extend(["--", "sh", "-c", "cat; echo output-secret; exit 3"]);
        let stderr = File::create(log.path()).unwrap();
        let mut up = Process::start_with(args, &[], stderr);
        let nats = up.says("nats ").await;
        up.says("ready ").await;
        let submit = format!("submit --kind exec --id j --input \"input-secret\" --nats {nats}");
        crate::support::process::tailwater(&submit).await.prints();
        let text = || fs::read_to_string(log.path()).unwrap();
        until("the failure in the log", async || {
            text().contains("exit_status")
        })
        .await;
        let text = text();
        for part in ["edge serves", "worker started", "exit status 3"] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        assert!(!text.contains("-secret"), "{text}");
        // A notice for a person is not a line of the log.
        let mut lines = text.lines().filter(|line| !line.starts_with("tailwater: "));
        let is_json = lines.all(|line| serde_json::from_str::<Value>(line).is_ok());
        assert_eq!(is_json, json, "{text}");
    }
}
