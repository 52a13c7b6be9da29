//! Finds the jobs of a chat in the log: each request to answer is a turn, and each turn is a job.
//!
//! The log is searched by job id, so the id is computed from what is known when a page resumes: the
//! kind that answers chats, and the chat's id. (The id of the last message would be unknown.) The
//! turns of a period are numbered from 1 without gaps, so a few reads find the last one:
//!
//! ```text
//!   demo:chat-abc_t62208-1   demo:chat-abc_t62208-2   demo:chat-abc_t62209-1
//!   kind      id   period turn
//! ```
//!
//! A period is shorter than the log's retention, so the first turns of the current one have not
//! expired, and the search does not depend on older ones.

use std::future::Future;

use sha2::{Digest as _, Sha256};

use crate::config::{CHAT_PERIOD, CHAT_TURNS_MAX};
use crate::wire::limits::NAME_MAX;
use crate::wire::{JobId, Kind};

/// The turns of one chat.
#[derive(Debug)]
pub(super) struct ChatTurns {
    prefix: String,
}

/// A turn that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ChatTurn {
    pub(super) job: JobId,
    period: u64,
    number: u32,
    /// Whether its job has not ended.
    pub(super) is_active: bool,
}

impl ChatTurns {
    /// The turns of a chat that this kind answers.
    pub(super) fn of(kind: &Kind, chat: &str) -> Self {
        Self {
            prefix: format!("{kind}:{}", name_prefix(chat)),
        }
    }

    fn job(&self, period: u64, number: u32) -> Option<JobId> {
        format!("{}{period}-{number}", self.prefix).parse().ok()
    }

    /// The first turn of a period or the one after another turn; `None` if a period has too many.
    pub(super) fn after(&self, last: Option<&ChatTurn>, now_ms: u64) -> Option<JobId> {
        let period = period_of(now_ms);
        // A clock of another edge may be ahead.
        let last = last.filter(|last| last.period >= period);
        let (period, number) = last.map_or((period, 1), |last| (last.period, last.number + 1));
        if number > CHAT_TURNS_MAX {
            return None;
        }
        self.job(period, number)
    }

    /// The last turn of a chat that `look` can find: it returns whether a job is active, and `None`
    /// for an unknown one.
    pub(super) async fn last<E, W: Future<Output = Result<Option<bool>, E>>>(
        &self,
        now_ms: u64,
        look: impl Fn(JobId) -> W,
    ) -> Result<Option<ChatTurn>, E> {
        let period = period_of(now_ms);
        // The clocks of edges differ a little.
        let next = period_of(now_ms + CLOCKS_DIFFER_MS);
        let mut periods = vec![next, period, period.saturating_sub(1)];
        periods.dedup();
        for period in periods {
            if let Some(turn) = self.last_in(period, &look).await? {
                return Ok(Some(turn));
            }
        }
        Ok(None)
    }

    /// The last turn of a period: doubles the number until a turn is unknown, then halves the
    /// interval.
    async fn last_in<E, W: Future<Output = Result<Option<bool>, E>>>(
        &self,
        period: u64,
        look: &impl Fn(JobId) -> W,
    ) -> Result<Option<ChatTurn>, E> {
        let mut found = None;
        let mut known = 0;
        let mut unknown = CHAT_TURNS_MAX + 1;
        let mut number = 1;
        while known + 1 < unknown {
            let Some(job) = self.job(period, number) else {
                return Ok(found);
            };
            match look(job.clone()).await? {
                Some(is_active) => {
                    known = number;
                    found = Some(ChatTurn {
                        job,
                        period,
                        number,
                        is_active,
                    });
                }
                None => unknown = number,
            }
            number = if unknown > CHAT_TURNS_MAX {
                (known * 2).min(CHAT_TURNS_MAX)
            } else {
                known.midpoint(unknown)
            };
        }
        Ok(found)
    }
}

/// How the names of a chat's jobs begin.
fn name_prefix(chat: &str) -> String {
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    // An underscore is doubled, so that the ids of no two chats begin alike up to their `_t`.
    let escaped = chat.replace('_', "__");
    let prefix = format!("chat-{escaped}_t");
    let is_valid = !chat.is_empty() && chat.bytes().all(is_name);
    // A period has 5 digits until the year 2061, and 20 at most; a turn has at most 4.
    if is_valid && prefix.len() + 20 <= NAME_MAX {
        return prefix;
    }
    let digest = Sha256::digest(chat);
    let hex: String = digest
        .iter()
        .take(16)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("chatid-{hex}_t")
}

