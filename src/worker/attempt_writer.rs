//! The writer of an attempt: one request to the log at a time, an append or a check. It does not
//! decide what to append.

use std::future::{Future, pending};
use std::pin::Pin;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use crate::nats::{AppendError, EventWriter};
use crate::wire::Body;

/// What the writer does.
pub(super) enum AttemptWriter {
    /// Nothing.
    Idle(Box<EventWriter>),
    /// It appends an event with this many bytes of output, since then.
    Appending(InFlightRequest, usize, Instant),
    /// It checks whether another process wrote.
    Checking(InFlightRequest),
    /// Only while the state changes.
    Changing,
}

/// An append or a check. It returns the writer.
type InFlightRequest =
    Pin<Box<dyn Future<Output = (Box<EventWriter>, Result<(), AppendError>)> + Send>>;

/// A request that has succeeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Written {
    /// An event was appended.
    Appended {
        /// How many bytes of output it has.
        bytes: usize,
        /// How long that took.
        took: Duration,
    },
    /// No other process wrote.
    Checked,
}

impl AttemptWriter {
    pub(super) fn is_idle(&self) -> bool {
        matches!(self, Self::Idle(_))
    }

    pub(super) fn is_appending(&self) -> bool {
        matches!(self, Self::Appending(..))
    }

    /// Starts to append an event if the writer is idle. The permit is dropped once it is stored.
    pub(super) fn append(&mut self, body: Body, permit: OwnedSemaphorePermit) {
        let bytes = permit.num_permits();
        self.start(|mut writer| {
            let request = Box::pin(async move {
                let result = writer.append(body).await;
                drop(permit);
                (writer, result)
            });
            Self::Appending(request, bytes, Instant::now())
        });
    }

    /// Starts to check whether another process wrote if the writer is idle.
    pub(super) fn check(&mut self) {
        self.start(|mut writer| {
            Self::Checking(Box::pin(async move {
                let result = writer.check().await;
                (writer, result)
            }))
        });
    }

    fn start(&mut self, request: impl FnOnce(Box<EventWriter>) -> Self) {
        *self = match std::mem::replace(self, Self::Changing) {
            Self::Idle(writer) => request(writer),
            busy @ (Self::Appending(..) | Self::Checking(_) | Self::Changing) => busy,
        };
    }

    /// Waits for the request in flight, forever if there is none. Cancel safe.
    pub(super) async fn written(&mut self) -> Result<Written, AppendError> {
        let (request, appending) = match self {
            Self::Appending(request, bytes, since) => (request, Some((*bytes, *since))),
            Self::Checking(request) => (request, None),
            Self::Idle(_) | Self::Changing => return pending().await,
        };
        let (writer, result) = request.await;
        *self = Self::Idle(writer);
        result.map(|()| match appending {
            Some((bytes, since)) => Written::Appended {
                bytes,
                took: since.elapsed(),
            },
            None => Written::Checked,
        })
    }
}
