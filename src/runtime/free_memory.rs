//! Memory that is free goes back to the system, also from a process that has become idle.

use std::hint::black_box;

use tokio::time::sleep;

use crate::config::{FREE_MEMORY_BLOCK, FREE_MEMORY_EVERY};

/// Returns free memory from time to time, until it is dropped.
///
/// mimalloc keeps what is freed for a second, in case it is needed again. It looks for what it has
/// kept longer only when a block is freed that is too large to share a page with others. An idle
/// process frees none, and would keep what its last clients needed. The block is never written, so
/// the system provides no memory for it.
pub(crate) async fn return_free_memory() {
    loop {
        sleep(FREE_MEMORY_EVERY).await;
        drop(black_box(Vec::<u8>::with_capacity(FREE_MEMORY_BLOCK)));
    }
}
