//! Live copies of one job's events. It does not notice a lost copy; the reader sees the gap.

use std::future::pending;
use std::sync::Arc;

use async_nats::{Message, Subscriber};
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::sync::watch;

use super::log::Log;
use super::message::{header, number};
use super::{api, names};
use crate::config::LIVE_DELAY_EVERY;
use crate::source::{Tail, TailSignal, Unavailable};
use crate::wire::{JobId, Stored};

/// The live subscription of one job.
#[derive(Debug)]
pub struct LiveTail {
    log: Log,
    job: JobId,
    /// `None` after unsubscribing.
    live: Option<Subscriber>,
    /// The subjects of a copy and of the message that it is a copy of.
    subjects: [String; 2],
    /// Incremented when copies may have been lost, or the log may be a different one: a connection
    /// was down, or the shard has a new leader.
    disturbed: [watch::Receiver<u64>; 2],
}

impl Log {
    /// See [`EventSource::follow`](crate::source::EventSource::follow).
    pub(super) async fn follow_live(
        &self,
        job: &JobId,
        elections: watch::Receiver<u64>,
    ) -> Result<(LiveTail, Option<Arc<Stored>>), Unavailable> {
        let subject = self.nats.names.live(job.shard(self.shards), job);
        let subjects = [subject.clone(), self.subject(job)];
        let mut disturbed = [self.nats.reconnected.clone(), elections];
        for count in &mut disturbed {
            count.mark_unchanged();
        }
        let live = api::subscribe(&self.nats.live, subject).await?;
        // When this request on the same connection is answered, the server has seen the
        // subscription. `flush` would only empty the socket's buffer.
        let last = self.last_of_any(&self.nats.live, job).await?;
        Ok((
            LiveTail {
                log: self.clone(),
                job: job.clone(),
                live: Some(live),
                subjects,
                disturbed,
            },
            last.map(Arc::new),
        ))
    }
}

/// Whether a message is the broker's copy of one of these subjects' messages. A client that may not
/// publish on the subject of the copies can still make the broker send a message to it: as the
/// answer to a request, or as the delivery of a consumer.
fn is_copy(message: &Message, [copy, stored]: &[String; 2]) -> bool {
    message.subject.as_str() == copy && header(message, names::SUBJECT) == Some(stored.as_str())
}

impl Tail for LiveTail {
    async fn next(&mut self) -> TailSignal {
        let [reconnected, elected] = &mut self.disturbed;
        loop {
            // Checked first, so that no copy after a disturbance is delivered before it.
            tokio::select! {
                biased;
                () = changed(reconnected) => return TailSignal::Disturbed,
                () = changed(elected) => return TailSignal::Disturbed,
                message = next(&mut self.live) => match message {
                    Some(message) => {
                        if !is_copy(&message, &self.subjects) {
                            continue;
                        }
                        // The broker's header is the last one: the publisher may have set the same.
                        let Some(stream_seq) = number(&message, names::SEQUENCE) else { continue };
                        self.log.record_seen(stream_seq, &self.job);
                        if stream_seq % LIVE_DELAY_EVERY == 0 {
                            self.log.note_delay(header(&message, names::TIME));
                        }
                        let prev = number(&message, names::LAST_SEQUENCE);
                        return match self.log.decode(&self.job, stream_seq, &message.payload, prev) {
                            Some(event) => TailSignal::Event(Arc::new(event)),
                            None => TailSignal::Undecodable { stream_seq, prev },
                        };
                    }
                    None => return TailSignal::Closed,
                },
            }
        }
    }

    fn ready(&mut self) -> Option<TailSignal> {
        self.next().now_or_never()
    }

    fn unsubscribe(&mut self) {
        self.live = None;
    }
}

async fn next(live: &mut Option<Subscriber>) -> Option<Message> {
    match live {
        Some(live) => live.next().await,
        None => pending().await,
    }
}

async fn changed(count: &mut watch::Receiver<u64>) {
    if count.changed().await.is_err() {
        // The sender ends with the connection, which also closes the subscription.
        pending().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use async_nats::{HeaderMap, Subject};

    fn message(subject: &'static str, stored: &[&str]) -> Message {
        let mut headers = HeaderMap::new();
        for stored in stored {
            headers.append(names::SUBJECT, *stored);
        }
        Message {
            subject: Subject::from_static(subject),
            reply: None,
            payload: "x".into(),
            headers: Some(headers),
            status: None,
            description: None,
            length: 1,
        }
    }

    #[test]
    fn only_the_copy_of_a_message_of_the_log_counts_as_live() {
        let subjects = ["tw.live.0.j", "tw.chunks.0.j"].map(str::to_owned);
        let cases: [(&str, &[&str], bool); 6] = [
            ("tw.live.0.j", &["tw.chunks.0.j"], true),
            // The answer to a request whose reply subject is that of the copies.
            ("tw.live.0.j", &["tw.chunks.0.other"], false),
            ("tw.live.0.j", &[], false),
            // The broker's header comes after the publisher's.
            (
                "tw.live.0.j",
                &["tw.chunks.0.j", "tw.chunks.0.other"],
                false,
            ),
            ("tw.live.0.j", &["tw.chunks.0.other", "tw.chunks.0.j"], true),
            // A consumer that delivers to the subject of the copies: its messages keep their own.
            ("tw.chunks.0.other", &["tw.chunks.0.j"], false),
        ];
        for (subject, stored, is_live) in cases {
            let message = message(subject, stored);
            assert_eq!(is_copy(&message, &subjects), is_live, "{message:?}");
        }
    }
}
