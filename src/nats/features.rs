//! Optional features of a kind's workers, as listed in the metadata of the kind's consumer. Workers
//! in other languages need not implement them. A job that needs a feature is refused if the kind's
//! workers lack it.

use std::collections::HashMap;

use super::names::FEATURES;
use crate::wire::{Kind, Limits, Submission};

// In the metadata the features are separated by commas.
const CALLBACKS: &str = "callbacks";
const LIMITS: &str = "limits";

/// The optional features of a kind's workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// They submit the job that delivers a callback.
    pub callbacks: bool,
    /// They end a job at its time limits.
    pub limits: bool,
}

impl Features {
    /// The features of this crate's workers.
    pub const ALL: Self = Self {
        callbacks: true,
        limits: true,
    };

    /// The features that the metadata of a kind's consumer lists.
    pub(super) fn of(metadata: &HashMap<String, String>) -> Self {
        let text = metadata.get(FEATURES).map_or("", String::as_str);
        let has = |feature: &str| text.split(',').any(|has| has.trim() == feature);
        Self {
            callbacks: has(CALLBACKS),
            limits: has(LIMITS),
        }
    }

    /// The list for the metadata.
    pub(super) fn text(self) -> String {
        let listed = [(self.callbacks, CALLBACKS), (self.limits, LIMITS)];
        listed
            .into_iter()
            .filter_map(|(has, name)| has.then_some(name))
            .collect::<Vec<_>>()
            .join(",")
    }

    /// Why the kind's workers cannot run a job: the feature that they lack.
    pub fn refusal(self, submission: &Submission) -> Option<String> {
        let Submission {
            kind,
            limits:
                Limits {
                    timeout_ms,
                    silence_timeout_ms,
                },
            callback,
            ..
        } = submission;
        if callback.is_some() && !self.callbacks {
            return Some(lacking(
                kind,
                "support callbacks; submit it without callback",
            ));
        }
        if (timeout_ms.is_some() || silence_timeout_ms.is_some()) && !self.limits {
            let what = "support time limits; submit it without timeout_ms and silence_timeout_ms";
            return Some(lacking(kind, what));
        }
        None
    }
}

fn lacking(kind: &Kind, what: &str) -> String {
    format!("the workers of the kind {kind} do not {what}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn listed(features: &str) -> Features {
        Features::of(&metadata("tailwater.features", features))
    }

    fn metadata(key: &str, value: &str) -> HashMap<String, String> {
        HashMap::from([(key.to_owned(), value.to_owned())])
    }

    #[test]
    fn workers_have_only_the_features_that_their_consumer_lists() {
        let none = Features {
            callbacks: false,
            limits: false,
        };
        assert_eq!(listed(&Features::ALL.text()), Features::ALL);
        assert_eq!(
            listed("limits, more"),
            Features {
                limits: true,
                ..none
            }
        );
        for without in [HashMap::new(), metadata("_nats.level", "1")] {
            assert_eq!(Features::of(&without), none);
        }
    }

    #[test]
    fn a_job_is_refused_only_for_a_feature_that_it_needs() {
        let plain = Submission::new("k".parse().unwrap(), json!(1));
        let called = Submission {
            callback: Some("https://h/".into()),
            ..plain.clone()
        };
        let limits = Limits {
            timeout_ms: None,
            silence_timeout_ms: Some(5),
        };
        let limited = Submission {
            limits,
            ..plain.clone()
        };
        for submission in [&plain, &called, &limited] {
            assert_eq!(Features::ALL.refusal(submission), None);
        }
        assert_eq!(listed("").refusal(&plain), None);
        assert_eq!(listed("callbacks").refusal(&called), None);
        assert_eq!(listed("limits").refusal(&limited), None);
        assert!(
            listed("limits")
                .refusal(&called)
                .unwrap()
                .contains("kind k do not support callbacks")
        );
        assert!(
            listed("callbacks")
                .refusal(&limited)
                .unwrap()
                .contains("kind k do not support time limits")
        );
    }
}
