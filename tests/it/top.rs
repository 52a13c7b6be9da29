use serde_json::json;

use crate::support::broker::Broker;
use crate::support::process::run;
use crate::support::system::{System, words};
use crate::support::third_party::ThirdParty;
use crate::support::until;

#[tokio::test]
async fn top_shows_kinds_workers_edges_and_jobs() {
    let system = System::on(Broker::shared_one()).await;
    let (_edge, addr) = system.edge_process(&[]).await;
    let (_worker, worker_addr) = system.measured_worker(&[], &["demo"]).await;
    let metrics = format!("http://{worker_addr}/metrics");
    system.kind_is_known().await;
    let job = system.submit("shown", words(3, 0, 1)).await;
    system.ended(&job).await;
    let edge = format!("http://{addr}");
    let top = async |flags: &[&str]| {
        let ran = run(system.command(&["top"], &[&["--once"], flags].concat())).await;
        ran.prints()
    };
    until("the worker to be done", async || {
        let shown = top(&["--worker", &metrics]).await;
        shown.contains("demo  0/16")
    })
    .await;
    let shown = top(&[
        "--worker",
        &metrics,
        "--edge",
        &edge,
        "--edge",
        "127.0.0.1:1",
    ])
    .await;
    let row = |start: &str| {
        let line = shown.lines().find(|line| line.starts_with(start));
        let line = line.unwrap_or_else(|| panic!("no {start:?} in\n{shown}"));
        line.split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(row("demo")[1..4], ["0", "0", "-"]);
    let of_worker = row("http://127");
    assert!(of_worker.len() > 4, "{of_worker:?}");
    assert!(shown.contains(&format!("{edge} ")), "{shown}");
    assert!(
        shown.contains("127.0.0.1:1: error sending request"),
        "{shown}"
    );
    assert_eq!(row("shown")[1..4], ["demo", "done", "1"]);
    let none = top(&["--jobs", "0"]).await;
    assert!(!none.contains("shown") && none.contains("KIND"), "{none}");
    system.end().await;
}

#[tokio::test]
async fn top_draws_over_its_last_picture_and_leaves_the_terminal_as_it_was() {
    let system = System::on(Broker::shared_one()).await;
    let _worker = system.worker_process(&[], &["demo"]);
    system.kind_is_known().await;
    for n in 10..22 {
        let job = system.submit(&format!("job-{n}"), words(1, 0, 1)).await;
        system.ended(&job).await;
    }
    let mut command = vec![env!("CARGO_BIN_EXE_tailwater").to_owned()];
    command.extend(system.command(&["top"], &["--every", "100ms"]));
    // Too small for all jobs, and for whole lines of them.
    let given =
        json!({"command": command, "rows": 10, "columns": 40, "until": "final   demo  done"});
    let mut terminal = ThirdParty::python("terminal.py", &given);
    terminal.says("job-21").await;
    system.submit("final", words(1, 0, 1)).await;
    let mut pictures = terminal.ends().await;
    let end = pictures.pop().unwrap();
    let expected = json!({"code": 0, "cursor_is_shown": true, "scrolled": 0, "wrapped": 0});
    assert_eq!(end, expected);
    let last = pictures.last().unwrap()["lines"].as_array().unwrap();
    let lines: Vec<_> = last.iter().map(|line| line.as_str().unwrap()).collect();
    let starts = ["KIND", "demo", "", "JOB", "final", "job-21", "job-20"];
    for (line, start) in lines.iter().zip(starts) {
        assert!(line.starts_with(start), "{start}: {lines:#?}");
    }
    assert_eq!((lines[2], lines[9]), ("", ""), "{lines:#?}");
    system.end().await;
}
