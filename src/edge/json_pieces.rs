//! JSON that is written in pieces, so that no client holds all of it: escaped, a text is up to six
//! times as long. Pure.

use std::collections::VecDeque;
use std::mem;
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::config::PIECE_BYTES;

/// A text of more bytes than this is shared, and escaped when it is written. For shorter ones, that
/// would cost more than it saves.
const SHARED_TEXT: usize = 32;
/// How many bytes of a text are escaped at a time.
const SLICE: usize = PIECE_BYTES / 4;

/// JSON that is not written yet. Its clones share the texts.
#[derive(Clone, Debug, Default)]
pub(super) struct JsonPieces {
    parts: VecDeque<Part>,
    /// How many bytes of the first part are written.
    written: usize,
    /// How many bytes the parts have, without what is written.
    bytes: usize,
}

#[derive(Clone, Debug)]
enum Part {
    /// Written as it is.
    Plain(Arc<String>),
    /// The inside of a text, which is not escaped.
    Text(Arc<String>),
}

impl JsonPieces {
    /// A value. Its long texts are moved, not copied.
    pub(super) fn of(value: Value) -> Self {
        let mut pieces = Self::default();
        pieces.put_value(value);
        pieces
    }

    /// A text.
    pub(super) fn text(text: Arc<String>) -> Self {
        let mut pieces = Self::default();
        pieces.put_text(text);
        pieces
    }

    /// An array.
    pub(super) fn array(items: impl IntoIterator<Item = Self>) -> Self {
        let mut pieces = Self::default();
        pieces.put_array(items, Self::append);
        pieces
    }

    /// An object with these fields, besides those that `object` has.
    pub(super) fn object<const N: usize>(object: Value, fields: [(&str, Self); N]) -> Self {
        let mut pieces = Self::default();
        let others = if let Value::Object(others) = object {
            others
        } else {
            Map::new()
        };
        pieces.put_object(fields, others);
        pieces
    }

    /// Adds text that is written as it is.
    pub(super) fn put(&mut self, plain: &str) {
        if plain.is_empty() {
            return;
        }
        self.bytes += plain.len();
        if let Some(Part::Plain(last)) = self.parts.back_mut()
            && let Some(last) = Arc::get_mut(last)
        {
            last.push_str(plain);
            return;
        }
        self.parts
            .push_back(Part::Plain(Arc::new(plain.to_owned())));
    }

    /// Adds JSON of which nothing is written yet.
    pub(super) fn append(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.parts.extend(other.parts);
    }

    /// Appends what comes next to `out`, until that has about [`PIECE_BYTES`] or everything is
    /// written.
    pub(super) fn write_to(&mut self, out: &mut Vec<u8>) {
        while out.len() < PIECE_BYTES
            && let Some(part) = self.parts.front()
        {
            let (Part::Plain(text) | Part::Text(text)) = part;
            let rest = &text[self.written..];
            let length = rest.floor_char_boundary(SLICE);
            match part {
                Part::Plain(_) => out.extend_from_slice(&rest.as_bytes()[..length]),
                Part::Text(_) => {
                    let json = quoted(&rest[..length]);
                    out.extend_from_slice(&json.as_bytes()[1..json.len() - 1]);
                }
            }
            let is_whole = length == rest.len();
            self.bytes -= length;
            self.written += length;
            if is_whole {
                self.parts.pop_front();
                self.written = 0;
            }
        }
    }

    /// Whether everything is written.
    pub(super) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// About how many bytes it holds in memory.
    pub(super) fn size(&self) -> usize {
        let counters = 2 * size_of::<usize>();
        self.bytes + self.parts.len() * (size_of::<Part>() + size_of::<String>() + counters)
    }

    fn put_value(&mut self, value: Value) {
        match value {
            Value::String(text) => self.put_text(Arc::new(text)),
            Value::Array(items) => self.put_array(items, Self::put_value),
            Value::Object(fields) => self.put_object([], fields),
            Value::Null | Value::Bool(_) | Value::Number(_) => self.put(&value.to_string()),
        }
    }

