//! What a job's input asks the model server: pure. It checks what this side must rely on, and leaves the rest to the
//! server, whose parameters are more than any list.

use serde_json::{Map, Value, json};

use super::Failure;

/// The body of the request.
///
/// The input is a text, which is one message of the user, or an object with `messages` and any other parameter of a chat
/// completion. The model is the operator's, who pays for it: an input may name only that one. The answer is always one
/// streamed choice with its usage, whatever the input says of `stream`.
pub(super) fn body(model: &str, input: &Value) -> Result<Value, Failure> {
    let mut body = match input {
        Value::String(text) => {
            Map::from_iter([("messages".into(), json!([{"role": "user", "content": text}]))])
        }
        Value::Object(fields) => fields.clone(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) => {
            return Err(bad("the input must be a text or an object with messages"));
        }
    };
    check(model, &body)?;
    body.insert("model".into(), model.into());
    body.insert("stream".into(), true.into());
    let options = body.entry("stream_options").or_insert(Value::Null);
    if options.is_null() {
        *options = json!({});
    }
    match options {
        Value::Object(options) => options.insert("include_usage".into(), true.into()),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            return Err(bad("stream_options must be an object"));
        }
    };
    Ok(body.into())
}

fn check(model: &str, body: &Map<String, Value>) -> Result<(), Failure> {
    let given = |name: &str| body.get(name).filter(|value| !value.is_null());
    let messages = given("messages").and_then(Value::as_array);
    if !messages.is_some_and(|messages| !messages.is_empty() && messages.iter().all(Value::is_object)) {
        return Err(bad("messages must be a list of at least one message"));
    }
    if given("model").is_some_and(|asked| asked != model) {
        return Err(bad("this worker serves another model; leave model out"));
    }
    if given("n").is_some_and(|n| n != 1) {
        return Err(bad("n must be 1: a job has one output"));
    }
    if ["functions", "function_call"].into_iter().any(|name| given(name).is_some()) {
        return Err(bad("functions are out of use: give tools"));
    }
    let spoken = |modality: &Value| modality == "audio";
    if given("audio").is_some()
        || given("modalities").and_then(Value::as_array).is_some_and(|list| list.iter().any(spoken))
    {
        return Err(bad("audio cannot be put out"));
    }
    Ok(())
}

fn bad(message: &str) -> Failure {
    Failure::fatal("bad_input", message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Retry;

    #[test]
    fn a_text_is_one_message_of_the_user() {
        assert_eq!(
            body("m", &json!("hi")).unwrap(),
            json!({"messages": [{"role": "user", "content": "hi"}], "model": "m", "stream": true,
                "stream_options": {"include_usage": true}})
        );
    }

    #[test]
    fn an_object_is_passed_on_with_every_parameter_it_has() {
        let messages = json!([{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]);
        let input = json!({"messages": messages, "temperature": 0.5, "max_tokens": 7, "tools": [{"type": "function"}],
            "tool_choice": "auto", "response_format": {"type": "json_object"}, "top_k": 3, "n": 1, "model": "m",
            "stream": false, "stream_options": {"continuous_usage_stats": true, "include_usage": false}});
        let mut expected = input.clone();
        expected["stream"] = true.into();
        expected["stream_options"]["include_usage"] = true.into();
        assert_eq!(body("m", &input).unwrap(), expected);
        let without = json!({"messages": messages, "stream_options": null, "model": null, "n": null});
        assert_eq!(body("m", &without).unwrap()["stream_options"], json!({"include_usage": true}));
        assert_eq!(body("m", &without).unwrap()["model"], "m");
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
            let failure = body("m", &input).unwrap_err();
            assert_eq!((failure.code.as_str(), failure.retry), ("bad_input", Retry::Never), "{input}");
        }
    }
}
