//! A session: one client's read position in one job. It drives a stitcher over the feed's history and the log, and
//! gives the client's transport one thing after another. It knows no transport.

#[cfg(test)]
mod tests;

use std::future::pending;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use tokio::time::{sleep, timeout};

use crate::config::{OPEN_WAIT, REREAD_MAX, STEP_BYTES};
use crate::hub::{FeedWatch, Full, Hub, Waiter};
use crate::resume::{Action, Input, Slice, Stitcher};
use crate::source::{At, EventSource, Refill, Refilled, Replica, Unavailable, first_behind};
use crate::wire::{Code, Cursor, JobId, Seq, Start, Status, Stored, StreamSeq};

/// One client's place in one job. A value, not a task: dropping it ends everything that it holds.
#[derive(Debug)]
pub struct Session<S: EventSource>(State<S>);

#[derive(Debug)]
enum State<S: EventSource> {
    /// Neither the log nor the queue knows the job.
    Waiting { waiter: Waiter<S>, told_live: bool },
    /// The job has a feed. In a box, so that sessions that wait are small.
    Watching(Box<Watching<S>>),
}

/// A session of a job that has a feed.
#[derive(Debug)]
struct Watching<S: EventSource> {
    hub: Arc<Hub<S>>,
    watch: FeedWatch,
    stitcher: Stitcher<Arc<Stored>>,
    refill: Refill<S>,
    /// The place after the last event that was handed over, when one is known.
    stream_seq: Option<StreamSeq>,
    /// Where the feed's history began when the refill was asked for.
    until: Option<Seq>,
    /// A step that comes after the one that was given last.
    next_step: Option<Step>,
    /// Whether the client had the job's end before this session began.
    had_end: bool,
    told_live: bool,
    told_end: bool,
}

/// Where a session stands in its job's log, without what it has read ahead.
#[derive(Clone, Copy, Debug)]
pub struct Position {
    /// The next event to hand over.
    next_seq: Seq,
    /// The stream sequence that it has at least, when one is known.
    stream_seq: Option<StreamSeq>,
}

impl Position {
    /// After this event.
    pub fn after(event: &Stored) -> Self {
        Self {
            next_seq: event.seq.successor(),
            stream_seq: Some(event.stream_seq + 1),
        }
    }
}

/// What a transport tells its client next.
#[derive(Debug)]
pub enum Step {
    /// These events, in order; never none.
    Events(Vec<Arc<Stored>>),
    /// The log no longer has these events.
    Gap {
        /// The first of them.
        from: Seq,
        /// The last of them.
        to: Seq,
    },
    /// Everything that was stored before was handed over; what follows is live. Told once.
    Live,
    /// The job has ended and all of it was handed over. Nothing follows.
    End,
    /// The log is no continuation of what was handed over: it is told as [`Error::CursorNotInLog`]. Nothing follows; who
    /// begins anew gets what the log holds now.
    Rebuilt,
}

/// Why a session cannot begin where its client wants.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The cursor was made for another job.
    #[error("the cursor names an event of another job")]
    CursorOfOtherJob,
    /// Another event stands where the cursor's should be.
    #[error("the log does not hold the cursor's event: it was rebuilt")]
    CursorNotInLog,
    /// The log is shorter than the client says it has read.
    #[error("the log ends at {last}")]
    AfterTheEnd {
        /// The number of the log's last event.
        last: Seq,
    },
    /// The broker does not answer.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// The edge has no room for another watched job.
    #[error(transparent)]
    Full(#[from] Full),
}

impl Error {
    /// The public code.
    pub const fn code(&self) -> Code {
        match self {
            Self::CursorOfOtherJob => Code::CursorOfOtherJob,
            Self::CursorNotInLog => Code::CursorNotInLog,
            Self::AfterTheEnd { .. } => Code::AfterTheEnd,
            Self::Unavailable(_) | Self::Full(_) => Code::Unavailable,
        }
    }
}

