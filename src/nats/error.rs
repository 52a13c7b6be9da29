//! Errors between this process and the broker. Public codes are derived from them elsewhere.

use std::fmt::Display;
use std::path::PathBuf;

use async_nats::jetstream::ErrorCode;

use super::drift::Drift;
use crate::source::Unavailable;

/// An error of the broker, or of the connection to it.
#[derive(Debug, thiserror::Error)]
pub enum NatsError {
    /// No server can be reached.
    #[error("cannot reach NATS at {url}: {reason}")]
    Unreachable {
        /// The address.
        url: String,
        /// The client library's error.
        reason: String,
    },
    /// The address of the servers cannot be used.
    #[error("invalid NATS address {url}: {reason}")]
    BadAddress {
        /// The address, without user, password and token.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A file with credentials or certificates cannot be used.
    #[error("cannot use {} for NATS: {reason}", file.display())]
    BadCredentials {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The server rejects the credentials, or requires some.
    #[error("NATS at {url} refused the connection: wrong or missing credentials ({reason})")]
    Unauthorized {
        /// The address.
        url: String,
        /// The client library's error.
        reason: String,
    },
    /// The TLS handshake failed.
    #[error("no TLS connection to NATS at {url}: {reason}")]
    Tls {
        /// The address.
        url: String,
        /// The client library's error.
        reason: String,
    },
    /// The server is older than the oldest supported version.
    #[error("nats-server {found} at {url} is too old: Tailwater needs {needed} or newer")]
    TooOld {
        /// The address.
        url: String,
        /// The server's version.
        found: String,
        /// The oldest version that is supported.
        needed: &'static str,
    },
    /// The streams do not exist.
    #[error("NATS has no stream {stream}: run `tailwater setup` first")]
    NotSetUp {
        /// The missing stream.
        stream: String,
    },
    /// A stream exists and differs from its declaration.
    #[error("{0}")]
    Drifted(Drift),
    /// The broker lacks the disk space that a stream reserves.
    #[error(
        "NATS lacks the {mib} MiB of disk space that stream {stream} reserves: free some, or keep less with --max-bytes"
    )]
    NoSpace {
        /// The stream.
        stream: String,
        /// The reserved space, in MiB.
        mib: u64,
    },
    /// The broker returned an error.
    #[error("NATS refused: {description} (error {})", code.0)]
    Api {
        /// The class of the error, as an HTTP status.
        status: u16,
        /// JetStream's error code.
        code: ErrorCode,
        /// The server's text.
        description: String,
    },
    /// The broker did not answer, or its answer cannot be used.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

impl NatsError {
    /// Whether the same request may succeed once the broker has started, or has elected its
    /// leaders.
    pub(super) fn is_temporary(&self) -> bool {
        match self {
            Self::Unavailable(_) => true,
            Self::Api { code, .. } => matches!(
                *code,
                ErrorCode::CLUSTER_NOT_AVAILABLE
                    | ErrorCode::CLUSTER_NOT_LEADER
                    | ErrorCode::CLUSTER_REQUIRED
            ),
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

/// An error of the client library as [`Unavailable`].
pub(super) fn unavailable(error: impl Display) -> Unavailable {
    Unavailable(error.to_string())
}

impl From<NatsError> for Unavailable {
    fn from(error: NatsError) -> Self {
        if let NatsError::Unavailable(error) = error {
            error
        } else {
            Self(error.to_string())
        }
    }
}
