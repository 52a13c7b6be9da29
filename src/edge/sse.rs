//! `GET /api/jobs/{id}/events`: a job's events as a stream of server-sent events (the HTML
//! standard, section 9.2) or as a page. `wire/PROTOCOL.md` is the contract.

mod stream;
mod translator;

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{FromRequestParts, State};
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream::empty;
use serde::Deserialize;

use self::stream::{EventStream, framing, hello};
pub(super) use self::translator::{Translation, Translator, put_block};
use super::accept::{Form, form, names_stream};
use super::access::Access;
use super::app::App;
use super::client_task::ClientTask;
use super::connection_slots::{acquire_for, needs_slot};
use super::counters::Transport;
use super::describe::{JOBS, problems};
use super::error::Problem;
use super::link::Link;
use super::page;
use super::quota::SubjectConnection;
use super::request::{
    JobPath, Params, Peer, Wait, flag, last_event, limit as page_limit, requested_start,
};
use super::takeover::{ResponseHead, TakenStream, Takeover};
use super::watches::Watches;
use crate::auth::Operation;
use crate::config::{PAGE_EVENTS, PAGE_EVENTS_MAX};
use crate::fair_slots::FairSlot;
use crate::nats::Reader;
use crate::session::Session;
use crate::wire::{Code, JobId, Start};

/// Where to start, and for a page how much to return and how long to wait.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct EventsQuery {
    /// Start after the event with this sequence number; 0 means from the first event. `after` makes
    /// the edge search the log; prefer `cursor`.
    #[param(nullable = false)]
    after: Option<u64>,
    /// Start after the event with this cursor or sequence number. It overrides `after`.
    #[param(nullable = false, format = "cursor", pattern = "^[A-Za-z0-9_-]{1,40}$")]
    cursor: Option<String>,
    /// The maximum number of events in a page.
    #[param(nullable = false, minimum = 1, maximum = 1000, default = 100)]
    limit: Option<usize>,
    /// How long a page waits for an event when none is stored: whole seconds, `30` or `30s`.
    #[param(inline, value_type = Option<String>, nullable = false, pattern = "^([0-9]|[1-5][0-9]|60)s?$")]
    #[serde(default)]
    wait: Wait,
    /// Answer 404 if the job does not exist, instead of waiting for it.
    #[serde(default)]
    must_exist: bool,
    /// Merge the text that is stored when the request arrives into few large chunks.
    #[param(value_type = bool, required = false)]
    #[serde(default, deserialize_with = "flag")]
    compact: bool,
}

/// What the head of a request for events says besides its address. A handler that waits must not hold
/// the head itself, which may be far larger.
#[derive(Clone, Copy, Debug)]
pub(super) struct EventsHead {
    /// The last event that a client that reconnects has read.
    pub(super) last_event: Option<Start>,
    form: Form,
    /// Whether it asks for a stream where the default is a document.
    pub(super) names_stream: bool,
    needs_slot: bool,
}

impl<S: Send + Sync> FromRequestParts<S> for EventsHead {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        Ok(Self {
            last_event: last_event(&parts.headers, parts.uri.query())?,
            form: form(&parts.headers),
            names_stream: names_stream(&parts.headers),
            needs_slot: needs_slot(parts),
        })
    }
}

problems!(NoEvents:
    BadJobId, JobNotFound, BadRequest, BadCursor, CursorOfOtherJob, CursorNotInLog, AfterTheEnd,
    RateLimited, Overloaded, Unavailable, Restarting);

/// Returns a job's events, as a stream or as a page.
///
/// To poll instead of streaming, send `Accept: application/json`; you get a page of events. The job
/// need not exist yet; a stream then starts with a comment that says so.
#[utoipa::path(
    get, path = "/api/jobs/{id}/events", tag = JOBS,
    params(
        JobPath,
        EventsQuery,
        (
            "Last-Event-ID" = inline(Option<String>), Header, nullable = false,
            format = "cursor", pattern = "^[A-Za-z0-9_-]{0,40}$",
            description = "Start after the event with this cursor or sequence number. \
                It overrides the query.",
        ),
        (
            "lastEventId" = inline(Option<String>), Query, nullable = false,
            format = "cursor", pattern = "^[A-Za-z0-9_-]{0,40}$",
            description = "The same as the header, for libraries that cannot set one. \
                It overrides `cursor` and `after`.",
        ),
    ),
    responses(
        (status = 200, description = "Stored events and, in a stream, future ones. The schema of the stream is that of one \
            of its events.", content(
            (ref("#/components/schemas/StreamEvent") = "text/event-stream"),
            (ref("#/components/schemas/Page") = "application/json"),
        )),
        (
            status = 204,
            description = "The job has ended and the client has all of its events, so there is \
                nothing to stream.",
        ),
        NoEvents,
    ),
)]
pub(super) async fn events(
    State(app): State<Arc<App>>,
    access: Access,
    Peer(client): Peer,
    JobPath(job): JobPath,
    Params(query): Params<EventsQuery>,
    head: EventsHead,
) -> Result<Response, Problem> {
    access.require(Operation::Watch(&job))?;
    let start = requested_start(head.last_event, query.after, query.cursor.as_deref())?;
    let limit = page_limit(query.limit, PAGE_EVENTS, PAGE_EVENTS_MAX)?;
    if query.must_exist {
        app.exists(&job).await?;
    }
    let stop = app.tasks.stop();
    let mut opened = stop
        .run_until_cancelled(Session::open_for(client, &app.hub, &job, start))
        .await
        .transpose()?;
    if let Some(session) = &mut opened
        && query.compact
    {
        session.compact_stored(&app.shared.memory().merged);
    }
    let mut response = match (head.form, opened) {
        (Form::Page, session) => {
            let _slot = app.shared.requests().acquire(client)?;
            page::answer(
                session,
                start,
                limit,
                query.wait,
                stop,
                &app.shared.memory().answers,
            )
            .await?
        }
        (Form::Stream, Some(session)) if session.had_end() => {
            StatusCode::NO_CONTENT.into_response()
        }
        (Form::Stream, Some(session)) if !app.clients.are_leaving() => {
            let slot = head
                .needs_slot
                .then(|| acquire_for(client, app.shared.connections()));
            let client = StreamClient::new(client, access, slot.transpose()?)?;
            taken_over(move |taken, head| start_stream(&app, session, client, None, taken, head))
        }
        // An EventSource does not reconnect after an error, but does when a stream ends.
        (Form::Stream, _) => stream_of(Body::from(hello())),
    };
    let cache = match head.form {
        Form::Page => "no-cache",
        Form::Stream => NOT_CACHED,
    };
    response
        .headers_mut()
        .insert(header::VARY, HeaderValue::from_static("accept"));
    response
        .headers_mut()
        .insert(header::CACHE_CONTROL, HeaderValue::from_static(cache));
    Ok(response)
}

