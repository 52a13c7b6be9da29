//! Running jobs: claims, attempts and the workers' threads.

use std::time::Duration;

/// How long a worker may be silent before its jobs go to another one, unless the kind's first worker said otherwise. A
/// worker reports three times as often: at 10,000 running jobs that is 3750 messages a second.
pub const ACK_WAIT: Duration = Duration::from_secs(8);
/// How many deliveries of a job may fail before the next one counts as an attempt. An outage of about twenty minutes
/// costs that many, see [`CLAIM_PAUSE_FACTOR`].
pub const DELIVERIES_MAX: u32 = 64;
/// How many times longer than the first one, a third of the ack wait, the pause before a job is claimed again may become
/// while its log cannot be reached: up to 21 s.
pub const CLAIM_PAUSE_FACTOR: u32 = 8;
/// The pause after the first failed attempt; doubled after each further one up to [`ATTEMPT_PAUSE_MAX`].
pub const ATTEMPT_PAUSE: Duration = Duration::from_secs(1);
/// The longest such pause.
pub const ATTEMPT_PAUSE_MAX: Duration = Duration::from_secs(60);
/// The longest pause that a backend's failure can request.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);
/// How long a worker that stops tries to append the event that hands a job back. The queue is informed in any case.
pub const HAND_BACK_WAIT: Duration = Duration::from_secs(2);
/// How many threads run the backends of a worker at least, however few cores there are: a backend that blocks its thread
/// must not stop all others.
pub const BACKEND_THREADS_MIN: usize = 2;
/// How often the threads of the backends are woken while jobs run. When a backend blocks the thread that waits for timers
/// and sockets, another thread waits for them only after it was woken.
pub const BACKEND_WAKE_EVERY: Duration = Duration::from_millis(50);
/// How long all threads of the backends may be blocked before a warning is logged: longer than a busy machine needs.
pub const BACKEND_BLOCKED: Duration = Duration::from_secs(5);
/// How long a worker that was handed a job waits for the answer of its owner before it takes the job over. The owner first
/// looks at the log, which takes milliseconds on a healthy broker.
pub const OWNER_ANSWER_WAIT: Duration = Duration::from_secs(1);
/// How many workers that ask for one job are answered at a time. The queue hands a job to one.
pub const OWNER_ANSWERS_MAX: usize = 8;
/// How long after its own connection came back a worker expects that an owner's connection may still come back: after an
/// outage each of them tries again every [`REREAD_MAX`](super::REREAD_MAX).
pub const OWNER_BACK_WAIT: Duration = Duration::from_secs(10);
/// How long it keeps asking the owner during that time.
pub const OWNER_ASK_WAIT: Duration = Duration::from_secs(5);
/// The pause between two questions to the owner.
pub const OWNER_ASK_EVERY: Duration = Duration::from_millis(250);
/// How many jobs a worker requests at once.
pub const CLAIM_MAX: usize = 64;
/// How long one request for jobs waits at the broker.
pub const CLAIM_WAIT: Duration = Duration::from_secs(5);
/// How much longer a worker waits for the answer before it considers the request lost and repeats it: a server that dies
/// loses the requests for the consumers that it led.
pub const CLAIM_LATE: Duration = Duration::from_millis(500);
/// The pause before a request for jobs is repeated when the broker cannot be reached.
pub const CLAIM_REQUEST_PAUSE: Duration = Duration::from_millis(500);
/// How many jobs run at a time on each thread, unless a flag says otherwise.
pub const CONCURRENCY: usize = 16;
/// How many attempts a job has, unless a flag says otherwise.
pub const ATTEMPTS_MAX: u32 = 5;
/// How long running jobs may go on after SIGTERM, unless a flag says otherwise.
pub const GRACE: Duration = Duration::from_secs(10);
/// The shortest time between two chunks of a job, unless a flag says otherwise. Ten events a second read as smoothly as a
/// hundred, at a tenth of the cost for the broker, the edges and the clients.
pub const FLUSH_INTERVAL: Duration = Duration::from_millis(100);
/// How many bytes of text are published without waiting for the interval, unless a flag says otherwise.
pub const FLUSH_BYTES: usize = 4096;
/// How often the worker tries to end a job that cannot begin while other processes write first.
pub const ENDINGS_MAX: usize = 8;
