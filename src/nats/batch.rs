//! A batched direct get: one request, many stored messages in the order of their stream sequences.
//! It does not decode them.

use async_nats::{Client, Message, StatusCode};
use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::time::timeout;

use super::error::unavailable;
use super::message::number;
use super::{api, names};
use crate::config::REQUEST_WAIT;
use crate::source::Unavailable;

/// The answer to a batched direct get.
#[derive(Debug)]
pub(super) struct MessageBatch {
    /// The messages, in ascending order.
    pub(super) messages: Vec<Message>,
    /// Whether this replica has more matching messages after these.
    pub(super) more: bool,
}

/// Makes a batched direct get from any replica of `stream`. `get` is the body of a
/// [`GetMessage`](super::message::GetMessage). Each message may take [`REQUEST_WAIT`].
///
/// # Errors
/// [`Unavailable`], also when messages of the batch were lost.
pub(super) async fn batch(
    client: &Client,
    stream: &str,
    get: Bytes,
) -> Result<MessageBatch, Unavailable> {
    let inbox = client.new_inbox();
    let mut answers = api::subscribe(client, inbox.clone()).await?;
    let subject = names::api(&format!("DIRECT.GET.{stream}"));
    client
        .publish_with_reply(subject, inbox, get)
        .await
        .map_err(unavailable)?;
    let mut messages = Vec::new();
    let mut before = 0;
    loop {
        let answer = timeout(REQUEST_WAIT, answers.next()).await;
        let message = answer
            .ok()
            .flatten()
            .ok_or_else(|| Unavailable("a batch was cut off".into()))?;
        match message.status {
            None => {
                // A full inbox drops messages silently. Each message names the one before it.
                let chain = number(&message, names::LAST_SEQUENCE);
                if chain != Some(before) {
                    return Err(Unavailable("a message of a batch is missing".into()));
                }
                before = number(&message, names::SEQUENCE).unwrap_or(0);
                messages.push(message);
            }
            Some(StatusCode::NOT_FOUND) => {
                return Ok(MessageBatch {
                    messages,
                    more: false,
                });
            }
            Some(status) if status.as_u16() == 204 => {
                let whole =
                    number(&message, names::LAST_SEQUENCE).is_none_or(|last| last == before);
                if !whole {
                    return Err(Unavailable("the last message of a batch is missing".into()));
                }
                let more = number(&message, names::PENDING).is_some_and(|pending| pending > 0);
                return Ok(MessageBatch { messages, more });
            }
            Some(status) => {
                return Err(Unavailable(format!("a batch failed with status {status}")));
            }
        }
    }
}
