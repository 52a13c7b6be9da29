//! Who may do what: what a token says, whether it is valid, and whether its subject may perform an
//! operation. Pure: keys, the time and the revocations are arguments. Files and key servers are
//! read elsewhere.

mod claims;
mod decision;
mod grants;
mod key_set;
mod pattern;
mod revocations;
mod ring_provider;
mod static_tokens;
mod token;

pub use claims::{Expected, Subject};
pub use decision::{Operation, decide};
pub use grants::Grants;
pub use key_set::{BadKeySet, KeySet};
pub use pattern::{BadPattern, NamePattern};
pub use revocations::{Revocation, Revocations};
pub use static_tokens::{BadTokenFile, StaticTokens};
pub use token::{BadSigningSecret, NewToken, SigningSecret, TokenError, TokenKeys};
