//! Runs real programs. The formats have their own tests.

use std::sync::Arc;

use serde_json::json;
use tempfile::TempDir;
use tokio::sync::mpsc::Receiver;
use tokio::time::{Instant, sleep};

use super::*;
use crate::backend::{Channel, Content, Piece};
use crate::config::OUTPUT_BUFFER_MAX;
use crate::guard::tests::{HeldFifo, SOON, program, shell};

fn exec(format: Format, command: Vec<OsString>) -> Exec {
    Exec {
        command,
        format,
        continues: false,
        env: Vec::new(),
        guard: None,
    }
}

fn script(format: Format, script: &str) -> Exec {
    exec(format, shell(script))
}

fn job(input: Value) -> Job {
    Job {
        attempt: 3,
        ..crate::backend::tests::job("j1", "exec", input)
    }
}

async fn contents(mut taken: Receiver<Piece>) -> Vec<Content> {
    let mut contents = Vec::new();
    while let Some(piece) = taken.recv().await {
        contents.push(piece.content);
    }
    contents
}

async fn run_with(exec: &Exec, input: Value) -> (Result<Finish, Failure>, Vec<Content>) {
    let (out, taken) = Output::new();
    timeout(SOON, async {
        tokio::join!(exec.run(job(input), out), contents(taken))
    })
    .await
    .unwrap()
}

async fn run(exec: &Exec) -> (Result<Finish, Failure>, Vec<Content>) {
    run_with(exec, Value::Null).await
}

async fn failed(exec: &Exec) -> Failure {
    run(exec).await.0.unwrap_err()
}

fn done() -> Result<Finish, Failure> {
    Ok(Finish {
        usage: None,
        finish_reason: Some("stop".into()),
    })
}

fn text(text: &str) -> Content {
    Content::Text {
        channel: Channel::Output,
        text: text.into(),
    }
}

fn joined(contents: &[Content]) -> String {
    let text = |content: &Content| match content {
        Content::Text { text, .. } => text.clone(),
        Content::Data(data) => panic!("data: {data}"),
    };
    contents.iter().map(text).collect()
}