impl<S: EventSource> Session<S> {
    /// Begins a session of this process itself after the event that `start` names. The job need not exist yet.
    ///
    /// # Errors
    /// [`Error`]; within [`OPEN_WAIT`] in any case.
    pub async fn open(hub: &Arc<Hub<S>>, job: &JobId, start: Start) -> Result<Self, Error> {
        Self::open_for(IpAddr::V4(Ipv4Addr::LOCALHOST), hub, job, start).await
    }

    /// [`Self::open`] for a client at this address, which has its share of the feeds.
    ///
    /// # Errors
    /// [`Error`]; within [`OPEN_WAIT`] in any case.
    pub async fn open_for(
        from: IpAddr,
        hub: &Arc<Hub<S>>,
        job: &JobId,
        start: Start,
    ) -> Result<Self, Error> {
        let late = |_| Error::Unavailable(Unavailable("no answer in time".into()));
        timeout(OPEN_WAIT, Self::open_now(from, hub, job, start))
            .await
            .map_err(late)?
    }

    async fn open_now(
        from: IpAddr,
        hub: &Arc<Hub<S>>,
        job: &JobId,
        start: Start,
    ) -> Result<Self, Error> {
        if let Start::Cursor(cursor) = start
            && !cursor.is_of(job)
        {
            return Err(Error::CursorOfOtherJob);
        }
        if start == Start::After(Seq(0))
            && let Some(waiter) = hub.wait(job, from).await?
        {
            return Ok(Self(State::Waiting {
                waiter,
                told_live: false,
            }));
        }
        let watch = hub.watch(job, from)?;
        until_open(&watch).await?;
        let (seq, stream_seq, had_end) = match start {
            Start::Cursor(cursor) => (
                cursor.seq,
                Some(cursor.stream_seq.saturating_add(1)),
                prove(hub.source(), &watch, cursor).await?,
            ),
            Start::After(after) => (after, None, check(hub.source(), &watch, after).await?),
        };
        let watching = Watching {
            stream_seq,
            had_end,
            ..Watching::new(hub, watch, seq.successor())
        };
        Ok(Self(State::Watching(Box::new(watching))))
    }

    /// The job.
    pub fn job(&self) -> &JobId {
        match &self.0 {
            State::Waiting { waiter, .. } => waiter.job(),
            State::Watching(watching) => watching.watch.feed().job(),
        }
    }

    /// Whether the client had all of a job that has ended before this session began: there is nothing to tell it.
    pub const fn had_end(&self) -> bool {
        match &self.0 {
            State::Waiting { .. } => false,
            State::Watching(watching) => watching.had_end,
        }
    }

    /// What the job is doing; `None` while it has no event.
    pub fn status(&self) -> Option<Status> {
        match &self.0 {
            State::Waiting { .. } => None,
            State::Watching(watching) => watching.watch.feed().last().map(|last| last.status()),
        }
    }

    /// Where it stands after the steps that it has handed over.
    pub fn position(&self) -> Position {
        match &self.0 {
            State::Waiting { .. } => Position {
                next_seq: Seq::FIRST,
                stream_seq: None,
            },
            State::Watching(watching) => Position {
                next_seq: watching.stitcher.next_seq(),
                stream_seq: watching.stream_seq,
            },
        }
    }

    /// Drops everything that was read ahead and goes back to a position in the last step that it handed over.
    pub fn rewind(&mut self, to: Position) {
        if let State::Watching(watching) = &mut self.0 {
            watching.stitcher = Stitcher::live(to.next_seq, 0);
            watching.refill = Refill::default();
            watching.stream_seq = to.stream_seq;
            watching.until = None;
            watching.next_step = None;
        }
    }

