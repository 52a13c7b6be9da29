//! What a request says: the job in its path, its query and body, where it wants to begin, what it accepts. Each is read
//! once, here, and what cannot be read is a problem with a code. It answers nothing.

use std::str::FromStr;
use std::time::Duration;

use axum::extract::{FromRef, FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use serde::de::{DeserializeOwned, Deserializer, Error as _};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::IntoParams;
use utoipa::openapi::path::{Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::{Ref, Required};

use super::body::Bodies;
use super::error::Problem;
use super::jobs::job_id;
use crate::config::WAIT_MAX_S;
use crate::wire::{Code, JobId, Refusal, Seq, Start, start};

/// The job that the path names.
#[derive(Debug)]
pub(super) struct Job(pub(super) JobId);

impl IntoParams for Job {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let id = ParameterBuilder::new().name("id").parameter_in(ParameterIn::Path).required(Required::True);
        let id = id.description(Some("The job.")).schema(Some(Ref::from_schema_name("JobId")));
        vec![id.build()]
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Job {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Path(id) = Path::<String>::from_request_parts(parts, state)
            .await
            .map_err(|error| Problem::new(Code::BadJobId, error.body_text()))?;
        job_id(&id).map(Self)
    }
}

/// The query. Parameters that nobody knows are passed over.
#[derive(Debug)]
pub(super) struct Params<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Params<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Query(params) = Query::from_request_parts(parts, state)
            .await
            .map_err(|error| Problem::new(Code::BadRequest, error.body_text()))?;
        Ok(Self(params))
    }
}

/// A body of JSON.
#[derive(Debug)]
pub(super) struct JsonBody(pub(super) Value);

impl<S: Send + Sync> FromRequest<S> for JsonBody
where
    Bodies: FromRef<S>,
{
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let content = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let content = content.unwrap_or_default().split(';').next().unwrap_or_default().trim();
        if !content.eq_ignore_ascii_case("application/json") {
            return Err(Problem::new(Code::UnsupportedMediaType, "send the job as application/json"));
        }
        let (parts, body) = request.into_parts();
        let (body, _held) = Bodies::from_ref(state).read(&parts.headers, body).await?;
        let json = serde_json::from_slice(&body);
        json.map(Self).map_err(|error| Problem::new(Code::BadJson, error.to_string()))
    }
}

/// How long a request may be kept waiting for news: whole seconds, `30` or `30s`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Wait(pub(super) Duration);

/// Text that is no such time.
#[derive(Debug, thiserror::Error)]
#[error("`wait` is a whole number of seconds from 0 to {WAIT_MAX_S}, for example 30 or 30s")]
pub(super) struct BadWait;

impl FromStr for Wait {
    type Err = BadWait;

    fn from_str(text: &str) -> Result<Self, BadWait> {
        let digits = text.strip_suffix('s').unwrap_or(text);
        let plain = digits == "0" || !digits.starts_with(['0', '+']);
        let seconds = digits.parse().ok().filter(|seconds| plain && *seconds <= WAIT_MAX_S).ok_or(BadWait)?;
        Ok(Self(Duration::from_secs(seconds)))
    }
}

impl<'de> Deserialize<'de> for Wait {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// By which a client says where it stands when it comes back by itself; it repeats its address, so this wins.
const LAST_EVENT_ID: &str = "last-event-id";

/// Where a request wants to begin: the last event id wins over the cursor, and that over the number. A number where a
/// cursor is expected is taken for `after`.
pub(super) fn begin(headers: &HeaderMap, after: Option<u64>, cursor: Option<&str>) -> Result<Start, Problem> {
    let bad = |_| Problem::new(Code::BadCursor, "a last event id is a cursor or a number");
    let last = headers.get(LAST_EVENT_ID).map(|id| id.to_str().map_err(bad)).transpose()?;
    match last.map(str::trim).filter(|last| !last.is_empty()).or(cursor) {
        Some(text) => Ok(position(text)?),
        None => Ok(start(after, None)?),
    }
}

fn position(text: &str) -> Result<Start, Refusal> {
    match text.parse() {
        Ok(after) if !text.starts_with('+') => Ok(Start::After(Seq(after))),
        _ => start(None, Some(text)),
    }
}

/// What an address that has both gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// `text/event-stream`, for as long as there is something to come.
    Stream,
    /// `application/json`, at once.
    Page,
}

