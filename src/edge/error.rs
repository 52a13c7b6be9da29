//! Public codes as responses: problem details (RFC 9457) over HTTP, error frames elsewhere. Counts
//! them for the whole process. The codes are in `wire`; causes are logged and never sent.

use std::sync::atomic::{AtomicU64, Ordering};

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Serialize;
use tracing::{debug, warn};

use super::quota::QuotaReached;
use crate::budget::LimitReached;
use crate::session::SessionError;
use crate::source::Unavailable;
use crate::wire::{Code, JobId, Refusal, RequestRef, ServerFrame, shortened};

/// How often each code was sent. Refusals are rare, so all threads share the counters.
static REFUSALS: [AtomicU64; Code::ALL.len()] = [const { AtomicU64::new(0) }; Code::ALL.len()];

/// Counts a code that was sent.
pub(super) fn count_refusal(code: Code) {
    if let Some(count) = REFUSALS.get(code as usize) {
        count.fetch_add(1, Ordering::Relaxed);
    }
}

/// How often each code was sent since the process started.
pub(super) fn refusals() -> impl Iterator<Item = (Code, u64)> {
    let counts = REFUSALS.iter().map(|count| count.load(Ordering::Relaxed));
    Code::ALL.iter().copied().zip(counts)
}

/// Why a request was refused or failed.
#[derive(Clone, Debug)]
pub(super) struct Problem {
    code: Code,
    detail: Option<String>,
    /// The job that the request may have started, under an id that the client does not know.
    job: Option<JobId>,
    /// The limit that the client has reached.
    reached: Option<Box<QuotaReached>>,
}

/// Why a request is refused or has failed (RFC 9457).
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Problem")]
pub(super) struct ProblemBody<'a> {
    /// Always `about:blank`; see `code`.
    #[serde(rename = "type")]
    problem_type: &'static str,
    /// What the code means, for people.
    title: &'static str,
    /// The HTTP status.
    status: u16,
    /// What is wrong, for programs. The codes are stable.
    code: &'static str,
    /// What is wrong with this request, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<&'a str>,
    /// The job that a submission without an id may have started. Repeat the submission with this
    /// `id`; without it, another job would start.
    #[serde(skip_serializing_if = "Option::is_none")]
    job: Option<&'a str>,
}

impl Problem {
    /// `detail` may quote the request. Only the beginning of a long one is kept.
    pub(super) fn new(code: Code, detail: impl Into<String>) -> Self {
        Self {
            code,
            detail: Some(shortened(detail.into())),
            job: None,
            reached: None,
        }
    }

    /// A submission that may have started this job, under an id that the client did not choose. It
    /// needs the id to repeat the submission.
    pub(super) fn of_uncertain_job(error: Unavailable, job: &JobId) -> Self {
        let detail = format!(
            "The job {job} may have been submitted. Repeat the submission with this `id`; without it, another job would start."
        );
        Self {
            detail: Some(detail),
            job: Some(job.clone()),
            ..Self::from(error)
        }
    }

    /// The error frame for a request or a job.
    pub(super) fn into_frame(self, request: RequestRef) -> ServerFrame {
        let message = self.message().to_owned();
        let job = self.job.map(|job| job.to_string()).or(request.job);
        error_frame(Refusal {
            code: self.code,
            message,
            request: RequestRef {
                reference: request.reference,
                job,
            },
        })
    }

    /// The stable code.
    pub(super) fn code(&self) -> Code {
        self.code
    }

    /// What is wrong, for people.
    pub(super) fn message(&self) -> &str {
        self.detail
            .as_deref()
            .unwrap_or_else(|| self.code.info().text)
    }
}

/// The frame that answers a request with its refusal.
pub(super) fn error_frame(refusal: Refusal) -> ServerFrame {
    count_refusal(refusal.code);
    debug!(code = refusal.code.as_str(), "refused");
    ServerFrame::error(refusal.code, refusal.message, refusal.request)
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        Self::new(refusal.code, refusal.message)
    }
}

