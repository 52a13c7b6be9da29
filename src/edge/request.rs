//! Reads the parts of a request: the job in its path, its query, its body, and the event to start
//! after. What cannot be read is a problem with a code.

use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use axum::extract::{FromRef, FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use serde::de::{DeserializeOwned, Deserializer, Error as _};
use serde::{Deserialize, Serialize};
use url::form_urlencoded;
use utoipa::IntoParams;
use utoipa::openapi::path::{Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::{Ref, Required};

use super::admission::ClientAddress;
use super::body::Bodies;
use super::error::Problem;
use super::memory::SplitReservation;
use crate::config::WAIT_MAX_S;
use crate::wire::{Code, JobId, Refusal, Seq, Start, job_id, start};

/// The job that the path names.
#[derive(Debug)]
pub(super) struct JobPath(pub(super) JobId);

impl IntoParams for JobPath {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let id = ParameterBuilder::new()
            .name("id")
            .parameter_in(ParameterIn::Path)
            .required(Required::True);
        let id = id
            .description(Some("The job's id."))
            .schema(Some(Ref::from_schema_name("JobId")));
        vec![id.build()]
    }
}

impl<S: Send + Sync> FromRequestParts<S> for JobPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Path(id) = Path::<String>::from_request_parts(parts, state)
            .await
            .map_err(|error| Problem::new(Code::BadJobId, error.body_text()))?;
        Ok(Self(job_id(&id)?))
    }
}

/// The address of the client, or of a proxy before it that is not trusted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer(pub(super) IpAddr);

impl<S: Send + Sync> FromRequestParts<S> for Peer {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let address = parts.extensions.get::<ClientAddress>();
        address
            .map(|ClientAddress(address)| Self(*address))
            .ok_or_else(|| Code::Internal.into())
    }
}

/// The query. Unknown parameters are ignored.
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

/// A body declared as JSON, and the memory that it takes.
#[derive(Debug)]
pub(super) struct JsonBody(pub(super) Vec<u8>, pub(super) SplitReservation);

impl<S: Send + Sync> FromRequest<S> for JsonBody
where
    Bodies: FromRef<S>,
{
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let content = request
            .headers()
            .get(header::CONTENT_TYPE)
            .and_then(|value| value.to_str().ok());
        let content = content
            .unwrap_or_default()
            .split(';')
            .next()
            .unwrap_or_default()
            .trim();
        if !content.eq_ignore_ascii_case("application/json") {
            return Err(Problem::new(
                Code::UnsupportedMediaType,
                "Send the job as `application/json`.",
            ));
        }
        let body = request.into_body();
        let (body, reservation) = Bodies::from_ref(state).read(body).await?;
        Ok(Self(body, reservation))
    }
}

/// How long a request may wait: whole seconds, `30` or `30s`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Wait(pub(super) Duration);

/// The text is not a valid wait.
#[derive(Debug, thiserror::Error)]
#[error("`wait` must be a whole number of seconds from 0 to {WAIT_MAX_S}, such as 30 or 30s.")]
pub(super) struct BadWait;

impl FromStr for Wait {
    type Err = BadWait;

    fn from_str(text: &str) -> Result<Self, BadWait> {
        let digits = text.strip_suffix('s').unwrap_or(text);
        let plain = digits == "0" || !digits.starts_with(['0', '+']);
        let seconds = digits
            .parse()
            .ok()
            .filter(|seconds| plain && *seconds <= WAIT_MAX_S)
            .ok_or(BadWait)?;
        Ok(Self(Duration::from_secs(seconds)))
    }
}

/// Reads a flag of a query: `1` or `true`, `0` or `false`.
pub(super) fn flag<'de, D: Deserializer<'de>>(from: D) -> Result<bool, D::Error> {
    match String::deserialize(from)?.as_str() {
        "1" | "true" => Ok(true),
        "0" | "false" => Ok(false),
        _ => Err(D::Error::custom("expected 1 or true, 0 or false")),
    }
}

impl<'de> Deserialize<'de> for Wait {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(D::Error::custom)
    }
}

