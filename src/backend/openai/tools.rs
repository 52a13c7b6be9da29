//! Assembles tool calls, which a server sends in pieces. Pure. It validates no call: the program
//! that runs the tool checks the arguments.

use std::mem;

use serde::de::IgnoredAny;
use serde_json::{Map, Value, json};

use crate::backend::{Failure, FailureCode, surrogates};
use crate::config::{TOOL_CALLS_MAX, TOOL_PIECE_COST};

/// Calls that were not output yet, as far as they have arrived.
#[derive(Debug, Default)]
pub(super) struct ToolCalls {
    calls: Vec<PartialCall>,
    bytes: usize,
}

#[derive(Debug)]
struct PartialCall {
    slot: Slot,
    call: Map<String, Value>,
}

/// How a piece says which call it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Slot {
    /// Its `index`.
    Index(u64),
    /// Its position in a list of several pieces without distinct indexes.
    Position(usize),
    /// It is the only piece of its list, and has no meaningful `index`.
    Last,
}

impl ToolCalls {
    /// Adds a piece of a call; `position` is its position in its list, if the list has several
    /// without distinct indexes.
    ///
    /// A piece belongs to the call with its id. Otherwise it belongs to the last call of its slot,
    /// even with another id, unless its name begins a new call: some servers give each piece its
    /// own id, and some give several calls the index 0, or no index.
    pub(super) fn push(&mut self, piece: &Value, position: Option<usize>) -> Result<(), Failure> {
        self.bytes += piece.to_string().len() + TOOL_PIECE_COST;
        if self.bytes > TOOL_CALLS_MAX {
            let message = format!("the model's tool calls have more than {TOOL_CALLS_MAX} bytes");
            return Err(Failure::fatal(FailureCode::TooLarge, message));
        }
        let mut piece = piece.as_object().cloned().unwrap_or_default();
        let index = piece
            .remove("index")
            .and_then(|index| match index.as_str() {
                Some(text) => text.parse().ok(),
                None => index.as_u64(),
            });
        let slot = match (position, index) {
            (Some(position), _) => Slot::Position(position),
            // An index means nothing after calls that had none of their own.
            (None, Some(_))
                if self
                    .calls
                    .iter()
                    .any(|call| matches!(call.slot, Slot::Position(_))) =>
            {
                Slot::Last
            }
            (None, Some(index)) => Slot::Index(index),
            (None, None) => Slot::Last,
        };
        arguments_as_text(&mut piece);
        let id = text(&piece, "id");
        let by_id = self
            .calls
            .iter()
            .rposition(|call| !id.is_empty() && text(&call.call, "id") == id);
        let by_slot = || {
            self.calls
                .iter()
                .rposition(|call| slot == Slot::Last || call.slot == slot)
        };
        match by_id.or_else(by_slot).and_then(|at| self.calls.get_mut(at)) {
            Some(call) if !begins_another(&call.call, &piece) => merge(&mut call.call, piece),
            Some(_) | None => self.calls.push(PartialCall { slot, call: piece }),
        }
        Ok(())
    }

    /// Whether the arguments of every call are complete, so that no more pieces can follow.
    pub(super) fn are_whole(&self) -> bool {
        self.calls
            .iter()
            .all(|PartialCall { call, .. }| is_json(function(call, "arguments")))
    }

    /// Removes and returns the calls in order, as an assistant message; `None` without calls.
    pub(super) fn drain(&mut self) -> Option<Value> {
        let Self { mut calls, .. } = mem::take(self);
        // A stable sort: calls with the same index stay in the order in which they came.
        if calls.iter().all(|call| matches!(call.slot, Slot::Index(_))) {
            calls.sort_by_key(|call| call.slot);
        }
        let calls: Vec<Value> = calls
            .into_iter()
            .map(|PartialCall { mut call, .. }| {
                call.entry("type").or_insert("function".into());
                let mut call = call.into();
                surrogates::settle(&mut call);
                call
            })
            .collect();
        (!calls.is_empty()).then(|| json!({"tool_calls": calls}))
    }
}

/// Whether a piece in the slot of `call` begins another call.
fn begins_another(call: &Map<String, Value>, piece: &Map<String, Value>) -> bool {
    let known = function(call, "name");
    let name = function(piece, "name");
    let gathered = function(call, "arguments");
    let arguments = function(piece, "arguments");
    let known_id = text(call, "id");
    let id = text(piece, "id");
    if known.is_empty() || name.is_empty() || !id.is_empty() && id == known_id {
        return false;
    }
    let other_id = !id.is_empty() && !known_id.is_empty();
    // The same name again may be a repeated head, unless the previous call is already complete.
    name != known
        || is_json(gathered) && (other_id || !arguments.is_empty() && arguments != gathered)
}

fn is_json(text: &str) -> bool {
    serde_json::from_str::<IgnoredAny>(text).is_ok()
}

