//! What the workers of a kind do besides running its jobs, as the metadata of the kind's consumer says. Workers in other
//! languages need not do all of it, and a job that asks for what its worker does not know would be run without it.

use serde_json::Value;

use super::names::FEATURES;
use crate::wire::{Kind, Limits, Submission};

/// In the metadata: the features, separated by commas.
const CALLBACKS: &str = "callbacks";
const LIMITS: &str = "limits";

/// What the workers of a kind do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// They submit the job that delivers a callback.
    pub callbacks: bool,
    /// They end a job at its time limits.
    pub limits: bool,
}

impl Features {
    /// What this crate's workers do.
    pub const ALL: Self = Self {
        callbacks: true,
        limits: true,
    };

    /// What a kind's consumer says. What it does not say, its workers do not do.
    pub(super) fn of(consumer: &Value) -> Self {
        let text = consumer["config"]["metadata"][FEATURES]
            .as_str()
            .unwrap_or_default();
        let has = |feature: &str| text.split(',').any(|has| has.trim() == feature);
        Self {
            callbacks: has(CALLBACKS),
            limits: has(LIMITS),
        }
    }

    /// As it stands in the metadata.
    pub(super) fn text(self) -> String {
        let listed = [(self.callbacks, CALLBACKS), (self.limits, LIMITS)];
        listed
            .into_iter()
            .filter_map(|(has, name)| has.then_some(name))
            .collect::<Vec<_>>()
            .join(",")
    }

    /// What a job asks for that the workers of its kind do not do, as a sentence.
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
            return Some(lacking(kind, "call back; submit it without callback"));
        }
        if (timeout_ms.is_some() || silence_timeout_ms.is_some()) && !self.limits {
            let what = "hold time limits; submit it without timeout_ms and silence_timeout_ms";
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

    fn said(features: &str) -> Features {
        Features::of(&json!({"config": {"metadata": {"tailwater.features": features}}}))
    }

    #[test]
    fn what_a_consumer_does_not_say_its_workers_do_not_do() {
        let none = Features {
            callbacks: false,
            limits: false,
        };
        assert_eq!(said(&Features::ALL.text()), Features::ALL);
        assert_eq!(
            said("limits, more"),
            Features {
                limits: true,
                ..none
            }
        );
        for without in [
            json!({}),
            json!({"config": {"metadata": {"_nats.level": "1"}}}),
            Value::Null,
        ] {
            assert_eq!(Features::of(&without), none);
        }
    }

    #[test]
    fn a_job_is_refused_for_what_it_asks_and_for_nothing_else() {
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
        assert_eq!(said("").refusal(&plain), None);
        assert_eq!(said("callbacks").refusal(&called), None);
        assert_eq!(said("limits").refusal(&limited), None);
        assert!(
            said("limits")
                .refusal(&called)
                .unwrap()
                .contains("kind k do not call back")
        );
        assert!(
            said("callbacks")
                .refusal(&limited)
                .unwrap()
                .contains("kind k do not hold time limits")
        );
    }
}
