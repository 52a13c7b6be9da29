//! Logs of jobs, read as the events of a response and as the response object.

use super::*;
use crate::edge::openai::test_log::{damaged, job, log};

/// The response after these events, and the events in a short form.
fn folded(bodies: Vec<Body>) -> (ResponseFold, Vec<String>) {
    let mut fold = ResponseFold::new(job());
    let mut all = Vec::new();
    for stored in log(bodies) {
        all.extend(
            fold.apply(&stored)
                .iter()
                .map(|event| event.json.to_value()),
        );
    }
    for (number, event) in all.iter().enumerate() {
        assert_eq!(event["sequence_number"], number);
    }
    let shown = all.iter().map(|event| {
        let name = event["type"].as_str().unwrap();
        let name = name.trim_start_matches("response.");
        match (event.get("delta"), event.get("output_index")) {
            (Some(delta), Some(index)) => format!("{index} {name} {}", delta.as_str().unwrap()),
            (None, Some(index)) => format!("{index} {name}"),
            (_, None) => name.to_owned(),
        }
    });
    let shown = shown.collect();
    (fold, shown)
}

fn queued() -> Body {
    Body::queued("k".parse().unwrap(), Value::Null)
}

fn started() -> Body {
    Body::Started {
        kind: "k".parse().unwrap(),
        worker: "w".into(),
        continues: false,
    }
}

fn chunk(channel: Channel, text: &str) -> Body {
    Body::Chunk {
        text: text.into(),
        channel,
    }
}

fn done(reason: &str) -> Body {
    Body::Done {
        usage: Some(json!({"prompt_tokens": 2, "completion_tokens": 3})),
        finish_reason: Some(reason.into()),
    }
}

fn lines(text: &str) -> Vec<String> {
    text.lines().map(|line| line.trim().to_owned()).collect()
}

