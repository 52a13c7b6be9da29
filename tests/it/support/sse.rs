//! A client of server-sent events over a bare socket. It is written from the HTML standard and
//! `PROTOCOL.md`, not from the edge, and shows what browsers hide: comments, names and chunks.

use std::collections::HashMap;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

use super::within;

/// One request for a job's events.
pub struct Sse {
    pub status: u16,
    pub headers: HashMap<String, String>,
    lines: BufReader<TcpStream>,
}

/// One item of a stream.
#[derive(Clone, Debug, PartialEq)]
pub enum Item {
    /// An event without a name, and its id.
    Event(Value, String),
    /// An event with a name.
    Named(String, Value),
    /// The reconnect time in milliseconds.
    Retry(u64),
    Comment,
    /// The stream has ended.
    End,
}

impl Sse {
    /// Requests `path` with these header lines, each with its line break.
    pub async fn open(addr: &str, path: &str, headers: &str) -> Self {
        within("an answer", async {
            let mut socket = TcpStream::connect(addr).await.unwrap();
            // In HTTP/1.0 a body has no chunks.
            let head = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n{headers}\r\n");
            socket.write_all(head.as_bytes()).await.unwrap();
            let mut client = Self {
                status: 0,
                headers: HashMap::new(),
                lines: BufReader::new(socket),
            };
            let first = client.line().await.unwrap();
            client.status = first.split(' ').nth(1).unwrap().parse().unwrap();
            loop {
                let line = client.line().await.unwrap();
                let Some((name, value)) = line.split_once(": ") else {
                    return client;
                };
                client.headers.insert(name.to_owned(), value.to_owned());
            }
        })
        .await
    }

    async fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        // A reset counts as the end.
        let read = self.lines.read_line(&mut line).await.unwrap_or(0);
        (read > 0).then(|| line.trim_end_matches(['\r', '\n']).to_owned())
    }

    /// The next item.
    pub async fn next(&mut self) -> Item {
        within("a line of a stream", async {
            let mut id = None;
            let mut name = None;
            let mut data = Vec::new();
            while let Some(line) = self.line().await {
                match line.split_once(':') {
                    None if line.is_empty() && !data.is_empty() => {
                        let data = serde_json::from_str(&data.join("\n")).unwrap();
                        return match name {
                            Some(name) => Item::Named(name, data),
                            None => Item::Event(data, id.expect("an event has an id")),
                        };
                    }
                    Some(("", _)) => return Item::Comment,
                    Some(("retry", ms)) => return Item::Retry(ms.trim().parse().unwrap()),
                    Some(("id", value)) => id = Some(value.trim().to_owned()),
                    Some(("event", value)) => name = Some(value.trim().to_owned()),
                    Some(("data", value)) => data.push(value.trim_start().to_owned()),
                    _ => panic!("an unknown line: {line:?}"),
                }
            }
            Item::End
        })
        .await
    }

    /// The next event, without comments.
    pub async fn event(&mut self) -> Item {
        within("an event of a stream", async {
            loop {
                match self.next().await {
                    Item::Comment | Item::Retry(_) => {}
                    said @ (Item::Event(..) | Item::Named(..) | Item::End) => return said,
                }
            }
        })
        .await
    }

    /// Reads until the stream has ended.
    pub async fn ends(&mut self) {
        within("the end of a stream", async {
            while self.event().await != Item::End {}
        })
        .await;
    }
}
