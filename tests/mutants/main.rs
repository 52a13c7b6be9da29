//! Tests the tests of `src/resume`: makes each mistake of a list in a copy of the folder, whose own
//! tests must then fail.

mod list;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use list::{MUTANTS, Mutant};

/// How many mutants are compiled and run at a time, so that the machine stays usable.
const AT_ONCE: usize = 2;
/// How long the tests of one mutant may run. They take about a second unless a mutant loops.
const RUN_MAX: Duration = Duration::from_secs(60);

/// The result of a copy's tests.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Passed,
    Failed,
    TookTooLong,
    DoesNotCompile(String),
}

#[test]
fn the_tests_of_resume_see_every_mutant() {
    let names: BTreeSet<&str> = MUTANTS.iter().map(|mutant| mutant.mistake).collect();
    assert_eq!(names.len(), MUTANTS.len(), "a mistake is listed twice");

    // Two concurrent runs use different directories.
    let dir =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("mutants-{}", std::process::id()));
    let control = outcome(&dir.join("lane-0"), None).unwrap();
    assert_eq!(control, Outcome::Passed, "the tests pass without a mutant");

    let next = AtomicUsize::new(0);
    let complaints = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for lane in 0..AT_ONCE {
            let lane = dir.join(format!("lane-{lane}"));
            let next = &next;
            let complaints = &complaints;
            scope.spawn(move || {
                while let Some(mutant) = MUTANTS.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Some(complaint) = complaint(&lane, mutant) {
                        complaints
                            .lock()
                            .unwrap()
                            .push(format!("- {}: {complaint}", mutant.mistake));
                    }
                }
            });
        }
    });
    fs::remove_dir_all(&dir).unwrap();
    let complaints = complaints.into_inner().unwrap();
    assert!(
        complaints.is_empty(),
        "{} of {} mutants:\n{}",
        complaints.len(),
        MUTANTS.len(),
        complaints.join("\n")
    );
}

/// What is wrong with a mutant; `None` if a test fails.
fn complaint(lane: &Path, mutant: &Mutant) -> Option<String> {
    match outcome(lane, Some(mutant)) {
        Ok(Outcome::Failed) => None,
        Ok(Outcome::Passed) => Some("survives: no test fails".to_owned()),
        Ok(Outcome::TookTooLong) => Some(format!(
            "runs longer than {RUN_MAX:?}; a test must detect the loop"
        )),
        Ok(Outcome::DoesNotCompile(why)) => {
            Some(format!("does not compile, which proves nothing:\n{why}"))
        }
        Err(error) => Some(error.to_string()),
    }
}

/// Compiles a copy of `src/resume` with one mistake and runs its tests. A lane is reused, so that
/// the compiler only compiles the difference.
fn outcome(lane: &Path, mutant: Option<&Mutant>) -> io::Result<Outcome> {
    copy(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("src/resume"),
        &lane.join("resume"),
    )?;
    fs::write(lane.join("root.rs"), include_str!("root.rs"))?;
    if let Some(mutant) = mutant {
        mutate(&lane.join("resume").join(mutant.file), mutant)?;
    }
    Ok(match compile(lane)? {
        Ok(tests) => run(&tests)?,
        Err(why) => Outcome::DoesNotCompile(why),
    })
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &to)?;
        } else {
            fs::copy(entry.path(), to)?;
        }
    }
    Ok(())
}

fn mutate(file: &Path, mutant: &Mutant) -> io::Result<()> {
    let source = fs::read_to_string(file)?;
    let times = source.matches(mutant.text).count();
    if times != 1 {
        let text = mutant.text;
        let why = format!(
            "this text occurs {times} times in {}, not once; correct the list:\n{text}",
            mutant.file
        );
        return Err(io::Error::other(why));
    }
    fs::write(file, source.replace(mutant.text, mutant.instead))
}

/// The test binary, or the compiler's output.
fn compile(lane: &Path) -> io::Result<Result<PathBuf, String>> {
    let tests = lane.join("tests");
    let output = Command::new("rustc")
        .args([
            "--test",
            "--edition",
            "2024",
            "--crate-name",
            "resume_alone",
            "--cap-lints",
            "allow",
        ])
        .args(["-O", "-C", "debuginfo=0", "-C", "debug-assertions=on", "-o"])
        .arg(&tests)
        .arg(format!(
            "-Cincremental={}",
            lane.join("incremental").display()
        ))
        .arg(lane.join("root.rs"))
        // The toolchain file is here.
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()?;
    let why = String::from_utf8_lossy(&output.stderr);
    Ok(if output.status.success() {
        Ok(tests)
    } else {
        Err(why.into_owned())
    })
}

fn run(tests: &Path) -> io::Result<Outcome> {
    let mut child = Command::new(tests)
        .args(["-q", "--test-threads", "1"])
        // Backtraces take longer than the tests.
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let stderr = child.stderr.take();
    let (done, is_done) = channel::<()>();
    thread::scope(|scope| {
        // The output ends when the process has ended or was killed.
        scope.spawn(move || {
            let _done = done;
            stderr.map(|mut stderr| io::copy(&mut stderr, &mut io::sink()))
        });
        if is_done.recv_timeout(RUN_MAX) == Err(RecvTimeoutError::Timeout) {
            child.kill()?;
            child.wait()?;
            return Ok(Outcome::TookTooLong);
        }
        Ok(if child.wait()?.success() {
            Outcome::Passed
        } else {
            Outcome::Failed
        })
    })
}
