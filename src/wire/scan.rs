//! Measures JSON values before they are built in memory: one pass over the text finds their size in
//! both encodings. It checks only their depth.

use std::fmt;
use std::io::Write;

use serde::Serialize;
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use super::limits::VALUE_DEPTH_MAX;
use super::writers::{Counter, msgpack_len};

/// The size of a value in bytes. Repeated keys are counted each time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Size {
    /// As JSON without whitespace.
    pub(super) json: usize,
    /// As MessagePack.
    pub(super) msgpack: usize,
    /// About how much a [`Value`] holds in memory besides the `Value` itself.
    pub(super) memory: usize,
}

/// About how many bytes a JSON object with this many fields holds in memory, without their names
/// and values. A node of the map takes 640 bytes. It has room for 11 entries, and in a large map at
/// least 6.
pub const fn map_memory(fields: usize) -> usize {
    fields.div_ceil(6) * 640
}

/// Measures a JSON value.
///
/// # Errors
/// When it is not valid JSON or nests too deep.
pub(super) fn measure(text: &str) -> Result<Size, serde_json::Error> {
    let mut reader = serde_json::Deserializer::from_str(text);
    let size = size_of_next(&mut reader)?;
    reader.end()?;
    Ok(size)
}

/// Measures a value that is in memory already.
///
/// # Errors
/// When it nests too deep.
pub(super) fn measure_value(value: &Value) -> Result<Size, serde_json::Error> {
    size_of_next(value)
}

fn size_of_next<'de, D: Deserializer<'de>>(from: D) -> Result<Size, D::Error> {
    let mut counter = Counter(0);
    let mut msgpack = 0;
    let mut memory = 0;
    JsonScan {
        out: &mut counter,
        msgpack: &mut msgpack,
        memory: &mut memory,
        before: b"",
        levels: VALUE_DEPTH_MAX,
    }
    .deserialize(from)?;
    Ok(Size {
        json: counter.0,
        msgpack,
        memory,
    })
}

/// Writes a value of another format as JSON.
///
/// # Errors
/// An error of the format, or of `out`.
pub(super) fn transcode<'de, D: Deserializer<'de>>(
    from: D,
    out: &mut impl Write,
    levels: usize,
) -> Result<(), D::Error> {
    JsonScan {
        out,
        msgpack: &mut 0,
        memory: &mut 0,
        before: b"",
        levels,
    }
    .deserialize(from)
}

/// Writes one value as JSON and counts its size as MessagePack and in memory.
struct JsonScan<'a, W> {
    out: &'a mut W,
    msgpack: &'a mut usize,
    memory: &'a mut usize,
    /// What separates this value from the one before.
    before: &'static [u8],
    levels: usize,
}

impl<W: Write> JsonScan<'_, W> {
    fn raw<E: serde::de::Error>(&mut self, bytes: &[u8]) -> Result<(), E> {
        self.out.write_all(bytes).map_err(E::custom)
    }

    fn scalar<E: serde::de::Error>(mut self, value: &(impl Serialize + ?Sized)) -> Result<(), E> {
        self.raw(self.before)?;
        serde_json::to_writer(&mut *self.out, value).map_err(E::custom)?;
        *self.msgpack += msgpack_len(value).map_err(E::custom)?;
        Ok(())
    }

    fn open<E: serde::de::Error>(&mut self, bracket: &[u8]) -> Result<(), E> {
        if self.levels == 0 {
            return Err(E::custom(format_args!(
                "it nests deeper than {VALUE_DEPTH_MAX} levels"
            )));
        }
        self.raw(self.before)?;
        self.raw(bracket)
    }

    fn close<E: serde::de::Error>(mut self, bracket: &[u8], items: usize) -> Result<(), E> {
        *self.msgpack += match items {
            0..16 => 1,
            16..0x1_0000 => 3,
            _ => 5,
        };
        self.raw(bracket)
    }

    fn inner(&mut self, before: &'static [u8]) -> JsonScan<'_, W> {
        let levels = self.levels.saturating_sub(1);
        JsonScan {
            out: self.out,
            msgpack: self.msgpack,
            memory: self.memory,
            before,
            levels,
        }
    }
}

