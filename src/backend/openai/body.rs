//! Turns the bytes of an answer's body into output and an end. Pure.

use super::completion::Completion;
use super::fault::{Fault, damaged, stream_cut, unreadable};
use super::server_error::ServerError;
use crate::backend::sse::{Remainder, SseParser};
use crate::backend::{Content, Failure, FailureCode, Finish, Retry};
use crate::config::MEDIA_TYPE_MAX;

/// The body of an answer, as far as it was read.
#[derive(Debug)]
pub(super) struct AnswerBody {
    parser: SseParser,
    completion: Completion,
}

impl Default for AnswerBody {
    fn default() -> Self {
        Self {
            parser: SseParser::lenient(),
            completion: Completion::default(),
        }
    }
}

impl AnswerBody {
    /// Reads the next event off the front of `bytes` and adds its output to `contents`. False when
    /// more bytes are needed, and after the end mark.
    pub(super) fn read_event(
        &mut self,
        bytes: &mut &[u8],
        contents: &mut Vec<Content>,
    ) -> Result<bool, Fault> {
        if self.is_done() {
            return Ok(false);
        }
        let event = self
            .parser
            .next(bytes)
            .map_err(|error| damaged(&error.to_string()))?;
        match event {
            Some(event) => self.completion.push(&event, contents).map(|()| true),
            None => Ok(false),
        }
    }

    /// Whether the end mark was read.
    pub(super) fn is_done(&self) -> bool {
        self.completion.is_done()
    }

    /// Whether the answer is whole even if no end mark follows.
    pub(super) fn is_trusted(&self) -> bool {
        self.completion.is_trusted()
    }

    /// How many events had a part of the answer.
    pub(super) fn events(&self) -> u64 {
        self.completion.events()
    }

    /// Ends the answer after its end mark.
    pub(super) fn end_at_mark(self, contents: &mut Vec<Content>) -> Result<Finish, Failure> {
        let words = self.completion.last_words();
        let cut = stream_cut(&format!("the end mark came without a finish_reason{words}"));
        self.completion.end(cut, contents)
    }

    /// Ends an answer whose connection failed; `cut` is the failure.
    pub(super) fn end_cut(
        self,
        cut: Failure,
        contents: &mut Vec<Content>,
    ) -> Result<Finish, Failure> {
        self.completion.end(cut, contents)
    }

