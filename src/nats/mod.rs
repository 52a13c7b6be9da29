//! The broker: connections, names, streams, the log, the queue. The only folder that names `async_nats`; what others see
//! of it are their own types.

mod api;
mod batch;
mod cancel;
mod connect;
mod control;
mod delivery;
mod error;
mod follow;
mod lease;
mod list;
mod load;
mod log;
mod names;
mod queue;
mod read;
mod scan;
mod setup;
mod turns;
mod walk;
mod writer;

pub use cancel::Cancelled;
pub use connect::{MIN_VERSION, Nats, Options, redacted};
pub use control::{Control, ControlSignal, Question};
pub use delivery::Delivery;
pub use error::Error;
pub use follow::LiveTail;
pub use list::{JobQuery, ListError};
pub use load::{Load, Loads};
pub use log::{Appended, Log, Tip};
pub use names::Names;
pub use queue::{Claim, Submitted};
pub use read::{LogReplay, Reader};
pub use setup::{Drift, Settings};
pub use writer::{Refusal, Unwritable, Writer};
