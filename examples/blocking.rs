//! A worker whose backend blocks: it counts the primes below the input, which keeps a core busy.
//! While `tailwater up` runs:
//!
//! ```text
//! cargo run --example blocking                     # or `-- nats://host:4222`
//! tailwater submit --kind primes --input 20000000 --watch
//! ```

use tailwater::backend::{Backend, Failure, Finish, Job, Output};
use tailwater::nats::Options;
use tailwater::worker::{self, WorkerSettings};
use tokio::runtime::Handle;
use tokio::task::spawn_blocking;

struct Primes;

impl Backend for Primes {
    async fn run(&self, job: Job, out: Output) -> Result<Finish, Failure> {
        let limit = job
            .input
            .as_u64()
            .ok_or_else(|| Failure::fatal("bad_input", "the input must be a number"))?;
        let handle = Handle::current();
        // On its own thread, where it may block for any time while other jobs continue.
        let work = spawn_blocking(move || {
            let mut found = 0;
            for number in 2..limit {
                // A thread cannot be stopped from outside, so it checks whether its job still runs.
                if job.stop.is_cancelled() {
                    break;
                }
                if (2..)
                    .take_while(|part| part * part <= number)
                    .all(|part| number % part != 0)
                {
                    found += 1;
                    if found % 10_000 == 0 {
                        handle.block_on(out.text(&format!("{found} primes up to {number}\n")))?;
                    }
                }
            }
            handle.block_on(out.text(&format!("{found} primes below {limit}\n")))?;
            Ok(Finish::default())
        });
        // A panic on that thread is a panic of the backend, so the attempt fails.
        work.await
            .unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = std::env::args()
        .nth(1)
        .unwrap_or_else(|| "nats://127.0.0.1:4222".into());
    let nats = Options {
        url: url.into(),
        name: "primes".into(),
        ..Options::default()
    };
    worker::serve(&nats, Primes, WorkerSettings::new("primes".parse()?)).await?;
    Ok(())
}
