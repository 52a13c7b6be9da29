use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use tailwater::process_group::Signal;
use tailwater::wire::Status;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;

use crate::support::broker::{self, Broker};
use crate::support::client::{Client, Seen, follow};
use crate::support::http::metric;
use crate::support::process::{Process, Ran, at_a_terminal, run, run_program, tailwater};
use crate::support::system::{System, text, words};
use crate::support::up::up;
use crate::support::{eventually, python, root, until};

/// Whether a process listens on this address.
async fn is_open(addr: &str) -> bool {
    tokio::net::TcpStream::connect(addr.trim_start_matches("nats://"))
        .await
        .is_ok()
}

#[tokio::test]
async fn up_serves_a_demo_and_a_program_and_leaves_nothing_behind() {
    let program = ["sh", "-c", "cat; echo; echo done"];
    let mut first = up(TempDir::new().unwrap(), &program).await;
    let submit =
        async |nats: &str, line: &str| tailwater(&format!("submit --nats {nats} {line}")).await;
    let input = words(20, 100, 3);
    let demo = format!("--kind demo --watch --input {input}");
    assert_eq!(submit(&first.nats, &demo).await.prints(), text(&input));
    let exec = r#"--kind exec --watch --input {"a":[1,"é"]}"#;
    let printed = submit(&first.nats, exec).await.prints();
    assert_eq!(printed, "{\"a\":[1,\"é\"]}\ndone\n");
    first.process.signal(Signal::INT);
    let limit = Duration::from_secs(5);
    assert!(first.process.ends_within(limit).await.success());
    assert!(!is_open(&first.nats).await);
    // The stored jobs are still there.
    let mut again = up(first.dir, &[]).await;
    let stored = submit(&again.nats, "--kind exec --input 1 --id x").await;
    assert_eq!(stored.prints().trim(), "x");
    again.process.signal(Signal::TERM);
    again.process.ends_within(limit).await;
}

#[tokio::test]
async fn killing_up_ends_its_broker_and_programs() {
    let dir = TempDir::new().unwrap();
    let lock = dir.path().join("lock");
    // The program holds a file lock while it runs.
    let program = format!("exec 9>{}; flock 9; echo begun; sleep 600", lock.display());
    let up = up(TempDir::new().unwrap(), &["sh", "-c", &program]).await;
    let submit = format!("submit --kind exec --id sleeps --nats {}", up.nats);
    tailwater(&submit).await.prints();
    let is_free = || std::fs::File::create(&lock).unwrap().try_lock().is_ok();
    until("the program", async || !is_free()).await;
    up.process.kill_alone();
    until("the end of the program", async || is_free()).await;
    until("the end of the broker", async || !is_open(&up.nats).await).await;
}

#[tokio::test]
async fn up_reports_each_startup_error_in_one_line() {
    let bound = TcpListener::bind("127.0.0.1:0").unwrap();
    let busy = bound.local_addr().unwrap().to_string();
    let dir = TempDir::new().unwrap();
    let data = dir.path().to_str().unwrap();
    let program = broker::program().to_str().unwrap();
    let old = dir.path().join("old-nats");
    std::fs::write(&old, "#!/bin/sh\nexit 3\n").unwrap();
    std::fs::set_permissions(&old, std::fs::Permissions::from_mode(0o755)).unwrap();
    let old = old.to_str().unwrap();
    let held = up(TempDir::new().unwrap(), &[]).await;
    let used = held.dir.path().to_str().unwrap();
    let free = "127.0.0.1:0";
    let large = format!("{program} --max-bytes 1000000000000000");
    for (listen, data, server, error) in [
        (&*busy, data, program, &*format!("cannot listen on {busy}")),
        (
            free,
            data,
            "/no/such/file",
            "no nats-server at /no/such/file",
        ),
        (free, data, old, "nats-server did not start"),
        (
            free,
            "/dev/null/x",
            program,
            "cannot make the data directory",
        ),
        (
            free,
            data,
            &large,
            "disk space that stream TW_CHUNKS_0 reserves",
        ),
        (free, used, program, "is in use by another"),
    ] {
        let line = format!("up --listen {listen} --data-dir {data} --nats-server {server}");
        tailwater(&line).await.refuses(error);
    }
}

