//! The result of one check of a worker.

/// What was checked, and what was found.
#[derive(Debug)]
pub(super) struct CheckResult {
    pub(super) check: &'static str,
    /// What is right, or what is wrong.
    pub(super) found: Result<String, String>,
}
