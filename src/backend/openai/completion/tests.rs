//! Events of model servers, turned into output and an end.

use super::*;
use crate::backend::Retry;

/// The output of a stream of events, and how it ends.
fn replied(events: &[Value]) -> (Vec<Content>, Result<Finish, Failure>) {
    let mut completion = Completion::default();
    let mut contents = Vec::new();
    for event in events {
        let data = event
            .as_str()
            .map_or_else(|| event.to_string(), str::to_owned);
        if let Err(fault) = completion.push(
            &SseEvent {
                name: String::new(),
                data,
            },
            &mut contents,
        ) {
            return (contents, Err(fault.failure));
        }
    }
    let ended = completion.end(Failure::retryable("cut", ""), &mut contents);
    (contents, ended)
}

/// The text of a channel.
fn text(contents: &[Content], wanted: Channel) -> String {
    let of = |content: &Content| match content {
        Content::Text { channel, text } if *channel == wanted => text.clone(),
        Content::Text { .. } | Content::Data(_) => String::new(),
    };
    contents.iter().map(of).collect()
}

fn delta(delta: &Value) -> Value {
    json!({"id": "c", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta, "finish_reason": null}]})
}

fn finish(reason: &str) -> Value {
    json!({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
}

fn output(text: &str) -> Content {
    Content::Text {
        channel: Channel::Output,
        text: text.into(),
    }
}

fn reasoning(text: &str) -> Content {
    Content::Text {
        channel: Channel::Reasoning,
        text: text.into(),
    }
}

#[test]
fn content_is_output_and_the_end_has_usage_and_reason() {
    let (contents, ended) = replied(&[
        delta(&json!({"role": "assistant", "content": ""})),
        delta(&json!({"content": "Hel"})),
        delta(&json!({"content": "lo", "refusal": null, "tool_calls": null})),
        finish("stop"),
        json!({"choices": [], "usage": {"total_tokens": 3}}),
        json!("[DONE]"),
    ]);
    assert_eq!(contents, [output("Hel"), output("lo")]);
    let usage = Some(json!({"total_tokens": 3}));
    assert_eq!(
        ended,
        Ok(Finish {
            usage,
            finish_reason: Some("stop".into())
        })
    );
}

#[test]
fn reasoning_is_a_channel_of_its_own_under_either_name() {
    let (contents, _) = replied(&[
        delta(&json!({"reasoning_content": "a", "content": null})),
        delta(&json!({"reasoning": "b"})),
        delta(&json!({"reasoning": "c", "reasoning_content": "c"})),
        delta(&json!({"reasoning": "d", "reasoning_content": "", "content": "e"})),
    ]);
    assert_eq!(
        contents,
        [
            reasoning("a"),
            reasoning("b"),
            reasoning("c"),
            reasoning("d"),
            output("e")
        ]
    );
}

#[test]
fn tool_calls_are_output_whole_and_in_order() {
    let piece = |index: u64, id: Value, arguments: &str| {
        delta(
            &json!({"tool_calls": [{"index": index, "id": id, "type": "function",
            "function": {"name": "f", "arguments": arguments}}]}),
        )
    };
    let call = |id: &str, arguments: &str| json!({"id": id, "type": "function", "function": {"name": "f", "arguments": arguments}});
    let (contents, ended) = replied(&[
        delta(&json!({"content": "before"})),
        piece(0, json!("a"), "{\"x\""),
        // Text within a call does not split it.
        delta(&json!({"content": "amid"})),
        piece(0, Value::Null, ":1}"),
        piece(1, json!("b"), "{}"),
        delta(&json!({"content": "after"})),
        piece(2, json!("c"), "{"),
        finish("length"),
    ]);
    let whole = json!({"tool_calls": [call("a", "{\"x\":1}"), call("b", "{}")]});
    let last = json!({"tool_calls": [call("c", "{")]});
    assert_eq!(
        contents,
        [
            output("before"),
            output("amid"),
            Content::Data(whole),
            output("after"),
            Content::Data(last)
        ]
    );
    assert_eq!(ended.unwrap().finish_reason.as_deref(), Some("length"));
}

#[test]
fn a_refusal_is_marked_once_and_read_as_output() {
    let (contents, _) = replied(&[
        delta(&json!({"refusal": "I "})),
        delta(&json!({"refusal": "won't", "content": null})),
        finish("stop"),
    ]);
    assert_eq!(
        contents,
        [
            Content::Data(json!({"refusal": true})),
            output("I "),
            output("won't")
        ]
    );
}

#[test]
fn only_a_finish_reason_proves_that_an_answer_is_whole() {
    for cut in [
        vec![],
        vec![json!("[DONE]")],
        vec![delta(&json!({"content": "x"})), json!("[DONE]")],
    ] {
        assert_eq!(replied(&cut).1.unwrap_err().code, "cut");
    }
    // The end mark may be missing.
    assert!(replied(&[finish("stop")]).1.is_ok());
    let empty = json!({"choices": [{"delta": {"content": "x"}, "finish_reason": ""}]});
    assert_eq!(replied(&[empty]).1.unwrap_err().code, "cut");
}

#[test]
fn an_error_in_the_stream_is_a_failure_with_the_servers_words() {
    let words = "the prompt is too long";
    for (error, code, retry) in [
        (
            json!({"error": {"message": words, "code": 500}}),
            "model_failed",
            Retry::Later,
        ),
        (
            json!({"error": {"message": words, "code": 400}}),
            "model_refused",
            Retry::Never,
        ),
        (
            json!({"error": {"message": words, "code": 429}}),
            "model_busy",
            Retry::Later,
        ),
        (
            json!({"choices": null, "error_type": "BadRequestError", "error_message": words}),
            "model_refused",
            Retry::Never,
        ),
        (
            json!({"choices": [{"delta": {}, "error": {"message": words}, "finish_reason": "error"}]}),
            "model_failed",
            Retry::Later,
        ),
        (
            json!(format!("[{{\"error\":\"{words}\"}}]")),
            "model_failed",
            Retry::Later,
        ),
    ] {
        let failure = replied(&[delta(&json!({"content": "x"})), error])
            .1
            .unwrap_err();
        assert_eq!((failure.code.as_str(), failure.retry), (code, retry));
        assert_eq!(
            failure.message,
            format!("the model server broke off: {words}")
        );
    }
    for (name, data) in [
        ("error", "{\"message\":\"late\"}"),
        ("response.error", "late"),
        ("error", "\"late\""),
    ] {
        let event = SseEvent {
            name: name.into(),
            data: data.into(),
        };
        let failure = Completion::default()
            .push(&event, &mut Vec::new())
            .unwrap_err()
            .failure;
        assert_eq!(
            (failure.code.as_str(), failure.message.contains("late")),
            ("model_failed", true),
            "{data}"
        );
    }
    assert_eq!(
        replied(&[finish("error")]).1.unwrap_err().message,
        "the model server broke off: error"
    );
    assert!(
        replied(&[json!({"error": null, "choices": []}), finish("stop")])
            .1
            .is_ok()
    );
}

#[test]
fn a_message_that_ends_the_answer_is_its_error_and_others_are_skipped() {
    let news = json!({"status": "queued", "message": "you are number 3"});
    let (contents, ended) =
        replied(&[news.clone(), piece("a", None), finish("stop"), news.clone()]);
    assert_eq!(
        (text(&contents, Channel::Output).as_str(), ended.is_ok()),
        ("a", true)
    );
    let failure = replied(&[piece("a", None), news]).1.unwrap_err();
    assert_eq!(
        failure.message,
        "the model server broke off: you are number 3"
    );
    assert_eq!(failure.code, "model_failed");
}

#[test]
fn heartbeats_in_any_form_are_skipped() {
    for heartbeat in [
        json!(""),
        json!("ping"),
        json!("[heartbeat]"),
        json!(": keep-alive"),
        json!("null"),
        json!("[]"),
        json!("0"),
        json!("\"ping\""),
        json!("x".repeat(5000)),
        json!("{}"),
        json!({"type": "ping"}),
        json!({"choices": null}),
        json!({"choices": []}),
    ] {
        let (contents, ended) = replied(&[
            heartbeat.clone(),
            delta(&json!({"content": "a"})),
            heartbeat.clone(),
            delta(&json!({"content": "b"})),
            finish("stop"),
            heartbeat.clone(),
        ]);
        assert_eq!(
            (text(&contents, Channel::Output).as_str(), ended.is_ok()),
            ("ab", true),
            "{heartbeat}"
        );
    }
    let ping = SseEvent {
        name: "ping".into(),
        data: "{\"message\": \"still here\"}".into(),
    };
    assert!(Completion::default().push(&ping, &mut Vec::new()).is_ok());
}

#[test]
fn damaged_json_is_a_retryable_failure_that_quotes_nothing() {
    for data in [
        "{\"choices\":",
        "{\"choices\":[{\"delta\":{\"content\":\"secret",
        "oices\":[{\"delta\":{\"content\":\"secret\"}}]}",
        "{\"choices\":[]}}",
    ] {
        let failure = replied(&[json!(data)]).1.unwrap_err();
        assert_eq!(
            (failure.code.as_str(), failure.retry),
            ("bad_stream", Retry::Later),
            "{data}"
        );
        assert!(!failure.message.contains("secret"));
    }
}

#[test]
fn an_unknown_form_is_a_final_failure_that_quotes_nothing() {
    for data in [
        json!({"choices": "secret"}),
        json!({"choices": [{"delta": {"content": 7}}]}),
        json!({"choices": ["secret"]}),
    ] {
        let failure = replied(&[data]).1.unwrap_err();
        assert_eq!(
            (failure.code.as_str(), failure.retry),
            ("bad_stream", Retry::Never)
        );
        assert!(!failure.message.contains("secret"));
    }
}

/// A piece with this text and reason.
fn piece(text: &str, reason: impl Into<Option<&'static str>>) -> Value {
    json!({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": reason.into()}]})
}

#[test]
fn content_after_a_reason_revokes_it() {
    let thought = |reason: &str| json!({"choices": [{"delta": {"reasoning": "hm"}, "finish_reason": reason}]});
    let mark = || json!("[DONE]");
    let stop = "stop";
    let usage = || json!({"choices": [], "usage": {"total_tokens": 2}});
    let whole = [
        vec![piece("a", stop), piece("b", stop), mark()],
        vec![piece("a", "null"), piece("b", "null"), finish("stop")],
        vec![piece("a", ""), piece("b", ""), finish("stop"), mark()],
        vec![
            thought("stop"),
            piece("a", None),
            piece("b", None),
            finish("stop"),
        ],
        vec![finish("stop"), piece("a", None), piece("b", stop), mark()],
        vec![finish("stop"), piece("a", None), piece("b", stop)],
        vec![piece("a", None), piece("b", stop)],
        vec![piece("ab", stop), usage()],
        vec![piece("a", stop), piece("b", None), mark()],
        vec![piece("a", None), finish("stop"), piece("b", stop), usage()],
    ];
    for events in &whole {
        let (contents, ended) = replied(events);
        assert_eq!(text(&contents, Channel::Output), "ab", "{events:?}");
        assert_eq!(
            ended.unwrap().finish_reason.as_deref(),
            Some("stop"),
            "{events:?}"
        );
    }
    let cut = [
        vec![piece("a", stop)],
        vec![piece("a", stop), piece("b", stop)],
        vec![piece("a", stop), piece("b", None), piece("c", stop)],
        vec![piece("a", "null"), piece("b", "null")],
        vec![piece("a", "null"), piece("b", "null"), mark()],
        vec![piece("a", "")],
        vec![
            json!({"choices": [{"delta": {"content": "a"}, "finish_reason": "stop"}], "usage": {"total_tokens": 1}}),
        ],
        vec![thought("stop")],
        vec![thought("stop"), usage()],
        vec![thought("x"), finish("stop")],
        vec![thought("stop"), piece("a", None)],
        vec![piece("a", None), finish("stop"), piece("b", None)],
        vec![
            piece("a", None),
            finish("stop"),
            piece("b", None),
            finish("stop"),
        ],
        vec![finish("stop"), piece("a", None), finish("stop"), usage()],
    ];
    for events in &cut {
        assert_eq!(replied(events).1.unwrap_err().code, "cut", "{events:?}");
    }
}

#[test]
fn tool_calls_also_revoke_a_reason_and_are_not_split_by_one() {
    let call = |text: &str| {
        json!({"choices": [{"delta": {"tool_calls": [{"index": 0, "id": "a",
        "function": {"name": "f", "arguments": text}}]}, "finish_reason": "tool_calls"}]})
    };
    let events = [call("{\"x\""), call(":1"), call("}"), json!("[DONE]")];
    let expected = json!({"tool_calls": [{"id": "a", "type": "function",
        "function": {"name": "f", "arguments": "{\"x\":1}"}}]});
    assert_eq!(replied(&events).0, [Content::Data(expected)]);
    assert_eq!(replied(&events[..2]).1.unwrap_err().code, "cut");
}

#[test]
fn the_only_choice_of_an_event_is_the_answer_whatever_its_index() {
    let choice = |index: Value, text: &str| json!({"index": index, "delta": {"content": text}});
    let event = |choices: &[Value]| json!({ "choices": choices });
    for indexes in [[0, 1, 2], [1, 1, 1], [7, 8, 9]] {
        let events = indexes.map(|index| event(&[choice(json!(index), "x")]));
        assert_eq!(
            text(&replied(&events).0, Channel::Output),
            "xxx",
            "{indexes:?}"
        );
    }
    let missing = [
        json!({"choices": [{"delta": {"content": "x"}}]}),
        event(&[choice(Value::Null, "y")]),
    ];
    assert_eq!(text(&replied(&missing).0, Channel::Output), "xy");
    // Another choice would be mixed into the text.
    let first = choice(json!(1), "a");
    let second = choice(json!(0), "b");
    let several = [
        event(&[first.clone(), second.clone()]),
        event(std::slice::from_ref(&second)),
        event(&[second, first.clone()]),
        event(&[first]),
    ];
    assert_eq!(text(&replied(&several).0, Channel::Output), "aaa");
    let same = [event(&[choice(json!(0), "a"), choice(json!(0), "b")])];
    assert_eq!(text(&replied(&same).0, Channel::Output), "ab");
}

#[test]
fn an_answer_in_one_message_is_whole() {
    let message = json!({"object": "chat.completion", "choices": [{"index": 0, "finish_reason": null,
        "message": {"role": "assistant", "content": "all", "reasoning": "hm",
        "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}}],
        "usage": {"total_tokens": 3}});
    let (contents, ended) = replied(std::slice::from_ref(&message));
    assert_eq!(contents.len(), 3);
    assert_eq!(
        (
            text(&contents, Channel::Output).as_str(),
            text(&contents, Channel::Reasoning).as_str()
        ),
        ("all", "hm")
    );
    assert_eq!(ended.unwrap().usage, Some(json!({"total_tokens": 3})));
    // Pieces in the field `message` are not a whole answer.
    assert_eq!(
        replied(&[message.clone(), message]).1.unwrap_err().code,
        "cut"
    );
    // A message after deltas repeats them.
    let repeated =
        json!({"choices": [{"delta": {}, "message": {"content": "ab"}, "finish_reason": "stop"}]});
    let (contents, ended) = replied(&[piece("a", None), piece("b", None), repeated]);
    assert_eq!(
        (text(&contents, Channel::Output).as_str(), ended.is_ok()),
        ("ab", true)
    );
    let legacy = |text: &str, reason: Value| json!({"object": "text_completion", "choices": [{"index": 0, "text": text, "finish_reason": reason}]});
    let (contents, ended) = replied(&[legacy("a", Value::Null), legacy("b", json!("length"))]);
    assert_eq!(
        (text(&contents, Channel::Output).as_str(), ended.is_ok()),
        ("ab", true)
    );
}

#[test]
fn halves_of_surrogate_pairs_are_joined_within_a_channel() {
    let raw = |field: &str, text: &str| {
        json!(format!(
            r#"{{"choices":[{{"delta":{{"{field}":"{text}"}}}}]}}"#
        ))
    };
    let (contents, ended) = replied(&[
        raw("content", r"Hi \ud83d"),
        raw("reasoning", r"\ud83d"),
        raw("content", r"\ude00!\\ud83d"),
        raw("reasoning", r"x"),
        raw("content", r"\ude00"),
        raw("content", r"\ud800"),
        finish("stop"),
    ]);
    assert!(ended.is_ok());
    assert_eq!(
        text(&contents, Channel::Output),
        "Hi 😀!\\ud83d\u{FFFD}\u{FFFD}"
    );
    assert_eq!(text(&contents, Channel::Reasoning), "\u{FFFD}x");
    let call = |arguments: &str| {
        json!(format!(
            r#"{{"choices":[{{"delta":{{"tool_calls":[{{"index":0,"function":{{"name":"f","arguments":"{arguments}"}}}}]}}}}],"usage":{{"\ud800":"\udc00"}}}}"#
        ))
    };
    let (contents, ended) = replied(&[
        call(r#"{\"x\":\"\ud83d"#),
        call(r#"\ude00\ud83d\"}"#),
        finish("tool_calls"),
    ]);
    assert_eq!(ended.unwrap().usage, Some(json!({"\u{FFFD}": "\u{FFFD}"})));
    let Some(Content::Data(data)) = contents.last() else {
        panic!("{contents:?}")
    };
    assert_eq!(
        data["tool_calls"][0]["function"]["arguments"],
        "{\"x\":\"😀\u{FFFD}\"}"
    );
}

#[test]
fn huge_usage_is_omitted_and_a_long_reason_is_cut() {
    let usage = json!({"usage": {"note": "x".repeat(USAGE_MAX)}});
    let (_, ended) = replied(&[
        json!({"usage": {"total_tokens": 1}}),
        usage,
        finish(&"é".repeat(99)),
    ]);
    let Finish {
        usage,
        finish_reason,
    } = ended.unwrap();
    assert_eq!(
        (usage, finish_reason),
        (
            Some(json!({"total_tokens": 1})),
            Some("é".repeat(FINISH_REASON_MAX / 2))
        )
    );
}
