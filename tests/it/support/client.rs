//! A WebSocket client that records what it received. It is written from `PROTOCOL.md`, not
//! from the edge.

use std::collections::BTreeMap;

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use super::within;

/// One connection.
pub struct Client {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    encoding: Encoding,
}

/// How frames are encoded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Encoding {
    Json,
    MsgPack,
}

impl Encoding {
    pub const ALL: [Self; 2] = [Self::Json, Self::MsgPack];

    fn subprotocol(self) -> &'static str {
        match self {
            Self::Json => "tailwater.v1.json",
            Self::MsgPack => "tailwater.v1.msgpack",
        }
    }
}

/// What a connection received.
#[derive(Clone, Debug, PartialEq)]
pub enum Frame {
    /// An event, or a frame with an `op`, whatever its encoding was.
    Json(Value),
    /// The edge closed with this code.
    Closed(u16),
    /// The connection is gone without a close frame.
    Cut,
}

impl Client {
    /// Connects, and reads the `hello`.
    pub async fn connect(addr: &str) -> Self {
        Self::connect_in(addr, Encoding::Json).await
    }

    /// Connects in this encoding, and reads the `hello`.
    pub async fn connect_in(addr: &str, encoding: Encoding) -> Self {
        let mut client = within("a connection", async {
            loop {
                if let Some(client) = Self::try_connect_in(addr, encoding).await {
                    return client;
                }
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        })
        .await;
        let hello = client.op().await;
        assert_eq!(
            (&hello["op"], &hello["protocol"]),
            (&json!("hello"), &json!(encoding.subprotocol())),
            "{hello}"
        );
        client
    }

    /// Connects once.
    pub async fn try_connect(addr: &str) -> Option<Self> {
        Self::try_connect_in(addr, Encoding::Json).await
    }

    async fn try_connect_in(addr: &str, encoding: Encoding) -> Option<Self> {
        let mut request = format!("ws://{addr}/ws").into_client_request().unwrap();
        let name = encoding.subprotocol();
        request
            .headers_mut()
            .insert("Sec-WebSocket-Protocol", name.parse().unwrap());
        let (socket, answer) = connect_async(request).await.ok()?;
        assert_eq!(answer.headers()["Sec-WebSocket-Protocol"], name);
        Some(Self { socket, encoding })
    }

    /// Sends a frame.
    pub async fn send(&mut self, frame: Value) {
        match self.encoding {
            Encoding::Json => self.send_text(&frame.to_string()).await,
            Encoding::MsgPack => {
                self.send_binary(rmp_serde::to_vec_named(&frame).unwrap())
                    .await
            }
        }
    }

    /// Sends any text.
    pub async fn send_text(&mut self, text: &str) {
        // A connection that is gone is seen by the next read.
        let _ = within("a send", self.socket.send(Message::text(text))).await;
    }

    /// Sends bytes.
    pub async fn send_binary(&mut self, bytes: Vec<u8>) {
        let _ = within("a send", self.socket.send(Message::binary(bytes))).await;
    }

    /// Closes the connection with a close frame; returns the edge's answer.
    pub async fn close(mut self) -> Frame {
        within(
            "a close",
            self.socket.close(Some(CloseFrame {
                code: CloseCode::Normal,
                reason: "".into(),
            })),
        )
        .await
        .unwrap();
        self.next().await
    }

    /// The next frame.
    pub async fn next(&mut self) -> Frame {
        within("a frame", async {
            loop {
                match (self.socket.next().await, self.encoding) {
                    (Some(Ok(Message::Text(text))), Encoding::Json) => {
                        return Frame::Json(serde_json::from_str(&text).unwrap());
                    }
                    (Some(Ok(Message::Binary(bytes))), Encoding::MsgPack) => {
                        return Frame::Json(unpack(&bytes));
                    }
                    (Some(Ok(Message::Text(_) | Message::Binary(_))), encoding) => {
                        panic!("a message of the other type than {encoding:?} has")
                    }
                    (Some(Ok(Message::Close(Some(close)))), _) => {
                        return Frame::Closed(close.code.into());
                    }
                    (Some(Ok(Message::Close(None)) | Err(_)) | None, _) => return Frame::Cut,
                    (Some(Ok(_)), _) => {}
                }
            }
        })
        .await
    }

    /// The next frame; fails when the connection has ended.
    pub async fn frame(&mut self) -> Value {
        match self.next().await {
            Frame::Json(frame) => frame,
            gone @ (Frame::Closed(_) | Frame::Cut) => panic!("{gone:?}"),
        }
    }

    /// The next frame, which has an `op`.
    pub async fn op(&mut self) -> Value {
        let frame = self.frame().await;
        assert!(frame.get("op").is_some(), "{frame}");
        frame
    }

    /// Watches a job from the position in `seen`.
    pub async fn watch(&mut self, seen: &Seen) {
        self.send(seen.watch()).await;
    }
}

/// A MessagePack frame as the equivalent JSON frame.
fn unpack(bytes: &[u8]) -> Value {
    let frame: Value = rmp_serde::from_slice(bytes).unwrap();
    let Some(event) = frame.as_array() else {
        assert!(frame.is_object(), "neither a map nor an array: {frame}");
        return frame;
    };
    assert_eq!(event.len(), 2, "{frame}");
    let cursor = event[0].clone();
    let mut event = event[1].clone();
    event
        .as_object_mut()
        .unwrap()
        .insert("cursor".into(), cursor);
    event
}

/// What a client saw of one job, over any number of connections.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub job: String,
    /// Events by number.
    pub events: BTreeMap<u64, Value>,
    /// How many events came twice.
    pub repeated: u64,
    /// Gaps that were not reported.
    pub gaps: Vec<(u64, u64)>,
    /// Gaps that were reported as `missing`.
    pub missing: Vec<(u64, u64)>,
    pub last: u64,
    pub cursor: Option<String>,
    pub ended: bool,
    pub live: u32,
    /// How often the client started over because the log was rebuilt.
    pub restarts: u32,
}

