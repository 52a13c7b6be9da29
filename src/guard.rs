//! The guard: a small process between a parent and a program. It kills the program when the parent
//! has died, even by `kill -9`. It restarts nothing, copies no bytes (the program has the guard's
//! standard streams) and does not stop the program: signals to the group reach the program
//! directly.
//!
//! ```text
//! parent ──starts, as the leader of a group of its own──▶ guard ──starts in that group──▶ program ──▶ …
//!    │                                                     │
//!    └──── Linux: a signal when the parent dies ──────────▶│ is the parent still the same? if not:
//!          elsewhere: the guard looks every 200 ms         │ SIGKILL to the whole group, itself included
//! ```

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::process::{ExitCode, ExitStatus};

use rustix::process::{Pid, getpgrp, getpid, getppid};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};

use crate::process_group::{Signal, kill_group};

/// The exit code of a guard whose program was not found, as in shells.
pub(crate) const NOT_FOUND: u8 = 127;
/// The exit code of a guard whose program could not be started for another reason, as in shells.
pub(crate) const NOT_STARTED: u8 = 126;
/// Added to the number of the signal that killed the program, as in shells.
pub(crate) const KILLED: i32 = 128;
/// The start of the guard's own line on standard error, which distinguishes a program that cannot
/// be started from one that exits with 126 or 127.
pub(crate) const MESSAGE_PREFIX: &str = "tailwater guard: ";

/// Why a program failed to start, for people.
pub(crate) fn cannot_start(program: &OsString, error: &io::Error) -> String {
    format!("cannot start {}: {error}", program.display())
}

/// Runs `command` (a program and its arguments) until it ends or the process `parent`, which
/// started this one, has died. In the second case it does not return: this process is killed with
/// its group.
///
/// SIGTERM, SIGINT and SIGHUP do not end the guard, so that it outlives the program's cleanup. The
/// exit code is the program's; 128 + n when signal n killed it; 127 when it was not found and 126
/// when it could not be started otherwise, with one line on standard error.
///
/// # Errors
/// When this process does not lead its process group (it would kill others), or when the operating
/// system refuses signal handlers or loses the program.
pub async fn run(parent: u32, command: Vec<OsString>) -> io::Result<ExitCode> {
    run_until_orphaned(parent, &command)
        .await
        .map(ExitCode::from)
}

async fn run_until_orphaned(parent: u32, command: &[OsString]) -> io::Result<u8> {
    if getpgrp() != getpid() {
        return Err(io::Error::other("a guard must lead its process group"));
    }
    // Handled, not ignored: the program would inherit ignored signals.
    let _terminate = signal(SignalKind::terminate())?;
    let _interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    // The signal is requested before the check, so that a parent that dies in between is not
    // missed.
    request_death_signal()?;
    die_unless_child_of(parent)?;
    let mut child = match start(command) {
        Ok(child) => child,
        Err((code, why)) => {
            // An error means that standard error has no reader.
            let _ = writeln!(io::stderr(), "{MESSAGE_PREFIX}{why}");
            return Ok(code);
        }
    };
    loop {
        tokio::select! {
            status = child.wait() => return Ok(exit_code(status?)),
            () = parent_may_have_died(&mut hangup) => die_unless_child_of(parent)?,
        }
    }
}

/// Asks for SIGHUP when the parent dies.
#[cfg(target_os = "linux")]
fn request_death_signal() -> io::Result<()> {
    Ok(rustix::process::set_parent_process_death_signal(Some(
        Signal::HUP,
    ))?)
}

/// Waits until the parent may have died. The system sends the signal when the thread that started
/// the guard ends, even if the parent has other threads, one of which then becomes the guard's
/// parent. So each signal is only a reason to check the parent's id.
#[cfg(target_os = "linux")]
async fn parent_may_have_died(hangup: &mut tokio::signal::unix::Signal) {
    let _ = hangup.recv().await;
}

#[cfg(not(target_os = "linux"))]
fn request_death_signal() -> io::Result<()> {
    Ok(())
}

/// Waits until the next check of the parent's id: a program may outlive the parent by this long.
#[cfg(not(target_os = "linux"))]
async fn parent_may_have_died(_: &mut tokio::signal::unix::Signal) {
    tokio::time::sleep(crate::config::PARENT_CHECK_EVERY).await;
}

fn start(command: &[OsString]) -> Result<Child, (u8, String)> {
    let Some((program, arguments)) = command.split_first() else {
        return Err((NOT_STARTED, "no command was given".to_owned()));
    };
    Command::new(program)
        .args(arguments)
        .spawn()
        .map_err(|error| {
            let code = if error.kind() == io::ErrorKind::NotFound {
                NOT_FOUND
            } else {
                NOT_STARTED
            };
            (code, cannot_start(program, &error))
        })
}

/// Kills this process's group, itself included, unless its parent is still `parent`: an orphan has
/// another one.
fn die_unless_child_of(parent: u32) -> io::Result<()> {
    let now = Pid::as_raw(getppid());
    if i64::from(now) == i64::from(parent) {
        return Ok(());
    }
    kill_group(std::process::id(), Signal::KILL)
}

