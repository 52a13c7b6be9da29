//! Tokens, edges that check them, and clients that send them in every way.

use std::time::{SystemTime, UNIX_EPOCH};

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tailwater::auth::{Grants, NewToken, SigningSecret, TokenKeys};
use tailwater::edge::{self, Gate, SubjectLimits};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use super::http::{exchange, get};
use super::system::{Edge, System};
use super::within;

/// The secret of the edges.
pub const SIGNING: &[u8] = b"a secret of more than thirty-two bytes";

/// A token with these grants for `seconds`.
pub fn token(sub: &str, grants: &Value, seconds: i64) -> String {
    signed(SIGNING, sub, grants, seconds)
}

/// A token that another secret signed.
pub fn signed(secret: &[u8], sub: &str, grants: &Value, seconds: i64) -> String {
    let now = now_s();
    let exp = now.checked_add_signed(seconds).unwrap();
    let token = NewToken {
        sub: sub.to_owned(),
        iat: now.min(exp),
        exp,
        jti: format!("jti-{sub}"),
        pjti: None,
        iss: None,
        aud: None,
        tailwater: serde_json::from_value::<Grants>(grants.clone()).unwrap(),
    };
    let signed = SigningSecret::new(secret).unwrap().sign(&token);
    signed.expose().to_owned()
}

/// The time in seconds since the Unix epoch.
pub fn now_s() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs()
}

/// A header line with a token.
pub fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}\r\n")
}

/// What verifies the tokens.
pub fn keys() -> TokenKeys {
    TokenKeys {
        secret: Some(SigningSecret::new(SIGNING).unwrap()),
        ..TokenKeys::default()
    }
}

/// Lets in clients with a token that these keys verify.
pub fn gate(keys: TokenKeys) -> Gate {
    Gate::checked(keys, None, SubjectLimits::default())
}

/// Issues a ticket for the events of a job.
pub async fn issue_ticket(addr: &str, token: &str, job: &str) -> String {
    let headers = format!("Content-Type: application/json\r\n{}", bearer(token));
    let body = json!({"job": job}).to_string();
    let (head, answer) = exchange(addr, "POST", "/api/tickets", &headers, body.as_bytes()).await;
    assert!(head.starts_with("HTTP/1.1 201 "), "{head}{answer}");
    let issued: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(issued["expires_in_ms"], 60_000, "{issued}");
    issued["ticket"].as_str().unwrap().to_owned()
}

impl System {
    /// Starts an edge in this process whose clients need a token.
    pub async fn edge_with_tokens(&self) -> Edge {
        self.edge_with_keys(keys()).await
    }

    /// Starts an edge in this process whose clients need a token that these keys verify.
    pub async fn edge_with_keys(&self, keys: TokenKeys) -> Edge {
        self.edge_with(edge::EdgeSettings {
            gate: gate(keys),
            ..edge::EdgeSettings::default()
        })
        .await
    }

    /// Declares the kind `demo`, without a worker.
    pub async fn declare_demo(&self) {
        let nats = tailwater::nats::Nats::connect(&self.options).await.unwrap();
        let kind = "demo".parse().unwrap();
        nats.declare_kind(&kind, std::time::Duration::from_secs(8))
            .await
            .unwrap();
    }
}

/// How a WebSocket client sends its token.
#[derive(Clone, Copy, Debug)]
pub enum Sends {
    Nothing,
    Header,
    Subprotocol,
    Frame,
}

/// A WebSocket client with a token.
pub struct TokenClient(WebSocketStream<MaybeTlsStream<TcpStream>>);

impl TokenClient {
    /// Connects and reads the `hello`.
    ///
    /// # Errors
    /// The code with which the edge refuses.
    pub async fn connect(addr: &str, sends: Sends, token: &str) -> Result<Self, String> {
        let mut request = format!("ws://{addr}/ws").into_client_request().unwrap();
        let headers = request.headers_mut();
        let protocols = match sends {
            Sends::Subprotocol => format!("bearer.{token}, tailwater.v1.json"),
            Sends::Nothing | Sends::Header | Sends::Frame => "tailwater.v1.json".to_owned(),
        };
        headers.insert("Sec-WebSocket-Protocol", protocols.parse().unwrap());
        if matches!(sends, Sends::Header) {
            let value = format!("Bearer {token}").parse().unwrap();
            headers.insert("Authorization", value);
        }
        let mut client = match within("an answer", connect_async(request)).await {
            Ok((socket, answer)) => {
                assert_eq!(
                    answer.headers()["Sec-WebSocket-Protocol"],
                    "tailwater.v1.json"
                );
                Self(socket)
            }
            Err(Error::Http(answer)) => {
                let problem: Value =
                    serde_json::from_slice(answer.body().as_deref().unwrap_or_default()).unwrap();
                return Err(problem["code"].as_str().unwrap().to_owned());
            }
            Err(error) => panic!("{error}"),
        };
        assert_eq!(client.frame().await?["op"], "hello");
        if matches!(sends, Sends::Frame) {
            client.send(&json!({"op": "auth", "token": token})).await;
            assert_eq!(client.frame().await?["op"], "authenticated");
        }
        Ok(client)
    }

