//! Errors in the forms of many servers: found or not, what they mean, and their messages.

use super::*;
use serde_json::json;

fn of_event(event: &Value) -> ServerError {
    ServerError::of_event(event, false).unwrap_or_else(|| panic!("no error: {event}"))
}

#[test]
fn an_error_is_found_in_every_form_with_its_message() {
    let words = "the prompt is too long";
    for event in [
        json!({"error": {"message": words, "code": 500}}),
        json!({"error": words}),
        json!({"error": {"message": words}, "choices": [{"delta": {}, "finish_reason": "error"}]}),
        json!({"error": {"error": {"message": words}}}),
        json!({"object": "error", "message": words, "choices": []}),
        json!({"type": "error", "error": {"type": "api_error", "message": words}}),
        json!({"choices": null, "error_type": "ServerError", "error_message": words}),
        json!({"choices": [{"index": 0, "delta": {}, "error": {"message": words}, "finish_reason": "error"}]}),
        json!({"choices": [{"index": 0, "delta": {}, "error": words}]}),
        json!({"choices": [{"message": {"error": {"message": words}}}]}),
        json!({"choices": [{"delta": {}, "error": words, "finish_reason": "error"}]}),
        json!({"choices": [{"delta": {}, "error_code": 7, "error_message": words}]}),
        json!({"detail": words}),
        json!({"code": 500, "msg": words}),
        json!({"choices": null, "message": words}),
        json!({"base_resp": {"status_code": 1004, "status_msg": words}}),
    ] {
        assert_eq!(of_event(&event).message, words, "{event}");
    }
    assert_eq!(
        of_event(&json!({"error": {"code": 5}})).message,
        r#"{"code":5}"#
    );
    assert_eq!(
        of_event(&json!({"choices": null, "error_type": "Oops"})).message,
        "Oops"
    );
    let reason = json!({"choices": [{"delta": {"content": "x"}, "finish_reason": "ERROR"}], "message": words});
    assert_eq!(of_event(&reason).message, words);
    let wrapped =
        json!({"error": {"message": "Provider returned error", "metadata": {"raw": words}}});
    assert_eq!(
        of_event(&wrapped).message,
        format!("Provider returned error: {words}")
    );
}

#[test]
fn an_event_without_an_error_has_none() {
    for event in [
        json!({"error": null, "choices": []}),
        json!({"error": {"code": 0, "message": ""}, "choices": [{"delta": {"content": "x"}}]}),
        json!({"error_code": "0", "error_msg": "", "choices": [{"delta": {"content": "x"}, "error": null}]}),
        json!({"choices": [{"delta": {"content": "x"}, "message": {"content": "x"}}], "code": 200}),
        json!({"choices": [], "usage": {"total_tokens": 1}, "message": "bye"}),
        json!({"code": 0, "message": "success", "choices": [{"index": 0, "delta": {"content": ""}}]}),
        json!({"code": 200, "message": "success"}),
        json!({"type": "ping", "message": "still here"}),
        json!({"type": "message_start", "message": {"id": "m"}}),
        json!({"id": "x"}),
        json!({}),
    ] {
        assert_eq!(ServerError::of_event(&event, false), None, "{event}");
    }
}

#[test]
fn an_error_is_final_passing_or_busy() {
    let error = |error: Value| of_event(&json!({ "error": error })).class;
    for busy in [
        json!({"code": 429, "message": "slow down"}),
        json!({"code": "503"}),
        json!({"type": "overloaded_error"}),
        json!({"type": "requests", "code": "rate_limit_exceeded"}),
        json!({"type": "RateLimitError", "code": 400}),
        json!({"status": "RESOURCE_EXHAUSTED"}),
        json!({"type": "engine_overloaded_error"}),
        json!("Model m is currently loading"),
        json!({"code": 500, "message": "The server is overloaded"}),
    ] {
        assert_eq!(error(busy.clone()), ErrorClass::Busy, "{busy}");
    }
    for refused in [
        json!({"type": "insufficient_quota", "code": 429}),
        json!({"code": "insufficient_quota"}),
        json!({"type": "invalid_request_error", "message": "the rate limit of x is too many requests"}),
        json!({"type": "BadRequestError"}),
        json!({"code": "context_length_exceeded"}),
        json!({"code": 400, "message": "no"}),
        json!({"type": "authentication_error"}),
        json!({"code": 401}),
    ] {
        assert_eq!(error(refused.clone()), ErrorClass::Final, "{refused}");
    }
    for passing in [
        json!("out of memory"),
        json!({"code": 500}),
        json!({"code": 409}),
        json!({"type": "server_error"}),
    ] {
        assert_eq!(error(passing.clone()), ErrorClass::Passing, "{passing}");
    }
}

#[test]
fn the_status_of_an_answer_decides_unless_its_type_says_more() {
    let class = |status, body: &str| ServerError::of_answer(status, body.as_bytes()).class;
    for (status, body, expected) in [
        (429, "", ErrorClass::Busy),
        (503, "", ErrorClass::Busy),
        (529, "", ErrorClass::Busy),
        (
            429,
            r#"{"error":{"code":"insufficient_quota","message":"pay"}}"#,
            ErrorClass::Final,
        ),
        (500, "", ErrorClass::Passing),
        (502, "<html>", ErrorClass::Passing),
        (
            500,
            r#"{"error":{"type":"invalid_request_error"}}"#,
            ErrorClass::Passing,
        ),
        (500, r#"{"error":"Model x is loading"}"#, ErrorClass::Busy),
        (408, "", ErrorClass::Passing),
        (400, r#"{"error":"model is loading"}"#, ErrorClass::Final),
        (404, "", ErrorClass::Final),
        (402, "", ErrorClass::Final),
    ] {
        assert_eq!(class(status, body), expected, "{status} {body}");
    }
}

#[test]
fn a_message_is_one_line_in_every_form() {
    let message = |said: &str| ServerError::of_answer(400, said.as_bytes()).message;
    for said in [
        r#"{"error":{"message":"no\n such model","type":"x"}}"#,
        r#"{"error":"no such model"}"#,
        r#"{"object":"error","message":"no such model","code":404}"#,
        r#"{"detail":"no such model"}"#,
        r#"[{"error":{"message":"no such model"}}]"#,
        r#"data: {"error":{"message":"no such model"}}"#,
        " no such\r\nmodel ",
    ] {
        assert_eq!(message(said), "no such model", "{said}");
    }
    assert_eq!(
        message(r#"{"detail":[{"loc":["body"]}]}"#),
        r#"[{"loc":["body"]}]"#
    );
    assert_eq!(message(r#"{"error":"a\ud83d"}"#), "a\u{FFFD}");
    assert_eq!(message("<html>502</html>"), "no message");
    assert_eq!(message(""), "no message");
}
