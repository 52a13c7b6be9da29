//! An HTTP server whose answers a test decides byte by byte. One request a connection. It is
//! written from RFC 9112 and shares no code with the client.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use tailwater::runtime::Tasks;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::within;

/// Listens on a free port until it is dropped.
pub struct Server {
    /// Host and port.
    pub addr: String,
    requests: Arc<Mutex<Vec<Request>>>,
    tasks: Tasks,
}

/// One request.
#[derive(Clone, Debug)]
pub struct Request {
    /// Method and path.
    pub line: String,
    /// By lower-case name.
    pub headers: BTreeMap<String, String>,
    pub body: String,
}

/// One request, and the connection that waits for its answer. Dropping it closes the connection.
pub struct Exchange {
    /// Which request of the server this is, from 1.
    pub number: usize,
    pub request: Request,
    socket: TcpStream,
}

impl Server {
    /// Answers each request with `answer`.
    pub async fn start<F, A>(answer: F) -> Self
    where
        F: Fn(Exchange) -> A + Send + Sync + 'static,
        A: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let tasks = Tasks::new(CancellationToken::new());
        let asked = Arc::clone(&requests);
        let connections = tasks.clone();
        let answer = Arc::new(answer);
        tasks.spawn_until_stop(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                socket.set_nodelay(true).unwrap();
                let asked = Arc::clone(&asked);
                let answer = Arc::clone(&answer);
                connections.spawn_until_stop(async move {
                    let Some(request) = read(&mut socket).await else {
                        return;
                    };
                    let number = {
                        let mut asked = asked.lock().unwrap();
                        asked.push(request.clone());
                        asked.len()
                    };
                    answer(Exchange {
                        number,
                        request,
                        socket,
                    })
                    .await;
                });
            }
        });
        Self {
            addr,
            requests,
            tasks,
        }
    }

    /// Accepts each request, and says nothing about it.
    pub async fn accepting() -> Self {
        Self::start(async |mut exchange: Exchange| exchange.answer("204 No Content", "", "").await)
            .await
    }

    /// All requests so far.
    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    /// The requests so far for a path.
    pub fn at(&self, path: &str) -> Vec<Request> {
        let line = format!("POST {path}");
        let requests = self.requests().into_iter();
        requests.filter(|request| request.line == line).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.tasks.stop().cancel();
    }
}

impl Request {
    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

/// Reads one request; `None` when the client closes before it is complete.
async fn read(socket: &mut TcpStream) -> Option<Request> {
    let mut bytes = Vec::new();
    let (head, mut body) = loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            let body = bytes.split_off(end + 4);
            break (String::from_utf8(bytes).unwrap(), body);
        }
        if socket.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let mut lines = head.lines();
    let line = lines
        .next()
        .unwrap()
        .strip_suffix(" HTTP/1.1")
        .unwrap()
        .to_owned();
    let headers: BTreeMap<String, String> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let length = headers
        .get("content-length")
        .map_or(0, |length| length.parse().unwrap());
    while body.len() < length {
        if socket.read_buf(&mut body).await.ok()? == 0 {
            return None;
        }
    }
    Some(Request {
        line,
        headers,
        body: String::from_utf8(body).unwrap(),
    })
}

impl Exchange {
    /// A complete answer.
    pub async fn answer(&mut self, status: &str, headers: &str, body: &str) {
        let length = body.len();
        self.raw(format!(
            "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n{headers}\r\n{body}"
        ))
        .await;
    }

    /// The head of a stream of events, in chunks.
    pub async fn begin(&mut self) {
        self.raw("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n")
            .await;
    }

    /// The next bytes of the stream, in one chunk and packet.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let bytes = bytes.as_ref();
        let head = format!("{:x}\r\n", bytes.len());
        self.raw([head.as_bytes(), bytes, b"\r\n"].concat()).await;
    }

    /// Ends the stream properly.
    pub async fn finish(&mut self) {
        self.raw("0\r\n\r\n").await;
    }

    /// Any bytes.
    pub async fn raw(&mut self, bytes: impl AsRef<[u8]>) {
        // Some tests close the connection early.
        let _ = self.socket.write_all(bytes.as_ref()).await;
        let _ = self.socket.flush().await;
    }

    /// Waits until the client has closed the connection.
    pub async fn closed(&mut self) {
        let mut byte = [0];
        within("the client to close", async {
            while self.socket.read(&mut byte).await.is_ok_and(|read| read > 0) {}
        })
        .await;
    }

    /// Sends nothing for as long as a test may take.
    pub async fn hang(&mut self) {
        tokio::time::sleep(Duration::from_secs(600)).await;
    }
}
