//! How panics are reported.

use std::any::Any;
use std::fmt::Display;
use std::sync::atomic::{AtomicU64, Ordering};

use tracing::error;

use crate::wire::limits::MESSAGE_MAX;

static PANICS: AtomicU64 = AtomicU64::new(0);

/// How many tasks and backends of this process have panicked. Each panic is a bug.
pub fn panics() -> u64 {
    PANICS.load(Ordering::Relaxed)
}

/// Logs and counts a panic of `what`. Returns its message, cut to [`MESSAGE_MAX`] bytes.
pub(crate) fn report_panic(what: impl Display, payload: &(dyn Any + Send)) -> String {
    PANICS.fetch_add(1, Ordering::Relaxed);
    let text = payload.downcast_ref::<&str>().copied();
    let text = text
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no text");
    let text = &text[..text.floor_char_boundary(MESSAGE_MAX)];
    error!(%what, panic = text, "panicked");
    text.to_owned()
}
