//! The request to a model server, made from a job's input. Pure. It checks only what this side
//! relies on; servers have more parameters than any list.

use serde_json::{Map, Value, json};

use crate::backend::{Failure, FailureCode};

/// A request for a chat completion.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ChatRequest {
    body: Map<String, Value>,
    /// The input has no `stream_options`, so they may be added, and removed again.
    adds_options: bool,
}

impl ChatRequest {
    /// The request for an input.
    ///
    /// The input is a text, which becomes one message of the user, or an object with `messages` and
    /// any other parameter of a chat completion. The operator chooses the model and pays for it: an
    /// input may name only that one. The answer is always one streamed choice, whatever `stream` in
    /// the input is. Usage is requested unless the input has `stream_options`: an object is passed
    /// on unchanged, null and false remove the field.
    pub(super) fn new(model: &str, input: &Value) -> Result<Self, Failure> {
        let mut body = match input {
            Value::String(text) => Map::from_iter([(
                "messages".into(),
                json!([{"role": "user", "content": text}]),
            )]),
            Value::Object(fields) => fields.clone(),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) => {
                return Err(bad("the input must be a text or an object with messages"));
            }
        };
        check(model, &body)?;
        body.insert("model".into(), model.into());
        body.insert("stream".into(), true.into());
        let adds_options = match body.get("stream_options") {
            None => {
                body.insert("stream_options".into(), json!({"include_usage": true}));
                true
            }
            Some(Value::Object(_)) => false,
            Some(Value::Null | Value::Bool(false)) => {
                body.remove("stream_options");
                false
            }
            Some(Value::Bool(true) | Value::Number(_) | Value::String(_) | Value::Array(_)) => {
                return Err(bad(
                    "stream_options must be an object, or null or false to omit them",
                ));
            }
        };
        Ok(Self { body, adds_options })
    }

    /// Whether `stream_options` were added, which not every server accepts.
    pub(super) fn adds_options(&self) -> bool {
        self.adds_options
    }

    /// The same request without the added `stream_options`.
    pub(super) fn without_options(mut self) -> Self {
        if self.adds_options {
            self.body.remove("stream_options");
        }
        Self {
            adds_options: false,
            ..self
        }
    }

    /// The body as JSON.
    pub(super) fn to_json(&self) -> String {
        // A map with text keys always has a JSON form.
        serde_json::to_string(&self.body).unwrap_or_default()
    }
}

fn check(model: &str, body: &Map<String, Value>) -> Result<(), Failure> {
    let given = |name: &str| body.get(name).filter(|value| !value.is_null());
    let messages = given("messages").and_then(Value::as_array);
    if !messages
        .is_some_and(|messages| !messages.is_empty() && messages.iter().all(Value::is_object))
    {
        return Err(bad("messages must be a list of at least one message"));
    }
    if given("model").is_some_and(|asked| asked != model) {
        return Err(bad("this worker serves another model; omit model"));
    }
    if given("n").is_some_and(|n| n != 1) {
        return Err(bad("n must be 1: a job has one output"));
    }
    if ["functions", "function_call"]
        .into_iter()
        .any(|name| given(name).is_some())
    {
        return Err(bad("functions are obsolete; use tools"));
    }
    let spoken = |modality: &Value| modality == "audio";
    if given("audio").is_some()
        || given("modalities")
            .and_then(Value::as_array)
            .is_some_and(|list| list.iter().any(spoken))
    {
        return Err(bad("audio is not supported"));
    }
    Ok(())
}

fn bad(message: &str) -> Failure {
    Failure::fatal(FailureCode::BadInput, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Retry;

    fn body(input: &Value) -> Value {
        serde_json::from_str(&ChatRequest::new("m", input).unwrap().to_json()).unwrap()
    }

    #[test]
    fn a_text_is_one_message_of_the_user() {
        assert_eq!(
            body(&json!("hi")),
            json!({"messages": [{"role": "user", "content": "hi"}], "model": "m", "stream": true,
                "stream_options": {"include_usage": true}})
        );
    }

    #[test]
    fn an_object_is_passed_on_with_every_parameter_it_has() {
        let messages =
            json!([{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]);
        let input = json!({"messages": messages, "temperature": 0.5, "max_tokens": 7, "tools": [{"type": "function"}],
            "tool_choice": "auto", "response_format": {"type": "json_object"}, "top_k": 3, "n": 1, "model": "m",
            "stream": false, "stream_options": {"continuous_usage_stats": true, "include_usage": false}});
        let mut expected = input.clone();
        expected["stream"] = true.into();
        assert_eq!(body(&input), expected);
        let without = json!({"messages": messages, "model": null, "n": null});
        assert_eq!(
            body(&without)["stream_options"],
            json!({"include_usage": true})
        );
        assert_eq!(body(&without)["model"], "m");
    }

    #[test]
    fn stream_options_are_added_only_if_the_input_has_none() {
        let input =
            |options: Value| json!({"messages": [{"role": "user"}], "stream_options": options});
        for none in [Value::Null, json!(false)] {
            let request = ChatRequest::new("m", &input(none)).unwrap();
            assert!(!request.adds_options() && !request.to_json().contains("stream_options"));
        }
        let own = ChatRequest::new("m", &input(json!({}))).unwrap();
        assert!(!own.adds_options() && own.to_json().contains("\"stream_options\":{}"));
        let added = ChatRequest::new("m", &json!("hi")).unwrap();
        assert!(added.adds_options() && added.to_json().contains("include_usage"));
        let without = added.without_options();
        assert!(!without.adds_options() && !without.to_json().contains("stream_options"));
    }

    #[test]
    fn anything_else_is_bad_input() {
        let messages = json!([{"role": "user", "content": "u"}]);
        for input in [
            Value::Null,
            json!(1),
            json!(true),
            json!(["hi"]),
            json!({}),
            json!({"messages": null}),
            json!({"messages": "hi"}),
            json!({"messages": []}),
            json!({"messages": ["hi"]}),
            json!({"messages": messages, "model": "dearer"}),
            json!({"messages": messages, "model": 1}),
            json!({"messages": messages, "n": 2}),
            json!({"messages": messages, "stream_options": true}),
            json!({"messages": messages, "functions": []}),
            json!({"messages": messages, "function_call": "auto"}),
            json!({"messages": messages, "modalities": ["text", "audio"]}),
            json!({"messages": messages, "audio": {"voice": "x"}}),
        ] {
            let failure = ChatRequest::new("m", &input).unwrap_err();
            assert_eq!(
                (failure.code.as_str(), failure.retry),
                ("bad_input", Retry::Never),
                "{input}"
            );
        }
    }
}
