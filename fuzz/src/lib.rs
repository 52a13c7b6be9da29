//! The modules of Tailwater that decode what others send, compiled alone, and the fuzz targets.
#![allow(missing_docs, dead_code, unreachable_pub)]

#[path = "../../src/auth/mod.rs"]
pub mod auth;
#[path = "../../src/config/mod.rs"]
pub mod config;
#[path = "../../src/edge/ws/reader.rs"]
pub(crate) mod reader;
#[path = "../../src/backend/sse.rs"]
pub(crate) mod sse;
pub mod targets;
#[path = "../../src/wire/mod.rs"]
pub mod wire;
