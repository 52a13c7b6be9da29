//! The two encodings of what is stored and sent: MessagePack with named fields, and JSON. It does
//! not know events.

use std::io::ErrorKind;

use bytes::Bytes;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Deserializer, Serialize};

use super::limits::DEPTH_MAX;
use super::msgpack as direct;
use super::plain::plain;
use super::scan;
use super::transcode::transcode;
use super::writers::{self, Bounded, Counter};

/// Whether a value nests at most this many levels deep.
pub fn nests_at_most(value: &serde_json::Value, levels: usize) -> bool {
    use serde_json::Value::{Array, Bool, Null, Number, Object, String};
    match value {
        Array(values) => levels > 0 && values.iter().all(|value| nests_at_most(value, levels - 1)),
        Object(fields) => {
            levels > 0
                && fields
                    .values()
                    .all(|value| nests_at_most(value, levels - 1))
        }
        Null | Bool(_) | Number(_) | String(_) => true,
    }
}

/// The size of a value as MessagePack, in bytes.
///
/// # Errors
/// [`Error::Encode`].
pub fn msgpack_len<T: Serialize + ?Sized>(value: &T) -> Result<usize, Error> {
    Ok(writers::msgpack_len(value)?)
}

/// The size of a value as JSON, in bytes.
///
/// # Errors
/// [`Error::Json`].
pub fn json_len<T: Serialize + ?Sized>(value: &T) -> Result<usize, Error> {
    let mut counter = Counter(0);
    serde_json::to_writer(&mut counter, value)?;
    Ok(counter.0)
}

/// Why a payload cannot be decoded, or a value cannot be encoded. The text is for logs and quotes
/// no payload.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The payload starts neither as a MessagePack map nor as a JSON object.
    #[error("neither a MessagePack map nor a JSON object")]
    Neither,
    /// The payload starts as JSON but is not valid JSON, or lacks a field.
    #[error("not the expected JSON")]
    Json(#[from] serde_json::Error),
    /// The payload starts as MessagePack but is not valid MessagePack, or lacks a field.
    #[error("not the expected MessagePack")]
    Decode(#[from] rmp_serde::decode::Error),
    /// The value cannot be encoded as MessagePack.
    #[error("cannot be encoded as MessagePack")]
    Encode(#[from] rmp_serde::encode::Error),
    /// More bytes follow the value.
    #[error("bytes after the end of the value")]
    Trailing,
}

/// The subprotocol with one JSON object per text message; also used for a client that offers none.
pub const JSON_PROTOCOL: &str = "tailwater.v1.json";
/// The subprotocol with one MessagePack value per binary message.
pub const MSGPACK_PROTOCOL: &str = "tailwater.v1.msgpack";

/// How a stored payload, or a connection's frame, is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// A JSON object.
    Json,
    /// A MessagePack map.
    MsgPack,
}

impl Encoding {
    /// Determines the encoding from the first byte: `{` starts a JSON object, and never a
    /// MessagePack map.
    ///
    /// # Errors
    /// [`Error::Neither`].
    pub fn of(payload: &[u8]) -> Result<Self, Error> {
        match payload.first() {
            Some(b'{') => Ok(Self::Json),
            Some(0x80..=0x8F | 0xDE | 0xDF) => Ok(Self::MsgPack),
            _ => Err(Error::Neither),
        }
    }

    /// The subprotocol whose frames have this encoding.
    pub const fn subprotocol(self) -> &'static str {
        match self {
            Self::Json => JSON_PROTOCOL,
            Self::MsgPack => MSGPACK_PROTOCOL,
        }
    }

    /// The encoding of the first known subprotocol that a client offers.
    pub fn of_offer<'a>(names: impl IntoIterator<Item = &'a str>) -> Option<Self> {
        names.into_iter().find_map(|name| match name {
            JSON_PROTOCOL => Some(Self::Json),
            MSGPACK_PROTOCOL => Some(Self::MsgPack),
            _ => None,
        })
    }
}

/// Encodes `value` as MessagePack with named fields.
///
/// # Errors
/// [`Error::Encode`].
pub fn to_msgpack<T: Serialize>(value: &T) -> Result<Bytes, Error> {
    Ok(rmp_serde::to_vec_named(value)?.into())
}

