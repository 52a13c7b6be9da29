//! Converts a value from one format to another without a tree in between.

use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde::ser::{Error as _, Serialize, SerializeMap, SerializeSeq, Serializer};

/// Serializes to `to` the value that `from` deserializes.
///
/// # Errors
/// An error of either format, as an error of `to`.
pub(super) fn transcode<'de, D: Deserializer<'de>, S: Serializer>(
    from: D,
    to: S,
) -> Result<S::Ok, S::Error> {
    ReadOnce::new(from).serialize(to)
}

/// Serializes a deserializer's value, once.
struct ReadOnce<D>(Cell<Option<D>>);

impl<D> ReadOnce<D> {
    fn new(from: D) -> Self {
        Self(Cell::new(Some(from)))
    }
}

impl<'de, D: Deserializer<'de>> Serialize for ReadOnce<D> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let from = self
            .0
            .take()
            .ok_or_else(|| S::Error::custom("read twice"))?;
        from.deserialize_any(Target(to)).map_err(S::Error::custom)
    }
}

/// Visits a value by serializing it.
struct Target<S>(S);

/// Visitors of scalars.
macro_rules! scalars {
    ($($visit:ident, $serialize:ident, $type:ty;)*) => {$(
        fn $visit<E: serde::de::Error>(self, value: $type) -> Result<S::Ok, E> {
            self.0.$serialize(value).map_err(E::custom)
        }
    )*};
}

impl<'de, S: Serializer> Visitor<'de> for Target<S> {
    type Value = S::Ok;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    scalars! {
        visit_bool, serialize_bool, bool;
        visit_i64, serialize_i64, i64;
        visit_u64, serialize_u64, u64;
        visit_f32, serialize_f32, f32;
        visit_f64, serialize_f64, f64;
        visit_str, serialize_str, &str;
        visit_bytes, serialize_bytes, &[u8];
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<S::Ok, E> {
        self.0.serialize_unit().map_err(E::custom)
    }

    fn visit_none<E: serde::de::Error>(self) -> Result<S::Ok, E> {
        self.0.serialize_none().map_err(E::custom)
    }

    fn visit_some<D: Deserializer<'de>>(self, from: D) -> Result<S::Ok, D::Error> {
        let value = ReadOnce::new(from);
        self.0.serialize_some(&value).map_err(D::Error::custom)
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, from: D) -> Result<S::Ok, D::Error> {
        transcode(from, self.0).map_err(D::Error::custom)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<S::Ok, A::Error> {
        let seq = self.0.serialize_seq(items.size_hint());
        let mut seq = seq.map_err(A::Error::custom)?;
        while items.next_element_seed(Item(&mut seq))?.is_some() {}
        seq.end().map_err(A::Error::custom)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<S::Ok, A::Error> {
        let map = self.0.serialize_map(fields.size_hint());
        let mut map = map.map_err(A::Error::custom)?;
        while fields.next_key_seed(Key(&mut map))?.is_some() {
            fields.next_value_seed(Field(&mut map))?;
        }
        map.end().map_err(A::Error::custom)
    }
}

/// Seeds that pass one value on to a list or a map.
macro_rules! seeds {
    ($($seed:ident, $serializer:ident, $serialize:ident;)*) => {$(
        struct $seed<'a, S>(&'a mut S);

        impl<'de, S: $serializer> DeserializeSeed<'de> for $seed<'_, S> {
            type Value = ();

            fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
                self.0.$serialize(&ReadOnce::new(from)).map_err(D::Error::custom)
            }
        }
    )*};
}

seeds! {
    Item, SerializeSeq, serialize_element;
    Key, SerializeMap, serialize_key;
    Field, SerializeMap, serialize_value;
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn to_json(msgpack: &[u8]) -> Result<String, serde_json::Error> {
        let mut out = Vec::new();
        let mut reader = rmp_serde::Deserializer::from_read_ref(msgpack);
        transcode(&mut reader, &mut serde_json::Serializer::new(&mut out))?;
        Ok(String::from_utf8(out).unwrap())
    }

    #[test]
    fn every_json_value_is_converted_without_loss() {
        let value = json!({"a": [null, true, -1, i64::MIN, u64::MAX, 0.1, -0.0, 5e-324, 1e308, "é\n"],
            "b": {}, "c": [[], {"d": "e"}]});
        let msgpack = rmp_serde::to_vec_named(&value).unwrap();
        assert_eq!(to_json(&msgpack).unwrap(), value.to_string());
    }

    #[test]
    fn values_that_only_msgpack_has_are_converted_to_json() {
        // {1: bin 2 bytes, true: float32 0.1}
        let msgpack = b"\x82\x01\xC4\x02\x07\xFF\xC3\xCA\x3D\xCC\xCC\xCD";
        assert_eq!(to_json(msgpack).unwrap(), r#"{"1":[7,255],"true":0.1}"#);
        assert!(to_json(b"\x81\x91\x01\x02").is_err(), "a list as a key");
        assert!(to_json(b"\x82\xA1a\x01").is_err(), "cut off");
    }
}
