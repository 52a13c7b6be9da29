//! Logs of jobs, read as the chunks of a completion and as a whole one.

use super::*;
use crate::edge::openai::test_log::{damaged, job, log};
use crate::wire::JobFailure;

fn queued() -> Body {
    let input = json!({"stream_options": {"include_usage": true}});
    Body::queued("k".parse().unwrap(), input)
}

fn started(continues: bool) -> Body {
    Body::Started {
        kind: "k".parse().unwrap(),
        worker: "w".into(),
        continues,
    }
}

fn output(text: &str) -> Body {
    Body::Chunk {
        text: text.into(),
        channel: Channel::Output,
    }
}

fn call(name: &str) -> Body {
    Body::Data {
        data: json!({"tool_calls": [{"id": name, "type": "function", "function": {"name": name, "arguments": "{}"}}]}),
    }
}

fn done() -> Body {
    Body::Done {
        usage: Some(json!({"total_tokens": 3})),
        finish_reason: None,
    }
}

/// The chunks after an event, in a short form: what the delta has, or the error's code.
fn chunks(bodies: Vec<Body>, after: u64) -> Vec<String> {
    let mut fold = CompletionChunks::new(job(), Seq(after));
    let log = log(bodies);
    let chunks = log.iter().flat_map(|stored| fold.apply(stored));
    let shown = chunks.map(|chunk| {
        if let Some(error) = chunk.get("error") {
            return format!("error {}", error["code"].as_str().unwrap());
        }
        assert_eq!(
            (
                &chunk["id"],
                &chunk["model"],
                &chunk["created"],
                &chunk["object"]
            ),
            (
                &json!("j"),
                &json!("k"),
                &json!(5),
                &json!("chat.completion.chunk")
            )
        );
        let Some(choice) = chunk["choices"].get(0) else {
            return format!("usage {}", chunk["usage"]);
        };
        if let Some(data) = chunk.get("data") {
            return format!("data {data}");
        }
        match choice["finish_reason"].as_str() {
            Some(reason) => format!("finish {reason}"),
            None => choice["delta"].to_string(),
        }
    });
    shown.collect()
}

fn whole(bodies: Vec<Body>) -> Result<Value, OpenAiProblem> {
    let mut completion = WholeCompletion::new(job());
    for stored in log(bodies) {
        completion.apply(&stored);
    }
    completion.into_json()
}

/// The completion of a log without these events.
fn whole_without(
    expired: &std::ops::RangeInclusive<u64>,
    bodies: Vec<Body>,
) -> Result<Value, OpenAiProblem> {
    let mut completion = WholeCompletion::new(job());
    for stored in log(bodies) {
        if stored.seq.0 == *expired.end() {
            completion.missing(Seq(*expired.start()), stored.seq);
        } else if !expired.contains(&stored.seq.0) {
            completion.apply(&stored);
        }
    }
    completion.into_json()
}

#[test]
fn a_job_is_a_role_deltas_a_reason_and_usage() {
    let reasoning = Body::Chunk {
        text: "hm".into(),
        channel: Channel::Reasoning,
    };
    let bodies = vec![
        queued(),
        started(false),
        reasoning,
        output("a"),
        call("f"),
        call("g"),
        done(),
    ];
    let tool = |index: u32, name: &str| {
        json!({"tool_calls": [{"index": index, "id": name, "type": "function", "function": {"name": name, "arguments": "{}"}}]}).to_string()
    };
    assert_eq!(
        chunks(bodies.clone(), 0),
        [
            json!({"reasoning_content": "hm", "role": "assistant"}).to_string(),
            json!({"content": "a"}).to_string(),
            tool(0, "f"),
            tool(1, "g"),
            "finish stop".into(),
            r#"usage {"total_tokens":3}"#.into(),
        ]
    );
    let message = &whole(bodies).unwrap()["choices"][0]["message"];
    assert_eq!(message["content"], "a");
    assert_eq!(message["reasoning_content"], "hm");
    assert_eq!(message["tool_calls"][1]["function"]["name"], "g");
}