/// Decodes a stored payload in either encoding.
///
/// # Errors
/// [`Error`] when it is not a `T`, or when more bytes follow.
pub fn from_stored<T: DeserializeOwned>(payload: &[u8]) -> Result<T, Error> {
    borrowed(payload)
}

/// [`from_stored`] for a type that borrows from the payload.
pub(super) fn borrowed<'a, T: Deserialize<'a>>(payload: &'a [u8]) -> Result<T, Error> {
    match Encoding::of(payload)? {
        Encoding::Json => Ok(serde_json::from_slice(payload)?),
        Encoding::MsgPack => from_msgpack(payload),
    }
}

/// Decodes one MessagePack value.
///
/// # Errors
/// [`Error`] when it is not a `T`, or when more bytes follow.
pub fn from_msgpack<'a, T: Deserialize<'a>>(payload: &'a [u8]) -> Result<T, Error> {
    let mut reader = msgpack(payload);
    let value = T::deserialize(&mut reader)?;
    ends(&mut reader).map(|()| value)
}

/// Checks that nothing follows. The reader does not report its position, so the end is where a
/// further read fails.
fn ends(reader: &mut MsgPackReader<'_>) -> Result<(), Error> {
    match IgnoredAny::deserialize(reader) {
        Err(rmp_serde::decode::Error::InvalidMarkerRead(error))
            if error.kind() == ErrorKind::UnexpectedEof =>
        {
            Ok(())
        }
        _ => Err(Error::Trailing),
    }
}

/// Converts a client's MessagePack to JSON of at most `limit` bytes; `None` when it is longer. Only
/// values that JSON can express are accepted: text as keys, no binary values, no extensions.
///
/// # Errors
/// [`Error`] for any other value, or when more bytes follow.
pub(super) fn json_within(payload: &[u8], limit: usize) -> Result<Option<Vec<u8>>, Error> {
    let mut reader = msgpack(payload);
    let mut out = Bounded {
        bytes: Vec::new(),
        limit,
        is_full: false,
    };
    let transcoded = scan::transcode(&mut reader, &mut out, DEPTH_MAX);
    if out.is_full {
        return Ok(None);
    }
    transcoded?;
    ends(&mut reader).map(|()| Some(out.bytes))
}

type MsgPackReader<'a> = rmp_serde::Deserializer<rmp_serde::decode::ReadRefReader<'a, [u8]>>;

/// Reads any JSON value, as a field of another type.
///
/// # Errors
/// An error of the format.
pub fn value<'de, D: Deserializer<'de>>(from: D) -> Result<serde_json::Value, D::Error> {
    plain(from)
}

/// Converts a MessagePack value to JSON, without a tree in between.
///
/// # Errors
/// [`Error`] when JSON cannot express it, for example a map with an array as key.
pub fn msgpack_to_json(payload: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
    let begin = out.len();
    if direct::write_json(payload, out).is_some() {
        return Ok(());
    }
    out.truncate(begin);
    transcode(&mut msgpack(payload), &mut serde_json::Serializer::new(out))?;
    Ok(())
}

/// Converts a JSON value to MessagePack.
///
/// # Errors
/// [`Error`] when it is not valid JSON.
pub fn json_to_msgpack(payload: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
    let mut reader = serde_json::Deserializer::from_slice(payload);
    let value = plain(&mut reader)?;
    reader.end()?;
    rmp_serde::encode::write_named(out, &value)?;
    Ok(())
}

fn msgpack(payload: &[u8]) -> MsgPackReader<'_> {
    let mut reader = rmp_serde::Deserializer::from_read_ref(payload);
    reader.set_max_depth(DEPTH_MAX);
    reader
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_known_subprotocol_of_the_clients_list_is_used() {
        let both = ["soap", MSGPACK_PROTOCOL, JSON_PROTOCOL];
        assert_eq!(Encoding::of_offer(both), Some(Encoding::MsgPack));
        let reversed = both.into_iter().rev();
        assert_eq!(Encoding::of_offer(reversed), Some(Encoding::Json));
        assert_eq!(Encoding::of_offer(["soap", "Tailwater.v1.json"]), None);
    }
}