    pub async fn send(&mut self, frame: &Value) {
        // A connection that is gone is seen by the next read.
        let _ = within("a send", self.0.send(Message::text(frame.to_string()))).await;
    }

    /// Sends frames in one write, so that the edge reads them together.
    pub async fn send_together(&mut self, frames: &[Value]) {
        for frame in frames {
            let message = Message::text(frame.to_string());
            within("a send", self.0.feed(message)).await.unwrap();
        }
        within("a flush", self.0.flush()).await.unwrap();
    }

    /// The next frame.
    ///
    /// # Errors
    /// The reason of the edge's close, which is a code.
    pub async fn frame(&mut self) -> Result<Value, String> {
        within("a frame", async {
            loop {
                match self.0.next().await {
                    Some(Ok(Message::Text(text))) => {
                        let frame: Value = serde_json::from_str(&text).unwrap();
                        return Ok(frame);
                    }
                    Some(Ok(Message::Close(Some(close)))) => {
                        let number = u16::from(close.code);
                        return Err(format!("{number} {}", close.reason));
                    }
                    Some(Ok(Message::Close(None)) | Err(_)) | None => return Err("cut".to_owned()),
                    Some(Ok(_)) => {}
                }
            }
        })
        .await
    }

    /// Sends a frame; returns the code of its refusal, or `ok`.
    pub async fn ask(&mut self, frame: &Value) -> String {
        self.send(frame).await;
        match self.frame().await {
            Ok(answer) if answer["op"] == "error" => answer["code"].as_str().unwrap().to_owned(),
            Ok(_) => "ok".to_owned(),
            Err(closed) => closed,
        }
    }

    /// Reads until the edge closes; returns why.
    pub async fn closed(&mut self) -> String {
        within("the end of a connection", async {
            loop {
                if let Err(closed) = self.frame().await {
                    return closed;
                }
            }
        })
        .await
    }
}

/// A Socket.IO client by hand that joins with a token.
pub struct TokenSocket(WebSocketStream<MaybeTlsStream<TcpStream>>);

impl TokenSocket {
    /// Connects and joins.
    ///
    /// # Errors
    /// The message of `connect_error`, the code of the HTTP response, or `disconnected`.
    pub async fn join(addr: &str, sends: Sends, token: &str) -> Result<Self, String> {
        let url = format!("ws://{addr}/socket.io/?EIO=4&transport=websocket");
        let mut request = url.into_client_request().unwrap();
        if matches!(sends, Sends::Header) {
            let value = format!("Bearer {token}").parse().unwrap();
            request.headers_mut().insert("Authorization", value);
        }
        let mut client = match within("an answer", connect_async(request)).await {
            Ok((socket, _)) => Self(socket),
            Err(Error::Http(answer)) => {
                let problem: Value =
                    serde_json::from_slice(answer.body().as_deref().unwrap_or_default()).unwrap();
                return Err(problem["code"].as_str().unwrap().to_owned());
            }
            Err(error) => panic!("{error}"),
        };
        assert!(client.packet().await.unwrap().starts_with('0'));
        let auth = match sends {
            Sends::Frame => json!({"token": token}).to_string(),
            Sends::Nothing | Sends::Header | Sends::Subprotocol => String::new(),
        };
        client.send(&format!("40{auth}")).await;
        let Some(joined) = client.packet().await else {
            return Err("disconnected".to_owned());
        };
        if let Some(error) = joined.strip_prefix("44") {
            let error: Value = serde_json::from_str(error).unwrap();
            return Err(error["message"].as_str().unwrap().to_owned());
        }
        assert!(joined.starts_with("40{\"sid\""), "{joined}");
        assert!(
            client
                .packet()
                .await
                .unwrap()
                .starts_with("42[\"connected\",")
        );
        Ok(client)
    }

    async fn send(&mut self, text: &str) {
        let _ = within("a send", self.0.send(Message::text(text))).await;
    }

