//! Reads events as workers write them, on the path of every delivery: serde's general machinery
//! takes several times the instructions. It reads less than the codec does (no floating-point
//! numbers, no binary values, only text as keys, and nothing that is invalid) and gives up on the
//! rest, which the codec then reads. What it reads, it reads as the codec does.

/// How many levels deep a value may nest; an event with more is left to the codec.
const LEVELS_MAX: usize = 24;

/// The fields of an event that readers need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HeadFields<'a> {
    pub(super) event_type: &'a str,
    pub(super) job: &'a str,
    pub(super) seq: u64,
    pub(super) attempt: u32,
}

/// The fields of the event that `payload` is, and that nothing follows; `None` if the codec has to
/// find out.
pub(super) fn head(payload: &[u8]) -> Option<HeadFields<'_>> {
    let mut reader = DirectReader(payload);
    let DirectItem::Map(fields) = reader.next()? else {
        return None;
    };
    let mut event_type = None;
    let mut job = None;
    let mut seq = None;
    let mut attempt = None;
    for _ in 0..fields {
        let name = reader.text()?;
        let is_first = match name {
            b"type" => event_type.replace(reader.utf8()?).is_none(),
            b"job" => job.replace(reader.utf8()?).is_none(),
            b"seq" => seq.replace(reader.unsigned()?).is_none(),
            b"attempt" => attempt
                .replace(reader.unsigned()?.try_into().ok()?)
                .is_none(),
            _ => reader.skip(LEVELS_MAX).is_some(),
        };
        if !is_first {
            return None;
        }
    }
    let head = HeadFields {
        event_type: event_type?,
        job: job?,
        seq: seq?,
        attempt: attempt.unwrap_or_default(),
    };
    reader.0.is_empty().then_some(head)
}

/// Appends the value at the start of `payload` as JSON; `None` if the codec has to do it, after
/// which `out` may have a part of it.
pub(super) fn write_json(payload: &[u8], out: &mut Vec<u8>) -> Option<()> {
    DirectReader(payload).write_json(out, LEVELS_MAX)
}

/// The longest number with a fraction as JSON, in bytes: `-2.2250738585072014e-308`.
const FLOAT_MAX: usize = 24;

/// About how many bytes `payload` has as JSON, where each number with a fraction counts as the
/// longest one: formatting it is slow. `None` if it has a binary value or is invalid. The nesting
/// does not matter, because every value adds its own bytes, and one that separates it from others.
pub(super) fn json_len(payload: &[u8]) -> Option<usize> {
    let mut reader = DirectReader(payload);
    let mut len = 0;
    while let Some(&marker) = reader.0.first() {
        len += 1 + match marker {
            0xCA => reader.bytes(5).map(|_| FLOAT_MAX)?,
            0xCB => reader.bytes(9).map(|_| FLOAT_MAX)?,
            _ => match reader.next()? {
                DirectItem::Nil | DirectItem::Bool(true) => 4,
                DirectItem::Bool(false) => 5,
                DirectItem::Unsigned(number) => digits(number),
                DirectItem::Signed(number) => 1 + digits(number.unsigned_abs()),
                DirectItem::Text(text) => 2 + escaped_len(text),
                DirectItem::List(_) | DirectItem::Map(_) => 2,
            },
        };
    }
    Some(len)
}

fn digits(number: u64) -> usize {
    number.checked_ilog10().unwrap_or(0) as usize + 1
}

/// A value, or the start of one that has others in it.
enum DirectItem<'a> {
    Nil,
    Bool(bool),
    Unsigned(u64),
    Signed(i64),
    Text(&'a [u8]),
    List(usize),
    Map(usize),
}

/// What is not read yet.
struct DirectReader<'a>(&'a [u8]);