fn exit_code(status: ExitStatus) -> u8 {
    use std::os::unix::process::ExitStatusExt as _;
    let code = status
        .code()
        .or_else(|| status.signal().map(|signal| KILLED + signal));
    code.and_then(|code| u8::try_from(code).ok())
        .unwrap_or(u8::MAX)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::path::{Path, PathBuf};
    use std::process::Stdio;
    use std::time::Duration;
    use tempfile::TempDir;
    use tokio::io::AsyncReadExt as _;
    use tokio::net::unix::pipe;
    use tokio::time::timeout;

    /// Bounds every wait of the tests that use processes.
    pub(crate) const SOON: Duration = Duration::from_secs(20);

    /// A FIFO that programs hold open for writing: it ends with the last of them.
    pub(crate) struct HeldFifo {
        directory: TempDir,
        reader: pipe::Receiver,
    }

    impl HeldFifo {
        pub(crate) fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("held");
            assert!(
                std::process::Command::new("mkfifo")
                    .arg(&path)
                    .status()
                    .unwrap()
                    .success()
            );
            let reader = pipe::OpenOptions::new().open_receiver(&path).unwrap();
            Self { directory, reader }
        }

        pub(crate) fn path(&self) -> PathBuf {
            self.directory.path().join("held")
        }

        /// The shell `script`, run with the FIFO as descriptor 3.
        pub(crate) fn shell(&self, script: &str) -> Vec<OsString> {
            shell(&format!("exec 3>'{}'; {script}", self.path().display()))
        }

        /// The shell `script`, with this FIFO as descriptor 3 and `input` as descriptor 4. That one is
        /// opened for both, so that neither side waits for the other.
        pub(crate) fn shell_with(&self, input: &Self, script: &str) -> Vec<OsString> {
            self.shell(&format!("exec 4<>'{}'; {script}", input.path().display()))
        }

        /// Writes a line, for a program that waits for it.
        pub(crate) fn write_line(&self) {
            std::fs::write(self.path(), "go\n").unwrap();
        }

        /// Reads the next line, which must be `word`.
        pub(crate) async fn expect_line(&mut self, word: &str) {
            let mut line = vec![0; word.len() + 1];
            timeout(SOON, self.reader.read_exact(&mut line))
                .await
                .unwrap()
                .unwrap();
            assert_eq!(line, format!("{word}\n").into_bytes());
        }

        /// Waits until no process holds it, and returns what was written in the meantime.
        pub(crate) async fn until_free(&mut self) -> String {
            let mut rest = String::new();
            timeout(SOON, self.reader.read_to_string(&mut rest))
                .await
                .unwrap()
                .unwrap();
            rest
        }
    }

    pub(crate) fn shell(script: &str) -> Vec<OsString> {
        vec!["sh".into(), "-c".into(), script.into()]
    }

    /// A program in `directory` that takes `guard --parent PID -- COMMAND…`, as the command line
    /// does.
    ///
    /// It runs this test binary. A shell writes the file: if this process held it open while
    /// another test starts a program, running it would fail ("text file busy").
    pub(crate) fn program(directory: &Path) -> PathBuf {
        let path = directory.join("tailwater");
        let script = format!(
            "#!/bin/sh\nexport TAILWATER_TEST_PARENT=\"$3\"\nshift 4\nIFS=$(printf '\\037')\n\
             export TAILWATER_TEST_COMMAND=\"$*\"\n\
             exec '{}' --exact guard::tests::act_as_the_guard --ignored --nocapture\n",
            std::env::current_exe().unwrap().display()
        );
        let write = "printf %s \"$1\" > \"$2\" && chmod 700 \"$2\"";
        let status = std::process::Command::new("sh")
            .args(["-c", write, "sh", &script])
            .arg(&path)
            .status();
        assert!(status.unwrap().success());
        path
    }

    #[test]
    #[ignore = "other tests run it as a process of its own"]
    #[expect(
        clippy::disallowed_methods,
        clippy::exit,
        reason = "the exit code of this process is what is tested"
    )]
    fn act_as_the_guard() {
        let Some(parent) = std::env::var_os("TAILWATER_TEST_PARENT") else {
            return;
        };
        let command = std::env::var_os("TAILWATER_TEST_COMMAND")
            .unwrap()
            .into_string()
            .unwrap();
        let command: Vec<OsString> = command.split('\u{1f}').map(OsString::from).collect();
        let parent = parent.into_string().unwrap().parse().unwrap();
        let code = crate::runtime::single_threaded()
            .unwrap()
            .block_on(run_until_orphaned(parent, &command));
        std::process::exit(code.unwrap().into());
    }

    struct Guarded {
        child: Child,
        _directory: TempDir,
    }

    fn guarded(parent: u32, command: &[OsString]) -> Guarded {
        let directory = tempfile::tempdir().unwrap();
        let child = Command::new(program(directory.path()))
            .args(["guard", "--parent", &parent.to_string(), "--"])
            .args(command)
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Guarded {
            child,
            _directory: directory,
        }
    }

    /// The exit status of a guarded command, and what it and the guard wrote to standard error.
    async fn ran(command: &[OsString]) -> (ExitStatus, String) {
        let guarded = guarded(std::process::id(), command);
        let output = timeout(SOON, guarded.child.wait_with_output())
            .await
            .unwrap()
            .unwrap();
        (output.status, String::from_utf8(output.stderr).unwrap())
    }

    #[tokio::test]
    async fn a_guard_exits_as_its_program_does() {
        assert_eq!(ran(&shell("exit 0")).await.0.code(), Some(0));
        assert_eq!(ran(&shell("exit 7")).await.0.code(), Some(7));
        assert_eq!(ran(&shell("kill -9 $$")).await.0.code(), Some(128 + 9));
    }

    #[tokio::test]
    async fn a_program_that_cannot_be_started_exits_with_127_or_126_and_one_line_of_reason() {
        let (status, said) = ran(&["/nowhere/at-all".into()]).await;
        assert_eq!(status.code(), Some(127));
        assert!(
            said.starts_with("tailwater guard: cannot start /nowhere/at-all: "),
            "{said}"
        );
        assert_eq!(said.lines().count(), 1, "{said}");
        let (status, said) = ran(&["/".into()]).await;
        assert_eq!(status.code(), Some(126));
        assert!(
            said.starts_with("tailwater guard: cannot start /: "),
            "{said}"
        );
    }

    #[tokio::test]
    async fn a_guard_outlives_the_signals_that_stop_its_program() {
        let stops = "trap 'echo stopping >&3; read line <&4; exit 5' TERM INT HUP";
        for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
            let mut held = HeldFifo::new();
            let go = HeldFifo::new();
            let script = format!("{stops}; echo ready >&3; while :; do sleep 0.05; done");
            let mut guarded = guarded(std::process::id(), &held.shell_with(&go, &script));
            held.expect_line("ready").await;
            let pid = guarded.child.id().unwrap();
            kill_group(pid, signal).unwrap();
            held.expect_line("stopping").await;
            assert_eq!(guarded.child.try_wait().unwrap(), None);
            go.write_line();
            let status = timeout(SOON, guarded.child.wait()).await.unwrap().unwrap();
            assert_eq!(status.code(), Some(5), "{signal:?}");
        }
    }

    #[tokio::test]
    async fn the_whole_group_dies_with_a_parent_that_was_killed_by_kill_9() {
        let mut held = HeldFifo::new();
        let directory = tempfile::tempdir().unwrap();
        // `setsid` gives the guard a group of its own; `exec` keeps the parent its parent.
        let mut parent = Command::new("sh")
            .args([
                "-c",
                "guard=$0; setsid \"$guard\" guard --parent $$ -- \"$@\" & wait",
            ])
            .arg(program(directory.path()))
            .args(held.shell("trap '' TERM HUP; (sleep 1000) & echo ready >&3; sleep 1000"))
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        held.expect_line("ready").await;
        parent.start_kill().unwrap();
        assert_eq!(held.until_free().await, "");
    }

    #[tokio::test]
    async fn a_guard_outlives_the_thread_that_started_it() {
        let mut held = HeldFifo::new();
        let go = HeldFifo::new();
        let directory = tempfile::tempdir().unwrap();
        let mut command = std::process::Command::new(program(directory.path()));
        command
            .args(["guard", "--parent", &std::process::id().to_string(), "--"])
            .args(held.shell_with(&go, "echo ready >&3; read line <&4; exit 5"));
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let (end_thread, ends) = std::sync::mpsc::channel::<()>();
        let starts = std::thread::spawn(move || {
            let child = command.stdin(Stdio::null()).spawn().unwrap();
            let _ = ends.recv();
            child
        });
        // By now the guard watches its parent.
        held.expect_line("ready").await;
        drop(end_thread);
        let mut child = starts.join().unwrap();
        assert_eq!(child.try_wait().unwrap(), None);
        go.write_line();
        let status = tokio::task::spawn_blocking(move || child.wait());
        assert_eq!(status.await.unwrap().unwrap().code(), Some(5));
    }

    #[tokio::test]
    async fn a_guard_whose_parent_has_already_died_starts_nothing() {
        use std::os::unix::process::ExitStatusExt as _;
        let mut held = HeldFifo::new();
        let mut guarded = guarded(1, &held.shell("echo started >&3"));
        let status = timeout(SOON, guarded.child.wait()).await.unwrap().unwrap();
        assert_eq!(status.signal(), Some(Signal::KILL.as_raw()));
        // A FIFO ends only after a process has held it open.
        assert!(
            std::process::Command::new("sh")
                .args(["-c", ": > \"$0\""])
                .arg(held.path())
                .status()
                .unwrap()
                .success()
        );
        assert_eq!(held.until_free().await, "");
    }
}