    /// What to tell the client next. After [`Step::End`] and [`Step::Rebuilt`] it waits for ever. Safe to drop at any
    /// await.
    pub async fn next(&mut self) -> Step {
        loop {
            match &mut self.0 {
                State::Watching(watching) => return watching.next().await,
                State::Waiting { told_live, .. } if !*told_live => {
                    *told_live = true;
                    return Step::Live;
                }
                State::Waiting { waiter, .. } => {
                    let watch = watch_known(waiter).await;
                    let watching = Watching::new(waiter.hub(), watch, Seq::FIRST);
                    self.0 = State::Watching(Box::new(Watching {
                        told_live: true,
                        ..watching
                    }));
                }
            }
        }
    }
}

impl<S: EventSource> Watching<S> {
    fn new(hub: &Arc<Hub<S>>, watch: FeedWatch, next: Seq) -> Self {
        Self {
            hub: Arc::clone(hub),
            watch,
            stitcher: Stitcher::live(next, 0),
            refill: Refill::default(),
            stream_seq: None,
            until: None,
            next_step: None,
            had_end: false,
            told_live: false,
            told_end: false,
        }
    }

    /// See [`Session::next`].
    async fn next(&mut self) -> Step {
        loop {
            if self.watch.feed().is_rebuilt() && !self.told_end {
                self.told_end = true;
                return Step::Rebuilt;
            }
            let step = self.drain();
            self.watch
                .report(self.stitcher.next_seq(), self.refill.is_busy());
            if let Some(step) = step {
                return step;
            }
            if self.told_end {
                // The feed may hold undecodable messages after the end; they are not delivered.
                return pending().await;
            }
            if self.refill.is_busy() {
                self.refill().await;
            } else if let Some(step) = self.follow().await {
                return step;
            }
        }
    }

    /// Does what the stitcher says until there is something to tell.
    fn drain(&mut self) -> Option<Step> {
        if let Some(step) = self.next_step.take() {
            return Some(step);
        }
        let mut events = Vec::new();
        while let Some(action) = self.stitcher.poll() {
            match action {
                Action::Deliver(event) => {
                    self.stream_seq = Some(event.stream_seq + 1);
                    events.push(event);
                }
                Action::Gap { from, to } => {
                    self.next_step = Some(Step::Gap { from, to });
                    break;
                }
                Action::Replay { from } => {
                    self.until = match self.watch.feed().read(from, 0) {
                        Some(Slice::TooOld { first }) => Some(first),
                        _ => None,
                    };
                    self.refill.want(from, self.stream_seq, self.until);
                }
                Action::End => {}
            }
        }
        if !events.is_empty() {
            return Some(Step::Events(events));
        }
        if let Some(step) = self.next_step.take() {
            return Some(step);
        }
        if (self.had_end || self.stitcher.is_ended()) && !self.told_end {
            self.told_end = true;
            return Some(Step::End);
        }
        None
    }

    async fn refill(&mut self) {
        let feed = self.watch.feed();
        let refilled = tokio::select! {
            biased;
            () = feed.rebuilt() => return,
            refilled = self.refill.next(self.hub.source(), feed.job()) => refilled,
        };
        match refilled {
            Refilled::Items(items) => {
                for item in items {
                    self.stitcher.handle(Input::Replayed(item));
                }
            }
            Refilled::Done { nothing_left } => {
                self.stitcher.handle(Input::ReplayDone);
                // Where the history begins by now proves nothing: what it has given up since may be in the log.
                if let Some(before) = self.until.filter(|_| nothing_left) {
                    self.stitcher.handle(Input::Gap { before });
                }
            }
        }
    }

    /// Takes what the feed has, or waits until it has something.
    async fn follow(&mut self) -> Option<Step> {
        let feed = self.watch.feed();
        let mut changed = std::pin::pin!(feed.changed());
        changed.as_mut().enable();
        match feed.read(self.stitcher.next_seq(), STEP_BYTES) {
            Some(Slice::Items(items)) => {
                for item in items {
                    self.stitcher.handle(Input::Live(item));
                }
            }
            Some(Slice::TooOld { .. }) => self.stitcher.handle(Input::LiveLagged),
            Some(Slice::CaughtUp) if !self.told_live => {
                self.told_live = true;
                return Some(Step::Live);
            }
            Some(Slice::CaughtUp) | None => changed.await,
        }
        None
    }
}

