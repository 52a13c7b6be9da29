//! What holds for every event of every log, whatever happened to its worker. It does no I/O.

use std::sync::Arc;

use crate::wire::{Body, Event, EventType, Stored};

/// A rule, and how it is broken first in the events of one job.
pub(super) struct Rule {
    pub(super) check: &'static str,
    /// What is right.
    pub(super) holds: &'static str,
    pub(super) fault: fn(&[Arc<Stored>]) -> Option<String>,
}

pub(super) const RULES: [Rule; 5] = [
    Rule {
        check: "numbers",
        holds: "events are numbered from 1, without gaps",
        fault: numbers,
    },
    Rule {
        check: "fence",
        holds: "each event was published with the stream sequence of the one before",
        fault: fence,
    },
    Rule {
        check: "fields",
        holds: "each event has the fields of its type, and no text is empty",
        fault: fields,
    },
    Rule {
        check: "attempts",
        holds: "each attempt starts with the next number, and its events have it",
        fault: attempts,
    },
    Rule {
        check: "end",
        holds: "each log ends with its one final event",
        fault: end,
    },
];

fn numbers(events: &[Arc<Stored>]) -> Option<String> {
    let numbered = (1..).zip(events);
    let wrong = numbered
        .into_iter()
        .find(|(number, event)| event.seq.0 != *number);
    wrong.map(|(number, event)| format!("event {number} has the number {}", event.seq))
}

fn fence(events: &[Arc<Stored>]) -> Option<String> {
    let mut before = 0;
    for event in events {
        match event.prev {
            Some(prev) if prev == before => {}
            Some(prev) => {
                return Some(format!(
                    "event {} expected the stream sequence {prev}, not {before}",
                    event.seq
                ));
            }
            None => {
                return Some(format!(
                    "event {} has no Nats-Expected-Last-Subject-Sequence",
                    event.seq
                ));
            }
        }
        before = event.stream_seq;
    }
    None
}

fn fields(events: &[Arc<Stored>]) -> Option<String> {
    events.iter().find_map(|event| match event.event() {
        Err(error) => Some(format!("event {}: {error}", event.seq)),
        Ok(Event {
            body: Body::Chunk { text, .. },
            ..
        }) if text.is_empty() => Some(format!("event {} has an empty text", event.seq)),
        Ok(_) => None,
    })
}

fn attempts(events: &[Arc<Stored>]) -> Option<String> {
    let mut attempt = 0;
    for event in events {
        if event.event_type == EventType::Started {
            attempt += 1;
        }
        if event.attempt != attempt {
            return Some(format!(
                "event {} has the attempt {}, not {attempt}",
                event.seq, event.attempt
            ));
        }
    }
    None
}

fn end(events: &[Arc<Stored>]) -> Option<String> {
    let last = events.last()?;
    if !last.event_type.is_end() {
        return Some(format!(
            "it ends with event {}, {:?}",
            last.seq, last.event_type
        ));
    }
    let early = events[..events.len() - 1]
        .iter()
        .find(|event| event.event_type.is_end());
    early.map(|event| format!("event {} is final, and others follow", event.seq))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An event of a type with these numbers.
    fn event(event_type: &str, seq: u64, attempt: u32, prev: Option<u64>) -> Arc<Stored> {
        let payload = format!(
            r#"{{"type":"{event_type}","kind":"k","worker":"w","text":"x","job":"j","seq":{seq},"attempt":{attempt},"ts":1}}"#
        );
        let stored = Stored::decode(&"j".parse().unwrap(), seq * 10, payload.into());
        Arc::new(stored.unwrap().after(prev))
    }

    /// The rules that these events break.
    fn broken(events: &[Arc<Stored>]) -> Vec<&'static str> {
        let broken = RULES.iter().filter(|rule| (rule.fault)(events).is_some());
        broken.map(|rule| rule.check).collect()
    }

    #[test]
    fn each_rule_finds_what_it_is_for() {
        let good = [
            event("job:queued:v1", 1, 0, Some(0)),
            event("job:started:v1", 2, 1, Some(10)),
            event("model:chunk:v1", 3, 1, Some(20)),
            event("job:cancelled:v1", 4, 1, Some(30)),
        ];
        assert_eq!(broken(&good), [""; 0]);
        let with = |index: usize, wrong: Arc<Stored>| {
            let mut events = good.clone();
            events[index] = wrong;
            broken(&events)
        };
        assert_eq!(with(0, event("job:queued:v1", 1, 0, None)), ["fence"]);
        assert_eq!(with(2, event("model:chunk:v1", 3, 1, Some(10))), ["fence"]);
        assert_eq!(
            with(2, event("model:chunk:v1", 3, 2, Some(20))),
            ["attempts"]
        );
        assert_eq!(
            with(2, event("job:failed:v1", 3, 1, Some(20))),
            ["fields", "end"]
        );
        assert_eq!(with(3, event("model:chunk:v1", 4, 1, Some(30))), ["end"]);
        assert_eq!(
            with(3, event("job:cancelled:v1", 5, 1, Some(30))),
            ["numbers"]
        );
        let started = event("job:started:v1", 4, 1, Some(30));
        assert_eq!(with(3, started), ["attempts", "end"]);
    }
}
