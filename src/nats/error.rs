//! What can go wrong between here and the broker. Public codes are made of it elsewhere.

use std::path::PathBuf;

use super::setup::Drift;
use crate::source::Unavailable;

/// What went wrong with the broker.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No server can be reached.
    #[error("cannot reach NATS at {url}: {reason}")]
    Unreachable {
        /// Where it was sought.
        url: String,
        /// What the client library says.
        reason: String,
    },
    /// The address of the servers cannot be used.
    #[error("invalid NATS address {url}: {reason}")]
    BadAddress {
        /// The address, without what may be a password.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A file that should secure the connection cannot be used.
    #[error("cannot use {} for NATS: {reason}", file.display())]
    BadCredentials {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The server does not accept the user, password, token, key or credentials, or wants some.
    #[error("NATS at {url} refused the connection: wrong or missing credentials ({reason})")]
    Unauthorized {
        /// Where it is.
        url: String,
        /// What the client library says.
        reason: String,
    },
    /// No encrypted connection came about.
    #[error("no TLS connection to NATS at {url}: {reason}")]
    Tls {
        /// Where it is.
        url: String,
        /// What the client library says.
        reason: String,
    },
    /// The server lacks what Tailwater needs.
    #[error("nats-server {found} at {url} is too old: Tailwater needs {needed} or newer")]
    TooOld {
        /// Where it is.
        url: String,
        /// Its version.
        found: String,
        /// The oldest version that will do.
        needed: &'static str,
    },
    /// The streams do not exist.
    #[error("NATS has no stream {stream}: run `tailwater setup` first")]
    NotSetUp {
        /// The one that was sought.
        stream: String,
    },
    /// A stream exists and differs from its declaration.
    #[error("{0}")]
    Drifted(Drift),
    /// The broker has not the disk space that a stream reserves.
    #[error(
        "NATS has not the {mib} MiB of disk space that stream {stream} reserves: free some, or keep less with --max-bytes"
    )]
    NoSpace {
        /// The stream.
        stream: String,
        /// What it reserves, in MiB.
        mib: u64,
    },
    /// The broker refused.
    #[error("NATS refused: {description} (error {code})")]
    Api {
        /// What kind of error it is, as an HTTP status.
        status: u16,
        /// JetStream's error code.
        code: u64,
        /// Its words.
        description: String,
    },
    /// The broker did not answer, or not with what was asked for.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

impl Error {
    /// Whether the same request may succeed once the broker has started, or has elected its leaders.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            Self::Unavailable(_) => true,
            Self::Api { code, .. } => code::NOT_YET.contains(code),
            Self::Unreachable { .. }
            | Self::BadAddress { .. }
            | Self::BadCredentials { .. }
            | Self::Unauthorized { .. }
            | Self::Tls { .. }
            | Self::TooOld { .. }
            | Self::NotSetUp { .. }
            | Self::Drifted(_)
            | Self::NoSpace { .. } => false,
        }
    }
}

/// JetStream's error codes that are told apart here; the list is `server/errors.json` of nats-server.
pub(super) mod code {
    /// A consumer of that name does not exist.
    pub(in crate::nats) const CONSUMER_NOT_FOUND: u64 = 10014;
    /// JetStream is starting, or a cluster has no leader.
    pub(in crate::nats) const NOT_YET: [u64; 3] = [10008, 10009, 10010];
    /// No message matches.
    pub(in crate::nats) const NO_MESSAGE: u64 = 10037;
    /// A stream of that name does not exist.
    pub(in crate::nats) const STREAM_NOT_FOUND: u64 = 10059;
    /// The expected last sequence is another.
    pub(in crate::nats) const WRONG_LAST_SEQUENCE: u64 = 10071;
    /// The disk, or what the account may use of it, has too little room for a stream.
    pub(in crate::nats) const NO_SPACE: u64 = 10047;
    /// The store did not take the message. Why is only in the description.
    pub(in crate::nats) const NOT_STORED: u64 = 10077;
    /// The description of [`NOT_STORED`] when a stream with `discard: new` has all that it may have of a subject.
    pub(in crate::nats) const FULL_SUBJECT: &str = "maximum messages per subject exceeded";
    /// The descriptions of [`NOT_STORED`] when such a stream is full.
    pub(in crate::nats) const FULL: [&str; 2] =
        ["maximum messages exceeded", "maximum bytes exceeded"];
    /// The description of [`NOT_STORED`] when no store takes a message of that size.
    pub(in crate::nats) const TOO_LARGE_TO_STORE: &str = "message too large";
    /// The same publish can never succeed: the message or its headers are too large, or the stream is sealed, which cannot
    /// be undone.
    pub(in crate::nats) const PERMANENT: [u64; 3] = [10054, 10097, 10109];
    /// The expected last sequence cannot be told: another publish to the subject is in flight.
    pub(in crate::nats) const IN_FLIGHT: u64 = 10164;
    /// A publish with the same message id is in flight.
    pub(in crate::nats) const DUPLICATE_IN_FLIGHT: u64 = 10158;
}
