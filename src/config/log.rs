//! Reading and writing the logs of jobs.

use std::time::Duration;

/// How many events one direct get returns. Writers of the shard wait while a page is read.
pub const PAGE: usize = 64;
/// About how many bytes one direct get returns. A reader that is behind holds two pages: the one
/// that its client is receiving, and the next.
pub const PAGE_BYTES: usize = 128 * 1024;
/// How many messages the client library holds for one read of the log: more than a scan requests at
/// a time, which is twice [`SCAN_PULL`]. A full inbox drops messages, and the scan starts again.
pub const REPLAY_CAPACITY: usize = 2048;
/// How many direct gets an edge thread has in progress on one shard.
pub const READS_PER_SHARD: usize = 2;
/// How many single events an edge thread looks up in one shard at a time to verify cursors, as many from
/// replicas as from the leader. An event may be large: clients that send a thousand cursors of one at once
/// would get the broker to send a thousand copies of it. Usually it is small, so that look-ups wait
/// neither for pages nor for room.
pub const LOOK_UPS_PER_SHARD: usize = 4;
/// How many feeds of one shard an edge thread opens at a time: each subscribes and asks for one event.
/// When a thousand clients come back at once, all of these requests together would hold up appends for 5
/// to 7 ms. An opening takes two round trips to the broker, or seconds if a replica is silent, and those
/// that wait must have their turn within [`OPEN_WAIT`](super::OPEN_WAIT).
pub const OPENINGS_PER_SHARD: usize = 16;
/// How many replays an edge thread starts from the leader of one shard at a time, after a replica
/// returned nothing. Each makes a few small requests. They share the broker's queue for requests with
/// those of submissions and look-ups, and a server that holds 10,000 (`request_queue_limit`) drops all of
/// them.
pub const LEADER_READS_PER_SHARD: usize = 8;

/// How many bytes of the log a reader holds for its clients that they have not taken, in processes
/// without a memory budget; an edge has [`READS_BYTES`](super::READS_BYTES) for all threads. Beyond
/// that, reads wait, and readers of a scan leave it.
pub const READ_BYTES: usize = 16 * 1024 * 1024;
/// How long such bytes, or room in the memory budget, are kept for a reader. One whose client accepts
/// nothing for longer reads or waits again.
pub const READ_TAKE_WAIT: Duration = Duration::from_millis(500);
/// The pause before the first of those that wait for room in a memory budget tries again; the others
/// wait for it.
pub const READ_BUDGET_PAUSE: Duration = Duration::from_millis(10);

/// After decoding this many bytes of the log, a reader lets the thread serve its clients: it takes a
/// fraction of a millisecond.
pub const DECODE_BYTES: usize = 64 * 1024;
/// How many segments a reader requests at once; fewer after large ones. It holds at most
/// [`SEGMENT_BYTES_MAX`](crate::wire::limits::SEGMENT_BYTES_MAX) for each while it reads, in the budget
/// for reads, and then keeps no more than [`PAGE_BYTES`] for its client, or one.
pub const SEGMENTS_AT_ONCE: u64 = 8;
/// How many segments all readers of an edge thread request at a time. With 64, one append in a hundred
/// took 11 to 15 ms while a thousand clients came back to a cold edge, at a broker with one core; with
/// this many 3 to 4 ms in most runs, and the clients have their events just as soon.
pub const SEGMENT_READS: usize = 16;
/// How long readers do not look for segments after the broker answered that there is no stream of
/// them, since an edge may be older than the last `setup`, or did not answer: the log itself is then read,
/// and no reader waits for the same silence again.
pub const SEGMENTS_ABSENT: Duration = Duration::from_secs(10);

