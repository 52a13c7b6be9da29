//! The limit of open files: raises it, and derives how many connections an edge may have.

use rustix::process::{Resource, getrlimit, setrlimit};
use tracing::{info, warn};

use crate::config::FILES_RESERVED;

/// Raises the limit of open files to the maximum; many systems start with 1024. Call it before
/// [`EdgeShared::new`](super::EdgeShared::new), which derives the number of connections from the
/// limit.
pub fn raise_file_limit() {
    let mut files = getrlimit(Resource::Nofile);
    let before = files.current;
    let most = files.maximum;
    if before == most {
        return;
    }
    files.current = most;
    match setrlimit(Resource::Nofile, files) {
        Ok(()) => info!(?before, now = ?most, "the limit of open files was raised"),
        Err(error) => warn!(?before, ?most, %error, "the limit of open files cannot be raised"),
    }
}

/// How many client connections the process may have: its limit of open files, less those that it
/// needs itself.
pub(super) fn connections_max() -> usize {
    let files = getrlimit(Resource::Nofile)
        .current
        .and_then(|files| usize::try_from(files).ok());
    let files = files.unwrap_or(usize::MAX);
    files - FILES_RESERVED.min(files / 4)
}
