use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use tailwater::process_group::Signal;
use tempfile::TempDir;

use crate::support::broker::Broker;
use crate::support::client::{Client, Seen, follow};
use crate::support::eventually;
use crate::support::process::{Process, run};
use crate::support::up::up;

/// A program of `examples/`, which `cargo test` without a choice of targets and scripts/test.sh
/// build beside the tests.
fn example(name: &str) -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let example = tests
        .ancestors()
        .nth(2)
        .unwrap()
        .join("examples")
        .join(name);
    assert!(
        example.exists(),
        "no {}: cargo build --example {name}",
        example.display()
    );
    example
}

fn start(name: &str, nats: &str) -> Process {
    Process::start_program(&example(name), [nats], &[], Stdio::inherit())
}

#[tokio::test]
async fn a_ten_line_worker_runs_cancels_and_continues_jobs() {
    let up = up(TempDir::new().unwrap(), &[]).await;
    let mut worker = start("backend", &up.nats);
    let submit = async |id: &str, input: &str| {
        run([
            "submit",
            "--kind",
            "countdown",
            "--input",
            input,
            "--id",
            id,
            "--nats",
            &up.nats,
        ])
        .await
        .0
    };
    // Until the program has registered its kind.
    eventually("the program", || async {
        (submit("three", "3").await == 0).then_some(())
    })
    .await;
    let seen = follow(&up.addr, "three").await;
    seen.assert_whole();
    assert_eq!(seen.text(), "3\n2\n1\n");
    assert_eq!(submit("bad", "\"three\"").await, 0);
    let bad = follow(&up.addr, "bad").await;
    assert_eq!(bad.events[&bad.last]["code"], "bad_input");

    assert_eq!(submit("long", "1000").await, 0);
    let (mut client, mut long) = (Client::connect(&up.addr).await, Seen::of("long"));
    client.watch(&long).await;
    while long.text().is_empty() {
        long.step(&mut client).await;
    }
    assert_eq!(run(["cancel", "long", "--nats", &up.nats]).await.0, 0);
    long.follow(&mut client).await;
    assert_eq!(long.events[&long.last]["type"], "job:cancelled:v1");

    // The next worker continues the job of a killed one.
    assert_eq!(submit("killed", "60").await, 0);
    let mut killed = Seen::of("killed");
    client.watch(&killed).await;
    while !killed.text().contains("55\n") {
        killed.step(&mut client).await;
    }
    worker.kill().await;
    let mut worker = start("backend", &up.nats);
    killed.follow(&mut client).await;
    killed.assert_whole();
    assert_eq!(
        killed.text(),
        (1..=60)
            .rev()
            .map(|number| format!("{number}\n"))
            .collect::<String>()
    );
    let continued = killed
        .events
        .values()
        .filter(|event| event["continues"] == true)
        .count();
    assert_eq!(
        (continued, killed.events[&killed.last]["attempt"].as_u64()),
        (1, Some(2))
    );
    worker.signal(Signal::TERM);
    assert!(worker.ends_within(Duration::from_secs(15)).await.success());
}

#[tokio::test]
async fn a_worker_with_its_own_threads_runs_and_cancels_jobs() {
    let broker = Broker::one();
    let url = &broker.url();
    assert_eq!(run(["setup", "--nats", url]).await.0, 0);
    let mut worker = start("blocking", url);
    let submit = async |id: &str, input: &str| {
        run([
            "submit", "--kind", "primes", "--input", input, "--id", id, "--nats", url,
        ])
        .await
    };
    eventually("the program", || async {
        (submit("hundred", "100").await.0 == 0).then_some(())
    })
    .await;
    let tail = async |id: &str| run(["tail", id, "--nats", url]).await;
    let (code, text, _) = tail("hundred").await;
    assert_eq!((code, text.as_str()), (0, "25 primes below 100\n"));
    // More jobs than backend threads: none waits for another.
    for n in 0..8 {
        assert_eq!(
            submit(&format!("endless-{n}"), "18446744073709551615")
                .await
                .0,
            0
        );
    }
    assert_eq!(submit("beside", "1000").await.0, 0);
    assert_eq!(tail("beside").await.1, "168 primes below 1000\n");
    for n in 0..8 {
        let job = format!("endless-{n}");
        assert_eq!(run(["cancel", &job, "--nats", url]).await.0, 0);
        assert_eq!(tail(&job).await.0, 3, "a job that was cancelled");
    }
    worker.signal(Signal::TERM);
    assert!(worker.ends_within(Duration::from_secs(15)).await.success());
}
