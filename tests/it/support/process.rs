//! The `tailwater` program as processes, which can be killed, frozen and stopped. They end with the
//! test process.

use std::ffi::OsStr;
use std::io::{Seek as _, Write as _};
use std::path::Path;
use std::process::{ExitStatus, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, kill_process};
use tailwater::process_group::{Signal, kill_group};
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use super::roles::role_of;
use super::system::System;
use super::{python, timed, within};

/// Programs wait for the broker as long as those in the test process do: it may be slow on a busy machine.
pub const NATS_WAIT: (&str, &str) = ("TAILWATER_NATS_WAIT", "60s");

/// A running `tailwater`.
pub struct Process {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Process {
    /// Starts `tailwater` with these arguments.
    pub fn start<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Self {
        Self::start_with(args, &[], Stdio::inherit())
    }

    /// Starts `tailwater` with these arguments and variables, its log to `stderr`.
    pub fn start_with<S: AsRef<OsStr>>(
        args: impl IntoIterator<Item = S>,
        env: &[(&str, &str)],
        stderr: impl Into<Stdio>,
    ) -> Self {
        Self::start_program(
            Path::new(env!("CARGO_BIN_EXE_tailwater")),
            args,
            env,
            stderr.into(),
        )
    }

    /// Starts any program.
    pub fn start_program<S: AsRef<OsStr>>(
        program: &Path,
        args: impl IntoIterator<Item = S>,
        env: &[(&str, &str)],
        stderr: Stdio,
    ) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_tailwater"))
            .args(["guard", "--parent", &std::process::id().to_string(), "--"])
            .arg(program)
            .args(args)
            .envs([NATS_WAIT])
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .expect("tailwater starts");
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    /// The next line of its piped stderr. Anything after it is discarded.
    pub async fn complains(&mut self) -> String {
        self.complains_of("").await
    }

    /// The first line of its piped stderr with this text. Anything after it is discarded.
    pub async fn complains_of(&mut self, text: &str) -> String {
        let mut lines = BufReader::new(self.child.stderr.take().expect("a piped stderr")).lines();
        within("a line of stderr", async {
            while let Some(line) = lines.next_line().await.unwrap() {
                if line.contains(text) {
                    return line;
                }
            }
            panic!("no line of stderr with {text:?}");
        })
        .await
    }

    /// Waits for a line of stdout that starts with `word`; returns the rest of it.
    pub async fn says(&mut self, word: &str) -> String {
        within(&format!("the line `{word} …`"), async {
            while let Some(line) = self.lines.next_line().await.unwrap() {
                if let Some(rest) = line.strip_prefix(word) {
                    return rest.trim().to_owned();
                }
            }
            panic!("tailwater ended before it said `{word} …`");
        })
        .await
    }

    /// Sends a signal to the program and what it started.
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = self.child.id() {
            let _ = kill_group(pid, signal);
        }
    }

    /// Whether the program has not ended.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// The resident memory of the program, in KiB.
    pub fn memory(&self) -> u64 {
        self.status_kib("VmRSS:")
    }

    /// The most resident memory that the program has had, in KiB.
    pub fn peak_memory(&self) -> u64 {
        self.status_kib("VmHWM:")
    }

    fn status_kib(&self, name: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.program())).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// How many files the program may open: now, and at most.
    pub fn open_files_max(&self) -> (String, String) {
        let limits = std::fs::read_to_string(format!("/proc/{}/limits", self.program())).unwrap();
        let line = limits
            .lines()
            .find_map(|line| line.strip_prefix("Max open files"))
            .unwrap();
        let mut limits = line.split_whitespace().map(str::to_owned);
        (limits.next().unwrap(), limits.next().unwrap())
    }

    /// `kill -9` of the program only, not of its children.
    pub fn kill_alone(&self) {
        let pid = Pid::from_raw(i32::try_from(self.program()).unwrap()).unwrap();
        kill_process(pid, Signal::KILL).unwrap();
    }

    /// The guard's process, from which all others of the program descend.
    pub fn guard(&self) -> u32 {
        self.child.id().unwrap()
    }

    /// The process of the program; its parent is the guard.
    pub fn program(&self) -> u32 {
        let guard = self.guard();
        let children =
            std::fs::read_to_string(format!("/proc/{guard}/task/{guard}/children")).unwrap();
        children.trim().parse().unwrap()
    }

    /// `kill -9`.
    pub async fn kill(&mut self) {
        self.signal(Signal::KILL);
        within("the end after kill -9", self.child.wait())
            .await
            .unwrap();
    }

    /// Waits for the end, for at most `limit` of the time in which this process runs: see [`timed`].
    pub async fn ends_within(&mut self, limit: Duration) -> ExitStatus {
        let (status, took) = timed(within("its end", self.child.wait())).await;
        assert!(took < limit, "{took:?}");
        status.unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}