impl From<Code> for Problem {
    fn from(code: Code) -> Self {
        Self {
            code,
            detail: None,
            job: None,
            reached: None,
        }
    }
}

impl From<QuotaReached> for Problem {
    fn from(reached: QuotaReached) -> Self {
        Self {
            reached: Some(Box::new(reached)),
            ..Self::new(Code::RateLimited, reached.message())
        }
    }
}

impl From<LimitReached> for Problem {
    fn from(LimitReached: LimitReached) -> Self {
        Code::Overloaded.into()
    }
}

impl From<Unavailable> for Problem {
    fn from(error: Unavailable) -> Self {
        warn!(%error, "a request failed");
        Code::Unavailable.into()
    }
}

impl From<SessionError> for Problem {
    fn from(error: SessionError) -> Self {
        match error {
            SessionError::Unavailable(error) => error.into(),
            SessionError::Full(_)
            | SessionError::CursorOfOtherJob
            | SessionError::CursorNotInLog
            | SessionError::AfterTheEnd { .. } => Self::new(error.code(), error.to_string()),
        }
    }
}

impl Problem {
    /// The response, with its body as text. Counts the code.
    pub(super) fn to_response(&self) -> Response<String> {
        count_refusal(self.code);
        let info = self.code.info();
        debug!(code = info.code, detail = self.detail, "refused");
        let body = ProblemBody {
            problem_type: "about:blank",
            title: info.text,
            status: info.status,
            code: info.code,
            detail: self.detail.as_deref(),
            job: self.job.as_ref().map(JobId::as_str),
        };
        let json = serde_json::to_string(&body)
            .unwrap_or_else(|_| unreachable!("texts and numbers are always JSON"));
        let mut response = Response::new(json);
        *response.status_mut() =
            StatusCode::from_u16(info.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        if self.code == Code::UpgradeRequired {
            headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
            headers.insert(
                header::SEC_WEBSOCKET_VERSION,
                HeaderValue::from_static("13"),
            );
        }
        if info.status == 401 {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(seconds) = self.code.retry_after_s() {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        for (name, value) in self.reached.iter().flat_map(|reached| reached.headers()) {
            headers.insert(name, value);
        }
        response
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = self.to_response().map(Body::from);
        // For clients that expect errors in another form.
        response.extensions_mut().insert(self);
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::limits::MESSAGE_MAX;
    use serde_json::{Value, json};

    #[test]
    fn the_detail_of_a_problem_is_cut() {
        let problem = Problem::new(Code::BadRequest, "é".repeat(500_000));
        assert_eq!(problem.message().len(), MESSAGE_MAX);
        assert!(problem.detail.unwrap().capacity() <= MESSAGE_MAX);
    }

    #[test]
    fn a_submission_that_may_have_started_a_job_names_it_on_every_transport() {
        let job: JobId = "job-1".parse().unwrap();
        let problem = Problem::of_uncertain_job(Unavailable("no answer".into()), &job);
        let message = problem.message();
        assert!(
            message.starts_with("The job job-1 may have been submitted. "),
            "{message}"
        );
        let response = problem.to_response();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        let body: Value = serde_json::from_str(response.body()).unwrap();
        assert_eq!(
            (&body["code"], &body["job"]),
            (&json!("unavailable"), &json!("job-1"))
        );
        let request = RequestRef {
            reference: Some("r".into()),
            job: None,
        };
        let frame: Value = serde_json::from_str(&problem.into_frame(request).to_json()).unwrap();
        assert_eq!(
            (&frame["code"], &frame["ref"], &frame["job"]),
            (&json!("unavailable"), &json!("r"), &json!("job-1"))
        );
        // Others name the job of the request, if it has one.
        let request = RequestRef::of_job(&job);
        let frame = Problem::from(Code::JobNotFound).into_frame(request);
        assert!(frame.to_json().contains(r#""job":"job-1""#));
        let response = Problem::from(Code::Unavailable).to_response();
        assert!(!response.body().contains("\"job\""));
    }
}
