//! Appends a job's events: to the log, or to another server that the benchmark compares with.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufStream};
use tokio::net::TcpStream;
use tokio::sync::Mutex;

use crate::config::BENCH_APPEND_CONNECTIONS;
use crate::nats::{EventWriter, Log, Nats, Options};
use crate::wire::{Body, Event, JobId, Seq};

/// Where events are appended.
#[derive(Debug)]
pub(super) enum PublishTarget {
    /// The logs on NATS.
    Log(Box<Options>),
    /// The publisher of a compared server: a line for each event, `JOB JSON`, all over one
    /// connection. An empty line asks for an empty line as soon as everything before it is
    /// published.
    Lines(SocketAddr),
    /// A server of the Durable Streams protocol.
    DurableStreams(SocketAddr),
}

/// Writes the events of one job.
#[derive(Debug)]
pub(super) enum JobWriter {
    Log(Box<EventWriter>),
    Other(OtherWriter),
}

/// What all writers of a target share.
#[derive(Debug)]
pub(super) enum TargetConnections {
    Log(Box<(Nats, Log)>),
    Lines(Rc<PeerConnection>),
    DurableStreams(Vec<Rc<PeerConnection>>),
}

/// A connection to a compared server, for one request at a time.
#[derive(Debug)]
pub(super) struct PeerConnection {
    stream: Mutex<BufStream<TcpStream>>,
    is_http: bool,
}

/// Writes events without a fence.
#[derive(Debug)]
pub(super) struct OtherWriter {
    connection: Rc<PeerConnection>,
    job: JobId,
    seq: Seq,
}

impl TargetConnections {
    pub(super) async fn to(target: PublishTarget) -> anyhow::Result<Self> {
        Ok(match target {
            PublishTarget::Log(options) => {
                let nats = Nats::connect(&options).await?;
                let log = Log::open(&nats).await?;
                Self::Log(Box::new((nats, log)))
            }
            PublishTarget::Lines(address) => {
                Self::Lines(Rc::new(PeerConnection::open(address, false).await?))
            }
            PublishTarget::DurableStreams(address) => {
                let mut connections = Vec::new();
                for _ in 0..BENCH_APPEND_CONNECTIONS {
                    connections.push(Rc::new(PeerConnection::open(address, true).await?));
                }
                Self::DurableStreams(connections)
            }
        })
    }

    /// The writer of a job that has no events.
    pub(super) fn writer(&self, index: usize, job: JobId) -> JobWriter {
        let other = |connection: &Rc<PeerConnection>, job| {
            JobWriter::Other(OtherWriter {
                connection: Rc::clone(connection),
                job,
                seq: Seq(0),
            })
        };
        match self {
            Self::Log(log) => {
                let writer = EventWriter::new(log.1.clone(), job, 1, None);
                JobWriter::Log(Box::new(writer.with_segments(None)))
            }
            Self::Lines(connection) => other(connection, job),
            Self::DurableStreams(connections) => {
                other(&connections[index % connections.len()], job)
            }
        }
    }

    /// Waits until everything that was appended is published.
    pub(super) async fn settle(&self) -> anyhow::Result<()> {
        if let Self::Lines(connection) = self {
            let mut stream = connection.stream.lock().await;
            stream.write_all(b"\n").await?;
            stream.flush().await?;
            if stream.read_u8().await? != b'\n' {
                bail!("the publisher does not answer as expected");
            }
        }
        Ok(())
    }

    pub(super) async fn close(self) {
        if let Self::Log(log) = self {
            log.0.close().await;
        }
    }
}

impl JobWriter {
    pub(super) async fn append(&mut self, body: Body) -> anyhow::Result<()> {
        match self {
            Self::Log(writer) => Ok(writer.append(body).await?),
            Self::Other(writer) => writer.append(body).await,
        }
    }
}

impl OtherWriter {
    async fn append(&mut self, body: Body) -> anyhow::Result<()> {
        self.seq = self.seq.successor();
        let ts = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis();
        let event = Event {
            body,
            job: self.job.clone(),
            seq: self.seq,
            attempt: 1,
            ts: u64::try_from(ts)?,
        };
        let mut event = serde_json::to_value(event)?;
        // As long as a cursor of Tailwater, so that all servers deliver as many bytes.
        event["cursor"] = json!(format!("{:-<16}", self.seq.0));
        self.connection
            .append(&self.job, &event.to_string(), self.seq == Seq(1))
            .await
    }
}

impl PeerConnection {
    async fn open(address: SocketAddr, is_http: bool) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream: Mutex::new(BufStream::new(stream)),
            is_http,
        })
    }

    async fn append(&self, job: &JobId, event: &str, is_first: bool) -> anyhow::Result<()> {
        let mut stream = self.stream.lock().await;
        if !self.is_http {
            stream
                .write_all(format!("{job} {event}\n").as_bytes())
                .await?;
            return Ok(stream.flush().await?);
        }
        if is_first {
            request(&mut stream, "PUT", job, "").await?;
        }
        request(&mut stream, "POST", job, event).await
    }
}

/// Sends an HTTP request, and waits for a response that says success.
async fn request(
    stream: &mut BufStream<TcpStream>,
    method: &str,
    job: &JobId,
    body: &str,
) -> anyhow::Result<()> {
    let length = body.len();
    let request = format!(
        "{method} /{job} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).await?;
    stream.flush().await?;
    let mut line = String::new();
    stream.read_line(&mut line).await?;
    if line
        .split(' ')
        .nth(1)
        .is_none_or(|status| !status.starts_with('2'))
    {
        bail!("an append was refused: {line}");
    }
    let mut length = 0;
    while line.trim_ascii() != "" {
        line.clear();
        stream.read_line(&mut line).await?;
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().context("a bad Content-Length")?;
        }
    }
    stream.read_exact(&mut vec![0; length]).await?;
    Ok(())
}
