//! `POST /api/tickets`: a ticket opens one event stream of one job, for clients that cannot send
//! headers. A bucket that all edges share keeps it, so it is redeemed once and on any edge, with
//! no key that edges would have to share.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::access::Access;
use super::app::App;
use super::describe::{JOBS, problems};
use super::error::Problem;
use super::request::{JsonBody, Peer};
use crate::auth::Operation;
use crate::wire::limits::TICKET_TTL_MS;
use crate::wire::{BearerToken, Code, job_id, read_fields};

/// What the ticket is for.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TicketRequest {
    /// The job.
    #[schemars(with = "crate::wire::JobId")]
    job: String,
}

/// A ticket.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Ticket {
    /// The value of `ticket` in the query of `/api/jobs/{id}/events`.
    ticket: BearerToken,
    /// In how many milliseconds it expires.
    expires_in_ms: u64,
}

problems!(NoTicket: BadJson, BadRequest, BadJobId, UnsupportedMediaType, TooLarge, NotFound, JobNotFound, Timeout, Overloaded, Unavailable);

/// Issues a ticket for an event stream.
///
/// It opens one stream of one job, once, within a minute. An edge that checks no tokens issues none.
#[utoipa::path(
    post, path = "/api/tickets", tag = JOBS,
    request_body = ref("#/components/schemas/TicketRequest"),
    responses(
        (status = 201, description = "The ticket.", body = ref("#/components/schemas/Ticket")),
        NoTicket,
    ),
)]
pub(super) async fn issue(
    State(app): State<Arc<App>>,
    access: Access,
    Peer(client): Peer,
    JsonBody(body, reservation): JsonBody,
) -> Result<Response, Problem> {
    let TicketRequest { job } = read_fields(&body)?;
    let job = job_id(&job)?;
    // Others may need the room while NATS does not answer.
    drop((body, reservation));
    access.require(Operation::Watch(&job))?;
    let subject = access.subject_for_job(&job).ok_or_else(|| {
        let message = "This edge checks no tokens, so a stream needs no ticket.";
        Problem::new(Code::NotFound, message)
    })?;
    let _slot = app.shared.requests().acquire(client)?;
    let ticket = Ticket {
        ticket: app.settings.gate.issue_ticket(&subject).await?,
        expires_in_ms: TICKET_TTL_MS,
    };
    Ok((StatusCode::CREATED, Json(ticket)).into_response())
}