/// Waits until `holds` returns true.
async fn until(mut holds: impl FnMut() -> bool) {
    let wait = async {
        while !holds() {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(SOON, wait).await.unwrap();
}

#[tokio::test]
async fn the_input_arrives_on_standard_input_and_the_job_in_the_environment() {
    let program = script(
        Format::Text,
        "cat; echo; echo $TAILWATER_JOB $TAILWATER_KIND $TAILWATER_ATTEMPT",
    );
    let (end, seen) = run_with(&program, json!({"prompt": "héllo\n"})).await;
    assert_eq!(end, done());
    assert_eq!(joined(&seen), "{\"prompt\":\"héllo\\n\"}\nj1 exec 3\n");
}

#[tokio::test]
async fn a_program_and_its_guard_do_not_inherit_the_environment() {
    // Cargo sets it for every test.
    assert!(std::env::var_os("CARGO_PKG_NAME").is_some());
    let names = |contents: &[Content]| -> Vec<String> {
        let text = joined(contents);
        let names = text
            .split(['\n', '\0'])
            .filter_map(|line| line.split_once('='))
            .map(|(name, _)| name.to_owned());
        names
            .filter(|name| {
                name.starts_with("TAILWATER_") || name.starts_with("CARGO_") || name == "MODE"
            })
            .collect()
    };
    let env = vec![
        "MODE=fast".parse().unwrap(),
        "CARGO_PKG_NAME".parse().unwrap(),
        "TAILWATER_JOB=x".parse().unwrap(),
    ];
    let exec = Exec {
        env,
        ..script(Format::Text, "env | sort")
    };
    let (end, seen) = run(&exec).await;
    assert_eq!(end, done());
    let expected = [
        "CARGO_PKG_NAME",
        "MODE",
        "TAILWATER_ATTEMPT",
        "TAILWATER_JOB",
        "TAILWATER_KIND",
    ];
    assert_eq!(names(&seen), expected);
    assert!(
        joined(&seen).contains("TAILWATER_JOB=j1\n")
            && joined(&seen).contains("PYTHONUNBUFFERED=1\n")
    );
    let directory = tempfile::tempdir().unwrap();
    let guard = Some(program(directory.path()));
    let parent = Exec {
        guard,
        ..script(Format::Text, "cat /proc/$PPID/environ")
    };
    let (end, seen) = run(&parent).await;
    assert_eq!(end, done());
    assert!(
        !names(&seen).contains(&"CARGO_PKG_NAME".to_owned()),
        "{seen:?}"
    );
}

#[tokio::test]
async fn python_output_arrives_before_the_program_ends() {
    let mut held = HeldFifo::new();
    let go = HeldFifo::new();
    let prints =
        "python3 -c \"import os; print('now'); os.write(3, b'printed\\n'); os.read(4, 1)\"";
    let program = exec(Format::Text, held.shell_with(&go, prints));
    let (out, mut taken) = Output::new();
    let reader = async {
        held.expect_line("printed").await;
        // Python writes the end of the line separately.
        let mut printed = Vec::new();
        while joined(&printed) != "now\n" {
            printed.push(taken.recv().await.unwrap().content);
        }
        go.write_line();
    };
    let run = async { tokio::join!(program.run(job(Value::Null), out), reader) };
    assert_eq!(timeout(SOON, run).await.unwrap().0, done());
}

#[tokio::test]
async fn a_large_input_arrives_whole_while_the_output_is_read() {
    let input = json!("x".repeat(500 * 1024));
    let (end, seen) = run_with(&exec(Format::Text, vec!["cat".into()]), input.clone()).await;
    assert_eq!(end, done());
    assert_eq!(joined(&seen), input.to_string());
}

#[tokio::test]
async fn a_program_does_not_have_to_read_a_large_input() {
    for ignores in ["echo hi", "exec 0<&-; echo hi; exec 1>&-; sleep 0.3"] {
        let (end, seen) = run_with(
            &script(Format::Lines, ignores),
            json!("x".repeat(500 * 1024)),
        )
        .await;
        assert_eq!((end, seen), (done(), vec![text("hi\n")]));
    }
}

#[tokio::test]
async fn a_character_in_two_writes_arrives_whole() {
    // The second half is written after the test has the first piece.
    let mut held = HeldFifo::new();
    let go = HeldFifo::new();
    let halves = "printf 'a\\342\\202'; echo half >&3; read line <&4; printf '\\254'";
    let program = exec(Format::Text, held.shell_with(&go, halves));
    let (out, mut taken) = Output::new();
    let reader = async {
        assert_eq!(taken.recv().await.unwrap().content, text("a"));
        held.expect_line("half").await;
        go.write_line();
        contents(taken).await
    };
    let run = async { tokio::join!(program.run(job(Value::Null), out), reader) };
    let (end, rest) = timeout(SOON, run).await.unwrap();
    assert_eq!((end, rest), (done(), vec![text("€")]));
}

#[tokio::test]
async fn lines_arrive_one_by_one_and_the_last_one_may_have_no_newline() {
    let (end, seen) = run(&script(Format::Lines, "printf 'a\\nb'; printf 'c\\n\\nd'")).await;
    assert_eq!(
        (end, seen),
        (
            done(),
            vec![text("a\n"), text("bc\n"), text("\n"), text("d")]
        )
    );
}

#[tokio::test]
async fn json_lines_become_text_on_its_channel_and_data() {
    let lines = r#"echo '{"text":"a","channel":"reasoning"}'; echo; echo '{"tokens":7}'; printf '{"text":"b"}'"#;
    let (end, seen) = run(&script(Format::Ndjson, lines)).await;
    let thought = Content::Text {
        channel: Channel::Reasoning,
        text: "a".into(),
    };
    assert_eq!(
        (end, seen),
        (
            done(),
            vec![thought, Content::Data(json!({"tokens": 7})), text("b")]
        )
    );
}

#[tokio::test]
async fn a_line_that_is_not_json_fails_the_job_at_once_and_ends_the_program() {
    let mut held = HeldFifo::new();
    let program = exec(
        Format::Ndjson,
        held.shell("echo 1; echo two; exec sleep 1000"),
    );
    let (end, seen) = run(&program).await;
    let failure = end.unwrap_err();
    assert_eq!(
        (failure.code.as_str(), failure.retry),
        ("bad_output", Retry::Never)
    );
    assert!(
        failure.message.starts_with("line 2 "),
        "{}",
        failure.message
    );
    assert_eq!(seen, [Content::Data(json!(1))]);
    held.until_free().await;
}

#[tokio::test]
async fn an_exit_status_fails_with_the_last_lines_of_standard_error() {
    let program = script(
        Format::Text,
        "echo out; i=0; while [ $i -lt 30 ]; do i=$((i+1)); echo e$i >&2; done; exit 3",
    );
    let (end, seen) = run(&program).await;
    let last: Vec<String> = (11..=30).map(|number| format!("e{number}")).collect();
    let message = format!("exit status 3: {}", last.join("\n"));
    assert_eq!(end, Err(Failure::fatal("exit_status", message)));
    assert_eq!(seen, [text("out\n")]);
    assert_eq!(
        failed(&script(Format::Text, "exit 127")).await.message,
        "exit status 127"
    );
}

#[tokio::test]
async fn a_flood_on_standard_error_does_not_block_and_is_cut() {
    let flood = "head -c 3000000 /dev/zero | tr '\\0' e >&2; echo; exit 1";
    let failure = failed(&script(Format::Text, flood)).await;
    assert!(failure.message.starts_with("exit status 1: eee"));
    assert!(failure.message.len() < 4_200, "{}", failure.message.len());
}

#[tokio::test]
async fn a_signal_fails_the_job_with_its_number() {
    let failure = failed(&script(Format::Text, "echo ouch >&2; kill -9 $$")).await;
    assert_eq!(
        (failure.code.as_str(), failure.retry),
        ("killed_by_signal", Retry::Never)
    );
    assert_eq!(failure.message, "killed by signal 9: ouch");
}

#[tokio::test]
async fn a_program_that_cannot_be_started_fails_the_same_way_with_and_without_a_guard() {
    let directory = tempfile::tempdir().unwrap();
    let guard = program(directory.path());
    for name in ["/nowhere/at-all", "no-such-program-in-the-path", "/"] {
        let plain = exec(Format::Text, vec![name.into(), "x".into()]);
        let failure = failed(&plain).await;
        assert_eq!(
            (failure.code.as_str(), failure.retry),
            ("cannot_start", Retry::Never)
        );
        assert!(
            failure
                .message
                .starts_with(&format!("cannot start {name}: ")),
            "{}",
            failure.message
        );
        assert_eq!(
            failed(&Exec {
                guard: Some(guard.clone()),
                ..plain
            })
            .await,
            failure
        );
    }
    let no_guard = Exec {
        guard: Some("/nowhere/guard".into()),
        ..script(Format::Text, "exit 0")
    };
    assert!(
        failed(&no_guard)
            .await
            .message
            .starts_with("cannot start /nowhere/guard: ")
    );
    assert_eq!(
        failed(&exec(Format::Text, vec![])).await.code,
        "cannot_start"
    );
}

#[tokio::test]
async fn a_program_ends_the_same_way_with_and_without_a_guard() {
    let directory = tempfile::tempdir().unwrap();
    let guarded = |line: &str| Exec {
        guard: Some(program(directory.path())),
        ..script(Format::Text, line)
    };
    let (end, seen) = run_with(&guarded("cat; printf ' %s' $TAILWATER_JOB"), json!([1])).await;
    assert_eq!(end, done());
    // The test binary, which is the guard, also prints lines before it.
    assert!(joined(&seen).ends_with("[1] j1"), "{seen:?}");
    assert_eq!(
        failed(&guarded("echo no >&2; exit 3")).await.message,
        "exit status 3: no"
    );
    assert_eq!(
        failed(&guarded("exit 127")).await.message,
        "exit status 127"
    );
    let killed = failed(&guarded("kill -9 $$")).await;
    assert_eq!(
        (killed.code.as_str(), killed.message.as_str()),
        ("killed_by_signal", "killed by signal 9")
    );
}

/// Runs until the program has printed `ready`, then cancels the job. Returns how long it took to
/// end.
async fn stopped(exec: &Exec, grace: Duration, held: &mut HeldFifo) -> Duration {
    let (out, taken) = Output::new();
    let job = job(Value::Null);
    let stop = job.stop.clone();
    let cancel = async {
        held.expect_line("ready").await;
        stop.cancel();
        Instant::now()
    };
    let run = async {
        tokio::join!(
            exec.run_with_grace(grace, job, out),
            cancel,
            contents(taken)
        )
    };
    let (end, cancelled, _) = timeout(SOON, run).await.unwrap();
    assert_eq!(end.unwrap_err().code, "stopped");
    cancelled.elapsed()
}

#[tokio::test]
async fn a_stop_ends_an_obedient_program_at_once_and_lets_its_children_clean_up() {
    let mut held = HeldFifo::new();
    let child =
        "(trap 'echo cleaned >&3; exit' TERM; echo ready >&3; while :; do sleep 0.05; done) & wait";
    // Nothing but the program itself ends it as soon as this.
    stopped(&exec(Format::Text, held.shell(child)), SOON * 2, &mut held).await;
    assert_eq!(held.until_free().await, "cleaned\n");
}

#[tokio::test]
async fn a_program_that_ignores_a_stop_is_killed_with_its_children() {
    let mut held = HeldFifo::new();
    let directory = tempfile::tempdir().unwrap();
    let stubborn = "trap '' TERM; (echo ready >&3; sleep 1000) & sleep 1000";
    for guard in [None, Some(program(directory.path()))] {
        let exec = Exec {
            guard,
            ..exec(Format::Text, held.shell(stubborn))
        };
        let took = stopped(&exec, EXEC_STOP_GRACE, &mut held).await;
        assert!(
            took >= EXEC_STOP_GRACE && took < Duration::from_secs(3),
            "{took:?}"
        );
        assert_eq!(held.until_free().await, "");
        held = HeldFifo::new();
    }
}

#[tokio::test]
async fn a_dropped_run_kills_the_whole_group() {
    let mut held = HeldFifo::new();
    let stubborn = exec(
        Format::Text,
        held.shell("trap '' TERM; (echo ready >&3; sleep 1000) & sleep 1000"),
    );
    let (out, _taken) = Output::new();
    tokio::select! {
        end = stubborn.run(job(Value::Null), out) => panic!("it ended: {end:?}"),
        () = held.expect_line("ready") => {}
    }
    assert_eq!(held.until_free().await, "");
}

#[tokio::test]
async fn a_program_that_waits_for_the_log_can_be_stopped() {
    let mut held = HeldFifo::new();
    let flood = "echo ready >&3; head -c 4000000 /dev/zero | tr '\\0' x; echo done >&3; sleep 1000";
    let (out, taken) = Output::new();
    let permits = Arc::clone(&out.permits);
    let job = job(Value::Null);
    let stop = job.stop.clone();
    let exec = exec(Format::Text, held.shell(flood));
    let cancel = async {
        held.expect_line("ready").await;
        until(|| permits.available_permits() == 0).await;
        stop.cancel();
    };
    let run = async { tokio::join!(exec.run(job, out), cancel) };
    let (end, ()) = timeout(SOON, run).await.unwrap();
    assert_eq!(end.unwrap_err().code, "stopped");
    assert!(joined(&contents(taken).await).len() <= OUTPUT_BUFFER_MAX);
    assert_eq!(held.until_free().await, "");
}

#[tokio::test]
async fn no_output_is_lost_when_the_log_is_slow() {
    let (out, mut taken) = Output::new();
    let permits = Arc::clone(&out.permits);
    let exec = script(
        Format::Text,
        "head -c 1200000 /dev/zero | tr '\\0' x; echo end",
    );
    let reader = async {
        until(|| permits.available_permits() == 0).await;
        let mut length = 0;
        while let Some(piece) = taken.recv().await {
            length += match &piece.content {
                Content::Text { text, .. } => text.len(),
                Content::Data(data) => panic!("data: {data}"),
            };
            // In total longer than processes left behind are waited for, and long after the program
            // has ended.
            sleep(Duration::from_millis(20)).await;
        }
        length
    };
    let run = async { tokio::join!(exec.run(job(Value::Null), out), reader) };
    let (end, length) = timeout(SOON, run).await.unwrap();
    assert_eq!((end, length), (done(), 1_200_004));
}

#[tokio::test]
async fn processes_left_behind_have_a_second_to_finish_and_are_then_killed() {
    let mut held = HeldFifo::new();
    let began = Instant::now();
    let leaves = "(echo late; sleep 1000) & echo main; exit 0";
    let (end, seen) = run(&exec(Format::Lines, held.shell(leaves))).await;
    assert_eq!(end, done());
    let mut lines = joined(&seen).lines().map(str::to_owned).collect::<Vec<_>>();
    lines.sort_unstable();
    assert_eq!(lines, ["late", "main"]);
    assert!((Duration::from_secs(1)..Duration::from_secs(2)).contains(&began.elapsed()));
    assert_eq!(held.until_free().await, "");
}

#[tokio::test]
async fn processes_left_behind_are_killed_even_if_they_write_elsewhere_or_without_end() {
    for leaves in ["sleep 1000 >/dev/null 2>&1 & exit 0", "yes & exit 0"] {
        let mut held = HeldFifo::new();
        let (end, _) = run(&exec(Format::Text, held.shell(leaves))).await;
        assert_eq!(end, done());
        assert_eq!(held.until_free().await, "");
    }
}

#[tokio::test]
async fn a_process_that_left_the_group_cannot_hold_a_job_open() {
    let mut held = HeldFifo::new();
    let go = HeldFifo::new();
    let left = HeldFifo::new();
    // With a limit, because nothing kills another group.
    let other = "setsid timeout 60 sh -c 'echo >&5; read line <&4; echo released >&3'";
    let leaves = format!(
        "exec 5<>'{}'; {other} & read line <&5; echo main; exit 0",
        left.path().display()
    );
    let (end, seen) = run(&exec(Format::Text, held.shell_with(&go, &leaves))).await;
    assert_eq!((end, joined(&seen).as_str()), (done(), "main\n"));
    // It still runs.
    go.write_line();
    held.expect_line("released").await;
    assert_eq!(held.until_free().await, "");
}

#[tokio::test]
async fn a_run_ends_when_its_output_is_no_longer_read() {
    let mut held = HeldFifo::new();
    let (out, taken) = Output::new();
    drop(taken);
    let flood = exec(Format::Text, held.shell("yes"));
    let end = timeout(SOON, flood.run(job(Value::Null), out))
        .await
        .unwrap();
    assert_eq!(end.unwrap_err().code, "stopped");
    held.until_free().await;
}

#[tokio::test]
async fn many_programs_run_at_the_same_time_and_each_is_reaped() {
    let runs = (0..20).map(|number| async move {
        let (end, seen) = run(&script(
            Format::Text,
            &format!("echo {number}; exit {number}"),
        ))
        .await;
        assert_eq!(joined(&seen), format!("{number}\n"));
        assert_eq!(
            end.map_err(|failure| failure.message).err(),
            (number > 0).then(|| format!("exit status {number}"))
        );
    });
    futures_util::future::join_all(runs).await;
}

#[tokio::test]
async fn a_worker_killed_by_kill_9_leaves_no_program_behind() {
    let mut held = HeldFifo::new();
    let directory: TempDir = tempfile::tempdir().unwrap();
    let mut worker = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "backend::exec::tests::act_as_a_worker",
            "--ignored",
        ])
        .env("TAILWATER_TEST_GUARD", program(directory.path()))
        .env("TAILWATER_TEST_HELD", held.path())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    held.expect_line("ready").await;
    worker.start_kill().unwrap();
    assert_eq!(held.until_free().await, "");
}

#[tokio::test]
#[ignore = "another test runs it as a process of its own"]
async fn act_as_a_worker() {
    let Some(guard) = std::env::var_os("TAILWATER_TEST_GUARD") else {
        return;
    };
    let held = std::env::var_os("TAILWATER_TEST_HELD")
        .unwrap()
        .into_string()
        .unwrap();
    let stubborn =
        format!("exec 3>'{held}'; trap '' TERM HUP; (echo ready >&3; sleep 1000) & sleep 1000");
    let exec = Exec {
        guard: Some(guard.into()),
        ..script(Format::Text, &stubborn)
    };
    let (out, _taken) = Output::new();
    let _ = exec.run(job(Value::Null), out).await;
}
