//! What a model server answers, event by event, becomes output and an end: pure. It reads no bytes and waits for nothing.
//!
//! ```text
//! content, reasoning, refusal, tool calls ─▶ … ─▶ finish_reason ─▶ usage ─▶ [DONE]
//!    └─ an end here is a cut: another attempt       └─ an end here is an answer that is whole
//! ```

use serde::Deserialize;
use serde_json::{Value, json};

use super::sse::Event;
use super::tools::Tools;
use super::{Failure, bad_stream};
use crate::backend::{Channel, Content, Finish};
use crate::config::{MODEL_MESSAGE_MAX, USAGE_MAX};

/// Reasons to finish that mean that the server broke off: OpenRouter, vLLM and DeepSeek say so in these words.
const BROKEN: [&str; 3] = ["error", "abort", "insufficient_system_resource"];
/// The longest reason to finish that is passed on, in bytes; the known ones have at most 28.
const REASON_MAX: usize = 64;

/// The answer so far.
#[derive(Debug, Default)]
pub(super) struct Reply {
    tools: Tools,
    /// The model has begun to say why it does not answer.
    refused: bool,
    finish: Finish,
    /// Nothing follows.
    done: bool,
}

/// `chat.completion.chunk`. Servers add fields and send `null` for what they leave out.
#[derive(Deserialize)]
struct Chunk {
    choices: Option<Vec<Choice>>,
    usage: Option<Value>,
    error: Option<Value>,
    object: Option<String>,
}

#[derive(Deserialize)]
struct Choice {
    index: Option<u64>,
    delta: Option<Delta>,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Delta {
    content: Option<String>,
    /// The reasoning, as DeepSeek named it first.
    reasoning_content: Option<String>,
    /// The same, under the name that OpenRouter, Ollama and newer vLLM give it. Some servers send both.
    reasoning: Option<String>,
    refusal: Option<String>,
    tool_calls: Option<Vec<Value>>,
}

impl Reply {
    /// Takes in an event and adds to `contents` what it puts out.
    pub(super) fn take(&mut self, event: &Event, contents: &mut Vec<Content>) -> Result<(), Failure> {
        let data = event.data.trim();
        if data == "[DONE]" {
            self.done = true;
            return Ok(());
        }
        if event.name == "error" {
            return Err(broken(data.as_bytes()));
        }
        // The parser's words say what and where, and quote nothing of the stream.
        let chunk: Chunk = serde_json::from_str(data)
            .map_err(|error| bad_stream(&format!("an event is no chunk: {error}")))?;
        if chunk.error.is_some() || chunk.object.as_deref() == Some("error") {
            return Err(broken(data.as_bytes()));
        }
        if let Some(usage) = chunk.usage.filter(|usage| usage.to_string().len() <= USAGE_MAX) {
            self.finish.usage = Some(usage);
        }
        for Choice { index, delta, finish_reason } in chunk.choices.into_iter().flatten() {
            // One was asked for; another would be mixed into its text.
            if index.unwrap_or(0) != 0 {
                continue;
            }
            if let Some(delta) = delta {
                self.add(delta, contents)?;
            }
            if let Some(mut reason) = finish_reason.filter(|reason| !reason.is_empty()) {
                if BROKEN.contains(&reason.as_str()) {
                    return Err(failed(&format!("the model server broke off: {reason}")));
                }
                reason.truncate(reason.floor_char_boundary(REASON_MAX));
                self.finish.finish_reason = Some(reason);
                contents.extend(self.tools.put_out().map(Content::Data));
            }
        }
        Ok(())
    }

    fn add(&mut self, delta: Delta, contents: &mut Vec<Content>) -> Result<(), Failure> {
        let Delta { content, reasoning_content, reasoning, refusal, tool_calls } = delta;
        let some = |text: &String| !text.is_empty();
        let reasoning = reasoning_content.filter(some).or_else(|| reasoning.filter(some));
        let texts = [(Channel::Reasoning, reasoning), (Channel::Output, content.filter(some))];
        for (channel, text) in texts.into_iter().filter_map(|(channel, text)| Some((channel, text?))) {
            self.put_out_whole_calls(contents);
            contents.push(Content::Text { channel, text });
        }
        if let Some(text) = refusal.filter(some) {
            self.put_out_whole_calls(contents);
            // People read the refusal where the answer would be; programs are told that it is none.
            if !std::mem::replace(&mut self.refused, true) {
                contents.push(Content::Data(json!({"refusal": true})));
            }
            contents.push(Content::Text { channel: Channel::Output, text });
        }
        tool_calls.into_iter().flatten().try_for_each(|piece| self.tools.take(piece))
    }

