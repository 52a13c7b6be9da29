use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tailwater::process_group::Signal;
use tempfile::TempDir;

use crate::support::broker::{self, Broker};
use crate::support::client::follow;
use crate::support::process::{Process, run};
use crate::support::system::{System, text, words};
use crate::support::up::{Up, up};
use crate::support::{eventually, within};

/// Whether a process listens on this address.
async fn is_open(addr: &str) -> bool {
    tokio::net::TcpStream::connect(addr.trim_start_matches("nats://"))
        .await
        .is_ok()
}

#[tokio::test]
async fn up_serves_a_demo_and_a_program_and_leaves_nothing_behind() {
    let mut up = up(
        TempDir::new().unwrap(),
        &["sh", "-c", "cat; echo; echo done"],
    )
    .await;
    let input = words(20, 100, 3);
    let (code, out, err) = run([
        "submit",
        "--kind",
        "demo",
        "--input",
        &input.to_string(),
        "--watch",
        "--nats",
        &up.nats,
    ])
    .await;
    assert_eq!((code, out.as_str()), (0, text(&input).as_str()), "{err}");
    let (code, out, err) = run([
        "submit",
        "--kind",
        "exec",
        "--input",
        r#"{"a":[1,"é"]}"#,
        "--watch",
        "--nats",
        &up.nats,
    ])
    .await;
    assert_eq!(
        (code, out.as_str()),
        (0, "{\"a\":[1,\"é\"]}\ndone\n"),
        "{err}"
    );
    up.process.signal(Signal::INT);
    assert!(
        up.process
            .ends_within(Duration::from_secs(5))
            .await
            .success()
    );
    assert!(!is_open(&up.nats).await);
    // The stored jobs are still there.
    let Up { dir, .. } = up;
    let mut again = self::up(dir, &[]).await;
    let (code, out, _) = run([
        "submit",
        "--kind",
        "exec",
        "--input",
        "1",
        "--id",
        "x",
        "--nats",
        &again.nats,
    ])
    .await;
    assert_eq!((code, out.trim()), (0, "x"));
    again.process.signal(Signal::TERM);
    again.process.ends_within(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn killing_up_ends_its_broker_and_programs() {
    let dir = TempDir::new().unwrap();
    let alive = dir.path().join("alive");
    std::fs::create_dir(&alive).unwrap();
    // The program holds a file lock while it runs.
    let program = format!(
        "exec 9>{0}/lock; flock 9; echo begun; sleep 600",
        alive.display()
    );
    let up = up(TempDir::new().unwrap(), &["sh", "-c", &program]).await;
    let (code, ..) = run([
        "submit", "--kind", "exec", "--id", "sleeps", "--nats", &up.nats,
    ])
    .await;
    assert_eq!(code, 0);
    let lock = || {
        std::fs::File::create(alive.join("lock"))
            .unwrap()
            .try_lock()
            .is_ok()
    };
    eventually("the program", || async { (!lock()).then_some(()) }).await;
    up.process.kill_alone();
    eventually("the end of the program", || async { lock().then_some(()) }).await;
    eventually("the end of the broker", || async {
        (!is_open(&up.nats).await).then_some(())
    })
    .await;
}

#[tokio::test]
async fn up_reports_each_startup_error_in_one_line() {
    let busy = TcpListener::bind("127.0.0.1:0").unwrap();
    let busy = busy.local_addr().unwrap().to_string();
    let dir = TempDir::new().unwrap();
    let data = dir.path().display().to_string();
    let program = broker::program().display().to_string();
    let said = async |args: &[&str]| {
        let (code, out, err) = run(args.iter().copied()).await;
        assert_eq!(
            (code, out.as_str(), err.lines().count()),
            (2, "", 1),
            "{err}"
        );
        err
    };
    let listener = TcpListener::bind(&busy).unwrap_err();
    drop(listener);
    let err = said(&[
        "up",
        "--listen",
        &busy,
        "--data-dir",
        &data,
        "--nats-server",
        &program,
    ])
    .await;
    assert!(err.contains(&format!("cannot listen on {busy}")), "{err}");
    let err = said(&[
        "up",
        "--listen",
        "127.0.0.1:0",
        "--data-dir",
        &data,
        "--nats-server",
        "/no/such/file",
    ])
    .await;
    assert!(err.contains("no nats-server at /no/such/file"), "{err}");
    let old = dir.path().join("old-nats");
    std::fs::write(&old, "#!/bin/sh\nexit 3\n").unwrap();
    std::fs::set_permissions(&old, std::fs::Permissions::from_mode(0o755)).unwrap();
    let old = old.display().to_string();
    let err = said(&[
        "up",
        "--listen",
        "127.0.0.1:0",
        "--data-dir",
        &data,
        "--nats-server",
        &old,
    ])
    .await;
    assert!(err.contains("nats-server did not start"), "{err}");
    let err = said(&[
        "up",
        "--listen",
        "127.0.0.1:0",
        "--data-dir",
        "/dev/null/x",
        "--nats-server",
        &program,
    ])
    .await;
    assert!(err.contains("cannot make the data directory"), "{err}");
    let huge = ["--nats-server", &program, "--max-bytes", "1000000000000000"];
    let err = said(
        &[
            &["up", "--listen", "127.0.0.1:0", "--data-dir", &data],
            &huge[..],
        ]
        .concat(),
    )
    .await;
    assert!(
        err.contains("disk space that stream TW_CHUNKS_0 reserves"),
        "{err}"
    );
    let held = up(TempDir::new().unwrap(), &[]).await;
    let data = held.dir.path().display().to_string();
    let err = said(&[
        "up",
        "--listen",
        "127.0.0.1:0",
        "--data-dir",
        &data,
        "--nats-server",
        &program,
    ])
    .await;
    assert!(err.contains("is in use by another"), "{err}");
}

#[tokio::test]
async fn outdated_and_unprepared_servers_are_reported() {
    // A server that announces an old version.
    let old = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("nats://{}", old.local_addr().unwrap());
    let greet = async {
        loop {
            use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
            let (mut socket, _) = old.accept().await.unwrap();
            let info = r#"INFO {"server_id":"x","server_name":"x","version":"2.9.10","go":"go1","host":"h","port":1,"headers":true,"max_payload":1048576,"proto":1,"client_id":1,"client_ip":"127.0.0.1"}"#;
            socket
                .write_all(format!("{info}\r\n").as_bytes())
                .await
                .unwrap();
            let mut sent = [0; 4096];
            while !String::from_utf8_lossy(&sent).contains("PING") {
                if socket.read(&mut sent).await.unwrap_or(0) == 0 {
                    break;
                }
            }
            let _ = socket.write_all(b"PONG\r\n").await;
            // Kept open until the test ends.
            std::mem::forget(socket);
        }
    };
    let asked = run(["state", "j", "--nats", &url]);
    let (code, _, err) = tokio::select! {
        asked = asked => asked,
        () = greet => unreachable!(),
    };
    assert_eq!(code, 2, "{err}");
    assert!(
        err.contains("nats-server 2.9.10 at") && err.contains("needs 2.12.3"),
        "{err}"
    );
    let broker = Broker::shared_one();
    let (code, _, err) = run(["state", "j", "--nats", &broker.url(), "--prefix", "unknown"]).await;
    assert_eq!(
        (code, err.contains("run `tailwater setup` first")),
        (2, true),
        "{err}"
    );
    let nowhere = [
        "state",
        "j",
        "--nats",
        "nats://127.0.0.1:1",
        "--nats-wait",
        "0s",
    ];
    let (code, _, err) = run(nowhere).await;
    assert_eq!(
        (
            code,
            err.contains("cannot reach NATS at nats://127.0.0.1:1")
        ),
        (2, true),
        "{err}"
    );
}

#[tokio::test]
async fn setup_is_idempotent_and_refuses_conflicting_streams() {
    let url = Broker::shared_one().url();
    let setup = async |extra: &[&str]| {
        run([
            &[
                "setup",
                "--nats",
                &url,
                "--prefix",
                "setup",
                "--max-bytes",
                "1048576",
            ],
            extra,
        ]
        .concat())
        .await
    };
    let (code, out, err) = setup(&["--shards", "2"]).await;
    assert_eq!((code, out.as_str()), (0, "ready: 2 shards\n"), "{err}");
    assert_eq!(setup(&["--shards", "2"]).await.0, 0);
    let (code, out, err) = setup(&["--shards", "2", "--max-age", "1h"]).await;
    let changed = |shard| {
        format!(
            "stream SETUP_CHUNKS_{shard}: max_age changed from 86400000000000 to 3600000000000\n"
        )
    };
    assert_eq!(
        (code, out),
        (0, changed(0) + &changed(1) + "ready: 2 shards\n"),
        "{err}"
    );
    // Settings that are not named stay the same.
    assert_eq!(setup(&["--shards", "2"]).await.1, "ready: 2 shards\n");
    let (code, _, err) = setup(&["--shards", "2", "--replicas", "3"]).await;
    assert_eq!(
        (code, err.contains("exists and differs")),
        (2, true),
        "{err}"
    );
    let (code, _, err) = setup(&["--shards", "3"]).await;
    assert_eq!(
        (
            code,
            err.contains("tailwater.shards: there \"2\", declared \"3\"")
        ),
        (2, true),
        "{err}"
    );
}

#[tokio::test]
async fn tail_follows_resumes_and_reports_the_outcome() {
    let system = System::on(Broker::shared_one()).await;
    system.demo().await;
    let edge = system.edge().await;
    let flags = system.flags();
    let tailwater = async |args: &[&str]| {
        run([args, &flags.iter().map(String::as_str).collect::<Vec<_>>()].concat()).await
    };
    let input = words(80, 80, 5);
    let job = system.submit("tail", input.clone()).await;
    let url = format!("http://{}", edge.addr);
    let (code, out, err) = tailwater(&[
        "tail",
        "tail",
        "--edge",
        &url,
        "--drop-after",
        "4",
        "--summary",
    ])
    .await;
    assert_eq!((code, out.as_str()), (0, text(&input).as_str()), "{err}");
    assert!(
        err.contains("· missing 0 · duplicated 0 · resumed at seq 5"),
        "{err}"
    );
    // Without an edge, from a sequence number, as JSON.
    let (code, out, err) = tailwater(&["tail", "tail", "--after", "3", "--json"]).await;
    assert_eq!(code, 0, "{err}");
    let seqs: Vec<u64> = out
        .lines()
        .map(|line| {
            serde_json::from_str::<Value>(line).unwrap()["seq"]
                .as_u64()
                .unwrap()
        })
        .collect();
    let state = system.ended(&job).await;
    assert_eq!(seqs, (4..=state.seq.0).collect::<Vec<_>>());
    let (code, out, _) = tailwater(&["state", "tail"]).await;
    assert_eq!(
        (
            code,
            serde_json::from_str::<Value>(&out).unwrap()["output"].as_str()
        ),
        (0, Some(&*text(&input)))
    );
    system.submit("bad", serde_json::json!({"words": -1})).await;
    let (code, _, err) = tailwater(&["tail", "bad"]).await;
    assert_eq!((code, err.contains("bad_input")), (1, true), "{err}");
    system.submit("endless", words(10_000, 20, 1)).await;
    let (code, out, err) = tailwater(&["cancel", "endless", "--by", "me"]).await;
    assert_eq!(
        (code, out.trim().parse::<u64>().is_ok()),
        (0, true),
        "{err}"
    );
    let (code, _, err) = tailwater(&["tail", "endless"]).await;
    assert_eq!((code, err.contains("was cancelled")), (3, true), "{err}");
    assert_eq!(tailwater(&["cancel", "endless"]).await.0, 2);
    assert_eq!(tailwater(&["state", "unknown"]).await.0, 2);
    assert_eq!(tailwater(&["state", "no.body"]).await.0, 64);
    assert_eq!(tailwater(&["submit", "--kind", "unknown"]).await.0, 2);
    system.end().await;
}

#[tokio::test]
async fn an_edge_with_several_threads_serves_all_clients() {
    let system = System::on(Broker::shared_one()).await;
    system.demo().await;
    let (mut edge, addr) = system.edge_process(&["--threads", "3"]).await;
    let input = words(40, 40, 2);
    system.submit("threads", input.clone()).await;
    let all = futures_util::future::join_all((0..30).map(|_| follow(&addr, "threads"))).await;
    for seen in all {
        seen.assert_whole();
        assert_eq!(seen.text(), text(&input));
    }
    edge.signal(Signal::TERM);
    assert!(edge.ends_within(Duration::from_secs(5)).await.success());
    system.end().await;
}

#[tokio::test]
async fn the_python_worker_runs_jobs() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    // scripts/test.sh puts it there, with what the example imports.
    let python = root.join(".tools/venv/bin/python");
    assert!(
        python.exists(),
        "no {}: run scripts/test.sh, which makes it",
        python.display()
    );
    let up = up(TempDir::new().unwrap(), &[]).await;
    let mut worker = tokio::process::Command::new(python)
        .arg(root.join("examples/worker.py"))
        .arg(&up.nats)
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut said = tokio::io::BufReader::new(worker.stdout.take().unwrap());
    within(
        "the worker",
        tokio::io::AsyncBufReadExt::read_line(&mut said, &mut line),
    )
    .await
    .unwrap();
    assert_eq!(line, "serves shout\n");
    let submit = [
        "submit",
        "--kind",
        "shout",
        "--input",
        "\"häppy little words\"",
        "--id",
        "py",
        "--watch",
    ];
    let (code, out, err) = run(submit.iter().chain(&["--nats", &up.nats])).await;
    assert_eq!((code, out.as_str()), (0, "HÄPPY LITTLE WORDS "), "{err}");
    let seen = follow(&up.addr, "py").await;
    seen.assert_whole();
    assert_eq!(
        seen.events
            .values()
            .filter(|event| event["type"] == "model:chunk:v1")
            .count(),
        3
    );
}

#[tokio::test]
async fn a_declared_kind_accepts_jobs_before_its_first_worker() {
    let system = System::on(Broker::shared_one()).await;
    let flags = system.flags();
    let tailwater = async |args: &[&str]| {
        run([args, &flags.iter().map(String::as_str).collect::<Vec<_>>()].concat()).await
    };
    let submit = ["submit", "--kind", "later", "--id", "early"];
    let (code, _, err) = tailwater(&submit).await;
    assert_eq!(code, 2);
    assert!(err.contains("tailwater setup --kind later"), "{err}");
    let setup = [
        "setup",
        "--shards",
        "2",
        "--replicas",
        "1",
        "--kind",
        "later",
        "--kind",
        "other",
    ];
    let (code, out, err) = tailwater(&setup).await;
    assert_eq!(
        (code, out.as_str()),
        (0, "ready: 2 shards\nkind later\nkind other\n"),
        "{err}"
    );
    assert_eq!(tailwater(&submit).await.0, 0);
    let job = "early".parse().unwrap();
    assert_eq!(
        system.state(&job).await.unwrap().status,
        tailwater::wire::Status::Queued
    );
    system.end().await;
}

#[tokio::test]
async fn tail_reports_a_job_that_does_not_exist() {
    let system = System::on(Broker::shared_one()).await;
    system.demo().await;
    let edge = system.edge().await;
    let url = format!("http://{}", edge.addr);
    let flags = system.flags();
    for ways in [&flags[..], &["--edge".to_owned(), url]] {
        let ways: Vec<&str> = ways.iter().map(String::as_str).collect();
        let (code, out, err) =
            run([&["tail", "mistyped", "--must-exist"], &ways[..]].concat()).await;
        assert_eq!((code, out.as_str()), (2, ""));
        assert!(err.contains("there is no job mistyped"), "{err}");
        let job = format!("late-{}", ways.len());
        let mut tail =
            Process::start_with([&["tail", &job], &ways[..]].concat(), &[], Stdio::piped());
        let said = tail.complains().await;
        assert_eq!(
            said,
            format!("tailwater: waiting for job {job}, which does not exist yet")
        );
        system.submit(&job, words(3, 0, 1)).await;
        assert!(tail.ends_within(Duration::from_secs(20)).await.success());
    }
    system.end().await;
}

#[tokio::test]
async fn up_reports_its_nats_port_when_the_default_is_taken() {
    // The port is taken, by this test or another one.
    let _taken = TcpListener::bind("127.0.0.1:4222");
    let dir = TempDir::new().unwrap();
    let program = broker::program().display().to_string();
    let data = dir.path().display().to_string();
    let args = [
        "up",
        "--listen",
        "127.0.0.1:0",
        "--data-dir",
        &data,
        "--nats-server",
        &program,
    ];
    let mut up = Process::start_with(args, &[], Stdio::piped());
    let url = up.says("nats ").await;
    let said = up.complains().await;
    assert!(
        said.contains("port 4222 is in use by another program"),
        "{said}"
    );
    assert!(
        said.ends_with(&format!("--nats {url} or TAILWATER_NATS={url}")),
        "{said}"
    );
}

#[tokio::test]
async fn an_edge_prints_ready_once_it_serves() {
    let url = Broker::shared_one().url();
    for threads in ["1", "3"] {
        let edge = [
            "edge",
            "--listen",
            "127.0.0.1:0",
            "--prefix",
            "unknown",
            "--nats",
            &url,
            "--threads",
            threads,
        ];
        let (code, out, err) = run(edge).await;
        assert_eq!((code, out.as_str()), (2, ""), "{err}");
        assert!(err.contains("run `tailwater setup` first"), "{err}");
    }
}

/// Runs `tailwater` in a terminal; returns everything it printed.
async fn at_a_terminal(args: &[&str]) -> String {
    let spawn = "import pty, sys; sys.exit(pty.spawn(sys.argv[1:]) >> 8)";
    let mut command = tokio::process::Command::new(crate::support::python("python"));
    command
        .args(["-c", spawn, env!("CARGO_BIN_EXE_tailwater")])
        .args(args)
        .stdin(Stdio::null());
    let out = within(
        "a command at a terminal",
        command.kill_on_drop(true).output(),
    )
    .await
    .unwrap();
    String::from_utf8(out.stdout).unwrap()
}

#[tokio::test]
async fn output_cannot_control_the_terminal() {
    let said = r"printf 'one\n\033]0;title\007two'; exit 3";
    let up = up(TempDir::new().unwrap(), &["sh", "-c", said]).await;
    let submit = |id: &'static str, how: &'static str| {
        [
            "submit", "--kind", "exec", "--id", id, how, "--nats", &up.nats,
        ]
        .map(str::to_owned)
    };
    let watched = submit("watched", "--watch");
    let watched = at_a_terminal(&watched.each_ref().map(String::as_str)).await;
    assert!(
        watched.starts_with("one\r\n␛]0;title␇two\r\n"),
        "{watched:?}"
    );
    assert!(!watched.contains('\x1b'), "{watched:?}");
    let waited = submit("waited", "--wait");
    let waited = at_a_terminal(&waited.each_ref().map(String::as_str)).await;
    assert!(waited.starts_with("one\r\n␛]0;title␇two\r\n"), "{waited:?}");
    // A pipe gets the output unchanged.
    let (code, out, _) = run(submit("piped", "--watch")).await;
    assert_eq!((code, out.as_str()), (1, "one\n\x1b]0;title\x07two"));
}

#[tokio::test]
async fn an_edge_serves_a_page_to_browsers() {
    let system = System::on(Broker::shared_one()).await;
    let edge = system.edge().await;
    let page = format!("http://{}/", edge.addr);
    let curl = ["-sS", "-w", "\n%{content_type}", &page];
    let out = within(
        "a page",
        tokio::process::Command::new("curl").args(curl).output(),
    )
    .await
    .unwrap();
    let out = String::from_utf8(out.stdout).unwrap();
    assert!(out.contains("<title>Tailwater edge</title>"), "{out}");
    assert!(out.ends_with("\ntext/html; charset=utf-8"), "{out}");
    system.end().await;
}
