//! What a model server answers, event by event, becomes output and an end: pure. It reads no bytes and waits for nothing.
//!
//! ```text
//! content, reasoning, refusal, tool calls ─▶ … ─▶ finish_reason ─▶ usage ─▶ [DONE]
//!    ▲  └─ an end here is a cut: another attempt       │  └─ an end here is a whole answer, if the reason can be trusted
//!    └──────────── content revokes the reason ─────────┘
//! ```
//!
//! Some servers name a reason with every piece, with reasoning, or before they are done. Such a reason proves nothing: after
//! it only `[DONE]` ends the answer. Otherwise a stream that was cut would look like a short answer.

use serde_json::{Value, json};

use super::chunk::{Choice, Part, Source};
use super::said::{self, Said};
use super::sse::Event;
use super::tools::Tools;
use super::{Fault, bad_stream, unreadable};
use crate::backend::surrogates::{self, Joiner};
use crate::backend::{Channel, Content, Failure, Finish, Retry};
use crate::config::{FINISH_REASON_MAX, USAGE_MAX};

/// What the server did, before its words.
const BROKE_OFF: &str = "the model server broke off";

/// The answer so far.
#[derive(Debug, Default)]
pub(super) struct Reply {
    tools: Tools,
    output: Joiner,
    reasoning: Joiner,
    /// The model has begun to say why it does not answer.
    refused: bool,
    finish: Finish,
    /// The end mark was seen.
    done: bool,
    /// How many events had choices or usage.
    events: u64,
    /// How many events were JSON without either.
    others: u64,
    /// Which index the choice has that is put out.
    index: Option<Value>,
    /// An event had several choices with different indexes, so that the index tells them apart in later events, too.
    several: bool,
    /// Text came in deltas.
    deltas: bool,
    /// The last data that was not JSON: some servers report errors so.
    last_words: String,
    /// The error that the last event may be.
    unsure: Option<Said>,
    end: End,
}

/// What speaks for the answer being whole.
#[derive(Debug, Default)]
struct End {
    /// With what the last reason came; `None` when content followed it.
    reason: Option<With>,
    /// Content followed a reason that came with content.
    revoked_with_content: bool,
    /// Content followed a reason that came alone.
    revoked_alone: bool,
    /// A piece of the answer came without a reason, so that a reason means something.
    unnamed: bool,
    /// Usage came after the reason; some servers send it with every piece.
    usage: bool,
    reasoned: bool,
    answered: bool,
    /// The only event so far is a whole message.
    is_message: bool,
}

/// With what a reason came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum With {
    Reasoning,
    Content,
    Nothing,
}

impl End {
    /// Takes in what a choice has of content, and whether it names a reason.
    fn update(&mut self, with: With, named: bool) {
        if with != With::Nothing {
            match self.reason.take() {
                Some(With::Nothing) => self.revoked_alone = true,
                Some(With::Content | With::Reasoning) => self.revoked_with_content = true,
                None => {}
            }
            self.usage = false;
            self.unnamed |= !named;
            self.reasoned |= with == With::Reasoning;
            self.answered |= with == With::Content;
        }
        if named {
            self.reason = Some(with);
        }
    }

    /// Whether the answer is whole without an end mark. A reason that came with content proves it only if the server does
    /// not name one with every piece; the first piece alone cannot show that, but its usage does.
    fn is_trusted(&self) -> bool {
        let trusted = match self.reason {
            Some(With::Nothing) => !self.revoked_alone && (self.answered || !self.reasoned),
            Some(With::Content) => !self.revoked_with_content && (self.unnamed || self.usage),
            Some(With::Reasoning) | None => false,
        };
        trusted || self.is_message
    }
}

impl Reply {
    /// Takes in an event and adds to `contents` what it puts out.
    pub(super) fn push(&mut self, event: &Event, contents: &mut Vec<Content>) -> Result<(), Fault> {
        let data = event.data.trim();
        let is_error = event.name.to_ascii_lowercase().contains("error");
        if data.trim_matches('"').eq_ignore_ascii_case("[DONE]") {
            self.done = true;
            return Ok(());
        }
        let values = match values(data) {
            Ok(values) => values,
            Err(_) if is_error => return Err(broken(Said::of_text(data, None))),
            // A heartbeat, or words: damaged JSON of a chunk has braces.
            Err(_) if !data.contains(['{', '}']) => {
                self.note_words(data, event);
                return Ok(());
            }
            Err(error) => {
                return Err(bad_stream(&format!("an event is not valid JSON: {error}")).into());
            }
        };
        if is_error && !values.iter().any(Value::is_object) {
            return Err(broken(Said::of_text(data, None)));
        }
        values
            .iter()
            .filter_map(Value::as_str)
            .for_each(|words| self.note_words(words, event));
        let is_ping = said::is_heartbeat(&event.name);
        let objects = values.iter().filter(|value| value.is_object());
        for value in objects.filter(|value| !is_ping || value.get("choices").is_some()) {
            self.push_object(value, is_error, contents)?;
        }
        Ok(())
    }