/// How event streams are cached. A proxy that compresses would hold back small events.
const NOT_CACHED: &str = "no-cache, no-transform";

/// A response that streams a session's events in another protocol. It ends cleanly after the job's
/// final event or after an error that the translation wrote; otherwise the connection breaks.
pub(super) fn translated(
    app: &Arc<App>,
    session: Session<Reader>,
    (address, access): (IpAddr, Access),
    translation: Box<dyn Translation>,
) -> Result<Response, Problem> {
    if app.clients.are_leaving() {
        return Err(Code::Restarting.into());
    }
    // Over HTTP/2, one connection has many streams, and so may that of a proxy.
    let slot = acquire_for(address, app.shared.connections())?;
    let client = StreamClient::new(address, access, Some(slot))?;
    let app = Arc::clone(app);
    let job = session.job().clone();
    let mut response = taken_over(move |taken, head| {
        start_stream(&app, session, client, Some(translation), taken, head);
    });
    response
        .headers_mut()
        .insert(header::CACHE_CONTROL, HeaderValue::from_static(NOT_CACHED));
    name_job(&mut response, &job);
    Ok(response)
}

/// Names the job that a response of another protocol is from.
pub(super) fn name_job(response: &mut Response, job: &JobId) {
    if let Ok(job) = HeaderValue::from_str(job.as_str()) {
        let name = HeaderName::from_static("x-tailwater-job");
        response.headers_mut().insert(name, job);
    }
}

/// An event stream that `writer` writes. The response's own body is only for HEAD.
fn taken_over(writer: impl FnOnce(TakenStream, ResponseHead) + Send + 'static) -> Response {
    let mut response = stream_of(Body::from_stream(empty::<Result<Bytes, Infallible>>()));
    response.extensions_mut().insert(Takeover::new(writer));
    response
}

/// A client of a stream.
struct StreamClient {
    address: IpAddr,
    access: Access,
    /// Counts it among the streams of its subject.
    counted: Option<SubjectConnection>,
    /// Counts it among the connections of its address, instead of its connection.
    slot: Option<FairSlot>,
}

impl StreamClient {
    fn new(address: IpAddr, access: Access, slot: Option<FairSlot>) -> Result<Self, Problem> {
        let counted = access.connect()?;
        Ok(Self {
            address,
            access,
            counted,
            slot,
        })
    }
}

/// Streams the events of a session over the connection of a client.
fn start_stream(
    app: &App,
    session: Session<Reader>,
    client: StreamClient,
    translation: Option<Box<dyn Translation>>,
    taken: TakenStream,
    head: ResponseHead,
) {
    let StreamClient {
        address,
        access,
        counted,
        slot: own_slot,
    } = client;
    let counters = Arc::clone(&app.thread.counters);
    let connected = counters.connect(Transport::Sse);
    let room = app.shared.memory().events(Transport::Sse).clone();
    let watches = Watches::new(
        Arc::clone(&app.hub),
        counters,
        Transport::Sse,
        address,
        room,
    );
    let taken = taken.holding(own_slot);
    let mut link = Link::taken(taken, framing(&head), app.alarms.alarm());
    link.count_sent(&app.thread.counters.sent, Transport::Sse);
    let slot = app.clients.enter();
    let stream = match translation {
        None => EventStream::new(session, watches, link, slot, head),
        Some(translation) => {
            EventStream::translated(session, watches, link, slot, head, translation)
        }
    };
    let stream = stream.while_valid(&access).counted(connected, counted);
    app.tasks.spawn(ClientTask::new(stream));
}

fn stream_of(body: Body) -> Response {
    let headers = [
        (header::CONTENT_TYPE.as_str(), "text/event-stream"),
        ("x-accel-buffering", "no"),
    ];
    (headers, body).into_response()
}
