//! The two encodings of what is stored and sent: MessagePack with named fields, and JSON. Nothing here knows an event.

use std::io::ErrorKind;

use bytes::Bytes;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Deserializer, Serialize};

use super::limits::DEPTH_MAX;
use super::scan::{self, Bounded, Counter};
use super::transcode::transcode;

/// Whether a value nests at most so many levels deep.
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

/// How many bytes a value has as MessagePack.
///
/// # Errors
/// [`Error::Encode`] when it cannot be written as MessagePack.
pub fn msgpack_len<T: Serialize + ?Sized>(value: &T) -> Result<usize, Error> {
    Ok(scan::msgpack_len(value)?)
}

/// How many bytes a value has as JSON.
///
/// # Errors
/// [`Error::Json`] when it cannot be written as JSON.
pub fn json_len<T: Serialize + ?Sized>(value: &T) -> Result<usize, Error> {
    let mut counter = Counter(0);
    serde_json::to_writer(&mut counter, value)?;
    Ok(counter.0)
}

/// A payload that is not what it should be. The text is for logs; it quotes no payload.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It begins neither as a MessagePack map nor as a JSON object.
    #[error("neither a MessagePack map nor a JSON object")]
    Neither,
    /// It says JSON and is none, or lacks a field.
    #[error("not the expected JSON")]
    Json(#[from] serde_json::Error),
    /// It says MessagePack and is none, or lacks a field.
    #[error("not the expected MessagePack")]
    Decode(#[from] rmp_serde::decode::Error),
    /// It cannot be written as MessagePack.
    #[error("cannot be written as MessagePack")]
    Encode(#[from] rmp_serde::encode::Error),
    /// Something follows the value.
    #[error("bytes after the end of the value")]
    Trailing,
}

/// How a stored payload, or a connection's frame, is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// A JSON object.
    Json,
    /// A MessagePack map.
    MsgPack,
}

impl Encoding {
    /// Tells the encoding by the first byte: `{` begins a JSON object, and is no map in MessagePack.
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
}

/// Writes `value` as MessagePack with named fields.
///
/// # Errors
/// [`Error::Encode`].
pub fn to_msgpack<T: Serialize>(value: &T) -> Result<Bytes, Error> {
    Ok(rmp_serde::to_vec_named(value)?.into())
}

/// Reads a stored payload in either encoding.
///
/// # Errors
/// [`Error`] when it is no `T`, or when anything follows it.
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

/// Reads one MessagePack value.
///
/// # Errors
/// [`Error`] when it is no `T`, or when anything follows it.
pub fn from_msgpack<'a, T: Deserialize<'a>>(payload: &'a [u8]) -> Result<T, Error> {
    let mut reader = msgpack(payload);
    let value = T::deserialize(&mut reader)?;
    ends(&mut reader).map(|()| value)
}

/// The reader does not say where it stands, so the end is where nothing more can be read.
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

/// What a client sent as MessagePack, as JSON of at most `limit` bytes; `None` when it has more. Only what JSON has, too,
/// is taken: text as keys, no bytes, no extensions.
///
/// # Errors
/// [`Error`] when it is no such value, or when anything follows it.
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

/// Reads any JSON value as it stands, as a field of something else.
///
/// # Errors
/// That of the format.
pub fn value<'de, D: Deserializer<'de>>(from: D) -> Result<serde_json::Value, D::Error> {
    scan::plain(from)
}

/// Writes a MessagePack value as JSON, without a tree in between.
///
/// # Errors
/// [`Error`] when it cannot be said in JSON, for example a map with an array as key.
pub fn msgpack_to_json(payload: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
    transcode(&mut msgpack(payload), &mut serde_json::Serializer::new(out))?;
    Ok(())
}

/// Writes a JSON value as MessagePack.
///
/// # Errors
/// [`Error`] when it is no JSON.
pub fn json_to_msgpack(payload: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
    let mut reader = serde_json::Deserializer::from_slice(payload);
    let value = scan::plain(&mut reader)?;
    reader.end()?;
    rmp_serde::encode::write_named(out, &value)?;
    Ok(())
}

fn msgpack(payload: &[u8]) -> MsgPackReader<'_> {
    let mut reader = rmp_serde::Deserializer::from_read_ref(payload);
    reader.set_max_depth(DEPTH_MAX);
    reader
}
