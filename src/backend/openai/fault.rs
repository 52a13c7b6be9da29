//! How an attempt to ask a model server fails.

use crate::backend::{Failure, FailureCode, Stopped};

/// A failure, and the HTTP status that the server sent with it.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) failure: Failure,
    pub(super) status: Option<u16>,
}

impl From<Failure> for Fault {
    fn from(failure: Failure) -> Self {
        Self {
            failure,
            status: None,
        }
    }
}

impl From<Stopped> for Fault {
    fn from(stopped: Stopped) -> Self {
        Failure::from(stopped).into()
    }
}

/// The answer is damaged; another one may not be.
pub(super) fn damaged(why: &str) -> Failure {
    Failure::retryable(FailureCode::BadStream, cannot_be_read(why))
}

/// The answer has a form that another attempt would get again.
pub(super) fn unreadable(why: &str) -> Failure {
    Failure::fatal(FailureCode::BadStream, cannot_be_read(why))
}

fn cannot_be_read(why: &str) -> String {
    format!("the model server's answer cannot be read: {why}")
}

/// The answer stopped before its end.
pub(super) fn stream_cut(why: &str) -> Failure {
    Failure::retryable(
        FailureCode::StreamCut,
        format!("the model server's stream was cut: {why}"),
    )
}
