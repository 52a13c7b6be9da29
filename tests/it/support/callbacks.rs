//! Workers for callbacks, and jobs that call back.

use serde_json::{Value, json};
use tailwater::backend::webhook::Webhook;
use tailwater::worker::WorkerSettings;

use super::http::post;
use super::http_server::Server;
use super::system::{SECRET, System};
use super::{assert_fields, until};

impl System {
    /// Starts a worker that may call back to this server.
    pub async fn callbacks(&self, receiver: &Server, change: impl FnOnce(&mut WorkerSettings)) {
        let webhook = Webhook::new(vec![receiver.addr.clone()], &SECRET.into()).unwrap();
        let worker = |settings: &mut WorkerSettings| {
            *settings = WorkerSettings::new("callback".parse().unwrap());
            change(settings);
        };
        self.worker(webhook, worker).await;
    }

    /// Submits a job with an input that makes it fail; returns the error that its callback reports.
    pub async fn failure_called_back(&self, input: &str) -> Value {
        let receiver = Server::accepting().await;
        self.callbacks(&receiver, |_| {}).await;
        let edge = self.edge_calling(&[&receiver.addr]).await;
        let callback = format!("http://{}/ended", receiver.addr);
        let body = json!({"kind": "demo", "id": "calls", "input": input, "callback": callback});
        assert_eq!(post(&edge, &body).await.0, 202);
        // It may come again: a callback is repeated if its answer comes too late.
        until("the callback", async || !receiver.requests().is_empty()).await;
        let data = receiver.at("/ended")[0].json()["data"].clone();
        assert_fields!(data, {"id": "calls", "status": "failed"});
        data["error"].clone()
    }
}
