//! Errors in the form of the OpenAI API: those of the edge, and those of jobs.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use utoipa::IntoResponses;
use utoipa::openapi::{Content, Ref, RefOr, ResponseBuilder, response};

use crate::edge::error::{Problem, count_refusal};
use crate::edge::sse::name_job;
use crate::wire::{Code, FailureCode, JobFailure, JobId};

/// Tells the clients of OpenAI whether to send the request again. By default they do after most
/// errors, and each would start another job.
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// An error in the form of the OpenAI API.
#[derive(Clone, Debug)]
pub(super) struct OpenAiProblem {
    status: u16,
    code: String,
    message: String,
    param: Option<&'static str>,
}

impl OpenAiProblem {
    fn new(status: u16, code: &str, message: impl Into<String>) -> Self {
        Self {
            status,
            code: code.to_owned(),
            message: message.into(),
            param: None,
        }
    }

    /// A job that failed.
    pub(super) fn of_failure(failure: &JobFailure) -> Self {
        let is_input =
            failure.code == FailureCode::BadInput || failure.code == FailureCode::ModelRefused;
        let status = if is_input { 422 } else { 500 };
        Self::new(status, &failure.code, failure.message.clone())
    }

    /// A job that was cancelled.
    pub(super) fn cancelled() -> Self {
        Self::new(409, "job_cancelled", "The job was cancelled.")
    }

    /// A later attempt answers otherwise than what was sent.
    pub(super) fn superseded(job: &JobId) -> Self {
        let message = format!(
            "The worker was lost, and another one answers differently. Discard this answer and read GET /v1/chat/completions/{job}."
        );
        Self::new(500, "attempt_superseded", message)
    }

    /// The rest of a log cannot be read.
    pub(super) fn unreadable(job: &JobId) -> Self {
        let message =
            format!("The rest of the answer cannot be read. Read {job} from its beginning.");
        Self::new(500, "unreadable", message)
    }

    /// A log that no longer has the whole answer.
    pub(super) fn incomplete(job: &JobId) -> Self {
        let message =
            format!("Events of {job} have expired or cannot be decoded: its answer is incomplete.");
        Self::new(410, "incomplete", message)
    }

    /// A job that has not ended in time.
    pub(super) fn still_running(job: &JobId) -> Self {
        let message = format!("The job still runs. Read {job} later, or stream it.");
        Self::new(504, "still_running", message)
    }

    /// The object that OpenAI's clients expect.
    pub(super) fn to_json(&self) -> Value {
        let error_type = match self.status {
            401 => "authentication_error",
            403 => "permission_error",
            429 => "rate_limit_error",
            status if status < 500 => "invalid_request_error",
            _ => "server_error",
        };
        json!({"error": {
            "message": self.message, "type": error_type, "param": self.param, "code": self.code,
        }})
    }
}

impl From<&Problem> for OpenAiProblem {
    fn from(problem: &Problem) -> Self {
        let code = problem.code();
        let info = code.info();
        // A model is a kind.
        if matches!(code, Code::UnknownKind | Code::BadKind) {
            return Self {
                param: Some("model"),
                ..Self::new(404, "model_not_found", problem.message())
            };
        }
        Self::new(info.status, info.code, problem.message())
    }
}

/// Declares the problems that a route answers with: what a status below 500 means there, and what one
/// from 500 on does.
macro_rules! openai_problems {
    ($name:ident: $below_500:literal, $from_500:literal $(,)?) => {
        pub(super) struct $name;
        impl IntoResponses for $name {
            fn responses() -> BTreeMap<String, RefOr<response::Response>> {
                let described = [("4XX", $below_500), ("5XX", $from_500)];
                described
                    .map(|(status, meaning)| (status.to_owned(), described_problem(meaning)))
                    .into()
            }
        }
    };
}

openai_problems!(OpenAiProblems: "Refused.", "Overloaded, or without NATS.");
openai_problems!(CompletionProblems:
    "The request is refused, or the job has failed.",
    "The job has failed or still runs, or the edge is overloaded.",
);
openai_problems!(ModelProblems:
    "No worker has ever served this kind.",
    "Overloaded, or without NATS.",
);

