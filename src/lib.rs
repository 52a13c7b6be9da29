//! Tailwater.
pub mod backend;
pub mod cli;
pub mod config;
pub mod edge;
pub mod guard;
pub mod hub;
pub mod nats;
pub mod resume;
pub mod runtime;
pub mod session;
pub mod source;
pub mod wire;
pub mod worker;
