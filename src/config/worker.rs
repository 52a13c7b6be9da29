//! Running jobs: claims, attempts and the workers' threads.

use std::time::Duration;

/// How long a worker may be silent before its jobs go to another worker, unless the kind's first
/// worker configured another time. A worker reports three times as often: 3750 messages per second
/// with 10,000 running jobs.
pub const ACK_WAIT: Duration = Duration::from_secs(8);
/// How late the end of a silence may be noticed. Later, the process was paused or starved, and its
/// backends could not produce output either: the limit starts again, once.
pub const SILENCE_LATE_MAX: Duration = Duration::from_millis(500);
/// How many deliveries of a job may fail before the next one counts as an attempt. An outage of
/// about twenty minutes costs that many, see [`CLAIM_PAUSE_FACTOR`].
pub const DELIVERIES_MAX: u32 = 64;
/// How long after its submission a job's log may lack its first event without a worker asking the
/// queue whether it still has the job: longer than a submitter needs between the two, and shorter
/// than it takes to cancel and purge a job by hand.
pub const FIRST_EVENT_LAG: Duration = Duration::from_millis(500);
/// While a job's log cannot be reached, the pause before it is claimed again grows from a third of
/// the ack wait to this many times as long: up to 21 s.
pub const CLAIM_PAUSE_FACTOR: u32 = 8;
/// The pause after the first failed attempt; doubled after each further one up to
/// [`ATTEMPT_PAUSE_MAX`].
pub const ATTEMPT_PAUSE: Duration = Duration::from_secs(1);
/// The longest such pause.
pub const ATTEMPT_PAUSE_MAX: Duration = Duration::from_secs(60);
/// The longest pause that a backend's failure can request.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);
/// How long a worker that stops tries to append the event that hands a job back. The queue is
/// notified in any case.
pub const HAND_BACK_WAIT: Duration = Duration::from_secs(2);
/// The smallest number of threads that run a worker's backends, however few cores there are: a
/// backend that blocks its thread must not stop all others.
pub const BACKEND_THREADS_MIN: usize = 2;
/// How often the threads of the backends are woken while jobs run. When a backend blocks the thread
/// that waits for timers and sockets, another thread takes over only after it was woken.
pub const BACKEND_WAKE_EVERY: Duration = Duration::from_millis(50);
/// How long the wake-ups of jobs by their backends are gathered while there are many: each time that
/// the worker's thread wakes costs system calls, whose cost the jobs then share. The runtime's timer
/// adds up to a millisecond.
pub const WAKE_GATHER: Duration = Duration::from_millis(1);
/// There are many wake-ups if they follow each other within this time.
pub const WAKE_MANY: Duration = Duration::from_millis(4);
/// How long all threads of the backends may be blocked before a warning is logged: longer than a
/// busy machine needs.
pub const BACKEND_BLOCKED: Duration = Duration::from_secs(5);
/// How long a worker that received a job waits for the answer of the job's owner before it takes
/// the job over. The owner first reads the log, which takes milliseconds on a healthy broker.
pub const OWNER_ANSWER_WAIT: Duration = Duration::from_secs(1);
/// How many workers that ask for one job are answered at a time. The queue delivers a job to one
/// worker.
pub const OWNER_ANSWERS_MAX: usize = 8;
/// How long after its own reconnect a worker expects that an owner may still reconnect: after an
/// outage each of them tries again every [`REREAD_MAX`](super::REREAD_MAX).
pub const OWNER_BACK_WAIT: Duration = Duration::from_secs(10);
/// How long it keeps asking an owner during that time.
pub const OWNER_ASK_WAIT: Duration = Duration::from_secs(5);
/// The pause between two such requests.
pub const OWNER_ASK_EVERY: Duration = Duration::from_millis(250);
/// How many jobs a worker requests at once.
pub const CLAIM_MAX: usize = 64;
/// How long one request for jobs waits at the broker.
pub const CLAIM_WAIT: Duration = Duration::from_secs(5);
/// How much longer a worker waits for the answer before it treats the request as lost and repeats
/// it: a server that dies loses the requests for the consumers that it led.
pub const CLAIM_LATE: Duration = Duration::from_millis(500);
/// The pause before a request for jobs is repeated when the broker cannot be reached.
pub const CLAIM_REQUEST_PAUSE: Duration = Duration::from_millis(500);
/// How many jobs run at a time on each thread. A flag overrides it.
pub const CONCURRENCY: usize = 16;
/// How many attempts a job has. A flag overrides it.
pub const ATTEMPTS_MAX: u32 = 5;
/// How long running jobs may continue after SIGTERM. A flag overrides it.
pub const GRACE: Duration = Duration::from_secs(10);
/// The shortest time between two chunks of a job. A flag overrides it. Ten events per second look
/// as smooth as a hundred, at a tenth of the cost for the broker, the edges and the clients.
pub const FLUSH_INTERVAL: Duration = Duration::from_millis(100);
/// How many bytes of text are published without waiting for the interval. A flag overrides it.
pub const FLUSH_BYTES: usize = 4096;
/// How often the worker tries to end a job that cannot start, while other processes write first.
pub const ENDINGS_MAX: usize = 8;
