//! Answers of each media type, decoded whole and in pieces.

use super::*;
use crate::backend::{Channel, Retry};
use proptest::prelude::*;
use serde_json::{Value, json};

/// The output and the reasoning, the data, and the end of a body that arrives in pieces.
#[derive(Debug, PartialEq)]
struct Decoded {
    text: String,
    reasoning: String,
    data: Vec<Value>,
    end: Result<Finish, Failure>,
}

fn decoded<'a>(
    content_type: &str,
    is_ui_message: bool,
    pieces: impl IntoIterator<Item = &'a [u8]>,
) -> Decoded {
    let mut answer = EndpointAnswer::new(content_type, is_ui_message);
    let mut contents = Vec::new();
    let mut read = Ok(());
    for piece in pieces {
        if read.is_ok() && !answer.is_done() {
            read = answer.read(piece, &mut contents);
        }
    }
    let end = read.and_then(|()| answer.end(&mut contents));
    let mut found = Decoded {
        text: String::new(),
        reasoning: String::new(),
        data: Vec::new(),
        end,
    };
    for content in contents {
        match content {
            Content::Text {
                channel: Channel::Output,
                text,
            } => found.text += &text,
            Content::Text { text, .. } => found.reasoning += &text,
            Content::Data(data) => found.data.push(data),
        }
    }
    found
}

fn whole(content_type: &str, body: &str) -> Decoded {
    decoded(content_type, false, [body.as_bytes()])
}

fn done(text: &str, reasoning: &str, data: &[Value]) -> Decoded {
    Decoded {
        text: text.into(),
        reasoning: reasoning.into(),
        data: data.into(),
        end: Ok(stopped_by_itself()),
    }
}

fn stream(events: &[Value]) -> String {
    let events = events.iter().map(|event| format!("data: {event}\n\n"));
    events.collect()
}

const SSE: &str = "text/event-stream; charset=utf-8";

#[test]
fn the_media_type_decides_how_a_body_is_read() {
    let body = "{\"text\": \"a\"}\n";
    for lines in [
        "application/x-ndjson",
        "application/jsonl",
        "Application/NDJSON; charset=utf-8",
    ] {
        assert_eq!(
            whole(lines, &body.repeat(2)),
            done("aa", "", &[]),
            "{lines}"
        );
    }
    for json in ["application/json", "application/vnd.x+json"] {
        assert_eq!(whole(json, body), done("a", "", &[]), "{json}");
    }
    for text in [
        "",
        "text/plain",
        "text/html",
        "application/octet-stream",
        "nonsense",
    ] {
        assert_eq!(whole(text, body), done(body, "", &[]), "{text}");
    }
    assert_eq!(whole(SSE, "data: a\n\ndata: b\n\n"), done("ab", "", &[]));
}