#[tokio::test]
async fn an_edge_that_others_can_reach_refuses_to_start_unless_it_is_said_who_may_use_it() {
    for listen in ["0.0.0.0:0", "[::]:0", "192.0.2.1:4000"] {
        for command in ["edge", "up"] {
            let ran = tailwater(&format!("{command} --listen {listen}")).await;
            let error = ran.refuses("can be reached by others");
            for flag in ["--auth jwt", "--auth token", "--auth none"] {
                assert!(error.contains(flag), "{flag}: {error}");
            }
        }
    }
    // With the flag, the edge goes on to what it does next.
    let unreachable = "--nats nats://127.0.0.1:1 --nats-wait 100ms";
    let said = format!("edge --threads 1 --listen 0.0.0.0:0 --auth none {unreachable}");
    tailwater(&said).await.fails(2, "cannot reach NATS");
    for (flags, error) in [
        (
            "--auth none --auth-jwks https://id.example/keys",
            "uses no keys",
        ),
        ("--auth token", "needs --auth-tokens FILE"),
        ("--auth jwt", "needs --auth-secret FILE or --auth-jwks"),
        ("--auth jwt --auth-jwks http://id.example/keys", "use https"),
        ("--auth jwt --auth-jwks /no/such/file", "is not a file"),
        (
            "--auth jwt --auth-secret /no/such/file",
            "cannot read /no/such/file",
        ),
        ("--allow-origin app.example", "is not an origin"),
        (
            "--allow-origin https://app.example/path",
            "is not an origin",
        ),
        ("--trusted-proxy 10.0.0.0/99", "is not a network"),
    ] {
        let line = format!("edge --listen 127.0.0.1:0 {flags}");
        tailwater(&line).await.refuses(error);
    }
}