    /// Calls that are whole stand before the text that follows them.
    fn put_out_whole_calls(&mut self, contents: &mut Vec<Content>) {
        if self.tools.are_whole() {
            contents.extend(self.tools.put_out().map(Content::Data));
        }
    }

    /// Whether the end mark was seen.
    pub(super) fn is_done(&self) -> bool {
        self.done
    }

    /// Whether the answer is whole; what may follow is its usage and the end mark.
    pub(super) fn is_whole(&self) -> bool {
        self.finish.finish_reason.is_some()
    }

    /// The end of the stream, after which `contents` has all of it. Only a reason to finish proves an answer whole: `cut`
    /// is why there is none.
    pub(super) fn end(mut self, cut: Failure, contents: &mut Vec<Content>) -> Result<Finish, Failure> {
        if !self.is_whole() {
            return Err(cut);
        }
        contents.extend(self.tools.put_out().map(Content::Data));
        Ok(self.finish)
    }
}

/// A failure that the server reported in the middle of its answer.
fn broken(said: &[u8]) -> Failure {
    failed(&format!("the model server broke off: {}", message(said)))
}

fn failed(message: &str) -> Failure {
    Failure::retryable("model_failed", message)
}

/// What a server says of an error, on one line and not too long. Servers differ: `{"error": {"message": …}}`,
/// `{"error": "…"}`, `{"message": …}`, `{"detail": …}`, or plain text.
pub(super) fn message(said: &[u8]) -> String {
    let plain = String::from_utf8_lossy(said);
    let value: Value = serde_json::from_slice(said).unwrap_or(Value::Null);
    let paths = ["/error/message", "/error", "/message", "/detail"];
    let found = paths.into_iter().filter_map(|path| value.pointer(path)).find(|found| !found.is_null());
    let text = match found {
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        // A page for people is not for here.
        None if plain.trim_start().starts_with('<') => String::new(),
        None => plain.into_owned(),
    };
    let mut line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.len() > MODEL_MESSAGE_MAX {
        line.truncate(line.floor_char_boundary(MODEL_MESSAGE_MAX));
        line.push('…');
    }
    if line.is_empty() { "no message".into() } else { line }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Retry;

    /// What a stream of events puts out, and how it ends.
    fn replied(events: &[Value]) -> (Vec<Content>, Result<Finish, Failure>) {
        let (mut reply, mut contents) = (Reply::default(), Vec::new());
        for event in events {
            let data = event.as_str().map_or_else(|| event.to_string(), str::to_owned);
            if let Err(failure) = reply.take(&Event { name: String::new(), data }, &mut contents) {
                return (contents, Err(failure));
            }
        }
        let ended = reply.end(Failure::retryable("cut", ""), &mut contents);
        (contents, ended)
    }

    fn delta(delta: &Value) -> Value {
        json!({"id": "c", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta, "finish_reason": null}]})
    }

    fn finish(reason: &str) -> Value {
        json!({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
    }

    fn output(text: &str) -> Content {
        Content::Text { channel: Channel::Output, text: text.into() }
    }

    fn reasoning(text: &str) -> Content {
        Content::Text { channel: Channel::Reasoning, text: text.into() }
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
        assert_eq!(ended, Ok(Finish { usage, finish_reason: Some("stop".into()) }));
    }

    #[test]
    fn reasoning_is_a_channel_of_its_own_under_either_name() {
        let (contents, _) = replied(&[
            delta(&json!({"reasoning_content": "a", "content": null})),
            delta(&json!({"reasoning": "b"})),
            delta(&json!({"reasoning": "c", "reasoning_content": "c"})),
            delta(&json!({"reasoning": "d", "reasoning_content": "", "content": "e"})),
        ]);
        assert_eq!(contents, [reasoning("a"), reasoning("b"), reasoning("c"), reasoning("d"), output("e")]);
    }

    #[test]
    fn tool_calls_are_put_out_whole_and_in_their_place() {
        let piece = |index: u64, id: Value, arguments: &str| {
            delta(&json!({"tool_calls": [{"index": index, "id": id, "type": "function",
                "function": {"name": "f", "arguments": arguments}}]}))
        };
        let call = |id: &str, arguments: &str| json!({"id": id, "type": "function", "function": {"name": "f", "arguments": arguments}});
        let (contents, ended) = replied(&[
            delta(&json!({"content": "before"})),
            piece(0, json!("a"), "{\"x\""),
            // Text amid a call does not tear it.
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
            [output("before"), output("amid"), Content::Data(whole), output("after"), Content::Data(last)]
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
        assert_eq!(contents, [Content::Data(json!({"refusal": true})), output("I "), output("won't")]);
    }

    #[test]
    fn only_a_reason_to_finish_proves_an_answer_whole() {
        for cut in [vec![], vec![json!("[DONE]")], vec![delta(&json!({"content": "x"})), json!("[DONE]")]] {
            assert_eq!(replied(&cut).1.unwrap_err().code, "cut");
        }
        // The end mark may be lost.
        assert!(replied(&[finish("stop")]).1.is_ok());
        let empty = json!({"choices": [{"delta": {"content": "x"}, "finish_reason": ""}]});
        assert_eq!(replied(&[empty]).1.unwrap_err().code, "cut");
    }

    #[test]
    fn an_error_in_the_stream_is_a_failure_with_the_servers_words() {
        for error in [
            json!({"error": {"message": "out of memory", "code": 500}}),
            json!({"error": "out of memory"}),
            json!({"object": "error", "message": "out of memory"}),
            json!({"error": {"message": "out of memory"}, "choices": [{"delta": {}, "finish_reason": "error"}]}),
        ] {
            let failure = replied(&[delta(&json!({"content": "x"})), error]).1.unwrap_err();
            assert_eq!((failure.code.as_str(), failure.retry), ("model_failed", Retry::Later));
            assert_eq!(failure.message, "the model server broke off: out of memory");
        }
        let event = Event { name: "error".into(), data: "{\"message\":\"late\"}".into() };
        let failure = Reply::default().take(&event, &mut Vec::new()).unwrap_err();
        assert_eq!((failure.code.as_str(), failure.message.ends_with("late")), ("model_failed", true));
        for reason in BROKEN {
            assert_eq!(replied(&[finish(reason)]).1.unwrap_err().code, "model_failed");
        }
        assert!(replied(&[json!({"error": null, "choices": []}), finish("stop")]).1.is_ok());
    }

    #[test]
    fn an_event_that_is_no_chunk_is_a_failure_that_quotes_nothing() {
        for data in
            ["{\"choices\":", "secret", "[]", "1", "", "{\"choices\":[{\"delta\":{\"content\":[1]}}]}"]
        {
            let failure = replied(&[json!(data)]).1.unwrap_err();
            assert_eq!((failure.code.as_str(), failure.retry), ("bad_stream", Retry::Later), "{data}");
            assert!(!failure.message.contains("secret"));
        }
    }

    #[test]
    fn another_choice_and_huge_usage_are_left_out() {
        let other = json!({"choices": [{"index": 1, "delta": {"content": "x"}, "finish_reason": "stop"}]});
        let (contents, ended) = replied(&[other]);
        assert_eq!((contents, ended.unwrap_err().code.as_str()), (vec![], "cut"));
        let usage = json!({"usage": {"note": "x".repeat(USAGE_MAX)}});
        let (_, ended) = replied(&[json!({"usage": {"total_tokens": 1}}), usage, finish(&"é".repeat(99))]);
        let Finish { usage, finish_reason } = ended.unwrap();
        assert_eq!(
            (usage, finish_reason),
            (Some(json!({"total_tokens": 1})), Some("é".repeat(REASON_MAX / 2)))
        );
    }

    #[test]
    fn a_message_is_one_short_line_however_the_server_says_it() {
        for said in [
            r#"{"error":{"message":"no\n such model","type":"x"}}"#,
            r#"{"error":"no such model"}"#,
            r#"{"object":"error","message":"no such model","code":404}"#,
            r#"{"detail":"no such model"}"#,
            " no such\r\nmodel ",
        ] {
            assert_eq!(message(said.as_bytes()), "no such model", "{said}");
        }
        assert_eq!(message(br#"{"detail":[{"loc":["body"]}]}"#), r#"[{"loc":["body"]}]"#);
        assert_eq!(message(br#"{"error":{"code":5}}"#), r#"{"code":5}"#);
        assert_eq!(message(b"<html>502</html>"), "no message");
        assert_eq!(message(b""), "no message");
        let long = message("é".repeat(MODEL_MESSAGE_MAX).as_bytes());
        assert!(long.len() <= MODEL_MESSAGE_MAX + '…'.len_utf8() && long.ends_with("é…"));
    }
}