#[test]
fn reasoning_text_and_tool_calls_are_items_in_order() {
    let call = json!({"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}});
    let (fold, events) = folded(vec![
        queued(),
        started(),
        chunk(Channel::Reasoning, "hm"),
        chunk(Channel::Output, "a"),
        chunk(Channel::Output, "b"),
        Body::Data {
            data: json!({"tool_calls": [call]}),
        },
        done("tool_calls"),
    ]);
    let expected = "created
        queued
        in_progress
        0 output_item.added
        0 content_part.added
        0 reasoning_text.delta hm
        0 reasoning_text.done
        0 content_part.done
        0 output_item.done
        1 output_item.added
        1 content_part.added
        1 output_text.delta a
        1 output_text.delta b
        1 output_text.done
        1 content_part.done
        1 output_item.done
        2 output_item.added
        2 function_call_arguments.delta {}
        2 function_call_arguments.done
        2 output_item.done
        completed";
    assert_eq!(events, lines(expected));
    let response = fold.snapshot().to_value();
    assert_eq!(
        (
            &response["status"],
            &response["model"],
            &response["created_at"]
        ),
        (&json!("completed"), &json!("k"), &json!(5))
    );
    assert_eq!(response["output"][1]["content"][0]["text"], "ab");
    assert_eq!(response["output"][2]["call_id"], "c");
    assert_eq!(response["usage"]["total_tokens"], 5);
}

#[test]
fn an_attempt_that_supersedes_another_begins_new_items() {
    let (fold, events) = folded(vec![
        queued(),
        started(),
        chunk(Channel::Output, "old"),
        started(),
        chunk(Channel::Output, "new"),
        done("stop"),
    ]);
    assert!(
        events.contains(&"1 output_text.delta new".to_owned()),
        "{events:?}"
    );
    let output = &fold.snapshot().to_value()["output"];
    assert_eq!(output.as_array().unwrap().len(), 1);
    assert_eq!(output[0]["content"][0]["text"], "new");
}

#[test]
fn each_end_has_its_status_and_its_event() {
    let failure = JobFailure {
        code: "c".into(),
        message: "m".into(),
        retryable: false,
    };
    for (end, event, status) in [
        (done("stop"), "completed", "completed"),
        (done("length"), "incomplete", "incomplete"),
        (Body::Failed(failure), "failed", "failed"),
        (Body::Cancelled {}, "incomplete", "cancelled"),
    ] {
        let (mut fold, events) =
            folded(vec![queued(), started(), chunk(Channel::Output, "a"), end]);
        assert_eq!(events.last().unwrap(), event);
        assert_eq!(fold.snapshot().to_value()["status"], status);
        assert!(fold.close().is_empty());
    }
}

#[test]
fn a_response_that_runs_has_the_text_so_far() {
    assert_eq!(
        folded(vec![queued()]).0.snapshot().to_value()["status"],
        "queued"
    );
    let (mut fold, _) = folded(vec![queued(), started(), chunk(Channel::Output, "a")]);
    let response = fold.snapshot().to_value();
    assert_eq!(response["status"], "in_progress");
    assert_eq!(response["output"][0]["content"][0]["text"], "a");
    assert_eq!(fold.close()[0].event_type, "error");
}

/// The response of a log whose events up to `expired` are missing.
fn folded_after(expired: u64, bodies: Vec<Body>) -> Value {
    let mut fold = ResponseFold::new(job());
    fold.missing(Seq::FIRST, Seq(expired));
    for stored in log(bodies) {
        if stored.seq > Seq(expired) {
            fold.apply(&stored);
        }
    }
    fold.snapshot().to_value()
}

#[test]
fn a_response_with_missing_events_is_incomplete() {
    let attempt = vec![
        queued(),
        started(),
        chunk(Channel::Output, "a"),
        chunk(Channel::Output, "b"),
        done("stop"),
    ];
    for (expired, text) in [(2, "ab"), (3, "b")] {
        let response = folded_after(expired, attempt.clone());
        assert_eq!(response["status"], "incomplete");
        assert_eq!(response["incomplete_details"]["reason"], "events_missing");
        assert_eq!(response["output"][0]["status"], "incomplete");
        assert_eq!(response["output"][0]["content"][0]["text"], text);
    }
    // An attempt that starts after the gap is whole.
    let second = vec![started(), chunk(Channel::Output, "new"), done("stop")];
    let both = [attempt[..4].to_vec(), second].concat();
    for (expired, bodies) in [(1, attempt), (2, both.clone()), (4, both)] {
        let response = folded_after(expired, bodies);
        assert_eq!(response["status"], "completed");
        assert_eq!(response["incomplete_details"], Value::Null);
    }
}

#[test]
fn an_event_that_cannot_be_decoded_does_not_leave_a_response_whole_or_running() {
    let a = chunk(Channel::Output, "a");
    let b = chunk(Channel::Output, "b");
    let bodies = vec![queued(), started(), a, b, done("stop")];
    for (event_type, status) in [
        ("model:chunk:v1", "incomplete"),
        ("job:failed:v1", "failed"),
    ] {
        let mut fold = ResponseFold::new(job());
        for stored in damaged(bodies.clone(), 4, event_type) {
            fold.apply(&stored);
        }
        let response = fold.snapshot().to_value();
        assert_eq!(response["status"], status);
        assert_eq!(response["output"][0]["status"], "incomplete");
        assert!(fold.close().is_empty());
    }
}

#[test]
fn the_size_of_a_response_counts_its_text_and_its_items() {
    let empty = ResponseFold::new(job()).size();
    let text = "x".repeat(10_000);
    let arguments = Body::Data {
        data: json!({"tool_calls": [{"id": "c", "function": {"name": "f", "arguments": text}}]}),
    };
    let written = chunk(Channel::Output, &text);
    let bodies = vec![queued(), started(), written, arguments];
    let first = folded(bodies[..3].to_vec()).0.size();
    assert!((10_000..12_000).contains(&(first - empty)), "{first}");
    let both = folded(bodies.clone()).0.size();
    assert!((20_000..26_000).contains(&(both - empty)), "{both}");
    let superseded = [bodies, vec![started()]].concat();
    assert_eq!(folded(superseded).0.size(), empty);
}

#[test]
fn many_tool_calls_make_a_response_too_large_and_not_much_larger() {
    let calls = Body::Data {
        data: json!({"tool_calls": vec![0; 100_000]}),
    };
    let mut fold = ResponseFold::new(job());
    for stored in log(vec![queued(), started(), calls]) {
        fold.apply(&stored);
    }
    let size = fold.size();
    assert!(
        (OUTPUT_MAX + 1..OUTPUT_MAX + 4096).contains(&size),
        "{size}"
    );
}