impl<'a> DirectReader<'a> {
    /// The next value (<https://github.com/msgpack/msgpack/blob/master/spec.md>).
    fn next(&mut self) -> Option<DirectItem<'a>> {
        let [marker] = self.array()?;
        Some(match marker {
            0x00..=0x7F => DirectItem::Unsigned(marker.into()),
            0x80..=0x8F => DirectItem::Map((marker & 0xF).into()),
            0x90..=0x9F => DirectItem::List((marker & 0xF).into()),
            0xA0..=0xBF => DirectItem::Text(self.bytes((marker & 0x1F).into())?),
            0xC0 => DirectItem::Nil,
            0xC2 => DirectItem::Bool(false),
            0xC3 => DirectItem::Bool(true),
            0xCC => DirectItem::Unsigned(self.u8()?.into()),
            0xCD => DirectItem::Unsigned(self.u16()?.into()),
            0xCE => DirectItem::Unsigned(self.u32()?.into()),
            0xCF => DirectItem::Unsigned(u64::from_be_bytes(self.array()?)),
            0xD0 => DirectItem::Signed(i8::from_be_bytes(self.array()?).into()),
            0xD1 => DirectItem::Signed(i16::from_be_bytes(self.array()?).into()),
            0xD2 => DirectItem::Signed(i32::from_be_bytes(self.array()?).into()),
            0xD3 => DirectItem::Signed(i64::from_be_bytes(self.array()?)),
            0xD9 => {
                let length = self.u8()?;
                DirectItem::Text(self.bytes(length.into())?)
            }
            0xDA => {
                let length = self.u16()?;
                DirectItem::Text(self.bytes(length.into())?)
            }
            0xDB => {
                let length = self.u32()?;
                DirectItem::Text(self.bytes(length as usize)?)
            }
            0xDC => DirectItem::List(self.u16()?.into()),
            0xDD => DirectItem::List(self.u32()? as usize),
            0xDE => DirectItem::Map(self.u16()?.into()),
            0xDF => DirectItem::Map(self.u32()? as usize),
            0xE0..=0xFF => DirectItem::Signed((marker as i8).into()),
            _ => return None,
        })
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (array, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*array)
    }

    fn bytes(&mut self, length: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(bytes)
    }

    fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_be_bytes)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    fn text(&mut self) -> Option<&'a [u8]> {
        // First what almost every name is.
        if let Some((marker @ 0xA0..=0xBF, rest)) = self.0.split_first() {
            let (text, rest) = rest.split_at_checked((marker & 0x1F).into())?;
            self.0 = rest;
            return Some(text);
        }
        let DirectItem::Text(text) = self.next()? else {
            return None;
        };
        Some(text)
    }

    fn utf8(&mut self) -> Option<&'a str> {
        std::str::from_utf8(self.text()?).ok()
    }

    fn unsigned(&mut self) -> Option<u64> {
        let DirectItem::Unsigned(number) = self.next()? else {
            return None;
        };
        Some(number)
    }

    /// Reads over one value.
    fn skip(&mut self, levels: usize) -> Option<()> {
        let inside = match self.next()? {
            DirectItem::List(items) => items,
            DirectItem::Map(fields) => fields.checked_mul(2)?,
            DirectItem::Nil
            | DirectItem::Bool(_)
            | DirectItem::Unsigned(_)
            | DirectItem::Signed(_)
            | DirectItem::Text(_) => {
                return Some(());
            }
        };
        let levels = levels.checked_sub(1)?;
        for _ in 0..inside {
            self.skip(levels)?;
        }
        Some(())
    }

    fn write_json(&mut self, out: &mut Vec<u8>, levels: usize) -> Option<()> {
        match self.next()? {
            DirectItem::Nil => out.extend_from_slice(b"null"),
            DirectItem::Bool(true) => out.extend_from_slice(b"true"),
            DirectItem::Bool(false) => out.extend_from_slice(b"false"),
            DirectItem::Unsigned(number) => serde_json::to_writer(out, &number).ok()?,
            DirectItem::Signed(number) => serde_json::to_writer(out, &number).ok()?,
            DirectItem::Text(text) => write_text(text, out)?,
            DirectItem::List(items) => {
                let levels = levels.checked_sub(1)?;
                out.push(b'[');
                for item in 0..items {
                    if item > 0 {
                        out.push(b',');
                    }
                    self.write_json(out, levels)?;
                }
                out.push(b']');
            }
            DirectItem::Map(fields) => {
                let levels = levels.checked_sub(1)?;
                out.push(b'{');
                for field in 0..fields {
                    if field > 0 {
                        out.push(b',');
                    }
                    let name = self.text()?;
                    if let Some(written) = known_name(name) {
                        out.extend_from_slice(written);
                    } else {
                        write_text(name, out)?;
                        out.push(b':');
                    }
                    self.write_json(out, levels)?;
                }
                out.push(b'}');
            }
        }
        Some(())
    }
}

