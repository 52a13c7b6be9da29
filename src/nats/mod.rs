//! The broker: connections, names, streams, the log, the queue. Only this folder uses `async_nats`,
//! and no type of it is public here.

mod accounts;
mod api;
mod auth_bucket;
mod batch;
mod bucket;
mod cancel;
mod claim;
mod connect;
mod control;
mod credentials;
mod delivery;
mod disturbances;
mod drift;
mod error;
mod event_source;
mod features;
mod follow;
mod info;
mod inspect;
mod kinds;
mod lease;
mod list;
mod listing;
mod listing_slots;
mod live_link;
mod live_protocol;
mod live_queue;
mod live_reader;
mod locate;
mod log;
mod message;
mod names;
mod open;
mod options;
mod publish;
mod purge;
mod queue;
mod queued;
mod quorum;
mod read;
mod read_slots;
mod ready;
mod recorder;
mod recording;
mod replay;
mod replay_counts;
mod report_cache;
mod roles;
mod scan;
mod segment_writer;
mod segments;
mod segments_absence;
mod setup;
mod start;
mod submit_signals;
mod ticket_bucket;
mod tip;
mod undecodable;
mod usage;
mod writer;

pub use accounts::{Accounts, AccountsError};
pub use auth_bucket::{AuthBucket, RevocationChange};
pub use cancel::CancelOutcome;
pub use claim::Claim;
pub use connect::{ConnectionCounts, Nats};
pub use control::{Control, ControlSignal, Question};
pub use credentials::{Credentials, redacted};
pub use delivery::Delivery;
pub use drift::{Change, Drift};
pub use error::NatsError;
pub use features::Features;
pub use follow::LiveTail;
pub use inspect::{BrokerReport, ClockReport, FoundStream, StorageReport, StreamReport};
pub use kinds::{KindStatus, KindUsage, QueueReport, QueueSize};
pub use list::{JobQuery, ListError};
pub use listing_slots::Busy;
pub use log::Log;
pub use names::Names;
pub use open::MIN_VERSION;
pub use options::Options;
pub use publish::Published;
pub use purge::{PurgeOutcome, PurgeSignals};
pub use queue::{Queue, SubmitOutcome};
pub use read::Reader;
pub use recorder::Recorder;
pub use replay::LogReplay;
pub use replay_counts::{ReplayCounts, ReplaySource};
pub use report_cache::ReportCache;
pub use roles::{Role, RolePermissions};
pub use setup::StreamSettings;
pub use submit_signals::LiveSubmitSignals;
pub use ticket_bucket::TicketBucket;
pub use tip::Tip;
pub use usage::{QueueUsage, UsageCache};
pub use writer::{AppendError, EventWriter, Unwritable};

/// The most verbose level at which modules of the client library may log, whatever filter is set.
/// Below it they log whole messages, with jobs' inputs, output and callback addresses, and servers'
/// addresses with their passwords.
pub const LOG_LIMITS: [(&str, tracing::Level); 2] = [
    ("async_nats::connection", tracing::Level::DEBUG),
    ("async_nats::connector", tracing::Level::INFO),
];

/// A log filter for the client library: this module logs the events of connections itself.
pub const LOG_FILTER: &str = "async_nats=off";
