//! Tool calls, which a server sends in pieces, put together: pure. It judges no call: whether its arguments are what the
//! tool takes is for whoever runs the tool.

use serde::de::IgnoredAny;
use serde_json::{Map, Value, json};

use super::Failure;
use crate::config::TOOL_CALLS_MAX;

/// What a piece counts beside its bytes, so that many calls that say nothing are limited, too.
const PIECE_COST: usize = 64;

/// What the calls that are not put out yet say so far.
#[derive(Debug, Default)]
pub(super) struct Tools {
    calls: Vec<Call>,
    bytes: usize,
}

#[derive(Debug)]
struct Call {
    index: Option<u64>,
    call: Map<String, Value>,
}

impl Tools {
    /// Takes in a piece of a call. Pieces belong together when they have the same `index` and not different ids: some
    /// servers give several calls the index 0, or none.
    pub(super) fn take(&mut self, piece: Value) -> Result<(), Failure> {
        self.bytes += piece.to_string().len() + PIECE_COST;
        if self.bytes > TOOL_CALLS_MAX {
            let message = format!("the model's tool calls have more than {TOOL_CALLS_MAX} bytes");
            return Err(Failure::fatal("too_large", message));
        }
        let Value::Object(mut piece) = piece else {
            return Err(super::bad_stream("a tool call is no object"));
        };
        let index = piece.remove("index").and_then(|index| index.as_u64());
        let id = text(&piece, "id");
        let same = |call: &Call| {
            let known = text(&call.call, "id");
            call.index == index && (id.is_empty() || known.is_empty() || id == known)
        };
        match self.calls.iter().rposition(same) {
            Some(at) => merge(&mut self.calls[at].call, piece),
            None => self.calls.push(Call { index, call: piece }),
        }
        Ok(())
    }

    /// Whether the arguments of every call are whole, so that no piece can follow.
    pub(super) fn are_whole(&self) -> bool {
        self.calls.iter().all(|Call { call, .. }| {
            let arguments = call.get("function").and_then(|function| function.get("arguments"));
            let arguments = arguments.and_then(Value::as_str).unwrap_or_default();
            serde_json::from_str::<IgnoredAny>(arguments).is_ok()
        })
    }

    /// The calls in order, as a message of the assistant has them, if there are any; then there are none.
    pub(super) fn put_out(&mut self) -> Option<Value> {
        let Self { mut calls, .. } = std::mem::take(self);
        calls.sort_by_key(|call| call.index);
        let calls: Vec<Value> = calls
            .into_iter()
            .map(|Call { mut call, .. }| {
                call.entry("type").or_insert("function".into());
                call.into()
            })
            .collect();
        (!calls.is_empty()).then(|| json!({"tool_calls": calls}))
    }
}

fn text<'a>(fields: &'a Map<String, Value>, name: &str) -> &'a str {
    fields.get(name).and_then(Value::as_str).unwrap_or_default()
}

/// Adds a piece to what there is: texts are appended, except for those that come whole and that some servers repeat.
fn merge(fields: &mut Map<String, Value>, piece: Map<String, Value>) {
    for (name, value) in piece {
        match (fields.get_mut(&name), value) {
            (_, Value::Null) => {}
            (Some(Value::Object(fields)), Value::Object(piece)) => merge(fields, piece),
            (Some(Value::String(whole)), Value::String(text))
                if ["id", "type", "name"].contains(&name.as_str()) =>
            {
                if whole.is_empty() {
                    *whole = text;
                }
            }
            (Some(Value::String(gathered)), Value::String(text)) => gathered.push_str(&text),
            (_, value) => {
                fields.insert(name, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gathered(pieces: &[Value]) -> Value {
        let mut tools = Tools::default();
        for piece in pieces {
            tools.take(piece.clone()).unwrap();
        }
        tools.put_out().unwrap()["tool_calls"].take()
    }

    fn call(id: &str, name: &str, arguments: &str) -> Value {
        json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}})
    }

    #[test]
    fn calls_that_come_in_pieces_are_put_together_by_their_index() {
        let pieces = [
            json!({"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": ""}}),
            json!({"index": 0, "function": {"arguments": "{\"x\""}}),
            json!({"index": 1, "id": "b", "type": "function", "function": {"name": "g", "arguments": ""}}),
            json!({"index": 0, "function": {"arguments": ":1}"}}),
            json!({"index": 1, "id": null, "function": {"name": null, "arguments": "{}"}}),
        ];
        assert_eq!(gathered(&pieces), json!([call("a", "f", "{\"x\":1}"), call("b", "g", "{}")]));
        let late = [pieces[2].clone(), pieces[0].clone()];
        assert_eq!(gathered(&late), json!([call("a", "f", ""), call("b", "g", "")]));
    }

    #[test]
    fn servers_that_repeat_the_head_or_give_no_index_are_understood() {
        let repeated = |text: &str| json!({"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": text}});
        assert_eq!(gathered(&[repeated("{"), repeated("}")]), json!([call("a", "f", "{}")]));
        let zero = |id: &str| json!({"index": 0, "id": id, "function": {"name": "f", "arguments": "{}"}});
        assert_eq!(gathered(&[zero("a"), zero("b")]), json!([call("a", "f", "{}"), call("b", "f", "{}")]));
        let none = |id: &str| json!({"id": id, "function": {"name": "f", "arguments": "{}"}});
        assert_eq!(gathered(&[none("a"), none("b")]), json!([call("a", "f", "{}"), call("b", "f", "{}")]));
        let empty =
            [json!({"index": 0, "id": ""}), json!({"index": 0, "id": "a", "function": {"name": "f"}})];
        assert_eq!(gathered(&empty), json!([{"id": "a", "type": "function", "function": {"name": "f"}}]));
    }

    #[test]
    fn fields_that_this_version_does_not_know_are_kept() {
        let pieces = [
            json!({"index": 0, "id": "a", "type": "custom", "custom": {"name": "f", "input": "x"}, "extra": {"n": 1}}),
            json!({"index": 0, "custom": {"input": "y"}, "extra": {"n": 2}}),
        ];
        let expected =
            json!([{"id": "a", "type": "custom", "custom": {"name": "f", "input": "xy"}, "extra": {"n": 2}}]);
        assert_eq!(gathered(&pieces), expected);
    }

    #[test]
    fn calls_are_whole_when_their_arguments_are() {
        let mut tools = Tools::default();
        tools.take(json!({"index": 0, "id": "a", "function": {"name": "f", "arguments": "{\"x\""}})).unwrap();
        assert!(!tools.are_whole());
        tools.take(json!({"index": 0, "function": {"arguments": ":1}"}})).unwrap();
        assert!(tools.are_whole());
        assert!(tools.put_out().is_some() && tools.put_out().is_none());
    }

    #[test]
    fn calls_without_end_are_refused() {
        let mut tools = Tools::default();
        let piece = json!({"index": 0, "function": {"arguments": "x".repeat(1000)}});
        let failure = std::iter::repeat_with(|| tools.take(piece.clone())).find_map(Result::err).unwrap();
        assert_eq!(failure.code, "too_large");
    }
}
