//! Why a client's request is refused, and which request it was. Parsing errors become refusals
//! here.

use serde::Deserialize;

use super::code::Code;
use super::id::{JobId, Kind};
use super::limits::{ID_MAX, KEY_MAX, MESSAGE_MAX, OP_MAX, REF_MAX};
use super::object::{Excerpt, Misread, object};

/// Why a request is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The public code.
    pub code: Code,
    /// What is wrong with this request, for people.
    pub message: String,
    /// The request.
    pub request: RequestRef,
}

impl Refusal {
    /// A refusal of a request that is not identified. Only the beginning of a long message is kept.
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: shortened(message.into()),
            request: RequestRef::default(),
        }
    }
}

/// Identifies a request by its `ref` and job, as the client wrote them, cut to a length that can be
/// sent back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestRef {
    /// The client's own name for the frame.
    pub reference: Option<String>,
    /// The job.
    pub job: Option<String>,
}

/// The fields that identify a request.
#[derive(Default, Deserialize)]
pub(super) struct RequestHead {
    #[serde(default)]
    pub(super) op: Excerpt<OP_MAX>,
    #[serde(rename = "ref", default)]
    reference: Excerpt<REF_MAX>,
    #[serde(default)]
    job: Excerpt<ID_MAX>,
}

impl RequestRef {
    /// Identifies a request by its job alone.
    pub fn of_job(job: &JobId) -> Self {
        Self {
            reference: None,
            job: Some(job.to_string()),
        }
    }

    /// The fields of a JSON object; empty if it cannot be parsed.
    pub fn of(text: &[u8]) -> Self {
        object::<RequestHead>(text)
            .map(Into::into)
            .unwrap_or_default()
    }
}

impl From<RequestHead> for RequestRef {
    fn from(head: RequestHead) -> Self {
        Self {
            reference: head.reference.0,
            job: head.job.0,
        }
    }
}

/// Cuts an error message to [`MESSAGE_MAX`] bytes. Parsers quote unexpected text of any length.
pub fn shortened(mut message: String) -> String {
    message.truncate(message.floor_char_boundary(MESSAGE_MAX));
    // Messages may be kept for a while.
    message.shrink_to_fit();
    message
}

/// Reads a JSON object that a client sent.
///
/// # Errors
/// A [`Refusal`].
pub fn read_fields<'a, T: Deserialize<'a>>(text: &'a [u8]) -> Result<T, Refusal> {
    object(text).map_err(|misread| match misread {
        Misread::NotJson(error) => Refusal::new(Code::BadJson, error.to_string()),
        Misread::Other(error) => Refusal::new(Code::BadRequest, error.to_string()),
    })
}

/// Refuses a `ref` that is too long.
///
/// # Errors
/// A [`Refusal`].
pub(super) fn check_reference(reference: Option<&str>) -> Result<(), Refusal> {
    if reference.is_some_and(|reference| reference.chars().count() > REF_MAX) {
        let message = format!("`ref` is too long: the limit is {REF_MAX} characters");
        return Err(Refusal::new(Code::BadRequest, message));
    }
    Ok(())
}

/// Refuses an idempotency key that is empty or too long.
///
/// # Errors
/// A [`Refusal`].
pub fn check_key(key: Option<&str>) -> Result<(), Refusal> {
    if key.is_some_and(|key| key.is_empty() || key.len() > KEY_MAX) {
        let message = format!("The idempotency key must have 1 to {KEY_MAX} bytes.");
        return Err(Refusal::new(Code::BadRequest, message));
    }
    Ok(())
}

/// Reads a job id.
///
/// # Errors
/// A [`Refusal`].
pub fn job_id(text: &str) -> Result<JobId, Refusal> {
    text.parse()
        .map_err(|error| Refusal::new(Code::BadJobId, format!("a job id {error}")))
}

/// Reads a kind.
///
/// # Errors
/// A [`Refusal`].
pub fn kind(text: &str) -> Result<Kind, Refusal> {
    text.parse()
        .map_err(|error| Refusal::new(Code::BadKind, format!("a kind {error}")))
}
