//! Every limit and default of the system, each with its reason, in a file for each concern.
//! Settings that differ between deployments are flags of the command line; their defaults are here
//! too. Limits that are part of the contract with clients are in
//! [`wire::limits`](crate::wire::limits).

mod auth;
mod backend;
mod bench;
mod broker;
mod conformance;
mod doctor;
mod edge;
mod feed;
mod http;
mod input;
mod listing;
mod log;
mod memory;
mod process;
mod queue;
mod session;
mod socketio;
mod tls;
mod top;
mod worker;

pub use auth::*;
pub use backend::*;
pub use bench::*;
pub use broker::*;
pub use conformance::*;
pub use doctor::*;
pub use edge::*;
pub use feed::*;
pub use http::*;
pub use input::*;
pub use listing::*;
pub use log::*;
pub use memory::*;
pub use process::*;
pub use queue::*;
pub use session::*;
pub use socketio::*;
pub use tls::*;
pub use top::*;
pub use worker::*;
