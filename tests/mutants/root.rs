//! The root of a stand-alone crate around `src/resume` alone, so that each mutant is compiled in seconds. It owns
//! stand-ins for the few things that `resume` takes from `wire`; it is no part of the test that compiles it.
#![allow(dead_code, unused_imports, reason = "only the tests of `resume` run here")]

mod resume;

mod wire {
    use std::fmt;

    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
    pub struct Seq(pub u64);

    impl Seq {
        pub const FIRST: Self = Self(1);

        pub const fn next(self) -> Self {
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

    pub struct Kind;

    impl Kind {
        pub fn is_end(&self) -> bool {
            false
        }
    }

    pub struct Stored {
        pub seq: Seq,
        pub kind: Kind,
    }

    impl Stored {
        pub fn size(&self) -> usize {
            0
        }
    }
}
