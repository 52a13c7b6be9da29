use std::time::Duration;

use serde_json::json;
use tailwater::wire::Status;

use crate::support::broker::Broker;
use crate::support::process::{Process, runs};
use crate::support::system::{System, limited};
use crate::support::{timed, until};

/// Prints its process id, and does what its input says.
const TASKS: &str = r#"
import json, os, sys, time
task = json.load(sys.stdin)
print(os.getpid(), flush=True)
if task == "raise":
    raise ValueError("no such city")
while task == "hang":
    print("tick", flush=True)
    time.sleep(0.05)
if task == "silence":
    time.sleep(600)
print("sentence")
"#;

async fn worker(system: &System) -> Process {
    // Without the signal of a cancel it would look at the log only after minutes.
    let flags = ["--ack-wait", "10m"];
    let worker = system.worker_process(&flags, &["exec", "--", "python3", "-c", TASKS]);
    system.kind_is_known().await;
    worker
}

/// Whether the program that printed this output still runs.
fn program_runs(output: &str) -> bool {
    runs(output.lines().next().unwrap().parse().unwrap())
}

#[tokio::test]
async fn an_exception_of_a_program_fails_only_its_job_with_its_text() {
    let system = System::on(Broker::shared_one()).await;
    let _worker = worker(&system).await;
    let jobs = system.three_hanging().await;
    let failed = system.submit("raise", json!("raise")).await;
    let state = system.ended(&failed).await;
    let error = state.error.unwrap();
    let found = (state.status, state.attempt, error.code.as_str());
    assert_eq!(found, (Status::Failed, 1, "exit_status"));
    let message = error.message.as_str();
    assert!(
        message.starts_with("exit status 1: ") && message.ends_with("ValueError: no such city"),
        "{message}"
    );
    // Each program is stopped alone.
    let output = system.state(&jobs[1]).await.unwrap().output;
    assert!(program_runs(&output));
    let stopped = async {
        system.cancel(&jobs[1]).await;
        assert_eq!(system.ended(&jobs[1]).await.status, Status::Cancelled);
        until("the end of the program", async || !program_runs(&output)).await;
    };
    let ((), took) = Box::pin(timed(stopped)).await;
    assert!(took < Duration::from_secs(2), "{took:?}");
    let done = system.submit("done", json!(null)).await;
    let output = system.ended(&done).await.output;
    assert!(output.ends_with("\nsentence\n"), "{output}");
    for job in [&jobs[0], &jobs[2]] {
        let state = system.state(job).await.unwrap();
        let found = (state.status, program_runs(&state.output));
        assert_eq!(found, (Status::Running, true), "{job}");
    }
    system.end().await;
}

#[tokio::test]
async fn a_time_limit_ends_the_program_of_a_job() {
    let system = System::on(Broker::shared_one()).await;
    let _worker = worker(&system).await;
    let late = "the job exceeded its time limit";
    let silent = "the job produced no output for too long";
    // Long enough for a busy machine to start the program.
    let cases = [
        ("late", "hang", Some(4000), None, late),
        ("silent", "silence", None, Some(3000), silent),
    ];
    for (id, task, timeout, silence, _) in cases {
        let submission = limited(json!(task), timeout, silence);
        system.submit_with(id, submission).await;
    }
    for (id, _, _, _, message) in cases {
        let state = system.ended(&id.parse().unwrap()).await;
        let error = state.error.unwrap();
        let found = (state.attempt, error.code.as_str(), error.message.as_str());
        assert_eq!(found, (1, "timed_out", message), "{id}");
        let output = state.output;
        until("the end of the program", async || !program_runs(&output)).await;
    }
    system.end().await;
}

#[tokio::test]
async fn the_job_of_a_program_calls_back() {
    let system = System::on(Broker::shared_one()).await;
    let _worker = worker(&system).await;
    let error = system.failure_called_back("raise").await;
    let message = error["message"].as_str().unwrap();
    assert!(message.ends_with("ValueError: no such city"), "{message}");
    system.end().await;
}