/// A name that most events have, as JSON with its colon.
fn known_name(name: &[u8]) -> Option<&'static [u8]> {
    let written: &[u8] = match name {
        b"type" => br#""type":"#,
        b"job" => br#""job":"#,
        b"seq" => br#""seq":"#,
        b"attempt" => br#""attempt":"#,
        b"ts" => br#""ts":"#,
        b"text" => br#""text":"#,
        b"channel" => br#""channel":"#,
        _ => return None,
    };
    Some(written)
}

/// A JSON string (RFC 8259, section 7).
fn write_text(text: &[u8], out: &mut Vec<u8>) -> Option<()> {
    out.reserve(text.len() + 2);
    out.push(b'"');
    if is_plain(text) {
        out.extend_from_slice(text);
    } else {
        // It fails here, so that what follows can copy bytes.
        std::str::from_utf8(text).ok()?;
        let mut rest = text;
        while let Some(at) = rest.iter().position(|byte| is_escaped(*byte)) {
            out.extend_from_slice(&rest[..at]);
            write_escape(rest[at], out);
            rest = &rest[at + 1..];
        }
        out.extend_from_slice(rest);
    }
    out.push(b'"');
    Some(())
}

/// Whether a text is ASCII without anything to escape. Eight bytes at a time, since almost every
/// text of an event is; may be `false` for others that are.
fn is_plain(text: &[u8]) -> bool {
    const fn each(byte: u8) -> u64 {
        u64::from_ne_bytes([byte; 8])
    }
    // A byte below 0x80 sets the highest bit of `byte - least` if it is less, and that of
    // `(byte ^ other) - 1` if it is the other byte.
    let is_plain = |bytes: &[u8; 8]| {
        let word = u64::from_ne_bytes(*bytes);
        let control = word.wrapping_sub(each(0x20));
        let quote = (word ^ each(b'"')).wrapping_sub(each(1));
        let backslash = (word ^ each(b'\\')).wrapping_sub(each(1));
        (word | control | quote | backslash) & each(0x80) == 0
    };
    match (text.as_chunks(), text.last_chunk()) {
        ((words, _), Some(last)) => words.iter().all(is_plain) && is_plain(last),
        (_, None) => text
            .iter()
            .all(|byte| byte.is_ascii() && !is_escaped(*byte)),
    }
}

fn is_escaped(byte: u8) -> bool {
    byte < 0x20 || byte == b'"' || byte == b'\\'
}

/// How many bytes a text has in JSON without its quotes.
fn escaped_len(text: &[u8]) -> usize {
    if is_plain(text) {
        return text.len();
    }
    let lens = text.iter().map(|byte| match byte {
        0x08 | b'\t' | b'\n' | 0x0C | b'\r' | b'"' | b'\\' => 2_usize,
        0..0x20 => 6,
        _ => 1,
    });
    lens.sum()
}

