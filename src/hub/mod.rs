//! The hub of one edge thread: a feed for every known job that is watched, shared by all its
//! watchers, and a table of watched jobs that are not known. Sessions read from feeds.

mod archive;
mod check;
mod drive;
mod driver;
mod feed;
mod feeds;
mod history;
mod siblings;
#[cfg(test)]
mod tests;
mod unpacked;
mod waiter;
mod waiting;
mod watchers;

pub use feed::{Feed, FeedWatch};
pub use feeds::{Full, Hub};
pub use siblings::Siblings;
pub use waiter::Waiter;
pub use waiting::FoundJob;
pub use watchers::Standing;
