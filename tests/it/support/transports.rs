//! Every transport, each with an independent client: a script of `tests/clients/transports` that
//! follows a job through any number of drops and prints what it receives, one frame a line.

use std::process::Stdio;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;

use super::client::Seen;
use super::root;

/// A transport and the client that follows jobs through it.
struct Transport {
    name: &'static str,
    program: &'static str,
    args: &'static [&'static str],
}

const PYTHON: &str = ".tools/venv/bin/python";
const NODE: &str = "node";

/// Every scenario runs through each of these.
const TRANSPORTS: &[Transport] = &[
    Transport {
        name: "WebSocket, JSON, websockets",
        program: PYTHON,
        args: &["ws.py", "json"],
    },
    Transport {
        name: "WebSocket, MessagePack, websockets",
        program: PYTHON,
        args: &["ws.py", "msgpack"],
    },
    Transport {
        name: "Socket.IO, socket.io-client",
        program: NODE,
        args: &["socketio.mjs"],
    },
    Transport {
        name: "Socket.IO by polling, socket.io-client",
        program: NODE,
        args: &["socketio.mjs", "polling"],
    },
    Transport {
        name: "Socket.IO, python-socketio",
        program: PYTHON,
        args: &["socketio_client.py"],
    },
    Transport {
        name: "SSE, eventsource",
        program: NODE,
        args: &["sse.mjs"],
    },
    Transport {
        name: "SSE, httpx-sse",
        program: PYTHON,
        args: &["sse.py"],
    },
    Transport {
        name: "pages, httpx",
        program: PYTHON,
        args: &["pages.py"],
    },
];

/// The longest that a scenario may take.
const LIMIT: Duration = Duration::from_secs(120);

/// A client that follows one job.
pub struct Follower {
    transport: &'static Transport,
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    pub seen: Seen,
}

impl Follower {
    fn start(transport: &'static Transport, addr: &str, job: &str, compact: bool) -> Self {
        let root = root();
        let (script, options) = transport.args.split_first().unwrap();
        let mut child = Command::new(if transport.program == PYTHON {
            root.join(PYTHON)
        } else {
            transport.program.into()
        })
        .arg(root.join("tests/clients/transports").join(script))
        .args([&format!("http://{addr}"), job])
        .args(options)
        .current_dir(root)
        .envs(compact.then_some(("COMPACT", "1")))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap_or_else(|error| panic!("{} for {}: {error}", transport.program, transport.name));
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self {
            transport,
            child,
            lines,
            seen: Seen::of(job),
        }
    }

    /// A follower of each transport.
    pub fn all(addr: &str, job: &str) -> Vec<Self> {
        TRANSPORTS
            .iter()
            .map(|transport| Self::start(transport, addr, job, false))
            .collect()
    }

    /// A follower with each Socket.IO client, through these addresses in turn.
    pub fn all_socketio<'a>(addrs: impl IntoIterator<Item = &'a str>, job: &str) -> Vec<Self> {
        TRANSPORTS
            .iter()
            .filter(|transport| transport.name.starts_with("Socket.IO"))
            .zip(addrs)
            .map(|(transport, addr)| Self::start(transport, addr, job, false))
            .collect()
    }

    /// A follower of each transport, whose watches are compacted.
    pub fn all_compact(addr: &str, job: &str) -> Vec<Self> {
        TRANSPORTS
            .iter()
            .map(|transport| Self::start(transport, addr, job, true))
            .collect()
    }

    /// Records the next frame; false when the client has ended.
    pub async fn step(&mut self) -> bool {
        let line = timeout(LIMIT, self.lines.next_line()).await;
        let line = line
            .unwrap_or_else(|_| panic!("{}: nothing for {LIMIT:?}", self.transport.name))
            .unwrap();
        if let Some(line) = &line {
            self.seen.record(&serde_json::from_str(line).unwrap());
        }
        line.is_some()
    }

    /// Waits until this many events have arrived.
    pub async fn reaches(&mut self, seq: u64) {
        while self.seen.last < seq {
            assert!(self.step().await, "{} ended early", self.transport.name);
        }
    }

    /// Follows to the end.
    pub async fn ends(mut self) -> Seen {
        while self.step().await {}
        let status = timeout(LIMIT, self.child.wait()).await.unwrap().unwrap();
        assert!(
            status.success() && self.seen.ended,
            "{}: {status}",
            self.transport.name
        );
        self.seen
    }

    /// The name of its transport.
    pub fn name(&self) -> &'static str {
        self.transport.name
    }

    /// Follows to the end, and requires every event once and this text.
    pub async fn ends_whole(self, text: &str) {
        let transport = self.transport.name;
        let seen = self.ends().await;
        assert_eq!(
            (seen.repeated, &seen.gaps, &seen.missing),
            (0, &vec![], &vec![]),
            "{transport}"
        );
        seen.assert_whole();
        assert_eq!(seen.text(), text, "{transport}");
    }
}

pub async fn end_whole(followers: Vec<Follower>, text: &str) {
    join_all(
        followers
            .into_iter()
            .map(|follower| follower.ends_whole(text)),
    )
    .await;
}
