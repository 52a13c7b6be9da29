//! Job ids, kinds, prefixes and sequence numbers. They are validated where they enter, so their types are
//! always valid.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::limits::NAME_MAX;

/// The text is not a valid kind or prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be 1 to {NAME_MAX} characters of A-Z a-z 0-9 _ -")]
pub struct BadName;

/// The text is not a valid job id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "must be 1 to {NAME_MAX} characters of A-Z a-z 0-9 _ -, or a kind, a colon and such a name"
)]
pub struct BadId;

fn is_name(text: &str) -> bool {
    let fits = (1..=NAME_MAX).contains(&text.len());
    let valid = text
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    fits && valid
}

fn check_name(text: &str) -> Result<(), BadName> {
    if is_name(text) { Ok(()) } else { Err(BadName) }
}

fn check_id(text: &str) -> Result<(), BadId> {
    let valid = match text.split_once(':') {
        Some((kind, name)) => is_name(kind) && is_name(name),
        None => is_name(text),
    };
    if valid { Ok(()) } else { Err(BadId) }
}

/// A job's id: a *plain* one is a name, `[A-Za-z0-9_-]{1,64}`; a *qualified* one is
/// `<kind>:<name>` and names the job's kind. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JobId {
    text: Arc<str>,
    /// Computed once, since each event needs it several times.
    tag: u32,
}

impl JobId {
    fn of_valid(text: &str) -> Self {
        Self {
            text: text.into(),
            tag: crc32fast::hash(text.as_bytes()),
        }
    }

    /// The qualified id of a job of `kind`.
    ///
    /// # Errors
    /// [`BadId`] when `name` is not a name.
    pub fn qualified(kind: &Kind, name: &str) -> Result<Self, BadId> {
        format!("{kind}:{name}").parse()
    }

    /// The kind that a qualified id names; `None` for a plain id.
    pub fn kind(&self) -> Option<&str> {
        self.text.split_once(':').map(|(kind, _)| kind)
    }

    /// The id without the kind.
    pub fn name(&self) -> &str {
        match self.text.split_once(':') {
            Some((_, name)) => name,
            None => &self.text,
        }
    }

    /// Whether a job of `kind` may have this id: any plain one, and a qualified one that names the
    /// kind.
    pub fn may_be_of(&self, kind: &Kind) -> bool {
        self.kind().is_none_or(|named| named == kind.as_str())
    }

    /// The zlib CRC-32 of the id: selects the job's shard, and ties a cursor to its job.
    pub const fn tag(&self) -> u32 {
        self.tag
    }

    /// The shard, out of `shards`, that holds this job's log: `crc32(id) mod shards`.
    ///
    /// # Panics
    /// When `shards` is 0, which `setup` refuses.
    pub fn shard(&self, shards: u32) -> u32 {
        assert!(shards > 0, "a log has at least one shard");
        self.tag() % shards
    }

    /// A part of `over` that differs from job to job, to spread work that is due for many jobs.
    pub fn spread(&self, over: Duration) -> Duration {
        over * (self.tag() >> 16) / 0x1_0000
    }
}

/// Which workers may take a job: `[A-Za-z0-9_-]{1,64}`. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Kind {
    text: Arc<str>,
}

impl Kind {
    fn of_valid(text: &str) -> Self {
        Self { text: text.into() }
    }
}

/// The first token of every NATS subject and, in capitals, the prefix of every stream's name:
/// `[A-Za-z0-9_-]{1,64}`. Cheap to clone.
#[derive(Clone, PartialEq, Eq)]
pub struct Prefix {
    text: Arc<str>,
}

impl Prefix {
    fn of_valid(text: &str) -> Self {
        Self { text: text.into() }
    }
}

macro_rules! name {
    ($name:ident, $check:ident, $error:ident) => {
        impl $name {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.text
            }
        }
        impl FromStr for $name {
            type Err = $error;
            fn from_str(text: &str) -> Result<Self, $error> {
                $check(text).map(|()| Self::of_valid(text))
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}
name!(JobId, check_id, BadId);
name!(Kind, check_name, BadName);
name!(Prefix, check_name, BadName);

/// An event's sequence number in its job's log: 1, 2, 3, … without gaps.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    JsonSchema,
)]
#[serde(transparent)]
pub struct Seq(pub u64);

impl Seq {
    /// The sequence number of a log's first event.
    pub const FIRST: Self = Self(1);

    /// The next number. Real sequence numbers never exceed their stream sequence; only a number
    /// that a client invented can be the largest one, which has no successor and is returned
    /// unchanged.
    #[must_use]
    pub const fn successor(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// The previous number; 0 means "before the first event".
    #[must_use]
    pub const fn before(self) -> Self {
        Self(self.0.saturating_sub(1))
    }
}

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A message's stream sequence: its position in its JetStream stream. 0 means "no message".
pub type StreamSeq = u64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_id_is_a_name_or_a_kind_and_a_name_of_at_most_64_characters_each() {
        let long = "x".repeat(64);
        for (good, kind, name) in [
            ("a", None, "a"),
            ("A-Z_09", None, "A-Z_09"),
            (&long, None, &long),
            ("demo:a", Some("demo"), "a"),
            ("A_1:-", Some("A_1"), "-"),
            (&format!("{long}:{long}"), Some(long.as_str()), &long),
        ] {
            let job: JobId = good.parse().unwrap();
            assert_eq!((job.as_str(), job.kind(), job.name()), (good, kind, name));
        }
        let too_long = "x".repeat(65);
        for bad in [
            "",
            "a.b",
            "a*",
            ">",
            "a b",
            "ä",
            "a\n",
            &too_long,
            ":",
            "a:",
            ":a",
            "a::b",
            "a:b:c",
            "a:b.c",
            "a.b:c",
            "a:*",
            "*:a",
            "a: b",
            &format!("k:{too_long}"),
            &format!("{too_long}:j"),
        ] {
            assert_eq!(bad.parse::<JobId>(), Err(BadId), "{bad:?}");
        }
        for bad in ["a:b", ":", ""] {
            assert_eq!(bad.parse::<Kind>(), Err(BadName), "{bad:?}");
            assert_eq!(bad.parse::<Prefix>(), Err(BadName), "{bad:?}");
        }
    }

    #[test]
    fn a_qualified_id_is_only_of_its_kind() {
        let demo: Kind = "demo".parse().unwrap();
        let other: Kind = "dem".parse().unwrap();
        let job = JobId::qualified(&demo, "7").unwrap();
        assert_eq!(job.as_str(), "demo:7");
        assert!(job.may_be_of(&demo) && !job.may_be_of(&other));
        let plain: JobId = "demo".parse().unwrap();
        assert!(plain.may_be_of(&demo) && plain.may_be_of(&other));
        assert_eq!(JobId::qualified(&demo, "a:b"), Err(BadId));
    }

    #[test]
    fn a_shard_is_computed_from_the_crc32_of_zlib() {
        // python3 -c 'import zlib; print(zlib.crc32(b"job-1"), zlib.crc32(b"job-1") % 4)'
        let job: JobId = "job-1".parse().unwrap();
        assert_eq!(job.tag(), 0x4C42_3A3F_u32);
        assert_eq!(job.shard(4), job.tag() % 4);
        assert_eq!(job.shard(1), 0);
    }
}
