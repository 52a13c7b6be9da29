//! Submits callbacks: a job of the kind `callback` reports how another job ended to its callback
//! address, with attempts and pauses like any other job. The HTTP request is made elsewhere.

use serde_json::json;
use sha2::{Digest as _, Sha256};
use tracing::warn;

use crate::nats::{Delivery, Queue, SubmitOutcome, UsageCache};
use crate::source::Unavailable;
use crate::wire::limits::{LABEL_MAX, NAME_MAX};
use crate::wire::{Body, Event, JobFailure, JobId, Kind, Submission, cut, reserved_kind};

/// Submits the callback of a job that has ended, if it has one. Repeating it is harmless. A
/// callback is abandoned if no worker would deliver it, or if the queue is full: otherwise the job
/// would stay in the queue and take up room.
///
/// # Errors
/// [`Unavailable`]: try again later.
pub(super) async fn request(
    queue: &Queue,
    usage_cache: &UsageCache,
    delivery: &Delivery,
) -> Result<(), Unavailable> {
    let Some(url) = &delivery.submission.callback else {
        return Ok(());
    };
    let Some(last) = queue.log().last(&delivery.job).await? else {
        return Ok(());
    };
    let Ok(end) = last.event() else { return Ok(()) };
    let id = id_for(&delivery.job)?;
    let kind = reserved_kind();
    let reason = match usage_cache.of(queue, &kind).await? {
        None => "no worker has ever served the kind callback",
        Some(usage) => {
            let of = &delivery.submission.kind;
            let whole = Submission::new(kind.clone(), input(url, of, &end));
            let mut submitted = queue.submit_if_room(&id, &whole, &usage).await?;
            if let SubmitOutcome::TooLarge { size, limit } = submitted {
                warn!(job = %delivery.job, size, limit, "the callback is too large, so it is sent without details");
                submitted = queue
                    .submit_if_room(
                        &id,
                        &Submission::new(kind, input(url, of, &without_details(end))),
                        &usage,
                    )
                    .await?;
            }
            match submitted {
                SubmitOutcome::New | SubmitOutcome::Same => return Ok(()),
                // The broker accepts the id again within minutes.
                SubmitOutcome::Removed => {
                    return Err(Unavailable(
                        "a callback with the same id was removed".into(),
                    ));
                }
                SubmitOutcome::TooLarge { .. } => "the broker does not accept messages that large",
                SubmitOutcome::Full => "the queue is full",
                SubmitOutcome::Other => "the callback's id names another job",
                SubmitOutcome::OtherKind => "the callback's id names another kind",
            }
        }
    };
    warn!(job = %delivery.job, reason, "callback abandoned");
    Ok(())
}

/// The id of a job's callback: `callback:` and the job's id. In place of a qualified id, or of one
/// with [`NAME_MAX`] characters, it has the SHA-256 of the id in hexadecimal, which has
/// [`NAME_MAX`] characters. So no two jobs share a callback's id.
fn id_for(job: &JobId) -> Result<JobId, Unavailable> {
    let id = job.as_str();
    let name = if job.kind().is_none() && id.len() < NAME_MAX {
        id.to_owned()
    } else {
        format!("{:x}", Sha256::digest(id))
    };
    JobId::qualified(&reserved_kind(), &name)
        .map_err(|_| Unavailable("the callback has no id".into()))
}

/// The same final event with its details cut, so that it fits into any message.
fn without_details(mut end: Event) -> Event {
    match &mut end.body {
        Body::Done {
            usage,
            finish_reason,
        } => {
            *usage = None;
            finish_reason
                .iter_mut()
                .for_each(|reason| cut(reason, LABEL_MAX));
        }
        Body::Failed(JobFailure { code, message, .. }) => {
            cut(code, LABEL_MAX);
            cut(message, LABEL_MAX);
        }
        Body::Queued { .. }
        | Body::Started { .. }
        | Body::Chunk { .. }
        | Body::Data { .. }
        | Body::Retrying { .. }
        | Body::CancelRequested { .. }
        | Body::Cancelled {}
        | Body::Unknown => {}
    }
    end
}

