//! The hub of one edge thread: a feed for every watched job that is known, shared by all its watchers, and a table of the
//! watched jobs that are not known. Read positions and what a client is sent belong to the session.

mod check;
mod drive;
mod driver;
mod feed;
mod feeds;
#[cfg(test)]
mod tests;
mod waiter;
mod waiting;

pub use feed::{Feed, FeedWatch, Standing};
pub use feeds::{Full, Hub};
pub use waiter::Waiter;