impl<'de, W: Write> DeserializeSeed<'de> for JsonScan<'_, W> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de, W: Write> Visitor<'de> for JsonScan<'_, W> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<(), E> {
        self.scalar(&value)
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<(), E> {
        self.scalar(&value)
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<(), E> {
        self.scalar(&value)
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<(), E> {
        self.scalar(&value)
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<(), E> {
        *self.memory += value.len();
        self.scalar(value)
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<(), E> {
        self.scalar(&())
    }

    fn visit_none<E: serde::de::Error>(self) -> Result<(), E> {
        self.scalar(&())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut items: A) -> Result<(), A::Error> {
        self.open(b"[")?;
        let mut count = 0_usize;
        while items
            .next_element_seed(self.inner(if count == 0 { b"" } else { b"," }))?
            .is_some()
        {
            count += 1;
        }
        if count > 0 {
            // A vector has room for 4 items at first, and doubles its capacity when it grows.
            *self.memory += count.max(4).next_power_of_two() * size_of::<Value>();
        }
        self.close(b"]", count)
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut fields: A) -> Result<(), A::Error> {
        self.open(b"{")?;
        let mut count = 0_usize;
        while fields
            .next_key_seed(Key(self.inner(if count == 0 { b"" } else { b"," })))?
            .is_some()
        {
            count += 1;
            fields.next_value_seed(self.inner(b":"))?;
        }
        *self.memory += map_memory(count);
        self.close(b"}", count)
    }
}

/// A key of an object: only text.
struct Key<'a, W>(JsonScan<'a, W>);

impl<'de, W: Write> DeserializeSeed<'de> for Key<'_, W> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de, W: Write> Visitor<'de> for Key<'_, W> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("text as key")
    }

    fn visit_str<E: serde::de::Error>(self, key: &str) -> Result<(), E> {
        *self.0.memory += key.len();
        self.0.scalar(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_value_is_measured_as_it_is_stored() {
        for value in [
            json!(null),
            json!([
                true,
                -1,
                0,
                127,
                128,
                255,
                256,
                65_536,
                u64::MAX,
                i64::MIN,
                0.5,
                1e300
            ]),
            json!("a\"\\\n\u{1}é😀"),
            json!({"a": {"b": []}, "c": {}, "x".repeat(40): vec![0; 16], "y": vec!["z"; 70_000]}),
        ] {
            let pretty = serde_json::to_string_pretty(&value).unwrap();
            let size = measure(&pretty).unwrap();
            assert_eq!(measure_value(&value).unwrap(), size, "{pretty:.100}");
            let stored = (value.to_string().len(), msgpack_len(&value).unwrap());
            assert_eq!((size.json, size.msgpack), stored, "{pretty:.100}");
        }
        assert_eq!(
            measure(r#""éé""#).unwrap().json,
            6,
            "escaped characters count as they are stored"
        );
        let nested = |levels: usize| "[".repeat(levels) + &"]".repeat(levels);
        assert!(measure(&nested(VALUE_DEPTH_MAX)).is_ok());
        assert!(
            measure(&nested(VALUE_DEPTH_MAX + 1))
                .unwrap_err()
                .to_string()
                .contains("nests deeper")
        );
        assert!(measure(&nested(100_000)).is_err());
    }

    #[test]
    fn the_memory_of_a_value_is_estimated_before_it_is_built() {
        for (text, from, to) in [
            (
                "[1,2,3]".to_owned(),
                3 * size_of::<Value>(),
                4 * size_of::<Value>(),
            ),
            (
                format!("[{}0]", "{\"\":0},".repeat(75_000)),
                45 << 20,
                55 << 20,
            ),
            (format!("\"{}\"", "x".repeat(1000)), 1000, 1000),
            (
                "[[],[[1]]]".to_owned(),
                12 * size_of::<Value>(),
                12 * size_of::<Value>(),
            ),
        ] {
            let memory = measure(&text).unwrap().memory;
            assert!((from..=to).contains(&memory), "{text:.40}: {memory}");
        }
    }

    #[test]
    fn the_marker_of_a_raw_value_is_measured_like_any_key() {
        let text = r#"{"a":[{"$serde_json::private::RawValue":"[1,2]"}]}"#;
        assert_eq!(measure(text).unwrap().json, text.len());
    }
}