#[test]
fn a_client_that_resumes_gets_exactly_the_later_chunks() {
    let bodies = vec![
        queued(),
        started(false),
        output("a"),
        call("f"),
        call("g"),
        done(),
    ];
    let all = chunks(bodies.clone(), 0);
    for (after, first) in [(2, 0), (3, 1), (4, 2), (5, 3), (6, 5)] {
        let mut expected = all[first..].to_vec();
        if after == 2 {
            // The role was sent with the first delta, which this client has not read.
            expected[0] = json!({"content": "a"}).to_string();
        }
        assert_eq!(chunks(bodies.clone(), after), expected, "after {after}");
    }
}

#[test]
fn an_attempt_with_the_same_beginning_continues_the_stream() {
    for again in [
        vec!["one two"],
        vec!["on", "e ", "two"],
        vec!["one ", "two"],
    ] {
        let mut bodies = vec![queued(), started(false), output("one "), started(false)];
        bodies.extend(again.iter().map(|text| output(text)));
        bodies.push(done());
        let texts: Vec<_> = chunks(bodies.clone(), 0)
            .into_iter()
            .filter(|chunk| chunk.contains("content"))
            .collect();
        assert_eq!(texts.len(), 2, "{texts:?}");
        assert_eq!(texts[1], r#"{"content":"two"}"#);
        assert_eq!(
            whole(bodies).unwrap()["choices"][0]["message"]["content"],
            "one two"
        );
    }
}

#[test]
fn an_attempt_with_other_or_less_output_ends_the_stream_with_an_error() {
    for second in [
        vec![output("two"), done()],
        vec![output("on"), done()],
        vec![done()],
    ] {
        let mut bodies = vec![queued(), started(false), output("one"), started(false)];
        bodies.extend(second);
        let found = chunks(bodies.clone(), 0);
        assert_eq!(found[1..], ["error attempt_superseded"]);
        // A client that has read the second attempt goes on in it.
        let found = chunks(bodies.clone(), 4);
        assert!(
            found.iter().all(|chunk| !chunk.contains("error")),
            "{found:?}"
        );
        assert!(whole(bodies).is_ok());
    }
}

#[test]
fn an_attempt_that_continues_repeats_nothing() {
    let bodies = vec![
        started(false),
        output("one "),
        started(true),
        output("two"),
        done(),
    ];
    assert_eq!(
        chunks(bodies, 0)[1..],
        [r#"{"content":"two"}"#, "finish stop"]
    );
}

#[test]
fn a_failure_and_a_cancellation_are_errors() {
    let failure = JobFailure {
        code: "model_refused".into(),
        message: "m".into(),
        retryable: false,
    };
    for (end, code) in [
        (Body::Failed(failure), "model_refused"),
        (Body::Cancelled {}, "job_cancelled"),
    ] {
        let bodies = vec![queued(), output("a"), end];
        assert_eq!(chunks(bodies.clone(), 0)[1..], [format!("error {code}")]);
        assert_eq!(whole(bodies).unwrap_err().to_json()["error"]["code"], code);
    }
    let unfinished = whole(vec![queued(), output("a")]).unwrap_err();
    assert_eq!(unfinished.to_json()["error"]["code"], "still_running");
}

#[test]
fn other_data_is_a_field_of_its_own() {
    let data = Body::Data {
        data: json!({"x": 1}),
    };
    let bodies = vec![queued(), data.clone(), started(false), data, done()];
    assert_eq!(
        chunks(bodies.clone(), 0)[..2],
        [r#"data {"x":1}"#, "finish stop"]
    );
    assert_eq!(whole(bodies).unwrap()["data"], json!([{"x": 1}]));
}

#[test]
fn a_completion_with_missing_events_is_an_error() {
    let attempt = vec![
        queued(),
        started(false),
        output("a"),
        call("f"),
        output("b"),
        done(),
    ];
    for expired in [1..=2, 1..=3, 4..=4, 1..=5] {
        let problem = whole_without(&expired, attempt.clone()).unwrap_err();
        assert_eq!(problem.to_json()["error"]["code"], "incomplete");
    }
    // An attempt that starts after the gap is whole.
    let second = vec![started(false), output("new"), done()];
    let both = [attempt[..5].to_vec(), second].concat();
    for (expired, bodies, content) in [
        (1..=1, attempt, "ab"),
        (1..=2, both.clone(), "new"),
        (2..=5, both, "new"),
    ] {
        let message = &whole_without(&expired, bodies).unwrap()["choices"][0]["message"];
        assert_eq!(message["content"], content, "{expired:?}");
    }
}

#[test]
fn an_event_that_cannot_be_decoded_makes_a_completion_incomplete() {
    let bodies = vec![queued(), started(false), output("a"), output("b"), done()];
    for (seq, event_type) in [(4, "model:chunk:v1"), (5, "job:failed:v1")] {
        let log = damaged(bodies.clone(), seq, event_type);
        let mut whole = WholeCompletion::new(job());
        let mut chunks = CompletionChunks::new(job(), Seq(0));
        let mut last = Value::Null;
        for stored in &log {
            whole.apply(stored);
            last = chunks.apply(stored).pop().unwrap_or(last);
        }
        assert_eq!(last["error"]["code"], "incomplete");
        let problem = whole.into_json().unwrap_err();
        assert_eq!(problem.to_json()["error"]["code"], "incomplete");
    }
    // A client that has the chunks of later events goes on after them.
    let mut chunks = CompletionChunks::new(job(), Seq(4));
    let log = damaged(bodies, 3, "model:chunk:v1");
    let later: Vec<_> = log.iter().flat_map(|stored| chunks.apply(stored)).collect();
    assert_eq!(later[0]["choices"][0]["finish_reason"], "stop");
}

#[test]
fn an_attempt_is_not_compared_with_output_that_has_expired_or_cannot_be_decoded() {
    let first = vec![queued(), started(false), output("Hello "), output("wor")];
    let second = [started(false), output("Hello "), output("world"), done()];
    let bodies = [first.clone(), second.to_vec()].concat();
    // How a client that has read up to `after` loses the event 3: it has expired, or is damaged.
    let resumed = |bodies: &[Body], after: u64, has_expired: bool| {
        let mut chunks = CompletionChunks::new(job(), Seq(after));
        let mut found = Vec::new();
        for stored in damaged(bodies.to_vec(), 3, "model:chunk:v1") {
            found.extend(match stored.seq {
                Seq(..=3) if has_expired => chunks.missing(stored.seq),
                _ => chunks.apply(&stored),
            });
        }
        found
    };
    for has_expired in [true, false] {
        let found = resumed(&bodies, 4, has_expired);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0]["error"]["code"], "attempt_superseded");
        // The client has begun to read the second attempt, which is whole.
        let found = resumed(&bodies, 6, has_expired);
        assert_eq!(found[0]["choices"][0]["delta"]["content"], "world");
        assert_eq!(found[1]["choices"][0]["finish_reason"], "stop");
        // An attempt that continues is not compared.
        let continuing = [started(true), output("ld"), done()];
        let bodies = [first.clone(), continuing.to_vec()].concat();
        let found = resumed(&bodies, 4, has_expired);
        assert_eq!(found[0]["choices"][0]["delta"]["content"], "ld");
        assert_eq!(found[1]["choices"][0]["finish_reason"], "stop");
    }
    let mut chunks = CompletionChunks::new(job(), Seq(4));
    let error = chunks.missing(Seq(5)).remove(0);
    assert_eq!(error["error"]["code"], "unreadable");
}

#[test]
fn the_size_of_a_completion_counts_its_text_and_what_its_values_hold() {
    let zeros = Value::from(vec![0_u8; 10_000]);
    let in_memory = 10_000 * size_of::<Value>();
    let size_of_log = |bodies| {
        let mut completion = WholeCompletion::new(job());
        log(bodies)
            .iter()
            .for_each(|stored| completion.apply(stored));
        completion.size()
    };
    for body in [
        Body::Data {
            data: json!({"x": zeros}),
        },
        Body::Data {
            data: json!({"tool_calls": [zeros]}),
        },
        Body::Done {
            usage: Some(json!({"x": zeros})),
            finish_reason: None,
        },
    ] {
        assert!(size_of_log(vec![body]) > in_memory);
    }
    let calls = vec![call("f"), output("abc"), started(false), output("de")];
    assert_eq!(size_of_log(calls), 2);
}

#[test]
fn a_tool_call_that_is_no_object_is_left_out() {
    let calls = Body::Data {
        data: json!({"tool_calls": [0, null, "x", [], {"id": "c"}]}),
    };
    let delta = json!({"tool_calls": [{"id": "c", "index": 0}], "role": "assistant"});
    let chunks = chunks(vec![queued(), calls], 0);
    assert_eq!(chunks, [delta.to_string()]);
}