    /// Ends the answer at the end of a body of this content type.
    pub(super) fn end_of_body(
        self,
        content_type: &str,
        contents: &mut Vec<Content>,
    ) -> Result<Finish, Fault> {
        let Self {
            parser,
            mut completion,
        } = self;
        let Remainder {
            events,
            mut is_cut,
            other_text,
        } = parser.end();
        for event in events {
            match completion.push(&event, contents) {
                // A partial event is lost text.
                Err(Fault { failure, .. })
                    if failure.code == FailureCode::BadStream && failure.retry != Retry::Never =>
                {
                    is_cut = true;
                }
                pushed => pushed?,
            }
        }
        // A web page does not help in a message.
        let words = if other_text.is_empty() || other_text.starts_with('<') {
            completion.last_words()
        } else {
            let said = ServerError::of_text(&other_text, None).message;
            format!("; it also sent: {said}")
        };
        if is_cut {
            return Err(stream_cut(&format!("it ended within an event{words}")).into());
        }
        let is_empty = completion.events() == 0 && !completion.is_done();
        if is_empty && (completion.is_unrecognized() || !other_text.is_empty()) {
            let content_type: String = content_type.chars().take(MEDIA_TYPE_MAX).collect();
            let why = format!("it is not a chat completion but {content_type}{words}");
            return Err(unreadable(&why).into());
        }
        let cut = stream_cut(&format!(
            "it ended without a finish_reason that can be trusted and without [DONE]{words}"
        ));
        Ok(completion.end(cut, contents)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Channel;

    /// The output of a body, and how it ends.
    fn read(mut bytes: &[u8]) -> (String, Result<Finish, Failure>) {
        let mut body = AnswerBody::default();
        let mut contents = Vec::new();
        let ended = loop {
            match body.read_event(&mut bytes, &mut contents) {
                Ok(true) => {}
                Ok(false) if body.is_done() => break body.end_at_mark(&mut contents),
                Ok(false) => {
                    let ended = body.end_of_body("x/y", &mut contents);
                    break ended.map_err(|fault| fault.failure);
                }
                Err(fault) => break Err(fault.failure),
            }
        };
        let text = |content: &Content| match content {
            Content::Text {
                channel: Channel::Output,
                text,
            } => text.clone(),
            Content::Text {
                channel: Channel::Reasoning,
                ..
            } => String::new(),
            Content::Data(data) => data.to_string(),
        };
        (contents.iter().map(text).collect(), ended)
    }

    #[test]
    fn a_cut_body_is_never_a_short_answer() {
        let piece = |delta: &str, reason: &str| {
            format!(r#"{{"choices":[{{"index":0,"delta":{delta},"finish_reason":{reason}}}]}}"#)
        };
        let stop = r#""stop""#;
        let of = |reason: &str| {
            let words = ["é", "b", r"\ud83d", r"\ude00", "c"];
            let thought = piece(r#"{"reasoning":"hm"}"#, reason);
            let call = |text: &str| {
                let call = format!(
                    r#"{{"tool_calls":[{{"index":0,"function":{{"name":"f","arguments":"{text}"}}}}]}}"#
                );
                piece(&call, reason)
            };
            let texts = words.map(|word| piece(&format!(r#"{{"content":"{word}"}}"#), reason));
            [vec![thought], texts.to_vec(), vec![call("{"), call("}")]].concat()
        };
        let alone = piece("{}", stop);
        let usage = r#"{"choices":[],"usage":{"total_tokens":1}}"#.to_owned();
        let mark = "[DONE]".to_owned();
        let answers = [
            [of("null"), vec![alone.clone(), usage, mark.clone()]].concat(),
            [of("null"), vec![alone.clone()]].concat(),
            [of(stop), vec![mark.clone()]].concat(),
            [of(r#""null""#), vec![alone.clone(), mark.clone()]].concat(),
            [of(r#""""#), vec![alone, mark]].concat(),
        ];
        let mut bodies: Vec<String> = Vec::new();
        for answer in &answers {
            bodies.push(
                answer
                    .iter()
                    .map(|data| format!(": ping\n\ndata: {data}\n\n"))
                    .collect(),
            );
            bodies.push(
                answer
                    .iter()
                    .map(|data| format!("data:{data}\r\n"))
                    .collect(),
            );
            bodies.push(answer.iter().map(|data| format!("{data}\n")).collect());
        }
        let call = r#"[{"function":{"name":"f","arguments":"{}"}}]"#;
        bodies.push(format!(
            "\n {{\"choices\":[{{\"message\":{{\"content\":\"ébc\",\"tool_calls\":{call}}}}}]\n}}"
        ));
        for (number, body) in bodies.into_iter().enumerate() {
            let (whole, ended) = read(body.as_bytes());
            assert!(
                ended.is_ok() && whole.contains("arguments"),
                "{body}: {ended:?}"
            );
            // Every fifth position in each body; together they cover every position.
            for cut in (number % 5..body.len()).step_by(5) {
                let (text, ended) = read(&body.as_bytes()[..cut]);
                match ended {
                    Ok(_) => assert_eq!(text, whole, "cut at {cut}: {body}"),
                    Err(failure) => {
                        assert_eq!(failure.code, "stream_cut", "cut at {cut}: {failure:?}")
                    }
                }
            }
        }
    }

    #[test]
    fn a_body_that_is_not_an_answer_is_refused_with_its_text() {
        for (body, words) in [
            ("<!doctype html>\n<p>Sign in</p>", "but x/y"),
            ("Not a model server", "it also sent: Not a model server"),
            (r#"{"hello": "world"}"#, "but x/y"),
            (
                "event: content_block_delta\ndata: {\"delta\": {\"text\": \"a\"}}\n\n",
                "but x/y",
            ),
        ] {
            let failure = read(body.as_bytes()).1.unwrap_err();
            assert_eq!(
                (failure.code.as_str(), failure.retry),
                ("bad_stream", Retry::Never),
                "{body}"
            );
            assert!(
                failure.message.contains(words) && !failure.message.contains("Sign in"),
                "{}",
                failure.message
            );
        }
        for (body, words) in [
            ("", "without [DONE]"),
            (
                "data: the GPU fell off\n\n",
                "its last words: the GPU fell off",
            ),
            (
                "data: \"the GPU fell off\"\n\ndata: \"ping\"\n\n",
                "its last words: the GPU fell off",
            ),
            (
                "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\nInternal Server Error",
                "Internal Server Error",
            ),
            (
                "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\ndata: [DONE]\n\n",
                "the end mark",
            ),
        ] {
            let failure = read(body.as_bytes()).1.unwrap_err();
            assert_eq!(
                (failure.code.as_str(), failure.retry),
                ("stream_cut", Retry::Later),
                "{body}"
            );
            assert!(failure.message.contains(words), "{}", failure.message);
        }
    }
}
