//! A Socket.IO client by hand, for packets that no library sends.

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use super::http::{exchange, get};
use super::within;

/// A Socket.IO client by hand, for packets that no library sends.
pub struct Raw(WebSocketStream<MaybeTlsStream<TcpStream>>);

impl Raw {
    /// Connects and joins, and reads the greeting.
    pub async fn join(addr: &str) -> Self {
        let url = format!("ws://{addr}/socket.io/?EIO=4&transport=websocket");
        let (socket, _) = within("a connection", connect_async(url)).await.unwrap();
        let mut raw = Self(socket);
        let open: Value =
            serde_json::from_str(raw.next().await.unwrap().strip_prefix('0').unwrap()).unwrap();
        assert_eq!(
            (
                &open["pingInterval"],
                &open["pingTimeout"],
                &open["maxPayload"],
                &open["upgrades"]
            ),
            (
                &json!(25_000),
                &json!(20_000),
                &json!(1_048_576),
                &json!([])
            )
        );
        raw.send("40").await;
        assert!(raw.next().await.unwrap().starts_with("40{\"sid\""));
        assert!(raw.next().await.unwrap().starts_with("42[\"connected\","));
        raw
    }

    /// Upgrades a session that polls, whose path this is, to a WebSocket.
    pub async fn upgrade(addr: &str, path: &str) -> Self {
        let path = path.replace("transport=polling", "transport=websocket");
        let url = format!("ws://{addr}{path}");
        let (socket, _) = within("a connection", connect_async(url)).await.unwrap();
        let mut raw = Self(socket);
        raw.send("2probe").await;
        assert_eq!(raw.next().await.as_deref(), Some("3probe"));
        raw.send("5").await;
        raw
    }

    pub async fn send(&mut self, text: &str) -> bool {
        within("a send", self.0.send(Message::text(text)))
            .await
            .is_ok()
    }

    /// The next text that is not a ping; `None` when the connection is gone.
    pub async fn next(&mut self) -> Option<String> {
        within("a message", async {
            loop {
                match self.0.next().await {
                    Some(Ok(Message::Text(text))) if text == "2" => {
                        self.send("3").await;
                    }
                    Some(Ok(Message::Text(text))) => return Some(text.to_string()),
                    Some(Ok(Message::Close(_)) | Err(_)) | None => return None,
                    Some(Ok(_)) => {}
                }
            }
        })
        .await
    }

    /// Emits an event; returns its acknowledgement.
    pub async fn ask(&mut self, number: u32, event: &str, data: &Value) -> Value {
        self.send(&format!("42{number}{}", json!([event, data])))
            .await;
        let acknowledges = format!("43{number}");
        within("an acknowledgement", async {
            loop {
                let text = self.next().await.expect("an acknowledgement");
                if let Some(answer) = text.strip_prefix(&acknowledges) {
                    let mut answer: Vec<Value> = serde_json::from_str(answer).unwrap();
                    return answer.remove(0);
                }
            }
        })
        .await
    }

    /// The next event: its name and its argument.
    pub async fn event(&mut self) -> (String, Value) {
        let text = self.next().await.expect("an event");
        serde_json::from_str(text.strip_prefix("42").unwrap_or_else(|| panic!("{text}"))).unwrap()
    }
}

/// Connects and joins by polling, and reads the greeting and the first ping, which the library
/// sends at once; returns the path of the session, whose next poll waits.
pub async fn join_by_polling(addr: &str) -> String {
    let path = "/socket.io/?EIO=4&transport=polling";
    let (_, open) = get(addr, path, "").await;
    let open: Value = serde_json::from_str(open.strip_prefix('0').unwrap()).unwrap();
    let path = format!("{path}&sid={}", open["sid"].as_str().unwrap());
    let (head, _) = exchange(addr, "POST", &path, "", b"40").await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    let mut awaited = vec!["42[\"connected\",", "2"];
    within("the greeting", async {
        while !awaited.is_empty() {
            let (head, body) = get(addr, &path, "").await;
            assert!(head.starts_with("HTTP/1.1 200"), "{head}");
            awaited.retain(|start| !body.split('\x1e').any(|packet| packet.starts_with(start)));
        }
    })
    .await;
    path
}
