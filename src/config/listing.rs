//! Listing jobs.

/// How many jobs a page holds by default: what a person can look over.
pub const LIST_ROWS: usize = 20;
/// How many jobs a page may hold. Each costs a read of its first event.
pub const LIST_ROWS_MAX: usize = 100;
/// How many events a listing reads at once. Writers of the shard wait about 0.5 ms for it, and an
/// inbox holds twice as many.
pub const LIST_WINDOW: u64 = 256;
/// About how many bytes such a read returns: less than the client library's inbox holds.
pub const LIST_BYTES: usize = 1024 * 1024;
/// How many such reads a page may take per shard, so that no page costs more than 4096 events per
/// shard, however far away the next job is. It is more than it takes to halve a window down to one
/// event.
pub const LIST_WINDOWS: u32 = 16;
/// How many jobs a page may look up: as many as a page can hold, and those that it skips.
pub const LIST_LOOKUPS: usize = 256;
/// How many undecodable messages a listing skips to find out whether a job has a later event. After
/// that it lists the job: listing a job twice is better than never.
pub const LIST_UNDECODABLE: usize = 8;
/// How many requests a listing has in progress: enough to hide their latency, too few to slow down
/// other clients.
pub const LIST_REQUESTS: usize = 8;
/// How many listings an edge thread processes at a time. Each remembers the ids of the jobs that it
/// has read, at most 0.4 MiB per shard.
pub const LISTINGS: usize = 4;
/// After a listing, none starts for this many times its duration: a flood of listings gets a
/// quarter of the time.
pub const LIST_REST: u32 = 3;
/// How many listings may wait; more are refused at once. At a quarter of a second each, they are
/// served in time.
pub const LIST_QUEUE: usize = 16;
