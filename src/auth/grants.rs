//! What a token allows: the claim `tailwater`. What is absent is not allowed.

use serde::{Deserialize, Serialize};

use super::pattern::NamePattern;
use crate::wire::JobId;

/// The claim `tailwater`. An unknown field is refused: it may be a restriction of a later version.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Grants {
    /// The jobs that the subject may watch, and whose events and state it may read.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub watch: Vec<NamePattern>,
    /// The kinds that it may submit.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub submit: Vec<NamePattern>,
    /// The jobs that it may cancel.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cancel: Vec<NamePattern>,
    /// Whether it may list the jobs that it may watch.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub list: bool,
    /// Whether it may do everything.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub admin: bool,
}

impl Grants {
    /// Everything.
    pub fn admin() -> Self {
        Self {
            admin: true,
            ..Self::default()
        }
    }

    /// To watch and list all jobs.
    pub fn viewer() -> Self {
        Self {
            watch: vec![NamePattern::any()],
            list: true,
            ..Self::default()
        }
    }

    /// To submit jobs of all kinds, and to watch, cancel and list all jobs.
    pub fn application() -> Self {
        Self {
            submit: vec![NamePattern::any()],
            cancel: vec![NamePattern::any()],
            ..Self::viewer()
        }
    }

    /// To watch one job and, if `cancel`, to cancel it.
    pub fn one_job(job: &JobId, cancel: bool) -> Self {
        let pattern = || {
            job.as_str()
                .parse()
                .unwrap_or_else(|_| unreachable!("every job id is a pattern"))
        };
        Self {
            watch: vec![pattern()],
            cancel: if cancel { vec![pattern()] } else { Vec::new() },
            ..Self::default()
        }
    }

    /// The job, if they are about one job and nothing else.
    pub fn only_job(&self) -> Option<&str> {
        let is_more = self.admin || self.list || !self.submit.is_empty();
        match self.watch.as_slice() {
            [pattern] if !is_more => pattern.only_name(),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn grants_for_one_job_name_it_and_allow_nothing_else() {
        let job: JobId = "j1".parse().unwrap();
        for cancel in [false, true] {
            assert_eq!(Grants::one_job(&job, cancel).only_job(), Some("j1"));
        }
        for more in [
            json!({}),
            json!({"watch": ["j1*"]}),
            json!({"watch": ["j1", "j2"]}),
            json!({"watch": ["j1"], "submit": ["demo"]}),
            json!({"watch": ["j1"], "list": true}),
            json!({"watch": ["j1"], "admin": true}),
        ] {
            let grants: Grants = serde_json::from_value(more.clone()).unwrap();
            assert_eq!(grants.only_job(), None, "{more}");
        }
    }
}
