//! What a client may do with the turns of a chat: start one, resume it, stop it. It knows no
//! transport.

use std::net::IpAddr;
use std::sync::Arc;

use serde_json::Value;

use super::turns::{ChatTurn, ChatTurns};
use crate::auth::Operation;
use crate::edge::access::{Access, unix_ms};
use crate::edge::app::App;
use crate::edge::error::Problem;
use crate::edge::jobs::submission_memory;
use crate::edge::memory::{SplitReservation, weight};
use crate::nats::Reader;
use crate::session::Session;
use crate::source::KnownJob;
use crate::wire::{Code, JobId, Seq, Start, Submission, WatchTokenTerms};

/// How often a submission is tried again because another one was faster.
const TRIES: usize = 5;

/// A client's request about one chat.
pub(super) struct TurnRequest {
    pub(super) app: Arc<App>,
    access: Access,
    from: IpAddr,
    /// `None` on an edge that answers no chats.
    turns: Option<ChatTurns>,
}

impl TurnRequest {
    pub(super) fn new(app: Arc<App>, access: Access, from: IpAddr, chat: &str) -> Self {
        let kind = app.settings.chat_kind.as_ref();
        Self {
            turns: kind.map(|kind| ChatTurns::of(kind, chat)),
            app,
            access,
            from,
        }
    }

    /// The client's address and its access.
    pub(super) fn client(self) -> (IpAddr, Access) {
        (self.from, self.access)
    }

    /// Starts the next turn with this input, or joins the active one if it has the same. An active
    /// one with another input is cancelled. Returns a session from its start. Holds the memory that
    /// was reserved for the input until the turn is queued.
    pub(super) async fn answer(
        &self,
        input: Value,
        mut reservation: SplitReservation,
    ) -> Result<Session<Reader>, Problem> {
        // The protocol's messages are smaller or larger than those of a completion.
        reservation.resize(submission_memory(weight(&input)))?;
        let kind = self.app.settings.chat_kind.clone().ok_or_else(|| {
            let message = "This edge answers no chats. Start it with --chat-kind.";
            Problem::new(Code::NotFound, message)
        })?;
        self.access.require(Operation::Submit(&kind))?;
        let submission = Submission::new(kind, input);
        submission.check()?;
        let job = self.start(submission).await?;
        drop(reservation);
        self.open(&job).await
    }

    /// A session from the start of the active turn; `None` if there is none that the client may
    /// watch. What is stored now is compacted, without the text of superseded attempts.
    pub(super) async fn resume(&self) -> Result<Option<Session<Reader>>, Problem> {
        let Some(turn) = self.visible().await? else {
            return Ok(None);
        };
        let mut session = self.open(&turn.job).await?;
        session.compact_stored(&self.app.shared.memory().merged);
        Ok(Some(session))
    }

    /// Cancels the active turn, unless `expected` names another job. Returns the job.
    pub(super) async fn stop(&self, expected: Option<&str>) -> Result<Option<JobId>, Problem> {
        let turn = self.visible().await?;
        let turn = turn.filter(|turn| expected.is_none_or(|job| job == turn.job.as_str()));
        match turn {
            Some(turn) => self.cancel(turn.job).await,
            None => Ok(None),
        }
    }

    async fn open(&self, job: &JobId) -> Result<Session<Reader>, Problem> {
        let start = Start::After(Seq(0));
        Ok(Session::open_for(self.from, &self.app.hub, job, start).await?)
    }

    /// The last turn of the chat.
    async fn last(&self) -> Result<Option<ChatTurn>, Problem> {
        let Some(turns) = &self.turns else {
            return Ok(None);
        };
        let _slot = self.app.shared.requests().acquire(self.from)?;
        let look = |job: JobId| async move {
            let found = self.app.queue.find(&job).await?;
            Ok::<_, Problem>(found.map(|found| match found {
                KnownJob::Logged(last) => !last.event_type.is_end(),
                KnownJob::Queued(_) => true,
            }))
        };
        turns.last(unix_ms(), look).await
    }

    /// The active turn, if there is one that the client may watch.
    async fn visible(&self) -> Result<Option<ChatTurn>, Problem> {
        let Some(turn) = self.last().await?.filter(|turn| turn.is_active) else {
            return Ok(None);
        };
        match self.access.require(Operation::Watch(&turn.job)) {
            Ok(()) => Ok(Some(turn)),
            // Answered like a chat without an active job.
            Err(Code::JobNotFound) => Ok(None),
            Err(code) => Err(code.into()),
        }
    }

    async fn start(&self, mut submission: Submission) -> Result<JobId, Problem> {
        for _ in 0..TRIES {
            let last = self.last().await?;
            if let Some(active) = last.as_ref().filter(|turn| turn.is_active) {
                if self.submit(&active.job, &mut submission).await? {
                    return Ok(active.job.clone());
                }
                self.cancel(active.job.clone()).await?;
            }
            let turns = self.turns.as_ref();
            let next = turns.and_then(|turns| turns.after(last.as_ref(), unix_ms()));
            let next = next.ok_or_else(|| {
                Problem::new(Code::QueueFull, "The chat has too many turns for now.")
            })?;
            if self.submit(&next, &mut submission).await? {
                return Ok(next);
            }
        }
        Err(Code::Overloaded.into())
    }

    /// Submits a job with this id. Returns whether the id is this very job's.
    async fn submit(&self, job: &JobId, submission: &mut Submission) -> Result<bool, Problem> {
        submission.id = Some(job.clone());
        let terms = WatchTokenTerms::default();
        let submitted = self
            .app
            .submit_job(&self.access, self.from, submission, None, terms);
        match submitted.await {
            Ok(accepted) => {
                if !accepted.new {
                    self.access.require(Operation::Watch(job))?;
                }
                Ok(true)
            }
            Err(problem) if problem.code() == Code::JobExists => Ok(false),
            Err(problem) => Err(problem),
        }
    }

    /// Requests that a job be cancelled; `None` if it has ended meanwhile.
    async fn cancel(&self, job: JobId) -> Result<Option<JobId>, Problem> {
        let cancelled = self.app.cancel(&self.access, self.from, job.clone());
        let cancelled = cancelled.await;
        match cancelled {
            Ok(_) => Ok(Some(job)),
            Err(problem) if problem.code() == Code::JobEnded => Ok(None),
            Err(problem) => Err(problem),
        }
    }
}
