//! Writers that count bytes, or refuse more than a limit.

use std::io::{self, Write};

use serde::Serialize;

/// Counts the bytes that are written to it.
pub(super) struct Counter(pub(super) usize);

impl Write for Counter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The size of a value as MessagePack, in bytes.
///
/// # Errors
/// When it cannot be written as MessagePack.
pub(super) fn msgpack_len<T: Serialize + ?Sized>(
    value: &T,
) -> Result<usize, rmp_serde::encode::Error> {
    let mut counter = Counter(0);
    rmp_serde::encode::write_named(&mut counter, value)?;
    Ok(counter.0)
}

/// A writer that accepts at most `limit` bytes.
#[derive(Debug)]
pub(super) struct Bounded {
    pub(super) bytes: Vec<u8>,
    pub(super) limit: usize,
    /// Whether a write was refused.
    pub(super) is_full: bool,
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > self.limit {
            self.is_full = true;
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