    /// The next packet that is not a ping; `None` when the connection is gone.
    pub async fn packet(&mut self) -> Option<String> {
        within("a packet", async {
            loop {
                match self.0.next().await {
                    Some(Ok(Message::Text(text))) if text == "2" => self.send("3").await,
                    Some(Ok(Message::Text(text))) => return Some(text.to_string()),
                    Some(Ok(Message::Close(_)) | Err(_)) | None => return None,
                    Some(Ok(_)) => {}
                }
            }
        })
        .await
    }

    /// Reads until the connection is gone; returns the packets.
    pub async fn rest(&mut self) -> Vec<String> {
        within("the end of a connection", async {
            let mut packets = Vec::new();
            while let Some(packet) = self.packet().await {
                packets.push(packet);
            }
            packets
        })
        .await
    }

    /// Emits an event; returns its acknowledgement.
    pub async fn acknowledged(&mut self, event: &str, data: &Value) -> Value {
        self.send(&format!("427{}", json!([event, data]))).await;
        within("an acknowledgement", async {
            loop {
                let packet = self.packet().await.expect("an acknowledgement");
                if let Some(answer) = packet.strip_prefix("437") {
                    let mut answer: Vec<Value> = serde_json::from_str(answer).unwrap();
                    return answer.remove(0);
                }
            }
        })
        .await
    }

    /// Emits an event; returns the code of its refusal, or `ok`.
    pub async fn ask(&mut self, event: &str, data: &Value) -> String {
        let answer = self.acknowledged(event, data).await;
        if answer["op"] == "error" {
            answer["code"].as_str().unwrap().to_owned()
        } else {
            "ok".to_owned()
        }
    }
}

/// A Socket.IO client by hand that joins with a token, and polls.
pub struct PollingSocket {
    addr: String,
    /// The path of its session.
    path: String,
    headers: String,
}

impl PollingSocket {
    /// Connects and joins.
    ///
    /// # Errors
    /// The message of `connect_error`, or the code of the HTTP response.
    pub async fn join(addr: &str, sends: Sends, token: &str) -> Result<Self, String> {
        let headers = match sends {
            Sends::Header => bearer(token),
            Sends::Nothing | Sends::Subprotocol | Sends::Frame => String::new(),
        };
        let path = "/socket.io/?EIO=4&transport=polling";
        let (head, body) = get(addr, path, &headers).await;
        if !head.starts_with("HTTP/1.1 200") {
            let problem: Value = serde_json::from_str(&body).unwrap();
            return Err(problem["code"].as_str().unwrap().to_owned());
        }
        let open: Value = serde_json::from_str(body.strip_prefix('0').unwrap()).unwrap();
        let client = Self {
            addr: addr.to_owned(),
            path: format!("{path}&sid={}", open["sid"].as_str().unwrap()),
            headers,
        };
        let auth = match sends {
            Sends::Frame => json!({"token": token}).to_string(),
            Sends::Nothing | Sends::Header | Sends::Subprotocol => String::new(),
        };
        client.send(&format!("40{auth}")).await;
        let joined = client.packet(&["40", "44"]).await;
        match joined.strip_prefix("44") {
            None => Ok(client),
            Some(error) => {
                let error: Value = serde_json::from_str(error).unwrap();
                Err(error["message"].as_str().unwrap().to_owned())
            }
        }
    }

    async fn send(&self, packet: &str) {
        let packet = packet.as_bytes();
        let (head, _) = exchange(&self.addr, "POST", &self.path, &self.headers, packet).await;
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    }

    /// Polls until there is a packet that starts with one of these.
    async fn packet(&self, starts: &[&str]) -> String {
        within("a packet", async {
            loop {
                let (head, body) = get(&self.addr, &self.path, &self.headers).await;
                assert!(head.starts_with("HTTP/1.1 200"), "{head}");
                let is_wanted =
                    |packet: &&str| starts.iter().any(|start| packet.starts_with(start));
                if let Some(packet) = body.split('\x1e').find(is_wanted) {
                    return packet.to_owned();
                }
            }
        })
        .await
    }

    /// Emits an event; returns the code of its refusal, or `ok`.
    pub async fn ask(&self, event: &str, data: &Value) -> String {
        self.send(&format!("427{}", json!([event, data]))).await;
        let packet = self.packet(&["437"]).await;
        let answers: Value = serde_json::from_str(packet.strip_prefix("437").unwrap()).unwrap();
        if answers[0]["op"] == "error" {
            answers[0]["code"].as_str().unwrap().to_owned()
        } else {
            "ok".to_owned()
        }
    }
}