fn text<'a>(fields: &'a Map<String, Value>, name: &str) -> &'a str {
    fields.get(name).and_then(Value::as_str).unwrap_or_default()
}

/// A text field of a call's function.
fn function<'a>(call: &'a Map<String, Value>, name: &str) -> &'a str {
    call.get("function")
        .and_then(|function| function.get(name))
        .and_then(Value::as_str)
        .unwrap_or_default()
}

/// Makes the arguments text; some servers send them as JSON.
fn arguments_as_text(piece: &mut Map<String, Value>) {
    if let Some(arguments) = piece
        .get_mut("function")
        .and_then(|function| function.get_mut("arguments"))
        && (arguments.is_object() || arguments.is_array())
    {
        *arguments = arguments.to_string().into();
    }
}

/// Adds a piece to a call: text is appended, except in fields that are sent whole and that some
/// servers repeat.
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
            (Some(Value::String(gathered)), Value::String(text)) if name == "arguments" => {
                // Some servers repeat the whole arguments at the end, or send an empty object
                // first.
                if gathered == "{}" && text.starts_with('{') {
                    *gathered = text;
                } else if *gathered != text || !is_json(gathered) {
                    gathered.push_str(&text);
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
        let mut tools = ToolCalls::default();
        for piece in pieces {
            tools.push(piece, None).unwrap();
        }
        tools.drain().unwrap()["tool_calls"].take()
    }

    fn call(id: &str, name: &str, arguments: &str) -> Value {
        json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}})
    }

    #[test]
    fn pieces_are_assembled_by_their_index() {
        let pieces = [
            json!({"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": ""}}),
            json!({"index": 0, "function": {"arguments": "{\"x\""}}),
            json!({"index": 1, "id": "b", "type": "function", "function": {"name": "g", "arguments": ""}}),
            json!({"index": 0, "function": {"arguments": ":1}"}}),
            json!({"index": 1, "id": null, "function": {"name": null, "arguments": "{}"}}),
        ];
        assert_eq!(
            gathered(&pieces),
            json!([call("a", "f", "{\"x\":1}"), call("b", "g", "{}")])
        );
        let late = [pieces[2].clone(), pieces[0].clone()];
        assert_eq!(
            gathered(&late),
            json!([call("a", "f", ""), call("b", "g", "")])
        );
    }

    #[test]
    fn a_repeated_head_and_a_missing_index_are_accepted() {
        let repeated = |text: &str| json!({"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": text}});
        assert_eq!(
            gathered(&[repeated("{"), repeated("}")]),
            json!([call("a", "f", "{}")])
        );
        let zero =
            |id: &str| json!({"index": 0, "id": id, "function": {"name": "f", "arguments": "{}"}});
        assert_eq!(
            gathered(&[zero("a"), zero("b")]),
            json!([call("a", "f", "{}"), call("b", "f", "{}")])
        );
        let none = |id: &str| json!({"id": id, "function": {"name": "f", "arguments": "{}"}});
        assert_eq!(
            gathered(&[none("a"), none("b")]),
            json!([call("a", "f", "{}"), call("b", "f", "{}")])
        );
        let empty = [
            json!({"index": 0, "id": ""}),
            json!({"index": 0, "id": "a", "function": {"name": "f"}}),
        ];
        assert_eq!(
            gathered(&empty),
            json!([{"id": "a", "type": "function", "function": {"name": "f"}}])
        );
    }

    /// The calls of lists of pieces, one list per event.
    fn listed(lists: &[Value]) -> Value {
        let mut tools = ToolCalls::default();
        for list in lists {
            let list = list.as_array().unwrap();
            for (at, piece) in list.iter().enumerate() {
                tools.push(piece, (list.len() > 1).then_some(at)).unwrap();
            }
        }
        tools.drain().unwrap()["tool_calls"].take()
    }

    #[test]
    fn a_call_keeps_the_id_of_its_first_piece() {
        let head = json!({"index": 0, "id": "a", "function": {"name": "f", "arguments": ""}});
        for ids in [["b", "b"], ["b", "c"], ["", ""], ["a", "b"]] {
            let piece = |id: &str, text: &str| json!({"index": 0, "id": id, "function": {"arguments": text}});
            let pieces = [head.clone(), piece(ids[0], "{\"x\":"), piece(ids[1], "1}")];
            assert_eq!(
                gathered(&pieces),
                json!([call("a", "f", "{\"x\":1}")]),
                "{ids:?}"
            );
            // The same without an index, and with a name in each piece.
            let without = pieces.clone().map(|mut piece| {
                piece.as_object_mut().unwrap().remove("index");
                piece["function"]["name"] = "f".into();
                piece
            });
            assert_eq!(
                gathered(&without),
                json!([call("a", "f", "{\"x\":1}")]),
                "{ids:?}"
            );
        }
    }

    #[test]
    fn a_new_id_and_a_new_name_begin_a_new_call() {
        let piece = |id: Value, name: Value, text: &str| json!({"index": 0, "id": id, "function": {"name": name, "arguments": text}});
        let pieces = [
            piece(json!("a"), json!("f"), ""),
            piece(Value::Null, Value::Null, "{}"),
            piece(json!("b"), json!("g"), ""),
            piece(json!("x"), json!(""), "{\"y\""),
            piece(Value::Null, Value::Null, ":2}"),
        ];
        let expected = json!([call("a", "f", "{}"), call("b", "g", "{\"y\":2}")]);
        assert_eq!(gathered(&pieces), expected);
        // Interleaved, each piece with the id of its call.
        let order = [0, 2, 1, 3, 4].map(|at: usize| {
            let mut piece = pieces[at].clone();
            piece["id"] = if at < 2 { "a".into() } else { "b".into() };
            piece
        });
        assert_eq!(gathered(&order), expected);
        // The same function again, by ids or by arguments.
        let again = [
            piece(json!("a"), json!("f"), "{}"),
            piece(json!("b"), json!("f"), ""),
            piece(json!("c"), Value::Null, "{\"y\":2}"),
        ];
        assert_eq!(
            gathered(&again),
            json!([call("a", "f", "{}"), call("b", "f", "{\"y\":2}")])
        );
        let same = ["{\"n\":1}", "{\"n\":2}"].map(|text| piece(json!(""), json!("f"), text));
        let expected = json!([call("", "f", "{\"n\":1}"), call("", "f", "{\"n\":2}")]);
        let mut calls = gathered(&same);
        for call in calls.as_array_mut().unwrap() {
            call["type"] = "function".into();
        }
        assert_eq!(calls, expected);
    }

    #[test]
    fn several_calls_in_one_list_need_no_index() {
        let whole =
            |id: &str, name: &str| json!({"id": id, "function": {"name": name, "arguments": "{}"}});
        let both = json!([call("a", "f", "{}"), call("b", "f", "{}")]);
        assert_eq!(listed(&[json!([whole("a", "f"), whole("b", "f")])]), both);
        let heads =
            json!([{"id": "a", "function": {"name": "f"}}, {"id": "b", "function": {"name": "f"}}]);
        let bodies = json!([{"function": {"arguments": "{"}}, {"function": {"arguments": "{"}}]);
        let ends = json!([{"id": "x", "function": {"arguments": "}"}}, {"id": "y", "function": {"arguments": "}"}}]);
        assert_eq!(listed(&[heads, bodies, ends]), both);
        assert_eq!(
            listed(&[json!([whole("a", "f")]), json!([whole("b", "f")])]),
            both
        );
    }

    #[test]
    fn arguments_may_be_json_or_come_twice() {
        let piece = |arguments: Value| json!({"index": 0, "id": "a", "function": {"name": "f", "arguments": arguments}});
        let expected = json!([call("a", "f", "{\"x\":1}")]);
        let text = json!("{\"x\":1}");
        assert_eq!(gathered(&[piece(json!({"x": 1}))]), expected);
        assert_eq!(
            gathered(&[piece(text.clone()), piece(text.clone())]),
            expected
        );
        assert_eq!(
            gathered(&[
                piece(json!({})),
                piece(json!("{\"x\"")),
                piece(json!(":1}"))
            ]),
            expected
        );
        assert_eq!(gathered(&[piece(Value::Null), piece(text)]), expected);
    }

    #[test]
    fn fields_that_this_version_does_not_know_are_kept() {
        let pieces = [
            json!({"index": 0, "id": "a", "type": "custom", "custom": {"name": "f", "input": "x"}, "extra": {"n": 1}}),
            json!({"index": 0, "custom": {"input": "y"}, "extra": {"n": 2}}),
        ];
        let expected = json!([{"id": "a", "type": "custom", "custom": {"name": "f", "input": "xy"}, "extra": {"n": 2}}]);
        assert_eq!(gathered(&pieces), expected);
    }

    #[test]
    fn calls_are_whole_when_their_arguments_are() {
        let mut tools = ToolCalls::default();
        tools
            .push(
                &json!({"index": 0, "id": "a", "function": {"name": "f", "arguments": "{\"x\""}}),
                None,
            )
            .unwrap();
        assert!(!tools.are_whole());
        tools
            .push(&json!({"index": 0, "function": {"arguments": ":1}"}}), None)
            .unwrap();
        assert!(tools.are_whole());
        assert!(tools.drain().is_some() && tools.drain().is_none());
    }

    #[test]
    fn calls_without_end_are_refused() {
        let mut tools = ToolCalls::default();
        let piece = json!({"index": 0, "function": {"arguments": "x".repeat(1000)}});
        let failure = std::iter::repeat_with(|| tools.push(&piece, None))
            .find_map(Result::err)
            .unwrap();
        assert_eq!(failure.code, "too_large");
    }
}
