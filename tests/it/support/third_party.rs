//! Third-party clients as processes: Socket.IO of Node and Python. Each prints what it saw, one
//! JSON object a line, and the test checks it. `scripts/test.sh` installs what they need.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tailwater::process_group::{Signal, kill_group};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use super::process::NATS_WAIT;
use super::{root, within};

/// How long clients may run. Those in a browser end by themselves before, with a reason.
const CLIENTS_MAX: Duration = Duration::from_secs(180);

/// A running client program.
pub struct ThirdParty {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

/// A tool that `scripts/test.sh` installs.
fn tool(path: &str) -> PathBuf {
    let path = root().join(".tools").join(path);
    assert!(
        path.exists(),
        "{} is missing; scripts/test.sh installs it",
        path.display()
    );
    path
}

/// The folder of Node's packages; a module in it can import them.
pub fn node_folder() -> PathBuf {
    let folder = tool("node");
    tool("node/node_modules/socket.io-client");
    folder
}

impl ThirdParty {
    /// Runs a file of `tests/clients`, or any other module, with Node.
    pub fn node(module: &Path, given: &Value) -> Self {
        node_folder();
        Self::start(
            Command::new("node")
                .arg(root().join("tests/clients").join(module))
                .arg(given.to_string()),
        )
    }

    /// Runs a file of `tests/clients` with Python.
    pub fn python(module: &str, given: &Value) -> Self {
        let module = root().join("tests/clients").join(module);
        Self::start(
            Command::new(tool("venv/bin/python"))
                .arg(module)
                .arg(given.to_string()),
        )
    }

    fn start(command: &mut Command) -> Self {
        // They start edges and workers.
        let command = command
            .envs([NATS_WAIT])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        let mut child = command
            .kill_on_drop(true)
            .spawn()
            .expect("the client's interpreter starts");
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    /// What it prints, until that contains `expected`.
    pub async fn says(&mut self, expected: &str) -> String {
        let mut said = Vec::new();
        within("what a client prints", async {
            loop {
                let more = self.lines.get_mut().fill_buf().await.unwrap();
                assert!(
                    !more.is_empty(),
                    "it ended after {}",
                    String::from_utf8_lossy(&said)
                );
                let length = more.len();
                said.extend_from_slice(more);
                self.lines.get_mut().consume(length);
                let text = String::from_utf8_lossy(&said);
                if text.contains(expected) {
                    return text.into_owned();
                }
            }
        })
        .await
    }

    /// Everything it prints until it exits with success, as JSON.
    pub async fn ends(mut self) -> Vec<Value> {
        // Clients report broken connections at length; a full pipe would stop them.
        let mut stderr = self.child.stderr.take().unwrap();
        let complaints = async {
            let mut text = String::new();
            stderr.read_to_string(&mut text).await.map(|_| text)
        };
        let lines = async {
            let mut said = Vec::new();
            while let Some(line) = self.lines.next_line().await.unwrap() {
                // `says` may have left the end of a line.
                if line.is_empty() {
                    continue;
                }
                said.push(
                    serde_json::from_str(&line).unwrap_or_else(|_| panic!("no JSON: {line}")),
                );
            }
            said
        };
        let output = futures_util::future::join(lines, complaints);
        let Ok((said, complaints)) = tokio::time::timeout(CLIENTS_MAX, output).await else {
            panic!("the clients did not end within {CLIENTS_MAX:?}");
        };
        let status = within("a client's end", self.child.wait()).await.unwrap();
        let complaints = complaints.unwrap();
        let last = complaints.floor_char_boundary(complaints.len().saturating_sub(3000));
        assert!(status.success(), "{}", &complaints[last..]);
        said
    }
}

/// Ends a client that failed, and what it has started.
impl Drop for ThirdParty {
    fn drop(&mut self) {
        if let Some(pid) = self.child.id() {
            let _ = kill_group(pid, Signal::KILL);
        }
    }
}
