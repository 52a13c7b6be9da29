//! The names of things: job, kind, sequence number. Parsed once at the border, trusted inside.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::limits::NAME_MAX;

/// Why a text is no job id and no kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be 1 to {NAME_MAX} characters out of A-Z a-z 0-9 _ -")]
pub struct BadName;

fn check(text: &str) -> Result<(), BadName> {
    let fits = (1..=NAME_MAX).contains(&text.len());
    let clean = text
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    if fits && clean { Ok(()) } else { Err(BadName) }
}

/// A job's id: `[A-Za-z0-9_-]{1,64}`. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JobId(Arc<str>);

impl JobId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// CRC-32 (the one of zlib) of the id: names the job's shard, and ties a cursor to its job.
    pub fn tag(&self) -> u32 {
        crc32fast::hash(self.0.as_bytes())
    }

    /// The shard that holds this job's log when there are `shards` of them: `crc32(id) mod shards`.
    ///
    /// # Panics
    /// When `shards` is 0; `setup` refuses that number.
    pub fn shard(&self, shards: u32) -> u32 {
        assert!(shards > 0, "a log without shards holds no job");
        self.tag() % shards
    }

    /// A share of `over` that differs from job to job, so that what is due for many jobs is not due at one moment.
    pub fn spread(&self, over: Duration) -> Duration {
        over * (self.tag() >> 16) / 0x1_0000
    }
}

/// Which workers may take a job: `[A-Za-z0-9_-]{1,64}`. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Kind(Arc<str>);

impl Kind {
    /// The kind as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

macro_rules! name {
    ($name:ident) => {
        impl FromStr for $name {
            type Err = BadName;
            fn from_str(text: &str) -> Result<Self, BadName> {
                check(text).map(|()| Self(text.into()))
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
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
name!(JobId);
name!(Kind);

/// An event's number in its job's log. The first event has 1, each next one +1, without holes.
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
    /// The number of a log's first event.
    pub const FIRST: Self = Self(1);

    /// The number that follows. An event's number is never above its stream sequence, so only a number that a client made
    /// up reaches the last one there is, which follows itself.
    #[must_use]
    pub const fn successor(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// The number before this one; 0 stands for "before the first event".
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

/// Where a message stands in its JetStream stream. 0 stands for "no message".
pub type StreamSeq = u64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_id_is_one_clean_subject_token_of_at_most_64_characters() {
        for good in ["a", "A-Z_09", &"x".repeat(64)] {
            assert_eq!(good.parse::<JobId>().unwrap().as_str(), good);
        }
        for bad in ["", "a.b", "a*", ">", "a b", "ä", "a\n", &"x".repeat(65)] {
            assert_eq!(bad.parse::<JobId>(), Err(BadName), "{bad:?}");
        }
    }

    #[test]
    fn a_shard_is_the_crc32_that_every_language_has() {
        // python3 -c 'import zlib; print(zlib.crc32(b"job-1"), zlib.crc32(b"job-1") % 4)'
        let job: JobId = "job-1".parse().unwrap();
        assert_eq!(job.tag(), 0x4C42_3A3F_u32);
        assert_eq!(job.shard(4), job.tag() % 4);
        assert_eq!(job.shard(1), 0);
    }
}