/// The input of the callback job: the address and the report, without the job's output.
fn input(url: &str, kind: &Kind, end: &Event) -> serde_json::Value {
    let (status, error, usage, finish_reason) = match &end.body {
        Body::Done {
            usage,
            finish_reason,
        } => ("done", None, usage.clone(), finish_reason.clone()),
        Body::Failed(failure) => ("failed", Some(failure), None, None),
        Body::Queued { .. }
        | Body::Started { .. }
        | Body::Chunk { .. }
        | Body::Data { .. }
        | Body::Retrying { .. }
        | Body::CancelRequested { .. }
        | Body::Cancelled {}
        | Body::Unknown => ("cancelled", None, None, None),
    };
    json!({"url": url, "type": format!("job.{status}"), "data": {
        "id": end.job, "kind": kind, "status": status, "attempt": end.attempt, "seq": end.seq,
        "error": error, "usage": usage, "finish_reason": finish_reason, "ended_at": end.ts,
    }})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Seq;

    fn end(body: Body) -> Event {
        Event {
            body,
            job: "j".parse().unwrap(),
            seq: Seq(9),
            attempt: 2,
            ts: 7,
        }
    }

    #[test]
    fn a_callback_reports_how_the_job_ended_without_its_output() {
        let end = end(Body::Done {
            usage: Some(json!({"words": 3})),
            finish_reason: Some("stop".into()),
        });
        let expected = json!({"url": "http://h/", "type": "job.done", "data": {"id": "j", "kind": "k",
            "status": "done", "attempt": 2, "seq": 9, "error": null, "usage": {"words": 3},
            "finish_reason": "stop", "ended_at": 7}});
        assert_eq!(input("http://h/", &"k".parse().unwrap(), &end), expected);
    }

    #[test]
    fn a_final_event_that_is_too_large_is_reported_without_its_details() {
        let kind = "k".parse().unwrap();
        let report = |body| input("http://h/", &kind, &without_details(end(body)))["data"].clone();
        let done = report(Body::Done {
            usage: Some(json!(vec![0.5; 100_000])),
            finish_reason: Some("r".repeat(1 << 20)),
        });
        assert_eq!(
            (&done["status"], &done["usage"]),
            (&json!("done"), &json!(null))
        );
        let failed = report(Body::Failed(JobFailure {
            code: "c".into(),
            message: "m".repeat(1 << 20),
            retryable: false,
        }));
        assert_eq!(
            (&failed["status"], &failed["error"]["code"]),
            (&json!("failed"), &json!("c"))
        );
        for data in [done, failed] {
            assert!(data.to_string().len() < 1000, "{data}");
        }
    }

    #[test]
    fn even_the_longest_id_has_a_callback_id_of_its_own() {
        let of = |id: &str| id_for(&id.parse().unwrap()).unwrap();
        assert_eq!(of("job-1").as_str(), "callback:job-1");
        // printf %s demo:job-1 | sha256sum
        let qualified = of("demo:job-1");
        assert_eq!(
            qualified.as_str(),
            "callback:4f6fde3081251b4686495f1f997006250316592f6e478ed80481e31406477ee4"
        );
        let names = ["x".repeat(63), "x".repeat(64), "demo:x".to_owned()];
        let longest = format!("{0}:{0}", "x".repeat(64));
        let mut ids = names.iter().map(|name| of(name)).collect::<Vec<_>>();
        // The name of a callback is a plain id, too, with another callback.
        ids.extend([of(&longest), of(qualified.name()), qualified]);
        for (index, id) in ids.iter().enumerate() {
            assert_eq!(id.kind(), Some("callback"));
            assert!(!ids[..index].contains(id), "{id}");
        }
    }
}