/// A server that announces an old version.
async fn serve_old_version(listener: tokio::net::TcpListener) {
    loop {
        let (mut socket, _) = listener.accept().await.unwrap();
        let info = json!({"server_id": "x", "server_name": "x", "version": "2.9.10", "go": "go1",
            "host": "h", "port": 1, "headers": true, "max_payload": 1_048_576, "proto": 1,
            "client_id": 1, "client_ip": "127.0.0.1"});
        let greeting = format!("INFO {info}\r\n");
        socket.write_all(greeting.as_bytes()).await.unwrap();
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
}

#[tokio::test]
async fn outdated_and_unprepared_servers_are_reported() {
    let state = async |flags: &str| tailwater(&format!("state j --nats {flags}")).await;
    let old = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("nats://{}", old.local_addr().unwrap());
    let ran: Ran = tokio::select! {
        ran = state(&url) => ran,
        () = serve_old_version(old) => unreachable!("it never returns"),
    };
    assert!(ran.err.contains("nats-server 2.9.10 at"), "{ran:?}");
    ran.fails(2, "needs 2.12.3");
    let unprepared = format!("{} --prefix unknown", Broker::shared_one().url());
    let setup = "run `tailwater setup` first";
    state(&unprepared).await.fails(2, setup);
    let nowhere = "cannot reach NATS at nats://127.0.0.1:1";
    let ran = state("nats://127.0.0.1:1 --nats-wait 0s").await;
    ran.fails(2, nowhere);
}

#[tokio::test]
async fn setup_is_idempotent_and_refuses_conflicting_streams() {
    let url = Broker::shared_one().url();
    let setup = async |flags: &str| {
        let line = format!("setup --nats {url} --prefix setup --max-bytes 1048576 {flags}");
        tailwater(&line).await
    };
    let ready = "ready: 2 shards\n";
    assert_eq!(setup("--shards 2").await.prints(), ready);
    setup("--shards 2").await.prints();
    let changed = |shard| {
        format!(
            "stream SETUP_CHUNKS_{shard}: max_age changed from 86400000000000 to 3600000000000\n"
        )
    };
    let printed = setup("--shards 2 --max-age 1h").await.prints();
    assert_eq!(printed, changed(0) + &changed(1) + ready);
    // Settings that are not named stay the same.
    assert_eq!(setup("--shards 2").await.prints(), ready);
    let replicas = setup("--shards 2 --replicas 3").await;
    replicas.fails(2, "exists and differs");
    let shards = setup("--shards 3").await;
    shards.fails(2, "tailwater.shards: there \"2\", declared \"3\"");
}

#[tokio::test]
async fn tail_follows_resumes_and_reports_the_outcome() {
    let system = System::on(Broker::shared_one()).await;
    system.demo().await;
    let edge = system.edge().await;
    let input = words(80, 80, 5);
    let job = system.submit("tail", input.clone()).await;
    let tail = format!(
        "tail tail --edge http://{} --drop-after 4 --summary",
        edge.addr
    );
    let ran = system.run(&tail).await;
    let summary = "· missing 0 · duplicated 0 · resumed at seq 5";
    assert!(ran.err.contains(summary), "{ran:?}");
    assert_eq!(ran.prints(), text(&input));
    // Without an edge, from a sequence number, as JSON.
    let printed = system.run("tail tail --after 3 --json").await.prints();
    let events = printed
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    let seqs: Vec<_> = events.map(|event| event["seq"].as_u64().unwrap()).collect();
    let state = system.ended(&job).await;
    assert_eq!(seqs, (4..=state.seq.0).collect::<Vec<_>>());
    let printed = system.run("state tail").await.prints();
    let state: Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(state["output"], text(&input));
    system.submit("bad", json!({"words": -1})).await;
    system.run("tail bad").await.fails(1, "bad_input");
    system.submit("endless", words(10_000, 20, 1)).await;
    let seq = system.run("cancel endless --by me").await.prints();
    assert!(seq.trim().parse::<u64>().is_ok(), "{seq}");
    system.run("tail endless").await.fails(3, "was cancelled");
    for (line, code) in [
        ("cancel endless", 2),
        ("state unknown", 2),
        ("state no.body", 64),
        ("submit --kind unknown", 2),
    ] {
        assert_eq!(system.run(line).await.code, code, "{line}");
    }
    system.end().await;
}

#[tokio::test]
async fn an_edge_with_several_threads_serves_clients_on_each_of_them() {
    let system = System::on(Broker::shared_one()).await;
    let (mut edge, addr) = system.edge_process(&["--threads", "3"]).await;
    let input = words(40, 40, 2);
    // It waits for a worker until all clients watch it.
    system.submit("threads", input.clone()).await;
    let mut clients = join_all((0..60).map(|_| async {
        let mut client = Client::connect(&addr).await;
        let mut seen = Seen::of("threads");
        client.watch(&seen).await;
        seen.step(&mut client).await;
        (client, seen)
    }))
    .await;
    // Three of each thread, and one more of each that has a watched job, for its live copies. All
    // of 60 clients miss one of three threads once in 10^10 runs.
    until("a watched job on each thread", async || {
        let connections = "tailwater_nats_connections{state=\"up\"}";
        metric(&addr, "", connections).await == 12.0
    })
    .await;
    system.demo().await;
    let following = clients.iter_mut().map(|(client, seen)| seen.follow(client));
    join_all(following).await;
    for (_, seen) in &clients {
        seen.assert_text(text(&input));
    }
    edge.signal(Signal::TERM);
    assert!(edge.ends_within(Duration::from_secs(5)).await.success());
    system.end().await;
}

#[tokio::test]
async fn the_python_example_runs_jobs() {
    let up = up(TempDir::new().unwrap(), &[]).await;
    let example = root().join("examples/worker.py");
    let library = root().join("clients/python/src");
    let env = [
        ("TAILWATER_NATS", up.nats.as_str()),
        ("PYTHONPATH", library.to_str().unwrap()),
    ];
    let args = [example.to_str().unwrap()];
    let mut worker = Process::start_program(&python("python"), args, &env, Stdio::inherit());
    assert_eq!(worker.says("serves ").await, "shout");
    let submit = "submit --kind shout --id py --watch --nats".split(' ');
    let input = [&up.nats, "--input", "\"häppy little words\""];
    let printed = run(submit.chain(input)).await.prints();
    assert_eq!(printed, "HÄPPY LITTLE WORDS ");
    let seen = follow(&up.addr, "py").await;
    seen.assert_whole();
    // The first word is published at once; others that arrive within 100 ms are gathered.
    let chunks = seen.of_type("model:chunk:v1").len();
    assert!((2..=3).contains(&chunks), "{chunks}");
}

#[tokio::test]
async fn a_declared_kind_accepts_jobs_before_its_first_worker() {
    let system = System::on(Broker::shared_one()).await;
    let submit = "submit --kind later --id early";
    let undeclared = system.run(submit).await;
    undeclared.fails(2, "tailwater setup --kind later");
    let setup = "setup --shards 2 --replicas 1 --kind later --kind other";
    let printed = system.run(setup).await.prints();
    assert_eq!(printed, "ready: 2 shards\nkind later\nkind other\n");
    system.run(submit).await.prints();
    let state = system.state(&"early".parse().unwrap()).await.unwrap();
    assert_eq!(state.status, Status::Queued);
    system.end().await;
}

#[tokio::test]
async fn tail_reports_a_job_that_does_not_exist() {
    let system = System::on(Broker::shared_one()).await;
    system.demo().await;
    let edge = system.edge().await;
    let by_edge = vec!["--edge".to_owned(), format!("http://{}", edge.addr)];
    for (job, source) in [("late-1", system.flags()), ("late-2", by_edge)] {
        let tail = |args: &str| {
            let args = args.split(' ').map(str::to_owned);
            args.chain(source.clone()).collect::<Vec<_>>()
        };
        let ran = run(tail("tail mistyped --must-exist")).await;
        assert_eq!(ran.out, "");
        ran.fails(2, "there is no job mistyped");
        let mut tail = Process::start_with(tail(&format!("tail {job}")), &[], Stdio::piped());
        let waits = format!("tailwater: waiting for job {job}, which does not exist yet");
        assert_eq!(tail.complains().await, waits);
        system.submit(job, words(3, 0, 1)).await;
        assert!(tail.ends_within(Duration::from_secs(20)).await.success());
    }
    system.end().await;
}

#[tokio::test]
async fn up_reports_its_nats_port_when_the_default_is_taken() {
    // Another test may have the port, but not until `up` looks at it.
    let _taken = eventually("the port 4222", async || {
        TcpListener::bind("127.0.0.1:4222").ok()
    })
    .await;
    let dir = TempDir::new().unwrap();
    let program = broker::program().display();
    let data = dir.path().display();
    let up = format!("up --listen 127.0.0.1:0 --data-dir {data} --nats-server {program}");
    let mut up = Process::start_with(up.split(' '), &[], Stdio::piped());
    let url = up.says("nats ").await;
    let said = up.complains_of("port 4222").await;
    assert!(
        said.contains("port 4222 is in use by another program"),
        "{said}"
    );
    let advice = format!("--nats {url} or TAILWATER_NATS={url}");
    assert!(said.ends_with(&advice), "{said}");
}

#[tokio::test]
async fn an_edge_prints_ready_once_it_serves() {
    let url = Broker::shared_one().url();
    let edge = format!("edge --listen 127.0.0.1:0 --prefix unknown --nats {url} --threads");
    for threads in [1, 3] {
        let ran = tailwater(&format!("{edge} {threads}")).await;
        assert_eq!(ran.out, "");
        ran.fails(2, "run `tailwater setup` first");
    }
}

#[tokio::test]
async fn output_cannot_control_the_terminal() {
    let said = r"printf 'one\n\033]0;title\007two'; exit 3";
    let up = up(TempDir::new().unwrap(), &["sh", "-c", said]).await;
    for flag in ["--watch", "--wait"] {
        let submit = format!("submit --kind exec --nats {} {flag}", up.nats);
        let shown = at_a_terminal(&submit).await;
        assert!(shown.starts_with("one\r\n␛]0;title␇two\r\n"), "{shown:?}");
        assert!(!shown.contains('\x1b'), "{shown:?}");
    }
    // A pipe gets the output unchanged.
    let piped = tailwater(&format!("submit --kind exec --watch --nats {}", up.nats)).await;
    assert_eq!((piped.code, &*piped.out), (1, "one\n\x1b]0;title\x07two"));
}

#[tokio::test]
async fn an_edge_serves_a_page_to_browsers() {
    let system = System::on(Broker::shared_one()).await;
    let edge = system.edge().await;
    let page = format!("http://{}/", edge.addr);
    let mut curl = Command::new("curl");
    curl.args(["-sS", "-w", "\n%{content_type}", &page]);
    let out = run_program(&mut curl).await.prints();
    assert!(out.contains("<title>Tailwater console</title>"), "{out}");
    assert!(out.ends_with("\ntext/html; charset=utf-8"), "{out}");
    system.end().await;
}