/// How far the clocks of two edges may differ.
const CLOCKS_DIFFER_MS: u64 = 60_000;

fn period_of(now_ms: u64) -> u64 {
    let length = u64::try_from(CHAT_PERIOD.as_millis()).unwrap_or(u64::MAX);
    now_ms / length
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::convert::Infallible;

    const NOW: u64 = 1_795_000_000_000;

    fn kind() -> Kind {
        "demo".parse().unwrap()
    }

    /// The number of the last turn that a search finds among these, and how many jobs it looked up.
    async fn search(period: u64, last: u32) -> (Option<u32>, u32) {
        let turns = ChatTurns::of(&kind(), "abc");
        let looks = Cell::new(0);
        let found = turns
            .last(NOW, |job: JobId| {
                looks.set(looks.get() + 1);
                let known = (1..=last).any(|n| turns.job(period, n) == Some(job.clone()));
                async move { Ok::<_, Infallible>(known.then_some(true)) }
            })
            .await
            .unwrap();
        (found.map(|turn| turn.number), looks.get())
    }

    #[tokio::test]
    async fn the_last_turn_is_found_with_few_reads() {
        let period = period_of(NOW);
        for last in [1, 2, 3, 4, 5, 7, 8, 9, 100, CHAT_TURNS_MAX] {
            for period in [period, period - 1] {
                let (found, looks) = search(period, last).await;
                assert_eq!(found, Some(last));
                assert!(looks <= 2 * last.ilog2() + 4, "{looks} for {last}");
            }
        }
        assert_eq!(search(period, 0).await, (None, 2));
        assert_eq!(search(period - 2, 5).await.0, None);
    }

    #[test]
    fn names_have_the_ids_of_chats_of_up_to_37_characters() {
        for (length, beginning) in [(37, "chat-x"), (38, "chatid-")] {
            let prefix = name_prefix(&"x".repeat(length));
            assert!(prefix.starts_with(beginning), "{prefix}");
        }
    }

    #[tokio::test]
    async fn the_next_turn_follows_the_last_one_of_the_period() {
        let turns = ChatTurns::of(&kind(), "abc");
        let period = period_of(NOW);
        let turn = |period, number| ChatTurn {
            job: turns.job(period, number).unwrap(),
            period,
            number,
            is_active: false,
        };
        let next = |last: Option<ChatTurn>| turns.after(last.as_ref(), NOW);
        assert_eq!(next(None), turns.job(period, 1));
        assert_eq!(next(Some(turn(period, 4))), turns.job(period, 5));
        assert_eq!(next(Some(turn(period - 1, 4))), turns.job(period, 1));
        assert_eq!(next(Some(turn(period + 1, 4))), turns.job(period + 1, 5));
        assert_eq!(next(Some(turn(period, CHAT_TURNS_MAX))), None);
    }

    #[test]
    fn the_jobs_of_two_chats_begin_differently() {
        let ids = [
            "a",
            "a_t",
            "a__t",
            "a_t1",
            "a_",
            "_",
            "__",
            "a-",
            "",
            "é",
            "e",
            &"x".repeat(99),
            &"x".repeat(98),
            &"_".repeat(30),
        ];
        let prefixes: Vec<_> = ids
            .iter()
            .map(|id| ChatTurns::of(&kind(), id).prefix)
            .collect();
        for (n, one) in prefixes.iter().enumerate() {
            for (m, other) in prefixes.iter().enumerate() {
                assert!(n == m || !one.starts_with(other), "{one} {other}");
            }
            let job = ChatTurns::of(&kind(), ids[n]).job(period_of(NOW), CHAT_TURNS_MAX);
            assert!(job.is_some(), "{one}");
        }
        assert_eq!(
            ChatTurns::of(&kind(), "abc")
                .job(62_208, 7)
                .unwrap()
                .as_str(),
            "demo:chat-abc_t62208-7"
        );
    }
}