    /// Keeps words that are not part of the answer, in case it ends with them.
    fn note_words(&mut self, words: &str, event: &Event) {
        if !said::is_heartbeat(words) && !said::is_heartbeat(&event.name) {
            self.last_words = said::shorten(words.to_owned());
            surrogates::settle_text(&mut self.last_words);
        }
    }

    fn push_object(
        &mut self,
        value: &Value,
        is_error: bool,
        contents: &mut Vec<Content>,
    ) -> Result<(), Fault> {
        if let Some(said) = Said::of_event(value, is_error) {
            if !said.unsure {
                return Err(broken(said));
            }
            self.unsure = Some(said);
            return Ok(());
        }
        let choices = match value.get("choices") {
            Some(Value::Array(choices)) => choices.as_slice(),
            None | Some(Value::Null) => &[],
            Some(_) => return Err(unreadable("choices is not a list").into()),
        };
        let usage = value.get("usage").or_else(|| choices.first()?.get("usage"));
        let usage = usage.filter(|usage| !usage.is_null());
        if choices.is_empty() && usage.is_none() {
            // Azure begins with an empty list.
            self.others += u64::from(value.get("choices").is_none());
            return Ok(());
        }
        self.events += 1;
        self.unsure = None;
        let mut has_content = false;
        for choice in self.select(choices) {
            let choice = Choice::read(choice, self.deltas)
                .map_err(|error| unreadable(&error.to_string()))?;
            has_content |= !choice.parts.is_empty();
            self.push_choice(choice, contents)?;
        }
        if let Some(usage) = usage {
            self.end.usage |= self.end.reason.is_some() && !has_content;
            if usage.to_string().len() <= USAGE_MAX {
                let mut usage = usage.clone();
                surrogates::settle(&mut usage);
                self.finish.usage = Some(usage);
            }
        }
        Ok(())
    }

    /// The choices to put out. One was asked for: the only one of an event is it, whatever its index, which some servers
    /// count up. Of several only those with the first index are: another one would be mixed into its text.
    fn select<'a>(&mut self, choices: &'a [Value]) -> Vec<&'a Value> {
        let index = |choice: &Value| choice.get("index").cloned().unwrap_or_default();
        let Some(first) = choices.first().map(index) else {
            return Vec::new();
        };
        self.several |= choices.iter().any(|choice| index(choice) != first);
        if !self.several {
            self.index.get_or_insert(first);
            return choices.iter().collect();
        }
        let wanted = self.index.get_or_insert_with(|| first.clone());
        if choices.len() > 1 && !choices.iter().any(|choice| index(choice) == *wanted) {
            *wanted = first;
        }
        choices
            .iter()
            .filter(|choice| index(choice) == *wanted)
            .collect()
    }

    fn push_choice(&mut self, choice: Choice, contents: &mut Vec<Content>) -> Result<(), Failure> {
        let Choice {
            parts,
            finish_reason,
            source,
        } = choice;
        let reasons = |part: &Part| {
            matches!(
                part,
                Part::Text {
                    channel: Channel::Reasoning,
                    ..
                }
            )
        };
        let with = match parts.as_slice() {
            [] => With::Nothing,
            parts if parts.iter().all(reasons) => With::Reasoning,
            _ => With::Content,
        };
        self.end.update(with, finish_reason.is_some());
        self.end.is_message =
            source == Source::Message && with != With::Nothing && self.events == 1;
        self.deltas |= source == Source::Delta && with != With::Nothing;
        parts
            .into_iter()
            .try_for_each(|part| self.push_part(part, contents))?;
        if let Some(mut reason) = finish_reason {
            surrogates::settle_text(&mut reason);
            reason.truncate(reason.floor_char_boundary(FINISH_REASON_MAX));
            self.finish.finish_reason = Some(reason);
        }
        Ok(())
    }

    fn push_part(&mut self, part: Part, contents: &mut Vec<Content>) -> Result<(), Failure> {
        if !matches!(part, Part::Call { .. }) && self.tools.are_whole() {
            // Calls that are whole stand before the text that follows them.
            contents.extend(self.tools.put_out().map(Content::Data));
        }
        match part {
            Part::Text { channel, text } => self.push_text(channel, &text, contents),
            Part::Refusal(text) => {
                // People read the refusal where the answer would be; this event tells programs that it is one.
                if !std::mem::replace(&mut self.refused, true) {
                    contents.push(Content::Data(json!({"refusal": true})));
                }
                self.push_text(Channel::Output, &text, contents);
            }
            Part::Call { piece, place } => self.tools.push(&piece, place)?,
            Part::Other(mut value) => {
                surrogates::settle(&mut value);
                contents.push(Content::Data(value));
            }
        }
        Ok(())
    }

    fn push_text(&mut self, channel: Channel, text: &str, contents: &mut Vec<Content>) {
        let joiner = match channel {
            Channel::Output => &mut self.output,
            Channel::Reasoning => &mut self.reasoning,
        };
        let text = joiner.push(text);
        if !text.is_empty() {
            contents.push(Content::Text { channel, text });
        }
    }

    /// Whether the end mark was seen.
    pub(super) fn is_done(&self) -> bool {
        self.done
    }

    /// Whether the answer is whole even if no end mark follows.
    pub(super) fn is_trusted(&self) -> bool {
        self.end.is_trusted()
    }

    /// How many events had a part of the answer; heartbeats have none.
    pub(super) fn events(&self) -> u64 {
        self.events
    }

    /// Whether the events were of another form than any that is known.
    pub(super) fn is_foreign(&self) -> bool {
        self.events == 0 && self.others > 0
    }

    /// The last words that were not part of the answer, to be read after a sentence.
    pub(super) fn last_words(&self) -> String {
        if self.last_words.is_empty() {
            String::new()
        } else {
            format!("; its last words: {}", self.last_words)
        }
    }

    /// The end of the stream, after which `contents` has all of it; `cut` is the failure if it is not whole.
    pub(super) fn end(
        mut self,
        cut: Failure,
        contents: &mut Vec<Content>,
    ) -> Result<Finish, Failure> {
        let is_whole = self.done && self.finish.finish_reason.is_some() || self.is_trusted();
        if !is_whole {
            return Err(self
                .unsure
                .map_or(cut, |said| said.failure(BROKE_OFF, Retry::Later)));
        }
        for (channel, joiner) in [
            (Channel::Reasoning, &mut self.reasoning),
            (Channel::Output, &mut self.output),
        ] {
            contents.extend(joiner.end().map(|half| Content::Text {
                channel,
                text: half.into(),
            }));
        }
        contents.extend(self.tools.put_out().map(Content::Data));
        Ok(self.finish)
    }
}