impl Seen {
    /// Nothing yet.
    pub fn of(job: &str) -> Self {
        Self {
            job: job.to_owned(),
            ..Self::default()
        }
    }

    /// The frame that watches the rest.
    pub fn watch(&self) -> Value {
        match &self.cursor {
            Some(cursor) => json!({"op": "watch", "job": self.job, "cursor": cursor}),
            None => json!({"op": "watch", "job": self.job, "after": self.last}),
        }
    }

    /// Records a frame about this job.
    pub fn record(&mut self, frame: &Value) {
        assert_eq!(frame["job"], self.job, "{frame}");
        match frame["op"].as_str() {
            None => {
                let seq = frame["seq"].as_u64().unwrap();
                let first = frame["from_seq"].as_u64().unwrap_or(seq);
                assert!(first <= seq, "{frame}");
                if first <= self.last {
                    self.repeated += 1;
                } else if first > self.last + 1 {
                    self.gaps.push((self.last + 1, first - 1));
                }
                assert!(!self.ended, "an event after the end: {frame}");
                self.last = self.last.max(seq);
                self.cursor = Some(frame["cursor"].as_str().unwrap().to_owned());
                self.events.insert(seq, frame.clone());
            }
            Some("missing") => {
                let from = frame["from"].as_u64().unwrap();
                let to = frame["to"].as_u64().unwrap();
                assert_eq!(from, self.last + 1, "{frame}");
                self.missing.push((from, to));
                self.last = to;
            }
            Some("end") => self.ended = true,
            Some("live") => self.live += 1,
            Some("anew") => {
                *self = Self {
                    restarts: self.restarts + 1,
                    ..Self::of(&self.job)
                }
            }
            Some("watching") => {}
            Some(_) => panic!("{frame}"),
        }
    }

    /// Reads the next frame, and records it.
    pub async fn step(&mut self, client: &mut Client) {
        self.record(&client.frame().await);
    }

