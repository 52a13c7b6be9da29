//! Whole numbers in what clients send. Pure.

use serde::de::{Deserialize as _, Deserializer, Error as _};
use serde_json::Number;

use super::limits::TIMEOUT_MAX_MS;

/// Parses a time. JSON does not distinguish 5000.0 from 5000.
pub(super) fn whole_number<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<u64>, D::Error> {
    let Some(number) = Option::<Number>::deserialize(deserializer)? else {
        return Ok(None);
    };
    let as_float = number.as_f64();
    let from_float = as_float.filter(|float| float.fract() == 0.0 && *float >= 0.0);
    let whole = number
        .as_u64()
        .or_else(|| from_float.map(|float| float as u64));
    match whole.filter(|whole| *whole <= TIMEOUT_MAX_MS) {
        Some(whole) => Ok(Some(whole)),
        None => Err(D::Error::custom(format!(
            "{number} is not a whole number up to {TIMEOUT_MAX_MS}"
        ))),
    }
}