impl System {
    /// Starts an edge as a process; returns its address as well.
    pub async fn edge_process(&self, flags: &[&str]) -> (Process, String) {
        let listen = ["--listen", "127.0.0.1:0"];
        let listen = match flags.contains(&listen[0]) {
            true => &[][..],
            false => &listen[..],
        };
        let mut edge = Process::start(self.command(&["edge"], &[listen, flags].concat()));
        let addr = edge.says("ready http://").await;
        (edge, addr)
    }

    /// Starts a worker of the kind `demo` as a process.
    pub fn worker_process(&self, flags: &[&str], backend: &[&str]) -> Process {
        let flags = [&["--kind", "demo"], flags].concat();
        Process::start([self.command(&["worker"], &flags), owned(backend)].concat())
    }

    /// Starts a worker of the kind `demo` that serves metrics; returns their address as well.
    pub async fn measured_worker(&self, flags: &[&str], backend: &[&str]) -> (Process, String) {
        let flags = [&["--metrics", "127.0.0.1:0"], flags].concat();
        let mut worker = self.worker_process(&flags, backend);
        let metrics = worker.says("metrics http://").await;
        let addr = metrics.strip_suffix("/metrics").unwrap().to_owned();
        (worker, addr)
    }

    /// Runs a command line, and the flags that reach this system, to its end.
    pub async fn run(&self, line: &str) -> Ran {
        let args: Vec<&str> = line.split_whitespace().collect();
        run(self.command(&args, &[])).await
    }

    /// A command line that reaches this system as the command's role.
    pub fn command(&self, command: &[&str], flags: &[&str]) -> Vec<String> {
        let mut access = self.flags_of(role_of(command[0]));
        if command[0] == "edge" && self.record() {
            access.push("--recorder".to_owned());
        }
        [owned(command), access, owned(flags)].concat()
    }
}

/// Whether a process runs. One that has ended may be left as a zombie, which has an empty command line.
pub fn runs(pid: u32) -> bool {
    std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty())
}

fn owned(args: &[&str]) -> Vec<String> {
    args.iter().map(|&arg| arg.to_owned()).collect()
}

/// A command that has ended.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl From<Output> for Ran {
    fn from(out: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Self {
            code: out.status.code().unwrap_or(-1),
            out: text(out.stdout),
            err: text(out.stderr),
        }
    }
}

impl Ran {
    /// Requires success; returns stdout.
    #[track_caller]
    pub fn prints(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.out
    }

    /// Requires this exit code, and this text on stderr.
    #[track_caller]
    pub fn fails(self, code: i32, text: &str) {
        let found = (self.code, self.err.contains(text));
        assert_eq!(found, (code, true), "{text:?} in {self:?}");
    }

    /// Requires exit code 2, and one line of stderr with this text and nothing else; returns it.
    #[track_caller]
    pub fn refuses(self, text: &str) -> String {
        let found = (self.code, self.out.as_str(), self.err.lines().count());
        assert_eq!(found, (2, "", 1), "{self:?}");
        assert!(self.err.contains(text), "{text:?} in {self:?}");
        self.err
    }
}

/// Runs `tailwater` with the arguments of a command line to its end.
pub async fn tailwater(line: &str) -> Ran {
    run(line.split_whitespace()).await
}

/// Runs `tailwater` to its end.
pub async fn run<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Ran {
    run_with(args, &[]).await
}

/// The same with these variables.
pub async fn run_with<S: AsRef<OsStr>>(
    args: impl IntoIterator<Item = S>,
    env: &[(&str, &str)],
) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tailwater"));
    command.args(args).envs([NATS_WAIT]);
    run_program(command.envs(env.iter().copied())).await
}

/// Runs any program to its end. It is killed if the test ends before.
pub async fn run_program(command: &mut Command) -> Ran {
    run_reading(command, Stdio::null()).await
}

/// Runs any program to its end, with this text on stdin. It is killed if the test ends before.
pub async fn run_program_on(command: &mut Command, text: &str) -> Ran {
    // A program may write much before it has read everything, which a pipe would not hold.
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file.rewind().unwrap();
    run_reading(command, file.into()).await
}

async fn run_reading(command: &mut Command, stdin: Stdio) -> Ran {
    let what = format!("the end of {:?}", command.as_std().get_program());
    command.stdin(stdin).kill_on_drop(true);
    within(&what, command.output()).await.unwrap().into()
}

/// Runs `tailwater` in a terminal; returns everything it printed.
pub async fn at_a_terminal(line: &str) -> String {
    let spawn = "import pty, sys; sys.exit(pty.spawn(sys.argv[1:]) >> 8)";
    let mut command = Command::new(python("python"));
    command
        .args(["-c", spawn, env!("CARGO_BIN_EXE_tailwater")])
        .args(line.split(' '));
    run_program(&mut command).await.out
}
