//! Reads JSON values of any shape into memory, unchanged.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Reads any JSON value unchanged. `Value` itself would treat an object whose only key is
/// serde_json's private marker of a raw value as that raw value.
///
/// # Errors
/// An error of the format.
pub(super) fn plain<'de, D: Deserializer<'de>>(from: D) -> Result<Value, D::Error> {
    Plain.deserialize(from)
}

/// [`plain`], for a field that may be absent or `null`.
///
/// # Errors
/// An error of the format.
pub(super) fn plain_option<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Value>, D::Error> {
    Ok(Some(plain(from)?).filter(|value| !value.is_null()))
}

struct Plain;

impl<'de> DeserializeSeed<'de> for Plain {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Value, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Plain {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, from: D) -> Result<Value, D::Error> {
        self.deserialize(from)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = items.next_element_seed(Self)? {
            values.push(value);
        }
        Ok(values.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = fields.next_key::<String>()? {
            map.insert(key, fields.next_value_seed(Self)?);
        }
        Ok(map.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RAW: &str = "$serde_json::private::RawValue";

    #[test]
    fn the_marker_of_a_raw_value_is_an_ordinary_key() {
        let text = format!(r#"{{"a":[{{"{RAW}":"[1,2]"}}],"{RAW}":7}}"#);
        let value = plain(&mut serde_json::Deserializer::from_str(&text)).unwrap();
        assert_eq!(
            value.to_string(),
            format!(r#"{{"{RAW}":7,"a":[{{"{RAW}":"[1,2]"}}]}}"#)
        );
    }
}