/// Follows a job to its end for a client at this address, from behind an event that the log has; from its first one when the log is replaced
/// meanwhile.
///
/// # Errors
/// [`Error`].
pub async fn until_ended<S: EventSource>(
    from: IpAddr,
    hub: &Arc<Hub<S>>,
    job: &JobId,
    after: Seq,
) -> Result<(), Error> {
    let mut session = Session::open_for(from, hub, job, Start::After(after)).await?;
    loop {
        match session.next().await {
            Step::End => return Ok(()),
            Step::Rebuilt => {
                session = Session::open_for(from, hub, job, Start::After(Seq(0))).await?
            }
            Step::Events(_) | Step::Gap { .. } | Step::Live => {}
        }
    }
}

/// Watches a job once it is known, and there is room for its feed.
async fn watch_known<S: EventSource>(waiter: &mut Waiter<S>) -> FeedWatch {
    loop {
        let last = waiter.known().await;
        if let Ok(watch) = waiter.watch(last)
            && until_open(&watch).await.is_ok()
        {
            return watch;
        }
        match waiter.again() {
            Ok(again) => *waiter = again,
            Err(Full) => sleep(REREAD_MAX).await,
        }
    }
}

async fn until_open(watch: &FeedWatch) -> Result<(), Full> {
    let feed = watch.feed();
    loop {
        let mut changed = std::pin::pin!(feed.changed());
        changed.as_mut().enable();
        if feed.is_refused() {
            return Err(Full);
        }
        if feed.is_open() {
            return Ok(());
        }
        changed.await;
    }
}

/// Makes sure that the log holds the very event that the cursor names, or held it until it expired. Says whether that
/// event is the job's end.
async fn prove<S: EventSource>(
    source: &S,
    watch: &FeedWatch,
    cursor: Cursor,
) -> Result<bool, Error> {
    let feed = watch.feed();
    if let Some(event) = feed
        .find(cursor.seq)
        .filter(|event| event.cursor() == cursor)
    {
        return Ok(event.event_type.is_end());
    }
    if let At::Event(event) = source
        .at(feed.job(), cursor.stream_seq, Replica::Any)
        .await?
        && event.cursor() == cursor
    {
        return Ok(event.event_type.is_end());
    }
    // A replica may be behind; that the event is not there is the leader's word.
    match source
        .at(feed.job(), cursor.stream_seq, Replica::Leader)
        .await?
    {
        At::Event(event) if event.cursor() == cursor => Ok(event.event_type.is_end()),
        At::Removed => {
            // It expired with what was before it, and what else is gone is told as missing: if the log goes on. One that
            // expired as a whole may have begun anew, and nothing behind the cursor says that it has not.
            let behind = first_behind(source, feed.job(), cursor.stream_seq).await?;
            let goes_on = behind.is_some_and(|first| first.seq > cursor.seq);
            if goes_on {
                Ok(false)
            } else {
                Err(Error::CursorNotInLog)
            }
        }
        At::Event(_) | At::Other | At::NotYet => Err(Error::CursorNotInLog),
    }
}

/// Makes sure that the log is as long as the client says. Says whether the client has all of a job that has ended.
async fn check<S: EventSource>(source: &S, watch: &FeedWatch, after: Seq) -> Result<bool, Error> {
    let feed = watch.feed();
    let mut last = feed.last();
    if last.as_ref().map_or(Seq(0), |last| last.seq) < after {
        last = source.last(feed.job(), Replica::Leader).await?;
    }
    match last {
        Some(last) if last.seq >= after => Ok(last.seq == after && last.event_type.is_end()),
        None if after == Seq(0) => Ok(false),
        last => Err(Error::AfterTheEnd {
            last: last.map_or(Seq(0), |last| last.seq),
        }),
    }
}