fn write_escape(byte: u8, out: &mut Vec<u8>) {
    let short = match byte {
        0x08 => b'b',
        b'\t' => b't',
        b'\n' => b'n',
        0x0C => b'f',
        b'\r' => b'r',
        b'"' | b'\\' => byte,
        _ => {
            const DIGITS: &[u8; 16] = b"0123456789abcdef";
            out.extend_from_slice(b"\\u00");
            out.push(DIGITS[usize::from(byte >> 4)]);
            out.push(DIGITS[usize::from(byte & 0xF)]);
            return;
        }
    };
    out.push(b'\\');
    out.push(short);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::wire::codec;
    use crate::wire::transcode::transcode;

    fn by_codec(payload: &[u8]) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        let mut reader = rmp_serde::Deserializer::from_read_ref(payload);
        transcode(&mut reader, &mut serde_json::Serializer::new(&mut out)).ok()?;
        Some(out)
    }

    fn directly(payload: &[u8]) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        write_json(payload, &mut out).map(|()| out)
    }

    fn values() -> impl Strategy<Value = Value> {
        let scalars = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            (-200_i64..70_000).prop_map(Value::from),
            ".{0,40}".prop_map(Value::from),
            "[\u{0}-\u{7F}]{0,300}".prop_map(Value::from),
        ];
        scalars.prop_recursive(6, 64, 20, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..20).prop_map(Value::from),
                prop::collection::btree_map(".{0,8}", inner, 0..20)
                    .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_workers_write_is_converted_as_by_the_codec(value in values()) {
            let payload = rmp_serde::to_vec_named(&value).unwrap();
            prop_assert_eq!(directly(&payload), Some(value.to_string().into_bytes()));
        }

        #[test]
        fn the_json_of_what_workers_write_is_measured_and_not_longer(value in values()) {
            let payload = rmp_serde::to_vec_named(&value).unwrap();
            let json = value.to_string().len();
            let measured = json_len(&payload).unwrap();
            // At most the separators that a value alone and the first one of a list do not have.
            prop_assert!((json..=json + 1 + payload.len()).contains(&measured), "{} {}", json, measured);
        }

        #[test]
        fn any_bytes_can_be_measured(payload: Vec<u8>) {
            let _ = json_len(&payload);
        }

        #[test]
        fn any_bytes_are_converted_as_by_the_codec_or_left_to_it(payload: Vec<u8>) {
            if let Some(json) = directly(&payload) {
                prop_assert_eq!(Some(json), by_codec(&payload));
            }
        }

        #[test]
        fn a_damaged_event_is_read_as_by_the_codec_or_left_to_it(value in values(), at: prop::sample::Index, byte: u8) {
            let event = json!({"type": "model:chunk:v1", "job": "j1", "x": value, "seq": 7, "attempt": 1});
            let mut payload = rmp_serde::to_vec_named(&event).unwrap();
            let at = at.index(payload.len());
            payload[at] = byte;
            if let Some(json) = directly(&payload) {
                prop_assert_eq!(Some(json), by_codec(&payload));
            }
            if let Some(head) = head(&payload) {
                let of_codec: crate::wire::stored::Head<'_> = codec::from_msgpack(&payload).unwrap();
                prop_assert_eq!(crate::wire::stored::Head::of(head), of_codec);
            }
        }
    }

    #[test]
    fn numbers_with_a_fraction_are_measured_as_the_longest_one() {
        let value = json!([1.5, -2.2250738585072014e-308]);
        let payload = rmp_serde::to_vec_named(&value).unwrap();
        assert_eq!(json_len(&payload), Some(1 + 2 + 2 * (1 + FLOAT_MAX)));
        assert_eq!(value[1].to_string().len(), FLOAT_MAX);
        assert_eq!(json_len(b"\xC4\x01\x07"), None, "a binary value");
        assert_eq!(json_len(b"\xCB\x01"), None, "cut off");
    }

    #[test]
    fn the_names_of_an_event_are_written_as_others_are() {
        let names = ["type", "job", "seq", "attempt", "ts", "text", "channel"];
        for name in names {
            assert!(known_name(name.as_bytes()).is_some(), "{name}");
            for name in [name.to_owned(), format!("{name}s"), name.to_uppercase()] {
                let value = json!({ name: 1 });
                let payload = rmp_serde::to_vec_named(&value).unwrap();
                assert_eq!(directly(&payload), Some(value.to_string().into_bytes()));
            }
        }
    }

    #[test]
    fn the_fields_of_an_event_are_found_in_any_order() {
        let event = json!({"seq": 300, "x": [{"seq": 1}, "é"], "job": "j1", "type": "t", "attempt": 2, "z": {}});
        let payload = rmp_serde::to_vec_named(&event).unwrap();
        let fields = HeadFields {
            event_type: "t",
            job: "j1",
            seq: 300,
            attempt: 2,
        };
        assert_eq!(head(&payload), Some(fields));
        let longer = [payload.as_slice(), b"\xC0"].concat();
        assert_eq!(head(&longer), None, "bytes follow");
        assert_eq!(head(&payload[..payload.len() - 1]), None, "it is cut off");
    }

    #[test]
    fn what_only_the_codec_reads_is_left_to_it() {
        let nested = [vec![0x91; LEVELS_MAX + 1], vec![0xC0]].concat();
        for (payload, what) in [
            (
                b"\xCB\x3F\xF0\0\0\0\0\0\0".to_vec(),
                "a floating-point number",
            ),
            (b"\xC4\x01\x07".to_vec(), "a binary value"),
            (b"\xD4\x01\x07".to_vec(), "an extension"),
            (b"\x81\x01\x02".to_vec(), "a number as key"),
            (b"\xA1\xFF".to_vec(), "not UTF-8"),
            (b"\xDD\xFF\xFF\xFF\xFF\xC0".to_vec(), "cut off"),
            (nested, "many levels"),
        ] {
            assert_eq!(directly(&payload), None, "{what}");
        }
        let nested = [vec![0x91; LEVELS_MAX], vec![0xC0]].concat();
        assert_eq!(directly(&nested), by_codec(&nested), "fewer levels");
    }
}