    fn put_array<T>(&mut self, items: impl IntoIterator<Item = T>, put_item: fn(&mut Self, T)) {
        self.put("[");
        for (index, item) in items.into_iter().enumerate() {
            if index > 0 {
                self.put(",");
            }
            put_item(self, item);
        }
        self.put("]");
    }

    fn put_text(&mut self, text: Arc<String>) {
        if text.len() <= SHARED_TEXT {
            self.put(&quoted(&text));
            return;
        }
        self.put("\"");
        self.bytes += text.len();
        self.parts.push_back(Part::Text(text));
        self.put("\"");
    }

    fn put_object<const N: usize>(
        &mut self,
        fields: [(&str, Self); N],
        others: Map<String, Value>,
    ) {
        let mut separator = "{";
        for (name, value) in fields {
            self.put(mem::replace(&mut separator, ","));
            self.put(&quoted(name));
            self.put(":");
            self.append(value);
        }
        for (name, value) in others {
            self.put(mem::replace(&mut separator, ","));
            self.put_text(Arc::new(name));
            self.put(":");
            self.put_value(value);
        }
        self.put(if separator == "{" { "{}" } else { "}" });
    }
}

/// The text as JSON.
fn quoted(text: &str) -> String {
    serde_json::to_string(text).unwrap_or_else(|_| unreachable!("text is always JSON"))
}

#[cfg(test)]
impl JsonPieces {
    /// What is not written yet.
    pub(super) fn to_value(&self) -> Value {
        let mut pieces = self.clone();
        let mut json = Vec::new();
        while !pieces.is_empty() {
            let mut piece = Vec::new();
            pieces.write_to(&mut piece);
            json.extend(piece);
        }
        serde_json::from_slice(&json).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn long(text: &str) -> Arc<String> {
        Arc::new(text.repeat(100_000))
    }

    #[test]
    fn a_value_in_pieces_is_the_same_json() {
        for value in [
            json!(null),
            json!({}),
            json!([]),
            json!([[], {}, [1, -2.5, true, null, ""]]),
            json!({"a": {"b": [{"c": "é\"\\\n\u{1}"}]}, "short": "x".repeat(SHARED_TEXT)}),
            json!({("x".repeat(100)): ["\u{1}é".repeat(50_000), "y".repeat(SHARED_TEXT + 1)]}),
        ] {
            assert_eq!(JsonPieces::of(value.clone()).to_value(), value);
        }
    }

    #[test]
    fn an_object_has_its_own_fields_and_the_others() {
        let text = long("\u{1}é");
        let items = [
            JsonPieces::text(Arc::clone(&text)),
            JsonPieces::of(json!(1)),
        ];
        let pieces = JsonPieces::object(
            json!({"a": 1}),
            [
                ("items", JsonPieces::array(items)),
                ("none", JsonPieces::array([])),
            ],
        );
        let expected = json!({"a": 1, "items": [*text, 1], "none": []});
        assert_eq!(pieces.to_value(), expected);
        assert_eq!(JsonPieces::object(json!({}), []).to_value(), json!({}));
        let only = JsonPieces::object(json!({}), [("a", JsonPieces::of(json!(1)))]);
        assert_eq!(only.to_value(), json!({"a": 1}));
    }

    #[test]
    fn no_piece_is_larger_than_a_few_turns_and_what_is_written_is_not_held() {
        let mut pieces = JsonPieces::text(long("\u{1}"));
        let whole = pieces.size();
        assert!((100_000..100_500).contains(&whole), "{whole}");
        let mut written = 0;
        while !pieces.is_empty() {
            let mut piece = Vec::new();
            pieces.write_to(&mut piece);
            assert!(piece.len() <= PIECE_BYTES + 6 * SLICE);
            written += piece.len();
        }
        assert_eq!((written, pieces.size()), (600_002, 0));
    }

    #[test]
    fn clones_share_their_texts() {
        let text = long("x");
        let pieces = JsonPieces::text(Arc::clone(&text));
        let clones = [pieces.clone(), pieces.clone()];
        let mut all = JsonPieces::array(clones);
        assert_eq!(Arc::strong_count(&text), 4);
        all.put(" ");
        assert_eq!(pieces.to_value(), json!(*text));
        assert_eq!(all.to_value(), json!([*text, *text]));
    }
}
