//! Reads one JSON object that a client wrote.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// The first `MAX` characters of text that a client wrote; `None` if it wrote something else.
#[derive(Debug, Default)]
pub struct Excerpt<const MAX: usize>(pub Option<String>);

impl<'de, const MAX: usize> Deserialize<'de> for Excerpt<MAX> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Cut<const MAX: usize>;
        impl<'de, const MAX: usize> Visitor<'de> for Cut<MAX> {
            type Value = Option<String>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any JSON value")
            }

            fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
                Ok(None)
            }

            fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
                Ok(None)
            }

            fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
                Ok(None)
            }

            fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
                Ok(None)
            }

            fn visit_unit<E>(self) -> Result<Self::Value, E> {
                Ok(None)
            }

            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Some(text.chars().take(MAX).collect()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
                while items.next_element::<IgnoredAny>()?.is_some() {}
                Ok(None)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Self::Value, A::Error> {
                while fields.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(None)
            }
        }
        from.deserialize_any(Cut::<MAX>).map(Self)
    }
}

/// Why a text is not the expected object.
pub(super) enum Misread {
    /// It is not valid JSON.
    NotJson(serde_json::Error),
    /// It is a different JSON value.
    Other(serde_json::Error),
}

/// Reads one object with known fields. Refuses an array of their values, which serde would accept.
///
/// # Errors
/// [`Misread`].
pub(super) fn object<'a, T: Deserialize<'a>>(text: &'a [u8]) -> Result<T, Misread> {
    let sort = |error: serde_json::Error| {
        if error.is_data() {
            Misread::Other(error)
        } else {
            Misread::NotJson(error)
        }
    };
    let first = text.iter().find(|byte| !byte.is_ascii_whitespace());
    if first.is_some_and(|first| *first != b'{') {
        serde_json::from_slice::<IgnoredAny>(text).map_err(sort)?;
        return Err(Misread::Other(serde_json::Error::custom("not an object")));
    }
    serde_json::from_slice(text).map_err(sort)
}
