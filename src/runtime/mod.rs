//! Tasks, their timers, wake-ups and mailboxes, panics, threads, and the signals that end a process.

mod free_memory;
mod lazy_timer;
mod mailbox;
mod own_waker;
mod panics;
mod signals;
mod tasks;
mod threads;
#[cfg(test)]
mod wake_counter;
mod wake_queue;
mod work;

pub(crate) use free_memory::return_free_memory;
pub(crate) use lazy_timer::LazyTimer;
pub(crate) use mailbox::{MailSender, Mailbox, NoMail, mailbox};
pub(crate) use own_waker::{OwnWaker, with_own_waker};
pub use panics::panics;
pub(crate) use panics::report_panic;
pub use signals::interrupted;
pub use tasks::{Tasks, unless_ended};
pub use threads::{on_threads, single_threaded};
pub(crate) use wake_queue::{QueuedWaker, WakeQueue};
pub(crate) use work::{WorkError, WorkThreads};
