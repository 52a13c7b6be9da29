//! The OpenAI API in front of any kind of worker: the model is a kind, and each request is a job. An
//! existing client gets an answer that survives its worker and can be read again.
//!
//! `completion` and `response` translate a log, `input` a request; the other files are routes.

mod complete;
mod completion;
mod error;
mod input;
mod job;
mod models;
mod respond;
mod response;
mod sent;
#[cfg(test)]
mod test_log;

pub(super) use self::complete::*;
pub(super) use self::error::in_openai_form;
pub(super) use self::models::*;
pub(super) use self::respond::*;