fn described_problem(meaning: &str) -> RefOr<response::Response> {
    let schema = Ref::from_schema_name("OpenAiError");
    ResponseBuilder::new()
        .description(meaning)
        .content("application/json", Content::new(Some(schema)))
        .build()
        .into()
}

impl IntoResponse for OpenAiProblem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(self.to_json())).into_response();
        response
            .headers_mut()
            .insert(SHOULD_RETRY, HeaderValue::from_static("false"));
        response
    }
}

/// The response to a request whose job is submitted. A problem of the answer names the job, and must
/// not be retried even if its code says so: the same request would start another job.
pub(super) fn of_submitted(job: &JobId, answer: Result<Response, Problem>) -> Response {
    let problem = match answer {
        Ok(response) => return response,
        Err(problem) => problem,
    };
    let message = format!(
        "The job {job} is submitted: read it instead of sending the request again. {}",
        problem.message()
    );
    not_retried(job, &problem, message)
}

/// The response to a request that may have submitted this job. It must not be retried either: the
/// edge would choose another id.
pub(super) fn of_uncertain(job: &JobId) -> Response {
    let message = format!(
        "The job {job} may have been submitted: look for it before you send the request again, which would start another job."
    );
    not_retried(job, &Code::Unavailable.into(), message)
}

fn not_retried(job: &JobId, problem: &Problem, message: String) -> Response {
    count_refusal(problem.code());
    let error = OpenAiProblem {
        message,
        ..OpenAiProblem::from(problem)
    };
    let mut response = error.into_response();
    name_job(&mut response, job);
    response
}

/// Gives the problems of all routes below `/v1` the form of the OpenAI API.
pub(in crate::edge) async fn in_openai_form(request: Request, next: Next) -> Response {
    let is_openai = request.uri().path().starts_with("/v1/");
    let mut response = next.run(request).await;
    if is_openai && let Some(problem) = response.extensions_mut().remove::<Problem>() {
        let error = OpenAiProblem::from(&problem);
        if let Ok(status) = StatusCode::from_u16(error.status) {
            *response.status_mut() = status;
        }
        *response.body_mut() = error.to_json().to_string().into();
        let headers = response.headers_mut();
        headers.remove(header::CONTENT_LENGTH);
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
        let may_retry = problem.code().info().retry;
        headers.insert(
            SHOULD_RETRY,
            HeaderValue::from_static(if may_retry { "true" } else { "false" }),
        );
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::to_bytes;
    use futures_util::FutureExt as _;

    fn job() -> JobId {
        "resp_1".parse().unwrap()
    }

    #[test]
    fn a_problem_after_a_submission_or_a_possible_one_names_the_job_and_is_not_retried() {
        let submitted = |code: Code| (code, of_submitted(&job(), Err(code.into())));
        for (code, response) in [
            submitted(Code::Unavailable),
            submitted(Code::Restarting),
            submitted(Code::RateLimited),
            (Code::Unavailable, of_uncertain(&job())),
        ] {
            assert!(code.info().retry);
            assert_eq!(response.status().as_u16(), code.info().status);
            let headers = response.headers();
            assert_eq!(headers[SHOULD_RETRY], "false");
            assert_eq!(headers["x-tailwater-job"], "resp_1");
            assert!(!headers.contains_key(header::RETRY_AFTER));
            assert!(response.extensions().get::<Problem>().is_none());
            let body = to_bytes(response.into_body(), 1000).now_or_never();
            let error: Value = serde_json::from_slice(&body.unwrap().unwrap()).unwrap();
            assert_eq!(error["error"]["code"], code.as_str());
            let message = error["error"]["message"].as_str().unwrap();
            assert!(message.contains("resp_1"), "{message}");
        }
    }

    #[test]
    fn an_answer_after_the_submission_is_sent_unchanged() {
        let response = of_submitted(&job(), Ok(StatusCode::NO_CONTENT.into_response()));
        assert_eq!(response.status(), StatusCode::NO_CONTENT);
        assert!(response.headers().is_empty());
    }
}