#[test]
fn a_json_body_is_text_or_data() {
    let json = |body: &str| whole("application/json", body);
    assert_eq!(json(r#""a\nb""#), done("a\nb", "", &[]));
    assert_eq!(
        json(r#"{"text":"a","channel":"reasoning"}"#),
        done("", "a", &[])
    );
    assert_eq!(
        json("{\n  \"sum\": 4\n}"),
        done("", "", &[json!({"sum": 4})])
    );
    assert_eq!(json(""), done("", "", &[]));
    for bad in ["{", "nope", "{} {}"] {
        let failure = json(bad).end.unwrap_err();
        assert_eq!(failure.code, FailureCode::BadOutput, "{bad}");
    }
    let failure = json(&format!("\"{}\"", "x".repeat(EXEC_JSON_LINE_MAX)))
        .end
        .unwrap_err();
    assert_eq!(failure.code, FailureCode::BadOutput);
}

#[test]
fn an_error_in_an_answer_is_its_failure_after_the_output_before_it() {
    let failure = Failure::fatal(FailureCode::EndpointFailed, "no such city");
    for (content_type, body) in [
        (
            "application/x-ndjson",
            "{\"text\":\"a\"}\n{\"error\":\"no such city\"}\n",
        ),
        (
            SSE,
            "data: a\n\ndata: {\"error\":{\"message\":\"no such city\"}}\n\n",
        ),
        (SSE, "data: a\n\nevent: error\ndata: no such city\n\n"),
        (
            SSE,
            "data: a\n\nevent: error\ndata: {\"detail\":\"no such city\"}\n\n",
        ),
    ] {
        let found = whole(content_type, body);
        assert_eq!(found.text, "a", "{body}");
        assert_eq!(found.end, Err(failure.clone()), "{body}");
    }
}

#[test]
fn plain_events_are_text_unless_they_are_json() {
    let body = "\u{FEFF}: a comment\nid: 7\ndata: {\n\ndata:  5\n\ndata: a\ndata: \n\n\
        data: \"b\\n\"\n\ndata: {\"text\":\"c\"}\n\ndata: [1]\n\ndata: [DONE]\n\ndata: late\n\n";
    assert_eq!(whole(SSE, body), done("{ 5a\nb\nc", "", &[json!([1])]));
    assert_eq!(whole(SSE, ""), done("", "", &[]));
    // The end of the body ends an event that lacks only its line ends.
    assert_eq!(whole(SSE, "data: a\n\ndata: b"), done("ab", "", &[]));
}

fn ui_message() -> Vec<Value> {
    vec![
        json!({"type": "start", "messageId": "m"}),
        json!({"type": "start-step"}),
        json!({"type": "reasoning-start", "id": "r"}),
        json!({"type": "reasoning-delta", "id": "r", "delta": "hm"}),
        json!({"type": "reasoning-end", "id": "r"}),
        json!({"type": "tool-input-start", "toolCallId": "c", "toolName": "f"}),
        json!({"type": "tool-input-delta", "toolCallId": "c", "inputTextDelta": "{}"}),
        json!({"type": "tool-input-available", "toolCallId": "c", "toolName": "f", "input": {}}),
        json!({"type": "data-weather", "data": {"city": "Bern"}}),
        json!({"type": "text-start", "id": "t"}),
        json!({"type": "text-delta", "id": "t", "delta": "Größe "}),
        json!({"type": "text-delta", "id": "t", "delta": "😀"}),
        json!({"type": "text-end", "id": "t"}),
        json!({"type": "finish-step"}),
        json!({"type": "finish", "finishReason": "length"}),
    ]
}

#[test]
fn a_ui_message_stream_becomes_text_reasoning_and_data() {
    let events = ui_message();
    let body = stream(&events) + "data: [DONE]\n\n";
    let found = whole(SSE, &body);
    assert_eq!(
        (found.text.as_str(), found.reasoning.as_str()),
        ("Größe 😀", "hm")
    );
    assert_eq!(found.data, [events[7].clone(), events[8].clone()]);
    assert_eq!(found.end.clone().unwrap().finish_reason.unwrap(), "length");
    assert_eq!(decoded(SSE, true, body.as_bytes().chunks(1)), found);
    // Its events are recognised by the header, too.
    let rest = stream(&events[1..]);
    assert_eq!(decoded(SSE, true, [rest.as_bytes()]), found);
}

fn ag_ui() -> Vec<Value> {
    vec![
        json!({"type": "RUN_STARTED", "threadId": "t", "runId": "r"}),
        json!({"type": "THINKING_START"}),
        json!({"type": "THINKING_TEXT_MESSAGE_CONTENT", "delta": "h"}),
        json!({"type": "REASONING_MESSAGE_CONTENT", "messageId": "m", "delta": "m"}),
        json!({"type": "TEXT_MESSAGE_START", "messageId": "m", "role": "assistant"}),
        json!({"type": "TEXT_MESSAGE_CONTENT", "messageId": "m", "delta": "a"}),
        json!({"type": "TEXT_MESSAGE_CHUNK", "messageId": "m", "delta": "b"}),
        json!({"type": "TEXT_MESSAGE_END", "messageId": "m"}),
        json!({"type": "STATE_DELTA", "delta": [{"op": "add", "path": "/x", "value": 1}]}),
        json!({"type": "RUN_FINISHED", "threadId": "t", "runId": "r"}),
    ]
}

#[test]
fn an_ag_ui_run_becomes_text_reasoning_and_data() {
    let events = ag_ui();
    assert_eq!(
        whole(SSE, &stream(&events)),
        done("ab", "hm", &[events[8].clone()])
    );
}

#[test]
fn a_run_without_its_finish_is_incomplete_and_an_error_in_it_fails_the_job() {
    for (mut events, error) in [
        (
            ui_message(),
            json!({"type": "error", "errorText": "no such city"}),
        ),
        (
            ag_ui(),
            json!({"type": "RUN_ERROR", "message": "no such city", "code": "no_city"}),
        ),
    ] {
        let finish = events.pop().unwrap();
        let cut = whole(SSE, &stream(&events)).end.unwrap_err();
        assert_eq!((cut.code.as_str(), cut.retry), ("stream_cut", Retry::Later));
        events.push(error);
        let failure = whole(SSE, &stream(&events)).end.unwrap_err();
        assert_eq!(
            (failure.message.as_str(), failure.retry),
            ("no such city", Retry::Never)
        );
        events.pop();
        events.push(finish);
        let mut answer = EndpointAnswer::new(SSE, false);
        answer
            .read(stream(&events).as_bytes(), &mut Vec::new())
            .unwrap();
        assert!(answer.is_done());
    }
    let aborted = [json!({"type": "start"}), json!({"type": "abort"})];
    let failure = whole(SSE, &stream(&aborted)).end.unwrap_err();
    assert_eq!(
        (failure.code.as_str(), failure.retry),
        ("stream_cut", Retry::Later)
    );
}

proptest! {
    #[test]
    fn the_pieces_in_which_a_body_arrives_make_no_difference(
        which in 0..4_usize,
        cuts in prop::collection::vec(0..600_usize, 0..8),
    ) {
        let lines = "{\"text\":\"Gr\u{f6}\u{df}e \\ud83d\"}\n{\"text\":\"\\ude00\"}\r\n[1]\n".to_owned();
        let (content_type, body) = [
            (SSE, stream(&ui_message())),
            (SSE, stream(&ag_ui())),
            ("application/x-ndjson", lines),
            ("text/plain", "\u{FEFF}Größe 😀\n".to_owned()),
        ][which].clone();
        let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(body.len())).collect();
        cuts.sort_unstable();
        let ends = cuts.iter().copied().chain([body.len()]);
        let starts = std::iter::once(0).chain(cuts.iter().copied());
        let pieces = starts.zip(ends).map(|(start, end)| &body.as_bytes()[start..end]);
        prop_assert_eq!(decoded(content_type, false, pieces), whole(content_type, &body));
    }
}
