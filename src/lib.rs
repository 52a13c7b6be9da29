//! Tailwater.
pub mod config;
pub mod hub;
pub mod nats;
pub mod resume;
pub mod runtime;
pub mod session;
pub mod source;
pub mod wire;