/// The `limit` of a request, from 1 to `max`.
pub(super) fn limit(
    requested: Option<usize>,
    default: usize,
    max: usize,
) -> Result<usize, Problem> {
    let limit = requested.unwrap_or(default);
    if (1..=max).contains(&limit) {
        return Ok(limit);
    }
    let message = format!("`limit` must be 1 to {max}.");
    Err(Problem::new(Code::BadRequest, message))
}

/// The header in which a client that reconnects by itself sends the id of its last event.
const LAST_EVENT_ID: &str = "last-event-id";

/// The event to start after. The last event id of a client that reconnects overrides `cursor`, which
/// overrides `after`: those are in the address from the first request on.
pub(super) fn requested_start(
    last_event: Option<Start>,
    after: Option<u64>,
    cursor: Option<&str>,
) -> Result<Start, Problem> {
    match (last_event, cursor) {
        (Some(last_event), _) => Ok(last_event),
        (None, Some(cursor)) => Ok(parse_start(cursor)?),
        (None, None) => Ok(start(after, None)?),
    }
}

/// The event that a client that reconnects has read last: its id is in the header or, if its library
/// cannot set headers, in the query. The header overrides the query, because a client that sends
/// headers does not change its address.
pub(super) fn last_event(
    headers: &HeaderMap,
    query: Option<&str>,
) -> Result<Option<Start>, Problem> {
    let bad = |_| {
        Problem::new(
            Code::BadCursor,
            "The last event id is not a cursor or a sequence number.",
        )
    };
    let header = headers
        .get(LAST_EVENT_ID)
        .map(|id| id.to_str().map_err(bad))
        .transpose()?;
    let header = header.map(str::trim).filter(|id| !id.is_empty());
    let queried = header
        .is_none()
        .then(|| last_event_id(query.unwrap_or_default()))
        .flatten();
    let id = header.or(queried.as_deref());
    Ok(id.map(parse_start).transpose()?)
}

/// The last event id in a query: `lastEventId` or `Last-Event-ID`, in any case and with `-`, `_` or
/// nothing between the words. The last one applies, because a library may append it to an address
/// that already has one.
fn last_event_id(query: &str) -> Option<String> {
    let is_last_event_id = |name: &str| {
        let letters = name.bytes().filter(|byte| !matches!(byte, b'-' | b'_'));
        letters
            .map(|byte| byte.to_ascii_lowercase())
            .eq(*b"lasteventid")
    };
    let ids = form_urlencoded::parse(query.as_bytes()).filter(|(name, _)| is_last_event_id(name));
    ids.map(|(_, id)| id.trim().to_owned())
        .filter(|id| !id.is_empty())
        .last()
}

