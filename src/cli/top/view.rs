//! The picture of `top` as text. It does no I/O.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::sources::{EdgeNumbers, Picture, WorkerNumbers};
use crate::cli::terminal::neutralized;
use crate::cli::{kinds, table};
use crate::wire::JobRow;

/// The tables, one below the other.
pub(super) fn text(picture: &Picture, now: SystemTime) -> String {
    let Picture {
        queue,
        jobs,
        edges,
        workers,
    } = picture;
    let mut text = String::new();
    match queue {
        Ok(report) => {
            let rows: Vec<_> = report.kinds.iter().map(kinds::cells).collect();
            text += &table::text(kinds::HEAD, &rows);
        }
        Err(error) => text += &format!("The queue: {}\n", neutralized(error)),
    }
    if !workers.is_empty() {
        let rows: Vec<_> = workers.iter().flat_map(worker_rows).collect();
        text += "\n";
        let head = [
            "WORKER", "KIND", "RUNNING", "ATTEMPTS", "EVENTS", "EVENTS/S",
        ];
        text += &table::text(head, &rows);
    }
    if !edges.is_empty() {
        let rows: Vec<_> = edges.iter().map(edge_row).collect();
        text += "\n";
        let head = [
            "EDGE",
            "CLIENTS",
            "WATCHED JOBS",
            "EVENTS/S",
            "LAG",
            "MEMORY",
        ];
        text += &table::text(head, &rows);
    }
    text += "\n";
    match jobs {
        Ok(jobs) => {
            let rows: Vec<_> = jobs.iter().map(|job| job_row(job, now)).collect();
            let head = ["JOB", "KIND", "STATUS", "ATTEMPT", "EVENTS", "UPDATED"];
            text += &table::text(head, &rows);
        }
        Err(error) => text += &format!("The log: {}\n", neutralized(error)),
    }
    text
}

fn worker_rows((name, numbers): &(String, Result<Vec<WorkerNumbers>, String>)) -> Vec<[String; 6]> {
    match numbers {
        Ok(kinds) => kinds
            .iter()
            .map(|of| {
                let rate = of.events_per_second;
                [
                    name.clone(),
                    of.kind.clone(),
                    format!("{}/{}", of.running, of.slots),
                    of.attempts.to_string(),
                    of.events.to_string(),
                    rate.map_or_else(|| "-".to_owned(), |rate| format!("{rate:.1}")),
                ]
            })
            .collect(),
        Err(error) => vec![failed(name, error)],
    }
}

fn edge_row((name, numbers): &(String, Result<EdgeNumbers, String>)) -> [String; 6] {
    match numbers {
        Ok(edge) => {
            let mib = |bytes: u64| bytes >> 20;
            [
                name.clone(),
                edge.connections.values().sum::<u64>().to_string(),
                edge.watched_jobs.to_string(),
                format!("{:.1}", edge.events_per_second),
                edge.lag.to_string(),
                format!("{}/{} MiB", mib(edge.memory.used), mib(edge.memory.limit)),
            ]
        }
        Err(error) => failed(name, error),
    }
}

fn failed(name: &str, error: &str) -> [String; 6] {
    let mut row = [(); 6].map(|()| String::new());
    row[0] = format!("{name}: {}", neutralized(error));
    row
}

fn job_row(job: &JobRow, now: SystemTime) -> [String; 6] {
    let updated = UNIX_EPOCH.checked_add(Duration::from_millis(job.updated_at));
    let age = updated.and_then(|updated| now.duration_since(updated).ok());
    let age = Duration::from_secs(age.unwrap_or_default().as_secs());
    [
        job.id.to_string(),
        job.kind
            .as_ref()
            .map_or_else(|| "-".to_owned(), ToString::to_string),
        job.status.as_str().to_owned(),
        job.attempt.to_string(),
        job.seq.to_string(),
        format!("{} ago", humantime::format_duration(age)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_answer_is_shown_beside_what_does() {
        let worker = WorkerNumbers {
            kind: "demo".into(),
            running: 3.0,
            slots: 16.0,
            attempts: 7.0,
            events: 90.0,
            events_per_second: Some(2.5),
        };
        let picture = Picture {
            queue: Err("no answer".into()),
            jobs: Ok(Vec::new()),
            edges: vec![("http://e".into(), Err("it answers 401".into()))],
            workers: vec![("w:1".into(), Ok(vec![worker]))],
        };
        let shown = text(&picture, UNIX_EPOCH);
        let expected = "The queue: no answer\n\n\
            WORKER  KIND  RUNNING  ATTEMPTS  EVENTS  EVENTS/S\n\
            w:1     demo  3/16     7         90      2.5\n\n\
            EDGE                      CLIENTS  WATCHED JOBS  EVENTS/S  LAG  MEMORY\n\
            http://e: it answers 401\n\n\
            JOB  KIND  STATUS  ATTEMPT  EVENTS  UPDATED\n";
        assert_eq!(shown, expected);
    }

    #[test]
    fn an_error_cannot_send_control_characters_to_the_terminal() {
        let error = || "\x1b]0;title\x07".to_owned();
        let picture = Picture {
            queue: Err(error()),
            jobs: Err(error()),
            edges: vec![("e".into(), Err(error()))],
            workers: vec![("w".into(), Err(error()))],
        };
        let shown = text(&picture, UNIX_EPOCH);
        assert_eq!(shown.matches("␛]0;title␇").count(), 4, "{shown}");
        assert!(!shown.contains(['\x1b', '\x07']), "{shown:?}");
    }
}