/// What the client accepts: of the two, the one that it names first; a stream when it names none.
pub(super) fn form(headers: &HeaderMap) -> Form {
    let ranges = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let mut ranges = ranges.flat_map(|value| value.split(',')).map(|range| {
        let range = range.split(';').next().unwrap_or_default().trim();
        range.to_ascii_lowercase()
    });
    let named = ranges.find_map(|range| match range.as_str() {
        "application/json" | "application/*" => Some(Form::Page),
        "text/event-stream" | "text/*" | "*/*" => Some(Form::Stream),
        _ => None,
    });
    named.unwrap_or(Form::Stream)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Cursor;
    use axum::http::{HeaderName, HeaderValue};

    fn headers(name: HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_bytes(value.as_bytes()).unwrap())])
    }

    #[test]
    fn a_wait_is_whole_seconds_up_to_the_limit() {
        for (text, seconds) in [("0", 0), ("0s", 0), ("7", 7), ("30s", 30), ("60", 60)] {
            assert_eq!(text.parse::<Wait>().unwrap(), Wait(Duration::from_secs(seconds)), "{text}");
        }
        for bad in ["", "s", "61", "30ss", "30m", "-1", "+1", "05", "1.5", " 1", "99999999999999999999"] {
            assert!(bad.parse::<Wait>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_last_event_id_wins_over_the_address_and_a_number_is_an_after() {
        let job: JobId = "j1".parse().unwrap();
        let cursor = Cursor::of(&job, Seq(3), 9, b"x");
        let text = cursor.to_string();
        let last = |value: &str| headers(HeaderName::from_static(LAST_EVENT_ID), value);
        let begin = |headers: &HeaderMap, after, cursor| begin(headers, after, cursor).map_err(|e| e.code());
        let none = HeaderMap::new();
        assert_eq!(begin(&none, None, None), Ok(Start::After(Seq(0))));
        assert_eq!(begin(&none, Some(4), None), Ok(Start::After(Seq(4))));
        assert_eq!(begin(&none, None, Some(&text)), Ok(Start::Cursor(cursor)));
        assert_eq!(begin(&none, None, Some("5")), Ok(Start::After(Seq(5))));
        assert_eq!(begin(&none, Some(4), Some("5")), Ok(Start::After(Seq(5))));
        assert_eq!(begin(&none, Some(4), Some("")), Err(Code::BadCursor));
        assert_eq!(begin(&last(&text), Some(4), None), Ok(Start::Cursor(cursor)));
        assert_eq!(begin(&last("6"), None, Some(&text)), Ok(Start::After(Seq(6))));
        assert_eq!(begin(&last(""), Some(4), None), Ok(Start::After(Seq(4))));
        for bad in ["nonsense", "-1", "+1", "99999999999999999999", "ä"] {
            assert_eq!(begin(&last(bad), None, None), Err(Code::BadCursor), "{bad}");
        }
    }

    #[test]
    fn a_client_gets_the_form_that_it_names_first() {
        assert_eq!(form(&HeaderMap::new()), Form::Stream);
        for (accept, expected) in [
            ("text/event-stream", Form::Stream),
            ("*/*", Form::Stream),
            ("text/html,application/xhtml+xml,*/*;q=0.8", Form::Stream),
            ("image/png", Form::Stream),
            ("application/json", Form::Page),
            ("Application/JSON; charset=utf-8", Form::Page),
            ("application/json, text/plain, */*", Form::Page),
            ("text/event-stream, application/json", Form::Stream),
        ] {
            assert_eq!(form(&headers(header::ACCEPT, accept)), expected, "{accept}");
        }
        let mut two = headers(header::ACCEPT, "image/png");
        two.append(header::ACCEPT, HeaderValue::from_static("application/json"));
        assert_eq!(form(&two), Form::Page);
    }
}