/// The JSON values of an event's data, those of a list one by one. The error says what and where, and quotes nothing.
fn values(data: &str) -> Result<Vec<Value>, serde_json::Error> {
    let marked = surrogates::mark(data);
    let mut found = Vec::new();
    for value in serde_json::Deserializer::from_str(&marked).into_iter() {
        let mut value: Value = value?;
        if let Value::Array(values) = &mut value {
            found.append(values);
        } else {
            found.push(value);
        }
    }
    Ok(found)
}

/// A failure that the server reported in its answer.
fn broken(said: Said) -> Fault {
    let status = said.status;
    Fault {
        failure: said.failure(BROKE_OFF, Retry::Later),
        status,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Retry;

    /// What a stream of events puts out, and how it ends.
    fn replied(events: &[Value]) -> (Vec<Content>, Result<Finish, Failure>) {
        let mut reply = Reply::default();
        let mut contents = Vec::new();
        for event in events {
            let data = event
                .as_str()
                .map_or_else(|| event.to_string(), str::to_owned);
            if let Err(fault) = reply.push(
                &Event {
                    name: String::new(),
                    data,
                },
                &mut contents,
            ) {
                return (contents, Err(fault.failure));
            }
        }
        let ended = reply.end(Failure::retryable("cut", ""), &mut contents);
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
    fn tool_calls_are_put_out_whole_and_in_their_place() {
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
    fn only_a_reason_to_finish_proves_an_answer_whole() {
        for cut in [
            vec![],
            vec![json!("[DONE]")],
            vec![delta(&json!({"content": "x"})), json!("[DONE]")],
        ] {
            assert_eq!(replied(&cut).1.unwrap_err().code, "cut");
        }
        // The end mark may be lost.
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
            let event = Event {
                name: name.into(),
                data: data.into(),
            };
            let failure = Reply::default()
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
    fn words_that_end_the_answer_are_its_error_and_others_are_news() {
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
        let ping = Event {
            name: "ping".into(),
            data: "{\"message\": \"still here\"}".into(),
        };
        assert!(Reply::default().push(&ping, &mut Vec::new()).is_ok());
    }

    #[test]
    fn damaged_json_is_a_failure_that_may_pass_and_quotes_nothing() {
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
    fn a_form_that_cannot_be_read_is_final_and_quotes_nothing() {
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
    fn tool_calls_revoke_a_reason_too_and_are_not_torn_by_one() {
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
        let (first, second) = (choice(json!(1), "a"), choice(json!(0), "b"));
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
    fn an_answer_that_comes_whole_is_whole() {
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
        // Pieces that are called messages are no whole answer.
        assert_eq!(
            replied(&[message.clone(), message]).1.unwrap_err().code,
            "cut"
        );
        // A message after deltas repeats them.
        let repeated = json!({"choices": [{"delta": {}, "message": {"content": "ab"}, "finish_reason": "stop"}]});
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
    fn huge_usage_is_left_out_and_a_long_reason_shortened() {
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
}
