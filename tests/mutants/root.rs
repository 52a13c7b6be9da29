//! The root of a crate that contains only `src/resume`, so that each mutant compiles in seconds. It
//! has stand-ins for what `resume` uses from `wire`, and for `fastrand`, which is not linked.
#![allow(dead_code, unused_imports, reason = "only the tests of `resume` run here")]

mod resume;

// Makes `fastrand::Rng` the type below.
extern crate self as fastrand;

#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    pub const fn with_seed(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below the end of the range, by SplitMix64.
    pub fn u64(&mut self, range: std::ops::RangeTo<u64>) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^= bits >> 31;
        ((u128::from(bits) * u128::from(range.end)) >> 64) as u64
    }
}

mod wire {
    use std::fmt;

    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
    pub struct Seq(pub u64);

    impl Seq {
        pub const FIRST: Self = Self(1);

        pub const fn successor(self) -> Self {
            Self(self.0.saturating_add(1))
        }

        pub const fn before(self) -> Self {
            Self(self.0.saturating_sub(1))
        }
    }

    impl fmt::Display for Seq {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            self.0.fmt(f)
        }
    }

    pub struct EventType;

    impl EventType {
        pub fn is_end(&self) -> bool {
            false
        }
    }

    pub struct Stored {
        pub seq: Seq,
        pub event_type: EventType,
    }

    impl Stored {
        pub fn size(&self) -> usize {
            0
        }
    }
}
