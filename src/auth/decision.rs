//! The one decision: whether a subject may perform an operation. Every transport asks it.

use super::claims::Subject;
use super::pattern::NamePattern;
use crate::wire::{Code, JobId, Kind};

/// What a client asks for.
#[derive(Clone, Copy, Debug)]
pub enum Operation<'a> {
    /// Watch a job, or read its events or state.
    Watch(&'a JobId),
    /// Submit a job of this kind.
    Submit(&'a Kind),
    /// Cancel a job.
    Cancel(&'a JobId),
    /// Remove everything that is stored about a job.
    Purge(&'a JobId),
    /// List the jobs that it may watch.
    List,
    /// Read the statistics and metrics of the edge.
    Observe,
}

/// Whether the subject may do this.
///
/// # Errors
/// The code of the answer. A job that the subject may not watch is answered like one that does not
/// exist.
pub fn decide(subject: &Subject, operation: Operation<'_>) -> Result<(), Code> {
    let grants = &subject.grants;
    let has = |patterns: &[NamePattern], name: &str| {
        grants.admin || patterns.iter().any(|pattern| pattern.matches(name))
    };
    let allowed = match operation {
        Operation::Watch(job) => has(&grants.watch, job.as_str()),
        Operation::Submit(kind) => has(&grants.submit, kind.as_str()),
        Operation::Cancel(job) => has(&grants.cancel, job.as_str()),
        Operation::List => grants.admin || grants.list,
        Operation::Purge(_) | Operation::Observe => grants.admin,
    };
    match operation {
        _ if allowed => Ok(()),
        Operation::Cancel(job) | Operation::Purge(job) if has(&grants.watch, job.as_str()) => {
            Err(Code::Forbidden)
        }
        Operation::Watch(_) | Operation::Cancel(_) | Operation::Purge(_) => Err(Code::JobNotFound),
        Operation::Submit(_) | Operation::List | Operation::Observe => Err(Code::Forbidden),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::Grants;
    use serde_json::json;

    fn subject(grants: serde_json::Value) -> Subject {
        Subject {
            grants: serde_json::from_value(grants).unwrap(),
            ..Subject::anyone()
        }
    }

    #[test]
    fn what_is_not_granted_is_refused() {
        let job: JobId = "j1".parse().unwrap();
        let kind: Kind = "demo".parse().unwrap();
        let operations = [
            Operation::Watch(&job),
            Operation::Submit(&kind),
            Operation::Cancel(&job),
            Operation::Purge(&job),
            Operation::List,
            Operation::Observe,
        ];
        let no = Err(Code::Forbidden);
        let unseen = Err(Code::JobNotFound);
        for (grants, expected) in [
            (json!({}), [unseen, no, unseen, unseen, no, no]),
            (json!({"watch": ["j1"]}), [Ok(()), no, no, no, no, no]),
            (
                json!({"watch": ["j"]}),
                [unseen, no, unseen, unseen, no, no],
            ),
            (
                json!({"watch": ["j*"], "cancel": ["j1"]}),
                [Ok(()), no, Ok(()), no, no, no],
            ),
            (
                json!({"cancel": ["*"]}),
                [unseen, no, Ok(()), unseen, no, no],
            ),
            (
                json!({"submit": ["demo"]}),
                [unseen, Ok(()), unseen, unseen, no, no],
            ),
            (
                json!({"submit": ["exec"]}),
                [unseen, no, unseen, unseen, no, no],
            ),
            (
                json!({"list": true}),
                [unseen, no, unseen, unseen, Ok(()), no],
            ),
            (json!({"admin": true}), [Ok(()); 6]),
        ] {
            let subject = subject(grants.clone());
            let decided = operations.map(|operation| decide(&subject, operation));
            assert_eq!(decided, expected, "{grants}");
        }
    }

    #[test]
    fn a_token_for_one_job_is_good_for_nothing_else() {
        let mine: JobId = "j1".parse().unwrap();
        let other: JobId = "j12".parse().unwrap();
        for cancel in [false, true] {
            let subject = Subject {
                grants: Grants::one_job(&mine, cancel),
                ..Subject::anyone()
            };
            assert_eq!(decide(&subject, Operation::Watch(&mine)), Ok(()));
            assert_eq!(decide(&subject, Operation::Cancel(&mine)).is_ok(), cancel);
            for operation in [Operation::Watch(&other), Operation::Cancel(&other)] {
                assert_eq!(decide(&subject, operation), Err(Code::JobNotFound));
            }
        }
    }
}
