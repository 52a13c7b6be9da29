//! Tailwater.
pub mod wire;