/// When at least this many readers of one shard wait, or read segments before they do, they share
/// one scan of it.
pub const SCAN_FROM: usize = 20;
/// How many messages a scan requests at a time. It requests as many again when half of them have
/// arrived. The broker looks for them without a pause, and appends wait meanwhile; with fewer, a distant
/// broker would be slow.
pub const SCAN_PULL: usize = 200;
/// How many bytes one request of a scan may return: more than the largest message, 1 MiB, and far
/// less than the 64 MiB at which the broker disconnects a client that does not read.
pub const SCAN_PULL_BYTES: usize = 2 * 1024 * 1024;
/// How many shards an edge thread scans at a time, as many as there are by default: a silent one must not
/// hold up the others. What their requests return is in no budget, about twice [`SCAN_PULL_BYTES`] each.
pub const SCANS_AT_ONCE: usize = 4;
/// How long a scan waits for more readers after the last one joined, or finished reading segments:
/// that one sends their events to its client before it joins.
pub const SCAN_GATHER: Duration = Duration::from_millis(15);
/// How long a scan waits for readers in all. Several passes cost more than one that starts later, but
/// clients wait for their last events meanwhile.
pub const SCAN_GATHER_MAX: Duration = Duration::from_millis(600);
/// How many events a scan hands to a reader at once; fewer when they exceed
/// [`STEP_BYTES`](super::STEP_BYTES).
pub const SCAN_BATCH: usize = 32;
/// The time after which a scan hands over a smaller batch.
pub const SCAN_FLUSH: Duration = Duration::from_millis(60);
/// After how many such times a reader that has taken nothing leaves the scan.
pub const SCAN_TICKS: u32 = 8;
/// How often a scan lets its readers run before it looks again whether one that must take something
/// has.
pub const SCAN_YIELDS: usize = 4;
/// How often it looks before such a reader leaves it. If a thousand readers must each write a step,
/// in turns of [`TURN_BYTES`](super::TURN_BYTES) of which [`TURNS_AT_ONCE`](super::TURNS_AT_ONCE)
/// come at a time, the last one is done after about this many.
pub const SCAN_LOOKS: usize = 64;
/// For how long it does at most, since the other readers wait meanwhile.
pub const SCAN_BLOCKED: Duration = Duration::from_millis(50);
/// How long a scan waits for the next message before it ends and its readers start again.
pub const SCAN_STALL: Duration = Duration::from_secs(5);

/// How many undecodable messages in a row are skipped to find the next, or the last, event of a
/// job. A worker that writes in a wrong format leaves one per chunk until another worker claims the
/// job.
pub const UNDECODABLE_MAX: usize = 1024;
/// How many jobs with undecodable messages are remembered, so that each is reported once: about 100
/// KiB.
pub const UNDECODABLE_JOBS: usize = 1024;
/// How many single reads look for an event by its sequence number. Each halves the rest of the
/// stream, so 64 find one message in any stream.
pub const LOCATE_READS: usize = 64;
/// How close to the event such a search stops, in events. The leader is asked for the rest one by
/// one.
pub const LOCATE_NEAR: u64 = 8;
/// How far back the search for a job's last event starts when other messages follow it, in messages
/// of the shard; eight times as far with each step.
pub const LOOK_BACK: u64 = 64;

/// How long a writer keeps trying to append one event: an election takes 4 to 9 s.
pub const APPEND_WAIT: Duration = Duration::from_secs(60);
/// How often an append that the broker refuses for an unknown reason is repeated. With the pauses
/// below that takes about 5 s: longer than a change of a stream's settings, shorter than a person
/// waits for a job that is stuck.
pub const REJECTIONS_MAX: u32 = 16;
/// The first pause before an append is repeated; doubled up to [`RETRY_MAX`].
pub const RETRY_FIRST: Duration = Duration::from_millis(5);
/// The longest pause before an append is repeated.
pub const RETRY_MAX: Duration = Duration::from_millis(500);
/// How long after a purge the job's segments are removed again and the purge is signalled again:
/// longer than a replica usually lags, and than a worker needs to store a segment.
pub const PURGE_AGAIN: Duration = Duration::from_secs(1);
/// How many jobs `tailwater purge` removes at a time: enough to hide that each takes
/// [`PURGE_AGAIN`], too few to slow down other clients.
pub const PURGES: usize = 32;
/// How long a cancel keeps trying to append its event between those of a worker that writes
/// constantly.
pub const CANCEL_WAIT: Duration = Duration::from_secs(10);
