//! The broker: connections, names, streams, the log, the queue. The only folder that names `async_nats`; what others see
//! of it are their own types.

mod api;
mod batch;
mod cancel;
mod connect;
mod error;
mod follow;
mod list;
mod load;
mod locate;
mod log;
mod names;
mod queue;
mod quorum;
mod read;
mod ready;
mod scan;
mod setup;
mod tip;
mod turns;
mod undecodable;
mod walk;
mod writer;

pub use cancel::Cancelled;
pub use connect::{MIN_VERSION, Nats, Options, redacted};
pub use error::Error;
pub use follow::LiveTail;
pub use list::{JobQuery, ListError};
pub use load::{Load, Loads};
pub use log::{Appended, Log};
pub use names::Names;
pub use queue::{Claim, Delivery, Nudges, Submitted};
pub use read::{LogReplay, Reader};
pub use setup::{Drift, Settings};
pub use tip::Tip;
pub use writer::{Refusal, Writer};
