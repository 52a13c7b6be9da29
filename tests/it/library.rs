use std::process::Stdio;
use std::time::Duration;

use tailwater::process_group::Signal;
use tempfile::TempDir;

use crate::support::broker::Broker;
use crate::support::client::{Client, Seen, follow};
use crate::support::process::{Process, tailwater};
use crate::support::up::up;
use crate::support::{example, until};

fn start(name: &str, nats: &str) -> Process {
    Process::start_program(&example(name), [nats], &[], Stdio::inherit())
}

#[tokio::test]
async fn a_ten_line_worker_runs_cancels_and_continues_jobs() {
    let up = up(TempDir::new().unwrap(), &[]).await;
    let mut worker = start("backend", &up.nats);
    let run = async |line: &str| tailwater(&format!("{line} --nats {}", up.nats)).await;
    let submit = async |id: &str, input: &str| {
        run(&format!(
            "submit --kind countdown --id {id} --input {input}"
        ))
        .await
    };
    // The program registers its kind first.
    until("the program", async || submit("three", "3").await.code == 0).await;
    let seen = follow(&up.addr, "three").await;
    seen.assert_text("3\n2\n1\n");
    submit("bad", "\"three\"").await.prints();
    let bad = follow(&up.addr, "bad").await;
    assert_eq!(bad.end()["code"], "bad_input");
    let message = "the input must be a number from 1 to 1000";
    assert_eq!(bad.end()["message"], message);

    submit("long", "1000").await.prints();
    let mut client = Client::connect(&up.addr).await;
    let mut long = Seen::of("long");
    client.watch(&long).await;
    while long.text().is_empty() {
        long.step(&mut client).await;
    }
    run("cancel long").await.prints();
    long.follow(&mut client).await;
    assert_eq!(long.end()["type"], "job:cancelled:v1");

    // The next worker continues the job of a killed one.
    submit("killed", "60").await.prints();
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
    let events = killed.events.values();
    let continued = events.filter(|event| event["continues"] == true).count();
    assert_eq!((continued, killed.end()["attempt"].as_u64()), (1, Some(2)));
    worker.signal(Signal::TERM);
    assert!(worker.ends_within(Duration::from_secs(15)).await.success());
}

#[tokio::test]
async fn a_worker_with_its_own_threads_runs_and_cancels_jobs() {
    let broker = Broker::one();
    let url = &broker.url();
    let run = async |line: &str| tailwater(&format!("{line} --nats {url}")).await;
    run("setup").await.prints();
    let mut worker = start("blocking", url);
    let submit = async |id: &str, input: &str| {
        run(&format!("submit --kind primes --id {id} --input {input}")).await
    };
    until("the program", async || {
        submit("hundred", "100").await.code == 0
    })
    .await;
    let tail = async |id: &str| run(&format!("tail {id}")).await;
    assert_eq!(tail("hundred").await.prints(), "25 primes below 100\n");
    // There are more jobs than backend threads, and no job waits for another.
    for n in 0..8 {
        submit(&format!("endless-{n}"), "18446744073709551615")
            .await
            .prints();
    }
    submit("beside", "1000").await.prints();
    assert_eq!(tail("beside").await.prints(), "168 primes below 1000\n");
    for n in 0..8 {
        let job = format!("endless-{n}");
        run(&format!("cancel {job}")).await.prints();
        assert_eq!(tail(&job).await.code, 3, "a job that was cancelled");
    }
    worker.signal(Signal::TERM);
    assert!(worker.ends_within(Duration::from_secs(15)).await.success());
}
