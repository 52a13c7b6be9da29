//! The root of a crate that contains only `src/resume`, so that each mutant compiles in seconds. It
//! has stand-ins for the few types that `resume` uses from `wire`.
#![allow(dead_code, unused_imports, reason = "only the tests of `resume` run here")]

mod resume;

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