fn parse_start(text: &str) -> Result<Start, Refusal> {
    match text.parse() {
        Ok(after) if !text.starts_with('+') => Ok(Start::After(Seq(after))),
        _ => start(None, Some(text)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Cursor;
    use axum::http::{HeaderName, HeaderValue};

    fn headers(name: HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_bytes(value.as_bytes()).unwrap())])
    }

    /// The event after which a request starts.
    fn requested_start(
        headers: &HeaderMap,
        query: Option<&str>,
        after: Option<u64>,
        cursor: Option<&str>,
    ) -> Result<Start, Problem> {
        let last_event = last_event(headers, query)?;
        super::requested_start(last_event, after, cursor)
    }

    #[test]
    fn a_wait_is_whole_seconds_up_to_the_limit() {
        for (text, seconds) in [("0", 0), ("0s", 0), ("7", 7), ("30s", 30), ("60", 60)] {
            assert_eq!(
                text.parse::<Wait>().unwrap(),
                Wait(Duration::from_secs(seconds)),
                "{text}"
            );
        }
        for bad in [
            "",
            "s",
            "61",
            "30ss",
            "30m",
            "-1",
            "+1",
            "05",
            "1.5",
            " 1",
            "99999999999999999999",
        ] {
            assert!(bad.parse::<Wait>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_last_event_id_overrides_the_address_and_a_number_is_an_after() {
        let job: JobId = "j1".parse().unwrap();
        let cursor = Cursor::of(&job, Seq(3), 9, b"x");
        let text = cursor.to_string();
        let last = |value: &str| headers(HeaderName::from_static(LAST_EVENT_ID), value);
        let start_of = |headers: &HeaderMap, after, cursor| {
            requested_start(headers, None, after, cursor).map_err(|e| e.code())
        };
        let none = HeaderMap::new();
        assert_eq!(start_of(&none, None, None), Ok(Start::After(Seq(0))));
        assert_eq!(start_of(&none, Some(4), None), Ok(Start::After(Seq(4))));
        assert_eq!(
            start_of(&none, None, Some(&text)),
            Ok(Start::Cursor(cursor))
        );
        assert_eq!(start_of(&none, None, Some("5")), Ok(Start::After(Seq(5))));
        assert_eq!(
            start_of(&none, Some(4), Some("5")),
            Ok(Start::After(Seq(5)))
        );
        assert_eq!(start_of(&none, Some(4), Some("")), Err(Code::BadCursor));
        assert_eq!(
            start_of(&last(&text), Some(4), None),
            Ok(Start::Cursor(cursor))
        );
        assert_eq!(
            start_of(&last("6"), None, Some(&text)),
            Ok(Start::After(Seq(6)))
        );
        assert_eq!(start_of(&last(""), Some(4), None), Ok(Start::After(Seq(4))));
        for bad in ["nonsense", "-1", "+1", "99999999999999999999", "ä"] {
            assert_eq!(
                start_of(&last(bad), None, None),
                Err(Code::BadCursor),
                "{bad}"
            );
        }
    }

    #[test]
    fn a_last_event_id_in_the_query_has_several_names() {
        let start_of = |query: &str| {
            requested_start(&HeaderMap::new(), Some(query), Some(4), Some("5"))
                .map_err(|e| e.code())
        };
        for name in [
            "lastEventId",
            "LastEventId",
            "lasteventid",
            "LASTEVENTID",
            "lastEventID",
            "Last-Event-ID",
            "last-event-id",
            "last_event_id",
            "LAST_EVENT_ID",
            "last%2Devent%2did",
        ] {
            assert_eq!(
                start_of(&format!("{name}=7")),
                Ok(Start::After(Seq(7))),
                "{name}"
            );
            assert_eq!(
                start_of(&format!("after=4&{name}=7&cursor=5")),
                Ok(Start::After(Seq(7))),
                "{name}"
            );
        }
        for absent in [
            "",
            "a",
            "lastEventId",
            "lastEventId=",
            "lastEventId=%20",
            "lastEvent=7",
            "lastEventIds=7",
        ] {
            assert_eq!(start_of(absent), Ok(Start::After(Seq(5))), "{absent}");
        }
        for (query, seq) in [
            ("lastEventId=7&lastEventId=8", 8),
            ("last_event_id=7&lastEventId=", 7),
            ("lastEventId=%37", 7),
            ("lastEventId=+7+", 7),
        ] {
            assert_eq!(start_of(query), Ok(Start::After(Seq(seq))), "{query}");
        }
        for bad in [
            "nonsense",
            "-1",
            "%2B1",
            "%ff",
            "99999999999999999999",
            "7%00",
        ] {
            assert_eq!(
                start_of(&format!("lastEventId={bad}")),
                Err(Code::BadCursor),
                "{bad}"
            );
        }
    }

    #[test]
    fn the_header_overrides_the_query() {
        let header = |id: &str| headers(HeaderName::from_static(LAST_EVENT_ID), id);
        let start_of = |id: &str| {
            requested_start(&header(id), Some("lastEventId=7"), None, None).map_err(|e| e.code())
        };
        assert_eq!(start_of("9"), Ok(Start::After(Seq(9))));
        assert_eq!(start_of(" "), Ok(Start::After(Seq(7))));
        assert_eq!(start_of("nonsense"), Err(Code::BadCursor));
    }
}
