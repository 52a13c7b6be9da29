//! What a job's input asks the model server: pure. It checks what this side must rely on, and leaves the rest to the
//! server, whose parameters are more than any list.

use serde_json::{Map, Value, json};

use super::{Failure, FailureCode};

/// What the server is asked.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Request {
    body: Map<String, Value>,
    /// The input says nothing of `stream_options`, so that they may be added, and left out again.
    adds_options: bool,
}

impl Request {
    /// The request for an input.
    ///
    /// The input is a text, which is one message of the user, or an object with `messages` and any other parameter of a
    /// chat completion. The model is the operator's, who pays for it: an input may name only that one. The answer is always
    /// one streamed choice, whatever the input says of `stream`. Its usage is asked for unless the input has
    /// `stream_options`: an object is passed on as it is, null and false leave the field out.
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
                    "stream_options must be an object, or null or false to leave them out",
                ));
            }
        };
        Ok(Self { body, adds_options })
    }

    /// Whether `stream_options` are added, which not every server takes.
    pub(super) fn adds_options(&self) -> bool {
        self.adds_options
    }

    /// The same request without what was added.
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
        return Err(bad("this worker serves another model; leave model out"));
    }
    if given("n").is_some_and(|n| n != 1) {
        return Err(bad("n must be 1: a job has one output"));
    }
    if ["functions", "function_call"]
        .into_iter()
        .any(|name| given(name).is_some())
    {
        return Err(bad("functions are out of use: give tools"));
    }
    let spoken = |modality: &Value| modality == "audio";
    if given("audio").is_some()
        || given("modalities")
            .and_then(Value::as_array)
            .is_some_and(|list| list.iter().any(spoken))
    {
        return Err(bad("audio cannot be put out"));
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
        serde_json::from_str(&Request::new("m", input).unwrap().to_json()).unwrap()
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
    fn stream_options_are_added_only_where_the_input_says_nothing_of_them() {
        let input =
            |options: Value| json!({"messages": [{"role": "user"}], "stream_options": options});
        for none in [Value::Null, json!(false)] {
            let request = Request::new("m", &input(none)).unwrap();
            assert!(!request.adds_options() && !request.to_json().contains("stream_options"));
        }
        let own = Request::new("m", &input(json!({}))).unwrap();
        assert!(!own.adds_options() && own.to_json().contains("\"stream_options\":{}"));
        let added = Request::new("m", &json!("hi")).unwrap();
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
            let failure = Request::new("m", &input).unwrap_err();
            assert_eq!(
                (failure.code.as_str(), failure.retry),
                ("bad_input", Retry::Never),
                "{input}"
            );
        }
    }
}