    /// Reads until the job has ended, or the connection.
    pub async fn follow(&mut self, client: &mut Client) -> Frame {
        loop {
            match client.next().await {
                Frame::Json(frame) => self.record(&frame),
                gone @ (Frame::Closed(_) | Frame::Cut) => return gone,
            }
            if self.ended {
                return Frame::Json(Value::Null);
            }
        }
    }

    /// The output text that counts.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for event in self.events.values() {
            match event["type"].as_str() {
                Some("job:started:v1") if event["continues"] != true => text.clear(),
                Some("model:chunk:v1") if event["channel"] != "reasoning" => {
                    let chunk = event["text"].as_str().unwrap();
                    let is_merged = event["from_seq"].is_u64();
                    assert!(is_merged || !chunk.is_empty(), "an empty chunk: {event}");
                    text += chunk;
                }
                _ => {}
            }
        }
        text
    }

    /// The events of a type.
    pub fn of_type(&self, event_type: &str) -> Vec<&Value> {
        let events = self.events.values();
        events.filter(|event| event["type"] == event_type).collect()
    }

    /// Each `job:retrying`, the event after it, and how many milliseconds passed between them.
    pub fn retries(&self) -> Vec<(&Value, &Value, u64)> {
        let ts = |event: &Value| event["ts"].as_u64().unwrap();
        let events: Vec<&Value> = self.events.values().collect();
        events
            .windows(2)
            .filter(|pair| pair[0]["type"] == "job:retrying:v1")
            .map(|pair| (pair[0], pair[1], ts(pair[1]) - ts(pair[0])))
            .collect()
    }

    /// The event that ended the job.
    pub fn end(&self) -> &Value {
        &self.events[&self.last]
    }

    /// Requires that this attempt ended the job, and that no earlier attempt wrote after a later one.
    #[track_caller]
    pub fn assert_fenced(&self, attempt: u64) {
        let attempts = self.events.values().map(|event| event["attempt"].as_u64());
        assert!(attempts.is_sorted(), "{:?}", self.events);
        assert_eq!(self.end()["attempt"], attempt);
    }

    /// Requires that every event was seen once, in order, to the end, and this output.
    #[track_caller]
    pub fn assert_text(&self, expected: impl AsRef<str>) {
        self.assert_whole();
        assert_eq!(self.text(), expected.as_ref(), "{}", self.job);
    }

    /// Requires that every event was seen once, in order, to the end.
    #[track_caller]
    pub fn assert_whole(&self) {
        assert!(self.ended, "{} has not ended", self.job);
        assert_eq!(self.restarts, 0, "{} was started over", self.job);
        assert_eq!(
            (self.repeated, &self.gaps, &self.missing),
            (0, &vec![], &vec![]),
            "{}",
            self.job
        );
        assert_eq!(
            self.events.keys().copied().collect::<Vec<_>>(),
            (1..=self.last).collect::<Vec<_>>()
        );
    }
}

/// Follows a job over one connection to its end.
pub async fn follow(addr: &str, job: &str) -> Seen {
    follow_in(addr, job, Encoding::Json).await
}

/// Follows a job over one connection in this encoding to its end.
pub async fn follow_in(addr: &str, job: &str, encoding: Encoding) -> Seen {
    let mut client = Client::connect_in(addr, encoding).await;
    let mut seen = Seen::of(job);
    client.watch(&seen).await;
    seen.follow(&mut client).await;
    seen
}

/// Follows a job to its end, over as many connections as it takes.
pub async fn follow_through(addr: &str, seen: &mut Seen) {
    while !seen.ended {
        let mut client = Client::connect(addr).await;
        client.watch(seen).await;
        loop {
            match client.next().await {
                // The log may be unavailable for a moment; the client asks again.
                Frame::Json(frame) if frame["op"] == "error" => {
                    assert_eq!(frame["code"], "unavailable", "{frame}");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                    break;
                }
                Frame::Json(frame) => seen.record(&frame),
                Frame::Closed(_) | Frame::Cut => break,
            }
            if seen.ended {
                break;
            }
        }
    }
}
